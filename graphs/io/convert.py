"""Conversion of layered graphs to and from networkx."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray
from graphs.ranking.scores import check_scores
from graphs.reduction.subgraphs import Subgraph
from graphs.solvers.result import RankResult
from graphs.structures.layered import LayeredGraph
from graphs.structures.layering import as_number, find_layers, order_nodes, read_layers

if TYPE_CHECKING:
    import networkx

__all__ = ["from_networkx", "scores_to_write", "to_networkx"]


def to_networkx(
    graph: LayeredGraph | Subgraph, max_edges: int = 1_000_000, rank: RankResult | None = None
) -> networkx.DiGraph:
    """Convert a graph to a networkx digraph with nodes ``(layer, index)``.

    Parameters
    ----------
    graph : LayeredGraph or Subgraph
        The nodes of a subgraph keep their layers and indices in the original graph.
    max_edges : int
        Maximum number of edges; more raise an error, because networkx needs much memory for an edge.
    rank : RankResult, optional
        A rank of the graph, or of the subgraph's original graph, with one score a node. By default the scores that a subgraph
        holds are written, and none for a graph.

    Returns
    -------
    networkx.DiGraph
        Edges have the attribute ``weight``; nodes have ``layer``, ``index``, ``name`` (of the layer), ``activation`` and, if
        there are scores, ``score``.

    Raises
    ------
    GraphError
        More than `max_edges` edges, or a rank of another graph or with several scores a node.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 2.0]]], [1, 1], [[1, 1]])
    >>> to_networkx(graph).edges(data="weight")
    OutEdgeDataView([((0, 0), (1, 0), 1.0), ((0, 0), (1, 1), 1.0), ((0, 1), (1, 1), 2.0)])
    """
    layered = graph if isinstance(graph, LayeredGraph) else graph.graph
    n_edges = layered.n_edges
    if n_edges > max_edges:
        raise GraphError(
            f"the graph has {n_edges:,} edges, above max_edges={max_edges:,}; networkx would take about "
            f"{n_edges * 350 / 1e9:.1f} GB: use to_scipy(), or raise max_edges"
        )
    scores = scores_to_write(graph, rank)
    labels = (
        tuple(tuple((layer, k) for k in range(size)) for layer, size in enumerate(graph.layer_sizes))
        if isinstance(graph, LayeredGraph)
        else graph.labels
    )
    import networkx

    digraph = networkx.DiGraph()
    for position, (name, activations) in enumerate(zip(layered.names, layered.activations, strict=True)):
        for k, (label, activation) in enumerate(zip(labels[position], activations.tolist(), strict=True)):
            attributes: dict[str, Any] = {"layer": label[0], "index": label[1], "name": name, "activation": activation}
            if scores is not None:
                attributes["score"] = float(scores[position][k])
            digraph.add_node(label, **attributes)
    for position in range(1, len(layered.layer_sizes)):
        block = layered.block(position).tocoo()
        digraph.add_weighted_edges_from(
            (labels[position - 1][source], labels[position][target], weight)
            for target, source, weight in zip(block.row.tolist(), block.col.tolist(), block.data.tolist(), strict=True)
        )
    return digraph


def scores_to_write(graph: LayeredGraph | Subgraph, rank: RankResult | None) -> tuple[FloatArray, ...] | None:
    """Choose the scores that are written with a graph.

    Parameters
    ----------
    graph : LayeredGraph or Subgraph
    rank : RankResult or None
        A rank of the graph, or of the subgraph's original graph, with one score a node.

    Returns
    -------
    tuple of arrays, one a layer, or None
        The scores of `rank`. Without a rank, the scores that a subgraph holds, or None.

    Raises
    ------
    GraphError
        The rank is of another graph, or has several scores a node.

    Examples
    --------
    >>> scores_to_write(LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 1], [[1]]), None) is None
    True
    """
    if isinstance(graph, LayeredGraph):
        return None if rank is None else check_scores(graph, rank)
    return graph.scores if rank is None else graph.scores_from(rank)


def from_networkx(
    digraph: networkx.DiGraph,
    weight: str | None = "weight",
    layer: str | None = "layer",
    activation: str | None = "activation",
    index: str | None = "index",
) -> tuple[LayeredGraph, tuple[tuple[Hashable, ...], ...]]:
    """Convert a networkx digraph, whose edges lead from each layer to the next, to a layered graph.

    Cost: a few Python operations for every node and edge.

    Parameters
    ----------
    digraph : networkx.DiGraph or networkx.MultiDiGraph
        The weights of a multigraph's parallel edges are added.
    weight : str, optional
        Edge attribute, finite and non-negative. With None, or for an edge without the attribute, the weight is 1. Edges of weight
        0 are dropped.
    layer : str, optional
        Node attribute with consecutive integers; the lowest becomes layer 0. With None, or if no node has the attribute, layers
        are found from the edges, and the lowest layer of every weakly connected component is 0.
    activation : str, optional
        Node attribute, finite and non-negative. With None, or for a node without the attribute, the activation is 1.
    index : str, optional
        Node attribute with integers that sort the nodes of a layer. With None, or if any node lacks the attribute, nodes keep the
        order that they have in `digraph`.

    Returns
    -------
    graph : LayeredGraph
        Its blocks are float64 CSR. Weights and activations that :func:`to_networkx` wrote are the same bit for bit. If all nodes
        of a layer have the same attribute ``name``, this is the name of the layer; otherwise layer l is called ``layer l``. If
        two layers would get the same name, all are called ``layer l``.
    labels : tuple of tuples
        ``labels[l][k]`` is the networkx node that became node k of layer l.

    Raises
    ------
    GraphError
        Not a digraph; fewer than two layers; invalid weights, activations, layers or indices; some nodes with a layer and some
        without; an edge that does not lead to the next layer; or no layers that fit all edges.

    Examples
    --------
    >>> import networkx
    >>> graph, labels = from_networkx(networkx.DiGraph([("a", "x"), ("b", "x"), ("x", "z")]))
    >>> graph.layer_sizes, labels
    ((2, 1, 1), (('a', 'b'), ('x',), ('z',)))
    """
    import networkx

    if not isinstance(digraph, networkx.Graph):
        raise GraphError(f"expected a networkx digraph, got {type(digraph).__name__}")
    if not digraph.is_directed():
        raise GraphError("expected a directed graph, got an undirected one; build a networkx.DiGraph")
    stated_layers = None if layer is None else read_layers(digraph, layer)
    layer_of = find_layers(digraph) if stated_layers is None else stated_layers
    nodes_by_layer: list[list[Hashable]] = [[] for _ in range(max(layer_of.values(), default=0) + 1)]
    for node in digraph:
        nodes_by_layer[layer_of[node]].append(node)
    if len(nodes_by_layer) < 2:
        raise GraphError(
            f"expected nodes in at least two layers, got {len(digraph)} in one: edges lead from each layer to the next"
        )
    if index is not None:
        nodes_by_layer = order_nodes(digraph, nodes_by_layer, index)
    weights = _blocks(digraph, nodes_by_layer, layer_of, weight)
    activations = [
        [
            as_number(digraph.nodes[node].get(activation, 1.0), f"{activation!r} of node {node!r}")
            for node in layer_nodes
        ]
        for layer_nodes in nodes_by_layer
    ]
    graph = LayeredGraph.from_weights(weights, activations[0], activations[1:], _names(digraph, nodes_by_layer))
    return graph, tuple(map(tuple, nodes_by_layer))


def _blocks(
    digraph: networkx.DiGraph, nodes_by_layer: list[list[Hashable]], layer_of: dict[Hashable, int], weight: str | None
) -> list[sparse.csr_array]:
    index_of = {node: k for nodes in nodes_by_layer for k, node in enumerate(nodes)}
    edges: list[tuple[list[float], list[int], list[int]]] = [([], [], []) for _ in nodes_by_layer[1:]]
    weighted_edges = digraph.edges(data=weight, default=1.0)
    if weight is None:
        weighted_edges = ((source, target, 1.0) for source, target in digraph.edges())
    for source, target, value in weighted_edges:
        if layer_of[target] != layer_of[source] + 1:
            raise GraphError(
                f"the edge {source!r} -> {target!r} leads from layer {layer_of[source]} to layer {layer_of[target]}; expected "
                "every edge to lead to the next layer: correct the layers, or pass layer=None to find them from the edges"
            )
        number = as_number(value, f"{weight!r} of edge {source!r} -> {target!r}")
        if number < 0.0:
            raise GraphError(
                f"{weight!r} of edge {source!r} -> {target!r}: expected a non-negative number, got {value!r}; take absolute "
                "values if the sign does not matter"
            )
        data, rows, columns = edges[layer_of[source]]
        data.append(number)
        rows.append(index_of[target])
        columns.append(index_of[source])
    blocks = []
    for layer, (data, rows, columns) in enumerate(edges, start=1):
        shape = len(nodes_by_layer[layer]), len(nodes_by_layer[layer - 1])
        coo = sparse.coo_array((np.array(data, dtype=np.float64), (rows, columns)), shape=shape)
        with np.errstate(over="ignore"):
            csr = sparse.csr_array(coo)
        if not np.isfinite(csr.data).all():
            raise GraphError(
                f"{weight!r}: parallel edges into layer {layer} add up beyond float64; scale the weights down"
            )
        blocks.append(csr)
    return blocks


def _names(digraph: networkx.DiGraph, nodes_by_layer: list[list[Hashable]]) -> list[str]:
    names = []
    for layer, nodes in enumerate(nodes_by_layer):
        given = [digraph.nodes[node].get("name") for node in nodes]
        agreed = all(isinstance(name, str) for name in given) and len(set(given)) == 1
        names.append(given[0] if agreed else f"layer {layer}")
    return names if len(set(names)) == len(names) else [f"layer {layer}" for layer in range(len(nodes_by_layer))]
