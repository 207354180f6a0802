"""Notice within a minute that another process of a run has failed or has been killed.

Every process counts up a number in the store that the processes share, and reads the numbers of the others. A process that
fails writes its reason there. Without this, the others would wait for it as long as a collective operation may take.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import threading
import time
from datetime import timedelta
from typing import Any

from llmrank.errors import ProcessError

__all__ = ["BEAT", "SILENCE", "Heartbeat"]

# Seconds between two beats.
BEAT = 0.5
# After so many seconds without a beat, a process counts as dead.
SILENCE = 30.0
# A launcher that has seen a process die ends the others. They look for so many seconds which process does not beat any more.
LAST_LOOK = 3.0
FAILED = "failed"


class Heartbeat:
    """The beats of one process, and what it knows about the others.

    Parameters
    ----------
    store : torch.distributed.Store
        For this object alone: a thread of its own uses it.
    rank, count : int

    Attributes
    ----------
    failure : ProcessError or None
        Names the first other process that has failed. If that happens while the main thread does something else than
        :meth:`check`, it gets a KeyboardInterrupt.
    """

    def __init__(self, store: Any, rank: int, count: int) -> None:
        self.failure: ProcessError | None = None
        self._store, self._rank, self._count = store, rank, count
        store.set_timeout(timedelta(seconds=SILENCE))
        self._stopped = threading.Event()
        self._noticed = threading.Event()
        self._has_interrupted = False
        # The last beat of every other process, and when it was seen.
        now = time.monotonic()
        self._seen = {other: (0, now) for other in range(count) if other != rank}
        self._is_main = threading.current_thread() is threading.main_thread()
        self._thread = threading.Thread(target=self._beat, name="llmrank-heartbeat", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise if another process has failed."""
        if self.failure is not None:
            self._noticed.set()
            raise self.failure

    def cause_of(self, error: BaseException) -> ProcessError | None:
        """Return the failure of another process that an error of this one comes from, or None.

        A connection that breaks, or a launcher that ends this process, tells that another process failed, but not which one.
        """
        self._noticed.set()
        if isinstance(error, KeyboardInterrupt) and not error.args:  # Ctrl-C, or the thread
            return self.failure if self._has_interrupted else None
        if not isinstance(error, (ProcessError, KeyboardInterrupt)):
            return None
        if isinstance(error, KeyboardInterrupt) or error.rank is None:
            start = time.monotonic()
            while self.failure is None and time.monotonic() - start < LAST_LOOK:
                _pause(BEAT / 5)
            # The last beat of a dead process may be read after its end; the others beat all the time.
            dead = [other for other, (_, moment) in self._seen.items() if moment < start + LAST_LOOK / 2]
            if self.failure is None and dead:
                self._fail(dead[0], "it does not answer any more")
        return self.failure

    def report(self, error: BaseException) -> None:
        """Tell the others why this process ends, and wait until they have read it."""
        text = "it was interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(Exception):  # the store may be gone
            self._store.compare_set(FAILED, "", json.dumps([self._rank, text, True]))
        _pause(4 * BEAT)

    def stop(self) -> None:
        """Beat no more."""
        self._noticed.set()
        self._stopped.set()
        self._thread.join(SILENCE)

    def _beat(self) -> None:
        beat = 0
        while not self._stopped.wait(BEAT):
            beat += 1
            try:
                self._store.set(f"beat/{self._rank}", str(beat))
                self._look()
            except Exception as error:  # torch raises several types when the store is gone
                if not self._stopped.is_set():
                    reason = f"the store that the processes share is gone ({str(error).splitlines()[0]})"
                    self._set(0, f"it, or the launcher, has ended: {reason}")
            if self.failure is not None:
                break
        # A main thread that waits for the others sees it by itself.
        if not self._stopped.is_set() and not self._noticed.wait(2 * BEAT) and self._is_main:
            self._has_interrupted = True
            _interrupt_main()
        with contextlib.suppress(Exception):
            while not self._stopped.wait(BEAT):  # the others must not take this process for the one that died
                beat += 1
                self._store.set(f"beat/{self._rank}", str(beat))

    def _look(self) -> None:
        if self._store.check([FAILED]):
            rank, text, said_why = json.loads(self._store.get(FAILED))
            if rank != self._rank:
                self._set(rank, text, said_why=said_why)
            return
        now = time.monotonic()
        for other, (last, moment) in self._seen.items():
            key = f"beat/{other}"
            beat = int(self._store.get(key)) if self._store.check([key]) else 0
            if beat != last:
                self._seen[other] = beat, now
            elif now - moment > SILENCE:
                self._fail(other, f"it has not answered for {SILENCE:.0f} seconds")
                return

    def _fail(self, rank: int, text: str) -> None:
        """Note that another process is dead."""
        with contextlib.suppress(Exception):
            self._store.compare_set(FAILED, "", json.dumps([rank, text, False]))
        self._set(rank, text)

    def _set(self, rank: int, text: str, *, said_why: bool = False) -> None:
        self.failure = ProcessError(
            f"process {rank} of the processes 0 to {self._count - 1} has failed, so the others ended too, and nothing was "
            f"written: {text}",
            rank,
            said_why=said_why,
        )


def _interrupt_main() -> None:
    """Raise KeyboardInterrupt in the main thread, also where SIGINT is ignored, as in a command that ``nohup`` has started."""
    ident = ctypes.c_ulong(threading.main_thread().ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(KeyboardInterrupt))


def _pause(seconds: float) -> None:
    """Sleep; a launcher that ends this process meanwhile must not hide why it ends."""
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(seconds)
