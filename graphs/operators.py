"""Operators: how a block multiplies a vector.

One protocol, :class:`BlockOperator`, with three implementations: scipy CSR, torch CSR (CPU, CUDA),
and dense bands. Solvers see the protocol only.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from scipy import sparse

from graphs.blocks import Band, DenseBlock, FloatArray

if TYPE_CHECKING:
    import torch

__all__ = ["BlockOperator", "CSROperator", "DenseOperator", "TorchCSROperator", "Vector"]

# A numpy array or a torch tensor: solvers use only what the two share (+, *, sum, abs, slicing).
Vector: TypeAlias = Any


class BlockOperator(Protocol):
    """A block W (n_targets x n_sources) that multiplies vectors, and its twin 1[W != 0]."""

    shape: tuple[int, int]

    def out_strength(self) -> Vector:
        """Column sums of W, (n_sources,)."""

    def out_degree(self) -> Vector:
        """Number of non-zero entries of every column, (n_sources,)."""

    def matvec(self, x: Vector) -> Vector:
        """W @ x, (n_targets,)."""

    def mixed_matvec(self, x: Vector, y: Vector) -> Vector:
        """W @ x + 1[W != 0] @ y, (n_targets,), in one pass over the block."""


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

    def out_degree(self) -> FloatArray:
        """Entries per column."""
        return np.bincount(self.csr.indices, minlength=self.shape[1]).astype(self.csr.dtype)

    def matvec(self, x: Vector) -> FloatArray:
        """W @ x."""
        return np.asarray(self.csr @ x)

    def mixed_matvec(self, x: Vector, y: Vector) -> FloatArray:
        """W @ x + 1[W != 0] @ y."""
        pattern = sparse.csr_array((np.ones_like(self.csr.data), self.csr.indices, self.csr.indptr), shape=self.shape)
        return np.asarray(self.csr @ x + pattern @ y)


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

    def _scatter(self, values: torch.Tensor) -> torch.Tensor:
        sums = values.new_zeros(self.shape[1])
        return sums.index_add_(0, self._matrix.col_indices(), values)

    def out_strength(self) -> torch.Tensor:
        """Column sums."""
        return self._scatter(self._matrix.values())

    def out_degree(self) -> torch.Tensor:
        """Entries per column."""
        return self._scatter(self._matrix.values().new_ones(self._matrix.values().shape))

    def matvec(self, x: Vector) -> torch.Tensor:
        """W @ x."""
        result: torch.Tensor = self._matrix @ x
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

    def _zeros(self, size: int) -> Vector:
        vector = self._buffers.empty(1, size)[0]
        vector[:] = 0
        return vector

    def _add_column_sums(self, total: Vector, band: Band) -> None:
        total[band.columns] += band.matrix.sum(0)

    def out_strength(self) -> Vector:
        """Column sums."""
        total = self._zeros(self.shape[1])
        for band in self._bands():
            self._add_column_sums(total, band)
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
        result = self._zeros(self.shape[0])
        for band in self._bands():
            result[band.rows] += band.matrix @ x[band.columns]
        return result

    def mixed_matvec(self, x: Vector, y: Vector) -> Vector:
        """W @ x + 1[W != 0] @ y."""
        result = self._zeros(self.shape[0])
        for band in self._bands():
            result[band.rows] += band.matrix @ x[band.columns]
            self._xp.sign(band.matrix, out=band.matrix)
            result[band.rows] += band.matrix @ y[band.columns]
        return result
