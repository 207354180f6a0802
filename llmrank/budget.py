"""Whether an amount can be, before anything is measured; and what was reached of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from llmrank.adapters import FFN
from llmrank.costs import UNITS, ModelCosts, Unit, unit_name
from llmrank.errors import OptionError
from llmrank.masks import Masks
from llmrank.prune import BasePruner, bare_record, protected_names

__all__ = ["Reached", "check_budget", "reached_by", "shortfall"]

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
    groups = [
        [bare_record(layer.name, layer.size, explicit=not layer.consumers) for layer in ffn.prunable.values()]
        for ffn in ffns
    ]
    together = [record for group in groups for record in group]
    if len(protected_names(pruner.protect, [record.name for record in together])) == len(together):
        raise OptionError("every prunable layer is protected, so that nothing can go; protect fewer")
    if jointly:
        groups = [together]
    for part, group in zip(pruner.apart(groups), groups, strict=True):
        part.check(group, costs)


def reached_by(masks: Masks, costs: ModelCosts) -> Reached:
    """What there was of each unit ("before") and what goes with the removed neurons ("removed", "share").

    Examples
    --------
    >>> from torch import nn
    >>> from llmrank.adapters import find_ffns
    >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> reached_by(Masks({"0": [1] * 6 + [0] * 2}), ModelCosts(mlp, find_ffns(mlp)))["flops"]
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
    why = f"widths are rounded to multiples of {pruner.multiple_of}"
    return [f"{share:.2%} of the {unit_name(unit)} went where {asked:.2%} was asked for: {why}"]
