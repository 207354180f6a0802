"""The perplexity of a model before and after pruning, and whether the pruned model has collapsed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from llmrank.evaluation.perplexity import Perplexity

__all__ = ["Evaluation"]


@dataclass
class Evaluation:
    """Perplexity on one text, before and after pruning.

    Attributes
    ----------
    protocol : dict
        Provenance of the text and, in a report, the dtype and torch's seed.
    before, after : Perplexity or None
        Perplexity of the dense and of the pruned model; None if not measured.
    unigram : float
        Perplexity of a unigram model of the same text; a model that is not below it has collapsed. NaN if not measured.
    calibration_overlap : float
        Share of the text's passages that occur in the calibration text.
    """

    protocol: dict[str, Any]
    before: Perplexity | None = None
    after: Perplexity | None = None
    unigram: float = float("nan")
    calibration_overlap: float = 0.0

    @property
    def collapsed(self) -> bool:
        """Whether the pruned model is no better than token frequencies, and the dense model was better (or not measured)."""
        if self.before is not None and self.before.value >= self.unigram:
            return False
        return self.after is not None and (not math.isfinite(self.after.value) or self.after.value >= self.unigram)

    def warnings(self) -> list[str]:
        """Return sentences that a reader must not miss."""
        sentences = []
        if self.calibration_overlap > 0:
            sentences.append(
                f"{self.calibration_overlap:.1%} of the evaluation passages occur in the calibration text, so the "
                "perplexity is too low; evaluate on other text"
            )
        if self.collapsed and self.after is not None:
            unless = " (or the dense model was no better)" if self.before is None else ""
            reason = f"is {self.after.value}"
            if math.isfinite(self.after.value):
                reason = f"{self.after.value:.4g} is not below that of token frequencies alone ({self.unigram:.4g})"
            sentences.append(f"the pruned model has collapsed{unless}: its perplexity {reason}; prune less")
        return sentences
