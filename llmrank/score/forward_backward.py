"""A scorer that combines the weighted PageRanks along the edges and against them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from graphs import LayeredGraph, RankResult, weighted_pagerank
from graphs.solvers.result import DegenerateLayer
from llmrank.score.edge_measures import EdgeMeasure
from llmrank.score.pagerank import Backend, EdgeScorer, Precision, check_unit_interval

__all__ = ["ForwardBackwardScorer"]


@dataclass
class ForwardBackwardScorer(EdgeScorer):
    """Weighted geometric mean of the forward and the backward weighted PageRank: ``s_l = N(r_l^balance * b_l^(1 - balance))``.

    r is the weighted PageRank of the graph, and b that of the graph with every edge reversed
    (:meth:`graphs.LayeredGraph.reversed`). W_l holds the weights of the edges into layer l, a_l holds its activations, and L is
    the last layer::

        r_0 = a_0 / sum(a_0),  r_l = N(gamma P_l r_{l-1} + (1 - gamma) a_l / sum(a_l)),  P_l = W_l / out-strength of l-1
        b_L = a_L / sum(a_L),  b_l = N(gamma Q_l b_{l+1} + (1 - gamma) a_l / sum(a_l)),  Q_l = W_{l+1}^T / in-strength of l+1

    N divides by the sum. If theta is below 1, bare edges, whose weights are all 1, are mixed into P and Q. A neuron scores high
    if strong inputs reach it and the outputs depend on it.

    Parameters
    ----------
    gamma : float
        Damping of both ranks, 0..1: the share of a score that comes along edges. At 0 the score is the activation alone.
    theta : float
        Share of the edge weights against the bare edges, 0..1. At 1 only the edge weights count, at 0 only the bare edges.
    balance : float
        Exponent of the forward rank, 0..1: 1 is the forward rank alone, 0 the backward rank alone.
    backend, device, dtype, edges
        As for :class:`llmrank.score.WeightedPageRankScorer`.

    Notes
    -----
    Cost: twice that of :class:`llmrank.score.WeightedPageRankScorer`, or more if theta is below 1.
    """

    name: ClassVar[str] = "fbpr"

    gamma: float = 0.5
    theta: float = 1.0
    balance: float = 0.5
    backend: Backend = "auto"
    device: str | None = None
    dtype: Precision = "float32"
    edges: EdgeMeasure = "magnitude"

    def __post_init__(self) -> None:
        for name in ("gamma", "theta", "balance"):
            check_unit_interval(name, getattr(self, name))
        super().__post_init__()

    def _rank(self, graph: LayeredGraph) -> RankResult:
        forward, backward = (
            weighted_pagerank(one, self.gamma, self.theta, backend=self.backend, device=self.device, dtype=self.dtype)
            for one in (graph, graph.reversed())
        )
        last = len(graph.layer_sizes) - 1
        degenerate = [*forward.degenerate, *(replace(entry, layer=last - entry.layer) for entry in backward.degenerate)]
        scores = []
        for layer, (along, against) in enumerate(zip(forward.scores, backward.scores[::-1], strict=True)):
            mean = along.astype(np.float64) ** self.balance * against.astype(np.float64) ** (1.0 - self.balance)
            total = mean.sum()
            if not total > 0:
                degenerate.append(
                    DegenerateLayer(layer, "no node has a positive score in both ranks; uniform scores replace them")
                )
            scores.append(mean / total if total > 0 else np.full(len(mean), 1.0 / len(mean)))
        return replace(
            forward,
            scores=tuple(scores),
            method="forward-backward pagerank",
            parameters=self.parameters(),
            step_products=forward.step_products + backward.step_products,
            step_seconds=forward.step_seconds + backward.step_seconds,
            setup_seconds=forward.setup_seconds + backward.setup_seconds,
            degenerate=tuple(degenerate),
        )
