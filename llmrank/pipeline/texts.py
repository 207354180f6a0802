"""The texts that a pipeline reads, and how they pass through the model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from llmrank.errors import check_count
from llmrank.healing import Distillation
from llmrank.models.forward import fitting_length
from llmrank.pipeline.defaults import DEFAULT_LENGTH, DEFAULT_SAMPLES, MOST_REPAIR_TOKENS
from llmrank.pipeline.ranking import Ranking
from llmrank.progress import Progress
from llmrank.text import CalibrationTokens, TokenSequences, tokenise
from llmrank.text.other_text import add_other_text, is_alone
from llmrank.text.sequences import Request
from llmrank.text.sources import find_source, make_sequences

__all__ = ["CalibrationText", "EvaluationText", "RankedText", "Text", "n_held_out"]

# For this many calibration sequences, one more is held out from a repair.
FITTED_PER_HELD_OUT = 8


@dataclass(frozen=True)
class CalibrationText:
    """The text that statistics are taken on, and how it passes through the model.

    Parameters
    ----------
    source : path, text, list of texts, "dataset:NAME", "built-in", "generated", "auto", mapping, or tensor; optional
        See :func:`llmrank.text.sources.make_sequences`; the built-in text by default. "generated" is text that the
        model writes itself; "auto" is "generated" if the model can write text, else "built-in". A mapping from sources to shares
        is a mixture. A float tensor is for a module that is not a language model: each row is one example of its input.
    samples : int, optional
        Largest number of sequences that are cut from a text; by default 16 or, if the model is healed after the repair, enough
        for as many tokens as it heals with, up to 131,072.
    sequence_length : int
        Their length in tokens (at most what the model takes). All of a tensor is used; a list of several texts gives one sequence
        for each text. To a text that is neither a list nor a mixture, one sequence of the built-in text is added for every five,
        see :mod:`llmrank.text.other_text`.
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
    samples: int | None = None
    sequence_length: int = DEFAULT_LENGTH
    batch_size: int = 1
    seed: int = 0
    ranking: None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.samples is not None:
            check_count("samples", self.samples)
        check_count("sequence_length", self.sequence_length)
        check_count("batch_size", self.batch_size)

    @classmethod
    def of(cls, source: Any) -> Text:
        """Make settings from a source, unless it is a text with settings already."""
        return source if isinstance(source, (CalibrationText, RankedText)) else cls(source)

    @property
    def n_sequences(self) -> int:
        """Largest number of sequences that are cut from a text."""
        return DEFAULT_SAMPLES if self.samples is None else self.samples

    def for_model(self, model: Any, healing: Distillation | None = None) -> CalibrationText:
        """Return these settings with "auto" and the default of `samples` replaced by what they mean for a model and its healing.

        On SmolLM2, a repair on as many tokens as healing learns from brings back nearly as much as that healing does, and the
        healing then gains on top of it (benchmarks/LOG.md; on Gemma 3 270M the repair gains on its own kind of text alone).
        """
        source, text = find_source(self.source), self
        chosen = None if source is None else source.for_model(model)
        if chosen is not source:
            text = replace(text, source=str(chosen))
        if self.samples is None and healing is not None:
            tokens, length = min(healing.tokens, MOST_REPAIR_TOKENS), fitting_length(model, self.sequence_length)
            text = replace(text, samples=max(DEFAULT_SAMPLES, math.ceil(tokens / length)))
        return text

    def sequences(
        self, model: Any, tokenizer: Any, *, hold_out: bool, progress: Progress | None = None
    ) -> CalibrationTokens:
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
        CalibrationTokens
            If sequences must be held out, but the text ends before, the last sequences are marked as held out, unless there is
            only one.
        """
        further = n_held_out(self.n_sequences) if hold_out else 0
        length = fitting_length(model, self.sequence_length)
        request = Request(tokenizer, self.n_sequences, length, further, model=model, seed=self.seed, progress=progress)
        sequences, held_out = make_sequences(self.source, request)
        marked = n_held_out(len(sequences)) if further and held_out is None and len(sequences) > 1 else 0
        if not is_alone(self.source, model):
            fit, last = sequences.split(len(sequences) - marked)
            added = add_other_text(fit, tokenizer)
            sequences = replace(added.joined(last), source=added.source, details=added.details)
        return CalibrationTokens(replace(sequences, held_out=marked) if marked else sequences, held_out)


@dataclass(frozen=True)
class RankedText:
    """The text of a ranking: a directory with the statistics, tokens and scores of a model, which need not run on the text again.

    Parameters
    ----------
    ranking : Ranking
    batch_size : int
        Number of sequences in a forward pass of a repair.
    """

    ranking: Ranking
    batch_size: int = 1
    source: None = field(default=None, init=False)

    @property
    def n_sequences(self) -> int:
        """Number of sequences."""
        return len(self.ranking.sequences)

    @property
    def sequence_length(self) -> int:
        """Length of the sequences in tokens."""
        return self.ranking.sequences.length

    def for_model(self, _model: Any, _healing: Distillation | None = None) -> RankedText:
        """Return these settings: the text is known."""
        return self

    def sequences(self, *_: Any, hold_out: bool, **__: Any) -> CalibrationTokens:
        """See :meth:`CalibrationText.sequences`."""
        ranking = self.ranking
        return CalibrationTokens(ranking.sequences, *((ranking.held_out, ranking.other) if hold_out else (None, None)))


# A text that statistics are taken on: one to make token sequences of, or the sequences of a ranking.
Text: TypeAlias = CalibrationText | RankedText


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
        check_count("samples", self.samples)

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


def n_held_out(samples: int) -> int:
    """Return how many sequences to hold out from a repair: one for every eight of `samples`, and at least one."""
    return max(1, samples // FITTED_PER_HELD_OUT)
