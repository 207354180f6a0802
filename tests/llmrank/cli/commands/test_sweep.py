"""``llmrank sweep``: its options from the command line, a file and a preset, what it prints, and its exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmrank.cli import parser
from llmrank.experiments.model_study import ModelStudy
from llmrank.experiments.sweep_folder import read_rows
from llmrank.pipeline.defaults import DEFAULTS
from llmrank.score import NormScorer
from tests.llmrank.commands import SHORT, refused, run
from tests.llmrank.tiny_models import text

pytestmark = pytest.mark.usefixtures("transformers_log_as_it_was")
GRID = ("--scorer", "wpr:gamma=0.9,norm", "--pruner", "local,global", "--amount", "0.2,0.4", "--repair", "none")


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation.txt"
    path.write_text(text(200, seed=1), encoding="utf-8")
    return path


@pytest.fixture
def texts(corpus: Path, evaluation: Path) -> tuple[Any, ...]:
    return ("--calibration", corpus, "--evaluate", evaluation, *SHORT)


def results(directory: Path) -> list[dict[str, Any]]:
    return [{**row, "seconds": 0} for row in read_rows(directory)]


def test_a_grid_is_measured_shown_and_drawn(
    checkpoint: Path, texts: tuple[Any, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert run("sweep", checkpoint, *GRID, *texts, "--output", runs, "--speed") == 0
    captured = capsys.readouterr()
    rows = read_rows(runs)
    assert len(rows) == 9
    assert all(f"{row['perplexity']:,.2f}" in captured.out for row in rows)
    assert re.search(r"tiny, row 8 of 8 \(isolated \S+ \S+ \S+ \S+\): Evaluating", captured.err)
    assert captured.err.count("Calibrating") == 1
    assert run("sweep", "--plot", runs) == 0
    assert f"Wrote {runs}/sweep-tiny.png" in capsys.readouterr().out
    assert (runs / "sweep-tiny.svg").is_file()
    # The calibration is a ranking like any other.
    assert run("apply", runs / "calibration-0", checkpoint, "--amount", 0.4, "--output", tmp_path / "pruned") == 0
    report = json.loads((tmp_path / "pruned" / "report.json").read_text(encoding="utf-8"))
    assert report["after"]["parameters"] == rows[2]["parameters"]


def test_a_row_is_what_prune_measures(checkpoint: Path, texts: tuple[Any, ...], tmp_path: Path) -> None:
    method = ("--scorer", "norm", "--amount", 0.4, "--repair", "lstsq")
    assert run("sweep", checkpoint, *method, *texts, "--output", tmp_path / "runs") == 0
    assert run("prune", checkpoint, *method, *texts, "--output", tmp_path / "pruned") == 0
    report = json.loads((tmp_path / "pruned" / "report.json").read_text(encoding="utf-8"))
    dense, row = read_rows(tmp_path / "runs")
    assert report["evaluation"]["before"]["value"] == dense["perplexity"]
    assert report["evaluation"]["after"]["value"] == row["perplexity"]


def test_a_file_gives_the_rows_of_the_command_line(
    checkpoint: Path, corpus: Path, evaluation: Path, texts: tuple[Any, ...], tmp_path: Path
) -> None:
    values = {
        "model": [str(checkpoint)],
        "scorer": ["wpr:gamma=0.9", "norm"],
        "pruner": ["local,global"],
        "amount": [0.2, 0.4],
        "repair": ["none"],
        "calibration": str(corpus),
        "evaluate": str(evaluation),
        "samples": 2,
        "sequence-length": 16,
        "output": str(tmp_path / "from-file"),
    }
    file = tmp_path / "sweep.toml"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()), encoding="utf-8")
    assert run("sweep", "--config", file) == 0
    assert run("sweep", checkpoint, *GRID, *texts, "--output", tmp_path / "from-options") == 0
    assert results(tmp_path / "from-file") == results(tmp_path / "from-options")
    # Options of the command line replace those of the file.
    assert run("sweep", "--config", file, "--scorer", "norm", "--output", tmp_path / "fewer") == 0
    assert [row["scorer"] for row in read_rows(tmp_path / "fewer")] == [None, *["norm"] * 4]


def test_files_with_mistakes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sweep.toml"
    for content, message in (
        ("scorers = ['wpr']", "sweep.toml: unknown key 'scorers' (did you mean scorer?)"),
        ("scorer = 'wpr'", "sweep.toml: scorer must be a list, got 'wpr'"),
        ("scorer = false", "sweep.toml: scorer must be a list, got False"),
        ("track = 'mlflow'", "sweep.toml: track must be one of wandb, trackio, tensorboard, got 'mlflow'"),
        ("preset = 'papers'", "sweep.toml: preset must be one of paper, got 'papers'"),
        ("samples = 'many'", "argument --samples: invalid int value: 'many'"),
    ):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(SystemExit, match="2"):
            run("sweep", "--config", file, "--output", tmp_path / "runs")
        assert message in " ".join(capsys.readouterr().err.split())
    for content, message in (
        ("samples = 0", "--samples must be at least 1, got 0"),
        ("amount = ['much']", "--amount: expected a share such as 0.3 or a number such as 500, got 'much'"),
        ("scorer = ['wpr']", "a sweep needs one or more models"),
        ("model = ['m']\ndocuments = 3", "name some tasks, or leave it out"),
    ):
        file.write_text(content, encoding="utf-8")
        assert message in refused(capsys, "sweep", "--config", file, "--output", tmp_path / "runs")
    assert "scorer 'mpr' has no option 'gamma'" in refused(capsys, "sweep", "model", "--scorer", "mpr:gamma=0.9")
    assert "there is no rows.jsonl" in refused(capsys, "sweep", "--plot", tmp_path)
    assert not (tmp_path / "runs").exists()


def test_a_preset_is_a_start_for_other_options(tmp_path: Path) -> None:
    arguments = ["sweep", "model", "--preset", "paper", "--amount", "0.1,0.2", "--tasks", "piqa"]
    options = parser().parse_args(arguments)
    assert options.scorers == ["norm", "random", "activation", "wpr", "mpr", "wanda"]
    assert (options.pruners, options.pipelines, options.repairs) == (
        ["local:multiple_of=1", "global:multiple_of=1"],
        ["isolated"],
        ["none"],
    )
    assert (options.amounts, options.tasks, options.samples) == (["0.1,0.2"], ["piqa"], 64)
    assert (options.batch_size, options.sequence_length) == (1, 2048)
    assert len(parser().parse_args(arguments[:4]).tasks) == 7
    # In a file the preset comes before the other options too, and the command line after both.
    file = tmp_path / "sweep.toml"
    file.write_text("amount = [0.5]\nsamples = 8\nscorer = ['wpr', 'mpr']\npreset = 'paper'", encoding="utf-8")
    options = parser().parse_args(["sweep", "model", "--config", str(file), "--scorer", "norm", "--scorer", "flap"])
    assert (options.amounts, options.samples, options.scorers) == (["0.5"], 8, ["norm", "flap"])
    assert (options.pruners, options.sequence_length) == (["local:multiple_of=1", "global:multiple_of=1"], 2048)


def test_the_exit_status_says_that_rows_failed(
    checkpoint: Path,
    texts: tuple[Any, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common = (checkpoint, *texts, "--repair", "none", "--output")
    assert run("sweep", *common, tmp_path / "runs", "--amount", "0.2,40") == 2
    out = capsys.readouterr().out
    row = f"tiny, {DEFAULTS['scorer']}, local, isolated, as cut, 40"
    assert f"Failed: {row}: model.layers.0.mlp would keep 0 of 40 neurons" in out
    assert "failed" in out

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(NormScorer, "rank", fail)
    assert run("sweep", *common, tmp_path / "others", "--scorer", "norm") == 1


def test_an_interrupted_sweep_says_how_to_go_on(
    checkpoint: Path,
    texts: tuple[Any, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("sweep", checkpoint, *GRID, *texts, "--output", tmp_path / "runs")
    with monkeypatch.context() as killing:
        measure, rows = ModelStudy.measure, []

        def interrupted(study: ModelStudy, *others: Any) -> dict[str, Any]:
            rows.append(None)
            if len(rows) == 4:
                raise KeyboardInterrupt
            return measure(study, *others)

        killing.setattr(ModelStudy, "measure", interrupted)
        assert run(*arguments) == 130
    captured = capsys.readouterr()
    assert f"3 rows are in {tmp_path / 'runs'}. The same command goes on." in captured.out
    assert "To go on with a sweep, repeat the command" in captured.err
    assert "other settings (speed: False there, True here)" in refused(capsys, *arguments, "--speed")
    assert run(*arguments) == 0
    assert len(read_rows(tmp_path / "runs")) == 9


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_loses_no_row(checkpoint: Path, texts: tuple[Any, ...], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    arguments = ("sweep", checkpoint, *GRID, *texts, "--output", runs)
    command = [sys.executable, "-m", "llmrank", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while process.poll() is None and (not (runs / "rows.jsonl").is_file() or len(read_rows(runs)) < 3):
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = read_rows(runs)
    assert run(*arguments) == 0
    rows = read_rows(runs)
    assert rows[: len(before)] == before
    assert len(rows) == len({json.dumps([row["scorer"], row["pruner"], row["amount"]]) for row in rows}) == 9
