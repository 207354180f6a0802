"""Whether an amount can be, and how much it is, before anything is measured; and what was reached of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from llmrank.errors import OptionError
from llmrank.models import FFN
from llmrank.models.costs import UNITS, ModelCosts, Unit, neuron_cost, unit_name
from llmrank.prune.amounts import protected_names
from llmrank.prune.base_pruner import BasePruner
from llmrank.prune.global_pruner import GlobalPruner
from llmrank.prune.layer_record import LayerRecord, bare_record
from llmrank.prune.local_pruner import LocalPruner
from llmrank.prune.masks import Masks
from llmrank.prune.sensitivity_pruner import SensitivityPruner

__all__ = ["Reached", "check_budget", "describe_amount", "reached_amounts", "shortfall"]

Reached: TypeAlias = dict[Unit, dict[str, float]]
# The share reached may miss the share asked for by this much without a word.
NOTABLE = 0.02
# A model that was to become smaller by some share had better be.
NOTABLE_MISS = 0.001


def check_budget(pruner: BasePruner, ffns: Sequence[FFN], costs: ModelCosts, *, jointly: bool) -> None:
    """Refuse an amount that the FFNs cannot give, whatever the scores.

    Parameters
    ----------
    pruner : BasePruner
    ffns : sequence of FFN
    costs : ModelCosts
        Of their model.
    jointly : bool
        Whether one budget covers all of them.

    Raises
    ------
    OptionError
        See :meth:`llmrank.prune.BasePruner.check`, or every layer is protected.
    """
    groups = [_records(ffn) for ffn in ffns]
    together = [record for group in groups for record in group]
    if len(protected_names(pruner.protect, [record.name for record in together])) == len(together):
        raise OptionError("every prunable layer is protected, so that nothing can go; protect fewer")
    if jointly:
        groups = [together]
    for part, group in zip(pruner.apart(groups), groups, strict=True):
        part.check(group, costs)


def _records(ffn: FFN) -> list[LayerRecord]:
    """What is known of an FFN's layers before it is ranked: sizes, and what neurons cost."""
    found = []
    for layer in ffn.prunable.values():
        record = bare_record(layer.name, layer.size, explicit=not layer.consumers)
        record.cost = neuron_cost(layer)
        found.append(record)
    return found


def describe_amount(pruner: BasePruner, ffns: Sequence[FFN], costs: ModelCosts) -> str:
    """Say what an amount comes to in neurons, as a share and in parameters, before anything is measured.

    Parameters
    ----------
    pruner : BasePruner
        One budget of it covers all layers. :func:`check_budget` has passed it.
    ffns : sequence of FFN
    costs : ModelCosts
        Of their model.

    Returns
    -------
    str
        Neurons of each layer where they follow from the sizes, else of all layers together. "About" where neurons of different
        layers differ in cost, so that the scores decide. Before widths are rounded, unless they are the same in every layer.

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
    # Where scores decide which layers give how much, only the total is known.
    widths = (pruner if local else pruner.towards(pruner.amount)).prune(records, costs).widths
    open_records = [record for record in records if not record.protected]
    gone = {record.name: record.out_features - widths[record.name] for record in records}
    removed, total = sum(gone.values()), sum(record.out_features for record in records)
    share = f"{100 * removed / total:.1f} %"
    layers = f"{len(open_records)} layer{'s' if len(open_records) > 1 else ''}"
    kept = len(records) - len(open_records)
    besides = f"; {kept} protected layer{'s' if kept > 1 else ''} keep{'' if kept > 1 else 's'} all" if kept else ""
    alike = {(gone[record.name], record.out_features) for record in open_records}
    if local and len(alike) == 1 and len(open_records) > 1:
        each, size = alike.pop()
        neurons = f"{each:,} of {size:,} hidden neurons in each of {layers} ({removed:,} in total, {share}{besides})"
    else:
        together = "" if local or len(records) == 1 else " together"
        neurons = f"{removed:,} of {total:,} hidden neurons in {layers}{together} ({share}{besides})"
    parts = [neurons]
    about = ""
    parameters = costs.removed(widths, "parameters")
    if not local and len({record.cost for record in open_records}) > 1:
        about = "about "
        spent = sum(record.out_features * record.cost.parameters for record in open_records if record.cost)
        parameters = round(removed * spent / sum(record.out_features for record in open_records))
    if pruner.of != "neurons":
        whole = costs.whole(pruner.of)
        reached = costs.removed(widths, pruner.of)
        parts[:0] = [f"{reached:,} of {whole:,} {unit_name(pruner.of)} ({100 * reached / whole:.1f} %)"]
        parts[1] = f"with {about}{parts[1]}"
    if pruner.of != "parameters":
        parts.append(f"{about}{_short(parameters)} of {_short(costs.model.parameters)} parameters")
    rounded = (
        "" if local or pruner.multiple_of == 1 else f", before widths are rounded to multiples of {pruner.multiple_of}"
    )
    return ", ".join(parts) + rounded


def _short(number: int) -> str:
    """A number as people say it.

    >>> _short(134_515_008), _short(1_555_200), _short(16)
    ('134.5 M', '1.6 M', '16')
    """
    for power, letter in ((9, "B"), (6, "M")):
        if number >= 10**power:
            return f"{number / 10**power:,.1f} {letter}"
    return f"{number:,}"


def reached_amounts(masks: Masks, costs: ModelCosts) -> Reached:
    """What there was of each unit ("before") and what goes with the removed neurons ("removed", "share").

    Examples
    --------
    >>> from torch import nn
    >>> from llmrank.models import find_ffns
    >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> reached_amounts(Masks({"0": [1] * 6 + [0] * 2}), ModelCosts(mlp, find_ffns(mlp)))["flops"]
    {'before': 112, 'removed': 28, 'share': 0.25}
    """
    found: Reached = {}
    for unit in UNITS:
        whole, removed = costs.whole(unit), costs.removed(masks.widths, unit)
        found[unit] = {"before": whole, "removed": removed, "share": removed / whole if whole else 0.0}
    return found


def shortfall(pruner: BasePruner, reached: Mapping[Unit, Mapping[str, float]]) -> list[str]:
    """Sentences where rounding or protection kept what was reached from what was asked for."""
    amount, unit = pruner.amount, pruner.of
    share = reached[unit]["share"]
    if unit == "neurons":
        # A number may be of each layer.
        if not isinstance(amount, float) or abs(share - amount) <= NOTABLE:
            return []
        return [f"{share:.1%} was removed where {amount:.1%} was asked for: widths are rounded or protected"]
    asked = amount if isinstance(amount, float) else amount / reached[unit]["before"]
    if asked - NOTABLE_MISS <= share <= asked + NOTABLE:
        return []
    rounded = f"widths are rounded to multiples of {pruner.multiple_of}"
    why = "one neuron more or less is that much" if pruner.multiple_of == 1 else rounded
    return [f"{share:.2%} of the {unit_name(unit)} went where {asked:.2%} was asked for: {why}"]
