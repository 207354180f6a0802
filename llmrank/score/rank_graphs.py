"""Rank the graphs of a model in order; a residual stream may lead from one graph to the next."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from graphs import RankResult
from graphs.linalg.blocks import FloatArray
from llmrank.score.base_scorer import BaseScorer
from llmrank.score.edge_measures import squares
from llmrank.score.model_graph import ModelGraph

__all__ = ["rank_graphs"]


def rank_graphs(scorer: BaseScorer, graphs: Iterable[ModelGraph]) -> tuple[RankResult, ...]:
    """Rank every graph of a model.

    A graph that follows another one starts from the residual stream behind that graph. Let x_k be the importance of the stream's
    nodes in front of graph k, and s_k the scores of these nodes in the last layer of graph k. Then

        x_{k+1} = beta_k x_k + (1 - beta_k) s_k

    and x_0 holds the scores of layer 0 of the first graph. So a node of the stream keeps the share beta of its importance along
    its skip edge.

    Parameters
    ----------
    scorer : BaseScorer
    graphs : iterable of ModelGraph
        In the order of the model. A graph that does not follow the one before it is ranked by itself.

    Returns
    -------
    tuple of RankResult
        One for each graph. Layer 0 holds x_k if the scorer takes the scores of layer 0 from the activations, as weighted and
        modified PageRank do.

    Notes
    -----
    Cost: one rank for each graph. Scorers that do not use the scores of other layers give hidden neurons the same scores in
    every topology.
    """
    of_energies = squares(getattr(scorer, "edges", "magnitude"))  # this scorer squares activations, but x_k is a score
    ranks: list[RankResult] = []
    stream: FloatArray | None = None
    for entry in graphs:
        in_front = stream if entry.follows else None
        activations = in_front if in_front is None or not of_energies else np.sqrt(in_front)
        graph = entry.graph if activations is None else entry.graph.with_activations(0, activations)
        rank = scorer.rank(graph, entry.statistics)
        first: FloatArray = rank.scores[0] if in_front is None else in_front
        last = rank.scores[-1]
        stream = entry.skip * first.astype(np.float64) + (1.0 - entry.skip) * last if len(first) == len(last) else None
        ranks.append(rank)
    return tuple(ranks)
