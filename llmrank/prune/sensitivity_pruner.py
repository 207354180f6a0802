"""Pruning by sensitivity: the same share of every layer, except that the most sensitive layers lose less."""

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
from llmrank.prune.layer_record import LayerRecord, record_of_size

__all__ = ["SensitivityPruner", "sensitivity_counts"]


class SensitivityPruner(BasePruner):
    """Remove the same share of every layer, except for the few most sensitive layers, which lose less.

    A layer whose sensitivity c is above `limit` times the median m of all layers is spared: its share is multiplied by
    ``limit * m / c``. The other layers make up for that evenly, see :func:`sensitivity_counts`. Within a layer the lowest neurons
    are removed, as by :class:`LocalPruner`.

    Only outliers are spared, because sensitivities are measured one layer at a time and on little text: smaller differences
    are not reliable enough to shift a budget.

    Parameters
    ----------
    amount : float or int
        Share (float, [0, 1)) of all neurons to remove, or average number (int) for each layer.
    min_keep, multiple_of, protect, amount_of
        See :class:`BasePruner`; what a protected layer, or one down to `min_keep`, does not lose is removed from the others.
        Protected layers do not count for the median.
    limit : float
        A layer is spared if its sensitivity is more than this many times the median; finite, > 0. With a large limit, or a median
        of 0, no layer is spared.

    Raises
    ------
    OptionError
        The limit is out of range; or see :class:`BasePruner`.

    Examples
    --------
    Layer a is four times as sensitive as the median, twice the limit, so it loses half the share.

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
        multiple_of: int = 1,
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
        """Use the importance of each layer as its scores, and set how many neurons it loses.

        Raises
        ------
        OptionError
            A record has no usable sensitivity, or the amount leaves fewer than `min_keep` neurons in each layer.
        """
        counts = sensitivity_counts(
            [layer.out_features for layer in layer_list],
            [_sensitivity(layer) for layer in layer_list],
            self.amount,
            self.min_keep,
            self.limit,
            protected=[layer.protected for layer in layer_list],
            removed=[layer.n_removed for layer in layer_list],
        )
        for layer, count in zip(layer_list, counts, strict=True):
            layer.pruning_mask, layer.amount = layer.importance, count

    def check(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None = None) -> None:
        """See :meth:`BasePruner.check`; how many neurons can be removed follows from the sizes."""
        plain = SensitivityPruner(
            self.amount, self.min_keep, self.multiple_of, protect=self.protect, amount_of=self.amount_of
        )
        plain.prune([record_of_size(layer.name, layer.out_features) for layer in layer_list], costs)


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
    removed: Sequence[int] = (),
) -> list[int]:
    """Compute how many neurons each layer loses when too sensitive layers are spared.

    With m the median sensitivity, a layer of sensitivity c > limit * m loses ``limit * m / c`` of its even part
    (`amount` of its neurons). The rest is removed from the layers that are not spared, the same additional share from each;
    if one of them is down to `min_keep`, from the others of them, and at last from the spared layers.

    Parameters
    ----------
    sizes : sequence of int
        Number of neurons of every layer.
    sensitivities : sequence of float
        One for each layer, finite and >= 0.
    amount : float or int
        Share of all neurons, or average number for each layer.
    min_keep : int
    limit : float
    protected : sequence of bool, optional
        Layers that lose nothing, and do not count for the median.
    removed : sequence of int, optional
        How many neurons of each layer earlier steps have removed; no layer loses fewer.

    Returns
    -------
    list of int
        The sum is ``round(amount * N)``, or ``amount`` times the number of layers; more only if more is removed already. Parts
        are rounded down, and the largest remainders up, among equal ones the first.

    Raises
    ------
    OptionError
        The layers do not have that many neurons beyond `min_keep` of each.

    Notes
    -----
    The arithmetic is exact, so the order of the layers only decides ties.

    Examples
    --------
    >>> sensitivity_counts([100, 100, 100, 100], [0.8, 0.1, 0.1, 0.1], 0.3)
    [8, 38, 37, 37]
    >>> sensitivity_counts([100, 100, 100, 100], [0.1, 0.1, 0.15, 0.1], 30)
    [30, 30, 30, 30]
    """
    total = amount * len(sizes) if isinstance(amount, int) else round(amount * sum(sizes))
    is_protected = list(protected) or [False] * len(sizes)
    most = [0 if locked else max(n - min_keep, 0) for n, locked in zip(sizes, is_protected, strict=True)]
    if all(is_protected):
        return [0] * len(sizes)
    if total > sum(most):
        raise OptionError(
            f"removing {total} of {sum(sizes)} neurons leaves fewer than min_keep={min_keep} in each of "
            f"{is_protected.count(False)} layers{' that are not protected' if any(is_protected) else ''}; lower the amount "
            f"(at most {sum(most)} can be removed) or min_keep"
        )
    exact = [Fraction(value) for value in sensitivities]
    bound = Fraction(limit) * median(value for value, locked in zip(exact, is_protected, strict=True) if not locked)
    even = [Fraction(amount) if isinstance(amount, int) else Fraction(repr(amount)) * n for n in sizes]
    spared = [0 < bound < value for value in exact]
    parts = [
        min(part * bound / value if is_spared else part, Fraction(most_of_layer))
        for part, value, is_spared, most_of_layer in zip(even, exact, spared, most, strict=True)
    ]
    rest = sum(even, Fraction(0)) - sum(parts, Fraction(0))
    for group in (False, True):
        rest = _distribute(rest, parts, sizes, most, [k for k, is_spared in enumerate(spared) if is_spared is group])
    least = list(removed) or [0] * len(parts)
    counts = [max(math.floor(part), count) for part, count in zip(parts, least, strict=True)]
    largest = sorted(range(len(parts)), key=lambda k: (counts[k] - parts[k], k))
    for k in largest[: max(total - sum(counts), 0)]:
        counts[k] += 1
    # A layer may have lost more than its part already: then others lose less, as far as they can.
    while sum(counts) > total and (reducible := [k for k in range(len(parts)) if counts[k] > least[k]]):
        counts[max(reducible, key=lambda k: (counts[k] - parts[k], k))] -= 1
    return counts


def _distribute(
    rest: Fraction, parts: list[Fraction], sizes: Sequence[int], most: Sequence[int], group: Sequence[int]
) -> Fraction:
    """Add the same share to the parts of a group of layers, each up to its maximum; return what is left over."""
    while rest > 0 and (unfilled := [k for k in group if parts[k] < most[k]]):
        width = sum(sizes[k] for k in unfilled)
        share = min(rest / width, *((most[k] - parts[k]) / sizes[k] for k in unfilled))
        for k in unfilled:
            parts[k] += share * sizes[k]
        rest -= share * width
    return rest
