"""Repair of all FFNs, in the order of the model: each with what it sees once those before it are cut and repaired."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import nn

from llmrank.calibration.blockwise import Stream
from llmrank.calibration.forward import substitute_forward
from llmrank.errors import CalibrationError, OptionError
from llmrank.models import FFN, Projection, PrunableLayer
from llmrank.models.families import bias_attribute
from llmrank.models.ffn import bias_of
from llmrank.prune.masks import Masks
from llmrank.surgery.repair.methods import BaseRepair, RepairedMap
from llmrank.surgery.repair.moments import MomentSums

__all__ = ["Choose", "Write", "repair_ffns", "substitute", "summary"]

Choose: TypeAlias = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]
Write: TypeAlias = Callable[[Projection, RepairedMap], RepairedMap]


def repair_ffns(
    model: nn.Module,
    ffns: Sequence[FFN],
    masks: Masks,
    method: BaseRepair,
    stream: Stream,
    progress: Callable[[Sequence[Any], str], Any] | None = None,
    choose: Choose | None = None,
    write: Write | None = None,
) -> tuple[Masks, dict[str, RepairedMap]]:
    """Repair the output maps of all FFNs, in the model's order; by default nothing is written to the model.

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
        See :func:`llmrank.calibration.statistics.collect`.
    choose : callable, optional
        ``choose(layer, keep, unexplained)`` returns the keep mask of as many neurons by which a method that reselects
        replaces the planned one.
    write : callable, optional
        ``write(map, solved)`` puts each repaired map into the model as soon as it is solved, and returns what is still to be
        written, see :class:`llmrank.surgery.apply.RepairsInPlace`.

    Returns
    -------
    Masks
        `masks`, except for the layers whose neurons were chosen anew.
    dict from str to RepairedMap
        By the path of the output map's module, in its dtype; maps that lose no neuron are left out.

    Raises
    ------
    OptionError
        FFNs of the explicit form, whose removed rows no map reads here.
    CalibrationError
        Non-finite activations; the message names the map.

    Notes
    -----
    Memory: moments of one map (two (n, n) float64 matrices, three to reselect), to solve from one to three and a half more, the
    more the fewer neurons go, and, unless they are written, the repaired maps; beside what the stream keeps.
    """
    if any(not layer.consumers for ffn in ffns for layer in ffn.prunable.values()):
        raise OptionError("repair needs whole FFNs; with structure_dict no map is known that reads the removed rows")
    may_add = method.needs_bias and bool(bias_attribute(model))
    repaired: dict[str, RepairedMap] = {}
    kept = dict(masks)
    with ExitStack() as standing_in:
        for ffn in progress(ffns, "Repairing") if progress else ffns:
            for layer in ffn.prunable.values():
                if bool(masks[layer.name].all()):
                    continue
                (consumer,) = layer.consumers
                kept[layer.name], solved = _repair_map(
                    ffn, layer, masks[layer.name], method, stream, choose, may_add=may_add
                )
                if write is not None:
                    solved = write(consumer, solved)
                repaired[consumer.name] = solved
                substitute(standing_in, consumer.module, solved)
    return Masks(kept), repaired


def _repair_map(
    ffn: FFN,
    layer: PrunableLayer,
    keep: torch.Tensor,
    method: BaseRepair,
    stream: Stream,
    choose: Choose | None,
    *,
    may_add: bool,
) -> tuple[torch.Tensor, RepairedMap]:
    """The keep mask of one layer and its repaired output map; all moments are freed afterwards."""
    (consumer,) = layer.consumers
    device = consumer.weight.device
    sums = MomentSums(layer.size, device, stream.fitted)
    whole = None
    if choose is not None and method.reselects:
        whole = MomentSums(layer.size, device, stream.fitted, hold_out=False)
    stream.feed(ffn, consumer.module, sums, whole)
    fit, held_out = sums.moments()
    if not fit.count:
        raise CalibrationError(
            f"no calibration token to fit the repair to reached {consumer.name}; give more and longer texts, or use no repair"
        )
    if not fit.finite or (held_out is not None and not held_out.finite):
        raise CalibrationError(
            f"what {consumer.name} reads, or the stream behind it, is not finite once the FFNs before it are cut; prune less, or "
            "load the model in float32"
        )
    if choose is not None and whole is not None:
        # Without a stream of the dense model, the stream that is already cut has to do.
        unexplained = (whole.moments()[0] if whole.count else fit).unexplained()
        keep = choose(layer.name, keep, unexplained.cpu())
    del sums, whole
    weight = consumer.weight.to(fit.second)
    bias = _bias(consumer.module, weight, may_add=may_add)
    # In float64 the maps of a half-precision model would take more than the model does.
    return keep, method.solve(weight, bias, keep.to(weight.device), fit, held_out).to(consumer.weight)


def _bias(module: nn.Module, weight: torch.Tensor, *, may_add: bool) -> torch.Tensor | None:
    """The bias of a map, (out,); zeros where it has none but can be given one."""
    bias = bias_of(module)
    if bias is not None:
        return bias.detach().to(weight)
    return weight.new_zeros(len(weight)) if may_add else None


def substitute(hooks: ExitStack, module: nn.Module, solved: RepairedMap) -> None:
    """Let a repaired map answer in place of a module, until `hooks` closes."""
    own: Any = module.weight
    answer = solved.to(own)
    weight = answer.weight
    if weight is None:
        weight = Projection.whole("", module).weight
    substitute_forward(
        hooks, module, lambda values: nn.functional.linear(values.to(weight.device), weight, answer.bias)
    )


def summary(repaired: Mapping[str, RepairedMap]) -> dict[str, Any]:
    """What a report says of a repair: for each map the target, the damping, and the held-out errors (see RepairedMap)."""
    return {
        name: {
            "target": solved.target,
            "damping": solved.damping,
            "held_out_error_when_cut": solved.before,
            "held_out_error_when_repaired": solved.after,
        }
        for name, solved in repaired.items()
    }
