"""From ranked graphs to keep masks: what pruners see of each layer, and how many budgets there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from graphs import RankResult
from llmrank.models.costs import ModelCosts, neuron_cost
from llmrank.prune import BasePruner, LayerRecord
from llmrank.prune.masks import Masks
from llmrank.score.model_graph import ModelGraph, Topology, edge_weights

__all__ = ["choose_masks", "layer_records", "prunes_jointly"]


def prunes_jointly(structure_dict: Mapping[str, Any] | None, topology: Topology) -> bool:
    """Whether one budget covers all layers; the paper's isolated form prunes each FFN's Linears by themselves."""
    return structure_dict is None or topology == "chained"


def choose_masks(
    pruner: BasePruner,
    graphs: Sequence[ModelGraph],
    ranks: Sequence[RankResult],
    *,
    jointly: bool,
    sensitivities: Mapping[str, float] | None = None,
    costs: ModelCosts | None = None,
    present: Masks | None = None,
) -> Masks:
    """The keep masks of ranked graphs: under one budget, or under one for each graph.

    Sensitivities, by the names of the layers, and the neurons still present go to the records.
    """
    groups = [layer_records(entry, rank) for entry, rank in zip(graphs, ranks, strict=True)]
    together = [record for group in groups for record in group]
    for record in together:
        record.sensitivity = (sensitivities or {}).get(record.name)
        record.present = None if present is None else present[record.name]
    if jointly:
        groups = [together]
    keep: dict[str, torch.Tensor] = {}
    for part, group in zip(pruner.apart(groups), groups, strict=True):
        keep.update(part.prune(group) if costs is None else part.prune(group, costs))
    return Masks(keep)


def layer_records(entry: ModelGraph, rank: RankResult) -> list[LayerRecord]:
    """The prunable layers of a ranked graph as pruners see them."""
    importance = entry.importance(rank)
    return [
        LayerRecord(
            layer.name,
            importance[layer.name],
            in_activation=entry.statistics[position - 1].read_norm,
            out_activation=entry.statistics[position].norm,
            weight=partial(edge_weights, entry.graph, position),
            in_features=entry.graph.layers[position - 1],
            explicit=not layer.consumers,
            cost=neuron_cost(layer),
        )
        for position, layer in entry.prunable.items()
    ]
