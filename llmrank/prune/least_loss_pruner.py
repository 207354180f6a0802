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

# Numbers of units that a layer can keep, at most.
MOST_WIDTHS = 64
# An amount is divided into this many steps, at most. A larger number makes the choice slower.
MOST_STEPS = 20_000


class LeastLossPruner(BasePruner):
    """Remove from each layer as many units as are expected to cost the model least in all, of neurons and heads together.

    A pipeline measures what the model loses when each layer alone loses several numbers of its units. Between two of these
    numbers a loss is interpolated. The losses of layers are expected to add up, and the amount is shared out so that their sum is
    smallest. If `amount_of` is a cost and the targets are neurons and heads, one amount covers both.

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
    Dynamic programming over at most 64 widths of every layer, and 20,000 steps of the amount: exact if the amount has fewer such
    steps, else exact for an amount that is higher by at most a step for each layer. It takes a quarter of a second for 60 layers.

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
        needed, saved = self._savings(layer_list, costs)
        # Layers that lose as many units are one layer to the program.
        groups: dict[object, list[int]] = {}
        for k, layer in enumerate(layer_list):
            kind = None if layer.units is None else layer.units.target
            together = self.uniform and not layer.protected
            groups.setdefault((kind, layer.out_features) if together else k, []).append(k)
        widths: list[int] = [layer.out_features for layer in layer_list]
        options = []
        for group in groups.values():
            kept = np.array(list(saved[group[0]]))
            losses = np.sum([_expected(layer_list[k], widths[k] - kept) for k in group], axis=0)
            options.append((kept, np.sum([list(saved[k].values()) for k in group], axis=0), losses))
        for group, width in zip(groups.values(), _cheapest(options, needed), strict=True):
            for k in group:
                widths[k] = width
        return Masks(
            {
                layer.name: keep_highest(importance_of(layer), width)
                for layer, width in zip(layer_list, widths, strict=True)
            }
        )

    def check(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None = None) -> None:
        """See :meth:`BasePruner.check`. It refuses every amount that is impossible for layers of these sizes."""
        self._savings(layer_list, costs)

    def needed(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None) -> tuple[int, int]:
        """Return how much must be removed at least, and of how much, both in the unit of the amount."""
        if self.amount_of != "neurons":
            target, costs = self._cost_to_remove(costs)
            return math.ceil(target), costs.total(self.amount_of)
        sizes = [_neurons_per_unit(layer) for layer in layer_list]
        total = sum(layer.out_features * n for layer, n in zip(layer_list, sizes, strict=True))
        if all(layer.protected for layer in layer_list):
            return 0, total
        return sum(self.amount * n for n in sizes) if isinstance(self.amount, int) else round(
            self.amount * total
        ), total

    def _savings(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None) -> tuple[int, list[dict[int, int]]]:
        """Return how much must be removed, and for each layer what every number of units that it may keep saves."""
        self._mark_protected(layer_list)
        needed, total = self.needed(layer_list, costs)
        saved = []
        for layer in layer_list:
            n = layer.out_features
            if self.amount_of == "neurons" or costs is None:
                of_one = _neurons_per_unit(layer)
            else:
                of_one = costs.removed_cost(layer.widths(n - 1), self.amount_of)
            saved.append({width: (n - width) * of_one for width in self._widths(layer)})
        most = sum(max(each.values()) for each in saved)
        if needed > most and costs is not None and self.amount_of != "neurons":
            raise self._amount_error(most, costs, layer_list)
        if needed > most:
            what = layer_list[0].units.counted if layer_list[0].units else "neurons"
            raise OptionError(
                f"{needed:,} of {total:,} {what} cannot be removed: at most {most:,} can, because each layer keeps "
                f"min_keep={self.min_keep}, widths are rounded (multiple_of), and protected layers stay; lower the amount"
            )
        return needed, saved

    def _widths(self, layer: LayerRecord) -> list[int]:
        """Return the numbers of units that a layer may keep, all of them first."""
        n, fewest = layer.out_features, self.fewest(layer)
        if layer.protected:
            return [n]
        multiple = self.multiple_for(layer)
        least = round_width(fewest, n, multiple, fewest)
        return [n, *reversed(range(least, n, multiple * max(1, -(-(n - least) // (multiple * MOST_WIDTHS)))))]


def _neurons_per_unit(layer: LayerRecord) -> int:
    """Return what a unit counts for an amount of neurons; of which a layer has few, each counts one."""
    return 1 if layer.units is not None and layer.units.has_few else layer.neurons_per_unit


def _expected(layer: LayerRecord, removed: np.ndarray) -> np.ndarray:
    """Return the expected losses of some numbers of removed units."""
    found = layer.sensitivity
    if not isinstance(found, Mapping) or (not found and removed.any()):
        raise OptionError(
            f"the record of {layer.name} carries no losses at several amounts; run the pruner in a pipeline, which measures "
            "them, or set record.sensitivity to losses by the number of removed units"
        )
    if not np.isfinite(list(found.values())).all():
        raise LLMRankError(f"{layer.name}: a loss is not finite; measure it again")
    return interpolated(found, removed)


def interpolated(losses: Mapping[int, float], removed: np.ndarray) -> np.ndarray:
    """Interpolate losses, which are known for some numbers of removed units, at other numbers.

    Beyond the largest number the line through the last two goes on. More units cannot cost less: where a measurement says so, it
    is noise, and the larger loss of fewer units is taken.

    >>> interpolated({2: 0.1, 4: 0.5}, np.array([1, 3, 5])).round(3).tolist()
    [0.05, 0.3, 0.7]
    """
    counts = [0, *sorted(losses)]
    values = np.maximum.accumulate([0.0, *(losses[k] for k in counts[1:])])
    if len(counts) == 1:
        return np.zeros(np.shape(removed))
    slope = (values[-1] - values[-2]) / (counts[-1] - counts[-2])
    return np.asarray(np.interp(removed, counts, values) + np.maximum(removed - counts[-1], 0) * slope)


def _cheapest(options: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], needed: int) -> list[int]:
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
        reached = np.array(
            [
                loss + np.concatenate([np.full(n, best[0]), best[: n_steps + 1 - n]])
                for n, loss in zip(steps, losses, strict=True)
            ]
        )
        choices.append((steps, reached.argmin(axis=0)))
        best = reached.min(axis=0)
    if not np.isfinite(best[-1]):  # all that can be saved is needed, but for what rounding loses
        return [int(widths[saved.argmax()]) for widths, saved, _ in options]
    found, left = [], n_steps
    for (widths, _, _), (steps, chosen) in zip(reversed(options), reversed(choices), strict=True):
        found.append(int(widths[chosen[left]]))
        left = max(left - int(steps[chosen[left]]), 0)
    return found[::-1]
