"""Layered graphs built from FFNs and their statistics, and the way back from scores of nodes to neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import torch

from graphs import LayeredGraph, RankResult
from graphs.linalg.blocks import DenseBlock
from llmrank.calibration.residual import block_path
from llmrank.calibration.statistics import FFNStatistics, LayerStatistics
from llmrank.errors import OptionError, StructureError
from llmrank.models import FFN, FFNs, PrunableLayer

__all__ = ["TOPOLOGIES", "ModelGraph", "Topology", "build_graphs", "check_beta", "edge_weights"]

Topology: TypeAlias = Literal["isolated", "chained", "residual"]
TOPOLOGIES: tuple[Topology, ...] = ("isolated", "chained", "residual")


@dataclass(frozen=True, eq=False)
class ModelGraph:
    """A layered graph of one FFN or of a chain of FFNs, with the mapping from its nodes to neurons.

    Attributes
    ----------
    graph : LayeredGraph
        Its dense blocks are views of the model's weights, not copies.
    statistics : tuple of LayerStatistics
        One for each layer of the graph.
    prunable : mapping from int to PrunableLayer
        The prunable layers by their position in the graph.
    follows : bool
        Whether its first layer is the last layer of the graph before it, which the residual stream skips.
    skip : float
        Beta, the share of the first layer's importance that skips the graph, 0..1; see
        :func:`llmrank.score.rank_graphs.rank_graphs`. It only affects the graphs that follow.
    """

    graph: LayeredGraph
    statistics: tuple[LayerStatistics, ...]
    prunable: Mapping[int, PrunableLayer]
    follows: bool = False
    skip: float = 0.0

    def importance(self, result: RankResult) -> dict[str, torch.Tensor]:
        """Return the float64 scores of the prunable layers, by layer name."""
        return {
            layer.name: torch.from_numpy(result.scores[position].astype(np.float64))
            for position, layer in self.prunable.items()
        }

    def with_norms(self, position: int, norms: torch.Tensor) -> ModelGraph:
        """Return this graph with other activations (n,) of one layer."""
        layers = list(self.statistics)
        layers[position] = replace(layers[position], norm=norms, read_norm=norms)
        return replace(self, graph=self.graph.with_activations(position, norms), statistics=tuple(layers))


def build_graphs(
    ffns: FFNs, statistics: Sequence[FFNStatistics], topology: Topology, beta: float | None = None
) -> tuple[ModelGraph, ...]:
    """Build the graphs of a model.

    There is one graph for each FFN (isolated), one for each stack (chained), or one for each FFN with skip edges past it
    (residual). In a chain, the output layer of an FFN is the input layer of the next one; its activation is the norm of the
    next FFN's input (in the explicit form: of the Linear's own output). In the residual topology that layer ends one graph and
    starts the next, and skip edges lead past each graph. If the statistics include attentions, each attention is a graph of its
    own in front of its FFN: from the residual stream over ``|V|`` (heads that share values have a copy each) and ``|O|`` back
    to the stream, without prunable layers.

    Parameters
    ----------
    ffns : FFNs
    statistics : sequence of FFNStatistics
        One for each of the FFNs.
    topology : {"isolated", "chained", "residual"}
    beta : float, optional
        For the residual topology: the share that skips a graph, 0..1. By default it is taken from the statistics, so that the
        share that skips all graphs of a block, one after the other, is the measured one.

    Raises
    ------
    OptionError
        The topology is unknown; beta is out of range or the topology has no skip edges; or beta is neither given nor measured.
    StructureError
        Explicitly listed Linears of neighbouring layers do not chain, or have no residual stream.
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
    return tuple(_build_chain(chain) for chain in chains)


def check_beta(beta: object) -> float:
    """Return beta as a float.

    Raises
    ------
    OptionError
        It is not a number in [0, 1].

    Examples
    --------
    >>> check_beta(1)
    1.0
    """
    number = isinstance(beta, (int, float)) and not isinstance(beta, bool)
    if not number or not 0.0 <= beta <= 1.0:  # type: ignore[operator]
        raise OptionError(f"beta must be a number in [0, 1], or measured, got {beta!r}")
    return float(beta)  # type: ignore[arg-type]


def _build_residual(ffns: FFNs, statistics: Sequence[FFNStatistics], beta: float | None) -> tuple[ModelGraph, ...]:
    """Build one graph for each FFN and each attention, in the order of the residual stream."""
    if any(ffn.kind == "explicit" for ffn in ffns):
        raise StructureError(
            "structure_dict lists single Linears, and a residual stream skips whole FFNs; leave it out, or use the chained or "
            "the isolated pipeline"
        )
    blocks = [block_path(ffn) for ffn in ffns]
    units: list[tuple[FFN, tuple[LayerStatistics, ...], float]] = []
    for ffn, entry, block in zip(ffns, statistics, blocks, strict=True):
        if beta is None and entry.skip is None:
            raise OptionError(
                "the residual topology needs a beta; set beta, or collect statistics with skips=True, which measures it"
            )
        count = sum(1 + (s.attention is not None) for s, b in zip(statistics, blocks, strict=True) if b == block)
        skip = check_beta(beta) if entry.skip is None or beta is not None else entry.skip ** (1.0 / count)
        if entry.attention is not None:
            units.append((entry.attention.attention, entry.attention.layers, skip))
        units.append((ffn, entry.layers, skip))
    graphs = []
    for position, (unit, layers, skip) in enumerate(units):
        following = units[position + 1] if position + 1 < len(units) else None
        if following is not None and _shares_stream(unit, following[0]):
            # The layer holds the nodes of the stream, and their activation is what the next FFN or attention reads.
            layers = (*layers[:-1], following[1][0])
        graph = _build_chain([(unit, FFNStatistics(layers))])
        follows = position > 0 and _shares_stream(units[position - 1][0], unit)
        graphs.append(replace(graph, follows=follows, skip=skip))
    return tuple(graphs)


def _shares_stream(before: FFN, after: FFN) -> bool:
    """Whether two FFNs (or attentions) follow each other on one residual stream."""
    return before.stack == after.stack and before.sizes[-1] == after.sizes[0] == before.sizes[0]


def _build_chain(chain: Sequence[tuple[FFN, FFNStatistics]]) -> ModelGraph:
    """Build one graph for FFNs that follow each other."""
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
        ffn_prunable = ffn.prunable
        for layer, stage in enumerate(ffn.stages, start=1):
            weights.append(tuple(projection.weight for projection in stage))
            if layer in ffn_prunable:
                names.append(ffn_prunable[layer].name)
                prunable[first + layer] = ffn_prunable[layer]
            else:
                names.append(f"{ffn.name}:{'output' if layer == len(ffn.stages) else 'heads'}")
    activations = [entry.norm for entry in layers]
    # The ranks read every weight anyway, and raise an error for NaN, so no extra pass over the model is needed.
    graph = LayeredGraph.from_weights(weights, activations[0], activations[1:], names, check_finite=False)
    return ModelGraph(graph, tuple(layers), prunable)


def edge_weights(graph: LayeredGraph, layer: int) -> torch.Tensor:
    """Return the edges into a layer as one dense tensor (n_l, n_{l-1}), non-negative, float32 or wider.

    Each call builds it anew on the device of the weights, so that only one block is in memory at a time.
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
        raise OptionError(f"no edges lead into layer {layer}; expected at least one weight matrix")
    return total
