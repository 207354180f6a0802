"""What a run takes: work counted by hand, and a run that goes on with its own file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import llmrank
from benchmarks import footprint
from tests.llmrank.models import TALE, spelling_tokenizer, tiny_llama


def test_work_is_counted_in_multiply_adds_of_linear_maps() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    with footprint.counting(model) as work:
        model(torch.ones(4, 7, 3))
    assert work == [4 * 7 * 15, 4 * 7 * 10]
    model(torch.ones(4, 7, 3))
    assert len(work) == 2


def test_a_run_is_measured_in_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("valid", "test"):
        (tmp_path / f"{name}.txt").write_text(" ".join([f"{TALE.capitalize()}."] * 80), encoding="utf-8")
    model = tiny_llama(max_position_embeddings=256)
    llmrank.save(tmp_path / "model", model, spelling_tokenizer())
    given = ("--wikitext", tmp_path, "--model", tmp_path / "model", "--output", tmp_path / "f.json", "--samples", "8,4")
    small = ("--evaluate", 2, "--sequence-length", 32)
    monkeypatch.setattr(sys, "argv", ["footprint", *map(str, (*given, *small))])
    footprint.main()
    results = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert list(results["rows"]) == ["8", "4"]
    for samples, row in results["rows"].items():
        parts = row["parts"]
        # To rank by, to look at the whole model and at the cut one, and past its FFNs; a block's trial and the check on top.
        assert 3.0 < parts["prune"]["passes"] / int(samples) < 4.5
        assert parts["evaluate before"]["passes"] == pytest.approx(2.0)
        assert parts["evaluate after"]["passes"] < 2.0
        assert row["work"] == pytest.approx(sum(part["passes"] for part in parts.values()) / (int(samples) + 4))
        assert row["hidden_states"] == int(samples) * 32 * 16 * 4
        assert row["second_moments"] == 40 * 40 * 8
    table = (tmp_path / "f.md").read_text(encoding="utf-8")
    assert sum(line.startswith(("| 8, 2 |", "| 4, 2 |")) for line in table.splitlines()) == 2

    monkeypatch.setattr(footprint, "measure", lambda *_: pytest.fail("a row was measured again"))
    footprint.main()
