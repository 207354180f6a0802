"""The in-edges or out-edges of the nodes of a block, and their probabilities in the transition P of a weighted PageRank.

A block is the matrix W of the edges from one layer to the next: row = target, column = source, entry = edge weight. It is dense
or CSR. A dense block is read in bands, which are parts of 4 MB.

``P_ij = theta W_ij / s_j + (1 - theta) / k_j`` for an edge from source j to target i. Here s_j is the out-strength of j (the sum
of the weights of its out-edges), k_j is its out-degree (their number), and theta is the share of the edge weights in P. A source
without out-edges is called dangling, and its column of P is zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from graphs.analysis.strengths import finite_strength, not_finite_error
from graphs.linalg.backends import Backend
from graphs.linalg.blocks import BAND_ELEMENTS, Block, FloatArray, NumpyBufferMaker, SparseBlock
from graphs.structures.layered import LayeredGraph

__all__ = [
    "IncidentEdges",
    "SourceTotals",
    "highest_in_rows",
    "incident_edges",
    "padded_lines",
    "source_weights",
    "target_weights",
]

IntArray: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SourceTotals:
    """Out-strengths and out-degrees of the sources of a block, by which edge weights are divided to get probabilities.

    Dangling sources have 1 in place of 0, so that no division is by zero.

    Attributes
    ----------
    strength : (n_sources,) float64 array
    degree : (n_sources,) float64 array, or None
        None if theta is 1, because P does not need degrees then.
    theta : float
        Share of the edge weights in P, 0..1.
    """

    strength: FloatArray
    degree: FloatArray | None
    theta: float

    @classmethod
    def of_block(cls, graph: LayeredGraph, layer: int, theta: float, backend: Backend) -> SourceTotals:
        """Compute the totals of all sources of the block into `layer`. Cost: one read of the block, two for theta < 1.

        Raises
        ------
        GraphError
            Weights or their sums are NaN or Inf.

        Examples
        --------
        >>> from graphs.analysis.strengths import default_backend
        >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [3.0, 0.0]]], [1, 1], [[1, 1]])
        >>> SourceTotals.of_block(graph, 1, 0.5, default_backend(graph)).probabilities(np.array([3.0, 0.0]))
        array([0.625, 0.   ])
        """
        operator = backend.operator(graph.blocks[layer - 1], products=1 if theta == 1.0 else 2)
        strength = finite_strength(backend, operator.out_strength, layer)
        degree = None if theta == 1.0 else backend.arithmetic.to_numpy(operator.out_degree())
        return cls(np.where(strength > 0, strength, 1.0), None if degree is None else np.maximum(degree, 1.0), theta)

    @classmethod
    def of_column(cls, column: FloatArray, theta: float) -> SourceTotals:
        """Compute the totals of one source from the weights of its out-edges, (n_targets,)."""
        strength, degree = float(column.sum()), float(np.count_nonzero(column))
        return cls(np.array([strength or 1.0]), None if theta == 1.0 else np.array([degree or 1.0]), theta)

    def probabilities(self, weights: FloatArray, at: Any = ...) -> FloatArray:
        """Compute the probabilities of some edges.

        Parameters
        ----------
        weights : float64 array
            W_ij; 0 where there is no edge.
        at : index, optional
            Index that selects the source of every edge: ``strength[at]`` must broadcast against `weights`. By default, the last
            axis of `weights` has one entry for each source, in order.

        Returns
        -------
        float64 array, shaped like `weights`
            P_ij.

        Examples
        --------
        >>> sources = SourceTotals(np.array([4.0, 2.0]), None, 1.0)
        >>> sources.probabilities(np.array([[1.0, 1.0], [3.0, 1.0]]))
        array([[0.25, 0.5 ],
               [0.75, 0.5 ]])
        """
        probabilities: FloatArray = weights / self.strength[at]
        if self.degree is not None:
            probabilities = self.theta * probabilities + (1.0 - self.theta) * ((weights > 0) / self.degree[at])
        return probabilities


@dataclass(frozen=True, eq=False)
class IncidentEdges:
    """In-edges or out-edges of m nodes of a block, up to w of each: one row for each node, ordered by neighbour.

    Attributes
    ----------
    nodes : (m,) int array
    neighbours : (w,) or (m, w) int array
        The nodes at the other end of the edges, ascending; (w,) if all rows have the same neighbours.
    weights : (m, w) float64 array
        0 where there is no edge; the neighbour at this place may then be any valid index.
    """

    nodes: IntArray
    neighbours: IntArray
    weights: FloatArray

    def neighbours_at(self, rows: IntArray, picks: IntArray) -> IntArray:
        """Return chosen neighbours, (r, c): in row ``rows[k]``, those in the columns ``picks[k]``.

        Examples
        --------
        >>> edges = IncidentEdges(np.array([4, 7]), np.array([[0, 2], [1, 3]]), np.ones((2, 2)))
        >>> edges.neighbours_at(np.array([1]), np.array([[1, 0]]))
        array([[3, 1]])
        """
        return self.neighbours[picks] if self.neighbours.ndim == 1 else self.neighbours[rows[:, None], picks]


def incident_edges(block: Block, side: Literal["source", "target"]) -> Iterator[IncidentEdges]:
    """Yield all edges of a block in parts, grouped by their targets or by their sources.

    Parameters
    ----------
    block : Block, (n_targets, n_sources)
    side : {"source", "target"}
        Whether `nodes` are sources, with their out-edges, or targets, with their in-edges.

    Yields
    ------
    IncidentEdges
        If the edges of a node are divided among several parts, these parts come in the order of the neighbours. Nodes without
        edges may be missing. The weights of a part may be overwritten when the next part is asked for. Cost: one read of the
        block. Memory: a few bands of a dense block, or a few times the edges of a CSR block.

    Examples
    --------
    >>> from graphs.linalg.blocks import DenseBlock
    >>> block = DenseBlock((np.array([[1.0, -2.0], [3.0, 0.0]]),))
    >>> [(edges.nodes.tolist(), edges.weights.tolist()) for edges in incident_edges(block, "source")]
    [([0, 1], [[1.0, 3.0], [2.0, 0.0]])]
    """
    if not isinstance(block, SparseBlock):
        for band in block.bands(NumpyBufferMaker(np.float64)):
            rows, columns = (np.arange(part.start, part.stop) for part in (band.rows, band.columns))
            # Contiguous rows are faster to scan many times.
            if side == "target":
                yield IncidentEdges(rows, columns, np.ascontiguousarray(band.matrix))
            else:
                yield IncidentEdges(columns, rows, np.ascontiguousarray(band.matrix.T))
        return
    csr = block.csr
    matrix = csr if side == "target" else csr.tocsc()
    for nodes, places, weights in padded_lines(matrix):
        yield IncidentEdges(nodes, matrix.indices[places].astype(np.int64), weights)


def padded_lines(matrix: sparse.csr_array | sparse.csc_array) -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
    """Yield the lines (rows of a CSR matrix, columns of a CSC matrix) in groups; the lines of a group are padded to equal length.

    Parameters
    ----------
    matrix : csr_array or csc_array

    Yields
    ------
    (int64 array (m,), int64 array (m, w), float64 array (m, w))
        Indices of m lines that have entries, the places of their entries in ``matrix.data``, and the values. Padding comes last
        in a line, with value 0 and any valid place. A group has at most `BAND_ELEMENTS` values, or is a single longer line.

    Examples
    --------
    >>> matrix = sparse.csr_array([[0.0, 5.0], [3.0, 4.0], [0.0, 0.0]])
    >>> [(lines.tolist(), values.tolist()) for lines, _, values in padded_lines(matrix)]
    [([1, 0], [[3.0, 4.0], [5.0, 0.0]])]
    """
    lengths = np.diff(matrix.indptr).astype(np.int64)
    # In this order, the lines of a group are about equally long, and all padding together is at most a few bands.
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    start = 0
    while start < len(order):
        width = int(lengths[order[start]])
        lines = order[start : start + max(1, BAND_ELEMENTS // width)]
        start += len(lines)
        offsets = np.arange(width)
        places = np.minimum(matrix.indptr[lines].astype(np.int64)[:, None] + offsets, matrix.nnz - 1)
        values = np.where(offsets < lengths[lines, None], matrix.data[places], 0.0)
        yield lines, places, values.astype(np.float64, copy=False)


def highest_in_rows(keys: FloatArray, count: int) -> tuple[IntArray, FloatArray]:
    """Find the `count` highest keys of every row, in decreasing order; among equal keys the first column comes first.

    Cost: `count` scans, which are faster than a partition for a few keys.

    Parameters
    ----------
    keys : (m, w) float64 array
        The numbers to compare, non-negative. They are overwritten.
    count : int
        At least 1.

    Returns
    -------
    columns, values : (m, min(count, w)) int64 and float64 arrays

    Examples
    --------
    >>> columns, values = highest_in_rows(np.array([[1.0, 3.0, 3.0]]), 2)
    >>> columns.tolist(), values.tolist()
    ([[1, 2]], [[3.0, 3.0]])
    """
    count = min(count, keys.shape[1])
    rows = np.arange(len(keys))
    columns = np.empty((len(keys), count), dtype=np.int64)
    values = np.empty((len(keys), count))
    for place in range(count):
        columns[:, place] = best = keys.argmax(axis=1)
        values[:, place] = keys[rows, best]
        keys[rows, best] = -1.0
    return columns, values


def target_weights(block: Block, target: int) -> FloatArray:
    """Compute the weights of the in-edges of one target; the weights of several edges from the same source are added.

    Parameters
    ----------
    block : Block, (n_targets, n_sources)
    target : int

    Returns
    -------
    (n_sources,) float64 array
        W_ij for every source j, not checked for NaN and Inf. Cost: one row of dense weights, or its edges in CSR weights.

    Examples
    --------
    >>> from graphs.linalg.blocks import DenseBlock
    >>> target_weights(DenseBlock((np.array([[1.0, -2.0], [3.0, 0.0]]),)), 0)
    array([1., 2.])
    """
    row: FloatArray = block.submatrix(slice(target, target + 1), slice(None), np.float64)[0]
    return row


def source_weights(block: Block, source: int, layer: int) -> FloatArray:
    """Compute the weights of the out-edges of one source; the weights of several edges to the same target are added.

    Parameters
    ----------
    block : Block, (n_targets, n_sources)
    source : int
    layer : int
        The layer that the block leads into, for the error message.

    Returns
    -------
    (n_targets,) float64 array
        W_ij for every target i. Cost: one column of dense weights, or a scan of the indices of CSR weights.

    Raises
    ------
    GraphError
        Weights or their sum are NaN or Inf.

    Examples
    --------
    >>> from graphs.linalg.blocks import DenseBlock
    >>> source_weights(DenseBlock((np.array([[1.0, -2.0], [3.0, 0.0]]),)), 0, layer=1)
    array([1., 3.])
    """
    column = block.submatrix(slice(None), slice(source, source + 1), np.float64)[:, 0]
    with np.errstate(over="ignore"):  # an overflow raises an error below
        total = float(column.sum())
    if not np.isfinite(total):
        raise not_finite_error(layer)
    return column
