"""Trackers get every row that is measured, through stubs in the place of their libraries."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import llmrank
from llmrank.errors import OptionError
from llmrank.experiments.tracking import TRACKERS, make_tracker
from llmrank.models.loading import LoadedModel
from tests.llmrank.tiny_models import text, tiny_llama, tokenizer


class Stub(ModuleType):
    """A library that notes how it is called; an instance of SummaryWriter is the library itself."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # accelerate looks for it
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments: Any, **options: Any) -> Stub:
            self.calls.append((name, arguments, options))
            return self

        return call


def swept(corpus: Path, tmp_path: Path, track: Any) -> llmrank.SweepResult:
    loaded = LoadedModel(tiny_llama(), tokenizer(), "org/tiny")
    return llmrank.sweep(
        loaded,
        output=tmp_path / "runs",
        scorers=["wpr:gamma=0.9"],
        amounts=[0.2, 40],
        repairs=["none"],
        calibration=corpus,
        evaluation=text(200, 1),
        samples=2,
        sequence_length=16,
        track=track,
    )


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_every_row_is_a_run(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    stub = Stub(name)
    monkeypatch.setitem(sys.modules, name, stub)
    result = swept(corpus, tmp_path, name)
    assert [call for call, _, _ in stub.calls] == ["init", "log", "finish"] * 3
    (_, _, dense), (_, (logged,), _) = stub.calls[:2]
    assert (dense["project"], dense["name"], dense["config"]["scorer"]) == ("llmrank", "org/tiny", None)
    assert logged["perplexity"] == result.rows[0]["perplexity"]
    assert stub.calls[3][2]["name"] == "org/tiny_wpr:gamma=0.9_local_isolated_0.2_none"
    assert stub.calls[4][1][0]["difference/value"] == result.rows[1]["difference"]["value"]
    assert stub.calls[7][1][0] == {}  # a row that failed has no numbers
    stub.calls.clear()
    swept(corpus, tmp_path, name)
    assert not stub.calls


def test_tensorboard_gets_hyperparameters_and_results(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub("torch.utils.tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    result = swept(corpus, tmp_path, "tensorboard")
    assert [call for call, _, _ in stub.calls] == ["SummaryWriter", "add_hparams", "close"] * 3
    assert stub.calls[3][1] == (tmp_path / "runs" / "tensorboard" / "org_tiny_wpr_gamma=0.9_local_isolated_0.2_none",)
    settings, results = stub.calls[4][1]
    assert (settings["scorer"], settings["amount"]) == ("wpr:gamma=0.9", 0.2)
    assert all(isinstance(value, (bool, int, float, str)) for value in settings.values())
    assert results["perplexity"] == result.rows[1]["perplexity"]


def test_a_tracker_of_ones_own_is_used(corpus: Path, tmp_path: Path) -> None:
    class Own:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def start(self, name: str, configuration: Any) -> None:
            self.calls.append(name)

        def log(self, results: Any) -> None:
            self.calls.append("log")

        def finish(self) -> None:
            self.calls.append("finish")

    own = Own()
    swept(corpus, tmp_path, own)
    assert own.calls[:3] == ["org/tiny", "log", "finish"]
    assert len(own.calls) == 9


def test_a_sweep_goes_on_if_the_tracker_fails(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub("wandb")
    stub.__dict__["log"] = lambda _: 1 / 0
    monkeypatch.setitem(sys.modules, "wandb", stub)
    with pytest.warns(UserWarning, match=r"row \d is in .* could not be tracked \(ZeroDivisionError") as warned:
        result = swept(corpus, tmp_path, "wandb")
    assert (len(result.rows), len(warned)) == (3, 3)


def test_a_tracker_that_is_missing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in TRACKERS.items():
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(OptionError, match=rf"tracking by {name} needs its package .*llmrank\[{name}\]"):
            make_tracker(name, tmp_path)
    with pytest.raises(OptionError, match="unknown tracker 'mlflow'"):
        make_tracker("mlflow", tmp_path)
