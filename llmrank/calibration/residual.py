"""Measure how much of a residual stream goes around a block of the model, unchanged, over calibration tokens."""

from __future__ import annotations

from typing import Any

import torch

from llmrank.errors import StructureError

__all__ = ["SkipSums", "hidden_states"]


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

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Add the hidden states (tokens, n) in front of and behind the block.

        Raises
        ------
        StructureError
            Their shapes differ.
        """
        if before.shape != after.shape:
            raise StructureError(
                f"{self._name} takes hidden states of shape {tuple(before.shape)} and returns {tuple(after.shape)}: it has no "
                "residual stream; use the chained or the isolated pipeline"
            )
        # The input of a block may be on the device of the block before.
        before, after = before.detach().to(after.device).float(), after.detach().float()
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
