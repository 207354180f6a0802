"""Layered graphs of FFNs, built from their weights and statistics, and the mapping of node scores back to neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch

from graphs import LayeredGraph, RankResult
from graphs.linalg.backends import TorchBufferMaker
from llmrank.calibration.residual import block_path
from llmrank.calibration.statistics import FFNStatistics, LayerStatistics
from llmrank.errors import OptionError, StructureError
from llmrank.models import FFN, FFNs, PrunableLayer

__all__ = ["TOPOLOGIES", "ModelGraph", "Topology", "build_graphs", "check_beta", "edge_weights"]

Topology: TypeAlias = Literal["isolated", "chained", "residual"]
TOPOLOGIES: tuple[Topology, ...] = get_args(Topology)


@dataclass(frozen=True, eq=False)
class ModelGraph:
    """A layered graph of one FFN (or attention) or of a chain of FFNs, with the mapping from its layers to prunable layers.

    Attributes
    ----------
    graph : LayeredGraph
        Its dense blocks are views of the model's weights; value maps of attentions may be copies.
    statistics : tuple of LayerStatistics
        One for each layer of the graph.
    prunable : mapping from int to PrunableLayer
        The prunable layers by their position in the graph.
    follows : bool
        Whether the first layer is also the last layer of the graph before: both hold the nodes of one residual stream.
    skip : float
        Beta, the share of the first layer's importance that skips the graph, 0..1, see
        :func:`llmrank.score.rank_graphs.rank_graphs`.
    """

    graph: LayeredGraph
    statistics: tuple[LayerStatistics, ...]
    prunable: Mapping[int, PrunableLayer]
    follows: bool = False
    skip: float = 0.0

    def importance(self, result: RankResult) -> dict[str, torch.Tensor]:
        """Return the scores of the neurons in a rank of this graph: one float64 tensor for each prunable layer, by name."""
        return {
            layer.name: torch.from_numpy(result.scores[position].astype(np.float64))
            for position, layer in self.prunable.items()
        }

    def with_norms(self, position: int, norms: torch.Tensor) -> ModelGraph:
        """Return this graph with other activations (norms) of the nodes of one layer; its means and variances stay."""
        layers = list(self.statistics)
        layers[position] = replace(layers[position], norm=norms, read_norm=norms)
        return replace(self, graph=self.graph.with_activations(position, norms), statistics=tuple(layers))


def build_graphs(
    ffns: FFNs, statistics: Sequence[FFNStatistics], topology: Topology, beta: float | None = None
) -> tuple[ModelGraph, ...]:
    """Build the graphs of a model.

    There is one graph for each FFN (isolated), one for each chain of consecutive FFNs of a stack (chained), or one for each FFN
    with skip edges past it (residual). In a chain, the output layer of an FFN is the input layer of the next one; its activations
    are the norms of the next FFN's input (for explicit FFNs, of the previous FFN's output). FFNs whose sizes differ there are not
    chained.

    In the residual topology the layer between two FFNs ends one graph and starts the next. If the statistics include attentions,
    each attention has a graph in front of that of its FFN, without prunable layers: edges of weights ``|V|`` lead from the
    residual stream to the heads, and edges of weights ``|O|`` lead back to the stream.

    Parameters
    ----------
    ffns : FFNs
    statistics : sequence of FFNStatistics
        One for each of the FFNs.
    topology : {"isolated", "chained", "residual"}
    beta : float, optional
        For the residual topology: the share that skips a graph, 0..1. By default all graphs of a transformer block have the
        same share, and their product is the share that was measured for the block.

    Raises
    ------
    OptionError
        The topology is unknown; beta is out of range, or given for a topology without skip edges; or the topology is
        residual, and beta is neither given nor measured.
    StructureError
        The sizes of explicit FFNs do not fit in a chain; or the topology is residual, and FFNs are explicit or in no repeating
        stack.
    GraphError
        Activations are negative or not finite.
    """
    if topology not in TOPOLOGIES:
        raise OptionError(f"unknown topology {topology!r}; expected 'isolated', 'chained' or 'residual'")
    if topology == "residual":
        return _build_residual(ffns, statistics, beta)
    if beta is not None:
        raise OptionError(f"beta is the share of skip edges, and the {topology} topology has none; leave it out")
    chains: list[list[tuple[FFN, FFNStatistics]]] = []
    for ffn, entry in zip(ffns, statistics, strict=True):
        previous = chains[-1][-1][0] if chains and topology == "chained" else None
        if previous is not None and previous.stack == ffn.stack:
            if previous.sizes[-1] == ffn.sizes[0]:
                chains[-1].append((ffn, entry))
                continue
            if ffn.kind == "explicit":
                raise StructureError(
                    f"structure_dict: {previous.name} ends in {previous.sizes[-1]} nodes but {ffn.name} starts with "
                    f"{ffn.sizes[0]}, so they do not chain; use IsolatedFFNPipeline, or list all Linears of an FFN"
                )
        chains.append([(ffn, entry)])
    return tuple(_build_chain(chain) for chain in chains)


def check_beta(beta: object) -> float:
    """Return beta as a float; raise an OptionError if it is not a number in [0, 1].

    >>> check_beta(1)
    1.0
    """
    number = isinstance(beta, (int, float)) and not isinstance(beta, bool)
    if not number or not 0.0 <= beta <= 1.0:  # type: ignore[operator]
        raise OptionError(f"beta must be a number in [0, 1], or measured, got {beta!r}")
    return float(beta)  # type: ignore[arg-type]


def _build_residual(ffns: FFNs, statistics: Sequence[FFNStatistics], beta: float | None) -> tuple[ModelGraph, ...]:
    if any(ffn.kind == "explicit" for ffn in ffns):
        raise StructureError(
            "structure_dict lists single Linears, and a residual stream skips whole FFNs; leave it out, or use the chained or "
            "the isolated pipeline"
        )
    blocks = [block_path(ffn) for ffn in ffns]
    sublayers: list[tuple[FFN, tuple[LayerStatistics, ...], float]] = []
    for ffn, entry, block in zip(ffns, statistics, blocks, strict=True):
        n_graphs = sum(1 + (s.attention is not None) for s, b in zip(statistics, blocks, strict=True) if b == block)
        if beta is not None:
            skip = check_beta(beta)
        elif entry.skip is not None:
            skip = entry.skip ** (1.0 / n_graphs)
        else:
            raise OptionError(
                "the residual topology needs a beta; set beta, or collect statistics with skips=True, which measures it"
            )
        if entry.attention is not None:
            sublayers.append((entry.attention.attention, entry.attention.layers, skip))
        sublayers.append((ffn, entry.layers, skip))
    graphs = []
    for position, (sublayer, layers, skip) in enumerate(sublayers):
        following = sublayers[position + 1] if position + 1 < len(sublayers) else None
        if following is not None and _shares_stream(sublayer, following[0]):
            # The nodes of the last layer are those of the stream, with the activations that the next graph reads.
            layers = (*layers[:-1], following[1][0])
        graph = _build_chain([(sublayer, FFNStatistics(layers))])
        follows = position > 0 and _shares_stream(sublayers[position - 1][0], sublayer)
        graphs.append(replace(graph, follows=follows, skip=skip))
    return tuple(graphs)


def _shares_stream(before: FFN, after: FFN) -> bool:
    return before.stack == after.stack and before.sizes[-1] == after.sizes[0] == before.sizes[0]


def _build_chain(chain: Sequence[tuple[FFN, FFNStatistics]]) -> ModelGraph:
    """Build one graph of FFNs that follow each other; an attention is a chain by itself."""
    weights: list[tuple[torch.Tensor, ...]] = []
    names: list[str] = []
    layers: list[LayerStatistics] = []
    prunable: dict[int, PrunableLayer] = {}
    for position, (ffn, entry) in enumerate(chain):
        layers_before = len(weights)
        if position == 0:
            layers.append(entry.layers[0])
            names.append(f"{ffn.name}:input")
        elif ffn.kind == "explicit":
            layers[-1] = replace(layers[-1], read_norm=entry.layers[0].norm)
        else:
            layers[-1] = entry.layers[0]
        layers += entry.layers[1:]
        ffn_prunable = ffn.prunable
        for layer, stage in enumerate(ffn.stages, start=1):
            weights.append(tuple(linear_map.weight for linear_map in stage))
            if layer in ffn_prunable:
                names.append(ffn_prunable[layer].name)
                prunable[layers_before + layer] = ffn_prunable[layer]
            else:
                names.append(f"{ffn.name}:{'output' if layer == len(ffn.stages) else 'heads'}")
    activations = [entry.norm for entry in layers]
    # Scorers that read weights raise an error for NaN themselves, so no extra pass over the model is needed.
    graph = LayeredGraph.from_weights(weights, activations[0], activations[1:], names, check_finite=False)
    return ModelGraph(graph, tuple(layers), prunable)


def edge_weights(graph: LayeredGraph, layer: int) -> torch.Tensor:
    """Return the weights of the edges into a layer as a dense tensor (n_l, n_{l-1}), in float32 or wider.

    Each call computes the tensor anew, on the device of the model's weights. The graph does not keep it, but a loop over layers
    holds the tensor of one layer while it computes the next. Memory: the tensor and two bands.
    """
    block = graph.blocks[layer - 1]
    dtype = torch.float64 if block.csr_dtype == np.float64 else torch.float32
    weights = torch.zeros(block.shape, dtype=dtype, device=block.device)
    for band in block.bands(TorchBufferMaker(weights.device, dtype)):
        weights[band.rows, band.columns] = band.matrix
    return weights
