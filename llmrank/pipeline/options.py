"""The options of a pipeline: settings of the texts that it reads, and a check of the options before any work is done."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from llmrank.calibration.statistics import FFNStatistics
from llmrank.errors import OptionError, check_type
from llmrank.models import FFNs
from llmrank.models.costs import unit_name
from llmrank.models.digest import weights_digest
from llmrank.models.forward import fitting_length
from llmrank.pipeline.ranking import Ranking
from llmrank.progress import Progress
from llmrank.prune import BasePruner
from llmrank.prune.schedule import check_steps
from llmrank.repair import BaseRepair
from llmrank.score import AutoScorer, BaseScorer
from llmrank.surgery.forms import FORMS, Form
from llmrank.surgery.widths import ALIGNMENTS, Align
from llmrank.text import TokenSequences, n_held_out, tokenise
from llmrank.text.sequences import Request
from llmrank.text.sources import find_source, make_sequences

__all__ = ["DEFAULT_LENGTH", "DEFAULT_SAMPLES", "CalibrationText", "EvaluationText", "RankedText", "check_options"]

DEFAULT_SAMPLES = 16
DEFAULT_LENGTH = 1024


@dataclass(frozen=True)
class CalibrationText:
    """The text that statistics are taken on, and how it passes through the model.

    Parameters
    ----------
    source : path, text, list of texts, "dataset:NAME", "built-in", "generated", "auto", mapping, or tensor; optional
        See :func:`llmrank.text.sources.make_sequences`; the built-in text by default. "generated" is text that the
        model writes itself; "auto" is "generated" if the model can write text, else "built-in". A mapping from sources to shares
        is a mixture. A float tensor is for a module that is not a language model: each row is one example of its input.
    samples, sequence_length : int
        Largest number of sequences that are cut from a text, and their length in tokens (at most what the model takes). All of
        a tensor is used; a list of several texts gives one sequence for each text.
    batch_size : int
        Number of sequences in a forward pass. Of a float tensor, a pass takes at least 256 rows.
    seed : int
        Seed of generated text, of what is drawn from datasets, and of the order in a mixture.

    Raises
    ------
    OptionError
        `samples`, `sequence_length` or `batch_size` is not an integer >= 1.
    """

    source: Any = None
    samples: int = DEFAULT_SAMPLES
    sequence_length: int = DEFAULT_LENGTH
    batch_size: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _check_counts(samples=self.samples, sequence_length=self.sequence_length, batch_size=self.batch_size)

    @classmethod
    def of(cls, source: Any) -> CalibrationText:
        """Make settings from a source, unless it is a :class:`CalibrationText` already."""
        return source if isinstance(source, CalibrationText) else cls(source)

    def for_model(self, model: Any) -> CalibrationText:
        """Return these settings with the source "auto" replaced by the one that it means for this model."""
        source = find_source(self.source)
        chosen = None if source is None else source.for_model(model)
        return self if chosen is source else replace(self, source=str(chosen))

    def sequences(
        self, model: Any, tokenizer: Any, *, hold_out: bool, progress: Progress | None = None
    ) -> tuple[TokenSequences, TokenSequences | None]:
        """Make the calibration sequences, and those to hold out from a repair.

        Parameters
        ----------
        model : nn.Module
        tokenizer : transformers tokenizer or None
        hold_out : bool
            Whether to hold out sequences: one for every eight, but at least one.
        progress : callable, optional
            Shows the writing of generated text.

        Returns
        -------
        sequences : TokenSequences
            If sequences must be held out, but the text ends here, the last of these sequences are marked as held out, unless
            there is only one.
        held_out : TokenSequences or None
            The sequences that follow in the text; None if the text ends before, or without `hold_out`.
        """
        further = n_held_out(self.samples) if hold_out else 0
        length = fitting_length(model, self.sequence_length)
        request = Request(tokenizer, self.samples, length, further, model=model, seed=self.seed, progress=progress)
        sequences, held_out = make_sequences(self.source, request)
        if further and held_out is None and len(sequences) > 1:
            sequences = replace(sequences, held_out=n_held_out(len(sequences)))
        return sequences, held_out

    def statistics(self, model: Any, ffns: FFNs) -> tuple[FFNStatistics, ...] | None:  # noqa: ARG002 -- for RankedText
        """Return the statistics of a model's FFNs on this text if they are known, else None."""
        return None


@dataclass(frozen=True)
class RankedText(CalibrationText):
    """The text of a ranking: a directory with the statistics, tokens and scores of a model, which need not run on the text again.

    Parameters
    ----------
    ranking : Ranking
    batch_size : int
        Number of sequences in a forward pass of a repair.
    """

    ranking: Ranking | None = None

    @classmethod
    def of_ranking(cls, ranking: Ranking, batch_size: int = 1) -> RankedText:
        """Make the settings that stand for the text of a ranking."""
        sequences = ranking.sequences
        return cls(None, len(sequences), sequences.length, batch_size, ranking=ranking)

    def for_model(self, model: Any) -> RankedText:  # noqa: ARG002 -- the text is known
        """Return these settings."""
        return self

    def sequences(
        self,
        model: Any,  # noqa: ARG002 -- the text is known
        tokenizer: Any,  # noqa: ARG002
        *,
        hold_out: bool,
        progress: Progress | None = None,  # noqa: ARG002
    ) -> tuple[TokenSequences, TokenSequences | None]:
        """See :meth:`CalibrationText.sequences`."""
        ranking = self._ranking()
        return ranking.sequences, ranking.held_out if hold_out else None

    def statistics(self, model: Any, ffns: FFNs) -> tuple[FFNStatistics, ...]:
        """Return the statistics of the ranking.

        Raises
        ------
        OptionError
            The ranking is of another model, or of other FFNs.
        """
        ranking = self._ranking()
        if ranking.settings["weights"] != weights_digest(model) or ranking.settings["layers"] != ffns.sizes:
            raise OptionError(
                f"the ranking is of {ranking.settings['model']}, and this {type(model).__name__} has other weights; give the "
                "model that was ranked, in the same dtype"
            )
        return ranking.statistics

    def _ranking(self) -> Ranking:
        if self.ranking is None:
            raise OptionError("a RankedText needs a ranking; make it with RankedText.of_ranking")
        return self.ranking


@dataclass(frozen=True)
class EvaluationText:
    """The text that perplexity is measured on, before and after pruning; its sequences are as long as those for calibration.

    Parameters
    ----------
    source : path, text, list of texts, "dataset:NAME", "built-in", or tensor of token ids; optional
        "built-in", the default, is the part of the built-in text that is not used for calibration.
    samples : int
        Largest number of sequences that are cut from a text.

    Raises
    ------
    OptionError
        `samples` is not an integer >= 1.
    """

    source: Any = None
    samples: int = DEFAULT_SAMPLES

    def __post_init__(self) -> None:
        _check_counts(samples=self.samples)

    @classmethod
    def of(cls, source: Any) -> EvaluationText | None:
        """Make settings from a source, or the default settings from True; None and False give None (no evaluation)."""
        if source is None or source is False:
            return None
        if source is True:
            return cls()
        return source if isinstance(source, EvaluationText) else cls(source)

    def sequences(self, model: Any, tokenizer: Any, sequence_length: int) -> TokenSequences:
        """Make sequences of `sequence_length` tokens, or of fewer if the model takes fewer."""
        return tokenise(self.source, tokenizer, self.samples, fitting_length(model, sequence_length), "evaluation")


def _check_counts(**counts: int) -> None:
    for name, number in counts.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise OptionError(f"{name} must be an integer >= 1, got {number!r}")


def check_kinds(model: Any, progress: Any, work_directory: Any) -> None:
    """Raise an OptionError if one of these options of :class:`llmrank.pipeline.BasePipeline` is of another type."""
    check_type("model", model, nn.Module, "a torch module (llmrank.load(...).model loads one)")
    if progress is not None and not callable(progress):
        raise OptionError(f"progress must be a function such as rich.progress.track, or None, got {progress!r}")
    if work_directory is not None:
        check_type("work_directory", work_directory, (str, os.PathLike), "a path")


def check_options(
    structure_dict: Mapping[str, Any] | None,
    scorer: BaseScorer | None,
    pruner: BasePruner | None,
    form: Form | None,
    align: Align,
    repair: BaseRepair | None,
    steps: int,
    *,
    by_block: bool = False,
    undoable: bool = True,
) -> None:
    """Raise unless these options of :class:`llmrank.pipeline.BasePipeline` are of the right kind and go together.

    Raises
    ------
    OptionError
        An option is unknown, of the wrong kind or out of range, or two do not go together.
    """
    for name, value, base in (("scorer", scorer, BaseScorer), ("pruner", pruner, BasePruner)):
        if value is not None and not isinstance(value, base):
            raise OptionError(
                f"{name} must be an instance of {base.__name__}, got {value!r}; make_{name} of llmrank.pipeline.registry "
                "makes one by its name"
            )
    if form is not None and form not in FORMS:
        raise OptionError(f"unknown form {form!r}; expected one of {', '.join(FORMS)}")
    if align not in ALIGNMENTS:
        raise OptionError(f"unknown align {align!r}; expected one of {', '.join(ALIGNMENTS)}")
    if align == "pad" and form not in (None, "compact"):
        raise OptionError(f"align='pad' is for the compact form; form={form!r} keeps every width anyway")
    if repair is not None and not isinstance(repair, BaseRepair):
        raise OptionError(
            f"repair must be an instance of BaseRepair, got {repair!r}; make_repair of llmrank.pipeline.registry "
            "makes one by its name"
        )
    if repair is not None and structure_dict is not None:
        raise OptionError("repair needs whole FFNs, and structure_dict prunes rows of Linears; leave one of them out")
    if structure_dict is not None and isinstance(scorer, AutoScorer):
        raise OptionError(
            "a choice of scorers tries cuts of whole FFNs, and structure_dict prunes rows of Linears; give one scorer with it, "
            "such as WeightedPageRankScorer()"
        )
    if structure_dict is not None and pruner is not None and pruner.needs_sensitivity:
        raise OptionError(
            f"{type(pruner).__name__} needs the sensitivities of whole FFNs, and structure_dict prunes rows of Linears; "
            "use LocalPruner or GlobalPruner with it"
        )
    if structure_dict is not None and pruner is not None and pruner.amount_of != "neurons":
        raise OptionError(
            "structure_dict zeroes rows of Linears, which makes nothing smaller: an amount of "
            f"{unit_name(pruner.amount_of)} means nothing there; use amount_of='neurons' with it"
        )
    check_steps(steps)
    if by_block and (structure_dict is not None or undoable or steps != 1 or form not in (None, "compact")):
        raise OptionError(
            "a run with little memory takes no structure_dict, prunes in one step into the compact form, and cannot be undone; "
            "leave structure_dict, steps and form out, and pass undoable=False"
        )
    if structure_dict is not None and (form == "compact" or align == "pad"):
        raise OptionError(
            "form='compact' and align='pad' are refused with structure_dict, which keeps every width; use form 'zero' or 'mask' "
            "and align 'none'"
        )
