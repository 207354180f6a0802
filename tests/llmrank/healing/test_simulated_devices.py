"""The loss of healing on simulated devices: that of the CPU, also with the dense model on another device, or in a file.

The Trainer places models itself, and knows no simulated device; so what it calls is tested here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmrank.healing import DenseModel, Distillation, predict_tokens
from llmrank.healing.student import Student, learning
from llmrank.healing.teachers import Teacher
from tests.devices import FIRST, SECOND
from tests.llmrank.devices import on_two
from tests.llmrank.healing.test_heal import TOKENS, dense, pruned

__all__ = ["dense", "pruned"]
# The simulated devices need a newer transformers than the oldest that is tested, where no slow tests run.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("two_devices")]

TEACHERS: dict[str, Callable[[Any], Teacher]] = {
    "beside it": lambda dense: DenseModel(dense.to(FIRST)),
    "on another device": lambda dense: DenseModel(dense.to(SECOND)),
    "on two devices": lambda dense: DenseModel(on_two(dense)),
    "in a file": lambda dense: predict_tokens(dense, TOKENS),
}


@pytest.mark.parametrize("place", TEACHERS)
def test_loss_gradients_and_measurements_are_those_of_the_cpu(place: str, dense: Any, pruned: Any) -> None:
    ids, mask = TOKENS.sequences.ids[:4], TOKENS.sequences.mask[:4]

    def found(model: Any, teacher: Teacher) -> tuple[torch.Tensor, list[torch.Tensor], Any]:
        with learning(model, Distillation(64)) as stored:
            student = Student(model, teacher, stored)
            measured = student.measure([(ids, mask)], 0)
            loss = student(ids, mask, torch.arange(4))["loss"]
            loss.backward()
            gradients = [value.grad.cpu() for value in student.learned().values() if value.grad is not None]
            return loss.detach().cpu(), gradients, measured

    teacher = TEACHERS[place](copy.deepcopy(dense))
    expected = found(copy.deepcopy(pruned), teacher if place == "in a file" else DenseModel(copy.deepcopy(dense)))
    there = found(copy.deepcopy(pruned).to(FIRST), teacher)
    torch.testing.assert_close(there[0], expected[0], atol=1e-4, rtol=1e-4)
    assert len(there[1]) == len(expected[1]) > 0
    for ours, theirs in zip(there[1], expected[1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    for one, two in zip(there[2], expected[2], strict=True):
        assert one == pytest.approx(two, rel=1e-4)
