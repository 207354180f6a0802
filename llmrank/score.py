"""Scorers: the importance of every node of a graph.

A scorer of your own overrides :meth:`BaseScorer.score`, which sees one layer at a time; the walk over
the layers is done for it. The PageRank scorers hand the whole graph to ``graphs`` and share the step
with their ``score``.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch

from graphs import LayeredGraph, RankResult, modified_pagerank, weighted_pagerank
from graphs.backends import TorchArithmetic
from graphs.blocks import DenseBlock
from graphs.result import Degenerate
from graphs.transition import Transition, modified_step, weighted_step
from llmrank.activations import LayerStatistics
from llmrank.errors import LLMRankError, OptionError
from llmrank.model_graph import edge_weights

__all__ = [
    "ActivationScorer",
    "BaseScorer",
    "FLAPScorer",
    "ModifiedPageRankScorer",
    "NormScorer",
    "RandomScorer",
    "WandaSPScorer",
    "WandaScorer",
    "WeightedPageRankScorer",
]


class BaseScorer:
    """Base of all scorers. Override :meth:`score`; :meth:`rank` walks the layers with it.

    Examples
    --------
    >>> class InStrength(BaseScorer):
    ...     def score(self, prev_importance, in_activations, out_activations, weight):
    ...         return weight.sum(dim=1)
    >>> graph = LayeredGraph.from_weights([[[1.0, -2.0], [0.0, 1.0]]], [1, 1], [[1, 1]])
    >>> InStrength().rank(graph, ()).scores[1]
    array([0.75, 0.25])
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # A child of a scorer with a rank of its own that overrides score alone means the walk with its score.
        super().__init_subclass__(**kwargs)
        nearest = next(base for base in cls.__mro__ if "rank" in vars(base) or "score" in vars(base))
        if "rank" not in vars(nearest):
            cls.rank = BaseScorer.rank  # type: ignore[method-assign]

    def score(
        self,
        prev_importance: torch.Tensor,
        in_activations: torch.Tensor,
        out_activations: torch.Tensor,
        weight: torch.Tensor,
    ) -> Any:
        """Importance of the rows of one layer.

        Parameters
        ----------
        prev_importance : (in,) tensor
            Importance of the layer before, of sum 1.
        in_activations : (in,) tensor
            Norms of what the layer reads.
        out_activations : (out,) tensor
            Activation norms of the layer's own nodes.
        weight : (out, in) tensor
            Non-negative edge weights, on their own device; the vectors share their dtype and device.

        Returns
        -------
        (out,) tensor or array
            Finite and non-negative; the walk divides it by its sum.
        """
        raise NotImplementedError(f"{type(self).__name__} must override score() or rank()")

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """Scores of every layer of a graph, by walking it with :meth:`score`.

        Parameters
        ----------
        graph : LayeredGraph
        statistics : sequence of LayerStatistics
            One a layer, or empty; then the graph's activations serve as input norms too.

        Returns
        -------
        RankResult
            Every layer of sum 1; layer 0 holds its activations.

        Raises
        ------
        LLMRankError
            `score` returned the wrong shape, or negative or non-finite numbers.

        Notes
        -----
        Memory: one dense block at a time.
        """
        start = perf_counter()
        reads = [torch.from_numpy(np.array(vector)) for vector in graph.activations]
        if statistics:
            reads = [entry.read_norm for entry in statistics]
        degenerate: list[Degenerate] = []

        def share(vector: torch.Tensor, layer: int) -> torch.Tensor:
            if not bool(vector.sum() > 0):
                degenerate.append(Degenerate(layer, "the scores sum to zero; uniform ones stand in"))
            return _share(vector)

        scores = [share(torch.from_numpy(np.array(graph.activations[0])), 0)]
        for layer in range(1, len(graph.layers)):
            weight = edge_weights(graph, layer)
            value = self.score(
                scores[-1].to(weight),
                reads[layer - 1].to(weight),
                torch.from_numpy(np.array(graph.activations[layer])).to(weight),
                weight,
            )
            scores.append(share(self._checked(value, graph.names[layer], graph.layers[layer]), layer))
        seconds = perf_counter() - start
        return self._result(graph, [vector.numpy() for vector in scores], seconds, degenerate)

    def _checked(self, value: Any, name: str, size: int) -> torch.Tensor:
        vector = torch.as_tensor(value).detach().double().cpu()
        if vector.shape != (size,):
            raise LLMRankError(
                f"{type(self).__name__}.score returned shape {tuple(vector.shape)} for {name}; expected ({size},), one "
                "number a row"
            )
        if not bool(torch.isfinite(vector).all()) or bool((vector < 0).any()):
            raise LLMRankError(
                f"{type(self).__name__} gave negative or non-finite scores for {name}; expected finite numbers >= 0: "
                "check the weights and activations for NaN, or shift the scores"
            )
        return vector

    def _result(
        self, graph: LayeredGraph, scores: Sequence[Any], seconds: float, degenerate: Sequence[Degenerate] = ()
    ) -> RankResult:
        return RankResult(
            scores=tuple(scores),
            names=graph.names,
            iterations=1,
            residuals=np.zeros(1),
            converged=True,
            stop_reason="exact",
            error_bound=0.0,
            tolerance=0.0,
            solver="walk",
            backend="torch",
            method=type(self).__name__,
            parameters=self.parameters(),
            block_products=len(graph.blocks),
            solve_seconds=seconds,
            degenerate=tuple(degenerate),
        )

    def parameters(self) -> dict[str, Any]:
        """The scorer's settings, for reports: its public attributes."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


def _share(vector: torch.Tensor) -> torch.Tensor:
    """Divide by the sum; a zero vector becomes uniform."""
    total = vector.sum()
    return vector / total if total > 0 else torch.full_like(vector, 1.0 / max(len(vector), 1))


def _unit_interval(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and 0.0 <= value <= 1.0):
        raise OptionError(f"{name} must be a number in [0, 1], got {value!r}")


def _norm_order(p: float) -> None:
    if not (isinstance(p, (int, float)) and p >= 1.0):
        raise OptionError(f"p must be a number >= 1, got {p!r}")


def _computation(solver: str, backend: str, dtype: str) -> None:
    """Refuse unknown names at construction: the rank comes only after the calibration."""
    for name, value, known in (
        ("solver", solver, ("sweep", "power")),
        ("backend", backend, ("auto", "scipy", "torch", "dense")),
        ("dtype", dtype, ("float32", "float64")),
    ):
        if value not in known:
            raise OptionError(f"unknown {name} {value!r}; expected one of {', '.join(known)}")


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
        _norm_order(self.p)

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
        scores = [_share(torch.from_numpy(np.array(vector))).numpy() for vector in graph.activations]
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
        if not isinstance(self.seed, int) or self.seed < 0:
            raise OptionError(f"seed must be an integer >= 0, got {self.seed!r}")
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


def _dense_operator(weight: torch.Tensor) -> tuple[TorchArithmetic, Any]:
    dtype = "float64" if weight.dtype == torch.float64 else "float32"
    arithmetic = TorchArithmetic(weight.device, dtype)
    return arithmetic, arithmetic.dense_operator(DenseBlock((weight,)))


class _OutgoingScorer(BaseScorer):
    """Scores of a node from its statistics and the weights that leave it."""

    def _factor(self, outgoing: torch.Tensor) -> torch.Tensor:
        """(n,) from the (n_next, n) weights that leave the layer."""
        raise NotImplementedError

    def _own(self, statistics: LayerStatistics) -> torch.Tensor:
        """(n,) from the layer's statistics."""
        raise NotImplementedError

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """The score of every layer that edges leave; the last one, which none leave, gets its activations.

        Raises
        ------
        OptionError
            Without statistics.
        """
        if len(statistics) != len(graph.layers):
            raise OptionError(f"{type(self).__name__} needs the statistics of all {len(graph.layers)} layers")
        start = perf_counter()
        scores = []
        for layer in range(len(graph.layers) - 1):
            outgoing = edge_weights(graph, layer + 1)
            value = self._own(statistics[layer]).to(outgoing) * self._factor(outgoing)
            scores.append(_share(self._checked(value, graph.names[layer], graph.layers[layer])).numpy())
        scores.append(_share(torch.from_numpy(np.array(graph.activations[-1]))).numpy())
        return self._result(graph, scores, perf_counter() - start)


@dataclass
class WandaSPScorer(_OutgoingScorer):
    """Wanda-sp: ``||x_j||_2 * ||down_:j||_p`` of a hidden neuron, p = 1 (its own) or 2.

    Source: An et al. 2023 (arXiv 2312.11983), who carry Wanda over to whole channels. Dividing the
    L1 norm by the number of rows (a mean instead of a sum) changes no order.

    Parameters
    ----------
    p : float
        Norm of the column of the output projection.
    """

    p: float = 1.0

    def __post_init__(self) -> None:
        _norm_order(self.p)

    def _factor(self, outgoing: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.linalg.vector_norm(outgoing, ord=self.p, dim=0)
        return result

    def _own(self, statistics: LayerStatistics) -> torch.Tensor:
        return statistics.norm


@dataclass
class FLAPScorer(_OutgoingScorer):
    """FLAP's WIFV: ``Var(x_j) * ||down_:j||_2^2``.

    The squared error of removing neuron j alone while its mean is kept as a bias.
    Source: An et al. 2023 (arXiv 2312.11983).
    """

    def _factor(self, outgoing: torch.Tensor) -> torch.Tensor:
        return outgoing.square().sum(0)

    def _own(self, statistics: LayerStatistics) -> torch.Tensor:
        return statistics.variance
