"""Progress of a command on standard error: bars on a terminal, lines in a log."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import IO, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from llmrank.progress import Progress

__all__ = ["ProgressLog", "drop_output", "make_progress"]

# Seconds until the first line within a stage. The gap doubles with each line, up to the largest gap.
FIRST_GAP, LARGEST_GAP = 5.0, 30.0
# In a long stage the largest gap is 1 / N_LINES of the time that the stage is expected to take.
N_LINES = 10


def make_progress() -> Progress:
    """Return progress bars if standard error is a terminal that can draw them, else a log of lines."""
    return _bar if sys.stderr.isatty() and Console(stderr=True).is_interactive else ProgressLog()


def _bar(items: Sequence[Any], description: str) -> Iterable[Any]:
    """Show a bar while the items are processed, or a spinner for a single item; both disappear at the end."""
    console = Console(stderr=True)
    if len(items) == 1:
        with console.status(escape(description)):
            yield from items
    else:
        yield from track(items, escape(description), console=console, transient=True)


class ProgressLog:
    """Progress as lines, each with the time since the log was made.

    A stage begins with a line that names it. A long stage adds lines with the steps done and an estimate of the time left, and
    ends with a line with the time that it took.

    Parameters
    ----------
    clock : callable
        Returns the time in seconds since some fixed moment.
    write : callable, optional
        Writes a line; by default to standard error, without buffering.

    Examples
    --------
    >>> seconds = iter([0, 0, 6, 12, 12])
    >>> log = ProgressLog(lambda: next(seconds), print)
    >>> list(log("ab", "Calibrating"))
    [  0:00] Calibrating: 2 steps
    [  0:06] Calibrating: 1 of 2, about 0:06 left
    [  0:12] Calibrating: done in 0:12
    ['a', 'b']
    """

    def __init__(self, clock: Callable[[], float] = monotonic, write: Callable[[str], None] | None = None) -> None:
        self._clock = clock
        self._write = write if write is not None else _to_stderr
        self._started = clock()

    def __call__(self, items: Sequence[Any], description: str) -> Iterator[Any]:
        """Yield the items, and write lines. A step is the work that the caller does between two items."""
        total = len(items)
        start = last_line = self._clock()
        self._log(start, f"{description} ..." if total == 1 else f"{description}: {total:,} steps")
        gap = FIRST_GAP
        for done, item in enumerate(items, start=1):
            yield item
            now = self._clock()
            expected = (now - start) / done * total
            if done < total and now - last_line >= min(gap, max(LARGEST_GAP, expected / N_LINES)):
                left = _format_time(expected - (now - start))
                self._log(now, f"{description}: {done:,} of {total:,}, about {left} left")
                last_line, gap = now, 2.0 * gap
        now = self._clock()
        if now - start >= FIRST_GAP:
            self._log(now, f"{description}: done in {_format_time(now - start)}")

    def _log(self, now: float, line: str) -> None:
        self._write(f"[{_format_time(now - self._started):>6}] {line}")


def _to_stderr(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # the work goes on if the reader of the log has gone
        drop_output(sys.stderr)


def drop_output(stream: IO[str]) -> None:
    """Drop all further output of a stream whose reader has gone, also what the interpreter flushes at its exit."""
    with Path(os.devnull).open("wb") as nowhere, contextlib.suppress(OSError):  # a stream without a file
        os.dup2(nowhere.fileno(), stream.fileno())


def _format_time(seconds: float) -> str:
    """Format seconds as 0:08 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
