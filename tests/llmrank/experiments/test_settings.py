"""Settings of sweeps: how lists of specs are split, the grid, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmrank.errors import CalibrationError, LLMRankError, OptionError
from llmrank.experiments.settings import SweepSettings
from llmrank.pipeline.specs import split_specs
from llmrank.pipeline.texts import CalibrationText, EvaluationText
from llmrank.score import NormScorer
from tests.tables import table

BUILT_IN = CalibrationText("built-in")


@table(
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


@table(
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
        ({"targets": "layers"}, "layers"),
        ({"amount_of": "cache"}, "an amount of the KV cache is for heads alone, got targets neurons"),
        ({"targets": "neurons,blocks"}, "blocks are removed in a run of their own"),
        ({"calibration": CalibrationText(Path("absent.txt"))}, "no calibration text at absent.txt"),
        ({"evaluation": EvaluationText(Path("absent.txt"))}, "no evaluation text at absent.txt"),
    ],
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
    mixture = {one: 0.5, "built-in": 0.5}
    before = described(mixture)
    one.write_text("w4 w5 w8", encoding="utf-8")
    assert described(mixture) != before
    assert "built-in: 0.5" in before
    with pytest.raises(CalibrationError):
        described(3)


def test_conversations_are_described_by_what_they_hold(tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"

    def described(content: str) -> str:
        chats.write_text(f'{{"messages": [{{"role": "user", "content": "{content}"}}]}}\n', encoding="utf-8")
        return str(SweepSettings(calibration=CalibrationText(chats)).describe()["calibration"])

    assert described("w4 w5") == described("w4 w5") != described("w4 w6")
