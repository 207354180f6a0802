"""What ``llmrank heal`` and ``llmrank predict`` take."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmrank.cli.arguments.shared import (
    CalibrationArgument,
    add_batch_and_seed,
    add_hub_options,
    add_model_options,
    directory,
)
from llmrank.pipeline.defaults import DEFAULT_LENGTH, DEFAULT_TOKENS

__all__ = ["AUTOMATIC", "add_heal_options", "add_predict_options"]

AUTOMATIC = "auto"
# The fields of a Distillation that --with sets, and what help says of them.
KNOBS = {
    "learn": "all, ffn or lora",
    "learning_rate": "0.001 of the root mean square of each tensor for 64 steps, less for fewer",
    "sequences_per_step": "2,048 tokens or more",
    "rank": "16, of lora",
}


def add_heal_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank heal``."""
    command.add_argument("model", metavar="PRUNED", type=directory, help="the directory of a pruned checkpoint")
    group = command.add_argument_group("model and output")
    group.add_argument(
        "--against",
        required=True,
        metavar="DENSE",
        help="the model that PRUNED was pruned from, or a file of its predictions that llmrank predict has written",
    )
    group.add_argument("--against-revision", metavar="REVISION", help="branch, tag or commit of DENSE")
    group.add_argument("--output", type=directory, required=True, help="directory to write; absent or empty")
    add_hub_options(group)
    add_model_options(group)
    _add_text_options(command)
    group.add_argument(
        "--with",
        dest="knobs",
        metavar="NAME=VALUE,...",
        help=f"how it learns: {', '.join(f'{name} ({value})' for name, value in KNOBS.items())}; or arguments of transformers' "
        "TrainingArguments, such as bf16=true,report_to=wandb (a wrong name lists them)",
    )
    group.add_argument(
        "--checkpoints",
        type=Path,
        metavar="DIR",
        help="keep the state of the training in this directory; if it holds one, go on from there",
    )


def add_predict_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank predict``."""
    command.add_argument("model", metavar="DENSE", help="a directory, a hub name, or a .gguf file")
    group = command.add_argument_group("model and output")
    group.add_argument(
        "--pruned",
        type=directory,
        metavar="PRUNED",
        help="leave out the sequences that this checkpoint was repaired on",
    )
    group.add_argument("--output", type=Path, required=True, metavar="FILE", help="file to write, .safetensors")
    add_model_options(group)
    _add_text_options(command)


def _add_text_options(command: argparse.ArgumentParser) -> None:
    data = command.add_argument_group("text")
    data.add_argument(
        "--text",
        type=CalibrationArgument,
        default=AUTOMATIC,
        metavar="TEXT",
        help="what --calibration of llmrank prune takes; one of six sequences is of the built-in text, unless you give a "
        "mixture, such as a.txt:100%% (%(default)s: text that DENSE writes)",
    )
    data.add_argument(
        "--tokens",
        type=int,
        help=f"number of tokens to learn from ({DEFAULT_TOKENS:,}, or all of a file of predictions)",
    )
    data.add_argument("--sequence-length", type=int, default=DEFAULT_LENGTH, help="tokens in a sequence (%(default)s)")
    add_batch_and_seed(data)
