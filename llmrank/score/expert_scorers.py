"""Scores of whole experts of a mixture, by what the router sends them and what they return.

The score of an expert is divided equally among its neurons, so that the scores of the neurons add up to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from graphs import LayeredGraph
from llmrank.calibration.statistics import LayerStatistics, RoutingStatistics
from llmrank.score.base_scorer import BaseScorer, activations_of

__all__ = ["EANScorer", "ExpertScorer", "FrequencyScorer", "MoNEScorer", "REAPScorer"]


class ExpertScorer(BaseScorer):
    """Base class of scores of whole experts. Override :meth:`expert_score`.

    Neurons of shared experts score 0 here. Layers without experts are scored by their activations.
    """

    _reads_blocks = False

    def expert_score(self, routing: RoutingStatistics) -> float:
        """Compute the score of one expert, at least 0."""
        raise NotImplementedError(f"{type(self).__name__} must override expert_score()")

    def _layer_scores(
        self, graph: LayeredGraph, statistics: Sequence[LayerStatistics], layer: int, before: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        experts = statistics[layer].experts
        if not experts:
            return activations_of(graph, layer)
        # The neurons of a shared expert have no routing.
        scores = (0.0 if routing is None else self.expert_score(routing) / size for size, routing in experts)
        sizes = torch.tensor([size for size, _ in experts])
        return torch.tensor(list(scores), dtype=torch.float64).repeat_interleave(sizes)


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
