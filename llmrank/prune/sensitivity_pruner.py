"""Pruning by sensitivity: the same share of every layer, except that the most sensitive layers lose less.

Of units of which a layer has few, heads and blocks, those are removed that are expected to cost least together.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from statistics import median
from typing import ClassVar

from llmrank.errors import OptionError
from llmrank.models.costs import ModelCosts, Unit
from llmrank.prune.amounts import Multiple, Protect, check_amount, check_removable
from llmrank.prune.base_pruner import BasePruner
from llmrank.prune.records.layer_record import LayerRecord

__all__ = ["SensitivityPruner", "cheapest_counts", "sensitivity_counts"]


class SensitivityPruner(BasePruner):
    """Remove the same share of every layer, except for the most sensitive layers, which lose less.

    Let m be the median sensitivity of the layers. A layer of sensitivity c above ``limit * m`` is spared: its share is multiplied
    by ``limit * m / c``. To make up for that, the same additional share is removed from each of the other layers, see
    :func:`sensitivity_counts`. Sensitivities are not reliable enough for smaller differences to count.

    Of heads and blocks, see :func:`cheapest_counts`.

    Parameters
    ----------
    amount : float or int
        Share (float, [0, 1)) of all neurons to remove, or number (int) to remove from each layer on average. If `amount_of` is a
        cost, such as parameters, a number is the total of all layers.
    min_keep, multiple_of, protect, amount_of
        See :class:`BasePruner`. If a layer loses less because it is protected, or has only `min_keep` neurons left, the other
        layers lose more. Protected layers do not count for the median.
    limit : float
        A finite number > 0. A layer is spared if its sensitivity is more than this many times the median; if the median is 0, no
        layer is spared.

    Raises
    ------
    OptionError
        The limit is out of range; or see :class:`BasePruner`.

    Examples
    --------
    The sensitivity of layer a is 4 times the median, and `limit` is 2, so the layer loses 2 neurons, not 4:

    >>> import torch
    >>> importance = torch.arange(8) / 28
    >>> layers = [LayerRecord(name, importance, sensitivity=s) for name, s in (("a", 0.4), ("b", 0.1), ("c", 0.1))]
    >>> SensitivityPruner(0.5, limit=2.0).prune(layers).widths
    {'a': 6, 'b': 3, 'c': 3}
    """

    name: ClassVar[str] = "sensitivity"
    needs_sensitivity: ClassVar[bool] = True

    def __init__(
        self,
        amount: float | int = 0.3,
        min_keep: int = 1,
        multiple_of: Multiple = "auto",
        limit: float = 2.0,
        *,
        protect: Protect = (),
        amount_of: Unit = "neurons",
    ) -> None:
        super().__init__(amount, min_keep, multiple_of, protect=protect, amount_of=amount_of)
        is_number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        if not (is_number and math.isfinite(limit) and limit > 0):
            raise OptionError(f"limit must be a finite number > 0, got {limit!r}")
        self.limit = limit

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        """Set on each record its importance as scores, and the number of neurons that the layer loses.

        Raises
        ------
        OptionError
            A record has no usable sensitivity; or see :func:`sensitivity_counts`.
        """
        if any(layer.units is not None and layer.units.has_few for layer in layer_list):
            for layer, count in zip(layer_list, self._counts_of_few(layer_list), strict=True):
                layer.pruning_mask, layer.amount = layer.importance, count
            return
        sizes = [layer.neurons_per_unit for layer in layer_list]
        counts = sensitivity_counts(
            [layer.out_features * n for layer, n in zip(layer_list, sizes, strict=True)],
            [_sensitivity(layer) for layer in layer_list],
            self.amount_in_neurons(layer_list),
            [self.fewest(layer) * n for layer, n in zip(layer_list, sizes, strict=True)],
            self.limit,
            protected=[layer.protected for layer in layer_list],
            routed=self.routers_limit(layer_list),
        )
        for layer, count, n in zip(layer_list, counts, sizes, strict=True):
            layer.pruning_mask, layer.amount = layer.importance, round(count / n)

    def _counts_of_few(self, layer_list: Sequence[LayerRecord]) -> list[int]:
        sizes, fewest = [each.out_features for each in layer_list], [self.fewest(each) for each in layer_list]
        # A number counts the units of each layer on average; of layers that are one unit each, all together.
        times = 1 if max(sizes) == 1 else len(sizes)
        total = self.amount * times if isinstance(self.amount, int) else round(self.amount * sum(sizes))
        protected = [each.protected for each in layer_list]
        if all(protected):
            return [0] * len(sizes)
        units = layer_list[0].units
        what = "units" if units is None else units.counted
        most = [0 if kept else n - least for n, least, kept in zip(sizes, fewest, protected, strict=True)]
        at_most = sum(most) - (most == sizes)  # something must stay
        if total > at_most:
            stay = "because protected ones stay" if any(protected) else "because each layer, and the model, keeps one"
            raise OptionError(
                f"{total} of {sum(sizes)} {what} cannot be removed: at most {at_most} can, {stay}; lower the amount"
            )
        costs = [_sensitivity(each) for each in layer_list]
        return cheapest_counts(costs, most, total)

    def check(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None = None) -> None:
        """See :meth:`BasePruner.check`; sensitivities do not change how many neurons can be removed."""
        self._check_as(SensitivityPruner, layer_list, costs)


def _sensitivity(layer: LayerRecord) -> float:
    value = layer.sensitivity
    if value is None:
        raise OptionError(
            f"the record of {layer.name} carries no sensitivity; run the pruner in a pipeline, which measures it, or set "
            "record.sensitivity"
        )
    if isinstance(value, Mapping) or not (math.isfinite(value) and value >= 0):
        raise OptionError(f"{layer.name}: sensitivity must be a finite number >= 0, got {value!r}")
    return float(value)


def cheapest_counts(sensitivities: Sequence[float], most: Sequence[int], total: int) -> list[int]:
    """Compute how many units each layer loses if the loss of n units of a layer is expected to be n^2 times its sensitivity.

    Parameters
    ----------
    sensitivities : sequence of float
        What one unit of each layer costs.
    most : sequence of int
        Largest number that each layer can lose.
    total : int
        Number of units to remove from all layers together, at most the sum of `most`.

    Returns
    -------
    list of int
        Numbers of units whose expected losses have the smallest sum; of equal ones, the first layers lose more.

    Examples
    --------
    >>> cheapest_counts([0.1, 5.0, 0.3], [2, 2, 2], 3)
    [2, 0, 1]
    """
    counts = [0] * len(most)
    open_layers = [(c, k) for k, c in enumerate(sensitivities) if most[k] > 0]
    heapq.heapify(open_layers)
    for _ in range(total):
        _, k = heapq.heappop(open_layers)
        counts[k] += 1
        if counts[k] < most[k]:
            heapq.heappush(open_layers, ((2 * counts[k] + 1) * sensitivities[k], k))
    return counts


def sensitivity_counts(
    sizes: Sequence[int],
    sensitivities: Sequence[float],
    amount: float | int,
    min_keep: int | Sequence[int] = 1,
    limit: float = 2.0,
    *,
    protected: Sequence[bool] = (),
    routed: bool = False,
) -> list[int]:
    """Compute how many neurons each layer loses when the most sensitive layers are spared.

    Let m be the median sensitivity. A layer of sensitivity c > limit * m > 0 is spared: it loses only ``limit * m / c`` times
    `amount`. The rest is removed from the layers that are not spared, the same additional share of each. If some of these layers
    have only `min_keep` neurons left, the others lose more. If all of them have, the spared layers lose more.

    Parameters
    ----------
    sizes : sequence of int
        Number of neurons of every layer.
    sensitivities : sequence of float
        One for each layer, finite and >= 0.
    amount : float or int
        Share (float) of all neurons to remove, or number (int) to remove from each layer on average.
    min_keep : int or sequence of int
        Smallest number of neurons that a layer keeps; one for all layers, or one for each.
    limit : float
        See :class:`SensitivityPruner`.
    protected : sequence of bool, optional
        Whether a layer loses nothing and does not count for the median; by default none.
    routed : bool
        Whether routers are the reason for `min_keep`; an error message says so.

    Returns
    -------
    list of int
        One number for each layer. For N neurons in all layers the sum is ``round(amount * N)``, or `amount` times the number of
        layers if `amount` is an int. It is 0 if all layers are protected. The parts with the largest remainders are rounded up;
        among equal remainders, those of the first layers.

    Raises
    ------
    OptionError
        `amount` is no share in [0, 1) and no number >= 0, or more neurons are to be removed than `min_keep` and `protected`
        allow.

    Examples
    --------
    >>> sensitivity_counts([100, 100, 100, 100], [0.8, 0.1, 0.1, 0.1], 0.3)
    [8, 38, 37, 37]
    """
    amount = check_amount(amount)
    n_layers = len(sizes)
    total = amount * n_layers if isinstance(amount, int) else round(amount * sum(sizes))
    keeps_all = list(protected) or [False] * n_layers
    if all(keeps_all):
        return [0] * n_layers
    fewest = [min_keep] * n_layers if isinstance(min_keep, int) else list(min_keep)
    check_removable(total, sizes, fewest, keeps_all, routed=routed)
    max_removed = [0 if kept else max(n - least, 0) for n, least, kept in zip(sizes, fewest, keeps_all, strict=True)]
    exact = [Fraction(value) for value in sensitivities]
    threshold = Fraction(limit) * median(c for c, kept in zip(exact, keeps_all, strict=True) if not kept)
    # The neurons that each layer would lose if none were spared.
    even_parts = [Fraction(amount) if isinstance(amount, int) else Fraction(repr(amount)) * n for n in sizes]
    spared = [0 < threshold < c for c in exact]
    parts = [
        min(part * threshold / c if is_spared else part, Fraction(most))
        for part, c, is_spared, most in zip(even_parts, exact, spared, max_removed, strict=True)
    ]
    rest = sum(even_parts, Fraction(0)) - sum(parts, Fraction(0))
    for is_spared in (False, True):
        rest = _distribute(rest, parts, sizes, max_removed, [k for k in range(n_layers) if spared[k] is is_spared])
    counts = [math.floor(part) for part in parts]
    by_remainder = sorted(range(n_layers), key=lambda k: (counts[k] - parts[k], k))
    for k in by_remainder[: total - sum(counts)]:
        counts[k] += 1
    return counts


def _distribute(
    rest: Fraction, parts: list[Fraction], sizes: Sequence[int], max_removed: Sequence[int], group: Sequence[int]
) -> Fraction:
    """Add `rest` neurons to the parts of a group of layers, the same share of each up to its maximum; return the number left."""
    while rest > 0 and (unfilled := [k for k in group if parts[k] < max_removed[k]]):
        n_neurons = sum(sizes[k] for k in unfilled)
        share = min(rest / n_neurons, *((max_removed[k] - parts[k]) / sizes[k] for k in unfilled))
        for k in unfilled:
            parts[k] += share * sizes[k]
        rest -= share * n_neurons
    return rest
