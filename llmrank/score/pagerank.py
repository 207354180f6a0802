"""Weighted and modified PageRank as scorers: ``rank`` passes a graph to ``graphs``, and ``score`` is one step of that rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch

from graphs import LayeredGraph, RankResult, modified_pagerank, weighted_pagerank
from graphs.linalg.backends import TorchArithmetic
from graphs.linalg.blocks import DenseBlock
from graphs.linalg.transition import Transition, modified_step, weighted_step
from llmrank.calibration.statistics import LayerStatistics
from llmrank.errors import OptionError, check_choice, check_type
from llmrank.score.base_scorer import BaseScorer
from llmrank.score.edge_measures import EdgeMeasure, mark_energies, squares, with_edge_measure, without_mark

__all__ = [
    "Backend",
    "EdgeScorer",
    "ModifiedPageRankScorer",
    "Precision",
    "WeightedPageRankScorer",
    "check_unit_interval",
    "default_scorer",
]

Solver: TypeAlias = Literal["sweep", "power"]
Backend: TypeAlias = Literal["auto", "scipy", "torch", "dense"]
Precision: TypeAlias = Literal["float32", "float64"]
CHOICES = {"solver": Solver, "backend": Backend, "dtype": Precision, "edges": EdgeMeasure}


class EdgeScorer(BaseScorer):
    """Base class of ranks along edges whose weights `edges` names. Override :meth:`_rank`."""

    edges: EdgeMeasure
    device: str | None

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if hasattr(self, name):
                check_choice(name, getattr(self, name), get_args(choices))
        check_type("device", self.device, (str, NoneType), "the name of a device, or None")

    def explained(self, graph: LayeredGraph, rank: RankResult) -> tuple[LayeredGraph, RankResult]:
        """Return the graph with the weights that `edges` names, and the rank without "of energies" in its name."""
        return with_edge_measure(graph, self.edges), without_mark(rank)

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """Rank the graph with the weights that `edges` names."""
        return mark_energies(self._rank(with_edge_measure(graph, self.edges)), self.edges)

    def _rank(self, graph: LayeredGraph) -> RankResult:
        """Rank a graph by the weights and activations that it has."""
        raise NotImplementedError


@dataclass
class WeightedPageRankScorer(EdgeScorer):
    """Weighted PageRank, see :func:`graphs.weighted_pagerank`.

    Parameters
    ----------
    gamma : float
        Damping, 0..1: the share of a score that comes along edges. At 0 the score is the activation alone.
    theta : float
        Share of the edge weights against the bare edges, whose weights are all 1; 0..1. At 1 only the edge weights count, at 0
        only the bare edges.
    solver : {"sweep", "power"}
        One pass over the layers in order, or power iteration, which gives the same rank and shows how it converges.
    backend : {"auto", "scipy", "torch", "dense"}
        Where products are computed, see :func:`graphs.weighted_pagerank`.
    device : str, optional
        Device to compute on; by default the one that holds the weights.
    dtype : {"float32", "float64"}
        With float32, float32 weights are read without a conversion. With either, pruning keeps the same neurons, except for
        neurons with almost equal scores.
    edges : {"magnitude", "energy", "gate"}
        Weight of an edge: ``|W_ij|`` (magnitude), or ``W_ij^2`` together with squared activations (energy), see
        :meth:`graphs.LayeredGraph.squared`; or as energy, but in a gated FFN only the gate's edges lead into the hidden neurons
        (gate). On a CPU, energies of float32 weights take as long as magnitudes.
    """

    name: ClassVar[str] = "wpr"

    gamma: float = 0.5
    theta: float = 1.0
    solver: Solver = "sweep"
    backend: Backend = "auto"
    device: str | None = None
    dtype: Precision = "float32"
    edges: EdgeMeasure = "magnitude"

    def __post_init__(self) -> None:
        for name in ("gamma", "theta"):
            check_unit_interval(name, getattr(self, name))
        super().__post_init__()

    def score(
        self,
        prev_importance: torch.Tensor,
        in_activations: torch.Tensor,
        out_activations: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """Compute one step of the rank, along the edges into one layer.

        For energies the result can differ from that of :meth:`rank`: there each of several parallel edges is squared, such as
        those of the two input maps of a gated FFN, or the gate's alone; here their sum is squared.
        """
        weight, out_activations = _step_inputs(self.edges, weight, out_activations)
        arithmetic, operator = _dense_operator(weight)
        prev, own = prev_importance.to(weight), out_activations.to(weight)
        from_edges = Transition(operator, self.theta, arithmetic).apply(operator, prev)
        result: torch.Tensor = weighted_step(from_edges, own, self.gamma).vector
        return result

    def _rank(self, graph: LayeredGraph) -> RankResult:
        return weighted_pagerank(
            graph, self.gamma, self.theta, self.solver, self.backend, device=self.device, dtype=self.dtype
        )


@dataclass
class ModifiedPageRankScorer(EdgeScorer):
    """Modified PageRank, see :func:`graphs.modified_pagerank`.

    Parameters
    ----------
    zero_lowest : float
        Share of the nodes of a layer, 0..1. The scores of this share of nodes, the lowest ones, count as zero in the step to the
        next layer.
    solver, backend, device, dtype, edges
        As for :class:`WeightedPageRankScorer`.
    """

    name: ClassVar[str] = "mpr"

    zero_lowest: float = 0.0
    solver: Solver = "sweep"
    backend: Backend = "auto"
    device: str | None = None
    dtype: Precision = "float32"
    edges: EdgeMeasure = "magnitude"

    def __post_init__(self) -> None:
        check_unit_interval("zero_lowest", self.zero_lowest)
        super().__post_init__()

    def score(
        self,
        prev_importance: torch.Tensor,
        in_activations: torch.Tensor,
        out_activations: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """Compute one step of the rank, along the edges into one layer.

        For energies the result can differ from that of :meth:`rank`: there each of several parallel edges is squared, such as
        those of the two input maps of a gated FFN, or the gate's alone; here their sum is squared.
        """
        weight, out_activations = _step_inputs(self.edges, weight, out_activations)
        arithmetic, operator = _dense_operator(weight)
        count = int(self.zero_lowest * len(prev_importance))
        prev = arithmetic.with_lowest_zeroed(prev_importance.to(weight), count)
        result: torch.Tensor = modified_step(operator.matvec(prev), out_activations.to(weight)).vector
        return result

    def _rank(self, graph: LayeredGraph) -> RankResult:
        return modified_pagerank(
            graph, self.solver, self.backend, device=self.device, dtype=self.dtype, zero_lowest=self.zero_lowest
        )


def default_scorer(*, whole_ffns: bool = True) -> WeightedPageRankScorer:
    """Return the scorer that pipelines use unless another one is given.

    For Linears that a user names (not `whole_ffns`), whose graph is that of the paper, it is a plain
    :class:`WeightedPageRankScorer`. For whole FFNs, its edges and damping were chosen on four language models, see the page on
    PageRank: fifteen per cent of a score come along the gate's edges. That is enough for neurons that other text uses, though the
    calibration text does not, and too little to overrule what the calibration text shows.
    """
    return WeightedPageRankScorer(gamma=0.15, edges="gate") if whole_ffns else WeightedPageRankScorer()


def check_unit_interval(name: str, value: float) -> None:
    """Raise an OptionError if the value is not a number in [0, 1]."""
    if not (isinstance(value, (int, float)) and 0.0 <= value <= 1.0):
        raise OptionError(f"{name} must be a number in [0, 1], got {value!r}")


def _step_inputs(
    edges: EdgeMeasure, weight: torch.Tensor, activations: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return (weight.square(), activations.square()) if squares(edges) else (weight, activations)


def _dense_operator(weight: torch.Tensor) -> tuple[TorchArithmetic, Any]:
    """Return torch arithmetic in float64 for a float64 weight, else in float32, and the weight as an operator of it."""
    dtype = "float64" if weight.dtype == torch.float64 else "float32"
    arithmetic = TorchArithmetic(weight.device, dtype)
    return arithmetic, arithmetic.dense_operator(DenseBlock((weight,)))
