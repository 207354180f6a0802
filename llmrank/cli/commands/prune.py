"""``llmrank demo`` and ``llmrank prune``: their options, and what they run and print."""

from __future__ import annotations

import argparse
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmrank.cache import cache_directory
from llmrank.cli.commands import demo
from llmrank.cli.low_memory import (
    check_low_memory,
    result_of_finished_run,
    resumable,
    without_generation,
    work_directory,
)
from llmrank.cli.options import (
    check_method,
    load,
    make_run,
)
from llmrank.cli.result import CommandResult
from llmrank.cli.terminal import Terminal
from llmrank.errors import CalibrationError, OptionError
from llmrank.evaluation.before_and_after import Evaluation
from llmrank.evaluation.perplexity import perplexity, unigram_perplexity
from llmrank.execution import Processes, join_processes
from llmrank.execution.work_directory import SAVING, SHARD_BYTES
from llmrank.integrations.gguf import ARCHITECTURES
from llmrank.models.forward import fitting_length, predicts_next_token
from llmrank.pipeline.notes import seconds_of_repair, warning_of_few_tokens
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.pipeline.recipe import Recipe
from llmrank.pipeline.report import Report
from llmrank.pipeline.specs import split_spec
from llmrank.prune.budget import describe_amount
from llmrank.surgery import checkpoint
from llmrank.surgery.atomic import check_output
from llmrank.surgery.hub import check_hub, upload_command
from llmrank.surgery.model_card import loading_code
from llmrank.surgery.widths import WIDTHS_KEY
from llmrank.text import tokenise
from llmrank.text.built_in import BuiltInText
from llmrank.text.generated import Automatic, Generated

__all__ = [
    "check_upload",
    "prune",
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


def check_upload(options: argparse.Namespace) -> str | None:
    """Return the repository of ``--push-to-hub`` with its owner; raise an error now if it could not be uploaded to later."""
    if options.push_to_hub is not None:
        return check_hub(options.push_to_hub)
    if options.private:
        raise OptionError("--private is for the repository of --push-to-hub NAME; add that, or leave --private out")
    return None


def run_demo(options: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run ``llmrank demo``."""
    check_output(options.output)
    run = _checked_run(options, check_method(options), terminal, undoable=True)
    report = demo.run_and_show(run, options.output, terminal, options.settings)
    _say_written(options.output, [checkpoint.REPORT_FILE, checkpoint.MASKS_FILE, demo.FIGURE_FILE], terminal)
    _say_how_to_load(options.output, run.model, terminal)
    if run.recipe.heal is None and predicts_next_token(run.model):
        paths = options.output, "--against", run.model.name_or_path, "--output", f"{options.output}-healed"
        terminal.say(
            "It comes nearer to the dense model by learning the predictions of that model: llmrank heal "
            f"{shlex.join(map(str, paths))} --text built-in"
        )
    return CommandResult({"output": str(options.output), "report": report})


def run_prune(options: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run ``llmrank prune``."""
    check_low_memory(options)
    result = result_of_finished_run(options, terminal, "config.json", describe_checkpoint)
    return prune(options, terminal) if result is None else result


def prune(options: argparse.Namespace, terminal: Terminal, recipe: Recipe | None = None) -> CommandResult:
    """Prune a model by a recipe, by default that of the options, and save it."""
    with join_processes(ARRIVAL) as processes:
        if processes.rank:  # process 0 shows them
            warnings.simplefilter("ignore")
        check_output(options.output)
        recipe, repository = check_method(options, recipe), check_upload(options)
        run = _checked_run(options, recipe, terminal, undoable=False, processes=processes)
        names_no_text = recipe.calibration.source == Automatic.name and run.work_directory is None
        if names_no_text:
            _say_if_model_writes_text(run, terminal)
        if processes.count > 1:
            terminal.say(f"{processes.count} processes divide the calibration text.")
        with resumable(run, terminal):
            model = run.run()
    if processes.rank:
        return CommandResult({})
    report = run.report
    if report is None:
        raise RuntimeError("the run has left no report")
    report.config = options.settings
    collapsed = _check_collapse(run, report) if report.evaluation is None else report.evaluation.collapsed
    pushed = None if collapsed else repository
    with resumable(run, terminal):
        written = _save(options, run, report, terminal, pushed)
    terminal.print(report.table())
    _say_written(written, [checkpoint.REPORT_FILE, checkpoint.MASKS_FILE], terminal)
    if pushed is not None:
        terminal.say(f"Uploaded it to {pushed}.")
    elif repository is not None:
        terminal.warn(f"it was not uploaded to {repository}, because it has collapsed")
    _say_how_to_load(written, model, terminal)
    _say_if_no_quantiser_fits(options, run, report, terminal)
    if names_no_text:
        _say_what_text(run, terminal)
    _say_where_text_is_kept(report, terminal)
    content = {"output": str(written), "report": report.to_dict()}
    return CommandResult(content if pushed is None else {**content, "pushed": pushed})


def describe_checkpoint(directory: Path) -> dict[str, Any]:
    """Return what the result of the command says of a checkpoint that is complete: its report, if it has one."""
    report = checkpoint.read_report(directory / checkpoint.REPORT_FILE)
    return {"report": report} if report else {}


def _save(
    options: argparse.Namespace, run: PruningRun, report: Report, terminal: Terminal, repository: str | None
) -> Path:
    """Write the checkpoint, and upload it to a repository; return its directory."""
    try:
        with terminal.step(f"Saving {options.output}"):
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
            terminal.say(f"{options.output} is complete; {command} uploads it.")
        raise
    finally:
        # A failed upload leaves a complete checkpoint, and nothing to resume.
        if run.work is not None and (options.output / "config.json").exists():
            run.work.remove()
            run.work = None


def _checked_run(
    options: argparse.Namespace,
    recipe: Recipe,
    terminal: Terminal,
    *,
    undoable: bool,
    processes: Processes | None = None,
) -> PruningRun:
    """Load the model and make the run; print what will be removed, and warnings."""
    loaded = load(options, terminal, on_cpu=True)
    # Several processes cannot share the files of a run.
    in_memory = undoable or (processes is not None and processes.count > 1)
    work = None if in_memory else work_directory(options, loaded.model, terminal)
    recipe = without_generation(recipe, work, terminal)
    run = make_run(options, loaded, recipe, terminal, undoable=undoable, work=work, processes=processes)
    prepared = run.prepare()
    pruner = recipe.pruner
    amount = describe_amount(pruner, prepared.ffns, prepared.costs, recipe.targets)
    may_mean_percent = isinstance(pruner.amount, int) and 0 < pruner.amount < 100
    hint = f" (for {pruner.amount} % write --amount {pruner.amount / 100:.2f})" if may_mean_percent else ""
    terminal.say(f"--amount {pruner.amount}: {amount}{hint}.")
    warning = warning_of_few_tokens(prepared, recipe)
    if warning is not None:
        terminal.warn(warning)
    seconds = seconds_of_repair(prepared, recipe, run.execution)
    if seconds > LONG_REPAIR:
        terminal.say(
            f"The repair will take about {seconds / 60.0:,.0f} minutes, besides forward passes of the text; "
            "--repair none leaves it out."
        )
    return run


def _say_if_no_quantiser_fits(options: argparse.Namespace, run: PruningRun, report: Report, terminal: Terminal) -> None:
    """Say how to round the widths, if GGUF could quantise the output maps of the dense model, but not those of the pruned one."""
    widths = [width for width in report.neurons["widths_with_padding"].values() if width % QUANTISED_BLOCK]
    if widths and all(len(mask) % QUANTISED_BLOCK == 0 for mask in (run.masks or {}).values()):
        name, written = split_spec(options.pruner)
        written["multiple_of"] = [str(QUANTISED_BLOCK)]
        rounded = f"{name}:{','.join(f'{key}={value}' for key, values in written.items() for value in values)}"
        terminal.say(
            f"If you quantise it to GGUF: {QUANTISED_BLOCK} does not divide the width {widths[0]:,}, so its output maps would "
            f"not be quantised. --pruner {rounded} rounds the width."
        )


def _say_if_model_writes_text(run: PruningRun, terminal: Terminal) -> None:
    """Say that the model first writes its calibration text, which takes time."""
    if run.recipe.calibration.source == Generated.name:
        terminal.say(
            f"The model first writes the text to calibrate on; with --calibration FILE or {BuiltInText.name} it writes none."
        )


def _say_what_text(run: PruningRun, terminal: Terminal) -> None:
    """Say on which text the model was calibrated, and which text is better."""
    is_generated = run.recipe.calibration.source == Generated.name
    text = f"{'text that it wrote and ' if is_generated else ''}the Python language reference"
    terminal.say(
        f"The model was calibrated on {text}. Text of the kind that it will read is better: --calibration FILE."
    )


def _say_where_text_is_kept(report: Report, terminal: Terminal) -> None:
    """Say in which file the text that the model wrote is kept for later runs."""
    for source in report.calibration.get("sources", [report.calibration]):
        path = cache_directory() / source.get("kept_in", "")
        if path.is_file():  # a ranking may come from another machine
            terminal.say(f"The text that the model wrote is kept in {path}; delete that file to have it written anew.")


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


def _say_written(written: Path, names: Sequence[str], terminal: Terminal) -> None:
    parts = ["the checkpoint", *(name for name in names if (written / name).is_file())]
    terminal.say(f"Wrote {written}: {', '.join(parts[:-1])} and {parts[-1]}.")


def _say_how_to_load(written: Path, model: Any, terminal: Terminal) -> None:
    widths = set((getattr(model.config.get_text_config(), WIDTHS_KEY, None) or {}).values())
    if len(widths) > 1:
        elsewhere = "run it elsewhere after llmrank export, " if model.config.model_type in ARCHITECTURES else ""
        advice = (
            f"Its layers differ in width: load it with llmrank.load, {elsewhere}or prune with --form padded for programs that "
            "expect equal layers."
        )
    elif widths:
        advice = (
            f"Its layers are all {widths.pop()} wide, which its configuration cannot say: load it with llmrank.load. "
            "(--form padded would fill it up to the original width, and save nothing.)"
        )
    else:
        advice = f"Load it with {loading_code(model, str(written))}."
    terminal.say(advice)
