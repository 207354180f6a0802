"""``llmrank sweep``: its options, from the command line or a file, and what it runs and prints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from llmrank.cli.options import (
    add_model_options,
    amount_value,
    check_device_and_dtype,
    check_numbers,
    directory,
    load,
    text_source,
)
from llmrank.errors import OptionError
from llmrank.experiments.settings import SweepSettings, split_specs
from llmrank.experiments.sweep import SweepModel, run_sweep
from llmrank.experiments.sweep_figures import write_sweep_figures
from llmrank.experiments.sweep_file import PRESETS, arguments_of, read_sweep_file
from llmrank.experiments.sweep_folder import ROWS
from llmrank.experiments.sweep_result import SweepResult
from llmrank.experiments.tracking import TRACKERS
from llmrank.models.costs import UNITS
from llmrank.pipeline import DEFAULT_LENGTH, DEFAULT_SAMPLES, CalibrationText, EvaluationText
from llmrank.pipeline.registry import DEFAULTS

__all__ = ["add_sweep_options", "run_sweep_command", "sweep_options", "sweep_settings"]

# What an option is if neither the command line nor a file or preset sets it.
UNSET: dict[str, Any] = {
    "model": [],
    "scorers": [DEFAULTS["scorer"]],
    "pruners": [DEFAULTS["pruner"]],
    "pipelines": [DEFAULTS["pipeline"]],
    "amounts": ["0.3"],
    "repairs": [DEFAULTS["repair"]],
    "targets": "neurons",
    "amount_of": "neurons",
    "calibration": DEFAULTS["calibration"],
    "samples": DEFAULT_SAMPLES,
    "sequence_length": DEFAULT_LENGTH,
    "batch_size": 1,
    "seed": 0,
    "evaluate": None,
    "tasks": [],
    "task_dir": None,
    "documents": None,
    "speed": False,
    "output": Path("runs"),
    "track": None,
    **dict.fromkeys(("device", "dtype", "revision", "device_map", "max_memory", "offload_folder")),
    "trust_remote_code": False,
}
# How models are loaded decides the results too.
LOADING = ("dtype", "revision", "device")
# Options with values that belong together, on the command line and in a file: their name, and that of their values.
LISTS = {"scorer": "scorers", "pruner": "pruners", "pipeline": "pipelines", "amount": "amounts", "repair": "repairs"}
# Failed rows that the program did not expect to fail are bugs.
FAILED, BUG = 2, 1


def add_sweep_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank sweep``."""
    _add_settings(command)
    group = command.add_argument_group("files")
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="read options from a TOML or YAML file, by their names; those on the command line replace them",
    )
    group.add_argument(
        "--preset", choices=PRESETS, help="paper: the grid and the tasks of LLM-Rank's published experiments"
    )
    group.add_argument(
        "--plot", type=Path, metavar="DIR", help="draw the rows in the directory of a sweep, and measure nothing"
    )


def _add_settings(command: argparse.ArgumentParser) -> None:
    """Add the options that may also stand in a file. None has a default here, so that those that are given are known."""
    command.argument_default = argparse.SUPPRESS
    command.add_argument(
        "model",
        metavar="MODEL",
        nargs="*",
        default=argparse.SUPPRESS,
        help="directories, hub names or .gguf files, first",
    )
    grid = command.add_argument_group(
        "grid",
        "Every combination is a row. Values are separated by commas, and an option can be repeated. A component is NAME or "
        "NAME:OPTION=VALUE,OPTION=VALUE; `llmrank components` lists names.",
    )
    for name, values in LISTS.items():
        default = UNSET[values][0]
        metavar = "AMOUNT,..." if name == "amount" else "COMPONENT,..."
        meaning = "shares (0.3) or numbers (500) to remove" if name == "amount" else f"{name}s"
        extra = "; none repairs nothing" if name == "repair" else ""
        grid.add_argument(
            f"--{name}", dest=values, action="append", metavar=metavar, help=f"{meaning}{extra} ({default})"
        )
    grid.add_argument("--targets", help="what is removed: neurons, experts, or neurons,experts (neurons)")
    grid.add_argument("--amount-of", metavar="UNIT", help=f"unit of the amounts: {', '.join(UNITS)} (neurons)")
    data = command.add_argument_group("calibration and evaluation")
    data.add_argument(
        "--calibration",
        type=lambda value: text_source(value, "calibration"),
        metavar="TEXT",
        help=f"text file or source, which passes through every model once ({DEFAULTS['calibration']})",
    )
    data.add_argument("--samples", type=int, help=f"calibration sequences ({DEFAULT_SAMPLES})")
    data.add_argument("--sequence-length", type=int, help=f"tokens in a sequence ({DEFAULT_LENGTH})")
    data.add_argument("--batch-size", type=int, help="sequences in a forward pass (1)")
    data.add_argument("--seed", type=int, help="seed of torch, and of the text that the model writes (0)")
    data.add_argument(
        "--evaluate",
        type=text_source,
        metavar="TEXT",
        help="text file or dataset:NAME that perplexity is measured on (the built-in text)",
    )
    data.add_argument("--tasks", action="append", metavar="NAME,...", help="tasks of lm-eval (llmrank[eval])")
    data.add_argument("--task-dir", type=Path, metavar="DIR", help="directory of further tasks, in lm-eval's format")
    data.add_argument("--documents", type=int, help="use only the first so many documents of each task (all)")
    data.add_argument(
        "--speed",
        action="store_true",
        default=argparse.SUPPRESS,
        help="measure how fast every pruned model reads text, in alternation with the dense one",
    )
    output = command.add_argument_group("model and output")
    output.add_argument(
        "--output",
        type=directory,
        help=f"directory for the rows; a sweep that was interrupted goes on ({UNSET['output']})",
    )
    output.add_argument("--track", choices=TRACKERS, help="also log every row there; each is an extra of llmrank")
    add_model_options(output)


def sweep_options(options: argparse.Namespace) -> argparse.Namespace:
    """Return the options with those of the preset and the file, and the defaults of what is not set.

    Raises
    ------
    OptionError
        The file cannot be read, or holds an unknown name or a value that the command line would refuse.
    """
    given = vars(options)
    merged = {**UNSET, **given}
    for place, settings in (
        (f"preset {given.get('preset')}", PRESETS.get(given.get("preset", ""), {})),
        (str(given.get("config")), read_sweep_file(given["config"]) if "config" in given else {}),
    ):
        parser = _SettingsParser(place)
        known = [name for name in ("model", *LISTS, *UNSET) if name not in LISTS.values()]
        merged |= vars(parser.parse_args(arguments_of(settings, dict.fromkeys(known), place)))
    return argparse.Namespace(**{**merged, **given})


class _SettingsParser(argparse.ArgumentParser):
    """A parser of the options that may stand in a file, whose errors name the file."""

    def __init__(self, place: str) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self._place = place
        _add_settings(self)

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{self._place}: {message}")


def run_sweep_command(options: argparse.Namespace, console: Console) -> int:
    """Run ``llmrank sweep``; return the exit status."""
    if "plot" in options:
        figures = write_sweep_figures(SweepResult.load(options.plot))
        options.result |= {"output": str(options.plot), "figures": [str(path) for path in figures]}
        for path in figures:
            console.print(f"Wrote {path}.", markup=False, highlight=False)
        return 0
    options = sweep_options(options)
    check_numbers(options)
    check_device_and_dtype(options)
    settings = sweep_settings(options)
    # The sweep shows the progress of loading.
    loading = {**vars(options), "progress": None}
    models = SweepModel.several(options.model, lambda source: load(argparse.Namespace(**{**loading, "model": source})))
    n_rows = len(models) * (1 + len(settings.rows()))
    try:
        result = run_sweep(
            models,
            settings,
            options.output,
            loading={name: getattr(options, name) for name in LOADING},
            track=options.track,
            progress=options.progress,
        )
    except KeyboardInterrupt:
        if (options.output / ROWS).is_file():
            n_done = len(SweepResult.load(options.output).rows)
            console.print(
                f"{n_done} of {n_rows} rows are in {options.output}. The same command goes on.",
                markup=False,
                highlight=False,
            )
        raise
    options.result |= {"output": str(options.output), "rows": result.rows}
    table = result.table()
    if not console.is_terminal:  # a file has room for all columns
        console.width = max(console.width, console.measure(table).maximum)
    console.print(table)
    for sentence in result.warnings():
        console.print(Text(f"Warning: {sentence}", style="bold yellow"))
    for sentence in result.errors():
        console.print(Text(f"Failed: {sentence}", style="bold yellow"))
    if len(result.failed) < len(result.rows):
        written = f"Wrote {options.output / ROWS}. Draw it with llmrank sweep --plot {options.output}"
        console.print(written, markup=False, highlight=False)
    if not result.failed:
        return 0
    return BUG if any(row["unexpected"] for row in result.failed) else FAILED


def sweep_settings(options: argparse.Namespace) -> SweepSettings:
    """Make the settings of a sweep from options that are all set.

    Raises
    ------
    OptionError
        A list begins with an option, or an amount is no number.
    """
    try:
        amounts = [amount_value(part) for value in options.amounts for part in value.split(",") if part.strip()]
    except argparse.ArgumentTypeError as error:
        raise OptionError(f"--amount: {error}") from None
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
    )
