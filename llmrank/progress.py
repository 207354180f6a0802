"""How a run shows its progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["Progress", "progress_step", "shown"]

# ``progress(items, description)`` returns an iterable over the items.
Progress = Callable[[Sequence[Any], str], Any]
Item = TypeVar("Item")


def shown(progress: Progress | None, items: Sequence[Item], description: str) -> Iterable[Item]:
    """Return the items, and show how many of them are taken; without `progress`, show nothing."""
    found: Iterable[Item] = progress(items, description) if progress else items
    return found


@contextmanager
def progress_step(progress: Progress | None, description: str) -> Iterator[None]:
    """Show the work inside the context as a progress of one step; without `progress`, show nothing."""
    for _ in shown(progress, [None], description):
        yield
