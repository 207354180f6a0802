"""Repair all FFNs in the order of the model: a map is fitted for the inputs that it gets after earlier FFNs are repaired."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import nn

from llmrank.calibration.blockwise import Stream
from llmrank.calibration.forward import substitute_forward
from llmrank.errors import CalibrationError, OptionError
from llmrank.models import FFN, FFNs, LinearMap, PrunableLayer
from llmrank.models.families import bias_attribute
from llmrank.models.linear_map import bias_of, matrix_of
from llmrank.prune.masks import Masks
from llmrank.surgery.repair.base_repair import BaseRepair, RepairedMap
from llmrank.surgery.repair.moments import MomentSums

__all__ = ["Reselect", "WriteMap", "repair_ffns", "repair_summary", "substitute"]

Reselect: TypeAlias = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]
WriteMap: TypeAlias = Callable[[LinearMap, RepairedMap], RepairedMap]


def repair_ffns(
    model: nn.Module,
    ffns: FFNs,
    masks: Masks,
    method: BaseRepair,
    stream: Stream,
    progress: Callable[[Sequence[Any], str], Any] | None = None,
    choose: Reselect | None = None,
    write: WriteMap | None = None,
) -> tuple[Masks, dict[str, RepairedMap]]:
    """Repair the output maps of all FFNs, in the model's order; by default nothing is written to the model.

    Parameters
    ----------
    model : nn.Module
    ffns : FFNs
        FFNs that were found (not explicit ones).
    masks : Masks
    method : BaseRepair
    stream : Stream
        The calibration tokens; no FFN has been fed yet.
    progress : callable, optional
        See :func:`llmrank.calibration.statistics.collect_statistics`.
    choose : callable, optional
        Called if the method reselects: ``choose(layer, keep, unexplained)`` returns a keep mask, of as many neurons, that
        replaces `keep`.
    write : callable, optional
        ``write(map, repaired)`` writes a map into the model as soon as it is solved, and returns what is still to be written; see
        :class:`llmrank.surgery.repair.in_place.RepairsInPlace`.

    Returns
    -------
    Masks
        `masks`, or the keep masks that were chosen anew.
    dict from str to RepairedMap
        By the path of the output map's module, in its dtype; layers from which nothing is removed are left out.

    Raises
    ------
    OptionError
        FFNs are explicit, so that no output map is known; or the method needs a bias that the maps cannot have.
    CalibrationError
        Activations are not finite, or no calibration token reached a map.

    Notes
    -----
    Memory, besides that of the stream: several (n, n) float64 matrices for one map at a time, and the repaired maps, unless they
    are written into the model.
    """
    if ffns.explicit:
        raise OptionError(
            "repair needs whole FFNs; with structure_dict no map is known that reads the removed rows; leave the repair out"
        )
    can_add_bias = method.needs_bias and bool(bias_attribute(model))
    repaired: dict[str, RepairedMap] = {}
    kept = dict(masks)
    with ExitStack() as substitutes:
        for ffn in progress(ffns, "Repairing") if progress else ffns:
            for layer in ffn.prunable.values():
                if bool(masks[layer.name].all()):
                    continue
                (output_map,) = layer.output_maps
                kept[layer.name], solved = _repair_map(
                    ffn, layer, masks[layer.name], method, stream, choose, can_add_bias=can_add_bias
                )
                if write is not None:
                    solved = write(output_map, solved)
                repaired[output_map.name] = solved
                substitute(substitutes, output_map.module, solved)
    return Masks(kept), repaired


def _repair_map(
    ffn: FFN,
    layer: PrunableLayer,
    keep: torch.Tensor,
    method: BaseRepair,
    stream: Stream,
    choose: Reselect | None,
    *,
    can_add_bias: bool,
) -> tuple[torch.Tensor, RepairedMap]:
    (output_map,) = layer.output_maps
    device = output_map.weight.device
    sums = MomentSums(layer.size, device, stream.n_fitted_batches)
    dense_sums = None
    if choose is not None and method.reselects:
        dense_sums = MomentSums(layer.size, device, stream.n_fitted_batches, sum_held_out=False)
    stream.feed(ffn, output_map.module, sums, dense_sums)
    fit, held_out = sums.moments()
    if not fit.count:
        raise CalibrationError(
            f"no calibration token to fit the repair to reached {output_map.name}; give more and longer texts, or use no repair"
        )
    if not fit.finite or (held_out is not None and not held_out.finite):
        raise CalibrationError(
            f"the inputs of {output_map.name}, or the residual stream behind it, are not finite once the FFNs before it are "
            "pruned; prune less, or load the model in float32"
        )
    if choose is not None and dense_sums is not None:
        # The dense reader may have received nothing, see Stream.feed.
        unexplained = (dense_sums.moments()[0] if dense_sums.count else fit).unexplained()
        keep = choose(layer.name, keep, unexplained.cpu())
    del sums, dense_sums
    weight = output_map.weight.to(fit.second)
    bias = _bias(output_map.module, weight, can_add_bias=can_add_bias)
    # Kept in float64, the maps of a half-precision model would take more memory than the model.
    return keep, method.solve(weight, bias, keep.to(weight.device), fit, held_out).to(output_map.weight)


def _bias(module: nn.Module, weight: torch.Tensor, *, can_add_bias: bool) -> torch.Tensor | None:
    """Return the bias of a map, (out,); zeros if the map has none but can be given one."""
    bias = bias_of(module)
    if bias is not None:
        return bias.detach().to(weight)
    return weight.new_zeros(len(weight)) if can_add_bias else None


def substitute(hooks: ExitStack, module: nn.Module, solved: RepairedMap) -> None:
    """Let a repaired map compute in place of a module, until `hooks` closes."""
    own_weight = matrix_of(module)
    repaired = solved.to(own_weight)
    weight = own_weight if repaired.weight is None else repaired.weight
    substitute_forward(
        hooks, module, lambda values: nn.functional.linear(values.to(weight.device), weight, repaired.bias)
    )


def repair_summary(repaired: Mapping[str, RepairedMap]) -> dict[str, Any]:
    """Summarise a repair for a report: for each map the target, the damping, and the held-out errors (see RepairedMap)."""
    return {
        name: {
            "target": solved.target,
            "damping": solved.damping,
            "held_out_error_when_cut": solved.before,
            "held_out_error_when_repaired": solved.after,
        }
        for name, solved in repaired.items()
    }
