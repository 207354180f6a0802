"""Apply masks to a model as a transaction: if anything is raised, the parameters are restored, unless ``undoable=False``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from llmrank.errors import MaskError, OptionError, check_choice
from llmrank.models import FFNs, LinearMap
from llmrank.models.experts import ExpertMap, Mixture, RouteAround, route_around
from llmrank.models.families import bias_attribute, text_config
from llmrank.models.linear_map import bias_of, in_features, is_linear_map, out_features
from llmrank.models.stack import Stack
from llmrank.prune.masks import Masks, masks_of_experts
from llmrank.repair import RepairedMap
from llmrank.surgery.forms import (
    FORMS,
    SMALLER,
    Form,
    Store,
    compact_tensor,
    mask_tensor,
    remove_experts,
    tensor_masks,
    write_repaired,
    zero_tensor,
)
from llmrank.surgery.restores import Restore, restores_of
from llmrank.surgery.widths import check_padding, compact_widths, set_widths

__all__ = ["AppliedMasks", "apply_masks", "check_writable"]


@dataclass
class AppliedMasks:
    """Masks that were applied to a model, with what is needed to undo that.

    Attributes
    ----------
    masks : Masks
    widths : dict from str to int
        Number of neurons that every layer holds now, padding included.
    undoable : bool
        Whether the original tensors are kept, which :meth:`undo` needs.
    is_undone : bool
        Whether the model was restored completely.
    """

    masks: Masks
    widths: dict[str, int]
    undoable: bool = True
    _restores: list[Restore] = field(default_factory=list, repr=False)
    _unchanged_checks: list[Callable[[], bool]] = field(default_factory=list, repr=False)
    is_undone: bool = field(default=False, repr=False)

    def undo(self) -> None:
        """Restore every parameter, attribute and configuration entry that was changed, bit for bit.

        The original tensors are kept for this; drop the object to free them. After an error or an interrupt, a second call
        restores the rest.

        Raises
        ------
        MaskError
            Parameters were replaced in between, by a later application or a move to another device, say; nothing is restored.
        OptionError
            The original tensors were not kept.
        """
        if not self.undoable:
            raise OptionError("these masks were applied for good (undoable=False); load the model again")
        if not all(is_unchanged() for is_unchanged in self._unchanged_checks):
            raise MaskError(
                "parameters were replaced after the masks were applied; undo the later application first, or load the model again"
            )
        self._unchanged_checks.clear()
        self._roll_back()
        self.is_undone = True

    def keep_parameters(self, model: nn.Module) -> None:
        """Let :meth:`undo` restore the present values of all parameters first, because they will be changed in place."""
        before = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]

        def restore() -> None:
            for parameter, values in before:
                parameter.data.copy_(values)

        self._restores.insert(0, restore)

    def _roll_back(self) -> None:
        try:
            self._restore()
        finally:
            # A second attempt, in case the first was interrupted. If it was not, nothing is left to restore.
            self._restore()

    def _restore(self) -> None:
        failures: list[BaseException] = []
        for restore in self._restores:
            try:
                restore()
            except BaseException as error:  # noqa: PERF203 -- the others are restored all the same
                failures.append(error)
        if failures:
            raise failures[0]
        self._restores.clear()


def apply_masks(
    model: nn.Module,
    ffns: FFNs,
    masks: Masks,
    form: Form = "compact",
    repaired: Mapping[str, RepairedMap] | None = None,
    *,
    undoable: bool = True,
    store: Store | None = None,
) -> AppliedMasks:
    """Remove neurons from a model.

    To remove a neuron is to remove its rows and biases in the input maps, and its column in the output map. Of Linears that
    a `structure_dict` names, only rows and biases are removed. A block that keeps no neuron is left out.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    ffns : FFNs
        The FFNs of this model.
    masks : Masks
        One mask for each prunable layer.
    form : {"compact", "padded", "zero", "mask"}
        Smaller matrices (and configuration); the same, filled up with zeros to the width of the widest layer, so that
        transformers without llmrank can load them; zeros in matrices of the same size; or ``torch.nn.utils.prune`` masks. If no
        field of the configuration can state the width of a padded model, its layers are filled up to the width of the dense one.
    repaired : mapping from str to RepairedMap, optional
        Repaired output maps for the same masks; see :func:`llmrank.repair.repair_ffns`.
    undoable : bool
        Whether to keep the original tensors. If not, each is freed as soon as it is replaced, and a failure half-way leaves the
        model pruned in part.
    store : callable, optional
        ``store(tensor)`` returns a tensor with the same values, for example in a file. The compact model holds it in place of
        `tensor`.

    Raises
    ------
    MaskError
        The masks or repairs do not fit the model, the model was compacted since `ffns` was found, a mask keeps no neuron, or
        layers of different widths are to be padded. Nothing has been changed then.
    OptionError
        The form is unknown, or does not fit explicit FFNs; or neurons cannot be removed, see :func:`check_writable`. Nothing has
        been changed then.
    UnsupportedModelError
        No configuration states the model without the blocks that are left out. Nothing has been changed then.
    """
    repaired = repaired or {}
    _check(ffns, masks, form)
    gets_smaller = form in SMALLER
    output_maps = ffns.output_maps
    _check_repaired(output_maps, repaired)
    application = AppliedMasks(masks, {}, undoable)
    left_out = masks.left_out(ffns.layers.values())
    shallow = Stack(model, left_out[0].stack).without(left_out) if left_out else None
    if undoable:
        application._restores += restores_of(model, ffns, shallow)
    # Nothing inside a block that is left out is changed.
    ffns = ffns.without(left_out)
    no_neurons = dict.fromkeys(masks, 0)
    masks = masks.of(ffns)
    try:
        if any(r.bias is not None and bias_of(output_maps[name].module) is None for name, r in repaired.items()):
            _add_biases(model, ffns)
        write_repaired({output_maps[name]: repair for name, repair in repaired.items()})
        # The masks `held` say which neurons a layer holds in the end: the kept neurons, and with padding some removed ones.
        is_padded = form == "padded"
        held, fields = compact_widths(model, ffns, masks, shallow, padded=is_padded) if gets_smaller else (masks, {})
        sizes = {name: len(mask) for name, mask in masks.items()}
        application.widths = no_neurons | held.widths if gets_smaller else sizes
        if form == "mask":
            for tensor_mask in tensor_masks(ffns, masks, routers=False):
                mask_tensor(tensor_mask)
        elif form == "zero" or held != masks:
            for tensor_mask in tensor_masks(ffns, masks, routers=False):
                zero_tensor(tensor_mask)
        if gets_smaller:
            for tensor_mask in tensor_masks(ffns, held):
                compact_tensor(tensor_mask, store)
            remove_experts(ffns, held)
            set_widths(model, ffns, sizes, held.widths, fields)
            if shallow is not None:
                shallow.write(text_config(model))
        else:
            for mixture, kept_experts in masks_of_experts(ffns, masks).items():
                route_around(mixture, kept_experts, ExitStack())  # the restores above undo it; nobody closes this stack
        if undoable:  # they would keep removed experts in memory
            application._unchanged_checks.extend(map(_unchanged_check, (*ffns.modules, *ffns.router_modules)))
            for stack in () if shallow is None else (shallow.stack,):
                application._unchanged_checks.append(partial(_holds, stack, list(stack)))
        return application
    except BaseException:
        application._roll_back()
        raise


def _unchanged_check(module: nn.Module) -> Callable[[], bool]:
    """Return a function that tells whether the module still holds the tensors that it holds now."""

    def tensors() -> list[tuple[str, int, int]]:
        return [(name, id(p), p.data_ptr()) for name, p in module._parameters.items() if p is not None]

    now = tensors()
    return lambda: tensors() == now


def _holds(stack: nn.ModuleList, blocks: Sequence[nn.Module]) -> bool:
    return len(stack) == len(blocks) and all(one is other for one, other in zip(stack, blocks, strict=True))


def _check(ffns: FFNs, masks: Masks, form: str) -> None:
    check_choice("form", form, FORMS)
    if form in SMALLER and ffns.explicit:
        raise OptionError(
            f"form {form!r} is refused with structure_dict: only rows of the named Linears are removed, so the maps that read "
            "them would no longer fit; use form='zero' or 'mask', or let the FFNs be found (structure_dict=None)"
        )
    masks.check(ffns.layers)
    left_out = masks.left_out(ffns.layers.values())
    if left_out and form not in SMALLER:
        raise OptionError(
            f"blocks can be left out in the forms compact and padded only, got form={form!r} and masks that keep nothing of "
            f"{left_out[0].name}"
        )
    ffns = ffns.without(left_out)
    if not ffns:
        raise MaskError("the masks leave out all blocks; keep at least one")
    if form == "padded":
        check_padding(ffns)
    for mixture, keep in masks_of_experts(ffns, masks).items():
        _check_experts(mixture, keep, form)
    for mixture in ffns.mixtures:
        if isinstance(vars(mixture.router).get("forward"), RouteAround):
            raise OptionError(
                f"the router {mixture.router_name} passes over experts already, which were removed in the form zero or mask; "
                "undo that first"
            )
    check_writable(ffns)


def _check_experts(mixture: Mixture, keep: torch.Tensor, form: str) -> None:
    """Raise a MaskError if too few experts are kept for the router, or groups keep different numbers of them."""
    by_group = keep.view(mixture.n_groups, -1).sum(1).tolist()
    if min(by_group) < mixture.min_kept or (form in SMALLER and len(set(by_group)) > 1):
        groups = f" in each of its {mixture.n_groups} groups of experts" if mixture.n_groups > 1 else ""
        same = ", the same number in every group" if mixture.n_groups > 1 else ""
        raise MaskError(
            f"the masks keep {by_group if groups else by_group[0]} experts of {mixture.name}{groups}, and its router needs "
            f"{mixture.min_kept}{groups}{same}; remove fewer experts"
        )


def _check_repaired(output_maps: Mapping[str, LinearMap], repaired: Mapping[str, RepairedMap]) -> None:
    for name, repair in repaired.items():
        output_map = output_maps.get(name)
        expected = None if output_map is None else (output_map.size, output_map.in_features)
        shape = expected if repair.weight is None else tuple(repair.weight.shape)
        if shape is None or shape != expected:
            raise MaskError(
                f"the repair of {name} has shape {shape}, the model's map {expected or 'is not there'}; "
                "repair this model, with these masks"
            )


def check_writable(ffns: FFNs) -> None:
    """Raise unless neurons can be removed from every linear map of the FFNs.

    Raises
    ------
    OptionError
        A map is reparametrised (it has a mask already, or weight norm), or holds no data here.
    MaskError
        A map has fewer outputs, or another number of inputs, than when it was found.
    """
    for ffn in ffns:
        for linear_map in ffn.all_maps:
            _check_stored(linear_map)
        for n_inputs, stage in (*zip(ffn.sizes, ffn.stages, strict=False), (ffn.sizes[0], ffn.maps_of_heads)):
            for linear_map in stage:
                if linear_map.end > out_features(linear_map.module) or n_inputs != in_features(linear_map.module):
                    raise _shape_error(linear_map)
                if linear_map.weight.is_meta:
                    raise OptionError(
                        f"{linear_map.name} has no data here (offloaded or on the meta device); load the model completely, on "
                        "one or several devices, or prune it on the CPU with --low-memory (in Python: work_directory)"
                    )


def _check_stored(linear_map: LinearMap) -> None:
    """Raise unless the module that holds a linear map still has the weight of the map, and the expert that the map belongs to."""
    part = linear_map.module.weight_part if isinstance(linear_map.module, ExpertMap) else None
    weight = linear_map.owner._parameters.get(part.name if part else "weight")
    if weight is None:
        raise OptionError(
            f"{linear_map.name} has no weight of its own: it carries a torch.nn.utils.prune mask already, or "
            "is reparametrised (weight norm); undo the earlier application, call prune.remove or "
            "remove_parametrizations on it first"
        )
    if part is not None and part.expert >= len(weight):
        raise _shape_error(linear_map)


def _shape_error(linear_map: LinearMap) -> MaskError:
    return MaskError(
        f"{linear_map.name} has other shapes than when it was found: the model has been compacted since; undo that, or find its "
        "FFNs and their masks again"
    )


def _add_biases(model: nn.Module, ffns: FFNs) -> None:
    """Give the maps of FFNs without a bias (not those of attentions) one of zeros, and state that in the configuration."""
    of_attentions = {id(linear_map.module) for ffn in ffns.attentions for linear_map in ffn.all_maps}
    for module in filter(is_linear_map, ffns.modules):
        if id(module) not in of_attentions and module._parameters.get("bias") is None:
            weight: Any = module.weight
            module._parameters["bias"] = nn.Parameter(weight.new_zeros(out_features(module)))
    setattr(text_config(model), bias_attribute(model), True)
