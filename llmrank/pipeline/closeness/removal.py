"""Parts whose losses do not add up, such as blocks, are removed in turn: each time the one that costs least now."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from llmrank.evaluation.estimate import Estimate
from llmrank.models import PrunableLayer
from llmrank.pipeline.closeness.distance import DenseReference
from llmrank.prune.masks import Masks

__all__ = ["losses_in_turn"]


def losses_in_turn(
    reference: DenseReference,
    parts: Mapping[str, Sequence[PrunableLayer]],
    masks: Masks,
    alone: Mapping[str, float],
    count: int,
    fits: Callable[[Sequence[str]], bool] = lambda _names: True,
) -> dict[str, float]:
    """Remove parts of a model in turn, and measure how much farther each takes it from the dense model.

    Removing a part costs more, the more parts are removed already. So the loss that was measured for a part with fewer parts
    removed is a lower bound of its present loss, and only parts whose bound is the lowest are measured again. That is a
    guess: where it fails, a part is removed whose loss is not the lowest.

    Parameters
    ----------
    reference : DenseReference
    parts : mapping from str to sequence of PrunableLayer
        The layers that are removed together, by the name of the part.
    masks : Masks
        What is removed of every layer with its part. Parts of which nothing is removed stay.
    alone : mapping from str to float
        The loss of each part alone, see :func:`llmrank.pipeline.closeness.sensitivity.layer_sensitivities`.
    count : int
        Number of parts to remove.
    fits : callable, optional
        Tells whether these parts can be removed together. A part for which it says no stays.

    Returns
    -------
    dict from str to float
        For each part, what its removal adds to the distance, a mean over tokens; for those that are left, the last bound. Those
        that are removed first have the lowest values: a value is raised to that of the part before it. Parts that do not fit have
        the sum of all, and parts that stay by their masks 0.

    Notes
    -----
    Cost: about three forward passes for every part that is removed.
    """

    def distance(names: Sequence[str]) -> float:
        removed = {layer.name for name in names for layer in parts[name]}
        cut = Masks({name: mask if name in removed else mask | True for name, mask in masks.items()})
        return Estimate.of(*reference.distances(cut)).value

    bounds = {
        name: alone[name] for name, layers in parts.items() if not all(bool(masks[each.name].all()) for each in layers)
    }
    found = dict.fromkeys(parts, 0.0)
    gone: list[str] = []
    stay: dict[str, float] = {}
    total = least = 0.0
    while bounds and len(gone) < count:
        measured: set[str] = set()
        while bounds and (name := min(bounds, key=lambda each: bounds[each])) not in measured:
            if not fits([*gone, name]):
                stay[name] = bounds.pop(name)
                continue
            bounds[name] = distance([*gone, name]) - total
            measured.add(name)
        if not bounds:
            break
        total += bounds[name]
        least = found[name] = max(bounds.pop(name), math.nextafter(least, math.inf))
        gone.append(name)
    last = total + sum(bounds.values()) + sum(stay.values())
    left = {name: max(bound, math.nextafter(least, math.inf)) for name, bound in bounds.items()}
    return found | left | dict.fromkeys(stay, last)
