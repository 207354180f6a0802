"""Selection of edges of a block, which is the matrix of the edges from one layer to the next: row = target, column = source.

Only the chosen rows and columns of a dense block are read, in bands: parts of a few rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from graphs.errors import GraphError
from graphs.linalg.blocks import BAND_ELEMENTS, Block, FloatArray, Nodes, SparseBlock, index_dtype

__all__ = ["EdgeList", "check_finite_weights", "csr_of", "edges_at", "edges_by_flow", "row_bands"]

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class EdgeList:
    """Edges of one block.

    Attributes
    ----------
    targets, sources : int64 arrays, (k,)
        Target and source of every edge.
    weights : float array, (k,)
        In the dtype of the block's CSR.
    """

    targets: IntArray
    sources: IntArray
    weights: FloatArray


def row_bands(
    block: Block, rows: IntArray | None = None, columns: IntArray | None = None
) -> Iterator[tuple[IntArray, sparse.csr_array]]:
    """Yield some rows and columns of a block as CSR, band by band.

    Parameters
    ----------
    block : Block, (n_targets, n_sources)
    rows, columns : int arrays, ascending, optional
        Targets and sources; all by default.

    Yields
    ------
    (int array (k,), csr_array (k, len(columns)))
        Some of `rows`, and their weights in `columns`. The weights are bit for bit those of ``block.to_csr()``, sorted and
        without zeros. A band has at most `BAND_ELEMENTS` entries plus those of one row.

    Examples
    --------
    >>> from graphs.linalg.blocks import DenseBlock
    >>> block = DenseBlock((np.array([[1.0, -2.0, 0.0], [3.0, 0.0, 5.0]]),))
    >>> [(rows.tolist(), csr.toarray().tolist()) for rows, csr in row_bands(block, columns=np.array([0, 2]))]
    [([0, 1], [[1.0, 0.0], [3.0, 5.0]])]
    """
    n_targets, n_sources = block.shape
    rows = np.arange(n_targets) if rows is None else rows
    if isinstance(block, SparseBlock):
        csr = block.csr
        entries = np.cumsum(np.diff(csr.indptr)[rows], dtype=np.int64)
        for chunk in np.split(rows, np.flatnonzero(np.diff(entries // BAND_ELEMENTS)) + 1):
            part = csr[chunk] if columns is None else csr[chunk][:, columns]
            part.sort_indices()
            yield chunk, part
        return
    height = max(1, BAND_ELEMENTS // max(1, n_sources if columns is None else len(columns)))
    chosen_columns: Nodes = slice(None) if columns is None else columns
    for start in range(0, len(rows), height):
        chunk = rows[start : start + height]
        yield chunk, sparse.csr_array(block.submatrix(chunk, chosen_columns))


def edges_at(block: Block, nodes: IntArray, incoming: bool, top: int | None = None) -> Iterator[EdgeList]:
    """Yield the in-edges or the out-edges of some nodes: all of them, or only the heaviest of every node.

    Parameters
    ----------
    block : Block, (n_targets, n_sources)
    nodes : int array, ascending
    incoming : bool
        True for edges into the nodes, False for edges out of them.
    top : int, optional
        Maximum number of edges to yield for a node: the heaviest ones. Among edges of equal weight, the edge whose other node has
        the lower index comes first. By default all edges.

    Yields
    ------
    EdgeList
        The edges of some of `nodes`. Cost: one read of the rows (or columns) of `nodes`; for out-edges in a CSR block, one pass
        over the block.

    Examples
    --------
    >>> from graphs.linalg.blocks import DenseBlock
    >>> block = DenseBlock((np.array([[1.0, 2.0, 2.0], [3.0, 0.0, 5.0]]),))
    >>> [(edges.sources.tolist(), edges.weights.tolist()) for edges in edges_at(block, np.array([0]), True, top=1)]
    [([1], [2.0])]
    """
    rows = nodes
    if not incoming:
        if isinstance(block, SparseBlock):
            # The rows of this block are the columns of `nodes`, so row k belongs to ``nodes[k]``.
            block = SparseBlock(sparse.csr_array(block.csr[:, nodes].T))
            rows = np.arange(len(nodes))
        else:
            block = block.transposed()
    for chunk, csr in row_bands(block, rows):
        owners = np.repeat(np.arange(len(chunk)), np.diff(csr.indptr))
        picks: IntArray = np.arange(csr.nnz)
        if top is not None:
            # Edges are sorted by node, then by decreasing weight, then by index. The first `top` edges of each node are kept.
            order = np.lexsort((csr.indices, -csr.data, owners))
            picks = np.sort(order[picks - csr.indptr[owners] < top])
        # The near end of an edge is one of `nodes`, the far end is its neighbour.
        near = (chunk if rows is nodes else nodes[chunk])[owners[picks]].astype(np.int64)
        far = csr.indices[picks].astype(np.int64)
        yield EdgeList(near, far, csr.data[picks]) if incoming else EdgeList(far, near, csr.data[picks])


def edges_by_flow(
    block: Block, targets: IntArray, sources: IntArray, scores: FloatArray, strengths: FloatArray, count: int
) -> sparse.csr_array:
    """Find the edges from some sources to some targets that carry most score: ``P_ij r_j = W_ij / s_j * r_j``.

    Parameters
    ----------
    block : Block, (n_targets, n_sources)
    targets, sources : int arrays, ascending
    scores, strengths : (len(sources),) float arrays
        Score r of the sources, and their out-strength s: the sum of the weights of all their out-edges in the block.
    count : int
        Maximum number of edges, at least 1.

    Returns
    -------
    csr_array, (len(targets), len(sources))
        The weights of these edges. Among edges that carry the same, those to the lower target come first, then those from the
        lower source. Cost: one read of the weights between the sources and the targets.

    Examples
    --------
    >>> from graphs.linalg.blocks import DenseBlock
    >>> block = DenseBlock((np.array([[1.0, 2.0], [3.0, 4.0]]),))
    >>> edges_by_flow(block, np.arange(2), np.arange(2), np.array([0.8, 0.2]), np.array([4.0, 6.0]), 2).toarray()
    array([[1., 0.],
           [3., 0.]])
    """
    rows: IntArray = np.zeros(0, dtype=np.int64)
    columns: IntArray = np.zeros(0, dtype=np.int64)
    carried: FloatArray = np.zeros(0)
    weights: FloatArray = np.zeros(0, dtype=np.float32)  # weights that are joined to these keep their own dtype
    floor = -1.0  # once `count` edges are found: the least that one of them carries
    n_rows_done = 0
    for chunk, csr in row_bands(block, targets, sources):
        chunk_rows = n_rows_done + np.repeat(np.arange(len(chunk)), np.diff(csr.indptr))
        n_rows_done += len(chunk)
        # W / s comes first, because r / s would overflow where the strength s is tiny.
        flow = csr.data / strengths[csr.indices] * scores[csr.indices]
        # An edge that carries exactly `floor` is not chosen: its target is higher than the targets of the edges found before.
        better = flow > floor
        rows = np.concatenate((rows, chunk_rows[better]))
        columns = np.concatenate((columns, csr.indices[better]))
        carried = np.concatenate((carried, flow[better]))
        weights = np.concatenate((weights, csr.data[better]))
        if len(carried) >= count:
            best = np.sort(np.argsort(-carried, kind="stable")[:count])
            rows, columns, carried, weights = rows[best], columns[best], carried[best], weights[best]
            floor = float(carried.min())
    return csr_of(rows, columns, weights, (len(targets), len(sources)))


def check_finite_weights(weights: FloatArray, name: str) -> None:
    """Check that edge weights are not NaN or Inf.

    Parameters
    ----------
    weights : float array, (k,)
    name : str
        Name of the block, for the error message.

    Raises
    ------
    GraphError
        NaN or Inf in the weights.

    Examples
    --------
    >>> check_finite_weights(np.array([1.0, np.nan]), "block 1")
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: block 1: the edge weights hold NaN or Inf; expected finite numbers: repair or reload them
    """
    if not np.isfinite(weights).all():
        raise GraphError(f"{name}: the edge weights hold NaN or Inf; expected finite numbers: repair or reload them")


def csr_of(rows: IntArray, columns: IntArray, weights: FloatArray, shape: tuple[int, int]) -> sparse.csr_array:
    """Make a sorted CSR matrix from entries at distinct places; its indices are int32 if they fit, else int64.

    Parameters
    ----------
    rows, columns : int arrays, (k,)
    weights : float array, (k,)
    shape : tuple of int

    Returns
    -------
    csr_array
        In the dtype of the weights.

    Examples
    --------
    >>> csr_of(np.array([1, 0]), np.array([0, 1]), np.array([2.0, 3.0]), (2, 2)).indices.dtype
    dtype('int32')
    """
    dtype = index_dtype(*shape, len(weights))
    places = rows.astype(dtype, copy=False), columns.astype(dtype, copy=False)
    return sparse.csr_array(sparse.coo_array((weights, places), shape=shape))
