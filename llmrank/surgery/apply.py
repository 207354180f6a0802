"""Apply masks to a model: zero, mask, or compact. The only module that writes to a model.

Every application is a transaction: whatever is raised, the parameters are restored bit for bit, and a
finished one can be undone, unless it is told to keep nothing (``undoable=False``, :class:`RepairsInPlace`).
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import IO, Any, Literal, TypeAlias

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from llmrank.errors import MaskError, OptionError
from llmrank.models import FFN, Projection, PrunableLayer
from llmrank.models.families import BIAS_ATTRIBUTES, WIDTH_ATTRIBUTES, bias_attribute, text_config
from llmrank.models.ffn import bias_of, in_features, is_transposed, out_features
from llmrank.prune.masks import Masks
from llmrank.surgery.repair import RepairedMap

__all__ = [
    "ALIGNMENTS",
    "FORMS",
    "Align",
    "AppliedMasks",
    "Form",
    "RepairsInPlace",
    "apply_masks",
    "check_padding",
    "check_writable",
    "config_fields",
    "prunable_layers",
    "trial_cut",
]

Form: TypeAlias = Literal["compact", "zero", "mask"]
Align: TypeAlias = Literal["none", "pad"]
FORMS: tuple[Form, ...] = ("compact", "zero", "mask")
ALIGNMENTS: tuple[Align, ...] = ("none", "pad")
WIDTHS_KEY = "llmrank_widths"

# Each puts one module, or the configuration, back as it was before anything was written: in any order, and again where it
# was interrupted.
Restore: TypeAlias = Callable[[], None]
ABSENT = object()


@dataclass
class AppliedMasks:
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
    _undo: list[Restore] = field(default_factory=list, repr=False)
    _current: list[Callable[[], bool]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Restore every parameter, attribute and configuration entry, bit for bit.

        The original tensors are kept for this; drop the object to free them. What is raised on the way (an interrupt, say) is
        raised once all else is restored; a second call restores what is left.

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
        try:
            self._restore()
        finally:
            # Again, in case an interrupt cut the first time short; otherwise nothing is left to do.
            self._restore()

    def _restore(self) -> None:
        failures: list[BaseException] = []
        for restore in self._undo:
            try:
                restore()
            except BaseException as error:  # noqa: PERF203 -- the others are restored all the same
                failures.append(error)
        if failures:
            raise failures[0]
        self._undo.clear()


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

    @property
    def is_whole(self) -> bool:
        """Whether nothing is cut from the map."""
        return bool(self.rows.all() and self.columns.all())

    def parameters(self) -> dict[str, torch.Tensor]:
        """What is kept of each parameter from which something is cut: its mask."""
        whole = {"weight": self.is_whole, "bias": bool(self.rows.all()) or bias_of(self.module) is None}
        return {name: self.mask() if name == "weight" else self.rows for name in whole if not whole[name]}


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
) -> AppliedMasks:
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
        Repaired output maps, of the same masks; see :func:`llmrank.surgery.repair.repair_ffns`.
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
    application = AppliedMasks(form, masks, {}, undoable)
    solved = {id(maps[name]): one for name, one in (repaired or {}).items()}
    if undoable:
        application._undo += _ways_back(model, ffns)
    try:
        if any(one.bias is not None and bias_of(maps[name]) is None for name, one in (repaired or {}).items()):
            _add_biases(model, ffns)
        # What the tensors hold in the end: all, or with zeros what fills them up too.
        held, fields = (masks, {}) if form != "compact" else _held(model, ffns, masks, align)
        application.widths = held.widths if form == "compact" else {name: len(mask) for name, mask in masks.items()}
        for cut, kept in zip(cuts(ffns, masks), cuts(ffns, held), strict=True):
            one = solved.get(id(cut.module))
            if one is not None:
                # What is cut is copied in any case.
                _rewrite(cut.module, one, copy=form == "mask" or cut.is_whole)
            if form == "mask":
                _mask(cut)
            elif form == "zero" or align == "pad":
                _zero(cut)
            if form == "compact":
                _compact(kept)
        if form == "compact":
            _set_widths(model, ffns, layers, application.widths, fields)
        modules = {id(p.module): p.module for ffn in ffns for stage in ffn.stages for p in stage}
        application._current += [_unchanged(module) for module in modules.values()]
        return application
    except BaseException:
        application._roll_back()
        raise


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
    applied: list[AppliedMasks] = []
    with ExitStack() as way_back:
        # Registered first, and twice, so that an interrupt at any point still takes the masks back.
        for _ in range(2):
            way_back.callback(_take_back, applied)
        if masks is not None:
            applied.append(apply_masks(model, ffns, masks, "zero", repaired=repaired))
        yield


def _take_back(applied: Sequence[AppliedMasks]) -> None:
    for application in applied:
        application._roll_back()


class RepairsInPlace:
    """Repaired weights written over a model's own, whose bytes wait in a temporary file in case they are wanted back.

    So no memory holds both. Close it to drop the file.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
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
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by close()
        parameter: nn.Parameter = consumer.module.weight  # type: ignore[assignment]
        start = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"cannot keep the weights that a repair replaces in the temporary directory {tempfile.gettempdir()} ({error}); "
                "free space there, or set TMPDIR to another place"
            ) from error
        self._replaced.append((parameter, start))
        consumer.weight.copy_(repaired.weight)
        return replace(repaired, weight=None)

    def restore(self) -> None:
        """Write the model's own weights back, bit for bit."""
        while self._replaced and self._file is not None:
            parameter, start = self._replaced[-1]
            self._file.seek(start)
            size = parameter.numel() * parameter.element_size()
            values = torch.frombuffer(bytearray(self._file.read(size)), dtype=parameter.dtype)
            parameter.data.copy_(values.view(parameter.shape))
            self._replaced.pop()

    def close(self) -> None:
        """Drop the file; what was written stays."""
        self._replaced.clear()
        if self._file is not None:
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
    if align == "pad":
        check_padding(map(len, masks.values()))
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


def _ways_back(model: nn.Module, ffns: Sequence[FFN]) -> list[Restore]:
    """How to restore all that an application may write to, as it is now."""
    modules = {id(p.module): p.module for ffn in ffns for stage in ffn.stages for p in stage}
    ways = [_way_back(module) for module in modules.values()]
    ways += [_attributes_back(ffn.module, WIDTH_ATTRIBUTES) for ffn in ffns]
    config = text_config(model)
    return (
        ways if config is None else [*ways, _attributes_back(config, (*WIDTH_ATTRIBUTES, *BIAS_ATTRIBUTES, WIDTHS_KEY))]
    )


def _way_back(module: nn.Module) -> Restore:
    parameters, buffers, hooks = dict(module._parameters), dict(module._buffers), dict(module._forward_pre_hooks)
    # The tensors themselves: an assignment to `data` leaves the Parameter where it is.
    tensors = {name: parameter.data for name, parameter in parameters.items() if parameter is not None}
    attributes = _attributes_back(module, tuple(extents(module, 0, 0)))

    def restore() -> None:
        own: Any = module
        for name, tensor in tensors.items():
            parameter: Any = parameters[name]
            if parameter.data_ptr() != tensor.data_ptr() or parameter.shape != tensor.shape:
                parameter.data = tensor
        for name in parameters:
            # torch.nn.utils.prune keeps the masked tensor as a plain attribute.
            vars(own).pop(name, None)
            if f"{name}_mask" not in buffers:
                own._buffers.pop(f"{name}_mask", None)
        for key, hook in list(own._forward_pre_hooks.items()):
            if key not in hooks and isinstance(hook, torch_prune.BasePruningMethod):
                own._forward_pre_hooks.pop(key, None)
        # In their old order too: optimisers and state dicts go by it.
        if [(name, id(p)) for name, p in own._parameters.items()] != [(name, id(p)) for name, p in parameters.items()]:
            own._parameters.clear()
            own._parameters.update(parameters)
        attributes()

    return restore


def _attributes_back(target: Any, names: Iterable[str]) -> Restore:
    before = {name: getattr(target, name, ABSENT) for name in names}

    def restore() -> None:
        for name, value in before.items():
            now = getattr(target, name, ABSENT)
            if now is not value and value is ABSENT:
                delattr(target, name)
            elif now is not value and now != value:
                setattr(target, name, value)

    return restore


def _rewrite(module: Any, repaired: RepairedMap, *, copy: bool) -> None:
    """Write a repaired map; without `copy` the weight may be the repair's own tensor, for those who cut it at once."""
    # Out of place: views of the old weights, such as those of a graph, keep their numbers.
    if repaired.weight is not None:
        weight = repaired.weight.T if is_transposed(module) else repaired.weight
        module.weight.data = weight.to(module.weight, copy=copy).contiguous()
    if repaired.bias is not None:
        module.bias.data = repaired.bias.to(module.bias, copy=True)


def _add_biases(model: nn.Module, ffns: Sequence[FFN]) -> None:
    """Zero biases in every map of the FFNs, as the configuration then says."""
    for ffn in ffns:
        for stage in ffn.stages:
            for projection in stage:
                own: Any = projection.module
                if own._parameters.get("bias") is None:
                    own._parameters["bias"] = nn.Parameter(own.weight.new_zeros(out_features(own)))
    setattr(text_config(model), bias_attribute(model), True)


def _zero(cut: Cut) -> None:
    for name, mask in cut.parameters().items():
        parameter: Any = cut.module._parameters[name]
        old = parameter.data
        # Out of place, as above.
        parameter.data = torch.where(mask.to(old.device), old, torch.zeros_like(old))


def _mask(cut: Cut) -> None:
    for name, mask in cut.parameters().items():
        parameter: Any = cut.module._parameters[name]
        torch_prune.custom_from_mask(cut.module, name, mask.to(parameter.device))  # type: ignore[no-untyped-call]


def _compact(cut: Cut) -> None:
    module: Any = cut.module
    kept = {name: [cut.rows] for name in cut.parameters()}
    if "weight" in kept:
        kept["weight"] = [cut.columns, cut.rows] if is_transposed(module) else [cut.rows, cut.columns]
    for name, axes in kept.items():
        old = module._parameters[name]
        value = old.data
        for axis, mask in enumerate(axes):
            # index_select copies: the result is contiguous and owns its storage, as saving needs.
            if not bool(mask.all()):
                value = value.index_select(axis, mask.nonzero().flatten().to(value.device))
        _replace(module, name, value)
    for name, extent in extents(module, int(cut.rows.sum()), int(cut.columns.sum())).items():
        _set(module, name, extent)


def extents(module: nn.Module, n_rows: int, n_columns: int) -> dict[str, int]:
    """The attributes in which a module repeats the shape of its weight."""
    if is_transposed(module):
        return {name: value for name, value in (("nf", n_rows), ("nx", n_columns)) if hasattr(module, name)}
    return {"out_features": n_rows, "in_features": n_columns}


def _replace(module: Any, name: str, value: torch.Tensor) -> None:
    module._parameters[name] = nn.Parameter(value, requires_grad=module._parameters[name].requires_grad)


def _set(target: Any, name: str, value: Any) -> None:
    if getattr(target, name, ABSENT) != value:
        setattr(target, name, value)


def config_fields(model: nn.Module, ffns: Sequence[FFN], masks: Masks) -> dict[str, Any]:
    """What to write into a model's configuration for it to describe the model once these masks have made it smaller.

    A field such as ``intermediate_size`` may have other users than the FFNs that are cut. So a model is built from the
    configuration with the new value, on the meta device, and every parameter's shape compared.

    Parameters
    ----------
    model : nn.Module
        Not cut yet; not changed.
    ffns : sequence of FFN
    masks : Masks

    Returns
    -------
    dict from str to value
        Empty where the layers come out of several widths, or no field gives the shapes.

    Notes
    -----
    Cost: the construction of a model without its data, about a second for one of 8 billion parameters; as many as there are
    fields where none fits.
    """
    config = getattr(model, "config", None)
    if config is None or not masks.is_uniform or masks.kept == masks.size:
        return {}
    (width,) = set(masks.widths.values())
    shapes = _shapes_after(model, cuts(ffns, masks))
    for name in WIDTH_ATTRIBUTES:
        # GPT-2's n_inner is None while the width is four times the hidden size; Gemma 3n lists one for each layer.
        old = getattr(text_config(model), name, ABSENT)
        if old is not ABSENT:
            fields = {name: [width] * len(old) if isinstance(old, list) else width}
            if _shapes_by_config(model, fields) == shapes:
                return fields
    return {}


def _shapes_after(model: nn.Module, found: Sequence[Cut]) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters once a model is cut; of those that several modules share, by each of their names."""
    after: dict[int, tuple[int, ...]] = {}
    for cut in found:
        module: Any = cut.module
        n_rows, n_columns = int(cut.rows.sum()), int(cut.columns.sum())
        after[id(module.weight)] = (n_columns, n_rows) if is_transposed(module) else (n_rows, n_columns)
        after[id(bias_of(module))] = (n_rows,)
    named = model.named_parameters(remove_duplicate=False)
    return {name: after.get(id(parameter), tuple(parameter.shape)) for name, parameter in named}


def _shapes_by_config(model: nn.Module, fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """The shapes of all parameters of a model that is built from the configuration with these fields; None where none is."""
    # What a loader would build: the class by that name, of which a model with widths by layer is an instance in disguise.
    places = ((kind, sys.modules.get(kind.__module__)) for kind in type(model).__mro__)
    stock: Any = next(kind for kind, module in places if getattr(module, kind.__name__, None) is kind)
    config: Any = copy.deepcopy(model.config)
    for name, value in fields.items():
        setattr(config.get_text_config() if hasattr(config, "get_text_config") else config, name, value)
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            built = stock(config)
        return {name: tuple(parameter.shape) for name, parameter in built.named_parameters(remove_duplicate=False)}
    except Exception:  # whatever a model says of such a configuration, it cannot be loaded with it
        return None


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


def _held(model: nn.Module, ffns: Sequence[FFN], masks: Masks, align: Align) -> tuple[Masks, dict[str, Any]]:
    """Masks of what compact layers hold, and what the configuration says of it.

    To pad, each keeps some removed neurons (zeroed elsewhere) up to the widest; up to all where no field can say that width.
    """
    if align == "none":
        return masks, config_fields(model, ffns, masks)
    filled = _filled(masks, max(masks.widths.values()))
    fields = config_fields(model, ffns, filled)
    return (filled, fields) if fields else (_filled(masks, max(map(len, masks.values()))), {})


def _filled(masks: Masks, width: int) -> Masks:
    filled = dict(masks)
    for mask in filled.values():
        removed = (~mask).nonzero().flatten()
        mask[removed[: width - int(mask.sum())]] = True
    return Masks(filled)


def _set_widths(
    model: nn.Module,
    ffns: Sequence[FFN],
    layers: Mapping[str, PrunableLayer],
    widths: Mapping[str, int],
    fields: Mapping[str, Any],
) -> None:
    """Bring modules and configuration in line with the new shapes."""
    for module, name, width in module_widths(ffns, widths):
        _set(module, name, width)
    config = text_config(model)
    if config is None:
        return
    for name, value in fields.items():
        _set(config, name, value)
    if fields and hasattr(config, WIDTHS_KEY):
        delattr(config, WIDTHS_KEY)
    elif not fields and (
        any(widths[name] != layer.size for name, layer in layers.items()) or hasattr(config, WIDTHS_KEY)
    ):
        setattr(config, WIDTHS_KEY, dict(widths))


def module_widths(ffns: Sequence[FFN], widths: Mapping[str, int]) -> list[tuple[nn.Module, str, int]]:
    """(module, attribute, new value) for every FFN module that repeats its width in an attribute."""
    return [
        (ffn.module, name, widths[layer.name])
        for ffn in ffns
        for layer in ffn.prunable.values()
        for name in WIDTH_ATTRIBUTES
        if isinstance(getattr(ffn.module, name, None), int) and getattr(ffn.module, name) == layer.size
    ]
