"""Subgraphs of a layered graph that are small enough to look at, with the shares of its scores and weights that they hold.

Nodes are chosen by score, by distance from one node, or by layer. A block holds the edges from one layer to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from graphs.analysis.strengths import default_backend, finite_strength
from graphs.checks import check_count, check_score_shapes, check_share
from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray, SparseBlock
from graphs.ranking.scores import check_scores, finite_scores
from graphs.reduction.edge_selection import EdgeList, csr_of, edges_at, edges_by_flow, row_bands
from graphs.reduction.node_selection import check_consecutive_layers, count_for_score_share, highest_scored
from graphs.solvers.result import RankResult
from graphs.structures.indices import check_layer, check_node
from graphs.structures.layered import LayeredGraph

__all__ = ["Subgraph", "between", "ego", "top_subgraph"]

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]

# For this number of edges, networkx needs a third of a gigabyte.
MAX_EDGES = 1_000_000


@dataclass(frozen=True, eq=False)
class Subgraph:
    """Some nodes of consecutive layers and chosen edges among them, with the shares of the original's scores and weights.

    Attributes
    ----------
    graph : LayeredGraph
        The nodes and edges. The blocks are stored in CSR form; activations and names are those of the original.
    layers : tuple of int
        Numbers of the layers in the original, consecutive and ascending.
    nodes : tuple of int64 arrays, one a layer
        Indices of the nodes in the original, ascending.
    scores : tuple of arrays, one a layer, or None
        Scores of the nodes; None without a rank.
    score_shares : tuple of float, one a layer, or None
        Share of the layer's score that the nodes hold, 0..1; 1 for a layer whose scores are zero.
    weight_shares : tuple of float, one a block
        Share of the block's total edge weight that the edges hold, 0..1; 1 for a block without edges.
    total_nodes : tuple of int, one a layer
        Number of nodes of the layer in the original.
    """

    graph: LayeredGraph
    layers: tuple[int, ...]
    nodes: tuple[IntArray, ...]
    scores: tuple[FloatArray, ...] | None
    score_shares: tuple[float, ...] | None
    weight_shares: tuple[float, ...]
    total_nodes: tuple[int, ...]

    @property
    def labels(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each layer, the (layer, index) that every node has in the original."""
        return tuple(
            tuple((layer, int(node)) for node in nodes) for layer, nodes in zip(self.layers, self.nodes, strict=True)
        )

    def scores_from(self, rank: RankResult) -> tuple[FloatArray, ...]:
        """Return the scores of the nodes in another rank of the original graph.

        Parameters
        ----------
        rank : RankResult
            A rank of the original, with one score a node.

        Returns
        -------
        tuple of arrays, one a layer

        Raises
        ------
        GraphError
            `rank` is no RankResult, or does not fit the sizes that the original has in the layers of this subgraph.

        Examples
        --------
        >>> from graphs import weighted_pagerank
        >>> graph = LayeredGraph.from_weights([[[4.0, 1.0], [1.0, 1.0]]], [3, 1], [[1, 1]])
        >>> shown = top_subgraph(graph, weighted_pagerank(graph), nodes=1)
        >>> [scores.round(3).tolist() for scores in shown.scores_from(weighted_pagerank(graph, gamma=1.0))]
        [[0.75], [0.725]]
        """
        if not isinstance(rank, RankResult) or self.layers[-1] >= len(rank.scores):
            raise GraphError(
                f"rank: expected a RankResult of the original graph with a layer {self.layers[-1]}, got {rank!r}"
            )
        shapes = [np.shape(rank.scores[layer]) for layer in self.layers]
        check_score_shapes(shapes, self.total_nodes, self.layers[0])
        return tuple(rank.scores[layer][nodes] for layer, nodes in zip(self.layers, self.nodes, strict=True))


def top_subgraph(
    graph: LayeredGraph,
    rank: RankResult,
    nodes: int | None = None,
    score_share: float | None = None,
    edges: int | None = None,
    layers: Sequence[int] | None = None,
    max_edges: int = MAX_EDGES,
) -> Subgraph:
    """Select the nodes with the highest scores of every layer, and the edges among them.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        A rank of `graph`, with one score a node.
    nodes : int, optional
        Number of nodes of every layer, at least 1; of a smaller layer, all nodes are taken. By default 20, if `score_share` is
        not given.
    score_share : float, optional
        Instead of `nodes`: take the fewest nodes of every layer (at least one) that hold this share of its score, 0..1.
    edges : int, optional
        Maximum number of edges of a block, at least 1. The edges that carry most score are taken: ``P_ij r_j = W_ij r_j / s_j``,
        where r_j is the score of source j and s_j its out-strength in `graph`. By default all edges are taken.
    layers : sequence of int, optional
        Two or more consecutive layers; all by default.
    max_edges : int
        Maximum number of edges of all blocks together; more raise an error.

    Returns
    -------
    Subgraph
        Among equal scores the lower index is taken first. Among edges that carry the same, those to the lower target are taken
        first, then those from the lower source. Cost: one pass over each block for its strengths, and one read of the chosen
        rows and columns.

    Raises
    ------
    GraphError
        `nodes` and `score_share` together, a parameter out of range, a single layer or layers that are not consecutive, a rank
        of another graph, NaN or Inf in the scores, the weights or their sums, or more than `max_edges` edges.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[4.0, 1.0], [1.0, 1.0], [0.0, 2.0]]], [3, 1], [[1, 1, 2]])
    >>> shown = top_subgraph(graph, weighted_pagerank(graph), nodes=2)
    >>> shown.labels
    (((0, 0), (0, 1)), ((1, 0), (1, 2)))
    >>> shown.graph.block(1).toarray(), shown.weight_shares
    (array([[4., 1.],
           [0., 2.]]), (0.7777777777777778,))
    """
    finite = finite_scores(graph, rank)
    if nodes is not None and score_share is not None:
        raise GraphError(f"expected nodes or score_share, got both: nodes={nodes!r}, score_share={score_share!r}")
    chosen_layers = check_consecutive_layers(graph, layers, fewest=2)
    check_count("max_edges", max_edges)
    if edges is not None:
        edges = check_count("edges", edges)
    if score_share is None:
        count = check_count("nodes", 20 if nodes is None else nodes)
        picked = [highest_scored(finite[layer], count) for layer in chosen_layers]
    else:
        share = check_share("score_share", score_share)
        picked = [highest_scored(finite[layer], count_for_score_share(finite[layer], share)) for layer in chosen_layers]
    return _induced(graph, chosen_layers, picked, rank.scores, edges, max_edges)


def between(
    graph: LayeredGraph, layer_a: int, layer_b: int, rank: RankResult | None = None, max_edges: int = MAX_EDGES
) -> Subgraph:
    """Select the layers from `layer_a` to `layer_b`, both included, with all their nodes and edges.

    Parameters
    ----------
    graph : LayeredGraph
    layer_a, layer_b : int
        First and last layer, ``0 <= layer_a < layer_b <= L``.
    rank : RankResult, optional
        A rank of `graph`, with one score a node; its scores are part of the result.
    max_edges : int
        Maximum number of edges of all blocks together; more raise an error.

    Returns
    -------
    Subgraph
        Cost: two reads of each block between these layers.

    Raises
    ------
    GraphError
        A parameter out of range, layers that do not ascend, a rank of another graph, NaN or Inf in the weights or their sums,
        or more than `max_edges` edges.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]], [[3.0]], [[1.0], [1.0]]], [1, 1], [[1], [1], [1, 1]])
    >>> between(graph, 1, 3).graph
    LayeredGraph(3 layers: 1 -> 1 -> 2 nodes, 4 nodes, 3 edges, density 1)
    """
    first, last = check_layer(graph, layer_a, name="layer_a"), check_layer(graph, layer_b, name="layer_b")
    if first >= last:
        raise GraphError(
            f"expected layer_a below layer_b, got {first} and {last}; a block of edges lies between two layers"
        )
    check_count("max_edges", max_edges)
    scores = None if rank is None else check_scores(graph, rank)
    layers = tuple(range(first, last + 1))
    return _induced(graph, layers, [np.arange(graph.layer_sizes[layer]) for layer in layers], scores, None, max_edges)


def ego(
    graph: LayeredGraph,
    layer: int,
    node: int,
    hops: int = 1,
    top: int | None = None,
    rank: RankResult | None = None,
    max_edges: int = MAX_EDGES,
) -> Subgraph:
    """Select one node, and the nodes that lead to it, or that it leads to, along at most `hops` edges.

    Parameters
    ----------
    graph : LayeredGraph
    layer, node : int
        The layer and the index of the node.
    hops : int
        Number of edges to follow backwards and forwards, at least 1.
    top : int, optional
        Follow only the `top` heaviest edges of every node: in-edges backwards, out-edges forwards. Among equal weights, the edge
        whose other node has the lower index is followed first. By default all edges are followed.
    rank : RankResult, optional
        A rank of `graph`, with one score a node; its scores are part of the result.
    max_edges : int
        Maximum number of edges; more raise an error.

    Returns
    -------
    Subgraph
        The node, the nodes that are reached, and the edges that are followed. Cost: one pass over every block that is reached,
        and one read of the rows (backwards) or columns (forwards) of the nodes from which edges are followed.

    Raises
    ------
    GraphError
        No such node, a parameter out of range, a rank of another graph, a node without edges, NaN or Inf in the weights or
        their sums, or more than `max_edges` edges.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0], [3.0, 0.0]], [[1.0, 5.0]]], [1, 1], [[1, 1], [1]])
    >>> ego(graph, 1, 1).labels
    (((0, 0),), ((1, 1),), ((2, 0),))
    >>> ego(graph, 2, 0, hops=2, top=1).weight_shares
    (0.5, 0.8333333333333334)
    """
    layer = check_layer(graph, layer)
    node = check_node(graph, layer, node)
    hops, max_edges = check_count("hops", hops), check_count("max_edges", max_edges)
    top = None if top is None else check_count("top", top)
    scores = None if rank is None else check_scores(graph, rank)
    followed = _follow_edges(graph, layer, node, hops, top, max_edges)
    if not followed:
        raise GraphError(
            f"node {node} of layer {layer} has no edge, so there is nothing around it; choose another node"
        )
    layers = tuple(range(min(followed) - 1, max(followed) + 1))
    ends: dict[int, list[IntArray]] = {number: [] for number in layers}
    for into, edges in followed.items():
        ends[into].append(edges.targets)
        ends[into - 1].append(edges.sources)
    nodes = [np.unique(np.concatenate(ends[number])) for number in layers]
    csrs = [
        csr_of(
            np.searchsorted(targets, followed[into].targets),
            np.searchsorted(sources, followed[into].sources),
            followed[into].weights,
            (len(targets), len(sources)),
        )
        for into, sources, targets in zip(layers[1:], nodes[:-1], nodes[1:], strict=True)
    ]
    return _subgraph(graph, layers, nodes, csrs, [_out_strength(graph, into) for into in layers[1:]], scores)


def _follow_edges(
    graph: LayeredGraph, layer: int, node: int, hops: int, top: int | None, max_edges: int
) -> dict[int, EdgeList]:
    """Follow edges backwards and forwards from a node, and return the followed edges by the layer that they lead into."""
    followed: dict[int, EdgeList] = {}
    n_edges = 0
    for incoming in (True, False):
        reached: IntArray = np.array([node], dtype=np.int64)
        for hop in range(hops):
            into = layer - hop if incoming else layer + hop + 1
            if not 1 <= into < len(graph.layer_sizes):
                break
            parts = []
            for part in edges_at(graph.blocks[into - 1], reached, incoming, top):
                n_edges += len(part.weights)
                _check_edge_count(n_edges, max_edges, "follow fewer edges of a node with top=, or take fewer hops")
                parts.append((part.targets, part.sources, part.weights))
            edges = EdgeList(*map(np.concatenate, zip(*parts, strict=True)))
            if not len(edges.weights):
                break
            followed[into] = edges
            reached = np.unique(edges.sources if incoming else edges.targets)
    return followed


def _induced(
    graph: LayeredGraph,
    layers: tuple[int, ...],
    nodes: list[IntArray],
    scores: tuple[FloatArray, ...] | None,
    edges: int | None,
    max_edges: int,
) -> Subgraph:
    """Make the subgraph of some nodes and all edges among them, or the `edges` of each block that carry most score."""
    csrs: list[sparse.csr_array] = []
    strengths: list[FloatArray] = []
    n_edges = 0
    for into, sources, targets in zip(layers[1:], nodes[:-1], nodes[1:], strict=True):
        block, strength = graph.blocks[into - 1], _out_strength(graph, into)
        strengths.append(strength)
        if edges is not None and scores is not None:
            csrs.append(edges_by_flow(block, targets, sources, scores[into - 1][sources], strength[sources], edges))
            n_edges += csrs[-1].nnz
            _check_edge_count(n_edges, max_edges, "choose fewer edges, nodes or layers")
            continue
        parts = []
        for _, part in row_bands(block, targets, sources):
            n_edges += part.nnz
            _check_edge_count(n_edges, max_edges, "choose fewer nodes or layers")
            parts.append(part)
        csrs.append(sparse.csr_array(sparse.vstack(parts, format="csr")))
    return _subgraph(graph, layers, nodes, csrs, strengths, scores)


def _subgraph(
    graph: LayeredGraph,
    layers: tuple[int, ...],
    nodes: list[IntArray],
    csrs: list[sparse.csr_array],
    strengths: list[FloatArray],
    scores: tuple[FloatArray, ...] | None,
) -> Subgraph:
    node_scores: tuple[FloatArray, ...] | None = None
    score_shares: tuple[float, ...] | None = None
    if scores is not None:
        node_scores = tuple(scores[layer][indices] for layer, indices in zip(layers, nodes, strict=True))
        score_shares = tuple(_share(part, scores[layer]) for layer, part in zip(layers, node_scores, strict=True))
    activations = tuple(graph.activations[layer][indices] for layer, indices in zip(layers, nodes, strict=True))
    nodes = [indices.astype(np.int64) for indices in nodes]
    for array in (*nodes, *activations, *(node_scores or ())):
        array.setflags(write=False)
    return Subgraph(
        graph=LayeredGraph(tuple(map(SparseBlock, csrs)), activations, tuple(graph.names[layer] for layer in layers)),
        layers=layers,
        nodes=tuple(nodes),
        scores=node_scores,
        score_shares=score_shares,
        weight_shares=tuple(_share(csr.data, strength) for csr, strength in zip(csrs, strengths, strict=True)),
        total_nodes=tuple(graph.layer_sizes[layer] for layer in layers),
    )


def _out_strength(graph: LayeredGraph, layer: int) -> FloatArray:
    """Compute the out-strengths of the sources of the block into a layer."""
    backend = default_backend(graph)
    return finite_strength(backend, backend.operator(graph.blocks[layer - 1], 1).out_strength, layer)


def _share(part: FloatArray, whole: FloatArray) -> float:
    """Divide the sum of a part by that of the whole; 1 if the whole is zero, or if round-off makes the quotient larger."""
    total = float(whole.sum(dtype=np.float64))
    return min(1.0, float(part.sum(dtype=np.float64)) / total) if total > 0.0 else 1.0


def _check_edge_count(n_edges: int, limit: int, advice: str) -> None:
    if n_edges > limit:
        raise GraphError(f"the subgraph has more than max_edges={limit:,} edges; {advice}, or raise max_edges")
