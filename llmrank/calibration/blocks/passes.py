"""Pass all batches through one block of a stack after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from llmrank.calibration.blocks.onloading import onloaded
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
    device : torch.device, optional
        Where blocks compute, if that is not where their weights are. States and recorded arguments come there batch by batch.

    Attributes
    ----------
    masks : TokenMasks
        Those of the batch that a block runs on.
    positions : dict from str to int
        Number of the block that each FFN is in, by the name of the FFN.
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
        self._ready: int | None = None
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
    def ready(self, position: int) -> Iterator[None]:
        """Let a block be on the device within the context, which may be inside another one for the same block.

        Weights are transferred once for each outermost context, and its end gives the memory back.
        """
        if self._ready == position:
            yield
            return
        block = self.blocks[position]
        with torch.no_grad(), evaluation_mode(self._model, self._ffns), onloaded(block, self.device):
            self._ready = position
            try:
                yield
            finally:
                self._ready = None

    def outputs(self, position: int, states: Iterable[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        """Run a block that is :meth:`ready` on the states of each batch.

        Yields
        ------
        int
            Number of the batch.
        tensor
            The hidden states behind the block, on the device.
        """
        block, calls = self.blocks[position], self._calls[position]
        for k, (state, call, masks) in enumerate(zip(states, calls, self._batch_masks, strict=False)):
            self.masks.replace(masks)
            here, call = state if self.device is None else state.to(self.device), call.to(self.device)
            yield k, first_output(block(here, *call.args, **call.kwargs))

    def advance(self, position: int, states: States) -> None:
        """Replace the states in front of a block by those behind it."""
        with self.ready(position):
            for k, output in self.outputs(position, states):
                states.store(k, output)
        states.advance()
