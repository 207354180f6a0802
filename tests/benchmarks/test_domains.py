"""All ways out of domain: a run goes on with its own file, and the second time there is nothing left to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import llmrank
from benchmarks import domains, quality
from tests.llmrank.tiny_models import TALE, spelling_tokenizer, tiny_llama


def test_a_run_resumes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("valid", "test"):
        (tmp_path / f"{name}.txt").write_text(" ".join([f"{TALE.capitalize()}."] * 80), encoding="utf-8")
    llmrank.save(tmp_path / "model", tiny_llama(max_position_embeddings=256), spelling_tokenizer())
    rows = tuple(row for row in domains.ROWS if row[1] in ("activation", "flap"))
    monkeypatch.setattr(domains, "ROWS", rows)
    given = ("--wikitext", tmp_path, "--model", tmp_path / "model", "--output", tmp_path / "d.json", "--amount", 0.25)
    small = ("--samples", 2, "--evaluate", 2, "--sequence-length", 32)
    monkeypatch.setattr(sys, "argv", ["domains", *map(str, (*given, *small)), "--only", "*flap*"])
    domains.main()
    part = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert {row["scorer"] for way in part["ways"].values() for row in way["rows"].values()} == {"flap"}
    monkeypatch.setattr(sys, "argv", ["domains", *map(str, (*given, *small)), "--ways", "WikiText-2"])
    domains.main()
    part = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert [len(way["rows"]) for way in part["ways"].values()] == [3, len(rows), 3]
    monkeypatch.setattr(sys, "argv", ["domains", *map(str, (*given, *small))])
    domains.main()
    first = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert [len(way["rows"]) for way in first["ways"].values()] == [len(rows)] * 3
    assert [list(way["dense"]) for way in first["ways"].values()] == [
        ["WikiText-2"],
        ["built-in"],
        ["WikiText-2", "built-in"],
    ]
    assert first["ways"]["generated"]["calibration"]["tokens"] == 64
    table = (tmp_path / "d.md").read_text(encoding="utf-8")
    assert sum(line.startswith("| ffn |") for line in table.splitlines()) == len(rows)

    monkeypatch.setattr(domains, "generate_text", lambda *_: pytest.fail("the text was written again"))
    monkeypatch.setattr(quality.Study, "row", lambda *_: pytest.fail("a row was measured again"))
    domains.main()
    assert json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))["ways"] == first["ways"]
