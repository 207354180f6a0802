"""The PageRank scorers: the whole graph goes to ``graphs``, and one step of it is their ``score``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from graphs import LayeredGraph, RankResult, modified_pagerank, weighted_pagerank
from graphs.backends import TorchArithmetic
from graphs.blocks import DenseBlock
from graphs.transition import Transition, modified_step, weighted_step
from llmrank.activations import LayerStatistics
from llmrank.errors import OptionError
from llmrank.score.walk import BaseScorer

__all__ = ["ModifiedPageRankScorer", "WeightedPageRankScorer"]


@dataclass
class WeightedPageRankScorer(BaseScorer):
    """Weighted PageRank, see :func:`graphs.weighted_pagerank`.

    Parameters
    ----------
    gamma : float
        Damping, 0..1. At 0 the score is the activation alone.
    theta : float
        Share of the edge weights against the bare edges, 0..1.
    solver : {"sweep", "power"}
    backend : {"auto", "scipy", "torch", "dense"}
    device : str, optional
        Where to compute; by default where the weights lie.
    dtype : {"float32", "float64"}
        float32 reads float32 weights without widening them; both keep the same neurons but for ties
        within 1e-6.
    """

    gamma: float = 0.5
    theta: float = 1.0
    solver: Literal["sweep", "power"] = "sweep"
    backend: Literal["auto", "scipy", "torch", "dense"] = "auto"
    device: str | None = None
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        _unit_interval("gamma", self.gamma)
        _unit_interval("theta", self.theta)
        _computation(self.solver, self.backend, self.dtype)

    def score(
        self,
        prev_importance: torch.Tensor,
        in_activations: torch.Tensor,
        out_activations: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """One step of the rank across one block."""
        arithmetic, operator = _dense_operator(weight)
        prev, own = prev_importance.to(weight), out_activations.to(weight)
        passed = Transition(operator, self.theta, arithmetic).apply(operator, prev)
        result: torch.Tensor = weighted_step(passed, own, self.gamma).vector
        return result

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """The rank of the whole graph."""
        return weighted_pagerank(
            graph, self.gamma, self.theta, self.solver, self.backend, device=self.device, dtype=self.dtype
        )


@dataclass
class ModifiedPageRankScorer(BaseScorer):
    """Modified PageRank, see :func:`graphs.modified_pagerank`.

    Parameters
    ----------
    zero_lowest : float
        Share of the previous layer's lowest scores that count as zero in a step, 0..1.
    solver, backend, device, dtype
        As for :class:`WeightedPageRankScorer`.
    """

    zero_lowest: float = 0.0
    solver: Literal["sweep", "power"] = "sweep"
    backend: Literal["auto", "scipy", "torch", "dense"] = "auto"
    device: str | None = None
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        _unit_interval("zero_lowest", self.zero_lowest)
        _computation(self.solver, self.backend, self.dtype)

    def score(
        self,
        prev_importance: torch.Tensor,
        in_activations: torch.Tensor,
        out_activations: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """One step of the rank across one block."""
        arithmetic, operator = _dense_operator(weight)
        count = int(self.zero_lowest * len(prev_importance))
        prev = arithmetic.with_lowest_zeroed(prev_importance.to(weight), count)
        result: torch.Tensor = modified_step(operator.matvec(prev), out_activations.to(weight)).vector
        return result

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """The rank of the whole graph."""
        return modified_pagerank(
            graph, self.solver, self.backend, device=self.device, dtype=self.dtype, zero_lowest=self.zero_lowest
        )


def _unit_interval(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and 0.0 <= value <= 1.0):
        raise OptionError(f"{name} must be a number in [0, 1], got {value!r}")


def _computation(solver: str, backend: str, dtype: str) -> None:
    """Refuse unknown names at construction: the rank comes only after the calibration."""
    for name, value, known in (
        ("solver", solver, ("sweep", "power")),
        ("backend", backend, ("auto", "scipy", "torch", "dense")),
        ("dtype", dtype, ("float32", "float64")),
    ):
        if value not in known:
            raise OptionError(f"unknown {name} {value!r}; expected one of {', '.join(known)}")


def _dense_operator(weight: torch.Tensor) -> tuple[TorchArithmetic, Any]:
    dtype = "float64" if weight.dtype == torch.float64 else "float32"
    arithmetic = TorchArithmetic(weight.device, dtype)
    return arithmetic, arithmetic.dense_operator(DenseBlock((weight,)))
