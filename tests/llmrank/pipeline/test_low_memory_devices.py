"""Runs with little memory that compute on a device: the result of the CPU, one block on the device at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llmrank import prune_model
from llmrank.errors import OptionError
from llmrank.execution.states import States
from llmrank.pipeline import notes
from llmrank.pipeline.registry import make_pruner, make_repair
from tests.devices import FIRST, DeviceTraffic, DistantTensor
from tests.llmrank.families import FAMILIES, Family
from tests.llmrank.pipeline.test_low_memory import BROKEN, SETTINGS, Killed, assert_same, run
from tests.llmrank.plain_pipelines import IsolatedFFNPipeline
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import family_model, tiny_llama, token_ids
from tests.llmrank.tiny_separate import tiny_separate

# Simulated devices answer every operation in Python.
pytestmark = pytest.mark.slow

on_a_device = pytest.mark.usefixtures("two_devices")
BUDGETS = ["local:amount=3", "global:normalize=robust,amount_of=flops", "global:amount_of=ffn-bytes", "sensitivity"]
# Falcon indexes by lists of numbers, which simulated devices cannot.
NOT_RUN = (*BROKEN, "Falcon")
REPAIRS = ["bias", "lstsq:damping=0.01", "lstsq:target=output"]


def assert_at_home(model: nn.Module) -> None:
    """No tensor of a model is on a device, nor does a block compute there."""
    tensors = [*model.parameters(), *model.buffers()]
    assert not any(isinstance(tensor, DistantTensor) for tensor in tensors)
    assert not any("forward" in vars(module) for module in model.modules())


def same_on_device(make: Callable[[], Any], kind: str, work: Path, **options: Any) -> Any:
    """Prune with little memory on the device and on the CPU, and compare; return the pipeline of the device."""
    expected = run(make(), kind, work / "cpu", **options)
    found = run(make(), kind, work / "device", device=FIRST, **options)
    assert_same(found, expected)
    assert found.plan.selection.sensitivities == pytest.approx(
        expected.plan.selection.sensitivities, rel=1e-3, abs=1e-7
    )
    assert found.report.model["device"] == str(FIRST)
    assert_at_home(found.model)
    return found


@on_a_device
@pytest.mark.parametrize("kind", SETTINGS)
def test_it_prunes_as_on_the_cpu(kind: str, tmp_path: Path) -> None:
    same_on_device(tiny_llama, kind, tmp_path)


def same_as_in_its_memory(make: Callable[[], Any], work: Path) -> None:
    """Prune on the device, block by block and in its memory, and compare bit for bit."""
    expected = run(make().to(FIRST), "repaired")
    found = run(make(), "repaired", work, device=FIRST)
    assert found.masks == expected.masks
    values = found.model.state_dict()
    assert all(torch.equal(values[name], value.cpu()) for name, value in expected.model.state_dict().items())


@on_a_device
def test_in_half_precision_it_prunes_as_in_the_memory_of_the_device(tmp_path: Path) -> None:
    """Attention rounds otherwise there than on the CPU."""
    same_as_in_its_memory(lambda: tiny_llama().bfloat16(), tmp_path / "work")


@on_a_device
@pytest.mark.parametrize("budget", BUDGETS)
def test_budgets(budget: str, tmp_path: Path) -> None:
    same_on_device(tiny_llama, "isolated", tmp_path, pruner=make_pruner(budget), repair=make_repair("lstsq"))


@on_a_device
@pytest.mark.parametrize("repair", REPAIRS)
def test_repairs(repair: str, tmp_path: Path) -> None:
    found = same_on_device(tiny_llama, "isolated", tmp_path, repair=make_repair(repair))
    assert found.plan.selection.validation is not None


MIXTURES: dict[str, Callable[[], Any]] = {
    "one tensor": lambda: tiny_mixture("qwen2_moe"),
    "modules": lambda: tiny_separate("listed"),
}
CASES = [
    ("one tensor", "chained, global", "neurons"),
    ("one tensor", "repaired", "neurons,experts"),
    ("modules", "isolated", "experts"),
]


@on_a_device
@pytest.mark.parametrize(("mixture", "kind", "targets"), CASES)
def test_mixtures(mixture: str, kind: str, targets: str, tmp_path: Path) -> None:
    same_on_device(MIXTURES[mixture], kind, tmp_path, targets=targets)


@on_a_device
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name not in NOT_RUN][::6], ids=lambda f: f.name)
def test_families(family: Family, tmp_path: Path) -> None:
    """The equations of some of these tiny models are nearly singular, so that the rounding of the CPU leads elsewhere."""
    same_as_in_its_memory(lambda: family_model(family), tmp_path / "work")


@on_a_device
def test_an_evaluation_computes_there_too(tmp_path: Path) -> None:
    found = same_on_device(tiny_llama, "isolated", tmp_path, evaluation=token_ids(3, seed=1))
    expected = run(tiny_llama(), "isolated", evaluation=token_ids(3, seed=1))
    values = [(said.evaluation.before.value, said.evaluation.after.value) for said in (found.report, expected.report)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


GATE, DOWN, QUERY = (40, 16), (16, 40), (16, 16)


@pytest.mark.parametrize("n_sequences", [8, 24])
@pytest.mark.parametrize("kind", ["isolated", "repaired", "repaired, chosen anew"])
def test_a_block_is_transferred_once_a_pass(
    kind: str, n_sequences: int, tmp_path: Path, two_devices: DeviceTraffic
) -> None:
    found = run(tiny_llama(), kind, tmp_path / "work", device=FIRST, n_sequences=n_sequences)
    shapes = [tuple(shape) for shape, _ in two_devices.copied]
    n_blocks, n_held_out = 2, 0 if found.report.held_out is None else found.report.held_out["sequences"]
    repairs = found.recipe.repair is not None
    # The repaired model runs on the only held-out sequence. With more, it runs on a few tokens as a trial, and its last block on
    # the states that the repair has left.
    of_repaired = n_blocks + (n_held_out > 1) if repairs else 0
    # The calibration; the dense and the cut model on each held-out sequence; the masked model.
    complete = n_blocks * (2 + (2 * n_held_out if repairs else 0)) + of_repaired
    # A block is fed. Then it runs again, but for the last one.
    fed, again = (n_blocks, n_blocks - 1) if repairs else (0, 0)
    # Queries and outputs of attentions are square; the last check runs the compact model.
    assert shapes.count(QUERY) == 2 * (complete + n_blocks + fed + again)
    assert shapes.count(GATE) == 2 * (complete + fed + again)
    # A map is solved. Repaired maps that are not in the model yet travel beside the old ones.
    improves = found.plan.selection.validation is not None and found.plan.selection.validation.improves
    beside = again + of_repaired + n_blocks * improves if kind == "repaired, chosen anew" else 0
    assert shapes.count(DOWN) == complete + 2 * fed + again + beside


@on_a_device
@pytest.mark.parametrize("kind", ["isolated", "repaired"])
def test_the_device_holds_one_block_at_a_time(kind: str, tmp_path: Path) -> None:
    gc.collect()  # of what other tests have left
    model = tiny_llama(num_hidden_layers=3)
    seen: set[int] = set()
    last: list[nn.Module] = [model]

    def gates() -> int:
        alive = [thing for thing in gc.get_objects() if issubclass(type(thing), DistantTensor)]
        return len({tensor.data_ptr() for tensor in alive if (tensor.shape, tensor.dtype) == (GATE, torch.float32)})

    def look(module: nn.Module, _inputs: Any) -> None:
        if module is not last[0]:  # the first batch of a block
            seen.add(gates())
        last[0] = module

    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(look)
    pipeline = run(model, kind, tmp_path / "work", device=FIRST)
    assert seen <= {0, 2}  # gate and up of one block, or none on the CPU
    assert 2 in seen
    assert pipeline.masks is not None
    assert gates() == 0


class Stopped(Exception):  # noqa: N818 -- no error of llmrank
    """Raised in the middle of a run."""


STOPS = {
    "calibration": "llmrank.calibration.statistics.sums.LayerSums.add",
    "repair": "llmrank.repair.moments.MomentSums.end_batch",
    "sensitivities": "llmrank.pipeline.closeness.sensitivity.divergences",
    "evaluation": "llmrank.evaluation.perplexity.nn.functional.cross_entropy",
}


@on_a_device
@pytest.mark.parametrize("place", STOPS)
def test_an_error_leaves_every_tensor_where_it_was(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise Stopped

    model = tiny_llama()
    before = {n: (id(value), value.data_ptr(), value.clone()) for n, value in model.state_dict(keep_vars=True).items()}
    options = {"evaluation": token_ids(3)} if place == "evaluation" else {}
    monkeypatch.setattr(STOPS[place], stop)
    with pytest.raises(Stopped) as caught:
        run(model, "residual, sensitive" if place == "sensitivities" else "repaired", tmp_path, device=FIRST, **options)
    assert caught.tb is not None  # the frames of the run, with all that they hold, are still there
    assert_at_home(model)
    for name, value in model.state_dict(keep_vars=True).items():
        assert (id(value), value.data_ptr()) == before[name][:2]
        assert torch.equal(value, before[name][2])


@on_a_device
def test_a_run_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(tiny_llama(), "repaired", tmp_path / "whole", device=FIRST).model.state_dict()
    store, allowed = States.store, 0

    def dying(self: States, k: int, value: torch.Tensor) -> None:
        nonlocal allowed
        allowed -= 1
        if allowed < 0:
            raise Killed
        store(self, k, value)

    for first in (12, 25):
        work = tmp_path / f"{first}"
        with monkeypatch.context() as killing:
            killing.setattr(States, "store", dying)
            allowed = first
            with pytest.raises(Killed):
                run(tiny_llama(), "repaired", work, device=FIRST)
        with pytest.raises(OptionError, match="had another device"):
            run(tiny_llama(), "repaired", work, resume=True)
        found = run(tiny_llama(), "repaired", work, resume=True, device=FIRST).model.state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@on_a_device
@pytest.mark.parametrize("name", BROKEN)
def test_models_without_a_single_stack_are_refused_before_any_work(name: str, tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if family.name == name)
    with pytest.raises(OptionError, match="cannot run block by block"):
        run(family_model(family), "isolated", tmp_path / "work", device=FIRST, evaluation=token_ids(2))
    assert not (tmp_path / "work").exists()


@on_a_device
def test_prune_model_takes_a_device_and_saves_from_the_cpu(tmp_path: Path) -> None:
    ids = token_ids(8, 24)
    work = tmp_path / "work"
    expected = prune_model(tiny_llama(), calibration=ids, sequence_length=24)
    pruned = prune_model(tiny_llama(), calibration=ids, sequence_length=24, work_directory=work, device=FIRST)
    assert pruned.masks == expected.masks
    pruned.save(tmp_path / "pruned")
    assert not work.exists()


def test_a_repair_takes_as_long_as_the_device_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr("llmrank.repair.duration._speed", lambda device: asked.append(device) or 1e9)
    options: dict[str, Any] = {"repair": make_repair("lstsq"), "calibration": token_ids(8), "undoable": False}
    for more in ({}, {"device": "meta", "work_directory": tmp_path / "work"}):
        monkeypatch.setattr("llmrank.pipeline.pruning_run.parse_device", torch.device)
        pipeline = IsolatedFFNPipeline(tiny_llama(), None, **options, **more)
        assert notes.seconds_of_repair(pipeline.prepare(), pipeline.recipe, pipeline.execution) > 0.0
    assert [device.type for device in asked] == ["cpu", "meta"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", SETTINGS)
def test_gpu_prunes_block_by_block_as_in_its_memory(kind: str, tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 12, "hidden_size": 128, "head_dim": 32, "intermediate_size": 2048}
    model = tiny_llama(**sizes)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    torch.cuda.reset_peak_memory_stats()
    found = run(model, kind, tmp_path / "work", device="cuda")
    if found.recipe.repair is None:  # second moments are larger than these blocks
        assert torch.cuda.max_memory_allocated() < size / 2
    expected = run(tiny_llama(**sizes).to("cuda"), kind)
    assert found.masks == expected.masks
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value.cpu(), rtol=1e-3, atol=1e-4)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
