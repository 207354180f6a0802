"""``llmrank diff``, on tiny checkpoints and rankings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmrank
from llmrank.prune.masks import Masks
from tests.llmrank.commands import SHORT, refused, run
from tests.llmrank.rewriting import rewrite_json, rewrite_tensors
from tests.llmrank.tiny_models import FFN, tiny_llama, tokenizer

pytestmark = pytest.mark.usefixtures("transformers_log_as_it_was")


@pytest.fixture
def made(checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any) -> dict[str, Path]:
    """Two checkpoints of one model, with other scorers and amounts."""
    for name, *options in (("one", "--scorer", "wpr"), ("other", "--scorer", "random", "--amount", "0.5")):
        common = ["--calibration", corpus, *SHORT, "--repair", "none", f"--evaluate={corpus}"]
        assert run("prune", checkpoint, "--output", tmp_path / name, *common, *options) == 0
    capsys.readouterr()
    return {name: tmp_path / name for name in ("one", "other")}


def test_it_counts_neurons_and_lists_settings(made: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    written = tmp_path / "difference.json"
    assert run("diff", made["one"], made["other"], "--output", written) == 0
    output = capsys.readouterr().out
    content = json.loads(written.read_text(encoding="utf-8"))
    masks = [Masks.load(made[name] / "masks.safetensors") for name in ("one", "other")]
    for layer, found in content["layers"].items():
        a, b = (each[layer].tolist() for each in masks)
        pairs = list(zip(a, b, strict=True))
        assert [found["both"], found["only_a"], found["only_b"]] == [
            pairs.count(pair) for pair in ((True, True), (True, False), (False, True))
        ]
        assert found["widths"] == [sum(a), sum(b)] == [28, 20]
        cells = next(line.split() for line in output.splitlines() if line.startswith(layer))
        assert cells[1:7] == [str(n) for n in (FFN, 28, 20, found["both"], found["only_a"], found["only_b"])]
        assert float(cells[8]) == pytest.approx(found["kappa"], abs=1e-3)
    assert content["settings"]["method.scorer.name"] == ["WeightedPageRankScorer", "RandomScorer"]
    assert content["settings"]["method.pruner.amount"] == [0.3, 0.5]
    assert not [name for name in content["settings"] if name.startswith(("calibration", "evaluation", "model"))]
    reports = [json.loads((made[name] / "report.json").read_text()) for name in ("one", "other")]
    assert content["outcomes"]["perplexity"] == [report["evaluation"]["after"]["value"] for report in reports]
    assert content["outcomes"]["parameters"] == [report["after"]["parameters"] for report in reports]
    assert f"{reports[0]['after']['parameters']:,}" in output


def test_a_report_alone_has_no_neurons(made: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    report = shutil.copy(made["other"] / "report.json", tmp_path / "alone.json")
    assert run("diff", made["one"] / "report.json", report) == 0
    output = capsys.readouterr().out
    assert f"no masks.safetensors with {report}" in " ".join(output.split())
    assert "kappa" not in output
    assert ["model.layers.0.mlp", "28", "20"] in [line.split() for line in output.splitlines()]


def test_rankings_are_compared_by_their_scores(checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    for name, scorer in (("a", "wpr"), ("b", "activation")):
        common = ["--calibration", corpus, *SHORT, "--scorer", scorer]
        assert run("rank", checkpoint, "--output", tmp_path / name, *common) == 0
    capsys.readouterr()
    assert run("diff", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "d.json") == 0
    output = capsys.readouterr().out
    content = json.loads((tmp_path / "d.json").read_text())
    assert content["settings"] == {"method.scorer": ["wpr", "activation"]}
    assert set(content["correlations"]) == {"model.layers.0.mlp", "model.layers.1.mlp"}
    for layer, value in content["correlations"].items():
        assert -1 <= value < 1
        assert f"{value:.4g}" in next(line for line in output.splitlines() if line.startswith(layer))
    assert run("diff", tmp_path / "a", tmp_path / "a", "--output", tmp_path / "same.json") == 0
    assert set(json.loads((tmp_path / "same.json").read_text())["correlations"].values()) == {1.0}


def test_checkpoints_of_other_models_are_refused(
    made: dict[str, Path], corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    larger = llmrank.save(tmp_path / "larger", tiny_llama(num_hidden_layers=3), tokenizer())
    pruned = tmp_path / "other-model"
    common = ["--calibration", corpus, *SHORT, "--repair", "none"]
    assert run("prune", larger, "--output", pruned, *common) == 0
    capsys.readouterr()
    said = refused(capsys, "diff", made["one"], pruned)
    assert "of different models: the number of parameters before pruning is" in said


def test_masks_of_other_layers_are_refused(made: dict[str, Path], capsys: Any) -> None:
    masks = Masks.load(made["other"] / "masks.safetensors")
    Masks({name.replace("mlp", "ffn"): mask for name, mask in masks.items()}).save(made["other"] / "masks.safetensors")
    said = refused(capsys, "diff", made["one"], made["other"])
    assert "4 layers differ in name or size, such as model.layers.0.ffn" in said


def test_what_is_no_checkpoint_is_refused(checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    assert "has no report" in refused(capsys, "diff", checkpoint, checkpoint)
    assert "cannot be read as a report of llmrank (Expecting value" in refused(capsys, "diff", corpus, corpus)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    assert "cannot be read as a report" in refused(capsys, "diff", tmp_path / "deep.json", corpus)
    (tmp_path / "list.json").write_text("[]")
    assert "(expected fields with names, got [])" in refused(capsys, "diff", tmp_path / "list.json", corpus)
    for content in ("{}", '{"model": {}, "method": {}, "neurons": 3}'):
        (tmp_path / "other.json").write_text(content)
        assert "is no report of llmrank prune" in refused(capsys, "diff", tmp_path / "other.json", corpus)


def test_rankings_of_other_weights_are_refused(checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    other = llmrank.save(tmp_path / "other", tiny_llama(seed=1), tokenizer())
    for name, model in (("a", checkpoint), ("b", other)):
        assert run("rank", model, "--output", tmp_path / name, "--calibration", corpus, *SHORT) == 0
    capsys.readouterr()
    assert "the digest of the weights is" in refused(capsys, "diff", tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("neurons", [{"widths": 5}, {"widths": [3]}, {"widths": {"a": "b"}}])
def test_reports_that_prune_does_not_write_are_refused(tmp_path: Path, capsys: Any, neurons: Any) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"model": {}, "method": {}, "neurons": neurons}), encoding="utf-8")
    assert "does not hold what llmrank writes" in refused(capsys, "diff", path, path)


def test_rankings_and_masks_that_are_not_written_so_are_refused(
    made: dict[str, Path], checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    masks = made["one"] / "masks.safetensors"
    rewrite_tensors(masks, "mask", lambda meta, _: meta.update(weights=3))
    assert "as the digest of its model, and not a text" in refused(capsys, "diff", made["one"], made["other"])
    empty = {"model.layers.0.mlp": np.zeros(0, np.uint8)}
    rewrite_tensors(masks, "mask", lambda meta, arrays: (meta.update(weights=""), arrays.update(empty)))
    assert "has no neuron of model.layers.0.mlp" in refused(capsys, "diff", made["one"], made["other"])
    place = tmp_path / "ranking"
    assert run("rank", checkpoint, "--output", place, "--calibration", corpus, *SHORT) == 0
    capsys.readouterr()
    rewrite_json(place / "ranking.json", lambda content: content.update(layers=3))
    assert "does not hold what llmrank writes" in refused(capsys, "diff", place, place)
    rewrite_json(place / "ranking.json", lambda content: content.update(layers={}))
    scores = {"model.layers.0.mlp": np.zeros((2, 2))}
    rewrite_tensors(place / "scores.safetensors", "scores", lambda _, arrays: arrays.update(scores))
    assert "does not hold what llmrank writes" in refused(capsys, "diff", place, place)
