"""The speed of a pruned model and of the dense one, in alternation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

from llmrank.models.forward import evaluation_mode, model_inputs
from llmrank.text import TokenSequences

__all__ = ["Speed", "measure_speed"]

ROUNDS = 5


@dataclass(frozen=True)
class Speed:
    """How fast models read text.

    Attributes
    ----------
    tokens_per_second, dense_tokens_per_second : float
        Tokens that the pruned and the dense model read in a second, by the median time of a forward pass.
    ratio : float
        Median over the rounds of the dense model's time divided by the pruned model's.
    tokens : int
        Number of tokens in a forward pass.
    rounds : int
    """

    tokens_per_second: float
    dense_tokens_per_second: float
    ratio: float
    tokens: int
    rounds: int


def measure_speed(
    model: nn.Module,
    texts: TokenSequences,
    batch_size: int = 1,
    pruned: Callable[[], AbstractContextManager[Any]] = nullcontext,
    clock: Callable[[], float] = perf_counter,
) -> Speed:
    """Compare how fast the dense and the pruned model read the first batch of a text.

    The two models run in turn. So other work on the machine slows both down alike, and the ratio of their times is more reliable
    than the times.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    texts : TokenSequences
    batch_size : int
    pruned : callable
        Returns a context in which the model is pruned; by default it stays as it is.
    clock : callable
        Returns a time in seconds.

    Notes
    -----
    Cost: 5 rounds, each with two forward passes of both models, of which the first warms up.
    """
    ids, mask = next(iter(texts.batches(batch_size)))
    times: dict[str, list[float]] = {"dense": [], "pruned": []}
    for _ in range(ROUNDS):
        for name, context in (("dense", nullcontext), ("pruned", pruned)):
            with context(), evaluation_mode(model), torch.no_grad():
                inputs = model_inputs(model, ids, mask)[0]
                model(**inputs)
                begun = _now(model, clock)
                model(**inputs)
                times[name].append(_now(model, clock) - begun)
    tokens = int(mask.sum())
    ratios = [dense / cut for dense, cut in zip(times["dense"], times["pruned"], strict=True)]
    return Speed(tokens / median(times["pruned"]), tokens / median(times["dense"]), median(ratios), tokens, ROUNDS)


def _now(model: nn.Module, clock: Callable[[], float]) -> float:
    """Wait until the device has finished its work, and return the time."""
    if next(model.parameters()).device.type == "cuda":
        torch.cuda.synchronize()
    return clock()
