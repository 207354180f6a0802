"""``llmrank sweep``: its options and presets, and what it runs and prints."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmrank.cli.config import CommandParser
from llmrank.cli.options import (
    add_batch_and_seed,
    add_items_option,
    add_model_options,
    add_text_options,
    amount_value,
    check_device_and_dtype,
    directory,
    load,
    text_source,
)
from llmrank.cli.result import CommandResult
from llmrank.cli.terminal import Terminal
from llmrank.errors import OptionError
from llmrank.experiments.settings import SweepSettings
from llmrank.experiments.sweep import SweepModel, measure_sweep
from llmrank.experiments.sweep_figures import write_sweep_figures
from llmrank.experiments.sweep_folder import ROWS
from llmrank.experiments.sweep_result import SweepResult
from llmrank.experiments.tracking import TRACKERS
from llmrank.models.costs import UNITS
from llmrank.pipeline import CalibrationText, EvaluationText
from llmrank.pipeline.defaults import DEFAULTS
from llmrank.pipeline.specs import split_specs

__all__ = ["add_sweep_options", "run_sweep", "sweep_settings"]

# Options of loading that change the results.
LOADING = ("dtype", "device", "device_map")
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
# Exit statuses if rows have failed. An error that llmrank does not expect is a bug.
FAILED, BUG = 2, 1


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
        "--amount-of", default="neurons", metavar="UNIT", help=f"unit of the amounts: {', '.join(UNITS)} (%(default)s)"
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
        "--track", choices=TRACKERS, help="also log every row by this tracker; each is an extra of llmrank"
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
        type=text_source,
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


def run_sweep(options: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run ``llmrank sweep``."""
    if options.plot is not None:
        figures = write_sweep_figures(SweepResult.load(options.plot))
        for path in figures:
            terminal.say(f"Wrote {path}.")
        return CommandResult({"output": str(options.plot), "figures": [str(path) for path in figures]})
    check_device_and_dtype(options)
    settings = sweep_settings(options)
    silent = Terminal(quiet=True)  # the sweep itself shows the progress of loading
    with terminal.step("Reading what the models are"):
        models = SweepModel.several(
            options.model,
            lambda source, revision=None: load(options, silent, source, revision),
            options.revision,
        )
    try:
        result = measure_sweep(
            models,
            settings,
            options.output,
            loading={name: getattr(options, name) for name in LOADING},
            track=options.track,
            progress=terminal.progress,
        )
    except KeyboardInterrupt:
        if (options.output / ROWS).is_file():
            n_done = len(SweepResult.load(options.output).rows)
            terminal.say(f"{n_done} rows are in {options.output}. The same command goes on.")
        raise
    table = result.table()
    if not terminal.is_terminal:  # a file has room for all columns
        terminal.width = max(terminal.width, terminal.measure(table).maximum)
    terminal.print(table)
    for sentence in result.warnings():
        terminal.warn(sentence)
    for sentence in result.errors():
        terminal.fail(sentence)
    if len(result.failed) < len(result.rows):
        written = f"Wrote {options.output / ROWS}. Draw it with llmrank sweep --plot {options.output}"
        terminal.say(written)
    status = 0
    if result.failed:
        status = BUG if any(row["unexpected"] for row in result.failed) else FAILED
    return CommandResult({"output": str(options.output), "rows": result.rows}, status)


def sweep_settings(options: argparse.Namespace) -> SweepSettings:
    """Make the settings of a sweep from its options.

    Raises
    ------
    OptionError
        A list begins with an option, or an amount is no number.
    """
    amounts = _numbers("--amount", options.amounts, amount_value)
    calibration = CalibrationText(
        options.calibration, options.samples, options.sequence_length, options.batch_size, options.seed
    )
    return SweepSettings(
        scorers=split_specs(options.scorers),
        pruners=split_specs(options.pruners),
        pipelines=split_specs(options.pipelines),
        amounts=tuple(dict.fromkeys(amounts)),
        repairs=split_specs(options.repairs),
        amount_of=options.amount_of,
        targets=options.targets,
        calibration=calibration,
        evaluation=EvaluationText(options.evaluate),
        tasks=split_specs(options.tasks),
        task_dir=options.task_dir,
        documents=options.documents,
        speed=options.speed,
        items=options.items,
        heals=tuple(dict.fromkeys(_numbers("--heal", options.heals, int))),
    )


def _numbers(option: str, values: Sequence[str], number: Callable[[str], Any]) -> list[Any]:
    try:
        return [number(part) for value in values for part in value.split(",") if part.strip()]
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise OptionError(f"{option}: {error}") from None
