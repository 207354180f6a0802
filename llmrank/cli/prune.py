"""``llmrank demo`` and ``llmrank prune``: their options, and what they run and print."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from llmrank.calibration.blocks.work_directory import SHARD_BYTES
from llmrank.calibration.forward import fitting_length, progress_step
from llmrank.calibration.logits import predicts_next_token
from llmrank.calibration.text import tokenise
from llmrank.calibration.text.built_in import BuiltInText
from llmrank.calibration.text.generated import Automatic, Generated
from llmrank.cli import demo
from llmrank.cli.low_memory import add_low_memory_options, check_low_memory, resumable, work_directory
from llmrank.cli.options import (
    add_method_options,
    add_model_options,
    check_method,
    directory,
    load,
    make_pipeline,
    text_source,
)
from llmrank.errors import CalibrationError
from llmrank.evaluation.perplexity import perplexity, unigram_perplexity
from llmrank.models.demo_models import DEMO_NAME
from llmrank.pipeline import BasePipeline
from llmrank.pipeline.report import Evaluation, Report
from llmrank.prune.budget import describe_amount
from llmrank.prune.schedule import describe_steps
from llmrank.surgery import checkpoint
from llmrank.surgery.files import check_output
from llmrank.surgery.model_card import loading_code
from llmrank.surgery.widths import WIDTHS_KEY

__all__ = ["add_demo_options", "add_evaluation", "add_prune_options", "run_demo", "run_prune"]

# Without --evaluate, the pruned model is run on this many sequences of at most this length, to see whether it has collapsed.
CHECK_SAMPLES = 2
CHECK_LENGTH = 1024


def add_demo_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank demo``."""
    group = command.add_argument_group("model and output")
    group.add_argument("--model", help=f"a model directory, hub name or .gguf file instead of {DEMO_NAME} from PyPI")
    group.add_argument(
        "--output", type=directory, default=Path("llmrank-demo"), help="directory to write (%(default)s)"
    )
    add_model_options(group)
    add_method_options(command)
    command.set_defaults(evaluate=True, pipeline="chained", calibration=BuiltInText.name)


def add_prune_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank prune``."""
    command.add_argument("model", metavar="MODEL", help="a directory, a hub name, or a .gguf file")
    group = command.add_argument_group("model and output")
    group.add_argument("--output", type=directory, required=True, help="directory to write; absent or empty")
    add_model_options(group)
    add_low_memory_options(group)
    add_evaluation(add_method_options(command))


def add_evaluation(group: Any) -> None:
    """Add the option for the evaluation text."""
    group.add_argument(
        "--evaluate",
        nargs="?",
        const=True,
        default=None,
        type=text_source,
        metavar="TEXT",
        help="perplexity before and after on a text file or dataset:NAME, or on the built-in text without TEXT; put it last or "
        "write --evaluate=TEXT",
    )


def run_demo(options: argparse.Namespace, console: Console) -> int:
    """Run ``llmrank demo``; return the exit status."""
    pipeline = _checked_pipeline(options, console, undoable=True)
    written = demo.run(pipeline, options.output, console)
    _say_written(written, ["report.json", "masks.safetensors", demo.FIGURE_FILE], console)
    _say_how_to_load(written, pipeline.model, console)
    return 0


def run_prune(options: argparse.Namespace, console: Console) -> int:
    """Run ``llmrank prune``; return the exit status."""
    check_low_memory(options)
    pipeline = _checked_pipeline(options, console, undoable=False)
    if options.calibration == Automatic.name:
        _say_if_model_writes_text(pipeline, console)
    with resumable(pipeline, console):
        model = pipeline.run()
    report = pipeline.report
    if report is None:
        raise RuntimeError("the pipeline ran without leaving a report")
    if options.evaluate is None:
        _check_collapse(pipeline, report)
    with progress_step(options.progress, f"Saving {options.output}"):
        shard_bytes = None if pipeline.work is None else SHARD_BYTES
        written = checkpoint.save(
            options.output, model, pipeline.tokenizer, pipeline.masks, report.to_dict(), shard_bytes=shard_bytes
        )
    if pipeline.work is not None:
        pipeline.work.remove()
    console.print(report.table())
    _say_written(written, ["report.json", "masks.safetensors"], console)
    _say_how_to_load(written, model, console)
    if options.calibration == Automatic.name:
        _say_what_text(pipeline, console)
    return 0


def _checked_pipeline(options: argparse.Namespace, console: Console, *, undoable: bool) -> BasePipeline:
    """Check the options, load the model and make the pipeline; print what will be removed, what steps cost, and warnings."""
    check_output(options.output)
    check_method(options)
    loaded = load(options)
    work = None if undoable else work_directory(options, loaded.model, console)
    pipeline = make_pipeline(options, loaded, evaluation=options.evaluate, undoable=undoable, work=work)
    pruner, steps = pipeline.pruner, pipeline.steps
    ffns, costs = pipeline.prepare()
    amount = describe_amount(pruner, ffns, costs, pipeline.targets)
    may_mean_percent = isinstance(pruner.amount, int) and 0 < pruner.amount < 100
    hint = f" (for {pruner.amount} % write --amount {pruner.amount / 100:.2f})" if may_mean_percent else ""
    console.print(f"--amount {pruner.amount}: {amount}{hint}.", markup=False, highlight=False)
    warning = pipeline.token_warning(ffns)
    if warning is not None:
        console.print(Text(f"Warning: {warning}", style="bold yellow"))
    if steps > 1:
        cost = describe_steps(steps, pruner.amount, pruner.amount_of, repairs=pipeline.repair is not None)
        console.print(cost, markup=False, highlight=False)
    return pipeline


def _say_if_model_writes_text(pipeline: BasePipeline, console: Console) -> None:
    if pipeline.calibration.source == Generated.name:
        console.print(
            f"The model first writes the text to calibrate on; --calibration FILE or {BuiltInText.name} does without.",
            markup=False,
            highlight=False,
        )


def _say_what_text(pipeline: BasePipeline, console: Console) -> None:
    is_generated = pipeline.calibration.source == Generated.name
    console.print(
        f"The model was calibrated on {'text that it wrote' if is_generated else 'the Python language reference'}. Text of the "
        "kind that it will read is better: --calibration FILE.",
        markup=False,
        highlight=False,
    )


def _check_collapse(pipeline: BasePipeline, report: Report) -> None:
    """Note in the report if the pruned model collapses on a few sequences of the built-in text."""
    if pipeline.tokenizer is None or not predicts_next_token(pipeline.model) or not report.neurons["removed"]:
        return
    length = min(fitting_length(pipeline.model, report.calibration["sequence_length"]), CHECK_LENGTH)
    try:
        texts = tokenise(None, pipeline.tokenizer, CHECK_SAMPLES, length, "evaluation")
        with progress_step(pipeline.progress, "Checking whether the pruned model has collapsed"):
            after = perplexity(pipeline.model, texts)
    except CalibrationError as error:
        report.notes.append(f"whether the pruned model has collapsed was not checked: {error}")
        return
    evaluation = Evaluation(texts.provenance(), None, after, unigram_perplexity(texts))
    report.notes += evaluation.warnings()


def _say_written(written: Path, names: Sequence[str], console: Console) -> None:
    parts = ["the checkpoint", *(name for name in names if (written / name).is_file())]
    console.print(f"Wrote {written}: {', '.join(parts[:-1])} and {parts[-1]}.", markup=False)


def _say_how_to_load(written: Path, model: Any, console: Console) -> None:
    widths = set((getattr(model.config.get_text_config(), WIDTHS_KEY, None) or {}).values())
    if len(widths) > 1:
        advice = "Its layers differ in width: load it with llmrank.load, or prune with --form padded for stock loaders."
    elif widths:
        advice = (
            f"Its layers are all {widths.pop()} wide, which its configuration cannot say: load it with llmrank.load. "
            "(--form padded would fill it up to the original width, and save nothing.)"
        )
    else:
        advice = f"Load it with {loading_code(model, str(written))}."
    console.print(advice, markup=False)
