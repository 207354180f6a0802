"""``llmrank heal`` and ``llmrank predict``: their options, and what they run and print."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmrank.cli.arguments.heal import AUTOMATIC
from llmrank.cli.commands.prune import check_upload
from llmrank.cli.options import (
    check_device_and_dtype,
    check_output_file,
    load,
)
from llmrank.cli.result import CommandResult
from llmrank.cli.terminal import Terminal
from llmrank.errors import LLMRankError, OptionError
from llmrank.execution import launched_processes
from llmrank.execution.json_files import json_safe
from llmrank.healing import Distillation, Predictions
from llmrank.inspection.figures import save_figure
from llmrank.inspection.healing import draw_healing
from llmrank.pipeline.defaults import DEFAULT_TOKENS
from llmrank.pipeline.heal import heal, predict
from llmrank.pipeline.specs import Field
from llmrank.pipeline.texts import CalibrationText
from llmrank.prune.masks import Masks
from llmrank.surgery import checkpoint
from llmrank.surgery.atomic import check_output
from llmrank.text import TokenSequences, check_text
from llmrank.text.generated import Generated

__all__ = ["run_heal", "run_predict"]

FIGURE = "healing"
# The ending of a file of predictions.
PREDICTIONS = ".safetensors"
# Sources whose text the model writes.
WRITTEN = (AUTOMATIC, Generated.name)


def run_heal(options: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run ``llmrank heal``."""
    rank, count = launched_processes()
    if count > 1 and options.device == "cuda":  # each process has a GPU of its own
        options.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    check_output(options.output)
    if options.checkpoints is not None and options.checkpoints.is_file():
        raise OptionError(f"--checkpoints must be a directory, and {options.checkpoints} is a file")
    check_device_and_dtype(options)
    check_text(options.text)
    repository = check_upload(options)
    predictions = _read_predictions(options)
    default = DEFAULT_TOKENS if predictions is None else predictions.tokens.sequences.n_tokens
    tokens = default if options.tokens is None else options.tokens
    settings = Distillation.of_options(tokens, _values(options.knobs or ""), options.seed)
    # Read before healing, which a damaged file must not cost.
    report = checkpoint.read_report(options.model / checkpoint.REPORT_FILE)
    masks_file = options.model / checkpoint.MASKS_FILE
    masks = Masks.load(masks_file) if masks_file.is_file() else None
    loaded = load(options, terminal)
    dense, used = (predictions, None) if predictions is not None else _load_dense(options, loaded.tokenizer, terminal)
    healing = heal(
        loaded.model,
        dense,
        loaded.tokenizer,
        options.text,
        settings,
        sequence_length=options.sequence_length,
        batch_size=options.batch_size,
        used=used,
        directory=options.checkpoints,
        progress=terminal.progress,
    )
    if rank:  # process 0 writes the checkpoint
        return CommandResult({})
    # What was measured before healing does not describe the healed model.
    stale = {"evaluation": None, "notes": [], "warnings": healing.warnings()} if report else {}
    report = json_safe(report | {"healing": healing.to_dict()} | stale)
    private = options.private or None
    with terminal.step(f"Saving {options.output}"):
        checkpoint.save(
            options.output, loaded.model, loaded.tokenizer, masks, report, push_to_hub=repository, private=private
        )
    try:
        save_figure(draw_healing(healing), options.output, FIGURE, ["png"])
    except OSError as error:
        terminal.warn(f"{FIGURE}.png could not be written ({error}); the checkpoint is complete without it")
    for part in healing.table():
        terminal.print(part)
    for warning in healing.warnings():
        terminal.warn(warning)
    terminal.say(f"Wrote {options.output}: the checkpoint, {checkpoint.REPORT_FILE} and {FIGURE}.png.")
    return CommandResult({"output": str(options.output), "healing": healing.to_dict()})


def _read_predictions(options: argparse.Namespace) -> Predictions | None:
    """Read the file of predictions that ``--against`` names; return None if it names a model."""
    if Path(options.against).suffix != PREDICTIONS:
        return None
    for name in ("text", "against_revision"):
        if getattr(options, name) not in (None, AUTOMATIC):
            raise OptionError(
                f"{options.against} holds predictions for its own text; leave --{name.replace('_', '-')} out, or name the dense "
                "model with --against"
            )
    return Predictions.read(Path(options.against))


def _load_dense(options: argparse.Namespace, tokenizer: Any, terminal: Terminal) -> tuple[Any, TokenSequences | None]:
    """Load the dense model; return it, and the sequences of the text that the repair has seen."""
    dense = load(options, terminal, options.against, options.against_revision)
    if None not in (tokenizer, dense.tokenizer) and tokenizer.get_vocab() != dense.tokenizer.get_vocab():
        raise OptionError(
            f"{options.model} and {options.against} have different tokenizers; heal a model against the dense model that it was "
            "pruned from"
        )
    used = _used_sequences(options.model, dense.model, dense.tokenizer, options.text, terminal)
    return dense.model, used


def run_predict(options: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run ``llmrank predict``."""
    check_output_file(options.output)
    if options.output.suffix != PREDICTIONS:
        raise OptionError(
            f"--output must end in {PREDICTIONS}, by which llmrank heal knows such a file, got {options.output}"
        )
    check_device_and_dtype(options)
    check_text(options.text)
    loaded = load(options, terminal)
    used = None
    if options.pruned is not None:
        used = _used_sequences(options.pruned, loaded.model, loaded.tokenizer, options.text, terminal)
    found = predict(
        loaded.model,
        loaded.tokenizer,
        options.output,
        options.text,
        DEFAULT_TOKENS if options.tokens is None else options.tokens,
        sequence_length=options.sequence_length,
        batch_size=options.batch_size,
        seed=options.seed,
        used=used,
        progress=terminal.progress,
    )
    size = options.output.stat().st_size
    predicted = found.entropy.numel()
    terminal.say(
        f"Wrote {options.output}: {predicted:,} predictions, {size:,} bytes ({size / predicted:.0f} a token). "
        f"llmrank heal PRUNED --against {options.output} --output HEALED learns from them."
    )
    return CommandResult({"output": str(options.output), "predictions": predicted, "bytes": size})


def _used_sequences(pruned: Path, dense: Any, tokenizer: Any, text: Any, terminal: Terminal) -> TokenSequences | None:
    """Return the sequences of a text that a checkpoint was calibrated and repaired on; None if it was another text.

    The report has the settings and the digest of the tokens, so the same number of sequences is made of the text and compared.
    """
    report = checkpoint.read_report(pruned / checkpoint.REPORT_FILE)
    config, known = report.get("config") or {}, report.get("calibration") or {}
    if str(text) in WRITTEN and config.get("calibration") not in WRITTEN:
        return None  # the text need not be written to see that
    # There may be no report of the command line, or the text may be too short for these settings.
    with suppress(KeyError, LLMRankError):
        like = CalibrationText(text, config.get("samples"), config["sequence-length"], seed=config.get("seed", 0))
        again = like.for_model(dense, Distillation.of(config.get("heal"))).sequences(
            dense, tokenizer, hold_out=True, progress=terminal.progress
        )
        if again.sequences.digest == known.get("sha256_of_tokens"):
            return again.sequences.joined(again.held_out)
    if Path(str(text)).name == Path(str(config.get("calibration"))).name:
        terminal.warn(
            f"{pruned} was calibrated on a text of this name, but {text} gives other tokens now, or too few, so the model may "
            "learn from sequences that it has seen; give the text that it was calibrated on, or one that it has not seen"
        )
    return None


def _values(text: str) -> dict[str, Any]:
    """Convert ``learn=lora,bf16=true`` to values."""
    found: dict[str, Any] = {}
    for entry in filter(None, text.split(",")):
        name, sign, value = (part.strip() for part in entry.partition("="))
        if not sign or not name.isidentifier():
            raise OptionError(f"--with: expected NAME=VALUE,NAME=VALUE such as learn=lora, got {entry!r}")
        found[name] = Field(name, bool | int | float | str | None, None).read([value])
    return found
