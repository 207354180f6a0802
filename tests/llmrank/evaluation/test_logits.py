"""Predictions in bands equal those of a full pass, and only one band of logits is computed at once."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, LlamaForCausalLM

import llmrank.evaluation.logits
from llmrank.evaluation.logits import Predictor
from llmrank.evaluation.perplexity import perplexity
from llmrank.execution import Execution
from llmrank.models import find_ffns
from llmrank.models.forward import evaluation_mode, predicts_next_token
from tests.llmrank.families import FAMILIES
from tests.llmrank.tiny_models import (
    LLAMA,
    family_config,
    family_model,
    padded_sequences,
    tiny_llama,
    tiny_t5,
    token_ids,
)

# Mllama has no body under the name in base_model_prefix, so all its logits are computed at once.
OTHERS = ("t5", "bert", "roberta", "modernbert", "mllama_text_model")
DECODERS = [family for family in FAMILIES if family.model_type not in OTHERS]


@torch.no_grad()
def bands_of(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    with evaluation_mode(model):
        return list(Predictor(model).bands(ids, mask))


@torch.no_grad()
def whole_of(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with evaluation_mode(model):
        found: torch.Tensor = model(input_ids=ids, attention_mask=mask.long()).logits
    return found


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmrank.evaluation.logits, "POSITIONS_AT_ONCE", 14)


@pytest.mark.parametrize("family", DECODERS, ids=lambda family: family.name)
def test_bands_equal_a_full_pass_and_the_head_gets_one_band_at_a_time(family: Any) -> None:
    model = family_model(family)
    ids, mask = token_ids(2, 24), torch.ones(2, 24, dtype=torch.bool)
    mask[1, 19:] = False
    expected = whole_of(model, ids, mask)[:, :-1]
    widths: list[int] = []
    head = model.get_output_embeddings()
    passes: list[int] = []
    block = find_ffns(model)[0].module
    handles = [
        head.register_forward_hook(lambda _m, _i, output: widths.append(output.shape[1])),
        block.register_forward_hook(lambda *_: passes.append(1)),
    ]
    found = bands_of(model, ids, mask)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(torch.cat([logits for logits, _, _ in found], dim=1), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.cat([targets for _, targets, _ in found], dim=1), ids[:, 1:])
    assert torch.equal(torch.cat([valid for _, _, valid in found], dim=1), mask[:, 1:])
    # After a trial of four positions and their halves come the 23 positions of two sequences, in sevens.
    assert widths == [4, 2, 2, 7, 7, 7, 2]
    assert len(passes) == 1
    assert not any("forward" in vars(module) for module in model.modules())


def test_an_encoder_decoder_without_a_body_computes_all_logits_at_once() -> None:
    model = tiny_t5()
    widths: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _m, _i, output: widths.append(output.shape[1]))
    found = bands_of(model, token_ids(2, 24), torch.ones(2, 24, dtype=torch.bool))
    assert widths == [12]
    assert [logits.shape[1] for logits, _, _ in found] == [7, 5]


def test_an_encoder_decoder_with_a_body_computes_logits_in_bands() -> None:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=40, decoder_ffn_dim=40,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    model = BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.final_logits_bias.normal_()
    ids = token_ids(2, 24)
    found = bands_of(model, ids, torch.ones(2, 24, dtype=torch.bool))
    start = torch.full((2, 1), config.decoder_start_token_id)
    with torch.no_grad():
        expected = model(input_ids=ids[:, :12], decoder_input_ids=torch.cat([start, ids[:, 12:-1]], 1)).logits
    assert [logits.shape[1] for logits, _, _ in found] == [7, 5]
    torch.testing.assert_close(torch.cat([logits for logits, _, _ in found], 1), expected, rtol=1e-4, atol=1e-5)


class Mixing(LlamaForCausalLM):
    """A model whose logits depend on those of the position before."""

    def forward(self, **inputs: Any) -> Any:
        output = super().forward(**inputs)
        output.logits = output.logits + output.logits.roll(1, dims=1)
        return output


class Twice(LlamaForCausalLM):
    """A model that runs its body twice, on different tokens."""

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        output = super().forward(input_ids=input_ids, **inputs)
        output.logits = output.logits + super().forward(input_ids=input_ids.flip(1), **inputs).logits
        return output


class Counting(LlamaForCausalLM):
    """A model whose head needs as many positions as there are tokens."""

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        output = super().forward(input_ids=input_ids, **inputs)
        if output.logits.shape[1] != input_ids.shape[1]:
            raise ValueError("positions are missing")
        return output


class Offset(LlamaForCausalLM):
    """A model that adds a part of the logits of the position before, and an offset that causes rounding errors."""

    def forward(self, **inputs: Any) -> Any:
        output = super().forward(**inputs)
        output.logits = output.logits + 0.3 * output.logits.roll(1, dims=1) - 1.0
        return output


class Counted(LlamaForCausalLM):
    """A model whose logits depend on the number of the position."""

    def forward(self, **inputs: Any) -> Any:
        output = super().forward(**inputs)
        output.logits = output.logits * torch.arange(output.logits.shape[1])[:, None]
        return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [Mixing, Offset, Counted, Twice, Counting])
def test_heads_that_need_other_positions_compute_all_logits_at_once(kind: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = kind(tiny_llama().config).eval().to(dtype)
    ids, mask = token_ids(2, 24), torch.ones(2, 24, dtype=torch.bool)
    found = bands_of(model, ids, mask)
    expected = whole_of(model, ids, mask)[:, :-1]
    assert torch.equal(torch.cat([logits for logits, _, _ in found], dim=1), expected)
    assert [logits.shape[1] for logits, _, _ in found] == [7, 7, 7, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_logits_in_bands_too(dtype: torch.dtype) -> None:
    """Rounding is no reason to compute all logits at once; the reasons are tested above, in half precision as well."""
    model = tiny_llama().to(dtype)
    predictor = Predictor(model)
    with torch.no_grad(), evaluation_mode(model):
        list(predictor.bands(token_ids(2, 24), torch.ones(2, 24, dtype=torch.bool)))
    assert predictor._body is not None


def test_the_size_of_a_band_does_not_change_a_perplexity(monkeypatch: pytest.MonkeyPatch) -> None:
    model, found = tiny_llama(), []
    for places in (1, 14, 4096):
        monkeypatch.setattr(llmrank.evaluation.logits, "POSITIONS_AT_ONCE", places)
        found.append(perplexity(model, padded_sequences(), Execution(2)))
    assert {one.tokens for one in found} == {44}
    assert found[0].value == pytest.approx(found[2].value, rel=1e-6)
    assert found[1].value == pytest.approx(found[2].value, rel=1e-6)


def test_every_decoder_family_predicts() -> None:
    assert len(DECODERS) >= 15
    assert all(predicts_next_token(family_model(family)) for family in DECODERS)
    assert family_config(DECODERS[0]).vocab_size == LLAMA["vocab_size"]


def test_no_band_stays_in_memory_while_the_next_one_is_awaited() -> None:
    with torch.no_grad(), evaluation_mode(model := tiny_llama()):
        bands = Predictor(model).bands(token_ids(2, 24), torch.ones(2, 24, dtype=torch.bool))
        next(bands)
        logits = weakref.ref(next(bands)[0])
    assert logits() is None
