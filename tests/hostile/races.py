"""Processes at the same output, and processes that share a run of which one dies: what is there at the end is whole."""

from __future__ import annotations

import random
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch.distributed

from llmrank import cli
from llmrank.execution import heartbeat
from tests.hostile.forks import Events, Run, forked
from tests.hostile.harness import Attack, Failed
from tests.hostile.kills import ENDS, die
from tests.hostile.outputs import contents
from tests.hostile.writers import WHOLE, Writer, clear_temporary, finish, judged, writers

__all__ = ["DEATHS", "RACES"]

# Commands that several processes can share.
SHARED = ("prune", "heal")
# Seconds by which one of two processes may be ahead; and after which a process that says nothing is taken for dead.
AHEAD, SILENCE = 0.8, 5.0


def race(chosen: list[Writer], rng: random.Random, folder: Path) -> str:
    """Run a command twice at the same time; sometimes one of the two is killed."""
    writer, killed = rng.choice(chosen), rng.random() < 0.3
    what = f"two processes, {writer.name}"
    dies = Events(rng.randint(1, writer.events.count), partial(die, signal.SIGKILL)) if killed else None
    with ExitStack() as both:
        line = writer.line(folder)
        waits = []
        for events in (dies, None):
            waits.append(both.enter_context(forked(line, folder, events=events)))
            time.sleep(rng.uniform(0.0, AHEAD))
        ended = [wait() for wait in waits]
    for one in ended:
        if one.status not in (0, 2, *([-signal.SIGKILL] if killed else [])) or one.is_traceback:
            raise Failed(f"{what}: status {one.status}: {one.said[-1500:]}")
    state, written = judged(writer, folder, what), sum(one.status == 0 for one in ended)
    if state not in WHOLE and (written or not killed):
        raise Failed(f"{what}: {state}, and they said {[one.said[-700:] for one in ended]}")
    if not killed and writer.leftovers(folder):
        raise Failed(f"{what}: they have left {writer.leftovers(folder)}")
    finish(writer, folder, what)
    return f"{'one killed, ' if killed else ''}written by {written}"


def be_impatient() -> None:
    """Take another process for dead soon, and end soon after it."""
    heartbeat.SILENCE, cli.SECONDS_TO_SPEAK = SILENCE, 0.5


def together(writer: Writer, folder: Path, all_events: Sequence[Events | None] = (None, None)) -> list[Run]:
    """Run a command in two processes that share its work."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    with ExitStack() as both:
        waits = []
        for rank, events in enumerate(all_events):
            variables = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), **address}
            waits.append(both.enter_context(forked(writer.line(folder), folder, be_impatient, events, variables)))
        return [wait() for wait in waits]


def shared_writers(folder: Path) -> list[Writer]:
    """Prepare the commands that several processes can share: what they write is what two processes write."""
    made = []
    for writer in writers(folder, SHARED):
        # Sums of two processes are rounded otherwise than those of one.
        place = folder / writer.name / "together"
        place.mkdir()
        assert [one.status for one in together(writer, place)] == [0, 0]
        made.append(replace(writer, whole=contents(place / writer.output)))
    return made


def death(chosen: list[Writer], rng: random.Random, folder: Path) -> str:
    """Let two processes share a run, and one of them die at any call after they have met."""
    writer, number, dying = rng.choice(chosen), rng.choice([*ENDS]), rng.randrange(2)
    at = rng.randint(1, writer.events.count)
    what = f"{writer.name}, {number.name} in process {dying} of two, from event {at} on"
    # A process that dies before the meeting may only be late to the other, which waits for it for minutes:
    # an earlier event becomes a death at the meeting.
    dies = Events(at, partial(die, number), torch.distributed.is_initialized)
    ended = together(writer, folder, (dies, None) if dying == 0 else (None, dies))
    for rank, one in enumerate(ended):
        allowed = (0, 2) if rank != dying else (0, 2, *ENDS[number])
        if one.status not in allowed or one.is_traceback:
            raise Failed(f"{what}: process {rank}: status {one.status}: {one.said[-1500:]}")
    state = judged(writer, folder, what)
    if ended[0].status == 0 and state not in WHOLE:  # process 0 writes
        raise Failed(f"{what}: status 0, but the output is {state}: {ended[0].said[-1500:]}")
    clear_temporary(folder)
    again = together(writer, folder)
    if any(one.status not in (0, 2) or one.is_traceback for one in again) or judged(writer, folder, what) not in WHOLE:
        raise Failed(f"{what}: the next run: {[(one.status, one.said[-700:]) for one in again]}")
    if writer.leftovers(folder):
        raise Failed(f"{what}: the next run has left {writer.leftovers(folder)}")
    return f"{writer.name}, {state}"


RACES = Attack("races", "two processes at the same output", writers, race)
DEATHS = Attack("deaths", "one of two processes that share a run dies", shared_writers, death)
