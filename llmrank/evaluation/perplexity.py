"""Perplexity of a model, its size, and a completion by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmrank.calibration.forward import Progress, evaluation_mode, input_device
from llmrank.calibration.logits import Predictor, check_predicts
from llmrank.calibration.text import TokenSequences
from llmrank.models import FFNs

__all__ = [
    "ModelSize",
    "Perplexity",
    "complete",
    "model_size",
    "perplexity",
    "sequence_losses",
    "unigram_perplexity",
]


@dataclass(frozen=True)
class Perplexity:
    """The exponential of the mean negative log-likelihood of the predicted tokens.

    Attributes
    ----------
    value : float
        inf if the model's predictions hold NaN or overflow.
    tokens : int
        Number of predicted tokens: all of a sequence except the first (for encoder-decoder models the second
        half, given the first half); padding does not count.
    """

    value: float
    tokens: int

    @classmethod
    def of(cls, losses: Sequence[float], counts: Sequence[int]) -> Perplexity:
        """Compute it from the negative log-likelihood and the number of predicted tokens of every sequence."""
        tokens = sum(counts)
        mean = sum(losses) / tokens if tokens else math.nan
        return cls(math.exp(mean) if math.isfinite(mean) and mean < 700 else math.inf, tokens)


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters and bytes; shared tensors count once.

    Attributes
    ----------
    parameters, bytes : int
        Those of the model.
    ffn_parameters, ffn_bytes : int
        Those of the linear maps of its FFNs.
    """

    parameters: int
    bytes: int
    ffn_parameters: int
    ffn_bytes: int


def perplexity(
    model: Any, sequences: TokenSequences, batch_size: int = 1, progress: Progress | None = None
) -> Perplexity:
    """Measure the perplexity on token sequences; no sequence is context for another.

    Parameters
    ----------
    model : transformers causal or encoder-decoder language model
    sequences : TokenSequences
    batch_size : int
        Number of sequences in a forward pass.
    progress : callable, optional
        See :func:`llmrank.calibration.statistics.collect_statistics`.

    Raises
    ------
    UnsupportedModelError
        The model predicts no next token (an encoder, a plain module).

    Notes
    -----
    Cost: a forward pass of the sequences. Memory: see :class:`llmrank.calibration.logits.Predictor`.
    """
    return Perplexity.of(*sequence_losses(model, sequences, batch_size, progress))


@torch.no_grad()
def sequence_losses(
    model: Any, sequences: TokenSequences, batch_size: int = 1, progress: Progress | None = None
) -> tuple[list[float], list[int]]:
    """Compute the negative log-likelihood of every sequence, and the number of its predicted tokens.

    Parameters
    ----------
    model, sequences, batch_size, progress
        See :func:`perplexity`, also for the exceptions and the cost.

    Returns
    -------
    totals : list of float
        Sum over the predicted tokens of each sequence, in nats.
    counts : list of int
        Number of predicted tokens of each sequence.
    """
    check_predicts(model, "perplexity")
    predictor = Predictor(model)
    totals: list[float] = []
    counts: list[int] = []
    with evaluation_mode(model):
        batches = list(sequences.batches(batch_size))
        for ids, mask in progress(batches, "Evaluating") if progress else batches:
            batch_totals = torch.zeros(len(ids), dtype=torch.float64)
            batch_counts = torch.zeros(len(ids), dtype=torch.int64)
            for logits, targets, valid in predictor.bands(ids, mask):
                losses = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
                losses = losses.cpu().double().reshape(targets.shape).where(valid.cpu(), 0.0)
                batch_totals += losses.sum(1)
                batch_counts += valid.cpu().sum(1)
            totals += batch_totals.tolist()
            counts += batch_counts.tolist()
    return totals, counts


def unigram_perplexity(sequences: TokenSequences) -> float:
    """Compute the perplexity of a text under its own token frequencies: the best value without any context."""
    counts = torch.bincount(sequences.ids[sequences.mask].flatten()).double()
    shares = counts[counts > 0] / counts.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def model_size(model: nn.Module, ffns: FFNs | None = None) -> ModelSize:
    """Count the parameters and bytes of a model and of its FFNs."""
    all_parameters = {id(p): p for p in model.parameters()}
    ffn_parameters = {id(p): p for module in (ffns.modules if ffns else ()) for p in module.parameters()}
    return ModelSize(
        sum(p.numel() for p in all_parameters.values()),
        sum(p.numel() * p.element_size() for p in all_parameters.values()),
        sum(p.numel() for p in ffn_parameters.values()),
        sum(p.numel() * p.element_size() for p in ffn_parameters.values()),
    )


@torch.no_grad()
def complete(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int = 24) -> str:
    """Continue a prompt greedily, and return the continuation without the prompt."""
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = inputs["input_ids"].to(input_device(model))
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
