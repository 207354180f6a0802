"""Hidden states between two blocks, one tensor a batch, in memory or in files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from llmrank.errors import OptionError

__all__ = ["States", "allocate_like", "file_tensor", "store"]


class States:
    """The hidden states in front of a block, which those behind the block replace.

    Parameters
    ----------
    memory : sequence of one or two lists of tensors
        Where the states are. With two lists, the states in front of a block are kept until :meth:`advance`.
    side : int
        The list that holds the states now.
    files : sequence of Path
        The files that the lists are in, if they are in files.
    """

    def __init__(self, memory: Sequence[list[torch.Tensor]], side: int = 0, files: Sequence[Path] = ()) -> None:
        self._memory = memory
        self.side, self.files = side, files

    @classmethod
    def of(cls, first: Sequence[torch.Tensor]) -> States:
        """Copy the first states into memory."""
        return cls([_copied(first, allocate_like(first))])

    @classmethod
    def in_files(cls, path: Path, first: Sequence[torch.Tensor], side: int | None = None) -> States:
        """Keep states in two files, which the system reads and writes as memory allows.

        Parameters
        ----------
        path : Path
            Start of the names of the files.
        first : sequence of tensors
            The first states, of one dtype, on the CPU.
        side : int, optional
            The file that holds the states of an earlier process; by default the first states are written.
        """
        files = [path.with_name(f"{path.name}.{number}") for number in range(2)]
        memory = [_allocate_in_file(file, first) for file in files]
        if side is None:
            _copied(first, memory[0])
        return cls(memory, side or 0, files)

    @property
    def _now(self) -> list[torch.Tensor]:
        return self._memory[self.side]

    @property
    def _next(self) -> list[torch.Tensor]:
        return self._memory[1 - self.side if len(self._memory) > 1 else 0]

    def __len__(self) -> int:
        return len(self._now)

    def __getitem__(self, k: int) -> torch.Tensor:
        return self._now[k]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self._now)

    def store(self, k: int, state: torch.Tensor) -> None:
        """Set the state of a batch behind the block.

        Raises
        ------
        OptionError
            The states are in files, and this one has another shape or dtype than the first ones.
        """
        held = self._next[k]
        if len(self._memory) == 1:
            store(self._next, k, state)
            return
        if (state.shape, state.dtype) != (held.shape, held.dtype):
            raise OptionError(
                f"cannot run block by block: a block turns states of {held.dtype} and shape {tuple(held.shape)} into "
                f"{state.dtype} and {tuple(state.shape)}; leave the low memory out"
            )
        held.copy_(state)  # from the device that the block has computed on

    def behind(self, k: int) -> torch.Tensor:
        """Return the state of a batch behind the block, which :meth:`store` has set."""
        return self._next[k]

    def advance(self) -> None:
        """Take the states behind the block as those in front of the next one."""
        self.side = 1 - self.side if len(self._memory) > 1 else 0


def allocate_like(states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Allocate memory for the states of all batches in one piece; a piece for each batch would fragment the heap."""
    with torch.inference_mode(mode=False):
        return _split(states[0].new_empty(sum(state.numel() for state in states)), states)


def file_tensor(path: Path, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor whose values are in a file, which the system reads and writes as memory allows.

    A file that is there keeps its values; otherwise they are zeros.

    Raises
    ------
    OSError
        The disk is full. Space is taken now, because a page that cannot be written later would end the process.
    """
    size = math.prod(shape) * dtype.itemsize
    with path.open("ab") as file:
        if size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise OSError(
                    f"no space for {size / 1e6:,.0f} MB in {path.parent} ({error}); free space there"
                ) from error
    with torch.inference_mode(mode=False):
        memory = torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=dtype)
        return memory.view(*shape)


def _allocate_in_file(path: Path, states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    size = sum(state.numel() for state in states)
    return _split(file_tensor(path, (size,), states[0].dtype), states)


def _copied(values: Sequence[torch.Tensor], memory: list[torch.Tensor]) -> list[torch.Tensor]:
    for own, value in zip(memory, values, strict=True):
        own.copy_(value)
    return memory


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
