"""Predictions in a file: unbiased, small, and as good to learn from as the dense model itself."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from graphs import GraphError
from llmrank.errors import OptionError
from llmrank.healing import DenseModel, Predictions, heal_model, predict_tokens
from llmrank.healing.teachers import divergence
from tests.llmrank.healing.test_heal import SETTINGS, TOKENS, dense, pruned, sequences
from tests.llmrank.pipeline.test_devices import OFFLOADED
from tests.llmrank.rewriting import rewrite_tensors

__all__ = ["dense", "pruned"]


def test_an_estimate_is_right_on_average(dense: Any, pruned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmrank.healing import predictions

    monkeypatch.setattr(predictions, "TOP", 4)  # of 64 tokens, so that much is left to draw from
    tokens = TOKENS._replace(sequences=sequences(2, 9), held_out=None, other=None)
    ids, mask = tokens.sequences.ids, tokens.sequences.mask
    with torch.no_grad():
        logits = pruned(input_ids=ids).logits[:, :-1]
        exact = divergence(dense(input_ids=ids).logits[:, :-1], logits)
        estimates = []
        for seed in range(200):
            found = predict_tokens(dense, tokens, seed=seed)
            (of_band,) = found.divergences(ids, mask, torch.arange(2))
            estimates.append(of_band(logits))
    drawn = torch.stack(estimates)
    errors = drawn.std(0) / len(drawn) ** 0.5
    assert float(errors.mean()) > 0.0
    # Log-probabilities are kept in half precision.
    assert ((drawn.mean(0) - exact).abs() < 5.0 * errors + 2e-3).all()
    assert float((drawn.mean(0) - exact).mean().abs()) < 2e-3


@pytest.mark.parametrize("from_file", [False, True])
def test_tokens_that_neither_model_predicts_do_not_count(dense: Any, pruned: Any, from_file: bool) -> None:
    """Some models mask a part of their vocabulary."""
    possible, never = slice(24), torch.arange(24, 64)
    teacher, student = copy.deepcopy(dense), copy.deepcopy(pruned)
    for model in (teacher, student):
        model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits.index_fill(-1, never, -torch.inf))
    tokens = TOKENS._replace(sequences=sequences(2, 9), held_out=None, other=None)
    ids, mask = tokens.sequences.ids, tokens.sequences.mask
    with torch.no_grad():
        wanted, logits = (model(input_ids=ids).logits[:, :-1] for model in (teacher, student))
    source = predict_tokens(teacher, tokens) if from_file else DenseModel(teacher)
    (of_band,) = source.divergences(ids, mask, torch.arange(2))
    found = of_band(logits.requires_grad_())
    exact = torch.nn.functional.kl_div(
        logits[..., possible].log_softmax(-1), wanted[..., possible].log_softmax(-1), reduction="none", log_target=True
    )
    # Log-probabilities in a file are kept in half precision.
    errors = {"rtol": 0.0, "atol": 2e-3 if from_file else 1e-5}
    torch.testing.assert_close(found, exact.sum(-1), **errors)
    found.sum().backward()
    torch.testing.assert_close(logits.grad, logits.softmax(-1) - wanted.softmax(-1), **errors)


def test_a_file_holds_the_text_and_all_that_is_learned_from(dense: Any, tmp_path: Path) -> None:
    found = predict_tokens(dense, TOKENS)
    path = tmp_path / "predictions.safetensors"
    found.save(path)
    read = Predictions.read(path)
    assert read.identity() == found.identity() != predict_tokens(dense, TOKENS, seed=1).identity()
    for part, other in zip(found.tokens, read.tokens, strict=True):
        assert part is not None
        assert other is not None
        assert (part.digest, part.source) == (other.digest, other.source)
    for name in ("top_ids", "top_log_p", "drawn_ids", "entropy"):
        assert torch.equal(getattr(found, name), getattr(read, name))
    assert (
        path.stat().st_size / found.entropy.numel() < 330
    )  # short sequences; the first token of each predicts nothing
    per_token = sum(getattr(found, name)[0, 0].nbytes for name in ("top_ids", "top_log_p", "drawn_ids")) + 4 + 5
    assert per_token <= 300


def test_a_damaged_file_is_refused(dense: Any, tmp_path: Path) -> None:
    path = tmp_path / "predictions.safetensors"
    with pytest.raises(GraphError):
        Predictions.read(path)
    predict_tokens(dense, TOKENS).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(GraphError):
        Predictions.read(path)


def test_predictions_of_other_sequences_are_refused(dense: Any, pruned: Any) -> None:
    found = predict_tokens(dense, TOKENS)
    with pytest.raises(OptionError, match="other sequences"):
        heal_model(copy.deepcopy(pruned), found, TOKENS._replace(other=None), SETTINGS)
    with pytest.raises(OptionError, match="predicts 99 tokens"):
        heal_model(copy.deepcopy(pruned), replace(found, vocabulary=99), TOKENS, SETTINGS)


@pytest.mark.slow
def test_learning_from_a_file_ends_where_learning_from_the_model_does(dense: Any, pruned: Any) -> None:
    direct, cached, settings = copy.deepcopy(pruned), copy.deepcopy(pruned), replace(SETTINGS, learning_rate=1e-2)
    expected = heal_model(direct, DenseModel(dense), TOKENS, settings)
    heal_model(cached, predict_tokens(dense, TOKENS), TOKENS, settings)
    ended = heal_model(cached, DenseModel(dense), TOKENS, settings).start
    gained = expected.start.divergence - expected.best.divergence
    assert abs(ended.divergence - expected.best.divergence) < 0.2 * gained


@pytest.mark.slow
@pytest.mark.parametrize("away", OFFLOADED)
def test_a_dense_model_may_be_larger_than_memory(away: str, dense: Any, pruned: Any, tmp_path: Path) -> None:
    offloaded = OFFLOADED[away](copy.deepcopy(dense), tmp_path)
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    found, expected = predict_tokens(offloaded, TOKENS), predict_tokens(dense, TOKENS)
    torch.testing.assert_close(found.entropy, expected.entropy)
    torch.testing.assert_close(found.top_log_p, expected.top_log_p, atol=1e-3, rtol=1e-3)
    beside, whole = copy.deepcopy(pruned), copy.deepcopy(pruned)
    divergences = [
        heal_model(student, DenseModel(teacher), TOKENS, SETTINGS, directory=directory).best.divergence
        for student, teacher, directory in ((beside, offloaded, tmp_path / "state"), (whole, dense, None))
    ]
    assert divergences[0] == pytest.approx(divergences[1], rel=1e-3)


@pytest.fixture(scope="module")
def predictions_file(dense: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predictions") / "whole.safetensors"
    predict_tokens(dense, TOKENS).save(path)
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda meta, _: meta.update(vocabulary="x"),
        lambda meta, _: meta.update(vocabulary=3),
        lambda meta, _: meta.pop("sources"),
        lambda meta, _: meta.update(sources=["own"]),
        lambda meta, _: meta["sources"].update(own=3),
        lambda meta, _: meta["sources"].pop("own"),
        lambda meta, _: meta["sources"].pop("held_out"),
        lambda meta, _: meta.update(notes=[3]),
        lambda _, arrays: arrays.pop("own.mask"),
        lambda _, arrays: arrays.update({"own.ids": arrays["own.ids"].ravel()}),
        lambda _, arrays: arrays.update({"own.ids": arrays["own.ids"][:, :-1], "own.mask": arrays["own.mask"][:, :-1]}),
        lambda _, arrays: arrays["top_ids"].fill(64),
        lambda _, arrays: arrays["drawn_ids"].fill(-1),
        lambda _, arrays: arrays.update(top_ids=arrays["top_ids"][:, :, :-1]),
        lambda _, arrays: arrays.update(top_ids=arrays["top_ids"].astype(float)),
        lambda _, arrays: arrays.update(drawn_ids=arrays["drawn_ids"][:, :, :0]),
        lambda _, arrays: arrays.update(entropy=arrays["entropy"].ravel()),
        lambda _, arrays: arrays["entropy"].fill(float("nan")),
        lambda _, arrays: arrays["top_log_p"].fill(1.0),
    ],
)
def test_a_content_that_predict_does_not_write_is_refused(predictions_file: Path, tmp_path: Path, change: Any) -> None:
    path = tmp_path / "predictions.safetensors"
    path.write_bytes(predictions_file.read_bytes())
    rewrite_tensors(path, "predictions", change)
    with pytest.raises(OptionError, match=r"does not hold what llmrank writes .*; write it again with llmrank predict"):
        Predictions.read(path)


def test_predictions_of_another_half_are_refused(dense: Any, pruned: Any) -> None:
    found = predict_tokens(dense, TOKENS)
    half = replace(found, entropy=found.entropy[:, found.entropy.shape[1] // 2 :])
    with pytest.raises(OptionError, match="not for the tokens that LlamaForCausalLM predicts"):
        half.check(pruned, TOKENS)
