"""The PageRank scorers: ``rank`` passes the whole graph to ``graphs``, and ``score`` is one step of that rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

import torch

from graphs import LayeredGraph, RankResult, modified_pagerank, weighted_pagerank
from graphs.linalg.backends import TorchArithmetic
from graphs.linalg.blocks import DenseBlock
from graphs.linalg.transition import Transition, modified_step, weighted_step
from llmrank.calibration.statistics import LayerStatistics
from llmrank.errors import OptionError
from llmrank.score.base_scorer import BaseScorer, check_has_explained

__all__ = [
    "BasePageRankScorer",
    "EdgeMeasure",
    "ModifiedPageRankScorer",
    "WeightedPageRankScorer",
    "check_choices",
    "check_unit_interval",
    "reweighted_graph",
    "with_method_name",
]

EdgeMeasure: TypeAlias = Literal["magnitude", "energy"]
CHOICES: dict[str, tuple[str, ...]] = {
    "solver": ("sweep", "power"),
    "backend": ("auto", "scipy", "torch", "dense"),
    "dtype": ("float32", "float64"),
    "edges": ("magnitude", "energy"),
}


class BasePageRankScorer(BaseScorer):
    """Base of scorers that may change a graph's edge weights and activations before they rank it.

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
        Arithmetic of the products, see :func:`graphs.weighted_pagerank`; "auto" chooses by size and device.
    device : str, optional
        Device to compute on; by default the one that holds the weights.
    dtype : {"float32", "float64"}
        float32 reads float32 weights without converting them. Both keep the same neurons, except for ties within 1e-6.
    edges : {"magnitude", "energy"}
        Weight of an edge: ``|W_ij|``, or ``W_ij^2`` together with squared activations, see
        :meth:`graphs.LayeredGraph.squared`. With squares, a step passes on shares of energy. They are computed band by band
        instead of by the compiled kernels, which takes several times as long.
    explained : float
        How much the explained share of a hidden neuron counts in its activation, 0..1:
        ``a_j = ||x_j||^(1 - explained) * |e_j|^(explained / 2)``, where e_j is its share of the output's energy, see
        :mod:`llmrank.calibration.contribution`. 0 is the norm alone, 1/2 the geometric mean of both. Above 0 the calibration
        costs one more product with every output map.
    """

    name: ClassVar[str] = "wpr"

    gamma: float = 0.5
    theta: float = 1.0
    solver: Literal["sweep", "power"] = "sweep"
    backend: Literal["auto", "scipy", "torch", "dense"] = "auto"
    device: str | None = None
    dtype: Literal["float32", "float64"] = "float32"
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
        """Rank the whole graph."""
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
        Share of the previous layer's nodes, those with the lowest scores, that count as zero in a step, 0..1.
    solver, backend, device, dtype, edges, explained
        As for :class:`WeightedPageRankScorer`.
    """

    name: ClassVar[str] = "mpr"

    zero_lowest: float = 0.0
    solver: Literal["sweep", "power"] = "sweep"
    backend: Literal["auto", "scipy", "torch", "dense"] = "auto"
    device: str | None = None
    dtype: Literal["float32", "float64"] = "float32"
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
        """Rank the whole graph."""
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
        The scorer needs explained shares, and the statistics hold none.
    """
    if scorer.needs_explained:
        check_has_explained(scorer, graph, statistics)
        for layer, entry in enumerate(statistics):
            if entry.explained is not None:
                amplitude = entry.explained.abs().sqrt().numpy()
                own = graph.activations[layer] ** (1.0 - scorer.explained) * amplitude**scorer.explained
                graph = graph.with_activations(layer, own)
    return graph.squared() if scorer.edges == "energy" else graph


def with_method_name(scorer: BasePageRankScorer, result: RankResult) -> RankResult:
    """Return a rank with a method name of its own if its weights or activations are not those of the graph.

    Code that explains a rank by the graph's own weights and activations (for example the share of a score that came along
    edges) reads the name, and treats such a rank as scores of unknown origin.
    """
    method = result.method
    if scorer.edges == "energy":
        method += " of energies"
    if scorer.needs_explained:
        method += " with explained activations"
    return replace(result, method=method)


def check_unit_interval(name: str, value: float) -> None:
    """Raise OptionError if the value is not a number in [0, 1]."""
    if not (isinstance(value, (int, float)) and 0.0 <= value <= 1.0):
        raise OptionError(f"{name} must be a number in [0, 1], got {value!r}")


def check_choices(**options: str) -> None:
    """Raise OptionError for an unknown choice when the scorer is made: the rank comes only after the calibration."""
    for name, value in options.items():
        if value not in CHOICES[name]:
            raise OptionError(f"unknown {name} {value!r}; expected one of {', '.join(CHOICES[name])}")


def _step_inputs(
    edges: EdgeMeasure, weight: torch.Tensor, activations: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return (weight.square(), activations.square()) if edges == "energy" else (weight, activations)


def _dense_operator(weight: torch.Tensor) -> tuple[TorchArithmetic, Any]:
    dtype = "float64" if weight.dtype == torch.float64 else "float32"
    arithmetic = TorchArithmetic(weight.device, dtype)
    return arithmetic, arithmetic.dense_operator(DenseBlock((weight,)))
