"""``llmrank evaluate`` beyond perplexity: what it says and writes is what the library gives."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import llmrank
from llmrank.evaluation.fidelity import continuations, fidelity
from llmrank.evaluation.items import Item, answer_items, read_items
from llmrank.evaluation.last_word import cut_passages, last_word
from llmrank.evaluation.perplexity import complete, perplexity
from llmrank.evaluation.token_losses import loss_changes, token_losses
from llmrank.text import tokenise
from tests.llmrank.commands import refused, run
from tests.llmrank.tiny_models import (
    TALE,
    disturbed,
    family_model,
    named_family,
    spelling_tokenizer,
    tiny_llama,
    tiny_t5,
    tokenizer,
)
from tests.tables import table

SHORT = ("--samples", 6, "--sequence-length", 24)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("models")
    dense = tiny_llama(max_position_embeddings=512)
    made = {
        "dense": (dense, spelling_tokenizer(front=True)),
        "pruned": (disturbed(dense), spelling_tokenizer(front=True)),
        "plain": (dense, spelling_tokenizer()),
        "other words": (dense, tokenizer()),
        "no tokenizer": (dense, None),
        "T5": (tiny_t5(), spelling_tokenizer()),
        "BERT": (family_model(named_family("BERT")), spelling_tokenizer()),
    }
    return {name: llmrank.save(directory / name.replace(" ", "-"), *pair) for name, pair in made.items()}


@pytest.fixture
def tale(tmp_path: Path) -> Path:
    words = TALE.split()
    turned = [words[k:] + words[:k] for k in range(len(words))]
    sentences = [f"{' '.join(turn).capitalize()}." for turn in turned]
    path = tmp_path / "tale.txt"
    path.write_text("\n\n".join(" ".join(sentences[k : k + 9]) for k in range(0, 18, 3)), encoding="utf-8")
    return path


def strict(path: Path) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_everything_at_once_is_what_the_library_gives(
    models: dict[str, Path], tale: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "result.json"
    more = ("--prompts", 4, "--prompt-length", 8, "--new-tokens", 5, "--last-word", "--passages", 7)
    given = ("--text", tale, "--against", models["dense"], *more, *SHORT, "--output", result)
    assert run("evaluate", models["pruned"], *given) == 0
    said, found = capsys.readouterr().out, strict(result)

    dense, pruned = (llmrank.load(models[name]) for name in ("dense", "pruned"))
    text = tale.read_text(encoding="utf-8")
    sequences = tokenise(text, pruned.tokenizer, 6, 24)
    compared = fidelity(dense.model, pruned.model, sequences)
    alike = continuations(dense.model, pruned.model, sequences, 4, 8, 5)
    asked = last_word(pruned.model, pruned.tokenizer, cut_passages(text, 7))
    wanted = perplexity(pruned.model, sequences)
    assert found["perplexity"] == pytest.approx(wanted.value)
    assert found["tokens"] == wanted.tokens == 6 * 23
    assert found["against"] == str(models["dense"])
    assert found["divergence"] == pytest.approx(vars(compared.divergence), rel=1e-4)
    assert found["top1"] == pytest.approx(vars(compared.agreement))
    for part in ("common_prefix", "equal_tokens", "equal_texts"):
        assert found["continuations"][part] == pytest.approx(vars(getattr(alike, part)))
    assert (found["continuations"]["prompt_length"], found["continuations"]["new_tokens"]) == (8, 5)
    assert found["last_word"] == {"accuracy": pytest.approx(vars(asked.accuracy)), "skipped": 0}
    assert found["last_word"]["accuracy"]["count"] == 7
    assert found["protocol"]["source"] == "file tale.txt"
    assert f"perplexity {wanted.value:.3f} over 138 tokens" in said
    assert f"{compared.divergence.value:.4f}" in said
    for share in (compared.agreement, alike.common_prefix, asked.accuracy):
        assert f"{share.value:.1%}" in said
        assert f"{share.error:.1%}" in said


@pytest.fixture
def items(models: dict[str, Path], tmp_path: Path) -> Path:
    """Items that the dense model answers right, because they ask for what it writes, and as many that it answers wrong."""
    loaded = llmrank.load(models["dense"])
    prompts = [f"{' '.join(TALE.split()[: n + 1])}" for n in range(16)]
    written = [Item(f"kind {n % 2}", p, complete(loaded.model, loaded.tokenizer, p, 1)) for n, p in enumerate(prompts)]
    right = answer_items(loaded.model, loaded.tokenizer, written).right
    known = [item for item, is_right in zip(written, right, strict=True) if is_right]
    path = tmp_path / "items.jsonl"
    others = [Item(item.kind, item.prompt, " hillside") for item in known]
    path.write_text("\n".join(json.dumps(vars(item)) for item in known + others), encoding="utf-8")
    return path


def test_items_are_what_the_library_gives(
    models: dict[str, Path], items: Path, tale: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "result.json"
    given = ("--text", tale, "--items", items, *SHORT, "--output", result)
    assert run("evaluate", models["dense"], *given) == 0
    assert set(strict(result)["items"]) == {"asked", "accuracy", "skipped"}
    assert "items kept" not in capsys.readouterr().out
    assert run("evaluate", models["pruned"], "--against", models["dense"], "--prompts", 0, *given) == 0
    said, found = capsys.readouterr().out, strict(result)["items"]
    dense, pruned = (
        answer_items(loaded.model, loaded.tokenizer, read_items(items))
        for loaded in (llmrank.load(models[name]) for name in ("dense", "pruned"))
    )
    half = len(dense.items) // 2
    assert half >= 4
    assert dense.right == (True,) * half + (False,) * half
    kept = pruned.kept(dense)
    assert kept is not None
    for name, wanted in (("accuracy", pruned.accuracy), ("dense", dense.accuracy), ("kept", kept)):
        assert found[name]["all"] == pytest.approx(vars(wanted.all))
        assert set(found[name]["kinds"]) == {"kind 0", "kind 1"}
        for kind, share in wanted.kinds.items():
            assert found[name]["kinds"][kind] == pytest.approx(vars(share))
    rows = [[cell.strip() for cell in line.split("\u2502")[1:-1]] for line in said.splitlines()]
    assert ["items right, dense model", "50.0%", f"{dense.accuracy.all.error:.1%}", f"{2 * half}"] in rows
    assert ["items kept", f"{kept.all.value:.1%}", f"{kept.all.error:.1%}", f"{half}"] in rows
    assert sum(row[:1] == ["kind 1"] for row in rows) == 3


def test_the_built_in_items_can_be_asked(models: dict[str, Path], tale: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    assert run("evaluate", models["dense"], "--text", tale, *SHORT, "--output", result, "--items", "built-in") == 0
    found = strict(result)["items"]
    assert found["accuracy"]["all"]["count"] + found["skipped"] == len(read_items())
    assert found["asked"].startswith("440 items, sha256 ")


def test_skipped_items_are_said(
    models: dict[str, Path], items: Path, tale: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, result = tmp_path / "own.jsonl", tmp_path / "result.json"
    too_long = json.dumps(vars(Item("long", "a river of", " light" * 1000)))
    path.write_text(items.read_text(encoding="utf-8") + "\n" + too_long, encoding="utf-8")
    assert run("evaluate", models["dense"], "--text", tale, *SHORT, "--output", result, "--items", path) == 0
    assert strict(result)["items"]["skipped"] == 1
    assert "1 of 29 items are skipped" in capsys.readouterr().out


def test_only_what_is_asked_for(
    models: dict[str, Path], tale: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "result.json"
    always = {"model", "perplexity", "tokens", "parameters", "bytes", "protocol"}
    for given, more in (
        ((), set()),
        (("--last-word",), {"last_word"}),
        (("--against", models["dense"], "--prompts", 0), {"against", "divergence", "top1"}),
    ):
        assert run("evaluate", models["pruned"], "--text", tale, *SHORT, *given, "--output", result) == 0
        assert set(strict(result)) == always | more
        assert ("standard error" in capsys.readouterr().out) == bool(more)


def test_a_model_against_itself(models: dict[str, Path], tale: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    given = ("--text", tale, "--against", models["dense"], *SHORT, "--output", result)
    assert run("evaluate", models["dense"], *given) == 0
    found = strict(result)
    assert found["divergence"]["value"] == 0.0
    assert found["top1"] == {"value": 1.0, "error": 0.0, "count": 138}
    assert found["continuations"]["equal_texts"] == {"value": 1.0, "error": 0.0, "count": 6}
    assert found["continuations"]["prompt_length"] == 24  # no longer than the sequences


def test_prompts_leave_room_to_continue(models: dict[str, Path], tale: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    source = llmrank.save(tmp_path / "gpt2", family_model(named_family("GPT-2")), spelling_tokenizer())
    assert run("evaluate", source, "--text", tale, "--against", source, "--samples", 2, "--output", result) == 0
    assert strict(result)["continuations"]["prompt_length"] == 64 - 32


@pytest.mark.parametrize(
    ("dense", "reason"),
    [
        ("other words", "entries of their vocabularies differ"),
        ("plain", "they cut the text into different tokens"),
        ("no tokenizer", "came without a tokenizer"),
    ],
)
def test_other_tokenizers_are_refused(
    models: dict[str, Path], tale: Path, dense: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "evaluate", models["pruned"], "--text", tale, "--against", models[dense], *SHORT)
    assert "are not the same" in message
    assert reason in message
    assert "that MODEL was pruned from" in message


def test_an_encoder_decoder_is_compared_but_not_asked_for_last_words(
    models: dict[str, Path], tale: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "result.json"
    given = ("evaluate", models["T5"], "--text", tale, *SHORT)
    for option in (("--last-word",), ("--items", "built-in")):
        assert "does not continue the text it reads" in refused(capsys, *given, *option)
    assert run(*given, "--against", models["T5"], "--output", result) == 0
    assert strict(result)["top1"]["value"] == 1.0
    assert strict(result)["divergence"]["count"] == 6 * 12


def test_encoders_are_refused(models: dict[str, Path], tale: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("evaluate", models["BERT"], "--text", tale, *SHORT)
    for given in ((), ("--against", models["BERT"])):
        assert "predicts no next token" in refused(capsys, *command, *given)
    for option in (("--last-word",), ("--items", "built-in")):
        assert "so it finds no last words and answers no items" in refused(capsys, *command, *option)


def test_a_text_without_passages_is_refused_first(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "short.txt"
    path.write_text("\n\n".join([f"{TALE.capitalize()}."] * 9), encoding="utf-8")
    message = refused(capsys, "evaluate", models["pruned"], "--text", path, *SHORT, "--last-word")
    assert "the file short.txt has no passage whose last word could be asked for" in message
    path.write_text("", encoding="utf-8")
    assert "is empty" in refused(capsys, "evaluate", models["pruned"], "--text", path, "--last-word")


def test_numbers_are_refused_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--passages", "--prompt-length", "--new-tokens", "--documents", "--samples", "--batch-size"):
        assert f"{option} must be at least 1" in refused(capsys, "evaluate", "./nowhere", option, 0)
    assert "--sequence-length must be at least 2" in refused(capsys, "evaluate", "./nowhere", "--sequence-length", 0)
    assert "no model at" in refused(capsys, "evaluate", "./nowhere")
    assert "--prompts must be at least 0" in refused(capsys, "evaluate", "./nowhere", "--prompts", -1)


@table(
    ("given", "message"),
    [
        (("--text", "missing.txt"), "no evaluation text at missing.txt"),
        (("--text", "corpus"), "no evaluation text at corpus"),
        (("--text", "folder"), "the directory folder has no file that ends with .txt, .md or .jsonl"),
        (("--text", "latin.txt"), "cannot read latin.txt as UTF-8 text"),
        (("--text", "latin.txt", "--last-word"), "cannot read latin.txt as UTF-8 text"),
        (
            ("--text", "short.txt", "--last-word"),
            "the file short.txt has no passage whose last word could be asked for",
        ),
        (("--device", "cuda:99"), "device 'cuda:99' cannot be used here"),
        (("--dtype", "int8"), "unknown dtype 'int8'"),
        (("--output", "absent/result.json"), "there is no directory absent"),
        (("--output", "."), ". is a directory"),
        (("--output", os.devnull), f"{os.devnull} is a device or a pipe; expected the path of a file"),
        (("--items", "missing.jsonl"), "cannot read items from missing.jsonl"),
        (("--items", " "), "cannot read items from"),
        (("--items", "short.txt"), "line 1 of short.txt: expected a JSON object"),
        (("--passages", 10**23), "--passages must be at most 2147483647"),
        (("--new-tokens", 10**23), "--new-tokens must be at most 2147483647"),
    ],
)
def test_what_the_options_say_is_refused_before_a_model_is_looked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: tuple[Any, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes("déjà vu".encode("latin-1"))
    Path("short.txt").write_text("Nothing to guess.", encoding="utf-8")
    Path("folder").mkdir(exist_ok=True)
    assert message in refused(capsys, "evaluate", "./nowhere", *given)


def test_a_result_that_cannot_be_written_is_refused_before_a_model_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever the tests run as: the superuser may write where permissions forbid it."""

    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    message = refused(capsys, "evaluate", "./nowhere", "--output", tmp_path / "result.json")
    assert f"cannot write {tmp_path / 'result.json'}: Permission denied; choose another place" in message
    assert list(tmp_path.iterdir()) == []


def test_options_of_tasks_need_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (("--documents", 3), ("--task-dir", tmp_path)):
        assert "name some with --tasks" in refused(capsys, "evaluate", "./nowhere", *given)


def test_tasks_without_lm_eval_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    message = refused(capsys, "evaluate", "./nowhere", "--tasks", "llmrank_last_word")
    assert "pip install 'llmrank[eval]'" in message


# --- contexts


def test_contexts_show_what_is_predicted_worse(
    models: dict[str, Path], tale: Path, tmp_path: Path, capsys: Any
) -> None:
    written = tmp_path / "result.json"
    common = ["--text", tale, *SHORT, "--prompts", 0, "--output", written]
    assert run("evaluate", models["pruned"], "--against", models["dense"], "--contexts", *common) == 0
    output = capsys.readouterr().out
    content = json.loads(written.read_text(encoding="utf-8"))["contexts"]
    dense, pruned = llmrank.load(models["dense"]), llmrank.load(models["pruned"])
    texts = tokenise(tale, dense.tokenizer, 6, 24, "evaluation")
    expected = loss_changes(token_losses(dense.model, texts), token_losses(pruned.model, texts), texts, dense.tokenizer)
    assert content["all"]["change"]["value"] == pytest.approx(expected.all.change.value)
    assert math.exp(content["all"]["after"]) == pytest.approx(perplexity(pruned.model, texts).value, rel=1e-4)
    assert [each["position"] for each in content["worst"]] == [each.position for each in expected.worst]
    worst = expected.worst[0]
    assert f"«{worst.context.token.strip()}»" in output
    assert f"dense {worst.before:.2%}" in output
    for kinds in expected.kinds.values():
        for name, kind in kinds.items():
            line = next(line for line in output.splitlines() if line.startswith(name))
            assert f"{kind.change.value:+.3f}" in line


def test_contexts_need_two_models(models: dict[str, Path], capsys: Any) -> None:
    assert "--contexts compares two models" in refused(capsys, "evaluate", models["dense"], "--contexts")
