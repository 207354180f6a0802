"""``llmrank export``: write a checkpoint in the format of another program."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from llmrank.cli.options import add_model_options, check_device_and_dtype, check_output_file, load
from llmrank.cli.result import CommandResult
from llmrank.cli.terminal import Terminal
from llmrank.errors import OptionError
from llmrank.integrations.gguf import write_gguf
from llmrank.surgery.checkpoint import REPORT_FILE

__all__ = ["add_export_options", "run_export"]


def add_export_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank export``."""
    command.add_argument("model", metavar="CHECKPOINT", help="the directory of a pruned checkpoint, or any other model")
    group = command.add_argument_group("model and output")
    group.add_argument("--to", choices=["gguf"], default="gguf", help="gguf: a file that llama.cpp runs (%(default)s)")
    group.add_argument("--output", type=Path, required=True, metavar="FILE", help="file to write")
    group.add_argument(
        "--tokenizer",
        type=Path,
        metavar="GGUF",
        help="a GGUF file whose tokenizer is copied: any file of the dense model, in any quantisation (by default the file that "
        "CHECKPOINT was pruned from)",
    )
    add_model_options(group)


def run_export(options: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run ``llmrank export``."""
    check_output_file(options.output)
    check_device_and_dtype(options)
    tokenizer = options.tokenizer or _source(Path(options.model))
    if tokenizer is None:
        raise OptionError(
            "name a GGUF file of the dense model with --tokenizer, in any quantisation: its tokenizer is copied. The hub has one "
            "of most models, and llama.cpp's convert_hf_to_gguf.py --vocab-only writes one"
        )
    loaded = load(options, terminal)
    with terminal.step(f"Writing {options.output}"):
        found = write_gguf(
            loaded.model, options.output, tokenizer, vocabulary=loaded.tokenizer, name=Path(options.model).name
        )
    narrow, wide = min(found.widths), max(found.widths)
    widths = f"{narrow:,}" if narrow == wide else f"{narrow:,} to {wide:,}"
    terminal.say(
        f"Wrote {options.output}: {len(found.widths)} layers of {widths} neurons, {found.dtype}, {found.bytes / 1e6:,.0f} MB, "
        f"architecture {found.architecture}. Run it: llama-cli -m {options.output}"
    )
    return CommandResult({"output": str(options.output), **found._asdict()})


def _source(checkpoint: Path) -> Path | None:
    """Return the GGUF file that a checkpoint was pruned from, by its report, if it is there."""
    try:
        report: Any = json.loads((checkpoint / REPORT_FILE).read_text(encoding="utf-8"))
        source = Path(report["config"]["model"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return source if source.suffix == ".gguf" and source.is_file() else None
