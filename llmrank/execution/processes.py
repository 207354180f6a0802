"""What a run asks of the processes that divide it, answered for a run in one process; :class:`SeveralProcesses` extends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from llmrank.errors import OptionError
from llmrank.text import TokenSequences

__all__ = ["Processes"]

Value = TypeVar("Value")


class Processes:
    """The processes of a run, as one of them sees them. This class is for a run in a single process: nothing is exchanged.

    All processes must call the methods that exchange values, in the same order.

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
        """Check that there is at least one batch of sequences for every process; held-out sequences do not count.

        Raises
        ------
        OptionError
            There are fewer batches than processes.
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

    def check_others(self) -> None:
        """Raise a ProcessError if another process has failed; nothing is exchanged."""

    def add_up(self, sums: Iterable[object], owner: int | None = None) -> None:
        """Replace tensors and numbers by their sums over the processes: those that are attributes of the given objects.

        Parameters
        ----------
        sums : iterable of objects
            Objects whose attributes have the same names, shapes and dtypes in all processes. Sums of integers must be below
            2^53.
        owner : int, optional
            The only process that needs the sums; in the other processes, the attributes are undefined afterwards. By default,
            all processes get the same sums, bit by bit.
        """

    def from_one(self, make: Callable[[], Value], owner: int = 0) -> Value:  # noqa: ARG002 -- the only process
        """Let one process make a value, whose tensors are on the CPU, and return that value in all processes."""
        return make()

    def gather(self, value: Value) -> list[Value]:
        """Return the values that all processes give, in the order of their ranks."""
        return [value]

    def first(self, value: Any) -> Any:
        """Return in all processes the value that process 0 gives."""
        return self.from_one(lambda: value)
