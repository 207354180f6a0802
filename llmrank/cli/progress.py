"""How far a command is, on standard error: a bar on a terminal, lines in a log."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from llmrank.calibration.forward import Progress

__all__ = ["ProgressLog", "make_progress"]

# Seconds that a stage may take without a word after its beginning, and until how many that doubles from line to line.
FIRST_GAP, LARGEST_GAP = 5.0, 30.0
# A longer stage gets about so many lines.
LINES = 10


def make_progress() -> Progress:
    """Bars where standard error is a terminal that can draw them, else lines."""
    return _bar if sys.stderr.isatty() and Console(stderr=True).is_interactive else ProgressLog()


def _bar(items: Sequence[Any], description: str) -> Iterable[Any]:
    """A bar, or for a single item something that turns; gone when done."""
    console = Console(stderr=True)
    if len(items) == 1:
        with console.status(escape(description)):
            yield from items
    else:
        yield from track(items, escape(description), console=console, transient=True)


class ProgressLog:
    """Progress as lines, each with the time since the command began.

    A stage says how many steps it has. If it takes long, it also says now and then how far it is and for about how long it will
    go on, and in the end how long it took.

    Parameters
    ----------
    clock : callable
        Seconds, from any beginning.
    write : callable, optional
        Takes a line; by default it goes to standard error at once.

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
        self._begun = clock()

    def __call__(self, items: Sequence[Any], description: str) -> Iterator[Any]:
        """The items, one after the other; the time from one to the next is that of a step."""
        total = len(items)
        start = said = self._clock()
        self._say(start, f"{description} ..." if total == 1 else f"{description}: {total:,} steps")
        gap = FIRST_GAP
        for done, item in enumerate(items, start=1):
            yield item
            now = self._clock()
            expected = (now - start) / done * total
            if done < total and now - said >= min(gap, max(LARGEST_GAP, expected / LINES)):
                left = _minutes(expected - (now - start))
                self._say(now, f"{description}: {done:,} of {total:,}, about {left} left")
                said, gap = now, 2.0 * gap
        now = self._clock()
        if now - start >= FIRST_GAP:
            self._say(now, f"{description}: done in {_minutes(now - start)}")

    def _say(self, now: float, line: str) -> None:
        self._write(f"[{_minutes(now - self._begun):>6}] {line}")


def _to_stderr(line: str) -> None:
    with contextlib.suppress(OSError):  # a log that nobody reads any more is no reason to lose the work
        print(line, file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    """Such as 0:08 and 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
