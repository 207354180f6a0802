"""Operators: blocks (matrices of edge weights) made ready to multiply vectors, with scipy, torch, numpy or compiled kernels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from scipy import sparse

from graphs.linalg.blocks import BAND_ELEMENTS, Band, Block, BufferMaker, DenseBlock, FloatArray, NumpyBufferMaker

if TYPE_CHECKING:
    import torch

__all__ = [
    "BlockOperator",
    "CSRKernelOperator",
    "CSROperator",
    "DenseOperator",
    "KernelOperator",
    "TorchCSROperator",
    "Vector",
    "torch_csr",
]

# A numpy array or a torch tensor.
Vector: TypeAlias = Any


class BlockOperator(Protocol):
    """A block W (n_targets, n_sources) that multiplies vectors.

    `matvec` and `rmatvec` also take k vectors as the columns of an (n, k) matrix, in one read of the block.
    """

    shape: tuple[int, int]

    def out_strength(self) -> Vector:
        """Compute the column sums of W, (n_sources,)."""

    def in_strength(self) -> Vector:
        """Compute the row sums of W, (n_targets,)."""

    def out_degree(self) -> Vector:
        """Count the non-zero entries of every column, (n_sources,)."""

    def matvec(self, x: Vector) -> Vector:
        """Compute W @ x, (n_targets,)."""

    def rmatvec(self, y: Vector) -> Vector:
        """Compute W.T @ y, (n_sources,): the product along the reversed edges."""

    def mixed_matvec(self, x: Vector, y: Vector) -> Vector:
        """Compute W @ x + 1[W != 0] @ y, (n_targets,); x and y are single vectors."""

    def row_maxima(self, x: Vector) -> Vector:
        """Compute max_j W_ij x_j, (n_targets,), for a non-negative x (n_sources,)."""

    def column_maxima(self, y: Vector) -> Vector:
        """Compute max_i W_ij y_i, (n_sources,), for a non-negative y (n_targets,)."""


class CSROperator:
    """A block in scipy's CSR form.

    Parameters
    ----------
    csr : scipy.sparse.csr_array, shape (n_targets, n_sources)
    """

    def __init__(self, csr: sparse.csr_array) -> None:
        self.csr = csr
        self.shape: tuple[int, int] = tuple(csr.shape)
        self._pattern: sparse.csr_array | None = None

    def out_strength(self) -> FloatArray:
        """Compute the column sums."""
        # bincount takes one pass; csr.sum(axis=0) would compute a transposed product.
        sums = np.bincount(self.csr.indices, weights=self.csr.data, minlength=self.shape[1])
        return sums.astype(self.csr.dtype)

    def in_strength(self) -> FloatArray:
        """Compute the row sums."""
        return self.matvec(np.ones(self.shape[1], dtype=self.csr.dtype))

    def out_degree(self) -> FloatArray:
        """Count the non-zero entries of every column."""
        return np.bincount(self.csr.indices, minlength=self.shape[1]).astype(self.csr.dtype)

    def matvec(self, x: Vector) -> FloatArray:
        """Compute W @ x."""
        return np.asarray(self.csr @ x)

    def rmatvec(self, y: Vector) -> FloatArray:
        """Compute W.T @ y from the same arrays, which scipy reads as CSC."""
        return np.asarray(self.csr.T @ y)

    def mixed_matvec(self, x: Vector, y: Vector) -> FloatArray:
        """Compute W @ x + 1[W != 0] @ y. The first call builds and keeps the matrix 1[W != 0], which shares the indices of W."""
        if self._pattern is None:
            csr = self.csr
            self._pattern = sparse.csr_array((np.ones_like(csr.data), csr.indices, csr.indptr), shape=self.shape)
        return np.asarray(self.csr @ x + self._pattern @ y)

    def row_maxima(self, x: Vector) -> FloatArray:
        """Compute max_j W_ij x_j."""
        maxima = np.zeros(self.shape[0], dtype=self.csr.dtype)
        rows = np.flatnonzero(np.diff(self.csr.indptr))
        if len(rows):
            maxima[rows] = np.maximum.reduceat(self.csr.data * x[self.csr.indices], self.csr.indptr[rows])
        return maxima

    def column_maxima(self, y: Vector) -> FloatArray:
        """Compute max_i W_ij y_i."""
        maxima = np.zeros(self.shape[1], dtype=self.csr.dtype)
        np.maximum.at(maxima, self.csr.indices, self.csr.data * np.repeat(y, np.diff(self.csr.indptr)))
        return maxima


class CSRKernelOperator(CSROperator):
    """A block in scipy's CSR form that :mod:`graphs.linalg.kernels` multiplies by single vectors, with sums in float64."""

    def matvec(self, x: Vector) -> FloatArray:
        """Compute W @ x."""
        from graphs.linalg import kernels

        if x.ndim > 1:
            return super().matvec(x)
        csr = self.csr
        return np.asarray(kernels.csr_products(csr.indptr, csr.indices, csr.data, x), csr.dtype)

    def rmatvec(self, y: Vector) -> FloatArray:
        """Compute W.T @ y."""
        from graphs.linalg import kernels

        if y.ndim > 1:
            return super().rmatvec(y)
        csr = self.csr
        return np.asarray(kernels.csr_column_products(csr.indptr, csr.indices, csr.data, y, csr.shape[1]), csr.dtype)

    def out_strength(self) -> FloatArray:
        """Compute the column sums."""
        return self.rmatvec(np.ones(self.shape[0]))


class TorchCSROperator:
    """A torch CSR block on a device. On a GPU, only the products, which torch computes, may differ by rounding from run to run.

    Parameters
    ----------
    matrix : torch.Tensor, sparse CSR, shape (n_targets, n_sources)
    """

    def __init__(self, matrix: torch.Tensor) -> None:
        self.shape: tuple[int, int] = (matrix.shape[0], matrix.shape[1])
        self._matrix = matrix
        self._columns, self._values = matrix.col_indices(), matrix.values()
        self._pattern: torch.Tensor | None = None
        self._transposed: torch.Tensor | None = None

    def out_strength(self) -> torch.Tensor:
        """Compute the column sums. Memory on a GPU: a copy of the block, sorted by column."""
        import torch

        if self._values.device.type == "cpu":
            # One thread adds the values of a column in the order of their rows.
            return self._values.new_zeros(self.shape[1]).index_add_(0, self._columns, self._values)
        # On a GPU, index_add_ would add the values in any order.
        order, starts = _sorted_by_column(self._matrix)
        return torch.segment_reduce(self._values[order], "sum", offsets=starts, initial=0.0, unsafe=True)

    def in_strength(self) -> torch.Tensor:
        """Compute the row sums."""
        return self.matvec(self._values.new_ones(self.shape[1]))

    def out_degree(self) -> torch.Tensor:
        """Count the non-zero entries of every column."""
        # Sums of ones are exact in any order.
        ones = self._values.new_ones(self._values.shape)
        return self._values.new_zeros(self.shape[1]).index_add_(0, self._columns, ones)

    def matvec(self, x: Vector) -> torch.Tensor:
        """Compute W @ x."""
        result: torch.Tensor = self._matrix @ x
        return result

    def rmatvec(self, y: Vector) -> torch.Tensor:
        """Compute W.T @ y. The first call builds and keeps the CSR of W.T, which torch would build at every product."""
        if self._transposed is None:
            order, starts = _sorted_by_column(self._matrix)
            crow = starts.to(self._matrix.crow_indices().dtype)  # torch expects one index dtype
            shape = (self.shape[1], self.shape[0])
            self._transposed = torch_csr(crow, _rows(self._matrix)[order], self._values[order], shape)
        result: torch.Tensor = self._transposed @ y
        return result

    def mixed_matvec(self, x: Vector, y: Vector) -> torch.Tensor:
        """Compute W @ x + 1[W != 0] @ y. The first call builds and keeps the matrix 1[W != 0], which shares the indices of W."""
        if self._pattern is None:
            ones = self._values.new_ones(self._values.shape)
            self._pattern = torch_csr(self._matrix.crow_indices(), self._columns, ones, self.shape)
        result: torch.Tensor = self._matrix @ x + self._pattern @ y
        return result

    def row_maxima(self, x: Vector) -> torch.Tensor:
        """Compute max_j W_ij x_j."""
        return _maxima(self._values * x[self._columns.long()], _rows(self._matrix), self.shape[0])

    def column_maxima(self, y: Vector) -> torch.Tensor:
        """Compute max_i W_ij y_i."""
        return _maxima(self._values * y[_rows(self._matrix).long()], self._columns, self.shape[1])


def torch_csr(crow: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Build a torch CSR tensor from valid index arrays, without torch's warning that CSR is in beta.

    Examples
    --------
    >>> import torch
    >>> torch_csr(torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([3.0]), (1, 2)).to_dense()
    tensor([[0., 3.]])
    """
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(crow, columns, values, size=shape, check_invariants=False)


def _maxima(values: torch.Tensor, groups: torch.Tensor, n_groups: int) -> torch.Tensor:
    """Return the maximum of every group of values, at least 0; a maximum, unlike a sum, does not depend on the order."""
    return values.new_zeros(n_groups).scatter_reduce_(0, groups.long(), values, "amax")


def _sorted_by_column(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the entries' order by column, then row, (entries,), and where each column starts in it, (columns + 1,), as int64."""
    import torch

    columns, order = torch.sort(matrix.col_indices(), stable=True)
    bounds = torch.arange(matrix.shape[1] + 1, device=columns.device, dtype=columns.dtype)
    return order, torch.searchsorted(columns, bounds)


def _rows(matrix: torch.Tensor) -> torch.Tensor:
    """Return the row of every entry of a CSR tensor, in the index dtype of the tensor."""
    import torch

    rows = torch.arange(matrix.shape[0], device=matrix.device, dtype=matrix.col_indices().dtype)
    # Without output_size, torch would read the size of the result from the device.
    return torch.repeat_interleave(rows, matrix.crow_indices().diff(), output_size=len(matrix.col_indices()))


class DenseOperator:
    """A block that is read band by band, some complete rows or columns at a time.

    Parameters
    ----------
    block : Block
    xp : module
        numpy or torch: the library of the buffers.
    buffer_maker, n_entries
        As in :meth:`Block.bands`.
    """

    def __init__(self, block: Block, xp: Any, buffer_maker: BufferMaker, n_entries: int = BAND_ELEMENTS) -> None:
        self.shape = block.shape
        self._block = block
        self._xp = xp
        self._buffer_maker = buffer_maker
        self._n_entries = n_entries

    def _bands(self) -> Iterator[Band]:
        return self._block.bands(self._buffer_maker, self._n_entries)

    def _zeros(self, size: int, like: Vector = None) -> Vector:
        """Make zeros of shape (size,), or (size, k) if `like` has shape (n, k)."""
        has_columns = like is not None and like.ndim > 1
        matrix = self._buffer_maker.empty(size, like.shape[1] if has_columns else 1)
        matrix[:] = 0
        return matrix if has_columns else matrix[:, 0]

    def out_strength(self) -> Vector:
        """Compute the column sums."""
        total = self._zeros(self.shape[1])
        for band in self._bands():
            total[band.columns] += band.matrix.sum(0)
        return total

    def in_strength(self) -> Vector:
        """Compute the row sums."""
        total = self._zeros(self.shape[0])
        for band in self._bands():
            total[band.rows] += band.matrix.sum(1)
        return total

    def out_degree(self) -> Vector:
        """Count the non-zero entries of every column."""
        total = self._zeros(self.shape[1])
        for band in self._bands():
            self._xp.sign(band.matrix, out=band.matrix)
            total[band.columns] += band.matrix.sum(0)
        return total

    def matvec(self, x: Vector) -> Vector:
        """Compute W @ x."""
        result = self._zeros(self.shape[0], x)
        for band in self._bands():
            result[band.rows] += band.matrix @ x[band.columns]
        return result

    def rmatvec(self, y: Vector) -> Vector:
        """Compute W.T @ y."""
        result = self._zeros(self.shape[1], y)
        for band in self._bands():
            result[band.columns] += band.matrix.T @ y[band.rows]
        return result

    def mixed_matvec(self, x: Vector, y: Vector) -> Vector:
        """Compute W @ x + 1[W != 0] @ y."""
        result = self._zeros(self.shape[0])
        for band in self._bands():
            result[band.rows] += band.matrix @ x[band.columns]
            self._xp.sign(band.matrix, out=band.matrix)
            result[band.rows] += band.matrix @ y[band.columns]
        return result

    def row_maxima(self, x: Vector) -> Vector:
        """Compute max_j W_ij x_j."""
        result = self._zeros(self.shape[0])
        for band in self._bands():
            products = band.matrix * x[band.columns]
            result[band.rows] = self._xp.maximum(result[band.rows], self._xp.amax(products, 1))
        return result

    def column_maxima(self, y: Vector) -> Vector:
        """Compute max_i W_ij y_i."""
        result = self._zeros(self.shape[1])
        for band in self._bands():
            products = band.matrix * y[band.rows][:, None]
            result[band.columns] = self._xp.maximum(result[band.columns], self._xp.amax(products, 0))
        return result


class KernelOperator(DenseOperator):
    """A dense block on the CPU that :mod:`graphs.linalg.kernels` multiplies by single vectors, without a copy, in float64 sums.

    Parameters
    ----------
    matrices : tuple of one or two C-contiguous arrays
        The weights, in a dtype that the kernels read; transposed if the block is column-major.
    block : DenseBlock
        At most one squaring.
    dtype : {"float64", "float32"}
        The dtype of the vectors.
    """

    def __init__(self, matrices: tuple[FloatArray, ...], block: DenseBlock, dtype: str) -> None:
        # What the kernels do not compute comes from bands, in which squares of float32 would vanish that the kernels still see.
        super().__init__(block, np, NumpyBufferMaker(np.dtype("float64" if block.n_squarings else dtype)))
        self._matrices = matrices
        self._is_transposed, self._squared = block.column_major, block.n_squarings > 0
        self._dtype = np.dtype(dtype)

    def _product(self, x: Vector, transpose: bool) -> FloatArray:
        from graphs.linalg import kernels

        kernel = kernels.column_products if transpose != self._is_transposed else kernels.row_products
        return np.asarray(kernel(self._matrices, x, self._squared), self._dtype)

    def out_strength(self) -> FloatArray:
        """Compute the column sums."""
        return self._product(np.ones(self.shape[0]), transpose=True)

    def in_strength(self) -> FloatArray:
        """Compute the row sums."""
        return self._product(np.ones(self.shape[1]), transpose=False)

    def out_degree(self) -> FloatArray:
        """Count the non-zero entries of every column."""
        from graphs.linalg import kernels

        if self._is_transposed:
            return np.asarray(super().out_degree(), self._dtype)
        return np.asarray(kernels.column_counts(self._matrices, self._squared), self._dtype)

    def matvec(self, x: Vector) -> FloatArray:
        """Compute W @ x."""
        return self._product(x, transpose=False) if x.ndim == 1 else np.asarray(super().matvec(x), self._dtype)

    def rmatvec(self, y: Vector) -> FloatArray:
        """Compute W.T @ y."""
        return self._product(y, transpose=True) if y.ndim == 1 else np.asarray(super().rmatvec(y), self._dtype)

    def mixed_matvec(self, x: Vector, y: Vector) -> FloatArray:
        """Compute W @ x + 1[W != 0] @ y."""
        from graphs.linalg import kernels

        if self._is_transposed:
            return np.asarray(super().mixed_matvec(x, y), self._dtype)
        return np.asarray(kernels.row_products_mixed(self._matrices, x, y, self._squared), self._dtype)

    def row_maxima(self, x: Vector) -> FloatArray:
        """Compute max_j W_ij x_j."""
        return np.asarray(super().row_maxima(x), self._dtype)

    def column_maxima(self, y: Vector) -> FloatArray:
        """Compute max_i W_ij y_i."""
        return np.asarray(super().column_maxima(y), self._dtype)
