"""Subgraphs: the part of a layered graph that a person can look at, and how much of the whole it shows.

Nodes are chosen by score, by reach from one node, or by layer. Of a dense block only the chosen rows and columns are
read, besides one pass for its total weight; see :mod:`graphs.reduction.edge_selection`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from graphs.analysis.strengths import default_backend, out_strength
from graphs.checks import check_count, check_score_shapes, check_share
from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray, SparseBlock
from graphs.ranking.scores import check_scores, finite_scores
from graphs.reduction.edge_selection import EdgeList, csr_of, edges_at, edges_by_flow, row_chunks
from graphs.solvers.result import RankResult
from graphs.structures.indices import check_layer, check_node
from graphs.structures.layered import LayeredGraph

__all__ = ["Subgraph", "between", "ego", "top_subgraph"]

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]

# What still opens in a graph viewer on a laptop, and takes networkx a third of a gigabyte.
MAX_EDGES = 1_000_000


@dataclass(frozen=True, eq=False)
class Subgraph:
    """Some nodes of some consecutive layers, the edges chosen among them, and the share of the whole they hold.

    Attributes
    ----------
    graph : LayeredGraph
        The nodes and edges shown, as stored CSR; activations and names are those of the original.
    layers : tuple of int
        Which layers of the original, consecutive and ascending.
    nodes : tuple of int64 arrays, one a layer
        Original index of every node shown, ascending.
    scores : tuple of arrays, one a layer, or None
        Scores of the nodes shown; None without a rank.
    score_shares : tuple of float, one a layer, or None
        Share of the layer's score that the nodes shown hold, 0..1; 1 for a layer of no score.
    weight_shares : tuple of float, one a block
        Share of the block's total edge weight that the edges shown hold, 0..1; 1 for a block without edges.
    total_nodes : tuple of int, one a layer
        Nodes of the layer in the original.
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
        """Of every layer, the original (layer, index) of its nodes."""
        return tuple(
            tuple((layer, int(node)) for node in nodes) for layer, nodes in zip(self.layers, self.nodes, strict=True)
        )

    def scores_from(self, rank: RankResult) -> tuple[FloatArray, ...]:
        """The scores of the nodes shown in another rank of the original graph.

        Parameters
        ----------
        rank : RankResult
            One score a node of the original.

        Returns
        -------
        tuple of arrays, one a layer, each (nodes shown,)

        Raises
        ------
        GraphError
            Not a rank of the original: a layer missing, or of another size.

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
        return tuple(rank.scores[layer][at] for layer, at in zip(self.layers, self.nodes, strict=True))


def top_subgraph(
    graph: LayeredGraph,
    rank: RankResult,
    nodes: int | None = None,
    mass: float | None = None,
    edges: int | None = None,
    layers: Sequence[int] | None = None,
    max_edges: int = MAX_EDGES,
) -> Subgraph:
    """The highest-scored nodes of every layer and the edges among them.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        One score a node of `graph`.
    nodes : int, optional
        How many of every layer, at least 1 (of a smaller layer all); 20 where `mass` is not given either.
    mass : float, optional
        In place of `nodes`: the fewest nodes of every layer that hold at least this share of its score, 0..1.
    edges : int, optional
        Most edges of a block, at least 1: those that carry most rank, ``P_ij r_j = W_ij r_j / s_j`` with ``s_j`` the
        out-strength of source j in the whole graph (theta = 1). All by default.
    layers : sequence of int, optional
        Two or more consecutive layers; all by default.
    max_edges : int
        Refuse to hold more edges than this, all blocks together.

    Returns
    -------
    Subgraph
        Of equal scores the lower index is taken first; of edges that carry the same, the lower target, then source.

    Raises
    ------
    GraphError
        `nodes` and `mass` together, a parameter out of range, layers that are not consecutive, a rank of another graph,
        NaN or Inf in the scores or weights, or more than `max_edges` edges.

    Notes
    -----
    Cost: one pass over each block for its strengths, and a read of the chosen rows and columns. Memory: a band and the
    edges held.

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
    scores, masses = check_scores(graph, rank), finite_scores(graph, rank)
    if nodes is not None and mass is not None:
        raise GraphError(f"expected nodes or mass, got both: nodes={nodes!r}, mass={mass!r}")
    chosen = _consecutive(graph, range(len(graph.layers)) if layers is None else layers)
    check_count("max_edges", max_edges)
    if edges is not None:
        edges = check_count("edges", edges)
    if mass is None:
        count = check_count("nodes", 20 if nodes is None else nodes)
        picked = [_highest(masses[layer], count) for layer in chosen]
    else:
        share = check_share("mass", mass)
        picked = [_highest(masses[layer], _count_of_mass(masses[layer], share)) for layer in chosen]
    return _induced(graph, chosen, picked, scores, edges, max_edges)


def between(
    graph: LayeredGraph,
    layer_a: int,
    layer_b: int,
    rank: RankResult | None = None,
    nodes: int | None = None,
    max_edges: int = MAX_EDGES,
) -> Subgraph:
    """The layers from `layer_a` to `layer_b`, both included, with all their nodes or the highest of each.

    Parameters
    ----------
    graph : LayeredGraph
    layer_a, layer_b : int
        First and last layer, ``0 <= layer_a < layer_b <= L``.
    rank : RankResult, optional
        One score a node of `graph`; needed for `nodes`.
    nodes : int, optional
        How many nodes of every layer, the highest-scored; all by default.
    max_edges : int
        Refuse to hold more edges than this, all blocks together.

    Returns
    -------
    Subgraph

    Raises
    ------
    GraphError
        Layers out of range or order, `nodes` without a rank, a rank of another graph, NaN or Inf in the weights, or
        more than `max_edges` edges.

    Notes
    -----
    Cost and memory as of :func:`top_subgraph`.

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
    chosen = tuple(range(first, last + 1))
    if nodes is None:
        picked: list[IntArray] = [np.arange(graph.layers[layer]) for layer in chosen]
    elif rank is None:
        raise GraphError(f"nodes={nodes!r} keeps the highest-scored nodes and needs their scores; pass rank=")
    else:
        count = check_count("nodes", nodes)
        masses = finite_scores(graph, rank)
        picked = [_highest(masses[layer], count) for layer in chosen]
    return _induced(graph, chosen, picked, scores, None, max_edges)


def ego(
    graph: LayeredGraph,
    layer: int,
    node: int,
    hops: int = 1,
    top: int | None = None,
    rank: RankResult | None = None,
    max_edges: int = MAX_EDGES,
) -> Subgraph:
    """One node, and what reaches it and is reached from it in up to `hops` steps.

    Parameters
    ----------
    graph : LayeredGraph
    layer, node : int
        Which node.
    hops : int
        Steps backwards and forwards, at least 1.
    top : int, optional
        Follow only the `top` heaviest edges of every node met (in-edges backwards, out-edges forwards; ties: lower
        index first), and hold only these: what keeps a dense graph small. All by default.
    rank : RankResult, optional
        One score a node of `graph`, to be carried along.
    max_edges : int
        Refuse to hold more edges than this.

    Returns
    -------
    Subgraph
        Of the layers that were reached; nodes and edges met on the way, no others.

    Raises
    ------
    GraphError
        No such node, a parameter out of range, a rank of another graph, a node without edges, NaN or Inf in the weights,
        or more than `max_edges` edges.

    Notes
    -----
    Cost: one pass over every block walked, for its total weight, and a read of the rows (backwards) and columns
    (forwards) of the nodes met. Memory: a band and the edges held.

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
    walked: dict[int, EdgeList] = {}
    held = 0
    for step in (-1, 1):
        met: IntArray = np.array([node], dtype=np.int64)
        for hop in range(hops):
            into = layer - hop if step < 0 else layer + hop + 1
            if not 1 <= into < len(graph.layers):
                break
            parts = []
            for part in edges_at(graph.blocks[into - 1], met, step < 0, top):
                held += len(part.weights)
                _refuse_more(held, max_edges, "follow fewer edges of a node with top=, or take fewer hops")
                parts.append(part)
            edges = EdgeList(
                np.concatenate([part.targets for part in parts]),
                np.concatenate([part.sources for part in parts]),
                np.concatenate([part.weights for part in parts]),
            )
            if not len(edges.weights):
                break
            walked[into] = edges
            met = np.unique(edges.sources if step < 0 else edges.targets)
    if not walked:
        raise GraphError(
            f"node {node} of layer {layer} has no edge, so there is nothing around it; choose another node"
        )
    chosen = tuple(range(min(walked) - 1, max(walked) + 1))
    ends: dict[int, list[IntArray]] = {number: [] for number in chosen}
    for into, edges in walked.items():
        ends[into].append(edges.targets)
        ends[into - 1].append(edges.sources)
    nodes = [np.unique(np.concatenate(ends[number])) for number in chosen]
    csrs = [
        csr_of(
            np.searchsorted(targets, walked[into].targets),
            np.searchsorted(sources, walked[into].sources),
            walked[into].weights,
            (len(targets), len(sources)),
        )
        for into, sources, targets in zip(chosen[1:], nodes[:-1], nodes[1:], strict=True)
    ]
    backend = default_backend(graph)
    strengths = [out_strength(backend, backend.operator(graph.blocks[into - 1], 1), into) for into in chosen[1:]]
    return _subgraph(graph, chosen, nodes, csrs, strengths, scores)


def _induced(
    graph: LayeredGraph,
    layers: tuple[int, ...],
    nodes: list[IntArray],
    scores: tuple[FloatArray, ...] | None,
    edges: int | None,
    max_edges: int,
) -> Subgraph:
    """The subgraph of all edges among the nodes, or of every block's `edges` that carry most."""
    csrs: list[sparse.csr_array] = []
    strengths = []
    backend = default_backend(graph)
    held = 0
    for into, sources, targets in zip(layers[1:], nodes[:-1], nodes[1:], strict=True):
        block = graph.blocks[into - 1]
        strength = out_strength(backend, backend.operator(block, 1), into)
        strengths.append(strength)
        if edges is not None and scores is not None:
            csrs.append(edges_by_flow(block, targets, sources, scores[into - 1][sources], strength[sources], edges))
            held += csrs[-1].nnz
            _refuse_more(held, max_edges, "choose fewer edges, nodes or layers")
            continue
        parts = []
        for _, part in row_chunks(block, targets, sources):
            held += part.nnz
            _refuse_more(held, max_edges, "choose fewer nodes or layers")
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
    held = [_sum(csr.data) for csr in csrs]
    shown = None if scores is None else tuple(scores[k][at] for k, at in zip(layers, nodes, strict=True))
    activations = tuple(graph.activations[layer][at] for layer, at in zip(layers, nodes, strict=True))
    nodes = [at.astype(np.int64) for at in nodes]
    for array in (*nodes, *activations, *(shown or ())):
        array.setflags(write=False)
    return Subgraph(
        graph=LayeredGraph(tuple(map(SparseBlock, csrs)), activations, tuple(graph.names[k] for k in layers)),
        layers=layers,
        nodes=tuple(nodes),
        scores=shown,
        score_shares=None
        if scores is None or shown is None
        else tuple(_share(_sum(part), _sum(scores[k])) for k, part in zip(layers, shown, strict=True)),
        weight_shares=tuple(_share(part, _sum(s)) for part, s in zip(held, strengths, strict=True)),
        total_nodes=tuple(graph.layers[layer] for layer in layers),
    )


def _sum(values: FloatArray) -> float:
    return float(values.sum(dtype=np.float64))


def _share(part: float, whole: float) -> float:
    # Summed in another order than the whole, a part may seem a rounding error more than all.
    return min(1.0, part / whole) if whole > 0.0 else 1.0


def _highest(scores: FloatArray, count: int) -> IntArray:
    order: IntArray = np.argsort(-scores, kind="stable")[:count]
    return np.sort(order)


def _count_of_mass(scores: FloatArray, share: float) -> int:
    running = np.cumsum(-np.sort(-scores))
    if running[-1] <= 0.0:
        return 1
    return min(len(running), int((running / running[-1] < share).sum()) + 1)


def _refuse_more(held: int, limit: int, advice: str) -> None:
    if held > limit:
        raise GraphError(f"the subgraph has more than max_edges={limit:,} edges; {advice}, or raise max_edges")


def _consecutive(graph: LayeredGraph, layers: Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(check_layer(graph, layer, name="layers") for layer in layers)
    if len(chosen) < 2 or list(chosen) != list(range(chosen[0], chosen[-1] + 1)):
        raise GraphError(
            f"layers: expected two or more consecutive ones, ascending, such as range(1, 4); got {list(chosen)}"
        )
    return chosen
