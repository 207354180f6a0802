"""How closely a model still follows the one it was cut from: next-token distributions and greedy continuations.

Perplexity asks how well a model predicts a text. A pruned model can predict it as well as before and yet say other things.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmrank.calibration.forward import (
    Progress,
    at_least_float32,
    check_ids,
    evaluation_mode,
    input_device,
    longest_input,
)
from llmrank.calibration.generation import end_tokens, generating
from llmrank.calibration.logits import Prediction, Predictor, check_predicts
from llmrank.calibration.text import TokenSequences
from llmrank.errors import CalibrationError, OptionError
from llmrank.evaluation.estimate import Estimate

__all__ = ["Continuations", "Fidelity", "compare_predictions", "continuations", "divergences", "fidelity"]

# Tokens whose distributions are compared at once: vocabularies are wide.
ROWS = 64


@dataclass(frozen=True)
class Fidelity:
    """How a model's next-token distributions differ from another's; errors over sequences.

    Attributes
    ----------
    divergence : Estimate
        KL(p || q) in nats, p what the dense model predicts, q what the model does. Never negative but for round-off, 0 where
        they agree.
    agreement : Estimate
        Share of tokens for which both hold the same token for the likeliest, 0..1.
    """

    divergence: Estimate
    agreement: Estimate


@dataclass(frozen=True)
class Continuations:
    """How alike two models continue the same prompts, each on its own; errors over prompts.

    A continuation is as long as was asked for, or ends with an end-of-text token. Shares are of the longer one of a pair.

    Attributes
    ----------
    prefix : Estimate
        Share up to the first difference.
    equal : Estimate
        Share of places with the same token in both.
    exact : Estimate
        Share of prompts that both continue in the same way to the end.
    """

    prefix: Estimate
    equal: Estimate
    exact: Estimate


@torch.no_grad()
def fidelity(
    dense: Any, model: Any, sequences: TokenSequences, batch_size: int = 1, progress: Progress | None = None
) -> Fidelity:
    """Mean divergence of a model's next-token distributions from the dense model's, and how often the likeliest token agrees.

    Parameters
    ----------
    dense, model : transformers causal or encoder-decoder language models
        Of one vocabulary; each may be on a device of its own.
    sequences : TokenSequences
        The means are over the tokens that :func:`llmrank.evaluation.perplexity.perplexity` predicts.
    batch_size : int
        Sequences at once; the result does not depend on it beyond round-off.
    progress : callable, optional
        See :func:`llmrank.calibration.statistics.collect`.

    Returns
    -------
    Fidelity

    Raises
    ------
    UnsupportedModelError
        One of the models has no next-token prediction.
    OptionError
        Vocabularies of different sizes.
    CalibrationError
        Predictions that are not numbers, or no token to predict.

    Notes
    -----
    Cost: a forward pass of each model. Memory: see :class:`llmrank.calibration.logits.Predictor`, twice; the distributions are
    compared 64 tokens at a time.
    """
    for one in (dense, model):
        check_predicts(one, "divergence")
    predictors = Predictor(dense), Predictor(model)
    diverged: list[float] = []
    agreed: list[float] = []
    counts: list[int] = []
    with evaluation_mode(dense), evaluation_mode(model):
        batches = list(sequences.batches(batch_size))
        for ids, mask in progress(batches, "Comparing") if progress else batches:
            totals, tokens = compare_predictions(
                predictors[0].bands(ids, mask), predictors[1].bands(ids, mask), len(ids)
            )
            diverged += totals[:, 0].tolist()
            agreed += totals[:, 1].tolist()
            counts += tokens.tolist()
    if sum(counts) == 0:
        raise CalibrationError("no token of the evaluation sequences is predicted from another; give longer texts")
    return Fidelity(Estimate.of(diverged, counts), Estimate.of(agreed, counts))


def compare_predictions(
    dense: Iterable[Prediction], model: Iterable[Prediction], sequences: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare what two models predict of the same batch.

    Parameters
    ----------
    dense, model : iterable of (logits, targets, valid)
        See :meth:`llmrank.calibration.logits.Predictor.bands`.
    sequences : int
        In the batch.

    Returns
    -------
    totals : (sequences, 2) float64 tensor on the CPU
        Over the tokens of every sequence, the sum of the divergences, and how many likeliest tokens agree.
    counts : (sequences,) int64 tensor on the CPU
        Those tokens.

    Raises
    ------
    OptionError
        Vocabularies of different sizes.
    CalibrationError
        Predictions that are not numbers.
    """
    totals = torch.zeros(sequences, 2, dtype=torch.float64)
    counts = torch.zeros(sequences, dtype=torch.int64)
    for (wanted, _, valid), (found, *_) in zip(dense, model, strict=True):
        if wanted.shape != found.shape:
            raise OptionError(
                f"the dense model predicts {wanted.shape[-1]} tokens and the other one {found.shape[-1]}; their "
                "distributions can only be compared over one vocabulary: pass the model it was cut from"
            )
        of = valid.nonzero()[:, 0].cpu()
        totals.index_add_(0, of, _compare(wanted[valid], found.to(wanted.device)[valid]))
        counts += torch.bincount(of, minlength=sequences)
    return totals, counts


def _compare(dense: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Of every place (tokens, n): the divergence, and 1 where both agree on the likeliest, (tokens, 2) float64 on the CPU."""
    found = torch.zeros(len(dense), 2, dtype=torch.float64)
    for start in range(0, len(dense), ROWS):
        band = slice(start, start + ROWS)
        p, q = at_least_float32(dense[band]), at_least_float32(logits[band])
        found[band, 0] = divergences(p.log_softmax(-1), q)
        found[band, 1] = (p.argmax(-1) == q.argmax(-1)).cpu().double()
    if bool(found.isnan().any()):
        raise CalibrationError(
            "the models' predictions are not finite: the weights hold NaN or Inf, or the dtype overflows; load both models in "
            "float32 or bfloat16 and check their perplexity"
        )
    return found


def divergences(dense: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of every row, in nats.

    Parameters
    ----------
    dense : (rows, n) tensor
        log p, of the dense model.
    logits : (rows, n) tensor
        Of q, up to a constant a row.

    Returns
    -------
    (rows,) float64 tensor on the CPU
        ``sum_i p_i (log p_i - log q_i)``; what has no chance under p adds nothing. May be below zero by round-off.

    Notes
    -----
    Memory beside the arguments: 64 rows.

    Examples
    --------
    >>> even, skewed = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    >>> divergences(even, skewed + 3.0)  # 0.5 ln 2 + 0.5 ln 2/3
    tensor([0.1438], dtype=torch.float64)
    """
    found = []
    for start in range(0, len(dense), ROWS):
        log_p = dense[start : start + ROWS]
        terms = log_p.exp() * (log_p - logits[start : start + ROWS].log_softmax(-1))
        # What cannot come adds nothing, though the difference of two infinities is no number.
        terms = torch.where(log_p == -torch.inf, torch.zeros_like(terms), terms)
        found.append(terms.sum(-1).cpu().double())
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


@torch.no_grad()
def continuations(
    dense: Any,
    model: Any,
    sequences: TokenSequences,
    prompts: int = 16,
    prompt_length: int = 64,
    new_tokens: int = 32,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> Continuations:
    """Let two models continue the same prompts greedily, and say how alike they do.

    Each reads what it wrote itself: after a first difference they may go different ways, however alike their predictions are.

    Parameters
    ----------
    dense, model : transformers causal or encoder-decoder language models
        Of one vocabulary. Encoder-decoders read the prompt with the encoder.
    sequences : TokenSequences
        The prompts are the beginnings of the first ones that have no padding there.
    prompts : int
        How many at the most.
    prompt_length, new_tokens : int
        Tokens of a prompt, and of a continuation at the most. What a model's generation settings say of sampling,
        penalties and the like is left aside.
    batch_tokens : int
        Tokens at once, prompts and continuations together; the result does not depend on it beyond round-off.
    progress : callable, optional
        See :func:`llmrank.calibration.statistics.collect`.

    Returns
    -------
    Continuations

    Raises
    ------
    UnsupportedModelError
        One of the models has no next-token prediction.
    OptionError
        Numbers below 1, or more tokens than a model can take.
    CalibrationError
        No sequence is as long as a prompt, or its tokens are not the models'.

    Notes
    -----
    Cost: for each model a pass over the prompts and `new_tokens` steps of one token.
    """
    for one in (dense, model):
        check_predicts(one, "continuation")
    for one in (dense, model):
        _check_room(one, prompts, prompt_length, new_tokens)
    heads = sequences.ids[:, :prompt_length][sequences.mask[:, :prompt_length].all(1)][:prompts]
    if heads.shape[1] < prompt_length or not len(heads):
        raise CalibrationError(
            f"no evaluation sequence has {prompt_length} tokens to begin with; give longer texts or a smaller prompt length"
        )
    for one in (dense, model):
        check_ids(one, heads)
    rows = max(1, batch_tokens // (prompt_length + new_tokens))
    batches = [heads[start : start + rows] for start in range(0, len(heads), rows)]
    prefix, equal, exact = [], [], []
    with ExitStack() as settings:
        for one in {id(dense): dense, id(model): model}.values():
            settings.enter_context(evaluation_mode(one))
            settings.enter_context(generating(one, do_sample=False, max_new_tokens=new_tokens))
        for batch in progress(batches, "Continuing") if progress else batches:
            for wanted, found in zip(_continue(dense, batch), _continue(model, batch), strict=True):
                same = [a == b for a, b in zip(wanted, found, strict=False)]
                longer = max(len(wanted), len(found))
                prefix.append((same.index(False) if False in same else len(same)) / longer)
                equal.append(sum(same) / longer)
                exact.append(float(wanted == found))
    return Continuations(*(Estimate.of(shares) for shares in (prefix, equal, exact)))


def _check_room(model: nn.Module, prompts: int, prompt_length: int, new_tokens: int) -> None:
    for name, value in (("prompts", prompts), ("prompt_length", prompt_length), ("new_tokens", new_tokens)):
        if value < 1:
            raise OptionError(f"{name} must be an integer >= 1, got {value!r}")
    longest = longest_input(model)
    if longest is not None and prompt_length + new_tokens > longest:
        raise OptionError(
            f"a prompt of {prompt_length} tokens and {new_tokens} new ones are more than the {longest} that "
            f"{type(model).__name__} takes; make one of them smaller"
        )


def _continue(model: Any, prompts: torch.Tensor) -> list[list[int]]:
    """The greedy continuation of every prompt, up to and with its first end-of-text token."""
    ids = prompts.to(input_device(model))
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
    # The decoder of an encoder-decoder begins with its start token, and does not repeat the prompt.
    begun = 1 if model.config.is_encoder_decoder else ids.shape[1]
    ends = set(end_tokens(model))
    found = []
    for row in output[:, begun:].tolist():
        length = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
        found.append(row[:length])
    return found
