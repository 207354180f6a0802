"""Disks that are full, or that refuse: a sentence and status 2, nothing is left, and the next run ends as if nothing had been."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
from functools import partial
from pathlib import Path
from typing import Any

from tests.hostile.forks import CHANGES, Events, forked
from tests.hostile.harness import Attack, Failed
from tests.hostile.writers import WHOLE, Writer, finish, judged, writers

__all__ = ["DISKS"]

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT)
NOBODY = 65534


def limit(size: int) -> None:
    """Let no file of this process become larger, whoever writes it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def refuse(number: int, where: str) -> None:
    """Refuse a change of a directory, unless it removes something, for which every disk has room."""
    # Events may shift by a few from run to run, and then another function is called at this one.
    if where in {each.__name__ for each in CHANGES} - {"unlink", "rmdir"}:
        raise OSError(number, os.strerror(number))


def become_nobody() -> None:
    """Lose the right to write everywhere, which root has."""
    if os.getuid() == 0:
        os.setuid(NOBODY)


def case(chosen: list[Writer], rng: random.Random, folder: Path) -> str:
    """Run a command where it cannot write, and once more where it can."""
    writer, way = rng.choice(chosen), rng.choice(["full", "full", "refuses", "read-only"])
    options: dict[str, Any] = {}
    what = f"{writer.name}, {way}"
    if way == "full":
        size = int(writer.largest ** rng.uniform(0.0, 1.1))
        what += f" at {size} bytes"
        options["at_start"] = partial(limit, size)
    elif way == "refuses":
        at, number = rng.choice(writer.events.changes), rng.choice(ERRORS)
        what += f" event {at} with {errno.errorcode[number]}"
        options["events"] = Events(at, partial(refuse, number))
    else:
        folder.chmod(0o555)
        options["at_start"] = become_nobody
    with forked(writer.line(folder), folder, **options) as wait:
        ended = wait()
    folder.chmod(0o755)
    if ended.status not in (0, 2) or ended.is_traceback or (ended.status and not ended.said.strip()):
        raise Failed(f"{what}: status {ended.status}: {ended.said[-1500:]}")
    state = judged(writer, folder, what)
    if ended.status == 0 and state not in WHOLE:
        raise Failed(f"{what}: status 0, but the output is {state}: {ended.said[-1500:]}")
    left = writer.leftovers(folder, may_go_on=ended.status != 0)
    if left:
        raise Failed(f"{what}: status {ended.status}, and it has left {left}: {ended.said[-1500:]}")
    finish(writer, folder, what)
    return f"{way}, {'refused' if ended.status else 'written'}, {state}"


DISKS = Attack("disks", "disks that are full, refuse or are read-only, for every command that writes", writers, case)
