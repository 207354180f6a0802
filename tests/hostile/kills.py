"""Signals at any moment: the output is as it was or whole, and the next run ends as if nothing had been, bit for bit."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

from tests.hostile.harness import Attack, Fell
from tests.hostile.writers import Events, Writer, contents, finish, forked, judged, writers

__all__ = ["KILLS", "SIGNALS", "die"]

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What is at the output of a command before it runs, and what its line says for the output.
TARGETS = {"absent": "", "empty": "", "a link": "FOLDER/link", "the current directory": "."}
# Commands that write a checkpoint into a directory that exists.
INTO = ("prune", "apply", "heal")


def case(chosen: list[Writer], rng: random.Random, folder: Path) -> str:
    """Kill any command that writes, at any of its calls, and the runs that go on with it too."""
    writer, target = rng.choice(chosen), "absent"
    if writer.name in INTO:
        target = rng.choice(list(TARGETS))
        writer = prepared(writer, target, folder)
    state, what, numbers = "absent", f"{writer.name}, {target}", list[signal.Signals]()
    for _ in range(rng.choice([1, 1, 2, 3])):
        number = rng.choice(SIGNALS)
        numbers.append(number)
        # Half of them come at a change of a directory.
        at = rng.choice(writer.events.changes) if rng.random() < 0.5 else rng.randint(1, writer.events.count)
        what += f", {signal.Signals(number).name} at event {at}"
        with forked(writer.line(folder), partial(writer.start, folder), Events(at, partial(die, number))) as wait:
            ended = wait()
        if ended.status not in (0, 2, -number, 128 + number) or ended.is_traceback:
            raise Fell(f"{what}: status {ended.status}: {ended.said[-1500:]}")
        if target == "the current directory" and signal.SIGKILL in numbers and is_part(folder / writer.output):
            state = "a part that no loader takes"
        else:
            state = judged(writer, folder, what)
        if ended.status == 0:
            break
    finish(writer, folder, what)
    return f"{len(numbers)} signal{'s' * (len(numbers) > 1)}, {state}"


def prepared(writer: Writer, target: str, folder: Path) -> Writer:
    """Make what is at the output before the command runs."""
    output = folder / writer.output
    if target != "absent":
        output.mkdir()
    if target == "a link":
        (folder / "link").symlink_to(output.name)
    return replace(writer, shown=TARGETS[target])


def is_part(output: Path) -> bool:
    """Whether there are some files of a checkpoint, which nobody takes for a model. Who replaces a directory leaves none."""
    found = contents(output)
    return bool(found) and "config.json" not in found


def die(number: signal.Signals, _where: str) -> None:
    """Send this process a signal."""
    os.kill(os.getpid(), number)


KILLS = Attack("kills", "signals at any moment of every command that writes", writers, case, weight=6.0)
