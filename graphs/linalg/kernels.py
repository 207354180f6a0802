"""Compiled kernels (numba): products with dense weights read where they lie, CSR products, Gauss-Seidel.

numpy and torch multiply a float64 vector only with a float64 matrix: float32 and bfloat16 weights must be
widened into a copy first, and made non-negative in another pass. These kernels do both in registers, so that a product
costs one read of the weights in their own width, and sums are float64 whatever the width.

numba compiles a kernel at its first call and keeps the result on disk; import this module only when it is needed.

Weights come as one or two C-contiguous matrices (parallel edges add up) of float32, float64, or of uint16, which
stands for the bits of bfloat16.

Kernels work on a range of rows and hold no lock of the interpreter; the ranges go to threads of our own. numba's
parallel loops would set the number of threads of the whole process (torch's too) or may not be entered twice at once.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic, overload
from numba.np.arrayobj import make_array

__all__ = [
    "column_counts",
    "column_products",
    "csr_column_products",
    "csr_products",
    "gauss_seidel",
    "is_acyclic",
    "n_threads",
    "row_products",
    "row_products_mixed",
]

Array = npt.NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])

# Only sums may be reordered (that is what lets them vectorise): NaN and Inf keep their meaning.
REORDER = {"reassoc", "contract", "nsz"}


# numba would keep its files in the package itself, where they outlive an uninstall as a directory that still imports.
_CONFIG: Any = numba.config
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "graphs-kernels"


def _compiled(function: Function) -> Function:
    """Njit without the interpreter's lock, and with a cache on disk (NUMBA_CACHE_DIR, or the user's) where there can be one."""
    options: dict[str, Any] = {"nogil": True, "fastmath": REORDER}
    compiled: Any
    before = _CONFIG.CACHE_DIR
    _CONFIG.CACHE_DIR = before or str(CACHE)
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no writable directory for the cache
        compiled = numba.njit(**options)(function)
    finally:
        _CONFIG.CACHE_DIR = before
    return cast(Function, compiled)


def n_threads() -> int:
    """Threads of a product: the cores this process may use, at most OMP_NUM_THREADS where that is set.

    Examples
    --------
    >>> n_threads() >= 1
    True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(wanted))) if wanted.isdigit() else cores


# How often a waiting thread looks at its flag before it sleeps: some 0.2 ms. Products follow one another within that.
LOOKS = 300_000
# After the flag is up, the caller needs some microseconds more to enter its kernel, where it lets go of the interpreter.
LOOKS_MORE = 12_000


_array_of: Any = make_array


def _read_anew(_context: Any, flags: Any, place: Any) -> Any:
    """flags[place], read from memory at every call: compilers would read it once and wait for ever."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        array = _array_of(flags)(context, builder, arguments[0])
        address = builder.gep(array.data, [arguments[1]])
        return builder.load_atomic(address, ordering="acquire", align=8)

    return types.int64(flags, place), generate


_look: Any = intrinsic(_read_anew)


@_compiled
def _watch(flags: Array, place: int, wanted: int, looks: int, looks_more: int) -> None:
    """Return when flags[place] has reached `wanted`, or after that many looks."""
    for _ in range(looks):
        if _look(flags, place) >= wanted:
            break
    for _ in range(looks_more):
        _look(flags, place)


class _Helper:
    """A thread that waits for a task, runs it and says so.

    Locks carry the tasks, and would alone do. But a sleeping thread takes some 50 microseconds to wake, as long as a
    product of a million edges, so both sides first watch a flag for a moment, with the interpreter's lock released.
    """

    GO, DONE = 0, 8  # in cache lines of their own

    def __init__(self) -> None:
        self._go, self._done = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._done.acquire()
        self._flags = np.zeros(16, dtype=np.int64)
        self._count = 0
        self._task: Callable[[], None] = lambda: None
        self._error: BaseException | None = None
        self._retired = threading.Event()
        threading.Thread(target=self._work, name="graphs-kernels", daemon=True).start()

    def _work(self) -> None:
        count = 0
        while not self._retired.is_set():
            count += 1
            if count > 1:
                _watch(self._flags, self.GO, count, LOOKS, LOOKS_MORE)
            self._go.acquire()
            if self._retired.is_set():
                return
            try:
                self._task()
            except BaseException as error:  # raised where the caller waits
                self._error = error
            self._done.release()
            self._flags[self.DONE] = count

    def start(self, task: Callable[[], None]) -> None:
        self._task = task
        self._count += 1
        self._go.release()
        self._flags[self.GO] = self._count

    def retire(self) -> None:
        """End the thread, at once or after its task."""
        self._retired.set()
        with contextlib.suppress(RuntimeError):  # it has not taken its task yet, and looks again after it
            self._go.release()

    def wait(self) -> BaseException | None:
        _watch(self._flags, self.DONE, self._count, LOOKS, 0)
        self._done.acquire()
        error, self._error, self._task = self._error, None, lambda: None
        return error


class _Threads:
    """The threads that help the calling one; started when first needed."""

    def __init__(self) -> None:
        self.forget()
        # Threads do not survive a fork.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        self.count = n_threads()
        self._helpers: list[_Helper] = []
        self._busy = threading.Lock()

    def run(self, kernel: Callable[[int, int, int], None], cuts: Sequence[int]) -> None:
        """kernel(start, stop, part) for each of the ranges between `cuts`.

        The last range is this thread's own. While the helpers work for another caller it does all of them.
        """
        *others, last = [(int(cuts[k]), int(cuts[k + 1]), k) for k in range(len(cuts) - 1)]
        if not others or not self._busy.acquire(blocking=False):
            for part in (*others, last):
                kernel(*part)
            return
        try:
            with contextlib.suppress(RuntimeError):  # no thread to be had: those that there are do
                while len(self._helpers) < len(others):
                    self._helpers.append(_Helper())
            used = self._helpers[: len(others)]
            for helper, part in zip(used, others, strict=False):
                helper.start(partial(kernel, *part))
            for part in (*others[len(used) :], last):
                kernel(*part)
            errors = [helper.wait() for helper in used]
            for error in errors:
                if error is not None:
                    raise error
        except BaseException:
            # An interrupt may come while helpers work. They end with their task, and others take their place.
            for helper in self._helpers:
                helper.retire()
            self._helpers = []
            raise
        finally:
            self._busy.release()


_THREADS = _Threads()


def _magnitude(value: Any) -> Any:
    """|value| in float64; a uint16 is read as the bits of a bfloat16."""
    raise NotImplementedError


@overload(_magnitude, inline="always", strict=False)
def _magnitude_of(value: Any) -> Any:
    if value == types.uint16:
        # bfloat16 is the upper half of float32, and without its first bit it is non-negative.
        return lambda value: np.float64(np.uint32(np.uint32(value & 0x7FFF) << 16).view(np.float32))
    return lambda value: np.float64(abs(value))


@_compiled
def _row_products_1(first: Array, x: Array, out: Array, start: int, stop: int) -> None:
    n_columns = first.shape[1]
    for i in range(start, stop):
        total = 0.0
        for j in range(n_columns):
            total += _magnitude(first[i, j]) * x[j]
        out[i] = total


@_compiled
def _row_products_2(first: Array, second: Array, x: Array, out: Array, start: int, stop: int) -> None:
    n_columns = first.shape[1]
    for i in range(start, stop):
        total = 0.0
        for j in range(n_columns):
            total += (_magnitude(first[i, j]) + _magnitude(second[i, j])) * x[j]
        out[i] = total


@_compiled
def _column_products_1(first: Array, y: Array, total: Array, start: int, stop: int) -> None:
    n_columns = first.shape[1]
    for i in range(start, stop):
        factor = y[i]
        for j in range(n_columns):
            total[j] += _magnitude(first[i, j]) * factor


@_compiled
def _column_products_2(first: Array, second: Array, y: Array, total: Array, start: int, stop: int) -> None:
    n_columns = first.shape[1]
    for i in range(start, stop):
        factor = y[i]
        for j in range(n_columns):
            total[j] += (_magnitude(first[i, j]) + _magnitude(second[i, j])) * factor


@_compiled
def _row_products_mixed_1(first: Array, x: Array, y: Array, out: Array, start: int, stop: int) -> None:
    n_columns = first.shape[1]
    for i in range(start, stop):
        total = 0.0
        for j in range(n_columns):
            weight = _magnitude(first[i, j])
            total += weight * x[j] + (y[j] if weight != 0.0 else 0.0)
        out[i] = total


@_compiled
def _row_products_mixed_2(first: Array, second: Array, x: Array, y: Array, out: Array, start: int, stop: int) -> None:
    n_columns = first.shape[1]
    for i in range(start, stop):
        total = 0.0
        for j in range(n_columns):
            weight = _magnitude(first[i, j]) + _magnitude(second[i, j])
            total += weight * x[j] + (y[j] if weight != 0.0 else 0.0)
        out[i] = total


@_compiled
def _column_counts(first: Array, second: Array, total: Array, start: int, stop: int) -> None:
    n_columns = first.shape[1]
    for i in range(start, stop):
        for j in range(n_columns):
            total[j] += 1.0 if _magnitude(first[i, j]) + _magnitude(second[i, j]) != 0.0 else 0.0


@_compiled
def _csr_products(indptr: Array, indices: Array, data: Array, x: Array, out: Array, start: int, stop: int) -> None:
    for i in range(start, stop):
        total = 0.0
        for place in range(indptr[i], indptr[i + 1]):
            total += data[place] * x[indices[place]]
        out[i] = total


@_compiled
def _csr_column_products(
    indptr: Array, indices: Array, data: Array, y: Array, total: Array, start: int, stop: int
) -> None:
    for i in range(start, stop):
        factor = y[i]
        for place in range(indptr[i], indptr[i + 1]):
            total[indices[place]] += data[place] * factor


@_compiled
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


@_compiled
def _peel(indptr: Array, indices: Array, degree: Array, queue: Array) -> int:
    n_nodes, taken, found = len(degree), 0, 0
    for row in range(n_nodes):
        for place in range(indptr[row], indptr[row + 1]):
            if indices[place] != row:
                degree[indices[place]] += 1
    for node in range(n_nodes):
        if degree[node] == 0:
            queue[found] = node
            found += 1
    while taken < found:
        row = queue[taken]
        taken += 1
        for place in range(indptr[row], indptr[row + 1]):
            column = indices[place]
            if column != row:
                degree[column] -= 1
                if degree[column] == 0:
                    queue[found] = column
                    found += 1
    return found


def _even_cuts(n_rows: int) -> list[int]:
    """Rows at which as many ranges begin as there are threads, and the end."""
    parts = max(1, min(_THREADS.count, n_rows))
    return [n_rows * k // parts for k in range(parts + 1)]


def _vector(x: Array) -> Array:
    """As the kernels take it: every other type or layout would compile them once more."""
    return np.ascontiguousarray(x, dtype=np.float64)


def row_products(matrices: tuple[Array, ...], x: Array) -> Array:
    """Sum_j w_ij x_j, (n_rows,) float64, with w the sum of the matrices' magnitudes. One read.

    Examples
    --------
    >>> row_products((np.array([[1.0, -2.0], [0.0, 3.0]]),), np.array([1.0, 10.0]))
    array([21., 30.])
    """
    kernel: Any = _row_products_1 if len(matrices) == 1 else _row_products_2
    out, vector = np.empty(matrices[0].shape[0]), _vector(x)
    _THREADS.run(lambda start, stop, _: kernel(*matrices, vector, out, start, stop), _even_cuts(len(out)))
    return out


def column_products(matrices: tuple[Array, ...], y: Array) -> Array:
    """Sum_i w_ij y_i, (n_columns,) float64. One read; one accumulator a thread.

    Examples
    --------
    >>> column_products((np.array([[1.0, -2.0], [0.0, 3.0]]),), np.array([1.0, 10.0]))
    array([ 1., 32.])
    """
    kernel: Any = _column_products_1 if len(matrices) == 1 else _column_products_2
    cuts, vector = _even_cuts(matrices[0].shape[0]), _vector(y)
    parts = np.zeros((len(cuts) - 1, matrices[0].shape[1]))
    _THREADS.run(lambda start, stop, part: kernel(*matrices, vector, parts[part], start, stop), cuts)
    total: Array = parts.sum(axis=0)
    return total


def row_products_mixed(matrices: tuple[Array, ...], x: Array, y: Array) -> Array:
    """Sum_j w_ij x_j + 1[w_ij != 0] y_j, (n_rows,) float64. One read.

    Examples
    --------
    >>> row_products_mixed((np.array([[1.0, -2.0], [0.0, 3.0]]),), np.array([1.0, 10.0]), np.array([0.25, 0.5]))
    array([21.75, 30.5 ])
    """
    kernel: Any = _row_products_mixed_1 if len(matrices) == 1 else _row_products_mixed_2
    out, first, second = np.empty(matrices[0].shape[0]), _vector(x), _vector(y)
    _THREADS.run(lambda start, stop, _: kernel(*matrices, first, second, out, start, stop), _even_cuts(len(out)))
    return out


def column_counts(matrices: tuple[Array, ...]) -> Array:
    """Non-zero weights of every column, (n_columns,) float64. One read.

    Examples
    --------
    >>> column_counts((np.array([[1.0, -2.0], [0.0, 3.0]]),))
    array([1., 2.])
    """
    first, last = matrices[0], matrices[-1]
    cuts = _even_cuts(first.shape[0])
    parts = np.zeros((len(cuts) - 1, first.shape[1]))
    _THREADS.run(lambda start, stop, part: _column_counts(first, last, parts[part], start, stop), cuts)
    total: Array = parts.sum(axis=0)
    return total


def _entry_cuts(indptr: Array) -> list[int]:
    """Rows at which ranges of about as many entries begin, one a thread, and the end."""
    n_rows = len(indptr) - 1
    parts = max(1, min(_THREADS.count, n_rows))
    # Of the index type itself: another one would convert the whole array.
    wanted = np.array([int(indptr[-1]) * k // parts for k in range(parts + 1)], dtype=indptr.dtype)
    cuts = np.searchsorted(indptr, wanted)
    cuts[0], cuts[-1] = 0, n_rows
    return [int(cut) for cut in cuts]


def csr_products(indptr: Array, indices: Array, data: Array, x: Array) -> Array:
    """W @ x of a CSR matrix, (n_rows,) float64, on all threads.

    Examples
    --------
    >>> from scipy import sparse
    >>> csr = sparse.csr_array([[1.0, 2.0], [0.0, 3.0]])
    >>> csr_products(csr.indptr, csr.indices, csr.data, np.array([1.0, 10.0]))
    array([21., 30.])
    """
    out, vector = np.empty(len(indptr) - 1), _vector(x)
    _THREADS.run(
        lambda start, stop, _: _csr_products(indptr, indices, data, vector, out, start, stop), _entry_cuts(indptr)
    )
    return out


def csr_column_products(indptr: Array, indices: Array, data: Array, y: Array, n_columns: int) -> Array:
    """W.T @ y of a CSR matrix, (n_columns,) float64, on all threads; one accumulator a thread.

    Examples
    --------
    >>> from scipy import sparse
    >>> csr = sparse.csr_array([[1.0, 2.0], [0.0, 3.0]])
    >>> csr_column_products(csr.indptr, csr.indices, csr.data, np.array([1.0, 10.0]), n_columns=2)
    array([ 1., 32.])
    """
    cuts, vector = _entry_cuts(indptr), _vector(y)
    parts = np.zeros((len(cuts) - 1, n_columns))
    _THREADS.run(
        lambda start, stop, part: _csr_column_products(indptr, indices, data, vector, parts[part], start, stop), cuts
    )
    total: Array = parts.sum(axis=0)
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

    Examples
    --------
    >>> from scipy import sparse
    >>> csr = sparse.csr_array([[0.0, 0.0], [2.0, 0.0]])  # one edge, from node 0 to node 1
    >>> x = np.zeros(2)
    >>> gauss_seidel(csr.indptr, csr.indices, csr.data, np.array([0.5, 0.0]), np.array([0, 1]), 0.5, np.array([1.0, 1.0]), x)
    >>> x
    array([1. , 1.5])
    """
    _gauss_seidel(indptr, indices, data, _vector(scale), order, gamma, _vector(jump), x)


def is_acyclic(indptr: Array, indices: Array) -> bool:
    """Whether a digraph has no cycle longer than a loop.

    Nodes that nothing leaves are taken away until none is left (Kahn 1962). One look at every edge, and a second
    one at those of the nodes taken away: on a graph with a large strong component hardly any.

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
    return int(_peel(indptr, indices, np.zeros(n_nodes, np.int64), np.empty(n_nodes, np.int64))) == n_nodes
