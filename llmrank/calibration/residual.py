"""Measure how much of a residual stream goes around a block of the model, unchanged, over calibration tokens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from llmrank.errors import StructureError
from llmrank.execution.hooks import TokenMasks, unpadded_rows
from llmrank.models import FFN
from llmrank.models.forward import first_output, is_decoder

__all__ = ["SkipSums", "add_stream_hook", "hidden_states"]


class SkipSums:
    """Sums that give the share of a block's output that is its input: ``sum_t |h(t)| / (sum_t |h(t)| + sum_t |o(t) - h(t)|)``.

    For token t, the block `name` takes the hidden state h(t) and returns o(t). Norms are not squared, so that the few tokens with
    huge hidden states do not dominate.

    Examples
    --------
    >>> sums = SkipSums("layers.0")
    >>> sums.add(torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 1.0]]))
    >>> sums.share()
    0.75
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._input_norms = self._change_norms = 0.0

    def add(self, before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Add the hidden states (..., n) in front of and behind the block; the mask is False at padding.

        Raises
        ------
        StructureError
            Their shapes differ.
        """
        before, after = unpadded_rows(before, mask), unpadded_rows(after, mask)
        if before.shape != after.shape:
            raise StructureError(
                f"{self._name} takes hidden states of shape {tuple(before.shape)} and returns {tuple(after.shape)}: it has no "
                "residual stream; use the chained or the isolated pipeline"
            )
        # The input of a block may be on the device of the block before.
        before, after = before.to(after.device).float(), after.float()
        self._input_norms += float(before.norm(dim=-1).double().sum())
        self._change_norms += float((after - before).norm(dim=-1).double().sum())

    def share(self) -> float:
        """Return the share, 0..1; 0 if no token was added, or all hidden states were zero."""
        total = self._input_norms + self._change_norms
        return self._input_norms / total if total > 0 else 0.0


def hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the hidden states among the arguments of a block.

    Raises
    ------
    StructureError
        The first argument, or `hidden_states` if all arguments are keywords, is not a tensor.

    Examples
    --------
    >>> hidden_states((), {"hidden_states": torch.ones(1, 2)}).shape
    torch.Size([1, 2])
    """
    hidden = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden, torch.Tensor):
        raise StructureError(
            "a block of the stack is not called with hidden states first or as hidden_states=, so its residual stream cannot be "
            "measured; give the residual pipeline a number as beta"
        )
    return hidden


def add_stream_hook(
    hooks: ExitStack,
    model: nn.Module,
    ffn: FFN,
    module: nn.Module,
    masks: TokenMasks,
    add: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], None],
) -> None:
    """Pass the hidden states that a module around an FFN gets and returns, with their mask, to `add`, until `hooks` closes."""
    side = "decoder" if is_decoder(model, ffn) else "input"

    def pass_on(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before, mask = hidden_states(args, kwargs), getattr(masks, side)
        if mask is not None and before.shape[:-1] != mask.shape:
            mask = mask.reshape(-1)
        add(before, first_output(output), mask)

    hooks.callback(module.register_forward_hook(pass_on, with_kwargs=True).remove)
