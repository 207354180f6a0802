"""An exception on any line leaves the model unchanged, or a second undo restores it."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dis import opname
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import prune as torch_prune

import llmrank
from llmrank.calibration.collect import collect_statistics
from llmrank.execution import Execution
from llmrank.execution.block_stream import BlockStream, open_stream
from llmrank.execution.pass_stream import PassStream, Stream
from llmrank.execution.recording import recording
from llmrank.models import find_ffns
from llmrank.prune.masks import Masks
from llmrank.repair import BiasRepair, LeastSquaresRepair, RepairedMap, repair_ffns
from llmrank.surgery import apply
from llmrank.surgery.apply import apply_masks
from llmrank.surgery.equivalence import check_equivalence, masked_outputs
from llmrank.text import tokenise
from tests.llmrank.tiny_models import Snapshot, family_model, named_family, tiny_llama, token_ids

PACKAGE = Path(llmrank.__file__).parent
WRITERS = {
    *(str(PACKAGE / "surgery" / name) for name in ("apply.py", "forms.py", "widths.py")),
    str(Path(torch_prune.__file__)),
}
WATCHERS = {
    str(PACKAGE / "surgery" / "equivalence.py"),
    *WRITERS,
    *map(str, (PACKAGE / "repair").glob("*.py")),
}
SEQUENCES = tokenise(token_ids(3, 8), None, 3, 8)


class Interrupted(BaseException):
    """Like KeyboardInterrupt, but raised only by these tests."""


class Lines:
    """Counts the lines that run in some files, and raises in front of one of them."""

    def __init__(self, files: set[str], last: int | None = None) -> None:
        self.files, self.last, self.count, self.where = files, last, 0, ""

    def __call__(self, frame: Any, event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        # A `try` does nothing, and the line of a `with` runs again at its end: only a tracer can interrupt these. From Python
        # 3.12 on, no `try` or `with` of a function catches what is raised at a jump of its comprehensions (CPython issue 148278).
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
        jumps = "JUMP" in opname[frame.f_code.co_code[frame.f_lasti]]
        if event == "line" and not jumps and not line.startswith(("with ", "try:")):
            self.count += 1
            if self.count == self.last:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise Interrupted(self.where)
        return self

    @contextmanager
    def traced(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


def every_line(files: set[str], begin: Callable[[], tuple[Callable[[], Any], Callable[[], None]]]) -> None:
    """Run an action again and again, interrupt it at another line each time, and check the state that it left.

    `begin` returns the action and the check.
    """
    action, check = begin()
    lines = Lines(files)
    with lines.traced():
        action()
    assert lines.count > 20
    for last in sorted({round(k * (lines.count - 1) / (POINTS - 1)) + 1 for k in range(POINTS)}):
        action, check = begin()
        lines = Lines(files, last)
        with suppress(Interrupted), lines.traced():
            action()
        assert lines.where
        try:
            check()
        except AssertionError as error:
            raise AssertionError(f"interrupted in front of {lines.where}: {error}") from error


def masks_of(model: Any, *, uniform: bool) -> Masks:
    """Make masks; the second layer keeps everything unless the widths must be uniform."""
    sizes = find_ffns(model).sizes
    return Masks(
        {name: torch.arange(size) % 3 > (0 if uniform or not k else -1) for k, (name, size) in enumerate(sizes.items())}
    )


def repaired_of(model: Any, masks: Masks) -> dict[str, RepairedMap]:
    """Make repaired maps with other weights, and with biases."""
    found = {}
    for ffn in find_ffns(model):
        (layer,) = ffn.prunable.values()
        if not masks[layer.name].all():
            weight = layer.output_maps[0].weight * 1.5 * masks[layer.name]
            found[layer.output_maps[0].name] = RepairedMap(weight, torch.ones(len(weight)), None, 0.0, 0.0)
    return found


MODELS: dict[str, Callable[[], Any]] = {
    "Llama": tiny_llama,
    "GPT-2": lambda: family_model(named_family("GPT-2")),
}
CASES = [
    ("Llama", "compact", True),
    ("Llama", "compact", False),
    ("Llama", "padded", False),
    ("Llama", "zero", False),
    ("Llama", "mask", False),
    ("GPT-2", "compact", True),
    ("GPT-2", "mask", True),
]
every_case = pytest.mark.parametrize(("name", "form", "uniform"), CASES)
# At so many places, evenly spaced over the lines that run.
POINTS = 30


@every_case
def test_an_interrupted_application_leaves_the_model_dense(name: str, form: Any, uniform: bool) -> None:
    model = MODELS[name]()
    snapshot, ffns, masks = Snapshot(model), find_ffns(model), masks_of(model, uniform=uniform)
    repaired = repaired_of(model, masks)
    taken: list[Any] = []

    def begin() -> tuple[Callable[[], Any], Callable[[], None]]:
        while taken:  # only the counting run finishes
            taken.pop().undo()
        return lambda: taken.append(apply_masks(model, ffns, masks, form, repaired)), snapshot.assert_restored

    every_line(WRITERS, begin)


@every_case
def test_a_second_undo_finishes_an_interrupted_one(name: str, form: Any, uniform: bool) -> None:
    model = MODELS[name]()
    snapshot, ffns, masks = Snapshot(model), find_ffns(model), masks_of(model, uniform=uniform)
    repaired = repaired_of(model, masks)

    def begin() -> tuple[Callable[[], Any], Callable[[], None]]:
        application = apply_masks(model, ffns, masks, form, repaired)

        def check() -> None:
            application.undo()
            snapshot.assert_restored()

        return application.undo, check

    every_line(WRITERS, begin)


@every_case
def test_an_interrupted_roll_back_goes_on(name: str, form: Any, uniform: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception is raised after everything is written, and another one during the roll back."""
    model = MODELS[name]()
    snapshot, ffns, masks = Snapshot(model), find_ffns(model), masks_of(model, uniform=uniform)
    repaired = repaired_of(model, masks)

    def failing(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(apply, "_unchanged_check", failing)
    restore = apply.AppliedMasks._roll_back

    def count_and_restore() -> int:
        lines = Lines(WRITERS)
        monkeypatch.setattr(apply.AppliedMasks, "_roll_back", traced_by(restore, lines))
        with pytest.raises(ZeroDivisionError):
            apply_masks(model, ffns, masks, form, repaired)
        return lines.count

    def traced_by(function: Any, lines: Lines) -> Any:
        def traced(application: Any) -> None:
            with lines.traced():
                function(application)

        return traced

    total = count_and_restore()
    for last in sorted({round(k * (total - 1) / (POINTS - 1)) + 1 for k in range(POINTS)}):
        monkeypatch.setattr(apply.AppliedMasks, "_roll_back", traced_by(restore, Lines(WRITERS, last)))
        with pytest.raises(Interrupted):
            apply_masks(model, ffns, masks, form, repaired)
        snapshot.assert_restored()


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_each_module_is_restored_even_if_another_fails(failure: type[BaseException]) -> None:
    model = tiny_llama()
    snapshot, ffns = Snapshot(model), find_ffns(model)
    for position in range(7):  # six maps and the configuration
        application = apply_masks(model, ffns, masks_of(model, uniform=True), "compact")
        honest = list(application._restores)

        def fail() -> None:
            raise failure("not this one")

        application._restores[position] = fail
        with pytest.raises(failure, match="not this one"):
            application.undo()
        application._restores[:] = [honest[position]]
        application.undo()
        snapshot.assert_restored()


# An abandoned generator is closed where no exception can leave it; the model is checked all the same.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("method", [LeastSquaresRepair(), BiasRepair()], ids=["lstsq", "bias"])
@pytest.mark.parametrize("by_blocks", [True, False])
def test_interrupted_repair_and_checks_leave_no_trace(method: Any, by_blocks: bool) -> None:
    model = tiny_llama()
    snapshot, ffns, masks = Snapshot(model), find_ffns(model), masks_of(model, uniform=True)
    applied: list[Any] = []

    def whole() -> None:
        with recording(model, ffns) as record:
            collect_statistics(model, ffns, SEQUENCES, Execution(2))
        stream: Stream = open_stream(model, ffns, SEQUENCES, record, Execution(2), follow=method.needs_dense_stream)
        assert isinstance(stream, BlockStream)
        if not by_blocks:
            stream = PassStream(model, ffns, list(SEQUENCES.batches(2)), 2)
        _, repaired = repair_ffns(model, ffns, masks, method, stream)
        expected = masked_outputs(model, ffns, masks, SEQUENCES, repaired)
        applied.append(apply_masks(model, ffns, masks, "compact", repaired=repaired))
        check_equivalence(model, expected, SEQUENCES)

    def check() -> None:
        while applied:
            applied.pop().undo()
        snapshot.assert_restored()

    def begin() -> tuple[Callable[[], Any], Callable[[], None]]:
        check()
        return whole, check

    every_line(WATCHERS, begin)
