"""Apply masks to a model: zero, mask, or compact. The only module that writes to a model.

Every application is a transaction: whatever is raised, the parameters are restored bit for bit, and a
finished one can be undone, unless it is told to keep nothing (``undoable=False``, :class:`RepairsInPlace`).
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from llmrank.adapters import FFN, Projection, PrunableLayer
from llmrank.adapters.families import WIDTH_ATTRIBUTES, bias_attribute, text_config
from llmrank.adapters.ffn import bias_of, in_features, is_transposed, out_features
from llmrank.errors import MaskError, OptionError
from llmrank.masks import Masks
from llmrank.repair import RepairedMap

__all__ = [
    "ALIGNMENTS",
    "FORMS",
    "Align",
    "Application",
    "Form",
    "RepairsInPlace",
    "apply_masks",
    "check_padding",
    "check_writable",
    "prunable_layers",
    "trial_cut",
    "width_attributes",
]

Form: TypeAlias = Literal["compact", "zero", "mask"]
Align: TypeAlias = Literal["none", "pad"]
FORMS: tuple[Form, ...] = ("compact", "zero", "mask")
ALIGNMENTS: tuple[Align, ...] = ("none", "pad")
WIDTHS_KEY = "llmrank_widths"

# The ways back, the last first; one that holds none keeps no tensor alive.
Undo: TypeAlias = "deque[Callable[[], None]]"


@dataclass
class Application:
    """Masks applied to a model, and how to take them back.

    Attributes
    ----------
    form : {"compact", "zero", "mask"}
    masks : Masks
        What was removed.
    widths : dict from str to int
        Neurons that every layer holds now, padding included.
    undoable : bool
        Whether the original tensors are kept.
    """

    form: Form
    masks: Masks
    widths: dict[str, int]
    undoable: bool = True
    _undo: Undo = field(default_factory=deque, repr=False)
    _current: list[Callable[[], bool]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Restore every parameter, attribute and configuration entry, bit for bit.

        The original tensors are kept for this; drop the object to free them.

        Raises
        ------
        MaskError
            The model has been changed since, by a later application for example, so that the restored
            parts would not fit together. Nothing is restored then.
        OptionError
            Nothing was kept.
        """
        if not self.undoable:
            raise OptionError("these masks were applied for good (undoable=False); load the model again")
        if not all(is_current() for is_current in self._current):
            raise MaskError(
                "the model's parameters were replaced after these masks were applied; undo the later application first"
            )
        self._current.clear()
        self._roll_back()

    def _roll_back(self) -> None:
        while self._undo:
            self._undo.pop()()


@dataclass
class Cut:
    """What is kept of one linear map: its rows (outputs) and columns (inputs)."""

    name: str
    module: nn.Module
    rows: torch.Tensor
    columns: torch.Tensor

    def mask(self) -> torch.Tensor:
        """(out, in) bool, in the module's own layout."""
        mask = self.rows[:, None] & self.columns[None, :]
        return mask.T if is_transposed(self.module) else mask


def prunable_layers(ffns: Sequence[FFN]) -> dict[str, PrunableLayer]:
    """All prunable layers of a model by name."""
    return {layer.name: layer for ffn in ffns for layer in ffn.prunable.values()}


def apply_masks(
    model: nn.Module,
    ffns: Sequence[FFN],
    masks: Masks,
    form: Form = "compact",
    align: Align = "none",
    repaired: Mapping[str, RepairedMap] | None = None,
    *,
    undoable: bool = True,
) -> Application:
    """Remove neurons from a model.

    A hidden neuron goes with its rows in the producing maps, their biases, and its columns in the
    consuming map. In the explicit form only rows (and biases) of the named Linears go.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    ffns : sequence of FFN
        Of this model.
    masks : Masks
        One for each prunable layer.
    form : {"compact", "zero", "mask"}
        Smaller matrices (and configuration); zeros in matrices of the same size; or
        ``torch.nn.utils.prune`` masks (``weight_orig``, ``weight_mask``).
    align : {"none", "pad"}
        With "pad" compact layers are all as wide as the widest, filled up with zeros, so that stock
        loaders take them; where the configuration has no width, as wide as the original.
    repaired : mapping from str to RepairedMap, optional
        What stands in for the output maps, of the same masks; see :func:`llmrank.repair.repair_ffns`.
    undoable : bool
        Keep the original tensors. Without, each goes as soon as it is replaced; what fails half-way leaves the model half cut.

    Raises
    ------
    MaskError
        Masks or repairs of another model. Nothing has been changed then.
    OptionError
        Unknown form; compact of the explicit form; a model that carries masks already.
    """
    layers = prunable_layers(ffns)
    _check(ffns, masks, layers, form, align)
    maps = consumers(ffns)
    _check_repaired(maps, repaired or {})
    # What the tensors hold in the end: all, or with zeros what fills them up too.
    held = _padded(model, masks) if align == "pad" else masks
    widths = held.widths if form == "compact" else {name: len(mask) for name, mask in masks.items()}
    undo: Undo = deque(maxlen=None if undoable else 0)
    application = Application(form, masks, widths, undoable, undo)
    solved = {id(maps[name]): one for name, one in (repaired or {}).items()}
    try:
        if any(one.bias is not None and bias_of(maps[name]) is None for name, one in (repaired or {}).items()):
            _add_biases(model, ffns, undo)
        for cut, kept in zip(cuts(ffns, masks), cuts(ffns, held), strict=True):
            one = solved.get(id(cut.module))
            if one is not None:
                _rewrite(cut.module, one, undo, copy=form == "mask")
            if form == "mask":
                _mask(cut, undo)
            elif form == "zero" or align == "pad":
                _zero(cut, undo)
            if form == "compact":
                _compact(kept, undo)
        if form == "compact":
            _set_widths(model, ffns, layers, widths, undo)
        modules = {id(p.module): p.module for ffn in ffns for stage in ffn.stages for p in stage}
        application._current += [_unchanged(module) for module in modules.values()]
    except BaseException:
        application._roll_back()
        raise
    return application


@contextmanager
def trial_cut(
    model: nn.Module, ffns: Sequence[FFN], masks: Masks | None, repaired: Mapping[str, RepairedMap] | None = None
) -> Iterator[None]:
    """Cut a model for a while: as zeros, so that neurons keep their places; whatever is raised, it is whole afterwards.

    Parameters
    ----------
    model, ffns, repaired
        See :func:`apply_masks`.
    masks : Masks or None
        None leaves the model as it is.
    """
    if masks is None:
        yield
        return
    application = apply_masks(model, ffns, masks, "zero", repaired=repaired)
    try:
        yield
    finally:
        application.undo()


class RepairsInPlace:
    """Repaired weights written over a model's own, whose bytes wait in a temporary file in case they are wanted back.

    So no memory holds both. Close it to drop the file.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by close()
        self._replaced: list[tuple[nn.Parameter, int]] = []

    def write(self, consumer: Projection, repaired: RepairedMap) -> RepairedMap:
        """Write a repaired weight over a map's own.

        Parameters
        ----------
        consumer : Projection
            The map.
        repaired : RepairedMap
            Its bias is not written: the map may have none before masks are applied.

        Returns
        -------
        RepairedMap
            The same without its weight.

        Raises
        ------
        OSError
            No space for the temporary file; the map is unchanged.
        """
        if repaired.weight is None:
            return repaired
        parameter: nn.Parameter = consumer.module.weight  # type: ignore[assignment]
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        self._replaced.append((parameter, start))
        consumer.weight.copy_(repaired.weight)
        return replace(repaired, weight=None)

    def restore(self) -> None:
        """Write the model's own weights back, bit for bit."""
        while self._replaced:
            parameter, start = self._replaced[-1]
            self._file.seek(start)
            size = parameter.numel() * parameter.element_size()
            values = torch.frombuffer(bytearray(self._file.read(size)), dtype=parameter.dtype)
            parameter.data.copy_(values.view(parameter.shape))
            self._replaced.pop()

    def close(self) -> None:
        """Drop the file; what was written stays."""
        self._replaced.clear()
        self._file.close()


def _unchanged(module: nn.Module) -> Callable[[], bool]:
    """A function that tells whether the module still holds the tensors it holds now."""

    def tensors() -> list[tuple[str, int, int]]:
        return [(name, id(p), p.data_ptr()) for name, p in module._parameters.items() if p is not None]

    now = tensors()
    return lambda: tensors() == now


def _check(ffns: Sequence[FFN], masks: Masks, layers: Mapping[str, PrunableLayer], form: str, align: str) -> None:
    if form not in FORMS:
        raise OptionError(f"unknown form {form!r}; expected one of {', '.join(FORMS)}")
    if align not in ALIGNMENTS:
        raise OptionError(f"unknown align {align!r}; expected one of {', '.join(ALIGNMENTS)}")
    if form == "compact" and any(ffn.kind == "explicit" for ffn in ffns):
        raise OptionError(
            "form 'compact' is refused with structure_dict: only rows of the named Linears go, so the maps that read them "
            "would no longer fit; use form='zero' or 'mask', or let the FFNs be found (structure_dict=None)"
        )
    if align == "pad" and form != "compact":
        raise OptionError(f"align='pad' is for the compact form; form={form!r} keeps every width anyway")
    masks.check(layers)
    check_writable(ffns)


def _check_repaired(maps: Mapping[str, nn.Module], repaired: Mapping[str, RepairedMap]) -> None:
    for name, solved in repaired.items():
        wanted = (out_features(maps[name]), in_features(maps[name])) if name in maps else None
        shape = wanted if solved.weight is None else tuple(solved.weight.shape)
        if shape is None or shape != wanted:
            raise MaskError(
                f"the repair of {name} has shape {shape}, the model's map {wanted or 'is not there'}; "
                "repair this model, with these masks"
            )


def check_writable(ffns: Sequence[FFN]) -> None:
    """Raise unless every linear map of the FFNs can be cut as it stands.

    Raises
    ------
    OptionError
        A map is reparametrised (masked already, weight norm), or holds no data here.
    MaskError
        A map has other shapes than when it was found.
    """
    for ffn in ffns:
        for n_inputs, stage in zip(ffn.sizes, ffn.stages, strict=False):
            for projection in stage:
                if "weight" not in projection.module._parameters:
                    raise OptionError(
                        f"{projection.name} has no weight of its own: it carries a torch.nn.utils.prune mask already, or "
                        "is reparametrised (weight norm); undo the earlier application, call prune.remove or "
                        "remove_parametrizations on it first"
                    )
                rows = projection.start + projection.size
                if rows > out_features(projection.module) or n_inputs != in_features(projection.module):
                    raise MaskError(
                        f"{projection.name} has other shapes than when it was found: the model has been compacted since; "
                        "undo that, or find its FFNs and their masks again"
                    )
                if projection.module.weight.is_meta:
                    raise OptionError(
                        f"{projection.name} has no data here (offloaded or on the meta device); load the model whole"
                    )


def cuts(ffns: Sequence[FFN], masks: Masks) -> list[Cut]:
    """One cut a module: a fused map is cut in two bands, a sequential one in rows and in columns."""
    found: dict[int, Cut] = {}

    def cut_of(name: str, module: nn.Module) -> Cut:
        whole = (
            torch.ones(out_features(module), dtype=torch.bool),
            torch.ones(in_features(module), dtype=torch.bool),
        )
        return found.setdefault(id(module), Cut(name, module, *whole))

    for ffn in ffns:
        for layer in ffn.prunable.values():
            for producer in layer.producers:
                cut = cut_of(producer.name, producer.module)
                cut.rows[producer.start : producer.start + producer.size] &= masks[layer.name]
            for consumer in layer.consumers:
                cut_of(consumer.name, consumer.module).columns.logical_and_(masks[layer.name])
    return list(found.values())


def consumers(ffns: Sequence[FFN]) -> dict[str, nn.Module]:
    """The output maps by path."""
    return {
        consumer.name: consumer.module
        for ffn in ffns
        for layer in ffn.prunable.values()
        for consumer in layer.consumers
    }


def _rewrite(module: Any, repaired: RepairedMap, undo: Undo, *, copy: bool) -> None:
    """Write a repaired map; without `copy` the weight may be the repair's own tensor, for those who cut it at once."""
    if repaired.weight is not None:
        weight = repaired.weight.T if is_transposed(module) else repaired.weight
        _assign(module.weight, weight.to(module.weight, copy=copy).contiguous(), undo)
    if repaired.bias is not None:
        _assign(module.bias, repaired.bias.to(module.bias, copy=True), undo)


def _add_biases(model: nn.Module, ffns: Sequence[FFN], undo: Undo) -> None:
    """Zero biases in every map of the FFNs, as the configuration then says."""
    for ffn in ffns:
        for stage in ffn.stages:
            for projection in stage:
                own: Any = projection.module
                if own._parameters.get("bias") is None:
                    undo.append(lambda own=own: own._parameters.__setitem__("bias", None))  # type: ignore[misc]
                    own._parameters["bias"] = nn.Parameter(own.weight.new_zeros(out_features(own)))
    _set(text_config(model), bias_attribute(model), value=True, undo=undo)


def _assign(parameter: nn.Parameter, value: torch.Tensor, undo: Undo) -> None:
    # Out of place: views of the old weights, such as those of a graph, keep their numbers.
    old = parameter.data
    undo.append(lambda: setattr(parameter, "data", old))
    parameter.data = value


def _zero(cut: Cut, undo: Undo) -> None:
    for parameter, mask in _parameters(cut):
        old = parameter.data
        _assign(parameter, torch.where(mask.to(old.device), old, torch.zeros_like(old)), undo)


def _parameters(cut: Cut) -> list[tuple[nn.Parameter, torch.Tensor]]:
    module: Any = cut.module
    pairs = [(module.weight, cut.mask())]
    if getattr(module, "bias", None) is not None:
        pairs.append((module.bias, cut.rows))
    return pairs


def _mask(cut: Cut, undo: Undo) -> None:
    module: Any = cut.module
    names = ["weight"] + (["bias"] if getattr(module, "bias", None) is not None else [])
    for name, mask in zip(names, (cut.mask(), cut.rows), strict=False):
        parameter = module._parameters[name]
        before, hooks = dict(module._parameters), dict(module._forward_pre_hooks)
        undo.append(lambda module=module, name=name, p=before, h=hooks: _unmask(module, name, p, h))  # type: ignore[misc]
        torch_prune.custom_from_mask(module, name, mask.to(parameter.device))  # type: ignore[no-untyped-call]


def _unmask(module: Any, name: str, parameters: Mapping[str, Any], hooks: Mapping[int, Any]) -> None:
    for key in [key for key in module._forward_pre_hooks if key not in hooks]:
        del module._forward_pre_hooks[key]
    module._buffers.pop(f"{name}_mask", None)
    module.__dict__.pop(name, None)
    # In their old order too: optimisers and state dicts go by it.
    module._parameters.clear()
    module._parameters.update(parameters)


def _compact(cut: Cut, undo: Undo) -> None:
    module: Any = cut.module
    rows, columns = cut.rows.nonzero().flatten(), cut.columns.nonzero().flatten()
    outer, inner = (columns, rows) if is_transposed(module) else (rows, columns)
    old = module.weight
    index = (outer.to(old.device), inner.to(old.device))
    # index_select copies: the result is contiguous and owns its storage, as saving needs.
    weight = old.data.index_select(0, index[0]).index_select(1, index[1])
    _replace(module, "weight", weight, undo)
    bias = getattr(module, "bias", None)
    if bias is not None and len(rows) < len(cut.rows):
        _replace(module, "bias", bias.data.index_select(0, rows.to(bias.device)), undo)
    for name, value in extents(module, len(rows), len(columns)).items():
        _set(module, name, value, undo)


def extents(module: nn.Module, n_rows: int, n_columns: int) -> dict[str, int]:
    """The attributes in which a module repeats the shape of its weight."""
    if is_transposed(module):
        return {name: value for name, value in (("nf", n_rows), ("nx", n_columns)) if hasattr(module, name)}
    return {"out_features": n_rows, "in_features": n_columns}


def _replace(module: Any, name: str, value: torch.Tensor, undo: Undo) -> None:
    old = module._parameters[name]
    undo.append(lambda: module._parameters.__setitem__(name, old))
    module._parameters[name] = nn.Parameter(value, requires_grad=old.requires_grad)


def _set(target: Any, name: str, value: Any, undo: Undo) -> None:
    absent = object()
    old = getattr(target, name, absent)

    def restore() -> None:
        if old is absent:
            delattr(target, name)
        else:
            setattr(target, name, old)

    undo.append(restore)
    setattr(target, name, value)


def width_attributes(model: nn.Module, width: int) -> list[str]:
    """The attributes of the model's configuration that hold the FFN width `width`."""
    config = text_config(model)
    if config is None:
        return []
    names = [name for name in WIDTH_ATTRIBUTES if getattr(config, name, None) == width]
    # GPT-2's n_inner is None while the width is four times the hidden size.
    if not names and getattr(config, "n_inner", width) is None:
        names = ["n_inner"]
    return names


def check_padding(sizes: Iterable[int]) -> None:
    """Raise unless layers of these sizes can be padded to one width.

    Parameters
    ----------
    sizes : iterable of int
        Neurons of every prunable layer, before any goes.

    Raises
    ------
    MaskError
        They are of several.
    """
    originals = set(sizes)
    if len(originals) > 1:
        raise MaskError(
            f"align='pad' needs layers of one original width, these have {sorted(originals)}; use align='none' and llmrank's "
            "loader"
        )


def _padded(model: nn.Module, masks: Masks) -> Masks:
    """Masks of one width: each keeps some removed neurons (zeroed elsewhere) up to the widest."""
    check_padding(map(len, masks.values()))
    original = len(next(iter(masks.values())))
    width = max(masks.widths.values()) if width_attributes(model, original) else original
    padded = {}
    for name, mask in masks.items():
        filled = mask.clone()
        removed = (~mask).nonzero().flatten()
        filled[removed[: width - int(mask.sum())]] = True
        padded[name] = filled
    return Masks(padded)


def _set_widths(
    model: nn.Module,
    ffns: Sequence[FFN],
    layers: Mapping[str, PrunableLayer],
    widths: Mapping[str, int],
    undo: Undo,
) -> None:
    """Bring modules and configuration in line with the new shapes."""
    for module, name, width in module_widths(ffns, widths):
        _set(module, name, width, undo)
    config = text_config(model)
    if config is None:
        return
    originals = {layer.size for layer in layers.values()}
    names = width_attributes(model, next(iter(originals))) if len(originals) == 1 else []
    if len(set(widths.values())) == 1 and names:
        for name in names:
            _set(config, name, next(iter(widths.values())), undo)
        if hasattr(config, WIDTHS_KEY):
            _drop(config, WIDTHS_KEY, undo)
    elif any(widths[name] != layer.size for name, layer in layers.items()) or hasattr(config, WIDTHS_KEY):
        _set(config, WIDTHS_KEY, dict(widths), undo)


def module_widths(ffns: Sequence[FFN], widths: Mapping[str, int]) -> list[tuple[nn.Module, str, int]]:
    """(module, attribute, new value) for every FFN module that repeats its width in an attribute."""
    return [
        (ffn.module, name, widths[layer.name])
        for ffn in ffns
        for layer in ffn.prunable.values()
        for name in WIDTH_ATTRIBUTES
        if isinstance(getattr(ffn.module, name, None), int) and getattr(ffn.module, name) == layer.size
    ]


def _drop(target: Any, name: str, undo: Undo) -> None:
    old = getattr(target, name)
    undo.append(lambda: setattr(target, name, old))
    delattr(target, name)
