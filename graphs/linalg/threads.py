"""Threads that run compiled kernels, and the decorator that compiles a kernel so that it can run on them.

The threads are this package's own, because of the threading layers of numba: some set the number of threads of the whole
process, torch's included, and others may not be entered by two threads at once. A ``ThreadPoolExecutor`` wakes its threads so
slowly that on two cores a rank of four FFNs took longer with it than on one thread (``benchmarks/results/threads.md``).
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
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

__all__ = ["POOL", "ThreadPool", "compiled", "n_threads"]

Function = TypeVar("Function", bound=Callable[..., Any])

# Sums may be reordered, so that they vectorise. NaN and Inf keep their meaning.
FAST_MATH = {"reassoc", "contract", "nsz"}

# By default, numba writes its cache into the package. After an uninstall, that directory would remain and could be imported.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "graphs-kernels"

_CONFIG: Any = numba.config  # its attributes are set at run time

# How often a waiting thread reads its flag before it sleeps: about 0.2 ms, within which the next product usually comes.
SPINS = 300_000

# A thread that has seen its flag spins a little longer, until the caller has entered its own kernel and released the GIL.
EXTRA_SPINS = 12_000


def compiled(function: Function) -> Function:
    """Compile a function with numba, without the GIL.

    The result is cached on disk, in NUMBA_CACHE_DIR or else in the user's cache, if numba finds a writable directory.

    Examples
    --------
    >>> @compiled
    ... def double(number):
    ...     return 2 * number
    >>> double(3)
    6
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": FAST_MATH}
    before = _CONFIG.CACHE_DIR
    _CONFIG.CACHE_DIR = before or str(CACHE)
    try:
        result = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no writable directory for the cache
        result = numba.njit(**options)(function)
    finally:
        _CONFIG.CACHE_DIR = before
    return cast(Function, result)


def n_threads() -> int:
    """Count the threads of a product: the cores that this process may use, but at most OMP_NUM_THREADS if it is set.

    Examples
    --------
    >>> n_threads() >= 1
    True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(limit))) if limit.isdigit() else cores


_array_of: Any = make_array  # numba has no type hints here


def _atomic_load(_context: Any, flags: Any, place: Any) -> Any:
    """Generate code that reads flags[place] from memory at every call; compiled code would else read it only once."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        array = _array_of(flags)(context, builder, arguments[0])
        address = builder.gep(array.data, [arguments[1]])
        return builder.load_atomic(address, ordering="acquire", align=8)

    return types.int64(flags, place), generate


_read_flag: Any = intrinsic(_atomic_load)


@compiled
def _spin(flags: npt.NDArray[Any], place: int, wanted: int, spins: int, extra_spins: int) -> None:
    """Return when flags[place] has reached `wanted`, or after `spins` reads; then read `extra_spins` times more."""
    for _ in range(spins):
        if _read_flag(flags, place) >= wanted:
            break
    for _ in range(extra_spins):
        _read_flag(flags, place)


class _Worker:
    """A thread that waits for a task, runs it and signals its end.

    Locks hand over the tasks; they would be enough. But a sleeping thread takes about 50 microseconds to wake, as long as a
    product of a million edges. So both sides first read a flag again and again for a moment, with the GIL released.
    """

    GO, DONE = 0, 8  # places of the two flags, each in its own cache line

    def __init__(self) -> None:
        self._go, self._done = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._done.acquire()
        self._flags = np.zeros(16, dtype=np.int64)
        self._n_tasks = 0
        self._task: Callable[[], None] = lambda: None
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        threading.Thread(target=self._work, name="graphs-kernels", daemon=True).start()

    def _work(self) -> None:
        n_tasks = 0
        while not self._stopped.is_set():
            n_tasks += 1
            if n_tasks > 1:
                _spin(self._flags, self.GO, n_tasks, SPINS, EXTRA_SPINS)
            self._go.acquire()
            if self._stopped.is_set():
                return
            try:
                self._task()
            except BaseException as error:  # raised again where the caller waits
                self._error = error
            self._done.release()
            self._flags[self.DONE] = n_tasks

    def start(self, task: Callable[[], None]) -> None:
        """Give the thread a task."""
        self._task = task
        self._n_tasks += 1
        self._go.release()
        self._flags[self.GO] = self._n_tasks

    def wait(self) -> BaseException | None:
        """Wait until the task has ended, and return the exception that it raised."""
        _spin(self._flags, self.DONE, self._n_tasks, SPINS, 0)
        self._done.acquire()
        error, self._error, self._task = self._error, None, lambda: None
        return error

    def stop(self) -> None:
        """End the thread, at once or after its task."""
        self._stopped.set()
        with contextlib.suppress(RuntimeError):  # it has not taken its task yet, and checks for the stop after it
            self._go.release()


class ThreadPool:
    """Threads that share the work of the calling thread. They start when they are first needed.

    Attributes
    ----------
    size : int
        Number of threads that work at once, the calling one included.
    """

    def __init__(self) -> None:
        self.reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        """Forget all threads, which do not survive a fork, and count the cores again."""
        self.size = n_threads()
        self._workers: list[_Worker] = []
        self._busy = threading.Lock()

    def run(self, kernel: Callable[[int, int, int], None], cuts: Sequence[int]) -> None:
        """Call ``kernel(start, stop, part)`` for each of the ranges between `cuts`.

        The calling thread takes the last range, or all ranges while the workers are busy for another caller.
        """
        *others, last = [(int(cuts[k]), int(cuts[k + 1]), k) for k in range(len(cuts) - 1)]
        if not others or not self._busy.acquire(blocking=False):
            for part in (*others, last):
                kernel(*part)
            return
        try:
            with contextlib.suppress(RuntimeError):  # no more threads can start; the caller takes their ranges
                while len(self._workers) < len(others):
                    self._workers.append(_Worker())
            used = self._workers[: len(others)]
            for worker, part in zip(used, others, strict=False):
                worker.start(partial(kernel, *part))
            for part in (*others[len(used) :], last):
                kernel(*part)
            errors = [worker.wait() for worker in used]
            for error in errors:
                if error is not None:
                    raise error
        except BaseException:
            # An interrupt may come while workers run. They stop after their task, and new ones replace them.
            for worker in self._workers:
                worker.stop()
            self._workers = []
            raise
        finally:
            self._busy.release()


POOL = ThreadPool()
"""The threads of all products of this process."""
