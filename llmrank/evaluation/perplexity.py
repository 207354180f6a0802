"""What a model is worth and what it weighs: perplexity with its protocol, size, and a completion."""

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
from llmrank.models import FFN

__all__ = [
    "Perplexity",
    "Size",
    "complete",
    "perplexity",
    "sequence_losses",
    "size",
    "unigram_perplexity",
]


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of the predicted tokens.

    Attributes
    ----------
    value : float
        inf where the model gave NaN or overflowed.
    tokens : int
        Tokens predicted: in every sequence all but the first (for encoder-decoder models the second
        half, given the first); padding does not count.
    """

    value: float
    tokens: int

    @classmethod
    def of(cls, losses: Sequence[float], counts: Sequence[int]) -> Perplexity:
        """Perplexity from the negative log-likelihood of every sequence, and its number of predicted tokens."""
        tokens = sum(counts)
        mean = sum(losses) / tokens if tokens else math.nan
        return cls(math.exp(mean) if math.isfinite(mean) and mean < 700 else math.inf, tokens)


@dataclass(frozen=True)
class Size:
    """Parameters and bytes, shared tensors counted once.

    Attributes
    ----------
    parameters, bytes : int
        Of the whole model.
    ffn_parameters, ffn_bytes : int
        Of the linear maps of its FFNs.
    """

    parameters: int
    bytes: int
    ffn_parameters: int
    ffn_bytes: int


def perplexity(
    model: Any, sequences: TokenSequences, batch_size: int = 1, progress: Progress | None = None
) -> Perplexity:
    """Perplexity on token sequences, each by itself.

    Parameters
    ----------
    model : transformers causal or encoder-decoder language model
    sequences : TokenSequences
    batch_size : int
        Sequences at once.
    progress : callable, optional
        See :func:`llmrank.calibration.statistics.collect`.

    Raises
    ------
    UnsupportedModelError
        The model has no next-token prediction (an encoder, a plain module).

    Notes
    -----
    Cost: a forward pass. Memory: see :class:`llmrank.calibration.logits.Predictor`.
    """
    return Perplexity.of(*sequence_losses(model, sequences, batch_size, progress))


@torch.no_grad()
def sequence_losses(
    model: Any, sequences: TokenSequences, batch_size: int = 1, progress: Progress | None = None
) -> tuple[list[float], list[int]]:
    """Negative log-likelihood of every sequence, and over how many predicted tokens it is a sum.

    Parameters
    ----------
    model, sequences, batch_size, progress
        See :func:`perplexity`, which also says what is raised and what it costs.

    Returns
    -------
    totals : list of float
        In nats, one a sequence.
    counts : list of int
    """
    check_predicts(model, "perplexity")
    predictor = Predictor(model)
    totals: list[float] = []
    counts: list[int] = []
    with evaluation_mode(model):
        batches = list(sequences.batches(batch_size))
        for ids, mask in progress(batches, "Evaluating") if progress else batches:
            lost = torch.zeros(len(ids), dtype=torch.float64)
            tokens = torch.zeros(len(ids), dtype=torch.int64)
            for logits, targets, valid in predictor.bands(ids, mask):
                losses = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
                losses = losses.cpu().double().reshape(targets.shape).where(valid.cpu(), 0.0)
                lost += losses.sum(1)
                tokens += valid.cpu().sum(1)
            totals += lost.tolist()
            counts += tokens.tolist()
    return totals, counts


def unigram_perplexity(sequences: TokenSequences) -> float:
    """Perplexity of the text under its own token frequencies: what a model blind to context can reach."""
    counts = torch.bincount(sequences.ids[sequences.mask].flatten()).double()
    shares = counts[counts > 0] / counts.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def size(model: nn.Module, ffns: Sequence[FFN] = ()) -> Size:
    """Count parameters and bytes."""
    whole = {id(p): p for p in model.parameters()}
    inside = {
        id(p): p for ffn in ffns for stage in ffn.stages for projection in stage for p in projection.module.parameters()
    }
    return Size(
        sum(p.numel() for p in whole.values()),
        sum(p.numel() * p.element_size() for p in whole.values()),
        sum(p.numel() for p in inside.values()),
        sum(p.numel() * p.element_size() for p in inside.values()),
    )


@torch.no_grad()
def complete(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int = 24) -> str:
    """Continue a prompt greedily; returns the continuation alone."""
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
