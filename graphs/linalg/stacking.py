"""Stacking: the blocks of a layered graph in one matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from graphs.linalg.blocks import Block, index_dtype

__all__ = ["stack_layers"]


def stack_layers(blocks: Sequence[Block]) -> sparse.csr_array:
    """Stack the blocks between consecutive layers into one square CSR matrix.

    Parameters
    ----------
    blocks : sequence of Block
        Block l has shape (n_l, n_{l-1}): its rows are the columns of the next one.

    Returns
    -------
    scipy.sparse.csr_array, shape (N, N)
        N is the number of nodes of all layers, in order of the layers. Indices are int32 where the numbers of nodes and edges
        fit, else int64. Memory: 8 to 16 bytes per edge.

    Examples
    --------
    >>> from graphs.linalg.validation import as_block
    >>> stack_layers([as_block([[3.0, 4.0]], "weights")]).toarray()
    array([[0., 0., 0.],
           [0., 0., 0.],
           [3., 4., 0.]])
    """
    sizes = [blocks[0].shape[1], *(block.shape[0] for block in blocks)]
    offsets = np.cumsum([0, *sizes]).tolist()
    n_nodes = offsets[-1]
    matrices = [block.to_csr() for block in blocks]
    n_edges = sum(int(matrix.nnz) for matrix in matrices)
    dtype = index_dtype(n_nodes, n_edges)
    # Not scipy's block stacking, which overflows int32 where every block fits and their sum does not.
    data = np.empty(n_edges, dtype=np.result_type(*[matrix.dtype for matrix in matrices]))
    indices = np.empty(n_edges, dtype=dtype)
    indptr = np.zeros(n_nodes + 1, dtype=dtype)
    start = 0
    for layer, matrix in enumerate(matrices, start=1):
        stop = start + int(matrix.nnz)
        data[start:stop] = matrix.data
        indices[start:stop] = matrix.indices
        indices[start:stop] += dtype(offsets[layer - 1])
        rows = slice(offsets[layer] + 1, offsets[layer + 1] + 1)
        indptr[rows] = matrix.indptr[1:]
        indptr[rows] += dtype(start)
        start = stop
    return sparse.csr_array((data, indices, indptr), shape=(n_nodes, n_nodes))
