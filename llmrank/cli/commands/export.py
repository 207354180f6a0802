"""``llmrank export``: write a checkpoint in the format of another program."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from llmrank.cli.options import check_device_and_dtype, check_output_file, load
from llmrank.cli.result import CommandResult
from llmrank.cli.terminal import Terminal
from llmrank.errors import CheckpointError, OptionError
from llmrank.integrations.decilm import MULTIPLE, write_decilm
from llmrank.integrations.gguf import write_gguf
from llmrank.surgery.checkpoint import REPORT_FILE, read_report

__all__ = ["run_export"]


def run_export(options: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run ``llmrank export``."""
    found = _write_vllm(options, terminal) if options.to == "vllm" else _write_gguf(options, terminal)
    return CommandResult({"output": str(options.output), "to": options.to, **found})


def _write_vllm(options: argparse.Namespace, terminal: Terminal) -> dict[str, Any]:
    if options.tokenizer is not None:
        raise OptionError("--tokenizer is for --to gguf; a checkpoint has its tokenizer already")
    with terminal.step(f"Writing {options.output}"):
        widths = write_decilm(options.model, options.output)
    fits = not any(width % MULTIPLE for width in widths)
    also = (
        " SGLang and mlx-lm load it too, unless it has biases."
        if fits
        else f" (SGLang and mlx-lm need multiples of {MULTIPLE}.)"
    )
    terminal.say(
        f"Wrote {options.output}: {_layers(widths)}. Serve it: vllm serve {options.output} --trust-remote-code, which runs "
        f"the few lines of its configuration.{also}"
    )
    return {"widths": widths}


def _write_gguf(options: argparse.Namespace, terminal: Terminal) -> dict[str, Any]:
    check_output_file(options.output)
    check_device_and_dtype(options)
    output = options.output.resolve()
    if output.exists() and Path(options.model).resolve() in (output, output.parent):
        raise OptionError(f"{options.output} is a part of what is read; name another file for --output")
    tokenizer = options.tokenizer or _source(Path(options.model))
    if tokenizer is not None and not tokenizer.is_file():
        raise OptionError(f"--tokenizer: there is no file {tokenizer}")
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
    terminal.say(
        f"Wrote {options.output}: {_layers(found.widths)}, {found.dtype}, {found.bytes / 1e6:,.0f} MB, architecture "
        f"{found.architecture}. Run it: llama-cli -m {options.output}"
    )
    return found._asdict()


def _layers(widths: tuple[int, ...]) -> str:
    narrow, wide = min(widths), max(widths)
    return f"{len(widths)} layers of {narrow:,}{'' if narrow == wide else f' to {wide:,}'} neurons"


def _source(checkpoint: Path) -> Path | None:
    """Return the GGUF file that a checkpoint is, or was pruned from by its report, if it is there."""
    if checkpoint.suffix == ".gguf":
        return checkpoint
    try:
        source = Path((read_report(checkpoint / REPORT_FILE).get("config") or {})["model"])
    except (CheckpointError, KeyError, TypeError):  # none, damaged, or of a model that was loaded in Python
        return None
    return source if source.suffix == ".gguf" and source.is_file() else None
