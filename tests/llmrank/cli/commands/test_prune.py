"""The command line, run in this process on a tiny checkpoint."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import llmrank
from llmrank import Masks, cli
from llmrank.cli.commands import demo
from llmrank.cli.commands import prune as cli_prune
from llmrank.cli.result import CommandResult
from llmrank.evaluation.items import Answers, Item
from llmrank.models.forward import longest_input
from llmrank.pipeline import registry
from tests.llmrank.commands import SHORT, refused, run
from tests.llmrank.tiny_models import FFN, family_model, logits, named_family, tiny_llama, tiny_t5, token_ids, tokenizer
from tests.tables import table

pytestmark = pytest.mark.usefixtures("transformers_log_as_it_was")


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
    assert report["method"]["pipeline"] == registry.DEFAULTS["pipeline"]
    assert report["calibration"]["sequences"] == 2
    assert transformers.AutoTokenizer.from_pretrained(output)("w4")["input_ids"] == [1, 4, 2]


@pytest.mark.parametrize("form", ["zero", "mask", "compact"])
def test_forms_and_padding_compute_the_same(checkpoint: Path, corpus: Path, tmp_path: Path, form: str) -> None:
    common = ("prune", checkpoint, "--pruner", "global", "--calibration", corpus, *SHORT)
    assert run(*common, "--output", tmp_path / form, "--form", form) == 0
    assert run(*common, "--output", tmp_path / "padded", "--form", "padded") == 0
    ids = token_ids()
    padded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "padded")
    torch.testing.assert_close(
        logits(llmrank.load(tmp_path / form).model, ids), logits(padded, ids), atol=1e-5, rtol=1e-5
    )


def test_a_sensitive_layer_gives_less_and_the_report_says_why(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    common = ("prune", checkpoint, "--amount", 0.25, "--calibration", corpus, *SHORT)
    assert run(*common, "--output", tmp_path / "strict", "--pruner", "sensitivity:limit=0.5") == 0
    assert run(*common, "--output", tmp_path / "mild", "--pruner", "sensitivity:limit=50") == 0
    reports = {name: json.loads((tmp_path / name / "report.json").read_text("utf-8")) for name in ("strict", "mild")}
    assert reports["strict"]["method"]["pruner"]["limit"] == 0.5
    assert reports["mild"]["sensitivities"] == reports["strict"]["sensitivities"]
    assert list(reports["mild"]["neurons"]["widths"].values()) == [30, 30]
    assert reports["strict"]["neurons"]["removed"] == 20
    llmrank.load(tmp_path / "strict")


@pytest.mark.parametrize(
    "spec",
    ["bias", "lstsq", "lstsq:reselect=true", "lstsq:target=output"],
)
def test_a_repaired_checkpoint_loads_and_says_what_was_done(
    checkpoint: Path, corpus: Path, tmp_path: Path, spec: str, capsys: Any
) -> None:
    common = ("prune", checkpoint, "--calibration", corpus, "--samples", 5, "--sequence-length", 16)
    repair = spec.partition(":")[0]
    assert run(*common, "--output", tmp_path / "plain", "--repair", "none") == 0
    assert "repaired by" not in capsys.readouterr().out
    assert run(*common, "--output", tmp_path / repair, "--repair", spec) == 0
    assert "held-out tokens" in " ".join(capsys.readouterr().out.split())
    report = json.loads((tmp_path / repair / "report.json").read_text(encoding="utf-8"))
    assert report["method"]["repair"]["name"] == {"bias": "BiasRepair", "lstsq": "LeastSquaresRepair"}[repair]
    assert sorted(report["repaired"]) == [f"model.layers.{k}.mlp.down_proj" for k in range(2)]
    fitted_to = {said["target"] for said in report["repaired"].values()}
    assert fitted_to == {"output" if repair == "bias" or "output" in spec else "stream"}
    models = [transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("plain", repair)]
    assert not torch.allclose(*(logits(model, token_ids()) for model in models), atol=1e-3)
    masks = [Masks.load(tmp_path / name / "masks.safetensors") for name in ("plain", repair)]
    assert (masks[0] == masks[1]) is ("reselect" not in spec)
    assert masks[0].widths == masks[1].widths


def test_a_model_becomes_smaller_by_a_share_of_its_bytes(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "out"
    common = ("prune", checkpoint, "--calibration", corpus, *SHORT)
    assert run(*common, "--output", output, "--amount", 0.2, "--amount-of", "bytes", "--pruner", "global") == 0
    assert "of the model bytes and" in " ".join(capsys.readouterr().out.split())
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert report["method"]["pruner"]["amount_of"] == "bytes"
    smaller = 1 - report["after"]["bytes"] / report["before"]["bytes"]
    assert 0.2 <= smaller < 0.21
    assert report["reached"]["bytes"]["share"] == pytest.approx(smaller)
    weights = {
        name: sum(p.numel() for p in llmrank.load(path).model.parameters())
        for name, path in (("before", checkpoint), ("after", output))
    }
    assert 1 - weights["after"] / weights["before"] == pytest.approx(smaller)


def test_protected_layers_are_named_or_numbered(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    common = ("prune", checkpoint, "--calibration", corpus, *SHORT, "--amount", 0.25)
    for k, protect in enumerate(("protect=-1", "protect=model.layers.1", "protect=*.1.*,protect=1")):
        assert run(*common, "--output", tmp_path / f"{k}", "--pruner", f"local:{protect}") == 0
        assert list(Masks.load(tmp_path / f"{k}" / "masks.safetensors").widths.values()) == [30, 40]
        llmrank.load(tmp_path / f"{k}")
    report = json.loads((tmp_path / "2" / "report.json").read_text(encoding="utf-8"))
    assert report["method"]["pruner"]["protect"] == ["*.1.*", 1]
    assert any("12.5% was removed where 25.0% was asked for" in warning for warning in report["warnings"])


def test_a_long_repair_is_announced_before_it_begins(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    arguments = ("prune", checkpoint, "--calibration", corpus, *SHORT, "--repair", "lstsq", "--output")
    assert run(*arguments, tmp_path / "short") == 0
    assert "The repair will take" not in capsys.readouterr().out
    monkeypatch.setattr("llmrank.repair.duration._speed", lambda device: 1.0)
    assert run(*arguments, tmp_path / "long") == 0
    shown = " ".join(capsys.readouterr().out.split())
    announced = re.search(r"The repair will take about [0-9,]+ minutes", shown)
    assert announced is not None
    assert announced.start() < shown.index("Wrote")


def test_evaluation_lands_in_the_report(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    output, result = tmp_path / "out", tmp_path / "result.json"
    prune = ("prune", checkpoint, "--output", output, "--calibration", corpus, "--evaluate", corpus)
    assert run(*prune, *SHORT) == 0
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert report["evaluation"]["calibration_overlap"] == pytest.approx(
        3 / 14
    )  # the first 2 of 14 sequences, and one held out
    assert run("evaluate", output, "--text", corpus, "--output", result, "--samples", 16, "--sequence-length", 16) == 0
    again = json.loads(result.read_text(encoding="utf-8"))
    assert again["protocol"]["source"] == "file corpus.txt"
    assert again["bytes"] == report["after"]["bytes"]


def test_a_collapsed_model_is_called_so(checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    """A random model is no better than token frequencies; with --evaluate it is known that it never was."""
    prune = ("prune", checkpoint, "--calibration", corpus, *SHORT)
    assert run(*prune, "--output", tmp_path / "a", "--evaluate", corpus) == 0
    assert "has collapsed" not in " ".join(capsys.readouterr().out.split())
    assert run(*prune, "--output", tmp_path / "b") == 0
    assert "has collapsed (or the dense model was no better)" in " ".join(capsys.readouterr().out.split())
    assert run(*prune, "--output", tmp_path / "c", "--amount", 0) == 0
    assert "has collapsed" not in " ".join(capsys.readouterr().out.split())


def test_demo_runs_on_a_local_model(checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "demo"
    assert run("demo", "--model", checkpoint, "--output", output, *SHORT) == 0
    assert {"config.json", "model.safetensors", "report.json", "masks.safetensors", "removed_neurons.png"} <= {
        path.name for path in output.iterdir()
    }
    assert set(json.loads((output / "report.json").read_text(encoding="utf-8"))["completions"]) == {"dense", "pruned"}
    assert "perplexity" in capsys.readouterr().out


def test_a_demo_shows_what_models_say_as_they_say_it(
    checkpoint: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """Rich must not read markup into model output, nor may what comes after the checkpoint lose it."""

    def full(_figure: Any, path: Path, **_options: Any) -> None:
        path.write_bytes(b"half a figure")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "complete", lambda *_: " Rome [/INST] [red]")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    output = tmp_path / "demo[bold]"
    assert run("demo", "--model", checkpoint, "--output", output, *SHORT) == 0
    shown = capsys.readouterr().out
    assert "dense: The capital of France is Paris. The capital of Italy is Rome [/INST] [red]" in shown
    assert f"{demo.FIGURE_FILE} could not be written" in shown
    assert f"Wrote {output}: the checkpoint, report.json and masks.safetensors." in shown
    assert not (output / demo.FIGURE_FILE).exists()


@pytest.mark.parametrize(("pruned", "warns"), [(" Rome, of course", False), (" New York.", True), ("", True)])
def test_a_demo_says_where_the_pruned_model_is_wrong(
    checkpoint: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, pruned: str, warns: bool
) -> None:
    said = iter([" Rome. It", pruned])
    monkeypatch.setattr(demo, "complete", lambda *_: next(said))
    assert run("demo", "--model", checkpoint, "--output", tmp_path / "demo", *SHORT) == 0
    assert ("completes the sentence with another word" in " ".join(capsys.readouterr().out.split())) is warns


def test_a_demo_says_what_is_kept_of_a_few_items(
    checkpoint: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """Of three items that the dense model knows, the pruned one keeps two; without any, there is nothing to say."""
    shown = {}
    for name, knows in (("some", (True, True, True, False)), ("none", (False,) * 4)):
        items = tuple(Item(kind, "one and", " one") for kind in ("fact", "fact", "code", "code"))
        right = iter([knows, (True, False, True, True)])
        monkeypatch.setattr(demo, "read_items", lambda items=items: items)
        monkeypatch.setattr(demo, "answer_items", lambda *_, right=right, **__: Answers(_[2], next(right)))
        assert run("demo", "--model", checkpoint, "--output", tmp_path / name, *SHORT) == 0
        shown[name] = " ".join(capsys.readouterr().out.split())
    kept = "The pruned model answers 67% ± 33% of the 3 items that the dense model answers right (fact 50%, code 100%)"
    assert kept in shown["some"]
    assert "items that the dense model answers" not in shown["none"]


def test_a_demo_says_how_to_heal_what_it_wrote(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "a demo"
    assert run("demo", "--model", checkpoint, "--output", output, *SHORT) == 0
    said = " ".join(capsys.readouterr().out.split())
    command = said[said.index("llmrank heal") :]
    few = "--tokens", "256", "--sequence-length", "16"
    assert run(*shlex.split(command)[1:], *few) == 0
    assert (tmp_path / "a demo-healed" / "model.safetensors").is_file()
    assert run("demo", "--model", checkpoint, "--output", tmp_path / "healed", *SHORT, "--heal", "64") == 0
    assert "llmrank heal" not in capsys.readouterr().out


def test_a_demo_saves_before_it_prints(checkpoint: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> None:
        assert (tmp_path / "demo" / "report.json").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr("llmrank.pipeline.report.Report.table", refuse)
    assert run("demo", "--model", checkpoint, "--output", tmp_path / "demo", *SHORT) == 130
    assert (tmp_path / "demo" / "model.safetensors").is_file()


def test_brackets_in_paths_are_no_markup(checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "out[bold]"
    assert run("prune", checkpoint, "--output", output, "--calibration", corpus, *SHORT) == 0
    shown = capsys.readouterr().out
    assert f"Wrote {output}: the checkpoint, report.json and masks.safetensors." in shown
    assert f'from_pretrained("{output}")' in shown
    for command in (("inspect", output, "--calibration", corpus), ("evaluate", output, "--text", corpus)):
        assert run(*command, *SHORT) == 0
        assert "out[bold]" in capsys.readouterr().out.replace("\n", "")


def test_demo_without_network_says_what_to_do(monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setenv("LLMRANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    message = refused(capsys, "demo", "--output", tmp_path / "demo")
    assert "for example with `llmrank demo --model PATH`" in message
    assert not (tmp_path / "demo").exists()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "stated"),
    [
        (
            ("--pipeline", "residual:beta=0.25,attention=true"),
            {"pipeline": "residual", "beta": [0.25] * 4, "attention": True},
        ),
        (("--scorer", "fbpr:balance=0.7"), {"scorer": {"name": "ForwardBackwardScorer", "balance": 0.7}}),
        (("--scorer", "wpr:edges=energy,gamma=0.7"), {"scorer": {"edges": "energy", "gamma": 0.7}}),
    ],
)
def test_topologies_and_scorers_take_their_options(
    arguments: tuple[Any, ...], stated: dict[str, Any], checkpoint: Path, corpus: Path, tmp_path: Path
) -> None:
    assert run("prune", checkpoint, "--output", tmp_path / "out", "--calibration", corpus, *SHORT, *arguments) == 0
    method = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["method"]
    for name, value in stated.items():
        if name == "scorer":
            assert value.items() <= method["scorer"].items()
        else:
            assert method[name] == value


@table(
    ("arguments", "message"),
    [
        (("--amount", 40), "min_keep=1"),
        (("--pruner", "local:min_keep=39"), "min_keep=39"),
        (("--amount", 0.9, "--amount-of", "bytes"), "90.0% of the model bytes cannot be removed: at most"),
        (("--pruner", "local:protect=model.layers.2"), "'model.layers.2' selects no prunable layer"),
        (("--pruner", "local:protect=0,protect=1"), "every prunable layer is protected"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused_and_leave_nothing(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any, arguments: tuple[Any, ...], message: str
) -> None:
    output = tmp_path / "out"
    assert message in refused(
        capsys, "prune", checkpoint, "--output", output, "--calibration", corpus, *SHORT, *arguments
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt"]


@table(
    ("arguments", "message"),
    [
        (("--form", "thin"), "unknown form 'thin'; expected one of compact, padded, zero, mask"),
        (("--calibration", "missing.txt"), "no calibration text at missing.txt"),
        (("--calibration", "folder"), "the directory folder has no file that ends with .txt, .md or .jsonl"),
        (("--calibration", "dataset:"), "expected dataset:NAME[,CONFIG[,SPLIT]], got 'dataset:'"),
        (("--calibration", "latin.txt"), "cannot read latin.txt as UTF-8 text"),
        (("--calibration", "empty.txt"), "the calibration text (file empty.txt) is empty"),
        (("--evaluate=missing.txt",), "no evaluation text at missing.txt"),
        (("--evaluate=latin.txt",), "cannot read latin.txt as UTF-8 text"),
        (("--device", "cuda:99"), "device 'cuda:99' cannot be used here"),
        (("--dtype", "int8"), "unknown dtype 'int8'"),
        (("--scorer", "wpr:edges=signed"), 'option edges must be "magnitude" or "energy" or "gate", got \'signed\''),
        (("--pruner", "global:normalize=rank"), 'option normalize must be "auto" or "zscore"'),
        (("--scorer", "wpr:gamma=nan"), "gamma must be a number in [0, 1], got nan"),
        (("--amount", "inf"), "amount must be a share in [0, 1)"),
        (("--amount", -1), "amount must not be negative, got -1"),
        (("--seed", 10**23), "--seed must be at most 9223372036854775807, got 1"),
        (("--seed", -(10**23)), "--seed must be at least 0, got -1"),
        (("--samples", 10**23), "--samples must be at most 2147483647, got 1"),
        (("--sequence-length", 10**23), "--sequence-length must be at most"),
        (("--batch-size", 10**23), "--batch-size must be at most"),
        (("--pruner", "local:multiple_of=0"), 'multiple_of must be an integer >= 1 or "auto", got 0'),
        (("--pruner", "local:min_keep=-1"), "min_keep must be an integer >= 1, got -1"),
        (("--amount", 1.5), "share in [0, 1)"),
        (("--amount", "nan"), "share in [0, 1)"),
        (("--scorer", "pagerank"), "unknown scorer 'pagerank'; expected one of activation"),
        (("--scorer", "mpr:gamma=0.5"), "scorer 'mpr' has no option 'gamma'; its options are zero_lowest (0.0)"),
        (("--scorer", "wpr:gamma=2"), "gamma must be"),
        (("--pruner", "both"), "unknown pruner"),
        (("--pruner", "local:normalize=zscore"), "has no option 'normalize'"),
        (("--pruner", "local:limit=3"), "has no option 'limit'"),
        (("--pruner", "sensitivity:limit=0"), "limit must be a finite number > 0"),
        (("--amount-of", "tokens"), "unknown amount_of 'tokens'; expected one of neurons, ffn-parameters"),
        (("--pruner", "local:amount=0.5"), "amount of pruner 'local:amount=0.5' is set outside of the spec"),
        (("--pruner", "local:min_keep"), "expected NAME:OPTION=VALUE,OPTION=VALUE, got 'min_keep'"),
        (("--pruner", "local:min_keep=few"), "option min_keep must be integer, got 'few'"),
        (("--pruner", "local:min_keep=2,min_keep=3"), "option min_keep was given 2 times"),
        (("--pipeline", "loose"), "unknown pipeline"),
        (("--pipeline", "isolated:beta=0.5"), "pipeline 'isolated' has no option 'beta'; it has no options"),
        (("--pipeline", "residual:beta=7"), "beta must be a number in [0, 1]"),
        (("--pipeline", "residual:beta=much"), "option beta must be number or \"measured\", got 'much'"),
        (("--scorer", "fbpr:balance=2"), "balance must be a number in [0, 1]"),
        (("--repair", "glue"), "unknown repair 'glue'; expected one of bias, lstsq"),
        (("--repair", "bias:damping=0.1"), "repair 'bias' has no option 'damping'; it has no options"),
        (("--repair", "none:damping=0.1"), "repair 'none' has no options"),
        (("--repair", "lstsq:damping=much"), "damping must be 'auto' or a finite number"),
        (("--repair", "lstsq:target=logits"), "unknown target 'logits'; expected one of stream, output"),
        (("--calibration", "corpus"), "no calibration text at corpus"),
        (("--evaluate=corpus",), "no evaluation text at corpus"),
        (("--samples", 0), "--samples must be at least 1, got 0"),
        (("--sequence-length", 1), "--sequence-length must be at least 2, got 1"),
        (("--batch-size", -1), "--batch-size must be at least 1, got -1"),
    ],
)
def test_what_the_options_say_is_refused_before_a_model_is_looked_for(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, arguments: tuple[Any, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes("déjà vu".encode("latin-1"))
    Path("empty.txt").write_bytes(b" ")
    Path("folder").mkdir(exist_ok=True)
    # Last, for an --evaluate takes the word that follows it.
    assert message in refused(capsys, "prune", "--output", "out", *arguments, "./nowhere")
    if arguments[0] in ("--calibration", "--device", "--dtype", "--scorer", "--samples", "--seed"):
        assert message in refused(capsys, "inspect", "./nowhere", *arguments)
        assert message in refused(capsys, "demo", "--model", "./nowhere", *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "folder", "latin.txt"]


def test_a_dataset_without_its_package_is_refused_before_a_model_is_looked_for(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    given = ("prune", "./nowhere", "--output", tmp_path / "out", "--calibration", "dataset:wikitext")
    assert "dataset:wikitext needs the datasets package; pip install" in refused(capsys, *given)


@table(
    ("arguments", "message"),
    [
        (("--output=--",), "argument --output: expected a value, got '--'"),
        (("--seed=--",), "argument --seed: expected a value, got '--'"),
        (("--evaluate=--",), "argument --evaluate: expected a value, got '--'"),
        (("--calibration=",), "argument --calibration: expected a text file or the name of a source, got ''"),
        (("--amount=",), "argument --amount: expected a share such as 0.3 or a number such as 500, got ''"),
        (("--amount", "9" * 5000), "share in [0, 1)"),
        (("--output", "a\udcff"), "argument --output: expected a name in UTF-8"),
    ],
)
def test_arguments_that_make_no_command_are_refused(capsys: Any, arguments: tuple[str, ...], message: str) -> None:
    try:
        status = run("prune", "./nowhere", *(() if "output" in arguments[0] else ("--output", "out")), *arguments)
    except SystemExit as refusal:
        status = int(refusal.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err


@table(("number", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
@table("raised", [OSError(9, "Bad file descriptor"), ValueError("Invalid affine transformation matrix")])
def test_an_error_that_takes_the_place_of_an_interruption_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, number: str, status: int, raised: Exception
) -> None:
    def swallow(*_: Any) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(getattr(signal, number))
        raise raised

    monkeypatch.setattr("llmrank.cli.commands.families.run_families", swallow)
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {
        each: signal.signal(each, handler) for each, handler in usual.items()
    }  # a job of the shell ignores SIGINT
    try:
        assert run("families") == status
        assert "llmrank: interrupted" in capsys.readouterr().err
        assert {each: signal.getsignal(each) for each in usual} == usual
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@table(
    ("raised", "status", "said"),
    [
        (TypeError("no len"), 1, "this is a bug in llmrank, which did not expect TypeError: no len; please report it"),
        (MemoryError(), 2, "error: not enough memory; use shorter sequences (--sequence-length)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "not enough memory ([enf"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "not enough memory (CUDA out of memory); use"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_whatever_goes_wrong_is_said_in_a_sentence_and_traced_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, raised: BaseException, status: int, said: str
) -> None:
    def fail(*_: Any) -> None:
        raise raised

    monkeypatch.setattr("llmrank.cli.commands.families.run_families", fail)
    assert run("families") == status
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert said in told
    for arguments in (("--debug", "families"), ("families", "--debug")):
        assert run(*arguments) == status
        traced = capsys.readouterr().err
        assert "Traceback (most recent call last)" in traced
        assert traced.endswith(told)


def test_memory_is_what_failed_whoever_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fail(*_: Any) -> None:
        try:
            raise MemoryError
        except MemoryError as error:
            raise llmrank.errors.ModelSourceError("transformers cannot load it; check the path") from error

    monkeypatch.setattr("llmrank.cli.commands.families.run_families", fail)
    assert run("families") == 2
    assert "not enough memory (transformers cannot load it" in capsys.readouterr().err


@pytest.mark.parametrize("closed", [("stdout",), ("stdout", "stderr")])
def test_closed_streams_change_nothing(monkeypatch: pytest.MonkeyPatch, closed: tuple[str, ...]) -> None:
    for name in closed:
        monkeypatch.setattr(sys, name, None)
    assert run("families") == 0
    for name in closed:
        assert getattr(sys, name).name == os.devnull
        getattr(sys, name).close()


@pytest.mark.slow
@pytest.mark.parametrize("gone", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_a_reader_that_goes_away_costs_no_checkpoint(
    checkpoint: Path, corpus: Path, tmp_path: Path, gone: tuple[str, ...]
) -> None:
    output = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "llmrank",
        "prune",
        checkpoint,
        "--output",
        output,
        "--calibration",
        corpus,
        *SHORT,
    ]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        streams = {name: writing if name in gone else subprocess.PIPE for name in ("stdout", "stderr")}
        # Python buffers what it writes, as it does by default, and flushes it at its exit.
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(command, check=False, env=buffered, **streams)
    finally:
        os.close(writing)
    assert done.returncode == 0, (done.stderr or b"")[-500:]
    assert b"BrokenPipe" not in (done.stderr or b"")
    assert (output / "model.safetensors").is_file()


def test_letters_that_a_terminal_cannot_show_cost_no_checkpoint(
    checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    output = tmp_path / "déjà"
    assert run("prune", checkpoint, "--output", output, "--calibration", corpus, *SHORT) == 0
    shown.flush()
    assert b"d\\xe9j\\xe0: the checkpoint" in shown.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            (),
            "--amount 0.3: 12 of 40 hidden neurons in each of 2 layers (24 in total, 30.0 %), 1,152 of 7,504 parameters. ",
        ),
        (("--amount", 30), "(60 in total, 75.0 %), 2,880 of 7,504 parameters (for 30 % write --amount 0.30). "),
        (
            ("--amount", 3, "--pruner", "global"),
            "--amount 3: 3 of 80 hidden neurons in 2 layers together (3.8 %), 144 of",
        ),
        (("--amount", 960, "--amount-of", "bytes"), "--amount 960: 1,152 of 30,016 model bytes (3.8 %), with 3 of 40"),
    ],
)
def test_what_an_amount_was_taken_for_is_said_before_the_work(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any, given: tuple[Any, ...], said: str
) -> None:
    common = (checkpoint, "--output", tmp_path / "out", "--calibration", corpus)
    # The text is too short for such a sequence, which is only known once the model is there.
    corpus.write_text("w4 w5", encoding="utf-8")
    assert run("prune", *common, *given) == 2
    captured = capsys.readouterr()
    assert "is too short" in captured.err
    shown = " ".join(captured.out.split()) + " "
    assert shown.startswith("--amount ")
    assert said in shown
    assert ("write --amount" in shown) == (0 < (given or (0, 0))[1] < 100)


def test_a_demo_says_what_its_amount_was_taken_for(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    assert run("demo", "--model", checkpoint, "--output", tmp_path / "demo", *SHORT) == 0
    assert capsys.readouterr().out.startswith("--amount 0.3: 12 of 40 hidden neurons in each of 2 layers")


def test_bad_models_are_refused(tmp_path: Path, capsys: Any, checkpoint: Path) -> None:
    output = tmp_path / "out"
    assert "no model at ./nowhere" in refused(capsys, "prune", "./nowhere", "--output", output)
    assert "no GGUF file" in refused(capsys, "prune", "nowhere.gguf", "--output", output)
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(capsys, "prune", tmp_path / "empty", "--output", output)
    assert "not empty" in refused(capsys, "prune", checkpoint, "--output", checkpoint)
    assert "choose another --output" in refused(capsys, "prune", checkpoint, "--output", "/")
    (tmp_path / "broken.gguf").write_bytes(b"GGUFnot really")
    assert "cannot load" in refused(capsys, "prune", tmp_path / "broken.gguf", "--output", output)


def test_interruption_is_quiet(monkeypatch: Any, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    def interrupt(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llmrank.surgery.checkpoint.load", interrupt)
    assert run("prune", checkpoint, "--output", tmp_path / "out") == 130
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("llmrank: interrupted; a checkpoint directory exists only if")
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_worker_dies_of_the_signal_that_interrupts_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of processes ends each worker by one SIGTERM, and would wait for ever for a worker that ignored it."""

    def forks(*_: Any) -> CommandResult:
        worker = os.fork()
        if not worker:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            os._exit(3)
        ended = os.waitpid(worker, 0)[1]
        assert os.WIFSIGNALED(ended)
        assert os.WTERMSIG(ended) == signal.SIGTERM
        return CommandResult({})

    monkeypatch.setattr("llmrank.cli.commands.families.run_families", forks)
    assert run("families") == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_end_a_command_as_an_interruption_does(
    name: str, monkeypatch: Any, checkpoint: Path, tmp_path: Path, corpus: Path, capsys: Any
) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)

    def terminated(_self: Any, directory: Path, **_: Any) -> None:
        (Path(directory) / "model.safetensors").write_bytes(b"half")
        os.kill(os.getpid(), number)

    # Under nohup SIGHUP is ignored, and stays so.
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)
    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", terminated)
    output = tmp_path / "out"
    assert run("prune", checkpoint, "--output", output, "--calibration", corpus, *SHORT) == 128 + number
    assert "llmrank: interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [corpus]
    monkeypatch.undo()
    assert signal.getsignal(number) is signal.SIG_DFL
    signal.signal(number, before)


def test_a_system_that_refuses_is_no_traceback(monkeypatch: Any, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise PermissionError(13, "Permission denied", "weights")

    monkeypatch.setattr("llmrank.surgery.checkpoint.load", refuse)
    message = refused(capsys, "prune", checkpoint, "--output", tmp_path / "out")
    assert message.endswith("... llmrank: error: [Errno 13] Permission denied: 'weights'")


def test_too_short_a_text_is_refused(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "short.txt"
    path.write_text("w4 w5", encoding="utf-8")
    assert run("prune", checkpoint, "--output", tmp_path / "out", "--calibration", path) == 2
    assert "too short" in capsys.readouterr().err
    assert "too short" in refused(capsys, "evaluate", checkpoint, "--text", path)


def test_evaluate_caps_sequences_at_what_the_model_takes(tmp_path: Path, corpus: Path, capsys: Any) -> None:
    source = llmrank.save(tmp_path / "gpt2", family_model(named_family("GPT-2")), tokenizer())
    assert run("evaluate", source, "--text", corpus, "--samples", 2) == 0
    assert "(2 x 64, file corpus.txt)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stated", "longest"),
    [
        ({"max_position_embeddings": -1}, None),
        ({"max_position_embeddings": 0}, None),
        ({"max_position_embeddings": -1, "n_positions": 8}, 8),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": 8}, 8),
    ],
)
def test_no_limit_has_several_spellings(stated: dict[str, Any], longest: int | None) -> None:
    model = torch.nn.Linear(2, 2)
    model.config = types.SimpleNamespace(**stated)
    assert longest_input(model) == longest


def test_the_look_at_a_pruned_model_never_costs_the_checkpoint(
    checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    asked = []

    def short(_source: Any, _tokenizer: Any, _samples: int, length: int, _role: str) -> None:
        asked.append(length)
        raise llmrank.errors.CalibrationError("the text is too short")

    monkeypatch.setattr("llmrank.cli.commands.prune.tokenise", short)
    monkeypatch.setattr(cli_prune, "CHECK_LENGTH", 20)
    for length in (16, 60):
        output = tmp_path / f"out{length}"
        common = ("prune", checkpoint, "--output", output, "--calibration", corpus, "--samples", 2)
        assert run(*common, "--sequence-length", length) == 0
        report = json.loads((output / "report.json").read_text(encoding="utf-8"))
        assert any("was not checked: the text is too short" in note for note in report["warnings"])
    assert asked == [16, 20]


def test_how_to_load_tells_unequal_widths_from_unsayable_ones(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    bloom = llmrank.save(tmp_path / "bloom", family_model(named_family("BLOOM")), tokenizer())
    common = ("--calibration", corpus, *SHORT, "--amount", 0.5)
    assert run("prune", bloom, "--output", tmp_path / "a", "--pruner", "local", *common) == 0
    shown = capsys.readouterr().out
    assert "all 32 wide, which its configuration cannot say: load it with llmrank.load" in shown
    assert "differ in width" not in shown
    assert (
        run(
            "prune",
            checkpoint,
            "--output",
            tmp_path / "b",
            "--pruner",
            "global:normalize=zscore",
            *common,
            "--scorer",
            "wpr",
        )
        == 0
    )
    assert "differ in width" in capsys.readouterr().out


@pytest.mark.slow
def test_who_names_no_text_gets_the_models_own_where_it_writes(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    encoder = llmrank.save(tmp_path / "encoder", family_model(named_family("BERT")), tokenizer())
    seq2seq = llmrank.save(tmp_path / "seq2seq", tiny_t5(), tokenizer())
    speechless = tiny_llama(bos_token_id=None, eos_token_id=None)
    speechless.generation_config.bos_token_id = speechless.generation_config.eos_token_id = None
    llmrank.save(tmp_path / "speechless", speechless, tokenizer())
    reference, own = "built-in: the Python language reference", "written by the model itself"
    for number, (model, options, source, advice) in enumerate(
        [
            (
                checkpoint,
                (),
                own,
                "calibrated on text that it wrote and the Python language reference. Text of the kind",
            ),
            (encoder, (), reference, "calibrated on the Python language reference. Text"),
            (seq2seq, (), reference, "calibrated on the Python language reference. Text"),
            (tmp_path / "speechless", (), reference, "calibrated on the Python language reference. Text"),
            (checkpoint, ("--calibration", "built-in"), reference, None),
            (checkpoint, ("--calibration", "generated"), own, None),
            (checkpoint, ("--calibration", corpus), "file corpus.txt", None),
        ]
    ):
        output = tmp_path / f"out{number}"
        assert run("prune", model, "--output", output, *options, *SHORT) == 0
        shown = " ".join(capsys.readouterr().out.split())
        report = json.loads((output / "report.json").read_text(encoding="utf-8"))
        assert report["calibration"]["source"].startswith(source)
        assert ("The model first writes the text" in shown) == (not options and source == own)
        assert ("is better: --calibration FILE" in shown) == (advice is not None)
        assert advice is None or advice in shown


@pytest.mark.parametrize("command", ["prune", "rank"])
def test_who_names_no_text_gets_the_built_in_one_with_low_memory(
    command: str, checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    """A model whose weights stay on disk writes text slowly."""
    assert run(command, checkpoint, "--output", tmp_path / "out", "--low-memory", *SHORT) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("It is calibrated on the built-in text") == 1
    assert "The model first writes the text" not in shown
    assert "The model was calibrated on" not in shown
    name = {"prune": "report.json", "rank": "ranking.json"}[command]
    found = json.loads((tmp_path / "out" / name).read_text(encoding="utf-8"))
    assert found["calibration"]["source"].startswith("built-in: the Python language reference")


def test_the_built_in_text_can_be_named(checkpoint: Path, tmp_path: Path) -> None:
    options = ("--calibration", "built-in", "--evaluate=built-in", "--samples", 2, "--sequence-length", 16)
    assert run("prune", checkpoint, "--output", tmp_path / "out", *options) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["calibration"]["source"].endswith("calibration part")
    assert report["evaluation"]["protocol"]["source"].endswith("evaluation part")


@pytest.mark.parametrize("command", ["demo", "inspect"])
def test_what_a_newcomer_tries_first_waits_for_no_writing(command: str) -> None:
    arguments = [command] if command == "demo" else [command, "MODEL", "--output", "out"]
    assert cli.parser().parse_args(arguments).calibration == "built-in"


def test_help_says_what_surprises(capsys: Any) -> None:
    def shown(command: str) -> str:
        with pytest.raises(SystemExit):
            run(command, "--help")
        return " ".join(capsys.readouterr().out.split())

    assert "--evaluate=TEXT" in shown("prune")
    assert "of each layer, or of all together with --pruner global" in shown("prune")
    assert "--form" in shown("prune")
    assert "auto, float32, bfloat16, float16, float64 (auto:" in shown("prune")
    assert "`llmrank components NAME` the options" in shown("prune")
    assert "--form " not in shown("inspect")
    assert "--repair" not in shown("inspect")


def test_a_width_that_no_quantiser_fits_is_said_with_the_option_that_rounds(
    corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    model = llmrank.save(tmp_path / "wide", tiny_llama(intermediate_size=128), tokenizer())
    common = ("prune", model, "--calibration", corpus, *SHORT)
    advice = "does not divide the width"
    for number, (given, said) in enumerate(
        (
            (
                (),
                "32 does not divide the width 90, so its output maps would not be quantised. --pruner local:multiple_of=32 ",
            ),
            (("--pruner", "global:min_keep=2"), "--pruner global:min_keep=2,multiple_of=32 rounds the width."),
            (("--pruner", "local:multiple_of=1"), "--pruner local:multiple_of=32 rounds the width."),
            (("--pruner", "local:multiple_of=32"), None),
            (("--amount", 64), None),
            (("--form", "zero"), None),
        )
    ):
        output = tmp_path / f"{number}"
        assert run(*common, *given, "--output", output) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert (advice in printed) is (said is not None), given
        assert said is None or said in printed


def test_prune_model_has_the_defaults_of_the_command() -> None:
    options = vars(cli.parser().parse_args(["prune", "MODEL", "--output", "out"]))
    defaults = {name: each.default for name, each in inspect.signature(llmrank.prune_model).parameters.items()}
    shared = {
        "amount",
        "batch_size",
        "calibration",
        "device",
        "form",
        "heal",
        "pipeline",
        "pruner",
        "repair",
        "resume",
        "samples",
        "scorer",
        "sequence_length",
        "targets",
    }
    assert defaults.keys() & options.keys() == shared | {"amount_of", "model"}
    assert {name: options[name] for name in shared} == {name: defaults[name] for name in shared}
    assert defaults["repair"] == "lstsq"
    assert (options["amount_of"], defaults["amount_of"]) == (None, "neurons")  # None stands for that default
    # The other commands that prune differ in their text, and in what a ranking has settled.
    for command, settled in (
        (["demo"], {"calibration"}),
        (["apply", "R", "M", "--output", "out"], {"calibration", "pipeline", "scorer"}),
    ):
        others = vars(cli.parser().parse_args(command))
        names = registry.DEFAULTS.keys() - settled
        assert {name: others[name] for name in names} == {name: registry.DEFAULTS[name] for name in names}
