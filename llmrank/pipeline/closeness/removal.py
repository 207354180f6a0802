"""Parts whose losses do not add up, such as blocks, are removed in turn: each time the one that costs least now."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from torch import nn

from llmrank.errors import UnsupportedModelError
from llmrank.evaluation.estimate import Estimate
from llmrank.models import FFNs, PrunableLayer
from llmrank.models.costs import ModelCosts
from llmrank.models.stack import Stack
from llmrank.pipeline.closeness.distance import DenseReference
from llmrank.prune import BasePruner
from llmrank.prune.masks import Masks
from llmrank.prune.records.layer_record import record_of_size
from llmrank.prune.records.units import units_of

__all__ = ["losses_in_turn", "losses_of_blocks"]


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
        return Estimate.of(*reference.distances([reference.outputs(cut)])[0]).value

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


def losses_of_blocks(
    reference: DenseReference,
    model: nn.Module,
    ffns: FFNs,
    masks: Masks,
    alone: Mapping[str, float],
    pruner: BasePruner,
    costs: ModelCosts,
) -> dict[str, float]:
    """Remove in turn as many blocks as a pruner needs for its amount; those that no configuration can do without together stay.

    Parameters
    ----------
    reference, masks, alone
        See :func:`losses_in_turn`.
    model : nn.Module
    ffns : FFNs
        With their blocks.
    pruner : BasePruner
        One that removes the blocks of the lowest sensitivities.
    costs : ModelCosts
    """
    units = units_of(ffns.layers.values(), "blocks")
    blocks, stack = {block.name: block for block in ffns.blocks}, Stack(model, ffns.blocks[0].stack)

    def fits(names: Sequence[str]) -> bool:
        with suppress(UnsupportedModelError):
            stack.without([blocks[name] for name in names])
            return True
        return False

    def needed(losses: Mapping[str, float]) -> int:
        records = [record_of_size(each.name, each.n_units, each) for each in units]
        for record in records:
            record.sensitivity = losses[record.name]
        kept = pruner.prune(records, costs)
        return kept.size - kept.kept

    parts = {each.name: each.layers for each in units}
    losses, count = dict(alone), -1
    # How many blocks an amount of parameters needs, depends on which they are.
    while (wanted := needed(losses)) > count:
        losses, count = losses_in_turn(reference, parts, masks, alone, wanted, fits), wanted
    return losses
