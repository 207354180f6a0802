"""Choose the keep masks of ranked graphs, under one budget or several; during a repair, choose the mask of one layer anew."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from graphs import RankResult
from llmrank.models import PrunableLayer
from llmrank.models.costs import ModelCosts
from llmrank.prune.base_pruner import BasePruner
from llmrank.prune.masks import Masks
from llmrank.prune.records.layer_record import LayerRecord, keep_highest
from llmrank.prune.records.units import Target, Units, units_of
from llmrank.score.base_scorer import BaseScorer
from llmrank.score.model_graph import LayerNodes, ModelGraph, Topology, edge_weights
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
    targets: tuple[Target, ...] = ("neurons",),
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
        Sensitivity of each record by its name, see :class:`llmrank.prune.LayerRecord`.
    costs : ModelCosts, optional
        See :meth:`llmrank.prune.BasePruner.prune`.
    present : Masks, optional
        The neurons that earlier steps have kept.
    targets : tuple of {"neurons", "experts"}
        What is removed.

    Returns
    -------
    Masks
        One mask for each prunable layer; an expert whose mask keeps no neuron is removed.
    """
    expert_widths = {
        place.layer.size for entry in graphs for place in entry.prunable if place.layer.mixture is not None
    }
    groups = [
        _Records(entry, rank, sensitivities or {}, present, targets, expert_widths)
        for entry, rank in zip(graphs, ranks, strict=True)
    ]
    records = [group.records for group in groups]
    if jointly:
        records = [[record for group in records for record in group]]
    keep: dict[str, torch.Tensor] = {}
    for group_pruner, group in zip(pruner.for_groups(records), records, strict=True):
        keep.update(group_pruner.prune(group, costs))
    return Masks({name: mask for group in groups for name, mask in group.masks(keep).items()})


class _Records:
    """The records of one graph, and the masks of its layers that follow from those of the records."""

    def __init__(
        self,
        entry: ModelGraph,
        rank: RankResult,
        sensitivities: Mapping[str, float],
        present: Masks | None,
        targets: tuple[Target, ...],
        expert_widths: Collection[int],
    ) -> None:
        layers = [place.layer for place in entry.prunable]
        self._present = {
            layer.name: torch.ones(layer.size, dtype=torch.bool) if present is None else present[layer.name]
            for layer in layers
        }
        scores = {name: s.where(self._present[name], -torch.inf) for name, s in entry.importance(rank).items()}
        places = {place.layer.name: place for place in entry.prunable}
        self._scores = scores
        self._units = units_of(_with_neurons(layers, self._present), targets, expert_widths)
        self.records = [
            self._record(units, entry, places, sensitivities.get(units.name), is_first=present is None)
            for units in self._units
        ]

    def _record(
        self,
        units: Units,
        entry: ModelGraph,
        places: Mapping[str, LayerNodes],
        sensitivity: float | None,
        *,
        is_first: bool,
    ) -> LayerRecord:
        zeroed = {name: s.clamp_min(0.0) for name, s in self._scores.items()}
        importance, present = units.importance(self._scores, zeroed), None
        if not is_first:
            present = units.all_in(self._scores, self._present)
        if not units.are_neurons:
            return LayerRecord(units.name, importance, sensitivity=sensitivity, present=present, units=units)
        place = places[units.name]
        return LayerRecord(
            units.name,
            importance,
            in_activation=entry.statistics[place.position - 1].read_norm,
            out_activation=entry.statistics[place.position].norm[place.nodes],
            weight=partial(_edge_weights, entry, place),
            explicit=not place.layer.output_maps,
            sensitivity=sensitivity,
            present=present,
            units=units if units.multiple_of > 1 else None,
        )

    def masks(self, keep: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Translate the masks of records, by name, into masks of the graph's layers."""
        masks = dict(self._present)
        for units in self._units:
            for name, mask in units.masks(keep[units.name], self._scores).items():
                masks[name] = masks[name] & mask
        return masks


def _edge_weights(entry: ModelGraph, place: LayerNodes) -> torch.Tensor:
    return edge_weights(entry.graph, place.position)[place.nodes]


def _with_neurons(layers: Sequence[PrunableLayer], present: Mapping[str, torch.Tensor]) -> list[PrunableLayer]:
    """Leave out the experts that earlier steps have removed."""
    return [layer for layer in layers if bool(present[layer.name].any())]


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
        index, place = next(
            (index, place)
            for index, entry in enumerate(self._graphs)
            for place in entry.prunable
            if place.layer.name == layer
        )
        entry = self._graphs[index] = self._graphs[index].with_norms(place, activations)
        start = index
        while self._graphs[start].follows:
            start -= 1
        importance = entry.importance(rank_graphs(self._scorer, self._graphs[start : index + 1])[-1])[layer]
        if self._present is not None:
            importance = importance.where(self._present[layer], -torch.inf)
        return keep_highest(importance, int(keep.sum()))
