"""Repair of all FFNs, in the order of the model: each with what it sees once those before it are cut and repaired."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import nn

from llmrank.adapters import FFN
from llmrank.adapters.families import bias_attribute
from llmrank.adapters.ffn import bias_of
from llmrank.errors import CalibrationError, OptionError
from llmrank.masks import Masks
from llmrank.repair.methods import BaseRepair, RepairedMap
from llmrank.repair.moments import MomentSums
from llmrank.stream import Stream

__all__ = ["Choose", "repair_ffns", "substitute", "summary"]

Choose: TypeAlias = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]


def repair_ffns(
    model: nn.Module,
    ffns: Sequence[FFN],
    masks: Masks,
    method: BaseRepair,
    stream: Stream,
    progress: Callable[[Sequence[Any], str], Any] | None = None,
    choose: Choose | None = None,
) -> tuple[Masks, dict[str, RepairedMap]]:
    """Repair the output maps of all FFNs, in the model's order; nothing is written to the model.

    Parameters
    ----------
    model : nn.Module
    ffns : sequence of FFN
        Found ones (not explicit).
    masks : Masks
    method : BaseRepair
    stream : Stream
        The calibration tokens, in front of the first FFN.
    progress : callable, optional
        See :func:`llmrank.activations.collect`.
    choose : callable, optional
        ``choose(layer, keep, unexplained)`` returns the keep mask of as many neurons by which a method that reselects
        replaces the planned one.

    Returns
    -------
    Masks
        What stays: `masks`, but for what was chosen anew.
    dict from str to RepairedMap
        By the path of the output map's module, in its dtype; maps that lose no neuron are left out.

    Raises
    ------
    OptionError
        FFNs of the explicit form, whose removed rows nothing stands in for.
    CalibrationError
        Non-finite activations; the message names the map.

    Notes
    -----
    Memory: moments of one map (two (n, n) float64 matrices, three to reselect, and as much again to solve) and the repaired
    maps, beside what the stream keeps.
    """
    if any(not layer.consumers for ffn in ffns for layer in ffn.prunable.values()):
        raise OptionError("repair needs whole FFNs; with structure_dict only rows go, and nothing stands in for them")
    may_add = method.needs_bias and bool(bias_attribute(model))
    repaired: dict[str, RepairedMap] = {}
    kept = dict(masks)
    with ExitStack() as standing_in:
        for ffn in progress(ffns, "Repairing") if progress else ffns:
            for layer in ffn.prunable.values():
                keep, (consumer,) = masks[layer.name], layer.consumers
                if bool(keep.all()):
                    continue
                sums = MomentSums(layer.size, consumer.weight.device)
                whole = None
                if choose is not None and method.reselects:
                    whole = MomentSums(layer.size, consumer.weight.device, held_out=False)
                stream.feed(ffn, consumer.module, sums, whole)
                fit, held_out = sums.moments()
                if not fit.count or not fit.finite or (held_out is not None and not held_out.finite):
                    raise CalibrationError(
                        f"what {consumer.name} reads, or the stream behind it, is not finite once the FFNs before it are cut, or "
                        "no token reached it; prune less, or load the model in float32"
                    )
                if choose is not None and whole is not None:
                    # Where the whole model is not followed, the stream that is already cut has to do.
                    unexplained = (whole if whole.count else sums).together().unexplained()
                    keep = kept[layer.name] = choose(layer.name, keep, unexplained.cpu())
                    del whole
                weight = consumer.weight.to(fit.second)
                bias = _bias(consumer.module, weight, may_add=may_add)
                # In float64 the maps of a half-precision model would take more than the model does.
                solved = method.solve(weight, bias, keep.to(weight.device), fit, held_out).to(consumer.weight)
                repaired[consumer.name] = solved
                substitute(standing_in, consumer.module, solved)
    return Masks(kept), repaired


def _bias(module: nn.Module, weight: torch.Tensor, *, may_add: bool) -> torch.Tensor | None:
    """The bias of a map, (out,); zeros where it has none but can be given one."""
    bias = bias_of(module)
    if bias is not None:
        return bias.detach().to(weight)
    return weight.new_zeros(len(weight)) if may_add else None


def substitute(hooks: ExitStack, module: nn.Module, solved: RepairedMap) -> None:
    """Let a repaired map answer in place of a module, until `hooks` closes."""
    own: Any = module.weight
    weight = solved.weight.to(own)
    bias = None if solved.bias is None else solved.bias.to(own)
    # Set on the instance, so that the module's own product is not computed as well, and hooks still see what passes.
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = lambda values: nn.functional.linear(values, weight, bias)
    hooks.callback(_restore, module, before)


def _restore(module: nn.Module, forward: Any) -> None:
    if forward is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = forward


def summary(repaired: Mapping[str, RepairedMap]) -> dict[str, Any]:
    """What a report says of a repair: for each map the target, the damping and the shares missed before and after."""
    return {
        name: {
            "target": solved.target,
            "damping": solved.damping,
            "missed_when_cut": solved.before,
            "missed_when_repaired": solved.after,
        }
        for name, solved in repaired.items()
    }
