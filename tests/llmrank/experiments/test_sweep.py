"""Sweeps: rows are those of single runs, one calibration serves all, and an interrupted sweep goes on."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import llmrank
from graphs.io.replacement import hidden_directory
from llmrank.calibration import collect
from llmrank.errors import OptionError
from llmrank.evaluation.items import answer_items, read_items
from llmrank.execution.json_files import checked_json, parse_checked_json
from llmrank.experiments import model_study
from llmrank.experiments.model_study import ModelStudy
from llmrank.experiments.settings import SweepSettings
from llmrank.experiments.sweep import SweepModel, measure_sweep
from llmrank.experiments.sweep_folder import read_rows
from llmrank.models.loading import LoadedModel
from llmrank.pipeline import CalibrationText, EvaluationText
from llmrank.score import NormScorer
from tests.llmrank.rewriting import rewrite_json
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import Snapshot, text, tiny_llama, tiny_t5, tokenizer

TEXTS = {"samples": 3, "sequence_length": 16}
# One of the built-in text is added.
SEQUENCES = TEXTS["samples"] + 1


@pytest.fixture
def evaluation(tmp_path: Path) -> EvaluationText:
    path = tmp_path / "evaluation.txt"
    path.write_text(text(200, seed=1), encoding="utf-8")
    return EvaluationText(path, 4)


@pytest.fixture
def settings(corpus: Path, evaluation: EvaluationText, tmp_path: Path) -> dict[str, Any]:
    return {"output": tmp_path / "runs", "calibration": corpus, "evaluation": evaluation, **TEXTS}


def tiny(seed: int = 0) -> LoadedModel:
    return LoadedModel(tiny_llama(seed), tokenizer(), f"tiny-{seed}")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the forward passes of calibration, and the rows that are measured."""
    counted: Counter[str] = Counter()
    run, measure = collect.run_on_calibration_inputs, ModelStudy.measure

    def counted_run(*arguments: Any) -> None:
        counted["calibration"] += 1
        run(*arguments)

    def counted_measure(study: ModelStudy, *arguments: Any) -> dict[str, Any]:
        counted["rows"] += 1
        return measure(study, *arguments)

    monkeypatch.setattr(collect, "run_on_calibration_inputs", counted_run)
    monkeypatch.setattr(ModelStudy, "measure", counted_measure)
    return counted


@pytest.mark.slow
def test_rows_are_those_of_single_runs(settings: dict[str, Any], passes: Counter[str]) -> None:
    grid = {
        "scorers": ["wpr:gamma=0.9", "flap"],
        "pruners": ["local", "global", "sensitivity"],
        "pipelines": ["isolated", "chained", "residual"],
        "repairs": ["none", "lstsq", "lstsq:target=output"],
    }
    result = llmrank.sweep(tiny(), amounts=[0.3], **grid, **settings)
    assert len(result.rows) == 1 + 2 * 3 * 3 * 3
    assert passes["calibration"] == SEQUENCES  # one batch for each sequence
    assert not result.failed
    del settings["output"]
    for row in result.rows[1::5]:
        loaded = tiny()
        names = ("scorer", "pruner", "pipeline", "amount", "repair")
        pruned = llmrank.prune_model(loaded.model, loaded.tokenizer, **{name: row[name] for name in names}, **settings)
        measured = pruned.report.evaluation
        assert measured is not None
        assert row["perplexity"] == measured.after.value, row
        assert result.rows[0]["perplexity"] == measured.before.value
        assert (row["parameters"], row["bytes"]) == (pruned.report.after.parameters, pruned.report.after.bytes)
        reached = pruned.report.reached["flops"]
        assert row["flops"] == reached["before"] - reached["removed"]
        assert row.get("notes", []) == pruned.report.notes
        assert row["calibration"]["sha256_of_tokens"] == pruned.report.calibration["sha256_of_tokens"]


def test_experts_are_removed_as_in_single_runs(settings: dict[str, Any]) -> None:
    loaded = LoadedModel(tiny_mixture("mixtral"), tokenizer(), "mixture")
    grid: dict[str, Any] = {"scorers": ["reap", "wpr"], "repairs": ["none", "lstsq"], "amounts": [0.25]}
    result = llmrank.sweep(loaded, targets="experts", **grid, **settings)
    assert not result.failed
    del settings["output"]
    for row in result.rows[1:3]:
        names = ("scorer", "repair", "amount", "targets")
        pruned = llmrank.prune_model(
            tiny_mixture("mixtral"), tokenizer(), **{name: row[name] for name in names}, **settings
        )
        assert row["perplexity"] == pruned.report.evaluation.after.value
        assert row["parameters"] == pruned.report.after.parameters


def test_changes_are_paired_over_sequences(settings: dict[str, Any]) -> None:
    dense, pruned = llmrank.sweep(tiny(), repairs=["none"], **settings).rows
    total, count, n = 0.0, 0, len(pruned["losses"])
    for own, other, tokens in zip(pruned["losses"], dense["losses"], pruned["counts"], strict=True):
        total += own - other
        count += tokens
    mean, squares = total / count, 0.0
    for own, other, tokens in zip(pruned["losses"], dense["losses"], pruned["counts"], strict=True):
        squares += (own - other - mean * tokens) ** 2
    assert pruned["difference"]["value"] == pytest.approx(mean, rel=1e-12)
    assert pruned["difference"]["error"] == pytest.approx(math.sqrt(n / (n - 1) * squares) / count, rel=1e-12)
    assert math.exp(sum(pruned["losses"]) / count) == pytest.approx(pruned["perplexity"], rel=1e-12)


def test_the_model_is_restored_bit_for_bit(settings: dict[str, Any]) -> None:
    loaded = tiny()
    before = Snapshot(loaded.model)
    result = llmrank.sweep(
        loaded, amounts=[0.3, 50], repairs=["none", "lstsq"], pruners=["local", "sensitivity"], speed=True, **settings
    )
    before.assert_restored()
    assert len(result.failed) == 4
    speeds = [row["speed"] for row in result.rows if "speed" in row]
    assert len(speeds) == 5
    assert all(speed["tokens_per_second"] > 0 for speed in speeds)


def test_rows_that_fail_are_rows(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    result = llmrank.sweep(tiny(), scorers=["norm", "wpr"], amounts=[40, 5], repairs=["none"], **settings)
    errors = [
        (row["scorer"], row["amount"], row.get("error", "")[:55], row.get("unexpected")) for row in result.rows[1:]
    ]
    reason = "model.layers.0.mlp would keep 0 of 40 neurons, fewer th"
    assert errors == [
        ("norm", 40, reason, False),
        ("norm", 5, "", None),
        ("wpr", 40, reason, False),
        ("wpr", 5, "", None),
    ]
    assert "tiny-0, norm, local, isolated, as cut, 40: model.layers.0.mlp would keep 0" in result.errors()[0]

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr(NormScorer, "rank", fail)
    settings["output"] = settings["output"].with_name("others")
    result = llmrank.sweep(tiny(), scorers=["norm", "wpr"], repairs=["none"], **settings)
    assert [row.get("error") for row in result.rows] == [None, None, "ZeroDivisionError: by accident"]
    assert result.rows[2]["unexpected"]
    monkeypatch.undo()  # the bug is mended
    result = llmrank.sweep(tiny(), scorers=["norm", "wpr"], repairs=["none"], **settings)
    assert [(row["scorer"], row.get("error")) for row in result.rows] == [(None, None), ("wpr", None), ("norm", None)]


@pytest.mark.parametrize("error", [MemoryError("full"), OSError("no space left")])
def test_a_failing_machine_ends_the_sweep(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with monkeypatch.context() as failing:

        def fail(*_: Any) -> None:
            raise error

        failing.setattr(NormScorer, "rank", fail)
        with pytest.raises(type(error)):
            llmrank.sweep(tiny(), scorers=["wpr", "norm"], repairs=["none"], **settings)
    assert len(read_rows(settings["output"])) == 2
    result = llmrank.sweep(tiny(), scorers=["wpr", "norm"], repairs=["none"], **settings)
    assert [row["scorer"] for row in result.rows] == [None, "wpr", "norm"]


def test_every_amount_is_a_choice_of_its_own(settings: dict[str, Any]) -> None:
    grid: dict[str, Any] = {"amounts": [0.2, 0.6], "repairs": ["none", "lstsq"]}
    rows = llmrank.sweep(tiny(), scorers=["auto", "activation"], **grid, **settings).rows[1:]
    chosen = [row for row in rows if row["scorer"] == "auto"]
    assert [row["choice"] for row in rows if row["scorer"] != "auto"] == [None] * 4
    choices = {row["amount"]: row["choice"] for row in chosen}
    assert choices[0.2]["trials"] != choices[0.6]["trials"]
    assert all(row["choice"] == choices[row["amount"]] for row in chosen)
    names = [choice["chosen"] for choice in choices.values()]
    again = llmrank.sweep(
        tiny(), scorers=names, **grid, **{**settings, "output": settings["output"].with_name("again")}
    )
    losses = {(row["scorer"], row["amount"], row["repair"]): row["losses"] for row in again.rows[1:]}
    for row in chosen:
        assert row["losses"] == losses[row["choice"]["chosen"], row["amount"], row["repair"]]


def test_a_killed_sweep_goes_on(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, passes: Counter[str]
) -> None:
    grid: dict[str, Any] = {"scorers": ["wpr", "norm"], "amounts": [0.2, 0.4], "repairs": ["none", "lstsq"]}
    whole = llmrank.sweep(tiny(), **grid, **{**settings, "output": settings["output"].with_name("whole")}).rows
    passes.clear()
    with monkeypatch.context() as killing:
        counted = ModelStudy.measure

        def measure(study: ModelStudy, *arguments: Any) -> dict[str, Any]:
            if passes["rows"] == 4:
                raise KeyboardInterrupt
            return counted(study, *arguments)

        killing.setattr(ModelStudy, "measure", measure)
        with pytest.raises(KeyboardInterrupt):
            llmrank.sweep(tiny(), **grid, **settings)
    file = settings["output"] / "rows.jsonl"
    first = file.read_bytes()
    assert first.count(b"\n") == 4
    file.write_bytes(first + b'{"row": 4, "model": "ti')  # as a process leaves it that is killed while it writes
    assert len(read_rows(settings["output"])) == 4
    assert passes == {"rows": 4, "calibration": SEQUENCES}
    passes.clear()
    left = []  # as a process leaves them that is killed when these are complete
    for name in ("calibration-0", "run.json"):
        with hidden_directory(settings["output"], name) as place:
            left.append(place)
    for place in left:
        place.mkdir()
    resumed = llmrank.sweep(tiny(), **grid, **settings).rows
    assert passes == {"rows": 5}
    assert not any(place.exists() for place in left)
    assert file.read_bytes().startswith(first)
    for one, other in zip(whole, resumed, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    passes.clear()
    assert llmrank.sweep(tiny(), **grid, **settings).rows == resumed
    assert not passes


@pytest.mark.slow
def test_a_grid_grows(settings: dict[str, Any], passes: Counter[str]) -> None:
    """The calibration is repeated only for what it lacks, and rows are those of one whole sweep."""
    first: dict[str, Any] = {"repairs": ["none"], "amounts": [0.2], "scorers": ["wpr"]}
    grown: dict[str, Any] = {
        "repairs": ["none", "lstsq"],
        "amounts": [0.2, 0.4],
        "scorers": ["wpr", "flap"],
        "pruners": ["local", "global"],
        "pipelines": ["isolated", "chained", "residual"],
    }
    whole = llmrank.sweep(tiny(), **grown, **{**settings, "output": settings["output"].with_name("whole")}).rows
    before = llmrank.sweep(tiny(), **first, **settings).rows
    passes.clear()
    more = llmrank.sweep(tiny(), **{**first, "scorers": ["flap"], "amounts": [0.4]}, **settings).rows
    assert passes == {"rows": 1}
    assert more[:2] == before
    assert len(more) == 3
    passes.clear()
    rows = llmrank.sweep(tiny(), **grown, **settings).rows
    assert passes == {"rows": 46, "calibration": SEQUENCES}
    assert rows[:3] == more
    assert [row["row"] for row in rows] == list(range(49))
    changing = {"row": 0, "seconds": 0, "held_out": None}
    names = ("scorer", "pruner", "pipeline", "amount", "repair")
    expected = {tuple(row[name] for name in names): {**row, **changing} for row in whole}
    assert {tuple(row[name] for name in names): {**row, **changing} for row in rows} == expected
    passes.clear()
    assert llmrank.sweep(tiny(), **first, **settings).rows == rows
    assert not passes


def test_a_calibration_is_replaced_when_the_next_is_there(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, passes: Counter[str]
) -> None:
    llmrank.sweep(tiny(), repairs=["none"], scorers=["wpr"], **settings)
    with monkeypatch.context() as failing:

        def fail(*_: Any, **__: Any) -> None:
            raise MemoryError

        failing.setattr(model_study, "collect_statistics", fail)
        with pytest.raises(MemoryError):
            llmrank.sweep(tiny(), repairs=["lstsq"], scorers=["wpr"], **settings)
    passes.clear()
    llmrank.sweep(tiny(), repairs=["none"], scorers=["norm"], **settings)
    assert passes == {"rows": 1}
    # As a process leaves it that is killed while it deletes the files.
    (settings["output"] / "calibration-0" / "ranking.json").unlink()
    assert len(llmrank.sweep(tiny(), repairs=["none"], scorers=["flap"], **settings).rows) == 4
    assert [path.name for path in settings["output"].glob("*calibration*")] == ["calibration-0"]
    # The directory of a ranking, which llmrank rank has written, in the place of that of a sweep.
    ranked = settings["output"] / "calibration-0" / "ranking.json"
    rewrite_json(ranked, lambda content: content.pop("collected"))
    failed = llmrank.sweep(tiny(), repairs=["none"], scorers=["random"], **settings).failed
    assert re.search(r"KeyError: 'collected'.*; it is of no sweep\. Delete .*calibration-0, and", failed[0]["error"])
    assert not failed[0]["unexpected"]
    # A file that another program has damaged.
    (settings["output"] / "calibration-0" / "tokens.safetensors").write_bytes(b"")
    failed = llmrank.sweep(tiny(), repairs=["none"], scorers=["random"], **settings).failed
    assert re.search(
        r"calibration-0 holds no complete ranking .*\. Delete .*calibration-0, and repeat", failed[0]["error"]
    )


def test_a_directory_of_other_settings_is_refused(settings: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    llmrank.sweep(tiny(), repairs=["none"], **settings)
    before = {path: path.read_bytes() for path in settings["output"].iterdir() if path.is_file()}
    with pytest.raises(OptionError, match=r"other settings \(seed: 0 there, 1 here; speed: False there, True here\)"):
        llmrank.sweep(
            tiny(),
            repairs=["none"],
            speed=True,
            **{**settings, "calibration": CalibrationText(corpus, **TEXTS, seed=1)},
        )
    settings["evaluation"].source.write_text(text(200, seed=2), encoding="utf-8")
    with pytest.raises(OptionError, match=r"evaluation: file evaluation\.txt, sha256"):
        llmrank.sweep(tiny(), repairs=["none"], **settings)
    assert {path: path.read_bytes() for path in before} == before
    (settings["output"] / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(OptionError, match=r"run\.json is damaged"):
        llmrank.sweep(tiny(), repairs=["none"], **settings)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(OptionError, match="in the way"):
        llmrank.sweep(tiny(), repairs=["none"], **{**settings, "output": tmp_path / "full"})


def test_the_calibration_of_another_model_is_not_used(
    corpus: Path, evaluation: EvaluationText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_norm = SweepSettings(["norm"], calibration=CalibrationText(corpus, **TEXTS), evaluation=evaluation)
    with monkeypatch.context() as failing:
        failing.setattr(NormScorer, "rank", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            measure_sweep([SweepModel("org/tiny", tiny)], of_norm, tmp_path / "runs")
    # The repository on the hub has changed since.
    result = measure_sweep([SweepModel("org/tiny", lambda: tiny(5))], of_norm, tmp_path / "runs")
    assert "has other weights" in result.failed[0]["error"]
    assert len(read_rows(tmp_path / "runs")) == 1


def test_another_model_of_the_same_name_does_not_get_its_rows(
    settings: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    settings |= {"repairs": ["none"], "amounts": [0.2]}
    other = llmrank.save(tmp_path / checkpoint.name, tiny_llama(seed=5), tokenizer())
    llmrank.sweep(checkpoint, **settings)
    copied = shutil.copytree(checkpoint, tmp_path / "copied" / checkpoint.name)
    assert len(llmrank.sweep(copied, **settings).rows) == 2
    with pytest.raises(OptionError, match=r"other settings \(model tiny: files "):
        llmrank.sweep(other, **settings)
    settings["output"] = tmp_path / "loaded"
    llmrank.sweep(tiny(), **settings)
    with pytest.raises(OptionError, match=r"other settings \(model tiny-0: weights "):
        llmrank.sweep(LoadedModel(tiny_llama(seed=5), tokenizer(), "tiny-0"), **settings)


def test_a_checkpoint_that_has_changed_anywhere_does_not_get_the_rows_of_the_old_one(
    settings: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    settings |= {"repairs": ["none"], "amounts": [0.2]}
    changing = shutil.copytree(checkpoint, tmp_path / "changing")
    llmrank.sweep(changing, **settings)
    model = llmrank.load(changing)
    weight = model.model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight[3, 5] += 1.0  # between the values that a digest with gaps reads
    shutil.rmtree(changing)
    llmrank.save(changing, model.model, model.tokenizer)
    with pytest.raises(OptionError, match=r"other settings \(model changing: files "):
        llmrank.sweep(changing, **settings)


def test_identities_that_are_not_known_are_not_compared(
    corpus: Path, evaluation: EvaluationText, tmp_path: Path
) -> None:
    settings = SweepSettings(
        ["norm"], repairs=["none"], calibration=CalibrationText(corpus, **TEXTS), evaluation=evaluation
    )
    for identity in ("commit a", "", "commit a"):  # the second time without a network
        assert len(measure_sweep([SweepModel("org/tiny", tiny, identity)], settings, tmp_path / "runs").rows) == 2
    with pytest.raises(OptionError, match="model org/tiny: commit a there, commit b here"):
        measure_sweep([SweepModel("org/tiny", tiny, "commit b")], settings, tmp_path / "runs")


def test_rows_of_a_model_whose_weights_have_changed_are_not_compared(
    corpus: Path, evaluation: EvaluationText, tmp_path: Path
) -> None:
    def of_norm(amount: float) -> SweepSettings:
        calibration = CalibrationText(corpus, **TEXTS)
        return SweepSettings(
            ["norm"], amounts=[amount], repairs=["none"], calibration=calibration, evaluation=evaluation
        )

    runs = tmp_path / "runs"
    measure_sweep([SweepModel("org/tiny", tiny)], of_norm(0.2), runs)
    shutil.rmtree(runs / "calibration-0")
    with pytest.raises(OptionError, match=r"row 0 in .* another set of weights of org/tiny, which has changed since"):
        measure_sweep([SweepModel("org/tiny", lambda: tiny(5))], of_norm(0.4), runs)
    assert len(read_rows(runs)) == 2
    assert len(measure_sweep([SweepModel("org/tiny", tiny)], of_norm(0.4), runs).rows) == 3


def test_several_models_each_have_their_rows(
    settings: dict[str, Any], checkpoint: Path, tmp_path: Path, passes: Counter[str]
) -> None:
    absent = tmp_path / "absent"
    result = llmrank.sweep([checkpoint, absent, tiny(1), checkpoint], repairs=["none"], **settings)
    names = [row["model"] for row in result.rows]
    assert names == ["tiny", "tiny", "tiny-1", "tiny-1", "tiny (2)", "tiny (2)", str(absent)]
    assert result.failed == result.rows[-1:]
    assert passes["calibration"] == 3 * SEQUENCES
    assert result.rows[0]["weights"] == result.rows[4]["weights"] != result.rows[2]["weights"]
    assert len(read_rows(settings["output"])) == 6


def test_a_model_without_predictions_is_a_failed_row(settings: dict[str, Any]) -> None:
    loaded = LoadedModel(
        torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)), None, "mlp"
    )
    assert len(llmrank.sweep(loaded, **settings).failed) == 1
    with pytest.raises(OptionError, match="one or more models"):
        llmrank.sweep([], **settings)
    for models in (loaded.model, [loaded.model]):
        with pytest.raises(OptionError, match=r"what llmrank.load returns \(model and tokenizer\), got a Sequential"):
            llmrank.sweep(models, **settings)


def test_without_a_residual_stream_only_rows_that_need_it_fail(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model_study.collect_statistics

    def without_skips(*arguments: Any, skips: bool) -> Any:
        if skips:
            raise llmrank.errors.StructureError("no residual stream")
        return whole(*arguments)

    monkeypatch.setattr(model_study, "collect_statistics", without_skips)
    result = llmrank.sweep(
        tiny(), pipelines=["isolated", "residual", "residual:beta=0.5"], repairs=["none"], **settings
    )
    assert [row["pipeline"] for row in result.failed] == ["residual"]
    assert "needs a beta" in result.failed[0]["error"]


def test_the_table_shows_every_row(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    result = llmrank.sweep(tiny(), scorers=["wpr", "norm"], amounts=[0.5, 0.2, 40], repairs=["none"], **settings)
    assert not result.warnings()
    shown = repr(result)
    for row in result.rows:
        assert f"{row['perplexity']:,.2f}" in shown if "error" not in row else "failed" in shown
    assert all(sentence[:40] in shown for sentence in result.errors())
    table = result.table()
    assert table.row_count == 7
    amounts = list(table.columns[1].cells)
    assert [str(cell) for cell in amounts] == ["", "0.2", "0.2", "0.5", "0.5", "40", "40"]
    perplexities = [str(cell) for cell in next(c for c in table.columns if c.header == "perplexity").cells]
    assert perplexities[5:] == ["failed", "failed"]
    assert float(perplexities[1]) <= float(perplexities[2])
    lines = (settings["output"] / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    written = [{key: value for key, value in json.loads(line).items() if key != "crc32"} for line in lines]
    assert written == result.rows == llmrank.SweepResult.load(settings["output"]).rows


def test_rows_say_which_items_are_kept(settings: dict[str, Any], tmp_path: Path) -> None:
    """The dense model is asked for what it writes, and for something else."""
    loaded, lines = tiny(), []
    for number in range(10, 40):
        ids = [number, number + 7, number - 5]
        with torch.no_grad():
            written = int(loaded.model(input_ids=torch.tensor([[1, *ids]])).logits[0, -1].argmax())
        answer = written if number % 3 else written + 1
        lines.append(json.dumps({"kind": "own", "prompt": " ".join(f"w{k}" for k in ids), "answer": f" w{answer}"}))
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    result = llmrank.sweep(loaded, scorers=["norm"], amounts=[0.1, 0.5], repairs=["none"], items=path, **settings)
    dense, little, much = (row["items"] for row in result.rows)
    assert dense["right"] == list(answer_items(loaded.model, loaded.tokenizer, read_items(path)).right)
    known = dense["right"].count(True)
    assert 15 <= known <= 20
    assert "kept" not in dense
    for row in (little, much):
        both = sum(own and other for own, other in zip(row["right"], dense["right"], strict=True))
        assert row["kept"]["all"]["value"] == pytest.approx(both / known)
        assert row["kept"]["all"]["count"] == known
        assert row["accuracy"]["kinds"]["own"]["value"] == pytest.approx(row["right"].count(True) / 30)
    assert little["kept"]["all"]["value"] > much["kept"]["all"]["value"]
    shown = io.StringIO()
    Console(file=shown, width=200).print(result.table())
    assert "items kept" in shown.getvalue()
    assert f"{known / 30:.1%} right" in shown.getvalue()
    assert f"{much['kept']['all']['value']:.1%} ± {much['kept']['all']['error']:.1%}" in shown.getvalue()
    # The items belong to the settings of a sweep.
    path.write_text("\n".join(lines[1:]), encoding="utf-8")
    with pytest.raises(OptionError, match=r"items: 30 items, sha256 .* there, 29 items, sha256 .* here"):
        llmrank.sweep(loaded, amounts=[0.1], repairs=["none"], items=path, **settings)


def test_a_model_that_continues_no_text_is_refused_before_it_is_calibrated(
    settings: dict[str, Any], passes: Counter[str]
) -> None:
    loaded = LoadedModel(tiny_t5(), tokenizer(), "tiny-t5")
    result = llmrank.sweep(loaded, amounts=[0.5], repairs=["none"], items="built-in", **settings)
    assert "answers no items" in result.errors()[0]
    assert not passes


def test_calibration_on_the_evaluation_text_is_said(settings: dict[str, Any]) -> None:
    settings["evaluation"] = settings["calibration"]
    (warning,) = llmrank.sweep(tiny(), repairs=["none"], **settings).warnings()
    assert "of the evaluation passages occur in the calibration text" in warning


def test_rows_of_different_versions_are_said(settings: dict[str, Any]) -> None:
    result = llmrank.sweep(tiny(), repairs=["none"], **settings)
    earlier = {**result.rows[0]["versions"], "torch": "1.0"}
    mixed = llmrank.SweepResult([{**result.rows[0], "versions": earlier}, result.rows[1]], result.directory)
    assert not result.warnings()
    (warning,) = mixed.warnings()
    assert warning.startswith(f"rows were measured with different torch (1.0, {result.rows[1]['versions']['torch']})")


def test_a_damaged_line_is_said(settings: dict[str, Any]) -> None:
    llmrank.sweep(tiny(), repairs=["none"], **settings)
    file = settings["output"] / "rows.jsonl"
    before = file.read_bytes()
    for content in (
        b"damaged\n" + before,
        b"\xff\n" + before,
        before.replace(b'"amount"', b'"amounts"'),
        b"[" * 100_000 + b"\n",
    ):
        file.write_bytes(content)
        with pytest.raises(OptionError, match=r"line \d of .*rows.jsonl is damaged"):
            llmrank.SweepResult.load(settings["output"])
    file.write_bytes(before)
    assert len(llmrank.SweepResult.load(settings["output"]).rows) == 2
    with pytest.raises(OptionError, match=r"there is no rows\.jsonl"):
        llmrank.SweepResult.load(settings["output"].parent)


def test_rows_that_a_sweep_does_not_write_are_refused(settings: dict[str, Any]) -> None:
    llmrank.sweep(tiny(), repairs=["none"], **settings)
    file = settings["output"] / "rows.jsonl"
    dense, pruned = (parse_checked_json(line, "a line") for line in file.read_bytes().splitlines())
    changes: list[tuple[int, dict[str, Any]]] = [
        *(
            (1, {"scorer": 5}),
            (1, {"amount": "0.3"}),
            (1, {"amount": None}),
            (1, {"removed": "x"}),
            (1, {"model": None}),
        ),
        *(
            (1, {"perplexity": "x"}),
            (1, {"difference": {"value": 0.1}}),
            (1, {"difference": {"value": 0.1, "error": ""}}),
            (1, {"versions": {"torch": 2}}),
            (1, {"error": 3}),
        ),
        *(
            (1, {"calibration": {}}),
            (0, {"losses": dense["losses"][:-1]}),
            (0, {"losses": ["x"] * len(dense["losses"])}),
        ),
        *(
            (0, {"counts": ["x"] * len(dense["counts"])}),
            (0, {"speed": {}}),
            (0, {"items": {}}),
            (0, {"tasks": {"a": 3}}),
        ),
        *((0, {"error": "it failed", "losses": None}), (0, {"heal": "x"}), (0, {"parameters": True})),
    ]
    for number, change in changes:
        rows = [dense, pruned]
        rows[number] = rows[number] | change
        file.write_text("".join(checked_json(row) + "\n" for row in rows), encoding="utf-8")
        with pytest.raises(OptionError, match=f"line {number + 1} of .*rows.jsonl does not hold what llmrank writes"):
            llmrank.SweepResult.load(settings["output"])
