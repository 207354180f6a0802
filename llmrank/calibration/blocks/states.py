"""Hidden states between two blocks, one tensor a batch, in memory or in files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import torch

__all__ = ["Allocate", "States", "allocate_in_file", "allocate_like", "store"]

# Allocates tensors like those given, without their values.
Allocate: TypeAlias = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


class States:
    """The hidden states in front of a block, which those behind the block replace.

    Parameters
    ----------
    first : sequence of tensors
        The first states; copied.
    allocate : callable, optional
        Allocates memory for the states; by default in RAM.
    keep : bool
        Whether the states in front of the block are kept until :meth:`advance`. This takes twice the memory.
    """

    def __init__(self, first: Sequence[torch.Tensor], allocate: Allocate | None = None, *, keep: bool = False) -> None:
        allocate = allocate or allocate_like
        self._now = allocate(first)
        self._next = allocate(first) if keep else self._now
        for own, state in zip(self._now, first, strict=True):
            own.copy_(state)

    def __len__(self) -> int:
        return len(self._now)

    def __getitem__(self, k: int) -> torch.Tensor:
        return self._now[k]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self._now)

    def store(self, k: int, state: torch.Tensor) -> None:
        """Set the state of a batch behind the block."""
        store(self._next, k, state)

    def behind(self, k: int) -> torch.Tensor:
        """Return the state of a batch behind the block, which :meth:`store` has set."""
        return self._next[k]

    def advance(self) -> None:
        """Take the states behind the block as those in front of the next one."""
        self._now, self._next = self._next, self._now


def allocate_like(states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Allocate memory for the states of all batches in one piece; a piece for each batch would fragment the heap."""
    with torch.inference_mode(mode=False):
        return _split(states[0].new_empty(sum(state.numel() for state in states)), states)


def allocate_in_file(path: Path) -> Allocate:
    """Return a function that allocates states in a file, which the system reads and writes as memory allows.

    All states have one dtype and are on the CPU. A file that exists and is large enough keeps its values.
    """

    def allocate(states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        size = sum(state.numel() for state in states)
        with torch.inference_mode(mode=False):
            return _split(torch.from_file(str(path), shared=True, size=size, dtype=states[0].dtype), states)

    return allocate


def _split(memory: torch.Tensor, states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    pieces = torch.split(memory, [state.numel() for state in states])
    return [piece.view(state.shape) for piece, state in zip(pieces, states, strict=True)]


def store(states: list[torch.Tensor], k: int, state: torch.Tensor) -> None:
    """Copy a state into the memory of its batch, or into new memory if its shape, dtype or device differ."""
    held = states[k]
    if state.shape != held.shape or (state.dtype, state.device) != (held.dtype, held.device):
        states[k] = allocate_like([state])[0]
    same_memory = state.untyped_storage().data_ptr() == states[k].untyped_storage().data_ptr()
    states[k].copy_(state.clone() if same_memory else state)
