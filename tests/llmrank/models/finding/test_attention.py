"""Value and output maps that were found by their outputs, compared with the layout in the models' code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from llmrank.errors import CalibrationError, StructureError, UnsupportedModelError
from llmrank.models import FFN, FFNs, find_ffns
from llmrank.models.finding.attention import find_attentions
from tests.llmrank.tiny_models import HEADS, Snapshot, family_model, mlp, named_family, repeated, tiny_llama, tiny_t5

N_HEADS, N_GROUPS, WIDTH = HEADS["num_attention_heads"], HEADS["num_key_value_heads"], HEADS["head_dim"]


def attention_of(model: Any) -> FFN:
    return next(iter(find_attentions(model, find_ffns(model)).values()))


def values_by_hand(name: str, block: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of the value map (heads x width, hidden) and of the output map, by the layout of the family."""
    if name == "GPT-2":
        return block.attn.c_attn.weight.T[32:], block.attn.c_proj.weight.T
    if name == "Phi-3":
        # Queries of four heads, keys of two, values of two.
        return repeated(block.self_attn.qkv_proj.weight[16 + 8 :]), block.self_attn.o_proj.weight
    if name in ("BLOOM", "GPT-NeoX, Pythia"):
        attention = block.self_attention if name == "BLOOM" else block.attention
        # Query, key and value of a head are adjacent.
        fused = attention.query_key_value.weight.view(N_HEADS, 3, WIDTH, -1)
        return fused[:, 2].reshape(N_HEADS * WIDTH, -1), attention.dense.weight
    if name == "Falcon":
        # All heads share one value head.
        return block.self_attention.query_key_value.weight[-WIDTH:].repeat(
            N_HEADS, 1
        ), block.self_attention.dense.weight
    if name == "BERT":
        return block.attention.self.value.weight, block.attention.output.dense.weight
    if name == "OPT":
        return block.self_attn.v_proj.weight, block.self_attn.out_proj.weight
    return repeated(block.self_attn.v_proj.weight), block.self_attn.o_proj.weight


@pytest.mark.parametrize(
    ("name", "stack"),
    [
        ("Llama, SmolLM2", "model.layers"),
        ("Gemma 2", "model.layers"),
        ("Phi-3", "model.layers"),
        ("GPT-2", "transformer.h"),
        ("GPT-NeoX, Pythia", "gpt_neox.layers"),
        ("OPT", "model.decoder.layers"),
        ("BLOOM", "transformer.h"),
        ("Falcon", "transformer.h"),
        ("BERT", "bert.encoder.layer"),
    ],
)
def test_the_maps_are_those_of_the_family(name: str, stack: str) -> None:
    model = family_model(named_family(name))
    ffns = find_ffns(model)
    found = find_attentions(model, ffns)
    assert list(found) == [ffn.name for ffn in ffns]
    for block, ffn in zip(model.get_submodule(stack), ffns, strict=True):
        attention = found[ffn.name]
        assert (attention.kind, attention.stack, attention.prunable) == ("attention", ffn.stack, {})
        value, output = values_by_hand(name, block)
        (by_value,), (by_output,) = attention.stages
        assert torch.equal(by_value.weight, value)
        assert torch.equal(by_output.weight, output)
        assert attention.sizes == (16, N_HEADS * WIDTH, 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_values_are_distinguished_in_any_precision(dtype: torch.dtype) -> None:
    model = tiny_llama().to(dtype)
    (value,), _ = attention_of(model).stages
    assert torch.equal(value.weight, repeated(model.model.layers[0].self_attn.v_proj.weight))


def test_values_that_differ_for_few_tokens_are_distinguished() -> None:
    """Two value rows differ only in the weight of the first hidden number, which is zero except for one token in sixteen."""
    model = tiny_llama()
    values = model.model.layers[0].self_attn.v_proj.weight
    with torch.no_grad():
        model.model.embed_tokens.weight[torch.arange(64) % 16 != 6, 0] = 0.0
        values[1, 1:] = values[0, 1:]
    (value,), _ = attention_of(model).stages
    assert torch.equal(value.weight, repeated(values))


def test_the_model_is_not_changed() -> None:
    model = tiny_llama().train()
    before = Snapshot(model)
    find_attentions(model, find_ffns(model))
    before.assert_restored()


def test_several_ffns_of_a_block_share_one_attention() -> None:
    model = tiny_llama()
    ffns = find_ffns(model)
    twice = FFNs(
        (ffns[0], FFN(f"{ffns[0].stack}.0.second", ffns[0].kind, ffns[0].stages, ffns[0].stack, ffns[0].module))
    )
    assert list(find_attentions(model, twice)) == [ffns[0].name]


def test_errors_say_what_was_not_found() -> None:
    with pytest.raises(UnsupportedModelError, match="decoder attends to two streams"):
        attention_of(tiny_t5())
    with pytest.raises(StructureError, match="lies in no repeating stack"):
        attention_of(mlp(4, 6, 4))
    stacked = nn.ModuleDict({"layers": nn.ModuleList([mlp(4, 6, 4)])})
    with pytest.raises(UnsupportedModelError, match="ModuleDict is not a transformers model that reads token ids"):
        attention_of(stacked)


def test_non_finite_activations_raise_with_the_map_name() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[0] = 3e38
    with pytest.raises(CalibrationError, match=r"layers\.1\.self_attn\..* is not finite"):
        attention_of(model)


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


@pytest.mark.parametrize("factor", [0.5, 1.01, 1.001])
def test_an_attention_that_changes_values_raises(factor: float) -> None:
    model = tiny_llama()
    for layer in model.model.layers:
        layer.self_attn.o_proj = nn.Sequential(Scaled(factor), layer.self_attn.o_proj)
    with pytest.raises(UnsupportedModelError, match=r"in model\.layers\.0 .* found 0 \(seen: .*self_attn\.v_proj"):
        attention_of(model)
