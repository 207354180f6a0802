"""A layered graph in the forms of other libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from graphs.backends import TorchArithmetic
from graphs.blocks import index_dtype
from graphs.errors import GraphError
from graphs.layered import LayeredGraph

if TYPE_CHECKING:
    import networkx
    import torch

__all__ = ["to_networkx", "to_scipy", "to_torch"]


def to_scipy(graph: LayeredGraph) -> sparse.csr_array:
    """One CSR matrix of the whole graph.

    Parameters
    ----------
    graph : LayeredGraph

    Returns
    -------
    scipy.sparse.csr_array, shape (nodes, nodes)
        Row = target, column = source; node k of layer l stands at ``graph.offsets[l] + k``. int32
        indices while nodes and edges fit in them, int64 beyond. Memory: 8 to 16 bytes an edge.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 2.0]]], [1, 1], [[1, 1]])
    >>> graph.to_scipy().toarray()[2:, :2]
    array([[1., 0.],
           [1., 2.]])
    """
    offsets = graph.offsets
    blocks = [block.to_csr() for block in graph.blocks]
    n_edges = sum(int(block.nnz) for block in blocks)
    kind = index_dtype(graph.nodes, n_edges)
    # Filled by hand: scipy's block stacking overflows int32 where the parts fit and the sum does not.
    dtype = np.result_type(*[block.dtype for block in blocks])
    data = np.empty(n_edges, dtype=dtype)
    indices = np.empty(n_edges, dtype=kind)
    indptr = np.zeros(graph.nodes + 1, dtype=kind)
    filled = 0
    for layer, block in enumerate(blocks, start=1):
        stop = filled + int(block.nnz)
        data[filled:stop] = block.data
        indices[filled:stop] = block.indices
        indices[filled:stop] += kind(offsets[layer - 1])
        rows = slice(offsets[layer] + 1, offsets[layer + 1] + 1)
        indptr[rows] = block.indptr[1:]
        indptr[rows] += kind(filled)
        filled = stop
    return sparse.csr_array((data, indices, indptr), shape=(graph.nodes, graph.nodes))


def to_torch(graph: LayeredGraph, device: str | torch.device = "cpu", dtype: str = "float64") -> torch.Tensor:
    """One torch CSR tensor of the whole graph.

    Parameters
    ----------
    graph : LayeredGraph
    device : str or torch.device
    dtype : {"float64", "float32"}

    Returns
    -------
    torch.Tensor, sparse CSR, shape (nodes, nodes)
        As :func:`to_scipy`; a rank step is ``tensor @ vector``.

    Raises
    ------
    GraphError
        The device is not there, or the dtype is another one.
    """
    return TorchArithmetic(device, dtype).csr(to_scipy(graph))


def to_networkx(graph: LayeredGraph, max_edges: int = 1_000_000) -> networkx.DiGraph:
    """A networkx digraph with nodes ``(layer, index)``.

    Parameters
    ----------
    graph : LayeredGraph
    max_edges : int
        networkx takes some 350 bytes an edge; more edges than this are refused.

    Returns
    -------
    networkx.DiGraph
        Node attributes ``layer``, ``index``, ``name`` (of the layer) and ``activation``; edge
        attribute ``weight``; edges lead from layer l-1 to layer l.

    Raises
    ------
    GraphError
        More than `max_edges` edges.
    """
    n_edges = graph.edges
    if n_edges > max_edges:
        raise GraphError(
            f"the graph has {n_edges:,} edges, above max_edges={max_edges:,}; networkx would take about "
            f"{n_edges * 350 / 1e9:.1f} GB: use to_scipy(), or raise max_edges"
        )
    import networkx

    digraph = networkx.DiGraph()
    for layer, (name, activations) in enumerate(zip(graph.names, graph.activations, strict=True)):
        digraph.add_nodes_from(
            ((layer, k), {"layer": layer, "index": k, "name": name, "activation": float(value)})
            for k, value in enumerate(activations)
        )
    for layer in range(1, len(graph.layers)):
        block = graph.block(layer).tocoo()
        digraph.add_weighted_edges_from(
            ((layer - 1, int(source)), (layer, int(target)), float(weight))
            for target, source, weight in zip(block.row, block.col, block.data, strict=True)
        )
    return digraph
