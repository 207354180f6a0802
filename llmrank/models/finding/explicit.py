"""Explicit FFNs: the user names their Linears in a `structure_dict`, as in the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from llmrank.errors import StructureError
from llmrank.models.checks import check_not_quantised, check_not_tied, check_not_wrapped, check_weights_finite
from llmrank.models.ffn import FFN, FFNs, LinearMap
from llmrank.models.linear_map import is_linear

__all__ = ["explicit_ffns"]

EXAMPLE = '{"path_to_layers": ["model", "layers"], "path_to_modules": (("mlp", "up_proj"), ("mlp", "down_proj"))}'


def explicit_ffns(model: nn.Module, structure: Mapping[str, Any]) -> FFNs:
    """Make one FFN of the named Linears, in the given order, for each transformer block.

    Parameters
    ----------
    model : nn.Module
    structure : mapping
        ``path_to_layers``: sequence of attribute names that lead to the list of transformer blocks; ``path_to_modules``: sequence
        that holds, for every Linear, the sequence of attribute names that lead to it inside a block. Dots may join the names.

    Returns
    -------
    FFNs
        Their kind is "explicit": the rows of every listed Linear are prunable.

    Raises
    ------
    UnsupportedModelError
        Weights are quantised, shared or not finite, or modules are compiled or wrapped by adapters.
    StructureError
        The mapping is malformed; a path leads nowhere (the message lists the modules that exist) or to a module of the wrong
        type; two paths lead to one Linear; or the sizes of consecutive Linears do not fit.
    """
    if not isinstance(structure, Mapping) or not {"path_to_layers", "path_to_modules"} <= set(structure):
        raise StructureError(f"structure_dict must be a mapping like {EXAMPLE}, got {structure!r}")
    paths = structure["path_to_modules"]
    # An iterator is refused, because the first block would use it up.
    if isinstance(paths, str) or not isinstance(paths, Sequence):
        raise StructureError(f"structure_dict: path_to_modules is {paths!r}; expected a list of paths, as in {EXAMPLE}")
    if not paths:
        raise StructureError(f"structure_dict: path_to_modules lists no module; expected something like {EXAMPLE}")
    check_not_wrapped(model)
    stack_path = _path_parts(structure["path_to_layers"], "path_to_layers")
    blocks = _submodule(model, stack_path, type(model).__name__)
    if not isinstance(blocks, (nn.ModuleList, nn.Sequential)) or len(blocks) == 0:
        raise StructureError(
            f"structure_dict: path_to_layers {list(stack_path)} leads to a {type(blocks).__name__}; expected a "
            "ModuleList or Sequential with at least one transformer block"
        )
    stack = ".".join(stack_path)
    ffns = []
    for position, block in enumerate(blocks):
        block_path = f"{stack}.{position}"
        stages: list[tuple[LinearMap, ...]] = []
        for path in paths:
            parts = _path_parts(path, "path_to_modules")
            name = ".".join((block_path, *parts))
            module = _submodule(block, parts, block_path)
            if not is_linear(module):
                raise StructureError(
                    f"structure_dict: {name} is a {type(module).__name__}; expected a Linear (or Conv1D)"
                )
            if any(module is stage[0].module for stage in stages):
                raise StructureError(f"structure_dict: path_to_modules leads to {name} twice; list every Linear once")
            check_not_quantised(model, {name: module})
            stages.append((LinearMap.whole(name, module),))
        for before, after in pairwise(stages):
            if before[0].size != after[0].in_features:
                raise StructureError(
                    f"structure_dict: {before[0].name} returns {before[0].size} outputs but {after[0].name} reads "
                    f"{after[0].in_features}; list the Linears in the order in which the data passes them"
                )
        ffns.append(FFN(block_path, "explicit", tuple(stages), stack, block))
    check_not_tied(model, ffns)
    check_weights_finite(model)
    return FFNs(ffns)


def _path_parts(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, Sequence):
        raise StructureError(f"structure_dict: {key} holds {value!r}; expected attribute names, as in {EXAMPLE}")
    parts = tuple(value.split(".")) if isinstance(value, str) else tuple(str(part) for part in value)
    if not parts:
        raise StructureError(f"structure_dict: {key} holds an empty path; expected something like {EXAMPLE}")
    return parts


def _submodule(module: nn.Module, parts: tuple[str, ...], path: str) -> nn.Module:
    """Follow attribute names from a module to a submodule; `path` names the module in the error message."""
    for part in parts:
        child = getattr(module, part, None)
        if not isinstance(child, nn.Module):
            children = ", ".join(name for name, _ in module.named_children()) or "no modules"
            raise StructureError(f"structure_dict: {path} has no module {part!r}; it has: {children}")
        module, path = child, f"{path}.{part}"
    return module
