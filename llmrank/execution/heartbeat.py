"""Know within a minute that another process of a run has failed or has been killed.

The processes share a store of keys and values. Every process regularly raises a number of its own in the store, its beat, and
reads the beats of the others. A process that fails writes the reason into the store. Without this, the others would wait for the
failed process until the time limit of a collective operation.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from datetime import timedelta
from typing import Any

from llmrank.errors import ProcessError

__all__ = ["ARRIVAL", "BEAT", "SILENCE", "Heartbeat"]

# Seconds between two beats.
BEAT = 0.5
# A process that has not beaten for this many seconds counts as dead.
SILENCE = 30.0
# A process that has never beaten may still be on its way, because it may load a model first. It counts as dead this many seconds
# after the start of this process.
ARRIVAL = 300.0
# When one process dies, the launcher ends the others. Before such a process ends, it looks for this many seconds which of the
# others does not beat any more, so that its message can name the dead one.
LAST_LOOK = 3.0
# The key of the failure in the store: number of the process, reason, and whether that process itself gave the reason.
FAILED = "failed"


class Heartbeat:
    """A thread that beats for one process, and watches the beats of the others.

    Parameters
    ----------
    store : torch.distributed.Store
        A connection to the store that nothing else uses, because the thread of this object uses it.
    rank, count : int
        Number of this process, and number of processes.
    arrival : float
        Seconds within which the other processes must come.

    Attributes
    ----------
    failure : ProcessError or None
        Names the first other process that has failed. The main thread learns it from :meth:`check`.
    """

    def __init__(self, store: Any, rank: int, count: int, arrival: float = ARRIVAL) -> None:
        self._arrival = arrival
        self.failure: ProcessError | None = None
        self._store, self._rank, self._count = store, rank, count
        store.set_timeout(timedelta(seconds=SILENCE))
        self._stopped = threading.Event()
        # The last beat of every other process, and the time at which it was first read.
        now = time.monotonic()
        self._seen = {other: (0, now) for other in range(count) if other != rank}
        self._thread = threading.Thread(target=self._beat, name="llmrank-heartbeat", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise if another process has failed."""
        if self.failure is not None:
            raise self.failure

    def cause_of(self, error: BaseException) -> ProcessError | None:
        """Return the failure of another process that is the cause of an error of this process, or None if there is none.

        If a connection breaks, or the launcher ends this process, another process has failed, but it is not known which one.
        Then this method waits a few seconds to find it.
        """
        is_ctrl_c = isinstance(error, KeyboardInterrupt) and not error.args
        if is_ctrl_c or not isinstance(error, (ProcessError, KeyboardInterrupt)):
            return None
        if isinstance(error, KeyboardInterrupt) or error.rank is None:
            start = time.monotonic()
            while self.failure is None and time.monotonic() - start < LAST_LOOK:
                _pause(BEAT / 5)
            # Living processes beat all the time, so their beats are newer than the middle of the wait. That of a dead process is
            # older, even if it was read a moment after the end of that process.
            dead = [other for other, (_, moment) in self._seen.items() if moment < start + LAST_LOOK / 2]
            if self.failure is None and dead:
                self._report_dead(dead[0], "it does not answer any more")
        return self.failure

    def report(self, error: BaseException) -> None:
        """Tell the others why this process ends, and wait until they have had time to read the reason."""
        text = "it was interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(Exception):  # the store may be gone
            self._store.compare_set(FAILED, "", json.dumps([self._rank, text, True]))
        _pause(4 * BEAT)

    def wait_for_all(self) -> None:
        """Wait until all other processes have come; raise if one of them fails, or does not come."""
        while not all(beat for beat, _ in self._seen.values()):
            self.check()
            time.sleep(BEAT / 10)

    def stop(self) -> None:
        """Stop beating, and end the thread."""
        self._stopped.set()
        self._thread.join(SILENCE)

    def _beat(self) -> None:
        beat = 0
        while not self._stopped.wait(BEAT if beat else 0.0):
            beat += 1
            try:
                # After a failure too, so that the others do not take this process for the dead one.
                self._store.set(f"beat/{self._rank}", str(beat))
                if self.failure is None:
                    self._look_for_failure()
            except Exception as error:  # torch raises several types when the store is gone
                if self.failure is None and not self._stopped.is_set():
                    reason = f"the store that the processes share is gone ({str(error).splitlines()[0]})"
                    self._set_failure(0, f"it, or the launcher, has ended: {reason}")
                return  # nobody can read a beat any more, and torch logs each attempt

    def _look_for_failure(self) -> None:
        """Set :attr:`failure` if another process has reported a failure, or has not beaten for too long."""
        if self._store.check([FAILED]):
            rank, text, said_why = json.loads(self._store.get(FAILED))
            if rank != self._rank:
                self._set_failure(rank, text, said_why=said_why)
            elif not said_why:
                self._set_failure(rank, f"the others ended, because {text}")
            return
        now = time.monotonic()
        for other, (last, moment) in self._seen.items():
            key = f"beat/{other}"
            beat = int(self._store.get(key)) if self._store.check([key]) else 0
            if beat != last:
                self._seen[other] = beat, now
            elif last and now - moment > SILENCE:
                self._report_dead(other, f"it has not answered for {SILENCE:.0f} seconds")
                return
            elif not last and now - moment > self._arrival:
                self._report_dead(
                    other, f"it did not come within {self._arrival:.0f} seconds; start all processes together"
                )
                return

    def _report_dead(self, rank: int, text: str) -> None:
        """Tell all processes that another process is dead."""
        with contextlib.suppress(Exception):
            self._store.compare_set(FAILED, "", json.dumps([rank, text, False]))
        self._set_failure(rank, text)

    def _set_failure(self, rank: int, text: str, *, said_why: bool = False) -> None:
        self.failure = ProcessError(
            f"process {rank} of the processes 0 to {self._count - 1} has failed, so the others ended too, and nothing was "
            f"written: {text}",
            rank,
            said_why=said_why,
        )


def _pause(seconds: float) -> None:
    """Sleep, without an exception if the launcher interrupts this process, so that the process can still say why it ends."""
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(seconds)
