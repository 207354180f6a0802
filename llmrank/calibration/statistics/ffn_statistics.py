"""Statistics of the activations at every layer of the FFNs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmrank.models import FFN

__all__ = [
    "AttentionStatistics",
    "FFNStatistics",
    "LayerStatistics",
    "MixtureStatistics",
    "RoutingStatistics",
]


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Statistics of one layer of nodes over the calibration tokens.

    Attributes
    ----------
    norm : (n,) float64 tensor
        sqrt(sum over tokens of x^2): the activation of each node in a graph.
    mean : (n,) float64 tensor
        Mean over tokens.
    variance : (n,) float64 tensor
        Population variance over tokens.
    count : int
        Number of tokens.
    read_norm : (n,) float64 tensor
        Norm of the values that the next linear maps read. It equals `norm`, except in hidden layers of an explicit FFN (Linears
        named by a `structure_dict`): there `norm` is that of the output of the layer's Linear, before an activation function.
    experts : tuple of (int, RoutingStatistics)
        In the hidden layer of a mixture of experts: for each expert in turn, its number of neurons and the statistics of what the
        router sends it (None for a shared expert, which gets every token).
    """

    norm: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    count: int
    read_norm: torch.Tensor
    experts: tuple[tuple[int, RoutingStatistics | None], ...] = ()


@dataclass(frozen=True)
class FFNStatistics:
    """Statistics of one FFN.

    Attributes
    ----------
    layers : tuple of LayerStatistics
        Statistics of each layer of nodes, inputs first: one layer more than the FFN has stages.
    skip : float, optional
        Share of the residual stream that skips the FFN's block, if requested.
    attention : AttentionStatistics, optional
        Statistics of the attention in front of the FFN, if requested.
    routing : RoutingStatistics, optional
        What the router sends to the FFN, if the FFN is an expert. Then `layers` are statistics over these tokens alone, and zero
        if there are none.
    mixture : MixtureStatistics, optional
        Statistics of the mixture, if the FFN is an expert or a shared expert.
    """

    layers: tuple[LayerStatistics, ...]
    skip: float | None = None
    attention: AttentionStatistics | None = None
    routing: RoutingStatistics | None = None
    mixture: MixtureStatistics | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the layers of nodes."""
        return tuple(len(layer.norm) for layer in self.layers)


@dataclass(frozen=True)
class AttentionStatistics:
    """Statistics of the attention of one transformer block.

    Attributes
    ----------
    attention : FFN
        The value map and the output map of the attention, as an FFN of the kind "attention".
    layers : tuple of LayerStatistics
        Statistics of the value map's input, and of the output map's input and output.
    """

    attention: FFN
    layers: tuple[LayerStatistics, ...]


@dataclass(frozen=True, eq=False)
class RoutingStatistics:
    """What a router sends to one expert, and what the expert returns; sums over the calibration tokens t that it gets.

    Attributes
    ----------
    count : int
        Number of these tokens.
    weight : float
        Sum of the routing weights p_t.
    output_norm : float
        Sum of ||f(t)||, the norm of the expert's output.
    weighted_output_norm : float
        Sum of p_t ||f(t)||.
    output_variance : float
        Variance of f(t) over the tokens, summed over its entries.
    weighted_norm : (n,) float64 tensor
        sqrt(sum of (p_t x_t)^2) for each hidden neuron x.
    """

    count: int
    weight: float
    output_norm: float
    weighted_output_norm: float
    output_variance: float
    weighted_norm: torch.Tensor


@dataclass(frozen=True, eq=False)
class MixtureStatistics:
    """Statistics of a mixture of experts over all calibration tokens.

    Attributes
    ----------
    inputs, outputs : LayerStatistics
        Statistics of the input of the mixture, and of its output, which includes the outputs of shared experts.
    """

    inputs: LayerStatistics
    outputs: LayerStatistics
