"""An FFN, described as stages of linear maps between layers of nodes."""

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
    """A linear map: all outputs of a module, or a range of them (such as one half of a map that computes gate and up together).

    Attributes
    ----------
    name : str
        Path of the module in the model.
    module : nn.Linear or Conv1D
    start, size : int
        The first output and the number of outputs.
    """

    name: str
    module: nn.Module
    start: int
    size: int

    @classmethod
    def whole(cls, name: str, module: nn.Module) -> Projection:
        """Take all outputs of a module."""
        return cls(name, module, 0, out_features(module))

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return in_features(self.module)

    @property
    def weight(self) -> torch.Tensor:
        """The (size, in_features) weight: a detached view with one row for each output, also where the module is transposed."""
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
    """Whether the module stores its weight as (in, out) instead of (out, in)."""
    return isinstance(module, Conv1D)


def out_features(module: nn.Module) -> int:
    """Return the number of outputs of a Linear or Conv1D."""
    return int(_weight(module).shape[1 if is_transposed(module) else 0])


def in_features(module: nn.Module) -> int:
    """Return the number of inputs of a Linear or Conv1D."""
    return int(_weight(module).shape[0 if is_transposed(module) else 1])


def bias_of(module: nn.Module) -> torch.Tensor | None:
    """Return the bias of a Linear or Conv1D, or None if it has none."""
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, torch.Tensor) else None


@dataclass(frozen=True)
class PrunableLayer:
    """Neurons that can be removed, and the weights that are removed with them.

    Attributes
    ----------
    name : str
        Name of the layer, which is also the key of its keep mask. It is the path of the FFN's module; for the kinds that may
        have several prunable layers (sequential, explicit), the path of the Linear that computes the neurons.
    size : int
        Number of neurons.
    input_maps : tuple of Projection
        Input maps: row j (and bias j) of each computes neuron j.
    output_maps : tuple of Projection
        Output maps: column j of each reads neuron j. Empty for explicit FFNs, of which only rows are removed.
    """

    name: str
    size: int
    input_maps: tuple[Projection, ...]
    output_maps: tuple[Projection, ...]


@dataclass(frozen=True)
class FFN:
    """A feed-forward network: k stages of linear maps between k+1 layers of nodes.

    Attributes
    ----------
    name : str
        Path of the module that holds the FFN.
    kind : {"plain", "gated", "fused", "sequential", "explicit", "attention"}
        Plain: one input map and one output map; gated: two input maps (gate, up); fused: one module computes both of them;
        sequential: a chain of two or more linear maps; explicit: Linears that the user has named. Attention: no FFN, but an
        attention in the same form, whose stages are its value map and its output map; nothing of it can be pruned.
    stages : tuple of tuples of Projection
        ``stages[l]`` leads from layer l of the nodes to layer l+1; all projections of a stage join the same two layers.
    stack : str
        Path of the stack of transformer blocks that the FFN lies in. The chained topology joins the FFNs of one stack in order.
    module : nn.Module
        The module that holds the FFN.
    """

    name: str
    kind: FFNKind
    stages: tuple[tuple[Projection, ...], ...]
    stack: str
    module: nn.Module

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the k+1 layers of nodes."""
        return (self.stages[0][0].in_features, *(stage[0].size for stage in self.stages))

    @property
    def prunable(self) -> dict[int, PrunableLayer]:
        """The prunable layers by the number of their node layer: the hidden layers; for explicit FFNs all layers but layer 0."""
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
