"""One expert of a mixture as a module: its linear maps are parts of the tensors that all experts share.

Such a module belongs to no model and holds no parameter. It reads the model's tensors whenever it computes, and hooks can be
registered on it as on any other module, see :func:`llmrank.models.experts.by_expert`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from llmrank.models.compat import gated_hidden
from llmrank.models.experts.layout import Layout

__all__ = ["Expert", "ExpertMap", "Routing", "TensorPart", "set_forward", "substitute_forward"]


@dataclass(frozen=True, eq=False)
class TensorPart:
    """The part of a tensor that belongs to one linear map of one expert.

    Attributes
    ----------
    owner : nn.Module
        Module of the model that holds the tensor.
    name : str
        Name of the parameter of `owner`: (experts, rows, columns), or (experts, rows) for a bias.
    expert : int
        Position of the expert.
    rows : slice
        The rows of the map in the matrix of the expert, such as every second row where gate and up are interleaved.
    transposed : bool
        Whether the tensor is stored as (experts, columns, rows).
    """

    owner: nn.Module
    name: str
    expert: int
    rows: slice
    transposed: bool = False

    @property
    def parameter(self) -> torch.Tensor:
        """The tensor of all experts, as the model holds it now."""
        return self.owner._parameters[self.name]  # type: ignore[return-value]

    def read(self) -> torch.Tensor:
        """Return the part as the model holds it now: a detached view, (rows, columns) or (rows,)."""
        stored = self.parameter.detach()[self.expert]
        return (stored.T if self.transposed else stored)[self.rows]


@dataclass
class Routing:
    """The tokens that an expert gets in the present call.

    Attributes
    ----------
    tokens : (n,) int64 tensor
        Their positions among all tokens of the call.
    weights : (n,) tensor
        For each of these tokens, the weight that the router gives to the expert's output.
    totals : (n,) tensor
        For each of these tokens, the sum of the weights of all experts that get it.
    """

    tokens: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    weights: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    totals: torch.Tensor = field(default_factory=lambda: torch.empty(0))


class ExpertMap(nn.Module):
    """A linear map of one expert.

    Parameters
    ----------
    weight : TensorPart
    bias : TensorPart or None
    routing : Routing
        The tokens that the expert gets; all maps of the expert share this object.
    """

    def __init__(self, weight: TensorPart, bias: TensorPart | None, routing: Routing) -> None:
        super().__init__()
        self.weight_part, self.bias_part = weight, bias
        self.routing = routing

    @property
    def weight(self) -> torch.Tensor:
        """The (out, in) weight, a detached view of the model's tensor."""
        return self.weight_part.read()

    @property
    def bias(self) -> torch.Tensor | None:
        """The (out,) bias, a detached view of the model's tensor; None if the map has none."""
        return None if self.bias_part is None else self.bias_part.read()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Multiply the values (tokens, in) by the weight, and add the bias."""
        return nn.functional.linear(values, self.weight, self.bias)


class Expert(nn.Module):
    """One expert of a mixture.

    Parameters
    ----------
    owner : nn.Module
        The module of all experts, which knows how gate and up are joined.
    maps : dict from str to ExpertMap
        ``gate`` (if the experts are gated), ``up`` and ``down``.
    interleaved : bool
        Whether the rows of gate and up alternate in the model's tensor.
    routing : Routing
        The tokens that the expert gets. Whoever runs the expert sets it.
    """

    def __init__(self, owner: nn.Module, maps: dict[str, ExpertMap], routing: Routing, *, interleaved: bool) -> None:
        super().__init__()
        for name, expert_map in maps.items():
            self.add_module(name, expert_map)
        self.routing = routing
        self._interleaved = interleaved
        self._owner = (owner,)  # in a tuple, so that it does not become a submodule

    @property
    def owner(self) -> Any:
        """The module of all experts."""
        return self._owner[0]

    @classmethod
    def of(cls, owner: nn.Module, layout: Layout, position: int) -> Expert:
        """Make the expert at a position of a module of experts."""
        routing = Routing()
        maps = {}
        for name, place in layout.maps.items():
            bias = None if place.bias is None else TensorPart(owner, place.bias, position, place.rows)
            weight = TensorPart(owner, place.weight, position, place.rows, layout.transposed)
            maps[name] = ExpertMap(weight, bias, routing)
        return cls(owner, maps, routing, interleaved=layout.interleaved)

    @property
    def maps(self) -> dict[str, ExpertMap]:
        """The linear maps: ``gate`` (if the experts are gated), ``up`` and ``down``."""
        return dict(self.named_children())  # type: ignore[arg-type]

    @property
    def n_hidden(self) -> int:
        """Number of hidden neurons."""
        return self.maps["down"].weight.shape[1]

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Compute the expert's outputs (tokens, out) for its tokens (tokens, in)."""
        owner, maps = self.owner, self.maps
        if "gate" not in maps:
            hidden = owner.act_fn(maps["up"](values))
        else:
            gate, up = maps["gate"](values), maps["up"](values)
            hidden = gated_hidden(owner, gate, up, interleaved=self._interleaved)
        output: torch.Tensor = maps["down"](hidden)
        return owner.post_expert_norm(output) if getattr(owner, "has_post_expert_norm", False) else output


def set_forward(module: nn.Module, forward: Any) -> None:
    """Give a module a forward function of its own; with None, it uses the forward function of its class again."""
    if forward is None:
        vars(module).pop("forward", None)
    else:
        vars(module)["forward"] = forward


def substitute_forward(hooks: ExitStack, module: nn.Module, forward: Callable[..., Any]) -> None:
    """Make a function compute in place of a module until `hooks` closes; the hooks of the module stay active."""
    own = vars(module)
    # Functions of C, in which no interruption can come.
    undo = (
        partial(own.__setitem__, "forward", own["forward"]) if "forward" in own else partial(own.pop, "forward", None)
    )
    hooks.callback(undo)
    own["forward"] = forward
