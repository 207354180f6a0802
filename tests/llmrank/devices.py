"""Simulated devices: tensors that report such a device, compute on the CPU, and raise if devices are mixed, as GPUs do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import dispatch_model
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# A device type that torch knows by name and that needs no hardware.
FIRST, SECOND = torch.device("lazy", 0), torch.device("lazy", 1)
aten = torch.ops.aten
# Operations that may read from one device and write to another; indices may be on the CPU.
CROSSING = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class DistantTensor(torch.Tensor):
    """A tensor that reports a device other than the CPU, although its values are on the CPU."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor, device: torch.device) -> DistantTensor:
        made: DistantTensor = torch.Tensor._make_wrapper_subclass(
            cls, values.size(), values.stride(), values.storage_offset(), dtype=values.dtype, device=device
        )
        made.values = values
        return made

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: DistantTensor) -> None:
        self.values = value.values

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.values.untyped_storage()

    def tolist(self) -> Any:
        return self.values.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of pretended_devices()")


@contextmanager
def pretended_devices() -> Iterator[None]:
    """Let tensors be on :data:`FIRST` and :data:`SECOND` beside the CPU.

    An operation on tensors of several devices raises an error, as with GPUs, except for copies, and for single numbers and
    indices on the CPU.
    """
    with _Literals(), _Operations():
        yield


class _Literals(TorchFunctionMode):
    """Handles ``torch.tensor``, which makes its tensor before any operation is called."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None) if func is torch.tensor else None
        made = func(*args, **kwargs)
        return made if device is None else made.to(device)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device for tensor in tensors if tensor.dim() or tensor.device.type != "cpu"}
        distant = sorted(map(str, devices - {torch.device("cpu")}))
        allowed = func in CROSSING or (func in INDEXING and args[0].device in devices and len(distant) == 1)
        if len(devices) > 1 and not allowed:
            raise RuntimeError(f"Expected all tensors to be on the same device, {func} got {sorted(map(str, devices))}")
        device = kwargs.get("device") or (args[0] if tensors and func in CROSSING else None)
        if isinstance(device, torch.Tensor):
            device = device.device
        if device is None:
            device = torch.device(distant[0] if distant else "cpu")
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        plain_args, plain_kwargs = tree_map_only(DistantTensor, lambda tensor: tensor.values, (args, kwargs))
        result = func(*plain_args, **plain_kwargs)
        if device.type == "cpu":
            return result
        # An operation that writes to its argument returns that argument.
        own = {id(tensor.values): tensor for tensor in tensors if isinstance(tensor, DistantTensor)}
        return tree_map_only(
            torch.Tensor, lambda value: own[id(value)] if id(value) in own else DistantTensor(value, device), result
        )


def on_two(model: Any) -> Any:
    """Spread a model of two blocks over both devices with accelerate: the embeddings and the first block, and the rest."""
    parts = {"model.embed_tokens": FIRST, "model.rotary_emb": FIRST, "model.layers.0": FIRST}
    rest = dict.fromkeys(("model.layers.1", "model.norm", "lm_head"), SECOND)
    return dispatch_model(model, {**parts, **rest}, main_device=FIRST)
