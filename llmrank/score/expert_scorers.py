"""Scores of whole experts of a mixture, by what the router sends them and what they return.

The score of an expert is divided equally among its neurons, so that the scores of the neurons add up to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar

import numpy as np
import torch

from graphs import LayeredGraph, RankResult
from graphs.solvers.result import DegenerateLayer
from llmrank.calibration.statistics import LayerStatistics, RoutingStatistics
from llmrank.score.base_scorer import BaseScorer, normalised

__all__ = ["EANScorer", "ExpertScorer", "FrequencyScorer", "MoNEScorer", "REAPScorer"]


class ExpertScorer(BaseScorer):
    """Base class of scores of whole experts. Override :meth:`expert_score`.

    Neurons of shared experts score 0 here. Layers without experts are scored by their activations.
    """

    def expert_score(self, routing: RoutingStatistics) -> float:
        """Compute the score of one expert, at least 0."""
        raise NotImplementedError(f"{type(self).__name__} must override expert_score()")

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """Score the experts of the mixtures in a graph."""
        start = perf_counter()
        degenerate: list[DegenerateLayer] = []
        scores = []
        for position, activations in enumerate(graph.activations):
            layer = statistics[position]
            vector = torch.from_numpy(np.array(activations))
            if layer.experts:
                parts = [
                    torch.full(
                        (size,), 0.0 if routing is None else self.expert_score(routing) / size, dtype=torch.float64
                    )
                    for size, routing in layer.experts
                ]
                vector = torch.cat(parts)
            scores.append(normalised(vector, position, degenerate).numpy())
        return self._result(graph, scores, perf_counter() - start, degenerate, reads_blocks=False)


@dataclass
class FrequencyScorer(ExpertScorer):
    """Number of tokens that the router sends to an expert."""

    name: ClassVar[str] = "frequency"

    def expert_score(self, routing: RoutingStatistics) -> float:
        """Return the number of tokens."""
        return float(routing.count)


@dataclass
class EANScorer(ExpertScorer):
    """EAN: the sum of the norms of an expert's outputs, ``sum_t ||f(t)||``.

    Source: Jaiswal et al. 2025 (arXiv 2504.05586).
    """

    name: ClassVar[str] = "ean"

    def expert_score(self, routing: RoutingStatistics) -> float:
        """Return the sum of the norms."""
        return routing.output_norm


@dataclass
class REAPScorer(ExpertScorer):
    """REAP: the mean of ``p_t ||f(t)||``, routing weight times norm of the output, over the tokens that an expert gets.

    Source: Lasby et al. 2025 (arXiv 2510.13999).
    """

    name: ClassVar[str] = "reap"

    def expert_score(self, routing: RoutingStatistics) -> float:
        """Return the mean."""
        return routing.weighted_output_norm / max(routing.count, 1)


@dataclass
class MoNEScorer(ExpertScorer):
    """MoNE: the number of tokens that an expert gets, times the root of the (unbiased) variance of its outputs for them.

    Source: Zhang et al. 2025 (arXiv 2507.00390), who replace an expert by its mean output; here it is removed.
    """

    name: ClassVar[str] = "mone"

    def expert_score(self, routing: RoutingStatistics) -> float:
        """Return the number of tokens times the standard deviation."""
        n = routing.count
        return n * math.sqrt(routing.output_variance * n / max(n - 1, 1))
