"""BaseScorer: the walk over a graph, layer by layer, and what a score must be."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch

from graphs import LayeredGraph, RankResult
from graphs.solvers.result import DegenerateLayer
from llmrank.calibration.statistics import LayerStatistics
from llmrank.errors import LLMRankError, OptionError
from llmrank.score.model_graph import edge_weights

__all__ = ["BaseScorer", "as_share", "check_has_explained"]


class BaseScorer:
    """Base of all scorers. Override :meth:`score`; :meth:`solve_for_rank` walks the layers with it.

    Examples
    --------
    >>> class InStrength(BaseScorer):
    ...     def score(self, prev_importance, in_activations, out_activations, weight):
    ...         return weight.sum(dim=1)
    >>> graph = LayeredGraph.from_weights([[[1.0, -2.0], [0.0, 1.0]]], [1, 1], [[1, 1]])
    >>> InStrength().rank(graph, ()).scores[1]
    array([0.75, 0.25])
    """

    @property
    def needs_explained(self) -> bool:
        """Whether the statistics must say what hidden neurons explain of the outputs (:mod:`llmrank.calibration.contribution`).

        That costs the calibration more; pipelines see to it where the scorer asks.
        """
        return False

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
        degenerate: list[DegenerateLayer] = []

        def share(vector: torch.Tensor, layer: int) -> torch.Tensor:
            if not bool(vector.sum() > 0):
                degenerate.append(DegenerateLayer(layer, "the scores sum to zero; uniform ones stand in"))
            return as_share(vector)

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
        """The scorer's settings, for reports: its public attributes."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


def check_has_explained(scorer: BaseScorer, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> None:
    """Refuse statistics that do not say what the hidden neurons of a graph explain.

    Raises
    ------
    OptionError
        Not one a layer, or none that says.
    """
    if len(statistics) != len(graph.layers) or not any(entry.explained for entry in statistics):
        raise OptionError(
            f"{type(scorer).__name__} needs statistics of all {len(graph.layers)} layers that say what hidden neurons "
            "explain: collect them with explained=True; explicitly listed Linears have none"
        )


def as_share(vector: torch.Tensor) -> torch.Tensor:
    """Divide by the sum; a zero vector becomes uniform."""
    total = vector.sum()
    return vector / total if total > 0 else torch.full_like(vector, 1.0 / max(len(vector), 1))
