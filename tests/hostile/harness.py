"""Runs attacks case by case, and counts what each case ended with."""

from __future__ import annotations

import gc
import io
import random
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from graphs.errors import GraphError
from llmrank import cli
from llmrank.errors import LLMRankError

__all__ = [
    "Attack",
    "Failed",
    "Tally",
    "all_attacks",
    "attempt",
    "preparation",
    "refusal",
    "run",
    "run_command",
    "run_named",
]

# A case that takes longer hangs, or one of the runs of a command in a case.
SECONDS = 60
# A case on tiny files and models may not need more memory than this beside what the process has.
MEBIBYTES = 1024
# What users are told is an error of these types.
SAID = (LLMRankError, GraphError, OSError)


class Failed(AssertionError):  # noqa: N818 -- what is tested has failed
    """Raised by an attack that has found a defect."""


class Hang(BaseException):
    """Raised in a case that takes too long; no handler of errors catches it."""


@dataclass(frozen=True)
class Attack:
    """A kind of attack.

    Attributes
    ----------
    name : str
    about : str
        What is attacked.
    prepare : callable
        ``prepare(folder)`` makes what all cases share, once.
    case : callable
        ``case(shared, rng, folder)`` carries out a case in a folder of its own, and returns what it ended with, in a few words.
        It raises :class:`Failed` if something has failed; any other error counts as a failure too.
    weight : float
        Its share of the time, beside those of the others.
    """

    name: str
    about: str
    prepare: Callable[[Path], Any]
    case: Callable[[Any, random.Random, Path], str]
    weight: float = 1.0


@dataclass
class Tally:
    """What the cases of an attack ended with."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failed: dict[int, str] = field(default_factory=dict)
    """By the number of the case: the error with its traceback."""
    longest: float = 0.0
    mebibytes: float = 0.0

    @property
    def cases(self) -> int:
        return self.outcomes.total() + len(self.failed)


def refusal(error: BaseException) -> str:
    """Return what a refused case ended with: a message of one sentence at least, of a type that users are told of."""
    if not str(error).strip():
        raise Failed(f"{type(error).__name__} says nothing") from error
    return f"refused ({type(error).__name__})"


def forget_peak() -> None:
    """Let :func:`peak_mebibytes` begin anew, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mebibytes() -> float:
    """Return the most memory that the process has held since then; 0 where the system does not say."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def run_command(*arguments: Any) -> tuple[int, str]:
    """Run a command in this process; return its status and what it says on standard error."""
    said = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            status = cli.main([str(each) for each in arguments])
        except SystemExit as ended:
            status = int(ended.code or 0)
    return status, said.getvalue()


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise Hang(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(attack: Attack, shared: Any, number: int, seed: int, tally: Tally) -> None:
    """Carry out the case of a number, and enter it in the tally. The same seed and number give the same case."""
    rng = random.Random(f"{attack.name} {seed} {number}")
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    gc.collect(0)
    forget_peak()
    begun, before = perf_counter(), peak_mebibytes()
    try:
        with _within(SECONDS):
            outcome = attack.case(shared, rng, folder)
        grown = peak_mebibytes() - before
        tally.mebibytes = max(tally.mebibytes, grown)
        if grown > MEBIBYTES:
            raise Failed(f"the case took {grown:.0f} MiB more memory")
        tally.outcomes[outcome] += 1
    except KeyboardInterrupt:
        raise
    except BaseException:
        tally.failed[number] = traceback.format_exc()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    tally.longest = max(tally.longest, perf_counter() - begun)


@contextmanager
def preparation(attack: Attack) -> Iterator[Any]:
    """Make what all cases of an attack share, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        yield attack.prepare(Path(folder))


def run(attack: Attack, shared: Any, seconds: float, seed: int, first: int = 0, most: int | None = None) -> Tally:
    """Carry out cases, from the number `first` on, for so many seconds or until there are `most`."""
    tally, number, begun = Tally(), first, perf_counter()
    while perf_counter() - begun < seconds and (most is None or number - first < most):
        attempt(attack, shared, number, seed, tally)
        if number in tally.failed:
            sys.stderr.write(f"\n{attack.name}, case {number}, seed {seed}:\n{tally.failed[number]}\n")
            sys.stderr.flush()
        number += 1
    return tally


def run_named(name: str, seconds: float, seed: int, first: int, most: int | None) -> Tally:
    """Carry out cases of the attack of a name, in a process of its own."""
    attack = all_attacks()[name]
    with preparation(attack) as shared:
        return run(attack, shared, seconds, seed, first, most)


def all_attacks() -> dict[str, Attack]:
    """Return every attack by its name."""
    from tests.hostile import arguments, calls, disks, faults, files, kills, races, ranks

    every = (files.FILES, arguments.ARGUMENTS, calls.CALLS, faults.FAULTS, kills.KILLS, disks.DISKS)
    every += (races.RACES, races.DEATHS, ranks.RANKS)
    return {each.name: each for each in every}
