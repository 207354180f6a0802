"""What every command prints, and where: ``--json``, ``--quiet`` and ``--verbose``."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tqdm import tqdm
from transformers import modeling_gguf_pytorch_utils

from llmrank import cli
from llmrank.cli.result import CommandResult
from tests.llmrank.commands import SHORT, run
from tests.llmrank.tiny_models import text, write_vocabulary

SCHEMAS = json.loads((Path(cli.__file__).parent / "schemas.json").read_text(encoding="utf-8"))
COMMANDS = next(a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


def check(document: Any, name: str) -> None:
    """Raise unless a document fits one of the schemas."""
    schema = {"$ref": f"#/$defs/{name}", "$defs": SCHEMAS["$defs"]}
    jsonschema.validate(document, schema, jsonschema.Draft202012Validator)


@pytest.fixture
def given(checkpoint: Path, corpus: Path, tmp_path: Path) -> dict[str, tuple[Any, ...]]:
    """Arguments for each command. Those of ``apply`` and ``diff`` need what other commands write."""
    texts = ("--calibration", corpus, *SHORT)
    long = tmp_path / "long.txt"
    long.write_text(text(4000), encoding="utf-8")
    evaluated = ("--against", checkpoint, "--text", long, "--new-tokens", 2, "--prompt-length", 4, *SHORT)
    return {
        "demo": ("--model", checkpoint, "--output", tmp_path / "demo", *SHORT),
        "prune": (checkpoint, "--output", tmp_path / "pruned", "--evaluate", *texts),
        "rank": (checkpoint, "--output", tmp_path / "ranking", "--losses", *texts),
        "plan": (tmp_path / "ranking", checkpoint),
        "apply": (tmp_path / "ranking", checkpoint, "--output", tmp_path / "applied"),
        "sweep": (checkpoint, "--output", tmp_path / "sweep", "--evaluate", long, "--amount", "0.2", *texts),
        "inspect": (checkpoint, "--compare", "norm", *texts),
        "evaluate": (checkpoint, *evaluated, "--contexts", "--items", "built-in"),
        "diff": (tmp_path / "pruned", tmp_path / "applied"),
        "export": (
            tmp_path / "pruned",
            "--output",
            tmp_path / "a.gguf",
            "--tokenizer",
            write_vocabulary(tmp_path / "b.gguf"),
        ),
        "components": (),
        "families": ("llama",),
    }


def test_schemas_are_schemas_and_every_command_has_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS)
    assert COMMANDS.keys() <= SCHEMAS["$defs"].keys()


@pytest.mark.slow
def test_json_is_one_document_that_fits_its_schema(
    given: dict[str, tuple[Any, ...]], tmp_path: Path, capsys: Any
) -> None:
    for command, arguments in given.items():
        assert run(command, *arguments, "--json") == 0
        said = capsys.readouterr()
        document = json.loads(said.out)
        assert document["command"] == command
        check(document, command)
        assert said.err != "", "tables and progress are on standard error"
        with pytest.raises(jsonschema.ValidationError):
            check({key: value for key, value in document.items() if key != "command"}, command)
    check(json.loads((tmp_path / "pruned" / "report.json").read_text(encoding="utf-8")), "report")
    masks = tmp_path / "pruned" / "masks.safetensors"
    assert run("apply", masks, given["prune"][0], "--output", tmp_path / "again", "--json") == 0
    check(json.loads(capsys.readouterr().out), "apply")
    assert run("components", "wpr", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    check(document, "components")
    assert document["scorer"]["wpr"]["options"]["gamma"]["default"] == 0.5


def test_a_command_that_fails_prints_no_document(tmp_path: Path, capsys: Any) -> None:
    assert run("evaluate", tmp_path / "nowhere", "--json") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "\nllmrank: error: no model" in said.err


def test_quiet_prints_nothing_but_errors(given: dict[str, tuple[Any, ...]], tmp_path: Path, capsys: Any) -> None:
    for command, arguments in given.items():
        assert run("--quiet", command, *arguments) == 0
        assert capsys.readouterr() == ("", "")
    assert run("prune", *given["prune"], "--quiet") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "is not empty" in said.err
    corpus = given["prune"][given["prune"].index("--calibration") + 1]
    assert run("sweep", tmp_path / "nowhere", "--quiet", "--evaluate", corpus, "--output", tmp_path / "runs") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "nowhere, dense: no model" in said.err
    assert run("components", "--quiet", "--json") == 0  # what was asked for is not noise
    said = capsys.readouterr()
    assert json.loads(said.out)["command"] == "components"
    assert said.err == ""


def test_quiet_hides_what_libraries_say(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def talk(*_: Any) -> CommandResult:
        return CommandResult({"bars": list(tqdm([]))})

    monkeypatch.setattr("llmrank.cli.commands.families.run_families", talk)
    assert run("families", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert run("families") == 0
    assert "0it" in capsys.readouterr().err


def test_the_bar_of_gguf_files_is_hidden(capsys: Any) -> None:
    assert run("components") == 0
    capsys.readouterr()
    assert list(modeling_gguf_pytorch_utils.tqdm([1, 2], desc="Converting")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_verbose_prints_the_log(given: dict[str, tuple[Any, ...]], capsys: Any) -> None:
    assert run("prune", *given["prune"], "--verbose") == 0
    said = capsys.readouterr().err
    for sentence in (
        "llmrank.pipeline.stopwatch: calibrate took 0.",
        "llmrank.pipeline.pruning_run: found 2 FFNs (gated) with 80 neurons",
        "llmrank.pipeline.plan: ranked 2 graphs of 144 nodes by",
        "llmrank.surgery.checkpoint: loading the checkpoint again",
        "llmrank.pipeline.closeness.candidates: chose ",
        "] Calibrating: 2 steps",
    ):
        assert sentence in said
    logger = logging.getLogger("llmrank")
    assert (logger.handlers, logger.level) == ([], logging.NOTSET)
    assert run("components", "wpr") == 0
    assert "llmrank." not in capsys.readouterr().err


def test_names_between_colons_are_no_pictures(checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "a:gem:b"
    assert run("rank", checkpoint, "--output", output, "--calibration", corpus, *SHORT) == 0
    assert f"Wrote {output}:" in capsys.readouterr().out
    assert run("components", "a:gem:b") == 2
    assert "'a:gem:b'" in capsys.readouterr().err


def test_quiet_and_verbose_exclude_each_other(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        run("components", "--quiet", "--verbose")
    assert "not allowed with argument" in capsys.readouterr().err
