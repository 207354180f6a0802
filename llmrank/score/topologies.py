"""The topologies: how the FFNs of a model are joined to layered graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal, TypeAlias, get_args

import torch

from graphs import LayeredGraph
from graphs.linalg.stacking import StackedBlock
from llmrank.calibration.statistics import FFNStatistics, LayerStatistics
from llmrank.errors import OptionError, StructureError, check_choice
from llmrank.models import FFN, FFNs
from llmrank.score.model_graph import LayerNodes, ModelGraph

__all__ = ["TOPOLOGIES", "Topology", "build_graphs", "check_beta"]

Topology: TypeAlias = Literal["isolated", "chained", "residual"]
TOPOLOGIES: tuple[Topology, ...] = get_args(Topology)


def build_graphs(
    ffns: FFNs,
    statistics: Sequence[FFNStatistics],
    topology: Topology,
    beta: float | None = None,
) -> tuple[ModelGraph, ...]:
    """Build the graphs of a model.

    There is one graph for each FFN or mixture of experts (isolated), one for each chain of consecutive FFNs of a stack (chained),
    or one for each FFN with skip edges past it (residual). In a chain, the output layer of an FFN is the input layer of the next
    one; its activations are the norms of the next FFN's input (for explicit FFNs, of the previous FFN's output). Where the sizes
    of these two layers differ, the chain ends and a new one begins. (An explicit FFN is one whose Linears the user has named.)

    In the residual topology, the layer between two FFNs is the last of one graph and the first of the next. If the statistics
    include attentions, each attention has a graph too, in front of the graph of its FFN. It has no prunable layers: edges of
    weights ``|V|`` (the value map) lead from the residual stream to the heads, and edges of weights ``|O|`` (the output map) lead
    back to the stream.

    In a mixture, the hidden neurons of all experts are one layer. The edges into the neurons of expert e have the weights
    ``pi_e (|gate_e| + |up_e|)``. Here pi_e is the mean of the routing weights p_te over all tokens t; for a shared expert, it is
    1. The activation of a neuron x is ``sqrt(sum_t (p_te x_t)^2)``.

    Parameters
    ----------
    ffns : FFNs
    statistics : sequence of FFNStatistics
        One entry for each of the FFNs.
    topology : {"isolated", "chained", "residual"}
    beta : float, optional
        For the residual topology: the share of the residual stream that skips a graph, 0..1. By default all graphs of a
        transformer block have the same share, and the product of these shares is the share that was measured for the block.

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
    check_choice("topology", topology, TOPOLOGIES)
    sublayers = _sublayers(ffns, statistics)
    if topology == "residual":
        return _build_residual(sublayers, beta)
    if beta is not None:
        raise OptionError(f"beta is the share of skip edges, and the {topology} topology has none; leave it out")
    chains: list[list[_Sublayer]] = []
    for sublayer in sublayers:
        previous = chains[-1][-1] if chains and topology == "chained" else None
        if previous is not None and previous.stack == sublayer.stack:
            if previous.n_outputs == sublayer.n_inputs:
                chains[-1].append(sublayer)
                continue
            if sublayer.ffns[0].kind == "explicit":
                raise StructureError(
                    f"structure_dict: {previous.name} ends in {previous.n_outputs} nodes but {sublayer.name} starts with "
                    f"{sublayer.n_inputs}, so they do not chain; use IsolatedFFNPipeline, or list all Linears of an FFN"
                )
        chains.append([sublayer])
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


@dataclass(frozen=True)
class _Sublayer:
    """A part of a transformer block with its statistics: an FFN, an attention, or the experts of a mixture.

    It becomes one graph, or in the chained topology a part of one.
    """

    ffns: tuple[FFN, ...]
    layers: tuple[LayerStatistics, ...]
    statistics: FFNStatistics
    # The factor of the edge weights into each expert: pi in :func:`build_graphs`.
    expert_scales: tuple[float, ...] = (1.0,)

    @property
    def name(self) -> str:
        return self.ffns[0].sublayer_name

    @property
    def stack(self) -> str:
        return self.ffns[0].stack

    @property
    def n_inputs(self) -> int:
        return self.ffns[0].sizes[0]

    @property
    def n_outputs(self) -> int:
        return self.ffns[0].sizes[-1]

    def blocks(self, stage: int) -> Any:
        """Return the weights of the edges of a stage, as :meth:`graphs.LayeredGraph.from_weights` takes them."""
        weights = [tuple(linear_map.weight for linear_map in ffn.stages[stage]) for ffn in self.ffns]
        if len(weights) == 1 and self.expert_scales == (1.0,):
            return weights[0]
        scales = self.expert_scales if stage == 0 else (1.0,) * len(weights)
        return StackedBlock.from_weights(weights, scales, 0 if stage == 0 else 1, check_finite=False)

    def prunable(self, input_position: int) -> list[LayerNodes]:
        """Return the nodes of the prunable layers in a graph whose layer `input_position` holds the inputs of this part."""
        found, start = [], 0
        for ffn in self.ffns:
            found += [LayerNodes(layer, input_position + k, start) for k, layer in ffn.prunable.items()]
            start += ffn.sizes[1]
        return found


def _sublayers(ffns: FFNs, statistics: Sequence[FFNStatistics]) -> list[_Sublayer]:
    """Return each FFN as a sublayer of its own, but the experts of a mixture, which follow one another, as one sublayer."""
    found: list[_Sublayer] = []
    for key, group in groupby(zip(ffns, statistics, strict=True), lambda pair: pair[0].mixture):
        pairs = list(group)
        if key is None:
            found += [_Sublayer((ffn,), entry.layers, entry) for ffn, entry in pairs]
            continue
        entries, mixture = [entry for _, entry in pairs], pairs[0][1].mixture
        if mixture is None:
            raise StructureError(
                f"the statistics of {key.name} are not those of a mixture; collect them for these FFNs"
            )
        hidden = replace(
            _concatenated([_hidden_statistics(entry) for entry in entries]),
            experts=tuple((ffn.sizes[1], entry.routing) for ffn, entry in pairs),
        )
        layers = (mixture.inputs, hidden, mixture.outputs)
        n_tokens = max(mixture.inputs.count, 1)
        scales = tuple(1.0 if entry.routing is None else entry.routing.weight / n_tokens for entry in entries)
        found.append(_Sublayer(tuple(ffn for ffn, _ in pairs), layers, entries[0], scales))
    return found


def _hidden_statistics(entry: FFNStatistics) -> LayerStatistics:
    """Return the statistics of an expert's hidden neurons; the norms are weighted by the router, as the mixture's graph needs."""
    layer, routing = entry.layers[1], entry.routing
    return layer if routing is None else replace(layer, norm=routing.weighted_norm)


def _concatenated(layers: Sequence[LayerStatistics]) -> LayerStatistics:
    def concatenated(name: str) -> torch.Tensor:
        return torch.cat([getattr(layer, name) for layer in layers])

    return LayerStatistics(
        norm=concatenated("norm"),
        mean=concatenated("mean"),
        variance=concatenated("variance"),
        count=max(layer.count for layer in layers),
        read_norm=concatenated("read_norm"),
    )


def _build_residual(sublayers: Sequence[_Sublayer], beta: float | None) -> tuple[ModelGraph, ...]:
    if any(sublayer.ffns[0].kind == "explicit" for sublayer in sublayers):
        raise StructureError(
            "structure_dict lists single Linears, and a residual stream skips whole FFNs; leave it out, or use the chained or "
            "the isolated pipeline"
        )
    blocks = [sublayer.ffns[0].block for sublayer in sublayers]
    placed: list[tuple[_Sublayer, float]] = []
    for sublayer, block in zip(sublayers, blocks, strict=True):
        entry = sublayer.statistics
        n_graphs = sum(
            1 + (s.statistics.attention is not None) for s, b in zip(sublayers, blocks, strict=True) if b == block
        )
        if beta is not None:
            skip = check_beta(beta)
        elif entry.skip is not None:
            skip = entry.skip ** (1.0 / n_graphs)
        else:
            raise OptionError(
                "the residual topology needs a beta; set beta, or collect statistics with skips=True, which measures it"
            )
        if entry.attention is not None:
            attention = entry.attention
            placed.append((_Sublayer((attention.attention,), attention.layers, entry), skip))
        placed.append((sublayer, skip))
    graphs = []
    for position, (sublayer, skip) in enumerate(placed):
        following = placed[position + 1][0] if position + 1 < len(placed) else None
        if following is not None and _shares_stream(sublayer, following):
            # The last layer holds the nodes of the residual stream. Its activations are those that the next graph reads.
            sublayer = replace(sublayer, layers=(*sublayer.layers[:-1], following.layers[0]))
        graph = _build_chain([sublayer])
        follows = position > 0 and _shares_stream(placed[position - 1][0], sublayer)
        graphs.append(replace(graph, follows=follows, skip=skip))
    return tuple(graphs)


def _shares_stream(before: _Sublayer, after: _Sublayer) -> bool:
    """Whether one residual stream leads past `before` and into `after`."""
    return before.stack == after.stack and before.n_outputs == after.n_inputs == before.n_inputs


def _build_chain(chain: Sequence[_Sublayer]) -> ModelGraph:
    """Build one graph of sublayers that follow each other. The graph of an attention holds no other sublayer."""
    weights: list[Any] = []
    names: list[str] = []
    layers: list[LayerStatistics] = []
    prunable: list[LayerNodes] = []
    for position, sublayer in enumerate(chain):
        first = sublayer.ffns[0]
        if position == 0:
            layers.append(sublayer.layers[0])
            names.append(f"{sublayer.name}:input")
        elif first.kind == "explicit":
            layers[-1] = replace(layers[-1], read_norm=sublayer.layers[0].norm)
        else:
            layers[-1] = sublayer.layers[0]
        layers += sublayer.layers[1:]
        own = sublayer.prunable(len(weights))
        hidden = {entry.position: sublayer.name if first.mixture else entry.layer.name for entry in own}
        prunable += own
        for layer in range(1, len(first.stages) + 1):
            weights.append(sublayer.blocks(layer - 1))
            last = "output" if layer == len(first.stages) else "heads"
            names.append(hidden.get(len(weights), f"{sublayer.name}:{last}"))
    activations = [entry.norm for entry in layers]
    # Scorers that read weights raise an error for NaN themselves, so the weights are not checked here in an extra pass.
    graph = LayeredGraph.from_weights(weights, activations[0], activations[1:], names, check_finite=False)
    return ModelGraph(graph, tuple(layers), tuple(prunable))
