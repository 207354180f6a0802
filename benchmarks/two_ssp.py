"""2SSP (arXiv 2501.17771), written from its paper: FFNs of one width everywhere, and then whole attentions, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from llmrank.models import FFN, FFNs
from llmrank.models.finding.attention import find_attentions
from llmrank.models.forward import model_inputs, run_sequences
from llmrank.prune.masks import Masks
from llmrank.surgery.equivalence import as_masked
from llmrank.text import TokenSequences

__all__ = ["TwoSSP", "without"]

# The paper's balance between both stages.
ALPHA = 1.5
# The paper's length of the text that the attentions are chosen on.
TOKENS = 2048


@dataclass(frozen=True)
class TwoSSP:
    """How a number of parameters is divided between the FFNs and the attentions of a model, and which of them are removed.

    Attributes
    ----------
    model : nn.Module
    ffns : FFNs
        One in each block, without attentions.
    parameters : int
        The number to remove.

    Raises
    ------
    ValueError
        The attentions alone have more parameters than that, or the FFNs have fewer than are left to them.
    """

    model: torch.nn.Module
    ffns: FFNs
    parameters: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.share_of_neurons < 1.0:
            raise ValueError(
                f"2SSP cannot remove {self.parameters:,} parameters: it would remove {self.n_attentions} attentions, and "
                f"{self.share_of_neurons:.1%} of the neurons, which must be at least 0 and less than 100 %"
            )

    @cached_property
    def attentions(self) -> list[FFN]:
        """The attention of every block."""
        return list(find_attentions(self.model, self.ffns).values())

    @cached_property
    def n_attentions(self) -> int:
        """How many attentions are removed: a share of them, the share of the parameters to the power of FFN / attention / 1.5."""
        of_ffn, of_attention = _size(self.model, self.ffns[0].name), self.size_of_attention
        blocks = {ffn.block for ffn in self.ffns}
        share = self.parameters / sum(_size(self.model, name) for name in blocks if name)
        return round(len(blocks) * share ** (of_ffn / of_attention / ALPHA))

    @cached_property
    def size_of_attention(self) -> int:
        """Number of parameters of an attention."""
        return _size(self.model, self.attentions[0].name)

    @property
    def share_of_neurons(self) -> float:
        """Which share of its neurons every FFN loses."""
        rest = self.parameters - self.n_attentions * self.size_of_attention
        return rest / sum(_size(self.model, ffn.name) for ffn in self.ffns)

    def masks(self, sequences: TokenSequences) -> Masks:
        """Keep the neurons whose activations have the largest norms over the tokens of a sequence, as a mean over sequences."""
        norms = {ffn.name: torch.zeros(ffn.prunable[1].size) for ffn in self.ffns}

        def add(ffn: FFN) -> Callable[..., None]:
            def hook(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
                norms[ffn.name] += args[0].flatten(0, -2).float().norm(dim=0)

            return hook

        with ExitStack() as hooks:
            for ffn in self.ffns:
                hooks.callback(ffn.stages[-1][0].module.register_forward_pre_hook(add(ffn)).remove)
            run_sequences(self.model, self.ffns, sequences.batches(1))
        kept = {name: len(norm) - round(self.share_of_neurons * len(norm)) for name, norm in norms.items()}
        return Masks({name: _largest(norm, kept[name]) for name, norm in norms.items()})

    @torch.no_grad()
    def attentions_in_turn(self, masks: Masks, sequences: TokenSequences) -> list[FFN]:
        """Choose the attentions to remove, once the neurons are gone: each time the one without which the loss is smallest.

        The loss is that of the first 2,048 tokens.
        """
        ids, mask = next(iter(sequences.batches(max(TOKENS // sequences.ids.shape[1], 1))))
        inputs, _, _ = model_inputs(self.model, ids, mask)

        def loss(gone: Iterable[FFN]) -> float:
            with without(gone):
                return float(self.model(**inputs, labels=inputs["input_ids"]).loss)

        with as_masked(self.ffns, masks):
            return greedily(self.attentions, self.n_attentions, loss)


def greedily(parts: Iterable[FFN], count: int, loss: Callable[[list[FFN]], float]) -> list[FFN]:
    """Return the parts without which, one after the other, a loss is smallest."""
    gone: list[FFN] = []
    left = list(parts)
    for _ in range(count):
        best = min(left, key=lambda part: loss([*gone, part]))
        left.remove(best)
        gone.append(best)
    return gone


@contextmanager
def without(attentions: Iterable[FFN]) -> Iterator[None]:
    """Let attentions return zero within the context, also in copies of the model that are made there."""
    with ExitStack() as undo:
        for attention in attentions:
            undo.callback(attention.stages[-1][0].module.register_forward_hook(_zero).remove)
        yield


def _zero(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(output)


def _largest(norm: torch.Tensor, count: int) -> torch.Tensor:
    mask = torch.zeros(len(norm), dtype=torch.bool)
    mask[norm.topk(count).indices] = True
    return mask


def _size(model: torch.nn.Module, name: str) -> int:
    return sum(each.numel() for each in model.get_submodule(name).parameters())
