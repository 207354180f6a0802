"""Signals at any moment of saving: the output is as it was or whole, and the next run removes what is left."""

from __future__ import annotations

import random
import signal
from pathlib import Path

from tests.hostile.harness import Attack, Fell
from tests.llmrank.cli.commands.test_kills import PAUSE, SIGNALS, Command, leftovers, target

__all__ = ["KILLS"]

TARGETS = ("absent", "empty", "link", "here")


def prepare(folder: Path) -> Command:
    """Save once, to know how many steps there are."""
    return Command(folder)


def case(command: Command, rng: random.Random, folder: Path) -> str:
    """Kill a command that saves, look at what is there, and run it again."""
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
    return f"{after} after {signal.Signals(number).name}"


KILLS = Attack("kills", "signals while a checkpoint is saved", prepare, case)
