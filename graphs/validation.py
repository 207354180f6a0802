"""The door for weights: whatever a user hands over -> a valid block, or a GraphError that says why not."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from graphs.blocks import Block, DenseBlock, SparseBlock, as_numpy, index_dtype, is_torch
from graphs.errors import GraphError

__all__ = ["as_block"]


def as_block(value: Any, name: str, check_finite: bool = True) -> Block:
    """Validate one block of weights and wrap it.

    Parameters
    ----------
    value : array-like, torch tensor (dense or sparse), scipy sparse matrix, or a tuple of dense ones
        Shape (n_targets, n_sources). A tuple holds parallel edges, whose absolute values add up.
    name : str
        How messages call the block.
    check_finite : bool
        Read every dense weight once to refuse NaN and Inf now; without it they are found at the
        first product. Sparse weights are always checked.

    Raises
    ------
    GraphError
        Not two-dimensional, a side of length zero, complex or not numeric, without data (meta
        device), differing shapes in a tuple, NaN or Inf.

    Examples
    --------
    >>> as_block([[1, -2], [0, 3]], "block 1").to_csr().toarray()  # doctest: +ELLIPSIS
    array([[1., 2.],
           [0., 3.]])
    >>> as_block([[1.0, float("nan")]], "block 1")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: block 1: 1 weight(s) are not finite, the first at row 0, column 1 (nan); expected finite ...
    """
    parts = value if isinstance(value, tuple) else (value,)
    if not parts:
        raise GraphError(f"{name}: expected at least one matrix in the tuple of parallel edges, got an empty tuple")
    if any(is_torch(part) and part.is_meta for part in parts):
        raise GraphError(f"{name}: the weights lie on the meta device and have no numbers; load the model first")
    if len(parts) == 1 and _is_sparse(parts[0]):
        return SparseBlock(_canonical(_to_scipy(parts[0]), name))
    if any(_is_sparse(part) for part in parts):
        canonical = [_canonical(_to_scipy(part), name) for part in parts]
        total = canonical[0]
        for addend in canonical[1:]:
            _refuse_other_shape(addend, total, name)
            total = total + addend
        return SparseBlock(_canonical(total, name))
    matrices = tuple(part.detach() if is_torch(part) else _as_array(part, name) for part in parts)
    for matrix in matrices:
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise GraphError(
                f"{name}: expected a matrix of shape (targets, sources), both at least 1, got {matrix.ndim} dimensions "
                f"with shape {tuple(matrix.shape)}"
            )
        _refuse_other_shape(matrix, matrices[0], name)
    matrices = tuple(_floating(matrix, name) for matrix in matrices)
    if check_finite:
        for matrix in matrices:
            refuse_nonfinite(matrix, name)
    return DenseBlock(matrices)


def refuse_nonfinite(matrix: Any, name: str) -> None:
    """Raise a GraphError that locates the first NaN or Inf of a dense matrix. Cost: one read.

    NaN and Inf survive sums and extremes, so these are read first and the entries only where they are not finite.
    """
    if is_torch(matrix) and matrix.itemsize < 4:
        # A half sum overflows, a wider one copies the matrix; the extremes do neither. 8 bits know no extremes.
        extremes = (matrix.float() if matrix.itemsize == 1 else matrix).aminmax()
        finite = bool(np.isfinite(float(extremes.min)) and np.isfinite(float(extremes.max)))
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            finite = bool(np.isfinite(float(matrix.sum())))
    if finite:
        return
    array = as_numpy(matrix)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        row, column = (int(k) for k in bad[0])
        raise GraphError(
            f"{name}: {len(bad)} weight(s) are not finite, the first at row {row}, column {column} "
            f"({array[row, column]}); expected finite numbers: repair or reload the model"
        )


def _as_array(value: Any, name: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise GraphError(f"{name}: expected a matrix with rows of one length, got {error}") from error


def _refuse_other_shape(matrix: Any, first: Any, name: str) -> None:
    if tuple(matrix.shape) != tuple(first.shape):
        raise GraphError(
            f"{name}: parallel edges need matrices of one shape, got {tuple(first.shape)} and {tuple(matrix.shape)}"
        )


def _floating(matrix: Any, name: str) -> Any:
    if is_torch(matrix):
        if matrix.is_complex() or matrix.is_quantized:
            raise GraphError(f"{name}: expected real floating-point weights, got {matrix.dtype}; dequantise them first")
        return matrix if matrix.is_floating_point() else matrix.float()
    if matrix.dtype.kind not in "biuf":
        raise GraphError(f"{name}: expected real numbers, got dtype {matrix.dtype}")
    if matrix.dtype == np.float16:
        return matrix.astype(np.float32)
    # Other byte orders and long doubles as well as integers: torch can view none of them.
    return matrix if matrix.dtype in (np.float32, np.float64) else matrix.astype(np.float64)


def _is_sparse(value: Any) -> bool:
    if is_torch(value):
        return str(value.layout) != "torch.strided"
    return bool(sparse.issparse(value))


def _to_scipy(value: Any) -> sparse.csr_array:
    if not is_torch(value):
        return sparse.csr_array(value)
    if not _is_sparse(value):
        return sparse.csr_array(as_numpy(value))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        tensor = value.detach().to_sparse_csr()
    return sparse.csr_array(
        (as_numpy(tensor.values()), as_numpy(tensor.col_indices()), as_numpy(tensor.crow_indices())),
        shape=tuple(tensor.shape),
    )


def _canonical(csr: sparse.csr_array, name: str) -> sparse.csr_array:
    """A copy with absolute float values, sorted, without duplicates or zeros, int32 where it fits."""
    if csr.ndim != 2 or 0 in csr.shape:
        raise GraphError(
            f"{name}: expected a sparse matrix of shape (targets, sources), both at least 1, got shape {csr.shape}"
        )
    if csr.dtype.kind not in "biuf":
        raise GraphError(f"{name}: expected real numbers, got dtype {csr.dtype}")
    kind = csr.dtype if csr.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    clean = sparse.csr_array((csr.data.astype(kind), csr.indices.copy(), csr.indptr.copy()), shape=csr.shape)
    bad = np.flatnonzero(~np.isfinite(clean.data))
    if len(bad):
        row = int(np.searchsorted(clean.indptr, bad[0], side="right")) - 1
        raise GraphError(
            f"{name}: {len(bad)} weight(s) are not finite, the first at row {row}, column "
            f"{int(clean.indices[bad[0]])}; expected finite numbers"
        )
    clean.sum_duplicates()
    np.abs(clean.data, out=clean.data)
    clean.eliminate_zeros()
    clean.sort_indices()
    width = index_dtype(clean.shape[1], clean.nnz)
    return sparse.csr_array(
        (clean.data, clean.indices.astype(width, copy=False), clean.indptr.astype(width, copy=False)),
        shape=clean.shape,
    )
