"""The least-loss budget against a search through all choices, for neurons and for neurons and heads together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

import llmrank
from llmrank.errors import LLMRankError, OptionError
from llmrank.models import FFNs, find_ffns
from llmrank.models.costs import ModelCosts
from llmrank.prune import LayerRecord, LeastLossPruner, LocalPruner, record_of_size
from llmrank.prune.records.units import find_units, units_of_part
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import features, mlp, tiny_llama, token_ids

WIDTH = 5
# Few, because every seed is a search through hundreds of choices.
SEEDS = range(12)


def records(seed: int, n_layers: int = 4, width: int = WIDTH) -> list[LayerRecord]:
    """Make layers with losses that rise with the number of removed neurons, in no particular shape."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(n_layers):
        losses = {n: float(loss) for n, loss in enumerate(rng.random(width - 1).cumsum() * rng.random(), 1)}
        importance = torch.from_numpy(rng.random(width))
        found.append(LayerRecord(f"layer {k}", importance / importance.sum(), sensitivity=losses))
    return found


def loss_of(layers: list[LayerRecord], kept: Mapping[str, int]) -> float:
    total = 0.0
    for layer in layers:
        assert isinstance(layer.sensitivity, Mapping)
        total += {0: 0.0, **layer.sensitivity}[layer.out_features - kept[layer.name]]
    return total


def cheapest(layers: list[LayerRecord], enough: Callable[[dict[str, int]], bool]) -> float:
    """Return the smallest loss of all choices that remove enough."""
    choices = product(*(range(1, layer.out_features + 1) for layer in layers))
    kept = ({layer.name: n for layer, n in zip(layers, each, strict=True)} for each in choices)
    return min(loss_of(layers, each) for each in kept if enough(each))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("amount", [0.0, 0.3, 0.55, 2])
def test_no_other_choice_costs_less(seed: int, amount: float | int) -> None:
    layers = records(seed)
    masks = LeastLossPruner(amount, multiple_of=1).prune(layers)
    needed = amount * len(layers) if isinstance(amount, int) else round(amount * WIDTH * len(layers))
    least = cheapest(layers, lambda kept: sum(WIDTH - n for n in kept.values()) >= needed)
    assert loss_of(layers, masks.widths) <= least * 1.001 + 1e-12
    assert masks.size - masks.kept >= needed
    for layer in layers:  # the lowest go
        removed, kept = layer.importance[~masks[layer.name]], layer.importance[masks[layer.name]]
        assert not len(removed) or float(removed.max()) <= float(kept.min())


def test_protected_layers_and_the_fewest_neurons_stay() -> None:
    layers = records(0)
    pruner = LeastLossPruner(0.4, min_keep=2, multiple_of=1, protect=("layer 1",))
    kept = pruner.prune(layers).widths
    assert kept["layer 1"] == WIDTH
    assert min(kept.values()) >= 2
    assert sum(kept.values()) == 12
    with pytest.raises(OptionError, match=r"10 of 20 neurons cannot be removed: at most 6 can, .*min_keep=3"):
        LeastLossPruner(0.5, min_keep=3, multiple_of=1, protect=("layer 1",)).prune(layers)
    assert LeastLossPruner(0.5, protect=("*",)).prune(layers).removed_share == 0.0


def test_equal_layers_lose_as_much_if_they_must() -> None:
    layers = [*records(0), *records(1, width=8)]
    for position, layer in enumerate(layers):
        layer.name = str(position)
    kept = list(LeastLossPruner(0.4, multiple_of=1, uniform=True).prune(layers).widths.values())
    assert len({*kept[:4]}) == len({*kept[4:]}) == 1
    assert 4 * WIDTH + 4 * 8 - sum(kept) >= round(0.4 * 52)


def test_many_widths_are_rounded_and_thinned() -> None:
    losses = {0: {1000: 0.1, 3000: 0.4}, 1: {1000: 0.2, 3000: 0.8}}
    layers = [LayerRecord(str(k), torch.rand(4096), sensitivity=each) for k, each in losses.items()]
    kept = LeastLossPruner(0.3).prune(layers).widths
    assert all(width % 64 == 0 for width in kept.values())
    assert 0.3 <= 1 - sum(kept.values()) / 8192 < 0.32
    exact = LeastLossPruner(0.3, multiple_of=1).prune(layers)
    assert 0.3 <= exact.removed_share < 0.31


@pytest.mark.parametrize(
    ("sensitivity", "error", "match"),
    [
        (None, OptionError, "carries no losses at several amounts"),
        (0.5, OptionError, "carries no losses at several amounts"),
        ({2: float("nan")}, LLMRankError, "layer 0: a loss is not finite"),
    ],
)
def test_losses_are_needed(sensitivity: Any, error: type[Exception], match: str) -> None:
    layers = records(0)
    layers[0].sensitivity = sensitivity
    with pytest.raises(error, match=match):
        LeastLossPruner(0.5).prune(layers)


def with_heads() -> tuple[Any, FFNs, ModelCosts]:
    model = tiny_llama(num_attention_heads=4, num_key_value_heads=4)
    ffns = find_units(model, find_ffns(model), ("neurons", "heads"))
    return model, ffns, ModelCosts(model, ffns)


@pytest.mark.parametrize("seed", SEEDS[:4])
@pytest.mark.parametrize("unit", ["parameters", "flops", "ffn-parameters"])
def test_one_amount_covers_neurons_and_heads(seed: int, unit: Any) -> None:
    _, ffns, costs = with_heads()
    rng = np.random.default_rng(seed)
    layers = []
    for each in units_of_part(ffns.layers.values(), ("neurons", "heads")):
        record = record_of_size(each.name, each.n_units, each)
        steps = sorted({max(1, each.n_units // 4 * n) for n in (1, 2, 3)})
        record.sensitivity = dict(zip(steps, rng.random(len(steps)).cumsum().tolist(), strict=True))
        layers.append(record)
    pruner = LeastLossPruner(0.2, multiple_of=10, amount_of=unit)
    masks = pruner.prune(layers, costs)
    widths = {name: n for layer in layers for name, n in layer.widths(masks.widths[layer.name]).items()}
    assert costs.removed_cost(widths, unit) >= 0.2 * costs.total(unit)
    sizes = {layer.name: layer.out_features for layer in layers}
    kept = [
        [n for n in range(1, size + 1) if n == size or n % (10 if layer.name.endswith("mlp") else 1) == 0]
        for layer, size in zip(layers, sizes.values(), strict=True)
    ]

    def loss(each: tuple[int, ...]) -> float:
        total = 0.0
        for layer, n in zip(layers, each, strict=True):
            assert isinstance(layer.sensitivity, Mapping)
            counts = [0, *layer.sensitivity]
            value = np.interp(sizes[layer.name] - n, counts, [0.0, *layer.sensitivity.values()])
            beyond = sizes[layer.name] - n - counts[-1]
            slope = (layer.sensitivity[counts[-1]] - layer.sensitivity.get(counts[-2], 0.0)) / (counts[-1] - counts[-2])
            total += float(value) + max(beyond, 0) * slope
        return total

    def saved(each: tuple[int, ...]) -> int:
        widths = {k: v for layer, n in zip(layers, each, strict=True) for k, v in layer.widths(n).items()}
        return costs.removed_cost(widths, unit)

    least = min(loss(each) for each in product(*kept) if saved(each) >= 0.2 * costs.total(unit))
    assert loss(tuple(masks.widths.values())) <= least * 1.001


@pytest.mark.parametrize("pruner", [LocalPruner, LeastLossPruner])
def test_a_pruned_model_has_as_many_parameters_as_were_asked_for(pruner: type[LocalPruner | LeastLossPruner]) -> None:
    model, _, costs = with_heads()
    pruned = llmrank.prune_model(
        model,
        targets="neurons,heads",
        pruner=pruner(0.15, multiple_of=1, amount_of="parameters"),
        scorer="activation",
        calibration=token_ids(),
        repair=None,
    )
    left = sum(each.numel() for each in pruned.model.parameters())
    assert left <= 0.85 * costs.model.parameters
    curves = pruned.report.loss_curves
    assert (curves is None) is (pruner is LocalPruner)
    if curves is not None:
        assert {*curves["alone"]} == {*pruned.masks}
        assert curves["expected"] > 0


def test_what_one_amount_cannot_cover_is_refused() -> None:
    model, _, _ = with_heads()
    common = {"scorer": "activation", "calibration": token_ids(), "repair": None, "targets": "neurons,heads"}
    for pruner, amount in (("global", 0.2), ("sensitivity", 0.2)):
        with pytest.raises(
            OptionError, match=r"amount is a share of each: .*\(local, least-loss\), got 0.2 of parameters"
        ):
            llmrank.prune_model(model, amount=amount, amount_of="parameters", pruner=pruner, **common)
    with pytest.raises(OptionError, match=r"at most .* can, because .* embeddings and norms are not pruned"):
        llmrank.prune_model(model, amount=0.99, amount_of="parameters", pruner="least-loss", **common)
    with pytest.raises(OptionError, match="LeastLossPruner knows losses of neurons and heads, got experts"):
        llmrank.prune_model(tiny_mixture("mixtral"), pruner="least-loss", **{**common, "targets": "experts"})


def test_experts_lose_as_many_neurons_each() -> None:
    pruned = llmrank.prune_model(
        tiny_mixture("mixtral"),
        amount=0.3,
        pruner="least-loss",
        scorer="activation",
        calibration=token_ids(),
        repair=None,
    )
    assert pruned.report.loss_curves is not None
    assert pruned.masks.removed_share >= 0.25
    assert pruned.report.loss_curves["expected"] > 0


def test_what_was_not_measured_is_removed_last() -> None:
    losses = ({100: 0.5, 650: 1.3, 800: 1.25}, {100: 0.6, 800: 5.0})
    layers = [LayerRecord(str(k), torch.rand(1000), sensitivity=each) for k, each in enumerate(losses)]
    assert LeastLossPruner(0.5, multiple_of=20).prune(layers).widths == {"0": 200, "1": 800}
    assert LeastLossPruner(0.85, multiple_of=20).prune(layers).widths == {"0": 20, "1": 280}


def test_large_amounts_are_counted_in_coarser_steps() -> None:
    layers = [LayerRecord(str(k), torch.rand(16_384), sensitivity={8192: 0.1 + k, 16_000: 1.0 + k}) for k in range(3)]
    masks = LeastLossPruner(0.43, multiple_of=1).prune(layers)
    assert 0.43 <= masks.removed_share < 0.44
    assert LeastLossPruner(0.43, multiple_of=1, uniform=True).prune(layers).removed_share < 0.432
    assert len(LeastLossPruner(0.3).prune([])) == 0


def test_layers_that_share_a_matrix_save_enough_together() -> None:
    model = mlp(8, 40, 40, 8)
    before = sum(each.numel() for each in model.parameters())
    options: Any = {"calibration": features(64, 8), "scorer": "activation", "repair": None}
    llmrank.prune_model(model, amount=0.5, amount_of="parameters", pruner="least-loss", **options)
    assert sum(each.numel() for each in model.parameters()) <= 0.5 * before


def test_heads_do_not_stop_the_neurons_that_share_their_amount() -> None:
    model, _, costs = with_heads()
    options: Any = {"calibration": token_ids(), "scorer": "norm,activation", "repair": None}
    pruned = llmrank.prune_model(
        model, targets="neurons,heads", amount=0.45, amount_of="parameters", pruner="least-loss", **options
    )
    assert sum(each.numel() for each in pruned.model.parameters()) <= 0.55 * costs.model.parameters
