"""Flow of score from layer to layer, between nodes of high and low score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphs.analysis.buckets import bucket_ends, score_buckets
from graphs.analysis.strengths import default_backend, finite_strength, not_finite_error
from graphs.checks import check_share
from graphs.linalg.blocks import FloatArray
from graphs.linalg.transition import Transition
from graphs.ranking.scores import finite_scores
from graphs.solvers.result import RankResult
from graphs.structures.indices import check_layer
from graphs.structures.layered import LayeredGraph

__all__ = ["choose_theta", "flow", "gamma_of", "is_modified", "passed_scores", "share_through_graph"]


def flow(
    graph: LayeredGraph,
    rank: RankResult,
    layer: int,
    buckets: int | Sequence[float] = 10,
    *,
    theta: float | None = None,
) -> FloatArray:
    """Compute how much score flows across a block, from buckets of source nodes to buckets of target nodes.

    A block holds the edges from one layer to the next. A bucket is a group of nodes of a layer with similar scores.

    ``F[t, s] = sum of P_ij r_j over the targets i of bucket t and the sources j of bucket s``, where r_j is the score of j and P
    is the transition of :mod:`graphs.analysis.incident_edges`. For a modified PageRank, ``a_i W_ij r_j`` takes the place of
    ``P_ij r_j``, where a_i is the activation of i and W_ij the weight of the edge. The sums are then divided by the sum over all
    edges of the block. The lowest r_j count as zero if the rank was computed with `zero_lowest`.

    Cost: at most two reads of the block; for theta < 1, two reads and one more for each bucket. Memory: O(nodes * buckets), and
    a copy of the block if the backend converts it.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        The rank of this graph, with one score a node.
    layer : int
        The layer that the block leads into, 1..L.
    buckets : int or sequence of float
        As for :func:`graphs.analysis.buckets.score_buckets`.
    theta : float, optional
        Share of the edge weights in P; the rest, 1 - theta, is divided equally among the edges of a source. By default the theta
        of the rank, or 1 if the rank has none.

    Returns
    -------
    (buckets, buckets) float64 array
        Row = target bucket, column = source bucket; bucket 0 holds the highest scores. A column sums to the score of those
        sources in its bucket that have out-edges. For a modified PageRank, a row sums to the score of the targets in its bucket;
        if no score arrives at any target, all flows are zero.

    Raises
    ------
    GraphError
        No such layer, a rank of another graph or with several scores a node, invalid buckets, theta out of range, or NaN or
        Inf in the scores, in the weights or in their sums.

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
    n_buckets, theta, backend = len(bucket_ends(buckets)), choose_theta(rank, theta), default_backend(graph)
    source_buckets, target_buckets = (score_buckets(scores[k], buckets) for k in (layer - 1, layer))
    passed = passed_scores(rank, scores[layer - 1])
    passed_by_bucket = np.zeros((len(passed), n_buckets))
    passed_by_bucket[np.arange(len(passed)), source_buckets] = passed
    operator = backend.operator(graph.blocks[layer - 1], products=1 if theta == 1.0 else n_buckets)
    to_numpy, vector = backend.arithmetic.to_numpy, backend.arithmetic.vector
    with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite raise an error below
        if is_modified(rank):
            activation = graph.activations[layer]
            highest = activation.max()
            relative = activation / highest if highest > 0 else np.ones_like(activation)
            arrived = to_numpy(operator.matvec(vector(passed_by_bucket))) * relative[:, None]
            total = float(arrived.sum())
            if not np.isfinite(total):  # a division by infinity would give zeros
                raise not_finite_error(layer)
            arrived /= total or 1.0
        elif theta == 1.0:
            strength = finite_strength(backend, operator.out_strength, layer)[:, None]
            # What a source passes along each unit of edge weight; nothing if it has no out-edges.
            per_weight = np.divide(passed_by_bucket, strength, out=np.zeros_like(passed_by_bucket), where=strength > 0)
            arrived = to_numpy(operator.matvec(vector(per_weight)))
        else:
            transition = Transition(operator, theta, backend.arithmetic)
            arrived = np.stack(
                [to_numpy(transition.apply(operator, vector(of_bucket))) for of_bucket in passed_by_bucket.T], axis=1
            )
    flows = np.zeros((n_buckets, n_buckets))
    np.add.at(flows, target_buckets, arrived)
    if not np.isfinite(flows).all():
        raise not_finite_error(layer)
    return flows


def is_modified(rank: RankResult) -> bool:
    """Tell whether a rank is a modified PageRank, which passes ``W_ij r_j`` along an edge instead of ``P_ij r_j``.

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


def gamma_of(rank: RankResult) -> float | None:
    """Return the damping of a weighted PageRank.

    Parameters
    ----------
    rank : RankResult

    Returns
    -------
    float or None
        None if the rank is not a weighted PageRank, or has no parameter gamma.

    Examples
    --------
    >>> from graphs import pagerank, weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 1], [[1]])
    >>> gamma_of(weighted_pagerank(graph, gamma=0.7)), gamma_of(pagerank(graph, gamma=0.7))
    (0.7, None)
    """
    gamma = rank.parameters.get("gamma") if rank.method == "weighted pagerank" else None
    return None if gamma is None else float(gamma)


def choose_theta(rank: RankResult, theta: float | None) -> float:
    """Return the given theta; without it, the theta of the rank, or 1 if the rank has none.

    Parameters
    ----------
    rank : RankResult
    theta : float, optional
        Share of the edge weights in the transition P, 0..1.

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
    >>> choose_theta(rank, 0.5), choose_theta(rank, None), choose_theta(modified_pagerank(graph), None)
    (0.5, 0.3, 1.0)
    """
    return check_share("theta", rank.parameters.get("theta", 1.0) if theta is None else theta)


def passed_scores(rank: RankResult, scores: FloatArray) -> FloatArray:
    """Return the scores that the nodes of a layer pass on to the next layer.

    A node passes its own score on. The exception is a modified PageRank with the parameter `zero_lowest`, a share of the nodes:
    that share with the lowest scores passes zero on.

    Parameters
    ----------
    rank : RankResult
    scores : (n,) float64 array

    Returns
    -------
    (n,) float64 array
        `scores` itself, or a copy.

    Examples
    --------
    >>> from graphs import modified_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 3], [[1]])
    >>> rank = modified_pagerank(graph, zero_lowest=0.5)
    >>> passed_scores(rank, rank.scores[0])
    array([0.  , 0.75])
    """
    n_zeroed = int(rank.parameters.get("zero_lowest", 0.0) * len(scores)) if is_modified(rank) else 0
    if not n_zeroed:
        return scores
    passed: FloatArray = scores.copy()
    passed[np.argsort(scores, kind="stable")[:n_zeroed]] = 0.0
    return passed


def share_through_graph(gamma: float, arrived: float, teleport: float) -> float:
    """Compute the share of a score that came along edges: ``gamma arrived / (gamma arrived + (1 - gamma) teleport)``.

    Parameters
    ----------
    gamma : float
        Damping, 0..1.
    arrived, teleport : float
        The score that arrives at a node or a layer along edges, and the share of the teleport that it gets. The teleport is the
        score that nodes get without edges. Both are non-negative.

    Returns
    -------
    float
        In [0, 1]; 0 if nothing arrives along edges.

    Examples
    --------
    >>> share_through_graph(0.5, 0.5, 1.0)
    0.3333333333333333
    """
    total = gamma * arrived + (1.0 - gamma) * teleport
    return gamma * arrived / total if total > 0.0 else 0.0
