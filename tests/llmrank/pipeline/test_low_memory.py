"""Runs with little memory: the same result as in memory, after any interruption too."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from llmrank import prune_model
from llmrank.calibration.blocks.states import States
from llmrank.calibration.text import tokenise
from llmrank.errors import OptionError
from llmrank.models import FAMILIES, Family
from llmrank.pipeline import CalibrationText, ChainedFFNPipeline, IsolatedFFNPipeline, ResidualFFNPipeline
from llmrank.prune import GlobalPruner, LocalPruner, SensitivityPruner
from llmrank.score import FLAPScorer, WeightedPageRankScorer
from llmrank.surgery.repair import LeastSquaresRepair
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import family_model, tiny_llama, token_ids

SETTINGS: dict[str, Any] = {
    "isolated": (IsolatedFFNPipeline, {}),
    "chained, global": (ChainedFFNPipeline, {"pruner": GlobalPruner(0.4), "scorer": FLAPScorer()}),
    "residual, sensitive": (ResidualFFNPipeline, {"pruner": SensitivityPruner(0.3)}),
    "repaired": (IsolatedFFNPipeline, {"repair": LeastSquaresRepair()}),
    "repaired, chosen anew": (ChainedFFNPipeline, {"repair": LeastSquaresRepair(reselect=True)}),
    "repaired outputs": (IsolatedFFNPipeline, {"repair": LeastSquaresRepair(target="output")}),
}
# Blocks that do not follow one another directly, or FFNs in two stacks.
BROKEN = ("T5", "T5 v1.1, Flan-T5")


def run(model: Any, kind: str = "isolated", work: Path | None = None, *, resume: bool = False, **options: Any) -> Any:
    pipeline_class, more = SETTINGS[kind]
    calibration = CalibrationText(token_ids(8, 24), sequence_length=24)
    pipeline = pipeline_class(
        model,
        None,
        calibration=calibration,
        undoable=False,
        work_directory=work,
        resume=resume,
        **{"scorer": WeightedPageRankScorer(), "pruner": LocalPruner(0.3), **more, **options},
    )
    pipeline.run()
    return pipeline


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one: Any, other: Any) -> None:
    assert one.masks == other.masks
    found, expected = one.model.state_dict(), other.model.state_dict()
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", SETTINGS)
def test_it_prunes_as_in_memory(kind: str, tmp_path: Path) -> None:
    model = tiny_llama()
    expected = run(copy.deepcopy(model), kind)
    found = run(model, kind, tmp_path / "work")
    assert_same(found, expected)
    assert found.report.reached == expected.report.reached
    found.work.remove()
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name not in BROKEN], ids=lambda f: f.name)
def test_families(family: Family, tmp_path: Path) -> None:
    model = family_model(family)
    expected = run(copy.deepcopy(model), "repaired")
    assert_same(run(model, "repaired", tmp_path / "work"), expected)


@pytest.mark.parametrize("targets", ["neurons", "experts", "neurons,experts"])
def test_mixtures(targets: str, tmp_path: Path) -> None:
    model = tiny_mixture("qwen2_moe")
    expected = run(copy.deepcopy(model), "repaired", targets=targets)
    assert_same(run(model, "repaired", tmp_path / "work", targets=targets), expected)


class Killed(BaseException):
    """Stands for a signal that ends the process."""


@pytest.mark.parametrize("kind", ["isolated", "repaired", "repaired, chosen anew"])
def test_a_run_goes_on_where_it_was_killed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    expected = state(run(copy.deepcopy(model), kind, tmp_path / "whole").model)
    store, n_stored, allowed = States.store, 0, 10**9

    def dying(self: States, k: int, value: torch.Tensor) -> None:
        nonlocal n_stored
        n_stored += 1
        if n_stored > allowed:
            raise Killed
        store(self, k, value)

    monkeypatch.setattr(States, "store", dying)
    run(copy.deepcopy(model), kind, tmp_path / "counted")
    total = n_stored
    assert total >= 2 * 8
    for first in range(1, total, 5):
        work, found = tmp_path / f"work-{first}", None
        for number, stores in enumerate((first, 7, 10**9)):  # killed twice
            n_stored, allowed = 0, stores
            with contextlib.suppress(Killed):
                found = run(copy.deepcopy(model), kind, work, resume=number > 0)
                break
        assert found is not None
        values = found.model.state_dict()
        assert all(torch.equal(values[name], value) for name, value in expected.items())


def test_a_finished_stage_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tiny_llama(), "repaired", tmp_path / "work")

    def fail(*_: Any) -> None:
        raise AssertionError("a block ran again")

    monkeypatch.setattr("llmrank.calibration.blocks.collect_by_block.collect_statistics", fail)
    run(tiny_llama(), "repaired", tmp_path / "work", resume=True)


def test_another_run_in_the_directory_is_refused(tmp_path: Path) -> None:
    run(tiny_llama(), "isolated", tmp_path / "work")
    with pytest.raises(OptionError, match="has not finished; go on with it"):
        run(tiny_llama(), "isolated", tmp_path / "work")
    with pytest.raises(OptionError, match="had another pruner"):
        run(tiny_llama(), "isolated", tmp_path / "work", resume=True, pruner=LocalPruner(0.5))
    changed = tiny_llama()
    next(changed.parameters()).data.mul_(2.0)
    with pytest.raises(OptionError, match="had another weights"):
        run(changed, "isolated", tmp_path / "work", resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(OptionError, match="in the way"):
        run(tiny_llama(), "isolated", tmp_path / "other")


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    for options in ({"undoable": True}, {"steps": 2, "undoable": False}, {"form": "zero", "undoable": False}):
        with pytest.raises(OptionError, match="a run with little memory"):
            IsolatedFFNPipeline(tiny_llama(), None, work_directory=tmp_path, **options)


@pytest.mark.parametrize("name", BROKEN)
def test_models_that_do_not_run_block_by_block_are_refused(name: str, tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if family.name == name)
    with pytest.raises(OptionError, match="cannot run block by block"):
        run(family_model(family), "isolated", tmp_path / "work")


def test_prune_model_takes_a_work_directory_and_save_deletes_it(tmp_path: Path) -> None:
    ids = token_ids(8, 24)
    models = [tiny_llama(), tiny_llama()]
    pruned = [
        prune_model(model, calibration=ids, sequence_length=24, work_directory=work)
        for model, work in zip(models, (None, tmp_path / "work"), strict=True)
    ]
    assert pruned[0].masks == pruned[1].masks
    assert (tmp_path / "work").is_dir()
    pruned[1].save(tmp_path / "pruned")
    assert not (tmp_path / "work").exists()


def test_a_model_on_another_device_is_refused(tmp_path: Path) -> None:
    pipeline = IsolatedFFNPipeline(tiny_llama(), None, undoable=False, work_directory=tmp_path / "work")
    pipeline.model.to("meta")
    with pytest.raises(OptionError, match="computes on the CPU, and parts of the model are on meta"):
        pipeline.open_work_directory(tokenise(token_ids(2, 8), None, 2, 8), None)
    assert not (tmp_path / "work").exists()
