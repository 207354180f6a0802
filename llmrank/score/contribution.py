"""The share of an FFN's output that a hidden neuron explains on the calibration tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np
import torch

from graphs import LayeredGraph, RankResult
from llmrank.calibration.statistics import LayerStatistics
from llmrank.errors import OptionError
from llmrank.score.base_scorer import BaseScorer, as_share, check_has_explained

__all__ = ["ExplainedScorer"]


@dataclass
class ExplainedScorer(BaseScorer):
    """Share of the output map's energy (or variance) that a hidden neuron explains.

    ``s_j = |e_j|``, ``e_j = sum_t x_j(t) (W^T y(t))_j / sum_t ||y(t)||^2`` with ``y = W x`` what the output map makes of the
    hidden neurons, its bias left out; for the variance about the means of x. The e_j of a layer sum to 1. Unlike the squared
    norm of what a neuron adds by itself, e_j counts what it has in common with the others. It may be negative: such a
    neuron takes back what others overdo, and without it the output is as much too large as it would be too
    small without one of the opposite share. Layers that are not hidden keep their activations. Repair that chooses neurons
    anew by other activations chooses the same ones again.

    Parameters
    ----------
    explains : {"energy", "variance"}
    signed : bool
        Whether the most negative go first, as they make the output smaller: ``s_j = e_j - min(e, 0)``.
    """

    explains: Literal["energy", "variance"] = "energy"
    signed: bool = False

    def __post_init__(self) -> None:
        if self.explains not in ("energy", "variance"):
            raise OptionError(f"explains must be energy or variance, got {self.explains!r}")

    @property
    def needs_explained(self) -> bool:
        """Always."""
        return True

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """The shares of every hidden layer, without reading a weight.

        Raises
        ------
        OptionError
            Without statistics that say what neurons explain.
        """
        check_has_explained(self, graph, statistics)
        start = perf_counter()
        scores = []
        for layer, entry in enumerate(statistics):
            value = torch.from_numpy(np.array(graph.activations[layer]))
            if entry.explained is not None:
                shares: torch.Tensor = getattr(entry.explained, self.explains)
                value = shares - shares.min().clamp(max=0.0) if self.signed else shares.abs()
                value = self._checked(value, graph.names[layer], graph.layers[layer])
            scores.append(as_share(value).numpy())
        return self._result(graph, scores, perf_counter() - start)
