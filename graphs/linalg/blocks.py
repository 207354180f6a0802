"""Blocks: the edges from one node layer to the next.

A block is a non-negative matrix of shape (n_targets, n_sources): row = target, column = source,
entry = edge weight, zero = no edge. CSR is its canonical form. A :class:`SparseBlock` stores that
CSR. A :class:`DenseBlock` refers to dense matrices, without a copy; their absolute values are the
weights, and the CSR or a band of rows is built only when it is read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

__all__ = [
    "Band",
    "Block",
    "Buffers",
    "DenseBlock",
    "FloatArray",
    "NumpyBuffers",
    "SparseBlock",
    "as_numpy",
    "index_dtype",
    "is_torch",
]

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]


INT32_MAX = np.iinfo(np.int32).max

# Entries of a band: 4 MB in float64, which stays in a core's share of the cache from the copy to the
# absolute value and the product. The speed measured between 2**18 and 2**20 entries is the same.
BAND_ELEMENTS = 1 << 19


def is_torch(value: object) -> bool:
    """Tell whether `value` is a torch tensor, without importing torch.

    Examples
    --------
    >>> is_torch(np.ones(2))
    False
    """
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_numpy(value: Any) -> npt.NDArray[Any]:
    """Convert an array-like or a torch tensor of any device to a numpy array; floats below 32 bits become float32.

    Examples
    --------
    >>> import torch
    >>> as_numpy(torch.tensor([1.0, 2.0]).bfloat16())
    array([1., 2.], dtype=float32)
    """
    if is_torch(value):
        tensor = value.detach()
        if tensor.is_floating_point() and tensor.itemsize < 4:
            tensor = tensor.float()
        return np.asarray(tensor.cpu().numpy())
    return np.asarray(value)


@dataclass(frozen=True)
class Band:
    """Consecutive rows or columns of a dense block: `matrix` holds the weights of `rows` and `columns`."""

    rows: slice
    columns: slice
    matrix: Any


class Block(Protocol):
    """The edges from one layer to the next."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n_targets, n_sources)."""

    @property
    def n_edges(self) -> int:
        """Number of edges (non-zero entries). Cost for a dense block: one pass over its matrices, at the first call."""

    @property
    def stored(self) -> bool:
        """Whether the CSR form is in memory already."""

    def to_csr(self) -> sparse.csr_array:
        """Return the canonical form: sorted CSR, no explicit zeros, int32 indices where they fit."""

    def transposed(self) -> Block:
        """Return the reversed edges, (n_sources, n_targets)."""

    def squared(self) -> Block:
        """Return the edges with squared weights; each of several parallel edges is squared by itself."""


def index_dtype(*extents: int) -> type[np.int32] | type[np.int64]:
    """Choose int32 if all of `extents` fit in it, else int64, for indptr and indices alike.

    Examples
    --------
    >>> index_dtype(4096, 10**9).__name__, index_dtype(4096, 4 * 10**9).__name__
    ('int32', 'int64')
    """
    return np.int32 if max(extents, default=0) <= INT32_MAX else np.int64


@dataclass(frozen=True, eq=False)
class SparseBlock:
    """A block stored as CSR.

    Parameters
    ----------
    csr : scipy.sparse.csr_array, shape (n_targets, n_sources)
        Non-negative, sorted, without duplicates or explicit zeros, as :func:`graphs.linalg.validation.as_block` makes it.
    """

    csr: sparse.csr_array

    @property
    def shape(self) -> tuple[int, int]:
        """(n_targets, n_sources)."""
        n_targets, n_sources = self.csr.shape
        return int(n_targets), int(n_sources)

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.csr.nnz)

    @property
    def stored(self) -> bool:
        """Always true."""
        return True

    def to_csr(self) -> sparse.csr_array:
        """Return the stored matrix itself, not a copy."""
        return self.csr

    def transposed(self) -> SparseBlock:
        """Return the CSR of the transpose: a copy."""
        csr = self.csr.T.tocsr()
        csr.sort_indices()
        dtype = index_dtype(csr.shape[1], csr.nnz)
        indices, indptr = csr.indices.astype(dtype, copy=False), csr.indptr.astype(dtype, copy=False)
        return SparseBlock(sparse.csr_array((csr.data, indices, indptr), shape=csr.shape))

    def squared(self) -> SparseBlock:
        """Return float64 squares with the same index arrays; an edge whose square rounds to zero is dropped."""
        data = np.square(self.csr.data, dtype=np.float64)
        csr = sparse.csr_array((data, self.csr.indices, self.csr.indptr), shape=self.csr.shape)
        if not data.all():
            csr = csr.copy()
            csr.eliminate_zeros()
        return SparseBlock(csr)


@dataclass(frozen=True, eq=False)
class DenseBlock:
    """A block that refers to dense matrices; they are read in bands and never copied as a whole.

    Several matrices are parallel edges: their absolute values add up (a gated FFN feeds a hidden
    neuron through both its gate and its up projection).

    Parameters
    ----------
    matrices : tuple of numpy arrays or torch tensors, each (n_targets, n_sources)
        Any floating dtype and memory order, views included.
    exponent : int
        A power of two. Weights are raised to it as they are read, each of several parallel edges by itself.
    """

    matrices: tuple[Any, ...]
    exponent: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """(n_targets, n_sources)."""
        n_targets, n_sources = self.matrices[0].shape
        return int(n_targets), int(n_sources)

    @property
    def stored(self) -> bool:
        """Always false: the CSR is built at every call of :meth:`to_csr`."""
        return False

    @property
    def column_major(self) -> bool:
        """Whether columns are contiguous in memory; bands are then columns, not rows."""
        matrix = self.matrices[0]
        if is_torch(matrix):
            return bool(matrix.stride(0) < matrix.stride(1))
        return bool(matrix.strides[0] < matrix.strides[1])

    def transposed(self) -> DenseBlock:
        """Return views of the same matrices; nothing is copied."""
        return replace(self, matrices=tuple(matrix.T for matrix in self.matrices))

    def squared(self) -> DenseBlock:
        """Return the same matrices, to be squared as they are read; nothing is copied."""
        return replace(self, exponent=2 * self.exponent)

    @cached_property
    def n_edges(self) -> int:
        """Number of edges (non-zero entries), counted at the first call in one pass."""
        if self.exponent == 1 and all(is_torch(matrix) and matrix.device.type != "cpu" for matrix in self.matrices):
            present = self.matrices[0] != 0
            for matrix in self.matrices[1:]:
                present |= matrix != 0
            return int(present.sum())
        return sum(int(np.count_nonzero(band.matrix)) for band in self.bands(NumpyBuffers(self.exact_dtype)))

    @property
    def exact_dtype(self) -> type[np.float32] | type[np.float64]:
        """The narrower of float32 and float64 in which no weight rounds to zero or to infinity."""
        wide = self.exponent > 1 or any(str(matrix.dtype).endswith("float64") for matrix in self.matrices)
        return np.float64 if wide else np.float32

    def weight(self, entries: Any) -> Any:
        """Compute the weights of entries of one of the matrices (an array or a tensor)."""
        weights = abs(entries)
        for _ in range(self._squarings):
            weights = weights * weights
        return weights

    @property
    def _squarings(self) -> int:
        return self.exponent.bit_length() - 1

    def bands(self, buffers: Buffers, elements: int = BAND_ELEMENTS) -> Iterator[Band]:
        """Yield the block band by band, as non-negative weights in the dtype and on the device of the buffers.

        The matrix of a band is a buffer that the next band overwrites. Extra memory: two buffers
        of `elements` entries, however large the block is.

        Parameters
        ----------
        buffers : Buffers
            Device and dtype of the computation.
        elements : int
            Entries of a band, rounded down to complete rows (or columns), of which it has at least one.
        """
        n_targets, n_sources = self.shape
        length, width = (n_sources, n_targets) if self.column_major else (n_targets, n_sources)
        height = min(length, max(1, elements // max(width, 1)))
        total = buffers.empty(height, width)
        addend = buffers.empty(height, width) if len(self.matrices) > 1 else total
        for start in range(0, length, height):
            stop = min(start + height, length)
            band = total[: stop - start]
            for k, matrix in enumerate(self.matrices):
                view = matrix.T if self.column_major else matrix
                part = band if k == 0 else addend[: stop - start]
                buffers.absolute(view[start:stop], part)
                for _ in range(self._squarings):
                    part *= part
                if k > 0:
                    band += part
            if self.column_major:
                yield Band(slice(0, n_targets), slice(start, stop), band.T)
            else:
                yield Band(slice(start, stop), slice(0, n_sources), band)

    def to_csr(self) -> sparse.csr_array:
        """Build the CSR form, band by band.

        Values are float32, or float64 where a matrix is. Cost: one pass; extra memory: the result
        and one band.
        """
        n_targets, n_sources = self.shape
        if self.column_major:
            csr = self.transposed().to_csr().T.tocsr()
            csr.sort_indices()
            return csr
        buffers = NumpyBuffers(self.exact_dtype)
        counts = np.zeros(n_targets, dtype=np.int64)
        indices: list[npt.NDArray[np.integer[Any]]] = []
        values: list[FloatArray] = []
        every_source = np.arange(n_sources, dtype=np.int32)
        for band in self.bands(buffers):
            nonzero = band.matrix != 0
            counts[band.rows] = nonzero.sum(axis=1)
            if nonzero.all():
                indices.append(np.tile(every_source, len(band.matrix)))
                values.append(band.matrix.ravel().copy())
            else:
                indices.append(np.nonzero(nonzero)[1].astype(np.int32))
                values.append(band.matrix[nonzero])
        indptr = np.concatenate(([0], np.cumsum(counts)))
        dtype = index_dtype(n_sources, int(indptr[-1]))
        columns = np.concatenate(indices).astype(dtype, copy=False)
        return sparse.csr_array((np.concatenate(values), columns, indptr.astype(dtype)), shape=(n_targets, n_sources))


class Buffers(Protocol):
    """Makes buffers in one library, on one device, and fills them with absolute values."""

    def empty(self, n_rows: int, n_columns: int) -> Any:
        """Make an uninitialised (n_rows, n_columns) buffer."""

    def absolute(self, source: Any, target: Any) -> None:
        """Write |source| into `target`, converted to its dtype and device."""


@dataclass(frozen=True)
class NumpyBuffers:
    """Buffers in numpy; torch tensors are copied to the CPU first, where they lie elsewhere."""

    dtype: Any = np.float32

    def empty(self, n_rows: int, n_columns: int) -> FloatArray:
        """Make an uninitialised (n_rows, n_columns) array."""
        return np.empty((n_rows, n_columns), dtype=self.dtype)

    def absolute(self, source: Any, target: FloatArray) -> None:
        """Write |source| into `target`."""
        np.copyto(target, as_numpy(source), casting="same_kind")
        np.abs(target, out=target)
