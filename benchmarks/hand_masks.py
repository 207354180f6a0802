"""Removes neurons, experts and blocks of dense models by hand, with hooks and with tensors of the models, not with llmrank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import llmrank
from llmrank.models import FFNs

__all__ = ["Reader", "blocks_left_out", "experts_silenced", "neurons_set_to_zero", "readers_of"]

PRODUCTS = (nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)


@dataclass(frozen=True)
class Reader:
    """What reads the neurons of a layer: a module, or the entry of one expert in a tensor of a module of experts."""

    module: str
    tensor: str | None = None
    expert: int = 0


def readers_of(model: nn.Module, ffns: FFNs) -> dict[str, Reader]:
    """Return what reads the neurons of every prunable layer."""
    paths = {id(module): path for path, module in model.named_modules()}
    found = {}
    for name, layer in ffns.layers.items():
        output_map = layer.output_maps[0]
        path = paths[id(output_map.owner)]
        part = getattr(output_map.module, "weight_part", None)
        found[name] = Reader(path) if part is None else Reader(path, part.name, part.expert)
    return found


@contextmanager
def neurons_set_to_zero(model: nn.Module, masks: llmrank.Masks, readers: dict[str, Reader]) -> Iterator[None]:
    """Set the removed neurons to zero where the output maps read them.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    masks : Masks
        Experts without neurons are left to :func:`experts_silenced`.
    readers : dict from str to Reader
        What reads the neurons of every mask.
    """

    def zero(keep: torch.Tensor) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (torch.where(keep, inputs[0], 0.0), *inputs[1:])

        return hook

    with ExitStack() as undo:
        for name, keep in masks.items():
            reader = readers[name]
            module = model.get_submodule(reader.module)
            if not bool(keep.any()) or bool(keep.all()):
                continue
            if reader.tensor is None:
                undo.callback(module.register_forward_pre_hook(zero(keep)).remove)
                continue
            # The neurons of an expert are read inside the module of all experts, so its weights for them are set to zero.
            weight = getattr(module, reader.tensor).data[reader.expert]
            axes = [axis for axis, size in enumerate(weight.shape) if size == len(keep)]
            if len(axes) != 1:
                raise NotImplementedError(f"{name}: experts as wide as the stream are not masked here")
            undo.callback(weight.copy_, weight.clone())
            weight.index_fill_(axes[0], (~keep).nonzero().flatten(), 0.0)
        yield


class _Silenced(TorchFunctionMode):
    """Makes the logits of removed experts minus infinity in every product with the weight of a router."""

    def __init__(self, removed: dict[int, torch.Tensor]) -> None:
        super().__init__()
        self._removed = removed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in args if isinstance(value, torch.Tensor)] if func in PRODUCTS else []
        for tensor in tensors:
            removed = self._removed.get(tensor.data_ptr())
            if removed is not None and result.shape[-1] == len(removed):
                return result.masked_fill(removed, -torch.inf)
        return result


@contextmanager
def experts_silenced(model: nn.Module, masks: llmrank.Masks) -> Iterator[None]:
    """Let routers ignore the experts that keep no neuron: their logits, and biases that correct scores, are minus infinity.

    A router is the module beside the experts with a matrix of one row for each of them.
    """
    containers: dict[str, list[bool]] = {}
    for name, keep in masks.items():
        containers.setdefault(name.rpartition(".")[0], []).append(bool(keep.any()))
    removed: dict[int, torch.Tensor] = {}
    with ExitStack() as undo:
        for container, kept in containers.items():
            if all(kept):
                continue
            block, lost = container.rpartition(".")[0], ~torch.tensor(kept)
            tensors: dict[str, Any] = dict(model.get_submodule(block).named_parameters())
            tensors |= dict(model.get_submodule(block).named_buffers())
            beside = {
                name: tensor
                for name, tensor in tensors.items()
                if not f"{block}.{name}".startswith(f"{container}.") and len(kept) in tensor.shape
            }
            weights = [name for name, tensor in beside.items() if tensor.ndim == 2 and len(tensor) == len(kept) > 1]
            if len(weights) > 1:
                weights = [name for name in weights if "router" in name or "gate." in name]
            if len(weights) != 1:
                raise NotImplementedError(f"{container}: which of {sorted(beside)} is its router?")
            removed[beside[weights[0]].data_ptr()] = lost
            router = weights[0].partition(".")[0]
            for name, tensor in beside.items():
                if "bias" in name and tensor.numel() == len(kept) and name.partition(".")[0] in (router, name):
                    undo.callback(tensor.data.copy_, tensor.data.clone())
                    tensor.data.view(-1)[lost] = -torch.inf
        if removed:
            undo.enter_context(_Silenced(removed))
        yield


@contextmanager
def blocks_left_out(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Let the blocks of these paths return the hidden states that they get, beside what else they return."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    with ExitStack() as undo:
        for name in names:
            undo.callback(model.get_submodule(name).register_forward_hook(hook, with_kwargs=True).remove)
        yield
