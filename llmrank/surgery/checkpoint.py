"""Checkpoints: written completely or not at all, in the formats of transformers.

Widths that no field of the configuration can state are listed under ``llmrank_widths``, which :func:`load` reads.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn

from llmrank.bounded_files import read_bounded
from llmrank.errors import CheckpointError, OptionError, check_type, is_out_of_memory
from llmrank.execution.free_memory import bytes_of, free_memory
from llmrank.file_contents import check_fields, refused_unless_sound
from llmrank.models import FFNs, find_ffns
from llmrank.models.experts import RouteAround, SeparateExperts, counts_of_experts
from llmrank.models.loading import LoadedModel, load_pretrained, model_class_of, read_model
from llmrank.prune.masks import Masks
from llmrank.surgery.atomic import atomic_directory, check_output
from llmrank.surgery.forms import remove_experts, replace_tensor, set_sizes, tensor_masks
from llmrank.surgery.heads import resize_attentions
from llmrank.surgery.hub import check_hub, push
from llmrank.surgery.model_card import write_model_card
from llmrank.surgery.widths import WIDTHS_KEY, module_widths

__all__ = ["MASKS_FILE", "REPORT_FILE", "load", "read_report", "save"]

logger = logging.getLogger(__name__)

MASKS_FILE = "masks.safetensors"
REPORT_FILE = "report.json"
# Attribute of a class made by _with_widths: the model class that it extends.
BASE_CLASS = "_llmrank_base_class"


def save(
    directory: str | os.PathLike[str],
    model: Any,
    tokenizer: Any = None,
    masks: Masks | None = None,
    report: Mapping[str, Any] | None = None,
    *,
    shard_bytes: int | None = None,
    push_to_hub: str | None = None,
    private: bool | None = None,
) -> Path:
    """Write a checkpoint: model, tokenizer, masks and report; and upload it if `push_to_hub` names a repository.

    The directory appears completely or not at all, see :func:`llmrank.surgery.atomic.atomic_directory`. Before it appears, the
    names and shapes of the written tensors are compared with the parameters of the model that a loader would build. If there is
    memory for a second model, the checkpoint is also loaded, and every tensor is compared with that of `model`.

    Parameters
    ----------
    directory : path-like
        A directory that does not exist yet, or an empty one.
    model : transformers.PreTrainedModel
    tokenizer : transformers tokenizer, optional
    masks : Masks, optional
        Written to ``masks.safetensors``.
    report : mapping, optional
        Written to ``report.json``, as strict JSON (without NaN or Inf). If it is what
        :meth:`llmrank.pipeline.report.Report.to_dict` returns, a model card, ``README.md``, is written from it.
    shard_bytes : int, optional
        Largest size of a file of weights. The weights of one file are in memory while it is written. By default transformers
        chooses the size.
    push_to_hub : str, optional
        Repository on the Hugging Face hub, ``NAME`` or ``OWNER/NAME``, see :func:`llmrank.surgery.hub.push`. The checkpoint is
        uploaded when it is complete and has been checked.
    private : bool, optional
        Whether a new repository is private; by default the hub decides, see :func:`llmrank.surgery.hub.push`.

    Raises
    ------
    OptionError
        An argument is of a wrong type, or the report holds what JSON cannot hold; `push_to_hub` is not valid for a repository, or
        the hub does not know the user. Nothing was written.
    CheckpointError
        The directory cannot be written, see :func:`llmrank.surgery.atomic.check_output`; the disk is full; the model is not a
        transformers model or has no data; experts were removed in another form than compact; the written tensors do not fit the
        written configuration.
    """
    for name, value, kinds, expected in (
        ("masks", masks, Masks, "Masks"),
        ("report", report, Mapping, "a mapping"),
        ("shard_bytes", shard_bytes, int, "a number of bytes"),
    ):
        if value is not None:
            check_type(name, value, kinds, f"{expected}, or None")
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise OptionError(f"tokenizer must be a tokenizer of transformers, or None, got {tokenizer!r}")
    try:
        text = None if report is None else json.dumps(report, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"the report cannot be written as JSON ({error}); give plain values, without NaN and Inf"
        ) from error
    check_output(directory)
    if push_to_hub is not None:
        push_to_hub = check_hub(push_to_hub)
    if not isinstance(model, transformers.PreTrainedModel):
        raise CheckpointError(
            f"{type(model).__name__} is not a transformers model; save its state_dict with torch, and its masks with "
            "Masks.save"
        )
    if any(isinstance(vars(module).get("forward"), RouteAround) for module in model.modules()):
        raise CheckpointError(
            "no file can state that a router chooses among some of its experts only: experts were removed in the form zero or "
            "mask; apply the masks in the compact form, and save that model"
        )
    absent = [name for name, value in model.state_dict().items() if value.is_meta]
    # With a device map transformers fetches offloaded tensors itself.
    if absent and not getattr(model, "hf_device_map", None):
        raise CheckpointError(
            f"{len(absent)} tensors, {absent[0]} the first, have no data here (offloaded or on the meta device); load the model "
            "completely into memory"
        )
    try:
        with atomic_directory(directory) as partial:
            shard_option: dict[str, Any] = {} if shard_bytes is None else {"max_shard_size": shard_bytes}
            model.save_pretrained(partial, state_dict=_plain_state(model), **shard_option)
            if tokenizer is not None:
                tokenizer.save_pretrained(partial)
            if masks is not None:
                masks.save(partial / MASKS_FILE)
            if report is not None and text is not None:
                (partial / REPORT_FILE).write_text(text, encoding="utf-8")
                if report.keys() >= {"model", "method", "calibration", "neurons", "before", "after"}:
                    with refused_unless_sound("the report", "give what the run has reported, or leave the report out"):
                        write_model_card(partial, model, report, push_to_hub or "PATH")
            _check_written(partial, model)
    except (OSError, SafetensorError) as error:  # safetensors wraps errors of the system (disk full, say)
        raise CheckpointError(
            f"cannot write the checkpoint {directory}: {error}; nothing was left there; free some space or choose another "
            "place"
        ) from error
    if push_to_hub is not None:
        push(Path(directory), push_to_hub, private)
    return Path(directory)


def read_report(path: Path) -> dict[str, Any]:
    """Return the report in a file; empty if there is no such file.

    Raises
    ------
    CheckpointError
        The file cannot be read, or holds no report.
    """
    try:
        report: dict[str, Any] = json.loads(read_bounded(path)) if path.exists() else {}
        check_fields(report, {}, dict.fromkeys(("config", "calibration"), (dict, type(None))))
        return report
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a report of llmrank ({error}); expected the {REPORT_FILE} of a run: restore it, or move "
            "it away"
        ) from error


def _check_written(directory: Path, model: Any) -> None:
    """Raise unless a loader, from the files alone, would build a model that fits the tensors in them."""
    model_class = type(model)
    cause: Exception | None = None
    try:
        if model_class.__module__.startswith("transformers."):
            config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False)
            base = model_class_of(config)
        else:  # transformers does not know the class; whoever loads the checkpoint needs its code
            config = type(model.config).from_pretrained(directory)
            base = getattr(model_class, BASE_CLASS, model_class)
        written: dict[str, torch.Tensor] = {}
        for path in directory.glob("model*.safetensors"):
            with safe_open(path, framework="pt") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
            written |= {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        model_class_to_load = _class_for_config(base, config)
        _, differences = read_model(model_class_to_load, None, config, state_dict=written, device_map="meta")
        size = bytes_of(model)
        if not differences and size is not None and size < free_memory():  # a second model of this size
            logger.info("loading the checkpoint again, to compare its tensors")
            differences = _differences_when_loaded(model, model_class_to_load, directory, config)
    except Exception as error:  # whatever a loader may raise
        if is_out_of_memory(error):
            raise
        cause, differences = error, str(error) or type(error).__name__
    if differences:
        raise CheckpointError(
            f"the checkpoint of this {model_class.__name__} could not be loaded again, so it was removed: {differences}; "
            "expected a configuration that describes the tensors: check whether it was changed, or whether layers were pruned "
            "whose widths it cannot describe"
        ) from cause


def _differences_when_loaded(model: nn.Module, model_class: Any, directory: Path, config: Any) -> str:
    """Load what was written, and return in words how its tensors differ from the model's; empty if memory runs out."""
    try:
        loaded, differences = read_model(model_class, os.fspath(directory), config, dtype="auto")
        return differences or _changed_tensors(model, loaded)
    except Exception as error:
        if is_out_of_memory(error):  # other processes may have taken memory after free memory was measured
            return ""
        raise


def _changed_tensors(model: nn.Module, loaded: nn.Module) -> str:
    """Return in words which tensors have other values in the loaded model than in the model that was saved."""
    state = _plain_state(model) or model.state_dict()
    changed = [
        name
        for name, value in loaded.state_dict().items()
        if name not in state or not torch.equal(state[name].detach().to(value), value)
    ]
    return (
        f"other values after loading: {', '.join(changed[:3])}{', ...' if len(changed) > 3 else ''}" if changed else ""
    )


def _plain_state(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """Return the state dict with the masks of torch.nn.utils.prune multiplied in; None if there are no masks.

    Loaders know only ``weight``: with ``weight_orig`` and ``weight_mask`` in the file they would start from random weights.
    """
    state = model.state_dict()
    masked = [name.removesuffix("_mask") for name in state if name.removesuffix("_mask") + "_orig" in state]
    if not masked:
        return None
    for name in masked:
        state[name] = state.pop(f"{name}_orig") * state.pop(f"{name}_mask")
    return state


def load(
    source: str | os.PathLike[str],
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    placement: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Load any model: a pruned checkpoint of this package, or a source that :func:`llmrank.models.loading.load_pretrained` takes.

    Parameters
    ----------
    source, dtype, device, trust_remote_code, revision, placement
        See :func:`llmrank.models.loading.load_pretrained`.

    Raises
    ------
    ModelSourceError, OptionError
        See :func:`llmrank.models.loading.load_pretrained`.
    CheckpointError, UnsupportedModelError
        The configuration lists widths, and they are malformed or do not fit the model, or its FFNs cannot be found.
    """
    return load_pretrained(
        source,
        dtype,
        device,
        _class_for_config,
        trust_remote_code=trust_remote_code,
        revision=revision,
        placement=placement,
    )


def _class_for_config(base: Any, config: Any) -> Any:
    """Return the model class, or if the configuration lists widths, a subclass whose layers have those widths."""
    text_config = config.get_text_config()
    widths = getattr(text_config, WIDTHS_KEY, None) or getattr(config, WIDTHS_KEY, None)
    if widths is None:
        return base
    if not isinstance(widths, dict) or not all(isinstance(width, int) and width > 0 for width in widths.values()):
        raise CheckpointError(
            f"config.json: {WIDTHS_KEY} must map layer names to positive integers, got {widths!r:.200}"
        )
    return _with_widths(base, widths)


def _with_widths(base: Any, widths: Mapping[str, int]) -> Any:
    """Make a subclass of a model class whose constructor gives the layers these widths; it inherits from_pretrained."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        base.__init__(self, config, *args, **kwargs)
        _resize(self, widths)

    namespace = {"__init__": __init__, "__module__": base.__module__, "__doc__": base.__doc__, BASE_CLASS: base}
    return type(base.__name__, (base,), namespace)


def _resize(model: nn.Module, widths: Mapping[str, int]) -> None:
    """Give every prunable layer its width, with uninitialised weights into which a checkpoint is loaded.

    Stacks without any listed layer, such as the vision tower of a model whose text tower was pruned, are left as they are.
    """
    found = find_ffns(model)
    paths = {path for path, _ in model.named_modules()} - set(found.sizes)
    of_heads = {name: width for name, width in widths.items() if name in paths}
    resize_attentions(model, of_heads)
    widths = {name: width for name, width in widths.items() if name not in of_heads}
    if of_heads and not widths:
        return
    stacks = {ffn.stack for ffn in found if any(layer.name in widths for layer in ffn.prunable.values())}
    ffns = FFNs(ffn for ffn in found if ffn.stack in stacks)
    sizes = ffns.sizes
    # Widths of removed experts are not listed, so experts may be missing.
    experts = {name for names in ffns.experts.values() for name in names}
    misfits = [name for name, width in widths.items() if width > sizes.get(name, 0)]
    missing = set(sizes) - set(widths) - experts
    if misfits or missing:
        raise CheckpointError(
            f"{WIDTHS_KEY} does not fit {type(model).__name__}: {len(misfits)} unknown or too wide, "
            f"{len(missing)} missing; the configuration belongs to another model"
        )
    widths = {name: widths.get(name, 0) for name in sizes}
    with torch.device("cpu"):  # from_pretrained builds models on the meta device, where masks hold no values
        first_neurons = Masks({name: torch.arange(size) < widths[name] for name, size in sizes.items()})
        masks = tensor_masks(ffns, first_neurons)
        for owner, name, value in module_widths(ffns, widths):
            setattr(owner, name, value)
        for mask in masks:
            replace_tensor(mask, mask.read().new_empty(mask.shape))
            set_sizes(mask)
        remove_experts(ffns, first_neurons)
    _state_numbers_of_experts(model, ffns, widths)


def _state_numbers_of_experts(model: nn.Module, ffns: FFNs, widths: Mapping[str, int]) -> None:
    """Write into configurations how many experts are left, because some models initialise as many modules as are stated there.

    A configuration that several mixtures share is changed only if all of them keep the same number of experts.
    """
    changes: dict[int, tuple[Any, set[tuple[int, int]]]] = {}
    for mixture, names in zip(ffns.mixtures, ffns.experts.values(), strict=True):
        if isinstance(mixture.experts, SeparateExperts):
            parts = mixture.name.split(".")
            for k in range(len(parts)):
                config = getattr(model.get_submodule(".".join(parts[:k])), "config", None)
                if config is not None:
                    kept = sum(widths[name] > 0 for name in names)
                    changes.setdefault(id(config), (config, set()))[1].add((len(names), kept))
    for config, numbers in changes.values():
        if len(numbers) == 1:
            ((before, after),) = numbers
            for holder, name in list(counts_of_experts((config,), before)):
                setattr(holder, name, after)
