"""The forms of removal for one linear map: compact (smaller matrices), zero (zeros), mask (``torch.nn.utils.prune``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from llmrank.models import FFNs
from llmrank.models.linear_map import as_stored, bias_of, in_features, out_features, size_attributes
from llmrank.prune.masks import Masks
from llmrank.surgery.repair import RepairedMap

__all__ = [
    "FORMS",
    "Form",
    "LinearMask",
    "compact_map",
    "linear_masks",
    "mask_map",
    "replace_parameter",
    "set_attribute",
    "write_repaired",
    "zero_map",
]

Form: TypeAlias = Literal["compact", "zero", "mask"]
FORMS: tuple[Form, ...] = ("compact", "zero", "mask")


@dataclass
class LinearMask:
    """The rows (outputs) and columns (inputs) that one linear map keeps.

    Attributes
    ----------
    name : str
        Path of the module in the model.
    module : nn.Linear or Conv1D
    rows, columns : (out,) and (in,) bool tensors
        True = kept.
    """

    name: str
    module: nn.Module
    rows: torch.Tensor
    columns: torch.Tensor

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is removed from the weight."""
        return bool(self.rows.all() and self.columns.all())

    @property
    def n_kept_rows(self) -> int:
        """Number of rows that are kept."""
        return int(self.rows.sum())

    @property
    def n_kept_columns(self) -> int:
        """Number of columns that are kept."""
        return int(self.columns.sum())

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Shape of the compact weight, in the module's own layout."""
        stored = as_stored(self.module, torch.empty(self.n_kept_rows, self.n_kept_columns, device="meta"))
        return (stored.shape[0], stored.shape[1])

    def weight_mask(self) -> torch.Tensor:
        """Return the mask of the weight's entries: bool, in the module's own layout."""
        return as_stored(self.module, self.rows[:, None] & self.columns[None, :])

    def parameter_masks(self) -> dict[str, torch.Tensor]:
        """Return a mask of the kept entries for each parameter ("weight", "bias") that loses entries."""
        masks = {}
        if not self.keeps_all:
            masks["weight"] = self.weight_mask()
        if bias_of(self.module) is not None and not bool(self.rows.all()):
            masks["bias"] = self.rows
        return masks


def linear_masks(ffns: FFNs, masks: Masks) -> list[LinearMask]:
    """Translate the keep masks of neurons into the rows and columns that every linear map keeps.

    There is one result for each module, even if the module holds two input maps or lies between two prunable layers.
    """
    by_module: dict[int, LinearMask] = {}

    def mask_of(name: str, module: nn.Module) -> LinearMask:
        rows = torch.ones(out_features(module), dtype=torch.bool)
        columns = torch.ones(in_features(module), dtype=torch.bool)
        return by_module.setdefault(id(module), LinearMask(name, module, rows, columns))

    for name, layer in ffns.layers.items():
        for input_map in layer.input_maps:
            rows = mask_of(input_map.name, input_map.module).rows
            rows[input_map.start : input_map.start + input_map.size] &= masks[name]
        for output_map in layer.output_maps:
            mask_of(output_map.name, output_map.module).columns.logical_and_(masks[name])
    return list(by_module.values())


def write_repaired(module: Any, repaired: RepairedMap, *, copy: bool) -> None:
    """Give a module its repaired weight and bias.

    Without `copy` the module may share the repair's weight, so :func:`zero_map` or :func:`compact_map` must replace the weight.
    """
    # Not in place, so that views of the old weights in graphs keep their values.
    if repaired.weight is not None:
        module.weight.data = as_stored(module, repaired.weight).to(module.weight, copy=copy).contiguous()
    if repaired.bias is not None:
        module.bias.data = repaired.bias.to(module.bias, copy=True)


def zero_map(linear: LinearMask) -> None:
    """Set the removed entries of a map's weight and bias to zero."""
    for name, mask in linear.parameter_masks().items():
        parameter: Any = linear.module._parameters[name]
        old = parameter.data
        # Not in place, for the same reason as in write_repaired.
        parameter.data = torch.where(mask.to(old.device), old, torch.zeros_like(old))


def mask_map(linear: LinearMask) -> None:
    """Put ``torch.nn.utils.prune`` masks on a map's weight and bias, if they lose entries."""
    for name, mask in linear.parameter_masks().items():
        parameter: Any = linear.module._parameters[name]
        torch_prune.custom_from_mask(linear.module, name, mask.to(parameter.device))  # type: ignore[no-untyped-call]


def compact_map(linear: LinearMask) -> None:
    """Replace a map's weight and bias by tensors of the kept rows and columns, and update the module's sizes."""
    module: Any = linear.module
    for name in linear.parameter_masks():
        value = module._parameters[name].data
        axes = [linear.rows] if name == "bias" else [linear.rows, linear.columns]
        value = value if name == "bias" else as_stored(module, value)
        for axis, mask in enumerate(axes):
            # index_select copies, so the result owns its storage, which a checkpoint needs.
            if not bool(mask.all()):
                value = value.index_select(axis, mask.nonzero().flatten().to(value.device))
        replace_parameter(module, name, value if name == "bias" else as_stored(module, value).contiguous())
    for name, size in size_attributes(module, linear.n_kept_rows, linear.n_kept_columns).items():
        set_attribute(module, name, size)


def replace_parameter(module: Any, name: str, value: torch.Tensor) -> None:
    """Replace a parameter by one with another tensor, which requires a gradient if the old one does."""
    module._parameters[name] = nn.Parameter(value, requires_grad=module._parameters[name].requires_grad)


def set_attribute(target: Any, name: str, value: Any) -> None:
    """Set an attribute, unless it has that value already."""
    if not hasattr(target, name) or getattr(target, name) != value:
        setattr(target, name, value)
