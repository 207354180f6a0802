"""The choice among candidate scorers: each is tried by a cut, and the pruned models are compared with the dense one.

Two kinds of text count: held-out tokens of the calibration's kind, and held-out tokens of another kind, the built-in text. What
counts is the geometric mean of a candidate's divergences from the dense model on both. So both kinds count
equally, by how many times closer one candidate is than another, though divergences on other text are larger. The first candidate
that is not behind the closest one by more than a standard error is taken. Where the trials cannot tell candidates apart, their
order therefore chooses, and not noise.

The divergence counts and not the loss, because held-out tokens often continue the very text that the statistics are from: there
the loss favours scores that fit this text (benchmarks/LOG.md).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text
from torch import nn

from llmrank.evaluation.estimate import Estimate
from llmrank.execution import Execution
from llmrank.file_contents import NUMBER, check_fields
from llmrank.models import FFNs
from llmrank.pipeline.closeness.distance import DenseReference, Distances, Measure
from llmrank.prune.masks import Masks
from llmrank.text import TokenSequences

__all__ = ["FEWEST_TOKENS", "Choice", "Trial", "choose", "pieces", "tokens_of_a_trial", "try_candidates"]

logger = logging.getLogger(__name__)

# Largest length of the sequences that candidates are compared on, and how many there are at least: many short ones have a smaller
# error than a few long ones, and a better known one.
PIECE, FEWEST_PIECES = 128, 8
# Tokens of each kind of text: at least so many that scores can differ, at most so many that the trials stay cheap.
FEWEST_TOKENS, MOST_TOKENS = 4 * PIECE, 16 * PIECE
# Divergence on the calibration's kind of text for each share of the neurons that a cut removes: at 30 % it is up to 0.57 nats on
# the models of benchmarks/results/across.md. More than twice as much is unusual.
USUAL, UNUSUAL = 1.9, 2.0
# A divergence of this many nats on text of another kind is warned of.
FAR = 1.0
# Distances below this count as equal: nothing was removed, or nothing that matters.
TINY = 1e-12


@dataclass(frozen=True)
class Trial:
    """What a trial cut by one candidate has shown.

    Attributes
    ----------
    scorer : str
        The candidate, as a spec.
    held_out : float
        Mean distance from the dense model on held-out calibration tokens: KL divergence in nats, or squared distance.
    other : float or None
        The same on text of another kind.
    behind : float
        How many times as large the geometric mean of both distances is as that of the closest candidate, less 1.
    error : float or None
        Standard error of :attr:`behind`, from distances that are paired over sequences; None for the closest candidate, and if it
        is not known, because there is a single sequence.
    """

    scorer: str
    held_out: float
    other: float | None
    behind: float
    error: float | None

    @property
    def is_level(self) -> bool:
        """Whether the candidate is not behind the closest one by more than a standard error, as far as that is known."""
        return math.isfinite(self.behind) if self.error is None else self.behind <= self.error


@dataclass(frozen=True)
class Choice:
    """The scorer that was chosen, and the trials of all candidates, in their order.

    Attributes
    ----------
    chosen : str
        As a spec.
    measure : {"divergence", "squared error"}
        See :class:`llmrank.pipeline.closeness.distance.DenseReference`.
    held_out_tokens, other_tokens : int
    trials : tuple of Trial
    """

    chosen: str
    measure: Measure
    held_out_tokens: int
    other_tokens: int
    trials: tuple[Trial, ...]

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> Choice:
        """Make a choice from what :meth:`to_dict` returned."""
        return cls(**{**values, "trials": tuple(Trial(**trial) for trial in values["trials"])})

    @classmethod
    def of_note(cls, values: Any, candidates: Sequence[str]) -> Choice:
        """Make a choice among these candidates from a file that should hold what :meth:`to_dict` returned.

        Raises
        ------
        TypeError, ValueError
            It holds something else, or a choice among other candidates.
        """
        numbers, unknown = dict.fromkeys(("held_out", "behind"), NUMBER), (*NUMBER, type(None))
        check_fields(
            values, {"chosen": str, "measure": str, "held_out_tokens": int, "other_tokens": int, "trials": list}
        )
        for trial in values["trials"]:
            check_fields(trial, {"scorer": str, **numbers, "other": unknown, "error": unknown})
        if [trial["scorer"] for trial in values["trials"]] != [*candidates] or values["chosen"] not in candidates:
            raise ValueError(f"{values['chosen']} was chosen, and {', '.join(candidates)} were to be tried")
        return cls.of_dict(values)

    def table(self) -> Group:
        """Return the trials as a sentence and a table for rich."""
        distance = "KL divergence" if self.measure == "divergence" else "squared distance"
        elsewhere = f", and on {self.other_tokens:,} tokens of the built-in text" if self.other_tokens else ""
        headings = ["held-out", *(["built-in"] if self.other_tokens else []), "behind"]
        table = Table(Column("candidate", no_wrap=True), *(Column(heading, justify="right") for heading in headings))
        for trial in self.trials:
            distances = [f"{each:.3f}" for each in (trial.held_out, trial.other) if each is not None]
            error = "" if trial.error is None else f" ± {trial.error:.1%}"
            style = "bold" if trial.scorer == self.chosen else None
            table.add_row(trial.scorer, *distances, f"{trial.behind:.1%}{error}" if trial.behind else "", style=style)
        sentence = (
            f"{self.chosen} was chosen, by the {distance} from the dense model after a trial cut, on "
            f"{self.held_out_tokens:,} held-out calibration tokens{elsewhere}. The first candidate that is not behind the "
            "closest by more than a standard error is taken:"
        )
        return Group(Text(sentence), table)

    def warnings(self, removed: float | None) -> list[str]:
        """Return warnings if the cut by the chosen scorer costs more than usual, or breaks the model for other text.

        Parameters
        ----------
        removed : float or None
            Share of the neurons that is removed, 0..1; None if other units are removed too, of which it is not known what is
            usual.
        """
        if self.measure != "divergence":
            return []
        trial = next(trial for trial in self.trials if trial.scorer == self.chosen)
        found = []
        usual = None if removed is None else USUAL * removed
        if usual is not None and trial.held_out > UNUSUAL * usual:
            found.append(
                "After a trial cut, before any repair, the predictions on the calibration's kind of text are "
                f"{trial.held_out:.2f} nats (KL divergence) from the dense model's, and at most {usual:.2f} is usual if "
                f"{removed:.0%} of the neurons are removed. Remove less (--amount), spare the layers that matter (--pruner "
                "sensitivity), or give more calibration text (--samples)."
            )
        if trial.other is not None and trial.other > FAR:
            found.append(
                "After a trial cut, before any repair, the predictions for text of another kind, the built-in text, are "
                f"{trial.other:.2f} nats (KL divergence) from the dense model's. Calibrate on all kinds of text that the model "
                "will read (--calibration FILE:40%,OTHER:40%,built-in:20%), or remove less (--amount)."
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as values for JSON."""
        return {**asdict(self), "trials": [asdict(trial) for trial in self.trials]}


def tokens_of_a_trial(calibration_tokens: int, candidates: int) -> int:
    """Return how many tokens of each kind of text the candidates are tried on.

    All trials together, with the dense model's passes, read at most as many tokens as the calibration, unless that would leave
    too few to tell scores apart.

    Examples
    --------
    >>> tokens_of_a_trial(16 * 1024, candidates=5)
    1365
    """
    return min(max(calibration_tokens // (2 * (candidates + 1)), FEWEST_TOKENS), MOST_TOKENS)


def pieces(sequences: TokenSequences, tokens: int, calibration: TokenSequences | None = None) -> TokenSequences:
    """Cut sequences into short ones, and take some of these, evenly spaced, that hold about so many tokens.

    A first token that all sequences share, those of the calibration too, such as a start token, stays in front of every piece.
    Pieces that are half padding or more are left out.
    """
    ids, mask = sequences.ids, sequences.mask
    if ids.is_floating_point():
        rows = torch.linspace(0, len(ids) - 1, min(tokens, len(ids))).long()
        return TokenSequences.of(ids[rows], mask[rows], sequences.source)
    length = max(min(PIECE, sequences.length, tokens // FEWEST_PIECES), 2)
    first_tokens = ids[:, 0] if calibration is None else torch.cat([ids[:, 0], calibration.ids[:, 0]])
    has_start = bool((first_tokens == ids[0, 0]).all())
    body, body_mask, room = (ids[:, 1:], mask[:, 1:], length - 1) if has_start else (ids, mask, length)
    count = max(body.shape[1] // room, 1)
    cut, cut_mask = (each[:, : count * room].reshape(len(ids) * count, -1) for each in (body, body_mask))
    if has_start:
        cut = torch.cat([ids[:1, :1].expand(len(cut), 1), cut], dim=1)
        cut_mask = torch.cat([torch.ones(len(cut), 1, dtype=torch.bool), cut_mask], dim=1)
    count_of_tokens = cut_mask.sum(1)
    full = count_of_tokens * 2 > cut_mask.shape[1]
    chosen = full if bool(full.any()) else count_of_tokens == count_of_tokens.max()
    cut, cut_mask = cut[chosen], cut_mask[chosen]
    rows = torch.linspace(0, len(cut) - 1, min(max(tokens // length, 1), len(cut))).long()
    return TokenSequences.of(cut[rows], cut_mask[rows], sequences.source)


def try_candidates(
    model: nn.Module,
    ffns: FFNs,
    masks: Mapping[str, Masks],
    held_out: TokenSequences,
    other: TokenSequences | None,
    batch_tokens: int,
    execution: Execution = Execution(),
) -> Choice:
    """Cut a model by each candidate in turn, and choose one. The model's weights do not change.

    Parameters
    ----------
    model : nn.Module
    ffns : FFNs
    masks : mapping from str to Masks
        The keep masks of every candidate, by its spec, in the order of preference.
    held_out : TokenSequences
        Held-out calibration tokens.
    other : TokenSequences, optional
        Text of another kind.
    batch_tokens : int
        Number of tokens in a forward pass.
    execution : Execution
        Its batch size is not used.

    Notes
    -----
    Cost: a forward pass of both texts through the dense model, and one for each candidate.
    """
    texts = [held_out] if other is None else [held_out, other]
    references = []
    with execution.step("Running the dense model on short texts"):
        for text in texts:
            sized = replace(execution, batch_size=max(1, batch_tokens // text.length))
            references.append(DenseReference(model, ffns, text, sized))
    found = []
    for reference in references:  # of every text all candidates together, so that the dense model's head runs once
        outputs = [reference.outputs(each) for each in execution.steps(list(masks.values()), "Trying candidates")]
        found.append(dict(zip(masks, reference.distances(outputs, allow_nan=True), strict=True)))
    chosen, trials = choose(found[0], found[1] if len(found) > 1 else None)
    for trial in trials:
        elsewhere = "" if trial.other is None else f", {trial.other:.4g} on the built-in text"
        logger.info("candidate %s: %.4g on held-out tokens%s", trial.scorer, trial.held_out, elsewhere)
    logger.info("chose %s by %s", chosen, references[0].measure)
    n_tokens = held_out.n_tokens, 0 if other is None else other.n_tokens
    return Choice(chosen, references[0].measure, *n_tokens, trials)


def choose(held_out: Mapping[str, Distances], other: Mapping[str, Distances] | None) -> tuple[str, tuple[Trial, ...]]:
    """Choose by the distances of every candidate; see the module.

    Parameters
    ----------
    held_out : mapping from str to Distances
        Distances on the same held-out sequences, by candidate, in the order of preference.
    other : mapping from str to Distances, optional
        Distances on the same sequences of another kind.

    Examples
    --------
    The second candidate is twice as close on other text as the first, and the third is closer still, but far behind on held-out
    sequences:

    >>> held_out = {"a": ([1.0, 2.0], [10, 10]), "b": ([1.2, 1.9], [10, 10]), "c": ([4.5, 5.6], [10, 10])}
    >>> other = {"a": ([4.0, 4.0], [10, 10]), "b": ([2.0, 2.0], [10, 10]), "c": ([1.0, 1.0], [10, 10])}
    >>> choose(held_out, other)[0], choose(held_out, None)[0]
    ('b', 'a')
    """
    texts = [held_out] if other is None else [held_out, other]
    means = [{name: Estimate.of(*distances).value for name, distances in text.items()} for text in texts]
    total = {name: sum(_log(mean[name]) for mean in means) for name in held_out}
    closest = min(total, key=lambda name: total[name])
    trials = []
    for name in held_out:
        behind, error = 0.0, None
        if name != closest and total[name] > total[closest]:
            ratio = math.exp((total[name] - total[closest]) / len(texts))
            # To first order, the error of a logarithm is the relative error; the two texts are independent.
            squares = [
                (_error(text[name], text[closest]) / max(mean[name], TINY)) ** 2
                for text, mean in zip(texts, means, strict=True)
            ]
            behind, error = ratio - 1.0, ratio * math.sqrt(sum(squares)) / len(texts)
            error = error if math.isfinite(error) else None
        elsewhere = means[1][name] if len(texts) > 1 else None
        trials.append(Trial(name, means[0][name], elsewhere, behind, error))
    return next(trial.scorer for trial in trials if trial.is_level or trial.scorer == closest), tuple(trials)


def _log(mean: float) -> float:
    """Return the logarithm of a mean distance. Round-off can make one that is zero negative; NaN counts as infinite."""
    return math.log(max(mean, TINY)) if mean == mean else math.inf


def _error(distances: Distances, others: Distances) -> float:
    """Return the standard error of the mean difference of two candidates on the same sequences; NaN if it is not known."""
    differences = [a - b for a, b in zip(distances[0], others[0], strict=True)]
    error = Estimate.of(differences, distances[1]).error
    return math.nan if error is None else error
