"""Modules that compute on a device while their own tensors stay on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from llmrank.execution.onloading import onloaded, onloaded_by_block
from tests.devices import FIRST, DeviceTraffic


class Block(nn.Module):
    """A block with a buffer, which it may replace, and a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)
        self.register_buffer("scale", torch.full((4,), 2.0))
        self.replaces = False

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.replaces:
            self.scale = self.scale + 1.0
        return self.up(states) * self.scale


class Model(nn.Module):
    """Two blocks between two maps that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = self.first(states)
        for block in self.blocks:
            states = block(states)
        return self.last(states)


def own(module: nn.Module) -> dict[str, tuple[int, torch.Tensor]]:
    return {name: (id(value), value.clone()) for name, value in module.state_dict(keep_vars=True).items()}


def assert_own(module: nn.Module, before: dict[str, tuple[int, torch.Tensor]]) -> None:
    for name, value in module.state_dict(keep_vars=True).items():
        assert id(value) == before[name][0]
        assert torch.equal(value, before[name][1])


@torch.no_grad()
def test_a_model_computes_on_the_device_and_keeps_its_own_tensors(device_traffic: DeviceTraffic) -> None:
    model, states = Model(), torch.randn(3, 4)
    expected, before = model(states), own(model)
    with onloaded_by_block(model, list(model.blocks), FIRST):
        assert model.first.weight is model.last.weight  # still tied
        assert model.first.weight.device == FIRST
        assert model.blocks[0].up.weight.device == torch.device("cpu")
        transfers = device_traffic.transfers
        assert transfers == 3  # a weight and two biases
        found = [model(states.to(FIRST)) for _ in range(2)]
        assert device_traffic.transfers == transfers + 2 * (1 + 2 * 3)
        assert model.blocks[0].up.weight.device == torch.device("cpu")
    assert_own(model, before)
    assert "forward" not in vars(model.blocks[0])
    for output in found:
        assert output.device == FIRST
        torch.testing.assert_close(output.cpu(), expected)


@torch.no_grad()
@pytest.mark.usefixtures("device_traffic")
def test_a_buffer_that_is_replaced_on_the_device_comes_back() -> None:
    block = Block()
    block.replaces = True
    before = own(block)
    with onloaded(block, FIRST):
        block(torch.ones(1, 4).to(FIRST))
    assert block.scale.tolist() == [3.0] * 4
    assert block.scale.device == torch.device("cpu")
    before["scale"] = id(block.scale), torch.full((4,), 3.0)
    assert_own(block, before)


class Heavy(torch.Tensor):
    """A tensor for which the device has no room."""

    def to(self, *_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError


@pytest.mark.usefixtures("device_traffic")
def test_a_device_without_room_changes_nothing() -> None:
    model = Model()
    model.blocks[1].register_buffer("large", torch.zeros(2).as_subclass(Heavy))
    before = own(model)
    with pytest.raises(torch.OutOfMemoryError), onloaded(model, FIRST):
        raise AssertionError("the context was entered")
    assert_own(model, before)


def test_without_a_device_nothing_changes() -> None:
    model = Model()
    before = own(model)
    with onloaded(model, None), onloaded_by_block(model, list(model.blocks), None):
        assert_own(model, before)
        assert not any("forward" in vars(block) for block in model.blocks)
