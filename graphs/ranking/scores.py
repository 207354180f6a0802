"""Checks that a rank fits a graph: it has one score for every node."""

from __future__ import annotations

import numpy as np

from graphs.checks import check_score_shapes
from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray
from graphs.linalg.validation import as_vector
from graphs.solvers.result import RankResult
from graphs.structures.layered import LayeredGraph

__all__ = ["check_scores", "finite_scores"]


def check_scores(graph: LayeredGraph, rank: RankResult) -> tuple[FloatArray, ...]:
    """Check that a rank has one score for every node of a graph, and return the scores.

    Returns
    -------
    tuple of L+1 arrays, each (n_l,)
        The arrays of the rank, not copies.

    Raises
    ------
    GraphError
        `rank` is no RankResult, has several scores per node, or does not fit the layer sizes of the graph.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 1.0]]], [1, 3], [[1]])
    >>> check_scores(graph, weighted_pagerank(graph))[0]
    array([0.25, 0.75])
    """
    if not isinstance(rank, RankResult):
        raise GraphError(f"rank: expected a RankResult, as weighted_pagerank returns, got {type(rank).__name__}")
    check_score_shapes([np.shape(scores) for scores in rank.scores], graph.layer_sizes)
    return rank.scores


def finite_scores(graph: LayeredGraph, rank: RankResult) -> tuple[FloatArray, ...]:
    """Check a rank of a graph as :func:`check_scores` does, and copy its scores to float64.

    Returns
    -------
    tuple of L+1 float64 arrays, each (n_l,)

    Raises
    ------
    GraphError
        As for :func:`check_scores`, or a score is not finite.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 1.0]]], [1, 3], [[1]])
    >>> finite_scores(graph, weighted_pagerank(graph, dtype="float32"))[0].dtype
    dtype('float64')
    """
    return tuple(
        as_vector(scores, f"scores of layer {layer}") for layer, scores in enumerate(check_scores(graph, rank))
    )
