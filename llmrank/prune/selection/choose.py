"""Choose the keep masks of ranked graphs, under one budget or several."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from graphs import RankResult
from llmrank.errors import OptionError
from llmrank.models import PrunableLayer
from llmrank.models.costs import ModelCosts
from llmrank.prune.base_pruner import BasePruner
from llmrank.prune.local_pruner import LocalPruner
from llmrank.prune.masks import Masks
from llmrank.prune.records.layer_record import LayerRecord, Sensitivity
from llmrank.prune.records.units import KINDS, Target, Units, has_units, names_in_order, units_of, units_of_part
from llmrank.score.model_graph import LayerNodes, ModelGraph, edge_weights
from llmrank.score.topologies import Topology

__all__ = ["check_several", "choose_masks", "prunes_jointly"]


def prunes_jointly(structure_dict: Mapping[str, Any] | None, topology: Topology) -> bool:
    """Return whether one budget covers all layers; with a `structure_dict` and isolated graphs each graph has its own."""
    return structure_dict is None or topology == "chained"


def choose_masks(
    pruner: BasePruner,
    graphs: Sequence[ModelGraph],
    ranks: Sequence[RankResult],
    *,
    jointly: bool,
    sensitivities: Mapping[str, Sensitivity] | None = None,
    costs: ModelCosts | None = None,
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
    targets : tuple of {"neurons", "experts", "heads", "blocks"}
        What is removed. With neurons and experts, every mixture loses the same number of experts, and neurons are removed for the
        rest of the amount. Every number of experts is tried, and the one is taken with which the removed neurons have the least
        importance. The amount counts for heads by itself, unless it is a cost that covers neurons and heads together.

    Returns
    -------
    Masks
        One mask for each prunable layer; an expert whose mask keeps no neuron is removed. Layers without such targets stay.
    """
    check_several(pruner, targets)
    layers = [place.layer for entry in graphs for place in entry.prunable]
    parts = pruner.parts(targets)
    names = names_in_order(layers, parts)
    found = dict(Masks.full({layer.name: layer.size for layer in layers}))
    for part in parts:
        if not KINDS[part[0]].losses_add_up:  # sensitivities alone choose, and a unit may lie in several graphs
            found |= _masks_by_sensitivities(pruner, part[0], layers, sensitivities or {}, costs)
            continue
        entries = [
            replace(entry, prunable=tuple(place for place in entry.prunable if has_units(place.layer, part)))
            for entry in graphs
        ]
        choice = _Choice(entries, ranks, sensitivities or {}, costs, names, jointly=jointly)
        both = {"neurons", "experts"} <= set(part)
        found |= choice.masks_of_neurons_and_experts(pruner) if both else choice.masks(pruner, part)
    return Masks({layer.name: found[layer.name] for layer in layers})


def _masks_by_sensitivities(
    pruner: BasePruner,
    target: Target,
    layers: Sequence[PrunableLayer],
    sensitivities: Mapping[str, Sensitivity],
    costs: ModelCosts | None,
) -> dict[str, torch.Tensor]:
    units = units_of(layers, target)
    records = [
        LayerRecord(each.name, torch.ones(each.n_units), sensitivity=sensitivities.get(each.name), units=each)
        for each in units
    ]
    keep = pruner.prune(records, costs)
    return {name: mask for each in units for name, mask in each.masks(keep[each.name], {}).items()}


def check_several(pruner: BasePruner, targets: Sequence[Target]) -> None:
    """Raise an OptionError if targets do not go together, or the unit of the amount does not fit them."""
    if len(targets) > 1 and "blocks" in targets:
        raise OptionError(
            f"blocks are removed in a run of their own, got {','.join(targets)}; remove blocks first, and prune the result again"
        )
    if pruner.amount_of == "cache" and tuple(targets) != ("heads",):
        raise OptionError(
            f"an amount of the KV cache is for heads alone, got targets {','.join(targets)}; expected targets='heads' "
            "(--targets heads), or an amount of another unit"
        )
    if pruner.shares_measured and "experts" in targets:
        raise OptionError(
            f"{type(pruner).__name__} knows losses of neurons and heads, got {','.join(targets)}; use another pruner for "
            "experts, such as local"
        )
    one_amount = len(pruner.parts(targets)) == 1 and "heads" in targets
    if len(targets) > 1 and not one_amount and (not isinstance(pruner.amount, float) or pruner.amount_of != "neurons"):
        joined = pruner.amount_of != "neurons" and set(targets) == {"neurons", "heads"}
        hint = ", or a pruner that shares out a cost among both (local, least-loss)" if joined else ""
        raise OptionError(
            f"with {','.join(targets)} and {type(pruner).__name__}, the amount is a share of each: of heads, and of the neurons "
            f"in FFNs and experts; expected an amount such as 0.3 of neurons{hint}, got {pruner.amount!r} of {pruner.amount_of}"
        )


class _Choice:
    """The choice of keep masks for ranked graphs."""

    def __init__(
        self,
        graphs: Sequence[ModelGraph],
        ranks: Sequence[RankResult],
        sensitivities: Mapping[str, Sensitivity],
        costs: ModelCosts | None,
        names: Sequence[str],
        *,
        jointly: bool,
    ) -> None:
        self._ranked = list(zip(graphs, ranks, strict=True))
        self._sensitivities, self._costs, self._jointly = sensitivities, costs, jointly
        # The layers among which `protect` selects, although a pruner may get only some of them.
        self._names = names
        places = [place for entry in graphs for place in entry.prunable]
        self._expert_widths = {place.layer.size for place in places if place.layer.mixture is not None}

    def masks(
        self,
        pruner: BasePruner,
        part: tuple[Target, ...],
        start: Masks | None = None,
        only: Callable[[Units], bool] | None = None,
    ) -> Masks:
        """Choose masks for targets that share an amount, in addition to what the masks `start` remove.

        `start` may remove whole experts, and neurons of layers for whose units `only` returns False. Nothing else is removed from
        these.
        """
        groups = [
            _Records(entry, rank, self._sensitivities, start, part, self._expert_widths, only)
            for entry, rank in self._ranked
        ]
        records = [group.records for group in groups]
        if self._jointly:
            records = [[record for group in records for record in group]]
        keep: dict[str, torch.Tensor] = {}
        for group_pruner, group in zip(pruner.for_groups(records, self._names), records, strict=True):
            keep.update(group_pruner.prune(group, self._costs))
        return Masks({name: mask for group in groups for name, mask in group.masks(keep).items()})

    def masks_of_neurons_and_experts(self, pruner: BasePruner) -> Masks:
        """Choose masks for both targets: every number of experts is tried, and that with the least lost importance is taken."""
        # Rounded widths would miss the amount by as much as the choices differ.
        pruner = pruner.with_exact_share()
        found: list[Masks] = []
        refusal: OptionError | None = None
        for count in range(max(len(entry.prunable) for entry, _ in self._ranked)):
            try:
                experts = self.masks(LocalPruner(count, protect=pruner.protect), ("experts",))
            except OptionError as error:  # fewer experts would be left than routers need
                refusal = refusal or error
                break
            try:
                masks = self._with_neurons(pruner, experts)
            except OptionError as error:  # the other experts cannot lose so many neurons
                refusal = refusal or error
                continue
            if masks is None:
                break
            found.append(masks)
        if not found:
            raise refusal or OptionError("no number of experts leaves room for this amount; lower it")
        # Not every choice reaches the amount, because widths are rounded.
        enough = [masks for masks in found if masks.removed_share >= pruner.amount - 1e-9] or found
        return min(enough, key=self._lost)

    def _with_neurons(self, pruner: BasePruner, experts: Masks) -> Masks | None:
        """Remove neurons too, so that the amount is reached; None if the removed experts alone have more neurons than it."""

        def remaining(names: Collection[str]) -> float:
            """Return the share to remove from the kept experts and other layers among these, so that the amount is reached."""
            size, kept = (
                sum(len(experts[name]) for name in names),
                sum(int(experts[name].any()) * len(experts[name]) for name in names),
            )
            return 1.0 - (1.0 - float(pruner.amount)) * size / kept

        adjusted = copy.copy(pruner)
        if not isinstance(pruner, LocalPruner):
            adjusted.amount = remaining(list(experts))
            return None if adjusted.amount < 0.0 else self.masks(adjusted, ("neurons",), experts)
        # Every layer loses the same share. All experts of a mixture count as one layer, of which a part is removed already.
        in_mixtures = [
            p.layer.name for entry, _ in self._ranked for p in entry.prunable if p.layer.pruned_with is not None
        ]
        adjusted.amount = remaining(in_mixtures)
        if adjusted.amount < 0.0:
            return None
        inside = self.masks(adjusted, ("neurons",), experts, lambda units: units.layers[0].pruned_with is not None)
        return self.masks(pruner, ("neurons",), inside, lambda units: units.layers[0].pruned_with is None)

    def _lost(self, masks: Masks) -> float:
        """Return the importance of all neurons that these masks remove."""
        scores = {name: s for entry, rank in self._ranked for name, s in entry.importance(rank).items()}
        return float(sum(s[~masks[name]].sum() for name, s in scores.items()))


class _Records:
    """The records of one graph; it translates their masks into masks of the graph's layers."""

    def __init__(
        self,
        entry: ModelGraph,
        rank: RankResult,
        sensitivities: Mapping[str, Sensitivity],
        start: Masks | None,
        part: tuple[Target, ...],
        expert_widths: Collection[int],
        only: Callable[[Units], bool] | None,
    ) -> None:
        layers = [place.layer for place in entry.prunable]
        self._start = Masks.full({layer.name: layer.size for layer in layers}) if start is None else start
        self._importance = entry.importance(rank)
        places = {place.layer.name: place for place in entry.prunable}
        if "neurons" in part:  # removed experts have no neurons to remove
            layers = [layer for layer in layers if bool(self._start[layer.name].any())]
        self._units = [each for each in units_of_part(layers, part, expert_widths) if only is None or only(each)]
        self.records = [self._record(units, entry, places, sensitivities.get(units.name)) for units in self._units]

    def _record(
        self,
        units: Units,
        entry: ModelGraph,
        places: Mapping[str, LayerNodes],
        sensitivity: Sensitivity | None,
    ) -> LayerRecord:
        importance = units.importance(self._importance)
        if not units.are_neurons:
            return LayerRecord(units.name, importance, sensitivity=sensitivity, units=units)
        place = places[units.name]
        return LayerRecord(
            units.name,
            importance,
            in_activation=entry.statistics[place.position - 1].read_norm,
            out_activation=entry.statistics[place.position].norm[place.nodes],
            weight=lambda: edge_weights(entry.graph, place.position)[place.nodes],
            explicit=not place.layer.output_maps,
            sensitivity=sensitivity,
            units=units if units.multiple_of > 1 else None,
        )

    def masks(self, keep: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Translate the masks of records, by name, into masks of the graph's layers."""
        masks = {name: self._start[name] for name in self._importance}
        for units in self._units:
            for name, mask in units.masks(keep[units.name], self._importance).items():
                masks[name] &= mask
        return masks
