"""Speed: both models are timed in turn, and the numbers are those of the times."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from llmrank.experiments.speed import ROUNDS, measure_speed
from tests.llmrank.tiny_models import token_ids, whole_sequences


class Clocked(nn.Module):
    """A model whose passes take a time of a clock of its own: less while it is pruned, and more in one round."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.now, self.pruned, self.calls = 0.0, False, []

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        self.calls.append((self.pruned, self.training))
        slow = 100.0 if len(self.calls) > 16 else 1.0  # another process has begun
        self.now += slow * (0.5 if self.pruned else 2.0)
        return input_ids

    @contextlib.contextmanager
    def compact(self) -> Iterator[None]:
        self.pruned = True
        yield
        self.pruned = False


def test_models_are_timed_in_turn() -> None:
    model = Clocked().train()
    sequences = whole_sequences(token_ids(4, 24).float())
    speed = measure_speed(model, sequences, 2, model.compact, clock=lambda: model.now)
    assert model.calls == [(False, False), (False, False), (True, False), (True, False)] * ROUNDS
    assert model.training
    # The median round does not see the slow last one.
    assert (speed.tokens_per_second, speed.dense_tokens_per_second) == (speed.tokens / 0.5, speed.tokens / 2.0)
    assert speed.ratio == pytest.approx(4.0)
    assert speed.rounds == ROUNDS
