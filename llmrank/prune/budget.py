"""Check whether an amount is possible, describe it, and compare it with the amount that was removed."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TypeAlias

from llmrank.errors import OptionError
from llmrank.models import FFNs, PrunableLayer
from llmrank.models.costs import UNITS, ModelCosts, Unit, layer_cost, unit_name
from llmrank.prune.amounts import protected_names
from llmrank.prune.base_pruner import BasePruner
from llmrank.prune.global_pruner import GlobalPruner
from llmrank.prune.least_loss_pruner import LeastLossPruner
from llmrank.prune.local_pruner import LocalPruner
from llmrank.prune.masks import Masks
from llmrank.prune.records.layer_record import LayerRecord, record_of_size
from llmrank.prune.records.units import Target, names_in_order, units_of_part
from llmrank.prune.sensitivity_pruner import SensitivityPruner

__all__ = ["Reached", "budget_notes", "check_budget", "describe_amount", "reached_amounts"]

Reached: TypeAlias = dict[Unit, dict[str, float]]
# Largest difference between the removed and the requested share that needs no note.
MAX_DIFFERENCE = 0.02
# Largest shortfall of a cost that needs no note: beyond it the model may exceed the memory or time that it should fit.
MAX_COST_SHORTFALL = 0.001


def check_budget(
    pruner: BasePruner, ffns: FFNs, costs: ModelCosts, *, jointly: bool, targets: Sequence[Target] = ("neurons",)
) -> None:
    """Raise if the options of a pruner are impossible for these FFNs, whatever the scores.

    If `jointly`, one budget covers all FFNs; otherwise each FFN has its own.

    Raises
    ------
    OptionError
        See :meth:`llmrank.prune.BasePruner.check`; or all layers are protected.
    """
    groups, names = _records(pruner, ffns, targets), names_in_order(ffns.layers.values(), pruner.parts(targets))
    together = [record for group in groups for record in group]
    if len(protected_names(pruner.protect, [record.name for record in together])) == len(together):
        raise OptionError("every prunable layer is protected, so nothing can be removed; protect fewer")
    if not jointly:
        groups = [[record_of_size(layer.name, layer.size) for layer in ffn.prunable.values()] for ffn in ffns]
        names = [record.name for group in groups for record in group]
    for group_pruner, group in zip(pruner.for_groups(groups, names), groups, strict=True):
        group_pruner.check(group, costs)


def _records(pruner: BasePruner, ffns: FFNs, targets: Sequence[Target]) -> list[list[LayerRecord]]:
    """Return the records of the targets that share an amount, for each such part of the targets."""
    found = []
    for part in pruner.parts(targets):
        # Of neurons and experts the amount is checked for neurons alone, because removing no expert is one of the choices.
        units = units_of_part(ffns.layers.values(), part)
        found.append([record_of_size(each.name, each.n_units, each) for each in units])
    return found


def describe_amount(pruner: BasePruner, ffns: FFNs, costs: ModelCosts, targets: Sequence[Target] = ("neurons",)) -> str:
    """Describe an amount in neurons, as a share and in parameters, before anything is measured.

    Parameters
    ----------
    pruner : BasePruner
        A pruner of all layers in one call, which :func:`check_budget` has accepted.
    ffns : FFNs
    costs : ModelCosts
    targets : sequence of {"neurons", "experts", "heads", "blocks"}
        What is removed.

    Returns
    -------
    str
        The number of neurons that each layer loses, if it is the same for all layers and does not depend on the scores; otherwise
        the number that all layers lose together. "About" marks numbers that depend on the scores. If the scores decide how much a
        layer loses, the numbers are those before widths are rounded. For a pruner of another package, the text says only that
        the pruner decides.

    Examples
    --------
    >>> from torch import nn
    >>> from llmrank.models import find_ffns
    >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> describe_amount(LocalPruner(0.25), find_ffns(mlp), ModelCosts(mlp, find_ffns(mlp)))
    '2 of 8 hidden neurons in 1 layer (25.0 %), 16 of 67 parameters'
    """
    groups, names = _records(pruner, ffns, targets), names_in_order(ffns.layers.values(), pruner.parts(targets))
    if isinstance(pruner, LeastLossPruner):
        return " and ".join(_describe_least_loss(pruner, group, costs) for group in groups)
    if not isinstance(pruner, (LocalPruner, GlobalPruner, SensitivityPruner)):
        return f"{type(pruner).__name__} decides how many neurons that is"
    local, unit = isinstance(pruner, LocalPruner), pruner.amount_of
    if {"neurons", "experts"} <= set(targets):
        pruner = pruner.with_exact_share()
    # Where scores decide how much each layer loses, only the total is known, and only before widths are rounded.
    described = copy.copy(pruner)
    described.multiple_of = pruner.multiple_of if local else 1
    records = [record for group in groups for record in group]
    kept = {
        name: width
        for each, group in zip(described.for_groups(groups, names), groups, strict=True)
        for name, width in each.prune(group, costs).widths.items()
    }
    widths = {name: width for record in records for name, width in record.widths(kept[record.name]).items()}
    counted = " and ".join(_describe_units(kind, kept, ffns, local) for group in groups for kind in _by_kind(group))
    about, parameters = "", costs.removed_cost(widths, "parameters")
    layers = ffns.layers
    prunable = [layer for record in records if not record.protected for layer in _layers(record, layers)]
    if not local and len({Fraction(layer_cost(layer).parameters, layer.size) for layer in prunable}) > 1:
        about = "about "
        removed = sum(layers[name].size - width for name, width in widths.items())
        prunable_parameters = sum(layer_cost(layer).parameters for layer in prunable)
        parameters = round(removed * prunable_parameters / sum(layer.size for layer in prunable))
    parts = [counted]
    if unit != "neurons":
        saved, cost = costs.removed_cost(widths, unit), costs.total(unit)
        parts = [f"{saved:,} of {cost:,} {unit_name(unit)} ({100 * saved / cost:.1f} %)", f"with {about}{counted}"]
    if unit != "parameters":
        parts.append(f"{about}{_short(parameters)} of {_short(costs.model.parameters)} parameters")
    multiples = _multiples(pruner.with_neuron_share(records, costs), records)
    if multiples:
        parts.append(f"{'with widths' if local else 'before widths are'} rounded to multiples of {multiples}")
    return ", ".join(parts)


def _describe_least_loss(pruner: LeastLossPruner, records: Sequence[LayerRecord], costs: ModelCosts) -> str:
    needed, total = pruner.amount_needed(records, costs)
    units = records[0].units
    counted = "neurons" if units is None else units.counted
    what = counted if pruner.amount_of == "neurons" else unit_name(pruner.amount_of)
    return (
        f"at least {needed:,} of {total:,} {what} ({100 * needed / total:.1f} %), where that is expected to cost least"
    )


def _multiples(pruner: BasePruner, records: Sequence[LayerRecord]) -> str:
    """Return the multiples to which the pruner rounds the widths of layers, in words; empty if it rounds none."""
    if pruner.multiple_of != "auto":
        return str(pruner.multiple_of) if pruner.multiple_of > 1 else ""
    unprotected = ((record, pruner.multiple_for(record)) for record in records if not record.protected)
    found = {multiple for record, multiple in unprotected if multiple > record.multiple_of}
    return f"{' or '.join(map(str, sorted(found, reverse=True)))} (multiple_of=1 rounds none)" if found else ""


def _layers(record: LayerRecord, layers: Mapping[str, PrunableLayer]) -> list[PrunableLayer]:
    return [layers[name] for name in record.widths(record.out_features)]


def _by_kind(records: Sequence[LayerRecord]) -> list[list[LayerRecord]]:
    """Divide records by what their units are made of."""
    kinds: dict[Target, list[LayerRecord]] = {}
    for record in records:
        kinds.setdefault("neurons" if record.units is None else record.units.target, []).append(record)
    return list(kinds.values())


def _describe_units(records: Sequence[LayerRecord], kept: Mapping[str, int], ffns: FFNs, local: bool) -> str:
    """Describe how many units of one kind are removed, if the records keep these numbers of them."""
    target = "neurons" if records[0].units is None else records[0].units.target
    if target == "experts":
        return _describe_experts(records, kept)
    if target == "heads":
        return _describe_heads(records, kept, ffns, local)
    if target == "blocks":
        removed = sum(not kept[record.name] for record in records)
        return f"{removed} of {len(records)} blocks ({100 * removed / len(records):.1f} %)"
    widths = {name: width for record in records for name, width in record.widths(kept[record.name]).items()}
    return _describe_neurons(records, widths, ffns, local)


def _describe_heads(records: Sequence[LayerRecord], kept: Mapping[str, int], ffns: FFNs, local: bool) -> str:
    """Describe how many heads are removed: of all attentions together, or of each."""
    layers = ffns.layers
    counts: list[tuple[int, int]] = []  # for each attention, the heads that it loses and has
    for record in records:
        heads = layers[record.name].heads
        assert heads is not None
        counts.append((heads.n_heads - heads.counts(record.widths(kept[record.name])[record.name])[0], heads.n_heads))
    removed, total = (sum(column) for column in zip(*counts, strict=True))
    share, attentions = f"{100 * removed / total:.1f} %", f"{len(records)} attention{'s' if len(records) > 1 else ''}"
    if local and len(set(counts)) == 1 and len(records) > 1:
        return f"{counts[0][0]} of {counts[0][1]} heads in each of {attentions} ({removed:,} in total, {share})"
    return f"{removed:,} of {total:,} heads in {attentions} ({share})"


def _describe_neurons(records: Sequence[LayerRecord], widths: Mapping[str, int], ffns: FFNs, local: bool) -> str:
    layers = ffns.layers
    sizes = {name: layers[name].size for name in widths}
    total = sum(sizes.values())
    removed = total - sum(widths.values())
    unprotected = [layer.name for record in records if not record.protected for layer in _layers(record, layers)]
    n_layers = f"{len(unprotected)} layer{'s' if len(unprotected) > 1 else ''}"
    n_protected = len(sizes) - len(unprotected)
    plural, verb = ("s", "keep") if n_protected > 1 else ("", "keeps")
    protected = f"; {n_protected} protected layer{plural} {verb} all" if n_protected else ""
    share = f"{100 * removed / total:.1f} %{protected}"
    by_layer = {(sizes[name] - widths[name], sizes[name]) for name in unprotected}
    if local and len(by_layer) == 1 and len(unprotected) > 1:
        each, size = by_layer.pop()
        return f"{each:,} of {size:,} hidden neurons in each of {n_layers} ({removed:,} in total, {share})"
    together = "" if local or len(sizes) == 1 else " together"
    return f"{removed:,} of {total:,} hidden neurons in {n_layers}{together} ({share})"


def _describe_experts(records: Sequence[LayerRecord], kept: Mapping[str, int]) -> str:
    # If a router divides its experts into groups, a unit takes an expert of each group.
    counts = [
        (record.out_features, kept[record.name], len(record.units.layers) // record.out_features if record.units else 1)
        for record in records
    ]
    total = sum(size * groups for size, _, groups in counts)
    removed = sum((size - left) * groups for size, left, groups in counts)
    mixtures = f"{len(records)} mixture{'s' if len(records) > 1 else ''}"
    return f"{removed:,} of {total:,} experts in {mixtures} ({100 * removed / total:.1f} %)"


def _short(number: int) -> str:
    """Format a number, from a million on in millions or billions.

    >>> _short(134_515_008), _short(1_555_200), _short(16)
    ('134.5 M', '1.6 M', '16')
    """
    for power, letter in ((9, "B"), (6, "M")):
        if number >= 10**power:
            return f"{number / 10**power:,.1f} {letter}"
    return f"{number:,}"


def reached_amounts(masks: Masks, costs: ModelCosts) -> Reached:
    """Return for each unit the total before pruning ("before"), and how much of it is removed ("removed", "share").

    Units of which the model has none, such as a cache if no heads are known, are left out.

    Examples
    --------
    >>> from torch import nn
    >>> from llmrank.models import find_ffns
    >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> reached_amounts(Masks({"0": [1] * 6 + [0] * 2}), ModelCosts(mlp, find_ffns(mlp)))["flops"]
    {'before': 112, 'removed': 28, 'share': 0.25}
    """
    reached: Reached = {}
    for unit in UNITS:
        before, removed = costs.total(unit), costs.removed_cost(masks.widths, unit)
        if before:
            reached[unit] = {"before": before, "removed": removed, "share": removed / before}
    return reached


def budget_notes(
    pruner: BasePruner,
    reached: Mapping[Unit, Mapping[str, float]],
    targets: Sequence[Target] = ("neurons",),
    share_of_units: float | None = None,
) -> list[str]:
    """Return a note with the reason if the removed share differs much from the requested one; else no note.

    `share_of_units` is the removed share of what is counted, by default of the neurons.
    """
    amount, unit = pruner.amount, pruner.amount_of
    share = reached[unit]["share"]
    whole = tuple(targets) in {("heads",), ("blocks",)}
    if whole and unit == "neurons" and share_of_units is not None:
        share = share_of_units
    if unit == "neurons":
        # An integer is not compared: it may be a number of neurons of each layer.
        if not isinstance(amount, float) or abs(share - amount) <= MAX_DIFFERENCE:
            return []
        hint = "" if pruner.multiple_of == 1 else " (multiple_of=1 rounds none)"
        rounded = f"{targets[0]} are removed whole" if whole else f"widths are rounded{hint}"
        reason = f"{rounded}, or layers are protected"
        return [f"{share:.1%} was removed where {amount:.1%} was asked for: {reason}"]
    asked = amount if isinstance(amount, float) else amount / reached[unit]["before"]
    if asked - MAX_COST_SHORTFALL <= share <= asked + MAX_DIFFERENCE:
        return []
    reason = "the next larger widths would save too little" if share > asked else "widths are rounded"
    reason = f"{targets[0]} are removed whole" if whole else reason
    return [f"{share:.2%} of the {unit_name(unit)} was removed where {asked:.2%} was asked for: {reason}"]
