"""Hidden states between two blocks, one tensor a batch, in memory or in files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from llmrank.errors import OptionError

__all__ = ["States", "file_tensor", "state_file"]


class States:
    """The hidden states in front of a block; when the block has run, the states behind the block take their place.

    Parameters
    ----------
    memory : sequence of one or two lists of tensors
        Lists with one tensor for each batch. With one list, the states behind a block overwrite those in front of it batch by
        batch. With two lists, the states behind a block go to the other list, and those in front of it are kept until
        :meth:`advance`.
    side : int
        Index of the list that holds the states in front of the block now.
    files : sequence of Path
        The files that hold the tensors, one file for each list; empty if the tensors are in memory.
    """

    def __init__(self, memory: Sequence[list[torch.Tensor]], side: int = 0, files: Sequence[Path] = ()) -> None:
        self._memory = memory
        self.side, self.files = side, files

    @classmethod
    def of(cls, first: Sequence[torch.Tensor]) -> States:
        """Copy the first states into memory."""
        return cls([_copy_into(allocate_like(first), first)])

    @classmethod
    def in_files(cls, path: Path, first: Sequence[torch.Tensor], side: int | None = None) -> States:
        """Keep states in two files that are mapped into memory: the system reads and writes them as its memory allows.

        Parameters
        ----------
        path : Path
            Start of the names of the files.
        first : sequence of tensors
            The first states, of one dtype, on the CPU.
        side : int, optional
            Index of the file with the states of a run that was interrupted and is resumed; they are used instead of the values
            of `first`. By default `first` is written to the first file.
        """
        files = [state_file(path, number) for number in range(2)]
        size = sum(state.numel() for state in first)
        memory = [_split(file_tensor(file, (size,), first[0].dtype), first) for file in files]
        if side is None:
            _copy_into(memory[0], first)
        return cls(memory, side or 0, files)

    @property
    def file(self) -> Path:
        """The file with the states in front of the block."""
        return self.files[self.side]

    @property
    def _in_front(self) -> list[torch.Tensor]:
        return self._memory[self.side]

    @property
    def _behind(self) -> list[torch.Tensor]:
        return self._memory[1 - self.side if len(self._memory) > 1 else 0]

    def __len__(self) -> int:
        return len(self._in_front)

    def __getitem__(self, k: int) -> torch.Tensor:
        return self._in_front[k]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self._in_front)

    def store(self, k: int, state: torch.Tensor) -> None:
        """Set the state behind the block for one batch, in the same memory if it fits there.

        Raises
        ------
        OptionError
            The states are in files, and this one has another shape or dtype than the first ones.
        """
        held = self._behind[k]
        fits = (state.shape, state.dtype) == (held.shape, held.dtype)
        if self.files and not fits:
            raise OptionError(
                f"cannot run block by block: a block turns states of {held.dtype} and shape {tuple(held.shape)} into "
                f"{state.dtype} and {tuple(state.shape)}; run without --low-memory (in Python: work_directory)"
            )
        if not self.files and not (fits and state.device == held.device):
            self._behind[k] = held = allocate_like([state])[0]
        same_memory = state.untyped_storage().data_ptr() == held.untyped_storage().data_ptr()
        held.copy_(state.clone() if same_memory else state)

    def advance(self) -> None:
        """Go on to the next block: the states behind this block are those in front of the next block."""
        self.side = 1 - self.side if len(self._memory) > 1 else 0


def state_file(path: Path, side: int) -> Path:
    """Return the file of a side of states that :meth:`States.in_files` keeps under a path."""
    return path.with_name(f"{path.name}.{side}")


def allocate_like(states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Allocate memory for the states of all batches in one piece, because a piece for each batch would fragment the heap."""
    with torch.inference_mode(mode=False):
        return _split(states[0].new_empty(sum(state.numel() for state in states)), states)


def file_tensor(path: Path, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor whose values are in a file that the system reads and writes as its memory allows.

    If the file exists already, the tensor has the values in it. A new file holds zeros.

    Raises
    ------
    OSError
        The disk is full. The space is reserved now: if the system found no space for a value later, it would kill the process.
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


def _copy_into(memory: list[torch.Tensor], values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    for target, value in zip(memory, values, strict=True):
        target.copy_(value)
    return memory


def _split(memory: torch.Tensor, states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    pieces = torch.split(memory, [state.numel() for state in states])
    return [piece.view(state.shape) for piece, state in zip(pieces, states, strict=True)]
