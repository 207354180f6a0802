"""Baseline scorers, which score a node by the norm of its weights, by its activation, or at random."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from graphs import LayeredGraph
from graphs.linalg.blocks import FloatArray
from llmrank.calibration.statistics import LayerStatistics
from llmrank.errors import OptionError
from llmrank.score.base_scorer import BaseScorer, activations_of

__all__ = ["ActivationScorer", "NormScorer", "RandomScorer", "check_norm_order"]


@dataclass
class NormScorer(BaseScorer):
    """The p-norm of the edge weights into a node: ``(sum_k |W_jk|^p)^(1/p)``.

    Parameters
    ----------
    p : float
        Order of the norm, at least 1.
    """

    name: ClassVar[str] = "norm"

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
        """Compute the norm of each row of the weight."""
        result: torch.Tensor = torch.linalg.vector_norm(weight, ord=self.p, dim=1)
        return result


@dataclass
class ActivationScorer(BaseScorer):
    """The norm of a node's activations; its edges have no effect."""

    name: ClassVar[str] = "activation"
    _reads_blocks = False

    def score(
        self,
        prev_importance: torch.Tensor,
        in_activations: torch.Tensor,
        out_activations: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """Return the activation norms of the layer."""
        return out_activations

    def _layer_scores(
        self, graph: LayeredGraph, statistics: Sequence[LayerStatistics], layer: int, before: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        return activations_of(graph, layer)


@dataclass
class RandomScorer(BaseScorer):
    """Random scores, uniform in [0, 1), as a control.

    Parameters
    ----------
    seed : int
        :meth:`rank` seeds the scores of a layer with `seed` and the layer's name, so that they depend neither on the topology
        nor on other layers. Calls of :meth:`score` continue one sequence of random numbers.
    """

    name: ClassVar[str] = "random"
    _reads_blocks = False

    seed: int = 0
    _generator: torch.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**63:
            raise OptionError(f"seed must be an integer from 0 to 2**63 - 1, got {self.seed!r}")
        self._generator = torch.Generator().manual_seed(self.seed)

    def score(
        self,
        prev_importance: torch.Tensor,
        in_activations: torch.Tensor,
        out_activations: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """Draw uniform numbers from [0, 1)."""
        return torch.rand(len(weight), generator=self._generator).to(weight)

    def _layer_scores(
        self, graph: LayeredGraph, statistics: Sequence[LayerStatistics], layer: int, before: Sequence[torch.Tensor]
    ) -> FloatArray:
        generator = np.random.default_rng([self.seed, zlib.crc32(graph.names[layer].encode())])
        return generator.random(graph.layer_sizes[layer])


def check_norm_order(p: float) -> None:
    """Raise an OptionError unless p is a number >= 1."""
    if not (isinstance(p, (int, float)) and p >= 1.0):
        raise OptionError(f"p must be a number >= 1, got {p!r}")
