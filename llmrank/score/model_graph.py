"""Layered graphs of FFNs, and the mapping of node scores back to neurons."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from graphs import LayeredGraph, RankResult
from graphs.linalg.backends import TorchBufferMaker
from llmrank.calibration.statistics import LayerStatistics
from llmrank.models import PrunableLayer

__all__ = ["LayerNodes", "ModelGraph", "edge_weights"]


@dataclass(frozen=True)
class LayerNodes:
    """Where the neurons of a prunable layer are among the nodes of a graph.

    Attributes
    ----------
    layer : PrunableLayer
    position : int
        Number of the layer of the graph that holds the neurons.
    start : int
        Number of the first neuron among the nodes of that layer. It can be above 0 in a mixture, where one layer of the graph
        holds the neurons of all experts.
    """

    layer: PrunableLayer
    position: int
    start: int = 0

    @property
    def nodes(self) -> slice:
        """The nodes of the layer that are the neurons."""
        return slice(self.start, self.start + self.layer.size)


@dataclass(frozen=True, eq=False)
class ModelGraph:
    """A layered graph of one FFN, mixture or attention, or of a chain of FFNs; it knows which nodes are prunable neurons.

    Attributes
    ----------
    graph : LayeredGraph
        Its dense blocks are views of the model's weights; value maps of attentions may be copies.
    statistics : tuple of LayerStatistics
        One entry for each layer of the graph.
    prunable : tuple of LayerNodes
        For each prunable layer in the graph, the nodes that are its neurons.
    follows : bool
        Whether the first layer is also the last layer of the graph before: both hold the nodes of one residual stream.
    skip : float
        Beta, the share of the first layer's importance that skips the graph, 0..1, see
        :func:`llmrank.score.rank_graphs.rank_graphs`.
    """

    graph: LayeredGraph
    statistics: tuple[LayerStatistics, ...]
    prunable: tuple[LayerNodes, ...]
    follows: bool = False
    skip: float = 0.0

    def importance(self, result: RankResult) -> dict[str, torch.Tensor]:
        """Return the scores of the neurons in a rank of this graph: one float64 tensor for each prunable layer, by name."""
        return {
            entry.layer.name: torch.from_numpy(result.scores[entry.position][entry.nodes].astype(np.float64))
            for entry in self.prunable
        }

    def with_norms(self, place: LayerNodes, norms: torch.Tensor) -> ModelGraph:
        """Return this graph with other activations (norms) for the neurons of a layer, and the same means and variances."""
        layers, position = list(self.statistics), place.position
        changed = layers[position].norm.clone()
        changed[place.nodes] = norms
        layers[position] = replace(layers[position], norm=changed, read_norm=changed)
        return replace(self, graph=self.graph.with_activations(position, changed), statistics=tuple(layers))


def edge_weights(graph: LayeredGraph, layer: int) -> torch.Tensor:
    """Return the weights of the edges into a layer as a dense tensor (n_l, n_{l-1}), in float32 or wider.

    Each call computes the tensor anew, on the device of the model's weights, and the graph does not keep it. Memory: the tensor
    and two bands (parts of the tensor that are computed one after the other).
    """
    block = graph.blocks[layer - 1]
    dtype = torch.float64 if block.csr_dtype == np.float64 else torch.float32
    weights = torch.zeros(block.shape, dtype=dtype, device=block.device)
    for band in block.bands(TorchBufferMaker(weights.device, dtype)):
        weights[band.rows, band.columns] = band.matrix
    return weights
