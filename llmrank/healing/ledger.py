"""What healing has cost and gained: a row for each time that the model was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

from rich.box import SIMPLE
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from llmrank.evaluation.estimate import Estimate
from llmrank.evaluation.perplexity import Perplexity

__all__ = ["Closeness", "Healing", "LedgerRow", "best_row", "rows_of"]

# What the kinds of held-out text are called.
KINDS = {"own": "own text", "other": "other text"}


@dataclass(frozen=True)
class Closeness:
    """How close a model is to the dense model on a few held-out sequences.

    Attributes
    ----------
    divergences, losses : tuple of float
        KL divergence from the dense predictions, and negative log-likelihood, of each sequence, summed over its tokens, in nats.
    counts : tuple of int
        Number of predicted tokens of each sequence.
    """

    divergences: tuple[float, ...]
    losses: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def divergence(self) -> Estimate:
        """Mean divergence of a token."""
        return Estimate.of(self.divergences, self.counts)

    @property
    def perplexity(self) -> float:
        """See :class:`llmrank.evaluation.perplexity.Perplexity`."""
        return Perplexity.of(self.losses, self.counts).value

    def gain_over(self, other: Closeness) -> Estimate:
        """Return how much smaller the divergence is than another one of the same sequences."""
        return Estimate.of([a - b for a, b in zip(other.divergences, self.divergences, strict=True)], self.counts)


@dataclass(frozen=True)
class LedgerRow:
    """The model after a number of steps.

    Attributes
    ----------
    step, tokens : int
        Number of steps, and of tokens that it has learned from.
    seconds : float
        Time since the start, without measurements.
    learning_rate : float
    closeness : dict from str to Closeness
        By kind of held-out text: "own" and, unless the text is the built-in one, "other".
    """

    step: int
    tokens: int
    seconds: float
    learning_rate: float
    closeness: dict[str, Closeness]

    @classmethod
    def of_dict(cls, plain: dict[str, Any]) -> LedgerRow:
        """Make a row of what ``dataclasses.asdict`` and JSON have made of one."""
        kinds = {kind: Closeness(*map(tuple, values.values())) for kind, values in plain["closeness"].items()}
        return cls(**{**plain, "closeness": kinds})

    @property
    def divergence(self) -> float:
        """The mean over the kinds of text."""
        return mean(each.divergence.value for each in self.closeness.values())


@dataclass(frozen=True)
class Healing:
    """The outcome of healing.

    Attributes
    ----------
    rows : tuple of LedgerRow
        The first is the model before healing.
    chosen : int
        Which of the rows the model is now, see :func:`best_row`.
    settings : dict
        What learned, how many parameters, and at which rate.
    text : dict
        Provenance of the sequences.
    notes : tuple of str
    """

    rows: tuple[LedgerRow, ...]
    chosen: int
    settings: dict[str, Any]
    text: dict[str, Any]
    notes: tuple[str, ...] = field(default=())

    @property
    def start(self) -> LedgerRow:
        """The model before healing."""
        return self.rows[0]

    @property
    def best(self) -> LedgerRow:
        """The model as it is now."""
        return self.rows[self.chosen]

    @property
    def share_closed(self) -> float:
        """The share of the divergence from the dense model that healing has removed, on the sequences that chose the row."""
        start = self.start.divergence
        return 1.0 - self.best.divergence / start if start else 0.0

    def warnings(self) -> list[str]:
        """Return what a user should know before using the model."""
        found = list(self.notes)
        if self.chosen == 0:
            found.append(
                "no step was clearly closer to the dense model than the start, so the model is as it was before healing"
            )
        for kind, now in self.best.closeness.items():
            gain = now.gain_over(self.start.closeness[kind])
            if gain.value < 0.0:
                found.append(
                    f"healing has moved the model away from the dense one on a kind of text ({KINDS[kind]}): the divergence grew "
                    f"by {-gain.value:.4f} nats; heal with text of more kinds"
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON."""
        return {**asdict(self), "share_closed": self.share_closed, "warnings": self.warnings()}

    def table(self) -> list[RenderableType]:
        """Return the rows as a table, and sentences."""
        kinds = list(self.start.closeness)
        # So it fits 80 columns.
        table = Table(title="Healing", title_justify="left", box=SIMPLE, pad_edge=False, collapse_padding=True)
        headings = ["step", "tokens", "seconds"]
        headings += [f"{metric},\n{KINDS[kind]}" for metric in ("KL", "perplexity") for kind in kinds]
        for heading in (*headings, ""):
            table.add_column(heading, justify="right")
        for number, row in enumerate(self.rows):
            cells = [f"{row.step:,}", f"{row.tokens:,}", f"{row.seconds:,.0f}"]
            cells += [f"{row.closeness[kind].divergence.value:.4f}" for kind in kinds]
            cells += [f"{row.closeness[kind].perplexity:,.2f}" for kind in kinds]
            table.add_row(*cells, "kept" if number == self.chosen else "")
        return [table, Text(f"{self.share_closed:.0%} of the divergence from the dense model is gone")]


def rows_of(plain: Sequence[dict[str, Any]], kinds: Sequence[str]) -> list[LedgerRow]:
    """Make rows of what JSON has made of them; raise any error unless they are of these kinds of held-out text."""
    rows = [LedgerRow.of_dict(row) for row in plain]
    for row in rows:
        if [*row.closeness] != [*kinds]:
            raise ValueError(f"a row of the ledger has other texts than {', '.join(kinds)}")
        if not math.isfinite(row.step + row.tokens + row.seconds + row.learning_rate + row.divergence):
            raise ValueError("a row of the ledger has numbers that are not finite")
    if rows:
        best_row(rows)  # which compares all of their numbers
    return rows


def best_row(rows: Sequence[LedgerRow]) -> int:
    """Return the number of the row that is closest to the dense model; the earliest of equals.

    A row counts only if it is closer than the first by more than two standard errors of the difference, over all kinds of text,
    and is not farther away on one of them by more than an error.
    """

    def gains(row: LedgerRow) -> bool:
        found = [now.gain_over(rows[0].closeness[kind]) for kind, now in row.closeness.items()]
        errors = [gain.error or 0.0 for gain in found]  # a single sequence has none
        total = sum(gain.value for gain in found)
        return total > 2.0 * math.hypot(*errors) and all(
            gain.value >= -error for gain, error in zip(found, errors, strict=True)
        )

    counted = [number for number, row in enumerate(rows) if number == 0 or gains(row)]
    return min(counted, key=lambda number: rows[number].divergence)
