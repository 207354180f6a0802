"""Exceptions at any call inside a pruning run or its undoing: the model is as it was before, bit for bit."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

import llmrank
from tests.hostile.harness import Attack, Failed
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


@cache
def of_packages(code: CodeType) -> bool:
    """Whether a function is one of the packages."""
    return code.co_filename.startswith(PACKAGES)


@cache
def restores(code: CodeType) -> bool:
    """Whether a function puts things back."""
    return code.co_name in RESTORING or Path(code.co_filename).name in RESTORING


class Injector:
    """Counts the calls of functions of the packages, and raises an error at one of them."""

    def __init__(
        self, at: int = 0, error: type[BaseException] = RuntimeError, *, while_restoring: bool = False
    ) -> None:
        self.calls, self._at, self._error, self._while_restoring = 0, at, error, while_restoring

    def __call__(self, frame: FrameType, event: str, _arg: Any) -> None:
        if event != "call" or not of_packages(frame.f_code):
            return
        if not self._while_restoring and self._restores(frame):
            return
        self.calls += 1
        if self.calls == self._at:
            sys.setprofile(None)
            raise self._error(f"injected at {frame.f_code.co_name} ({Path(frame.f_code.co_filename).name})")

    @staticmethod
    def _restores(frame: FrameType | None) -> bool:
        while frame is not None:
            if restores(frame.f_code):
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
    """How many calls each kind of run makes, and its undoing; None if the model refuses it."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, int], tuple[int, int] | None] = {}

    def calls(self, name: str, number: int) -> tuple[int, int] | None:
        if (name, number) not in self._calls:
            running, undoing = Injector(), Injector(while_restoring=True)
            try:
                with profiled(running):
                    pruned = prune(MODELS[name](), SETTINGS[number])
            except llmrank.LLMRankError:
                self._calls[name, number] = None
            else:
                with profiled(undoing):
                    pruned.undo()
                self._calls[name, number] = running.calls, undoing.calls
        return self._calls[name, number]


def case(shared: Shared, rng: random.Random, _folder: Path) -> str:
    """Inject one error into a run, or into its undoing."""
    calls = None
    while calls is None:
        name, number = rng.choice(list(MODELS)), rng.randrange(len(SETTINGS))
        calls = shared.calls(name, number)
    model, error, undoes = MODELS[name](), rng.choice(ERRORS), rng.random() < 0.2
    torch.manual_seed(0)
    snapshot = Snapshot(model)
    injector = Injector(rng.randint(1, calls[undoes]), error, while_restoring=undoes)
    what, ended = f"{name}, {SETTINGS[number]}", "as before, after undo"
    try:
        if undoes:
            pruned = prune(model, SETTINGS[number])
            with profiled(injector):
                pruned.undo()
        else:
            with profiled(injector):
                pruned = prune(model, SETTINGS[number])
    except BaseException as raised:
        # A trial that fails, for whatever reason, can be the reason of a refusal.
        is_known = isinstance(raised, llmrank.LLMRankError) or "injected" in str(raised)
        if not is_known and "injected" not in str(raised.__cause__ or raised.__context__):
            raise
        what, ended = f"{what}: {raised}", "as before"
        if undoes:
            ended = "as before, after a second undo"
            if not pruned.application.is_undone:
                pruned.undo()
    else:
        what += ": the run answered the error, or ended before it, and was undone"
        if not undoes:
            pruned.undo()
    try:
        snapshot.assert_restored()
        # It can be pruned and restored as if nothing had been.
        if rng.random() < 0.3:
            prune(model, SETTINGS[number]).undo()
            snapshot.assert_restored()
    except AssertionError as changed:
        raise Failed(f"{what}: the model has changed: {changed}") from changed
    return ended


FAULTS = Attack("faults", "errors inside of pruning, repair, surgery and undoing", lambda _: Shared(), case, weight=3.0)
