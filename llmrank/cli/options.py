"""The options that several commands share: how they are added and checked, and what is made from them."""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

from llmrank.cli.demo_models import DEMO_NAME, demo_model
from llmrank.cli.terminal import Terminal
from llmrank.errors import CalibrationError, CheckpointError, OptionError
from llmrank.execution import Processes
from llmrank.models.costs import UNITS
from llmrank.models.loading import DTYPES, LoadedModel, parse_device, parse_dtype
from llmrank.pipeline import DEFAULT_LENGTH, DEFAULT_SAMPLES
from llmrank.pipeline.defaults import DEFAULTS
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.pipeline.recipe import Recipe
from llmrank.pipeline.registry import PIPELINES, PRUNERS, REPAIRS, SCORERS, make_recipe
from llmrank.pipeline.texts import MOST_REPAIR_TOKENS, CalibrationText, Text
from llmrank.surgery import checkpoint
from llmrank.text import check_text
from llmrank.text.sequences import Role
from llmrank.text.sources import find_source, named_sources

__all__ = [
    "add_batch_and_seed",
    "add_items_option",
    "add_method_options",
    "add_model_options",
    "add_text_options",
    "amount_value",
    "check_device_and_dtype",
    "check_method",
    "check_numbers",
    "check_output_file",
    "directory",
    "load",
    "make_run",
    "recipe_of",
    "text_source",
]

# Smallest values of integer options, except --amount and --steps. A sequence needs 2 tokens: one token predicts nothing.
LEAST = {
    "samples": 1,
    "sequence_length": 2,
    "batch_size": 1,
    "top": 1,
    "prompts": 0,
    "prompt_length": 1,
    "new_tokens": 1,
    "passages": 1,
    "documents": 1,
    "seed": 0,
}
# Largest values. A seed must fit a signed 64-bit integer.
MOST = dict.fromkeys(LEAST, 2**31 - 1) | {"seed": 2**63 - 1}
# Names of the places where accelerate can put a part of a model; a number is that of a GPU.
PLACE = re.compile("[0-9]+|cpu|mps|disk")


def add_model_options(group: Any) -> None:
    """Add the options that say how a model is loaded and where it computes."""
    group.add_argument("--device", help="cpu, cuda, cuda:N (cpu)")
    group.add_argument("--dtype", help=f"auto, {', '.join(DTYPES)} (auto: that of the checkpoint)")
    group.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    group.add_argument(
        "--device-map", help="place the model over several devices: auto, balanced, sequential (accelerate)"
    )
    group.add_argument(
        "--max-memory",
        type=_max_memory,
        metavar="DEVICE=SIZE,...",
        help="most memory that --device-map takes, such as 0=20GiB,1=20GiB,cpu=60GiB",
    )
    group.add_argument("--offload-folder", type=Path, help="directory for what --device-map puts on disk")
    group.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that comes with a checkpoint (auto_map in its config.json); read that code first",
    )


def add_method_options(
    command: argparse.ArgumentParser, *, chooses: bool = True, prunes: bool = True, calibrates: bool = True
) -> Any:
    """Add the options of a pipeline; return the group of calibration and evaluation, for further options.

    ``chooses=False`` leaves out the options of the amount and the pruner. ``prunes=False`` leaves out those of the repair, the
    unit of the amount, the steps and the form. ``calibrates=False`` leaves out those of the calibration text.
    """
    method = command.add_argument_group(
        "method",
        "A component is NAME or NAME:OPTION=VALUE,OPTION=VALUE; `llmrank components` lists names, `llmrank components NAME` "
        "the options.",
    )
    # Without pruning no sensitivities are measured, so pruners that need them are left out.
    pruners = [name for name in PRUNERS.names() if prunes or not (name in PRUNERS and PRUNERS[name].needs_sensitivity)]
    components = {"pipeline": PIPELINES.names(), "scorer": SCORERS.names(), "pruner": pruners}
    if chooses:
        method.add_argument(
            "--amount",
            type=amount_value,
            default=0.3,
            help="share (0.3) or number (500) to remove: of each layer, or of all together with --pruner global (%(default)s)",
        )
    else:
        command.set_defaults(amount=0.3, pruner=DEFAULTS["pruner"])
        del components["pruner"]
    for flag, names in components.items():
        several = "; or several, with commas, of which one is chosen as auto does" if flag == "scorer" else ""
        method.add_argument(
            f"--{flag}", default=DEFAULTS[flag], metavar="COMPONENT", help=f"{', '.join(names)}{several} (%(default)s)"
        )
    method.add_argument(
        "--targets",
        default="neurons",
        help="what is removed: neurons, heads (of attentions), experts (of a mixture), with commas, or blocks (%(default)s)",
    )
    if prunes:
        _add_pruning_options(method)
    else:
        command.set_defaults(repair="none", amount_of=None, steps=1, form="compact")
    data = command.add_argument_group("calibration and evaluation")
    if calibrates:
        add_text_options(data)
    if calibrates and prunes:
        method.add_argument(
            "--heal",
            type=int,
            metavar="TOKENS",
            help="then let the pruned model learn the dense model's predictions for this many tokens of the calibration text "
            "that the repair has not seen (none); llmrank heal has more options",
        )
    else:
        command.set_defaults(heal=None)
    add_batch_and_seed(data)
    return data


def _add_pruning_options(method: Any) -> None:
    method.add_argument(
        "--repair",
        default=DEFAULTS["repair"],
        metavar="COMPONENT",
        help=f"none, {', '.join(REPAIRS.names())}: new weights that make up for removed neurons (%(default)s)",
    )
    method.add_argument(
        "--amount-of",
        metavar="UNIT",
        help=f"unit of the amount: {', '.join(UNITS)}; ffn- units count the FFNs, parameters, bytes "
        "and flops the whole model (neurons)",
    )
    method.add_argument(
        "--steps",
        type=int,
        default=1,
        help="number of steps to prune in, each with a pass of the calibration text (%(default)s)",
    )
    method.add_argument(
        "--form",
        default="compact",
        help="compact; padded: compact, and filled up to one width for programs that expect equal layers; zero or mask: with the "
        "old shapes (%(default)s)",
    )


def add_text_options(data: Any) -> None:
    """Add the options of the calibration text."""
    data.add_argument(
        "--calibration",
        type=lambda value: text_source(value, "calibration"),
        default=DEFAULTS["calibration"],
        metavar="TEXT",
        help="text file, .jsonl file (with messages or text in every line), directory of such files, or a source: "
        f"{_sources()}; or a mixture: SOURCE:SHARE,SOURCE:SHARE, such as a.txt:0.75,built-in:0.25 (%(default)s)",
    )
    data.add_argument(
        "--samples",
        type=int,
        help=f"calibration sequences of the text ({DEFAULT_SAMPLES}; prune --heal takes enough for as many tokens as it heals "
        f"with, up to {MOST_REPAIR_TOKENS:,}); one of the built-in text is added for every five, unless you give a mixture, such "
        "as a.txt:100%%",
    )
    data.add_argument("--sequence-length", type=int, default=DEFAULT_LENGTH, help="tokens in a sequence (%(default)s)")


def add_batch_and_seed(data: Any) -> None:
    """Add ``--batch-size`` and ``--seed``, which all commands with a calibration text have."""
    data.add_argument("--batch-size", type=int, default=1, help="sequences in a forward pass (%(default)s)")
    drawn = "of torch, of the text that the model writes, and of what is drawn from datasets"
    data.add_argument("--seed", type=int, default=0, help=f"seed {drawn} (%(default)s)")


def _max_memory(text: str) -> dict[int | str, int]:
    """Convert ``0=20GiB,cpu=60GiB`` to bytes by device, as accelerate reads them."""
    pairs = [[part.strip() for part in entry.partition("=")] for entry in text.split(",")]
    found: dict[int | str, int] = {}
    for device, sign, size in pairs:
        n_bytes = _bytes(size)
        if not PLACE.fullmatch(device) or n_bytes is None:
            raise argparse.ArgumentTypeError(
                "expected DEVICE=SIZE,DEVICE=SIZE such as 0=20GiB,cpu=60GiB, where a device is the number of a GPU, cpu or disk, "
                f"and a size is a number with GiB, GB, MiB or MB; got {device + sign + size!r}"
            )
        found[int(device) if device.isdigit() else device] = n_bytes
    return found


def _bytes(size: str) -> int | None:
    """Return the number of bytes that a text such as 20GiB states; None if it states none."""
    # Imported here, because this import is slow.
    from accelerate.utils import convert_file_size_to_int

    try:
        return int(convert_file_size_to_int(int(size) if size.isdigit() else size))
    except ValueError:
        return None


def _placement(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return how accelerate must place the model, as the options say, or None if they do not place it."""
    names = ("device_map", "max_memory", "offload_folder")
    given = {name: getattr(options, name, None) for name in names}
    if given["device_map"] is None and any(value is not None for value in given.values()):
        raise OptionError(
            "--max-memory and --offload-folder belong to --device-map; add --device-map auto, or leave them out"
        )
    return {name: value for name, value in given.items() if value is not None} or None


def amount_value(text: str) -> float | int:
    """Convert text to an int (a number) if it is an integer, else to a float (a share)."""
    try:
        return int(text) if re.fullmatch("[-+]?[0-9]{1,99}", text.strip()) else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a share such as 0.3 or a number such as 500, got {text!r}"
        ) from None


def directory(value: str) -> Path:
    """Convert an argument to the path of a directory to write; its name must be UTF-8, because tokenizers need that."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"expected a name in UTF-8, got {value!r}") from None
    return Path(value)


def add_items_option(group: Any) -> None:
    """Add the option that names items."""
    group.add_argument(
        "--items",
        metavar="ITEMS",
        help="ask items, built-in (facts, last words, arithmetic, code) or of a file of JSON lines (kind, prompt, answer): how "
        "many are answered right, and what share is kept of those that a dense model answers right (none)",
    )


def text_source(value: str, role: Role = "evaluation") -> str | Path:
    """Convert an argument to a path unless it names a source, so that a mistyped path is not read as the text itself."""
    if not value.strip():
        raise argparse.ArgumentTypeError(f"expected a text file or the name of a source, got {value!r}")
    try:
        return value if find_source(value, role) else Path(value)
    except CalibrationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _sources() -> str:
    """List the sources of text for help, each with its summary."""
    return ", ".join(f"{source.syntax()} ({source.summary()})" for source in named_sources().values())


def check_numbers(options: argparse.Namespace) -> None:
    """Raise an OptionError if a number is smaller than its value in `LEAST`, or greater than its value in `MOST`."""
    for name, least in LEAST.items():
        number = getattr(options, name, None)
        if number is not None and not least <= number <= MOST[name]:
            bound = f"at least {least}" if number < least else f"at most {MOST[name]}"
            raise OptionError(f"--{name.replace('_', '-')} must be {bound}, got {number}")


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
        form="compact" if options.form == "padded" else options.form,
        align="pad" if options.form == "padded" else "none",
        steps=options.steps,
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
