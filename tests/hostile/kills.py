"""Signals at any moment: the output is as it was or whole, and the next run ends as if nothing had been, bit for bit."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.hostile.harness import Attack, Fell
from tests.hostile.writers import Events, Writer, finish, forked, judged, writers
from tests.llmrank.cli.commands.test_kills import PAUSE, SIGNALS, Command, leftovers, target

__all__ = ["KILLS"]

TARGETS = ("absent", "empty", "link", "here")


@dataclass(frozen=True)
class Shared:
    """A command whose renames are slow, so that signals come between them; and every command that writes."""

    saving: Command
    writers: list[Writer]


def prepare(folder: Path) -> Shared:
    """Run every command once, to know what it does and writes."""
    (folder / "saving").mkdir()
    return Shared(Command(folder / "saving"), writers(folder))


def case(shared: Shared, rng: random.Random, folder: Path) -> str:
    """Kill a command, look at what is there, and run it again."""
    return between_renames(shared.saving, rng, folder) if rng.random() < 0.2 else anywhere(shared.writers, rng, folder)


def between_renames(command: Command, rng: random.Random, folder: Path) -> str:
    """Kill a command while it saves."""
    before, number = rng.choice(TARGETS), rng.choice(SIGNALS)
    place, output, shown, cwd = target(folder / "place", before)
    status = command.run(shown, cwd, (number, rng.randint(1, command.steps_seen or 1), rng.uniform(0, PAUSE)))
    after = command.state(output)
    # What cannot be replaced, the current directory, may hold a part that no loader takes.
    allowed = {"absent": ("absent", "whole")}.get(before, ("empty", "whole"))
    if before == "here" and number == signal.SIGKILL:
        allowed = (*allowed, "part that no loader takes")
    what = f"{signal.Signals(number).name} while saving into a target that was {before}"
    if after not in allowed:
        raise Fell(f"{what}: status {status}, and the target is {after}")
    again = command.run(shown, cwd)
    end, later = command.state(output), leftovers(place, before)
    if end != "whole" or again not in (0, 2) or later:
        raise Fell(f"{what}: the next run ended with status {again}, the target {end} and {len(later)} leftovers")
    return f"saving, {after}"


def anywhere(chosen: list[Writer], rng: random.Random, folder: Path) -> str:
    """Kill any command that writes, at any of its calls, and the runs that go on with it too."""
    writer = rng.choice(chosen)
    state, what = "absent", writer.name
    for _ in range(rng.choice([1, 1, 2, 3])):
        number = rng.choice(SIGNALS)
        # Half of them come at a change of a directory.
        at = rng.choice(writer.events.changes) if rng.random() < 0.5 else rng.randint(1, writer.events.count)
        what += f", {signal.Signals(number).name} at event {at}"
        with forked(writer.line(folder), events=Events(at, partial(die, number))) as wait:
            ended = wait()
        if ended.status not in (0, 2, -number, 128 + number) or ended.is_traceback:
            raise Fell(f"{what}: status {ended.status}: {ended.said[-1500:]}")
        state = judged(writer, folder, what)
        if ended.status == 0:
            break
    finish(writer, folder, what)
    return f"{writer.name}, {state}"


def die(number: signal.Signals, _where: str) -> None:
    """Send this process a signal."""
    os.kill(os.getpid(), number)


KILLS = Attack("kills", "signals at any moment of every command that writes", prepare, case, weight=4.0)
