"""A model and its compact models side by side, and the multiply-adds of each."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from llmrank import IsolatedFFNPipeline
from llmrank.models import FFNs, find_ffns
from llmrank.prune import LocalPruner
from llmrank.score import RandomScorer

__all__ = ["Variant", "cut", "model_multiply_adds", "multiply_adds", "variants"]

# Calibration tokens. The scorer is random and does not depend on them.
CALIBRATION = 16


@dataclass(frozen=True, eq=False)
class Variant:
    """The dense model, or a compact model.

    Attributes
    ----------
    amount : float
        Share of the hidden neurons to remove; 0 for the dense model.
    multiple_of : int
        Widths are rounded to a multiple of this.
    model : nn.Module
    ffns : tuple of FFN
        Of this model.
    """

    amount: float
    multiple_of: int
    model: Any
    ffns: FFNs

    @property
    def width(self) -> int:
        return self.ffns[0].sizes[1]

    @property
    def label(self) -> str:
        return f"{self.amount:.0%}, width {self.width}"


def multiply_adds(ffns: FFNs) -> int:
    """Return the multiply-adds of all linear maps of FFNs for one token. Biases and activation functions are left out."""
    return sum(p.size * p.in_features for ffn in ffns for stage in ffn.stages for p in stage)


def model_multiply_adds(model: Any, contexts: Iterable[int], predictions: int) -> int:
    """Return the multiply-adds of a causal language model.

    Parameters
    ----------
    model : transformers model
    contexts : iterable of int
        For every token that passes through the model, the number of tokens it attends to, itself included.
    predictions : int
        Number of tokens that pass through the prediction head.
    """
    contexts = list(contexts)
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    body = sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head)
    heads = config.num_attention_heads
    attended = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads) * config.num_hidden_layers
    # Queries times keys, and their softmax times values.
    return body * len(contexts) + 2 * attended * sum(contexts) + head.weight.numel() * predictions


def cut(model: Any, ids: torch.Tensor, amount: float, multiple_of: int) -> Variant:
    """Return a compact model. The model itself does not change.

    Both share all tensors except those that were pruned.
    """
    pruner = LocalPruner(amount, multiple_of=multiple_of)
    pipeline = IsolatedFFNPipeline(model, None, None, RandomScorer(seed=0), pruner, calibration=ids, repair=None)
    pipeline.run()
    try:
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        compact = copy.deepcopy(model, shared)
    finally:
        pipeline.undo()
    return Variant(amount, multiple_of, compact, find_ffns(compact))


def variants(model: Any, ids: torch.Tensor, amounts: Sequence[float], multiples: Sequence[int]) -> list[Variant]:
    """Return the dense model, then compact models with widths rounded to each multiple in turn; no width occurs twice."""
    found = [Variant(0.0, 1, model, find_ffns(model))]
    widths = {found[0].width}
    for multiple_of in multiples:
        for amount in amounts:
            variant = cut(model, ids[:1, :CALIBRATION], amount, multiple_of)
            if variant.width not in widths:
                widths.add(variant.width)
                found.append(variant)
    return found
