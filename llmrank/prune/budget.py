"""Budgets in words and numbers: whether an amount is possible, how much it is, and how much of it was reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from llmrank.errors import OptionError
from llmrank.models import FFN, FFNs
from llmrank.models.costs import UNITS, ModelCosts, Unit, neuron_cost, unit_name
from llmrank.prune.amounts import protected_names
from llmrank.prune.base_pruner import BasePruner
from llmrank.prune.global_pruner import GlobalPruner
from llmrank.prune.layer_record import LayerRecord, record_of_size
from llmrank.prune.local_pruner import LocalPruner
from llmrank.prune.masks import Masks
from llmrank.prune.sensitivity_pruner import SensitivityPruner

__all__ = ["Reached", "check_budget", "describe_amount", "reached_amounts", "shortfall"]

Reached: TypeAlias = dict[Unit, dict[str, float]]
# The share that was removed may differ from the requested one by this much without a note.
NOTABLE = 0.02
# The same for an amount of a cost that was not reached: a model that has to become smaller must do so.
NOTABLE_MISS = 0.001


def check_budget(pruner: BasePruner, ffns: FFNs, costs: ModelCosts, *, jointly: bool) -> None:
    """Raise if an amount is impossible for these FFNs, whatever the scores.

    Parameters
    ----------
    pruner : BasePruner
    ffns : FFNs
    costs : ModelCosts
        Costs of their model.
    jointly : bool
        Whether one budget covers all FFNs.

    Raises
    ------
    OptionError
        See :meth:`llmrank.prune.BasePruner.check`; or every layer is protected.
    """
    groups = [_records(ffn) for ffn in ffns]
    together = [record for group in groups for record in group]
    if len(protected_names(pruner.protect, [record.name for record in together])) == len(together):
        raise OptionError("every prunable layer is protected, so nothing can be removed; protect fewer")
    if jointly:
        groups = [together]
    for part, group in zip(pruner.for_groups(groups), groups, strict=True):
        part.check(group, costs)


def _records(ffn: FFN) -> list[LayerRecord]:
    """Return records with what is known of an FFN's layers before it is ranked: their sizes."""
    return [record_of_size(layer.name, layer.size, explicit=not layer.output_maps) for layer in ffn.prunable.values()]


def describe_amount(pruner: BasePruner, ffns: FFNs, costs: ModelCosts) -> str:
    """Describe an amount in neurons, as a share and in parameters, before anything is measured.

    Parameters
    ----------
    pruner : BasePruner
        One budget covers all layers, and :func:`check_budget` has accepted it.
    ffns : FFNs
    costs : ModelCosts
        Costs of their model.

    Returns
    -------
    str
        The number of neurons of each layer if it follows from the sizes, otherwise that of all layers together. It says "about"
        where neurons of different layers differ in cost, so that the scores decide. For a :class:`LocalPruner` widths are rounded
        already, for other pruners not yet.

    Examples
    --------
    >>> from torch import nn
    >>> from llmrank.models import find_ffns
    >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> describe_amount(LocalPruner(0.25), find_ffns(mlp), ModelCosts(mlp, find_ffns(mlp)))
    '2 of 8 hidden neurons in 1 layer (25.0 %), 16 of 67 parameters'
    """
    records = [record for ffn in ffns for record in _records(ffn)]
    if not isinstance(pruner, (LocalPruner, GlobalPruner, SensitivityPruner)):
        return f"{type(pruner).__name__} decides how many neurons that is"
    local = isinstance(pruner, LocalPruner)
    # Where scores decide how much each layer loses, only the total is known.
    widths = (pruner if local else pruner.with_amount(pruner.amount)).prune(records, costs).widths
    unprotected = [record for record in records if not record.protected]
    n_removed = {record.name: record.out_features - widths[record.name] for record in records}
    removed, total = sum(n_removed.values()), sum(record.out_features for record in records)
    share = f"{100 * removed / total:.1f} %"
    layers = f"{len(unprotected)} layer{'s' if len(unprotected) > 1 else ''}"
    n_protected = len(records) - len(unprotected)
    plural, verb = ("s", "keep") if n_protected > 1 else ("", "keeps")
    protected = f"; {n_protected} protected layer{plural} {verb} all" if n_protected else ""
    counts = {(n_removed[record.name], record.out_features) for record in unprotected}
    if local and len(counts) == 1 and len(unprotected) > 1:
        each, size = counts.pop()
        neurons = f"{each:,} of {size:,} hidden neurons in each of {layers} ({removed:,} in total, {share}{protected})"
    else:
        together = "" if local or len(records) == 1 else " together"
        neurons = f"{removed:,} of {total:,} hidden neurons in {layers}{together} ({share}{protected})"
    parts = [neurons]
    about = ""
    parameters = costs.removed(widths, "parameters")
    names = {record.name for record in unprotected}
    pruned = [layer for name, layer in ffns.layers.items() if name in names]
    if not local and len({neuron_cost(layer) for layer in pruned}) > 1:
        about = "about "
        prunable_parameters = sum(layer.size * neuron_cost(layer).parameters for layer in pruned)
        parameters = round(removed * prunable_parameters / sum(layer.size for layer in pruned))
    if pruner.amount_of != "neurons":
        whole = costs.total(pruner.amount_of)
        reached = costs.removed(widths, pruner.amount_of)
        parts[:0] = [f"{reached:,} of {whole:,} {unit_name(pruner.amount_of)} ({100 * reached / whole:.1f} %)"]
        parts[1] = f"with {about}{parts[1]}"
    if pruner.amount_of != "parameters":
        parts.append(f"{about}{_short(parameters)} of {_short(costs.model.parameters)} parameters")
    rounded = (
        "" if local or pruner.multiple_of == 1 else f", before widths are rounded to multiples of {pruner.multiple_of}"
    )
    return ", ".join(parts) + rounded


def _short(number: int) -> str:
    """Format a number in millions or billions.

    >>> _short(134_515_008), _short(1_555_200), _short(16)
    ('134.5 M', '1.6 M', '16')
    """
    for power, letter in ((9, "B"), (6, "M")):
        if number >= 10**power:
            return f"{number / 10**power:,.1f} {letter}"
    return f"{number:,}"


def reached_amounts(masks: Masks, costs: ModelCosts) -> Reached:
    """Return, for each unit, its total in the dense model ("before") and how much is removed ("removed", "share").

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
        before, removed = costs.total(unit), costs.removed(masks.widths, unit)
        reached[unit] = {"before": before, "removed": removed, "share": removed / before if before else 0.0}
    return reached


def shortfall(pruner: BasePruner, reached: Mapping[Unit, Mapping[str, float]]) -> list[str]:
    """Return notes for a report where the removed share differs from the requested one, because of rounding or protection."""
    amount, unit = pruner.amount, pruner.amount_of
    share = reached[unit]["share"]
    if unit == "neurons":
        # An integer may count the neurons of each layer, so it is not compared.
        if not isinstance(amount, float) or abs(share - amount) <= NOTABLE:
            return []
        return [
            f"{share:.1%} was removed where {amount:.1%} was asked for: widths are rounded, or layers are protected"
        ]
    asked = amount if isinstance(amount, float) else amount / reached[unit]["before"]
    if asked - NOTABLE_MISS <= share <= asked + NOTABLE:
        return []
    rounded = f"widths are rounded to multiples of {pruner.multiple_of}"
    reason = "one neuron more or less makes that difference" if pruner.multiple_of == 1 else rounded
    return [f"{share:.2%} of the {unit_name(unit)} was removed where {asked:.2%} was asked for: {reason}"]
