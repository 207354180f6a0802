"""``llmrank sweep``: its options and presets, and what it runs and prints."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from llmrank.cli.arguments.shared import amount_value
from llmrank.cli.options import (
    check_device_and_dtype,
    load,
)
from llmrank.cli.result import CommandResult
from llmrank.cli.terminal import Terminal
from llmrank.errors import OptionError
from llmrank.experiments.settings import SweepSettings
from llmrank.experiments.sweep import SweepModel, measure_sweep
from llmrank.experiments.sweep_figures import write_sweep_figures
from llmrank.experiments.sweep_folder import ROWS
from llmrank.experiments.sweep_result import SweepResult
from llmrank.pipeline import CalibrationText, EvaluationText
from llmrank.pipeline.specs import split_specs

__all__ = ["run_sweep", "sweep_settings"]

# Options of loading that change the results.
LOADING = ("dtype", "device", "device_map")
# Exit statuses if rows have failed. An error that llmrank does not expect is a bug.
FAILED, BUG = 2, 1


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
