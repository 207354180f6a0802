"""Summary of one node of a ranked graph, and the strongest edges of every node of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.analysis.flow import choose_theta, gamma_of, is_modified, passed_scores, share_through_graph
from graphs.analysis.incident_edges import (
    IncidentEdges,
    SourceTotals,
    highest_in_rows,
    incident_edges,
    source_weights,
    target_weights,
)
from graphs.analysis.measures import percentiles, positions, scale_scores
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
    """One edge of a node, with its share of the score that arrives at the node or leaves it.

    Attributes
    ----------
    node : int
        Index of the node at the other end.
    weight : float
        W_ij of the edge from node j to node i; the weights of several edges between the same two nodes are added.
    probability : float
        P_ij of :mod:`graphs.analysis.incident_edges`: the share of its source's score that the edge passes on.
    share : float
        For an in-edge, its share of the score that arrives at the node along edges. For an out-edge, `probability`.
    """

    node: int
    weight: float
    probability: float
    share: float


@dataclass(frozen=True)
class NodeSummary:
    """Summary of one node of a ranked graph.

    Attributes
    ----------
    layer, node : int
        Index of the layer, and index of the node in its layer.
    name : str
        Name of the layer.
    score : float
    percentile : float
        Share of the layer's nodes with a lower score, plus half the share with an equal score.
    position : int
        0 for the highest score; see :func:`graphs.analysis.measures.positions`.
    activation : float
    in_strength, out_strength : float
        Sum of the weights of the node's in-edges, and of its out-edges; 0 if it has none.
    in_degree, out_degree : int
        Number of in-edges, and of out-edges. Several edges between the same two nodes count as one.
    through_graph : float, optional
        Share of the node's score that came along edges and not from the teleport (the score that nodes get without edges). None
        for layer 0, and if :func:`graphs.analysis.flow.gamma_of` returns None for the rank.
    in_edges : tuple of RankedEdge
        The in-edges that carry most score, in decreasing order of the score. Edges that carry nothing are left out.
    out_edges : tuple of RankedEdge
        The heaviest out-edges, in decreasing order of weight.
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
    """The strongest edges of each of the n nodes of a layer, in decreasing order; see :func:`strongest_edges`.

    Attributes
    ----------
    in_nodes : (n, top) int64 array
        Sources in the layer before; -1 where fewer than `top` in-edges of the node carry score.
    in_shares : (n, top) float64 array
        Share of the score that arrives at the node along edges; 0 where the source is -1.
    out_nodes : (n, top) int64 array
        Targets in the layer after; -1 where the node has fewer than `top` out-edges.
    out_shares : (n, top) float64 array
        P_ij of the edge; 0 where the target is -1.
    """

    in_nodes: IntArray
    in_shares: FloatArray
    out_nodes: IntArray
    out_shares: FloatArray


def summarise_node(
    graph: LayeredGraph, rank: RankResult, layer: int, node: int, top: int = 5, *, theta: float | None = None
) -> NodeSummary:
    """Summarise one node: its score, its position, and the edges that carry its score.

    An in-edge carries ``P_ij r_j``, where r_j is the score of its source and P the transition of
    :mod:`graphs.analysis.incident_edges`. For a modified PageRank it carries ``W_ij r_j``, where the lowest r_j count as 0 if the
    rank was computed with `zero_lowest`. Of two edges that carry the same, the edge whose other node has the lower index comes
    first.

    Cost: one read of the edges into the layer (two for theta < 1), and one row and one column of edge weights.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        The rank of this graph, with one score a node.
    layer, node : int
        Index of the layer, 0..L, and index of the node in its layer.
    top : int
        Maximum number of in-edges to list, and of out-edges, at least 0.
    theta : float, optional
        Share of the edge weights in P; the rest, 1 - theta, is divided equally among the edges of a source. By default the theta
        of the rank, or 1 if the rank has none.

    Returns
    -------
    NodeSummary

    Raises
    ------
    GraphError
        No such layer or node, a rank of another graph or with several scores a node, `top` or theta out of range, or NaN or Inf
        in the scores, in the weights that are read or in their sums.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 1.0], [3.0, 0.0]]], [1, 3], [[1, 1]])
    >>> facts = summarise_node(graph, weighted_pagerank(graph), layer=1, node=0)
    >>> facts.position, facts.percentile, [(edge.node, edge.probability) for edge in facts.in_edges]
    (0, 0.75, [(1, 1.0), (0, 0.25)])
    >>> [round(edge.share, 3) for edge in facts.in_edges]
    [0.923, 0.077]
    """
    scores = finite_scores(graph, rank)
    layer = check_layer(graph, layer)
    node = check_node(graph, layer, node)
    top = check_count("top", top, 0)
    theta = choose_theta(rank, theta)
    own_scores, activations = scores[layer], graph.activations[layer]
    in_weights: FloatArray = np.zeros(0)
    out_weights: FloatArray = np.zeros(0)
    in_edges: tuple[RankedEdge, ...] = ()
    out_edges: tuple[RankedEdge, ...] = ()
    through = None
    if layer > 0:
        sources = SourceTotals.of_block(graph, layer, theta, default_backend(graph))
        in_weights = target_weights(graph.blocks[layer - 1], node)
        probabilities = sources.probabilities(in_weights)
        carried = (in_weights if is_modified(rank) else probabilities) * passed_scores(rank, scores[layer - 1])
        in_edges = _ranked_edges(carried, top, in_weights, probabilities, carried / (carried.sum() or 1.0))
        gamma = gamma_of(rank)
        if gamma is not None:
            # The teleport is divided in proportion to the activations. Scaled activations are used, because the sum of huge ones
            # would overflow.
            teleports = scale_scores(activations)
            arrived = float(carried.sum() / (scores[layer - 1].sum() or 1.0))
            through = share_through_graph(gamma, arrived, float(teleports[node] / teleports.sum()))
    if layer < len(graph.blocks):
        out_weights = source_weights(graph.blocks[layer], node, layer + 1)
        probabilities = SourceTotals.of_column(out_weights, theta).probabilities(out_weights)
        out_edges = _ranked_edges(out_weights, top, out_weights, probabilities, probabilities)
    return NodeSummary(
        layer=layer,
        node=node,
        name=graph.names[layer],
        score=float(own_scores[node]),
        percentile=float(percentiles(own_scores)[node]),
        position=int(positions(own_scores)[node]),
        activation=float(activations[node]),
        in_strength=float(in_weights.sum()),
        out_strength=float(out_weights.sum()),
        in_degree=int(np.count_nonzero(in_weights)),
        out_degree=int(np.count_nonzero(out_weights)),
        through_graph=through,
        in_edges=in_edges,
        out_edges=out_edges,
    )


def strongest_edges(
    graph: LayeredGraph, rank: RankResult, layer: int, top: int = 3, *, theta: float | None = None
) -> StrongestEdges:
    """Find the strongest edges of every node of a layer: those that :func:`summarise_node` lists for one node.

    Cost: two reads of the edges into the layer and of the edges out of it (three for theta < 1). Memory: the result, and a few
    parts of 4 MB of a dense block of edges, or a few times the edges of a CSR block.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        The rank of this graph, with one score a node.
    layer : int
        Index of the layer, 0..L.
    top : int
        Maximum number of in-edges to list for a node, and of out-edges, at least 1.
    theta : float, optional
        As for :func:`summarise_node`.

    Returns
    -------
    StrongestEdges
        Layer 0 has no in-edges, and layer L no out-edges: their nodes there are all -1.

    Raises
    ------
    GraphError
        As for :func:`summarise_node`.

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
    theta = choose_theta(rank, theta)
    backend = default_backend(graph)
    size = graph.layer_sizes[layer]
    into, out = _TopEdges.empty(size, top), _TopEdges.empty(size, top)
    arrived = np.zeros(size)
    if layer > 0:
        sources = SourceTotals.of_block(graph, layer, theta, backend)
        passed = passed_scores(rank, scores[layer - 1])
        for edges in incident_edges(graph.blocks[layer - 1], "target"):
            rates = edges.weights if is_modified(rank) else sources.probabilities(edges.weights, edges.neighbours)
            carried = rates * passed[edges.neighbours]
            arrived[edges.nodes] += carried.sum(axis=1)
            into.update(edges, carried)
    if layer < len(graph.blocks):
        sources = SourceTotals.of_block(graph, layer + 1, theta, backend)
        for edges in incident_edges(graph.blocks[layer], "source"):
            out.update(edges, edges.weights)
        # The heaviest out-edges are found; now their weights are replaced by probabilities.
        out.keys[:] = sources.probabilities(out.keys, np.index_exp[:, np.newaxis])
    return StrongestEdges(
        into.neighbours, into.keys / np.where(arrived > 0, arrived, 1.0)[:, None], out.neighbours, out.keys
    )


@dataclass(frozen=True)
class _TopEdges:
    """The edges with the highest keys of every node that were found so far, in decreasing order of their keys.

    A key is the number by which edges are compared: what an in-edge carries, or the weight of an out-edge.

    Attributes
    ----------
    neighbours : (n, top) int64 array
        The node at the other end of every edge; -1 for no edge.
    keys : (n, top) float64 array
        0 for no edge.
    """

    neighbours: IntArray
    keys: FloatArray

    @classmethod
    def empty(cls, size: int, top: int) -> _TopEdges:
        return cls(np.full((size, top), -1, dtype=np.int64), np.zeros((size, top)))

    def update(self, edges: IncidentEdges, keys: FloatArray) -> None:
        """Take in those of `edges` that have higher keys than the edges known so far; edges with key 0 are left out.

        `keys` (m, w) belong to ``edges.weights`` (m, w).
        """
        # Only nodes with such an edge are sorted anew: after some parts of the block, they are few.
        rows = np.flatnonzero(keys.max(axis=1) > self.keys[edges.nodes, -1])
        nodes = edges.nodes[rows]
        picks, highest = highest_in_rows(keys[rows], self.keys.shape[1])
        both_keys = np.concatenate((self.keys[nodes], highest), axis=1)
        both_neighbours = np.concatenate((self.neighbours[nodes], edges.neighbours_at(rows, picks)), axis=1)
        # The parts of a block come in the order of neighbours, so known neighbours are lower than new ones. A stable sort
        # therefore keeps the lower of two neighbours with equal keys in front.
        order = np.argsort(-both_keys, axis=1, kind="stable")[:, : self.keys.shape[1]]
        self.keys[nodes] = np.take_along_axis(both_keys, order, axis=1)
        self.neighbours[nodes] = np.take_along_axis(both_neighbours, order, axis=1)


def _ranked_edges(
    keys: FloatArray, top: int, weights: FloatArray, probabilities: FloatArray, shares: FloatArray
) -> tuple[RankedEdge, ...]:
    """List the `top` edges of a node with the highest positive keys; every array has one entry for each possible neighbour."""
    order = np.argsort(-keys, kind="stable")[:top]
    return tuple(
        RankedEdge(int(end), float(weights[end]), float(probabilities[end]), float(shares[end]))
        for end in order
        if keys[end] > 0
    )
