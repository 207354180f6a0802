"""``llmrank prune --low-memory`` and ``--resume``: when a model is pruned block by block, and where the files of such a run are.

Such a run holds one block of the model in memory at a time, and keeps the rest in files.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from graphs import GraphError
from llmrank.cli.result import CommandResult
from llmrank.cli.terminal import Terminal
from llmrank.errors import LLMRankError, OptionError
from llmrank.execution.free_memory import bytes_of, free_memory
from llmrank.execution.recording import record_without_running
from llmrank.execution.work_directory import (
    SAVING,
    WorkDirectory,
    check_free,
    holds_run,
    read_progress,
    read_run,
)
from llmrank.models import find_ffns
from llmrank.models.loading import parse_device
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.pipeline.recipe import Recipe
from llmrank.pipeline.texts import CalibrationText
from llmrank.surgery.atomic import check_output
from llmrank.surgery.forms import SMALLER
from llmrank.surgery.hub import upload_command
from llmrank.text.built_in import BuiltInText
from llmrank.text.generated import Automatic, Generated
from llmrank.text.mixed_sources import MixedSources
from llmrank.text.sources import find_source

__all__ = [
    "check_low_memory",
    "result_of_finished_run",
    "resumable",
    "without_generation",
    "work_directory",
]

# What a full disk raises; safetensors has an error of its own.
SYSTEM_ERRORS = (OSError, SafetensorError)


def unfinished_directory(output: Path) -> Path:
    """Return the directory with the files of a run that writes to `output`."""
    place = Path(os.path.abspath(output))  # noqa: PTH100 -- unlike resolve(), it follows no links
    if not place.name:
        raise OptionError(f"{output} is no directory that a model can be written to; choose another --output")
    return place.with_name(f"{place.name}.unfinished")


def check_low_memory(options: argparse.Namespace) -> None:
    """Raise an error if the options ask to resume and nothing is there, or if an unfinished run is there and they do not ask.

    This needs no model. Options that do not go together with ``--low-memory`` are refused too.
    """
    work = unfinished_directory(options.output)
    if options.resume and not holds_run(work):
        raise OptionError(
            f"there is no unfinished run in {work}; give the --output of the run to resume, or leave --resume out"
        )
    if holds_run(work) and not options.resume:
        raise OptionError(
            f"{work} holds a run that has not finished; go on with it (--resume), or delete that directory"
        )
    if options.low_memory:
        check_free(work)
    if (options.low_memory or options.resume) and options.device_map is not None:
        raise OptionError(
            f"with --low-memory the weights stay on the CPU or in files, got --device-map {options.device_map}; leave one of the "
            "two out (--device says where to compute)"
        )
    if options.low_memory and _model_writes(options.calibration):
        raise OptionError(
            "with --low-memory the model would be read from disk for every token that it writes; use --calibration FILE, or "
            f"{BuiltInText.name}"
        )


def result_of_finished_run(
    options: argparse.Namespace, terminal: Terminal, file: str, describe: Callable[[Path], dict[str, Any]]
) -> CommandResult | None:
    """Return the result of the run to resume if it has written its output, and only ended before it removed its files.

    These are removed then. If there is no such run, the result is None.

    Parameters
    ----------
    file : str
        Name of a file of the output.
    describe : callable
        Returns what the result of the command says of a complete output.

    Raises
    ------
    OptionError
        The process of the run is still at work, or its settings were others.
    """
    work = unfinished_directory(options.output)
    noted = read_progress(work).get(SAVING) if options.resume else None
    if noted is None or not (options.output / file).is_file():
        return None
    names = {*noted, *options.settings} - {"low-memory"}
    differ = sorted(name for name in names if noted.get(name) != options.settings.get(name))
    try:
        check_output(options.output)  # this removes an output that has not appeared completely
    except LLMRankError:
        if differ:
            raise OptionError(
                f"{options.output} is complete, but its run had other settings: "
                + ", ".join(f"{name} {noted.get(name)!r}, not {options.settings.get(name)!r}" for name in differ)
                + f"; to remove the files in {work}, repeat the command of that run; for these settings, give another --output"
            ) from None
        result = CommandResult({"output": str(options.output), **describe(options.output)})
        # Opening the directory takes its lock, so that the files of a process that still uploads are not removed.
        WorkDirectory(work, read_run(work), resume=True).remove()
        terminal.say(
            f"{options.output} is complete. Its run ended before it had removed the files in {work}, which is done now."
        )
        repository = getattr(options, "push_to_hub", None)
        if repository is not None:
            command = upload_command(options.output, repository, options.private or None)
            terminal.say(f"Whether it was uploaded is not known; {command} uploads it.")
        return result
    return None


def _model_writes(calibration: Any) -> bool:
    """Whether the model generates the calibration text or a part of it; False for ``auto``, which may choose another."""
    source = find_source(calibration)
    parts = source.sources if isinstance(source, MixedSources) else ()
    return isinstance(source, Generated) or any(isinstance(part, (Generated, Automatic)) for part in parts)


def work_directory(options: argparse.Namespace, model: Any, terminal: Terminal) -> Path | None:
    """Return the directory for the files of a run block by block, or None if the model is pruned in memory.

    A model that does not fit in the free memory of ``--device`` is pruned block by block, and a sentence on the terminal says so.
    """
    if not (options.low_memory or options.resume):
        device = parse_device(options.device)
        size, free = bytes_of(model), free_memory(device)
        on_cpu = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
        options_allow = options.form in SMALLER and not _model_writes(options.calibration)
        if size is None or size <= free or not (on_cpu and options_allow and _runs_by_block(model)):
            return None
        terminal.say(
            f"The model takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free on {device}: it is pruned block by "
            "block, as with --low-memory."
        )
    return unfinished_directory(options.output)


def without_generation(recipe: Recipe, work: Path | None, terminal: Terminal) -> Recipe:
    """Return a recipe for a run block by block (with a `work` directory): the text ``auto`` is the built-in one there."""
    text = recipe.calibration
    if work is None or not isinstance(text, CalibrationText) or text.source != Automatic.name:
        return recipe
    terminal.say(
        f"It is calibrated on the {BuiltInText.name} text, because a model whose weights stay on disk generates text slowly; "
        "--calibration FILE is better."
    )
    return replace(recipe, calibration=replace(text, source=BuiltInText.name))


def _runs_by_block(model: Any) -> bool:
    """Whether the blocks of a model can be run one by one."""
    ids = torch.zeros(1, 8, dtype=torch.int64)
    try:
        return record_without_running(model, find_ffns(model), [(ids, torch.ones_like(ids, dtype=torch.bool))]).unbroken
    except LLMRankError:  # the run in memory will raise the same error
        return False


@contextmanager
def resumable(run: PruningRun, terminal: Terminal) -> Iterator[None]:
    """Clean up after a run block by block that fails or is interrupted within the context.

    If the run has done nothing yet, its files are removed. If it has, they are kept, and a sentence says how to go on.
    """
    try:
        yield
    except (LLMRankError, GraphError, OSError, KeyboardInterrupt) as error:
        causes = error, error.__cause__  # saving turns errors of the system into errors of its own
        if run.work is not None and not run.work.has_progress:
            run.work.remove()
        elif run.work is not None and any(isinstance(each, (*SYSTEM_ERRORS, KeyboardInterrupt)) for each in causes):
            kept = f"The run's files are kept in {run.work.path}."
            ended = "Interrupted." if isinstance(error, KeyboardInterrupt) else kept
            terminal.say(f"{ended} The same command with --resume goes on.")
        raise
