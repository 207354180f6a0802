"""Ranks of a model's graphs, one after the other where a residual stream leads from one to the next."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from graphs import RankResult
from graphs.linalg.blocks import FloatArray
from llmrank.score.base_scorer import BaseScorer
from llmrank.score.model_graph import ModelGraph

__all__ = ["rank_graphs"]


def rank_graphs(scorer: BaseScorer, graphs: Iterable[ModelGraph]) -> tuple[RankResult, ...]:
    """The rank of every graph.

    A graph that follows another starts from the stream behind that one. With x_k the importance of the stream's nodes in front of
    graph k and s_k the scores that the scorer gives them behind it,

        x_{k+1} = beta_k x_k + (1 - beta_k) s_k

    where x_0 is the first graph's own: node j keeps a share beta of what it had, which takes the skip edge to itself. That is
    exact after one pass, since no edge leads back. Beta 0 gives the ranks of the chain, beta 1 lets nothing but the first stream
    reach a later graph.

    Parameters
    ----------
    scorer : BaseScorer
    graphs : iterable of ModelGraph
        In the order of the model. What follows nothing is ranked by itself.

    Returns
    -------
    tuple of RankResult
        Layer 0 of a rank holds x_k where the scorer takes its importance from the graph's activations, as the ranks do.

    Notes
    -----
    Cost: one rank a graph. Scorers that look at one layer at a time score hidden neurons alike in every topology.
    """
    ranks: list[RankResult] = []
    stream: FloatArray | None = None
    for entry in graphs:
        graph = entry.graph
        if entry.follows and stream is not None:
            graph = graph.with_activations(0, stream)
        rank = scorer.rank(graph, entry.statistics)
        first: FloatArray = rank.scores[0] if stream is None or not entry.follows else stream
        last = rank.scores[-1]
        stream = entry.skip * first.astype(np.float64) + (1.0 - entry.skip) * last if len(first) == len(last) else None
        ranks.append(rank)
    return tuple(ranks)
