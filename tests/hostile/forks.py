"""Commands in forks of this process, which are interrupted at an event or after a time, and what they have said."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from llmrank import cli
from tests.hostile.faults import of_packages
from tests.hostile.harness import SECONDS

__all__ = ["CHANGES", "TEMPORARY", "Events", "Run", "forked"]

# Functions of C that change directories.
CHANGES = frozenset({os.mkdir, os.rename, os.replace, os.rmdir, os.unlink, os.chmod, os.fsync})
# The directory for temporary files of the commands of a case, in its folder.
TEMPORARY = "tmp"


class Events:
    """Counts what a command does, and acts once, at one of these events or soon after it.

    Parameters
    ----------
    at : int
        The number of the event, from 1 on; with 0 nothing is done.
    act : callable
        What is done; it gets the name of the function that is called at this event.
    ready : callable
        While it returns False, the action waits for a later event.

    Attributes
    ----------
    count : int
        Calls of functions of the packages, and of what changes directories.
    changes : list of int
        Which of them change directories.
    """

    def __init__(
        self, at: int = 0, act: Callable[[str], None] = lambda _: None, ready: Callable[[], bool] = lambda: True
    ) -> None:
        self.count, self.changes = 0, list[int]()
        self._at, self._act, self._ready = at, act, ready

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        is_change = event == "c_call" and argument in CHANGES
        if not is_change and not (event == "call" and of_packages(frame.f_code)):
            return
        self.count += 1
        if is_change:
            self.changes.append(self.count)
        if 0 < self._at <= self.count and self._ready():
            self._at = 0
            self._act(argument.__name__ if is_change else frame.f_code.co_name)


@dataclass(frozen=True)
class Run:
    """How a fork has ended: its exit status (minus the signal that ended it), and what it has said on standard error."""

    status: int
    said: str

    @property
    def is_traceback(self) -> bool:
        """Whether it has shown a traceback, or called itself a bug."""
        # Where an object is deleted, Python itself shows an interruption, and goes on.
        said = re.sub(r"Exception ignored in.*?\nKeyboardInterrupt[^\n]*\n", "", self.said, flags=re.DOTALL)
        return "Traceback" in said or "bug in llmrank" in said


@contextmanager
def forked(
    line: list[str],
    folder: Path,
    at_start: Callable[[], Any] = lambda: None,
    events: Callable[..., None] | None = None,
    variables: Mapping[str, str] | None = None,
    after: tuple[float, signal.Signals] | None = None,
) -> Iterator[Callable[[], Run]]:
    """Run a command in a fork; the context yields a function that waits for it. No fork outlives the context.

    Parameters
    ----------
    line : list of str
    folder : Path
        The folder of the case; temporary files are written there.
    at_start : callable
        Called in the fork before the command.
    events : callable, optional
        Sees every event of the command.
    variables : mapping, optional
        Variables of its environment.
    after : (float, signal), optional
        Seconds until a signal is sent to it, wherever it is then, if somebody waits.
    """
    temporary = folder / TEMPORARY
    temporary.mkdir(exist_ok=True)
    temporary.chmod(0o777)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(line, write, at_start, events, {"TMPDIR": str(temporary), **(variables or {})})
    os.close(write)
    said, ended = bytearray(), list[Run]()

    def wait() -> Run:
        if signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL:  # which would end this process
            signal.alarm(SECONDS)  # for each run of a case
        if after is not None:
            time.sleep(after[0])
            os.kill(pid, after[1])  # if it has ended, it is not yet waited for, so no other process has its number
        while part := os.read(read, 1 << 16):
            said.extend(part)
        ended.append(Run(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.decode(errors="replace")))
        return ended[0]

    try:
        yield wait
    finally:
        if not ended:
            os.kill(pid, signal.SIGKILL)
            wait()
            sys.stderr.write(f"killed, because it is not waited for: {line}: {ended[0].said}\n")
        os.close(read)


def _child(line: list[str], said: int, at_start: Any, events: Any, variables: dict[str, str]) -> None:
    status, is_outside = 70, True
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        # A shell starts what runs in the background without it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ.update(variables)
        tempfile.tempdir = None  # Python has noted the directory of this process
        torch.set_num_threads(1)
        at_start()
        is_outside = False
        sys.setprofile(events)
        status = cli.main(line)
        sys.setprofile(None)
        is_outside = True
        sys.stderr.flush()
    except KeyboardInterrupt:
        if not is_outside:  # before the command and after it, the interruption is Python's to answer
            raise
        status = status if status != 70 else 128 + signal.SIGINT
    finally:
        os._exit(status)
