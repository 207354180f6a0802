"""Pruning where it is expected to cost the model least, by losses that were measured for every layer at several amounts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from llmrank.errors import LLMRankError, OptionError, check_type
from llmrank.models.costs import ModelCosts, Unit
from llmrank.prune.amounts import Multiple, Protect, round_width
from llmrank.prune.base_pruner import BasePruner
from llmrank.prune.masks import Masks
from llmrank.prune.records.layer_record import LayerRecord, importance_of
from llmrank.prune.records.order import keep_highest

__all__ = ["LeastLossPruner", "interpolated"]

# The number of widths that all layers together may take, and how many each may take at least.
MOST_WIDTHS, FEWEST_WIDTHS = 4096, 64
# An amount is divided into this many steps, at most. A larger number makes the choice slower.
MOST_STEPS = 20_000


class LeastLossPruner(BasePruner):
    """Remove from each layer as many units as are expected to cost the model least in all, of neurons and heads together.

    A pipeline measures what the model loses when each layer alone loses several numbers of its units. Between two of these
    numbers a loss is interpolated, and more units than were measured are removed only if the amount cannot be reached otherwise.
    The losses of layers are expected to add up, and the amount is shared out so that their sum is smallest. If `amount_of` is a
    cost and the targets are neurons and heads, one amount covers both.

    Parameters
    ----------
    amount : float or int
        Share (float, [0, 1)) of all units to remove, or number (int) to remove from each layer on average. If `amount_of` is a
        cost, such as parameters, a number is the total of all layers.
    min_keep, multiple_of, protect, amount_of
        See :class:`BasePruner`. The amount is reached with rounded widths. Other layers make up for protected ones.
    uniform : bool
        Whether layers of the same kind and size lose the same number of units, so that stock transformers loads the result.

    Raises
    ------
    OptionError
        An option is out of range.

    Notes
    -----
    Dynamic programming over the widths that a layer may take, 4,096 in all layers together or 64 in each, and 20,000 steps of the
    amount: exact for these widths if the amount has fewer steps, else for an amount that is higher by at most a step for each
    layer. 60 layers of 1,536 neurons take some hundredths of a second, or a tenth if widths are not rounded.

    Examples
    --------
    The first two units of layer a cost less than one of layer b:

    >>> import torch
    >>> losses = {"a": {2: 0.1, 3: 0.9}, "b": {2: 0.4, 3: 0.5}}
    >>> layers = [LayerRecord(name, torch.arange(4) / 6, sensitivity=found) for name, found in losses.items()]
    >>> LeastLossPruner(0.25).prune(layers).widths
    {'a': 2, 'b': 4}
    """

    name: ClassVar[str] = "least-loss"
    needs_sensitivity: ClassVar[bool] = True
    shares_measured: ClassVar[tuple[float, ...]] = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
    joins_targets: ClassVar[bool] = True

    def __init__(
        self,
        amount: float | int = 0.3,
        min_keep: int = 1,
        multiple_of: Multiple = "auto",
        uniform: bool = False,
        *,
        protect: Protect = (),
        amount_of: Unit = "neurons",
    ) -> None:
        super().__init__(amount, min_keep, multiple_of, protect=protect, amount_of=amount_of)
        check_type("uniform", uniform, bool, "True or False")
        self.uniform = uniform

    def prune(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None = None) -> Masks:
        """See :meth:`BasePruner.prune`."""
        if not layer_list:
            return Masks({})
        needed, widths, saved = self._savings(layer_list, costs)
        groups = self._groups(layer_list)
        options: list[tuple[np.ndarray, ...]] = []
        measured: list[tuple[np.ndarray, ...]] = []
        for group in groups:
            n, kept = layer_list[group[0]].out_features, np.array(widths[group[0]])
            losses = np.sum([interpolated(_losses(layer_list[k]), n - kept) for k in group], axis=0)
            options.append((kept, np.sum([saved[k] for k in group], axis=0), losses))
            within = n - kept <= max(max(_losses(layer_list[k]), default=0) for k in group)
            measured.append(tuple(each[within] for each in options[-1]))
        # Where nobody has measured, nothing is removed unless the amount needs it.
        if sum(each.max() for _, each, _ in measured) >= needed:
            options = measured
        most, target = int(sum(each.max() for _, each, _ in options)), needed
        while True:
            chosen = {
                layer_list[k].name: width
                for group, width in zip(groups, _cheapest(options, target), strict=True)
                for k in group
            }
            # Layers that share a matrix save less together than each alone.
            short = needed - self._saved_together(layer_list, chosen, costs) if self.amount_of != "neurons" else 0
            if short <= 0 or target >= most:
                break
            target = min(target + short, most)
        return Masks({layer.name: keep_highest(importance_of(layer), chosen[layer.name]) for layer in layer_list})

    def _groups(self, layer_list: Sequence[LayerRecord]) -> list[list[int]]:
        """Return the positions of layers that lose as many units."""
        groups: dict[object, list[int]] = {}
        for k, layer in enumerate(layer_list):
            kind = None if layer.units is None else layer.units.target
            together = self.uniform and not layer.protected
            groups.setdefault((kind, layer.out_features) if together else k, []).append(k)
        return list(groups.values())

    def _saved_together(
        self, layer_list: Sequence[LayerRecord], kept: Mapping[str, int], costs: ModelCosts | None
    ) -> int:
        widths = {name: width for layer in layer_list for name, width in layer.widths(kept[layer.name]).items()}
        return 0 if costs is None else costs.removed_cost(widths, self.amount_of)

    def check(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None = None) -> None:
        """See :meth:`BasePruner.check`. It refuses every amount that is impossible for layers of these sizes."""
        self._savings(layer_list, costs)

    def amount_needed(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None) -> tuple[int, int]:
        """Return how much must be removed at least, and of how much, both in the unit of the amount."""
        if self.amount_of != "neurons":
            target, costs = self._cost_to_remove(costs)
            return math.ceil(target), costs.total(self.amount_of)
        sizes = [_neurons_per_unit(layer) for layer in layer_list]
        total = sum(layer.out_features * n for layer, n in zip(layer_list, sizes, strict=True))
        if all(layer.protected for layer in layer_list):
            return 0, total
        return self.amount * sum(sizes) if isinstance(self.amount, int) else round(self.amount * total), total

    def _savings(
        self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None
    ) -> tuple[int, list[list[int]], list[list[int]]]:
        """Return how much must be removed, and for each layer the numbers of units that it may keep and what each saves."""
        self._mark_protected(layer_list)
        needed, total = self.amount_needed(layer_list, costs)
        most_widths = max(FEWEST_WIDTHS, MOST_WIDTHS // max(1, len(self._groups(layer_list))))
        widths, saved = [], []
        for layer in layer_list:
            n = layer.out_features
            if self.amount_of == "neurons" or costs is None:
                of_one = _neurons_per_unit(layer)
            else:
                of_one = costs.removed_cost(layer.widths(n - 1), self.amount_of)
            widths.append(self._widths(layer, most_widths))
            saved.append([(n - width) * of_one for width in widths[-1]])
        if self.amount_of != "neurons" and costs is not None:
            kept = {layer.name: min(each) for layer, each in zip(layer_list, widths, strict=True)}
            if needed > (most := self._saved_together(layer_list, kept, costs)):
                raise self._amount_error(most, costs, layer_list)
        elif needed > (most := sum(max(each) for each in saved)):
            what = layer_list[0].units.counted if layer_list[0].units else "neurons"
            raise OptionError(
                f"{needed:,} of {total:,} {what} cannot be removed: at most {most:,} can, because each layer keeps "
                f"min_keep={self.min_keep}, widths are rounded (multiple_of), and protected layers stay; lower the amount"
            )
        return needed, widths, saved

    def _widths(self, layer: LayerRecord, most: int) -> list[int]:
        """Return the numbers of units that a layer may keep, all of them first."""
        n, fewest = layer.out_features, self.fewest(layer)
        if layer.protected:
            return [n]
        multiple = self.multiple_for(layer)
        least = round_width(fewest, n, multiple, fewest)
        step = multiple * max(1, -(-(n - least) // (multiple * most)))
        return [n, *reversed(range(least, n, step))]


def _neurons_per_unit(layer: LayerRecord) -> int:
    """Return what a unit counts for an amount of neurons; of which a layer has few, each counts one."""
    return 1 if layer.units is not None and layer.units.has_few else layer.neurons_per_unit


def _losses(layer: LayerRecord) -> Mapping[int, float]:
    """Return the losses of a record by the number of removed units, which must be finite."""
    found = layer.sensitivity
    if not isinstance(found, Mapping):
        raise OptionError(
            f"the record of {layer.name} carries no losses at several amounts; run the pruner in a pipeline, which measures "
            "them, or set record.sensitivity to losses by the number of removed units"
        )
    if not np.isfinite(list(found.values())).all():
        raise LLMRankError(f"{layer.name}: a loss is not finite; measure it again")
    return found


def interpolated(losses: Mapping[int, float], removed: np.ndarray) -> np.ndarray:
    """Interpolate losses, which are known for some numbers of removed units, at other numbers.

    Beyond the largest number the line through the last two goes on, or that from 0 if it is steeper: the last units are not
    free, though a loss that is large rises slowly. More units cannot cost less: where a measurement says so, it is noise, and the
    larger loss of fewer units is taken.

    >>> interpolated({2: 0.1, 4: 0.5}, np.array([1, 3, 5])).round(3).tolist()
    [0.05, 0.3, 0.7]
    """
    counts = [0, *sorted(k for k in losses if k > 0)]
    values = np.maximum.accumulate([0.0, *(losses[k] for k in counts[1:])])
    if len(counts) == 1:
        return np.zeros(np.shape(removed))
    slope = max((values[-1] - values[-2]) / (counts[-1] - counts[-2]), values[-1] / counts[-1])
    return np.asarray(np.interp(removed, counts, values) + np.maximum(removed - counts[-1], 0) * slope)


def _cheapest(options: Sequence[tuple[np.ndarray, ...]], needed: int) -> list[int]:
    """Choose a width of each group, so that enough is saved at the least loss; a group has widths, what they save, and losses.

    What is saved is counted in steps, and ``best[n]`` is the least loss of the groups so far that save at least n steps.
    """
    step = int(np.gcd.reduce(np.concatenate([saved for _, saved, _ in options]))) or 1
    n_steps = math.ceil(needed / step)
    coarser = max(1.0, n_steps / MOST_STEPS)
    n_steps = math.ceil(n_steps / coarser)
    best = np.full(n_steps + 1, np.inf)
    best[0] = 0.0
    choices = []
    for _, saved, losses in options:
        # Rounded down, so that what is counted is really saved.
        steps = np.minimum(saved // step / coarser, n_steps).astype(int)
        reached, chosen = np.full(n_steps + 1, np.inf), np.zeros(n_steps + 1, dtype=np.int64)
        for k, (n, loss) in enumerate(zip(steps, losses, strict=True)):
            candidate = loss + np.concatenate([np.full(n, best[0]), best[: n_steps + 1 - n]])
            lower = candidate < reached
            reached[lower], chosen[lower] = candidate[lower], k
        choices.append((steps, chosen))
        best = reached
    if not np.isfinite(best[-1]):  # all that can be saved is needed, but for what rounding loses
        return [int(widths[saved.argmax()]) for widths, saved, _ in options]
    found, left = [], n_steps
    for (widths, _, _), (steps, chosen) in zip(reversed(options), reversed(choices), strict=True):
        found.append(int(widths[chosen[left]]))
        left = max(left - int(steps[chosen[left]]), 0)
    return found[::-1]
