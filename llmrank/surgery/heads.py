"""The numbers of heads of an attention, as its modules and the configuration state them.

What a module states follows from the configuration, in a way of its own in every family. So it is read from a model without
data that is built from the configuration with other numbers of heads.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from llmrank.errors import CheckpointError, UnsupportedModelError
from llmrank.models import FFNs
from llmrank.models.configured import can_be_stated, configured
from llmrank.models.families import text_config
from llmrank.models.heads import Heads
from llmrank.prune.masks import Masks
from llmrank.surgery.forms import tensor_masks

__all__ = ["check_heads", "head_fields", "numbers_of_heads", "resize_attentions"]


def check_heads(model: nn.Module, ffns: FFNs) -> None:
    """Raise unless a configuration can state fewer heads of the attentions among these FFNs.

    Raises
    ------
    UnsupportedModelError
        A model with fewer heads cannot be built, or its attention has other shapes than the pruned one would have.
    """
    checked: set[tuple[Any, ...]] = set()
    for attention in ffns.attentions:
        heads, module = attention.heads, model.get_submodule(attention.name)
        assert heads is not None
        if (type(module), heads) in checked or heads.n_units == 1:
            continue
        checked.add((type(module), heads))
        width = (heads.n_units - 1) * heads.unit_size
        mask = torch.arange(heads.n_units * heads.unit_size) < width
        shapes = {id(m.read()): m.shape for m in tensor_masks(FFNs([attention]), Masks({attention.name: mask}))}
        expected = {name: shapes.get(id(p), tuple(p.shape)) for name, p in module.named_parameters()}
        smaller = _part(_model_of_width(model, heads, width), attention.name)
        found = {} if smaller is None else {name: tuple(p.shape) for name, p in smaller.named_parameters()}
        if smaller is not None and not _follows(module, smaller):
            found = {}
        if found != expected:
            differ = next((name for name in expected if found.get(name) != expected[name]), "it")
            raise UnsupportedModelError(
                f"the heads of {attention.name} ({type(module).__name__}) cannot be removed: the configuration of "
                f"{type(model).__name__} cannot state {heads.counts(width)[0]} heads of {heads.size} numbers each (the shape of "
                f"{differ} would not follow); leave heads out of the targets"
            )


def head_fields(model: nn.Module, ffns: FFNs, widths: Mapping[str, int]) -> dict[str, int] | None:
    """Return the fields by which the configuration states the heads that are left.

    Returns
    -------
    dict from str to int, or None
        Empty if no head is removed. None if no configuration is valid for these heads, or attentions keep different numbers.
    """
    attentions = ffns.attentions
    if all(widths[each.name] == each.sizes[1] for each in attentions):
        return {}
    if len({(each.heads, widths[each.name]) for each in attentions}) > 1:
        return None
    heads = attentions[0].heads
    assert heads is not None
    fields = heads.fields(text_config(model), widths[attentions[0].name])
    return fields if can_be_stated(model, fields) else None


def numbers_of_heads(
    model: nn.Module, ffns: FFNs, widths: Mapping[str, int], *, listed: bool
) -> list[tuple[nn.Module, str, Any]]:
    """Return (module, attribute, new value) for every number that modules of attentions with fewer heads state.

    If widths are `listed`, the configuration of the model states the heads of the dense model.
    """
    built: dict[tuple[Heads, int], nn.Module | None] = {}
    found: list[tuple[nn.Module, str, Any]] = []
    for attention in ffns.attentions:
        heads, width = attention.heads, widths[attention.name]
        assert heads is not None
        if width == attention.sizes[1]:
            continue
        if (heads, width) not in built:
            built[heads, width] = _model_of_width(model, heads, width)
        smaller, module = _part(built[heads, width], attention.name), model.get_submodule(attention.name)
        if smaller is not None:
            found += [*_numbers(module, smaller), *(_own_configuration(module, heads, width) if listed else [])]
    return found


def resize_attentions(model: nn.Module, widths: Mapping[str, int]) -> None:
    """Give attentions the listed widths, with uninitialised weights into which a checkpoint is loaded.

    Parameters
    ----------
    model : nn.Module
        One that was just built from a configuration that lists widths.
    widths : mapping from str to int
        How many numbers the output map reads, by the path of the attention.

    Raises
    ------
    CheckpointError
        A path leads to no module, or a width does not fit the configuration.
    """
    config = text_config(model)
    n_heads = getattr(config, "num_attention_heads", 0)
    n_groups = getattr(config, "num_key_value_heads", None) or n_heads
    size = Heads.size_of(config)
    built: dict[int, nn.Module | None] = {}
    for name, width in widths.items():
        heads = Heads(n_heads, n_groups, size) if size and n_groups and n_heads % n_groups == 0 else None
        smaller = None
        if heads is not None and width <= n_heads * size:
            # Fewer heads than a group has can only be those of the last group, of which heads were removed one by one.
            of_one_group = width < heads.unit_size and width % size == 0
            heads = Heads(width // size, 1, size) if of_one_group else heads
            if width % heads.unit_size == 0:
                if width not in built:
                    built[width] = _model_of_width(model, heads, width)
                smaller = _part(built[width], name)
        if smaller is None or not _is_attention(model.get_submodule(name), smaller, full=width == n_heads * size):
            raise CheckpointError(
                f"the configuration lists {width} numbers for the heads of {name}, which do not fit {type(model).__name__}; it "
                "belongs to another model"
            )
        module = model.get_submodule(name)
        assert heads is not None
        for owner, attribute, value in (*_numbers(module, smaller), *_own_configuration(module, heads, width)):
            setattr(owner, attribute, value)
        for path, part in smaller.named_modules():
            owner = module.get_submodule(path)
            for key, parameter in part._parameters.items():
                old = owner._parameters.get(key)
                if parameter is not None and old is not None and old.shape != parameter.shape:
                    owner._parameters[key] = nn.Parameter(old.new_empty(parameter.shape), old.requires_grad)


def _model_of_width(model: nn.Module, heads: Heads, width: int) -> nn.Module | None:
    """Return a model without data whose attentions all have this width; None if none can be built."""
    return configured(model, heads.fields(text_config(model), width))


def _part(model: nn.Module | None, path: str) -> nn.Module | None:
    """Return the module at a path; None if there is none."""
    return None if model is None else dict(model.named_modules()).get(path)


def _follows(module: nn.Module, smaller: nn.Module) -> bool:
    """Whether whole numbers and the shapes of parameters are all in which a smaller attention differs."""
    parts = dict(module.named_modules())
    same = {name: buffer.shape for name, buffer in module.named_buffers()} == {
        name: buffer.shape for name, buffer in smaller.named_buffers()
    }
    return same and all(
        vars(parts[path]).get(key) == value
        for path, part in smaller.named_modules()
        if path in parts
        for key, value in vars(part).items()
        if isinstance(value, (float, tuple))
    )


def _is_attention(module: nn.Module, smaller: nn.Module, *, full: bool) -> bool:
    """Whether two modules differ in maps that are their own parts, or in nothing if the attention has all heads."""
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    changed = [name for name, parameter in smaller.named_parameters() if shapes.get(name) != parameter.shape]
    return (bool(changed) or full) and all(name.count(".") == 1 for name in changed)


def _own_configuration(module: nn.Module, heads: Heads, width: int) -> list[tuple[nn.Module, str, Any]]:
    """Return a configuration for an attention alone, if it reads its number of heads there whenever it computes (Phi-3)."""
    config = getattr(module, "config", None)
    try:
        reads = "self.config.num_" in inspect.getsource(type(module).forward)
    except (OSError, TypeError):  # there is no source
        return []
    if config is None or not reads:
        return []
    own = copy.copy(config)
    for name, value in heads.fields(config, width).items():
        setattr(own, name, value)
    return [(module, "config", own)]


def _numbers(module: nn.Module, smaller: nn.Module) -> list[tuple[nn.Module, str, int]]:
    """Return (module, attribute, value) for every whole number in which `smaller` and its parts differ from a module."""
    parts = dict(module.named_modules())
    return [
        (parts[path], key, value)
        for path, part in smaller.named_modules()
        if path in parts
        for key, value in vars(part).items()
        if type(value) is int and vars(parts[path]).get(key) != value
    ]
