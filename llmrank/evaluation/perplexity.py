"""The perplexity and the size of a model, and a text that it writes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmrank.evaluation.logits import Predictor, check_predicts
from llmrank.execution import Execution
from llmrank.models import FFNs
from llmrank.models.forward import evaluation_mode, input_device
from llmrank.text import TokenSequences

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
    """A perplexity: the exponential of the mean negative log-likelihood of the predicted tokens.

    Attributes
    ----------
    value : float
        Infinite if the predictions are not finite, no token is predicted, or the mean is 700 nats or more.
    tokens : int
        Number of predicted tokens: all tokens of a sequence except the first. An encoder-decoder predicts the second half of a
        sequence from the first half. Padding does not count.
    """

    value: float
    tokens: int

    @classmethod
    def of(cls, losses: Sequence[float], counts: Sequence[int]) -> Perplexity:
        """Compute a perplexity from the negative log-likelihood and the number of predicted tokens of every sequence."""
        tokens = sum(counts)
        mean = sum(losses) / tokens if tokens else math.nan
        # math.exp raises an error above 709. A comparison with NaN is false.
        return cls(math.exp(mean) if mean < 700 else math.inf, tokens)


@dataclass(frozen=True)
class ModelSize:
    """The size of a model. A parameter that several modules share counts once.

    Attributes
    ----------
    parameters, bytes : int
        Number of parameters of the model, and their size in memory in bytes.
    ffn_parameters, ffn_bytes : int
        The same for the linear maps of its FFNs and for the routers of experts.
    """

    parameters: int
    bytes: int
    ffn_parameters: int
    ffn_bytes: int


def perplexity(
    model: Any,
    sequences: TokenSequences,
    execution: Execution = Execution(),
    description: str = "Evaluating",
) -> Perplexity:
    """Measure the perplexity of a model on token sequences. Each token is predicted from its own sequence alone.

    Parameters
    ----------
    model : transformers causal or encoder-decoder language model
    sequences : TokenSequences
    execution : Execution
    description : str
        What the progress says.

    Raises
    ------
    UnsupportedModelError
        The model predicts no next token (an encoder, a plain module).
    CalibrationError, OptionError
        See :func:`llmrank.models.forward.model_inputs`.

    Notes
    -----
    Cost: a forward pass of the sequences, and the trial of :class:`llmrank.evaluation.logits.Predictor`. Memory: that of the
    Predictor.
    """
    parts = execution.processes.gather(sequence_losses(model, execution.share(sequences), execution, description))
    return Perplexity.of([value for losses, _ in parts for value in losses], [n for _, counts in parts for n in counts])


@torch.no_grad()
def sequence_losses(
    model: Any, sequences: TokenSequences, execution: Execution = Execution(), description: str = "Evaluating"
) -> tuple[list[float], list[int]]:
    """Compute the negative log-likelihood of every sequence, and the number of its predicted tokens.

    Parameters
    ----------
    model, sequences, execution, description
        See :func:`perplexity`, also for the exceptions and the cost. This process measures all the sequences.

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
        batches = list(sequences.batches(execution.batch_size))
        for ids, mask in execution.steps(batches, description):
            batch_totals = torch.zeros(len(ids), dtype=torch.float64)
            batch_counts = torch.zeros(len(ids), dtype=torch.int64)
            for logits, targets, valid in predictor.bands(ids, mask):
                losses = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
                valid = valid.cpu()
                batch_totals += losses.cpu().double().reshape(targets.shape).where(valid, 0.0).sum(1)
                batch_counts += valid.sum(1)
            totals += batch_totals.tolist()
            counts += batch_counts.tolist()
    return totals, counts


def unigram_perplexity(sequences: TokenSequences) -> float:
    """Compute the perplexity of a text under its own token frequencies, the lowest that is possible without context."""
    counts = torch.bincount(sequences.ids[sequences.mask]).double()
    shares = counts[counts > 0] / counts.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def model_size(model: nn.Module, ffns: FFNs | None = None) -> ModelSize:
    """Measure the size of a model and of its FFNs. Routers of experts count as parts of FFNs.

    Without `ffns`, the numbers of the FFNs are 0.
    """
    modules = (*ffns.modules, *ffns.router_modules) if ffns else ()
    return ModelSize(*_size(model.parameters()), *_size(p for module in modules for p in module.parameters()))


def _size(parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    """Return the number and the bytes of parameters; a parameter that occurs twice counts once."""
    unique = {id(p): p for p in parameters}.values()
    return sum(p.numel() for p in unique), sum(p.numel() * p.element_size() for p in unique)


@torch.no_grad()
def complete(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int = 24) -> str:
    """Let a language model continue a prompt by its own generation settings, but without sampling; return only what it adds."""
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = inputs["input_ids"].to(input_device(model))
    with evaluation_mode(model):
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
    # The decoder of an encoder-decoder writes after its start token, other models after the prompt.
    start = 1 if model.config.is_encoder_decoder else ids.shape[1]
    return str(tokenizer.decode(output[0, start:], skip_special_tokens=True))
