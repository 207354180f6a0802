"""The PageRank scorers: the whole graph goes to ``graphs``, and one step of it is their ``score``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch

from graphs import LayeredGraph, RankResult, modified_pagerank, weighted_pagerank
from graphs.linalg.backends import TorchArithmetic
from graphs.linalg.blocks import DenseBlock
from graphs.linalg.transition import Transition, modified_step, weighted_step
from llmrank.calibration.statistics import LayerStatistics
from llmrank.errors import OptionError
from llmrank.score.base_scorer import BaseScorer, check_has_explained

__all__ = [
    "EdgeMeasure",
    "ModifiedPageRankScorer",
    "WeighingScorer",
    "WeightedPageRankScorer",
    "check_computation",
    "check_unit_interval",
    "labelled",
    "reweighted_graph",
]

EdgeMeasure: TypeAlias = Literal["magnitude", "energy"]
KNOWN: dict[str, tuple[str, ...]] = {
    "solver": ("sweep", "power"),
    "backend": ("auto", "scipy", "torch", "dense"),
    "dtype": ("float32", "float64"),
    "edges": ("magnitude", "energy"),
}


class WeighingScorer(BaseScorer):
    """What the scorers share that weigh edges and activations in a way of their own.

    Attributes
    ----------
    edges : {"magnitude", "energy"}
    explained : float
    """

    edges: EdgeMeasure
    explained: float

    @property
    def needs_explained(self) -> bool:
        """Where it counts."""
        return self.explained > 0.0


@dataclass
class WeightedPageRankScorer(WeighingScorer):
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
    edges : {"magnitude", "energy"}
        What an edge weighs: ``|W_ij|``, or ``W_ij^2`` with squared activations beside it, see
        :meth:`graphs.LayeredGraph.squared`. A step then hands on shares of energy. Squares are taken in bands, not by the
        compiled kernels, which takes several times as long.
    explained : float
        How much what a hidden neuron explains of the output counts in its activation, 0..1:
        ``a_j = ||x_j||^(1 - explained) * |e_j|^(explained / 2)`` with e_j the share of the output's energy, see
        :class:`llmrank.score.ExplainedScorer`. 0 is the norm alone, 1/2 the geometric mean of both, in which the calibration
        costs one product more with every output map.
    """

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
        check_computation(solver=self.solver, backend=self.backend, dtype=self.dtype, edges=self.edges)

    def score(
        self,
        prev_importance: torch.Tensor,
        in_activations: torch.Tensor,
        out_activations: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """One step of the rank across one block; parallel edges, whose weights come added up, are squared as one."""
        weight, out_activations = _step_energies(self.edges, weight, out_activations)
        arithmetic, operator = _dense_operator(weight)
        prev, own = prev_importance.to(weight), out_activations.to(weight)
        passed = Transition(operator, self.theta, arithmetic).apply(operator, prev)
        result: torch.Tensor = weighted_step(passed, own, self.gamma).vector
        return result

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """The rank of the whole graph."""
        result = weighted_pagerank(
            reweighted_graph(self, graph, statistics),
            self.gamma,
            self.theta,
            self.solver,
            self.backend,
            device=self.device,
            dtype=self.dtype,
        )
        return labelled(self, result)


@dataclass
class ModifiedPageRankScorer(WeighingScorer):
    """Modified PageRank, see :func:`graphs.modified_pagerank`.

    Parameters
    ----------
    zero_lowest : float
        Share of the previous layer's lowest scores that count as zero in a step, 0..1.
    solver, backend, device, dtype, edges, explained
        As for :class:`WeightedPageRankScorer`.
    """

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
        check_computation(solver=self.solver, backend=self.backend, dtype=self.dtype, edges=self.edges)

    def score(
        self,
        prev_importance: torch.Tensor,
        in_activations: torch.Tensor,
        out_activations: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """One step of the rank across one block; parallel edges, whose weights come added up, are squared as one."""
        weight, out_activations = _step_energies(self.edges, weight, out_activations)
        arithmetic, operator = _dense_operator(weight)
        count = int(self.zero_lowest * len(prev_importance))
        prev = arithmetic.with_lowest_zeroed(prev_importance.to(weight), count)
        result: torch.Tensor = modified_step(operator.matvec(prev), out_activations.to(weight)).vector
        return result

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """The rank of the whole graph."""
        result = modified_pagerank(
            reweighted_graph(self, graph, statistics),
            self.solver,
            self.backend,
            device=self.device,
            dtype=self.dtype,
            zero_lowest=self.zero_lowest,
        )
        return labelled(self, result)


def reweighted_graph(
    scorer: WeighingScorer, graph: LayeredGraph, statistics: Sequence[LayerStatistics]
) -> LayeredGraph:
    """A graph with its edges and activations as a scorer weighs them; no dense weight is copied.

    Raises
    ------
    OptionError
        The statistics do not say what neurons explain, and that counts.
    """
    if scorer.needs_explained:
        check_has_explained(scorer, graph, statistics)
        for layer, entry in enumerate(statistics):
            if entry.explained is not None:
                amplitude = entry.explained.energy.abs().sqrt().numpy()
                own = graph.activations[layer] ** (1.0 - scorer.explained) * amplitude**scorer.explained
                graph = graph.with_activations(layer, own)
    return graph.squared() if scorer.edges == "energy" else graph


def labelled(scorer: WeighingScorer, result: RankResult) -> RankResult:
    """The rank under a name of its own where it was not drawn as the graph is.

    What follows a rank along the graph's own weights and activations (the share that came through the graph, say) goes by
    the name, and then takes it for scores from elsewhere.
    """
    named = result.method
    if scorer.edges == "energy":
        named += " of energies"
    if scorer.needs_explained:
        named += " with explained activations"
    return replace(result, method=named)


def check_unit_interval(name: str, value: float) -> None:
    """Refuse what is no share."""
    if not (isinstance(value, (int, float)) and 0.0 <= value <= 1.0):
        raise OptionError(f"{name} must be a number in [0, 1], got {value!r}")


def check_computation(**named: str) -> None:
    """Refuse unknown names at construction: the rank comes only after the calibration."""
    for name, value in named.items():
        if value not in KNOWN[name]:
            raise OptionError(f"unknown {name} {value!r}; expected one of {', '.join(KNOWN[name])}")


def _step_energies(edges: EdgeMeasure, weight: torch.Tensor, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (weight.square(), own.square()) if edges == "energy" else (weight, own)


def _dense_operator(weight: torch.Tensor) -> tuple[TorchArithmetic, Any]:
    dtype = "float64" if weight.dtype == torch.float64 else "float32"
    arithmetic = TorchArithmetic(weight.device, dtype)
    return arithmetic, arithmetic.dense_operator(DenseBlock((weight,)))
