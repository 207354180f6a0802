"""How a run shows its progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["Progress", "progress_step"]

# ``progress(items, description)`` returns an iterable over the items.
Progress = Callable[[Sequence[Any], str], Any]


@contextmanager
def progress_step(progress: Progress | None, description: str) -> Iterator[None]:
    """Show the work inside the context as a progress of one step; without `progress`, show nothing."""
    for _ in progress([None], description) if progress else [None]:
        yield
