"""``llmrank heal`` and ``llmrank predict``: their options, and what they run and print."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from llmrank.cli.commands.prune import add_hub_options, check_upload
from llmrank.cli.options import (
    add_batch_and_seed,
    add_model_options,
    check_device_and_dtype,
    check_output_file,
    directory,
    load,
    text_source,
)
from llmrank.cli.result import CommandResult
from llmrank.cli.terminal import Terminal
from llmrank.errors import LLMRankError, OptionError
from llmrank.execution import launched_processes
from llmrank.healing import Distillation, Healing, Predictions
from llmrank.inspection.figures import save_figure
from llmrank.inspection.healing import draw_healing
from llmrank.models.loading import LoadedModel
from llmrank.pipeline import DEFAULT_LENGTH
from llmrank.pipeline.descriptions import json_safe
from llmrank.pipeline.heal import DEFAULT_TOKENS, heal, predict
from llmrank.pipeline.specs import Field
from llmrank.pipeline.texts import CalibrationText
from llmrank.progress import Progress
from llmrank.prune.masks import Masks
from llmrank.surgery import checkpoint
from llmrank.surgery.atomic import check_output
from llmrank.text import TokenSequences, check_text
from llmrank.text.generated import Generated

__all__ = ["add_heal_options", "add_predict_options", "run_heal", "run_predict"]

FIGURE, AUTOMATIC = "healing", "auto"
# The ending of a file of predictions.
PREDICTIONS = ".safetensors"
# Sources whose text the model writes.
WRITTEN = (AUTOMATIC, Generated.name)
# The fields of a Distillation that --with sets, and what help says of them.
KNOBS = {
    "learn": "all, ffn or lora",
    "learning_rate": "0.001 of the root mean square of each tensor for 64 steps, less for fewer",
    "sequences_per_step": "2,048 tokens or more",
    "rank": "16, of lora",
}


def add_heal_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank heal``."""
    command.add_argument("model", metavar="PRUNED", type=directory, help="the directory of a pruned checkpoint")
    group = command.add_argument_group("model and output")
    group.add_argument(
        "--against",
        required=True,
        metavar="DENSE",
        help="the model that PRUNED was pruned from, or a file of its predictions that llmrank predict has written",
    )
    group.add_argument("--against-revision", metavar="REVISION", help="branch, tag or commit of DENSE")
    group.add_argument("--output", type=directory, required=True, help="directory to write; absent or empty")
    add_hub_options(group)
    add_model_options(group)
    _add_text_options(command)
    group.add_argument(
        "--with",
        dest="knobs",
        metavar="NAME=VALUE,...",
        help=f"how it learns: {', '.join(f'{name} ({value})' for name, value in KNOBS.items())}; or arguments of transformers' "
        "TrainingArguments, such as bf16=true,report_to=wandb (a wrong name lists them)",
    )
    group.add_argument(
        "--checkpoints",
        type=Path,
        metavar="DIR",
        help="keep the state of the training in this directory; if it holds one, go on from there",
    )


def add_predict_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank predict``."""
    command.add_argument("model", metavar="DENSE", help="a directory, a hub name, or a .gguf file")
    group = command.add_argument_group("model and output")
    group.add_argument(
        "--pruned",
        type=directory,
        metavar="PRUNED",
        help="leave out the sequences that this checkpoint was repaired on",
    )
    group.add_argument("--output", type=Path, required=True, metavar="FILE", help="file to write, .safetensors")
    add_model_options(group)
    _add_text_options(command)


def _add_text_options(command: argparse.ArgumentParser) -> None:
    data = command.add_argument_group("text")
    data.add_argument(
        "--text",
        type=lambda value: text_source(value, "calibration"),
        default=AUTOMATIC,
        metavar="TEXT",
        help="what --calibration of llmrank prune takes; one of six sequences is of the built-in text, unless you give a "
        "mixture, such as a.txt:100%% (%(default)s: text that DENSE writes)",
    )
    data.add_argument(
        "--tokens",
        type=int,
        help=f"number of tokens to learn from ({DEFAULT_TOKENS:,}, or all of a file of predictions)",
    )
    data.add_argument("--sequence-length", type=int, default=DEFAULT_LENGTH, help="tokens in a sequence (%(default)s)")
    add_batch_and_seed(data)


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
    from_file = Path(options.against).suffix == PREDICTIONS
    for name in ("text", "against_revision") if from_file else ():
        if getattr(options, name) not in (None, AUTOMATIC):
            raise OptionError(
                f"{options.against} holds predictions for its own text; leave --{name.replace('_', '-')} out, or name the dense "
                "model with --against"
            )
    predictions = Predictions.read(Path(options.against)) if from_file else None
    default = DEFAULT_TOKENS if predictions is None else predictions.tokens.sequences.n_tokens
    tokens = default if options.tokens is None else options.tokens
    settings = Distillation.of_options(tokens, _values(options.knobs or ""), options.seed)
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
    _save(options, loaded, healing, repository, terminal)
    for part in healing.table():
        terminal.print(part)
    for warning in healing.warnings():
        terminal.warn(warning)
    terminal.say(f"Wrote {options.output}: the checkpoint, {checkpoint.REPORT_FILE} and {FIGURE}.png.")
    return CommandResult({"output": str(options.output), "healing": healing.to_dict()})


def _load_dense(options: argparse.Namespace, tokenizer: Any, terminal: Terminal) -> tuple[Any, TokenSequences | None]:
    """Load the dense model; return it, and the sequences of the text that the repair has seen."""
    dense = load(options, terminal, options.against, options.against_revision)
    if None not in (tokenizer, dense.tokenizer) and tokenizer.get_vocab() != dense.tokenizer.get_vocab():
        raise OptionError(
            f"{options.model} and {options.against} have different tokenizers; heal a model against the dense model that it was "
            "pruned from"
        )
    used = _used_sequences(options.model, dense.model, dense.tokenizer, options.text, terminal.progress)
    return dense.model, used


def _save(
    options: argparse.Namespace, loaded: LoadedModel, healing: Healing, repository: str | None, terminal: Terminal
) -> None:
    """Write the checkpoint with the masks and the report of the pruned one, and the figure of the ledger."""
    report = checkpoint.read_report(options.model / checkpoint.REPORT_FILE)
    # What was measured before healing does not describe the healed model.
    stale = {"evaluation": None, "notes": [], "warnings": healing.warnings()}
    report = json_safe(report | {"healing": healing.to_dict(), **(stale if report else {})})
    path = options.model / checkpoint.MASKS_FILE
    masks = Masks.load(path) if path.is_file() else None
    private = options.private or None
    with terminal.step(f"Saving {options.output}"):
        checkpoint.save(
            options.output, loaded.model, loaded.tokenizer, masks, report, push_to_hub=repository, private=private
        )
    try:
        save_figure(draw_healing(healing), options.output, FIGURE, ["png"])
    except OSError as error:
        terminal.warn(f"{FIGURE}.png could not be written ({error}); the checkpoint is complete without it")


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
        used = _used_sequences(options.pruned, loaded.model, loaded.tokenizer, options.text, terminal.progress)
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


def _used_sequences(
    pruned: Path, dense: Any, tokenizer: Any, text: Any, progress: Progress | None
) -> TokenSequences | None:
    """Return the sequences of a text that a checkpoint was calibrated and repaired on; None if it was another text.

    The report has the settings and the digest of the tokens, so the same number of sequences is made of the text and compared.
    """
    report = checkpoint.read_report(pruned / checkpoint.REPORT_FILE)
    config, known = report.get("config") or {}, report.get("calibration") or {}
    if str(text) in WRITTEN and config.get("calibration") not in WRITTEN:
        return None  # the text need not be written to see that
    try:
        like = CalibrationText(text, config.get("samples"), config["sequence-length"], seed=config.get("seed", 0))
        again = like.for_model(dense, Distillation.of(config.get("heal"))).sequences(
            dense, tokenizer, hold_out=True, progress=progress
        )
    except (KeyError, LLMRankError):  # no report of the command line, or a text that is too short for these settings
        return None
    if again.sequences.digest != known.get("sha256_of_tokens"):
        return None
    return again.sequences.joined(again.held_out)


def _values(text: str) -> dict[str, Any]:
    """Convert ``learn=lora,bf16=true`` to values."""
    found: dict[str, Any] = {}
    for entry in filter(None, text.split(",")):
        name, sign, value = (part.strip() for part in entry.partition("="))
        if not sign or not name.isidentifier():
            raise OptionError(f"--with: expected NAME=VALUE,NAME=VALUE such as learn=lora, got {entry!r}")
        found[name] = Field(name, bool | int | float | str | None, None).read([value])
    return found
