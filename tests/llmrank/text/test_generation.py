"""Calibration text that a model writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AddedToken
from transformers.cache_utils import DynamicLayer

import llmrank
from llmrank.errors import CalibrationError, LLMRankError, UnsupportedModelError
from llmrank.pipeline import CalibrationText
from llmrank.text import generation
from llmrank.text.generation import can_write_text, draw_tokens, generate_text, generation_settings
from tests.llmrank.commands import SHORT, run
from tests.llmrank.plain_pipelines import IsolatedFFNPipeline
from tests.llmrank.tiny_models import (
    VOCABULARY,
    Snapshot,
    family_model,
    mlp,
    named_family,
    spelling_tokenizer,
    tiny_llama,
    tiny_t5,
    tokenizer,
)


@pytest.mark.parametrize("name", ["Llama, SmolLM2", "GPT-2", "OPT", "BLOOM", "Falcon"])
def test_sequences_have_the_first_token_and_the_requested_length(name: str) -> None:
    model = family_model(named_family(name))
    found = generate_text(model, tokenizer(), 3, 12, batch_size=2)
    assert found.ids.shape == (3, 12)
    assert found.ids.dtype == torch.int64
    assert bool(found.mask.all())
    assert found.ids[:, 0].tolist() == [1] * 3
    assert not set(found.ids[:, 1:].flatten().tolist()) & set(tokenizer().all_special_ids)
    assert found.source == "written by the model itself, seed 0"


@pytest.mark.parametrize("spelled", [tokenizer(), None])
@pytest.mark.parametrize(("length", "texts", "piece"), [(16, 1, 16), (17, 2, 9), (48, 3, 16), (50, 4, 13)])
def test_long_sequences_hold_several_texts(monkeypatch: Any, length: int, texts: int, piece: int, spelled: Any) -> None:
    monkeypatch.setattr(generation, "LONGEST_TEXT", 16)
    model = tiny_llama()
    found = generate_text(model, spelled, 3, length, batch_size=100)
    assert found.ids.shape == found.mask.shape == (3, length)
    begins = [place for place in range(length) if place % piece == 0]
    assert len(begins) == texts
    assert bool((found.ids[:, begins] == 1).all())
    inside = [place for place in range(length) if place not in begins]
    assert not bool((found.ids[:, inside] == 1).any())
    assert ("texts of" in found.source) == (texts > 1)
    # The texts are the same, one after the other.
    alone = generate_text(model, spelled, 3 * texts, piece, batch_size=100).ids
    assert torch.equal(found.ids, alone.reshape(3, -1)[:, :length])


def test_tokens_added_as_special_are_not_written() -> None:
    spelled = tokenizer()
    spelled.add_tokens([AddedToken("w9", special=True)])
    assert 9 not in spelled.all_special_ids
    model = tiny_llama()
    assert 9 in generate_text(model, tokenizer(), 20, 40).ids
    assert 9 not in generate_text(model, spelled, 20, 40).ids


def test_the_seed_decides_the_text_and_nothing_is_changed() -> None:
    model = tiny_llama(attention_dropout=0.5)
    model.train()
    snapshot, settings = Snapshot(model), model.generation_config
    torch.manual_seed(5)
    before = torch.get_rng_state()
    texts = [generate_text(model, tokenizer(), 4, 16, seed).ids for seed in (0, 0, 1)]
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])
    assert torch.equal(torch.get_rng_state(), before)
    assert model.generation_config is settings
    assert model.training
    snapshot.assert_restored()


def test_tokens_are_sampled_with_the_models_probabilities() -> None:
    """The model ignores its input, so frequencies must equal its distribution, without temperature or truncation."""
    model = tiny_llama(tie_word_embeddings=False)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.ones(64, 16))
        model.lm_head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
        shares = model(input_ids=torch.tensor([[1]])).logits[0, 0].double()
    shares[1:3] = -math.inf  # the tokens that begin and end a text
    model.generation_config.top_k = 3
    model.generation_config.temperature = 0.1
    ids = generate_text(model, None, 200, 41, batch_size=200).ids[:, 1:]
    counts = torch.bincount(ids.flatten(), minlength=64).double()
    expected = shares.softmax(0) * ids.numel()
    rare = expected < 5
    chance = ((counts - expected).square() / expected)[~rare].sum()
    assert counts[1:3].sum() == 0
    assert int((~rare).sum()) > 20
    # The bound is the mean of chi-squared with this many degrees of freedom, plus six deviations.
    places = int((~rare).sum())
    assert float(chance) < places + 6 * math.sqrt(2 * places)


def test_an_end_token_can_begin_a_text() -> None:
    model = tiny_llama(bos_token_id=None, eos_token_id=[2, 3])
    model.generation_config.bos_token_id = None
    ids = generate_text(model, None, 2, 200).ids
    assert ids.shape == (2, 64)  # no more than the model takes
    assert ids[:, 0].tolist() == [2, 2]
    assert not set(ids[:, 1:].flatten().tolist()) & {2, 3}
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    with pytest.raises(UnsupportedModelError, match="has no token in its vocabulary to begin a text with"):
        generate_text(model, None, 2, 8)
    assert not can_write_text(model)


def test_a_token_outside_the_vocabulary_does_not_begin_a_text() -> None:
    """A GPT-2 with a small vocabulary has the default of its class, 50256, unless the configuration says otherwise."""
    model = family_model(named_family("GPT-2"))
    for source in (model.config, model.generation_config):
        source.bos_token_id, source.eos_token_id = 50256, [50256, 3]
    assert can_write_text(model)
    assert generate_text(model, None, 2, 8).ids[:, 0].tolist() == [3, 3]
    for source in (model.config, model.generation_config):
        source.eos_token_id = 50256
    assert not can_write_text(model)
    with pytest.raises(UnsupportedModelError, match="has no token in its vocabulary"):
        generate_text(model, None, 2, 8)


def test_the_error_of_a_model_that_fails_to_write_says_what_to_do(monkeypatch: Any) -> None:
    model = tiny_llama()

    def fail(**_given: Any) -> None:
        raise RuntimeError("no cache of this kind")

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(UnsupportedModelError, match=r"RuntimeError: no cache of this kind\); calibrate on a text file"):
        generate_text(model, None, 2, 8)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_out_of_memory_is_not_reported_as_an_unsupported_model(monkeypatch: Any, error: Exception) -> None:
    model = tiny_llama()

    def fail(**_given: Any) -> None:
        raise error

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(type(error)):
        generate_text(model, None, 2, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: family_model(named_family("BERT")), "cannot write text without a prompt; calibrate on a text file"),
        (lambda: mlp(4, 6, 2), "cannot write text without a prompt; calibrate on a text file"),
        (tiny_t5, "cannot write text without a prompt"),
    ],
)
def test_models_that_cannot_write_raise(make: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        generate_text(make(), None, 2, 8)


@pytest.mark.parametrize(("samples", "length", "batch_size"), [(0, 8, 1), (2, 1, 1), (2, 8, 0)])
def test_numbers_out_of_range_raise(samples: int, length: int, batch_size: int) -> None:
    with pytest.raises(CalibrationError, match=f"got {samples}, {length} and {batch_size}"):
        generate_text(tiny_llama(), None, samples, length, batch_size=batch_size)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_predictions_that_are_not_finite_raise(value: float) -> None:
    model = tiny_llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[5:] = value
    settings = model.generation_config
    with pytest.raises(CalibrationError, match="predictions are not finite"):
        generate_text(model, None, 2, 8)
    assert model.generation_config is settings


def test_settings_are_restored_after_an_error() -> None:
    model = tiny_llama()
    own = model.generation_config

    def interrupted() -> None:
        with generation_settings(model, do_sample=True):
            assert model.generation_config.do_sample
            assert model.generation_config.bos_token_id == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert model.generation_config is own


def test_a_pipeline_calibrates_on_generated_text_and_reports_it() -> None:
    seen: list[str] = []

    def look(items: Any, description: str) -> Any:
        seen.append(description)
        return items

    pipeline = IsolatedFFNPipeline(
        tiny_llama(), tokenizer(), calibration=CalibrationText("generated", 3, 16), progress=look
    )
    pipeline.run()
    assert pipeline.report is not None
    source = "written by the model itself, seed 0, and 1 sequence of the built-in text"
    assert pipeline.report.calibration["source"] == source
    assert pipeline.report.calibration["sequences"] == 3 + 1
    assert seen[:2] == ["Finding FFNs", "Writing calibration text"]


def test_a_pipeline_of_an_encoder_raises_before_anything_is_changed() -> None:
    model = family_model(named_family("BERT"))
    snapshot = Snapshot(model)
    with pytest.raises(LLMRankError, match="cannot write text without a prompt; calibrate on a text file"):
        IsolatedFFNPipeline(model, tokenizer(), calibration="generated").run()
    snapshot.assert_restored()


def test_generated_text_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llmrank.save(tmp_path / "model", tiny_llama(), spelling_tokenizer())
    options = ("--calibration", "generated", "--evaluate=generated", *SHORT)
    assert run("prune", tmp_path / "model", "--output", tmp_path / "pruned", *options) == 2
    assert "--evaluate: 'generated' is no evaluation text; expected a text file, built-in or" in capsys.readouterr().err
    assert run("prune", tmp_path / "model", "--output", tmp_path / "pruned", "--calibration", "generated", *SHORT) == 0
    report = json.loads((tmp_path / "pruned" / "report.json").read_text(encoding="utf-8"))
    assert report["calibration"]["source"] == "written by the model itself, seed 0"


@pytest.mark.parametrize("name", ["Llama, SmolLM2", "GPT-2", "OPT", "BLOOM", "Falcon"])
def test_keys_and_values_in_place_give_the_same_tokens_as_without_any(name: str) -> None:
    """The textbook: run the whole text again for each token, and take the one where the probabilities pass the random number."""
    model = family_model(named_family(name))
    found = generate_text(model, tokenizer(), 3, 12, seed=4).ids
    draws = torch.rand(3, 11, generator=torch.Generator().manual_seed(4))
    model.eval()
    ids = torch.ones(3, 1, dtype=torch.int64)
    for k in range(11):
        with torch.no_grad():
            scores = model(input_ids=ids, use_cache=False).logits[:, -1].double()
        scores[:, :4] = -math.inf
        passed = scores.softmax(1).cumsum(1) > draws[:, k : k + 1]
        ids = torch.cat([ids, passed.int().argmax(1, keepdim=True)], dim=1)
    assert torch.equal(found, ids)


def test_texts_do_not_depend_on_how_many_are_written_at_once(monkeypatch: Any) -> None:
    model = tiny_llama()
    whole = generate_text(model, tokenizer(), 7, 20).ids
    assert torch.equal(generate_text(model, tokenizer(), 7, 20, batch_size=2).ids, whole)
    honest, sizes = model.generate, []

    def limited(**given: Any) -> Any:
        if "custom_generate" in given:  # the call from outside
            sizes.append(len(given["input_ids"]))
            if sizes[-1] > 2:
                raise MemoryError
        return honest(**given)

    # Where the memory does not suffice, they are halved until it does.
    monkeypatch.setattr(model, "generate", limited)
    assert torch.equal(generate_text(model, tokenizer(), 7, 20).ids, whole)
    assert sizes == [7, 4, 2, 2, 3, 2, 1]


@pytest.mark.parametrize("size", [3, 64, 50_000])
def test_a_token_without_probability_is_never_drawn(size: int) -> None:
    scores = torch.zeros(2, size)
    scores[:, [0, -1]] = -math.inf
    largest = 1.0 - 2.0**-24  # of torch.rand
    drawn = draw_tokens(scores.clone(), torch.tensor([0.0, largest]))
    assert drawn.flatten().tolist() == [1, size - 2]
    with pytest.raises(CalibrationError, match="not finite"):
        draw_tokens(torch.full((1, size), -math.inf), torch.zeros(1))


def test_a_stock_layer_gives_the_same_keys_and_values() -> None:
    generator = torch.Generator().manual_seed(0)
    stock, roomy = DynamicLayer(), generation._LayerWithRoom(9)
    for length in (3, 1, 2):
        new = [torch.randn(2, 3, length, 4, generator=generator) for _ in range(2)]
        for expected, found in zip(stock.update(*new), roomy.update(*new), strict=True):
            assert torch.equal(expected, found)
    assert stock.get_seq_length() == roomy.get_seq_length() == 6


def test_the_layers_of_a_model_are_given_room(monkeypatch: Any) -> None:
    lengths: list[int] = []
    honest = generation._LayerWithRoom.update

    def watch(layer: Any, *given: Any, **more: Any) -> Any:
        lengths.append(layer._length)
        return honest(layer, *given, **more)

    monkeypatch.setattr(generation._LayerWithRoom, "update", watch)
    generate_text(tiny_llama(), tokenizer(), 2, 12)
    # In each of 2 layers once for every token but the last.
    assert lengths == [12] * 22


def test_an_end_token_outside_of_the_vocabulary_forbids_no_token() -> None:
    """Some configurations say with -1 that no token ends a text."""
    model = tiny_llama()
    model.generation_config.eos_token_id = -1
    assert generate_text(model, None, 60, 20).ids.eq(VOCABULARY - 1).any()
