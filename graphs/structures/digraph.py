"""Digraphs in blocks: nodes in layers, edges in blocks between any two of them, cycles allowed.

A :class:`BlockDigraph` is what :func:`graphs.pagerank` ranks. A layered graph is one without cycles;
from the same blocks, and without a copy, come two graphs that need iterating: the residual graph (skip
connections, and the last layer feeds the first) and the bidirectional graph (every edge and its reverse). Any
square matrix is one with a single layer.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from graphs.errors import GraphError
from graphs.linalg.blocks import Block, FloatArray, SparseBlock, as_numpy, index_dtype
from graphs.linalg.validation import as_block, as_csr, check_compressed
from graphs.structures.layered import LayeredGraph

if TYPE_CHECKING:
    import networkx

__all__ = ["BlockDigraph", "EdgeBlock", "as_digraph", "bidirectional_graph", "residual_graph", "teleport_vector"]


@dataclass(frozen=True, eq=False)
class EdgeBlock:
    """The edges from one layer to another.

    Attributes
    ----------
    source, target : int
        Layers.
    block : Block
        Weights; (n_target, n_source), or (n_source, n_target) where `transposed`.
    transposed : bool
        Whether the edges run against the block's: from its rows to its columns.
    share : float, optional
        The part of a source node's mass that takes these edges, 0..1. Either all edges out of a layer
        have one, and then each block is normalised by itself, or none has, and their weights decide.
    """

    source: int
    target: int
    block: Block
    transposed: bool = False
    share: float | None = None

    def csr(self) -> sparse.csr_array:
        """The weights as CSR, (n_target, n_source)."""
        csr = self.block.to_csr()
        return sparse.csr_array(csr.T) if self.transposed else csr


@dataclass(frozen=True, eq=False, repr=False)
class BlockDigraph:
    """A weighted digraph whose nodes fall into layers.

    Attributes
    ----------
    layers : tuple of int
        Sizes.
    edges : tuple of EdgeBlock
    names : tuple of str
        Of the layers.
    activations : tuple of arrays, each (n_l,), or None
        The default teleport vector: every layer's over its sum, all layers alike; None is uniform.
    labels : tuple, optional
        Of the nodes; ``(layer, index)`` where there are several layers.
    """

    layers: tuple[int, ...]
    edges: tuple[EdgeBlock, ...]
    names: tuple[str, ...]
    activations: tuple[FloatArray, ...] | None = None
    labels: tuple[Hashable, ...] | None = None

    def __post_init__(self) -> None:
        """Check that blocks are sound and fit their layers, and shares their layer."""
        n_layers = len(self.layers)
        if n_layers == 0 or min(self.layers) < 1:
            raise GraphError(f"expected at least one layer, each of at least one node, got sizes {self.layers}")
        if len(self.names) != n_layers or (self.labels is not None and len(self.labels) != self.nodes):
            raise GraphError(
                f"expected {n_layers} names and (if any) {self.nodes} labels, got {len(self.names)} and "
                f"{None if self.labels is None else len(self.labels)}"
            )
        if self.activations is not None:
            sizes = tuple(np.shape(vector) for vector in self.activations)
            if sizes != tuple((size,) for size in self.layers):
                raise GraphError(
                    f"activations: expected one vector a layer, of sizes {self.layers}, got shapes {sizes}"
                )
            if not all(np.isfinite(vector).all() and (np.asarray(vector) >= 0).all() for vector in self.activations):
                raise GraphError("activations: expected finite, non-negative numbers")
        for edges in self.edges:
            if not (0 <= edges.source < n_layers and 0 <= edges.target < n_layers):
                raise GraphError(
                    f"edges from layer {edges.source} to layer {edges.target}: expected layers of 0..{n_layers - 1}"
                )
            if isinstance(edges.block, SparseBlock):
                csr, name = edges.block.csr, f"edges from layer {edges.source} to layer {edges.target}"
                check_compressed("csr", (csr.data, csr.indices, csr.indptr), edges.block.shape, name)
        shares: defaultdict[int, list[float | None]] = defaultdict(list)
        for edges in self.edges:
            wanted = (self.layers[edges.target], self.layers[edges.source])
            shape = edges.block.shape[::-1] if edges.transposed else edges.block.shape
            if shape != wanted:
                raise GraphError(
                    f"edges from layer {edges.source} to layer {edges.target}: expected shape {wanted} (targets, "
                    f"sources), got {shape}"
                )
            shares[edges.source].append(edges.share)
        for source, given in shares.items():
            numbers = [share for share in given if share is not None]
            fits = len(numbers) == len(given) and all(s >= 0.0 for s in numbers) and abs(sum(numbers) - 1.0) <= 1e-9
            if numbers and not fits:
                raise GraphError(
                    f"shares out of layer {source}: expected one for all its edges, non-negative and of sum 1, got {given}"
                )

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return sum(self.layers)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Index of the first node of every layer in the stacked vector, and the total."""
        return tuple(int(k) for k in np.concatenate(([0], np.cumsum(self.layers))))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of all edges."""
        return tuple(edges.block for edges in self.edges)

    @cached_property
    def topological(self) -> tuple[tuple[int, ...], bool]:
        """An order of the layers with as few edges against it as the layers' own, and whether none is.

        Within a layer nothing is asked: edges inside one count as a cycle here.
        """
        waiting = dict.fromkeys(range(len(self.layers)))
        order: list[int] = []
        while waiting:
            blocked = {edges.target for edges in self.edges if edges.source in waiting}
            free = [layer for layer in waiting if layer not in blocked]
            if not free:
                return tuple(range(len(self.layers))), False
            order += free
            for layer in free:
                del waiting[layer]
        return tuple(order), True

    def teleport(self) -> FloatArray:
        """The default teleport vector, (nodes,), of sum 1."""
        if self.activations is None:
            return np.full(self.nodes, 1.0 / self.nodes)
        # Over the maximum first: sums of huge activations would overflow.
        scaled = [a / a.max() if a.max() > 0 else np.ones(len(a)) for a in self.activations]
        return np.concatenate([a / a.sum() for a in scaled]) / len(scaled)

    def node_labels(self) -> tuple[Hashable, ...]:
        """Labels of the nodes in the order of the stacked vector."""
        if self.labels is not None:
            return self.labels
        return tuple((layer, k) for layer, size in enumerate(self.layers) for k in range(size))

    def to_scipy(self) -> sparse.csr_array:
        """One CSR of the whole graph, shape (nodes, nodes), row = target.

        Where edges have shares, a block's weights are scaled so that the shares come out: divided by
        the source's out-strength within the block and multiplied by the share.
        """
        offsets = self.offsets
        rows, columns, values = [], [], []
        for edges, csr in zip(self.edges, self._weights(), strict=True):
            coo = csr.tocoo()
            rows.append(coo.row.astype(np.int64) + offsets[edges.target])
            columns.append(coo.col.astype(np.int64) + offsets[edges.source])
            values.append(coo.data)
        total = sum(map(len, values))
        kind = index_dtype(self.nodes, total)
        matrix = sparse.csr_array(
            sparse.coo_array(
                (
                    np.concatenate(values) if values else np.zeros(0),
                    (
                        np.concatenate(rows).astype(kind) if rows else np.zeros(0, kind),
                        np.concatenate(columns).astype(kind) if columns else np.zeros(0, kind),
                    ),
                ),
                shape=(self.nodes, self.nodes),
            )
        )
        matrix.eliminate_zeros()
        return matrix

    def _weights(self) -> list[sparse.csr_array]:
        found = []
        for edges in self.edges:
            csr = edges.csr()
            if edges.share is not None:
                # bincount: one pass, where csr.sum(axis=0) goes through a transposed product.
                strength = np.bincount(csr.indices, weights=csr.data, minlength=csr.shape[1])
                data = csr.data * (edges.share / strength[csr.indices])
                csr = sparse.csr_array((data, csr.indices, csr.indptr), shape=csr.shape)
            found.append(csr)
        return found

    def __repr__(self) -> str:
        sizes = ", ".join(map(str, self.layers if len(self.layers) <= 6 else (*self.layers[:5], "...")))
        return (
            f"BlockDigraph({len(self.layers)} layer(s) of {sizes} nodes, {len(self.edges)} block(s) of edges, "
            f"{'acyclic' if self.topological[1] else 'with cycles'})"
        )


def as_digraph(graph: Any, weight: str | None = "weight") -> BlockDigraph:
    """Any graph as a :class:`BlockDigraph`; see :func:`graphs.pagerank` for what is taken.

    Raises
    ------
    GraphError
        An empty graph, negative or non-finite weights, a sparse matrix with damaged index arrays, another type.

    Examples
    --------
    >>> as_digraph(sparse.csr_array([[0.0, 1.0], [2.0, 0.0]])).to_scipy().toarray()
    array([[0., 1.],
           [2., 0.]])
    """
    if isinstance(graph, BlockDigraph):
        return graph
    if isinstance(graph, LayeredGraph):
        return BlockDigraph(graph.layers, _chain(graph), graph.names, graph.activations)
    labels: tuple[Hashable, ...]
    if hasattr(graph, "adj") and hasattr(graph, "is_directed"):
        csr, labels = _from_networkx(graph, weight)
    elif sparse.issparse(graph):
        if graph.ndim != 2 or graph.shape[0] != graph.shape[1] or graph.shape[0] == 0:
            raise GraphError(f"expected a square matrix (n, n) with n > 0, got shape {graph.shape}")
        csr = as_csr(graph, "graph")
        labels = tuple(range(csr.shape[0]))
    else:
        raise GraphError(
            "expected a networkx graph, a scipy sparse matrix (row = target), a LayeredGraph or a BlockDigraph, "
            f"got {type(graph).__name__}"
        )
    if csr.nnz and (csr.data < 0).any():
        raise GraphError("edge weights must be non-negative, got negative ones; take absolute values if that is meant")
    block = as_block(csr, "graph")
    return BlockDigraph((csr.shape[0],), (EdgeBlock(0, 0, block),), ("digraph",), labels=labels)


def _from_networkx(graph: networkx.Graph, weight: str | None) -> tuple[sparse.csr_array, tuple[Hashable, ...]]:
    import networkx

    labels: tuple[Hashable, ...] = tuple(graph)
    if not labels:
        raise GraphError("expected a graph with at least one node, got an empty one")
    try:
        adjacency = networkx.to_scipy_sparse_array(graph, weight=weight, dtype=np.float64, format="csr")
    except (TypeError, ValueError) as error:
        raise GraphError(f"edge attribute {weight!r}: expected real numbers ({error})") from error
    return adjacency.T.tocsr(), labels


def _chain(graph: LayeredGraph) -> tuple[EdgeBlock, ...]:
    return tuple(EdgeBlock(layer, layer + 1, block) for layer, block in enumerate(graph.blocks))


def bidirectional_graph(graph: LayeredGraph) -> BlockDigraph:
    """Every edge of a layered graph and its reverse, with the same weight; the blocks are not copied.

    The walk on it is reversible, and periodic by itself: from an even layer to an odd one and back. Plain power
    iteration converges like gamma**k and no better.

    Parameters
    ----------
    graph : LayeredGraph

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 2.0]]], [1, 1], [[1, 1]])
    >>> bidirectional_graph(graph).to_scipy().toarray()
    array([[0., 0., 1., 1.],
           [0., 0., 0., 2.],
           [1., 0., 0., 0.],
           [1., 2., 0., 0.]])
    """
    back = tuple(EdgeBlock(e.target, e.source, e.block, transposed=True) for e in _chain(graph))
    return BlockDigraph(graph.layers, _chain(graph) + back, graph.names, graph.activations)


def residual_graph(graph: LayeredGraph, beta: float = 0.5, stream: Sequence[int] | None = None) -> BlockDigraph:
    """The chain with its residual stream: skip connections, and the last layer feeds the first.

    Node j of a layer of the stream passes a share `beta` of its mass to node j of the next layer of the
    stream and ``1 - beta`` into the FFN; node j of the last one passes all of it to node j of the first. For beta > 0 a
    node without an edge into the FFN passes everything on.

    Parameters
    ----------
    graph : LayeredGraph
        A chain of FFNs; its blocks are not copied.
    beta : float
        Share of the skip connection, 0..1.
    stream : sequence of int, optional
        The layers that form the residual stream, ascending, of equal sizes. By default every second one
        (input, output of the first FFN, ...), as a chain of two-matrix FFNs has it.

    Raises
    ------
    GraphError
        Layers of the stream that are fewer than two, not ascending, or of different sizes; beta out of range.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 1.0]], [[1.0], [3.0]]], [1, 1], [[1], [1, 1]])
    >>> residual_graph(graph, beta=0.25).to_scipy().toarray()
    array([[0.  , 0.  , 0.  , 1.  , 0.  ],
           [0.  , 0.  , 0.  , 0.  , 1.  ],
           [0.75, 0.75, 0.  , 0.  , 0.  ],
           [0.25, 0.  , 0.25, 0.  , 0.  ],
           [0.  , 0.25, 0.75, 0.  , 0.  ]])
    """
    if not 0.0 <= beta <= 1.0:
        raise GraphError(f"beta must be a number in [0, 1], got {beta!r}")
    depth = len(graph.blocks)
    chosen = tuple(range(0, depth + 1, 2)) if stream is None else tuple(stream)
    if len(chosen) < 2 or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] != depth:
        raise GraphError(
            f"stream: expected at least two ascending layers that end with the last, {depth}, got {chosen}; where FFNs are "
            "no pairs of matrices name the layers of the residual stream"
        )
    sizes = [graph.layers[layer] for layer in chosen]
    if len(set(sizes)) > 1:
        raise GraphError(f"stream: expected layers of one size, got sizes {sizes} of layers {chosen}")
    one = SparseBlock(sparse.csr_array(sparse.eye_array(sizes[0], format="csr", dtype=np.float64)))
    following = dict(itertools.pairwise(chosen))
    edges = []
    for step in _chain(graph):
        share = 1.0 - beta if step.source in following else 1.0
        edges.append(EdgeBlock(step.source, step.target, step.block, share=share))
    edges += [EdgeBlock(source, target, one, share=beta) for source, target in following.items()]
    edges.append(EdgeBlock(chosen[-1], chosen[0], one, share=1.0))
    return BlockDigraph(graph.layers, tuple(edges), graph.names, graph.activations)


def teleport_vector(digraph: BlockDigraph, teleport: Any = None) -> FloatArray:
    """A user's teleport as float64 (nodes,) or (nodes, k), every column of sum 1.

    Parameters
    ----------
    digraph : BlockDigraph
    teleport : mapping from node to weight, (nodes,) or (nodes, k) array, or None
        None is the graph's own.

    Raises
    ------
    GraphError
        Unknown nodes, another shape, negative or non-finite numbers, a column that sums to zero.

    Examples
    --------
    >>> digraph = as_digraph(sparse.csr_array([[0.0, 1.0], [2.0, 0.0]]))
    >>> teleport_vector(digraph), teleport_vector(digraph, {1: 5.0})
    (array([0.5, 0.5]), array([0., 1.]))
    """
    if teleport is None:
        return digraph.teleport()
    n_nodes = digraph.nodes
    if isinstance(teleport, Mapping):
        labels = digraph.node_labels()
        known = set(labels)
        unknown = [label for label in teleport if label not in known]
        if unknown:
            raise GraphError(f"teleport names nodes that are not in the graph: {unknown[:5]}")
        teleport = [teleport.get(label, 0.0) for label in labels]
    try:
        vector = np.asarray(as_numpy(teleport), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise GraphError(f"teleport: expected real numbers, got {error}") from error
    if vector.ndim not in (1, 2) or len(vector) != n_nodes or 0 in vector.shape:
        raise GraphError(
            f"teleport: expected shape ({n_nodes},), one number per node, or ({n_nodes}, k) for k vectors at once, "
            f"got {vector.shape}"
        )
    if not np.isfinite(vector).all() or (vector < 0).any() or (vector.max(axis=0) <= 0).any():
        raise GraphError("teleport: expected finite, non-negative numbers with a positive sum")
    scaled = vector / vector.max(axis=0)
    return np.asarray(scaled / scaled.sum(axis=0))
