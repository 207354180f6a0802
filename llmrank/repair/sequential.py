"""Repair all FFNs in the order of the model: a map is fitted for the inputs that it gets after earlier FFNs are repaired."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from llmrank.errors import CalibrationError, OptionError
from llmrank.execution import Execution, Processes
from llmrank.execution.pass_stream import Stream
from llmrank.models import FFN, FFNs, LinearMap, PrunableLayer
from llmrank.models.experts import ExpertMap, route_around
from llmrank.models.families import bias_attribute
from llmrank.models.forward import substitute_forward
from llmrank.models.linear_map import bias_of, matrix_of
from llmrank.prune.masks import Masks, masks_of_experts
from llmrank.repair.base_repair import BaseRepair, RepairedMap, Target
from llmrank.repair.in_files import RepairsInFiles
from llmrank.repair.moments import Moments, MomentSums

__all__ = ["Reselect", "WriteMap", "repair_ffns", "repair_summary", "substitute"]

# Most memory that the second moments of the experts that are fitted together may take.
MOMENT_BYTES = 1 << 30

# See `choose` and `write` of repair_ffns.
Reselect: TypeAlias = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]
WriteMap: TypeAlias = Callable[[LinearMap, RepairedMap], RepairedMap]


def repair_ffns(
    model: nn.Module,
    ffns: FFNs,
    masks: Masks,
    method: BaseRepair,
    stream: Stream,
    execution: Execution = Execution(),
    choose: Reselect | None = None,
    write: WriteMap | None = None,
    files: RepairsInFiles | None = None,
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
        Passes the calibration tokens through the model; no FFN has been fed yet.
    execution : Execution
        Each map is solved by one of the processes, and all get it.
    choose : callable, optional
        Called if the method reselects: ``choose(layer, keep, unexplained)`` returns a keep mask, of as many neurons, that
        replaces `keep`.
    write : callable, optional
        ``write(map, repaired)`` writes a map into the model as soon as it is solved, and returns what is still to be written; see
        :class:`llmrank.repair.in_place.RepairsInPlace`.
    files : RepairsInFiles, optional
        Keeps every repaired map. If the stream passed an FFN in an earlier process, the maps of this FFN are read from its file.

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
    Memory, in addition to that of the stream: several (n, n) float64 matrices for one map at a time, and the repaired maps, if
    they are not written into the model.
    """
    if ffns.explicit:
        raise OptionError(
            "repair needs whole FFNs; with structure_dict no map is known that reads the removed rows; leave the repair out"
        )
    can_add_bias = method.needs_bias and bool(bias_attribute(model))
    fitting = _Fitting(method, stream, choose, execution.processes, can_add_bias=can_add_bias)
    repaired: dict[str, RepairedMap] = {}
    left_out = masks.left_out(ffns.layers.values())
    # What stands behind a block that is left out makes up for it, even where no neuron is removed.
    first = next((k for k, ffn in enumerate(ffns) if ffn.whole_block in left_out), len(ffns))
    behind = {id(ffn) for ffn in ffns[first:]}
    ffns = ffns.without(left_out)
    kept, kept_experts = dict(masks), masks_of_experts(ffns, masks)
    not_rerouted, n_chosen = dict(kept_experts), 0
    with ExitStack() as substitutes:
        for block in left_out:
            stream.leave_out(block, substitutes)
        for group in execution.steps(_groups(ffns, ffns.sizes if fitting.reads_removed else masks.widths), "Repairing"):
            mixture = group[0][1].mixture
            # If a mixture loses experts, the others are repaired even if they lose no neuron, to make up for the lost experts.
            loses_experts = mixture in kept_experts
            chosen = [
                (ffn, layer)
                for ffn, layer in group
                if bool(masks[layer.name].any())
                and (loses_experts or id(ffn) in behind or not bool(masks[layer.name].all()))
            ]
            n_chosen += len(chosen)
            # The router passes over experts from the first group on that is read, because the dense model must pass before.
            experts = not_rerouted.pop(mixture, None) if mixture is not None and chosen else None
            reroute = (
                None if experts is None or mixture is None else partial(route_around, mixture, experts, substitutes)
            )
            has_passed = files is not None and stream.has_passed(group[0][0])
            for layer, keep, solved in (
                _solved_earlier(chosen, masks, files, choose) if has_passed else fitting.repair(chosen, masks, reroute)
            ):
                (output_map,) = layer.output_maps
                kept[layer.name] = keep
                if files is not None and not has_passed:
                    files.save(layer.name, keep, solved, fitting.unexplained.pop(layer.name, None))
                if write is not None:
                    solved = write(output_map, solved)
                repaired[output_map.name] = solved
                substitute(substitutes, output_map.module, solved)
        # An expert that no token to fit to reached is not repaired, and has all its neurons in the stream. Then the states behind
        # the last block are not those of the pruned model.
        if repaired and len(repaired) == n_chosen:
            stream.finish()
    return Masks(kept), repaired


def _solved_earlier(
    group: Sequence[tuple[FFN, PrunableLayer]], masks: Masks, files: RepairsInFiles | None, choose: Reselect | None
) -> Iterator[tuple[PrunableLayer, torch.Tensor, RepairedMap]]:
    """Yield each layer of a group that was repaired earlier, with its keep mask and its repaired map."""
    for _, layer in group:
        found = None if files is None else files.load(layer)
        if found is not None:
            keep, solved, unexplained = found
            if choose is not None and unexplained is not None:
                choose(layer.name, masks[layer.name], unexplained)  # for later choices, which read its result
            yield layer, keep, solved


def _groups(ffns: FFNs, read: Mapping[str, int]) -> list[list[tuple[FFN, PrunableLayer]]]:
    """Return the layers in the model's order, experts of one mixture together, as many as memory allows.

    `read` is the number of neurons of each layer whose moments are summed up.
    """
    groups: list[list[tuple[FFN, PrunableLayer]]] = []
    sum_of_group = 0
    for ffn in ffns:
        for layer in ffn.prunable.values():
            last = groups[-1] if groups else []
            # There are sums to fit to and held-out sums: of products of neurons, and of neurons with what the output lacks. The
            # weights of removed neurons are in float32, which counts half.
            n_read, n_outputs = read[layer.name], ffn.sizes[-1]
            numbers = 2 * n_read * (n_read + n_outputs) + (layer.size - n_read) * n_outputs // 2
            together = last and layer.mixture is not None and last[-1][1].mixture is layer.mixture
            if together and 8 * (sum_of_group + numbers) <= MOMENT_BYTES:
                last.append((ffn, layer))
                sum_of_group += numbers
            else:
                groups.append([(ffn, layer)])
                sum_of_group = numbers
    return groups


class _Fitting:
    """Fits the output maps of layers with a method, on the tokens of the streams of all processes."""

    def __init__(
        self,
        method: BaseRepair,
        stream: Stream,
        choose: Reselect | None,
        processes: Processes,
        *,
        can_add_bias: bool,
    ) -> None:
        self._method, self._stream, self._choose, self._processes = method, stream, choose, processes
        self._can_add_bias = can_add_bias
        self._n_solved = 0
        self._reselects = choose is not None and method.reselects
        # Whether the moments of removed neurons are summed up.
        self.reads_removed = method.reads_removed or self._reselects
        # For each layer whose neurons were chosen anew, the values by which they were chosen, see Moments.unexplained.
        self.unexplained: dict[str, torch.Tensor] = {}

    def repair(
        self, group: Sequence[tuple[FFN, PrunableLayer]], masks: Masks, reroute: Callable[[], None] | None
    ) -> Iterator[tuple[PrunableLayer, torch.Tensor, RepairedMap]]:
        """Yield each layer of a group with its keep mask and its repaired map.

        Experts that get no token to fit to are left out. `reroute` makes a router pass over removed experts, and is called before
        the inputs of the layers are read, see :meth:`llmrank.execution.pass_stream.Stream.feed`.
        """
        sums = {layer.name: self._sums(layer, None if self.reads_removed else masks[layer.name]) for _, layer in group}
        dense_sums = {}
        if self._reselects:
            dense_sums = {layer.name: self._sums(layer, sum_held_out=False) for _, layer in group}
        if not group:
            return
        modules = {layer.name: layer.output_maps[0].module for _, layer in group}
        self._stream.feed(
            group[0][0],
            {modules[name]: reader for name, reader in sums.items()},
            {modules[name]: reader for name, reader in dense_sums.items()},
            reroute,
        )
        yield from self._solved([layer for _, layer in group], masks, sums, dense_sums)

    def _solved(
        self,
        layers: Sequence[PrunableLayer],
        masks: Masks,
        sums: dict[str, MomentSums],
        dense_sums: dict[str, MomentSums],
    ) -> Iterator[tuple[PrunableLayer, torch.Tensor, RepairedMap]]:
        """Yield each layer with its keep mask and its repaired map, solved from the sums of its inputs.

        Each process adds up the moments of some layers, and solves their maps for all processes.
        """
        processes = self._processes
        owners = {layer.name: processes.owner(self._n_solved + k) for k, layer in enumerate(layers)}
        self._n_solved += len(layers)
        for readers in (sums, dense_sums):
            extents = processes.gather([reader.extent for reader in readers.values()])
            for name, *of_reader in zip(readers, *extents, strict=True):
                processes.add_up(readers[name].parts(of_reader), owners[name])
        mine = [layer for layer in layers if owners[layer.name] == processes.rank]
        found = ((layer.name, self._moments(layer, sums[layer.name])) for layer in mine)
        moments = {name: each for name, each in found if each is not None}
        keeps = {layer.name: masks[layer.name] for layer in layers}
        targets: dict[str, Target] = {name: "stream" if each.is_followed else "output" for name, each in sums.items()}
        if dense_sums:
            unexplained = {name: self._unexplained(fit, dense_sums[name]) for name, (fit, _) in moments.items()}
            everywhere = {name: values for part in processes.gather(unexplained) for name, values in part.items()}
            # A choice depends on earlier choices, so every process makes all choices.
            keeps |= {
                layer.name: self._choose_anew(layer, keeps[layer.name], everywhere[layer.name])
                for layer in layers
                if layer.name in everywhere
            }
        # Only `moments` holds the memory of a layer's moments now, so that it is freed as soon as the map is solved.
        sums.clear()
        dense_sums.clear()
        solved: dict[str, RepairedMap] = {}
        for layer in mine:
            if layer.name in moments:
                solution = self._solve(layer, keeps[layer.name], targets[layer.name], *moments.pop(layer.name))
                solved[layer.name] = solution.to(torch.empty(0, dtype=layer.output_maps[0].weight.dtype))
        for layer in layers:
            repaired = processes.from_one(partial(solved.pop, layer.name, None), owners[layer.name])
            if repaired is not None:
                yield layer, keeps[layer.name], repaired.to(layer.output_maps[0].weight)

    def _sums(self, layer: PrunableLayer, keep: torch.Tensor | None = None, *, sum_held_out: bool = True) -> MomentSums:
        """Make the sums over all neurons of a layer, or over those that are kept."""
        (output_map,) = layer.output_maps
        routing = None if layer.mixture is None else layer.mixture.routing_of(output_map.module)
        device = self._stream.device or output_map.weight.device
        return MomentSums(
            layer.size,
            device,
            self._stream.n_fitted_batches,
            sum_held_out=sum_held_out,
            routing=routing,
            keep=keep,
            weight=output_map.weight,
        )

    def _moments(self, layer: PrunableLayer, sums: MomentSums) -> tuple[Moments, Moments | None] | None:
        """Return the moments to fit to, and the held-out ones; None for an expert that gets no token."""
        (output_map,) = layer.output_maps
        fit, held_out = sums.moments()
        if not fit.count:
            if layer.mixture is not None:
                return None
            raise CalibrationError(
                f"no calibration token to fit the repair to reached {output_map.name}; give more and longer texts, or use no "
                "repair"
            )
        if not fit.finite or (held_out is not None and not held_out.finite):
            raise CalibrationError(
                f"the inputs of {output_map.name}, or the residual stream behind it, are not finite once the FFNs before it are "
                "pruned; prune less, or load the model in float32"
            )
        return fit, held_out

    @staticmethod
    def _unexplained(fit: Moments, dense_sums: MomentSums) -> torch.Tensor:
        # The sums of the dense model may have received nothing, see Stream.feed.
        return (dense_sums.moments()[0] if dense_sums.count else fit).unexplained().cpu()

    def _choose_anew(self, layer: PrunableLayer, keep: torch.Tensor, unexplained: torch.Tensor) -> torch.Tensor:
        if self._choose is None:
            return keep
        self.unexplained[layer.name] = unexplained
        return self._choose(layer.name, keep, unexplained)

    def _solve(
        self, layer: PrunableLayer, keep: torch.Tensor, target: Target, fit: Moments, held_out: Moments | None
    ) -> RepairedMap:
        (output_map,) = layer.output_maps
        weight = output_map.weight.to(fit.second.device).to(fit.second)  # its own device may have no float64
        # Maps of experts and of attentions without a bias are not given one.
        can_add_bias = self._can_add_bias and layer.mixture is None and layer.heads is None
        bias, kept = _bias(output_map.module, weight, can_add_bias=can_add_bias), keep.to(weight.device)
        read = weight if self.reads_removed else weight[:, kept]
        fit, held_out = fit.less_output(read, bias), None if held_out is None else held_out.less_output(read, bias)
        if self.reads_removed:
            solved = self._method.solve(weight, bias, kept, fit, held_out)
        else:
            of_kept = self._method.solve(read, bias, kept[kept], fit, held_out)
            new_weight = torch.zeros_like(weight)
            new_weight[:, kept] = weight[:, kept] if of_kept.weight is None else of_kept.weight
            solved = replace(of_kept, weight=new_weight, target=target)
        # In float64, the maps of a half-precision model would take more memory than the model, so they are converted.
        return solved.to(output_map.weight)


def _bias(module: nn.Module, weight: torch.Tensor, *, can_add_bias: bool) -> torch.Tensor | None:
    """Return the bias of a map, (out,); zeros if the map has none but can be given one."""
    bias = bias_of(module)
    if bias is not None:
        return bias.detach().to(weight)
    return weight.new_zeros(len(weight)) if can_add_bias else None


def substitute(hooks: ExitStack, module: nn.Module, solved: RepairedMap) -> None:
    """Let a repaired map compute in place of a module, until `hooks` closes.

    If the module holds a copy of its weight on another device for a while, the map computes there too, with a copy of its own
    weight that is freed together with the module's.
    """
    copies = WeakTensorKeyDictionary()

    def compute(values: torch.Tensor) -> torch.Tensor:
        parameter = module.weight_part.parameter if isinstance(module, ExpertMap) else module.weight
        own_weight = matrix_of(module)
        if parameter not in copies:
            copies[parameter] = solved.to(own_weight)
        weight = own_weight if solved.weight is None else copies[parameter].weight
        return nn.functional.linear(values.to(own_weight.device), weight, copies[parameter].bias)

    substitute_forward(hooks, module, compute)


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
