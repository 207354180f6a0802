"""The text that a model is healed on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import llmrank
from llmrank.errors import CalibrationError, OptionError
from llmrank.healing import Distillation
from llmrank.pipeline.heal import healing_tokens
from llmrank.pipeline.texts import CalibrationText
from llmrank.text import shared_passages
from tests.llmrank.tiny_models import text, tiny_llama, tokenizer

LENGTH = 16


@pytest.fixture
def varied(tmp_path: Path) -> Path:
    path = tmp_path / "varied.txt"
    path.write_text(text(3000), encoding="utf-8")
    return path


def test_what_the_repair_has_seen_is_left_out(varied: Path) -> None:
    source = CalibrationText(varied, 8, LENGTH)
    used = source.sequences(tiny_llama(), tokenizer(), hold_out=True)
    found, notes = healing_tokens(source, 30 * LENGTH, tiny_llama(), tokenizer(), used.known)
    assert not notes
    assert found.held_out is not None
    assert found.other is not None
    own, _ = healing_tokens(
        CalibrationText({varied: 1.0}, 8, LENGTH), 30 * LENGTH, tiny_llama(), tokenizer(), used.known
    )
    assert own.held_out is not None
    assert shared_passages(used.known, own.sequences.joined(own.held_out)) == 0.0
    assert shared_passages(used.known, found.held_out) == 0.0
    assert shared_passages(own.sequences, own.held_out) == 0.0
    # To this tokenizer, all of the built-in text is one unknown word, of which the repair has seen sequences.
    assert len(found.sequences) == 25
    assert len(found.held_out) == len(found.other) == 8


def test_a_text_of_which_little_is_new_is_read_whole() -> None:
    rows = torch.arange(3, 63)[:, None].repeat(1, LENGTH)
    source = CalibrationText(rows, 8, LENGTH)
    for known, first in ((20, 23), (45, 3)):
        used = source.sequences(tiny_llama(), None, hold_out=False).sequences.ordered(range(known))
        found, notes = healing_tokens(source, 32 * LENGTH, tiny_llama(), None, used)
        assert found.sequences.ids[0, 0] == first
        assert any("the repair has seen most of the text" in note for note in notes) == (first == 3)


@pytest.mark.parametrize(
    ("healing", "length", "samples"),
    [(None, 1024, 16), (256, 1024, 16), (2048, 1024, 32), (65_536, 1024, 1024), (2050, 32, 65), (10**9, 1024, 2048)],
)
def test_a_repair_before_healing_takes_as_many_tokens(healing: int | None, length: int, samples: int) -> None:
    """The model takes 64 tokens at most."""
    model = tiny_llama(max_position_embeddings=64)
    text = CalibrationText("built-in", sequence_length=length)
    assert text.for_model(model, Distillation.of(healing)).n_sequences == samples
    assert CalibrationText("built-in", 3).for_model(model, Distillation.of(healing)).n_sequences == 3


def test_prune_model_takes_that_many(varied: Path) -> None:
    options: dict[str, Any] = {
        "calibration": {varied: 1.0},
        "sequence_length": LENGTH,
        "scorer": "random",
        "repair": "none",
    }
    healed = llmrank.prune_model(tiny_llama(), tokenizer(), 0.5, heal=20 * LENGTH, **options)
    assert healed.report.calibration["sequences"] == 20


def test_what_is_held_out_is_from_all_over_the_text_behind() -> None:
    rows = torch.arange(3, 63)[:, None].repeat(1, LENGTH)  # each of 60 sequences repeats one token
    found, _ = healing_tokens(CalibrationText(rows, 8, LENGTH), 4 * LENGTH, tiny_llama(), None)
    assert found.held_out is not None
    assert found.sequences.ids[:, 0].tolist() == [3, 4, 5, 6]
    assert found.held_out.ids[:, 0].tolist() == [10, 17, 24, 31, 38, 45, 52, 59]
    short, notes = healing_tokens(CalibrationText(rows[:6], 8, LENGTH), 3 * LENGTH, tiny_llama(), None)
    assert short.held_out is not None
    assert (len(short.sequences), len(short.held_out), notes) == (3, 3, [])


def test_a_short_text_is_read_again_and_that_is_said(varied: Path) -> None:
    few = varied.read_text(encoding="utf-8")[:600]
    source = CalibrationText({varied.with_name("few.txt"): 1.0}, 8, LENGTH)
    varied.with_name("few.txt").write_text(few, encoding="utf-8")
    found, notes = healing_tokens(source, 1000 * LENGTH, tiny_llama(), tokenizer())
    assert "read about" in notes[0]
    used = found.sequences.joined(found.held_out)
    _, notes = healing_tokens(source, 1000 * LENGTH, tiny_llama(), tokenizer(), used)
    assert "the repair has seen most of the text" in notes[0]
    with pytest.raises(CalibrationError, match="one sequence"):
        healing_tokens(CalibrationText([text(3), " "], 8, LENGTH), LENGTH, tiny_llama(), tokenizer())


def test_short_documents_are_left_out_too_and_tensors_are_used_whole() -> None:
    documents = [text(12, seed) for seed in range(40)]
    source = CalibrationText(documents, 8, 64)
    used = source.sequences(tiny_llama(), tokenizer(), hold_out=False).sequences.ordered(range(20))
    found, _ = healing_tokens(source, 4 * 64, tiny_llama(), tokenizer(), used)
    assert found.sequences.apart_from(used) is not None
    assert len(found.sequences.apart_from(used) or ()) == len(found.sequences)
    ids = torch.randint(3, 60, (200, LENGTH), generator=torch.Generator().manual_seed(0))
    found, notes = healing_tokens(CalibrationText(ids, 1, 1024), 100 * LENGTH, tiny_llama(), None)
    assert (len(found.sequences), notes) == (100, [])


def test_heal_takes_a_model_or_a_file_of_its_predictions(varied: Path, tmp_path: Path) -> None:
    dense = tiny_llama().eval()
    model = copy.deepcopy(dense)
    options = {"calibration": varied, "sequence_length": LENGTH, "samples": 8, "repair": "none", "scorer": "random"}
    llmrank.prune_model(model, tokenizer(), 0.5, **options)
    again = copy.deepcopy(model)
    settings = Distillation(32 * LENGTH, learning_rate=1e-3)
    direct = llmrank.heal(model, dense, tokenizer(), varied, settings, sequence_length=LENGTH)
    assert direct.best.divergence < direct.start.divergence
    assert direct.text["source"].startswith("file varied.txt")
    path = tmp_path / "predictions.safetensors"
    llmrank.predict(dense, tokenizer(), path, varied, 32 * LENGTH, sequence_length=LENGTH)
    cached = llmrank.heal(again, path, settings=settings)
    assert cached.best.divergence < cached.start.divergence
    with pytest.raises(OptionError, match="dense must be a model"):
        llmrank.heal(model, 3, tokenizer())  # type: ignore[arg-type]
