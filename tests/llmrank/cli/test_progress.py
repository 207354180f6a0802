"""Progress of commands: lines in a log, with a clock that the tests move, and bars on a terminal."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llmrank.cli.progress import ProgressLog, make_progress
from tests.llmrank.commands import SHORT, run

MANY = ["--samples", "8", "--sequence-length", "16"]


def seconds_of(time: str) -> int:
    """Return the seconds of a time such as 1:02:03."""
    return sum(int(part) * 60**k for k, part in enumerate(reversed(time.split(":"))))


class Clock:
    """A clock that the tests move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Log:
    """A progress log, its lines, and stages that write to it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.lines: list[str] = []
        self.progress = ProgressLog(self.clock, self.lines.append)

    def stage(self, description: str, steps: int, seconds: float) -> list[str]:
        """Run a stage whose steps take `seconds` each; return its lines."""
        before = len(self.lines)
        assert list(self._working(range(steps), description, seconds)) == list(range(steps))
        return self.lines[before:]

    def _working(self, items: range, description: str, seconds: float) -> Iterator[Any]:
        for item in self.progress(items, description):
            yield item
            self.clock.now += seconds


def test_a_short_stage_is_one_line_with_the_time_so_far() -> None:
    log = Log()
    log.clock.now += 12
    assert log.stage("Calibrating", 16, 0.25) == ["[  0:12] Calibrating: 16 steps"]
    assert log.stage("Applying the masks", 1, 4.0) == ["[  0:16] Applying the masks ..."]
    assert log.stage("Nothing", 0, 1.0) == ["[  0:20] Nothing: 0 steps"]


def test_a_longer_stage_says_how_far_it_is_and_how_long_it_took() -> None:
    log = Log()
    assert log.stage("Loading", 1, 7.0) == ["[  0:00] Loading ...", "[  0:07] Loading: done in 0:07"]
    assert log.stage("Calibrating", 16, 2.0) == [
        "[  0:07] Calibrating: 16 steps",
        "[  0:13] Calibrating: 3 of 16, about 0:26 left",
        "[  0:23] Calibrating: 8 of 16, about 0:16 left",
        "[  0:39] Calibrating: done in 0:32",
    ]


@pytest.mark.parametrize(("steps", "seconds"), [(10_000, 0.03), (128, 100.0), (10**6, 1.0), (7, 9000.0)])
def test_a_long_stage_writes_a_line_now_and_then(steps: int, seconds: float) -> None:
    log = Log()
    lines = log.stage("Repairing", steps, seconds)
    assert 5 <= len(lines) <= 25
    stamps = [seconds_of(line[1:].partition("]")[0]) for line in lines]
    silences = [after - before for before, after in pairwise(stamps)]
    # After the first minute, lines are at least half a minute apart, and no gap is longer than a fifth of the stage.
    assert all(gap >= 29 for gap, stamp in zip(silences[:-1], stamps, strict=False) if stamp >= 60)
    assert max(silences) <= max(steps * seconds / 5, seconds + 1)
    for line in lines[1:-1]:
        done, total = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) of ([\d,]+),", line)[0])
        assert total == steps
        left = line.partition("about ")[2].removesuffix(" left")
        assert seconds_of(left) == pytest.approx((steps - done) * seconds, abs=1.0)


def test_hours_are_written_as_hours() -> None:
    log = Log()
    assert log.stage("Repairing", 2, 3723.0)[1] == "[1:02:03] Repairing: 1 of 2, about 1:02:03 left"


def test_a_stage_that_fails_is_not_said_to_be_done() -> None:
    log = Log()

    def fail() -> None:
        for _ in log.progress([1, 2], "Ranking"):
            log.clock.now += 60
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert log.lines == ["[  0:00] Ranking: 2 steps"]


def stages(err: str) -> list[str]:
    """Return the stages that a log names, in order, each once."""
    found = re.findall(r"^\[ *[\d:]+\] (.+?)(?: \.\.\.|: .*)?$", err, re.MULTILINE)
    assert len(re.findall(r"^\[", err, re.MULTILINE)) == len(err.splitlines()), err
    return list(dict.fromkeys(found))


CHOOSING = ["Ranking by every candidate", "Running the dense model on short texts", "Trying candidates"]


def test_prune_logs_every_stage_and_prints_results_to_standard_output(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "out"
    options = ("--repair", "lstsq", "--pruner", "sensitivity", f"--evaluate={corpus}", "--calibration", "generated")
    assert run("prune", checkpoint, "--output", output, *options, *MANY) == 0
    said = capsys.readouterr()
    assert stages(said.err) == [
        f"Loading {checkpoint}",
        "Finding FFNs",
        "Evaluating the dense model",
        "Writing calibration text",
        "Calibrating",
        *CHOOSING,
        "Ranking",
        "Measuring sensitivities",
        "Running the held-out text",
        "Repairing",
        "Validating the repair on the held-out text",
        "Applying the masks",
        "Checking the pruned model",
        "Evaluating the pruned model",
        f"Saving {output}",
    ]
    assert "hidden neurons" in said.out
    assert "Calibrating" not in said.out
    assert run("prune", checkpoint, "--output", tmp_path / "plain", "--calibration", corpus, *MANY) == 0
    last = "Checking whether the pruned model has collapsed", f"Saving {tmp_path / 'plain'}"
    assert stages(capsys.readouterr().err)[-2:] == list(last)


@pytest.mark.slow
def test_other_commands_log_their_stages(checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    output, loading = tmp_path / "out", f"Loading {checkpoint}"
    assert run("demo", "--model", checkpoint, "--output", output, *MANY) == 0
    said = stages(capsys.readouterr().err)
    assert said[0] == loading
    assert said[-2:] == ["Evaluating the pruned model", f"Saving {output}"]
    inspect = ("inspect", checkpoint, "--output", tmp_path / "page", "--format", "svg", "--compare", "norm")
    assert run(*inspect, "--calibration", corpus, *MANY) == 0
    assert stages(capsys.readouterr().err) == [
        loading,
        "Finding FFNs",
        "Calibrating",
        "Ranking",
        "Ranking, chained",
        "Summarising the graph",
        f"Writing {tmp_path / 'page'}",
    ]
    evaluate = ("evaluate", checkpoint, "--against", output, "--text", corpus, "--prompt-length", 4, "--new-tokens", 4)
    assert run(*evaluate, *SHORT) == 0
    assert stages(capsys.readouterr().err) == [loading, f"Loading {output}", "Evaluating", "Comparing", "Continuing"]


def test_rankings_log_their_stages(checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    loading, ranking, applied, again = (
        f"Loading {checkpoint}",
        tmp_path / "ranking",
        tmp_path / "applied",
        tmp_path / "again",
    )
    assert run("rank", checkpoint, "--output", ranking, "--calibration", corpus, *MANY) == 0
    said = stages(capsys.readouterr().err)
    assert said == [loading, "Reading the weights", "Calibrating", *CHOOSING, "Ranking", f"Saving {ranking}"]
    assert run("apply", ranking, checkpoint, "--output", applied) == 0
    said = stages(capsys.readouterr().err)
    assert said[:3] == [loading, "Finding FFNs", "Ranking"]
    assert said[-1] == f"Saving {applied}"
    assert run("apply", applied / "masks.safetensors", checkpoint, "--output", again) == 0
    assert stages(capsys.readouterr().err) == [loading, "Applying the masks", f"Saving {again}"]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_terminals_get_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    progress = make_progress()
    assert list(progress([1, 2], "Calibrating [red]")) == [1, 2]
    assert list(progress([1], "Saving [/red]")) == [1]
    drawn = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "Calibrating [red]" in drawn
    assert "Saving [/red]" in drawn
    assert "2 steps" not in drawn


@pytest.mark.parametrize(("terminal", "name", "value"), [(True, "TERM", "dumb"), (False, "FORCE_COLOR", "1")])
def test_streams_that_cannot_draw_bars_get_lines(
    terminal: bool, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    assert list(make_progress()([1, 2], "Calibrating")) == [1, 2]
    assert sys.stderr.getvalue() == "[  0:00] Calibrating: 2 steps\n"  # type: ignore[attr-defined]
