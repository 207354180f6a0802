"""What an adapter hands over: FFNs as stages of projections between node layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

__all__ = ["FFN", "FFNKind", "Projection", "PrunableLayer"]

FFNKind: TypeAlias = Literal["plain", "gated", "fused", "sequential", "explicit", "attention"]


@dataclass(frozen=True)
class Projection:
    """A linear map inside a module: all of it, or a band of its output rows (fused gate and up).

    Attributes
    ----------
    name : str
        Path of the module in the model.
    module : nn.Linear or Conv1D
    start, size : int
        Which output rows of the module are meant.
    """

    name: str
    module: nn.Module
    start: int
    size: int

    @classmethod
    def whole(cls, name: str, module: nn.Module) -> Projection:
        """All rows of a module."""
        return cls(name, module, 0, out_features(module))

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return in_features(self.module)

    @property
    def weight(self) -> torch.Tensor:
        """The (size, in_features) weight: a detached view, row = output whatever the module's own layout."""
        weight = _weight(self.module).detach()
        if is_transposed(self.module):
            weight = weight.T
        return weight[self.start : self.start + self.size]


def _weight(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"{type(module).__name__} has no weight tensor")
    return weight


def is_transposed(module: nn.Module) -> bool:
    """Whether the module stores (in, out) instead of (out, in)."""
    return isinstance(module, Conv1D)


def out_features(module: nn.Module) -> int:
    """Number of outputs of a Linear or Conv1D."""
    return int(_weight(module).shape[1 if is_transposed(module) else 0])


def in_features(module: nn.Module) -> int:
    """Number of inputs of a Linear or Conv1D."""
    return int(_weight(module).shape[0 if is_transposed(module) else 1])


def bias_of(module: nn.Module) -> torch.Tensor | None:
    """The bias of a Linear or Conv1D, None where it has none."""
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, torch.Tensor) else None


@dataclass(frozen=True)
class PrunableLayer:
    """Neurons that can go, and everything that goes with them.

    Attributes
    ----------
    name : str
        Key of its mask: the FFN's module path; for one of several layers (sequential, explicit) the
        path of the Linear that produces it.
    size : int
        Number of neurons.
    producers : tuple of Projection
        Their row j (and bias j) makes neuron j.
    consumers : tuple of Projection
        Their column j reads neuron j; empty in the explicit form, where only rows go.
    """

    name: str
    size: int
    producers: tuple[Projection, ...]
    consumers: tuple[Projection, ...]


@dataclass(frozen=True)
class FFN:
    """One feed-forward network: k stages of parallel projections between k+1 node layers.

    Attributes
    ----------
    name : str
        Path of the module that holds it.
    kind : {"plain", "gated", "fused", "sequential", "explicit", "attention"}
        An attention's value and output maps are such stages too, of which nothing can be pruned.
    stages : tuple of tuples of Projection
        ``stages[l]`` leads from node layer l to l+1; projections of one stage are parallel edges.
    stack : str
        Path of the repeating stack it belongs to; FFNs of one stack are chained, in order.
    module : nn.Module
        What holds it.
    """

    name: str
    kind: FFNKind
    stages: tuple[tuple[Projection, ...], ...]
    stack: str
    module: nn.Module

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the k+1 node layers."""
        return (self.stages[0][0].in_features, *(stage[0].size for stage in self.stages))

    @property
    def prunable(self) -> dict[int, PrunableLayer]:
        """Node layer -> prunable layer: the hidden ones, or every target in the explicit form."""
        if self.kind == "attention":
            return {}
        if self.kind == "explicit":
            return {
                layer: PrunableLayer(stage[0].name, stage[0].size, stage, ())
                for layer, stage in enumerate(self.stages, start=1)
            }
        layers = {}
        for layer in range(1, len(self.stages)):
            producers, consumers = self.stages[layer - 1], self.stages[layer]
            name = producers[0].name if self.kind == "sequential" else self.name
            layers[layer] = PrunableLayer(name, producers[0].size, producers, consumers)
        return layers

    @property
    def n_parameters(self) -> int:
        """Parameters of its modules, biases included."""
        modules = {id(p.module): p.module for stage in self.stages for p in stage}
        return sum(parameter.numel() for module in modules.values() for parameter in module.parameters())
