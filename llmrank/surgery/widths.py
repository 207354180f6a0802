"""The widths of a compact model's layers, as its modules and its configuration state them.

If fields of the configuration, such as ``intermediate_size`` and ``num_experts``, can describe the compact model, they are
written, and transformers reads them. Otherwise, if a width has changed, all widths are listed under ``llmrank_widths``, which
only :func:`llmrank.surgery.checkpoint.load` reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from llmrank.errors import MaskError
from llmrank.models import FFNs
from llmrank.models.configured import configured
from llmrank.models.experts import Expert, SeparateExperts
from llmrank.models.families import WIDTH_ATTRIBUTES, text_config
from llmrank.models.stack import ShallowModel
from llmrank.prune.masks import Masks
from llmrank.prune.records.units import EXPERT_WIDTH_MULTIPLE
from llmrank.surgery.forms import TensorMask, set_attribute, tensor_masks
from llmrank.surgery.heads import head_fields, numbers_of_heads

__all__ = ["WIDTHS_KEY", "check_padding", "compact_widths", "module_widths", "set_widths"]

WIDTHS_KEY = "llmrank_widths"
# Attributes of a module of experts that hold the number of hidden neurons of each.
EXPERT_WIDTHS = (*WIDTH_ATTRIBUTES, "intermediate_dim", "expert_dim", "moe_intermediate_size")
# The shapes of the tensors of a model, by the names in its state dict.
Shapes: TypeAlias = dict[str, tuple[int, ...]]


def check_padding(ffns: FFNs) -> None:
    """Raise a MaskError if FFNs, or attentions, differ in their number of neurons, so that they cannot be padded."""
    for names in _kinds(ffns):
        originals = {ffns.sizes[name] for name in names}
        if len(originals) > 1:
            raise MaskError(
                f"form='padded' needs layers of one original width, these have {sorted(originals)}; use form='compact' and "
                "llmrank's loader"
            )


def _kinds(ffns: FFNs) -> tuple[list[str], list[str]]:
    """Return the names of the layers of FFNs, and those of attentions."""
    attentions = [each.name for each in ffns.attentions]
    return [name for name in ffns.sizes if name not in attentions], attentions


def compact_widths(
    model: nn.Module, ffns: FFNs, masks: Masks, shallow: ShallowModel | None = None, *, padded: bool = False
) -> tuple[Masks, dict[str, Any]]:
    """Decide which neurons the compact layers hold, and which configuration fields describe them.

    Parameters
    ----------
    model : nn.Module
        Not changed, and not compact yet.
    ffns : FFNs
    masks : Masks
    shallow : ShallowModel, optional
        The blocks that are left out; `ffns` lie in the others.
    padded : bool
        Whether all layers get the width of the widest layer: narrower layers are filled up with removed neurons. If no field
        can state that width, all layers are filled up to the width of the dense model.

    Returns
    -------
    held : Masks
        The neurons that the layers hold, padding included. Experts that share tensors hold as many neurons as the widest of them.
    fields : dict from str to value
        Configuration fields to write; empty if no field describes the compact model.
    """
    held = masks
    for mixture, experts in zip(ffns.mixtures, ffns.experts.values(), strict=True):
        if mixture.shares_tensors:
            held = _padded(held, experts, for_experts=True)
    if not padded:
        return held, _config_fields(model, ffns, held, shallow)
    neurons, heads = _kinds(ffns)
    # Heads are removed as a whole, so layers of heads are filled up with whole heads.
    held = _padded(_padded(held, neurons, for_experts=bool(ffns.mixtures)), heads)
    fields = _config_fields(model, ffns, held, shallow)
    return (held, fields) if fields else (_padded(masks, list(masks), max(map(len, masks.values()))), {})


def _padded(masks: Masks, names: Iterable[str], width: int | None = None, *, for_experts: bool = False) -> Masks:
    """Return masks in which the named layers keep `width` neurons; layers that keep none, which are removed experts, stay so.

    To the kept neurons of a layer, the first of its removed neurons are added. By default `width` is that of the widest of these
    layers. With `for_experts` it is rounded up to a width with which transformers can compute experts.
    """
    kept = {name: count for name, count in masks.widths.items() if count}
    names = [name for name in names if name in kept]
    padded = dict(masks)
    for name in names:
        target = max(kept[other] for other in names) if width is None else width
        if for_experts:
            target = min(-(-target // EXPERT_WIDTH_MULTIPLE) * EXPERT_WIDTH_MULTIPLE, len(padded[name]))
        removed = (~padded[name]).nonzero().flatten()
        padded[name][removed[: target - kept[name]]] = True
    return Masks(padded)


def _config_fields(model: nn.Module, ffns: FFNs, masks: Masks, shallow: ShallowModel | None) -> dict[str, Any]:
    """Find configuration fields that describe the compact model of these masks; empty if nothing is removed or none do."""
    config = getattr(model, "config", None)
    changed = [mask for mask in tensor_masks(ffns, masks) if not mask.keeps_all]
    if config is None or not changed:
        return {}
    of_heads = head_fields(model, ffns, masks.widths)
    if of_heads is None:
        return {}
    # What is called dense here has its heads and blocks removed already.
    removed = of_heads if shallow is None else {**shallow.fields, **of_heads}
    dense = _configured_shapes(model, removed)
    compact = _compact_shapes(model, changed, {} if shallow is None else shallow.new_paths, _new_paths(ffns, masks))
    if dense is None or not dense.keys() >= compact.keys():
        return {}
    # Each field is tried alone, in a model on the meta device; all fields together must give the compact shapes.
    fields: dict[str, Any] = dict(of_heads)
    for name, value in _candidates(text_config(model), ffns, masks):
        if name not in fields and _explains(_configured_shapes(model, {**removed, name: value}), dense, compact):
            fields[name] = value
    return fields if fields and _configured_shapes(model, {**removed, **fields}) == compact else {}


def _candidates(config: Any, ffns: FFNs, masks: Masks) -> Iterator[tuple[str, Any]]:
    """Yield configuration fields, with new values, that may hold a number of neurons or experts that changes."""
    of_heads = {each.name for each in ffns.attentions}
    sizes = [(len(masks[name]), width) for name, width in masks.widths.items() if width and name not in of_heads]
    sizes += [(len(experts), sum(bool(masks[name].any()) for name in experts)) for experts in ffns.experts.values()]
    changes = dict.fromkeys((old, new) for old, new in sizes if old != new)
    # Read from vars(), because configurations with settings by layer (Gemma 4) raise if such a setting is read for all layers.
    names = {getattr(config, "attribute_map", {}).get(name, name): name for name in WIDTH_ATTRIBUTES}
    known = [name for stored, name in names.items() if stored in vars(config)]
    for stored, old in sorted(vars(config).items(), key=lambda item: item[0] not in names):
        name = names.get(stored, stored)
        for before, after in changes:
            # In Gemma 3n the field is a list with one width for each layer. A field with a known name may hold another value
            # than the width, and is tried all the same: GPT-2's n_inner is None if the width is four times the hidden size, and
            # a model that was loaded with listed widths has another width in this field.
            if isinstance(old, list) and before in old and all(type(value) is int for value in old):
                yield name, [after if value == before else value for value in old]
            elif (name in known and not isinstance(old, list)) or (type(old) is int and old == before):
                yield name, after
                # In Moshi and RecurrentGemma the field holds the sum of the widths of gate and up, a multiple of the width.
                if type(old) is int and old != before and (old * after) % before == 0:
                    yield name, old * after // before


def _explains(shapes: Shapes | None, dense: Shapes, compact: Shapes) -> bool:
    """Whether shapes differ from those of the dense model, and every size that differs is that of the compact model.

    A tensor may be missing only if the compact model lacks it too.
    """
    if shapes is None or shapes == dense or not dense.keys() >= shapes.keys() >= compact.keys():
        return False
    return all(
        len(shape) == len(dense[name])
        and all(n in (d, c) for n, d, c in zip(shape, dense[name], compact.get(name, dense[name]), strict=True))
        for name, shape in shapes.items()
    )


def _compact_shapes(
    model: nn.Module,
    masks: Sequence[TensorMask],
    of_blocks: Mapping[str, str | None],
    of_experts: Mapping[str, str | None],
) -> Shapes:
    """Return the shapes that the tensors of a dense model will have in the compact model, by the names that they will have.

    New paths are given of blocks, and of experts by those that they had before; None for what is removed.
    """
    changed = {id(mask.read()): mask.shape for mask in masks}
    found: Shapes = {}
    for name, tensor in _named_tensors(model):
        stored = _renamed(_renamed(name, of_experts), of_blocks)
        if stored is not None:
            found[stored] = changed.get(id(tensor), tuple(tensor.shape))
    return found


def _renamed(name: str | None, new_paths: Mapping[str, str | None]) -> str | None:
    """Return the name of a tensor after the modules around it have moved to new paths; None if one of them is removed."""
    parts = [] if name is None else name.split(".")
    path = next((path for k in range(len(parts)) if (path := ".".join(parts[:k])) in new_paths), None)
    if name is None or path is None:
        return name
    new = new_paths[path]
    return None if new is None else f"{new}{name.removeprefix(path)}"


def _new_paths(ffns: FFNs, masks: Masks) -> dict[str, str | None]:
    """Return the paths that experts which are modules will have, by their present paths; None if they are removed."""
    found: dict[str, str | None] = {}
    for mixture, experts in zip(ffns.mixtures, ffns.experts.values(), strict=True):
        if isinstance(mixture.experts, SeparateExperts):
            paths = [f"{mixture.name}.{name}" for name in mixture.experts.names()]
            kept = iter(paths)
            found |= {
                path: next(kept) if bool(masks[name].any()) else None for path, name in zip(paths, experts, strict=True)
            }
    return found


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a state dict by name, as the modules hold them."""
    yield from model.named_parameters(remove_duplicate=False)
    kept = model.state_dict(keep_vars=True)
    yield from ((name, tensor) for name, tensor in model.named_buffers(remove_duplicate=False) if name in kept)


def _configured_shapes(model: nn.Module, fields: Mapping[str, Any]) -> Shapes | None:
    """Return the tensor shapes of a model built from the configuration with these fields; None if it cannot be built."""
    built = configured(model, fields)
    return None if built is None else {name: tuple(tensor.shape) for name, tensor in _named_tensors(built)}


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
        Width of every prunable layer before and after the change; 0 for experts that are removed.
    fields : mapping from str to value
        Configuration fields, see :func:`compact_widths`.
    """
    for module, name, width in [
        *module_widths(ffns, widths),
        *numbers_of_heads(model, ffns, widths, listed=not fields),
    ]:
        set_attribute(module, name, width)
    config = text_config(model)
    if config is None:
        return
    for name, value in fields.items():
        set_attribute(config, name, value)
    if fields and hasattr(config, WIDTHS_KEY):
        delattr(config, WIDTHS_KEY)
    elif not fields and (widths != sizes or hasattr(config, WIDTHS_KEY)):
        # An earlier run may have listed layers that this one does not prune.
        others = {name: width for name, width in getattr(config, WIDTHS_KEY, {}).items() if name not in sizes}
        setattr(config, WIDTHS_KEY, others | _numbered_anew(ffns, widths))


def _numbered_anew(ffns: FFNs, widths: Mapping[str, int]) -> dict[str, int]:
    """Return the widths of a compact model by the names that its layers have: its experts are numbered without gaps."""
    listed = dict(widths)
    for experts in ffns.experts.values():
        kept = [listed.pop(name) for name in experts]
        listed.update(zip(experts, filter(None, kept), strict=False))
    return listed


def module_widths(ffns: FFNs, widths: Mapping[str, int]) -> list[tuple[nn.Module, str, int]]:
    """Return (module, attribute, new value) for every attribute that states a width or a number of experts."""
    found = [
        (ffn.module, name, widths[layer.name])
        for ffn in ffns
        if not isinstance(ffn.module, Expert)
        for layer in ffn.prunable.values()
        if widths[layer.name]
        for name in WIDTH_ATTRIBUTES
        if _holds(ffn.module, name, layer.size)
    ]
    layers = ffns.layers
    for mixture, experts in zip(ffns.mixtures, ffns.experts.values(), strict=True):
        kept = [widths[name] for name in experts if widths[name]]
        owner, size = mixture.experts.owner, layers[experts[0]].size
        found += [(owner, name, kept[0]) for name in EXPERT_WIDTHS if _holds(owner, name, size)]
        found += [(module, name, len(kept)) for module, name in mixture.counts]
    return found


def _holds(module: nn.Module, name: str, value: int) -> bool:
    return isinstance(getattr(module, name, None), int) and getattr(module, name) == value
