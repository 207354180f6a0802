"""Signals at any moment: the output is as it was or whole, and the next run ends as if nothing had been, bit for bit."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.hostile.forks import Events, Run, forked
from tests.hostile.harness import Attack, Failed
from tests.hostile.writers import INTO, WHOLE, Writer, finish, judged, writers

__all__ = ["ENDS", "KILLS", "die"]

# With which status each signal ends a command. After the last line of a command, SIGTERM ends the process itself.
ENDS = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGTERM: (128 + signal.SIGTERM, -signal.SIGTERM),
    signal.SIGINT: (128 + signal.SIGINT,),
}
# The event before is the call of the command line itself: nothing can answer yet.
FIRST = 2
# What is at the output of a command before it runs, and what its line says for the output.
TARGETS = {"absent": "", "empty": "", "a link": "FOLDER/link", "the current directory": "."}


def case(chosen: list[Writer], rng: random.Random, folder: Path) -> str:
    """Kill any command that writes, at any moment, and the runs that go on with it too."""
    writer, target = rng.choice(chosen), "absent"
    if writer.name in INTO:
        target = rng.choice(list(TARGETS))
        writer = prepared(writer, target, folder)
    state, what, numbers = "absent", f"{writer.name}, {target}", list[signal.Signals]()
    for _ in range(rng.choice([1, 1, 2, 3])):
        number, was_whole = rng.choice([*ENDS]), state in WHOLE
        numbers.append(number)
        moment, options = any_moment(writer, number, rng)
        what += f", {number.name} {moment}"
        with forked(writer.line(folder), folder, partial(writer.start, folder), **options) as wait:
            ended = wait()
        # What is complete is refused.
        if ended.status not in (0, *ENDS[number], *([2] if was_whole else [])) or ended.is_traceback:
            raise Failed(f"{what}: status {ended.status}: {ended.said[-1500:]}")
        if target == "the current directory" and signal.SIGKILL in numbers and writer.is_part(folder):
            state = "a part that no loader takes"
        else:
            state = judged(writer, folder, what)
        if ended.status == 0:
            if state != WHOLE[0]:
                raise Failed(f"{what}: status 0, but the output is {state}: {ended.said[-1500:]}")
            break
    left = counted_leftovers(writer, folder, numbers, ended)
    finish(writer, folder, what)
    return f"{len(numbers)} signal{'s' * (len(numbers) > 1)}, {state}{left}"


def any_moment(writer: Writer, number: signal.Signals, rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Choose when a signal comes; return it in words, and as options of a fork."""
    if rng.random() < 0.35:  # also within functions of C, and of other packages
        seconds = rng.uniform(0.0, 1.1 * writer.seconds)
        return f"after {seconds:.3f} s", {"after": (seconds, number)}
    # Half of the others come at a change of a directory.
    at = rng.choice(writer.events.changes) if rng.random() < 0.5 else rng.randint(FIRST, writer.events.count)
    return f"at event {at}", {"events": Events(at, partial(die, number))}


def counted_leftovers(writer: Writer, folder: Path, numbers: list[signal.Signals], ended: Run) -> str:
    """Return in words whether something is left of a command that could remove it.

    A second interruption, or one between two lines of the removal, may leave something. Nothing else may.
    """
    left = [] if signal.SIGKILL in numbers or ended.status < 0 else writer.leftovers(folder, may_go_on=True)
    if not left:
        return ""
    if ended.status == 0:
        raise Failed(f"{writer.name}: status 0, but it has left {left}")
    return ", with leftovers"


def prepared(writer: Writer, target: str, folder: Path) -> Writer:
    """Make what is at the output before the command runs."""
    output = folder / writer.output
    if target != "absent":
        output.mkdir()
    if target == "a link":
        (folder / "link").symlink_to(output.name)
    return replace(writer, shown=TARGETS[target])


def die(number: signal.Signals, _where: str) -> None:
    """Send this process a signal."""
    os.kill(os.getpid(), number)


KILLS = Attack("kills", "signals at any moment of every command that writes", writers, case, weight=6.0)
