"""From ranked graphs to keep masks: what pruners see of each layer, and how many budgets there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from graphs import RankResult
from llmrank.models.costs import ModelCosts, neuron_cost
from llmrank.prune.base_pruner import BasePruner
from llmrank.prune.layer_record import LayerRecord, keep_highest
from llmrank.prune.masks import Masks
from llmrank.score.base_scorer import BaseScorer
from llmrank.score.model_graph import ModelGraph, Topology, edge_weights
from llmrank.score.rank_graphs import rank_graphs

__all__ = ["Reselection", "choose_masks", "layer_records", "prunes_jointly"]


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


class Reselection:
    """Ranks a layer's graph again, with other activations of that layer, and keeps as many neurons as were kept before.

    Parameters
    ----------
    scorer : BaseScorer
    graphs : sequence of ModelGraph
        As they were ranked first.
    among : Masks, optional
        What earlier steps have left there; nothing else is chosen.

    Notes
    -----
    Cost: a rank of the graph that holds the layer, and of those that it follows; in a chain that is the whole chain, for every
    layer.
    """

    def __init__(self, scorer: BaseScorer, graphs: Sequence[ModelGraph], among: Masks | None = None) -> None:
        self._scorer = scorer
        self._among = among
        self._graphs = list(graphs)

    @property
    def looks_back(self) -> bool:
        """Whether the choice in a layer reads weights that lead to it from layers before it that were chosen in."""
        return any(entry.follows or len(entry.prunable) > 1 for entry in self._graphs)

    def __call__(self, layer: str, keep: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """The keep mask of a layer.

        Parameters
        ----------
        layer : str
            Its name.
        keep : (n,) bool tensor
            What was to stay.
        activations : (n,) float64 tensor
            What stands for those of its neurons, from now on.

        Returns
        -------
        (n,) bool tensor
            With as many kept.
        """
        index, position = next(
            (index, position)
            for index, entry in enumerate(self._graphs)
            for position, prunable in entry.prunable.items()
            if prunable.name == layer
        )
        entry = self._graphs[index] = self._graphs[index].with_norms(position, activations)
        start = index
        while self._graphs[start].follows:
            start -= 1
        importance = entry.importance(rank_graphs(self._scorer, self._graphs[start : index + 1])[-1])[layer]
        if self._among is not None:
            importance = importance.where(self._among[layer], -torch.inf)
        return keep_highest(importance, int(keep.sum()))
