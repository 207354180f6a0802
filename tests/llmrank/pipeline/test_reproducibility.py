"""Masks and weights do not depend on how a run computes, and the report says how close its decisions were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from llmrank import Masks, PrunedModel, prune_model
from llmrank.calibration.statistics.sums import LayerSums
from llmrank.pipeline import CalibrationText
from llmrank.pipeline.closeness.repair_validation import Validation
from llmrank.prune import BasePruner, GlobalPruner, LocalPruner
from llmrank.repair.moments import LONG_SEQUENCE, MomentSums
from tests.llmrank.execution.test_processes import connect, free_port
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import features, mlp, tiny_llama, token_ids

# Frobenius norm of a difference between weights, as a share of their own.
TOLERANCE = 1e-6
MODELS: dict[str, Callable[[], Any]] = {
    "Llama": lambda: tiny_llama(hidden_size=64, intermediate_size=192),
    "mixture": lambda: tiny_mixture("qwen2_moe"),
}


def pruned(make: Callable[[], Any], batch_size: int = 1) -> PrunedModel:
    text = CalibrationText(token_ids(8, 24), sequence_length=24, batch_size=batch_size)
    with patch.object(Validation, "improves", new=True):  # all repairs are kept, so that they are compared
        return prune_model(make(), calibration=text)


def assert_same(masks: Any, weights: dict[str, torch.Tensor], expected: PrunedModel, tolerance: float) -> None:
    assert expected.report.repaired
    assert expected.masks == Masks(masks)
    for name, value in expected.model.state_dict().items():
        assert float((weights[name] - value).norm()) <= tolerance * float(value.norm()), name


@pytest.fixture(params=MODELS)
def make(request: pytest.FixtureRequest) -> Callable[[], Any]:
    return MODELS[request.param]


def test_a_repeat_is_the_same_bit_for_bit(make: Callable[[], Any]) -> None:
    found = pruned(make)
    assert_same(found.masks, found.model.state_dict(), pruned(make), 0.0)


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_the_batch_size_changes_no_mask(make: Callable[[], Any], batch_size: int) -> None:
    found = pruned(make, batch_size)
    assert_same(found.masks, found.model.state_dict(), pruned(make), TOLERANCE)
    assert found.report.execution == {"batch_size": batch_size, "processes": 1, "by_block": False}


@pytest.mark.parametrize("padded", [False, True])
def test_sums_do_not_depend_on_the_batch_size_in_any_bit(padded: bool) -> None:
    length = LONG_SEQUENCE
    values, missing = features(8 * length, 40).view(8, length, 40), features(8 * length, 16).view(8, length, 16)
    mask = torch.rand(8, length, generator=torch.Generator().manual_seed(2)) > 0.3 if padded else None
    found = []
    for batch_size in (1, 2, 3, 8):
        sums, layer = MomentSums(40, torch.device("cpu")), LayerSums(40, torch.device("cpu"))
        for start in range(0, 8, batch_size):
            batch = slice(start, start + batch_size)
            batch_mask = None if mask is None else mask[batch]
            sums.add(values[batch], batch_mask)
            sums.end_batch(missing[batch])
            layer.add(values[batch], batch_mask)
        moments, statistics = sums.moments()[0], layer.finish("a layer")
        assert moments.missing is not None
        parts = (moments.total, moments.second, moments.missing.cross, moments.missing.total)
        found.append(torch.cat([part.flatten() for part in (*parts, statistics.norm, statistics.mean)]))
    assert all(torch.equal(each, found[0]) for each in found)


def prune_in_process(rank: int, count: int, threads: int, port: int, folder: Path) -> None:
    connect(rank, count, port)
    torch.set_num_threads(threads)
    found = {name: pruned(make) for name, make in MODELS.items()}
    outcomes = {name: (dict(each.masks), each.model.state_dict()) for name, each in found.items()}
    report = found["Llama"].report
    torch.save((outcomes, report.execution["processes"], report.environment["threads"]), folder / f"{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize(("count", "threads"), [(1, 2), (2, 1)])
def test_threads_and_processes_change_no_mask(
    count: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a process of its own, threads that wait need not spin, which takes minutes on cores that are shared.
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    mp.spawn(prune_in_process, (count, threads, free_port(), tmp_path), nprocs=count)
    expected = {name: pruned(make) for name, make in MODELS.items()}
    for rank in range(count):
        outcomes, *counts = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert counts == [count, str(threads)]
        for name, (masks, weights) in outcomes.items():
            assert_same(masks, weights, expected[name], TOLERANCE)


def nearly_level(gap: float) -> nn.Sequential:
    """Make a perceptron whose hidden neurons have the activations 1, 2, 2 (1 + gap), 4, 5 ... times those of the first."""
    model = mlp(4, 8, 3)
    factors = torch.tensor([1.0, 2.0, 2.0 * (1.0 + gap), 4.0, 5.0, 6.0, 7.0, 8.0], dtype=torch.float64)
    with torch.no_grad():
        model.double()
        model[0].weight.copy_(factors[:, None] * model[0].weight[0])
        model[0].bias.zero_()
        model[2].weight.fill_(1.0)
    return model


@pytest.mark.parametrize("pruner", [LocalPruner(0.25, multiple_of=1), GlobalPruner(0.25, multiple_of=1)])
@pytest.mark.parametrize(
    ("gap", "dtype", "close"),
    [
        (1e-3, torch.float32, 0),
        (1e-6, torch.float32, 2),
        (0.0, torch.float32, 2),
        (1e-3, torch.bfloat16, 2),
        (1e-6, torch.float64, 0),
        (1e-14, torch.float64, 2),
    ],
)
def test_close_decisions_are_counted(gap: float, dtype: torch.dtype, close: int, pruner: BasePruner) -> None:
    model, calibration = nearly_level(gap).to(dtype), features(64, 4).to(dtype)
    found = prune_model(model, pruner=pruner, scorer="activation", repair="none", calibration=calibration)
    assert found.masks.removed("0") == [0, 1]
    count = found.report.to_dict()["neurons"]["close_decisions"]
    assert count["neurons"] == close
    assert 0 < count["round_off"] < 0.1


def test_blocks_are_not_chosen_by_scores() -> None:
    found = prune_model(tiny_llama(), amount=1, targets="blocks", repair="none", calibration=token_ids(8, 24))
    assert found.report.neurons["close_decisions"] is None
