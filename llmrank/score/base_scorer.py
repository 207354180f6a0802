"""The base classes of scorers: they go through a graph layer by layer, and check the scores."""

from __future__ import annotations

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

__all__ = ["BaseScorer", "OutgoingScorer", "check_has_explained", "normalised"]


class BaseScorer:
    """Base of all scorers: override :meth:`score`, and :meth:`rank` calls it for each layer in turn.

    Examples
    --------
    >>> class InStrength(BaseScorer):
    ...     def score(self, prev_importance, in_activations, out_activations, weight):
    ...         return weight.sum(dim=1)
    >>> graph = LayeredGraph.from_weights([[[1.0, -2.0], [0.0, 1.0]]], [1, 1], [[1, 1]])
    >>> InStrength().rank(graph, ()).scores[1]
    array([0.75, 0.25])
    """

    # A class in this package that has one is known by it to the command line and to the registries.
    name: ClassVar[str]

    @property
    def needs_explained(self) -> bool:
        """Whether the scorer needs the explained shares of hidden neurons (:mod:`llmrank.calibration.contribution`).

        They make the calibration more expensive; pipelines collect them only if the scorer asks.
        """
        return False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # If a subclass overrides score alone, its rank must use that score, not the rank method of its parent.
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
        """Compute the importance of the nodes of one layer.

        Parameters
        ----------
        prev_importance : (in,) tensor
            Importance of the layer before; its sum is 1.
        in_activations : (in,) tensor
            Norms of the layer's inputs.
        out_activations : (out,) tensor
            Activation norms of the layer's own nodes.
        weight : (out, in) tensor
            Non-negative edge weights on their own device. The vectors have the same dtype and device.

        Returns
        -------
        (out,) tensor or array
            Finite and non-negative; :meth:`rank` divides it by its sum.
        """
        raise NotImplementedError(f"{type(self).__name__} must override score() or rank()")

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """Score every layer of a graph in order, with :meth:`score`.

        Parameters
        ----------
        graph : LayeredGraph
        statistics : sequence of LayerStatistics
            One for each layer. If empty, the graph's activations are used as input norms too.

        Returns
        -------
        RankResult
            The scores of every layer sum to 1; those of layer 0 are its activations.

        Raises
        ------
        LLMRankError
            `score` returned a wrong shape, or negative or non-finite numbers.

        Notes
        -----
        Memory: one dense block at a time.
        """
        start = perf_counter()
        input_norms = [torch.from_numpy(np.array(vector)) for vector in graph.activations]
        if statistics:
            input_norms = [entry.read_norm for entry in statistics]
        degenerate: list[DegenerateLayer] = []

        def normalise(vector: torch.Tensor, layer: int) -> torch.Tensor:
            if not bool(vector.sum() > 0):
                degenerate.append(DegenerateLayer(layer, "the scores sum to zero; uniform scores replace them"))
            return normalised(vector)

        scores = [normalise(torch.from_numpy(np.array(graph.activations[0])), 0)]
        for layer in range(1, len(graph.layer_sizes)):
            weight = edge_weights(graph, layer)
            value = self.score(
                scores[-1].to(weight),
                input_norms[layer - 1].to(weight),
                torch.from_numpy(np.array(graph.activations[layer])).to(weight),
                weight,
            )
            scores.append(normalise(self._checked(value, graph.names[layer], graph.layer_sizes[layer]), layer))
        seconds = perf_counter() - start
        return self._result(graph, [vector.numpy() for vector in scores], seconds, degenerate)

    def _checked(self, value: Any, name: str, size: int) -> torch.Tensor:
        vector = torch.as_tensor(value).detach().double().cpu()
        if vector.shape != (size,):
            raise LLMRankError(
                f"{type(self).__name__}.score returned shape {tuple(vector.shape)} for {name}; expected ({size},), one "
                "number for each row"
            )
        if not bool(torch.isfinite(vector).all()) or bool((vector < 0).any()):
            raise LLMRankError(
                f"{type(self).__name__} gave negative or non-finite scores for {name}; expected finite numbers >= 0: "
                "check the weights and activations for NaN, or shift the scores"
            )
        return vector

    def _result(
        self, graph: LayeredGraph, scores: Sequence[Any], seconds: float, degenerate: Sequence[DegenerateLayer] = ()
    ) -> RankResult:
        return RankResult(
            scores=tuple(scores),
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
            step_products=np.array([len(graph.blocks)]),
            step_seconds=np.array([seconds]),
            degenerate=tuple(degenerate),
        )

    def parameters(self) -> dict[str, Any]:
        """Return the scorer's settings for reports: its public attributes."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class OutgoingScorer(BaseScorer):
    """Base of scorers that multiply a statistic of a node by a norm of the weights that leave it."""

    def _weight_factor(self, outgoing: torch.Tensor) -> torch.Tensor:
        """Compute (n,) factors from the (n_next, n) weights that leave a layer."""
        raise NotImplementedError

    def _activation_factor(self, statistics: LayerStatistics) -> torch.Tensor:
        """Return (n,) factors from the statistics of a layer."""
        raise NotImplementedError

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """Score every layer that has outgoing edges; the last layer has none and gets its activations.

        Raises
        ------
        OptionError
            There are not as many statistics as layers.
        """
        if len(statistics) != len(graph.layer_sizes):
            raise OptionError(
                f"{type(self).__name__} needs the statistics of all {len(graph.layer_sizes)} layers, got {len(statistics)}: pass "
                "those that the graph was built from"
            )
        start = perf_counter()
        scores = []
        for layer in range(len(graph.layer_sizes) - 1):
            outgoing = edge_weights(graph, layer + 1)
            value = self._activation_factor(statistics[layer]).to(outgoing) * self._weight_factor(outgoing)
            scores.append(normalised(self._checked(value, graph.names[layer], graph.layer_sizes[layer])).numpy())
        scores.append(normalised(torch.from_numpy(np.array(graph.activations[-1]))).numpy())
        return self._result(graph, scores, perf_counter() - start)


def check_has_explained(scorer: BaseScorer, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> None:
    """Check that the statistics of a graph hold the explained shares of its hidden neurons.

    Raises
    ------
    OptionError
        There are not as many statistics as layers, or none holds explained shares.
    """
    if len(statistics) != len(graph.layer_sizes) or all(entry.explained is None for entry in statistics):
        raise OptionError(
            f"{type(scorer).__name__} needs statistics of all {len(graph.layer_sizes)} layers that say what share of the output "
            "each hidden neuron explains: collect them with explained=True; explicitly listed Linears have none"
        )


def normalised(vector: torch.Tensor) -> torch.Tensor:
    """Divide a vector by its sum; a vector of zeros becomes uniform."""
    total = vector.sum()
    return vector / total if total > 0 else torch.full_like(vector, 1.0 / max(len(vector), 1))
