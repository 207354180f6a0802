"""Exceptions at any call inside a pruning run or its undoing: the model is as it was before, bit for bit."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import llmrank
from tests.hostile.harness import Attack, Fell
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import Snapshot, family_model, named_family, tiny_llama, token_ids

__all__ = ["FAULTS"]

PACKAGES = tuple(str(Path(module.__file__ or "").parent) for module in (llmrank, sys.modules["graphs"]))
# What puts things back: an exception in it comes after the one that it answers, and nothing can answer both.
RESTORING = ("restores.py", "undo", "restore", "_put_back")
ERRORS = (RuntimeError, MemoryError, KeyboardInterrupt, OSError)
MODELS: dict[str, Callable[[], Any]] = {
    "Llama": lambda: tiny_llama(num_hidden_layers=3),
    "GPT-2": lambda: family_model(named_family("GPT-2")),
    "Gemma 2": lambda: family_model(named_family("Gemma 2")),
    "Phi-3": lambda: family_model(named_family("Phi-3")),
    "Mixtral": lambda: tiny_mixture("mixtral"),
}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"repair": "lstsq"},
    {"repair": "lstsq", "steps": 2},
    {"repair": "bias"},
    {"repair": None, "form": "zero"},
    {"repair": "lstsq", "form": "mask"},
    {"repair": "lstsq", "pruner": "sensitivity"},
    {"repair": "lstsq", "pipeline": "residual"},
    {"repair": "lstsq", "targets": "heads", "amount": 1},
    {"repair": "lstsq", "targets": "neurons,heads"},
    {"repair": "lstsq", "targets": "blocks", "amount": 1},
    {"repair": "lstsq", "targets": "experts"},
)


class Injector:
    """Counts the calls of functions of the packages, and raises an error at one of them."""

    def __init__(self, at: int = 0, error: type[BaseException] = RuntimeError) -> None:
        self.calls, self._at, self._error = 0, at, error

    def __call__(self, frame: FrameType, event: str, _arg: Any) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(PACKAGES) or self._restores(frame):
            return
        self.calls += 1
        if self.calls == self._at:
            sys.setprofile(None)
            raise self._error(f"injected at {frame.f_code.co_name} ({Path(frame.f_code.co_filename).name})")

    @staticmethod
    def _restores(frame: FrameType | None) -> bool:
        while frame is not None:
            if Path(frame.f_code.co_filename).name in RESTORING or frame.f_code.co_name in RESTORING:
                return True
            frame = frame.f_back
        return False


@contextmanager
def profiled(injector: Injector) -> Iterator[None]:
    """Let the injector see every call within the context."""
    sys.setprofile(injector)
    try:
        yield
    finally:
        sys.setprofile(None)


def prune(model: Any, settings: dict[str, Any]) -> Any:
    """Prune a tiny model so that it can be undone."""
    options = {"amount": 0.4, "calibration": token_ids(6, 16), **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return llmrank.prune_model(model, None, undoable=True, **options)


class Shared:
    """How many calls each kind of run makes; None if the model refuses it."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, int], int | None] = {}

    def calls(self, name: str, number: int) -> int | None:
        if (name, number) not in self._calls:
            counter = Injector()
            try:
                with profiled(counter):
                    prune(MODELS[name](), SETTINGS[number])
            except llmrank.LLMRankError:
                self._calls[name, number] = None
            else:
                self._calls[name, number] = counter.calls
        return self._calls[name, number]


def case(shared: Shared, rng: random.Random, _folder: Path) -> str:
    """Inject one error into one run, or undo a run."""
    name, number = rng.choice(list(MODELS)), rng.randrange(len(SETTINGS))
    calls = shared.calls(name, number)
    if calls is None:
        return "refused for this model"
    model, error = MODELS[name](), rng.choice(ERRORS)
    torch.manual_seed(0)
    snapshot, injector = Snapshot(model), Injector(rng.randint(1, calls), error)
    what = f"{name}, {SETTINGS[number]}"
    ended = "as before"
    try:
        with profiled(injector):
            pruned = prune(model, SETTINGS[number])
    except BaseException as raised:
        if "injected" not in str(raised) and "injected" not in str(raised.__cause__ or raised.__context__):
            raise
        said = str(raised)
    else:
        pruned.undo()
        said, ended = "the run answered the error, or ended before it, and was undone", "as before, after undo"
    try:
        snapshot.assert_restored()
    except AssertionError as changed:
        raise Fell(f"{what}: {said}: the model has changed: {changed}") from changed
    # It can be pruned and restored as if nothing had been.
    prune(model, SETTINGS[number]).undo()
    try:
        snapshot.assert_restored()
    except AssertionError as changed:
        raise Fell(f"{what}: {said}: a later undo did not restore the model: {changed}") from changed
    return ended


FAULTS = Attack("faults", "errors inside of pruning, repair and surgery", lambda _: Shared(), case)
