"""The widths of a compact model's layers, as its modules and its configuration state them.

If one field, such as ``intermediate_size``, can describe the compact model, that field is written, and stock loaders read it.
Otherwise, if a width has changed, all are listed under ``llmrank_widths``, which :func:`llmrank.surgery.checkpoint.load` reads.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from llmrank.errors import MaskError
from llmrank.models import FFNs
from llmrank.models.families import WIDTH_ATTRIBUTES, text_config
from llmrank.models.linear_map import bias_of
from llmrank.prune.masks import Masks
from llmrank.surgery.forms import LinearMask, linear_masks, set_attribute

__all__ = ["ALIGNMENTS", "WIDTHS_KEY", "Align", "check_padding", "compact_widths", "module_widths", "set_widths"]

Align: TypeAlias = Literal["none", "pad"]
ALIGNMENTS: tuple[Align, ...] = ("none", "pad")
WIDTHS_KEY = "llmrank_widths"
ABSENT = object()


def check_padding(sizes: Iterable[int]) -> None:
    """Raise a MaskError if the prunable layers differ in their number of neurons, so that they cannot be padded."""
    originals = set(sizes)
    if len(originals) > 1:
        raise MaskError(
            f"align='pad' needs layers of one original width, these have {sorted(originals)}; use align='none' and llmrank's "
            "loader"
        )


def compact_widths(model: nn.Module, ffns: FFNs, masks: Masks, align: Align) -> tuple[Masks, dict[str, Any]]:
    """Decide which neurons the compact layers hold, and which configuration fields describe them.

    Parameters
    ----------
    model : nn.Module
        Not changed, and not compact yet.
    ffns : FFNs
    masks : Masks
    align : {"none", "pad"}
        With "pad" every layer also holds removed neurons, up to the width of the widest layer; if no field can state that
        width, up to the width of the dense model.

    Returns
    -------
    held : Masks
        The neurons that the layers hold, padding included.
    fields : dict from str to value
        Configuration fields to write; empty if no field describes the compact model.
    """
    if align == "none":
        return masks, _config_fields(model, ffns, masks)
    padded = _padded(masks, max(masks.widths.values()))
    fields = _config_fields(model, ffns, padded)
    return (padded, fields) if fields else (_padded(masks, max(map(len, masks.values()))), {})


def _padded(masks: Masks, width: int) -> Masks:
    """Return masks that keep `width` neurons of every layer: those that are kept, and the first of the removed ones."""
    padded = dict(masks)
    for mask in padded.values():
        removed = (~mask).nonzero().flatten()
        mask[removed[: width - int(mask.sum())]] = True
    return Masks(padded)


def _config_fields(model: nn.Module, ffns: FFNs, masks: Masks) -> dict[str, Any]:
    """Find the configuration field that describes the compact model of these masks; empty if nothing is removed or none does.

    A field such as ``intermediate_size`` may set the width of other modules too, which are not pruned. So a model is built on the
    meta device from the configuration with the new value, and the shapes of all parameters are compared.
    """
    config = getattr(model, "config", None)
    if config is None or not masks.is_uniform or masks.kept == masks.size:
        return {}
    (width,) = set(masks.widths.values())
    compact_shapes = _compact_shapes(model, linear_masks(ffns, masks))
    for name in WIDTH_ATTRIBUTES:
        # GPT-2's n_inner is None while the width is four times the hidden size; Gemma 3n has a list, one width a layer.
        old = getattr(text_config(model), name, ABSENT)
        if old is not ABSENT:
            fields = {name: [width] * len(old) if isinstance(old, list) else width}
            if _configured_shapes(model, fields) == compact_shapes:
                return fields
    return {}


def _compact_shapes(model: nn.Module, linears: Sequence[LinearMask]) -> dict[str, tuple[int, ...]]:
    changed: dict[int, tuple[int, ...]] = {}
    for linear in linears:
        module: Any = linear.module
        changed[id(module.weight)] = linear.weight_shape
        changed[id(bias_of(module))] = (linear.n_kept_rows,)
    named = model.named_parameters(remove_duplicate=False)
    return {name: changed.get(id(parameter), tuple(parameter.shape)) for name, parameter in named}


def _configured_shapes(model: nn.Module, fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Return the parameter shapes of a model built from the configuration with these fields; None if it cannot be built."""
    # Loaders do not find the subclass that llmrank.surgery.checkpoint makes for listed widths, so its base class is built.
    places = ((cls, sys.modules.get(cls.__module__)) for cls in type(model).__mro__)
    exported: Any = next(cls for cls, module in places if getattr(module, cls.__name__, None) is cls)
    config: Any = copy.deepcopy(model.config)
    for name, value in fields.items():
        setattr(config.get_text_config() if hasattr(config, "get_text_config") else config, name, value)
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            built = exported(config)
        return {name: tuple(parameter.shape) for name, parameter in built.named_parameters(remove_duplicate=False)}
    except Exception:  # whatever a model raises for such a configuration, it could not be loaded with it
        return None


def set_widths(
    model: nn.Module,
    ffns: FFNs,
    sizes: Mapping[str, int],
    widths: Mapping[str, int],
    fields: Mapping[str, Any],
) -> None:
    """Write the new widths into the modules and the configuration.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    ffns : FFNs
    sizes, widths : mapping from str to int
        Width of every prunable layer before and after the change.
    fields : mapping from str to value
        Configuration fields, see :func:`compact_widths`.
    """
    for module, name, width in module_widths(ffns, widths):
        set_attribute(module, name, width)
    config = text_config(model)
    if config is None:
        return
    for name, value in fields.items():
        set_attribute(config, name, value)
    if fields and hasattr(config, WIDTHS_KEY):
        delattr(config, WIDTHS_KEY)
    elif not fields and (widths != sizes or hasattr(config, WIDTHS_KEY)):
        setattr(config, WIDTHS_KEY, dict(widths))


def module_widths(ffns: FFNs, widths: Mapping[str, int]) -> list[tuple[nn.Module, str, int]]:
    """Return (module, attribute, new value) for every attribute of an FFN's module that repeats its width."""
    return [
        (ffn.module, name, widths[layer.name])
        for ffn in ffns
        for layer in ffn.prunable.values()
        for name in WIDTH_ATTRIBUTES
        if isinstance(getattr(ffn.module, name, None), int) and getattr(ffn.module, name) == layer.size
    ]
