"""An even budget that spares the layers a model can least do without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from statistics import median
from typing import ClassVar

from llmrank.errors import OptionError
from llmrank.models.costs import ModelCosts, Unit
from llmrank.prune.amounts import Protect
from llmrank.prune.base_pruner import BasePruner
from llmrank.prune.layer_record import LayerRecord, bare_record

__all__ = ["SensitivityPruner", "sensitivity_counts"]


class SensitivityPruner(BasePruner):
    """The same share of every layer, but for the few that the model can least do without.

    A layer whose sensitivity is above `limit` times the median of all is spared: the share it gives shrinks until its
    sensitivity times that share is what `limit` times the median gives. What the spared layers do not give comes evenly
    from the others, see :func:`sensitivity_counts`. Within a layer the lowest neurons go, as for :class:`LocalPruner`.

    Only outliers are spared, since sensitivities are measured one layer at a time and on little text: below the limit their
    differences say too little to shift a budget by.

    Parameters
    ----------
    amount : float or int
        Share (float, [0, 1)) of all neurons, or number (int) of neurons a layer on average, to remove.
    min_keep, multiple_of, protect, of
        As for :class:`BasePruner`; a layer down to `min_keep` leaves the rest to the others, and so does a protected one, which
        does not count for the median either.
    limit : float
        How many times the median a layer's sensitivity may be before it is spared; finite, > 0. Nobody is spared where it
        is large, nor where the median is 0.

    Raises
    ------
    OptionError
        A limit out of range, or as for :class:`BasePruner`.

    Examples
    --------
    Four times as sensitive as the median, twice as much as is let pass: half the share.

    >>> import torch
    >>> importance = torch.arange(8) / 28
    >>> layers = [LayerRecord(name, importance, sensitivity=s) for name, s in (("a", 0.4), ("b", 0.1), ("c", 0.1))]
    >>> SensitivityPruner(0.5, limit=2.0).prune(layers).widths
    {'a': 6, 'b': 3, 'c': 3}
    """

    needs_sensitivity: ClassVar[bool] = True

    def __init__(
        self,
        amount: float | int = 0.3,
        min_keep: int = 1,
        multiple_of: int = 1,
        limit: float = 2.0,
        *,
        protect: Protect = (),
        of: Unit = "neurons",
    ) -> None:
        super().__init__(amount, min_keep, multiple_of, protect=protect, of=of)
        number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        if not (number and math.isfinite(limit) and limit > 0):
            raise OptionError(f"limit must be a finite number > 0, got {limit!r}")
        self.limit = limit

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        """The importance of each layer is its score; every record gets its count.

        Raises
        ------
        OptionError
            A record without a usable sensitivity, or an amount that leaves less than `min_keep` of each layer.
        """
        counts = sensitivity_counts(
            [layer.out_features for layer in layer_list],
            [_sensitivity(layer) for layer in layer_list],
            self.amount,
            self.min_keep,
            self.limit,
            protected=[layer.protected for layer in layer_list],
            gone=[layer.gone for layer in layer_list],
        )
        for layer, count in zip(layer_list, counts, strict=True):
            layer.pruning_mask, layer.amount = layer.importance, count

    def check(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None = None) -> None:
        """See :meth:`BasePruner.check`; how many can go follows from the sizes."""
        plain = SensitivityPruner(self.amount, self.min_keep, self.multiple_of, protect=self.protect, of=self.of)
        plain.prune([bare_record(layer.name, layer.out_features) for layer in layer_list], costs)


def _sensitivity(layer: LayerRecord) -> float:
    value = layer.sensitivity
    if value is None:
        raise OptionError(
            f"the record of {layer.name} carries no sensitivity; run the pruner in a pipeline, which measures it, or set "
            "record.sensitivity"
        )
    if not (math.isfinite(value) and value >= 0):
        raise OptionError(f"{layer.name}: sensitivity must be a finite number >= 0, got {value!r}")
    return float(value)


def sensitivity_counts(
    sizes: Sequence[int],
    sensitivities: Sequence[float],
    amount: float | int,
    min_keep: int = 1,
    limit: float = 2.0,
    *,
    protected: Sequence[bool] = (),
    gone: Sequence[int] = (),
) -> list[int]:
    """How many neurons each layer loses when those that are too sensitive are spared.

    With m the median sensitivity, a layer of sensitivity c > limit * m gives ``limit * m / c`` of its even part
    (`amount` of its neurons). What is missing comes from the layers that are not spared, the same share more of each;
    where one of them has no more to give, from the rest of them, and at last from the spared ones.

    Parameters
    ----------
    sizes : sequence of int
        Neurons of every layer.
    sensitivities : sequence of float
        As many, finite and >= 0.
    amount : float or int
        Share of all neurons, or number a layer.
    min_keep : int
    limit : float
    protected : sequence of bool, optional
        Layers that give nothing, and do not count for the median.
    gone : sequence of int, optional
        Neurons that earlier steps have removed: no layer gives fewer.

    Returns
    -------
    list of int
        Together ``round(amount * N)``, or ``amount`` times the layers; more only where more is gone already. Parts are rounded
        down and the largest remainders up, among equals the first.

    Raises
    ------
    OptionError
        That many are not there beyond `min_keep` of every layer.

    Notes
    -----
    In exact arithmetic, so that the order of the layers decides nothing but ties.

    Examples
    --------
    >>> sensitivity_counts([100, 100, 100, 100], [0.8, 0.1, 0.1, 0.1], 0.3)
    [8, 38, 37, 37]
    >>> sensitivity_counts([100, 100, 100, 100], [0.1, 0.1, 0.15, 0.1], 30)
    [30, 30, 30, 30]
    """
    total = amount * len(sizes) if isinstance(amount, int) else round(amount * sum(sizes))
    closed = list(protected) or [False] * len(sizes)
    room = [0 if shut else max(n - min_keep, 0) for n, shut in zip(sizes, closed, strict=True)]
    if all(closed):
        return [0] * len(sizes)
    if total > sum(room):
        raise OptionError(
            f"removing {total} of {sum(sizes)} neurons leaves fewer than min_keep={min_keep} in each of "
            f"{closed.count(False)} layers{' that are not protected' if any(closed) else ''}; lower the amount (at most "
            f"{sum(room)} can go) or min_keep"
        )
    costs = [Fraction(value) for value in sensitivities]
    open_costs = [cost for cost, shut in zip(costs, closed, strict=True) if not shut]
    bound = Fraction(limit) * median(open_costs) if open_costs else Fraction(0)
    even = [Fraction(amount) if isinstance(amount, int) else Fraction(repr(amount)) * n for n in sizes]
    spared = [0 < bound < cost for cost in costs]
    parts = [
        min(part * bound / cost if spare else part, Fraction(most))
        for part, cost, spare, most in zip(even, costs, spared, room, strict=True)
    ]
    rest = sum(even, Fraction(0)) - sum(parts, Fraction(0))
    for group in (False, True):
        rest = _pour(rest, parts, sizes, room, [k for k, spare in enumerate(spared) if spare is group])
    least = list(gone) or [0] * len(parts)
    counts = [max(math.floor(part), few) for part, few in zip(parts, least, strict=True)]
    largest = sorted(range(len(parts)), key=lambda k: (counts[k] - parts[k], k))
    for k in largest[: max(total - sum(counts), 0)]:
        counts[k] += 1
    # What is gone may be a neuron more than a part: then those that can give one less do.
    while sum(counts) > total and (able := [k for k in range(len(parts)) if counts[k] > least[k]]):
        counts[max(able, key=lambda k: (counts[k] - parts[k], k))] -= 1
    return counts


def _pour(
    rest: Fraction, parts: list[Fraction], sizes: Sequence[int], room: Sequence[int], group: Sequence[int]
) -> Fraction:
    """Add the same share to the parts of a group, each up to its room; returns what found none."""
    while rest > 0 and (unfilled := [k for k in group if parts[k] < room[k]]):
        width = sum(sizes[k] for k in unfilled)
        share = min(rest / width, *((room[k] - parts[k]) / sizes[k] for k in unfilled))
        for k in unfilled:
            parts[k] += share * sizes[k]
        rest -= share * width
    return rest
