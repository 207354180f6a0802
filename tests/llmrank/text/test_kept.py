"""Text that a model wrote is kept in the cache, and read again for the same model and settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import llmrank
from llmrank.text import generated, generation
from llmrank.text.generated import Generated
from llmrank.text.sequences import Request, TokenSequences
from tests.llmrank.commands import SHORT, run
from tests.llmrank.rewriting import rewrite_tensors
from tests.llmrank.tiny_models import spelling_tokenizer, tiny_llama, tokenizer


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(generated, "cache_directory", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "generated"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds with which a model has written text."""
    seeds: list[int] = []
    honest = generation.generate_text

    def watch(*args: Any, **kwargs: Any) -> TokenSequences:
        seeds.append(args[4])
        return honest(*args, **kwargs)

    monkeypatch.setattr(generated, "generate_text", watch)
    return seeds


def request(**others: Any) -> Request:
    return replace(Request(tokenizer(), 3, 16, 1, model=tiny_llama()), **others)


def test_a_text_is_written_once(cache: Path, written: list[int]) -> None:
    said: list[str] = []

    def look(items: Any, description: str) -> Any:
        said.append(description)
        return items

    first = Generated().sequences(request(progress=look))
    again = Generated().sequences(request(progress=look))
    assert written == [0]
    (path,) = cache.iterdir()
    assert said == ["Writing calibration text", f"Reading the text that the model wrote before, {path}"]
    for one, other in zip(first, again, strict=True):
        assert one is not None
        assert other is not None
        assert one.provenance() == other.provenance()
        assert torch.equal(one.ids, other.ids)
    # A report says where the text is kept, without naming folders of this machine.
    assert first[0].provenance()["kept_in"] == f"generated/{path.name}"
    path.unlink()
    Generated().sequences(request())
    assert written == [0, 0]


def test_whatever_decides_the_text_makes_another(cache: Path, written: list[int]) -> None:
    other_model = tiny_llama()
    with torch.no_grad():
        # One value, which a digest of a sample of the values might not see.
        other_model.model.layers[1].mlp.down_proj.weight[3, 7] += 1e-3
    spelled = tokenizer()
    spelled.add_special_tokens({"sep_token": "w9"})
    other_end = tiny_llama()
    other_end.generation_config.eos_token_id = [2, 7]
    changes: list[dict[str, Any]] = [
        {"seed": 1},
        {"length": 12},
        {"samples": 4},
        {"model": other_model},
        {"model": tiny_llama().double()},
        {"tokenizer": spelled},
        {"model": other_end},
    ]
    for change in ({}, *changes):
        Generated().sequences(request(**change))
    assert len(written) == len([*cache.iterdir()]) == 1 + len(changes)


def test_a_damaged_file_is_written_again(cache: Path, written: list[int]) -> None:
    first = Generated().sequences(request())[0]
    (path,) = cache.iterdir()
    content = path.read_bytes()
    for damage in (b"", content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(damage)
        assert Generated().sequences(request())[0].digest == first.digest
        assert Generated().sequences(request())[0].digest == first.digest
    # After each damage it was written once, and then read.
    assert len(written) == 4


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path, cache: Path, written: list[int]) -> None:
    cache.parent.write_text("a file where the directory should be", encoding="utf-8")
    said = [Generated().sequences(request())[0].provenance() for _ in range(2)]
    assert said[0] == said[1]
    assert "kept_in" not in said[0]
    assert written == [0, 0]


def test_a_damaged_file_that_cannot_be_replaced_is_not_said_to_keep_the_text(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Generated().sequences(request())
    (path,) = cache.iterdir()
    path.write_bytes(b"")

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(generated, "write_tensors", full)
    assert "kept_in" not in Generated().sequences(request())[0].provenance()


@pytest.mark.slow
def test_a_command_says_where_the_text_is_kept(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMRANK_CACHE", str(cache.parent))
    monkeypatch.setenv("COLUMNS", "1000")
    llmrank.save(tmp_path / "model", tiny_llama(), spelling_tokenizer())
    for output in ("first", "second"):
        command = ("prune", tmp_path / "model", "--output", tmp_path / output, "--calibration", "generated", *SHORT)
        assert run(*command) == 0
        said = capsys.readouterr()
        (path,) = cache.iterdir()
        assert f"is kept in {path}; delete that file to have it written anew" in said.out
        assert (f"Reading the text that the model wrote before, {path}" in said.err) == (output == "second")


@pytest.mark.parametrize(
    "change",
    [
        lambda meta, _: meta.pop("source"),
        lambda meta, _: meta.update(source=3),
        lambda _, arrays: arrays.pop("ids"),
        lambda _, arrays: arrays.update(ids=arrays["ids"][:-1]),
        lambda _, arrays: arrays.update(ids=arrays["ids"].ravel()),
        lambda _, arrays: arrays.update(ids=arrays["ids"].astype(float)),
        lambda _, arrays: arrays["ids"].fill(64),
        lambda _, arrays: arrays["ids"].fill(-1),
    ],
)
def test_a_file_of_another_content_is_written_again(cache: Path, written: list[int], change: Any) -> None:
    first = Generated().sequences(request())[0]
    (path,) = cache.iterdir()
    rewrite_tensors(path, generated.KIND, change)
    assert Generated().sequences(request())[0].digest == first.digest
    assert written == [0, 0]
