"""Every command that writes something, run in forks of this process: what it writes, and what it has left behind."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import llmrank
from llmrank import cli
from llmrank.cli.low_memory import unfinished_directory
from llmrank.execution.work_directory import holds_run
from llmrank.experiments.sweep_folder import ROWS, read_rows
from tests.hostile.faults import of_packages
from tests.hostile.harness import SECONDS, Fell, run_command
from tests.llmrank.commands import SHORT
from tests.llmrank.tiny_models import text, tiny_llama, tokenizer, write_vocabulary

__all__ = ["Events", "Run", "Writer", "contents", "finish", "forked", "judged", "writers"]

# Functions of C that change directories.
CHANGES = frozenset({os.mkdir, os.rename, os.replace, os.rmdir, os.unlink, os.chmod, os.fsync})
# Files whose bytes are the same after every run of a command; the others say how long it took.
SAME = (".safetensors", ".gguf", ".npz")
Contents = dict[str, Any]


class Events:
    """Counts what a command does, and acts at one of these events.

    Attributes
    ----------
    count : int
        Calls of functions of the packages, and of what changes directories.
    changes : list of int
        Which of them change directories.
    """

    def __init__(self, at: int = 0, act: Callable[[str], None] = lambda _: None) -> None:
        self.count, self.changes = 0, list[int]()
        self._at, self._act = at, act

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        is_change = event == "c_call" and argument in CHANGES
        if not is_change and not (event == "call" and of_packages(frame.f_code)):
            return
        self.count += 1
        if is_change:
            self.changes.append(self.count)
        if self.count == self._at:
            self._act(argument.__name__ if is_change else frame.f_code.co_name)


@dataclass(frozen=True)
class Writer:
    """A command that writes.

    Attributes
    ----------
    name : str
    arguments : tuple of str
        Without the output.
    output : str
        Name of its output, in the folder of the case.
    whole : dict
        What it has written at the end, see :func:`contents`.
    events : Events
        What it has done until then.
    is_exact : bool
        Whether the bytes of tensors must be the same; otherwise the names of files.
    shown : str
        What the command line says for the output: a path with FOLDER in it, or ``.`` for the current directory.
    """

    name: str
    arguments: tuple[str, ...]
    output: str
    whole: Contents
    events: Events
    is_exact: bool = True
    shown: str = ""

    def line(self, folder: Path) -> list[str]:
        """Return what a user types, also to go on with a run that was interrupted."""
        output = self.shown or f"FOLDER/{self.output}"
        line = [each.replace("FOLDER", str(folder)) for each in (*self.arguments, "--output", output)]
        if "--low-memory" in line and holds_run(unfinished_directory(folder / self.output)):
            line.append("--resume")
        return line

    def start(self, folder: Path) -> None:
        """Go to the output if the command line names the current directory."""
        if self.shown == ".":
            os.chdir(folder / self.output)

    def state(self, folder: Path) -> str:
        """Return whether the output is absent, whole, or a part that may be there; raise Fell if it is anything else."""
        output = folder / self.output
        found = contents(output) if output.exists() else {}
        if not found:  # nothing, or at most what the next run removes
            return "absent"
        if found == self.whole or (not self.is_exact and found.keys() == self.whole.keys()):
            return "whole"
        differ = sorted(name for name in {*found, *self.whole} if found.get(name) != self.whole.get(name))
        if self.name == "sweep" and all(row in self.whole["rows"] for row in found.get("rows", [])):
            differ = [name for name in differ if name in found and name != "rows"]
            if not differ:
                return "some rows"
        raise Fell(f"{self.name}: the output is neither as it was nor whole: {differ} differ")

    def leftovers(self, folder: Path) -> list[str]:
        """Return what is in the folder beside the output and the states of a training that the user has asked for."""
        beside = [path.name for path in folder.iterdir() if path.name not in (self.output, "link", "states")]
        return sorted([*beside, *(path.name for path in (folder / self.output).glob("*.partial"))])


def contents(output: Path) -> Contents:
    """Return the names of the files of an output, the bytes of those that hold tensors, and the rows of a sweep."""
    files = [output] if output.is_file() else [path for path in output.rglob("*") if path.is_file()]
    found: Contents = {
        "" if path == output else str(path.relative_to(output)): path.read_bytes() if path.suffix in SAME else b""
        for path in files
        # A figure may be missing, because it is drawn after the rest is complete.
        if path.suffix != ".png" and not any(part.endswith(".partial") for part in path.relative_to(output).parts)
    }
    if (output / ROWS).is_file():
        found["rows"] = [{**row, "seconds": 0} for row in read_rows(output)]
    return found


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
    at_start: Callable[[], Any] = lambda: None,
    events: Callable[..., None] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Callable[[], Run]]:
    """Run a command in a fork; the context yields a function that waits for it. No fork outlives the context."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(line, write, at_start, events, dict(variables or {}))
    os.close(write)
    said, ended = bytearray(), list[Run]()

    def wait() -> Run:
        signal.alarm(SECONDS)  # for each run of a case
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
    status = 70
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        # A shell starts what runs in the background without it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ.update(variables)
        torch.set_num_threads(1)
        at_start()
        sys.setprofile(events)
        status = cli.main(line)
        sys.setprofile(None)
        sys.stderr.flush()
    finally:
        os._exit(status)


def judged(writer: Writer, folder: Path, what: str) -> str:
    """Return the state of the output; `what` is what has been done, for the message if it is none."""
    try:
        return writer.state(folder)
    except Fell as fell:
        raise Fell(f"{what}: {fell}") from fell


def finish(writer: Writer, folder: Path, what: str) -> None:
    """Run the command once more, and raise Fell unless everything is as if nothing had been."""
    with forked(writer.line(folder), partial(writer.start, folder)) as wait:
        ended = wait()
    state, left = judged(writer, folder, what), writer.leftovers(folder)
    # What is complete is not written again.
    if state != "whole" or left or ended.status not in (0, 2) or ended.is_traceback:
        raise Fell(f"{what}: the next run: status {ended.status}, {state}, left {left}: {ended.said[-1500:]}")


def writers(folder: Path) -> list[Writer]:
    """Run every command that writes, once."""
    torch.set_num_threads(1)
    corpus, model = folder / "corpus.txt", llmrank.save(folder / "model", tiny_llama(), tokenizer())
    corpus.write_text(text(400), encoding="utf-8")
    given = (str(model), "--calibration", str(corpus), *SHORT)
    for name in ("prune", "rank"):
        assert run_command(name, *given, "--output", folder / name)[0] == 0
    pruned, short = str(folder / "prune"), ("--text", str(corpus), "--tokens", "64", "--sequence-length", "16")
    vocabulary = str(write_vocabulary(folder / "vocabulary.gguf"))
    healing = ("heal", pruned, "--against", str(model), *short, "--with", "learning_rate=0.001", "--checkpoints")
    lines = {
        "prune": (("prune", *given), "out"),
        "prune --low-memory": (("prune", *given, "--low-memory"), "out"),
        "rank": (("rank", *given), "out"),
        "apply": (("apply", str(folder / "rank"), str(model)), "out"),
        "sweep": (
            (
                "sweep",
                *given,
                "--evaluate",
                str(corpus),
                "--scorer",
                "norm",
                "--amount",
                "0.2,0.4",
                "--repair",
                "none,lstsq",
            ),
            "out",
        ),
        "inspect": (("inspect", *given), "out"),
        "heal": ((*healing, "FOLDER/states"), "out"),
        "predict": (("predict", str(model), *short), "out.safetensors"),
        "export": (("export", pruned, "--tokenizer", vocabulary), "out.gguf"),
    }
    made = []
    for number, (name, (arguments, output)) in enumerate(lines.items()):
        place = folder / str(number)
        place.mkdir()
        events, writer = Events(), Writer(name, arguments, output, {}, Events())
        status, said, before = 70, "", sys.getprofile()
        sys.setprofile(events)
        try:
            status, said = run_command(*writer.line(place))
        finally:
            sys.setprofile(before)
        assert status == 0, (name, said)
        made.append(Writer(name, arguments, output, contents(place / output), events))
    return made
