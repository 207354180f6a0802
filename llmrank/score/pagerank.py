"""The PageRank scorers: ``rank`` passes a complete graph to ``graphs``, and ``score`` is one step of that rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch

from graphs import LayeredGraph, RankResult, modified_pagerank, weighted_pagerank
from graphs.linalg.backends import TorchArithmetic
from graphs.linalg.blocks import DenseBlock
from graphs.linalg.transition import Transition, modified_step, weighted_step
from llmrank.calibration.statistics import LayerStatistics
from llmrank.errors import OptionError
from llmrank.score.base_scorer import BaseScorer

__all__ = [
    "Backend",
    "BasePageRankScorer",
    "EdgeMeasure",
    "ModifiedPageRankScorer",
    "Precision",
    "WeightedPageRankScorer",
    "check_choices",
    "check_unit_interval",
    "reweighted_graph",
    "with_method_name",
]

Solver: TypeAlias = Literal["sweep", "power"]
Backend: TypeAlias = Literal["auto", "scipy", "torch", "dense"]
Precision: TypeAlias = Literal["float32", "float64"]
EdgeMeasure: TypeAlias = Literal["magnitude", "energy"]
CHOICES = {"solver": Solver, "backend": Backend, "dtype": Precision, "edges": EdgeMeasure}


class BasePageRankScorer(BaseScorer):
    """Base class of scorers that may change the edge weights and activations of a graph before they rank it.

    Attributes
    ----------
    edges : {"magnitude", "energy"}
        See :class:`WeightedPageRankScorer`.
    explained : float
        See :class:`WeightedPageRankScorer`.
    """

    edges: EdgeMeasure
    explained: float

    @property
    def needs_explained(self) -> bool:
        """True if `explained` is above 0."""
        return self.explained > 0.0


@dataclass
class WeightedPageRankScorer(BasePageRankScorer):
    """Weighted PageRank, see :func:`graphs.weighted_pagerank`.

    Parameters
    ----------
    gamma : float
        Damping, 0..1. At 0 the score is the activation alone.
    theta : float
        Share of the edge weights against the bare edges, 0..1.
    solver : {"sweep", "power"}
        One pass over the layers in order, or power iteration, which gives the same rank and shows how it converges.
    backend : {"auto", "scipy", "torch", "dense"}
        Where products are computed, see :func:`graphs.weighted_pagerank`; "auto" chooses by size and device.
    device : str, optional
        Device to compute on; by default the one that holds the weights.
    dtype : {"float32", "float64"}
        float32 reads float32 weights without converting them. Both keep the same neurons, except for ties within 1e-6.
    edges : {"magnitude", "energy"}
        Weight of an edge: ``|W_ij|``, or ``W_ij^2`` together with squared activations, see
        :meth:`graphs.LayeredGraph.squared`: a step then passes on shares of energy. Squares are computed band by band instead
        of by the compiled kernels, which takes several times as long.
    explained : float
        How much the explained share of a hidden neuron counts in its activation, 0..1:
        ``a_j = ||x_j||^(1 - explained) * |e_j|^(explained / 2)``, where e_j is its share of the output's energy, see
        :mod:`llmrank.calibration.contribution`. 0 is the norm alone, 1/2 the geometric mean of both. Above 0 the calibration
        costs one more product with every output map.
    """

    name: ClassVar[str] = "wpr"

    gamma: float = 0.5
    theta: float = 1.0
    solver: Solver = "sweep"
    backend: Backend = "auto"
    device: str | None = None
    dtype: Precision = "float32"
    edges: EdgeMeasure = "magnitude"
    explained: float = 0.0

    def __post_init__(self) -> None:
        for name in ("gamma", "theta", "explained"):
            check_unit_interval(name, getattr(self, name))
        check_choices(solver=self.solver, backend=self.backend, dtype=self.dtype, edges=self.edges)

    def score(
        self,
        prev_importance: torch.Tensor,
        in_activations: torch.Tensor,
        out_activations: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """Compute one step of the rank across one block; parallel edges arrive summed and are squared as one edge."""
        weight, out_activations = _step_inputs(self.edges, weight, out_activations)
        arithmetic, operator = _dense_operator(weight)
        prev, own = prev_importance.to(weight), out_activations.to(weight)
        from_edges = Transition(operator, self.theta, arithmetic).apply(operator, prev)
        result: torch.Tensor = weighted_step(from_edges, own, self.gamma).vector
        return result

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """Rank a graph with :func:`graphs.weighted_pagerank`."""
        result = weighted_pagerank(
            reweighted_graph(self, graph, statistics),
            self.gamma,
            self.theta,
            self.solver,
            self.backend,
            device=self.device,
            dtype=self.dtype,
        )
        return with_method_name(self, result)


@dataclass
class ModifiedPageRankScorer(BasePageRankScorer):
    """Modified PageRank, see :func:`graphs.modified_pagerank`.

    Parameters
    ----------
    zero_lowest : float
        Share of the nodes of a layer, 0..1: the scores of its lowest nodes count as zero in the step to the next layer.
    solver, backend, device, dtype, edges, explained
        As for :class:`WeightedPageRankScorer`.
    """

    name: ClassVar[str] = "mpr"

    zero_lowest: float = 0.0
    solver: Solver = "sweep"
    backend: Backend = "auto"
    device: str | None = None
    dtype: Precision = "float32"
    edges: EdgeMeasure = "magnitude"
    explained: float = 0.0

    def __post_init__(self) -> None:
        check_unit_interval("zero_lowest", self.zero_lowest)
        check_unit_interval("explained", self.explained)
        check_choices(solver=self.solver, backend=self.backend, dtype=self.dtype, edges=self.edges)

    def score(
        self,
        prev_importance: torch.Tensor,
        in_activations: torch.Tensor,
        out_activations: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """Compute one step of the rank across one block; parallel edges arrive summed and are squared as one edge."""
        weight, out_activations = _step_inputs(self.edges, weight, out_activations)
        arithmetic, operator = _dense_operator(weight)
        count = int(self.zero_lowest * len(prev_importance))
        prev = arithmetic.with_lowest_zeroed(prev_importance.to(weight), count)
        result: torch.Tensor = modified_step(operator.matvec(prev), out_activations.to(weight)).vector
        return result

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """Rank a graph with :func:`graphs.modified_pagerank`."""
        result = modified_pagerank(
            reweighted_graph(self, graph, statistics),
            self.solver,
            self.backend,
            device=self.device,
            dtype=self.dtype,
            zero_lowest=self.zero_lowest,
        )
        return with_method_name(self, result)


def reweighted_graph(
    scorer: BasePageRankScorer, graph: LayeredGraph, statistics: Sequence[LayerStatistics]
) -> LayeredGraph:
    """Return a graph with the edge weights and activations that a scorer asks for; no dense weight is copied.

    Raises
    ------
    OptionError
        The scorer needs explained shares, and there are not as many statistics as layers, or none holds explained shares.
    """
    if scorer.needs_explained:
        if len(statistics) != len(graph.layer_sizes) or all(entry.explained is None for entry in statistics):
            raise OptionError(
                f"{type(scorer).__name__} needs statistics of all {len(graph.layer_sizes)} layers that say what share of the "
                "output each hidden neuron explains: collect them with explained=True; explicitly listed Linears have none"
            )
        for layer, entry in enumerate(statistics):
            if entry.explained is not None:
                amplitude = entry.explained.abs().sqrt().numpy()
                own = graph.activations[layer] ** (1.0 - scorer.explained) * amplitude**scorer.explained
                graph = graph.with_activations(layer, own)
    return graph.squared() if scorer.edges == "energy" else graph


def with_method_name(scorer: BasePageRankScorer, result: RankResult) -> RankResult:
    """Return a rank with another method name if the scorer changed the weights or activations of the graph.

    Code that explains scores by the weights and activations of the graph (for example, how much of a score came along edges)
    reads the name, and does not explain such a rank.
    """
    method = result.method
    if scorer.edges == "energy":
        method += " of energies"
    if scorer.needs_explained:
        method += " with explained activations"
    return replace(result, method=method)


def check_unit_interval(name: str, value: float) -> None:
    """Raise an OptionError if the value is not a number in [0, 1]."""
    if not (isinstance(value, (int, float)) and 0.0 <= value <= 1.0):
        raise OptionError(f"{name} must be a number in [0, 1], got {value!r}")


def check_choices(**options: str) -> None:
    """Raise an OptionError if an option is none of its :data:`CHOICES`; `graphs` would do so only after the calibration."""
    for name, value in options.items():
        choices = get_args(CHOICES[name])
        if value not in choices:
            raise OptionError(f"unknown {name} {value!r}; expected one of {', '.join(choices)}")


def _step_inputs(
    edges: EdgeMeasure, weight: torch.Tensor, activations: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights and activations as they are, or squared."""
    return (weight.square(), activations.square()) if edges == "energy" else (weight, activations)


def _dense_operator(weight: torch.Tensor) -> tuple[TorchArithmetic, Any]:
    """Return a backend of the weight's precision, and the weight as an operator of it."""
    dtype = "float64" if weight.dtype == torch.float64 else "float32"
    arithmetic = TorchArithmetic(weight.device, dtype)
    return arithmetic, arithmetic.dense_operator(DenseBlock((weight,)))
