"""Choose the keep masks of ranked graphs, under one budget or several; during a repair, choose the mask of one layer anew."""

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

__all__ = ["Reselection", "choose_masks", "prunes_jointly"]


def prunes_jointly(structure_dict: Mapping[str, Any] | None, topology: Topology) -> bool:
    """Return whether one budget covers all layers; with a `structure_dict` and isolated graphs each graph has its own."""
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
        Sensitivity of each layer by its name, see :class:`llmrank.prune.LayerRecord`.
    costs : ModelCosts, optional
        See :meth:`llmrank.prune.BasePruner.prune`.
    present : Masks, optional
        The neurons that earlier steps have kept.
    """
    groups = [
        _layer_records(entry, rank, sensitivities or {}, present) for entry, rank in zip(graphs, ranks, strict=True)
    ]
    if jointly:
        groups = [[record for group in groups for record in group]]
    keep: dict[str, torch.Tensor] = {}
    for group_pruner, group in zip(pruner.for_groups(groups), groups, strict=True):
        keep.update(group_pruner.prune(group, costs))
    return Masks(keep)


def _layer_records(
    entry: ModelGraph, rank: RankResult, sensitivities: Mapping[str, float], present: Masks | None
) -> list[LayerRecord]:
    importance = entry.importance(rank)
    return [
        LayerRecord(
            layer.name,
            importance[layer.name],
            in_activation=entry.statistics[position - 1].read_norm,
            out_activation=entry.statistics[position].norm,
            weight=partial(edge_weights, entry.graph, position),
            explicit=not layer.output_maps,
            sensitivity=sensitivities.get(layer.name),
            present=None if present is None else present[layer.name],
        )
        for position, layer in entry.prunable.items()
    ]


class Reselection:
    """Chooses the keep mask of a layer anew: ranks its graph with other activations, and keeps as many neurons as before.

    Parameters
    ----------
    scorer : BaseScorer
    graphs : sequence of ModelGraph
        All graphs of the model, with the activations by which the neurons were chosen before.
    present : Masks, optional
        The neurons that earlier steps have kept; no other neuron is chosen.

    Notes
    -----
    Cost: for every layer, one rank of the graph that holds it, and of each graph before that on the same residual stream.
    """

    def __init__(self, scorer: BaseScorer, graphs: Sequence[ModelGraph], present: Masks | None = None) -> None:
        self._scorer = scorer
        self._present = present
        self._graphs = list(graphs)

    @property
    def reads_earlier_layers(self) -> bool:
        """Whether the choice in a layer reads weights of earlier layers, so that these must be replaced after the choice."""
        return any(entry.follows or len(entry.prunable) > 1 for entry in self._graphs)

    def __call__(self, layer: str, keep: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """Choose a mask of as many neurons as `keep`, from new activations, (n,) float64, which later calls use too."""
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
        if self._present is not None:
            importance = importance.where(self._present[layer], -torch.inf)
        return keep_highest(importance, int(keep.sum()))
