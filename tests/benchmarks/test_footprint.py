"""What a run takes: work counted by hand, and a run that goes on with its own file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import llmrank
from benchmarks import footprint
from llmrank.execution.block_stream import BlockStream
from llmrank.text import generation, tokenise
from tests.llmrank.tiny_models import TALE, spelling_tokenizer, tiny_llama, token_ids


def test_work_is_counted_in_multiply_adds_of_linear_maps() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    with footprint.counting() as work:
        model(torch.ones(4, 7, 3))
    assert work == [4 * 7 * 15, 4 * 7 * 10]
    model(torch.ones(4, 7, 3))
    assert len(work) == 2


@pytest.mark.slow
def test_a_run_is_measured_in_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("valid", "test"):
        (tmp_path / f"{name}.txt").write_text(" ".join([f"{TALE.capitalize()}."] * 80), encoding="utf-8")
    model = tiny_llama(max_position_embeddings=256)
    llmrank.save(tmp_path / "model", model, spelling_tokenizer())
    given = ("--wikitext", tmp_path, "--model", tmp_path / "model", "--output", tmp_path / "f.json")
    small = ("--evaluate", 2, "--sequence-length", 32)
    monkeypatch.setattr(generation, "LONGEST_TEXT", 16)
    for samples in (8, 4):
        monkeypatch.setattr(sys, "argv", ["footprint", *map(str, (*given, *small, "--samples", samples))])
        footprint.main()
    results = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert list(results["rows"]) == ["8", "4"]
    head = 16 * 64 / (16 * 64 + 2 * (16 * 16 * 2 + 16 * 8 * 2 + 16 * 40 * 3))
    for samples, row in results["rows"].items():
        parts = row["parts"]
        # Two sequences of 32, of which the last place needs no head, and four places twice as a trial.
        assert parts["evaluate before"]["passes"] == pytest.approx(2 + (8 - 2) / 32 * head)
        # Two texts of 16 tokens a sequence, the first token of each given; the head included.
        assert parts["write"]["passes"] == pytest.approx(int(samples) * 30 / 32)
        assert parts["evaluate after"]["passes"] < parts["evaluate before"]["passes"]
        assert row["work"] == pytest.approx(sum(part["passes"] for part in parts.values()) / (int(samples) + 4))
        assert row["hidden_states"] == int(samples) * 32 * 16 * 4
        assert row["second_moments"] == 28 * 28 * 8  # of 40 neurons 28 are kept
    table = (tmp_path / "f.md").read_text(encoding="utf-8")
    assert sum(line.startswith(("| 8, 2 |", "| 4, 2 |")) for line in table.splitlines()) == 2

    monkeypatch.setattr(footprint, "measure", lambda *_: pytest.fail("a row was measured again"))
    footprint.main()


@pytest.mark.slow
def test_going_past_a_block_by_its_last_map_alone_is_seen_in_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = tokenise(token_ids(8, 24), None, 8, 24)

    def passes() -> float:
        row = footprint.measure(tiny_llama(), None, lambda: sequences, sequences, 0.25)
        found: float = row["parts"]["prune"]["passes"]
        return found

    alone = passes()
    monkeypatch.setattr(BlockStream, "_can_keep", lambda *_: False)
    model = tiny_llama()
    layer, last_map, head = model.model.layers[0], model.model.layers[0].mlp.down_proj.weight, model.lm_head.weight
    block = sum(module.weight.numel() for module in layer.modules() if isinstance(module, torch.nn.Linear))
    # The first of two blocks is gone past with eight sequences, the second with the one that is held out. A trial of each with
    # the first sequence has shown that this is possible.
    work = 9 * (block - last_map.numel()) - 2 * block
    assert passes() - alone == pytest.approx(work / (2 * block + head.numel()))
