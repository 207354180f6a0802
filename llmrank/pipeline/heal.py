"""Heal a pruned model in one call: choose the text, and let the model learn from the dense one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmrank.errors import CalibrationError, OptionError, check_type
from llmrank.execution import Execution
from llmrank.healing import DenseModel, Distillation, Healing, Predictions, heal_model, predict_tokens
from llmrank.models.forward import fitting_length
from llmrank.models.loading import parse_device
from llmrank.pipeline.defaults import DEFAULT_LENGTH, DEFAULT_TOKENS
from llmrank.pipeline.texts import CalibrationText
from llmrank.progress import Progress
from llmrank.text import CalibrationTokens, TokenSequences
from llmrank.text.generated import Generated
from llmrank.text.other_text import add_other_text, held_out_other_text, is_alone
from llmrank.text.sequences import Request
from llmrank.text.sources import make_sequences

__all__ = ["heal", "healing_tokens", "predict"]

# Number of sequences to hold out, but at most half of a short text: with fewer, chance would choose among the measurements.
HELD_OUT = 8
# They come from this many sequences behind those to learn from, because the next ones are often of the same document. What the
# model writes has no order, and takes time.
BEHIND = 8 * HELD_OUT
# Of six sequences, one is of the built-in text.
SHARE_OF_OTHER = 1 / 6


def healing_tokens(
    text: CalibrationText,
    tokens: int,
    model: Any,
    tokenizer: Any,
    used: TokenSequences | None = None,
    progress: Progress | None = None,
) -> tuple[CalibrationTokens, list[str]]:
    """Make the sequences to learn from, and held-out ones; return them with what a user should know about them.

    Parameters
    ----------
    text : CalibrationText
        Its source, length and seed; not its number of sequences.
    tokens : int
        Number of tokens to learn from.
    model : nn.Module
        The dense model, which writes the text if the source is "generated".
    tokenizer : transformers tokenizer or None
    used : TokenSequences, optional
        Sequences that a score or a repair knows already. They are left out, unless they are most of the text.
    progress : callable, optional
        Shows the writing of generated text.
    """
    if used is not None:
        check_type("used", used, TokenSequences, "TokenSequences, or None")
    text, notes = text.for_model(model), []
    alone = is_alone(text.source, model)
    length = fitting_length(model, text.sequence_length)
    asked = _n_sequences(tokens, length, alone=alone)
    n_used = 0 if used is None else len(used)
    is_written = isinstance(text.source, str) and text.source == Generated.name
    further = HELD_OUT if is_written else BEHIND
    request = Request(tokenizer, asked + n_used, length, further, model=model, seed=text.seed, progress=progress)
    found, behind = make_sequences(text.source, request)
    every = found.joined(behind)
    if len(every) < 2:
        raise CalibrationError(
            f"the text ({every.source}) has one sequence of {length} tokens, and healing needs another one to be measured on; "
            "give more text, or a smaller sequence length"
        )
    # The sequences of a list or a tensor have a length of their own.
    wanted = _n_sequences(tokens, every.n_tokens / len(every), alone=alone)
    fresh = every
    if used is not None:
        unknown = every.apart_from(used)
        if unknown is not None and 2 * (len(unknown) - HELD_OUT) > min(wanted, len(every)):
            fresh = unknown
        else:
            notes.append("the repair has seen most of the text; healing gains more from other text of the same kind")
    further = min(HELD_OUT, len(fresh) // 2)
    fit, held_out = fresh.split(min(wanted, len(fresh) - further))
    notes += _short(len(fit), wanted, fit.n_tokens)
    assert held_out is not None
    fit = replace(fit, source=found.source, details=found.details)
    held_out, other = held_out.spread(further), held_out_other_text(fit, tokenizer)
    fit = fit if alone else add_other_text(fit, tokenizer, used)
    return CalibrationTokens(fit, held_out, None if other is None else other.spread(len(held_out))), notes


def _short(there: float, wanted: float, n_tokens: int | None = None) -> list[str]:
    """Return a note if there are fewer tokens, or sequences with `n_tokens` in all, than are wanted."""
    if there >= 0.95 * wanted:
        return []
    tokens, times = there if n_tokens is None else n_tokens, wanted / there
    return [
        f"the text has {tokens:,} tokens to learn from, so they are read about {times:.1f} times; more text gains more"
    ]


def _n_sequences(tokens: int, length: float, *, alone: bool) -> int:
    """Return the number of sequences of the text itself, without the built-in ones, that make up a number of tokens."""
    return max(1, round(tokens / length * (1.0 if alone else 1.0 - SHARE_OF_OTHER)))


def predict(
    dense: nn.Module,
    tokenizer: Any,
    output: str | os.PathLike[str],
    text: Any = "auto",
    tokens: int = DEFAULT_TOKENS,
    *,
    sequence_length: int = DEFAULT_LENGTH,
    batch_size: int = 1,
    seed: int = 0,
    used: TokenSequences | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Write the predictions of a dense model for a text to a file, so that :func:`heal` needs no dense model in memory.

    Parameters
    ----------
    dense : transformers causal or encoder-decoder language model
    output : path-like
        The file; at most 300 bytes for each token.
    tokenizer, text, sequence_length, batch_size, used, progress
        See :func:`heal`.
    seed : int
        Seed of the text that the model writes, and of the tokens that are drawn.
    tokens : int
        Number of tokens to learn from.

    Returns
    -------
    Predictions

    Raises
    ------
    LLMRankError
        Bad options, data or models.
    """
    wanted, execution = Distillation(tokens, seed=seed), Execution(batch_size, progress)
    source = _text(text, sequence_length, batch_size, seed)
    found, notes = healing_tokens(source, wanted.tokens, dense, tokenizer, used, progress)
    predictions = replace(predict_tokens(dense, found, execution, seed), notes=tuple(notes))
    predictions.save(Path(output))
    return predictions


def heal(
    model: nn.Module,
    dense: nn.Module | Predictions | str | os.PathLike[str],
    tokenizer: Any = None,
    text: Any = "auto",
    settings: Distillation | int | None = None,
    *,
    sequence_length: int = DEFAULT_LENGTH,
    batch_size: int = 1,
    used: TokenSequences | None = None,
    device: str | torch.device | None = None,
    directory: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Healing:
    """Let a pruned model learn the predictions of its dense model, a short training with plain text.

    Parameters
    ----------
    model : transformers causal or encoder-decoder language model
        The pruned model, changed in place.
    dense : the model that it was pruned from, its predictions, or a path
        A path is a file of its predictions, which :func:`llmrank.predict` or ``llmrank predict`` has written; the text is that
        of the predictions then.
    tokenizer : transformers tokenizer, optional
        Not needed if `text` is a tensor of token ids, or `dense` is a path.
    text : CalibrationText, or a source of one
        By default text that the dense model writes if it can write text, else the built-in text. One of six sequences is of the
        built-in text, unless the text is a mixture, a list or a tensor.
    settings : Distillation or int, optional
        How it learns, or the number of tokens to learn from, the built-in ones included; by default 65,536 tokens, or all of a
        file.
    sequence_length, batch_size : int
        Tokens of a sequence, and sequences in a forward pass.
    used : TokenSequences, optional
        Sequences that the repair was fitted to; they are left out, unless they are most of the text.
    device : str or torch.device, optional
        The device that both models are moved to; by default they stay where they are.
    directory : path-like, optional
        Keeps the state of the training. If it holds one, the training goes on from there.
    progress : callable, optional
        See :func:`llmrank.prune_model`.

    Returns
    -------
    Healing
        What it cost and gained, measured on held-out text.

    Raises
    ------
    LLMRankError
        Bad options, data or models.

    Notes
    -----
    See :func:`llmrank.healing.heal.heal_model` for the cost.
    """
    check_type("model", model, nn.Module, "a torch module (llmrank.load(...).model loads one)")
    if not isinstance(dense, (nn.Module, Predictions, str, os.PathLike)):
        raise OptionError(f"dense must be a model, its predictions, or the path of a file of them, got {dense!r}")
    for each in (model, dense) if device is not None else ():
        if isinstance(each, nn.Module):
            each.to(parse_device(device))
    execution, where = Execution(batch_size, progress), None if directory is None else Path(directory)
    if isinstance(dense, nn.Module):
        chosen = Distillation.of(settings) or Distillation(DEFAULT_TOKENS)
        source = _text(text, sequence_length, batch_size, chosen.seed)
        tokens, notes = healing_tokens(source, chosen.tokens, dense, tokenizer, used, progress)
        return heal_model(model, DenseModel(dense), tokens, chosen, execution, where, notes)
    predictions = dense if isinstance(dense, Predictions) else Predictions.read(Path(dense))
    there = predictions.tokens.sequences.n_tokens
    chosen = Distillation.of(settings) or Distillation(there)
    notes = [*predictions.notes, *_short(there, chosen.tokens)]
    return heal_model(model, predictions, predictions.tokens, chosen, execution, where, notes)


def _text(text: Any, sequence_length: int, batch_size: int, seed: int) -> CalibrationText:
    return text if isinstance(text, CalibrationText) else CalibrationText(text, 1, sequence_length, batch_size, seed)
