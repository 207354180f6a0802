"""How many units each budget removes from each layer, for every amount and multiple.

Users choose an amount and a multiple on the HTML page of ``llmrank inspect``. A unit is a neuron; in a mixture of experts it is
one neuron of every expert, or a whole expert. The units of a layer, or of a mixture, are one set of units
(:class:`llmrank.prune.records.units.Units`). The widths of pruned layers are rounded to multiples of the chosen multiple, such
as 64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from llmrank.inspection.budgets import reason_to_refuse
from llmrank.inspection.inspect_model import Inspection, ScorerResult
from llmrank.prune import BasePruner, LayerRecord, LocalPruner, global_count, local_count, record_of_size, round_width
from llmrank.prune.amounts import Multiple
from llmrank.prune.records.units import NeuronUnits, Units, units_of

__all__ = ["SLIDER_END", "Choices", "Order", "global_removals", "local_removals", "offered_choices", "removal_order"]

# The largest amount on the page's slider, in per cent.
SLIDER_END = 90
# The multiples that the page offers, besides the multiple of the inspection.
MULTIPLES: tuple[Multiple, ...] = ("auto", 1, 8, 64, 128)

IntArray: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Choices:
    """The amounts and multiples that the page offers for a model.

    Attributes
    ----------
    unit_sets : tuple of Units
        A set of units for each prunable layer, or for each mixture of experts. If neurons and experts are removed together, a set
        for each layer of the inspection, whose units are the neurons of the layer.
    min_keep : int
        Smallest number of units that a layer keeps.
    amounts : tuple of float or int
        The shares 0.00, 0.01, ... up to the end of the slider. The amount of the inspection follows if it is not one of these
        shares. If neurons and experts are removed together, only the amount of the inspection.
    multiples : tuple of int or "auto"
    amount_index, multiple_index : int
        Indices of the inspection's own amount and multiple.
    refusals : mapping from str to tuple of str
        By budget (``local``, ``global``): for each amount, why the budget refuses it, or an empty string.
    """

    unit_sets: tuple[Units, ...]
    min_keep: int
    amounts: tuple[float | int, ...]
    amount_index: int
    multiples: tuple[Multiple, ...]
    multiple_index: int
    refusals: Mapping[str, tuple[str, ...]]

    @property
    def has_one_amount(self) -> bool:
        """Whether the page offers only one amount, because neurons and experts are removed together."""
        return len(self.amounts) == 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of units in each set."""
        return tuple(each.n_units for each in self.unit_sets)

    @property
    def n_neurons(self) -> int:
        """Number of neurons in all units of all sets."""
        return sum(each.n_units * each.n_neurons for each in self.unit_sets)

    def counted_at_once(self, amount: float | int) -> int:
        """Return by what a global amount is multiplied to count neurons, as ``BasePruner.amount_in_neurons`` does it."""
        sizes = {each.n_neurons for each in self.unit_sets}
        return sizes.pop() if isinstance(amount, int) and len(sizes) == 1 else 1


@dataclass(frozen=True, eq=False)
class Order:
    """The order in which pruning by one scorer removes units.

    Attributes
    ----------
    positions : mapping from str to tuple of (n,) arrays
        By budget, an array for each layer of the inspection: for each neuron, how many units of the same set are removed before
        the neuron's own unit. For a neuron that belongs to no unit, and so is never removed, it is 0. If neurons and experts
        are removed together, it is 0 if the budget removes the neuron, else 1.
    removed_before : tuple of (units,) arrays
        An array for each of :attr:`Choices.unit_sets`: how many neurons of all layers global pruning removes before each unit.
        If neurons and experts are removed together, 0 for a unit that it removes, else 1.
    """

    positions: Mapping[str, tuple[IntArray, ...]]
    removed_before: tuple[IntArray, ...]


def offered_choices(inspection: Inspection) -> Choices:
    """Return the amounts and multiples that the page offers for an inspection."""
    local, global_ = inspection.budgets.local, inspection.budgets.global_
    if len(inspection.targets) > 1:
        # How much of an amount falls to neurons, and how much to experts, depends on the amount. So there is no single order in
        # which they are removed.
        dense = [NeuronUnits(name, tuple(each.layers), each.size) for name, each in inspection.layers.items()]
        refusals = {budget: (inspection.budgets.refusals.get(budget, ""),) for budget in ("local", "global")}
        return Choices(tuple(dense), local.min_keep, (inspection.amount,), 0, (local.multiple_of,), 0, refusals)
    unit_sets = tuple(
        units_of([part for each in inspection.layers.values() for part in each.layers], inspection.targets[0])
    )
    amounts: list[float | int] = [percent / 100 for percent in range(SLIDER_END + 1)]
    # A number of neurons is always added, even 0 neurons, which Python would find in the list as the share 0.0.
    if isinstance(inspection.amount, int) or inspection.amount not in amounts:
        amount_index = len(amounts)
        amounts.append(inspection.amount)
    else:
        amount_index = amounts.index(inspection.amount)
    multiples = sorted({*MULTIPLES, local.multiple_of}, key=lambda multiple: 0 if multiple == "auto" else multiple)
    return Choices(
        unit_sets=unit_sets,
        min_keep=local.min_keep,
        amounts=tuple(amounts),
        amount_index=amount_index,
        multiples=tuple(multiples),
        multiple_index=multiples.index(local.multiple_of),
        refusals={"local": _refusals(local, amounts, unit_sets), "global": _refusals(global_, amounts, unit_sets)},
    )


def removal_order(inspection: Inspection, choices: Choices, result: ScorerResult) -> Order:
    """Return the order in which pruning by a scorer removes the units."""
    scores = {
        part.layer.name: torch.from_numpy(result.importance[name][part.nodes])
        for name, layer in inspection.layers.items()
        for part in layer.parts
    }
    if choices.has_one_amount:
        ones = {name: np.ones(layer.size, dtype=bool) for name, layer in inspection.layers.items()}
        by_budget = {budget: result.keep.get(budget, ones) for budget in ("local", "global")}
        fixed = {budget: tuple(mask.astype(np.int64) for mask in keep.values()) for budget, keep in by_budget.items()}
        return Order(fixed, fixed["global"])
    # The local and the global pruner read neither weights nor activations, so scores are enough, and graphs are not needed.
    records = [
        LayerRecord(each.name, each.importance(scores), explicit=not each.layers[0].output_maps, units=each)
        for each in choices.unit_sets
    ]
    positions_in_layer = inspection.budgets.local.removal_positions(records)
    positions_in_model = inspection.budgets.global_.removal_positions(records)
    unit_sizes = torch.cat([torch.full((each.n_units,), each.n_neurons) for each in choices.unit_sets])
    # The numbers of neurons in the units, and how many neurons are removed before each, both in the order of removal.
    sizes_in_order = unit_sizes[torch.argsort(torch.cat(positions_in_model))]
    removed_before = sizes_in_order.cumsum(0) - sizes_in_order
    by_part = {name: torch.zeros(len(values), dtype=torch.int64) for name, values in scores.items()}
    for each, positions in zip(choices.unit_sets, positions_in_layer, strict=True):
        by_part.update({name: positions[unit] for name, unit in each.assign(scores).items()})
    joined = tuple(layer.join(by_part) for layer in inspection.layers.values())
    return Order(
        {"local": joined, "global": joined},
        tuple(removed_before[positions].numpy() for positions in positions_in_model),
    )


def local_removals(choices: Choices) -> IntArray:
    """Return how many units of each set local pruning removes.

    Returns
    -------
    (multiples, amounts, sets of units) int64 array
        Zero where the pruner refuses the amount.
    """
    if choices.has_one_amount:
        return _removals_at_one_amount(choices, "local")
    counts = [[local_count(amount, size) for size in choices.sizes] for amount in choices.amounts]
    return _rounded(choices, np.array(counts), choices.refusals["local"])


def global_removals(choices: Choices, removed_before: Sequence[IntArray]) -> IntArray:
    """Return how many units of each set global pruning removes.

    Parameters
    ----------
    choices : Choices
    removed_before : sequence of (units,) arrays
        See :class:`Order`.

    Returns
    -------
    (multiples, amounts, sets of units) int64 array
        Zero where the pruner refuses the amount.
    """
    if choices.has_one_amount:
        return _removals_at_one_amount(choices, "global")
    limits = [global_count(amount, choices.n_neurons) * choices.counted_at_once(amount) for amount in choices.amounts]
    counts = np.stack([np.searchsorted(np.sort(before), limits) for before in removed_before], axis=1)
    return _rounded(choices, counts, choices.refusals["global"])


def _removals_at_one_amount(choices: Choices, budget: str) -> IntArray:
    """Return 1 for each set of units, or 0 if the budget refuses. With 1, the neurons at position 0 of :class:`Order` go."""
    return np.full((1, 1, len(choices.unit_sets)), 0 if choices.refusals[budget][0] else 1, dtype=np.int64)


def _rounded(choices: Choices, counts: IntArray, refusals: Sequence[str]) -> IntArray:
    """Round the numbers of removed units, (amounts, sets of units), so that the kept widths are multiples of every multiple.

    Returns
    -------
    (multiples, amounts, sets of units) int64 array
        Zero where the pruner refuses the amount.
    """
    removals = np.zeros((len(choices.multiples), *counts.shape), dtype=np.int64)
    records = [record_of_size(each.name, each.n_units, each) for each in choices.unit_sets]
    for amount_index, reason in enumerate(refusals):
        if reason:
            continue
        for multiple_index, multiple in enumerate(choices.multiples):
            pruner = LocalPruner(choices.amounts[amount_index], choices.min_keep, multiple)
            removals[multiple_index, amount_index] = [
                n - round_width(n - int(count), n, pruner.multiple_for(record), pruner.fewest(record))
                for n, record, count in zip(choices.sizes, records, counts[amount_index], strict=True)
            ]
    return removals


def _refusals(pruner: BasePruner, amounts: Sequence[float | int], unit_sets: Sequence[Units]) -> tuple[str, ...]:
    """Return for each amount why a pruner refuses it, or an empty string."""
    records = [record_of_size(each.name, each.n_units, each) for each in unit_sets]
    reasons = [""] * len(amounts)
    if len(amounts) > SLIDER_END + 1:
        reasons[-1] = reason_to_refuse(type(pruner)(amounts[-1], pruner.min_keep), [records])
    for percent in range(SLIDER_END, -1, -1):
        reasons[percent] = reason_to_refuse(type(pruner)(amounts[percent], pruner.min_keep), [records])
        # A check costs as much as pruning, and a pruner that accepts a share accepts all smaller ones too.
        if not reasons[percent]:
            break
    return tuple(reasons)
