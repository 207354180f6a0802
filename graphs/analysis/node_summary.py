"""One node of a ranked graph: where it stands, and which edges carry its score; at once for all nodes of a layer.

The probabilities of edges are those of :mod:`graphs.analysis.incident_edges`; the paths through a node are in
:mod:`graphs.analysis.paths`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.analysis.flow import damping_of, departing_scores, is_modified, share_through_graph, theta_of
from graphs.analysis.incident_edges import (
    IncidentEdges,
    SourceTotals,
    column_of,
    highest_in_rows,
    incident_edges,
    row_of,
)
from graphs.analysis.measures import percentiles, positions
from graphs.analysis.strengths import default_backend
from graphs.checks import check_count
from graphs.linalg.blocks import FloatArray
from graphs.ranking.scores import finite_scores
from graphs.solvers.result import RankResult
from graphs.structures.indices import check_layer, check_node
from graphs.structures.layered import LayeredGraph

__all__ = ["NodeSummary", "RankedEdge", "StrongestEdges", "strongest_edges", "summarise_node"]

IntArray: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RankedEdge:
    """One edge of a node.

    Attributes
    ----------
    node : int
        The node at the other end, by its index in the layer before (or after).
    weight : float
        W_ij, the sum of parallel edges.
    probability : float
        P_ij, the share of its source's mass that takes this edge.
    carried : float
        Of an in-edge: the share of all that arrives at the node which comes along this edge. Of an out-edge: the
        share of the node's mass that leaves along it, which is `probability`.
    """

    node: int
    weight: float
    probability: float
    carried: float


@dataclass(frozen=True)
class NodeSummary:
    """What there is to say about one node of a ranked graph.

    Attributes
    ----------
    layer, node : int
    name : str
        Of the layer.
    score : float
    percentile : float
        Share of the layer's nodes with a lower score, equal ones (itself too) counted half; see
        :func:`graphs.analysis.measures.percentiles`.
    position : int
        0 for the highest score; among equals the lower index is removed first, so it stands behind.
    activation : float
    in_strength, out_strength : float
        Sums of the weights of its edges; 0 where there is no block on that side.
    in_degree, out_degree : int
        Their numbers.
    through_graph : float, optional
        Share of its score that came through the graph and not from its own activation; of a weighted PageRank only,
        None for layer 0.
    in_edges : tuple of RankedEdge
        Those that carry most, falling; of equal ones the lower node comes first. Edges that carry nothing are left out.
    out_edges : tuple of RankedEdge
        The heaviest, likewise.
    """

    layer: int
    node: int
    name: str
    score: float
    percentile: float
    position: int
    activation: float
    in_strength: float
    out_strength: float
    in_degree: int
    out_degree: int
    through_graph: float | None
    in_edges: tuple[RankedEdge, ...]
    out_edges: tuple[RankedEdge, ...]


class StrongestEdges(NamedTuple):
    """The strongest edges of every node of a layer, falling; see :func:`strongest_edges`.

    Attributes
    ----------
    in_nodes : (n, top) int64 array
        Sources in the layer before; -1 where there are fewer edges that carry anything.
    in_shares : (n, top) float64 array
        Share of what arrives at the node that comes along the edge; 0 beside -1.
    out_nodes, out_shares : (n, top) arrays
        Targets in the layer after, and the share of the node's mass that leaves along the edge, P_ij.
    """

    in_nodes: IntArray
    in_shares: FloatArray
    out_nodes: IntArray
    out_shares: FloatArray


def summarise_node(
    graph: LayeredGraph, rank: RankResult, layer: int, node: int, top: int = 5, *, theta: float | None = None
) -> NodeSummary:
    """Everything about one node.

    Along an in-edge travels ``P_ij r_j``, r being the score of the layer before; for a modified PageRank, whose step
    does not divide by out-strengths, ``W_ij r_j`` (``zero_lowest`` is heeded).

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        One score a node of this graph.
    layer, node : int
        0..L, and 0..n_l - 1.
    top : int
        How many edges to name on either side, at least 0.
    theta : float, optional
        Share of the edge weights against the bare edges in P; by default that of the rank, or 1.

    Returns
    -------
    NodeSummary

    Raises
    ------
    GraphError
        No such layer or node, a rank of another graph or of several vectors, NaN or Inf in the weights.

    Notes
    -----
    Cost: one read of the block into the layer, for the out-strengths of the sources (two for theta < 1), and one row
    and one column of weights. For all nodes of a layer use :func:`strongest_edges`.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 1.0], [3.0, 0.0]]], [1, 3], [[1, 1]])
    >>> facts = summarise_node(graph, weighted_pagerank(graph), layer=1, node=0)
    >>> facts.position, facts.percentile, [(edge.node, edge.probability) for edge in facts.in_edges]
    (0, 0.75, [(1, 1.0), (0, 0.25)])
    >>> [round(edge.carried, 3) for edge in facts.in_edges]
    [0.923, 0.077]
    """
    scores = finite_scores(graph, rank)
    layer = check_layer(graph, layer)
    node = check_node(graph, layer, node)
    top = check_count("top", top, 0)
    theta = theta_of(rank, theta)
    own, activations = scores[layer], graph.activations[layer]
    arriving: FloatArray = np.zeros(0)
    leaving: FloatArray = np.zeros(0)
    in_edges: tuple[RankedEdge, ...] = ()
    out_edges: tuple[RankedEdge, ...] = ()
    through = None
    if layer > 0:
        sources = SourceTotals.of(graph, layer, theta, default_backend(graph))
        arriving = row_of(graph.blocks[layer - 1], node)
        chances = sources.chances(arriving)
        masses = (arriving if is_modified(rank) else chances) * departing_scores(rank, scores[layer - 1])
        in_edges = _edges(masses, top, arriving, chances, masses / (masses.sum() or 1.0))
        gamma = damping_of(rank)
        if gamma is not None:
            teleport = activations[node] / activations.sum() if activations.any() else 1.0 / len(activations)
            passed = float(masses.sum() / (scores[layer - 1].sum() or 1.0))
            through = share_through_graph(gamma, passed, float(teleport))
    if layer < len(graph.blocks):
        leaving = column_of(graph.blocks[layer], node, layer + 1)
        chances = SourceTotals.alone(leaving, theta).chances(leaving)
        out_edges = _edges(leaving, top, leaving, chances, chances)
    return NodeSummary(
        layer=layer,
        node=node,
        name=graph.names[layer],
        score=float(own[node]),
        percentile=float(percentiles(own)[node]),
        position=int(positions(own)[node]),
        activation=float(activations[node]),
        in_strength=float(arriving.sum()),
        out_strength=float(leaving.sum()),
        in_degree=int(np.count_nonzero(arriving)),
        out_degree=int(np.count_nonzero(leaving)),
        through_graph=through,
        in_edges=in_edges,
        out_edges=out_edges,
    )


def strongest_edges(
    graph: LayeredGraph, rank: RankResult, layer: int, top: int = 3, *, theta: float | None = None
) -> StrongestEdges:
    """The edges of :func:`summarise_node` for all nodes of a layer at once.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        One score a node of this graph.
    layer : int
        0..L.
    top : int
        How many edges to name on either side, at least 1.
    theta : float, optional
        As for :func:`summarise_node`.

    Returns
    -------
    StrongestEdges
        Four (n_l, top) arrays, which unpack; no edges (-1) on a side without a block.

    Raises
    ------
    GraphError
        As for :func:`summarise_node`.

    Notes
    -----
    Cost: two reads of the blocks on both sides (three for theta < 1), with `top` scans of every band in the cache.
    Memory: the result and a few bands of a dense block, or a few times the edges of a CSR one.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 1.0], [3.0, 0.0]]], [1, 3], [[1, 1]])
    >>> edges = strongest_edges(graph, weighted_pagerank(graph), layer=1, top=2)
    >>> edges.in_nodes
    array([[ 1,  0],
           [ 0, -1]])
    >>> edges.in_shares.round(3)
    array([[0.923, 0.077],
           [1.   , 0.   ]])
    """
    scores = finite_scores(graph, rank)
    layer = check_layer(graph, layer)
    top = check_count("top", top)
    theta = theta_of(rank, theta)
    engine = default_backend(graph)
    size = graph.layers[layer]
    into, out = _Leaders.none(size, top), _Leaders.none(size, top)
    arrived = np.zeros(size)
    if layer > 0:
        sources = SourceTotals.of(graph, layer, theta, engine)
        passed = departing_scores(rank, scores[layer - 1])
        for fan in incident_edges(graph.blocks[layer - 1], "target"):
            chances = fan.weights if is_modified(rank) else sources.chances(fan.weights, fan.ends)
            masses = chances * passed[fan.ends]
            arrived[fan.nodes] += masses.sum(axis=1)
            into.admit(fan, masses)
    if layer < len(graph.blocks):
        sources = SourceTotals.of(graph, layer + 1, theta, engine)
        for fan in incident_edges(graph.blocks[layer], "source"):
            out.admit(fan, fan.weights)
        out.keys[:] = sources.chances(out.keys, np.index_exp[:, np.newaxis])
    return StrongestEdges(into.ends, into.keys / np.where(arrived > 0, arrived, 1.0)[:, None], out.ends, out.keys)


@dataclass(frozen=True)
class _Leaders:
    """The edges of highest key of every node: ends (n, top), -1 for none, and keys (n, top)."""

    ends: IntArray
    keys: FloatArray

    @classmethod
    def none(cls, size: int, top: int) -> _Leaders:
        return cls(np.full((size, top), -1, dtype=np.int64), np.zeros((size, top)))

    def admit(self, fan: IncidentEdges, keys: FloatArray) -> None:
        """Let the edges of a fan compete by `keys` (m, w); those of key 0 do not count."""
        # After a few bands most nodes know better edges already.
        rows = np.flatnonzero(keys.max(axis=1) > self.keys[fan.nodes, -1])
        nodes = fan.nodes[rows]
        picks, found = highest_in_rows(keys[rows], self.keys.shape[1])
        known = np.concatenate((self.keys[nodes], found), axis=1)
        ends = np.concatenate((self.ends[nodes], fan.ends_at(rows, picks)), axis=1)
        # Stable: fans come in the order of their ends, so of equals the lower end stays in front, and empty places
        # stay in front of edges of key 0.
        order = np.argsort(-known, axis=1, kind="stable")[:, : self.keys.shape[1]]
        self.keys[nodes] = np.take_along_axis(known, order, axis=1)
        self.ends[nodes] = np.take_along_axis(ends, order, axis=1)


def _edges(
    keys: FloatArray, top: int, weights: FloatArray, chances: FloatArray, carried: FloatArray
) -> tuple[RankedEdge, ...]:
    """The `top` edges of highest key; of equals the lower node first."""
    order = np.argsort(-keys, kind="stable")[:top]
    return tuple(
        RankedEdge(int(end), float(weights[end]), float(chances[end]), float(carried[end]))
        for end in order
        if keys[end] > 0
    )
