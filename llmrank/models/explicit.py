"""The explicit form: Linears named by a `structure_dict`, as the paper does it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from torch import nn

from llmrank.errors import StructureError
from llmrank.models.detect import (
    check_not_quantised,
    check_not_tied,
    check_not_wrapped,
    check_weights_finite,
    is_linear,
)
from llmrank.models.ffn import FFN, Projection

__all__ = ["explicit_ffns"]

EXAMPLE = '{"path_to_layers": ["model", "layers"], "path_to_modules": (("mlp", "up_proj"), ("mlp", "down_proj"))}'


def explicit_ffns(model: nn.Module, structure: Mapping[str, Any]) -> tuple[FFN, ...]:
    """One FFN a layer, made of the named Linears in the given order.

    Parameters
    ----------
    model : nn.Module
    structure : mapping
        ``path_to_layers``: attribute names that lead to the list of layers; ``path_to_modules``: for
        every Linear its attribute names inside a layer.

    Returns
    -------
    tuple of FFN
        Of kind "explicit": the rows of every listed Linear are prunable.

    Raises
    ------
    UnsupportedModelError
        Quantised, shared or non-finite weights; modules that are compiled or wrapped by adapters.
    StructureError
        Missing keys, a path that leads nowhere (the message lists what is there), or something that
        is not a linear map.
    """
    if not isinstance(structure, Mapping) or not {"path_to_layers", "path_to_modules"} <= set(structure):
        raise StructureError(f"structure_dict must be a mapping like {EXAMPLE}, got {structure!r}")
    if not isinstance(structure["path_to_modules"], Iterable) or not structure["path_to_modules"]:
        raise StructureError(f"structure_dict: path_to_modules lists no module; expected something like {EXAMPLE}")
    check_not_wrapped(model)
    layers_path = _path(structure["path_to_layers"], "path_to_layers")
    layers = _follow(model, layers_path, type(model).__name__)
    if not isinstance(layers, (nn.ModuleList, nn.Sequential)) or len(layers) == 0:
        raise StructureError(
            f"structure_dict: path_to_layers {list(layers_path)} leads to a {type(layers).__name__}; expected a "
            "ModuleList with at least one layer"
        )
    prefix = ".".join(layers_path)
    ffns = []
    for position, layer in enumerate(layers):
        stages: list[tuple[Projection, ...]] = []
        for path in structure["path_to_modules"]:
            parts = _path(path, "path_to_modules")
            name = ".".join((prefix, str(position), *parts))
            module = _follow(layer, parts, f"{prefix}.{position}")
            if not is_linear(module):
                raise StructureError(
                    f"structure_dict: {name} is a {type(module).__name__}; expected a Linear (or Conv1D)"
                )
            if any(module is stage[0].module for stage in stages):
                raise StructureError(f"structure_dict: path_to_modules lists {name} twice; list every Linear once")
            check_not_quantised(model, {name: module})
            stages.append((Projection.whole(name, module),))
        for before, after in pairwise(stages):
            if before[0].size != after[0].in_features:
                raise StructureError(
                    f"structure_dict: {before[0].name} gives {before[0].size} outputs but {after[0].name} reads "
                    f"{after[0].in_features}; list Linears in the order of the data, each reading the one before"
                )
        ffns.append(FFN(f"{prefix}.{position}", "explicit", tuple(stages), prefix, layer))
    check_not_tied(model, ffns)
    check_weights_finite(model)
    return tuple(ffns)


def _path(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, Iterable):
        raise StructureError(f"structure_dict: {key} holds {value!r}; expected attribute names as in {EXAMPLE}")
    parts = tuple(value.split(".")) if isinstance(value, str) else tuple(str(part) for part in value)
    if not parts:
        raise StructureError(f"structure_dict: {key} holds an empty path; expected something like {EXAMPLE}")
    return parts


def _follow(module: nn.Module, parts: tuple[str, ...], where: str) -> nn.Module:
    for part in parts:
        child = getattr(module, part, None)
        if not isinstance(child, nn.Module):
            there = ", ".join(name for name, _ in module.named_children()) or "no modules"
            raise StructureError(f"structure_dict: {where} has no module {part!r}; it has: {there}")
        module, where = child, f"{where}.{part}"
    return module
