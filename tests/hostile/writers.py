"""Every command that writes something: what it writes, what may be there on the way, and what it has left behind."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

import llmrank
from llmrank.cli.low_memory import unfinished_directory
from llmrank.execution.work_directory import holds_run
from llmrank.experiments.sweep_folder import ROWS
from tests.hostile.forks import TEMPORARY, Events, forked
from tests.hostile.harness import Failed, run_command
from tests.hostile.outputs import Contents, contents, missing_siblings
from tests.llmrank.commands import SHORT
from tests.llmrank.tiny_models import text, tiny_llama, tokenizer, write_vocabulary

__all__ = ["INTO", "WHOLE", "Writer", "clear_temporary", "finish", "judged", "writers"]

# Commands that write a checkpoint into a directory that may exist.
INTO = ("prune", "apply", "heal", "demo", "export --to vllm")
# Figures that are drawn when the rest is complete, so that they may be missing, but never cut.
LATE = {"heal": "healing.png", "demo": "removed_neurons.png"}
# The states of a complete output.
WHOLE = ("whole", "whole but for its figure")


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
        What it has written at the end, see :func:`tests.hostile.outputs.contents`.
    events : Events
        What it has done until then.
    seconds : float
        How long it has taken in a fork.
    largest : int
        Bytes of the largest file that it has written.
    shown : str
        What the command line says for the output: a path with FOLDER in it, or ``.`` for the current directory.
    """

    name: str
    arguments: tuple[str, ...]
    output: str
    whole: Contents
    events: Events
    seconds: float = 0.0
    largest: int = 0
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
        """Return whether the output is absent, whole, or a part that may be there; raise Failed if it is anything else."""
        output = folder / self.output
        found = contents(output) if output.exists() else {}
        if not found:  # nothing, or at most what the next run removes
            return "absent"
        if found == self.whole:
            return WHOLE[0]
        differ = [name for name in {*found, *self.whole} if found.get(name) != self.whole.get(name)]
        if differ == [LATE.get(self.name)] and differ[0] not in found:
            return WHOLE[1]
        if self.name == "sweep":
            differ = [name for name in differ if name in found and name != ROWS] + missing_siblings(found, self.whole)
            if not differ and all(row in self.whole[ROWS] for row in found.get(ROWS, [])):
                return "some rows"
        raise Failed(f"{self.name}: the output is neither as it was nor whole: {sorted(differ)} differ")

    def is_part(self, folder: Path) -> bool:
        """Whether there are some complete files of a checkpoint, which nobody takes for a model."""
        found = contents(folder / self.output)
        return (
            "config.json" not in found and {*found} <= {*self.whole} and all(found[k] == self.whole[k] for k in found)
        )

    def leftovers(self, folder: Path, *, may_go_on: bool = False) -> list[str]:
        """Return what is in the folder beside the output, and what is hidden anywhere in it.

        The states of a training, which the user has asked for, belong there; and if a run `may_go_on`, its files do.
        """
        kept = {self.output, "link", "states", TEMPORARY}
        unfinished = unfinished_directory(folder / self.output)
        if may_go_on and holds_run(unfinished):
            kept.add(unfinished.name)
        paths = [path for path in folder.iterdir() if path.name not in kept]
        hidden = [path for path in folder.rglob("*.partial") if path.parent != folder]
        return sorted(str(path.relative_to(folder)) for path in (*paths, *hidden, *(folder / TEMPORARY).glob("*")))


def judged(writer: Writer, folder: Path, what: str) -> str:
    """Return the state of the output; `what` is what has been done, for the message if it is none."""
    try:
        return writer.state(folder)
    except Failed as failed:
        raise Failed(f"{what}: {failed}") from failed


def clear_temporary(folder: Path) -> None:
    """Remove the temporary files that a killed command has left, as only the system can do it."""
    shutil.rmtree(folder / TEMPORARY, ignore_errors=True)


def finish(writer: Writer, folder: Path, what: str) -> None:
    """Run the command once more, and raise Failed unless everything is as if nothing had been."""
    clear_temporary(folder)
    with forked(writer.line(folder), folder, partial(writer.start, folder)) as wait:
        ended = wait()
    state, left = judged(writer, folder, what), writer.leftovers(folder)
    # What is complete is not written again.
    if state not in WHOLE or left or ended.status not in (0, 2) or ended.is_traceback:
        raise Failed(f"{what}: the next run: status {ended.status}, {state}, left {left}: {ended.said[-1500:]}")
    if ended.status == 0 and state != WHOLE[0]:
        raise Failed(f"{what}: the next run has drawn no figure")


def lines(folder: Path) -> dict[str, tuple[tuple[str, ...], str]]:
    """Write what the commands read; return the arguments and the output of each, by its name."""
    corpus, model = folder / "corpus.txt", llmrank.save(folder / "model", tiny_llama(), tokenizer())
    corpus.write_text(text(400), encoding="utf-8")
    folder.chmod(0o755)  # who has lost the rights of root can read it
    given = (str(model), "--calibration", str(corpus), *SHORT)
    for name, more in (("prune", ()), ("rank", ()), ("uneven", ("--pruner", "global:multiple_of=1"))):
        command = "prune" if name == "uneven" else name
        assert run_command(command, *given, *more, "--output", folder / name)[0] == 0
    pruned, short = str(folder / "prune"), ("--text", str(corpus), "--tokens", "64", "--sequence-length", "16")
    vocabulary = str(write_vocabulary(folder / "vocabulary.gguf"))
    rows = ("--evaluate", str(corpus), "--scorer", "norm", "--amount", "0.2,0.4", "--repair", "none,lstsq")
    healing = ("heal", pruned, "--against", str(model), *short, "--with", "learning_rate=0.001", "--checkpoints")
    seen = ("inspect", *given, "--compare", "none", "--layers", "0")
    graphs = ("--contexts", "--format", "graphml,gexf,neuronpedia,csv,npz,safetensors,contexts.csv,contexts.json")
    return {
        "prune": (("prune", *given), "out"),
        "prune --low-memory": (("prune", *given, "--low-memory"), "out"),
        "rank": (("rank", *given), "out"),
        "apply": (("apply", str(folder / "rank"), str(model)), "out"),
        "apply masks": (("apply", str(folder / "prune" / "masks.safetensors"), str(model)), "out"),
        "sweep": (("sweep", *given, *rows), "out"),
        "inspect": (seen, "out"),
        "inspect --format": ((*seen, *graphs), "out"),
        "demo": (("demo", "--model", *given), "out"),
        "heal": ((*healing, "FOLDER/states"), "out"),
        "predict": (("predict", str(model), *short), "out.safetensors"),
        "export": (("export", pruned, "--tokenizer", vocabulary), "out.gguf"),
        "export --to vllm": (("export", str(folder / "uneven"), "--to", "vllm"), "out"),
    }


def writers(folder: Path, names: Collection[str] = ()) -> list[Writer]:
    """Run every command that writes, or those of these names, twice: both times it must write the same."""
    torch.set_num_threads(1)
    made = []
    for name, (arguments, output) in lines(folder).items():
        if names and name not in names:
            continue
        place, again = folder / name / "once", folder / name / "again"
        for each in (place, again):
            each.mkdir(parents=True)
        events, writer = Events(), Writer(name, arguments, output, {}, Events())
        status, said, before = 70, "", sys.getprofile()
        sys.setprofile(events)
        try:
            status, said = run_command(*writer.line(place))
        finally:
            sys.setprofile(before)
        assert status == 0, (name, said)
        begun = perf_counter()
        with forked(writer.line(again), again) as wait:
            assert wait().status == 0, name
        seconds, largest = perf_counter() - begun, max(each.stat().st_size for each in again.rglob("*"))
        made.append(Writer(name, arguments, output, contents(place / output), events, seconds, largest))
        assert made[-1].state(again) == WHOLE[0]
        assert not made[-1].leftovers(again), name
    return made
