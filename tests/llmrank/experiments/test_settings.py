"""Settings of sweeps: how lists of specs are split, the grid, what is refused, and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmrank.errors import CalibrationError, LLMRankError, OptionError
from llmrank.experiments.settings import SweepSettings, split_specs
from llmrank.experiments.sweep_file import arguments_of, read_sweep_file
from llmrank.pipeline.options import CalibrationText, EvaluationText
from llmrank.score import NormScorer

BUILT_IN = CalibrationText("built-in")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["wpr,mpr"], ("wpr", "mpr")),
        (["wpr:gamma=0.9,edges=energy,mpr"], ("wpr:gamma=0.9,edges=energy", "mpr")),
        (["wpr:gamma=0.9,mpr:zero_lowest=0.1"], ("wpr:gamma=0.9", "mpr:zero_lowest=0.1")),
        (["wpr:gamma=0.9,device=cuda:0", "wpr:gamma=0.9,device=cuda:0"], ("wpr:gamma=0.9,device=cuda:0",)),
        ([" local , global:protect=0,protect=-1 ,"], ("local", "global:protect=0,protect=-1")),
    ],
)
def test_commas_separate_specs_and_options(values: list[str], expected: tuple[str, ...]) -> None:
    assert split_specs(values) == expected


@pytest.mark.parametrize("value", ["gamma=0.9", "wpr,gamma=0.9"])
def test_an_option_needs_a_component(value: str) -> None:
    with pytest.raises(OptionError, match=r"expected NAME or NAME:OPTION=VALUE.*gamma=0.9"):
        split_specs([value])


def test_the_grid_holds_every_combination_once() -> None:
    settings = SweepSettings(["wpr", "norm"], ["local", "global"], ["isolated"], [0.1, 0.2, 0.1], ["none", "lstsq"])
    rows = settings.rows()
    assert len(rows) == len(set(rows)) == 2 * 2 * 1 * 2 * 2
    assert {(row.scorer, row.pruner, row.amount, row.repair) for row in rows} == {
        (scorer, pruner, amount, repair)
        for scorer in ("wpr", "norm")
        for pruner in ("local", "global")
        for amount in (0.1, 0.2)
        for repair in ("none", "lstsq")
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorers": ["wpr", "wrp"]}, "unknown scorer 'wrp'"),
        ({"scorers": []}, "scorers must be a list of one or more values"),
        ({"scorers": "wpr"}, "scorers must be a list of one or more values, got 'wpr'"),
        ({"amounts": 0.3}, "amounts must be a list of one or more values, got 0.3"),
        ({"tasks": "piqa"}, "tasks must be a list of values, got 'piqa'"),
        ({"task_dir": Path()}, "name some tasks, or leave it out"),
        ({"documents": 3}, "name some tasks, or leave it out"),
        ({"tasks": ["llmrank_perplexity"], "evaluation": EvaluationText(["a b", "c d"])}, "pass its path instead"),
        ({"scorers": [NormScorer()]}, "scorers must be specs such as 'wpr:gamma=0.9'"),
        ({"pruners": ["local:amount=0.1"]}, "set outside of the spec too"),
        ({"amounts": [0.3, 1.5]}, "amount"),
        ({"repairs": ["lstsq:damping=-1"]}, "damping"),
        ({"pipelines": ["residual:attention=true"]}, "leave attention=true out of 'residual:attention=true'"),
        ({"targets": "heads"}, "heads"),
        ({"calibration": CalibrationText(Path("absent.txt"))}, "no calibration text at absent.txt"),
        ({"evaluation": EvaluationText(Path("absent.txt"))}, "no evaluation text at absent.txt"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    SweepSettings(calibration=BUILT_IN).check()
    with pytest.raises(LLMRankError, match=message):
        SweepSettings(**{"calibration": BUILT_IN, **changes}).check()


def test_a_text_is_described_by_what_it_holds(tmp_path: Path) -> None:
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("w4 w5 w6", encoding="utf-8")
    other.write_text("w4 w5 w7", encoding="utf-8")

    def described(source: Any) -> str:
        return str(SweepSettings(calibration=CalibrationText(source)).describe()["calibration"])

    before = described(one)
    assert described(one) == before != described(other)
    one.write_text("w4 w5 w7", encoding="utf-8")
    assert described(one) != before
    assert described("auto") == "auto"
    with pytest.raises(CalibrationError):
        described(3)


TOML = """
model = ["one", "two"]
scorer = ["wpr:gamma=0.9", "mpr"]
amount = [0.1, 500]
sequence-length = 64
speed = true
"""
YAML = """
model: [one, two]
scorer: ["wpr:gamma=0.9", mpr]
amount: [0.1, 500]
sequence_length: 64
speed: true
"""


@pytest.mark.parametrize(("name", "text"), [("sweep.toml", TOML), ("sweep.yaml", YAML), ("sweep.yml", YAML)])
def test_files_hold_the_options_of_the_command(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    settings = read_sweep_file(tmp_path / name)
    known = ["model", "scorer", "amount", "sequence_length", "speed"]
    scorers = ["--scorer=wpr:gamma=0.9", "--scorer=mpr"]
    expected = ["one", "two", *scorers, "--amount=0.1", "--amount=500", "--sequence-length=64", "--speed"]
    assert arguments_of(settings, known, name) == expected
    assert arguments_of({"speed": False}, known, name) == []
    with pytest.raises(OptionError, match=r"unknown setting 'scorer' in the file.*expected some of model, speed"):
        arguments_of(settings, ["model", "speed"], "the file")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("sweep.json", "{}", "must be a .toml, .yaml or .yml file"),
        ("sweep.toml", "scorer = [", "cannot read"),
        ("sweep.yaml", "scorer: [", "cannot read"),
        ("sweep.yaml", "- wpr", "holds no settings"),
        ("absent.toml", None, "cannot read"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(OptionError, match=message):
        read_sweep_file(tmp_path / name)


def test_a_table_in_a_file_is_refused() -> None:
    with pytest.raises(OptionError, match="scorer in the file must be a value or a list of values"):
        arguments_of({"scorer": {"wpr": 0.9}}, ["scorer"], "the file")
