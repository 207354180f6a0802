"""Compiled kernels (numba): products with dense weights read where they lie, CSR products, Gauss-Seidel.

numpy and torch multiply a float64 vector only with a float64 matrix: float32 and bfloat16 weights must be
widened into a copy first, and made non-negative in another pass. These kernels do both in registers, so that a product
costs one read of the weights in their own width, and sums are float64 whatever the width.

numba compiles a kernel at its first call and keeps the result on disk; import this module only when it is needed.

Weights come as one or two C-contiguous matrices (parallel edges add up) of float32, float64, or of uint16, which
stands for the bits of bfloat16.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import overload

__all__ = [
    "column_counts",
    "column_products",
    "csr_column_products",
    "csr_products",
    "gauss_seidel",
    "row_products",
    "row_products_mixed",
]

Array = npt.NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])

# Only sums may be reordered (that is what lets them vectorise): NaN and Inf keep their meaning.
REORDER = {"reassoc", "contract", "nsz"}

# numba's OpenMP layer sets the number of threads of the whole process, torch's too, and leaves its own spinning
# between calls. Where no thread was started yet, its own pool comes before it.
_CONFIG: Any = numba.config
if _CONFIG.THREADING_LAYER_PRIORITY == ["tbb", "omp", "workqueue"]:
    _CONFIG.THREADING_LAYER_PRIORITY = ["tbb", "workqueue", "omp"]

# That pool must not be entered twice at once.
_LOCK = threading.Lock()


def _compiled(**options: Any) -> Callable[[Function], Function]:
    """Njit with a cache on disk where there is a place for one."""

    def decorate(function: Function) -> Function:
        try:
            return numba.njit(cache=True, fastmath=REORDER, **options)(function)  # type: ignore[no-any-return]
        except RuntimeError:  # no writable directory for the cache
            return numba.njit(fastmath=REORDER, **options)(function)  # type: ignore[no-any-return]

    return decorate


def _magnitude(value: Any) -> Any:
    """|value| in float64; a uint16 is read as the bits of a bfloat16."""
    raise NotImplementedError


@overload(_magnitude, inline="always", strict=False)
def _magnitude_of(value: Any) -> Any:
    if value == types.uint16:
        # bfloat16 is the upper half of float32, and without its first bit it is non-negative.
        return lambda value: np.float64(np.uint32(np.uint32(value & 0x7FFF) << 16).view(np.float32))
    return lambda value: np.float64(abs(value))


@_compiled(parallel=True)
def _row_products_1(first: Array, x: Array, out: Array) -> None:
    n_rows, n_columns = first.shape
    for i in numba.prange(n_rows):
        total = 0.0
        for j in range(n_columns):
            total += _magnitude(first[i, j]) * x[j]
        out[i] = total


@_compiled(parallel=True)
def _row_products_2(first: Array, second: Array, x: Array, out: Array) -> None:
    n_rows, n_columns = first.shape
    for i in numba.prange(n_rows):
        total = 0.0
        for j in range(n_columns):
            total += (_magnitude(first[i, j]) + _magnitude(second[i, j])) * x[j]
        out[i] = total


@_compiled(parallel=True)
def _column_products_1(first: Array, y: Array, partial: Array) -> None:
    n_rows, n_columns = first.shape
    n_parts = partial.shape[0]
    for part in numba.prange(n_parts):
        total = partial[part]
        for i in range(n_rows * part // n_parts, n_rows * (part + 1) // n_parts):
            factor = y[i]
            for j in range(n_columns):
                total[j] += _magnitude(first[i, j]) * factor


@_compiled(parallel=True)
def _column_products_2(first: Array, second: Array, y: Array, partial: Array) -> None:
    n_rows, n_columns = first.shape
    n_parts = partial.shape[0]
    for part in numba.prange(n_parts):
        total = partial[part]
        for i in range(n_rows * part // n_parts, n_rows * (part + 1) // n_parts):
            factor = y[i]
            for j in range(n_columns):
                total[j] += (_magnitude(first[i, j]) + _magnitude(second[i, j])) * factor


@_compiled(parallel=True)
def _row_products_mixed_2(first: Array, second: Array, x: Array, y: Array, out: Array) -> None:
    n_rows, n_columns = first.shape
    for i in numba.prange(n_rows):
        total = 0.0
        for j in range(n_columns):
            weight = _magnitude(first[i, j]) + _magnitude(second[i, j])
            total += weight * x[j] + (y[j] if weight != 0.0 else 0.0)
        out[i] = total


@_compiled(parallel=True)
def _row_products_mixed_1(first: Array, x: Array, y: Array, out: Array) -> None:
    n_rows, n_columns = first.shape
    for i in numba.prange(n_rows):
        total = 0.0
        for j in range(n_columns):
            weight = _magnitude(first[i, j])
            total += weight * x[j] + (y[j] if weight != 0.0 else 0.0)
        out[i] = total


@_compiled(parallel=True)
def _column_counts(first: Array, second: Array, partial: Array) -> None:
    n_rows, n_columns = first.shape
    n_parts = partial.shape[0]
    for part in numba.prange(n_parts):
        total = partial[part]
        for i in range(n_rows * part // n_parts, n_rows * (part + 1) // n_parts):
            for j in range(n_columns):
                total[j] += 1.0 if _magnitude(first[i, j]) + _magnitude(second[i, j]) != 0.0 else 0.0


@_compiled(parallel=True)
def _csr_products(indptr: Array, indices: Array, data: Array, x: Array, cuts: Array, out: Array) -> None:
    for part in numba.prange(len(cuts) - 1):
        for i in range(cuts[part], cuts[part + 1]):
            total = 0.0
            for place in range(indptr[i], indptr[i + 1]):
                total += data[place] * x[indices[place]]
            out[i] = total


@_compiled(parallel=True)
def _csr_column_products(indptr: Array, indices: Array, data: Array, y: Array, cuts: Array, partial: Array) -> None:
    for part in numba.prange(len(cuts) - 1):
        total = partial[part]
        for i in range(cuts[part], cuts[part + 1]):
            factor = y[i]
            for place in range(indptr[i], indptr[i + 1]):
                total[indices[place]] += data[place] * factor


@_compiled()
def _gauss_seidel(
    indptr: Array, indices: Array, data: Array, scale: Array, order: Array, gamma: float, jump: Array, x: Array
) -> None:
    for position in range(len(order)):
        i = order[position]
        total, own = jump[i], 0.0
        for place in range(indptr[i], indptr[i + 1]):
            j = indices[place]
            weight = gamma * data[place] * scale[j]
            if j == i:
                own += weight
            else:
                total += weight * x[j]
        x[i] = total / (1.0 - own)


def _vector(x: Array) -> Array:
    """As the kernels take it: every other type or layout would compile them once more."""
    return np.ascontiguousarray(x, dtype=np.float64)


def row_products(matrices: tuple[Array, ...], x: Array) -> Array:
    """Sum_j w_ij x_j, (n_rows,) float64, with w the sum of the matrices' magnitudes. One read."""
    out = np.empty(matrices[0].shape[0])
    with _LOCK:
        if len(matrices) == 1:
            _row_products_1(matrices[0], _vector(x), out)
        else:
            _row_products_2(matrices[0], matrices[1], _vector(x), out)
    return out


def column_products(matrices: tuple[Array, ...], y: Array) -> Array:
    """Sum_i w_ij y_i, (n_columns,) float64. One read; one accumulator a thread."""
    partial = np.zeros((numba.get_num_threads(), matrices[0].shape[1]))
    with _LOCK:
        if len(matrices) == 1:
            _column_products_1(matrices[0], _vector(y), partial)
        else:
            _column_products_2(matrices[0], matrices[1], _vector(y), partial)
    total: Array = partial.sum(axis=0)
    return total


def row_products_mixed(matrices: tuple[Array, ...], x: Array, y: Array) -> Array:
    """Sum_j w_ij x_j + 1[w_ij != 0] y_j, (n_rows,) float64. One read."""
    out = np.empty(matrices[0].shape[0])
    with _LOCK:
        if len(matrices) == 1:
            _row_products_mixed_1(matrices[0], _vector(x), _vector(y), out)
        else:
            _row_products_mixed_2(matrices[0], matrices[1], _vector(x), _vector(y), out)
    return out


def column_counts(matrices: tuple[Array, ...]) -> Array:
    """Non-zero weights of every column, (n_columns,) float64. One read."""
    partial = np.zeros((numba.get_num_threads(), matrices[0].shape[1]))
    with _LOCK:
        _column_counts(matrices[0], matrices[-1], partial)
    total: Array = partial.sum(axis=0)
    return total


def _cuts(indptr: Array, parts: int) -> Array:
    """Rows at which `parts` pieces of about as many entries begin, and the end."""
    wanted = np.linspace(0, int(indptr[-1]), parts + 1)
    cuts = np.searchsorted(indptr, wanted)
    cuts[0], cuts[-1] = 0, len(indptr) - 1
    return cuts


def csr_products(indptr: Array, indices: Array, data: Array, x: Array) -> Array:
    """W @ x of a CSR matrix, (n_rows,) float64, on all threads."""
    out = np.empty(len(indptr) - 1)
    with _LOCK:
        # More pieces than threads: rows of few entries cost more than their share.
        _csr_products(indptr, indices, data, _vector(x), _cuts(indptr, 8 * numba.get_num_threads()), out)
    return out


def csr_column_products(indptr: Array, indices: Array, data: Array, y: Array, n_columns: int) -> Array:
    """W.T @ y of a CSR matrix, (n_columns,) float64, on all threads; one accumulator a thread."""
    parts = numba.get_num_threads()
    partial = np.zeros((parts, n_columns))
    with _LOCK:
        _csr_column_products(indptr, indices, data, _vector(y), _cuts(indptr, parts), partial)
    total: Array = partial.sum(axis=0)
    return total


def gauss_seidel(
    indptr: Array, indices: Array, data: Array, scale: Array, order: Array, gamma: float, jump: Array, x: Array
) -> None:
    """One Gauss-Seidel pass over x = jump + gamma W diag(scale) x, in place and in `order`. Sequential.

    Parameters
    ----------
    indptr, indices, data : CSR of W, (n, n), row = target
    scale : (n,) float64
        One over the out-strengths.
    order : (n,) integers
        Which node after which.
    gamma : float
    jump, x : (n,) float64
    """
    _gauss_seidel(indptr, indices, data, _vector(scale), order, gamma, _vector(jump), x)
