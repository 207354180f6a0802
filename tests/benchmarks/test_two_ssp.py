"""How 2SSP divides an amount, and which attentions it removes."""

from __future__ import annotations

import torch

from benchmarks.two_ssp import TwoSSP, in_turn, without
from llmrank.models import find_ffns
from llmrank.prune.masks import Masks
from llmrank.text import tokenise
from tests.llmrank.tiny_models import logits, tiny_llama, token_ids

IDS = token_ids(2, 12)


def test_an_amount_is_divided_between_ffns_and_attentions() -> None:
    model = tiny_llama(num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=4)
    ffns = find_ffns(model)
    layer = model.model.layers[0]
    of_ffn, of_attention, of_block = (
        sum(p.numel() for p in each.parameters()) for each in (layer.mlp, layer.self_attn, layer)
    )
    for share in (0.2, 0.5, 0.7):
        plan = TwoSSP(model, ffns, round(share * 4 * of_block))
        assert plan.n_attentions == round(4 * share ** (of_ffn / of_attention / 1.5))
        removed = plan.n_attentions * of_attention + plan.share_of_neurons * 4 * of_ffn
        assert abs(removed - plan.parameters) < 1e-6


def test_attentions_return_nothing_within_the_context_and_come_back() -> None:
    model = tiny_llama(num_hidden_layers=3)
    ffns, before = find_ffns(model), logits(model, IDS)
    plan = TwoSSP(model, ffns, round(0.6 * sum(p.numel() for p in model.model.layers.parameters())))
    gone = plan.attentions_in_turn(Masks.full(ffns.sizes), tokenise(IDS, None, 2, 12))
    assert gone
    assert len(gone) == plan.n_attentions
    with without(gone):
        assert all(not attention.stages[-1][0].weight.any() for attention in gone)
        assert not torch.equal(logits(model, IDS), before)
    assert torch.equal(logits(model, IDS), before)


def test_parts_go_in_turn_by_what_is_lost_with_those_that_are_gone() -> None:
    losses = {frozenset("a"): 1.0, frozenset("b"): 2.0, frozenset("c"): 3.0, frozenset("ab"): 9.0, frozenset("ac"): 4.0}
    found = in_turn("abc", 2, lambda gone: losses[frozenset(gone)])  # type: ignore[arg-type]
    assert "".join(found) == "ac"  # type: ignore[arg-type]
