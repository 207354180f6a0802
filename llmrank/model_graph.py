"""FFN blocks and statistics <-> layered graphs: where neurons become nodes and scores come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import torch

from graphs import LayeredGraph, RankResult
from graphs.blocks import DenseBlock
from llmrank.activations import FFNStatistics, LayerStatistics
from llmrank.adapters import FFN, PrunableLayer
from llmrank.errors import OptionError, StructureError

__all__ = ["ModelGraph", "Topology", "build_graphs", "edge_weights"]

Topology: TypeAlias = Literal["isolated", "chained"]


@dataclass(frozen=True, eq=False)
class ModelGraph:
    """A layered graph of one FFN or of a chain, with the way back to the neurons.

    Attributes
    ----------
    graph : LayeredGraph
        Its dense blocks are views of the model's weights, not copies.
    statistics : tuple of LayerStatistics
        Of every node layer.
    prunable : mapping from node layer to PrunableLayer
    """

    graph: LayeredGraph
    statistics: tuple[LayerStatistics, ...]
    prunable: Mapping[int, PrunableLayer]

    def importance(self, result: RankResult) -> dict[str, torch.Tensor]:
        """Scores of the prunable layers by name, float64."""
        return {
            layer.name: torch.from_numpy(result.scores[position].astype(np.float64))
            for position, layer in self.prunable.items()
        }

    def with_norms(self, position: int, norms: torch.Tensor) -> ModelGraph:
        """The same graph with other activations (n,) of one node layer."""
        layers = list(self.statistics)
        layers[position] = replace(layers[position], norm=norms, read_norm=norms)
        return replace(self, graph=self.graph.with_activations(position, norms), statistics=tuple(layers))


def build_graphs(
    ffns: Sequence[FFN], statistics: Sequence[FFNStatistics], topology: Topology
) -> tuple[ModelGraph, ...]:
    """The graphs of a model: one an FFN (isolated), or one a stack (chained).

    In a chain the output layer of an FFN is the input layer of the next one; its activation is the
    norm of what the next one reads (in the explicit form: of the Linear's own output).

    Parameters
    ----------
    ffns : sequence of FFN
    statistics : sequence of FFNStatistics
        Of the same FFNs.
    topology : {"isolated", "chained"}

    Raises
    ------
    OptionError
        Unknown topology.
    StructureError
        Explicitly listed Linears of neighbouring layers do not chain.
    GraphError
        Negative or non-finite activations.
    """
    if topology not in ("isolated", "chained"):
        raise OptionError(f"unknown topology {topology!r}; expected 'isolated' or 'chained'")
    chains: list[list[tuple[FFN, FFNStatistics]]] = []
    for ffn, entry in zip(ffns, statistics, strict=True):
        previous = chains[-1][-1][0] if chains else None
        joins = topology == "chained" and previous is not None and previous.stack == ffn.stack
        if joins and previous is not None and previous.sizes[-1] != ffn.sizes[0]:
            if ffn.kind == "explicit":
                raise StructureError(
                    f"structure_dict: {previous.name} ends in {previous.sizes[-1]} nodes but {ffn.name} starts with "
                    f"{ffn.sizes[0]}, so they do not chain; use IsolatedFFNPipeline, or list the Linears of a whole FFN"
                )
            joins = False
        if joins:
            chains[-1].append((ffn, entry))
        else:
            chains.append([(ffn, entry)])
    return tuple(_chain(chain) for chain in chains)


def _chain(chain: Sequence[tuple[FFN, FFNStatistics]]) -> ModelGraph:
    weights: list[tuple[torch.Tensor, ...]] = []
    names: list[str] = []
    layers: list[LayerStatistics] = []
    prunable: dict[int, PrunableLayer] = {}
    for position, (ffn, entry) in enumerate(chain):
        first = len(weights)
        if position == 0:
            layers.append(entry.layers[0])
            names.append(f"{ffn.name}:input")
        elif ffn.kind == "explicit":
            layers[-1] = replace(layers[-1], read_norm=entry.layers[0].norm)
        else:
            layers[-1] = entry.layers[0]
        layers += entry.layers[1:]
        own = ffn.prunable
        for layer, stage in enumerate(ffn.stages, start=1):
            weights.append(tuple(projection.weight for projection in stage))
            names.append(own[layer].name if layer in own else f"{ffn.name}:output")
            if layer in own:
                prunable[first + layer] = own[layer]
    activations = [entry.norm for entry in layers]
    # The ranks read every weight anyway and refuse NaN there: no extra pass over the model.
    graph = LayeredGraph.from_weights(weights, activations[0], activations[1:], names, check_finite=False)
    return ModelGraph(graph, tuple(layers), prunable)


def edge_weights(graph: LayeredGraph, layer: int) -> torch.Tensor:
    """The edges into a layer as one dense tensor (n_l, n_{l-1}), non-negative, float32 or wider.

    It is built at each call, on the device of the weights: one block in memory at a time.
    """
    block = graph.blocks[layer - 1]
    if not isinstance(block, DenseBlock):
        return torch.from_numpy(block.to_csr().toarray())
    total: torch.Tensor | None = None
    for matrix in block.matrices:
        tensor = matrix if isinstance(matrix, torch.Tensor) else torch.from_numpy(np.asarray(matrix))
        part = block.weight(tensor.float() if tensor.itemsize < 4 else tensor)
        total = part if total is None else total + part.to(total.device)
    if total is None:
        raise OptionError(f"layer {layer} has no edges into it")
    return total
