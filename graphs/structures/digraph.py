"""Digraphs of blocks: nodes fall into layers, and a block joins any two layers, or a layer with itself; cycles are allowed.

A layered graph is a digraph of blocks without cycles; a square matrix is a digraph of one layer.
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

from graphs.checks import check_sequence, check_type
from graphs.errors import GraphError
from graphs.linalg.blocks import Block, FloatArray, SparseBlock, index_dtype
from graphs.linalg.validation import as_csr, as_real, as_sparse_block, check_compressed
from graphs.structures.layered import LayeredGraph

if TYPE_CHECKING:
    import networkx

__all__ = ["BlockDigraph", "EdgeBlock", "as_digraph", "edge_blocks", "teleport_vector"]


@dataclass(frozen=True, eq=False)
class EdgeBlock:
    """A block of edges from one layer to another, or within one layer.

    Attributes
    ----------
    source, target : int
        Numbers of the two layers; equal for edges within a layer.
    block : Block
        Weights, (n_target, n_source), or (n_source, n_target) if `transposed`.
    transposed : bool
        Whether edges lead from the rows of the block to its columns.
    share : float, optional
        The share of a source node's score that leaves along these edges, 0..1. Either all blocks of edges from a layer have
        shares, and these sum to 1, or none of them has a share. Without shares, a node's score is divided among its edges in all
        blocks by weight. With shares, it is divided among the blocks by share, then among the edges of each block by weight; if a
        node has no edges in some blocks, its shares of the other blocks are scaled to sum 1.
    """

    source: int
    target: int
    block: Block
    transposed: bool = False
    share: float | None = None

    @property
    def within_layer(self) -> bool:
        """Whether the edges join nodes of one layer."""
        return self.source == self.target

    def csr(self) -> sparse.csr_array:
        """Return the weights as CSR, (n_target, n_source)."""
        csr = self.block.to_csr()
        return sparse.csr_array(csr.T) if self.transposed else csr


@dataclass(frozen=True, eq=False, repr=False)
class BlockDigraph:
    """A weighted digraph whose nodes fall into layers.

    Attributes
    ----------
    layer_sizes : tuple of int
        Size of every layer.
    edge_blocks : tuple of EdgeBlock
        All blocks of edges.
    names : tuple of str
        Name of every layer.
    activations : tuple of arrays, each (n_l,), or None
        Non-negative activation of every node. The default teleport vector is proportional to the activations within every
        layer (uniform where all are zero), and gives all layers the same sum. Without activations, it is uniform.
    labels : sequence, optional
        Label of every node; ``(layer, index)`` by default.
    """

    layer_sizes: tuple[int, ...]
    edge_blocks: tuple[EdgeBlock, ...]
    names: tuple[str, ...]
    activations: tuple[FloatArray, ...] | None = None
    labels: Sequence[Hashable] | None = None

    def __post_init__(self) -> None:
        for name in ("layer_sizes", "edge_blocks", "names"):
            check_type(name, getattr(self, name), tuple, "a tuple")
        for name in ("activations", "labels"):
            if getattr(self, name) is not None:
                check_sequence(name, getattr(self, name), "a sequence")
        n_layers = len(self.layer_sizes)
        if n_layers == 0 or min(self.layer_sizes) < 1:
            raise GraphError(f"expected at least one layer, each of at least one node, got sizes {self.layer_sizes}")
        if len(self.names) != n_layers or (self.labels is not None and len(self.labels) != self.n_nodes):
            raise GraphError(
                f"expected {n_layers} names and (if any) {self.n_nodes} labels, got {len(self.names)} and "
                f"{None if self.labels is None else len(self.labels)}"
            )
        if self.activations is not None:
            shapes = tuple(np.shape(vector) for vector in self.activations)
            if shapes != tuple((size,) for size in self.layer_sizes):
                raise GraphError(
                    f"activations: expected one vector per layer, of sizes {self.layer_sizes}, got shapes {shapes}"
                )
            if not all(np.isfinite(vector).all() and (np.asarray(vector) >= 0).all() for vector in self.activations):
                raise GraphError("activations: expected finite, non-negative numbers")
        for edges in self.edge_blocks:
            self._check_edges(edges)
        self._check_shares()

    def _check_edges(self, edges: EdgeBlock) -> None:
        n_layers = len(self.layer_sizes)
        name = f"edges from layer {edges.source} to layer {edges.target}"
        if not (0 <= edges.source < n_layers and 0 <= edges.target < n_layers):
            raise GraphError(f"{name}: expected layers 0..{n_layers - 1}")
        if isinstance(edges.block, SparseBlock):
            csr = edges.block.csr
            check_compressed("csr", (csr.data, csr.indices, csr.indptr), edges.block.shape, name)
        expected = (self.layer_sizes[edges.target], self.layer_sizes[edges.source])
        shape = edges.block.shape[::-1] if edges.transposed else edges.block.shape
        if shape != expected:
            raise GraphError(f"{name}: expected shape {expected} (targets, sources), got {shape}")

    def _check_shares(self) -> None:
        shares: defaultdict[int, list[float | None]] = defaultdict(list)
        for edges in self.edge_blocks:
            shares[edges.source].append(edges.share)
        for source, given in shares.items():
            numbers = [share for share in given if share is not None]
            fit = len(numbers) == len(given) and all(s >= 0.0 for s in numbers) and abs(sum(numbers) - 1.0) <= 1e-9
            if numbers and not fit:
                raise GraphError(
                    f"shares of edges from layer {source}: expected one for each block, non-negative and of sum 1, got {given}"
                )

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return sum(self.layer_sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Index of the first node of every layer among all nodes, then the number of nodes."""
        return tuple(itertools.accumulate(self.layer_sizes, initial=0))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of all edges."""
        return tuple(edges.block for edges in self.edge_blocks)

    @property
    def has_edges_within_layers(self) -> bool:
        """Whether a block joins nodes of one layer."""
        return any(edges.within_layer for edges in self.edge_blocks)

    @cached_property
    def topological_order(self) -> tuple[tuple[int, ...], bool]:
        """The layers in an order, and whether it is topological: blocks between layers lead only to later layers.

        If the blocks form a cycle, no order is topological, and the layers are in the order of their numbers.
        """
        between = [edges for edges in self.edge_blocks if not edges.within_layer]
        remaining = dict.fromkeys(range(len(self.layer_sizes)))
        order: list[int] = []
        while remaining:
            targets = {edges.target for edges in between if edges.source in remaining}
            sources = [layer for layer in remaining if layer not in targets]
            if not sources:
                return tuple(range(len(self.layer_sizes))), False
            order += sources
            for layer in sources:
                del remaining[layer]
        return tuple(order), True

    def teleport(self) -> FloatArray:
        """Compute the default teleport vector, (nodes,), of sum 1."""
        if self.activations is None:
            return np.full(self.n_nodes, 1.0 / self.n_nodes)
        # Activations are divided by their maximum first, because sums of huge activations would overflow.
        activations = [np.asarray(a, dtype=np.float64) for a in self.activations]
        scaled = [a / a.max() if a.max() > 0 else np.ones(len(a)) for a in activations]
        return np.concatenate([a / a.sum() for a in scaled]) / len(scaled)

    def node_labels(self) -> Sequence[Hashable]:
        """Return the labels of all nodes in order."""
        if self.labels is not None:
            return self.labels
        return tuple((layer, k) for layer, size in enumerate(self.layer_sizes) for k in range(size))

    def to_scipy(self) -> sparse.csr_array:
        """Build one CSR matrix of the graph, shape (nodes, nodes), row = target.

        In a block with a share, the out-edges of every source are scaled so that they sum to the share.
        """
        if len(self.edge_blocks) == len(self.layer_sizes) == 1 and self.edge_blocks[0].share is None:
            return self.edge_blocks[0].csr().copy()
        offsets = self.offsets
        rows, columns, values = [], [], []
        for edges in self.edge_blocks:
            coo = _weights(edges).tocoo()
            rows.append(coo.row.astype(np.int64) + offsets[edges.target])
            columns.append(coo.col.astype(np.int64) + offsets[edges.source])
            values.append(coo.data)
        dtype = index_dtype(self.n_nodes, sum(map(len, values)))
        row, column = (
            np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype) for parts in (rows, columns)
        )
        weights = np.concatenate(values) if values else np.zeros(0)
        matrix = sparse.csr_array(sparse.coo_array((weights, (row, column)), shape=(self.n_nodes, self.n_nodes)))
        matrix.eliminate_zeros()
        return matrix

    def __repr__(self) -> str:
        _, is_topological = self.topological_order
        if not is_topological:
            cycles = "with edges that lead back"
        else:
            cycles = "with edges within a layer" if self.has_edges_within_layers else "acyclic"
        sizes = ", ".join(map(str, self.layer_sizes if len(self.layer_sizes) <= 6 else (*self.layer_sizes[:5], "...")))
        return (
            f"BlockDigraph({len(self.layer_sizes)} layer(s) of {sizes} nodes, {len(self.edge_blocks)} block(s) of edges, "
            f"{cycles})"
        )


def _weights(edges: EdgeBlock) -> sparse.csr_array:
    """Return the weights of a block as CSR, scaled to its share if it has one."""
    csr = edges.csr()
    if edges.share is None:
        return csr
    strength = np.bincount(csr.indices, weights=csr.data, minlength=csr.shape[1])
    data = csr.data * (edges.share / strength[csr.indices])
    return sparse.csr_array((data, csr.indices, csr.indptr), shape=csr.shape)


def as_digraph(graph: Any, weight: str | None = "weight") -> BlockDigraph:
    """Convert any graph that :func:`graphs.pagerank` accepts to a :class:`BlockDigraph`.

    A matrix in canonical CSR form is not copied: do not change it while the digraph is in use.

    `weight` names the edge attribute of a networkx graph; None counts every edge as 1.

    Raises
    ------
    GraphError
        The graph is empty or damaged, weights are negative, not finite or not real, a sparse matrix is not square, or the type
        is not supported.

    Examples
    --------
    >>> as_digraph(sparse.csr_array([[0.0, 1.0], [2.0, 0.0]])).to_scipy().toarray()
    array([[0., 1.],
           [2., 0.]])
    """
    if isinstance(graph, BlockDigraph):
        return graph
    if isinstance(graph, LayeredGraph):
        return BlockDigraph(graph.layer_sizes, edge_blocks(graph), graph.names, graph.activations)
    labels: Sequence[Hashable]
    if hasattr(graph, "adj") and hasattr(graph, "is_directed"):
        csr, labels = _from_networkx(graph, weight)
    elif sparse.issparse(graph):
        if graph.ndim != 2 or graph.shape[0] != graph.shape[1] or graph.shape[0] == 0:
            raise GraphError(f"expected a square matrix (n, n) with n > 0, got shape {graph.shape}")
        csr = as_csr(graph, "graph")
        labels = range(csr.shape[0])
    else:
        raise GraphError(
            "expected a networkx graph, a scipy sparse matrix (row = target), a LayeredGraph or a BlockDigraph, "
            f"got {type(graph).__name__}"
        )
    block = as_sparse_block(csr, "graph", copy=False)
    # Weights that were not copied are positive.
    if block.csr.data is not csr.data and (csr.data < 0).any():
        raise GraphError(
            "edge weights must be non-negative, got negative ones; take absolute values if signs do not matter"
        )
    return BlockDigraph((csr.shape[0],), (EdgeBlock(0, 0, block),), ("digraph",), labels=labels)


def _from_networkx(graph: networkx.Graph, weight: str | None) -> tuple[sparse.csr_array, tuple[Hashable, ...]]:
    import networkx

    labels: tuple[Hashable, ...] = tuple(graph)
    if not labels:
        raise GraphError("expected a graph with at least one node, got an empty one")
    try:
        adjacency = networkx.to_scipy_sparse_array(graph, weight=weight, dtype=np.float64, format="csr")
    except (TypeError, ValueError, OverflowError) as error:
        raise GraphError(f"edge attribute {weight!r}: expected real numbers ({error})") from error
    return adjacency.T.tocsr(), labels


def edge_blocks(graph: LayeredGraph) -> tuple[EdgeBlock, ...]:
    """Return the blocks of a layered graph, which are not copied, as edges from each layer to the next.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0]], [[2.0]]], [1], [[1], [1]])
    >>> [(edges.source, edges.target) for edges in edge_blocks(graph)]
    [(0, 1), (1, 2)]
    """
    return tuple(EdgeBlock(layer, layer + 1, block) for layer, block in enumerate(graph.blocks))


def teleport_vector(digraph: BlockDigraph, teleport: Any = None) -> FloatArray:
    """Check a teleport vector and scale every column to sum 1; the result is float64, (nodes,) or (nodes, k).

    Parameters
    ----------
    digraph : BlockDigraph
    teleport : mapping from node to weight, (nodes,) or (nodes, k) array, or None
        None stands for the graph's default, see :meth:`BlockDigraph.teleport`.

    Raises
    ------
    GraphError
        Nodes are unknown, the shape does not fit, entries are negative, not finite or not real, or a column sums to zero.

    Examples
    --------
    >>> digraph = as_digraph(sparse.csr_array([[0.0, 1.0], [2.0, 0.0]]))
    >>> teleport_vector(digraph), teleport_vector(digraph, {1: 5.0})
    (array([0.5, 0.5]), array([0., 1.]))
    """
    if teleport is None:
        return digraph.teleport()
    if isinstance(teleport, Mapping):
        labels = digraph.node_labels()
        known = set(labels)
        unknown = [label for label in teleport if label not in known]
        if unknown:
            raise GraphError(f"teleport: expected nodes of the graph, got others: {unknown[:5]}")
        teleport = [teleport.get(label, 0.0) for label in labels]
    try:
        vector = as_real(teleport)
    except (TypeError, ValueError, OverflowError) as error:
        raise GraphError(f"teleport: expected real numbers, got {error}") from error
    n_nodes = digraph.n_nodes
    if vector.ndim not in (1, 2) or len(vector) != n_nodes or 0 in vector.shape:
        raise GraphError(
            f"teleport: expected shape ({n_nodes},), one number per node, or ({n_nodes}, k) for k vectors at once, "
            f"got {vector.shape}"
        )
    if not np.isfinite(vector).all() or (vector < 0).any() or (vector.max(axis=0) <= 0).any():
        raise GraphError("teleport: expected finite, non-negative numbers with a positive sum")
    scaled = vector / vector.max(axis=0)
    return np.asarray(scaled / scaled.sum(axis=0))
