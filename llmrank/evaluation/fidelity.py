"""How close a pruned model is to the dense model: in its next-token distributions, and in its greedy continuations.

Perplexity does not show how close two models are: models with different predictions can have the same perplexity.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmrank.errors import CalibrationError, OptionError, check_count, not_finite
from llmrank.evaluation.estimate import Estimate
from llmrank.evaluation.logits import Prediction, Predictor, check_predicts, check_vocabularies
from llmrank.execution import Execution
from llmrank.models.forward import at_least_float32, check_ids, evaluation_mode, input_device, longest_input
from llmrank.progress import Progress, shown
from llmrank.text import TokenSequences
from llmrank.text.generation import end_tokens, generation_settings

__all__ = ["Continuations", "Fidelity", "compare_predictions", "continuations", "divergences", "fidelity"]

# Number of probabilities that are compared at once, at least one distribution. On a CPU few: intermediate results stay in the
# cache, and the allocator keeps their memory for the next ones, where it hands larger pieces back to the system each time.
VALUES_AT_ONCE, VALUES_AT_ONCE_ON_CPU = 2**23, 2**20


@dataclass(frozen=True)
class Fidelity:
    """How a model's next-token distributions differ from the dense model's; standard errors are computed over sequences.

    Attributes
    ----------
    divergence : Estimate
        KL(p || q) in nats, where p is the distribution of the dense model and q that of the other model; 0 if they are equal.
    agreement : Estimate
        Share of tokens for which the same token is the likeliest in both models, 0..1.
    """

    divergence: Estimate
    agreement: Estimate


@dataclass(frozen=True)
class Continuations:
    """How similarly two models continue the same prompts; standard errors are computed over prompts.

    A continuation ends at the requested length or with an end-of-text token. If the two continuations of a prompt differ in
    length, shares are shares of the longer one.

    Attributes
    ----------
    common_prefix : Estimate
        Share of the tokens that lie before the first difference.
    equal_tokens : Estimate
        Share of the positions at which both continuations have the same token.
    equal_texts : Estimate
        Share of the prompts that both models continue in the same way to the end.
    """

    common_prefix: Estimate
    equal_tokens: Estimate
    equal_texts: Estimate


@torch.no_grad()
def fidelity(dense: Any, model: Any, sequences: TokenSequences, execution: Execution = Execution()) -> Fidelity:
    """Measure how far a model's next-token distributions are from the dense model's, and how often the likeliest tokens agree.

    Parameters
    ----------
    dense, model : transformers causal or encoder-decoder language models
        They must share a vocabulary, and may be on different devices.
    sequences : TokenSequences
        The means are taken over the tokens that :func:`llmrank.evaluation.perplexity.perplexity` counts.
    execution : Execution
        Its processes do not divide the text: each measures all of it.

    Raises
    ------
    UnsupportedModelError
        One of the models predicts no next token.
    OptionError
        The vocabularies differ in size.
    CalibrationError
        The predictions hold NaN or +Inf, there is no token to predict, or a model cannot read the ids.

    Notes
    -----
    Cost: a forward pass of the sequences for each model. Memory: twice that of :class:`llmrank.evaluation.logits.Predictor`.
    """
    for compared in (dense, model):
        check_predicts(compared, "divergence")
    predictors = Predictor(dense), Predictor(model)
    divergence_totals: list[float] = []
    agreement_totals: list[float] = []
    counts: list[int] = []
    with evaluation_mode(dense), evaluation_mode(model):
        batches = list(sequences.batches(execution.batch_size))
        for ids, mask in execution.steps(batches, "Comparing"):
            totals, tokens = compare_predictions(
                predictors[0].bands(ids, mask), predictors[1].bands(ids, mask), len(ids)
            )
            divergence_totals += totals[:, 0].tolist()
            agreement_totals += totals[:, 1].tolist()
            counts += tokens.tolist()
    if sum(counts) == 0:
        raise CalibrationError("no token of the evaluation sequences is predicted from another; give longer texts")
    return Fidelity(Estimate.of(divergence_totals, counts), Estimate.of(agreement_totals, counts))


def compare_predictions(
    dense: Iterable[Prediction], model: Iterable[Prediction], sequences: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare the predictions of two models for the same batch.

    Parameters
    ----------
    dense, model : iterable of (logits, targets, valid)
        See :meth:`llmrank.evaluation.logits.Predictor.bands`.
    sequences : int
        Number of sequences in the batch.

    Returns
    -------
    totals : (sequences, 2) float64 tensor on the CPU
        For every sequence: the sum of its divergences, and the number of tokens for which both models have the same likeliest
        token.
    counts : (sequences,) int64 tensor on the CPU
        Number of predicted tokens in every sequence.

    Raises
    ------
    OptionError
        The vocabularies differ in size.
    CalibrationError
        The predictions hold NaN or +Inf.
    """
    totals = torch.zeros(sequences, 2, dtype=torch.float64)
    counts = torch.zeros(sequences, dtype=torch.int64)
    for (dense_logits, _, valid), (logits, *_) in zip(dense, model, strict=True):
        check_vocabularies(dense_logits.shape[-1], logits.shape[-1])
        rows = valid.nonzero()[:, 0].cpu()
        totals.index_add_(0, rows, _compare(dense_logits[valid], logits.to(dense_logits.device)[valid]))
        counts += torch.bincount(rows, minlength=sequences)
    return totals, counts


def _compare(dense_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the divergences, and 1 where both models have the same likeliest token, else 0: (tokens, 2) float64 on the CPU."""
    compared = torch.zeros(len(dense_logits), 2, dtype=torch.float64)
    at_once = rows_at_once(dense_logits)
    for start in range(0, len(dense_logits), at_once):
        rows = slice(start, start + at_once)
        p, q = at_least_float32(dense_logits[rows]), at_least_float32(logits[rows])
        compared[rows, 0] = divergences(p.log_softmax(-1), q)
        compared[rows, 1] = (p.argmax(-1) == q.argmax(-1)).cpu().double()
    if bool(compared.isnan().any()):
        raise not_finite("the models' predictions are")
    return compared


def divergences(log_p: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Compute KL(p || q) for every row, in nats.

    Parameters
    ----------
    log_p : (rows, n) tensor
        Logarithms of the distributions p, those of the dense model.
    logits : (rows, n) tensor
        Logarithms of the distributions q. A constant may have been added to each row.

    Returns
    -------
    (rows,) float64 tensor on the CPU
        ``sum_i p_i (log p_i - log q_i)``; terms with p_i = 0 are 0. Round-off may make it slightly negative.

    Examples
    --------
    >>> even, skewed = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    >>> divergences(even, skewed + 3.0)  # 0.5 ln 2 + 0.5 ln 2/3
    tensor([0.1438], dtype=torch.float64)
    """
    parts, at_once = [], rows_at_once(log_p)
    for p, q in zip(torch.split(log_p, at_once), torch.split(logits, at_once), strict=True):
        terms = p.exp() * (p - q.log_softmax(-1))
        # Where p is 0 the term counts as 0; the product above is NaN there.
        terms = torch.where(p == -torch.inf, torch.zeros_like(terms), terms)
        parts.append(terms.sum(-1).cpu().double())
    return torch.cat(parts)


def rows_at_once(distributions: torch.Tensor) -> int:
    """Return how many rows of a (..., n) tensor are compared at once."""
    values = VALUES_AT_ONCE_ON_CPU if distributions.device.type == "cpu" else VALUES_AT_ONCE
    return max(1, values // max(1, distributions.shape[-1]))


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
    """Let two models continue the same prompts greedily, and measure how similar the continuations are.

    Each model reads the tokens that it has written itself. So after the first difference the two models read different texts.

    Parameters
    ----------
    dense, model : transformers causal or encoder-decoder language models
        They must share a vocabulary. Encoder-decoders read the prompt with the encoder.
    sequences : TokenSequences
        A prompt is the first `prompt_length` tokens of a sequence. A sequence with padding among these tokens is skipped.
    prompts : int
        Largest number of prompts; the first sequences are used.
    prompt_length, new_tokens : int
        Number of tokens of a prompt, and largest number of tokens of a continuation.
    batch_tokens : int
        Largest number of tokens in a batch, of prompts and continuations together; a batch has at least one prompt.
    progress : callable, optional
        See :func:`llmrank.calibration.collect.collect_statistics`.

    Raises
    ------
    UnsupportedModelError
        One of the models predicts no next token.
    OptionError
        `prompts`, `prompt_length` or `new_tokens` is below 1, or the tokens are more than a model can take.
    CalibrationError
        No sequence begins with `prompt_length` tokens that are not padding, or a prompt holds tokens that are not in the
        vocabulary of a model.

    Notes
    -----
    The models' own generation settings are ignored, except for special tokens.

    Cost: for each model a forward pass of the prompts, and `new_tokens` steps of one token.
    """
    for compared in (dense, model):
        check_predicts(compared, "continuation")
    for compared in (dense, model):
        _check_lengths(compared, prompts, prompt_length, new_tokens)
    prompt_ids = sequences.ids[:, :prompt_length][sequences.mask[:, :prompt_length].all(1)][:prompts]
    if prompt_ids.shape[1] < prompt_length or not len(prompt_ids):
        raise CalibrationError(
            f"no evaluation sequence has {prompt_length} tokens for a prompt; give longer texts or a smaller prompt length"
        )
    for compared in (dense, model):
        check_ids(compared, prompt_ids)
    prompts_per_batch = max(1, batch_tokens // (prompt_length + new_tokens))
    batches = [prompt_ids[start : start + prompts_per_batch] for start in range(0, len(prompt_ids), prompts_per_batch)]
    common_prefix, equal_tokens, equal_texts = [], [], []
    with ExitStack() as stack:
        for compared in {id(dense): dense, id(model): model}.values():
            stack.enter_context(evaluation_mode(compared))
            stack.enter_context(generation_settings(compared, do_sample=False, max_new_tokens=new_tokens))
        for batch in shown(progress, batches, "Continuing"):
            for of_dense, of_model in zip(_continue(dense, batch), _continue(model, batch), strict=True):
                equal = [a == b for a, b in zip(of_dense, of_model, strict=False)]
                longer = max(len(of_dense), len(of_model))
                common_prefix.append((equal.index(False) if False in equal else len(equal)) / longer)
                equal_tokens.append(sum(equal) / longer)
                equal_texts.append(float(of_dense == of_model))
    return Continuations(Estimate.of(common_prefix), Estimate.of(equal_tokens), Estimate.of(equal_texts))


def _check_lengths(model: nn.Module, prompts: int, prompt_length: int, new_tokens: int) -> None:
    for name, value in (("prompts", prompts), ("prompt_length", prompt_length), ("new_tokens", new_tokens)):
        check_count(name, value)
    longest = longest_input(model)
    if longest is not None and prompt_length + new_tokens > longest:
        raise OptionError(
            f"a prompt of {prompt_length} tokens and {new_tokens} new ones are more than the {longest} tokens that "
            f"{type(model).__name__} takes; make prompt_length or new_tokens smaller"
        )


def _continue(model: Any, prompts: torch.Tensor) -> list[list[int]]:
    """Return the tokens of the greedy continuation of every prompt, up to and including the first end-of-text token."""
    ids = prompts.to(input_device(model))
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
    # The output of an encoder-decoder begins with a start token and does not repeat the prompt.
    first_new = 1 if model.config.is_encoder_decoder else ids.shape[1]
    ends = set(end_tokens(model))
    continued = []
    for row in output[:, first_new:].tolist():
        length = next((position + 1 for position, token in enumerate(row) if token in ends), len(row))
        continued.append(row[:length])
    return continued
