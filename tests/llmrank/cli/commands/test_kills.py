"""Commands that are killed while they save: the output is as it was or whole, and the next run removes what is left."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import llmrank
from llmrank import cli
from llmrank.surgery import checkpoint
from tests.llmrank.commands import SHORT
from tests.llmrank.tiny_models import text, tiny_llama, tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
PAUSE = 0.06


def slowed(function: Callable[..., Any], step: int) -> Callable[..., Any]:
    """The function, slow; a byte is written to `step` before and after it."""

    def slow(*arguments: Any, **options: Any) -> Any:
        os.write(step, b".")
        time.sleep(PAUSE)
        result = function(*arguments, **options)
        os.write(step, b".")
        time.sleep(PAUSE)
        return result

    return slow


def child(arguments: list[str], step: int, cwd: Path | None) -> None:
    """In a fork: a command whose renames and removals are slow; a byte is written to `step` for each step of its saving."""
    status = 70
    try:
        # A shell starts what runs in the background without it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        if cwd is not None:
            os.chdir(cwd)
        torch.set_num_threads(1)
        save = checkpoint.save

        def announced(*arguments: Any, **options: Any) -> Any:
            os.write(step, b".")
            for name in ("rename", "replace", "rmdir"):
                setattr(os, name, slowed(getattr(os, name), step))
            return save(*arguments, **options)

        checkpoint.save = announced
        status = cli.main(arguments)
    finally:
        os._exit(status)


class Command:
    """``llmrank prune`` on a tiny model, run in forks of this process."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.model = llmrank.save(folder / "model", tiny_llama(), tokenizer())
        self.corpus = folder / "corpus.txt"
        self.corpus.write_text(text(200), encoding="utf-8")
        assert self.run(folder / "whole") == 0
        self.whole = {path.name: path.stat().st_size for path in (folder / "whole").iterdir()}

    def run(self, output: Path, cwd: Path | None = None, kill: tuple[int, int, float] | None = None) -> int:
        """The exit status; minus the number of the signal that ended it.

        `kill` is a signal, the step of saving in which it comes, and how many seconds after the beginning of that step.
        """
        arguments = ["prune", str(self.model), "--output", str(output), "--calibration", str(self.corpus), *SHORT]
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            child(arguments, write, cwd)
        os.close(write)
        self.steps_seen = 0
        while os.read(read, 1):
            self.steps_seen += 1
            if kill is not None and self.steps_seen == kill[1]:
                time.sleep(kill[2])
                os.kill(pid, kill[0])
        os.close(read)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def state(self, output: Path) -> str:
        if not output.exists():
            return "absent"
        found = {path.name: path.stat().st_size for path in output.iterdir() if not path.name.endswith(".partial")}
        if not found:
            return "empty"
        if found.keys() == self.whole.keys() and found["model.safetensors"] == self.whole["model.safetensors"]:
            return "whole"
        return "part that loads" if "config.json" in found else "part that no loader takes"


def kills(folder: Path, n: int, targets: list[str]) -> Counter[tuple[str, ...]]:
    """What `n` kills left, spread over all steps of saving: (target before, signal, target after, leftovers at once, later)."""
    command, seen, generator = Command(folder), Counter[tuple[str, ...]](), random.Random(0)
    places = (folder / str(number) for number in itertools.count())
    for shift, before in enumerate(targets):
        _, output, shown, cwd = target(next(places), before)
        assert command.run(shown, cwd) == 0
        n_steps, n_kills = command.steps_seen, n // len(targets)
        for k in range(n_kills):
            number, step = SIGNALS[(k + shift) % len(SIGNALS)], 1 + round(k * (n_steps - 1) / (n_kills - 1))
            for _ in range(10):
                place, output, shown, cwd = target(next(places), before)
                status = command.run(shown, cwd, (number, step, generator.uniform(0, PAUSE)))
                if status != 0:  # else the command was faster than the signal
                    break
            after = command.state(output)
            left = leftovers(place, before)
            again = command.run(shown, cwd)
            end = command.state(output)
            if end != "whole" or again not in (0, 2):
                end = f"{end} with status {again}"
            later = leftovers(place, before)
            seen[before, number.name, str(status), after, f"{len(left)} left", end, f"{len(later)} left"] += 1
    return seen


def target(place: Path, before: str) -> tuple[Path, Path, Path, Path | None]:
    """A place of its own, the output in it, what the command line says for it, and the directory the command runs in."""
    place.mkdir()
    output = place / "out"
    if before != "absent":
        output.mkdir()
    if before == "link":
        (place / "link").symlink_to("out")
    return (
        place,
        output,
        {"link": place / "link", "here": Path()}.get(before, output),
        output if before == "here" else None,
    )


def leftovers(place: Path, before: str) -> list[str]:
    """All that is there but the target."""
    own = {place / "out", *([place / "link"] if before == "link" else [])}
    found = {*place.iterdir()} - own
    if (place / "out").exists():
        found |= {path for path in (place / "out").iterdir() if path.name.endswith(".partial")}
    return [str(path) for path in found]


def test_the_target_is_as_it_was_or_whole(tmp_path: Path) -> None:
    seen = kills(tmp_path, 18, ["absent", "empty", "link"])
    for before, name, status, after, _, end, later in seen:
        assert after in ({"absent": "absent"}.get(before, "empty"), "whole")
        assert (end, later) == ("whole", "0 left")
        # Behind the last line of a command, a signal ends the process as it ends any other.
        done = (-signal.SIGTERM,) if (name, after) == ("SIGTERM", "whole") else ()
        assert int(status) in ({"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143}[name], *done)
    # They came at all times: before the target appeared, and after.
    for before in ("absent", "empty", "link"):
        assert len({after for (target, _, _, after, *_), _ in seen.items() if target == before}) == 2
    # Who can clean up does; between two lines of the cleaning an interruption may still leave something.
    assert (
        sum(count for (_, name, _, _, left, *_), count in seen.items() if name != "SIGKILL" and left != "0 left") <= 3
    )
    assert any(left != "0 left" for _, _, _, _, left, *_ in seen)


def test_a_part_in_the_current_directory_is_taken_back(tmp_path: Path) -> None:
    """It cannot be replaced; a kill within the renames leaves a part that no loader takes."""
    seen = kills(tmp_path, 8, ["here"])
    for _, name, _, after, _, end, later in seen:
        assert after in ("empty", "whole", *(["part that no loader takes"] if name == "SIGKILL" else []))
        assert (end, later) == ("whole", "0 left")
    assert any("part" in after for _, _, _, after, *_ in seen)
