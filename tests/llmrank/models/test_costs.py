"""Costs of neurons and models, compared with the savings of compact models and with torch's FLOP counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import llmrank
from llmrank.errors import OptionError
from llmrank.models import explicit_ffns, find_ffns
from llmrank.models.costs import UNITS, Cost, ModelCosts, layer_cost, unit_name
from llmrank.prune import LocalPruner
from llmrank.prune.masks import Masks
from llmrank.prune.records.units import find_units
from llmrank.surgery.apply import apply_masks
from tests.llmrank.families import Family
from tests.llmrank.tiny_models import (
    STRUCTURE,
    every_family,
    family_model,
    features,
    logits,
    mlp,
    tiny_llama,
    token_ids,
)


def masks_of(model: nn.Module, every: int = 3) -> Masks:
    """Remove every third neuron; the first removed neuron of layer k is number k."""
    layers = find_ffns(model).layers
    return Masks({name: (torch.arange(layer.size) + k) % every != 0 for k, (name, layer) in enumerate(layers.items())})


def counted(model: nn.Module, *inputs: Any) -> int:
    model.requires_grad_(
        requires_grad=False
    )  # the counter fails where a module is called with a parameter, as in Jamba
    with FlopCounterMode(display=False) as counter:
        logits(model, *inputs)
    total: int = counter.get_total_flops()
    return total


def weights(model: nn.Module) -> tuple[int, int]:
    """Count parameters and bytes; shared parameters count once."""
    unique = {p.data_ptr(): p for p in model.parameters()}.values()
    return sum(p.numel() for p in unique), sum(p.nbytes for p in unique)


@every_family
def test_removed_cost_equals_the_saving_of_a_compact_model(family: Family) -> None:
    model = family_model(family)
    ids = token_ids(1, 8)
    ffns = find_ffns(model)
    costs, masks = ModelCosts(model, ffns), masks_of(model)
    before, flops = weights(model), counted(model, ids)
    assert (costs.total("parameters"), costs.total("bytes")) == before
    maps = nn.ModuleList({id(p.module): p.module for ffn in ffns for stage in ffn.stages for p in stage}.values())
    assert costs.total("ffn-parameters") == weights(maps)[0]
    one_by_one = sum(
        (len(masks[name]) - int(masks[name].sum())) * layer_cost(layer).parameters // layer.size
        for name, layer in ffns.layers.items()
    )
    apply_masks(model, ffns, masks)
    after, less = weights(model), counted(model, ids)
    for unit, saved in (("parameters", before[0] - after[0]), ("bytes", before[1] - after[1])):
        assert costs.removed_cost(masks.widths, unit) == costs.removed_cost(masks.widths, f"ffn-{unit}") == saved  # type: ignore[arg-type]
    # Attention costs the same before and after.
    assert costs.removed_cost(masks.widths, "flops") * 8 == flops - less
    assert one_by_one == before[0] - after[0]


def test_matrices_cost_flops_and_lookups_do_not() -> None:
    """The counter also counts attention's products with the context: 4 heads of 4, scores and values, for 8 tokens each of 8."""
    model = tiny_llama(attn_implementation="eager")
    costs = ModelCosts(model, find_ffns(model))
    rest = counted(model, token_ids(1, 8)) - 8 * costs.model.flops - 2 * 2 * (2 * 4 * 8 * 8 * 4)
    # transformers before 5.19 computes the angles of positions, 2 frequencies for 8 of them, as a product of matrices.
    assert rest in (0, 2 * 2 * 8)
    tied = tiny_llama(tie_word_embeddings=True)
    shared = ModelCosts(tied, find_ffns(tied))
    assert shared.model.flops == costs.model.flops
    assert costs.model.parameters - shared.model.parameters == 64 * 16


def test_layers_that_follow_one_another_share_a_matrix() -> None:
    model = mlp(5, 12, 9, 4)
    x = features(3, 5)
    ffns = find_ffns(model)
    costs = ModelCosts(model, ffns)
    masks = masks_of(model, every=2)
    first, second = masks.widths.values()
    kept = (5 + 1) * first + (first + 1) * second + (second + 1) * 4
    whole = (5 + 1) * 12 + (12 + 1) * 9 + (9 + 1) * 4
    assert costs.total("ffn-parameters") == costs.total("parameters") == whole
    assert costs.removed_cost(masks.widths, "parameters") == whole - kept
    flops = counted(model, x)
    apply_masks(model, ffns, masks)
    assert costs.removed_cost(masks.widths, "ffn-flops") * 3 == flops - counted(model, x)
    assert weights(model)[0] == kept


def test_bytes_depend_on_the_dtype_of_each_tensor() -> None:
    model = mlp(4, 8, 3).to(torch.bfloat16)
    model[2].bias = nn.Parameter(model[2].bias.float())
    layer = find_ffns(model)[0].prunable[1]
    assert layer_cost(layer) == Cost(8 * (4 + 1 + 3), 8 * 2 * (4 + 1 + 3), 8 * 2 * (4 + 3))
    assert ModelCosts(model, find_ffns(model)).model.bytes == 2 * (4 * 8 + 8 + 8 * 3) + 4 * 3


def test_biases_of_another_dtype_count_with_their_neurons() -> None:
    model = mlp(4, 8, 3).to(torch.float16)
    model[0].bias = nn.Parameter(model[0].bias.float())
    ffns = find_ffns(model)
    assert layer_cost(ffns[0].prunable[1]) == Cost(8 * (4 + 1 + 3), 8 * (2 * (4 + 3) + 4), 8 * 2 * (4 + 3))
    assert ModelCosts(model, ffns).removed_cost({"0": 5}, "bytes") == 3 * (2 * (4 + 3) + 4)


def test_embedding_bags_cost_no_flops() -> None:
    model = nn.ModuleDict({"words": nn.EmbeddingBag(9, 4), "tower": mlp(4, 8, 3)})
    assert ModelCosts(model, find_ffns(model)).model == Cost(9 * 4 + 67, 4 * (9 * 4 + 67), 2 * (4 * 8 + 8 * 3))


def test_explicitly_listed_linears_lose_rows() -> None:
    model = tiny_llama()
    costs = ModelCosts(model, explicit_ffns(model, STRUCTURE))
    assert costs.total("neurons") == 2 * (40 + 16)
    assert costs.removed_cost({"model.layers.0.mlp.up_proj": 30}, "parameters") == 10 * 16
    assert costs.removed_cost({"model.layers.1.mlp.down_proj": 10}, "parameters") == 6 * 40


def cached_bytes(model: nn.Module, ids: torch.Tensor) -> int:
    """Return the bytes of the keys and values that transformers keeps for each token."""
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
    kept = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.nbytes for tensor in kept) // ids.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups", "share"), [(8, 4, 0.5), (4, 4, 0.25), (4, 1, 0.0)])
def test_the_cache_is_what_transformers_keeps_for_a_token(
    heads: int, groups: int, share: float, dtype: torch.dtype
) -> None:
    model = tiny_llama(num_attention_heads=heads, num_key_value_heads=groups, head_dim=4).to(dtype)
    ids = token_ids(2, 8)
    ffns = find_units(model, find_ffns(model), ("heads",))
    costs, before = ModelCosts(model, ffns), cached_bytes(model, ids)
    assert costs.total("cache") == before
    if share == 0.0:  # all heads share one key and one value, which stay
        with pytest.raises(OptionError, match="all heads share one key and one value, which stay; use another unit"):
            llmrank.prune_model(model, targets="heads", amount=0.1, amount_of="cache", calibration=ids, repair=None)
        return
    pruned = llmrank.prune_model(
        model, targets="heads", amount=share, amount_of="cache", scorer="activation", calibration=ids, repair=None
    )
    assert pruned.report.reached["cache"] == {"before": before, "removed": share * before, "share": share}
    assert cached_bytes(pruned.model, ids) == (1 - share) * before
    assert f"{share:.1%} of the bytes of the KV cache per token" in " ".join(str(pruned.report).split())


def test_an_amount_of_the_cache_needs_heads() -> None:
    model = tiny_llama()
    for targets in ("neurons", "neurons,heads"):
        with pytest.raises(OptionError, match=f"for heads alone, got targets {targets}; expected targets='heads'"):
            llmrank.prune_model(model, targets=targets, amount=0.1, amount_of="cache", calibration=token_ids(2, 8))
    with pytest.raises(OptionError, match="have no bytes of the KV cache per token that could be removed"):
        LocalPruner(0.1, amount_of="cache").prune([], ModelCosts(model, find_ffns(model)))


def test_an_encoder_has_no_cache() -> None:
    for causal, before in ((True, 128), (False, 0)):
        model = tiny_llama()
        for layer in model.model.layers:
            layer.self_attn.is_causal = causal
        assert ModelCosts(model, find_units(model, find_ffns(model), ("heads",))).total("cache") == before


def test_units_have_names_and_costs_belong_to_one_model() -> None:
    assert [unit_name(unit) for unit in UNITS][::3] == [
        "hidden neurons",
        "FFN FLOPs per token",
        "model FLOPs per token",
    ]
    assert unit_name("cache") == "bytes of the KV cache per token"
    model = mlp(4, 8, 3)
    costs = ModelCosts(model, find_ffns(model))
    assert costs.removed_cost({}, "neurons") == 0
    assert costs.removed_cost({"0": 5}, "neurons") == 3
    with pytest.raises(OptionError, match="model of these costs has no layer mlp"):
        costs.removed_cost({"mlp": 5}, "bytes")
