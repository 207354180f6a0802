"""Flow: how score passes from layer to layer, and between the nodes of high and low score of two.

A weighted rank passes ``P_ij r_j`` along an edge from j to i, P dividing by the out-strength; a modified one ``W_ij r_j``,
times the target's activation. Of other scores the flow is that of a weighted rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphs.analysis.measures import bucket_ends, score_buckets
from graphs.analysis.strengths import default_backend, not_finite, out_strength
from graphs.checks import check_share
from graphs.linalg.backends import Backend
from graphs.linalg.blocks import FloatArray
from graphs.linalg.transition import Transition
from graphs.ranking.scores import finite_scores
from graphs.solvers.result import RankResult
from graphs.structures.indices import check_layer
from graphs.structures.layered import LayeredGraph

__all__ = ["damping_of", "departing_scores", "flow", "is_modified", "layer_flows", "share_through_graph", "theta_of"]


def flow(
    graph: LayeredGraph,
    rank: RankResult,
    layer: int,
    buckets: int | Sequence[float] = 10,
    *,
    theta: float | None = None,
) -> FloatArray:
    """How score flows across a block, from the nodes of high and low score to those of high and low score.

    ``F[t, s] = sum of P_ij r_j over the targets i of bucket t and the sources j of bucket s``, r being the score of
    layer - 1. For a modified PageRank, whose step does not divide by out-strengths, ``a_i W_ij r_j`` takes the place of
    ``P_ij r_j``, over its sum (``zero_lowest`` is heeded).

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        One score a node of this graph.
    layer : int
        The block into this layer, 1..L.
    buckets : int or sequence of float
        As for :func:`graphs.analysis.measures.score_buckets`.
    theta : float, optional
        Share of the edge weights against the bare edges in P; by default that of the rank, or 1. Without effect on a
        modified PageRank.

    Returns
    -------
    (buckets, buckets) float64 array
        Row = target bucket, column = source bucket; bucket 0 holds the highest scores. A column sums to the mass of
        its sources less that of those that dangle; for a modified PageRank a row sums to the mass of its targets.

    Raises
    ------
    GraphError
        No such block, a rank of another graph or of several vectors, buckets as for
        :func:`graphs.analysis.measures.score_buckets`, theta out of range, NaN or Inf in the weights.

    Notes
    -----
    Cost: two reads of the block, one of them a product with as many columns as there are buckets; for theta < 1 a
    product a bucket. Memory: O(nodes of the two layers * buckets).

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 2.0]]], [3, 1], [[1, 1]])
    >>> flow(graph, weighted_pagerank(graph), layer=1, buckets=2)
    array([[0.375, 0.25 ],
           [0.375, 0.   ]])
    """
    scores = finite_scores(graph, rank)
    layer = check_layer(graph, layer, first=1)
    bucket_ends(buckets)
    return _flow(graph, rank, scores, layer, buckets, theta_of(rank, theta), default_backend(graph))


def layer_flows(
    graph: LayeredGraph, rank: RankResult, buckets: int | Sequence[float] = 10, *, theta: float | None = None
) -> tuple[FloatArray, ...]:
    """The :func:`flow` across every block.

    Parameters
    ----------
    graph, rank, buckets, theta
        As for :func:`flow`.

    Returns
    -------
    tuple of L (buckets, buckets) float64 arrays

    Raises
    ------
    GraphError
        As for :func:`flow`.

    Notes
    -----
    Cost: that of :func:`flow` for every block.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0], [1.0]], [[1.0, 1.0]]], [1], [[1, 1], [1]])
    >>> [part.tolist() for part in layer_flows(graph, weighted_pagerank(graph), buckets=1)]
    [[[1.0]], [[1.0]]]
    """
    scores = finite_scores(graph, rank)
    bucket_ends(buckets)
    engine, share = default_backend(graph), theta_of(rank, theta)
    return tuple(_flow(graph, rank, scores, layer, buckets, share, engine) for layer in range(1, len(graph.layers)))


def _flow(
    graph: LayeredGraph,
    rank: RankResult,
    scores: Sequence[FloatArray],
    layer: int,
    buckets: int | Sequence[float],
    theta: float,
    engine: Backend,
) -> FloatArray:
    sources, targets = (score_buckets(scores[k], buckets) for k in (layer - 1, layer))
    count = len(bucket_ends(buckets))
    masses = departing_scores(rank, scores[layer - 1])
    columns = np.zeros((len(masses), count))
    columns[np.arange(len(masses)), sources] = masses
    operator = engine.operator(graph.blocks[layer - 1], 1 if theta == 1.0 else count)
    to_numpy, vector = engine.arithmetic.to_numpy, engine.arithmetic.vector
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        if is_modified(rank):
            activation = graph.activations[layer]
            highest = activation.max()
            own = activation / highest if highest > 0 else np.ones_like(activation)
            arrived = to_numpy(operator.matvec(vector(columns))) * own[:, None]
            total = float(arrived.sum())
            if not np.isfinite(total):  # what is divided by infinity would pass for zero
                raise not_finite(layer)
            arrived /= total or 1.0
        elif theta == 1.0:
            strength = out_strength(engine, operator, layer)[:, None]
            shares = np.divide(columns, strength, out=np.zeros_like(columns), where=strength > 0)
            arrived = to_numpy(operator.matvec(vector(shares)))
        else:
            transition = Transition(operator, theta, engine.arithmetic)
            arrived = np.stack([to_numpy(transition.apply(operator, vector(part))) for part in columns.T], axis=1)
    found = np.zeros((count, count))
    np.add.at(found, targets, arrived)
    if not np.isfinite(found).all():
        raise not_finite(layer)
    return found


def is_modified(rank: RankResult) -> bool:
    """Whether score passes an edge as ``W_ij r_j``, not as ``P_ij r_j``.

    Parameters
    ----------
    rank : RankResult

    Returns
    -------
    bool

    Examples
    --------
    >>> from graphs import modified_pagerank, weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 1], [[1]])
    >>> is_modified(modified_pagerank(graph)), is_modified(weighted_pagerank(graph))
    (True, False)
    """
    return rank.method == "modified pagerank"


def damping_of(rank: RankResult) -> float | None:
    """Gamma of a weighted PageRank of layers; other scores have no part that came through the graph.

    Parameters
    ----------
    rank : RankResult

    Returns
    -------
    float or None
        None for other scores, and for a rank that does not say.

    Examples
    --------
    >>> from graphs import pagerank, weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 1], [[1]])
    >>> damping_of(weighted_pagerank(graph, gamma=0.7)), damping_of(pagerank(graph, gamma=0.7))
    (0.7, None)
    """
    gamma = rank.parameters.get("gamma") if rank.method == "weighted pagerank" else None
    return None if gamma is None else float(gamma)


def theta_of(rank: RankResult, theta: float | None) -> float:
    """The theta asked for, else that of the rank, else 1.

    Parameters
    ----------
    rank : RankResult
    theta : float, optional
        Share of the edge weights against the bare edges in P, 0..1.

    Returns
    -------
    float

    Raises
    ------
    GraphError
        theta out of range.

    Examples
    --------
    >>> from graphs import modified_pagerank, weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 1], [[1]])
    >>> rank = weighted_pagerank(graph, theta=0.3)
    >>> theta_of(rank, 0.5), theta_of(rank, None), theta_of(modified_pagerank(graph), None)
    (0.5, 0.3, 1.0)
    """
    return check_share("theta", rank.parameters.get("theta", 1.0) if theta is None else theta)


def departing_scores(rank: RankResult, scores: FloatArray) -> FloatArray:
    """What the sources of a block pass on: their scores, the lowest zeroed where the modified rank did so.

    Parameters
    ----------
    rank : RankResult
    scores : (n,) float64 array
        Of the sources.

    Returns
    -------
    (n,) float64 array
        `scores` itself, or a copy.

    Examples
    --------
    >>> from graphs import modified_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 3], [[1]])
    >>> rank = modified_pagerank(graph, zero_lowest=0.5)
    >>> departing_scores(rank, rank.scores[0])
    array([0.  , 0.75])
    """
    count = int(rank.parameters.get("zero_lowest", 0.0) * len(scores)) if is_modified(rank) else 0
    if not count:
        return scores
    found: FloatArray = scores.copy()
    found[np.argsort(scores, kind="stable")[:count]] = 0.0
    return found


def share_through_graph(gamma: float, passed: float, own: float) -> float:
    """The part of a score that came through the graph: ``gamma passed / (gamma passed + (1 - gamma) own)``.

    Parameters
    ----------
    gamma : float
        Damping, 0..1.
    passed, own : float
        What arrives along the edges, and the share of the teleport, at a node or in a layer; non-negative.

    Returns
    -------
    float
        In [0, 1]; 0 where nothing came from either.

    Examples
    --------
    >>> share_through_graph(0.5, 0.5, 1.0)
    0.3333333333333333
    """
    total = gamma * passed + (1.0 - gamma) * own
    return gamma * passed / total if total > 0.0 else 0.0
