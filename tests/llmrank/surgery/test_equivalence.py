"""The last check: modules that only look like an FFN are detected before the compact model is returned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from llmrank import Masks
from llmrank.errors import UnsupportedModelError
from llmrank.models import find_ffns
from llmrank.surgery.apply import apply_masks
from llmrank.surgery.equivalence import check_equivalence, masked_outputs
from llmrank.text import tokenise
from tests.llmrank.plain_pipelines import ChainedFFNPipeline
from tests.llmrank.tiny_models import Snapshot, features, logits, mlp, tiny_llama, token_ids

SIZE = 12


class Block(nn.Module):
    """Two maps with the shapes of a plain FFN, and a module between them that couples the neurons.

    Its second argument keeps the block from being probed by itself, and as many hidden neurons as inputs
    hide the norm from a look at the shapes.
    """

    def __init__(self, couple: nn.Module) -> None:
        super().__init__()
        self.up, self.couple, self.down = nn.Linear(SIZE, SIZE), couple, nn.Linear(SIZE, SIZE)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(self.couple(self.up(x))) * scale
        return result


class Model(nn.Module):
    def __init__(self, couple: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Block(couple), Block(nn.ReLU())])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x, x.new_ones(()))
        return x


@pytest.mark.parametrize(
    ("couple", "message"),
    [
        (nn.LayerNorm(SIZE), "does not run"),
        (nn.LayerNorm(SIZE, elementwise_affine=False), "does not run"),
        (nn.Softmax(dim=-1), "does not compute what the masked model does"),
    ],
)
def test_coupled_neurons_are_detected_and_the_model_restored(couple: nn.Module, message: str) -> None:
    model = Model(couple)
    snapshot = Snapshot(model)
    with pytest.raises(UnsupportedModelError, match=message):
        ChainedFFNPipeline(model, None, calibration=features(40, SIZE)).run()
    snapshot.assert_restored()


def test_separate_neurons_pass() -> None:
    model = Model(nn.GELU())
    assert ChainedFFNPipeline(model, None, calibration=features(40, SIZE)).run() is model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_masked_outputs_are_those_of_the_zero_form(dtype: torch.dtype) -> None:
    model: Any = tiny_llama().to(dtype)
    ids = token_ids(2, 16)
    sequences, ffns = tokenise(ids, None, 2, 16), find_ffns(model)
    masks = Masks({name: torch.arange(40) % 3 > 0 for name in ("model.layers.0.mlp", "model.layers.1.mlp")})
    found = masked_outputs(model, ffns, masks, sequences)
    apply_masks(model, ffns, masks, "zero")
    torch.testing.assert_close(
        found, logits(model, ids).double(), rtol=0, atol=0.05 if dtype == torch.bfloat16 else 1e-6
    )


def test_different_outputs_are_refused() -> None:
    model = mlp(6, 8, 3)
    sequences = tokenise(features(9, 6), None, 9, 6)
    ffns = find_ffns(model)
    expected = masked_outputs(model, ffns, Masks({"0": [1] * 8}), sequences)
    check_equivalence(model, expected, sequences)
    with pytest.raises(UnsupportedModelError, match="does not compute what the masked model does"):
        check_equivalence(model, expected + 0.1, sequences)
    with pytest.raises(UnsupportedModelError, match="does not compute what the masked model does"):
        check_equivalence(model, expected * float("nan"), sequences)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_out_of_memory_is_not_reported_as_an_unsupported_model(monkeypatch: Any, error: Exception) -> None:
    model, sequences = mlp(6, 8, 3), tokenise(features(9, 6), None, 9, 6)

    def fail(_features: torch.Tensor) -> None:
        raise error

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(type(error)):
        check_equivalence(model, torch.zeros(9, 3), sequences)
