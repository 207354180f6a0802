"""Threads that run compiled kernels, and the decorator that compiles a kernel so that it can run on them.

numba's own threads are not used, because each of its threading layers has one of two faults. Some set the number of threads of
the whole process, torch's included. Others fail if two threads enter them at once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar, cast

import numba

__all__ = ["POOL", "ThreadPool", "compiled", "n_threads"]

Function = TypeVar("Function", bound=Callable[..., Any])

# The compiler may reorder sums, so that it can vectorise them. NaN and Inf keep their meaning.
FAST_MATH = {"reassoc", "contract", "nsz"}

# numba's default cache lies in the package's directory. This directory would remain after an uninstall, and could be imported.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "graphs-kernels"

_CONFIG: Any = numba.config  # its attributes are set at run time


def compiled(function: Function) -> Function:
    """Compile a function with numba; it runs without the GIL.

    The result is cached on disk, in NUMBA_CACHE_DIR or else in the user's cache. If that directory is not writable, numba takes
    another one; if no directory is writable, nothing is cached.

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
    """Count the threads that divide the product of a matrix with vectors among them.

    These are as many as the cores that this process may use, but at most OMP_NUM_THREADS if that is a number.

    Examples
    --------
    >>> n_threads() >= 1
    True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(limit))) if limit.isdigit() else cores


class ThreadPool:
    """Threads that share the work of the calling thread. They start when they are first needed.

    Attributes
    ----------
    size : int
        Largest number of threads that work for one caller, the calling thread included.
    """

    def __init__(self) -> None:
        self.reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        """Forget all threads, which do not survive a fork, and count the cores again."""
        self.size = n_threads()
        self._executor = ThreadPoolExecutor(max(1, self.size - 1), "graphs-kernels")

    def run(self, kernel: Callable[[int, int, int], None], cuts: Sequence[int]) -> None:
        """Call ``kernel(start, stop, part)`` once for each range between `cuts`; `part` is the number of the range, from 0.

        Every thread, the calling one included, takes the next range when it is free.
        """
        pairs = list(pairwise(cuts))
        if len(pairs) == 1:
            kernel(*pairs[0], 0)
            return
        ranges = iter([(start, stop, part) for part, (start, stop) in enumerate(pairs)])
        outcomes: SimpleQueue[BaseException | None] = SimpleQueue()

        def work() -> None:
            for start, stop, part in ranges:  # the iterator of a list gives each range to one thread only
                outcomes.put(_run_and_catch(kernel, start, stop, part))

        with contextlib.suppress(RuntimeError):  # no thread can start: there are too many, or Python is about to end
            for _ in pairs[1:]:
                self._executor.submit(work)
        work()
        # Wait for the outcome of every range, not for the submitted tasks: if no thread could start, a task is queued for ever.
        for error in [outcomes.get() for _ in pairs]:
            if error is not None:
                raise error


def _run_and_catch(kernel: Callable[[int, int, int], None], *arguments: int) -> BaseException | None:
    """Run a kernel, and return the error that it raises, if any, so that the calling thread can raise it."""
    try:
        kernel(*arguments)
    except BaseException as error:
        return error
    return None


POOL = ThreadPool()
"""The threads of all products of this process."""
