"""Passes of a model that begin behind its last block, where the hidden states are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from llmrank.errors import is_out_of_memory
from llmrank.execution.recording import LENGTHS, UNPACKING_ERRORS, hidden_states_of, output_of_block, recording
from llmrank.models import FFNs
from llmrank.models.forward import first_output, substitute_forward

__all__ = ["KnownStates"]


class KnownStates:
    """Passes of a model whose hidden states behind the last block are known, so that its blocks need not run.

    Parameters
    ----------
    model : nn.Module
    ffns : FFNs
    run : callable
        ``run()`` runs the model on a few tokens, and returns its output, a tensor.

    Attributes
    ----------
    suffice : bool
        Whether the output depends on what the blocks compute by these states alone: a trial has shown that it stays the same if
        the last block returns them, and every other block its input. False if the model does not call each block once.
    """

    def __init__(self, model: nn.Module, ffns: FFNs, run: Callable[[], torch.Tensor]) -> None:
        self._length, self.suffice = 0, False
        last: list[torch.Tensor] = []
        with recording(model, ffns) as record, ExitStack() as hooks:
            self._blocks = record.blocks
            if not self._blocks:
                return
            hook = self._blocks[-1].register_forward_hook(
                lambda _m, _i, output: last.append(first_output(output).clone())
            )
            hooks.callback(hook.remove)
            expected = _output_or_none(run)
        if expected is None or not record.unbroken:
            return
        for length in LENGTHS:
            self._length = length
            with self.in_place_of_blocks(last[0]):
                found = _output_or_none(run)
            self.suffice = found is not None and torch.equal(found, expected)
            if self.suffice:
                return

    @contextmanager
    def in_place_of_blocks(self, states: torch.Tensor) -> Iterator[None]:
        """Let the last block return hidden states, and every other block its input, within the context."""

        def forward(*args: Any, is_last: bool = False, **kwargs: Any) -> Any:
            hidden = hidden_states_of(args, kwargs)
            return output_of_block(states.to(hidden.device, copy=True) if is_last else hidden, self._length)

        with ExitStack() as hooks:
            for block in self._blocks:
                substitute_forward(hooks, block, partial(forward, is_last=block is self._blocks[-1]))
            yield


def _output_or_none(run: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    """Return what `run` returns; None if the model cannot run on a few tokens, or with the outputs that its blocks have now."""
    try:
        return run()
    except UNPACKING_ERRORS as error:
        if is_out_of_memory(error):
            raise
        return None
