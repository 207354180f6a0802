"""How much of a residual stream goes past a block of the model unchanged, summed over tokens as they pass."""

from __future__ import annotations

from typing import Any

import torch

from llmrank.errors import StructureError
from llmrank.models import FFN

__all__ = ["SkipSums", "block_path", "hidden_states"]


def block_path(ffn: FFN) -> str:
    """Path of the block of the repeating stack that an FFN lies in.

    Parameters
    ----------
    ffn : FFN

    Raises
    ------
    StructureError
        It lies in no stack.

    Examples
    --------
    >>> from llmrank.models import find_ffns
    >>> from torch import nn
    >>> blocks = nn.ModuleDict({"layers": nn.ModuleList([nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))])})
    >>> block_path(find_ffns(blocks)[0])
    'layers.0'
    """
    if ffn.stack == ffn.name or not ffn.name.startswith(f"{ffn.stack}."):
        raise StructureError(
            f"{ffn.name or 'the model'} lies in no repeating stack of blocks, so no residual stream is known that could skip "
            "it; use the chained or the isolated pipeline"
        )
    return f"{ffn.stack}.{ffn.name.removeprefix(f'{ffn.stack}.').split('.')[0]}"


class SkipSums:
    """The share of a block's output that is its input: ``sum_t |h(t)| / (sum_t |h(t)| + sum_t |o(t) - h(t)|)``.

    h is the hidden states that enter the block and o those that leave it; the sums of norms (not of squares) keep the few
    tokens with huge hidden states, which many models have, from deciding alone.

    Parameters
    ----------
    name : str
        Path of the block, for messages.

    Examples
    --------
    >>> sums = SkipSums("layers.0")
    >>> sums.add(torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 1.0]]))
    >>> sums.share()
    0.75
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._kept = self._moved = 0.0

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Hidden states (tokens, n) in front of and behind the block.

        Raises
        ------
        StructureError
            They differ in shape.
        """
        if before.shape != after.shape:
            raise StructureError(
                f"{self._name} takes hidden states of shape {tuple(before.shape)} and returns {tuple(after.shape)}: it has no "
                "residual stream; use the chained or the isolated pipeline"
            )
        # A model that is spread over devices hands a block what the one before returned, on the device of that.
        before, after = before.detach().to(after.device).float(), after.detach().float()
        self._kept += float(before.norm(dim=-1).double().sum())
        self._moved += float((after - before).norm(dim=-1).double().sum())

    def share(self) -> float:
        """0..1."""
        total = self._kept + self._moved
        return self._kept / total if total > 0 else 0.0


def hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden states that a block is called with.

    Raises
    ------
    StructureError
        It is called otherwise.

    Examples
    --------
    >>> hidden_states((), {"hidden_states": torch.ones(1, 2)}).shape
    torch.Size([1, 2])
    """
    found = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(found, torch.Tensor):
        raise StructureError(
            "a block of the stack is not called with hidden states first, so that its residual stream cannot be measured; set "
            "beta to a number"
        )
    return found
