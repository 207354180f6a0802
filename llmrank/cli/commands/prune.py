"""``llmrank demo`` and ``llmrank prune``: their options, and what they run and print."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from llmrank.cache import cache_directory
from llmrank.cli.commands import demo
from llmrank.cli.demo_models import DEMO_NAME
from llmrank.cli.low_memory import (
    add_low_memory_options,
    check_low_memory,
    has_finished,
    load_on_cpu,
    resumable,
    work_directory,
)
from llmrank.cli.options import (
    add_method_options,
    add_model_options,
    check_method,
    directory,
    make_run,
    text_source,
)
from llmrank.errors import CalibrationError, OptionError
from llmrank.evaluation.before_and_after import Evaluation
from llmrank.evaluation.perplexity import perplexity, unigram_perplexity
from llmrank.execution import Processes, join_processes
from llmrank.execution.work_directory import SAVING, SHARD_BYTES
from llmrank.models.forward import fitting_length, predicts_next_token
from llmrank.pipeline import stages
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.pipeline.report import Report
from llmrank.pipeline.specs import split_spec
from llmrank.progress import progress_step
from llmrank.prune.budget import describe_amount
from llmrank.prune.schedule import describe_steps
from llmrank.surgery import checkpoint
from llmrank.surgery.atomic import check_output
from llmrank.surgery.hub import check_hub, upload_command
from llmrank.surgery.model_card import loading_code
from llmrank.surgery.widths import WIDTHS_KEY
from llmrank.text import tokenise
from llmrank.text.built_in import BuiltInText
from llmrank.text.generated import Automatic, Generated

__all__ = [
    "add_demo_options",
    "add_evaluation",
    "add_hub_options",
    "add_prune_options",
    "check_upload",
    "run_demo",
    "run_prune",
]

# Without --evaluate, the pruned model is run on this many sequences of at most this many tokens, to see whether it has collapsed.
CHECK_SAMPLES = 2
CHECK_LENGTH = 1024
# The quantised types of GGUF store this many numbers of a row together, as one block.
QUANTISED_BLOCK = 32
# A repair that is expected to take longer than this many seconds is announced.
LONG_REPAIR = 120.0
# Seconds within which all processes come: before, they only import packages.
ARRIVAL = 45.0


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
    add_hub_options(group)
    add_model_options(group)
    add_low_memory_options(group)
    add_evaluation(add_method_options(command))


def add_hub_options(group: Any) -> None:
    """Add the options of an upload."""
    group.add_argument(
        "--push-to-hub", metavar="NAME", help="also upload the checkpoint to this repository of the Hugging Face hub"
    )
    group.add_argument("--private", action="store_true", help="make that repository private if it is new")


def add_evaluation(group: Any) -> None:
    """Add the option for the evaluation text."""
    group.add_argument(
        "--evaluate",
        nargs="?",
        const=True,
        default=None,
        type=text_source,
        metavar="TEXT",
        help="perplexity before and after on a text file, a directory or dataset:NAME, or on the built-in text without TEXT; put "
        "it last or write --evaluate=TEXT",
    )


def check_upload(options: argparse.Namespace) -> None:
    """Raise an error now if the checkpoint could not be uploaded later; add the owner to the name of the repository."""
    if getattr(options, "push_to_hub", None) is not None:
        options.push_to_hub = check_hub(options.push_to_hub)
    elif getattr(options, "private", False):
        raise OptionError("--private is for the repository of --push-to-hub NAME; add that, or leave --private out")


def run_demo(options: argparse.Namespace, console: Console) -> int:
    """Run ``llmrank demo``; return the exit status."""
    run = _checked_run(options, console, undoable=True)
    report = demo.run_and_show(run, options.output, console, options.settings)
    options.result = {"output": str(options.output), "report": report}
    _say_written(options.output, [checkpoint.REPORT_FILE, checkpoint.MASKS_FILE, demo.FIGURE_FILE], console)
    _say_how_to_load(options.output, run.model, console)
    return 0


def run_prune(options: argparse.Namespace, console: Console) -> int:
    """Run ``llmrank prune``; return the exit status."""
    check_low_memory(options)
    if has_finished(options, console, "config.json", describe_checkpoint):
        return 0
    with join_processes(ARRIVAL) as processes:
        if processes.rank:  # only process 0 prints
            console, options.progress = Console(quiet=True), None
            warnings.simplefilter("ignore")
        run = _checked_run(options, console, undoable=False, processes=processes)
        if options.calibration == Automatic.name:
            _say_if_model_writes_text(run, console)
        if processes.count > 1:
            console.print(f"{processes.count} processes divide the calibration text.", highlight=False)
        with resumable(run, console):
            model = run.run()
    if processes.rank:
        return 0
    report = run.report
    if report is None:
        raise RuntimeError("the run has left no report")
    report.config = options.settings
    collapsed = _check_collapse(run, report) if report.evaluation is None else report.evaluation.collapsed
    repository = None if collapsed else options.push_to_hub
    with resumable(run, console):
        written = _save(options, run, report, console, repository)
    pushed = {} if repository is None else {"pushed": repository}
    options.result = {"output": str(written), "report": report.to_dict(), **pushed}
    console.print(report.table())
    _say_written(written, [checkpoint.REPORT_FILE, checkpoint.MASKS_FILE], console)
    if repository is not None:
        console.print(f"Uploaded it to {repository}.", markup=False, highlight=False)
    elif options.push_to_hub is not None:
        warning = f"Warning: it was not uploaded to {options.push_to_hub}, because it has collapsed"
        console.print(Text(warning, style="bold yellow"))
    _say_how_to_load(written, model, console)
    _say_if_no_quantiser_fits(options, run, report, console)
    if options.calibration == Automatic.name:
        _say_what_text(run, console)
    _say_where_text_is_kept(report, console)
    return 0


def describe_checkpoint(directory: Path) -> dict[str, Any]:
    """Return what the result of the command says of a checkpoint that is complete: its report, if it has one."""
    report = directory / checkpoint.REPORT_FILE
    try:
        return {"report": json.loads(report.read_text(encoding="utf-8"))} if report.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise OptionError(
            f"{report} was damaged after the run had written it ({error}); delete it, or restore it"
        ) from error


def _save(
    options: argparse.Namespace, run: PruningRun, report: Report, console: Console, repository: str | None
) -> Path:
    """Write the checkpoint, and upload it to a repository; return its directory."""
    try:
        with progress_step(options.progress, f"Saving {options.output}"):
            if run.work is not None:
                run.work.note(SAVING, options.settings)
            return checkpoint.save(
                options.output,
                run.model,
                run.tokenizer,
                run.masks,
                report.to_dict(),
                shard_bytes=None if run.work is None else SHARD_BYTES,
                push_to_hub=repository,
                private=options.private or None,
            )
    except KeyboardInterrupt:
        if repository is not None and (options.output / "config.json").exists():
            command = upload_command(options.output, repository, options.private or None)
            console.print(f"{options.output} is complete; {command} uploads it.", markup=False, highlight=False)
        raise
    finally:
        # A failed upload leaves a complete checkpoint, and nothing to resume.
        if run.work is not None and (options.output / "config.json").exists():
            run.work.remove()
            run.work = None


def _checked_run(
    options: argparse.Namespace, console: Console, *, undoable: bool, processes: Processes | None = None
) -> PruningRun:
    """Check the options, load the model and make the run; print what will be removed, what steps cost, and warnings."""
    check_output(options.output)
    recipe = check_method(options)
    check_upload(options)
    loaded = load_on_cpu(options)
    # Several processes cannot share the files of a run.
    in_memory = undoable or (processes is not None and processes.count > 1)
    work = None if in_memory else work_directory(options, loaded.model, console)
    run = make_run(options, loaded, recipe, undoable=undoable, work=work, processes=processes)
    prepared = run.prepare()
    pruner = recipe.pruner
    amount = describe_amount(pruner, prepared.ffns, prepared.costs, recipe.targets)
    may_mean_percent = isinstance(pruner.amount, int) and 0 < pruner.amount < 100
    hint = f" (for {pruner.amount} % write --amount {pruner.amount / 100:.2f})" if may_mean_percent else ""
    console.print(f"--amount {pruner.amount}: {amount}{hint}.", markup=False, highlight=False)
    warning = stages.warning_of_few_tokens(prepared, recipe)
    if warning is not None:
        console.print(Text(f"Warning: {warning}", style="bold yellow"))
    seconds = stages.seconds_of_repair(prepared, recipe, run.execution)
    if seconds > LONG_REPAIR:
        console.print(
            f"The repair will take about {seconds / 60.0:,.0f} minutes, besides forward passes of the text; "
            "--repair none leaves it out.",
            highlight=False,
        )
    if recipe.steps > 1:
        repairs = recipe.repair is not None
        cost = describe_steps(recipe.steps, pruner.amount, pruner.amount_of, repairs=repairs)
        console.print(cost, markup=False, highlight=False)
    return run


def _say_if_no_quantiser_fits(options: argparse.Namespace, run: PruningRun, report: Report, console: Console) -> None:
    """Say how to round the widths, if GGUF could quantise the output maps of the dense model, but not those of the pruned one."""
    widths = [width for width in report.neurons["widths_with_padding"].values() if width % QUANTISED_BLOCK]
    if widths and all(len(mask) % QUANTISED_BLOCK == 0 for mask in (run.masks or {}).values()):
        name, written = split_spec(options.pruner)
        written["multiple_of"] = [str(QUANTISED_BLOCK)]
        rounded = f"{name}:{','.join(f'{key}={value}' for key, values in written.items() for value in values)}"
        console.print(
            f"If you quantise it to GGUF: {QUANTISED_BLOCK} does not divide the width {widths[0]:,}, so its output maps would "
            f"not be quantised. --pruner {rounded} rounds the width.",
            markup=False,
            highlight=False,
        )


def _say_if_model_writes_text(run: PruningRun, console: Console) -> None:
    """Say that the model first writes its calibration text, which takes time."""
    if run.recipe.calibration.source == Generated.name:
        console.print(
            f"The model first writes the text to calibrate on; with --calibration FILE or {BuiltInText.name} it writes none.",
            markup=False,
            highlight=False,
        )


def _say_what_text(run: PruningRun, console: Console) -> None:
    """Say on which text the model was calibrated, and which text is better."""
    is_generated = run.recipe.calibration.source == Generated.name
    console.print(
        f"The model was calibrated on {'text that it wrote' if is_generated else 'the Python language reference'}. Text of the "
        "kind that it will read is better: --calibration FILE.",
        markup=False,
        highlight=False,
    )


def _say_where_text_is_kept(report: Report, console: Console) -> None:
    """Say in which file the text that the model wrote is kept for later runs."""
    for source in report.calibration.get("sources", [report.calibration]):
        path = cache_directory() / source.get("kept_in", "")
        if path.is_file():  # a ranking may come from another machine
            console.print(
                f"The text that the model wrote is kept in {path}; delete that file to have it written anew.",
                markup=False,
                highlight=False,
            )


def _check_collapse(run: PruningRun, report: Report) -> bool:
    """Return whether the pruned model collapses on a few sequences of the built-in text, and note it in the report."""
    if run.tokenizer is None or not predicts_next_token(run.model) or not report.neurons["removed"]:
        return False
    length = min(fitting_length(run.model, report.calibration["sequence_length"]), CHECK_LENGTH)
    try:
        texts = tokenise(None, run.tokenizer, CHECK_SAMPLES, length, "evaluation")
        checking = run.execution.step("Checking whether the pruned model has collapsed")
        with checking, run.onloaded():
            after = perplexity(run.model, texts)
    except CalibrationError as error:
        report.notes.append(f"whether the pruned model has collapsed was not checked: {error}")
        return False
    evaluation = Evaluation(texts.provenance(), None, after, unigram_perplexity(texts))
    report.notes += evaluation.warnings()
    return evaluation.collapsed


def _say_written(written: Path, names: Sequence[str], console: Console) -> None:
    parts = ["the checkpoint", *(name for name in names if (written / name).is_file())]
    console.print(f"Wrote {written}: {', '.join(parts[:-1])} and {parts[-1]}.", markup=False)


def _say_how_to_load(written: Path, model: Any, console: Console) -> None:
    widths = set((getattr(model.config.get_text_config(), WIDTHS_KEY, None) or {}).values())
    if len(widths) > 1:
        advice = (
            "Its layers differ in width: load it with llmrank.load, or prune with --form padded for programs that expect equal "
            "layers."
        )
    elif widths:
        advice = (
            f"Its layers are all {widths.pop()} wide, which its configuration cannot say: load it with llmrank.load. "
            "(--form padded would fill it up to the original width, and save nothing.)"
        )
    else:
        advice = f"Load it with {loading_code(model, str(written))}."
    console.print(advice, markup=False)
