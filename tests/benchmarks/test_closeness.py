"""What --metrics adds to the rows of quality, and that earlier results go on without it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import llmrank
from benchmarks import quality
from benchmarks.closeness import COLUMNS, Closeness, cells, columns
from llmrank.evaluation.last_word import cut_passages
from llmrank.models.loading import LoadedModel
from llmrank.text import tokenise
from tests.llmrank.tiny_models import TALE, disturbed, spelling_tokenizer, tiny_llama


@pytest.fixture
def wikitext(tmp_path: Path) -> Path:
    for name in ("valid", "test"):
        text = " ".join([f"{TALE.capitalize()}."] * 60)
        (tmp_path / f"{name}.txt").write_text("\n\n".join([text] * 2), encoding="utf-8")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, wikitext: Path, *more: Any) -> dict[str, Any]:
    given = ("--wikitext", wikitext, "--model", wikitext / "model", "--repairs", "none", "--amounts", 0.25)
    small = ("--samples", 2, "--evaluate", 2, "--sequence-length", 32, "--passages", 3, "--output", wikitext / "r.json")
    monkeypatch.setattr(sys, "argv", ["quality", *map(str, (*given, *small, *more))])
    quality.main()
    found: dict[str, Any] = json.loads((wikitext / "r.json").read_text(encoding="utf-8"))
    return found


def test_rows_without_are_kept_and_gain_it_when_asked(monkeypatch: pytest.MonkeyPatch, wikitext: Path) -> None:
    llmrank.save(wikitext / "model", tiny_llama(max_position_embeddings=256), spelling_tokenizer())
    one, other = "ffn | activation | isolated | local | 0.25 | none", "ffn | flap | isolated | local | 0.25 | none"
    before = run(monkeypatch, wikitext, "--only", one, "--only", other)
    assert set(before["rows"]) == {one, other}
    assert "metrics" not in before
    assert "±" not in (wikitext / "r.md").read_text(encoding="utf-8")

    after = run(monkeypatch, wikitext, "--only", one, "--metrics")
    assert after["rows"][other] == before["rows"][other]
    row = after["rows"][one]
    assert row["test"] == pytest.approx(before["rows"][one]["test"])
    assert row["kl"]["value"] > 0
    assert row["kl"]["count"] == row["top1"]["count"] == 2 * 31
    assert row["last_word"]["count"] == after["dense_last_word"]["count"] == after["metrics"]["passages"] == 3
    assert row["greedy"]["count"] == 2
    table = (wikitext / "r.md").read_text(encoding="utf-8")
    assert "| KL, nats | same top token | last word | common beginning |" in table
    assert f"| {row['kl']['value']:.3f} ± {row['kl']['error']:.3f} |" in table
    assert table.count("|  |  |  |  |") == 1  # the row that was not measured

    again = run(monkeypatch, wikitext, "--only", one, "--metrics")
    assert again["rows"] == after["rows"]
    # Each row says which of the commands in the file measured it.
    assert (after["rows"][other]["run"], after["rows"][one]["run"]) == (0, 1)
    with pytest.raises(SystemExit):
        run(monkeypatch, wikitext, "--only", one, "--metrics", "--passages", 2)


def test_the_dense_model_is_as_it_was_before_the_cut() -> None:
    model, tokenizer = tiny_llama(max_position_embeddings=256), spelling_tokenizer()
    text = " ".join([f"{TALE.capitalize()}."] * 40)
    data = tokenise(text, tokenizer, 3, 40)
    closeness = Closeness(LoadedModel(model, tokenizer, "tiny"), data, cut_passages(text, 4))
    same = closeness.of(model)
    assert (same["kl"]["value"], same["top1"]["value"], same["greedy"]["value"]) == (0.0, 1.0, 1.0)
    model.load_state_dict(disturbed(model, 0.3).state_dict())
    assert closeness.of(model)["kl"]["value"] > 0.01
    assert closeness.of_dense() == same["last_word"]
    assert set(same) == set(COLUMNS)


def test_cells_are_empty_where_nothing_was_measured() -> None:
    rows = [{"kl": {"value": 0.5, "error": None, "count": 3}}, {}, {"top1": {"value": 0.25, "error": 0.01, "count": 3}}]
    assert columns(rows) == ["kl", "top1"]
    assert columns([{}]) == []
    assert [cells(row, columns(rows)) for row in rows] == [["0.500", ""], ["", ""], ["", "25.0% ± 1.0%"]]
