"""Baselines that look at a node and at what comes in: norm, activation, random, Wanda."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch

from graphs import LayeredGraph, RankResult
from llmrank.calibration.statistics import LayerStatistics
from llmrank.errors import OptionError
from llmrank.score.base_scorer import BaseScorer, as_share

__all__ = ["ActivationScorer", "NormScorer", "RandomScorer", "WandaScorer", "check_norm_order"]


@dataclass
class NormScorer(BaseScorer):
    """p-norm of the edge weights into a node: ``(sum_k |W_jk|^p)^(1/p)``.

    Parameters
    ----------
    p : float
        At least 1.
    """

    p: float = 1.0

    def __post_init__(self) -> None:
        check_norm_order(self.p)

    def score(
        self,
        prev_importance: torch.Tensor,
        in_activations: torch.Tensor,
        out_activations: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """Row norms of the weight."""
        result: torch.Tensor = torch.linalg.vector_norm(weight, ord=self.p, dim=1)
        return result


@dataclass
class ActivationScorer(BaseScorer):
    """The node's own activation norm; the graph plays no part."""

    def score(
        self,
        prev_importance: torch.Tensor,
        in_activations: torch.Tensor,
        out_activations: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """The activations themselves."""
        return out_activations

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """The activations of every layer over their sums, without reading a weight."""
        start = perf_counter()
        scores = [as_share(torch.from_numpy(np.array(vector))).numpy() for vector in graph.activations]
        return self._result(graph, scores, perf_counter() - start)


@dataclass
class RandomScorer(BaseScorer):
    """Seeded uniform scores: the control.

    Parameters
    ----------
    seed : int
        In a graph every layer draws from the seed and its own name, so that neither the topology nor
        the other layers change its scores. Repeated calls of `score` continue one stream.
    """

    seed: int = 0
    _stream: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise OptionError(f"seed must be an integer from 0 to 2**63 - 1, got {self.seed!r}")
        self._stream = torch.Generator().manual_seed(self.seed)

    def score(
        self,
        prev_importance: torch.Tensor,
        in_activations: torch.Tensor,
        out_activations: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """Uniform numbers in [0, 1)."""
        return torch.rand(len(weight), generator=self._stream).to(weight)

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """Uniform numbers over their sum, layer by layer."""
        start = perf_counter()
        scores = []
        for name, size in zip(graph.names, graph.layers, strict=True):
            values = np.random.default_rng([self.seed, zlib.crc32(name.encode())]).random(size)
            scores.append(values / values.sum())
        return self._result(graph, scores, perf_counter() - start)


@dataclass
class WandaScorer(BaseScorer):
    """Wanda, summed over a node's inputs: ``sum_k |W_jk| a_k`` with a the input norms.

    Source: Sun et al. 2023 (arXiv 2306.11695), as a channel score.
    """

    def score(
        self,
        prev_importance: torch.Tensor,
        in_activations: torch.Tensor,
        out_activations: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """The weight times the input norms."""
        return weight @ in_activations


def check_norm_order(p: float) -> None:
    """Refuse a p below 1, which is no norm."""
    if not (isinstance(p, (int, float)) and p >= 1.0):
        raise OptionError(f"p must be a number >= 1, got {p!r}")
