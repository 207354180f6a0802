"""What ``llmrank sweep`` takes, and its presets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmrank.cli.arguments.shared import (
    TextArgument,
    add_batch_and_seed,
    add_items_option,
    add_model_options,
    add_text_options,
    directory,
)
from llmrank.cli.config import CommandParser
from llmrank.pipeline.defaults import DEFAULTS

__all__ = ["add_sweep_options"]

# Options that make the grid. For each: the name of the list of its values in the settings of a sweep, and the default.
GRID = {
    "scorer": ("scorers", DEFAULTS["scorer"]),
    "pruner": ("pruners", DEFAULTS["pruner"]),
    "pipeline": ("pipelines", DEFAULTS["pipeline"]),
    "amount": ("amounts", "0.3"),
    "repair": ("repairs", DEFAULTS["repair"]),
    "heal": ("heals", "0"),
}
# Of those whose values are numbers, what help says of them.
NUMBERS = {
    "amount": ("AMOUNT,...", "shares (0.3) or numbers (500) to remove"),
    "heal": ("TOKENS,...", "numbers of tokens to heal with, 0 for none"),
}
# The grid of the experiments that the authors of LLM-Rank published with the paper (arXiv 2410.13299, experiments/config.py of
# amazon-science/llm-rank-pruning): its scorers, pruners, tasks, and the share and the calibration text that it takes by default.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "scorer": ["norm", "random", "activation", "wpr", "mpr", "wanda"],
        "pruner": ["local:multiple_of=1", "global:multiple_of=1"],
        "pipeline": ["isolated"],
        "amount": [0.3],
        "repair": ["none"],
        "calibration": "dataset:allenai/c4,en,train",
        "samples": 64,
        "sequence-length": 2048,
        "evaluate": "dataset:Salesforce/wikitext,wikitext-2-raw-v1,test",
        "tasks": ["hellaswag", "piqa", "winogrande", "arc_easy", "arc_challenge", "openbookqa", "wikitext"],
    }
}


def add_sweep_options(command: CommandParser) -> None:
    """Add the options of ``llmrank sweep``."""
    command.add_argument("model", metavar="MODEL", nargs="*", help="directories, hub names or .gguf files, first")
    grid = command.add_argument_group(
        "grid",
        "Every combination is a row. Values are separated by commas, and an option can be repeated. A component is NAME or "
        "NAME:OPTION=VALUE,OPTION=VALUE; `llmrank components` lists names.",
    )
    for name, (values, default) in GRID.items():
        metavar, meaning = NUMBERS.get(name, ("COMPONENT,...", f"{name}s"))
        extra = "; none repairs nothing" if name == "repair" else ""
        grid.add_argument(
            f"--{name}",
            dest=values,
            action="append",
            default=[default],
            metavar=metavar,
            help=f"{meaning}{extra} ({default})",
        )
    grid.add_argument(
        "--targets",
        default="neurons",
        help="what is removed: neurons, heads, experts, with commas, or blocks (%(default)s)",
    )
    grid.add_argument(
        "--amount-of",
        default="neurons",
        metavar="UNIT",
        help="unit of the amounts: neurons, ffn-parameters, ffn-bytes, ffn-flops, parameters, bytes, flops, cache (%(default)s)",
    )
    data = command.add_argument_group("calibration and evaluation")
    add_text_options(data)
    add_batch_and_seed(data)
    _add_measures(data)
    output = command.add_argument_group("model and output")
    output.add_argument(
        "--output",
        type=directory,
        default=Path("runs"),
        help="directory for the rows; rows that are in it already are not measured again (%(default)s)",
    )
    output.add_argument(
        "--track",
        choices=["wandb", "trackio", "tensorboard"],
        help="also log every row by this tracker; each is an extra of llmrank",
    )
    output.add_argument(
        "--plot", type=Path, metavar="DIR", help="draw the rows in the directory of a sweep, and measure nothing"
    )
    add_model_options(output)
    command.add_presets(PRESETS, "paper: the grid and the tasks of LLM-Rank's published experiments")


def _add_measures(data: Any) -> None:
    """Add the options that say what is measured for every row."""
    data.add_argument(
        "--evaluate",
        type=TextArgument,
        metavar="TEXT",
        help="text file or dataset:NAME that perplexity is measured on (the built-in text)",
    )
    data.add_argument(
        "--tasks", action="append", default=[], metavar="NAME,...", help="tasks of lm-eval (llmrank[eval])"
    )
    data.add_argument("--task-dir", type=Path, metavar="DIR", help="directory of further tasks, in lm-eval's format")
    data.add_argument("--documents", type=int, help="use only this many documents of each task, the first ones (all)")
    add_items_option(data)
    data.add_argument(
        "--speed",
        action="store_true",
        help="measure how fast every pruned model reads text, in alternation with the dense one",
    )
