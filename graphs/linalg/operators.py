"""Operators: how a block multiplies a vector, or several at once.

One protocol, :class:`BlockOperator`, implemented by scipy CSR, torch CSR (CPU, CUDA), dense bands,
and compiled kernels over CSR and over dense weights. Solvers see the protocol only.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from scipy import sparse

from graphs.linalg.blocks import Band, DenseBlock, FloatArray, NumpyBuffers

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
]

# A numpy array or a torch tensor: solvers use only what the two share (+, *, sum, abs, slicing).
Vector: TypeAlias = Any


class BlockOperator(Protocol):
    """A block W (n_targets x n_sources) that multiplies vectors, and its twin 1[W != 0].

    Where a method takes (n,) it takes (n, k) too and treats the columns apart, in one read of the
    block, except for `mixed_matvec`.
    """

    shape: tuple[int, int]

    def out_strength(self) -> Vector:
        """Column sums of W, (n_sources,)."""

    def in_strength(self) -> Vector:
        """Row sums of W, (n_targets,)."""

    def out_degree(self) -> Vector:
        """Number of non-zero entries of every column, (n_sources,)."""

    def matvec(self, x: Vector) -> Vector:
        """W @ x, (n_targets,)."""

    def rmatvec(self, y: Vector) -> Vector:
        """W.T @ y, (n_sources,): the product along the reversed edges."""

    def mixed_matvec(self, x: Vector, y: Vector) -> Vector:
        """W @ x + 1[W != 0] @ y, (n_targets,), in one pass over the block."""

    def row_maxima(self, x: Vector) -> Vector:
        """max_j W_ij x_j for a non-negative x (n_sources,), (n_targets,)."""

    def column_maxima(self, y: Vector) -> Vector:
        """max_i W_ij y_i for a non-negative y (n_targets,), (n_sources,)."""


class CSROperator:
    """A scipy CSR block; its pattern shares the index arrays.

    Parameters
    ----------
    csr : scipy.sparse.csr_array, shape (n_targets, n_sources)
    """

    def __init__(self, csr: sparse.csr_array) -> None:
        self.csr = csr
        self.shape: tuple[int, int] = tuple(csr.shape)

    def out_strength(self) -> FloatArray:
        """Column sums."""
        # bincount: one pass, where csr.sum(axis=0) goes through a transposed product.
        sums = np.bincount(self.csr.indices, weights=self.csr.data, minlength=self.shape[1])
        return sums.astype(self.csr.dtype)

    def in_strength(self) -> FloatArray:
        """Row sums."""
        return self.matvec(np.ones(self.shape[1], dtype=self.csr.dtype))

    def out_degree(self) -> FloatArray:
        """Entries per column."""
        return np.bincount(self.csr.indices, minlength=self.shape[1]).astype(self.csr.dtype)

    def matvec(self, x: Vector) -> FloatArray:
        """W @ x."""
        return np.asarray(self.csr @ x)

    def rmatvec(self, y: Vector) -> FloatArray:
        """W.T @ y; scipy reads the same arrays as CSC."""
        return np.asarray(self.csr.T @ y)

    def mixed_matvec(self, x: Vector, y: Vector) -> FloatArray:
        """W @ x + 1[W != 0] @ y."""
        pattern = sparse.csr_array((np.ones_like(self.csr.data), self.csr.indices, self.csr.indptr), shape=self.shape)
        return np.asarray(self.csr @ x + pattern @ y)

    def row_maxima(self, x: Vector) -> FloatArray:
        """max_j W_ij x_j."""
        found = np.zeros(self.shape[0], dtype=self.csr.dtype)
        rows = np.flatnonzero(np.diff(self.csr.indptr))
        if len(rows):
            found[rows] = np.maximum.reduceat(self.csr.data * x[self.csr.indices], self.csr.indptr[rows])
        return found

    def column_maxima(self, y: Vector) -> FloatArray:
        """max_i W_ij y_i."""
        found = np.zeros(self.shape[1], dtype=self.csr.dtype)
        np.maximum.at(found, self.csr.indices, self.csr.data * np.repeat(y, np.diff(self.csr.indptr)))
        return found


class CSRKernelOperator(CSROperator):
    """A large scipy CSR block, multiplied by :mod:`graphs.linalg.kernels` on all cores; sums in float64."""

    def matvec(self, x: Vector) -> FloatArray:
        """W @ x."""
        from graphs.linalg import kernels

        if x.ndim > 1:
            return super().matvec(x)
        csr = self.csr
        result: FloatArray = kernels.csr_products(csr.indptr, csr.indices, csr.data, x)
        return result.astype(csr.dtype, copy=False)

    def rmatvec(self, y: Vector) -> FloatArray:
        """W.T @ y."""
        from graphs.linalg import kernels

        if y.ndim > 1:
            return super().rmatvec(y)
        csr = self.csr
        result: FloatArray = kernels.csr_column_products(csr.indptr, csr.indices, csr.data, y, self.shape[1])
        return result.astype(csr.dtype, copy=False)

    def out_strength(self) -> FloatArray:
        """Column sums."""
        return self.rmatvec(np.ones(self.shape[0]))


class TorchCSROperator:
    """A torch CSR block on a device.

    Parameters
    ----------
    matrix : torch.Tensor, sparse CSR, shape (n_targets, n_sources)
    """

    def __init__(self, matrix: torch.Tensor) -> None:
        n_targets, n_sources = matrix.shape
        self.shape: tuple[int, int] = (int(n_targets), int(n_sources))
        self._matrix = matrix
        self._transposed: torch.Tensor | None = None

    def _scatter(self, values: torch.Tensor) -> torch.Tensor:
        sums = values.new_zeros(self.shape[1])
        return sums.index_add_(0, self._matrix.col_indices(), values)

    def out_strength(self) -> torch.Tensor:
        """Column sums."""
        return self._scatter(self._matrix.values())

    def in_strength(self) -> torch.Tensor:
        """Row sums."""
        return self.matvec(self._matrix.values().new_ones(self.shape[1]))

    def out_degree(self) -> torch.Tensor:
        """Entries per column."""
        return self._scatter(self._matrix.values().new_ones(self._matrix.values().shape))

    def matvec(self, x: Vector) -> torch.Tensor:
        """W @ x."""
        result: torch.Tensor = self._matrix @ x
        return result

    def rmatvec(self, y: Vector) -> torch.Tensor:
        """W.T @ y; the first call builds the CSR of W.T and keeps it: torch would convert at every product."""
        if self._transposed is None:
            self._transposed = _transposed(self._matrix)
        result: torch.Tensor = self._transposed @ y
        return result

    def mixed_matvec(self, x: Vector, y: Vector) -> torch.Tensor:
        """W @ x + 1[W != 0] @ y."""
        import torch

        matrix = self._matrix
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            pattern = torch.sparse_csr_tensor(
                matrix.crow_indices(),
                matrix.col_indices(),
                torch.ones_like(matrix.values()),
                size=matrix.shape,
                check_invariants=False,
            )
        result: torch.Tensor = matrix @ x + pattern @ y
        return result

    def _rows(self) -> torch.Tensor:
        import torch

        return torch.repeat_interleave(
            torch.arange(self.shape[0], device=self._matrix.device), self._matrix.crow_indices().diff()
        )

    def row_maxima(self, x: Vector) -> torch.Tensor:
        """max_j W_ij x_j."""
        values = self._matrix.values()
        products = values * x[self._matrix.col_indices().long()]
        return values.new_zeros(self.shape[0]).scatter_reduce_(0, self._rows(), products, "amax")

    def column_maxima(self, y: Vector) -> torch.Tensor:
        """max_i W_ij y_i."""
        values = self._matrix.values()
        products = values * y[self._rows()]
        columns = self._matrix.col_indices().long()
        return values.new_zeros(self.shape[1]).scatter_reduce_(0, columns, products, "amax")


def _transposed(matrix: torch.Tensor) -> torch.Tensor:
    """The CSR of the transpose, with int32 indices as long as they fit."""
    import torch

    rows = torch.repeat_interleave(
        torch.arange(matrix.shape[0], device=matrix.device, dtype=matrix.col_indices().dtype),
        matrix.crow_indices().diff(),
    )
    order = torch.argsort(matrix.col_indices(), stable=True)
    counts = torch.bincount(matrix.col_indices(), minlength=matrix.shape[1])
    crow = torch.cat((counts.new_zeros(1), counts.cumsum(0))).to(matrix.crow_indices().dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            crow, rows[order], matrix.values()[order], size=(matrix.shape[1], matrix.shape[0]), check_invariants=False
        )


class DenseOperator:
    """A dense block read band by band: an optimisation that gives what its CSR would give.

    Parameters
    ----------
    block : DenseBlock
    xp : module
        numpy or torch, whichever the buffers belong to.
    buffers : Buffers
        Device and dtype of the computation.
    elements : int, optional
        Entries of a band.
    """

    def __init__(self, block: DenseBlock, xp: Any, buffers: Any, elements: int | None = None) -> None:
        self.shape = block.shape
        self._block = block
        self._xp = xp
        self._buffers = buffers
        self._elements = elements

    def _bands(self) -> Any:
        return (
            self._block.bands(self._buffers)
            if self._elements is None
            else self._block.bands(self._buffers, self._elements)
        )

    def _zeros(self, size: int, like: Vector = None) -> Vector:
        width = 1 if like is None or like.ndim == 1 else like.shape[1]
        matrix = self._buffers.empty(size, width)
        matrix[:] = 0
        return matrix[:, 0] if like is None or like.ndim == 1 else matrix

    def _add_column_sums(self, total: Vector, band: Band) -> None:
        total[band.columns] += band.matrix.sum(0)

    def out_strength(self) -> Vector:
        """Column sums."""
        total = self._zeros(self.shape[1])
        for band in self._bands():
            self._add_column_sums(total, band)
        return total

    def in_strength(self) -> Vector:
        """Row sums."""
        total = self._zeros(self.shape[0])
        for band in self._bands():
            total[band.rows] += band.matrix.sum(1)
        return total

    def out_degree(self) -> Vector:
        """Non-zero entries per column."""
        total = self._zeros(self.shape[1])
        for band in self._bands():
            self._xp.sign(band.matrix, out=band.matrix)
            self._add_column_sums(total, band)
        return total

    def matvec(self, x: Vector) -> Vector:
        """W @ x."""
        result = self._zeros(self.shape[0], x)
        for band in self._bands():
            result[band.rows] += band.matrix @ x[band.columns]
        return result

    def rmatvec(self, y: Vector) -> Vector:
        """W.T @ y."""
        result = self._zeros(self.shape[1], y)
        for band in self._bands():
            result[band.columns] += band.matrix.T @ y[band.rows]
        return result

    def mixed_matvec(self, x: Vector, y: Vector) -> Vector:
        """W @ x + 1[W != 0] @ y."""
        result = self._zeros(self.shape[0])
        for band in self._bands():
            result[band.rows] += band.matrix @ x[band.columns]
            self._xp.sign(band.matrix, out=band.matrix)
            result[band.rows] += band.matrix @ y[band.columns]
        return result

    def row_maxima(self, x: Vector) -> Vector:
        """max_j W_ij x_j."""
        result = self._zeros(self.shape[0])
        for band in self._bands():
            products = band.matrix * x[band.columns]
            result[band.rows] = self._xp.maximum(result[band.rows], self._xp.amax(products, 1))
        return result

    def column_maxima(self, y: Vector) -> Vector:
        """max_i W_ij y_i."""
        result = self._zeros(self.shape[1])
        for band in self._bands():
            products = band.matrix * y[band.rows][:, None]
            result[band.columns] = self._xp.maximum(result[band.columns], self._xp.amax(products, 0))
        return result


class KernelOperator:
    """Dense weights on the CPU, read where they lie by :mod:`graphs.linalg.kernels`: one read a product, sums in float64.

    Parameters
    ----------
    matrices : tuple of one or two C-contiguous arrays
        float32, float64, or uint16 for the bits of bfloat16; absolute values add up.
    transposed : bool
        Whether the block is the transpose of the matrices (column-major weights).
    block : DenseBlock
        The same weights, for products with several vectors, which are matrix products of bands.
    dtype : str
        Of the vectors.
    """

    def __init__(self, matrices: tuple[FloatArray, ...], transposed: bool, block: DenseBlock, dtype: str) -> None:
        self.shape = block.shape
        self._matrices = matrices
        self._is_transposed = transposed
        self._dtype = np.dtype(dtype)
        self._bands = DenseOperator(block, np, NumpyBuffers(self._dtype))

    def _product(self, x: Vector, transpose: bool) -> FloatArray:
        from graphs.linalg import kernels

        kernel = kernels.column_products if transpose != self._is_transposed else kernels.row_products
        result: FloatArray = kernel(self._matrices, x).astype(self._dtype, copy=False)
        return result

    def out_strength(self) -> FloatArray:
        """Column sums."""
        return self._product(np.ones(self.shape[0]), transpose=True)

    def in_strength(self) -> FloatArray:
        """Row sums."""
        return self._product(np.ones(self.shape[1]), transpose=False)

    def out_degree(self) -> FloatArray:
        """Non-zero entries per column."""
        from graphs.linalg import kernels

        if self._is_transposed:
            return np.asarray(self._bands.out_degree())
        counts: FloatArray = kernels.column_counts(self._matrices).astype(self._dtype, copy=False)
        return counts

    def matvec(self, x: Vector) -> FloatArray:
        """W @ x."""
        return self._product(x, transpose=False) if x.ndim == 1 else np.asarray(self._bands.matvec(x))

    def rmatvec(self, y: Vector) -> FloatArray:
        """W.T @ y."""
        return self._product(y, transpose=True) if y.ndim == 1 else np.asarray(self._bands.rmatvec(y))

    def mixed_matvec(self, x: Vector, y: Vector) -> FloatArray:
        """W @ x + 1[W != 0] @ y."""
        from graphs.linalg import kernels

        if self._is_transposed:
            return np.asarray(self._bands.mixed_matvec(x, y))
        result: FloatArray = kernels.row_products_mixed(self._matrices, x, y).astype(self._dtype, copy=False)
        return result

    def row_maxima(self, x: Vector) -> FloatArray:
        """max_j W_ij x_j."""
        return np.asarray(self._bands.row_maxima(x))

    def column_maxima(self, y: Vector) -> FloatArray:
        """max_i W_ij y_i."""
        return np.asarray(self._bands.column_maxima(y))
