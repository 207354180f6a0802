"""Several processes that divide a run among themselves, on torch.distributed."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from llmrank.errors import LLMRankError, ProcessError, is_out_of_memory
from llmrank.execution.heartbeat import Heartbeat
from llmrank.execution.processes import Processes

__all__ = ["SeveralProcesses"]

Value = TypeVar("Value")
# One operation adds up at most this many numbers, so that it ends long before its time limit.
NUMBERS_AT_ONCE = 1 << 23
# A process that waits for the others looks again after a pause whether they have come: seconds of the first and longest pause.
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.05
# At the end, process 0 waits at most this many seconds until the others have left.
LONGEST_FAREWELL = 10.0


class SeveralProcesses(Processes):
    """The processes of a run, as one of several processes sees them.

    Before each exchange, a process waits until all others have come to the same exchange. While it waits, :class:`Heartbeat`
    tells whether the others are still alive.

    Parameters
    ----------
    groups : dict from str to torch.distributed.ProcessGroup
        For each type of device, the group that exchanges tensors on it; at least a group for "cpu".
    store : torch.distributed.Store
        The keys and values that all processes share.
    heartbeat : Heartbeat
    """

    def __init__(self, groups: dict[str, Any], store: Any, heartbeat: Heartbeat) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self._groups, self._store, self._heartbeat = groups, store, heartbeat
        self._n_meetings = 0

    def check_others(self) -> None:
        """See :meth:`Processes.check_others`."""
        self._heartbeat.check()

    def add_up(self, sums: Iterable[object], owner: int | None = None) -> None:
        """See :meth:`Processes.add_up`."""
        values = [(holder, name, value) for holder in sums for name, value in vars(holder).items()]
        numeric = [each for each in values if isinstance(each[2], (int, float)) and not isinstance(each[2], bool)]
        numbers = torch.tensor([float(value) for _, _, value in numeric], dtype=torch.float64)
        tensors = [value for _, _, value in values if isinstance(value, torch.Tensor)]
        if not numbers.numel() and not tensors:
            return
        with self._meeting(f"sums of {[len(numbers), *(list(tensor.shape) for tensor in tensors)]}"):
            for batch in _batches([numbers, *tensors]):
                self._add_batch(batch, owner)
        for (holder, name, value), total in zip(numeric, numbers.tolist(), strict=True):
            setattr(holder, name, round(total) if isinstance(value, int) else total)

    def _add_batch(self, batch: Sequence[torch.Tensor], owner: int | None) -> None:
        """Add up flat tensors of one dtype on one device, in place."""
        flat = batch[0] if len(batch) == 1 else torch.cat(list(batch))
        sums = flat if flat.device.type in self._groups else flat.cpu()
        group = self._groups[sums.device.type]
        if owner is None:
            dist.all_reduce(sums, group=group)
        else:
            dist.reduce(sums, owner, group=group)
        if sums is not batch[0]:
            for tensor, total in zip(batch, torch.split(sums, [len(tensor) for tensor in batch]), strict=True):
                tensor.copy_(total)

    def from_one(self, make: Callable[[], Value], owner: int = 0) -> Value:
        """See :meth:`Processes.from_one`."""
        # An error is sent like a value, so that all processes raise the same error, with the reason.
        made: list[Any] = [None, None]  # the value, and the error
        if self.rank == owner:
            try:
                made[0] = make()
            except LLMRankError as error:
                made[1] = error
        with self._meeting(f"a value of process {owner}"):
            dist.broadcast_object_list(made, owner, group=self._groups["cpu"])
        if made[1] is not None:
            raise made[1]
        return made[0]  # type: ignore[no-any-return]

    def gather(self, value: Value) -> list[Value]:
        """See :meth:`Processes.gather`."""
        values: list[Any] = [None] * self.count
        with self._meeting("a value of each process"):
            dist.all_gather_object(values, value, group=self._groups["cpu"])
        return values

    def end(self) -> None:
        """Wait until all processes have come to the end. Process 0 leaves last, because the store may be in its memory."""
        with self._meeting("the end"):
            pass
        if self.rank:
            with contextlib.suppress(RuntimeError):
                self._store.set(f"left/{self.rank}", "")
            return
        left, start = [f"left/{other}" for other in range(1, self.count)], time.monotonic()
        while not self._store.check(left) and time.monotonic() - start < LONGEST_FAREWELL:
            time.sleep(LONGEST_PAUSE)

    @contextlib.contextmanager
    def _meeting(self, purpose: str) -> Iterator[None]:
        """Wait until all processes have come to an exchange with this purpose; inside, broken connections are ProcessErrors."""
        try:
            self._meet(purpose)
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._heartbeat.check()
            reason = str(error).splitlines()[0]
            raise ProcessError(f"the connection between the processes broke: {reason}", None) from error

    def _meet(self, purpose: str) -> None:
        """Wait until all processes have come, and compare their purposes."""
        self._heartbeat.check()
        number, self._n_meetings = self._n_meetings, self._n_meetings + 1
        self._store.set(f"{number}/{self.rank}", json.dumps(purpose))
        for other in range(self.count):
            key, pause = f"{number}/{other}", FIRST_PAUSE
            while not self._store.check([key]):
                self._heartbeat.check()
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            found = json.loads(self._store.get(key))
            if found != purpose:
                raise ProcessError(
                    f"process {self.rank} came to exchange {purpose}, and process {other} {found}: start all processes with the "
                    "same model, the same options and the same versions of all packages",
                    other,
                )
        # All processes have come here, so none still needs the key of the previous meeting.
        if number:
            self._store.delete_key(f"{number - 1}/{self.rank}")


def _batches(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield lists of flat views of contiguous tensors: each list is of one dtype on one device, and small enough for one sum."""
    batch: list[torch.Tensor] = []
    size = 0
    for piece in (piece for tensor in tensors for piece in torch.split(tensor.view(-1), NUMBERS_AT_ONCE)):
        alike = not batch or (batch[0].dtype, batch[0].device) == (piece.dtype, piece.device)
        if batch and not (alike and size + len(piece) <= NUMBERS_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += len(piece)
    if batch:
        yield batch
