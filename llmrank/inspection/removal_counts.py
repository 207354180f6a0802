"""How many neurons each budget removes from each layer, at every amount and multiple that the page offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llmrank.inspection.budgets import refusal
from llmrank.inspection.inspection import Inspection
from llmrank.prune import BasePruner, global_count, local_count, record_of_size, round_width

__all__ = ["SLIDER_END", "Choices", "global_removals", "local_removals", "offered_choices"]

# The largest amount on the page's slider, in per cent.
SLIDER_END = 90
# The page can round kept widths to these multiples, and to the multiple of the inspection.
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
        Number of neurons that every layer keeps.
    amounts : tuple of float or int
        Whole percentages up to the end of the slider, and last the amount of the inspection if it is not one of them.
    amount, multiple : int
        Indices of the inspection's own amount and multiple.
    multiples : tuple of int
        Kept widths are rounded to one of these.
    refusals : mapping from str to tuple of str
        For each budget (``local``, ``global``) and amount: why the pruner refuses it, or an empty string.
    """

    sizes: tuple[int, ...]
    min_keep: int
    amounts: tuple[float | int, ...]
    amount: int
    multiples: tuple[int, ...]
    multiple: int
    refusals: Mapping[str, tuple[str, ...]]


def offered_choices(inspection: Inspection, layers: Mapping[str, int]) -> Choices:
    """Return what the page offers for prunable layers of these sizes, by name."""
    local, global_ = inspection.budgets.local, inspection.budgets.global_
    amounts: list[float | int] = [percent / 100 for percent in range(SLIDER_END + 1)]
    # A number of neurons is an amount of its own: 0 neurons would equal 0 %.
    if isinstance(inspection.amount, int) or inspection.amount not in amounts:
        amounts.append(inspection.amount)
        own = len(amounts) - 1
    else:
        own = amounts.index(inspection.amount)
    multiples = sorted({*MULTIPLES, local.multiple_of})
    return Choices(
        sizes=tuple(layers.values()),
        min_keep=local.min_keep,
        amounts=tuple(amounts),
        amount=own,
        multiples=tuple(multiples),
        multiple=multiples.index(local.multiple_of),
        refusals={"local": _refusals(local, amounts, layers), "global": _refusals(global_, amounts, layers)},
    )


def local_removals(choices: Choices) -> IntArray:
    """Return how many neurons local pruning removes from each layer, the same for all scorers.

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
    """Round the kept widths that counts (amounts, layers) leave to every multiple, as pruners do."""
    removals = np.zeros((len(choices.multiples), *counts.shape), dtype=np.int64)
    for amount, reason in enumerate(refusals):
        if reason:
            continue
        removals[:, amount] = counts[amount]
        for k, multiple in enumerate(choices.multiples):
            # A pruner does not round to multiples of 1.
            if multiple > 1:
                removals[k, amount] = [
                    size - round_width(size - int(count), size, multiple, choices.min_keep)
                    for size, count in zip(choices.sizes, counts[amount], strict=True)
                ]
    return removals


def _refusals(pruner: BasePruner, amounts: Sequence[float | int], layers: Mapping[str, int]) -> tuple[str, ...]:
    """Return why a pruner refuses each of the amounts, or an empty string."""
    records = [record_of_size(name, size) for name, size in layers.items()]
    reasons = [""] * len(amounts)
    if len(amounts) > SLIDER_END + 1:
        reasons[-1] = refusal(type(pruner)(amounts[-1], pruner.min_keep), [records])
    for percent in range(SLIDER_END, -1, -1):
        reasons[percent] = refusal(type(pruner)(amounts[percent], pruner.min_keep), [records])
        # A pruner that accepts a share accepts all smaller ones too.
        if not reasons[percent]:
            break
    return tuple(reasons)
