"""``llmrank evaluate``: its options, and what it runs and prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from llmrank.cli.commands.loss_changes import print_loss_changes
from llmrank.cli.options import (
    check_device_and_dtype,
    check_output_file,
    load,
)
from llmrank.cli.result import CommandResult, write_result
from llmrank.cli.terminal import Terminal
from llmrank.errors import CalibrationError, OptionError
from llmrank.evaluation.estimate import Estimate
from llmrank.evaluation.fidelity import continuations, fidelity
from llmrank.evaluation.greedy_decoding import check_continues
from llmrank.evaluation.items import Item, answer_items, describe_items, read_items
from llmrank.evaluation.last_word import CONTEXT_WORDS, Passage, cut_passages, last_word
from llmrank.evaluation.lm_eval import LMEvalTasks, find_tasks
from llmrank.evaluation.perplexity import model_size, perplexity
from llmrank.evaluation.token_losses import loss_changes, token_losses
from llmrank.execution import Execution
from llmrank.models.forward import fitting_length
from llmrank.models.loading import LoadedModel
from llmrank.pipeline.descriptions import dtype_name, environment
from llmrank.text import TokenSequences, check_text, read_text, tokenise

__all__ = ["run_evaluate"]

# The rows of the table. A key is a metric and, if the metric has several parts, one of them. A value is the label of the row,
# and whether its number is a share.
METRICS = {
    ("divergence", ""): ("KL(dense || model), nats a token", False),
    ("top1", ""): ("same likeliest token", True),
    ("continuations", "common_prefix"): ("continuations: common beginning", True),
    ("continuations", "equal_tokens"): ("continuations: equal tokens", True),
    ("continuations", "equal_texts"): ("continuations: wholly equal", True),
    ("last_word", "accuracy"): ("last word found", True),
}
# The parts of the metric "items", each a share of all items and of each kind.
OF_ITEMS = {"accuracy": "items right", "dense": "items right, dense model", "kept": "items kept"}


def run_evaluate(options: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run ``llmrank evaluate``."""
    _check_options(options)
    passages = _passages(options) if options.last_word else None
    items = () if options.items is None else read_items(options.items)
    tasks = _tasks(options)
    loaded = load(options, terminal)
    dense = None
    if options.against is not None:
        dense = load(options, terminal, options.against, options.against_revision)
    execution = Execution(options.batch_size, terminal.progress)
    model, tokenizer = loaded.model, loaded.tokenizer
    length = fitting_length(model, options.sequence_length)
    texts = tokenise(options.text, tokenizer, options.samples, length, "evaluation")
    if dense is not None:
        _check_tokenizers(loaded, dense, texts, options)
    if passages is not None or items:
        check_continues(model)
    result = perplexity(model, texts, execution)
    size = model_size(model)
    content: dict[str, Any] = {
        "model": loaded.source,
        "perplexity": result.value,
        "tokens": result.tokens,
        "parameters": size.parameters,
        "bytes": size.bytes,
    }
    terminal.say(
        f"{loaded.source}: perplexity {result.value:.3f} over {result.tokens:,} tokens "
        f"({len(texts)} x {texts.length}, {texts.source}); {size.parameters:,} parameters, {size.bytes:,} bytes"
    )
    if dense is not None:
        content["against"] = dense.source
        content |= _compare_with_dense(dense.model, model, texts, options, execution)
    if passages is not None:
        words = last_word(model, tokenizer, passages, options.batch_size * texts.length, terminal.progress)
        content["last_word"] = {"accuracy": words.accuracy, "skipped": words.skipped}
    if items:
        content["items"] = _answer(loaded, dense, items, options.batch_size * texts.length, terminal)
    if tasks is not None:
        with redirect_stdout(sys.stderr):  # lm-eval prints what it does
            content["tasks"] = tasks.run(model, tokenizer, options.documents, options.batch_size)
    rows = _rows(content)
    if rows:
        terminal.print(_table(rows))
    if dense is not None and options.contexts:
        measured = [token_losses(each, texts, execution) for each in (dense.model, model)]
        changes = loss_changes(measured[0], measured[1], texts, tokenizer)
        print_loss_changes(changes, terminal)
        content["contexts"] = changes
    content["protocol"] = {**texts.provenance(), "dtype": dtype_name(model), **environment()}
    write_result(content, options.output)
    return CommandResult(content)


def _check_options(options: argparse.Namespace) -> None:
    """Raise if an option cannot be used, or needs another one."""
    check_output_file(options.output)
    if options.contexts and options.against is None:
        raise OptionError("--contexts compares two models; name the dense one with --against DENSE")
    check_device_and_dtype(options)
    if options.text is not None:
        check_text(options.text, "evaluation")
    if options.against is None and options.against_revision is not None:
        raise OptionError(
            "--against-revision is the revision of the dense model; name that model with --against, or leave the option out"
        )


def _tasks(options: argparse.Namespace) -> LMEvalTasks | None:
    """Find the tasks of ``--tasks``; None without the option."""
    if options.tasks is None:
        if options.task_dir is not None or options.documents is not None:
            raise OptionError("--task-dir and --documents are for lm-eval's tasks; name some with --tasks NAME[,NAME]")
        return None
    names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    return find_tasks(names, options.text, options.passages, options.task_dir)


def _passages(options: argparse.Namespace) -> list[Passage]:
    """Cut the passages of ``--last-word`` from the text."""
    text, description = read_text(options.text, "evaluation")
    passages = cut_passages(text, options.passages)
    if not passages:
        raise CalibrationError(
            f"the {description} has no passage whose last word could be asked for; give a text with paragraphs of more than "
            f"{CONTEXT_WORDS} words"
        )
    return passages


def _check_tokenizers(
    loaded: LoadedModel, dense: LoadedModel, texts: TokenSequences, options: argparse.Namespace
) -> None:
    """Raise an OptionError unless both models have the same vocabulary, and cut the text into the same tokens."""
    own, other = loaded.tokenizer, dense.tokenizer
    reason = None
    if other is None:
        reason = f"{dense.source} came without a tokenizer"
    elif own.get_vocab() != other.get_vocab():
        differ = len(set(own.get_vocab().items()) ^ set(other.get_vocab().items()))
        reason = f"{differ} entries of their vocabularies differ"
    elif tokenise(options.text, other, options.samples, texts.length, "evaluation").digest != texts.digest:
        reason = "they cut the text into different tokens"
    if reason is not None:
        raise OptionError(
            f"the tokenizers of {loaded.source} and {dense.source} are not the same ({reason}); distributions can only be "
            "compared over one vocabulary: pass to --against the model that MODEL was pruned from"
        )


def _compare_with_dense(
    dense: Any, model: Any, texts: TokenSequences, options: argparse.Namespace, execution: Execution
) -> dict[str, Any]:
    """Measure how close the model is to the dense model; return the metrics by name."""
    compared = fidelity(dense, model, texts, execution)
    metrics: dict[str, Any] = {"divergence": compared.divergence, "top1": compared.agreement}
    if options.prompts:
        # A prompt must leave room for the new tokens.
        longest = fitting_length(model, options.prompt_length + options.new_tokens) - options.new_tokens
        protocol = {
            "prompt_length": max(1, min(options.prompt_length, texts.length, longest)),
            "new_tokens": options.new_tokens,
        }
        batch_tokens = execution.batch_size * texts.length
        agreement = continuations(
            dense, model, texts, options.prompts, **protocol, batch_tokens=batch_tokens, progress=execution.progress
        )
        metrics["continuations"] = {**vars(agreement), **protocol}
    return metrics


def _answer(
    loaded: LoadedModel, dense: LoadedModel | None, items: Sequence[Item], batch_tokens: int, terminal: Terminal
) -> dict[str, Any]:
    """Let the model, and the dense model if there is one, answer items; return the shares by name."""
    answers = answer_items(loaded.model, loaded.tokenizer, items, batch_tokens, terminal.progress)
    if answers.skipped:
        terminal.warn(
            f"{answers.skipped} of {len(items)} items are skipped: their answers do not begin with a token of their own, or they "
            "do not fit the model; an answer mostly begins with a space"
        )
    found: dict[str, Any] = {"accuracy": answers.accuracy}
    if dense is not None:
        of_dense = answer_items(dense.model, dense.tokenizer, items, batch_tokens, terminal.progress)
        found |= {"dense": of_dense.accuracy, "kept": answers.kept(of_dense)}
    shares = {name: share for name, share in found.items() if share is not None}
    return {"asked": describe_items(items), **shares, "skipped": answers.skipped}


def _rows(content: dict[str, Any]) -> list[tuple[str, Estimate, bool]]:
    """Return the rows of the table: label, estimate, and whether it is a share."""
    rows = []
    for (metric, part), (label, share) in METRICS.items():
        value = content.get(metric)
        estimate = value[part] if value and part else value
        if estimate is not None:
            rows.append((label, estimate, share))
    for part, label in OF_ITEMS.items():
        if share := content.get("items", {}).get(part):
            rows += [(label, share.all, True), *((f"  {kind}", each, True) for kind, each in share.kinds.items())]
    for task, metrics in content.get("tasks", {}).items():
        rows += [(f"{task}: {metric}", estimate, False) for metric, estimate in metrics.items()]
    return rows


def _table(rows: list[tuple[str, Estimate, bool]]) -> Table:
    table = Table("", *(Column(heading, justify="right") for heading in ("value", "standard error", "over")))
    for label, estimate, share in rows:
        number_format = "{:.1%}" if share else "{:,.4f}"
        error = "" if estimate.error is None else number_format.format(estimate.error)
        table.add_row(escape(label), number_format.format(estimate.value), error, f"{estimate.count:,}")
    return table
