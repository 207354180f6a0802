"""Scores neurons by the share of an FFN's output that they explain on the calibration tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar, Literal

import numpy as np
import torch

from graphs import LayeredGraph, RankResult
from llmrank.calibration.statistics import LayerStatistics
from llmrank.errors import OptionError
from llmrank.score.base_scorer import BaseScorer, check_has_explained, normalised

__all__ = ["ExplainedScorer"]


@dataclass
class ExplainedScorer(BaseScorer):
    """Share of the energy (or variance) of the output map's output that a hidden neuron explains.

    ``s_j = |e_j|`` with ``e_j = sum_t x_j(t) (W^T y(t))_j / sum_t ||y(t)||^2``, where ``y = W x`` is the output for the hidden
    activations x without the bias; for the variance, x is taken about its mean. The e_j of a layer sum to 1. Unlike the
    squared norm of a neuron's own contribution, e_j includes what it has in common with the other neurons. It may be
    negative: such a neuron cancels a part of what the others add, and removing it makes the output too large by as much as
    removing a neuron of the opposite share would make it too small. Layers that are not hidden keep their activations. The
    shares do not depend on the activations in the graph, so a repair that selects neurons again by new activations selects
    the same ones.

    Parameters
    ----------
    explains : {"energy", "variance"}
        The quantity of the output whose shares are taken.
    signed : bool
        Whether the most negative neurons are removed first, because they make the output smaller: ``s_j = e_j - min(e, 0)``.
    """

    name: ClassVar[str] = "explained"

    explains: Literal["energy", "variance"] = "energy"
    signed: bool = False

    def __post_init__(self) -> None:
        if self.explains not in ("energy", "variance"):
            raise OptionError(f"explains must be energy or variance, got {self.explains!r}")

    @property
    def needs_explained(self) -> bool:
        """Always True."""
        return True

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """Score every hidden layer by its explained shares, without reading a weight.

        Raises
        ------
        OptionError
            The statistics hold no explained shares.
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
            scores.append(normalised(value).numpy())
        return self._result(graph, scores, perf_counter() - start)
