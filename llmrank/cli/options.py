"""What several commands make from their options, and how they check them."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from llmrank.cli.demo_models import DEMO_NAME, demo_model
from llmrank.cli.terminal import Terminal
from llmrank.errors import CheckpointError, OptionError
from llmrank.execution import Processes
from llmrank.models.loading import LoadedModel, parse_device, parse_dtype
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.pipeline.recipe import Recipe
from llmrank.pipeline.registry import make_recipe
from llmrank.pipeline.texts import CalibrationText, Text
from llmrank.surgery import checkpoint
from llmrank.text import check_text

__all__ = [
    "check_device_and_dtype",
    "check_method",
    "check_output_file",
    "load",
    "make_run",
    "recipe_of",
]


def _placement(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return how accelerate must place the model, as the options say, or None if they do not place it."""
    names = ("device_map", "max_memory", "offload_folder")
    given = {name: getattr(options, name, None) for name in names}
    if given["device_map"] is None and any(value is not None for value in given.values()):
        raise OptionError(
            "--max-memory and --offload-folder belong to --device-map; add --device-map auto, or leave them out"
        )
    return {name: value for name, value in given.items() if value is not None} or None


def check_method(options: argparse.Namespace, recipe: Recipe | None = None) -> Recipe:
    """Check the options of a run as far as that is possible without the model, and return their recipe, unless one is given."""
    recipe = recipe or recipe_of(options)
    check_device_and_dtype(options)
    if recipe.calibration.ranking is None:
        check_text(recipe.calibration.source)
    evaluation = getattr(options, "evaluate", None)
    if evaluation is not None and evaluation is not True:
        check_text(evaluation, "evaluation")
    return recipe


def check_device_and_dtype(options: argparse.Namespace) -> None:
    """Raise if the device cannot be used or the dtype is unknown."""
    parse_device(options.device)
    parse_dtype(options.dtype)


def make_run(
    options: argparse.Namespace,
    loaded: LoadedModel,
    recipe: Recipe,
    terminal: Terminal,
    *,
    undoable: bool = True,
    work: Path | None = None,
    processes: Processes | None = None,
) -> PruningRun:
    """Make a run of a recipe on a loaded model; it runs block by block if `work` is a directory."""
    return PruningRun(
        loaded.model,
        loaded.tokenizer,
        recipe,
        options.device,
        progress=terminal.progress,
        undoable=undoable,
        work_directory=work,
        resume=work is not None and options.resume,
        processes=processes,
    )


def recipe_of(
    options: argparse.Namespace,
    *,
    pipeline: str | None = None,
    scorer: str | None = None,
    pruner: str | None = None,
    calibration: Text | None = None,
) -> Recipe:
    """Make the recipe that the options describe; what is given besides them takes the place of an option."""
    if calibration is None:
        calibration = CalibrationText(
            options.calibration, options.samples, options.sequence_length, options.batch_size, options.seed
        )
    return make_recipe(
        options.pipeline if pipeline is None else pipeline,
        options.scorer if scorer is None else scorer,
        options.pruner if pruner is None else pruner,
        options.repair,
        amount=options.amount,
        amount_of=options.amount_of,
        targets=options.targets,
        form=options.form,
        heal=options.heal,
        calibration=calibration,
        evaluation=getattr(options, "evaluate", None),
    )


def check_output_file(path: Path | None) -> None:
    """Raise unless the file of ``--output`` can be written."""
    if path is None:
        return
    if path.exists() and not path.is_file():
        what = "a directory" if path.is_dir() else "a device or a pipe"
        raise CheckpointError(f"{path} is {what}; expected the path of a file for --output")
    if not path.parent.is_dir():
        raise CheckpointError(f"cannot write {path}: there is no directory {path.parent}; create it first")
    try:
        # The system may refuse a file though permissions allow it, so a temporary one is made.
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}; choose another place for --output") from error


def load(
    options: argparse.Namespace,
    terminal: Terminal,
    source: str | Path | None = None,
    revision: str | None = None,
    *,
    on_cpu: bool = False,
) -> LoadedModel:
    """Load a model from a source and revision, or without a source the model of the options, or else the demo model.

    With `on_cpu`, it is loaded on the CPU, where the weights can stay in the files of the checkpoint. A pipeline later brings it
    to ``--device``, completely or by block. With ``--device-map`` it is loaded on the devices of that map.
    """
    if source is None:
        source, revision = options.model, options.revision
    if source is None:
        with terminal.step(f"Fetching {DEMO_NAME} (93 MB, once)"):
            source = demo_model()
    with terminal.step(f"Loading {source}"):
        return checkpoint.load(
            source,
            options.dtype,
            None if on_cpu and options.device_map is None else options.device,
            trust_remote_code=options.trust_remote_code,
            revision=revision,
            placement=_placement(options),
        )
