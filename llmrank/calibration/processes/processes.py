"""The process of a run in one process; :class:`SeveralProcesses` extends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from llmrank.calibration.text import TokenSequences
from llmrank.errors import OptionError

__all__ = ["Processes"]

Value = TypeVar("Value")


class Processes:
    """The processes of a run, as one of them sees them. This class is a run in a single process, in which nothing is exchanged.

    Methods that exchange values are called by all processes, in the same order.

    Attributes
    ----------
    rank : int
        Number of this process. Process 0 prints and writes.
    count : int
        Number of processes.

    Examples
    --------
    >>> alone = Processes()
    >>> alone.rank, alone.count, alone.share_of(["a", "b"]), alone.gather("c")
    (0, 1, ['a', 'b'], ['c'])
    """

    rank = 0
    count = 1

    def share(self, sequences: TokenSequences, batch_size: int) -> TokenSequences:
        """Return the sequences of this process, see :meth:`TokenSequences.share`."""
        return sequences if self.count == 1 else sequences.share(self.rank, self.count, batch_size)

    def check_batches(self, sequences: TokenSequences, batch_size: int) -> None:
        """Raise unless there is a batch of sequences, besides the held-out ones, for every process.

        Raises
        ------
        OptionError
            There are fewer.
        """
        n_batches = sum(1 for _ in sequences.parts[0].batches(batch_size)) if self.count > 1 else self.count
        if n_batches < self.count:
            raise OptionError(
                f"{self.count} processes need {self.count} batches of calibration sequences or more, got {n_batches} "
                f"({len(sequences)} sequences, {sequences.held_out} of them held out, {batch_size} in a batch); start fewer "
                "processes, give more text (--samples), or make the batches smaller (--batch-size)"
            )

    def share_of(self, items: Sequence[Value]) -> list[Value]:
        """Return the items that this process works on: every `count`-th one."""
        return list(items[self.rank :: self.count])

    def owner(self, number: int) -> int:
        """Return the rank of the process that works on the item with this number, see :meth:`share_of`."""
        return number % self.count

    def add_up(self, sums: Iterable[object], owner: int | None = None) -> None:
        """Replace every attribute of some objects that is a tensor or a number by its sum over the processes.

        Parameters
        ----------
        sums : iterable of objects
            Objects whose attributes have the same names, shapes and dtypes in all processes. Sums of integers must be below
            2^53.
        owner : int, optional
            The only process that needs the sums; the values of the others are undefined afterwards. By default, all processes
            get the same bits.
        """

    def from_one(self, make: Callable[[], Value], owner: int = 0) -> Value:  # noqa: ARG002 -- the only process
        """Let one process make a value, whose tensors are on the CPU, and return that value in all processes."""
        return make()

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, by rank."""
        return [value]

    def first(self, value: Any) -> Any:
        """Return the value of process 0."""
        return self.from_one(lambda: value)
