"""``llmrank rank`` and ``llmrank apply``: calibrate once, and prune by any amount later."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmrank.cli.arguments.rank import OF_RANKING
from llmrank.cli.commands.prune import check_upload, describe_checkpoint, prune
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
    recipe_of,
)
from llmrank.cli.result import CommandResult
from llmrank.cli.terminal import Terminal
from llmrank.errors import OptionError
from llmrank.execution.json_files import json_safe
from llmrank.execution.work_directory import SAVING, SHARD_BYTES, WorkDirectory
from llmrank.models.digest import weights_digest
from llmrank.pipeline import stages
from llmrank.pipeline.descriptions import model_source
from llmrank.pipeline.plan import rank_model
from llmrank.pipeline.ranking import SETTINGS, Ranking
from llmrank.pipeline.texts import RankedText
from llmrank.prune import LeastLossPruner
from llmrank.prune.masks import Masks
from llmrank.surgery import checkpoint
from llmrank.surgery.apply import apply_masks
from llmrank.surgery.atomic import atomic_directory, check_output
from llmrank.surgery.named_layers import ffns_of_masks

__all__ = ["run_apply", "run_rank"]


def run_rank(options: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run ``llmrank rank``."""
    check_low_memory(options)
    result = result_of_finished_run(options, terminal, SETTINGS, _describe_ranking)
    if result is not None:
        return result
    check_output(options.output)
    recipe = check_method(options)
    if recipe.attention:
        raise OptionError(
            "statistics of attentions cannot be kept in a file; leave attention=true out, or use llmrank prune"
        )
    if options.losses and {"blocks", "experts"} & {*recipe.targets}:
        raise OptionError(
            f"--losses measures losses of neurons and heads, got --targets {options.targets}; leave --losses out, or name "
            "neurons, heads or both"
        )
    loaded = load(options, terminal, on_cpu=True)
    work = work_directory(options, loaded.model, terminal)
    recipe = without_generation(recipe, work, terminal)
    run = make_run(options, loaded, recipe, terminal, undoable=False, work=work)
    recipe, prepared = run.recipe, run.prepare()  # its text is chosen for the model
    tokens = stages.calibration_tokens(prepared, recipe, run.execution, hold_out=True)
    with terminal.step("Reading the weights"):
        # Before the calibration, because this raises an error if weights are missing.
        weights = weights_digest(loaded.model)
    with resumable(run, terminal):
        execution = run.with_work_directory(prepared, tokens, run.execution)
        statistics = stages.calibrate(prepared, recipe, tokens, execution)
        ranked = rank_model(prepared, recipe, statistics, tokens, execution)
        losses = {}
        if options.losses:
            measuring = replace(recipe, pruner=LeastLossPruner())
            curves = stages.measure_losses(prepared, measuring, ranked, tokens, execution)
            losses = {"losses": {**stages.settings_of_losses(measuring, ranked), "curves": curves.to_dict()}}
    settings = {
        "model": model_source(loaded.model),
        "weights": weights,
        "layers": prepared.ffns.sizes,
        "ffns": [ffn.name for ffn in prepared.ffns],
        "pipeline": options.pipeline,
        "scorer": options.scorer if len(recipe.candidates) == 1 else ranked.scorer.label(),
        "choice": json_safe(ranked.choice),
        "calibration": tokens.sequences.provenance(),
        **losses,
    }
    with resumable(run, terminal), terminal.step(f"Saving {options.output}"):
        if run.work is not None:
            run.work.note(SAVING, options.settings)
        with atomic_directory(options.output) as partial:
            Ranking(statistics, *tokens, settings, ranked.importance()).save(partial)
    if run.work is not None:
        run.work.remove()
    if ranked.choice is not None:
        terminal.print(ranked.choice.table())
    sizes = prepared.ffns.sizes
    targets = "" if recipe.targets == ("neurons",) else f" --targets {','.join(recipe.targets)}"
    amount = f"--amount-of parameters --pruner {LeastLossPruner.name} " if options.losses else ""
    terminal.say(
        f"Wrote {options.output}: the scores of {sum(sizes.values()):,} neurons in {len(sizes)} layers, and the "
        f"statistics of {tokens.sequences.n_tokens:,} tokens.\n"
        + (f"See what would be removed with llmrank plan {options.output} {options.model}\n" if options.losses else "")
        + f"Prune with llmrank apply {options.output} {options.model} {amount}--amount 0.3{targets} --output pruned"
    )
    return CommandResult({"output": str(options.output), "ranking": settings, "tokens": tokens.sequences.n_tokens})


def _describe_ranking(directory: Path) -> dict[str, Any]:
    ranking = Ranking.load(directory)
    return {"ranking": dict(ranking.settings), "tokens": ranking.sequences.n_tokens}


def run_apply(options: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run ``llmrank apply``."""
    check_low_memory(options)
    result = result_of_finished_run(options, terminal, "config.json", describe_checkpoint)
    if result is not None:
        return result
    check_output(options.output)
    if options.ranking.is_file():
        return _apply_masks(options, terminal)
    if not (options.ranking / SETTINGS).is_file():
        raise OptionError(
            f"{options.ranking} holds no ranking; expected a directory that llmrank rank has written, or masks.safetensors"
        )
    ranking = Ranking.load(options.ranking)
    asked = options.pipeline.partition(":")[0]
    if asked == "residual" and not str(ranking.settings["pipeline"]).startswith("residual"):
        raise OptionError(
            f"the residual graph needs what {options.ranking} has not measured; rank again with --pipeline residual, or leave "
            "--pipeline out"
        )
    text, names = RankedText(ranking, options.batch_size), ("scorer", "pipeline")
    scorer, pipeline = (ranking.settings[name] if getattr(options, name) == OF_RANKING else None for name in names)
    return prune(options, terminal, recipe_of(options, calibration=text, scorer=scorer, pipeline=pipeline))


def _apply_masks(options: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Remove the neurons that the masks of a file do not keep. This needs no ranking."""
    given = [name for name, value in options.method_defaults.items() if getattr(options, name) != value]
    if given:
        raise OptionError(
            f"masks say what is kept, and --{given[0].replace('_', '-')} has no effect on them (nor do masks hold a repair); "
            "leave it out, or give a directory that llmrank rank has written"
        )
    masks = Masks.load(options.ranking)
    repository = check_upload(options)
    loaded = load(options, terminal, on_cpu=True)
    if masks.weights and masks.weights != weights_digest(loaded.model):
        terminal.warn(
            f"{options.ranking} was made for other weights than those of {options.model}, or for another dtype. Neurons "
            "of another model may mean something else."
        )
    work = work_directory(options, loaded.model, terminal)
    digest = hashlib.sha256(options.ranking.read_bytes()).hexdigest()
    files = None if work is None else WorkDirectory(work, {"masks": digest}, resume=options.resume)
    store, shard_bytes = (None, None) if files is None else (files.copy_to_file, SHARD_BYTES)
    try:
        with terminal.step("Applying the masks"):
            apply_masks(loaded.model, ffns_of_masks(loaded.model, masks), masks, undoable=False, store=store)
        with terminal.step(f"Saving {options.output}"):
            if files is not None:
                files.note(SAVING, options.settings)
            checkpoint.save(
                options.output,
                loaded.model,
                loaded.tokenizer,
                masks,
                shard_bytes=shard_bytes,
                push_to_hub=repository,
                private=options.private or None,
            )
    finally:
        if files is not None:
            files.remove()
    terminal.say(f"Wrote {options.output}: the checkpoint and masks.safetensors.")
    content = {"output": str(options.output)}
    return CommandResult(content if repository is None else {**content, "pushed": repository})
