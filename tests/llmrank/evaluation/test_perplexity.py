"""Perplexity and size, against loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from llmrank.errors import UnsupportedModelError
from llmrank.evaluation.perplexity import complete, model_size, perplexity, unigram_perplexity
from llmrank.execution import Execution
from llmrank.models import find_ffns
from llmrank.models.forward import predicts_next_token
from llmrank.text import TokenSequences, tokenise
from tests.llmrank.plain_pipelines import ChainedFFNPipeline
from tests.llmrank.tiny_models import (
    Snapshot,
    family_model,
    mlp,
    named_family,
    padded_sequences,
    text,
    tiny_llama,
    tiny_t5,
    token_ids,
    tokenizer,
)


@torch.no_grad()
def log_likelihood(model: Any, row: torch.Tensor, half: int) -> list[float]:
    """Return the negative log-likelihood of every predicted token of one unpadded sequence, one by one."""
    result = []
    if model.config.is_encoder_decoder:
        for k in range(half, len(row)):
            start = torch.tensor([[0, *row[half:k].tolist()]])
            out = model(input_ids=row[None, :half], decoder_input_ids=start).logits[0, -1]
            result.append(float(torch.log_softmax(out.double(), 0)[row[k]]))
        return result
    for k in range(1, len(row)):
        out = model(input_ids=row[None, :k]).logits[0, -1]
        result.append(float(torch.log_softmax(out.double(), 0)[row[k]]))
    return result


@pytest.mark.parametrize("name", ["Llama, SmolLM2", "GPT-2", "OPT", "BLOOM"])
def test_perplexity_equals_a_loop_over_tokens(name: str) -> None:
    model, data = family_model(named_family(name)), padded_sequences()
    logs = [v for row, mask in zip(data.ids, data.mask, strict=True) for v in log_likelihood(model, row[mask], 6)]
    assert len(logs) == 11 * 3 + 7 + 4
    wanted = math.exp(-sum(logs) / len(logs))
    for batch_size in (1, 2, 5):
        found = perplexity(model, data, Execution(batch_size))
        assert found.tokens == len(logs)
        assert found.value == pytest.approx(wanted, rel=1e-4)


def test_perplexity_of_an_encoder_decoder_is_that_of_the_second_half() -> None:
    model, data = tiny_t5(), tokenise(token_ids(3, 10), None, 3, 10)
    logs = [v for row in data.ids for v in log_likelihood(model, row, 5)]
    found = perplexity(model, data, Execution(2))
    assert found.tokens == len(logs) == 15
    assert found.value == pytest.approx(math.exp(-sum(logs) / 15), rel=1e-4)


@pytest.mark.parametrize("make", [lambda: family_model(named_family("BERT")), lambda: mlp(4, 6, 2)])
def test_models_without_next_token_prediction_are_refused(make: Any) -> None:
    model = make()
    assert not predicts_next_token(model)
    with pytest.raises(UnsupportedModelError, match="predicts no next token"):
        perplexity(model, padded_sequences())


def test_perplexity_does_not_change_the_model() -> None:
    model = tiny_llama(attention_dropout=0.5)
    model.train()
    model.model.layers[1].eval()
    modes, snapshot = [m.training for m in model.modules()], Snapshot(model)
    assert perplexity(model, padded_sequences()) == perplexity(model, padded_sequences())
    assert [m.training for m in model.modules()] == modes
    snapshot.assert_restored()


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_broken_models_have_infinite_perplexity(value: float) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[5:] = value
    assert perplexity(model, padded_sequences()).value == math.inf


def test_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert perplexity(model, padded_sequences()).value == pytest.approx(64, rel=1e-6)


def test_unigram_perplexity_by_hand() -> None:
    # Half a, a quarter b and c: 2 ** 1.5. Padding does not count.
    ids, mask = torch.tensor([[7, 7, 8, 9, 0, 0]]), torch.tensor([[True] * 4 + [False] * 2])
    assert unigram_perplexity(TokenSequences.of(ids, mask, "")) == pytest.approx(2**1.5)
    assert unigram_perplexity(tokenise(torch.full((2, 8), 3), None, 2, 8)) == pytest.approx(1.0)


def test_size_counts_shared_tensors_once() -> None:
    tied, untied = tiny_llama(tie_word_embeddings=True), tiny_llama(tie_word_embeddings=False)
    assert model_size(untied).parameters - model_size(tied).parameters == 64 * 16
    block = mlp(4, 6, 4)
    assert model_size(nn.Sequential(block, block)).parameters == 4 * 6 + 6 + 6 * 4 + 4


def test_size_by_hand() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    found = model_size(model, find_ffns(model))
    attention = 16 * 16 + 2 * 16 * 8 + 16 * 16
    assert found.ffn_parameters == 2 * 3 * 16 * 40
    assert found.parameters == 64 * 16 + 2 * (attention + 3 * 16 * 40 + 2 * 16) + 16
    assert (found.bytes, found.ffn_bytes) == (4 * found.parameters, 4 * found.ffn_parameters)
    half = model_size(model.to(torch.bfloat16), find_ffns(model))
    assert (half.bytes, half.ffn_bytes) == (2 * found.parameters, 2 * found.ffn_parameters)


def test_masks_of_torch_do_not_count_as_parameters() -> None:
    model = tiny_llama()
    before = model_size(model, find_ffns(model))
    pipeline = ChainedFFNPipeline(model, None, calibration=token_ids(), form="mask")
    pipeline.run()
    assert pipeline.report is not None
    assert pipeline.report.after == before


def test_completion_is_the_greedy_continuation() -> None:
    model, tok = tiny_llama(), tokenizer(special=False)
    prompt = text(5)
    ids = tok(prompt, return_tensors="pt")["input_ids"]
    wanted: list[int] = []
    with torch.no_grad():
        for _ in range(6):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            wanted.append(int(ids[0, -1]))
            if wanted[-1] == 2:
                break
    assert complete(model, tok, prompt, 6) == tok.decode(wanted, skip_special_tokens=True)


def test_dropout_does_not_change_a_completion() -> None:
    model, tok = tiny_t5(), tokenizer(special=False)
    wanted = complete(model, tok, text(5), 12)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    model.train()
    assert complete(model, tok, text(5), 12) == wanted
    assert model.training


def test_the_completion_of_an_encoder_decoder_is_all_that_its_decoder_writes() -> None:
    model, tok = tiny_t5(), tokenizer(special=False)
    prompt = text(5)
    ids = tok(prompt, return_tensors="pt")["input_ids"]
    written = torch.tensor([[model.config.decoder_start_token_id]])
    with torch.no_grad():
        for _ in range(8):
            following = model(input_ids=ids, decoder_input_ids=written).logits[:, -1].argmax(-1, keepdim=True)
            written = torch.cat([written, following], dim=1)
            if int(following) == model.config.eos_token_id:
                break
    wanted = tok.decode(written[0, 1:], skip_special_tokens=True)
    assert len(wanted.split()) > 3
    assert complete(model, tok, prompt, 8) == wanted
