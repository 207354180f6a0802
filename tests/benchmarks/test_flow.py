"""The flow benchmark on a tiny model with made-up activations, and its tables."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import across, flow
from llmrank.text import TokenSequences
from tests.llmrank.tiny_models import tiny_llama, token_ids


def test_a_study_measures_every_layer_and_every_score(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = token_ids(4)
    text = TokenSequences.of(ids, torch.ones_like(ids, dtype=torch.bool), "random tokens")
    monkeypatch.setattr(flow.checkpoint, "load", lambda *_, **__: SimpleNamespace(model=tiny_llama(), tokenizer=None))
    monkeypatch.setattr(flow, "read", lambda *_: text)
    monkeypatch.setattr(flow, "python_sources", lambda *_: text)
    options = argparse.Namespace(wikitext=Path(), samples=4, evaluate=4, sequence_length=8, dtype="float32")
    found = flow.study("tiny", options)
    assert {name: len(values) for name, values in found["correlations"].items()} == dict.fromkeys(
        (*flow.MEASURES, "down"), 2
    )
    assert all(-1.0 <= value <= 1.0 for values in found["correlations"].values() for value in values)
    # No choice loses less of the text that it is made on than the activations themselves.
    least = found["lost"]["activation"]["Python sources"]
    assert 0.0 < least < flow.AMOUNT
    assert all(shares["Python sources"] >= least for shares in found["lost"].values())
    lines = flow.table({"models": {"tiny": found}}).splitlines()
    assert f"| activation | {least:.1%} |" in lines


def test_across_keeps_both_kinds_of_text_apart() -> None:
    def row(scorer: str, *losses: float) -> dict[str, Any]:
        about = {"scorer": scorer, "budget": "local", "text": across.TEXTS[0], "amount": 0.3, "repair": "none"}
        prose, other = ({"losses": [loss, 2 * loss], "counts": [1, 2]} for loss in losses)
        return {**about, **prose, "other": other}

    models = {"tiny": {"dense": row("", 1.0, 2.0), "rows": [row(across.DEFAULT[0], 1.5, 3.0), row("flap", 1.6, 2.9)]}}
    models["tiny"]["rows"][0]["choice"] = {"chosen": "norm"}
    lines = across.table({"models": models}).splitlines()
    prose, other = (
        lines.index("## tiny on WikiText-2: dense 2.72"),
        lines.index("## tiny on Python sources: dense 7.39"),
    )
    assert "| flap, local | 4.95 (+0.100 ± 0.000) |" in lines[prose:other]
    assert "| flap, local | 18.17 (-0.100 ± 0.000) |" in lines[other:]
    assert lines[prose:].count("| auto chose | norm |") == 2
    # FLAP loses more on prose, and less on Python.
    assert "| with other text | with other text | WikiText-2 | 1 | 1 | 0 |" in lines
    assert "| with other text | with other text | Python sources | 1 | 0 | 1 |" in lines


ROW = {"budget": "local", "text": across.TEXTS[0], "amount": 0.3, "repair": "none", "losses": [1.0], "counts": [1]}


def test_across_shows_what_is_kept_of_the_items_where_that_was_measured() -> None:
    rows = [{**ROW, "scorer": "flap", "items": "10-110"}, {**ROW, "scorer": "wanda-sp"}]
    models = {"tiny": {"dense": {**ROW, "items": "11-101"}, "rows": rows}, "old": {"dense": ROW, "rows": rows[1:]}}
    table = across.table({"models": models})
    assert "## tiny on items: dense 80.0% ± 20.0% right" in table
    shown = table.split("## tiny on items")[1].split("##")[0]
    # Of the four that the dense model knows, two.
    assert "| flap, local | 50.0% ± 28.9% |" in shown
    assert "wanda-sp" not in shown
    assert "old on items" not in table


def test_across_marks_rows_whose_repair_was_dropped() -> None:
    about = {**ROW, "repair": "lstsq"}
    validation = {"measure": "divergence", "count": 1, "cut": 0.5, "error": None}
    rows = [
        {**about, "scorer": "flap", "validation": {**validation, "repaired": 0.6}},
        {**about, "scorer": "wanda-sp", "validation": {**validation, "repaired": 0.4}},
    ]
    table = across.table({"models": {"tiny": {"dense": about, "rows": rows}}})
    assert "| flap, local | 2.72 † |" in table
    assert "| wanda-sp, local | 2.72 |" in table
    assert "dropped it" in table.splitlines()[0]
    assert "†" not in across.table({"models": {"tiny": {"dense": about, "rows": rows[1:]}}})
