"""Pass all batches through one block of a stack after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from llmrank.calibration.blocks.recording import Recording
from llmrank.calibration.blocks.states import States
from llmrank.calibration.forward import TokenMasks, evaluation_mode, first_output
from llmrank.models import FFNs

__all__ = ["BlockPasses"]


class BlockPasses:
    """Runs blocks by themselves, as a recording tells how the model calls them.

    Parameters
    ----------
    model : nn.Module
    ffns : FFNs
    record : Recording
        Unbroken.
    batch_masks : sequence of TokenMasks
        One for each batch.

    Attributes
    ----------
    masks : TokenMasks
        Those of the batch that a block runs on.
    positions : dict from str to int
        Number of the block that each FFN is in, by the name of the FFN.
    """

    def __init__(self, model: nn.Module, ffns: FFNs, record: Recording, batch_masks: Sequence[TokenMasks]) -> None:
        self.masks = TokenMasks()
        self.blocks = record.blocks
        self._model, self._ffns = model, ffns
        self._calls, self._batch_masks = record.calls, batch_masks
        position_of: dict[int, int] = {}
        for position, block in enumerate(record.blocks):
            for module in block.modules():
                position_of.setdefault(id(module), position)
        self.positions = {
            ffn.name: position_of[id(ffn.stages[0][0].owner if ffn.is_routed else ffn.module)] for ffn in ffns
        }

    def outputs(self, position: int, states: Iterable[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        """Run a block on the states of each batch, and yield the batch's number and the hidden states behind the block."""
        block, calls = self.blocks[position], self._calls[position]
        with torch.no_grad(), evaluation_mode(self._model, self._ffns):
            for k, (state, call, masks) in enumerate(zip(states, calls, self._batch_masks, strict=False)):
                self.masks.replace(masks)
                yield k, first_output(block(state, *call.args, **call.kwargs))

    def advance(self, position: int, states: States) -> None:
        """Replace the states in front of a block by those behind it."""
        for k, output in self.outputs(position, states):
            states.store(k, output)
        states.advance()
