"""Bad values for every option of every command: a sentence and status 2, and nothing is written."""

from __future__ import annotations

import argparse
import os
import random
from dataclasses import dataclass
from pathlib import Path

import torch

import llmrank
from llmrank import cli
from tests.hostile.harness import Attack, Failed, run_command
from tests.llmrank.commands import SHORT
from tests.llmrank.tiny_models import text, tiny_llama, tokenizer, write_vocabulary

__all__ = ["ARGUMENTS"]

NUMBERS = "0 -1 1 1.0 0.5 2 1e9 1e-9 1e309 nan inf -inf 0x10 1_000 1,2 0.3,0.3"
WORDS = "none None null true auto default x é \u202e [bold] %s {} $HOME ~ * , - -x --"
PATHS = "/ . .. /dev/null /dev/full /dev/zero /proc/self/mem /nonexistent/x C:\\x http://x"
SPECS = """
wpr wpr: wpr:gamma wpr:gamma= wpr:gamma=2 wpr:gamma=nan wpr:beta=1 local:amount=0.3 global:, lstsq:ridge=-1 learn=lora
learning_rate=nan = a=b,c built-in:50%,x generated dataset:x neurons heads,blocks experts 0-3 3-0 0:0 model.layers.0.mlp:999999
cuda cuda:99 cpu:1 mps meta float8 int8
"""
VALUES = ("", " ", "a b", "a\nb", "a" * 5000, *f"{NUMBERS} {WORDS} {PATHS} {SPECS}".split())
# What must not run here: several minutes, a network, another process; or what writes where it is told to.
NEVER = {
    "checkpoints",
    "contexts",
    "debug",
    "eval_tasks",
    "heal",
    "help",
    "open",
    "output",
    "private",
    "push_to_hub",
    "speed",
} | {
    "task_dir",
    "tasks",
    "track",
    "trust_remote_code",
}
COMMANDS = tuple(name for name in cli.COMMANDS if name != "demo")


@dataclass(frozen=True)
class Shared:
    """A good line of arguments for every command, and its options."""

    good: dict[str, list[str]]
    options: dict[str, list[argparse.Action]]


def prepare(folder: Path) -> Shared:
    """Write what good arguments name."""
    torch.set_num_threads(1)
    corpus, model = folder / "corpus.txt", llmrank.save(folder / "model", tiny_llama(), tokenizer())
    corpus.write_text(text(400), encoding="utf-8")
    given = [str(model), "--calibration", str(corpus), *SHORT]
    for name in ("prune", "rank"):
        losses = ["--losses"] if name == "rank" else []
        assert run_command(name, *given, *losses, "--output", folder / name)[0] == 0
    pruned, short = str(folder / "prune"), ["--text", str(corpus), "--tokens", "64", "--sequence-length", "16"]
    good = {
        "prune": given,
        "rank": given,
        "plan": [str(folder / "rank"), str(model)],
        "apply": [str(folder / "rank"), str(model)],
        "heal": [pruned, "--against", str(model), *short],
        "predict": [str(model), *short],
        "sweep": [*given, "--evaluate", str(corpus)],
        "inspect": given,
        "evaluate": [
            pruned,
            "--against",
            str(model),
            "--text",
            str(corpus),
            "--sequence-length",
            "16",
            "--samples",
            "2",
        ],
        "diff": [pruned, pruned],
        "export": [pruned, "--to", "gguf", "--tokenizer", str(write_vocabulary(folder / "vocabulary.gguf"))],
        "components": ["wpr"],
        "families": ["llama"],
    }
    root = cli.parser(COMMANDS)
    found = next(each for each in root._actions if isinstance(each, argparse._SubParsersAction))
    options = {
        name: [each for each in found.choices[name]._actions if each.option_strings and each.dest not in NEVER]
        for name in COMMANDS
    }
    for name, arguments in good.items():  # what is refused before its bad value is met would say nothing
        status, said = run_command(name, *arguments, *output_of(name, folder / f"good {name}"))
        assert status == 0, f"{name} refuses a good line of arguments: {said[-1500:]}"
    return Shared(good, options)


def output_of(command: str, output: Path) -> list[str]:
    """Return the arguments that name the output of a command, if it has one."""
    if command in ("plan", "diff", "components", "families", "evaluate"):
        return []
    return ["--output", f"{output}.safetensors" if command == "predict" else str(output)]


def case(shared: Shared, rng: random.Random, folder: Path) -> str:
    """Give a command one or two bad values."""
    command = rng.choice(COMMANDS)
    arguments = [command, *shared.good[command]]
    if command != "inspect" or rng.random() < 0.5:  # which writes nothing unless it is asked to
        arguments += output_of(command, folder / "output")
    for _ in range(rng.choice([1, 1, 2])):
        if rng.random() < 0.15:  # in the place of another argument
            arguments[rng.randrange(1, 1 + len(shared.good[command]))] = rng.choice(VALUES)
            continue
        option = rng.choice(shared.options[command])
        flag = rng.choice(option.option_strings)
        if option.nargs == 0:
            arguments.append(flag)
        else:
            value = rng.choice(VALUES)
            arguments += [f"{flag}={value}"] if value.startswith("-") or rng.random() < 0.5 else [flag, value]
    here = Path.cwd()
    os.chdir(folder)
    try:
        status, said = run_command(*arguments)
    finally:
        os.chdir(here)
    shown = " ".join(map(repr, arguments))[:1500]
    if status not in (0, 2) or "Traceback" in said or "bug in llmrank" in said:
        raise Failed(f"{shown}: status {status}: {said[-1500:]}")
    if status == 2:
        if not said.strip():
            raise Failed(f"{shown}: refused without a word")
        # A sweep keeps the rows that failed, and why.
        left = [path.name for path in folder.iterdir() if command != "sweep"]
        if left:
            raise Failed(f"{shown}: refused ({said[-300:]}), and left {left}")
        return "refused"
    return "accepted"


ARGUMENTS = Attack("arguments", "bad values for the options of every command", prepare, case)
