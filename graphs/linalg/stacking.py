"""The blocks of a layered graph, stacked into one matrix."""

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
        N is the number of nodes of all layers, which stand one after another. int32 indices while nodes and edges fit in them,
        int64 beyond. Memory: 8 to 16 bytes an edge.

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
    kind = index_dtype(n_nodes, n_edges)
    # Filled by hand: scipy's block stacking overflows int32 where the parts fit and the sum does not.
    data = np.empty(n_edges, dtype=np.result_type(*[matrix.dtype for matrix in matrices]))
    indices = np.empty(n_edges, dtype=kind)
    indptr = np.zeros(n_nodes + 1, dtype=kind)
    filled = 0
    for layer, matrix in enumerate(matrices, start=1):
        stop = filled + int(matrix.nnz)
        data[filled:stop] = matrix.data
        indices[filled:stop] = matrix.indices
        indices[filled:stop] += kind(offsets[layer - 1])
        rows = slice(offsets[layer] + 1, offsets[layer + 1] + 1)
        indptr[rows] = matrix.indptr[1:]
        indptr[rows] += kind(filled)
        filled = stop
    return sparse.csr_array((data, indices, indptr), shape=(n_nodes, n_nodes))
