"""Pass all batches through the blocks of a model, one block after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from llmrank.execution.hooks import TokenMasks
from llmrank.execution.onloading import onloaded
from llmrank.execution.recording import Recording
from llmrank.execution.states import States
from llmrank.models import FFNs
from llmrank.models.forward import evaluation_mode, first_output

__all__ = ["BlockPasses"]


class BlockPasses:
    """Runs single blocks of a model, each with the arguments that the model gives it, which were recorded before.

    Parameters
    ----------
    model : nn.Module
    ffns : FFNs
    record : Recording
        The recorded calls of the blocks. The recording must be unbroken: each block got exactly what the block before returned.
    batch_masks : sequence of TokenMasks
        The masks of padding, one entry for each batch.
    device : torch.device, optional
        Where blocks compute, if that is not where their weights are. The hidden states and the recorded arguments are copied to
        the device batch by batch.

    Attributes
    ----------
    masks : TokenMasks
        The masks of the batch that a block runs on now.
    positions : dict from str to int
        For each FFN, by its name, the number of the block that the FFN is in.
    """

    def __init__(
        self,
        model: nn.Module,
        ffns: FFNs,
        record: Recording,
        batch_masks: Sequence[TokenMasks],
        device: torch.device | None = None,
    ) -> None:
        self.device = device
        self._onloaded_position: int | None = None
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

    @contextmanager
    def onloaded_block(self, position: int) -> Iterator[None]:
        """Have a block on the device within the context.

        Contexts for the same block may be nested. Then only the outermost context transfers the weights, and its end frees the
        memory of the device.
        """
        if self._onloaded_position == position:
            yield
            return
        block = self.blocks[position]
        with torch.no_grad(), evaluation_mode(self._model, self._ffns), onloaded(block, self.device):
            self._onloaded_position = position
            try:
                yield
            finally:
                self._onloaded_position = None

    def outputs(
        self, position: int, states: Iterable[torch.Tensor], first: int = 0
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Run a block on the hidden states of each batch, within the context of :meth:`onloaded_block`.

        `states` may hold a few consecutive batches alone, of which the first one has the number `first`.

        Yields
        ------
        int
            Number of the batch.
        tensor
            The hidden states behind the block, on the device.
        """
        block, calls = self.blocks[position], self._calls[position]
        for k, state in enumerate(states, start=first):
            call, masks = calls[k], self._batch_masks[k]
            self.masks.replace(masks)
            block_input = state if self.device is None else state.to(self.device)
            call = call.to(self.device)
            yield k, first_output(block(block_input, *call.args, **call.kwargs))

    def advance(self, position: int, states: States) -> None:
        """Replace the hidden states in front of a block by those behind it."""
        with self.onloaded_block(position):
            for k, output in self.outputs(position, states):
                states.store(k, output)
        states.advance()
