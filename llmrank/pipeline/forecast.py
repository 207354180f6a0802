"""What a budget would remove where, and what that is expected to cost, before anything is cut."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from llmrank.errors import OptionError
from llmrank.pipeline.closeness.loss_curves import LossCurves
from llmrank.pipeline.stages import PreparedModel
from llmrank.prune.base_pruner import BasePruner
from llmrank.prune.records.layer_record import record_of_size
from llmrank.prune.records.units import Target, Units, units_in_order

__all__ = ["Forecast", "forecast", "forecasts"]

# Shares that a plan looks at besides the one that is asked for.
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7)


@dataclass(frozen=True)
class Forecast:
    """What a pruner would remove, and what it is expected to cost.

    Attributes
    ----------
    amount : float or int
        What was asked for.
    share : float
        Share of the model that would be removed, in the unit of the amount.
    loss : float
        Expected loss as cut, see :meth:`llmrank.pipeline.closeness.loss_curves.LossCurves.expected`.
    kept : mapping from str to int
        Number of units that each layer would keep, by its name.
    """

    amount: float | int
    share: float
    loss: float
    kept: Mapping[str, int]


def forecast(
    prepared: PreparedModel, pruner: BasePruner, targets: tuple[Target, ...], curves: LossCurves
) -> tuple[Forecast, list[Units]]:
    """Share out the amount of a pruner by loss curves; return what would be removed, and the units in the order of the model.

    Raises
    ------
    OptionError
        There is no curve of a layer; or see :meth:`llmrank.prune.BasePruner.prune`.
    """
    parts = pruner.parts(targets)
    units = units_in_order(prepared.ffns.layers.values(), parts)
    names = [each.name for each in units]
    missing = [name for name in names if name not in curves]
    if missing:
        raise OptionError(f"there are no losses of {missing[0]}; rank the model again with llmrank rank --losses")
    groups = [
        [record_of_size(each.name, each.n_units, each) for each in units if each.target in part] for part in parts
    ]
    kept: dict[str, int] = {}
    for each_pruner, records in zip(pruner.for_groups(groups, names), groups, strict=True):
        for record in records:
            record.sensitivity = curves[record.name]
        kept |= each_pruner.prune(records, prepared.costs).widths
    widths = {name: width for each in units for name, width in each.widths(kept[each.name]).items()}
    total = prepared.costs.total(pruner.amount_of)
    share = prepared.costs.removed_cost(widths, pruner.amount_of) / total if total else 0.0
    loss = curves.expected({each.name: each.n_units - kept[each.name] for each in units})
    return Forecast(pruner.amount, share, loss, kept), units


def forecasts(
    prepared: PreparedModel, pruner: BasePruner, targets: tuple[Target, ...], curves: LossCurves
) -> list[Forecast]:
    """Return the forecasts of several shares, in ascending order, as far as they are possible."""
    found = []
    for share in SHARES:
        other = copy.copy(pruner)
        other.amount = share
        with suppress(OptionError):  # it is more than can be removed
            found.append(forecast(prepared, other, targets, curves)[0])
    return found
