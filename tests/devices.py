"""Simulated devices: tensors that report such a device, compute on the CPU, and raise if devices are mixed, as GPUs do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# A device type that torch knows by name and that needs no hardware.
FIRST, SECOND = torch.device("lazy", 0), torch.device("lazy", 1)
CPU = torch.device("cpu")
aten = torch.ops.aten
# Operations that may read from one device and write to another; indices may be on the CPU.
CROSSING = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# Operations whose result, or the size of it, a GPU has to send to the CPU before the program can go on.
WAITING = {
    *(aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default, aten._linalg_check_errors.default),
    *(aten.nonzero.default, aten.nonzero_numpy.default, aten.masked_select.default, aten.bincount.default),
    *(aten._unique2.default, aten.unique_consecutive.default, aten.unique_dim.default),
}


@dataclass
class DeviceTraffic:
    """Counts of what crosses between the simulated devices and the CPU.

    Attributes
    ----------
    synchronisations : int
        How often the CPU had to wait for a value: single numbers, copies to the CPU, and results whose size depends on values.
    transfers : int
        Copies from the CPU to a device; numbers that travel with an operation are none.
    copied : list of (shape, dtype)
        What these copies were of, without indices.
    """

    synchronisations: int = 0
    transfers: int = 0
    copied: list[tuple[torch.Size, torch.dtype]] = field(default_factory=list, compare=False)

    def copy(self) -> DeviceTraffic:
        """Return the counts so far."""
        return replace(self)

    def since(self, earlier: DeviceTraffic) -> DeviceTraffic:
        """Return the counts since an earlier copy."""
        return DeviceTraffic(self.synchronisations - earlier.synchronisations, self.transfers - earlier.transfers)


class DistantTensor(torch.Tensor):
    """A tensor that reports a device other than the CPU, although its values are on the CPU."""

    values_here: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor, device: torch.device) -> DistantTensor:
        strided = values.layout == torch.strided
        # A compressed tensor has no strides.
        place = {"strides": values.stride(), "storage_offset": values.storage_offset()} if strided else {}
        made: DistantTensor = torch.Tensor._make_wrapper_subclass(
            cls, values.size(), dtype=values.dtype, device=device, **place
        )
        made.values_here = values
        return made

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: DistantTensor) -> None:
        self.values_here = value.values_here

    def data_ptr(self) -> int:
        return self.values_here.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.values_here.untyped_storage()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DistantTensor({self.values_here!r}, device='{self.device}')"

    def tolist(self) -> Any:
        # One copy, as on a GPU.
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of simulated_devices()")


@contextmanager
def simulated_devices() -> Iterator[DeviceTraffic]:
    """Let tensors be on :data:`FIRST` and :data:`SECOND` beside the CPU, and count what crosses to and from the CPU.

    An operation on tensors of several devices raises an error, as with GPUs, except for copies, and for single numbers and
    indices on the CPU. Tensors of these devices cannot become numpy arrays before they are copied to the CPU.
    """
    traffic = DeviceTraffic()
    with _Literals(), _Operations(traffic):
        yield traffic


class _Literals(TorchFunctionMode):
    """Handles functions that make a tensor before any operation is called: ``torch.tensor`` and the makers of CSR tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.sparse_csr_tensor and isinstance(args[2], DistantTensor):
            parts = [part.values_here for part in args[:3]]
            return DistantTensor(func(*parts, *args[3:], **kwargs), args[2].device)
        device = kwargs.pop("device", None) if func is torch.tensor else None
        made = func(*args, **kwargs)
        return made if device is None else made.to(device)


# Arguments and results of operations are tensors, plain values, and lists and tuples of them. torch.utils._pytree knows
# more, and takes four times as long.


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _tensors(value)
        elif isinstance(value, torch.Tensor):
            yield value


def _values_here(value: Any) -> Any:
    if isinstance(value, DistantTensor):
        return value.values_here
    return [_values_here(item) for item in value] if isinstance(value, (list, tuple)) else value


def _on_device(value: Any, device: torch.device, own: Mapping[int, DistantTensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return own[id(value)] if id(value) in own else DistantTensor(value, device)
    return type(value)(_on_device(item, device, own) for item in value) if isinstance(value, (list, tuple)) else value


class _Operations(TorchDispatchMode):
    def __init__(self, traffic: DeviceTraffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        devices = {tensor.device for tensor in tensors if tensor.dim() or tensor.device != CPU}
        distant = sorted(map(str, devices - {CPU}))
        allowed = func in CROSSING or (func in INDEXING and args[0].device in devices and len(distant) == 1)
        if len(devices) > 1 and not allowed:
            raise RuntimeError(f"Expected all tensors to be on the same device, {func} got {sorted(map(str, devices))}")
        device = kwargs.get("device") or (args[0] if tensors and func in CROSSING else None)
        if isinstance(device, torch.Tensor):
            device = device.device
        if device is None:
            device = torch.device(distant[0] if distant else "cpu")
        if device.type == "meta":
            return func(*args, **kwargs)
        if distant or device != CPU:
            self._count(func, args, kwargs, device)
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        plain_args = [_values_here(value) for value in args]
        plain_kwargs = {name: _values_here(value) for name, value in kwargs.items()}
        if func is aten.histc.default and distant:
            # GPUs count integers too.
            result = func(plain_args[0].double(), *plain_args[1:], **plain_kwargs).to(plain_args[0].dtype)
        else:
            result = func(*plain_args, **plain_kwargs)
        if device == CPU:
            return result
        # An operation that writes to its argument returns that argument.
        own = {id(tensor.values_here): tensor for tensor in tensors if isinstance(tensor, DistantTensor)}
        return _on_device(result, device, own)

    def _count(self, func: Any, args: Any, kwargs: Any, device: torch.device) -> None:
        """Count an operation that touches a device; `device` is where its result is."""
        if func in CROSSING:
            source = args[1] if func is aten.copy_.default else args[0]
            self.traffic.synchronisations += source.device != CPU and device == CPU
            if source.device == CPU and device != CPU:
                self.traffic.transfers += 1
                self.traffic.copied.append((source.shape, source.dtype))
        elif func in INDEXING:
            indices = [index for index in args[1] if index is not None]
            masks = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
            self.traffic.synchronisations += masks and args[0].device != CPU
            self.traffic.transfers += any(index.device == CPU for index in indices) and args[0].device != CPU
        elif func is aten.repeat_interleave.Tensor:
            self.traffic.synchronisations += kwargs.get("output_size") is None
        else:
            self.traffic.synchronisations += func in WAITING


def on_device(values: Any, device: torch.device = FIRST) -> torch.Tensor:
    """Copy an array to a simulated device."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)
