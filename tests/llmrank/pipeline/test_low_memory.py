"""Runs with little memory: the same result as in memory, after any interruption too."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from llmrank import prune_model
from llmrank.errors import OptionError
from llmrank.execution.recording import record_without_running
from llmrank.execution.states import States
from llmrank.execution.work_directory import WorkDirectory, check_free
from llmrank.models import find_ffns
from llmrank.models.digest import weights_digest
from llmrank.pipeline import CalibrationText
from llmrank.prune import GlobalPruner, LocalPruner, SensitivityPruner
from llmrank.repair import LeastSquaresRepair
from llmrank.score import AutoScorer, FLAPScorer, WeightedPageRankScorer
from llmrank.text import CalibrationTokens, tokenise
from tests.llmrank.families import FAMILIES, Family
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline, ResidualFFNPipeline
from tests.llmrank.rewriting import rewrite_json, rewrite_tensors
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import families, family_model, text, tiny_llama, token_ids, tokenizer

SETTINGS: dict[str, Any] = {
    "isolated": (IsolatedFFNPipeline, {}),
    "chained, global": (ChainedFFNPipeline, {"pruner": GlobalPruner(0.4), "scorer": FLAPScorer()}),
    "residual, sensitive": (ResidualFFNPipeline, {"pruner": SensitivityPruner(0.3)}),
    "repaired": (IsolatedFFNPipeline, {"repair": LeastSquaresRepair()}),
    "scorer chosen": (IsolatedFFNPipeline, {"scorer": AutoScorer(), "repair": LeastSquaresRepair()}),
    "repaired, chosen anew": (ChainedFFNPipeline, {"repair": LeastSquaresRepair(reselect=True)}),
    "repaired outputs": (IsolatedFFNPipeline, {"repair": LeastSquaresRepair(target="output")}),
}
# Blocks that do not follow one another directly, or FFNs in two stacks.
BROKEN = ("T5", "T5 v1.1, Flan-T5")


def run(
    model: Any,
    kind: str = "isolated",
    work: Path | None = None,
    *,
    resume: bool = False,
    n_sequences: int = 8,
    **options: Any,
) -> Any:
    pipeline_class, more = SETTINGS[kind]
    calibration = CalibrationText(token_ids(n_sequences, 24), sequence_length=24)
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


def test_other_text_passes_by_block_as_in_memory(tmp_path: Path) -> None:
    """A batch holds sequences of both kinds, calibration and held-out ones."""
    settings = CalibrationText(text(24 * 12), 8, 24, batch_size=3)
    found = []
    for work in (None, tmp_path / "work"):
        pipeline = IsolatedFFNPipeline(
            tiny_llama(),
            tokenizer(),
            scorer=AutoScorer(),
            pruner=LocalPruner(0.3),
            repair=LeastSquaresRepair(),
            calibration=settings,
            work_directory=work,
            undoable=False,
        )
        pipeline.run()
        found.append(pipeline)
    in_memory, by_block = found
    assert_same(by_block, in_memory)
    assert in_memory.report.calibration["sequences"] == 8 + 2
    assert in_memory.report.held_out["sequences"] == 1 + 1
    assert in_memory.report.validation["count"] == 2 * 23
    assert by_block.report.validation["repaired"] == pytest.approx(in_memory.report.validation["repaired"], rel=1e-3)


@pytest.mark.parametrize("family", families(*BROKEN))
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


class Stores:
    """Counts the states that are stored, and kills the run at the one after the last that is allowed."""

    def __init__(self) -> None:
        self.allow(10**9)

    def allow(self, number: int) -> None:
        self.done, self.allowed = 0, number

    def count(self) -> None:
        self.done += 1
        if self.done > self.allowed:
            raise Killed


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> Stores:
    counted, store = Stores(), States.store

    def dying(self: States, k: int, value: torch.Tensor) -> None:
        counted.count()
        store(self, k, value)

    monkeypatch.setattr(States, "store", dying)
    return counted


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["isolated", "repaired", "scorer chosen", "repaired, chosen anew"])
def test_a_run_goes_on_where_it_was_killed(kind: str, tmp_path: Path, stores: Stores) -> None:
    model = tiny_llama()
    expected = state(run(copy.deepcopy(model), kind, tmp_path / "whole").model)
    total = stores.done
    assert total >= 2 * 8
    for first in range(1, total, 5):
        work, found = tmp_path / f"work-{first}", None
        for number, allowed in enumerate((first, 7, 10**9)):  # killed twice
            stores.allow(allowed)
            with contextlib.suppress(Killed):
                found = run(copy.deepcopy(model), kind, work, resume=number > 0)
                break
        assert found is not None
        values = found.model.state_dict()
        assert all(torch.equal(values[name], value) for name, value in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["isolated", "repaired", "repaired, chosen anew"])
def test_files_that_were_damaged_in_between_are_refused(kind: str, tmp_path: Path, stores: Stores) -> None:
    """A run goes on to the same result, or says that it cannot: whatever happens to its files, there is no other result."""
    model = tiny_llama()
    expected = state(run(copy.deepcopy(model), kind, tmp_path / "whole").model)
    total, same, refusals = stores.done, 0, []
    damages: dict[str, Callable[[Path], Any]] = {
        "removed": Path.unlink,
        "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
        "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    }
    for number, allowed in enumerate(range(6, total, 7)):
        killed = tmp_path / f"killed-{number}"
        stores.allow(allowed)
        with pytest.raises(Killed):
            run(copy.deepcopy(model), kind, killed)
        files = sorted(file.name for file in killed.iterdir() if file.name != "lock")
        for name, (what, damage) in itertools.product(files, damages.items()):
            work = shutil.copytree(killed, tmp_path / f"{number}-{name}-{what}")
            damage(work / name)
            stores.allow(10**9)
            try:
                values = run(copy.deepcopy(model), kind, work, resume=True).model.state_dict()
            except OptionError as error:
                refusals.append(str(error))
            else:
                assert all(torch.equal(values[key], value) for key, value in expected.items()), (name, what)
                same += 1
            shutil.rmtree(work, ignore_errors=True)
    assert all(re.search("is missing, or is not as|is damaged|no unfinished run", each) for each in refusals)
    assert same >= 3
    assert len(refusals) >= 3


def test_a_finished_stage_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tiny_llama(), "repaired", tmp_path / "work")

    def fail(*_: Any) -> None:
        raise AssertionError("a block ran again")

    monkeypatch.setattr("llmrank.calibration.collect_by_block.collect_statistics", fail)
    run(tiny_llama(), "repaired", tmp_path / "work", resume=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda meta, _: meta["ffns"].pop(),
        lambda meta, _: meta["ffns"][0]["layers"].pop(),
        lambda _, arrays: arrays.update(
            {name: array[:-1] for name, array in arrays.items() if name.startswith("0.1.")}
        ),
    ],
)
def test_statistics_of_other_ffns_are_refused(change: Any, tmp_path: Path) -> None:
    run(tiny_llama(), "isolated", tmp_path / "work")
    rewrite_tensors(tmp_path / "work" / "statistics-1.safetensors", "statistics", change)
    with pytest.raises(OptionError, match="does not hold the statistics of the FFNs of its block; delete"):
        run(tiny_llama(), "isolated", tmp_path / "work", resume=True)


@pytest.mark.parametrize("part", ["routing", "mixture"])
def test_statistics_that_lack_the_routing_of_experts_are_refused(part: str, tmp_path: Path) -> None:
    def drop(meta: Any, _: Any) -> None:
        for entry in meta["ffns"]:
            entry.pop(part, None)

    run(tiny_mixture("mixtral"), "isolated", tmp_path / "work")
    rewrite_tensors(tmp_path / "work" / "statistics-1.safetensors", "statistics", drop)
    with pytest.raises(OptionError, match="does not hold the statistics of the FFNs of its block; delete"):
        run(tiny_mixture("mixtral"), "isolated", tmp_path / "work", resume=True)


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
    with pytest.raises(OptionError, match="no unfinished run"):
        run(tiny_llama(), "isolated", tmp_path / "absent", resume=True)
    (tmp_path / "work" / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(OptionError, match="is damaged"):
        run(tiny_llama(), "isolated", tmp_path / "work", resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(OptionError, match="in the way"):
        run(tiny_llama(), "isolated", tmp_path / "other")


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    for options in ({"undoable": True}, {"form": "zero", "undoable": False}):
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


def test_a_removal_that_is_interrupted_leaves_no_part_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = WorkDirectory(tmp_path / "work", {})
    (work.path / "states").write_text("")

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killing:
        killing.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            work.remove()
    assert not (tmp_path / "work").exists()
    assert list(tmp_path.iterdir()) != []
    check_free(tmp_path / "work")
    assert list(tmp_path.iterdir()) == []


def test_a_model_on_another_device_is_refused(tmp_path: Path) -> None:
    pipeline = IsolatedFFNPipeline(tiny_llama(), None, undoable=False, work_directory=tmp_path / "work")
    prepared, tokens = pipeline.find(), CalibrationTokens(tokenise(token_ids(2, 8), None, 2, 8), None)
    pipeline.model.to("meta")
    with pytest.raises(OptionError, match="leaves the weights on the CPU, and parts of the model are on meta"):
        pipeline.with_work_directory(prepared, tokens, pipeline.execution)
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_two_processes_in_one_directory_are_refused(tmp_path: Path) -> None:
    code = """
import sys, time
from llmrank.execution.work_directory import WorkDirectory, check_free
work = WorkDirectory(sys.argv[1], {})
print("open", flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "work")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(OptionError, match="another process is at work"):
            WorkDirectory(tmp_path / "work", {}, resume=True)
        other.kill()
    WorkDirectory(tmp_path / "work", {}, resume=True).remove()


class Block(nn.Module):
    """A block with an FFN whose other argument is a number or tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, states: torch.Tensor, more: Any = None) -> Any:
        states = states + self.down(torch.relu(self.up(states)))
        return states if more is None else states + more


class Stack(nn.Module):
    """Three blocks, and between them what a function makes of the states so far."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block() for _ in range(3)])
        self.between = between

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = states.clone()
        more = None
        for layer in self.layers:
            states = layer(states, more)
            more = self.between(states)
        return states


@pytest.mark.parametrize(
    ("name", "between", "runs"),
    [
        ("nothing", lambda states: None, True),
        ("a constant", lambda states: 0.5, True),
        ("a tensor of the states", lambda states: states.mean(), False),
        ("a number of the states", lambda states: float(states.mean()), False),
        ("what keeps under scaling", lambda states: states.argmax(-1, keepdim=True).float(), False),
        ("a write to the states", lambda states: (states.add_(1.0), None)[1], False),
    ],
)
def test_arguments_that_depend_on_blocks_are_noticed(name: str, between: Any, *, runs: bool) -> None:
    model = Stack(between)
    ffns = find_ffns(model)
    features = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    record = record_without_running(model, ffns, [(features, torch.ones(4, dtype=torch.bool))])
    assert record.unbroken == runs, name


def test_states_that_change_their_dtype_are_refused(tmp_path: Path) -> None:
    states = States.in_files(tmp_path / "states", [torch.zeros(2, 3)])
    with pytest.raises(OptionError, match=r"turns states of torch\.float32"):
        states.store(0, torch.zeros(2, 3, dtype=torch.float64))


def test_a_digest_of_a_model_with_a_configuration_of_its_own() -> None:
    model = torch.nn.Linear(2, 2)
    before = weights_digest(model)
    model.config = SimpleNamespace(hidden_size=2)  # type: ignore[assignment]
    assert weights_digest(model) == before


def test_a_digest_reads_all_of_a_tensor_and_the_configuration() -> None:
    model = tiny_llama()
    before = weights_digest(model)
    model.lm_head.weight.data[-1] += 1.0
    assert weights_digest(model) != before
    model.lm_head.weight.data[-1] -= 1.0
    model.config.rms_norm_eps *= 2
    assert weights_digest(model) != before


@pytest.mark.parametrize("there", [True, False])
def test_a_directory_that_cannot_be_begun_is_removed_if_it_is_new(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no space left")

    if there:
        (tmp_path / "work").mkdir()
    monkeypatch.setattr("llmrank.execution.work_directory.write_json", refuse)
    with pytest.raises(OSError, match="no space left"):
        WorkDirectory(tmp_path / "work", {})
    assert (tmp_path / "work").exists() is there


def test_notes_hold_numbers_that_are_not_finite(tmp_path: Path) -> None:
    """Such as the distance of a candidate that breaks the model, see llmrank.pipeline.closeness.candidates."""
    work = WorkDirectory(tmp_path / "work", {"a": 1})
    work.note("choice", {"held_out": float("nan"), "behind": float("inf")})
    del work
    noted = WorkDirectory(tmp_path / "work", {"a": 1}, resume=True).progress("choice")
    assert math.isnan(noted["held_out"])
    assert math.isinf(noted["behind"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of a run that has chosen a scorer and repaired."""
    work = tmp_path_factory.mktemp("works") / "work"
    run(tiny_llama(), "scorer chosen", work)
    return work


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(stages=[]),
        lambda content: content.update(files=["states.0"]),
        lambda content: content["files"].update({"states.0": 3}),
        lambda content: content["stages"].update(calibrated=3),
        lambda content: content["stages"]["calibrated"].pop("side"),
        lambda content: content["stages"]["calibrated"].update(blocks="2"),
        lambda content: content["stages"]["calibrated"].update(blocks=3),
        lambda content: content["stages"]["calibrated"].update(side=2),
        lambda content: content["stages"]["calibrated"].update(blocks=1),
        lambda content: content["stages"]["repaired"].pop("states"),
        lambda content: content["stages"]["repaired"].update(states=1 - content["stages"]["repaired"]["states"]),
        lambda content: content["stages"]["choice"].pop("chosen"),
        lambda content: content["stages"]["choice"].update(chosen="wpr"),
        lambda content: content["stages"]["choice"].update(trials=3),
        lambda content: content["stages"]["choice"]["trials"][0].pop("behind"),
        lambda content: content["stages"]["choice"]["trials"].pop(),
        lambda content: content["files"].pop("repair-model.layers.0.mlp.safetensors"),
    ],
)
def test_notes_that_a_run_does_not_write_are_refused(finished: Path, tmp_path: Path, change: Any) -> None:
    work = shutil.copytree(finished, tmp_path / "work")
    rewrite_json(work / "progress.json", change)
    with pytest.raises(OptionError, match=r"does not hold what llmrank writes|has lost"):
        run(tiny_llama(), "scorer chosen", work, resume=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda meta, _: meta.pop("shapes"),
        lambda meta, _: meta["shapes"].pop("keep"),
        lambda meta, _: meta["shapes"].pop("weight"),
        lambda meta, _: meta["shapes"]["weight"].__setitem__(0, "nn"),
        lambda meta, _: meta["shapes"]["weight"].__setitem__(0, "load"),
        lambda meta, _: meta["shapes"]["weight"].__setitem__(1, "x"),
        lambda meta, _: meta["shapes"].update(weight=["float32", *meta["shapes"]["weight"][:0:-1]]),
        lambda meta, _: meta["shapes"]["keep"].__setitem__(0, "uint8"),
        lambda meta, _: meta.update(damping="x"),
        lambda _, arrays: arrays.update(weight=arrays["weight"][:64]),
    ],
)
def test_repaired_maps_that_do_not_fit_are_refused(finished: Path, tmp_path: Path, change: Any) -> None:
    work = shutil.copytree(finished, tmp_path / "work")
    rewrite_tensors(work / "repair-model.layers.0.mlp.safetensors", "repair", change)
    with pytest.raises(OptionError, match=r"repair-model.layers.0.mlp.safetensors does not hold what llmrank writes"):
        run(tiny_llama(), "scorer chosen", work, resume=True)
