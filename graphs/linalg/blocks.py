"""Blocks: the edges from one layer to the next.

A block is a non-negative matrix of shape (n_targets, n_sources): row = target, column = source, entry = edge weight, zero = no
edge. A :class:`SparseBlock` stores it as CSR. A :class:`DenseBlock` refers to the matrices of a model, and computes edge weights
from them at every read. A :class:`graphs.linalg.stacking.StackedBlock` consists of blocks below or beside each other.
"""

from __future__ import annotations

import functools
import operator
import sys
from abc import ABC, abstractmethod
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
    "BufferMaker",
    "DenseBlock",
    "FloatArray",
    "Nodes",
    "NumpyBufferMaker",
    "SparseBlock",
    "as_numpy",
    "index_dtype",
    "is_torch",
    "narrow_indices",
]

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
# Some nodes of a layer: a slice, or ascending indices.
Nodes: TypeAlias = slice | npt.NDArray[np.integer[Any]]

INT32_MAX = np.iinfo(np.int32).max

# Entries of a band (a part of a block that is read at once): 4 MB in float64, which fit in a core's share of the cache.
BAND_ELEMENTS = 1 << 19
# Weights between 2^-e and 2^e, and sums and reciprocals of them, are far from the limits of the dtype.
SAFE_EXPONENTS = {"float64": 900, "float32": 90}
# Stands for the exponent of the largest weight where there is none.
NO_EXPONENT = -(1 << 20)


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
    """Convert an array-like or a torch tensor of any device to a numpy array; tensors of floats below 32 bits become float32.

    Raises
    ------
    TypeError
        A tensor is on the meta device, sparse or quantised.
    ValueError
        The rows of an array-like differ in length.

    Examples
    --------
    >>> import torch
    >>> as_numpy(torch.tensor([1.0, 2.0]).bfloat16())
    array([1., 2.], dtype=float32)
    """
    if is_torch(value):
        if value.is_meta:
            raise TypeError("a tensor on the meta device, which has no numbers")
        tensor = value.detach()
        if tensor.is_floating_point() and tensor.itemsize < 4:
            tensor = tensor.float()
        return np.asarray(tensor.cpu().numpy())
    return np.asarray(value)


@dataclass(frozen=True)
class Band:
    """A part of a block: `matrix` holds the weights from sources `columns` to targets `rows`."""

    rows: slice
    columns: slice
    matrix: Any


class Block(ABC):
    """The edges from one layer to the next."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(n_targets, n_sources)."""

    @property
    @abstractmethod
    def n_edges(self) -> int:
        """Number of edges (non-zero entries); dense weights are counted in one pass at the first access."""

    @property
    def device(self) -> Any:
        """The device of the block's first torch matrix; None if there is none."""
        return None

    @property
    @abstractmethod
    def csr_dtype(self) -> Any:
        """Dtype of the CSR form: float32 or float64."""

    @abstractmethod
    def to_csr(self) -> sparse.csr_array:
        """Return the canonical form: sorted CSR, no explicit zeros, int32 indices where they fit."""

    @abstractmethod
    def bands(self, buffer_maker: BufferMaker, n_entries: int = BAND_ELEMENTS) -> Iterator[Band]:
        """Yield the block band by band, as non-negative weights in the dtype and on the device of the buffers.

        Bands do not overlap, and every edge is in a band. If the edges of a node are in several bands, these come in the
        order of the indices of the neighbours. The matrix of a band is a buffer, which the next band overwrites.

        Parameters
        ----------
        buffer_maker : BufferMaker
        n_entries : int
            Entries of a band, rounded down to complete rows (or columns), but at least one row (or column).
        """

    @abstractmethod
    def submatrix(self, rows: Nodes, columns: Nodes, dtype: Any = None) -> FloatArray:
        """Compute the weights from the sources `columns` to the targets `rows` as a dense array; no other weights are read.

        Without `dtype`, the weights equal those of :meth:`to_csr` bit for bit; with `dtype`, they are computed in that dtype.
        """

    @abstractmethod
    def transposed(self) -> Block:
        """Return the reversed edges, (n_sources, n_targets)."""

    @abstractmethod
    def squared(self) -> Block:
        """Return the edges with squared weights; parallel edges are squared before they are added up."""

    @abstractmethod
    def first_parallel(self) -> Block:
        """Return the edges of the first of several parallel matrices alone; all edges if there is only one matrix."""


def index_dtype(*extents: int) -> type[np.int32] | type[np.int64]:
    """Choose int32 if all of `extents` fit in it, else int64.

    Examples
    --------
    >>> index_dtype(4096, 10**9).__name__, index_dtype(4096, 4 * 10**9).__name__
    ('int32', 'int64')
    """
    return np.int32 if max(extents, default=0) <= INT32_MAX else np.int64


def narrow_indices(csr: sparse.csr_array) -> sparse.csr_array:
    """Convert the indices of a CSR matrix to their :func:`index_dtype`; a matrix that has it already is returned itself.

    Examples
    --------
    >>> csr = sparse.csr_array((np.ones(1), np.zeros(1, np.int64), np.array([0, 1])), shape=(1, 1))
    >>> narrow_indices(csr).indptr.dtype
    dtype('int32')
    """
    dtype = index_dtype(csr.shape[1], csr.nnz)
    if csr.indices.dtype == csr.indptr.dtype == dtype:
        return csr
    indices, indptr = csr.indices.astype(dtype, copy=False), csr.indptr.astype(dtype, copy=False)
    return sparse.csr_array((csr.data, indices, indptr), shape=csr.shape)


@dataclass(frozen=True, eq=False)
class SparseBlock(Block):
    """A block stored as CSR.

    Parameters
    ----------
    csr : scipy.sparse.csr_array, shape (n_targets, n_sources)
        Non-negative, sorted, without duplicates or explicit zeros, as :func:`graphs.linalg.validation.as_block` makes it.
    parallel : tuple of scipy.sparse.csr_array
        Matrices of parallel edges, whose sum is `csr`; empty if there are no parallel edges. Only :meth:`squared` needs them.
    """

    csr: sparse.csr_array
    parallel: tuple[sparse.csr_array, ...] = ()

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
    def csr_dtype(self) -> Any:
        """Dtype of the stored matrix."""
        return self.csr.dtype

    def to_csr(self) -> sparse.csr_array:
        """Return the stored matrix itself, not a copy."""
        return self.csr

    def bands(self, buffer_maker: BufferMaker, n_entries: int = BAND_ELEMENTS) -> Iterator[Band]:
        """Yield dense rows, zeros included."""
        for rows in _strips(*self.shape, n_entries):
            matrix = buffer_maker.empty(rows.stop - rows.start, self.shape[1])
            buffer_maker.write_absolute(self.csr[rows].toarray(), matrix)
            yield Band(rows, slice(0, self.shape[1]), matrix)

    def submatrix(self, rows: Nodes, columns: Nodes, dtype: Any = None) -> FloatArray:
        """Compute some weights as a dense array. Cost: a scan of the edges into `rows`."""
        weights: FloatArray = self.csr[rows][:, columns].toarray()
        return weights if dtype is None else weights.astype(dtype, copy=False)

    def transposed(self) -> SparseBlock:
        """Return the reversed edges, whose CSR is a copy."""
        csr, *parallel = (narrow_indices(matrix.T.tocsr()) for matrix in (self.csr, *self.parallel))
        return SparseBlock(csr, tuple(parallel))

    def squared(self) -> SparseBlock:
        """Return float64 squares; an edge whose square rounds to zero is dropped. Parallel edges are squared one by one."""
        if self.parallel:
            squares = tuple(SparseBlock(matrix).squared().csr for matrix in self.parallel)
            return SparseBlock(narrow_indices(functools.reduce(operator.add, squares)), squares)
        data = np.square(self.csr.data, dtype=np.float64)
        csr = sparse.csr_array((data, self.csr.indices, self.csr.indptr), shape=self.csr.shape)
        if not data.all():
            csr = csr.copy()
            csr.eliminate_zeros()
        return SparseBlock(csr)

    def first_parallel(self) -> SparseBlock:
        """Return the first parallel matrix; nothing is copied."""
        return SparseBlock(self.parallel[0]) if self.parallel else self

    @cached_property
    def extremes(self) -> tuple[float, float]:
        """The smallest and the largest weight; (1, 1) if there are no edges, and NaN if a weight is NaN."""
        data = self.csr.data
        return (float(data.min()), float(data.max())) if len(data) else (1.0, 1.0)

    def fits(self, dtype: str) -> bool:
        """Whether all weights, and the sums and reciprocals of some of them, are far from the limits of a dtype."""
        limit, (smallest, largest) = SAFE_EXPONENTS[dtype], self.extremes
        return smallest > 2.0**-limit and largest < 2.0**limit

    def exponents(self, axis: int) -> npt.NDArray[np.int32]:
        """Return the binary exponent of the largest weight of each column (axis 0) or row (axis 1), or :data:`NO_EXPONENT`."""
        maxima = np.zeros(self.shape[1 - axis])
        np.maximum.at(maxima, self._lines(axis), self.csr.data)
        return np.where(maxima > 0.0, np.frexp(maxima)[1], NO_EXPONENT).astype(np.int32)

    def divided(self, exponents: npt.NDArray[np.int32], axis: int, dtype: str = "float64") -> SparseBlock:
        """Return the weights with columns (axis 0) or rows (axis 1) divided by these powers of two; zeros are dropped."""
        data = np.ldexp(self.csr.data.astype(np.float64), -exponents[self._lines(axis)]).astype(dtype)
        csr = sparse.csr_array((data, self.csr.indices, self.csr.indptr), shape=self.csr.shape)
        if not data.all():
            csr = csr.copy()
            csr.eliminate_zeros()
        return SparseBlock(csr)

    def _lines(self, axis: int) -> Any:
        """Return the column (axis 0) or the row (axis 1) of every weight."""
        return self.csr.indices if axis == 0 else np.repeat(np.arange(self.shape[0]), np.diff(self.csr.indptr))


@dataclass(frozen=True, eq=False)
class DenseBlock(Block):
    """A block that refers to dense matrices and reads them in bands.

    Several matrices are parallel edges: their absolute values add up.

    Parameters
    ----------
    matrices : tuple of numpy arrays or torch tensors, each (n_targets, n_sources)
        Any floating dtype and memory order, views included.
    n_squarings : int
        How often weights are squared when they are read; parallel edges are squared before they are added up.
    """

    matrices: tuple[Any, ...]
    n_squarings: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(n_targets, n_sources)."""
        n_targets, n_sources = self.matrices[0].shape
        return int(n_targets), int(n_sources)

    @property
    def device(self) -> Any:
        """The device of the first torch matrix; None if there is none."""
        return next((matrix.device for matrix in self.matrices if is_torch(matrix)), None)

    @property
    def column_major(self) -> bool:
        """Whether the first matrix is stored column by column; then its bands consist of whole columns instead of whole rows."""
        matrix = self.matrices[0]
        strides = matrix.stride() if is_torch(matrix) else matrix.strides
        return bool(strides[0] < strides[1])

    def transposed(self) -> DenseBlock:
        """Return views of the same matrices; nothing is copied."""
        return replace(self, matrices=tuple(matrix.T for matrix in self.matrices))

    def squared(self) -> DenseBlock:
        """Return the same matrices, with one more squaring when they are read; nothing is copied."""
        return replace(self, n_squarings=self.n_squarings + 1)

    def first_parallel(self) -> DenseBlock:
        """Return the first matrix; nothing is copied."""
        return replace(self, matrices=self.matrices[:1])

    @cached_property
    def n_edges(self) -> int:
        """Number of edges, counted in one pass at the first access."""
        if not self.n_squarings and all(is_torch(matrix) and matrix.device.type != "cpu" for matrix in self.matrices):
            present = self.matrices[0] != 0
            for matrix in self.matrices[1:]:
                present |= (matrix != 0).to(present.device)
            return int(present.sum())
        return sum(int(np.count_nonzero(band.matrix)) for band in self.bands(NumpyBufferMaker(self.csr_dtype)))

    @property
    def csr_dtype(self) -> type[np.float32] | type[np.float64]:
        """Dtype of the CSR form: float64 for squares and float64 matrices, else float32."""
        wide = self.n_squarings > 0 or any(str(matrix.dtype).endswith("float64") for matrix in self.matrices)
        return np.float64 if wide else np.float32

    def bands(self, buffer_maker: BufferMaker, n_entries: int = BAND_ELEMENTS) -> Iterator[Band]:
        """Yield complete rows; complete columns if :attr:`column_major`."""
        matrices = [matrix.T for matrix in self.matrices] if self.column_major else self.matrices
        length, width = matrices[0].shape
        strips = _strips(length, width, n_entries)
        total = buffer_maker.empty(strips[0].stop, width)
        addend = buffer_maker.empty(strips[0].stop, width) if len(matrices) > 1 else total
        for strip in strips:
            band = total[: strip.stop - strip.start]
            for k, matrix in enumerate(matrices):
                part = band if k == 0 else addend[: len(band)]
                buffer_maker.write_absolute(matrix[strip], part)
                for _ in range(self.n_squarings):
                    part *= part
                if k > 0:
                    band += part
            if self.column_major:
                yield Band(slice(0, width), strip, band.T)
            else:
                yield Band(strip, slice(0, width), band)

    def submatrix(self, rows: Nodes, columns: Nodes, dtype: Any = None) -> FloatArray:
        """Compute some weights as a dense array; no other entries are read."""
        selected = replace(self, matrices=tuple(_select(matrix, rows, columns) for matrix in self.matrices))
        weights: FloatArray = next(selected.bands(NumpyBufferMaker(dtype or self.csr_dtype), sys.maxsize)).matrix
        return weights

    def to_csr(self) -> sparse.csr_array:
        """Build the CSR form in the :attr:`csr_dtype`. Cost: one pass over the weights. Memory: twice the result, and a band."""
        n_targets, n_sources = self.shape
        if self.column_major:
            csr = self.transposed().to_csr().T.tocsr()
            csr.sort_indices()
            return csr
        buffer_maker = NumpyBufferMaker(self.csr_dtype)
        counts = np.zeros(n_targets, dtype=np.int64)
        indices: list[npt.NDArray[np.integer[Any]]] = []
        values: list[FloatArray] = []
        all_columns = np.arange(n_sources, dtype=np.int32)
        for band in self.bands(buffer_maker):
            nonzero = band.matrix != 0
            counts[band.rows] = nonzero.sum(axis=1)
            if nonzero.all():
                indices.append(np.tile(all_columns, len(band.matrix)))
                values.append(band.matrix.ravel().copy())
            else:
                indices.append(np.nonzero(nonzero)[1].astype(np.int32))
                values.append(band.matrix[nonzero])
        indptr = np.concatenate(([0], np.cumsum(counts)))
        dtype = index_dtype(n_sources, int(indptr[-1]))
        columns = np.concatenate(indices).astype(dtype, copy=False)
        return sparse.csr_array((np.concatenate(values), columns, indptr.astype(dtype)), shape=(n_targets, n_sources))


def _strips(length: int, width: int, n_entries: int) -> list[slice]:
    """Split `length` rows into strips of at most `n_entries` entries, but at least one row; the first strip is as long as any."""
    height = max(1, n_entries // max(width, 1))
    return [slice(start, min(start + height, length)) for start in range(0, max(length, 1), height)]


def _select(matrix: Any, rows: Nodes, columns: Nodes) -> Any:
    """Return ``matrix[rows][:, columns]`` without an intermediate copy; a view if rows and columns are consecutive."""
    row_index, column_index = _index(rows), _index(columns)
    if not (isinstance(row_index, slice) or isinstance(column_index, slice)):
        row_index = row_index[:, None]
    return matrix[row_index, column_index]


def _index(nodes: Nodes) -> Any:
    """Return a slice if the nodes are consecutive, else int64 indices."""
    if isinstance(nodes, slice):
        return nodes
    consecutive = len(nodes) > 0 and nodes[-1] - nodes[0] + 1 == len(nodes)
    return slice(int(nodes[0]), int(nodes[-1]) + 1) if consecutive else nodes.astype(np.int64)


class BufferMaker(Protocol):
    """A maker of buffers: matrices of one library, device and dtype, which it fills with absolute values."""

    def empty(self, n_rows: int, n_columns: int) -> Any:
        """Make an uninitialised (n_rows, n_columns) buffer."""

    def write_absolute(self, source: Any, target: Any) -> None:
        """Write |source| into `target`, converted to the dtype and device of `target`."""


@dataclass(frozen=True)
class NumpyBufferMaker:
    """A maker of numpy buffers; torch tensors on other devices are first copied to the CPU."""

    dtype: Any

    def empty(self, n_rows: int, n_columns: int) -> FloatArray:
        """Make an uninitialised (n_rows, n_columns) array."""
        return np.empty((n_rows, n_columns), dtype=self.dtype)

    def write_absolute(self, source: Any, target: FloatArray) -> None:
        """Write |source| into `target`."""
        np.abs(as_numpy(source), out=target, casting="same_kind")
