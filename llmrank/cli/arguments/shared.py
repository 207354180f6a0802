"""The options that several commands share, and the types of their values."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from llmrank.errors import CalibrationError, OptionError
from llmrank.pipeline.defaults import DEFAULT_LENGTH, DEFAULT_SAMPLES, DEFAULTS, MOST_REPAIR_TOKENS
from llmrank.pipeline.registry import PIPELINES, PRUNERS, REPAIRS, SCORERS

if TYPE_CHECKING:
    from llmrank.text.sequences import Role

__all__ = [
    "CalibrationArgument",
    "TextArgument",
    "add_batch_and_seed",
    "add_evaluation",
    "add_hub_options",
    "add_items_option",
    "add_method_options",
    "add_model_options",
    "add_run_options",
    "add_text_options",
    "amount_value",
    "check_numbers",
    "directory",
    "find_texts",
]

# Smallest values of integer options, except --amount. A sequence needs 2 tokens: one token predicts nothing.
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
AMOUNT_OF = (
    "unit of the amount: neurons, ffn-parameters, ffn-bytes, ffn-flops, parameters, bytes, flops, cache; ffn- units count the "
    "FFNs, parameters, bytes and flops the whole model, and cache the bytes of the KV cache for each token, only with "
    "--targets heads"
)
# The pruners that need sensitivities.
MEASURE = ("sensitivity", "least-loss")
# Names of the places where accelerate can put a part of a model; a number is that of a GPU.
PLACE = re.compile("[0-9]+|cpu|mps|disk")


class TextArgument(str):
    """The name of a source of text, or a path. :func:`find_texts` finds out which, after all arguments have been parsed."""

    role: ClassVar[Role] = "evaluation"

    def __new__(cls, value: str) -> TextArgument:
        """Refuse a blank argument."""
        if not value.strip():
            raise argparse.ArgumentTypeError(f"expected a text file or the name of a source, got {value!r}")
        return super().__new__(cls, value)


class CalibrationArgument(TextArgument):
    """A text to calibrate on."""

    role = "calibration"


def add_model_options(group: Any) -> None:
    """Add the options that say how a model is loaded and where it computes."""
    group.add_argument("--device", help="cpu, cuda, cuda:N (cpu)")
    group.add_argument("--dtype", help="auto, float32, bfloat16, float16, float64 (auto: that of the checkpoint)")
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
    unit of the amount and the form. ``calibrates=False`` leaves out those of the calibration text.
    """
    method = command.add_argument_group(
        "method",
        "A component is NAME or NAME:OPTION=VALUE,OPTION=VALUE; `llmrank components` lists names, `llmrank components NAME` "
        "the options.",
    )
    # Without pruning no sensitivities are measured, so pruners that need them are left out.
    pruners = [name for name in PRUNERS.names() if prunes or name not in MEASURE]
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
        command.set_defaults(repair="none", amount_of=None, form="compact")
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
        help=f"{AMOUNT_OF} (neurons)",
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
        type=CalibrationArgument,
        default=DEFAULTS["calibration"],
        metavar="TEXT",
        help="text file, .jsonl file (with messages or text in every line), directory of such files, or a source: "
        "built-in (the topics of Python's ``help()``: most of its language reference), dataset:NAME[,CONFIG[,SPLIT]] (rows of a "
        "dataset of the Hugging Face hub or of a directory), generated (text that the model writes itself), auto (generated if "
        "the model can write text, else built-in); or a mixture: SOURCE:SHARE,SOURCE:SHARE, such as a.txt:0.75,built-in:0.25 "
        "(%(default)s)",
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


def add_evaluation(group: Any) -> None:
    """Add the option for the evaluation text."""
    group.add_argument(
        "--evaluate",
        nargs="?",
        const=True,
        default=None,
        type=TextArgument,
        metavar="TEXT",
        help="perplexity before and after on a text file, a directory or dataset:NAME, or on the built-in text without TEXT; put "
        "it last or write --evaluate=TEXT",
    )


def add_hub_options(group: Any) -> None:
    """Add the options of an upload."""
    group.add_argument(
        "--push-to-hub", metavar="NAME", help="also upload the checkpoint to this repository of the Hugging Face hub"
    )
    group.add_argument("--private", action="store_true", help="make that repository private if it is new")


def add_run_options(command: argparse.ArgumentParser, *, uploads: bool = True) -> None:
    """Add the options of the output, of loading, and of runs block by block; with `uploads` also those of an upload."""
    group = command.add_argument_group("model and output")
    group.add_argument("--output", type=directory, required=True, help="directory to write; absent or empty")
    if uploads:
        add_hub_options(group)
    add_model_options(group)
    group.add_argument(
        "--low-memory",
        action="store_true",
        help="prune block by block, with weights and states on disk; --device cuda computes on a GPU that need only hold one "
        "block (also done without this option if the model does not fit in the memory of the device)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with an unfinished run of --low-memory, at the block where it ended",
    )


def add_items_option(group: Any) -> None:
    """Add the option that names items."""
    group.add_argument(
        "--items",
        metavar="ITEMS",
        help="ask items, built-in (facts, last words, arithmetic, code) or of a file of JSON lines (kind, prompt, answer): how "
        "many are answered right, and what share is kept of those that a dense model answers right (none)",
    )


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


def _max_memory(text: str) -> dict[int | str, int]:
    """Convert ``0=20GiB,cpu=60GiB`` to bytes by device, as accelerate reads them."""
    pairs = [[part.strip() for part in entry.partition("=")] for entry in text.split(",")]
    found: dict[int | str, int] = {}
    for device, sign, size in pairs:
        n_bytes = _bytes(size) if PLACE.fullmatch(device) and size[:1].isdigit() else None
        if n_bytes is None:
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


def check_numbers(options: argparse.Namespace) -> None:
    """Raise an OptionError if a number is smaller than its value in `LEAST`, or greater than its value in `MOST`."""
    for name, least in LEAST.items():
        number = getattr(options, name, None)
        if number is not None and not least <= number <= MOST[name]:
            bound = f"at least {least}" if number < least else f"at most {MOST[name]}"
            raise OptionError(f"--{name.replace('_', '-')} must be {bound}, got {number}")


def find_texts(options: argparse.Namespace) -> None:
    """Convert texts to paths unless they name a source, so that a mistyped path is not read as the text itself.

    Raises
    ------
    OptionError
        A source is not for this use, or a mixture is not well formed.
    """
    for name, value in vars(options).items():
        if isinstance(value, TextArgument):
            # Imported here, because this import is slow.
            from llmrank.text.sources import find_source

            try:
                found: str | Path = str(value) if find_source(str(value), value.role) else Path(value)
            except CalibrationError as error:
                raise OptionError(f"--{name}: {error}") from None
            setattr(options, name, found)
