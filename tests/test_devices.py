"""Tests of the simulated devices: they do not mix, and count what crosses between them and the CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from graphs.linalg.operators import torch_csr
from tests.devices import FIRST, SECOND, DeviceTraffic, on_device
from tests.tables import table


@pytest.mark.usefixtures("device_traffic")
def test_simulated_devices_do_not_mix() -> None:
    here, there = torch.ones(2, device=FIRST), torch.ones(2, device=SECOND)
    for other in (there, torch.ones(2)):
        with pytest.raises(RuntimeError, match="same device"):
            here + other
    assert (here + there.to(FIRST)).device == FIRST
    assert here.copy_(there).device == FIRST
    assert (here + torch.tensor(1.0)).cpu().tolist() == [2.0, 2.0]
    assert here[torch.tensor([True, False])].device == FIRST


@pytest.mark.usefixtures("device_traffic")
def test_tensors_of_a_simulated_device_become_arrays_only_by_way_of_the_cpu() -> None:
    there = on_device([1.0, 2.0])
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()
    assert there.cpu().numpy().tolist() == [1.0, 2.0]


@pytest.mark.usefixtures("device_traffic")
def test_compressed_tensors_compute_on_a_simulated_device() -> None:
    crow, columns, values = on_device([0, 1, 2]), on_device([1, 0]), on_device([3.0, 4.0])
    matrix = torch_csr(crow, columns, values, (2, 2))
    assert matrix.device == matrix.values().device == matrix.crow_indices().device == FIRST
    assert (matrix @ values).tolist() == [12.0, 12.0]
    with pytest.raises(RuntimeError, match="same device"):
        matrix @ torch.ones(2, dtype=torch.float64)


SYNCHRONISING: dict[str, Callable[[torch.Tensor], Any]] = {
    "item": lambda t: t[0].item(),
    "float": lambda t: float(t.sum()),
    "int": lambda t: int(t[0]),
    "bool": lambda t: bool((t > 0).all()),
    "tolist": lambda t: t.tolist(),
    "cpu": lambda t: t.cpu(),
    "to": lambda t: t.to("cpu", torch.float32),
    "copy": lambda t: torch.zeros(3, dtype=torch.float64).copy_(t),
    "nonzero": lambda t: t.nonzero(),
    "mask": lambda t: t[t > 1.0],
    # Newer versions of torch fill a mask with a number at once.
    "masked assignment": lambda t: t.index_put((t > 1.0,), t[:1]),
    "masked select": lambda t: t.masked_select(t > 1.0),
    "unique": lambda t: t.unique(),
    "bincount": lambda t: torch.bincount(t.long()),
    "repeats": lambda t: t.repeat_interleave(t.long()),
    "equal": lambda t: torch.equal(t, t),
}
STAYING: dict[str, Callable[[torch.Tensor], Any]] = {
    "sum": lambda t: t.sum() / t.abs().max(),
    "slice": lambda t: t[1:].add_(1.0),
    "indices": lambda t: t[t.argsort()],
    "assignment": lambda t: t.__setitem__(t.argsort()[:1], 0.0),
    "repeats of known size": lambda t: t.repeat_interleave(t.long(), output_size=6),
    "zeros": lambda t: torch.zeros(3, device=FIRST) + t.new_ones(3),
    "choice": lambda t: t.where(t > 1.0, 0.5),
    "other device": lambda t: t.to(SECOND),
}


@table("name", SYNCHRONISING)
def test_what_brings_values_to_the_cpu_is_counted(name: str, device_traffic: DeviceTraffic) -> None:
    tensor = on_device([1.0, 2.0, 3.0])
    before = device_traffic.copy()
    SYNCHRONISING[name](tensor)
    assert device_traffic.since(before) == DeviceTraffic(synchronisations=1)


@table("name", STAYING)
def test_what_stays_on_a_device_is_not_counted(name: str, device_traffic: DeviceTraffic) -> None:
    tensor = on_device([1.0, 2.0, 3.0])
    before = device_traffic.copy()
    STAYING[name](tensor)
    assert device_traffic.since(before) == DeviceTraffic()


def test_what_goes_to_a_device_is_counted(device_traffic: DeviceTraffic) -> None:
    tensor = on_device([1.0, 2.0, 3.0])
    tensor[torch.tensor([0, 2])]
    tensor.copy_(torch.zeros(3))
    torch.tensor([1.0], device=FIRST)
    assert device_traffic == DeviceTraffic(transfers=4)
