"""``llmrank heal``, ``llmrank predict``, and ``llmrank prune --heal``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import llmrank
from llmrank.cli import main
from llmrank.text import generated
from tests.llmrank.execution.test_processes import launched
from tests.llmrank.tiny_models import text

COMMON = ["--sequence-length", "16", "--quiet"]


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in (*arguments, *COMMON)])


@pytest.fixture
def pruned(checkpoint: Path, corpus: Path, tmp_path: Path) -> Path:
    output = tmp_path / "pruned"
    assert run("prune", checkpoint, "--output", output, "--calibration", corpus, "--samples", "4") == 0
    return output


def test_heal_writes_a_checkpoint_with_the_ledger(
    checkpoint: Path, pruned: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "healed"
    options = (
        "--text",
        corpus,
        "--tokens",
        "256",
        "--sequence-length",
        "16",
        "--with",
        "learning_rate=1e-3,sequences_per_step=2",
    )
    arguments = ("heal", pruned, "--against", checkpoint, "--output", output, "--checkpoints", tmp_path / "state")
    status = main([str(argument) for argument in (*arguments, *options)])
    printed = capsys.readouterr().out
    assert status == 0
    assert "of the divergence from the dense model is gone" in printed
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    before = json.loads((pruned / "report.json").read_text(encoding="utf-8"))
    kept = before.keys() - {"healing", "evaluation", "notes", "warnings"}
    assert {key: report[key] for key in kept} == {key: before[key] for key in kept}
    assert [row["step"] for row in report["healing"]["rows"]] == [0, 2, 4, 6, 8]
    assert "healed" in (output / "README.md").read_text(encoding="utf-8")
    assert (output / "healing.png").read_bytes().startswith(b"\x89PNG")
    widths = {llmrank.load(path).model.model.layers[0].mlp.up_proj.out_features for path in (pruned, output)}
    assert len(widths) == 1


@pytest.mark.parametrize("file", ["report.json", "masks.safetensors"])
def test_a_damaged_file_of_the_checkpoint_does_not_cost_the_healing(
    pruned: Path, tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmrank.cli.commands.heal.load", lambda *_: pytest.fail("the model is loaded"))
    (pruned / file).write_bytes(b"{")
    assert run("heal", pruned, "--against", "dense", "--output", tmp_path / "healed") == 2
    assert file in capsys.readouterr().err


def test_heal_learns_from_a_file_of_predictions(
    checkpoint: Path, pruned: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "predictions.safetensors"
    assert run("predict", checkpoint, "--pruned", pruned, "--text", corpus, "--tokens", "128", "--output", file) == 0
    assert run("heal", pruned, "--against", file, "--tokens", "1000", "--output", tmp_path / "healed") == 0
    report = json.loads((tmp_path / "healed" / "report.json").read_text(encoding="utf-8"))
    assert report["healing"]["rows"][-1]["tokens"] >= 1000
    notes = report["healing"]["notes"]
    assert any("the repair has seen most of the text" in note for note in notes)
    assert any("they are read about" in note for note in notes)
    for option, value in (("--text", corpus), ("--against-revision", "main")):
        assert run("heal", pruned, "--against", file, option, value, "--output", tmp_path / "other") == 2
        assert f"predictions for its own text; leave {option} out" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_the_sequences_of_a_repair_before_healing_are_known_again(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long, pruned, healed = tmp_path / "long.txt", tmp_path / "pruned", tmp_path / "healed"
    long.write_text(text(1500), encoding="utf-8")
    options = ("--heal", "320", "--scorer", "random", "--repair", "none")
    assert run("prune", checkpoint, "--output", pruned, "--calibration", long, *options) == 0
    report = json.loads((pruned / "report.json").read_text(encoding="utf-8"))
    assert report["calibration"]["sequences"] == 20 + 4  # of the text, and of the built-in text
    capsys.readouterr()
    more = ("--text", long, "--tokens", "2400")
    assert run("heal", pruned, "--against", checkpoint, "--output", healed, *more) == 0
    assert "the repair has seen" not in capsys.readouterr().err
    learned = json.loads((healed / "report.json").read_text(encoding="utf-8"))["healing"]["text"]
    every = llmrank.text.tokenise(long, llmrank.load(checkpoint).tokenizer, 10**6, 16, "calibration")
    assert learned["sequences"] < 1.2 * (len(every) - 20)


def test_a_text_that_has_changed_since_the_repair_is_said(
    checkpoint: Path, pruned: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus.write_text("".join(reversed(corpus.read_text(encoding="utf-8"))), encoding="utf-8")
    arguments = ["--text", corpus, "--tokens", "64", "--sequence-length", "16"]
    command = ["heal", pruned, "--against", checkpoint, "--output", tmp_path / "healed", *arguments]
    assert main([str(argument) for argument in command]) == 0
    assert "gives other tokens now" in " ".join(capsys.readouterr().out.split())


def test_words_for_true_and_false_may_be_capital(checkpoint: Path, pruned: Path, corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "healed"
    options = ("--text", corpus, "--tokens", "64", "--with", "bf16=False,learn=ffn")
    assert run("heal", pruned, "--against", checkpoint, "--output", output, *options) == 0


def test_a_file_of_predictions_must_be_known_by_its_name(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("predict", checkpoint, "--text", corpus, "--output", tmp_path / "p.bin") == 2
    assert "must end in .safetensors" in capsys.readouterr().err


def test_no_text_is_written_to_see_that_it_is_another(
    checkpoint: Path, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    write = generated._write
    monkeypatch.setattr(generated, "_write", lambda request: lengths.append(request.samples) or write(request))
    assert run("heal", pruned, "--against", checkpoint, "--tokens", "64", "--output", tmp_path / "healed") == 0
    assert len(lengths) == 1


def test_prune_heals_what_it_has_cut(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "healed"
    arguments = ["prune", checkpoint, "--output", output, "--calibration", corpus, "--samples", "4", "--heal", "128"]
    assert run(*arguments) == 0
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert [row["tokens"] for row in report["healing"]["rows"]] == [0, 128]
    assert report["config"]["heal"] == 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--with", "bf16"], "expected NAME=VALUE"),
        (["--with", "max_steps=3"], "max_steps"),
        (["--with", "no_such_thing=3"], "no_such_thing"),
        (["--tokens", "0"], "tokens must be"),
        (["--with", "learning_rate=3"], "between 0 and 1"),
        (["--with", "tokens=5"], "tokens: expected learn"),
        (["--with", "learn=[1]"], "; expected one of all"),
        (["--with", "bf16=no"], "bf16 must be true or false"),
        (["--checkpoints", __file__], "must be a directory"),
    ],
)
def test_bad_options_leave_nothing(
    checkpoint: Path,
    pruned: Path,
    corpus: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "healed"
    assert run("heal", pruned, "--against", checkpoint, "--text", corpus, "--output", output, *options) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.slow
def test_two_processes_learn_as_one_does(checkpoint: Path, pruned: Path, corpus: Path, tmp_path: Path) -> None:
    options = [
        "heal",
        pruned,
        "--against",
        checkpoint,
        "--text",
        f"{corpus}:100%",
        "--tokens",
        64,
        "--sequence-length",
        16,
    ]
    options += ["--with", "sequences_per_step=2,learning_rate=1e-3,bf16=false"]
    assert main([str(each) for each in (*options, "--output", tmp_path / "one")]) == 0
    found = launched("-m", "llmrank", *options, "--checkpoints", tmp_path / "state", "--output", tmp_path / "two")
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("Wrote ") == 1
    one, two = (
        json.loads((tmp_path / name / "report.json").read_text(encoding="utf-8"))["healing"]["rows"]
        for name in ("one", "two")
    )
    assert [row["tokens"] for row in one] == [row["tokens"] for row in two]
    for row, other in zip(one, two, strict=True):
        for kind, close in row["closeness"].items():
            assert close["divergences"] == pytest.approx(other["closeness"][kind]["divergences"], rel=1e-4)
