"""The forms of removal for one tensor: compact (smaller tensors), zero (zeros), mask (``torch.nn.utils.prune``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune
from transformers.pytorch_utils import Conv1D

from llmrank.models import FFNs, LinearMap
from llmrank.models.experts import ExpertMap, SeparateExperts
from llmrank.models.linear_map import as_stored, size_attributes
from llmrank.prune.masks import Masks, masks_of_experts
from llmrank.repair import RepairedMap

__all__ = [
    "FORMS",
    "SMALLER",
    "Form",
    "Store",
    "TensorMask",
    "compact_tensor",
    "mask_tensor",
    "remove_experts",
    "replace_tensor",
    "set_attribute",
    "tensor_masks",
    "write_repaired",
    "zero_tensor",
]

Form: TypeAlias = Literal["compact", "padded", "zero", "mask"]
# Returns a tensor with the same values that is held elsewhere, for example in a file.
Store: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
FORMS: tuple[Form, ...] = ("compact", "padded", "zero", "mask")
# Forms in which the model gets smaller.
SMALLER: tuple[Form, ...] = ("compact", "padded")


@dataclass
class TensorMask:
    """The entries of one parameter or buffer that are kept.

    Attributes
    ----------
    owner : nn.Module
        The module that holds the tensor.
    name : str
    axes : tuple of bool tensors
        For each axis of the tensor, a mask of the positions that are kept, (n,). In a tensor whose first axis is that of experts,
        the masks of the other axes are (experts, n), because every expert keeps positions of its own.
    """

    owner: nn.Module
    name: str
    axes: tuple[torch.Tensor, ...]

    @property
    def by_expert(self) -> bool:
        """Whether the other axes have positions of their own for every expert."""
        return any(axis.ndim == 2 for axis in self.axes)

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is removed."""
        return all(bool(axis.all()) for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the compact tensor."""
        first, *others = self.axes
        if self.by_expert:  # all kept experts keep the same number of positions, so any of them shows it
            others = [axis[first][0] for axis in others]
        return tuple(int(axis.sum()) for axis in (first, *others))

    def entries(self) -> torch.Tensor:
        """Return the mask of all entries, a bool tensor as large as the tensor."""
        kept = torch.ones(1, dtype=torch.bool)
        for position, axis in enumerate(self.axes):
            shape = [1] * len(self.axes)
            shape[position] = -1
            if axis.ndim == 2:
                shape[0] = len(axis)
            kept = kept & axis.view(shape)
        return kept

    def select(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the kept entries of a tensor as a smaller one, which owns its memory unless nothing is removed."""
        if not self.by_expert:
            return _selected(tensor, self.axes)
        first, *others = self.axes
        kept = [_selected(tensor[e], [axis[e] for axis in others]) for e in first.nonzero().flatten().tolist()]
        return torch.stack(kept)

    def read(self) -> Any:
        """Return the tensor that the model holds now."""
        owner = self.owner
        return owner._parameters[self.name] if self.name in owner._parameters else owner._buffers[self.name]


def _selected(tensor: torch.Tensor, axes: Sequence[torch.Tensor]) -> torch.Tensor:
    for axis, mask in enumerate(axes):
        # index_select copies, so the result owns its storage, which a checkpoint needs.
        if not bool(mask.all()):
            tensor = tensor.index_select(axis, mask.nonzero().flatten().to(tensor.device))
    return tensor


class _MaskCollector:
    """Collects one mask for each tensor, even if the tensor holds several linear maps."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, str], TensorMask] = {}

    def mask_of(self, owner: nn.Module, name: str, *, by_expert: bool = False) -> TensorMask:
        """Return the mask of a tensor, which keeps all entries at first."""
        if (id(owner), name) not in self.found:
            tensor = TensorMask(owner, name, ()).read()
            first, *others = tensor.shape
            own = [(first, n) if by_expert else (n,) for n in others]
            axes = tuple(torch.ones(size, dtype=torch.bool) for size in [(first,), *own])
            self.found[id(owner), name] = TensorMask(owner, name, axes)
        return self.found[id(owner), name]

    def remove_outputs(self, linear_map: LinearMap, keep: torch.Tensor) -> None:
        """Keep only the rows (and biases) of a linear map that a keep mask of its outputs keeps."""
        module = linear_map.module
        if isinstance(module, ExpertMap):
            for part in filter(None, (module.weight_part, module.bias_part)):
                axis = self.mask_of(part.owner, part.name, by_expert=True).axes[2 if part.transposed else 1]
                axis[part.expert, part.rows].logical_and_(keep)
            return
        removed = linear_map.rows[~keep]
        self.mask_of(module, "weight").axes[int(isinstance(module, Conv1D))][removed] = False
        if module._parameters.get("bias") is not None:
            self.mask_of(module, "bias").axes[0][removed] = False

    def remove_inputs(self, linear_map: LinearMap, keep: torch.Tensor) -> None:
        """Keep only the columns of a linear map that a keep mask of its inputs keeps."""
        module = linear_map.module
        if isinstance(module, ExpertMap):
            part = module.weight_part
            mask = self.mask_of(part.owner, part.name, by_expert=True)
            mask.axes[1 if part.transposed else 2][part.expert].logical_and_(keep)
        else:
            self.mask_of(module, "weight").axes[1 - int(isinstance(module, Conv1D))].logical_and_(keep)

    def remove_expert(self, linear_map: LinearMap) -> None:
        """Keep nothing of a linear map of an expert."""
        module: Any = linear_map.module
        if not isinstance(module, ExpertMap):
            self.remove_outputs(linear_map, torch.zeros(linear_map.size, dtype=torch.bool))
            return
        for part in filter(None, (module.weight_part, module.bias_part)):
            self.mask_of(part.owner, part.name, by_expert=True).axes[0][part.expert] = False


def tensor_masks(ffns: FFNs, masks: Masks, *, routers: bool = True) -> list[TensorMask]:
    """Translate the keep masks of neurons into the entries that every tensor keeps.

    Parameters
    ----------
    ffns : FFNs
    masks : Masks
        An expert that keeps no neuron is removed, and with it its rows in the tensors of the router.
    routers : bool
        Whether to include the tensors of routers, which only the compact form changes. If so, the tensors of a removed expert
        that is a module are left out, because :func:`remove_experts` removes that module.
    """
    collected = _MaskCollector()
    for name, layer in ffns.layers.items():
        removed = layer.mixture is not None and not bool(masks[name].any())
        if removed and routers and layer.mixture is not None and isinstance(layer.mixture.experts, SeparateExperts):
            continue  # remove_experts removes the module
        for linear_map in (*layer.input_maps, *layer.output_maps) if removed else ():
            collected.remove_expert(linear_map)
        for input_map in () if removed else layer.input_maps:
            collected.remove_outputs(input_map, masks[name])
        for output_map in () if removed else layer.output_maps:
            collected.remove_inputs(output_map, masks[name])
    for mixture, experts in zip(ffns.mixtures, ffns.experts.values(), strict=True):
        kept = torch.stack([masks[name].any() for name in experts])
        first = int(kept.long().argmax())
        for mask in collected.found.values():
            # Behind the experts there may be matrices of experts that only return their input. They get the same shape.
            for axis in mask.axes[1:] if mask.owner is mixture.experts.owner and mask.by_expert else ():
                axis[len(experts) :] = axis[first]
        if routers and not bool(kept.all()):
            for part in mixture.tensors_by_expert:
                collected.mask_of(part.owner, part.name).axes[part.axis].logical_and_(kept)
    return list(collected.found.values())


def remove_experts(ffns: FFNs, masks: Masks) -> None:
    """Remove experts from their mixtures, in place, if they are modules and keep no neuron."""
    for mixture, kept in masks_of_experts(ffns, masks).items():
        if isinstance(mixture.experts, SeparateExperts):
            mixture.experts.keep(kept.tolist())


def write_repaired(maps: Mapping[LinearMap, RepairedMap]) -> None:
    """Give output maps their repaired weights and biases.

    The model shares no memory with the repair, and views of the old weights keep their values.
    """
    cloned: set[tuple[int, str]] = set()
    for output_map, repaired in maps.items():
        module: Any = output_map.module
        if not isinstance(module, ExpertMap):
            if repaired.weight is not None:
                module.weight.data = as_stored(module, repaired.weight).to(module.weight, copy=True).contiguous()
            if repaired.bias is not None:
                module.bias.data = repaired.bias.to(module.bias, copy=True)
            continue
        for part, value in ((module.weight_part, repaired.weight), (module.bias_part, repaired.bias)):
            if part is None or value is None:
                continue
            parameter: Any = part.owner._parameters[part.name]
            if (id(part.owner), part.name) not in cloned:
                parameter.data = parameter.data.clone()
                cloned.add((id(part.owner), part.name))
            part.read().copy_(value)


def zero_tensor(mask: TensorMask) -> None:
    """Set the removed entries of a parameter to zero."""
    if not mask.keeps_all:
        parameter = mask.read()
        old = parameter.data
        # The zeros are not written in place, so that views of the old weights, such as those in graphs, keep their values.
        parameter.data = torch.where(mask.entries().to(old.device), old, torch.zeros_like(old))


def mask_tensor(mask: TensorMask) -> None:
    """Put a mask of ``torch.nn.utils.prune`` on a parameter, if it loses entries."""
    if not mask.keeps_all:
        entries = mask.entries().to(mask.read().device)
        torch_prune.custom_from_mask(mask.owner, mask.name, entries)  # type: ignore[no-untyped-call]


def compact_tensor(mask: TensorMask, store: Store | None = None) -> None:
    """Replace a tensor by the kept entries, and update the sizes that its module states, if the module is a linear map.

    The module then holds what `store` returns for the kept entries: a tensor with the same values, for example in a file.
    """
    if mask.keeps_all:
        return
    kept = mask.select(mask.read().data).contiguous()
    replace_tensor(mask, kept if store is None else store(kept))
    set_sizes(mask)


def set_sizes(mask: TensorMask) -> None:
    """Update the sizes that a linear map states, from the mask of its weight."""
    if mask.name == "weight" and len(mask.axes) == 2:
        rows, columns = reversed(mask.shape) if isinstance(mask.owner, Conv1D) else mask.shape
        for name, size in size_attributes(mask.owner, rows, columns).items():
            if hasattr(mask.owner, name):
                set_attribute(mask.owner, name, size)


def replace_tensor(mask: TensorMask, value: torch.Tensor) -> None:
    """Replace a parameter or buffer by another tensor; a parameter requires a gradient if the old one does."""
    old, owner = mask.read(), mask.owner
    if isinstance(old, nn.Parameter):
        owner._parameters[mask.name] = nn.Parameter(value, requires_grad=old.requires_grad)
    else:
        owner._buffers[mask.name] = value


def set_attribute(target: Any, name: str, value: Any) -> None:
    """Set an attribute, unless it has that value already."""
    if not hasattr(target, name) or getattr(target, name) != value:
        setattr(target, name, value)
