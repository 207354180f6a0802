"""The same seed gives the same tokens, whatever the source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmrank.pipeline import CalibrationText
from tests.llmrank.tiny_models import text, tiny_llama, tokenizer


def source(name: str, folder: Path) -> Any:
    """Make the files of a source, and return what names it."""
    rows = [{"text": text(30, seed)} for seed in range(40)]
    for k in range(2):
        (folder / f"{k}.jsonl").write_text("\n".join(map(json.dumps, rows[k::2])), encoding="utf-8")
    (folder / "words.txt").write_text(text(900), encoding="utf-8")
    return {
        "text file": folder / "words.txt",
        "JSON lines": folder / "0.jsonl",
        "directory": folder,
        "list": [text(20, 1), text(20, 2)],
        "built-in": "built-in",
        "generated": "generated",
        "dataset": f"dataset:{folder}",
        "mixture": f"{folder / 'words.txt'}:0.5,dataset:{folder}:0.25,generated:0.25",
    }[name]


@pytest.mark.parametrize("name", ["text file", "JSON lines", "directory", "list", "built-in"])
def test_some_sources_do_not_depend_on_the_seed(tmp_path: Path, name: str) -> None:
    assert len({digest(name, tmp_path, seed) for seed in (0, 0, 1)}) == 1


@pytest.mark.parametrize("name", ["generated", "dataset", "mixture"])
def test_others_depend_on_nothing_else(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name != "generated":
        pytest.importorskip("datasets")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    first, again, other = (digest(name, tmp_path, seed) for seed in (0, 0, 1))
    assert first == again != other


def digest(name: str, folder: Path, seed: int) -> tuple[str, str]:
    settings = CalibrationText(source(name, folder), samples=8, sequence_length=16, seed=seed)
    fitted, held_out, _ = settings.sequences(tiny_llama(), tokenizer(), hold_out=True)
    return fitted.digest, "" if held_out is None else held_out.digest
