"""Validation of weights: whatever a user passes becomes a valid block, or a GraphError says why not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from graphs.errors import GraphError
from graphs.linalg.blocks import Block, DenseBlock, FloatArray, SparseBlock, as_numpy, index_dtype, is_torch

__all__ = ["as_block", "as_csr", "as_vector", "check_compressed"]

COMPRESSED = {"csr": sparse.csr_array, "csc": sparse.csc_array, "bsr": sparse.bsr_array}


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
        device), differing shapes in a tuple, NaN or Inf, or a sparse matrix with damaged index arrays.

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
    matrices = tuple(part if _is_sparse(part) else _dense(part, name) for part in parts)
    for matrix in matrices:
        _refuse_other_shape(matrix, matrices[0], name)
    if any(_is_sparse(matrix) for matrix in matrices):
        total = _canonical(as_csr(matrices[0], name), name)
        for matrix in matrices[1:]:
            total = _canonical(total + _canonical(as_csr(matrix, name), name), name)
        return SparseBlock(total)
    if check_finite:
        for matrix in matrices:
            check_finite_entries(matrix, name)
    return DenseBlock(matrices)


def check_finite_entries(matrix: Any, name: str) -> None:
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


def _dense(value: Any, name: str) -> Any:
    """A dense matrix in a floating dtype, an array or a tensor; its numbers are not looked at."""
    try:
        matrix = value.detach() if is_torch(value) else np.asarray(value)
    except ValueError as error:
        raise GraphError(f"{name}: expected a matrix with rows of one length, got {error}") from error
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise GraphError(
            f"{name}: expected a matrix of shape (targets, sources), both at least 1, got {matrix.ndim} dimensions "
            f"with shape {tuple(matrix.shape)}"
        )
    return _floating(matrix, name)


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


def as_csr(value: Any, name: str) -> sparse.csr_array:
    """A matrix in scipy's CSR form, once its index arrays are known to be sound.

    scipy and torch follow the index arrays of a sparse matrix unchecked, in compiled code: one entry out of range reads or
    writes memory of something else.

    Parameters
    ----------
    value : scipy sparse matrix of any format, torch tensor (dense, COO, CSR, CSC or BSR), or (m, n) array
    name : str
        How messages call the matrix.

    Returns
    -------
    scipy.sparse.csr_array, shape (m, n)
        It may share memory with `value`. Duplicates of a COO matrix are added up; otherwise duplicates, zeros and the order of
        columns are left as they are.

    Raises
    ------
    GraphError
        Not two-dimensional, a side of length zero, not real, or index arrays that do not fit the matrix.

    Notes
    -----
    Cost: one read of the index arrays, besides a conversion.

    Examples
    --------
    >>> damaged = sparse.csr_array([[1.0, 2.0]])
    >>> damaged.indices[1] = 7
    >>> as_csr(damaged, "block 1")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: block 1: the CSR matrix is damaged: expected column indices from 0 to 1, got 7 at entry 1; ...
    """
    if not _is_sparse(value):
        return sparse.csr_array(as_numpy(value))
    if value.ndim != 2 or 0 in value.shape:
        raise GraphError(
            f"{name}: expected a sparse matrix of shape (targets, sources), both at least 1, got shape {tuple(value.shape)}"
        )
    kind, parts = (_torch_parts if is_torch(value) else _scipy_parts)(value, name)
    if parts[0].dtype.kind not in "biuf":
        raise GraphError(f"{name}: expected real numbers, got dtype {parts[0].dtype}")
    shape = (int(value.shape[0]), int(value.shape[1]))
    if kind == "coo":
        _check_coordinates(parts, shape, name)
        # Duplicates are added up: small integers would overflow.
        values = parts[0] if parts[0].dtype in (np.float32, np.float64) else parts[0].astype(np.float64)
        return sparse.csr_array(sparse.coo_array((values, tuple(parts[1:])), shape=shape))
    check_compressed(kind, parts, shape, name)
    return sparse.csr_array(COMPRESSED[kind](tuple(parts), shape=shape))


def _scipy_parts(value: Any, name: str) -> tuple[str, list[npt.NDArray[Any]]]:
    """A format with index arrays, and the arrays that make up the matrix in it: the values, then the indices."""
    if value.format in COMPRESSED:
        return value.format, [np.asarray(part) for part in (value.data, value.indices, value.indptr)]
    if value.format == "lil":
        # Not its tocsr(), which trusts the two lists of every row to be of one length.
        lengths, of_values = (np.fromiter(map(len, lists), np.int64, len(lists)) for lists in (value.rows, value.data))
        if not np.array_equal(lengths, of_values):
            raise _damaged(name, "lil", "expected as many columns as values in every row")
        count = int(lengths.sum())
        values, columns = (itertools.chain.from_iterable(lists) for lists in (value.data, value.rows))
        pointers = np.concatenate(([0], np.cumsum(lengths)))
        return "csr", [np.fromiter(values, value.dtype, count), np.fromiter(columns, np.int64, count), pointers]
    try:
        if value.format == "dia":
            # Its constructor checks that the diagonals are as many as the offsets; its conversion does not.
            value = sparse.dia_array((value.data, value.offsets), shape=value.shape)
        coo = value.tocoo()
    except (IndexError, ValueError) as error:
        raise _damaged(name, value.format, str(error)) from error
    return "coo", [np.asarray(part) for part in (coo.data, *coo.coords)]


def _torch_parts(value: Any, name: str) -> tuple[str, list[npt.NDArray[Any]]]:
    """As :func:`_scipy_parts`, of a sparse tensor."""
    kind = str(value.layout).removeprefix("torch.sparse_").removeprefix("torch.sparse")
    tensor = value.detach()
    if kind in ("", "coo"):
        return "coo", [as_numpy(tensor._values()), *as_numpy(tensor._indices())]
    if kind in ("csr", "bsr"):
        return kind, [as_numpy(part) for part in (tensor.values(), tensor.col_indices(), tensor.crow_indices())]
    if kind == "csc":
        return kind, [as_numpy(part) for part in (tensor.values(), tensor.row_indices(), tensor.ccol_indices())]
    raise GraphError(f"{name}: expected a dense, COO, CSR, CSC or BSR tensor, got {value.layout}; convert it to one")


def check_compressed(kind: str, parts: Sequence[npt.NDArray[Any]], shape: tuple[int, int], name: str) -> None:
    """Raise unless the arrays of a compressed matrix fit it: what scipy's ``check_format`` asks, and what it leaves out.

    That method changes the matrix it checks, and looks at no index where the last index pointer is 0 or negative.

    Parameters
    ----------
    kind : {"csr", "csc", "bsr"}
    parts : sequence of three arrays
        data (k,), or (k, rows, columns) of a BSR matrix; indices (k,); index pointers (rows + 1,), or (columns + 1,) of a CSC.
    shape : tuple of int
        Of the matrix.
    name : str
        How messages call the matrix.

    Raises
    ------
    GraphError
        Index arrays of another dtype or shape, index pointers that do not rise from 0 to k, or indices out of range.

    Notes
    -----
    Cost: one read of the index arrays.

    Examples
    --------
    >>> check_compressed("csr", [np.ones(2), np.array([0, 1]), np.array([0, 2])], (1, 2), "block 1")
    """
    data, indices, pointers = parts
    block = data.shape[1:] if kind == "bsr" else (1, 1)
    if data.ndim != (3 if kind == "bsr" else 1) or 0 in block or shape[0] % block[0] or shape[1] % block[1]:
        raise _damaged(
            name, kind, f"expected the values of a matrix of shape {shape}, got an array of shape {data.shape}"
        )
    n_major, n_minor = (shape[0] // block[0], shape[1] // block[1])[:: -1 if kind == "csc" else 1]
    if pointers.shape != (n_major + 1,) or pointers.dtype.kind not in "iu":
        expected = f"expected {n_major + 1} integers as index pointers"
        raise _damaged(name, kind, f"{expected}, got {pointers.dtype} of shape {pointers.shape}")
    if len(data) != len(indices) or pointers[0] != 0 or pointers[-1] != len(indices):
        raise _damaged(
            name,
            kind,
            f"expected index pointers from 0 to the number of values and of indices, got pointers from {pointers[0]} to "
            f"{pointers[-1]}, {len(data)} values and {len(indices)} indices",
        )
    falls = np.flatnonzero(pointers[1:] < pointers[:-1])
    if len(falls):
        at = int(falls[0])
        raise _damaged(
            name,
            kind,
            f"expected index pointers that never fall, got {pointers[at]} and then {pointers[at + 1]} at {at + 1}",
        )
    _refuse_outside(indices, n_minor, "row" if kind == "csc" else "column", kind, name)


def _check_coordinates(parts: Sequence[npt.NDArray[Any]], shape: tuple[int, int], name: str) -> None:
    data, *coordinates = parts
    if len(coordinates) != 2 or data.ndim != 1 or any(len(places) != len(data) for places in coordinates):
        sizes = ", ".join(str(places.shape) for places in coordinates)
        raise _damaged(
            name,
            "coo",
            f"expected a row and a column for every value, got values of shape {data.shape} and indices of {sizes}",
        )
    for places, limit, what in zip(coordinates, shape, ("row", "column"), strict=True):
        _refuse_outside(places, limit, what, "coo", name)


def _refuse_outside(indices: npt.NDArray[Any], limit: int, what: str, kind: str, name: str) -> None:
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise _damaged(
            name, kind, f"expected integer {what} indices (k,), got {indices.dtype} of shape {indices.shape}"
        )
    # Read as unsigned, negative indices are high ones: one pass finds both.
    unsigned = indices.view(indices.dtype.str.replace("i", "u"))
    if len(unsigned) and int(unsigned.max()) >= limit:
        at = int(np.argmax(unsigned >= limit))
        raise _damaged(name, kind, f"expected {what} indices from 0 to {limit - 1}, got {indices[at]} at entry {at}")


def _damaged(name: str, kind: str, reason: str) -> GraphError:
    return GraphError(
        f"{name}: the {kind.upper()} matrix is damaged: {reason}; build it anew, such as by "
        "scipy.sparse.coo_array((values, (rows, columns)), shape)"
    )


def _canonical(csr: sparse.csr_array, name: str) -> sparse.csr_array:
    """A copy with absolute float values, sorted, without duplicates or zeros, int32 where it fits."""
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


def as_vector(values: Any, name: str) -> FloatArray:
    """Numbers of one layer's nodes.

    Parameters
    ----------
    values : (n,) array-like or torch tensor
        Real and finite, n >= 1.
    name : str
        How messages call them.

    Returns
    -------
    (n,) float64 array
        A copy.

    Raises
    ------
    GraphError
        Not real, not one-dimensional, empty or not finite.

    Examples
    --------
    >>> as_vector([1, 2], "scores")
    array([1., 2.])
    >>> as_vector([1, float("nan")], "scores")
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: scores: expected finite numbers, got nan at node 1
    """
    try:
        given = as_numpy(values)
        if given.dtype.kind not in "biuf":
            raise TypeError(f"dtype {given.dtype}")
    except (TypeError, ValueError) as error:
        raise GraphError(f"{name}: expected real numbers (n,), got {type(values).__name__}: {error}") from error
    if given.ndim != 1 or not len(given):
        raise GraphError(f"{name}: expected one number a node, shape (n,) with n >= 1, got shape {given.shape}")
    array: FloatArray = given.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise GraphError(f"{name}: expected finite numbers, got {array[bad[0]]} at node {bad[0]}")
    return array
