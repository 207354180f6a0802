"""Settings of a command from a file: TOML, or the report of another run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmrank import Masks, cli
from llmrank.cli.arguments.shared import find_texts
from tests.llmrank.commands import SHORT, run
from tests.tables import table


def parsed(*arguments: Any) -> Any:
    options = cli.parser().parse_args([str(argument) for argument in arguments])
    find_texts(options)
    return options


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = [
        'model = "some/model"',
        'output = "pruned"',
        "amount = 0.5",
        'scorer = "wpr:gamma=0.7"',
        "sequence-length = 64",
        "low-memory = true",
        "evaluate = true",
        'max-memory = "0=20GiB,cpu=60GiB"',
    ]
    path = Path("run.toml")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_keys_are_options_and_the_command_line_wins(settings: Path) -> None:
    options = parsed("prune", "--config", settings)
    assert (options.model, options.output, options.amount) == ("some/model", Path("pruned"), 0.5)
    assert (options.scorer, options.sequence_length, options.low_memory) == ("wpr:gamma=0.7", 64, True)
    assert (options.evaluate, options.max_memory) == (True, {0: 20 << 30, "cpu": 60 << 30})
    assert options.samples == parsed("prune", "m", "--output", "o").samples
    options = parsed("prune", "other", f"--config={settings}", "--amount", 30, "--evaluate=my.txt")
    assert (options.model, options.amount, options.evaluate) == ("other", 30, Path("my.txt"))


def test_a_path_is_noted_in_one_form(settings: Path) -> None:
    for written in ("run.toml", "./run.toml", ".//run.toml"):
        assert parsed("prune", "m", "--output", "o", "--calibration", written).settings["calibration"] == "run.toml"


def test_an_evaluation_can_be_left_out(settings: Path) -> None:
    settings.write_text("evaluate = false", encoding="utf-8")
    assert parsed("prune", "m", "--output", "o", "--config", settings).evaluate is None


def test_numbers_and_shares_keep_their_kind(settings: Path) -> None:
    settings.write_text("amount = 30", encoding="utf-8")
    assert repr(parsed("prune", "m", "--output", "o", "--config", settings).amount) == "30"
    settings.write_text("amount = 1e-1", encoding="utf-8")
    assert repr(parsed("prune", "m", "--output", "o", "--config", settings).amount) == "0.1"


def test_lists_are_for_options_that_repeat(settings: Path) -> None:
    settings.write_text('neuron = ["a.b:1", "a.b:2"]', encoding="utf-8")
    assert parsed("inspect", "m", "--config", settings, "--neuron", "c.d:3").neuron == ["c.d:3"]
    assert parsed("inspect", "m", "--config", settings).neuron == ["a.b:1", "a.b:2"]


@table(
    ("content", "message"),
    [
        ("calibratoin = 'c.txt'", "unknown key 'calibratoin' (did you mean calibration?)"),
        ("sequence_length = 3", "unknown key 'sequence_length' (did you mean sequence-length?)"),
        ("config = 'run.toml'", "unknown key 'config'"),
        ("amount = 'much'", "argument --amount: expected a share such as 0.3 or a number such as 500, got 'much'"),
        ("low-memory = 'yes'", "low-memory must be true or false, got 'yes'"),
        ("amount = true", "amount must be a text or a number, got True"),
        ("amount = [1]", "amount must be a text or a number, got [1]"),
        ("[prune]\namount = 1", "unknown key 'prune'"),
        ("amount = ", "cannot read the settings in run.toml"),
        ("command = 'rank'", "holds settings of llmrank rank"),
    ],
)
def test_other_settings_are_refused(settings: Path, content: str, message: str, capsys: Any) -> None:
    settings.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        parsed("prune", "m", "--output", "o", "--config", settings)
    assert message in " ".join(capsys.readouterr().err.split())


def test_files_that_cannot_be_read_are_refused(settings: Path, capsys: Any) -> None:
    for name, content, message in (
        ("absent.toml", None, "cannot read the settings in absent.toml"),
        ("report.json", json.dumps({"config": None}), "report.json holds no settings"),
        ("report.json", "[1]", "report.json holds no settings"),
        ("report.json", "{", "cannot read the settings in report.json"),
    ):
        if content is not None:
            Path(name).write_text(content, encoding="utf-8")
        with pytest.raises(SystemExit, match="2"):
            parsed("prune", "m", "--output", "o", "--config", name)
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_report_repeats_its_run(checkpoint: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(corpus.parent)
    Path("model").symlink_to(checkpoint)
    given = ("--calibration", corpus.name, "--amount", "0.4", "--scorer", "wpr:gamma=0.8", "--seed", "3", *SHORT)
    for command, model in (("prune", ("model",)), ("demo", ("--model", "model"))):
        first, second = Path(f"{command}-first"), Path(f"{command}-second")
        assert run(command, *model, "--output", first, *given) == 0
        assert run(command, "--config", first / "report.json", "--output", second) == 0
        masks = [Masks.load(place / "masks.safetensors") for place in (first, second)]
        assert {name: mask.tolist() for name, mask in masks[0].items()} == {
            name: mask.tolist() for name, mask in masks[1].items()
        }
        reports = [json.loads((place / "report.json").read_text(encoding="utf-8")) for place in (first, second)]
        assert reports[0]["config"] == reports[1]["config"]
        assert reports[0]["neurons"]["share_reached"] == 0.4
    assert run("rank", "model", "--output", "ranking", *given[:2], *SHORT) == 0
    assert run("apply", "ranking", "model", "--output", "applied", "--repair", "lstsq") == 0
    assert run("apply", "--config", "applied/report.json", "--output", "again") == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("prune", "--config", "applied/report.json", "--output", "more")
    assert "holds settings of llmrank apply" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("key", ["trust-remote-code", "push-to-hub", "output", "private"])
def test_the_report_of_a_stranger_runs_no_code_and_says_not_where_results_go(
    settings: Path, key: str, capsys: Any
) -> None:
    value = "theirs" if key in ("push-to-hub", "output") else True
    Path("report.json").write_text(json.dumps({"config": {key: value}}), encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        parsed("prune", "m", "--output", "o", "--config", "report.json")
    assert f"{key!r} cannot be set in a report" in " ".join(capsys.readouterr().err.split())
    settings.write_text("trust-remote-code = true", encoding="utf-8")
    options = parsed("prune", "m", "--output", "o", "--config", settings)
    assert options.trust_remote_code
    assert "trust-remote-code" not in options.settings


def test_a_report_names_no_local_folders(tmp_path: Path) -> None:
    (tmp_path / "a,b" / "model").mkdir(parents=True)
    options = parsed("prune", tmp_path / "a,b" / "model", "--output", "o")
    assert options.settings["model"] == "./model"
    specs = "wpr:" + "gamma=0.9," * 50
    assert parsed("prune", "m", "--output", "o", "--scorer", specs).settings["scorer"] == specs
    given = ("--calibration", "/home/me/my.txt", "--max-memory", "0=1GiB,cpu=2GiB", "--output", "/out")
    options = parsed("prune", "/home/me/model", *given)
    assert (options.settings["model"], options.settings["calibration"]) == ("./model", "./my.txt")
    assert "output" not in options.settings
    mixture = parsed("prune", "m", "--output", "o", "--calibration", "/me/a.txt:0.5,built-in:0.25,/me/b.txt:0.25")
    assert mixture.settings["calibration"] == "./a.txt:0.5,built-in:0.25,./b.txt:0.25"
    for place, said in (("/me/rows", "./rows"), ("/me/rows,,test:0.5,built-in:0.5", "./rows,,test:0.5,built-in:0.5")):
        dataset = parsed("prune", "m", "--output", "o", "--calibration", f"dataset:{place}")
        assert dataset.settings["calibration"] == f"dataset:{said}"
    assert (
        parsed("prune", "m", "--output", "o", "--calibration", "dataset:a/b").settings["calibration"] == "dataset:a/b"
    )
    again = parsed("prune", "m", "--output", "o", "--max-memory", options.settings["max-memory"])
    assert again.max_memory == options.max_memory


@pytest.mark.parametrize("name", ["deep.json", "deep.toml"])
def test_settings_nested_without_end_are_refused(
    name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("[" * 100_000 if name.endswith("json") else "a = " + "[" * 100_000, encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        run("prune", checkpoint, "--output", tmp_path / "out", "--config", tmp_path / name)
    assert "cannot read the settings" in capsys.readouterr().err
