"""Transformer blocks that can be left out: without such a block, the hidden states pass on as they are."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmrank.models.experts import substitute_forward

__all__ = ["TransformerBlock"]


@dataclass(frozen=True, eq=False)
class TransformerBlock:
    """A block of a stack. Its first argument and its (first) output are the hidden states.

    Attributes
    ----------
    name : str
        Path of the block.
    stack : nn.ModuleList
        The list that holds the block.
    module : nn.Module
    n_others : int or None
        The block returns a tuple of the hidden states and this many times None; None if it returns the hidden states alone.
    stays : bool
        Whether it cannot be left out.
    """

    name: str
    stack: nn.ModuleList
    module: nn.Module
    n_others: int | None
    stays: bool = False

    def leave_out(self, hooks: ExitStack) -> None:
        """Let the hidden states pass the block as they are, until `hooks` closes."""
        substitute_forward(hooks, self.module, self._pass)

    def _pass(self, *args: Any, **kwargs: Any) -> torch.Tensor | tuple[torch.Tensor | None, ...]:
        hidden: torch.Tensor = args[0] if args else kwargs["hidden_states"]
        return hidden if self.n_others is None else (hidden, *[None] * self.n_others)
