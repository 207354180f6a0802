"""Checkpoints: written whole or not at all, in transformers' own formats.

Uniform widths load in stock transformers. Widths that differ by layer are listed in the
configuration under ``llmrank_widths``, and :func:`load` rebuilds them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn

from llmrank.errors import CheckpointError, out_of_memory
from llmrank.models import find_ffns
from llmrank.models.ffn import is_transposed
from llmrank.models.loading import LoadedModel, load_pretrained, model_class_of, read_model
from llmrank.prune.masks import Masks
from llmrank.surgery.apply import WIDTHS_KEY, cuts, extents, module_widths
from llmrank.surgery.files import check_output, whole_directory

__all__ = ["load", "save"]

MASKS_FILE = "masks.safetensors"
REPORT_FILE = "report.json"
# On a class whose layers have the widths of one configuration: the class without them.
BASE_CLASS = "_llmrank_base_class"


def save(
    directory: str | os.PathLike[str],
    model: Any,
    tokenizer: Any = None,
    masks: Masks | None = None,
    report: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint: model, tokenizer, masks and report.

    The target appears whole or not at all, see :func:`llmrank.surgery.files.whole_directory`. Before that the configuration is
    read again as :func:`load` will, and the model that it describes is compared with the names and shapes of the tensors in the
    files; their values are not read.

    Parameters
    ----------
    directory : path-like
        Absent or empty.
    model : transformers.PreTrainedModel
    tokenizer : transformers tokenizer, optional
    masks : Masks, optional
        ``masks.safetensors``.
    report : mapping, optional
        ``report.json``.

    Raises
    ------
    CheckpointError
        See :func:`llmrank.surgery.files.check_output`; the disk is full; the model is no transformers model or has no data;
        what was written does not hold the model that its configuration describes.
    """
    check_output(directory)
    if not isinstance(model, transformers.PreTrainedModel):
        raise CheckpointError(
            f"{type(model).__name__} is no transformers model; save its state_dict with torch, and its masks with "
            "Masks.save"
        )
    absent = [name for name, value in model.state_dict().items() if value.is_meta]
    # With such a map transformers fetches what is offloaded.
    if absent and not getattr(model, "hf_device_map", None):
        raise CheckpointError(
            f"{len(absent)} tensors, {absent[0]} the first, have no data here (offloaded or on the meta device); load the model "
            "whole"
        )
    try:
        with whole_directory(directory) as partial:
            model.save_pretrained(partial, state_dict=_plain_state(model))
            if tokenizer is not None:
                tokenizer.save_pretrained(partial)
            if masks is not None:
                masks.save(partial / MASKS_FILE)
            if report is not None:
                text = json.dumps(report, indent=2, allow_nan=False) + "\n"
                (partial / REPORT_FILE).write_text(text, encoding="utf-8")
            _check_written(partial, model)
    except (OSError, SafetensorError) as error:  # safetensors wraps what the system said (disk full, say)
        raise CheckpointError(
            f"cannot write the checkpoint {directory}: {error}; nothing was left there: free some space or choose another "
            "place"
        ) from error
    return Path(directory)


def _check_written(directory: Path, model: Any) -> None:
    """Raise unless a loader that knows only the files would build the model that they hold."""
    own = type(model)
    cause: Exception | None = None
    try:
        if own.__module__.startswith("transformers."):
            config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False)
            base = model_class_of(config)
        else:  # a class that transformers does not know, which whoever loads it has to bring along
            config = type(model.config).from_pretrained(directory)
            base = getattr(own, BASE_CLASS, own)
        written: dict[str, torch.Tensor] = {}
        for path in directory.glob("model*.safetensors"):
            with safe_open(path, framework="pt") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
            written |= {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        _, differences = read_model(_subclass(base, config), None, config, state_dict=written, device_map="meta")
    except Exception as error:  # whatever stops a loader
        if out_of_memory(error):
            raise
        cause, differences = error, str(error) or type(error).__name__
    if differences:
        raise CheckpointError(
            f"the checkpoint of this {own.__name__} could not be loaded again, so it was removed: its configuration describes "
            f"another model than the tensors ({differences}); look whether the configuration was changed, or whether layers were "
            "cut that it cannot describe"
        ) from cause


def _plain_state(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """The state with masks of torch.nn.utils.prune multiplied in; None where there are none.

    Loaders know ``weight`` alone: with ``weight_orig`` and ``weight_mask`` in the file they would start
    from random weights.
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
) -> LoadedModel:
    """Load any model: a pruned checkpoint of this package, or whatever :func:`llmrank.models.loading.load_pretrained` takes.

    Parameters
    ----------
    source, dtype, device, trust_remote_code
        See :func:`llmrank.models.loading.load_pretrained`.

    Raises
    ------
    ModelSourceError, CheckpointError
        Nothing there, unreadable, or widths that do not fit the model.
    """
    return load_pretrained(source, dtype, device, subclass=_subclass, trust_remote_code=trust_remote_code)


def _subclass(base: Any, config: Any) -> Any:
    """The model class itself, or for a configuration with widths one that builds layers of those."""
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
    """A subclass of a model class whose layers have the given widths from construction on.

    Everything else (shards, dtypes, tied weights, device maps) stays with from_pretrained.
    """

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        base.__init__(self, config, *args, **kwargs)
        resize(self, widths)

    body = {"__init__": __init__, "__module__": base.__module__, "__doc__": base.__doc__, BASE_CLASS: base}
    return type(base.__name__, (base,), body)


def resize(model: nn.Module, widths: Mapping[str, int]) -> None:
    """Give every prunable layer its width, with uninitialised weights to be loaded.

    Raises
    ------
    CheckpointError
        Names that the model does not have, or a width above the layer's.
    """
    ffns = find_ffns(model)
    layers = {layer.name: layer for ffn in ffns for layer in ffn.prunable.values()}
    bad = [name for name, width in widths.items() if name not in layers or width > layers[name].size]
    if bad or set(layers) - set(widths):
        raise CheckpointError(
            f"{WIDTHS_KEY} does not fit {type(model).__name__}: {len(bad)} unknown or too wide, "
            f"{len(set(layers) - set(widths))} missing; the configuration belongs to another model"
        )
    with torch.device("cpu"):  # from_pretrained builds models on the meta device, where masks hold nothing
        first = Masks({name: torch.arange(layer.size) < widths[name] for name, layer in layers.items()})
        found = cuts(ffns, first)
    for owner, name, width in module_widths(ffns, widths):
        setattr(owner, name, width)
    for cut in found:
        module: Any = cut.module
        n_rows, n_columns = int(cut.rows.sum()), int(cut.columns.sum())
        shape = (n_columns, n_rows) if is_transposed(module) else (n_rows, n_columns)
        old = module.weight
        module.weight = nn.Parameter(old.new_empty(shape), requires_grad=old.requires_grad)
        if getattr(module, "bias", None) is not None:
            module.bias = nn.Parameter(module.bias.new_empty(n_rows), requires_grad=module.bias.requires_grad)
        for name, value in extents(module, n_rows, n_columns).items():
            setattr(module, name, value)
