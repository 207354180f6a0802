"""The scores of a rank, once it is known to be one of the graph at hand."""

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
    """The scores of a rank, once it is known to be one of this graph.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        One score a node.

    Returns
    -------
    tuple of L+1 arrays, each (n_l,)
        The rank's own, not copies.

    Raises
    ------
    GraphError
        Not a rank, several scores a node, or other layers.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 1.0]]], [1, 3], [[1]])
    >>> check_scores(graph, weighted_pagerank(graph))[0]
    array([0.25, 0.75])
    """
    if not isinstance(rank, RankResult):
        raise GraphError(f"rank: expected a RankResult, as weighted_pagerank returns, got {type(rank).__name__}")
    check_score_shapes([np.shape(scores) for scores in rank.scores], graph.layers)
    return rank.scores


def finite_scores(graph: LayeredGraph, rank: RankResult) -> tuple[FloatArray, ...]:
    """The scores of a rank of this graph, to compute with: in float64, and finite.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        One score a node.

    Returns
    -------
    tuple of L+1 float64 arrays, each (n_l,)
        Copies.

    Raises
    ------
    GraphError
        As for :func:`check_scores`, or a score that is not finite.

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
