"""From ranked graphs to keep masks: records for the pruner, one budget or several, and a second choice during a repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from graphs import RankResult
from llmrank.models.costs import ModelCosts
from llmrank.prune.base_pruner import BasePruner
from llmrank.prune.layer_record import LayerRecord, keep_highest
from llmrank.prune.masks import Masks
from llmrank.score.base_scorer import BaseScorer
from llmrank.score.model_graph import ModelGraph, Topology, edge_weights
from llmrank.score.rank_graphs import rank_graphs

__all__ = ["Reselection", "choose_masks", "layer_records", "prunes_jointly"]


def prunes_jointly(structure_dict: Mapping[str, Any] | None, topology: Topology) -> bool:
    """Return whether one budget covers all layers; in the paper's isolated form each FFN's Linears have a budget of their own."""
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
    """Choose the keep masks of ranked graphs.

    Parameters
    ----------
    pruner : BasePruner
    graphs : sequence of ModelGraph
    ranks : sequence of RankResult
        One for each graph.
    jointly : bool
        Whether one budget covers all graphs; otherwise each has its own.
    sensitivities : mapping from str to float, optional
        By the name of the layer.
    costs : ModelCosts, optional
        See :meth:`llmrank.prune.BasePruner.prune`.
    present : Masks, optional
        The neurons that earlier steps have kept.
    """
    groups = [layer_records(entry, rank) for entry, rank in zip(graphs, ranks, strict=True)]
    together = [record for group in groups for record in group]
    for record in together:
        record.sensitivity = (sensitivities or {}).get(record.name)
        record.present = None if present is None else present[record.name]
    if jointly:
        groups = [together]
    keep: dict[str, torch.Tensor] = {}
    for part, group in zip(pruner.for_groups(groups), groups, strict=True):
        keep.update(part.prune(group) if costs is None else part.prune(group, costs))
    return Masks(keep)


def layer_records(entry: ModelGraph, rank: RankResult) -> list[LayerRecord]:
    """Make the records of the prunable layers of a ranked graph."""
    importance = entry.importance(rank)
    return [
        LayerRecord(
            layer.name,
            importance[layer.name],
            in_activation=entry.statistics[position - 1].read_norm,
            out_activation=entry.statistics[position].norm,
            weight=partial(edge_weights, entry.graph, position),
            in_features=entry.graph.layer_sizes[position - 1],
            explicit=not layer.output_maps,
        )
        for position, layer in entry.prunable.items()
    ]


class Reselection:
    """Ranks a layer's graph again with other activations for that layer, and keeps as many neurons as were kept before.

    Parameters
    ----------
    scorer : BaseScorer
    graphs : sequence of ModelGraph
        The graphs as they were first ranked.
    among : Masks, optional
        The neurons that earlier steps have kept; no other is chosen.

    Notes
    -----
    Cost: for every layer a rank of the graph that holds it, and of the graphs that this graph follows; in a chain that is the
    complete chain.
    """

    def __init__(self, scorer: BaseScorer, graphs: Sequence[ModelGraph], among: Masks | None = None) -> None:
        self._scorer = scorer
        self._among = among
        self._graphs = list(graphs)

    @property
    def looks_back(self) -> bool:
        """Whether the choice in one layer depends on weights of earlier layers, in which neurons were chosen anew."""
        return any(entry.follows or len(entry.prunable) > 1 for entry in self._graphs)

    def __call__(self, layer: str, keep: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """Choose the keep mask of a layer anew.

        Parameters
        ----------
        layer : str
            Name of the layer.
        keep : (n,) bool tensor
            The planned keep mask.
        activations : (n,) float64 tensor
            They replace the activations of the layer, in later calls too.

        Returns
        -------
        (n,) bool tensor
            A keep mask with as many neurons kept.
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
