"""A cut model shares what it can with the model, and multiply-adds are what torch counts."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.variants import cut, model_multiply_adds, multiply_adds, variants
from llmrank.models import find_ffns
from tests.llmrank.tiny_models import FFN, HIDDEN, Snapshot, family_model, logits, named_family, tiny_llama, token_ids


@pytest.mark.parametrize("name", ["Llama, SmolLM2", "GPT-2", "Phi-3", "OPT"])
def test_multiply_adds_of_the_ffns_are_half_of_torch_s_flops(name: str) -> None:
    model = family_model(named_family(name))
    ffns = find_ffns(model)
    linear = {p.module for ffn in ffns for stage in ffn.stages for p in stage}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for module in linear:
            width = module.weight.shape[0 if name == "GPT-2" else 1]
            module(torch.zeros(3, width))
    assert multiply_adds(ffns) * 3 * 2 == counter.get_total_flops()


def test_multiply_adds_of_the_model_are_half_of_torch_s_flops() -> None:
    model = tiny_llama(attn_implementation="eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=token_ids(2, 8), use_cache=False)
    # It counts all pairs of tokens, masked or not.
    assert model_multiply_adds(model, [8] * 16, 16) * 2 == counter.get_total_flops()


def test_a_token_attends_to_those_before_it() -> None:
    model = tiny_llama()
    at_once = model_multiply_adds(model, range(1, 5), 1)
    steps = (
        model_multiply_adds(model, [1, 2], 0) + model_multiply_adds(model, [3], 0) + model_multiply_adds(model, [4], 1)
    )
    assert at_once == steps
    # Two layers, four heads of four: a further position costs each of them its key and its value.
    assert model_multiply_adds(model, [2], 0) - model_multiply_adds(model, [1], 0) == 2 * 2 * 16


def test_a_cut_model_stands_beside_the_model() -> None:
    model = tiny_llama()
    before = Snapshot(model)
    variant = cut(model, token_ids(1, 8), 0.3, 8)
    before.assert_restored()
    assert (variant.width, find_ffns(model)[0].sizes[1]) == (32, FFN)
    own, shared = dict(variant.model.named_parameters()), dict(model.named_parameters())
    assert own.keys() == shared.keys()
    for name, parameter in own.items():
        assert (parameter is shared[name]) == (".mlp." not in name)
    assert multiply_adds(variant.ffns) == 2 * 3 * HIDDEN * 32
    assert not torch.equal(logits(variant.model, token_ids(1, 8)), logits(model, token_ids(1, 8)))


def test_widths_occur_once() -> None:
    found = variants(tiny_llama(), token_ids(1, 8), [0.1, 0.2, 0.4], [8, 1])
    assert [(v.amount, v.multiple_of, v.width) for v in found] == [
        (0.0, 1, 40),
        (0.1, 8, 32),
        (0.4, 8, 24),
        (0.1, 1, 36),
    ]
