"""How a module stores the weights of its experts: in which tensors, with which axes, and in which order of the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature

import torch
from torch import nn

from llmrank.models.compat import is_dispatched

__all__ = ["Layout", "Place", "read_layout"]


@dataclass(frozen=True)
class Place:
    """Where the maps of one kind (gate, up or down) are stored.

    Attributes
    ----------
    weight : str
        Name of the parameter.
    bias : str or None
    rows : slice
        The rows of the map in the matrix of one expert.
    """

    weight: str
    bias: str | None
    rows: slice


@dataclass(frozen=True)
class Layout:
    """How the tensors of a mixture hold the linear maps of its experts.

    Attributes
    ----------
    n_experts, n_inputs, n_hidden : int
        Numbers of experts, and of inputs and hidden neurons of each.
    maps : mapping from str to Place
        For ``gate`` (if the experts are gated), ``up`` and ``down``.
    transposed : bool
        Whether the matrices are stored as (inputs, outputs).
    interleaved : bool
        Whether the rows of gate and up alternate.
    presorted : bool
        Whether the module gets only the tokens, sorted by expert and multiplied by their routing weights already (Llama 4).
    """

    n_experts: int
    n_inputs: int
    n_hidden: int
    maps: Mapping[str, Place]
    transposed: bool
    interleaved: bool
    presorted: bool


def read_layout(owner: nn.Module) -> Layout | None:
    """Read the layout of a module that holds the tensors of experts; return None for any other module.

    A module of experts is known by the names that transformers gives to such tensors, and by their three axes: (experts, outputs,
    inputs), or (experts, inputs, outputs).
    """
    stacked = {name: p for name, p in owner._parameters.items() if p is not None and p.ndim == 3}
    first = next((name for name in ("gate_up_proj", "up_proj") if name in stacked), None)
    if first is None or "down_proj" not in stacked:
        return None
    up, down = stacked[first], stacked["down_proj"]
    # How many maps the first tensor holds: gate and up, or up alone.
    halves = 2 if first == "gate_up_proj" else 1
    n_hidden, transposed = _hidden_size(owner, up, down, halves)
    # Longcat's first tensor also has matrices for experts that only return their input.
    fits = len(up) == len(down) or (len(up) > len(down) and hasattr(owner, "identity_expert"))
    if n_hidden is None or not fits or "gate_proj" in stacked:
        return None
    interleaved = not getattr(owner, "is_concatenated", True)
    biases = {name for name, p in owner._parameters.items() if p is not None and p.ndim == 2}
    bias = f"{first}_bias" if f"{first}_bias" in biases else None
    maps = {"up": Place(first, bias, slice(0, n_hidden))}
    if halves == 2:
        gate_rows = slice(0, None, 2) if interleaved else slice(0, n_hidden)
        up_rows = slice(1, None, 2) if interleaved else slice(n_hidden, 2 * n_hidden)
        maps = {"gate": Place(first, bias, gate_rows), "up": Place(first, bias, up_rows)}
    n_inputs = down.shape[2] if transposed else down.shape[1]
    maps["down"] = Place("down_proj", "down_proj_bias" if "down_proj_bias" in biases else None, slice(0, n_inputs))
    presorted = not is_dispatched(owner) and len(signature(type(owner).forward).parameters) == 2
    return Layout(len(down), n_inputs, n_hidden, maps, transposed, interleaved, presorted)


def _hidden_size(owner: nn.Module, up: torch.Tensor, down: torch.Tensor, halves: int) -> tuple[int | None, bool]:
    """Return the number of hidden neurons of an expert (None if the shapes do not fit), and whether matrices are transposed."""
    plain = down.shape[2] if up.shape[1] == halves * down.shape[2] and up.shape[2] == down.shape[1] else None
    turned = down.shape[1] if up.shape[2] == halves * down.shape[1] and up.shape[1] == down.shape[2] else None
    transposed = bool(getattr(owner, "is_transposed", plain is None))
    return (turned if transposed else plain), transposed
