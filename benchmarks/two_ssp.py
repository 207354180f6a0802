"""2SSP (arXiv 2501.17771), written from its paper: FFNs of one width everywhere, and then whole attentions, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from llmrank.models import FFN, FFNs
from llmrank.models.finding.attention import find_attentions
from llmrank.models.forward import model_inputs
from llmrank.prune.masks import Masks
from llmrank.surgery.equivalence import as_masked
from llmrank.text import TokenSequences

__all__ = ["TwoSSP"]

# The paper's balance between both stages.
ALPHA = 1.5


@dataclass(frozen=True)
class TwoSSP:
    """How a number of parameters is divided between the FFNs and the attentions of a model.

    Attributes
    ----------
    model : nn.Module
    ffns : FFNs
        One in each block, without attentions.
    parameters : int
        The number to remove.
    """

    model: torch.nn.Module
    ffns: FFNs
    parameters: int

    @property
    def attentions(self) -> list[FFN]:
        """The attention of every block."""
        return list(find_attentions(self.model, self.ffns).values())

    @property
    def n_attentions(self) -> int:
        """How many attentions are removed: a share of them, the share of the parameters to the power of FFN / attention / 1.5."""
        of_ffn, of_attention = _size(self.model, self.ffns[0].name), self.size_of_attention
        blocks = {ffn.block for ffn in self.ffns}
        share = self.parameters / sum(_size(self.model, name) for name in blocks if name)
        return round(len(blocks) * share ** (of_ffn / of_attention / ALPHA))

    @property
    def size_of_attention(self) -> int:
        """Number of parameters of an attention."""
        return _size(self.model, self.attentions[0].name)

    @property
    def share_of_neurons(self) -> float:
        """Which share of its neurons every FFN loses."""
        rest = self.parameters - self.n_attentions * self.size_of_attention
        return rest / sum(_size(self.model, ffn.name) for ffn in self.ffns)

    @torch.no_grad()
    def attentions_in_turn(self, masks: Masks, sequences: TokenSequences) -> list[FFN]:
        """Choose the attentions to remove, once the neurons are gone: each time the one without which the loss is smallest.

        The loss is that of the first sequence.
        """
        ids, mask = next(iter(sequences.batches(1)))
        inputs, _, _ = model_inputs(self.model, ids, mask)

        def loss(gone: Iterable[FFN]) -> float:
            with without(gone):
                return float(self.model(**inputs, labels=inputs["input_ids"]).loss)

        with as_masked(self.ffns, masks):
            return in_turn(self.attentions, self.n_attentions, loss)


def in_turn(parts: Iterable[FFN], count: int, loss: Callable[[list[FFN]], float]) -> list[FFN]:
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
    """Let attentions return zero within the context: their output maps have weights of zero."""
    with ExitStack() as undo:
        for attention in attentions:
            weight = attention.stages[-1][0].weight.data
            undo.callback(weight.copy_, weight.clone())
            weight.zero_()
        yield


def _size(model: torch.nn.Module, name: str) -> int:
    return sum(each.numel() for each in model.get_submodule(name).parameters())
