"""Compiled kernels (numba): products with dense weights in their own dtype, CSR products, Gauss-Seidel, a test for cycles.

A product reads the weights once, without the float64 copy that numpy and torch would make, and its sums are float64. Import
this module only when it is needed: numba loads slowly.

Dense weights come as one or two C-contiguous matrices; a weight w_ij is the sum of their absolute values there, or of their
squares where `squared` is true. The matrices hold float32, float64, or uint16; a uint16 stands for the bits of a bfloat16, which
numpy does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import overload, register_jitable

from graphs.linalg.threads import POOL, compiled

__all__ = [
    "column_counts",
    "column_products",
    "csr_column_products",
    "csr_products",
    "gauss_seidel",
    "is_acyclic",
    "row_products",
    "row_products_mixed",
    "rows_by_length",
    "scale_and_compare",
]

Array = npt.NDArray[Any]

# A thread is used only if it gets at least this many weights; for fewer, waking it takes too long (benchmarks/threads.py).
DENSE_WEIGHTS_PER_THREAD = 1_000_000
CSR_ENTRIES_PER_THREAD = 100_000

# Dense products read so many rows at once, an equal distance apart: reading several places of the memory at once is faster than
# reading one (benchmarks/LOG.md). The loops are written out for eight.
STREAMS = 8

# Rows are sorted by length in windows of so many rows. Longer rows count as equally long: where they end matters little.
WINDOW = 128
LONG_ROW = 63


def _weight(value: Any, squared: Any) -> Any:
    """Return |value|, or its square, in float64; a uint16 holds the bits of a bfloat16. numba compiles :func:`_weight_of`."""
    raise NotImplementedError


@register_jitable
def _from_bits(bits: Any) -> Any:
    """Return a bfloat16, which is the upper half of a float32, in float64."""
    return np.float64(np.uint32(np.uint32(bits) << 16).view(np.float32))


@overload(_weight, strict=False)
def _weight_of(value: Any, squared: Any) -> Any:
    number = _from_bits if value == types.uint16 else np.float64
    # numba compiles a kernel of its own for None, in which no loop asks. It wants both arguments by their names.
    if isinstance(squared, types.NoneType):
        return lambda value, squared: abs(number(value))  # noqa: ARG005
    return lambda value, squared: number(value) ** 2  # noqa: ARG005


@register_jitable
def _eight(array: Array, i: int, apart: int) -> tuple[Any, ...]:
    """Return eight rows of a matrix, or numbers of a vector: the one at i, and those behind it at equal distances."""
    return (
        array[i],
        array[i + apart],
        array[i + 2 * apart],
        array[i + 3 * apart],
        array[i + 4 * apart],
        array[i + 5 * apart],
        array[i + 6 * apart],
        array[i + 7 * apart],
    )


@compiled
def _add_row_products(matrix: Array, x: Array, out: Array, squared: Any, start: int, stop: int) -> None:
    n_columns, apart = matrix.shape[1], (stop - start) // STREAMS
    last = start + STREAMS * apart
    for i in range(start, start + apart):
        row_0, row_1, row_2, row_3, row_4, row_5, row_6, row_7 = _eight(matrix, i, apart)
        sum_0 = sum_1 = sum_2 = sum_3 = sum_4 = sum_5 = sum_6 = sum_7 = 0.0
        for j in range(n_columns):
            sum_0 += _weight(row_0[j], squared) * x[j]
            sum_1 += _weight(row_1[j], squared) * x[j]
            sum_2 += _weight(row_2[j], squared) * x[j]
            sum_3 += _weight(row_3[j], squared) * x[j]
            sum_4 += _weight(row_4[j], squared) * x[j]
            sum_5 += _weight(row_5[j], squared) * x[j]
            sum_6 += _weight(row_6[j], squared) * x[j]
            sum_7 += _weight(row_7[j], squared) * x[j]
        out[i] += sum_0
        out[i + apart] += sum_1
        out[i + 2 * apart] += sum_2
        out[i + 3 * apart] += sum_3
        out[i + 4 * apart] += sum_4
        out[i + 5 * apart] += sum_5
        out[i + 6 * apart] += sum_6
        out[i + 7 * apart] += sum_7
    for i in range(last, stop):
        total = 0.0
        for j in range(n_columns):
            total += _weight(matrix[i, j], squared) * x[j]
        out[i] += total


@compiled
def _add_column_products(matrix: Array, y: Array, out: Array, squared: Any, start: int, stop: int) -> None:
    n_columns, apart = matrix.shape[1], (stop - start) // STREAMS
    last = start + STREAMS * apart
    for i in range(start, start + apart):
        row_0, row_1, row_2, row_3, row_4, row_5, row_6, row_7 = _eight(matrix, i, apart)
        y_0, y_1, y_2, y_3, y_4, y_5, y_6, y_7 = _eight(y, i, apart)
        for j in range(n_columns):
            out[j] += (
                _weight(row_0[j], squared) * y_0
                + _weight(row_1[j], squared) * y_1
                + _weight(row_2[j], squared) * y_2
                + _weight(row_3[j], squared) * y_3
                + _weight(row_4[j], squared) * y_4
                + _weight(row_5[j], squared) * y_5
                + _weight(row_6[j], squared) * y_6
                + _weight(row_7[j], squared) * y_7
            )
    for i in range(last, stop):
        for j in range(n_columns):
            out[j] += _weight(matrix[i, j], squared) * y[i]


@compiled
def _row_products_mixed_1(first: Array, x: Array, y: Array, out: Array, squared: Any, start: int, stop: int) -> None:
    n_columns = first.shape[1]
    for i in range(start, stop):
        total = 0.0
        for j in range(n_columns):
            weight = _weight(first[i, j], squared)
            total += weight * x[j] + (y[j] if weight != 0.0 else 0.0)
        out[i] = total


@compiled
def _row_products_mixed_2(
    first: Array, second: Array, x: Array, y: Array, out: Array, squared: Any, start: int, stop: int
) -> None:
    n_columns = first.shape[1]
    for i in range(start, stop):
        total = 0.0
        for j in range(n_columns):
            weight = _weight(first[i, j], squared) + _weight(second[i, j], squared)
            total += weight * x[j] + (y[j] if weight != 0.0 else 0.0)
        out[i] = total


@compiled
def _column_counts(first: Array, second: Array, squared: Any, total: Array, start: int, stop: int) -> None:
    n_columns = first.shape[1]
    for i in range(start, stop):
        for j in range(n_columns):
            total[j] += 1.0 if _weight(first[i, j], squared) + _weight(second[i, j], squared) != 0.0 else 0.0


@compiled
def _csr_products(indptr: Array, indices: Array, data: Array, x: Array, out: Array, start: int, stop: int) -> None:
    for i in range(start, stop):
        total = 0.0
        for place in range(indptr[i], indptr[i + 1]):
            total += data[place] * x[indices[place]]
        out[i] = total


@compiled
def _csr_column_products(
    indptr: Array, indices: Array, data: Array, y: Array, total: Array, start: int, stop: int
) -> None:
    for i in range(start, stop):
        factor = y[i]
        for place in range(indptr[i], indptr[i + 1]):
            total[indices[place]] += data[place] * factor


@compiled
def _rows_by_length(indptr: Array, ends: Array, order: Array) -> None:
    longest = len(ends) - 1
    for first in range(0, len(order), WINDOW):
        last = min(first + WINDOW, len(order))
        ends[:] = 0
        for i in range(first, last):
            ends[min(indptr[i + 1] - indptr[i], longest)] += 1
        taken = last
        for length in range(longest, -1, -1):
            taken -= ends[length]
            ends[length] = taken  # where the rows of this length begin
        for i in range(first, last):
            length = min(indptr[i + 1] - indptr[i], longest)
            order[ends[length]] = i
            ends[length] += 1


@compiled
def _gauss_seidel(
    indptr: Array,
    indices: Array,
    data: Array | None,
    order: Array | None,
    scale: Array,
    reciprocals: Array | None,
    gamma: float,
    constant: Array,
    constant_factor: float,
    before: Array,
    before_factor: float,
    x: Array,
    sent: Array,
) -> float:
    # For each argument that is None, numba compiles a kernel of its own.
    for i in range(len(x)):
        x[i] = before[i] * before_factor
        sent[i] = x[i] * scale[i]
    changes = 0.0
    for position in range(len(x)):
        # numba would add a signed number to a uint64 as floats
        i = np.int64(position) if order is None else np.int64(order[position])
        sent[i] = 0.0  # so that no branch is needed for self-loops, which are in `reciprocals`
        # Two sums, because each addition would wait for the one before it.
        even, odd = 0.0, 0.0
        place, end = np.int64(indptr[i]), np.int64(indptr[i + 1])
        if (end - place) % 2 == 1:
            odd = sent[indices[place]] * (1.0 if data is None else data[place])
            place += 1
        while place < end:
            even += sent[indices[place]] * (1.0 if data is None else data[place])
            odd += sent[indices[place + 1]] * (1.0 if data is None else data[place + 1])
            place += 2
        new = constant[i] * constant_factor + gamma * (even + odd)
        if reciprocals is not None:
            new *= reciprocals[i]
        changes += abs(new - x[i])
        x[i] = new
        sent[i] = new * scale[i]
    return changes


@compiled
def _scale_and_compare(x: Array, factor: float, before: Array) -> float:
    distance = 0.0
    for i in range(len(x)):
        x[i] *= factor
        distance += abs(x[i] - before[i])
    return distance


@compiled
def _count_removable(indptr: Array, indices: Array, out_degree: Array, queue: Array) -> int:
    """Remove nodes without outgoing edges again and again, and count the removed nodes; `out_degree` must hold zeros."""
    n_nodes, taken, queued = len(out_degree), 0, 0
    for row in range(n_nodes):
        for place in range(indptr[row], indptr[row + 1]):
            if indices[place] != row:
                out_degree[indices[place]] += 1
    for node in range(n_nodes):
        if out_degree[node] == 0:
            queue[queued] = node
            queued += 1
    while taken < queued:
        row = queue[taken]
        taken += 1
        for place in range(indptr[row], indptr[row + 1]):
            column = indices[place]
            if column != row:
                out_degree[column] -= 1
                if out_degree[column] == 0:
                    queue[queued] = column
                    queued += 1
    return queued


def _n_parts(n_rows: int, n_weights: int, per_thread: int) -> int:
    """Return the number of ranges into which rows are cut, one for each thread that has enough weights to multiply."""
    return max(1, min(POOL.size, n_rows, n_weights // per_thread))


def _even_cuts(n_rows: int, n_columns: int) -> list[int]:
    """Cut rows into about equal ranges; return the first row of every range, then `n_rows`."""
    n_parts = _n_parts(n_rows, n_rows * n_columns, DENSE_WEIGHTS_PER_THREAD)
    return [n_rows * k // n_parts for k in range(n_parts + 1)]


def _vector(x: Array) -> Array:
    """Convert a vector to float64 in C order, because numba compiles a kernel again for every other dtype or layout."""
    return np.ascontiguousarray(x, dtype=np.float64)


def _compiled_for(squared: bool) -> bool | None:
    """Return True for squares and None for absolute values, because numba compiles a kernel for each type of an argument."""
    return True if squared else None


def _accumulate(kernel: Callable[[Array, int, int], None], cuts: list[int], n_columns: int) -> Array:
    """Run a kernel with one accumulator for each range of rows, and add the accumulators up."""
    parts = np.zeros((len(cuts) - 1, n_columns))
    POOL.run(lambda start, stop, part: kernel(parts[part], start, stop), cuts)
    total: Array = parts.sum(axis=0)
    return total


def row_products(matrices: tuple[Array, ...], x: Array, squared: bool = False) -> Array:
    """Compute sum_j w_ij x_j, (n_rows,) float64. Cost: one read of the weights.

    Examples
    --------
    >>> row_products((np.array([[1.0, -2.0], [0.0, 3.0]]),), np.array([1.0, 10.0]))
    array([21., 30.])
    """
    out, vector = np.zeros(matrices[0].shape[0]), _vector(x)

    def add(start: int, stop: int, _: int) -> None:
        for matrix in matrices:
            _add_row_products(matrix, vector, out, _compiled_for(squared), start, stop)

    POOL.run(add, _even_cuts(*matrices[0].shape))
    return out


def column_products(matrices: tuple[Array, ...], y: Array, squared: bool = False) -> Array:
    """Compute sum_i w_ij y_i, (n_columns,) float64. Cost: one read of the weights.

    Examples
    --------
    >>> column_products((np.array([[1.0, -2.0], [0.0, 3.0]]),), np.array([1.0, 10.0]))
    array([ 1., 32.])
    """
    vector, (n_rows, n_columns) = _vector(y), matrices[0].shape

    def add(total: Array, start: int, stop: int) -> None:
        for matrix in matrices:
            _add_column_products(matrix, vector, total, _compiled_for(squared), start, stop)

    return _accumulate(add, _even_cuts(n_rows, n_columns), n_columns)


def row_products_mixed(matrices: tuple[Array, ...], x: Array, y: Array, squared: bool = False) -> Array:
    """Compute sum_j (w_ij x_j + 1[w_ij != 0] y_j), (n_rows,) float64. Cost: one read of the weights.

    Examples
    --------
    >>> row_products_mixed((np.array([[1.0, -2.0], [0.0, 3.0]]),), np.array([1.0, 10.0]), np.array([0.25, 0.5]))
    array([21.75, 30.5 ])
    """
    kernel: Any = _row_products_mixed_1 if len(matrices) == 1 else _row_products_mixed_2
    out = np.empty(matrices[0].shape[0])
    known = (*matrices, _vector(x), _vector(y), out, _compiled_for(squared))
    POOL.run(lambda start, stop, _: kernel(*known, start, stop), _even_cuts(*matrices[0].shape))
    return out


def column_counts(matrices: tuple[Array, ...], squared: bool = False) -> Array:
    """Count the non-zero weights of every column, (n_columns,) float64; squares may round to zero. Cost: one read of the weights.

    Examples
    --------
    >>> column_counts((np.array([[1.0, -2.0], [0.0, 3.0]]),))
    array([1., 2.])
    """
    n_rows, n_columns = matrices[0].shape
    kernel = partial(_column_counts, matrices[0], matrices[-1], _compiled_for(squared))
    return _accumulate(kernel, _even_cuts(n_rows, n_columns), n_columns)


def _entry_cuts(indptr: Array) -> list[int]:
    """Cut rows as :func:`_even_cuts` does, but into ranges with about equal numbers of entries."""
    n_rows = len(indptr) - 1
    n_parts = _n_parts(n_rows, int(indptr[-1]), CSR_ENTRIES_PER_THREAD)
    # counts need the dtype of indptr: otherwise searchsorted would convert the whole of indptr.
    counts = np.array([int(indptr[-1]) * k // n_parts for k in range(n_parts + 1)], dtype=indptr.dtype)
    cuts = np.searchsorted(indptr, counts)
    cuts[0], cuts[-1] = 0, n_rows
    return [int(cut) for cut in cuts]


def _unsigned(numbers: Array) -> Array:
    """Return the same integers without a sign, as a view.

    An index with a sign may be negative and count from the end. numba's test for that takes two thirds as long as a CSR product.
    """
    return numbers.view(f"u{numbers.dtype.itemsize}") if numbers.dtype.kind == "i" else numbers


def csr_products(indptr: Array, indices: Array, data: Array, x: Array) -> Array:
    """Compute W @ x for a CSR matrix W, (n_rows,) float64.

    Examples
    --------
    >>> from scipy import sparse
    >>> csr = sparse.csr_array([[1.0, 2.0], [0.0, 3.0]])
    >>> csr_products(csr.indptr, csr.indices, csr.data, np.array([1.0, 10.0]))
    array([21., 30.])
    """
    out, vector = np.empty(len(indptr) - 1), _vector(x)
    rows, columns = _unsigned(indptr), _unsigned(indices)
    POOL.run(lambda start, stop, _: _csr_products(rows, columns, data, vector, out, start, stop), _entry_cuts(indptr))
    return out


def csr_column_products(indptr: Array, indices: Array, data: Array, y: Array, n_columns: int) -> Array:
    """Compute W.T @ y for a CSR matrix W, (n_columns,) float64.

    Examples
    --------
    >>> from scipy import sparse
    >>> csr = sparse.csr_array([[1.0, 2.0], [0.0, 3.0]])
    >>> csr_column_products(csr.indptr, csr.indices, csr.data, np.array([1.0, 10.0]), n_columns=2)
    array([ 1., 32.])
    """
    kernel = partial(_csr_column_products, _unsigned(indptr), _unsigned(indices), data, _vector(y))
    return _accumulate(kernel, _entry_cuts(indptr), n_columns)


def rows_by_length(indptr: Array) -> Array:
    """Order the rows of a CSR matrix so that, in every window of 128 rows, they are sorted by their number of entries.

    A loop over the entries of a row ends where the processor foresees it if the row before had as many. The rows remain near
    their neighbours, because their scores are near each other in memory (benchmarks/LOG.md). Rows of 63 and more entries count
    as equally long; rows of equal length keep their order.

    Returns
    -------
    (n_rows,) array, in the dtype of `indptr`

    Examples
    --------
    >>> rows_by_length(np.array([0, 2, 3, 5]))
    array([1, 0, 2])
    """
    order = np.empty(len(indptr) - 1, dtype=indptr.dtype)
    _rows_by_length(indptr, np.empty(LONG_ROW + 1, dtype=np.int64), order)
    return order


def gauss_seidel(
    indptr: Array,
    indices: Array,
    data: Array | None,
    order: Array | None,
    scale: Array,
    reciprocals: Array | None,
    gamma: float,
    constant: Array,
    before: Array,
    factors: tuple[float, float] = (1.0, 1.0),
) -> tuple[Array, float]:
    """Make one Gauss-Seidel pass over x = constant + gamma W diag(scale) x, on one thread.

    Cost: one read of the edges, and two new vectors.

    Parameters
    ----------
    indptr, indices, data : CSR of W, (n, n), row = target
        If `data` is None, every entry is 1.
    order : (n,) integers, or None
        The nodes in the order in which they are updated; None stands for the order of their numbers.
    scale, constant, before : (n,) float64
        `before` holds x before the pass.
    reciprocals : (n,) float64, or None
        ``1 / (1 - gamma W_ii scale_i)``, by which a node makes up for its self-loop; W_ii does not count otherwise. None stands
        for ones.
    gamma : float
        Damping.
    factors : two floats
        `constant` and `before` are multiplied by them.

    Returns
    -------
    tuple
        x, (n,), and its L1 change.

    Examples
    --------
    >>> from scipy import sparse
    >>> csr = sparse.csr_array([[0.0, 0.0], [2.0, 0.0]])  # one edge, from node 0 to node 1
    >>> ones, zeros = np.ones(2), np.zeros(2)
    >>> gauss_seidel(csr.indptr, csr.indices, csr.data, None, np.array([0.5, 0.0]), None, 0.5, ones, zeros)
    (array([1. , 1.5]), 2.5)
    """
    nodes = None if order is None else _unsigned(order.astype(indices.dtype, copy=False))
    divisors = None if reciprocals is None else _vector(reciprocals)
    known = nodes, _vector(scale), divisors, gamma, _vector(constant), factors[0], _vector(before), factors[1]
    x, sent = np.empty(len(before)), np.empty(len(before))
    return x, float(_gauss_seidel(_unsigned(indptr), _unsigned(indices), data, *known, x, sent))


def scale_and_compare(x: Array, factor: float, before: Array) -> float:
    """Multiply a float64 vector by a factor, in place, and return its L1 distance from another vector.

    Examples
    --------
    >>> x = np.array([1.0, 2.0])
    >>> scale_and_compare(x, 0.5, np.array([0.5, 2.0])), x
    (1.0, array([0.5, 1. ]))
    """
    return float(_scale_and_compare(x, factor, before))


def is_acyclic(indptr: Array, indices: Array) -> bool:
    """Tell whether a digraph has no cycle of two or more nodes; self-loops are allowed.

    Nodes without outgoing edges are removed again and again; if that removes all nodes, there is no cycle (Kahn 1962). Cost: at
    most two reads of the edges.

    Parameters
    ----------
    indptr, indices : CSR of (n, n), row = target

    Examples
    --------
    >>> from scipy import sparse
    >>> chain, ring = sparse.csr_array([[0, 0], [1, 0]]), sparse.csr_array([[0, 1], [1, 0]])
    >>> is_acyclic(chain.indptr, chain.indices), is_acyclic(ring.indptr, ring.indices)
    (True, False)
    """
    n_nodes = len(indptr) - 1
    return int(_count_removable(indptr, indices, np.zeros(n_nodes, np.int64), np.empty(n_nodes, np.int64))) == n_nodes
