"""How a run computes: in which batches, on which device, in which processes, with which files, and what progress it shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from llmrank.execution.processes import Processes
from llmrank.execution.work_directory import WorkDirectory
from llmrank.progress import Progress, progress_step, shown
from llmrank.text.sequences import TokenSequences

__all__ = ["Execution"]

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Execution:
    """How a run computes. None of it changes a result by more than round-off.

    Parameters
    ----------
    batch_size : int
        Number of sequences in a forward pass.
    progress : callable, optional
        ``progress(items, description)`` returns an iterable over the items, and shows the progress; in process 0 only.
    processes : Processes
        The processes that divide the work; by default this one alone.
    device : torch.device, optional
        Device to which blocks are brought one at a time to compute. By default everything computes where its weights are.
    work : WorkDirectory, optional
        Run block by block, and keep in files of this directory what the present block does not need. If the run is interrupted,
        it goes on at the block where it ended.

    Examples
    --------
    >>> ids = torch.zeros(3, 4, dtype=torch.int64)
    >>> sequences = TokenSequences.of(ids, torch.ones_like(ids, dtype=torch.bool), "zeros")
    >>> [len(batch) for batch, _ in Execution(batch_size=2).batches(sequences)]
    [2, 1]
    """

    batch_size: int = 1
    progress: Progress | None = None
    processes: Processes = field(default_factory=Processes)
    device: torch.device | None = None
    work: WorkDirectory | None = None

    def __post_init__(self) -> None:
        if self.processes.rank:  # only process 0 shows progress
            object.__setattr__(self, "progress", None)

    def steps(self, items: Sequence[Item], description: str) -> Iterator[Item]:
        """Yield the items, and show how many of them the run has taken.

        Raises
        ------
        ProcessError
            Before an item: another process has failed.
        """
        for item in shown(self.progress, items, description):
            self.processes.check_others()
            yield item

    def step(self, description: str) -> AbstractContextManager[None]:
        """Show the work inside the context as one step."""
        return progress_step(self.progress, description)

    def share(self, sequences: TokenSequences) -> TokenSequences:
        """Return the sequences that this process works on."""
        return self.processes.share(sequences, self.batch_size)

    def describe(self) -> dict[str, Any]:
        """Return what can change a result by round-off, as values for a report.

        Examples
        --------
        >>> Execution(batch_size=2).describe()
        {'batch_size': 2, 'processes': 1, 'by_block': False}
        """
        return {
            "batch_size": self.batch_size,
            "processes": self.processes.count,
            "by_block": self.work is not None,
        }

    def batches(self, sequences: TokenSequences) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the batches (ids, mask) that this process works on."""
        return list(self.share(sequences).batches(self.batch_size))
