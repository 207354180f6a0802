"""``llmrank demo`` and ``llmrank prune``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from llmrank.calibration.forward import fitting_length, progress_step
from llmrank.calibration.logits import predicts_next_token
from llmrank.calibration.text import tokenise
from llmrank.calibration.text.built_in import BuiltInText
from llmrank.calibration.text.generated import Automatic, Generated
from llmrank.cli import demo
from llmrank.cli.options import check_method, load, make_pipeline
from llmrank.errors import CalibrationError
from llmrank.evaluation.perplexity import perplexity, unigram_perplexity
from llmrank.pipeline import BasePipeline
from llmrank.pipeline.report import Evaluation, Report
from llmrank.prune.budget import describe_amount
from llmrank.prune.schedule import describe_steps
from llmrank.surgery import checkpoint
from llmrank.surgery.files import check_output
from llmrank.surgery.widths import WIDTHS_KEY

__all__ = ["run_demo", "run_prune"]

# Without --evaluate a pruned model is still looked at: this many sequences tell whether it collapsed.
CHECK_SAMPLES = 2
CHECK_LENGTH = 1024


def run_demo(options: argparse.Namespace, console: Console) -> int:
    """``llmrank demo``."""
    check_output(options.output)
    check_method(options)
    loaded = load(options)
    pipeline = make_pipeline(options, loaded, evaluation=True)
    _say_amount(pipeline, console)
    _say_steps(pipeline, console)
    directory = demo.run(pipeline, options.output, console)
    _say_written(directory, ["report.json", "masks.safetensors", demo.FIGURE_FILE], console)
    _say_how_to_load(directory, loaded.model, console)
    return 0


def run_prune(options: argparse.Namespace, console: Console) -> int:
    """``llmrank prune``."""
    check_output(options.output)
    check_method(options)
    loaded = load(options)
    pipeline = make_pipeline(options, loaded, evaluation=options.evaluate, undoable=False)
    _say_amount(pipeline, console)
    _say_steps(pipeline, console)
    if options.calibration == Automatic.name:
        _say_wait(pipeline, console)
    model = pipeline.run()
    report = pipeline.report
    if report is None:
        raise RuntimeError("the pipeline ran without leaving a report")
    if options.evaluate is None:
        _check_collapse(pipeline, report)
    with progress_step(options.progress, f"Saving {options.output}"):
        directory = checkpoint.save(options.output, model, loaded.tokenizer, pipeline.masks, report.to_dict())
    console.print(report.table())
    _say_written(directory, ["report.json", "masks.safetensors"], console)
    _say_how_to_load(directory, model, console)
    if options.calibration == Automatic.name:
        _say_what_text(pipeline, console)
    return 0


def _say_amount(pipeline: BasePipeline, console: Console) -> None:
    """Say what the amount was taken for, since 30 and 0.3 look alike, and warn of too little text, before the work begins."""
    pruner = pipeline.pruner
    ffns, costs = pipeline.prepare()
    told = describe_amount(pruner, ffns, costs)
    percent = isinstance(pruner.amount, int) and 0 < pruner.amount < 100
    hint = f" (for {pruner.amount} % write --amount {pruner.amount / 100:.2f})" if percent else ""
    console.print(f"--amount {pruner.amount}: {told}{hint}.", markup=False, highlight=False)
    warning = pipeline.token_warning(ffns)
    if warning is not None:
        console.print(Text(f"Warning: {warning}", style="bold yellow"))


def _say_steps(pipeline: BasePipeline, console: Console) -> None:
    """What several steps will cost, before the first starts."""
    steps, pruner = pipeline.steps, pipeline.pruner
    if steps > 1:
        told = describe_steps(steps, pruner.amount, pruner.amount_of, repairs=pipeline.repair is not None)
        console.print(told, markup=False, highlight=False)


def _say_wait(pipeline: BasePipeline, console: Console) -> None:
    """What takes long at first, where nobody asked for it."""
    if pipeline.calibration.source == Generated.name:
        console.print(
            f"The model first writes the text to calibrate on; --calibration FILE or {BuiltInText.name} does without.",
            markup=False,
            highlight=False,
        )


def _say_what_text(pipeline: BasePipeline, console: Console) -> None:
    """What would have served better, where nobody said what the model is for."""
    own = pipeline.calibration.source == Generated.name
    console.print(
        f"The model was calibrated on {'text that it wrote' if own else 'the Python language reference'}. Text like what it will "
        "read serves better: --calibration FILE.",
        markup=False,
        highlight=False,
    )


def _check_collapse(pipeline: BasePipeline, report: Report) -> None:
    """A look at a few sequences; nobody should find out from users that a model talks nonsense."""
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


def _say_written(directory: Path, names: Sequence[str], console: Console) -> None:
    parts = ["the checkpoint", *(name for name in names if (directory / name).is_file())]
    console.print(f"Wrote {directory}: {', '.join(parts[:-1])} and {parts[-1]}.", markup=False)


def _say_how_to_load(directory: Path, model: Any, console: Console) -> None:
    widths = set((getattr(model.config.get_text_config(), WIDTHS_KEY, None) or {}).values())
    if len(widths) > 1:
        console.print(
            "Its layers differ in width: load it with llmrank.load, or prune with --form padded for stock loaders."
        )
        return
    if widths:
        console.print(
            f"Its layers are all {widths.pop()} wide, which its configuration cannot say: load it with llmrank.load. "
            "(--form padded would fill it up to the original width, and save nothing.)",
            markup=False,
        )
        return
    if not type(model).__module__.startswith("transformers."):
        console.print("Its class is code that comes with it: load it with llmrank.load(..., trust_remote_code=True).")
        return
    loader = type(model).__name__
    auto = "AutoModelForCausalLM" if "CausalLM" in loader or "LMHead" in loader else loader
    console.print(f'Load it with transformers.{auto}.from_pretrained("{directory}").', markup=False)
