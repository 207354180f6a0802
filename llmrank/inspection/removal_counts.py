"""How many neurons each budget removes from each layer, for every amount and multiple that the page of an inspection offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llmrank.inspection.budgets import reason_to_refuse
from llmrank.inspection.inspection import Inspection
from llmrank.prune import BasePruner, global_count, local_count, record_of_size, round_width

__all__ = ["SLIDER_END", "Choices", "global_removals", "local_removals", "offered_choices"]

# The largest amount on the page's slider, in per cent.
SLIDER_END = 90
# The multiples that the page offers, besides the multiple of the inspection.
MULTIPLES = (1, 8, 64, 128)

IntArray: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Choices:
    """The amounts and multiples that the page offers for a model.

    Attributes
    ----------
    sizes : tuple of int
        Numbers of neurons of the prunable layers.
    min_keep : int
        Smallest number of neurons that a layer keeps.
    amounts : tuple of float or int
        The shares 0.00, 0.01, ... up to the end of the slider; then the amount of the inspection, if it is none of them.
    multiples : tuple of int
        Numbers to whose multiples kept widths can be rounded.
    amount_index, multiple_index : int
        Indices of the inspection's own amount and multiple.
    refusals : mapping from str to tuple of str
        By budget (``local``, ``global``): for each amount, why the budget refuses it, or an empty string.
    """

    sizes: tuple[int, ...]
    min_keep: int
    amounts: tuple[float | int, ...]
    amount_index: int
    multiples: tuple[int, ...]
    multiple_index: int
    refusals: Mapping[str, tuple[str, ...]]


def offered_choices(inspection: Inspection, sizes: Mapping[str, int]) -> Choices:
    """Return what the page offers for an inspection; `sizes` are those of its prunable layers, by name."""
    local, global_ = inspection.budgets.local, inspection.budgets.global_
    amounts: list[float | int] = [percent / 100 for percent in range(SLIDER_END + 1)]
    # A number of neurons is always added, even 0 neurons, which Python takes as equal to the share 0.0.
    if isinstance(inspection.amount, int) or inspection.amount not in amounts:
        amount_index = len(amounts)
        amounts.append(inspection.amount)
    else:
        amount_index = amounts.index(inspection.amount)
    multiples = sorted({*MULTIPLES, local.multiple_of})
    return Choices(
        sizes=tuple(sizes.values()),
        min_keep=local.min_keep,
        amounts=tuple(amounts),
        amount_index=amount_index,
        multiples=tuple(multiples),
        multiple_index=multiples.index(local.multiple_of),
        refusals={"local": _refusals(local, amounts, sizes), "global": _refusals(global_, amounts, sizes)},
    )


def local_removals(choices: Choices) -> IntArray:
    """Return how many neurons local pruning removes from each layer.

    Returns
    -------
    (multiples, amounts, layers) int64 array
        Zero where the pruner refuses the amount.
    """
    counts = [[local_count(amount, size) for size in choices.sizes] for amount in choices.amounts]
    return _rounded(choices, np.array(counts), choices.refusals["local"])


def global_removals(choices: Choices, positions: Sequence[IntArray]) -> IntArray:
    """Return how many neurons global pruning removes from each layer.

    Parameters
    ----------
    choices : Choices
    positions : sequence of (n,) arrays
        :meth:`llmrank.prune.GlobalPruner.removal_positions` of all layers.

    Returns
    -------
    (multiples, amounts, layers) int64 array
        Zero where the pruner refuses the amount.
    """
    limits = [global_count(amount, sum(choices.sizes)) for amount in choices.amounts]
    counts = np.stack([np.searchsorted(np.sort(layer), limits) for layer in positions], axis=1)
    return _rounded(choices, counts, choices.refusals["global"])


def _rounded(choices: Choices, counts: IntArray, refusals: Sequence[str]) -> IntArray:
    """Return (multiples, amounts, layers) numbers of removed neurons, from (amounts, layers) numbers without rounding."""
    removals = np.zeros((len(choices.multiples), *counts.shape), dtype=np.int64)
    for row, reason in enumerate(refusals):
        if reason:
            continue
        for k, multiple in enumerate(choices.multiples):
            removals[k, row] = [
                size - round_width(size - int(count), size, multiple, choices.min_keep)
                for size, count in zip(choices.sizes, counts[row], strict=True)
            ]
    return removals


def _refusals(pruner: BasePruner, amounts: Sequence[float | int], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Return for each amount why a pruner refuses it, or an empty string."""
    records = [record_of_size(name, size) for name, size in sizes.items()]
    reasons = [""] * len(amounts)
    if len(amounts) > SLIDER_END + 1:
        reasons[-1] = reason_to_refuse(type(pruner)(amounts[-1], pruner.min_keep), [records])
    for percent in range(SLIDER_END, -1, -1):
        reasons[percent] = reason_to_refuse(type(pruner)(amounts[percent], pruner.min_keep), [records])
        # A check costs as much as pruning, and a pruner that accepts a share accepts all smaller ones too.
        if not reasons[percent]:
            break
    return tuple(reasons)
