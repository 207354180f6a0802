"""Validation of weights and vectors: an input becomes a valid block or vector, or a GraphError says why not."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from graphs.errors import GraphError
from graphs.linalg.blocks import Block, DenseBlock, FloatArray, SparseBlock, as_numpy, is_torch, narrow_indices

__all__ = ["as_block", "as_csr", "as_real", "as_sparse_block", "as_vector", "check_compressed"]

COMPRESSED = {"csr": sparse.csr_array, "csc": sparse.csc_array, "bsr": sparse.bsr_array}


def as_block(value: Any, name: str, check_finite: bool = True) -> Block:
    """Check the weights of one block and wrap them.

    Parameters
    ----------
    value : array-like, torch tensor (dense or sparse), scipy sparse matrix, a tuple of these, or a Block
        Shape (n_targets, n_sources). A tuple holds parallel edges, whose absolute values add up. A block is returned as it is.
    name : str, for error messages
    check_finite : bool
        Whether to read dense weights once, to find NaN and Inf; otherwise the first product finds them.

    Raises
    ------
    GraphError
        The weights are not two-dimensional, have a side of length zero, are complex, quantised or not numeric, have no data
        (meta device), or hold NaN or Inf; a tuple is empty or its matrices differ in shape; or a sparse matrix has damaged
        index arrays or a layout that is not supported.

    Examples
    --------
    >>> as_block([[1, -2], [0, 3]], "block 1").to_csr().toarray()
    array([[1., 2.],
           [0., 3.]])
    >>> as_block([[1.0, float("nan")]], "block 1")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: block 1: 1 weight(s) are not finite, the first at row 0, column 1 (nan); expected finite ...
    """
    if isinstance(value, Block):
        return value
    parts = value if isinstance(value, tuple) else (value,)
    if not parts:
        raise GraphError(f"{name}: expected at least one matrix in the tuple of parallel edges, got an empty tuple")
    if any(is_torch(part) and part.is_meta for part in parts):
        raise GraphError(f"{name}: the weights are on the meta device and have no numbers; load the model first")
    matrices = tuple(part if _is_sparse(part) else _to_dense(part, name) for part in parts)
    for matrix in matrices:
        if tuple(matrix.shape) != tuple(matrices[0].shape):
            raise GraphError(
                f"{name}: expected parallel edges in matrices of one shape, got {tuple(matrices[0].shape)} and "
                f"{tuple(matrix.shape)}"
            )
    if any(_is_sparse(matrix) for matrix in matrices):
        blocks = [as_sparse_block(as_csr(matrix, name), name) for matrix in matrices]
        if len(blocks) == 1:
            return blocks[0]
        parallel = tuple(block.csr for block in blocks)
        return SparseBlock(_canonical(functools.reduce(operator.add, parallel), name), parallel)
    if check_finite:
        for matrix in matrices:
            _check_finite_entries(matrix, name)
    return DenseBlock(matrices)


def _check_finite_entries(matrix: Any, name: str) -> None:
    """Raise a GraphError that locates the first NaN or Inf of a dense matrix.

    A finite sum of all entries proves that they are finite; only without it are single entries examined. In dtypes below 32 bits,
    the minimum and the maximum take the place of the sum.
    """
    if is_torch(matrix) and matrix.itemsize < 4:
        # A sum in half precision may overflow, and a sum in a wider dtype would copy the matrix. torch has no aminmax for 8 bits.
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


def _to_dense(value: Any, name: str) -> Any:
    try:
        matrix = value.detach() if is_torch(value) else np.asarray(value)
    except ValueError as error:
        raise GraphError(f"{name}: expected a matrix with rows of one length, got {error}") from error
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise GraphError(
            f"{name}: expected a matrix of shape (targets, sources), both at least 1, got {matrix.ndim} dimensions "
            f"with shape {tuple(matrix.shape)}"
        )
    return _to_floating(matrix, name)


def _to_floating(matrix: Any, name: str) -> Any:
    if is_torch(matrix):
        if matrix.is_complex() or matrix.is_quantized:
            raise GraphError(
                f"{name}: expected real weights that are not quantised, got {matrix.dtype}; take absolute values, or "
                "dequantise them first"
            )
        return matrix if matrix.is_floating_point() else matrix.float()
    if matrix.dtype.kind not in "biuf":
        raise GraphError(f"{name}: expected real numbers, got dtype {matrix.dtype}")
    if matrix.dtype == np.float16:
        return matrix.astype(np.float32)
    # torch cannot view other byte orders and long doubles.
    return matrix if matrix.dtype in (np.float32, np.float64) else matrix.astype(np.float64)


def _is_sparse(value: Any) -> bool:
    if is_torch(value):
        return str(value.layout) != "torch.strided"
    return bool(sparse.issparse(value))


def as_csr(value: Any, name: str) -> sparse.csr_array:
    """Check the index arrays of a sparse matrix and convert it to scipy's CSR form.

    With an index out of range, the compiled code of scipy and torch would read or write outside of the arrays. Cost: one read
    of the index arrays, and the conversion.

    Parameters
    ----------
    value : scipy sparse matrix of any format, torch tensor (dense, COO, CSR, CSC or BSR), or (m, n) array
        A dense tensor or array is only converted, without any check.
    name : str, for error messages

    Returns
    -------
    scipy.sparse.csr_array, shape (m, n)
        It may share memory with `value`. It may hold explicit zeros, columns in any order, and duplicates; only the duplicates of
        a COO matrix are added up.

    Raises
    ------
    GraphError
        A sparse matrix is not two-dimensional, has a side of length zero, is not real, has a layout that is not listed, or its
        index arrays do not fit it.

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
    layout, parts = (_torch_parts if is_torch(value) else _scipy_parts)(value, name)
    if parts[0].dtype.kind not in "biuf":
        raise GraphError(f"{name}: expected real numbers, got dtype {parts[0].dtype}")
    shape = (int(value.shape[0]), int(value.shape[1]))
    if layout == "coo":
        _check_coordinates(parts, shape, name)
        # Duplicates are added up, which would overflow small integers.
        values = parts[0] if parts[0].dtype in (np.float32, np.float64) else parts[0].astype(np.float64)
        return sparse.csr_array(sparse.coo_array((values, tuple(parts[1:])), shape=shape))
    check_compressed(layout, parts, shape, name)
    matrix = COMPRESSED[layout](tuple(parts), shape=shape)
    return matrix if layout == "csr" else sparse.csr_array(matrix)


def _scipy_parts(value: Any, name: str) -> tuple[str, list[npt.NDArray[Any]]]:
    """Return "coo" with values, rows and columns, or a compressed format with values, indices and index pointers."""
    if value.format in COMPRESSED:
        return value.format, [np.asarray(part) for part in (value.data, value.indices, value.indptr)]
    if value.format == "lil":
        # tocsr() does not check that a row has as many columns as values.
        n_columns, n_values = (np.fromiter(map(len, lists), np.int64, len(lists)) for lists in (value.rows, value.data))
        if not np.array_equal(n_columns, n_values):
            raise _damage_error(name, "lil", "expected as many columns as values in every row")
        count = int(n_columns.sum())
        values, columns = (itertools.chain.from_iterable(lists) for lists in (value.data, value.rows))
        pointers = np.concatenate(([0], np.cumsum(n_columns)))
        return "csr", [np.fromiter(values, value.dtype, count), np.fromiter(columns, np.int64, count), pointers]
    try:
        if value.format == "dia":
            # The constructor checks the number of offsets; tocoo() does not.
            value = sparse.dia_array((value.data, value.offsets), shape=value.shape)
        coo = value.tocoo()
    except (IndexError, ValueError) as error:
        raise _damage_error(name, value.format, str(error)) from error
    return "coo", [np.asarray(part) for part in (coo.data, *coo.coords)]


def _torch_parts(value: Any, name: str) -> tuple[str, list[npt.NDArray[Any]]]:
    """Return the format and the arrays of a sparse tensor, as :func:`_scipy_parts` does."""
    layout = str(value.layout).removeprefix("torch.sparse_")
    tensor = value.detach()
    if layout == "coo":
        return "coo", [as_numpy(tensor._values()), *as_numpy(tensor._indices())]
    if layout in ("csr", "bsr"):
        return layout, [as_numpy(part) for part in (tensor.values(), tensor.col_indices(), tensor.crow_indices())]
    if layout == "csc":
        return layout, [as_numpy(part) for part in (tensor.values(), tensor.row_indices(), tensor.ccol_indices())]
    raise GraphError(f"{name}: expected a dense, COO, CSR, CSC or BSR tensor, got {value.layout}; convert it to one")


def check_compressed(layout: str, parts: Sequence[npt.NDArray[Any]], shape: tuple[int, int], name: str) -> None:
    """Check that the arrays of a compressed matrix fit it. Cost: one read of the index arrays.

    scipy's ``check_format`` is not enough: it changes the matrix, and does not check the indices if the last index pointer is 0
    or negative.

    Parameters
    ----------
    layout : {"csr", "csc", "bsr"}
    parts : sequence of three arrays
        Values (k,), or (k, height, width) for BSR; indices (k,); index pointers, one more than rows (BSR: rows of tiles; CSC:
        columns).
    shape : tuple of int
    name : str, for error messages

    Raises
    ------
    GraphError
        An array has a wrong shape, an index array has a wrong dtype, index pointers decrease or do not go from 0 to k, or
        indices are out of range.

    Examples
    --------
    >>> check_compressed("csr", [np.ones(2), np.array([0, 1]), np.array([0, 2])], (1, 2), "block 1")
    """
    data, indices, pointers = parts
    tile = data.shape[1:] if layout == "bsr" else (1, 1)
    if data.ndim != (3 if layout == "bsr" else 1) or 0 in tile or shape[0] % tile[0] or shape[1] % tile[1]:
        raise _damage_error(
            name, layout, f"expected the values of a matrix of shape {shape}, got an array of shape {data.shape}"
        )
    n_major, n_minor = (shape[0] // tile[0], shape[1] // tile[1])[:: -1 if layout == "csc" else 1]
    if pointers.shape != (n_major + 1,) or pointers.dtype.kind not in "iu":
        expected = f"expected {n_major + 1} integers as index pointers"
        raise _damage_error(name, layout, f"{expected}, got {pointers.dtype} of shape {pointers.shape}")
    if len(data) != len(indices) or pointers[0] != 0 or pointers[-1] != len(indices):
        raise _damage_error(
            name,
            layout,
            f"expected index pointers from 0 to the number of values and of indices, got pointers from {pointers[0]} to "
            f"{pointers[-1]}, {len(data)} values and {len(indices)} indices",
        )
    decreases = np.flatnonzero(pointers[1:] < pointers[:-1])
    if len(decreases):
        at = int(decreases[0])
        raise _damage_error(
            name,
            layout,
            f"expected index pointers that never decrease, got {pointers[at]} and then {pointers[at + 1]} at {at + 1}",
        )
    _check_indices(indices, n_minor, "row" if layout == "csc" else "column", layout, name)


def _check_coordinates(parts: Sequence[npt.NDArray[Any]], shape: tuple[int, int], name: str) -> None:
    data, *coordinates = parts
    if len(coordinates) != 2 or data.ndim != 1 or any(len(indices) != len(data) for indices in coordinates):
        sizes = ", ".join(str(indices.shape) for indices in coordinates)
        raise _damage_error(
            name,
            "coo",
            f"expected a row and a column for every value, got values of shape {data.shape} and indices of {sizes}",
        )
    for indices, limit, axis in zip(coordinates, shape, ("row", "column"), strict=True):
        _check_indices(indices, limit, axis, "coo", name)


def _check_indices(indices: npt.NDArray[Any], limit: int, axis: str, layout: str, name: str) -> None:
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise _damage_error(
            name, layout, f"expected integer {axis} indices (k,), got {indices.dtype} of shape {indices.shape}"
        )
    # As unsigned numbers, negative indices exceed all that a signed dtype can hold.
    unsigned = indices.view(indices.dtype.str.replace("i", "u"))
    bound = min(limit, np.iinfo(indices.dtype).max + 1)
    if len(unsigned) and int(unsigned.max()) >= bound:
        at = int(np.argmax(unsigned >= bound))
        raise _damage_error(
            name, layout, f"expected {axis} indices from 0 to {limit - 1}, got {indices[at]} at entry {at}"
        )


def _damage_error(name: str, layout: str, reason: str) -> GraphError:
    return GraphError(
        f"{name}: the {layout.upper()} matrix is damaged: {reason}; build it again, for example with "
        "scipy.sparse.coo_array((values, (rows, columns)), shape)"
    )


def as_sparse_block(csr: sparse.csr_array, name: str, *, copy: bool = True) -> SparseBlock:
    """Wrap the absolute weights of a CSR matrix: sorted, no duplicates, no explicit zeros, and int32 indices where they fit.

    Parameters
    ----------
    csr : scipy.sparse.csr_array
        A result of :func:`as_csr`.
    name : str, for error messages
    copy : bool
        Whether to copy a matrix that needs no change, which takes as long as all checks of it. Otherwise the result shares its
        arrays.

    Raises
    ------
    GraphError
        Weights hold NaN or Inf.

    Examples
    --------
    >>> as_sparse_block(sparse.csr_array(([-1.0, 0.0], ([0, 0], [1, 0])), (1, 2)), "block 1").csr.nnz
    1
    """
    # torch misreads strided arrays and warns of read-only ones, and numba compiles its kernels again for both.
    plain = all(part.flags.carray for part in (csr.data, csr.indices, csr.indptr))
    if plain and csr.dtype in (np.float32, np.float64) and csr.has_canonical_format:
        block = SparseBlock(narrow_indices(csr.copy() if copy else csr))
        smallest, largest = block.extremes
        if smallest > 0.0 and np.isfinite(largest):
            return block
    return SparseBlock(_canonical(csr, name))


def _canonical(csr: sparse.csr_array, name: str) -> sparse.csr_array:
    """Convert a CSR matrix as :func:`as_sparse_block` does; the result is a copy."""
    dtype = csr.dtype if csr.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    clean = sparse.csr_array((csr.data.astype(dtype), csr.indices.copy(), csr.indptr.copy()), shape=csr.shape)
    clean.sum_duplicates()
    with np.errstate(over="ignore", invalid="ignore"):
        finite = bool(np.isfinite(clean.data.sum()))  # a finite sum proves it in one pass
    bad = np.flatnonzero(~np.isfinite(clean.data)) if not finite else np.zeros(0, dtype=np.int64)
    if len(bad):
        row = int(np.searchsorted(clean.indptr, bad[0], side="right")) - 1
        raise GraphError(
            f"{name}: {len(bad)} weight(s) are not finite, the first at row {row}, column "
            f"{int(clean.indices[bad[0]])}; expected finite numbers"
        )
    np.abs(clean.data, out=clean.data)
    if not clean.data.all():
        clean.eliminate_zeros()
    return narrow_indices(clean)


def as_real(values: Any) -> FloatArray:
    """Copy an array-like or a torch tensor to a float64 array of the same shape.

    Raises
    ------
    TypeError, ValueError
        See :func:`graphs.linalg.blocks.as_numpy`; or the numbers are not real.

    Examples
    --------
    >>> as_real([[1, 2]])
    array([[1., 2.]])
    """
    given = as_numpy(values)
    if given.dtype.kind not in "biufO":
        raise TypeError(f"dtype {given.dtype}")
    return given.astype(np.float64)


def as_vector(values: Any, name: str) -> FloatArray:
    """Check numbers, one for each node of a layer, and copy them.

    Parameters
    ----------
    values : (n,) array-like or torch tensor
        Real and finite, n >= 1.
    name : str, for error messages

    Returns
    -------
    (n,) float64 array

    Raises
    ------
    GraphError
        The values are not real, not one-dimensional, empty or not finite.

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
        array = as_real(values)
    except (TypeError, ValueError) as error:
        raise GraphError(f"{name}: expected real numbers (n,), got {type(values).__name__}: {error}") from error
    if array.ndim != 1 or not len(array):
        raise GraphError(f"{name}: expected one number for each node, shape (n,) with n >= 1, got shape {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise GraphError(f"{name}: expected finite numbers, got {array[bad[0]]} at node {bad[0]}")
    return array
