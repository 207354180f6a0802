"""The logit lens, against sums in a loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from llmrank.errors import OptionError, UnsupportedModelError
from llmrank.inspection.meaning import logit_lens as module
from llmrank.inspection.meaning.final_norm import find_norms, read_norm
from llmrank.inspection.meaning.logit_lens import LensTokens, logit_lens
from llmrank.models import find_ffns
from llmrank.models.forward import predicts_next_token
from tests.llmrank.families import Family
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import every_family, family_model, mlp, named_family, tiny_llama, tiny_t5
from tests.tables import table


def effects(head: torch.Tensor, gain: torch.Tensor, column: torch.Tensor, *, centred: bool) -> list[float]:
    """What a neuron adds to the logit of every token, as sums of Python numbers."""
    w, g = column.tolist(), gain.tolist()
    mean = sum(w) / len(w) if centred else 0.0
    return [sum(u * a * (b - mean) for u, a, b in zip(row, g, w, strict=True)) for row in head.tolist()]


def check(found: LensTokens, columns: torch.Tensor, head: torch.Tensor, gain: torch.Tensor, *, centred: bool) -> None:
    assert len(found.promoted) == columns.shape[1]
    for neuron in range(columns.shape[1]):
        logits = effects(head, gain, columns[:, neuron], centred=centred)
        order = sorted(range(len(logits)), key=lambda token: -logits[token])
        k = found.promoted.shape[1]
        assert found.promoted[neuron].tolist() == order[:k]
        assert found.demoted[neuron].tolist() == order[::-1][:k]
        for tokens, values in ((found.promoted, found.promoted_logits), (found.demoted, found.demoted_logits)):
            expected = [logits[token] for token in tokens[neuron].tolist()]
            assert values[neuron].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_a_gated_model_with_an_rms_norm(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 10)  # several blocks of 64 tokens and of 40 neurons
    monkeypatch.setattr(module, "NEURONS_AT_ONCE", 7)
    model = tiny_llama(tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    found = logit_lens(model, find_ffns(model), 4)
    assert list(found) == ["model.layers.0.mlp", "model.layers.1.mlp"]
    columns = model.model.layers[1].mlp.down_proj.weight
    check(found["model.layers.1.mlp"], columns, model.lm_head.weight, model.model.norm.weight, centred=False)


def test_an_ungated_model_with_a_layer_norm() -> None:
    model = family_model(named_family("GPT-2"))
    found = logit_lens(model, find_ffns(model), 4)["transformer.h.0.mlp"]
    columns = model.transformer.h[0].mlp.c_proj.weight.T
    check(found, columns, model.transformer.wte.weight, model.transformer.ln_f.weight, centred=True)


def test_norms_behind_ffns_are_folded_in() -> None:
    """Gemma's norms have the gain 1 + weight."""
    model = family_model(named_family("Gemma 2"))
    found = logit_lens(model, find_ffns(model), 4)["model.layers.0.mlp"]
    block = model.model.layers[0]
    gain = (1 + model.model.norm.weight) * (1 + block.post_feedforward_layernorm.weight)
    check(found, block.mlp.down_proj.weight, model.lm_head.weight, gain, centred=False)


def test_every_expert_has_its_own_lens() -> None:
    model = tiny_mixture("mixtral")
    found = logit_lens(model, find_ffns(model), 4)
    block = model.model.layers[1].mlp
    for expert in (0, 7):
        columns = block.experts.down_proj[expert]
        tokens = found[f"model.layers.1.mlp.experts.{expert}"]
        check(tokens, columns, model.lm_head.weight, model.model.norm.weight, centred=False)


def test_the_encoder_of_an_encoder_decoder_has_none() -> None:
    model = tiny_t5()
    found = logit_lens(model, find_ffns(model), 4)
    assert found
    assert all(name.startswith("decoder") for name in found)
    gain = model.decoder.final_layer_norm.weight
    columns = model.decoder.block[0].layer[2].DenseReluDense.wo.weight
    check(found["decoder.block.0.layer.2.DenseReluDense"], columns, model.lm_head.weight, gain, centred=False)


@every_family
def test_every_family_that_predicts_has_a_lens(family: Family) -> None:
    model = family_model(family)
    ffns = find_ffns(model)
    if not predicts_next_token(model):
        with pytest.raises(UnsupportedModelError):
            logit_lens(model, ffns, 2)
        return
    found = logit_lens(model, ffns, 2)
    assert set(found) == {name for name in ffns.layers if not name.startswith("encoder")}
    assert all(bool(torch.isfinite(each.promoted_logits).all()) for each in found.values())


def test_chosen_neurons_and_tokens() -> None:
    model = tiny_llama()
    ffns = find_ffns(model)
    whole = logit_lens(model, ffns, 3)["model.layers.0.mlp"]
    some = logit_lens(model, ffns, 3, {"model.layers.0.mlp": [7, 2]})
    assert list(some) == ["model.layers.0.mlp"]
    assert torch.equal(some["model.layers.0.mlp"].promoted, whole.promoted[[7, 2]])
    banned = int(whole.promoted[0, 0])
    tokens = torch.ones(60, dtype=torch.bool)  # fewer than the head has rows
    tokens[banned] = False
    listed = logit_lens(model, ffns, 3, tokens=tokens)["model.layers.0.mlp"]
    assert not (listed.promoted == banned).any()
    assert int(max(listed.promoted.max(), listed.demoted.max())) < 60


@pytest.mark.parametrize("k", [0, 65])
def test_a_senseless_number_is_refused(k: int) -> None:
    model = tiny_llama()
    with pytest.raises(OptionError, match="k must be an integer from 1 to the 64 tokens"):
        logit_lens(model, find_ffns(model), k)


def test_models_without_a_head_are_refused() -> None:
    for model in (tiny_llama().model, family_model(named_family("BERT")), mlp(4, 6, 3)):
        with pytest.raises(UnsupportedModelError, match="predicts no next token, so it has no logit lens"):
            logit_lens(model, find_ffns(model))


def test_something_else_in_front_of_the_head_is_refused() -> None:
    model = tiny_llama()
    model.model.norm = nn.Linear(16, 16)
    with pytest.raises(UnsupportedModelError, match="its head does not read a layer norm"):
        find_norms(model, find_ffns(model))


@table("n", [4, 5, 16])
@table("dtype", [torch.float32, torch.bfloat16])
def test_gains_are_read_from_outputs(n: int, dtype: torch.dtype) -> None:
    torch.manual_seed(n)
    for norm, centred in ((nn.LayerNorm(n), True), (nn.RMSNorm(n, eps=1e-6), False)):
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
        norm.to(dtype)
        read: Any = read_norm(norm, torch.zeros(n, dtype=dtype))
        weight: Any = norm.weight
        assert torch.allclose(read.gain, weight.float(), rtol=0.02, atol=0.02 if dtype == torch.bfloat16 else 1e-4)
        assert read.centred is centred


@table("other", [nn.Linear(8, 8), nn.SiLU(), nn.Identity(), nn.Tanh(), nn.Softmax(-1), nn.Linear(8, 3)])
def test_other_modules_are_no_norms(other: nn.Module) -> None:
    assert read_norm(other, torch.zeros(8)) is None
