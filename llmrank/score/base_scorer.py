"""The base classes of scorers, which score a graph layer by layer and check the scores."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
import torch

from graphs import LayeredGraph, RankResult
from graphs.solvers.result import DegenerateLayer
from llmrank.calibration.statistics import LayerStatistics
from llmrank.errors import LLMRankError, OptionError
from llmrank.score.model_graph import edge_weights

__all__ = ["BaseScorer", "OutgoingScorer", "activations_of"]


class BaseScorer:
    """Base class of all scorers. Override :meth:`score`, which :meth:`rank` calls for layers 1, 2, ... in turn.

    Examples
    --------
    >>> class InStrength(BaseScorer):
    ...     def score(self, prev_importance, in_activations, out_activations, weight):
    ...         return weight.sum(dim=1)
    >>> graph = LayeredGraph.from_weights([[[1.0, -2.0], [0.0, 1.0]]], [1, 1], [[1, 1]])
    >>> InStrength().rank(graph, ()).scores[1]
    array([0.75, 0.25])
    """

    # The name in the registries and on the command line. A class of this package that sets no name itself is not listed there.
    name: ClassVar[str]
    # The spec that a scorer was made from, if it was.
    written: str | None = None
    # Whether the weights of all edges are read once, which reports of the cost say.
    _reads_blocks: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # A subclass that overrides only score() is ranked by it, as BaseScorer does it; what it inherits may not call score().
        super().__init_subclass__(**kwargs)
        ranking = {"rank", "_rank", "_layer_scores"}
        nearest = next(base for base in cls.__mro__ if (ranking | {"score"}) & vars(base).keys())
        if not ranking & vars(nearest).keys():
            cls.rank, cls._layer_scores = BaseScorer.rank, BaseScorer._layer_scores  # type: ignore[method-assign]
            cls._reads_blocks = True

    def score(
        self,
        prev_importance: torch.Tensor,
        in_activations: torch.Tensor,
        out_activations: torch.Tensor,
        weight: torch.Tensor,
    ) -> Any:
        """Compute the importance of the nodes of one layer.

        Parameters
        ----------
        prev_importance : (in,) tensor
            Importance of the nodes of the layer before; its sum is 1.
        in_activations : (in,) tensor
            Norms of the inputs that the layer reads.
        out_activations : (out,) tensor
            Norms of the activations of the layer's own nodes.
        weight : (out, in) tensor
            Non-negative weights of the edges into the layer. The vectors have its dtype and are on its device.

        Returns
        -------
        (out,) tensor or array
            Finite and non-negative; :meth:`rank` divides it by its sum.
        """
        raise NotImplementedError(f"{type(self).__name__} must override score() or rank()")

    def explained(self, graph: LayeredGraph, rank: RankResult) -> tuple[LayeredGraph, RankResult]:
        """Return the graph whose edges the scores of :meth:`rank` flow along, and the rank as one of that graph.

        The functions of :mod:`graphs.analysis` explain the rank with both. By default they are those that were given.
        """
        return graph, rank

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """Score every layer of a graph in order; unless a scorer says otherwise, all but layer 0 with :meth:`score`.

        Parameters
        ----------
        graph : LayeredGraph
        statistics : sequence of LayerStatistics
            One entry for each layer, from which the input norms are taken. If it is empty, the graph's activations are used;
            scorers of other statistics refuse that.

        Returns
        -------
        RankResult
            The scores of every layer sum to 1; unless a scorer says otherwise, those of layer 0 are its activations, divided by
            their sum.

        Raises
        ------
        OptionError
            The scorer needs the statistics of all layers, and got others.
        LLMRankError
            The scores of a layer have a wrong shape, or are negative or not finite.

        Notes
        -----
        Cost: one read of the edges. Memory: dense copies of a few blocks.
        """
        start = perf_counter()
        degenerate: list[DegenerateLayer] = []
        scores: list[torch.Tensor] = []
        for layer, (name, size) in enumerate(zip(graph.names, graph.layer_sizes, strict=True)):
            vector = self._checked_scores(self._layer_scores(graph, statistics, layer, scores), name, size)
            scores.append(_normalised(vector, layer, degenerate))
        return RankResult(  # exact after one pass over the layers
            scores=tuple(vector.numpy() for vector in scores),
            names=graph.names,
            residuals=np.zeros(1),
            layer_residuals=np.zeros((1, len(scores))),
            error_bounds=np.zeros(1),
            layer_bounds=(0.0,) * len(scores),
            stop_reason="exact",
            tolerance=0.0,
            solver="walk",
            backend="torch",
            method=type(self).__name__,
            parameters=self.parameters(),
            step_products=np.array([len(graph.blocks) if self._reads_blocks else 0]),
            step_seconds=np.array([perf_counter() - start]),
            degenerate=tuple(degenerate),
        )

    def _layer_scores(
        self, graph: LayeredGraph, statistics: Sequence[LayerStatistics], layer: int, before: Sequence[torch.Tensor]
    ) -> Any:
        """Compute the scores of one layer, which :meth:`rank` checks and divides by their sum; `before` are those before it."""
        own = activations_of(graph, layer)
        if layer == 0:
            return own
        weight = edge_weights(graph, layer)
        read = statistics[layer - 1].read_norm if statistics else activations_of(graph, layer - 1)
        return self.score(before[-1].to(weight), read.to(weight), own.to(weight), weight)

    def _checked_scores(self, value: Any, name: str, size: int) -> torch.Tensor:
        """Return the scores of a layer as a float64 vector on the CPU; raise an LLMRankError if they are unusable."""
        vector = torch.as_tensor(value).detach().double().cpu()
        if vector.shape != (size,):
            raise LLMRankError(
                f"{type(self).__name__} gave scores of shape {tuple(vector.shape)} for {name}; expected ({size},), one "
                "number for each node of the layer"
            )
        if not bool(torch.isfinite(vector).all()) or bool((vector < 0).any()):
            raise LLMRankError(
                f"{type(self).__name__} gave negative or non-finite scores for {name}; expected finite numbers >= 0: "
                "check the weights and activations for NaN, or shift the scores"
            )
        return vector

    def parameters(self) -> dict[str, Any]:
        """Return the settings of the scorer for reports: its public attributes."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "written"}

    def label(self) -> str:
        """Return the spec that the scorer was made from, or its name with the parameters that differ from their defaults.

        Examples
        --------
        >>> from llmrank.score import WeightedPageRankScorer
        >>> WeightedPageRankScorer(gamma=0.2).label()
        'wpr:gamma=0.2'
        """
        if self.written is not None:
            return self.written
        name: str = vars(type(self)).get("name", type(self).__name__)
        defaults = inspect.signature(type(self)).parameters
        written = [
            f"{key}={getattr(self, key)}"
            for key, parameter in defaults.items()
            if hasattr(self, key) and getattr(self, key) != parameter.default
        ]
        return f"{name}:{','.join(written)}" if written else name


class OutgoingScorer(BaseScorer):
    """Base class of scorers that multiply a factor from a node's statistics by one from the weights of its outgoing edges."""

    def _weight_factor(self, outgoing: torch.Tensor) -> torch.Tensor:
        """Compute one factor for each of n nodes, from the (n_next, n) weights of the edges that leave their layer."""
        raise NotImplementedError

    def _activation_factor(self, statistics: LayerStatistics) -> torch.Tensor:
        """Return one factor for each node of a layer, from its statistics."""
        raise NotImplementedError

    def _layer_scores(
        self, graph: LayeredGraph, statistics: Sequence[LayerStatistics], layer: int, before: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Multiply both factors. The last layer has no outgoing edges; its activations score it."""
        if len(statistics) != len(graph.layer_sizes):
            raise OptionError(
                f"{type(self).__name__} needs the statistics of all {len(graph.layer_sizes)} layers, got {len(statistics)}: pass "
                "those that the graph was built from"
            )
        if layer == len(statistics) - 1:
            return activations_of(graph, layer)
        outgoing = edge_weights(graph, layer + 1)
        return self._activation_factor(statistics[layer]).to(outgoing) * self._weight_factor(outgoing)


def activations_of(graph: LayeredGraph, layer: int) -> torch.Tensor:
    """Return the activations of a layer of a graph, as a tensor of its own."""
    return torch.from_numpy(np.array(graph.activations[layer]))


def _normalised(vector: torch.Tensor, layer: int, degenerate: list[DegenerateLayer]) -> torch.Tensor:
    """Divide a layer's non-negative scores by their sum.

    If the sum is zero, return uniform scores and note the layer in `degenerate`.
    """
    total = vector.sum()
    if total > 0:
        return vector / total
    degenerate.append(DegenerateLayer(layer, "the scores sum to zero; uniform scores replace them"))
    return torch.full_like(vector, 1.0 / max(len(vector), 1))
