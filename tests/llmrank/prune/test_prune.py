"""Pruners against textbook sorting, and the contract of their base class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import LLMRankError, OptionError
from llmrank.prune import (
    BasePruner,
    GlobalPruner,
    LayerRecord,
    LocalPruner,
    SensitivityPruner,
    ascending_positions,
    global_count,
    local_count,
    round_width,
    sensitivity_counts,
)
from llmrank.prune.masks import Masks
from llmrank.prune.sensitivity_pruner import cheapest_counts
from tests.llmrank.plain_pipelines import IsolatedFFNPipeline
from tests.llmrank.tiny_models import tiny_llama, token_ids
from tests.tables import table

# Few distinct values, so that most scores are tied.
SCORES = st.lists(st.integers(0, 5).map(lambda k: k / 8), min_size=1, max_size=12)
LAYERS = st.lists(SCORES, min_size=1, max_size=5)


def records(layers: Sequence[Sequence[float]], *, explicit: bool = False) -> list[LayerRecord]:
    return [
        LayerRecord(f"layer {k}", torch.tensor(scores, dtype=torch.float64), explicit=explicit)
        for k, scores in enumerate(layers)
    ]


def lists(masks: Masks) -> list[list[bool]]:
    return [mask.tolist() for mask in masks.values()]


def textbook_local(layers: Sequence[Sequence[float]], amount: float) -> list[list[bool]]:
    result = []
    for scores in layers:
        count = amount if isinstance(amount, int) else round(amount * len(scores))
        lowest = sorted(range(len(scores)), key=lambda k, s=scores: (s[k], k))[:count]
        result.append([k not in lowest for k in range(len(scores))])
    return result


def textbook_global(layers: Sequence[Sequence[float]], count: int, min_keep: int) -> list[list[bool]]:
    """Remove the lowest of all one by one, but none of a layer that is down to min_keep."""
    keep = [[True] * len(scores) for scores in layers]
    order = sorted((s, layer, k) for layer, scores in enumerate(layers) for k, s in enumerate(scores))
    for _, layer, k in order:
        if count and sum(keep[layer]) > min_keep:
            keep[layer][k] = False
            count -= 1
    return keep


@given(layers=LAYERS, amount=st.one_of(st.floats(0, 0.999), st.integers(0, 12)))
def test_local_removes_the_lowest_share_of_every_layer(layers: list[list[float]], amount: float) -> None:
    wanted = textbook_local(layers, amount)
    pruner = LocalPruner(amount)
    if all(any(mask) for mask in wanted):
        assert lists(pruner.prune(records(layers))) == wanted
    else:
        with pytest.raises(OptionError, match="fewer than min_keep=1"):
            pruner.prune(records(layers))


@given(layers=LAYERS, share=st.floats(0, 0.999), min_keep=st.integers(1, 3))
def test_global_removes_the_lowest_of_all_layers(layers: list[list[float]], share: float, min_keep: int) -> None:
    layers = [scores + [0.25] * (min_keep - len(scores)) for scores in layers]
    total = sum(map(len, layers))
    count = math.ceil(Fraction(repr(share)) * total)
    pruner = GlobalPruner(share, min_keep=min_keep, normalize="none")
    if total - count < min_keep * len(layers):
        with pytest.raises(OptionError, match="lower the amount"):
            pruner.prune(records(layers))
        return
    masks = pruner.prune(records(layers))
    assert masks.size - masks.kept == count
    assert lists(masks) == textbook_global(layers, count, min_keep)
    assert lists(GlobalPruner(count, min_keep=min_keep, normalize="none").prune(records(layers))) == lists(masks)


@given(layers=LAYERS, share=st.floats(0, 0.8))
def test_zscore_is_a_global_order_of_standardised_scores(layers: list[list[float]], share: float) -> None:
    standardised = []
    for scores in layers:
        values = torch.tensor(scores, dtype=torch.float64)
        deviation = (values - values.mean()).square().mean().sqrt()
        standardised.append(((values - values.mean()) / deviation if deviation > 0 else values * 0).tolist())
    count = math.ceil(Fraction(repr(share)) * sum(map(len, layers)))
    if sum(map(len, layers)) - count < len(layers):
        return
    found = GlobalPruner(share, normalize="zscore").prune(records(layers))
    scores_by_layer = [torch.tensor(values) for values in standardised]
    removed = [float(v) for s, m in zip(scores_by_layer, found.values(), strict=True) for v in s[~m]]
    assert len(removed) == count
    # Up to neurons that min_keep protects, nothing kept is lower than anything removed.
    kept = [float(v) for s, m in zip(scores_by_layer, found.values(), strict=True) if m.sum() > 1 for v in s[m]]
    if removed and kept:
        assert max(removed) <= min(kept) + 1e-6


def test_normalisations_by_hand() -> None:
    wide, narrow = [0.1, 0.1, 0.2, 0.6], [0.45, 0.55]
    assert lists(GlobalPruner(2, normalize="none").prune(records([wide, narrow]))) == [
        [False, False, True, True],
        [True, True],
    ]
    # Times the width: 0.4 0.4 0.8 2.4 and 0.9 1.1.
    assert lists(GlobalPruner(4, normalize="mean").prune(records([wide, narrow]))) == [
        [False, False, False, True],
        [False, True],
    ]
    # Standardised: -0.73 -0.73 -0.24 1.7 and -1 1.
    assert lists(GlobalPruner(1, normalize="zscore").prune(records([wide, narrow]))) == [
        [True, True, True, True],
        [False, True],
    ]
    # Robust: medians 0.15 and 0.5, mean absolute deviations from them 0.15 and 0.4, because that of half of the scores is 0.
    assert lists(GlobalPruner(1, normalize="robust").prune(records([wide, narrow]))) == lists(
        GlobalPruner(1).prune(records([wide, narrow]))
    )
    # Auto: robust for found FFNs, none for a structure_dict.
    assert lists(GlobalPruner(1).prune(records([wide, narrow], explicit=True)))[0] == [False, True, True, True]


def test_constant_layer_counts_as_average() -> None:
    # Zero deviation: its zscores are 0, above the lowest of the other layer and below its highest.
    masks = GlobalPruner(0.5, normalize="zscore").prune(records([[0.25] * 4, [0.1, 0.2, 0.3, 0.4]]))
    assert lists(masks) == [[False, False, True, True], [False, False, True, True]]


@table("n", [7, 13, 23, 1075])
def test_constant_layer_stays_average_despite_round_off(n: int) -> None:
    layers = [[1.0 / n] * n, [float(k) for k in range(n)]]
    widths = GlobalPruner(0.5, normalize="zscore").prune(records(layers)).widths
    # All neurons of the constant layer are at 0, in the middle of the other layer: half of all is removed from both.
    assert 0 < widths["layer 1"] < n
    assert 0 < widths["layer 0"] < n


def test_shares_count_as_they_are_written() -> None:
    assert GlobalPruner(0.07, normalize="none").prune(records([[float(k) for k in range(100)]])).kept == 93


@table(("amount", "n", "removed"), [(0.5, 5, 2), (0.5, 7, 4), (0.3, 40, 12), (0.25, 2, 0), (3, 5, 3)])
def test_local_counts_are_pythons_round(amount: float, n: int, removed: int) -> None:
    masks = LocalPruner(amount).prune(records([[1 / n] * n]))
    assert n - masks.kept == removed


def test_amount_zero_keeps_everything() -> None:
    for amount in (0, 0.0):
        for pruner in (LocalPruner(amount), GlobalPruner(amount)):
            assert pruner.prune(records([[0.1, 0.9], [1.0]])).removed_share == 0.0


@table(
    ("kept", "multiple", "width"),
    [(13, 8, 16), (12, 8, 16), (11, 8, 8), (3, 8, 8), (1, 8, 8), (19, 8, 16), (20, 8, 16), (20, 64, 20)],
)
def test_widths_round_to_the_nearest_multiple(kept: int, multiple: int, width: int) -> None:
    scores = [k / 190 for k in range(20)]
    masks = LocalPruner(20 - kept, multiple_of=multiple).prune(records([scores]))
    assert lists(masks) == [[False] * (20 - width) + [True] * width]
    same = GlobalPruner(20 - kept, multiple_of=multiple).prune(records([scores]))
    assert same == masks


def test_rounding_respects_min_keep() -> None:
    scores = [[k / 190 for k in range(20)]]
    assert LocalPruner(15, min_keep=5, multiple_of=4).prune(records(scores)).kept == 8


# Sizes and sensitivities; few distinct values again, and some layers far more sensitive than the rest.
BUDGETS = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([0.0, 0.01, 0.015, 0.02, 0.05, 0.3, 7.0])), min_size=1, max_size=8
)
AMOUNTS = st.one_of(st.integers(0, 95).map(lambda p: p / 100), st.integers(0, 20))


def textbook_sparing(layers: Sequence[tuple[int, float]], amount: float, limit: float) -> list[float]:
    """The formula in floating point, for layers that are large enough."""
    sizes, costs = zip(*layers, strict=True)
    bound = limit * median(costs)
    shares = [amount / n if isinstance(amount, int) else amount for n in sizes]
    spared = [bound > 0 and c > bound for c in costs]
    given = [a * bound / c if s else a for a, c, s in zip(shares, costs, spared, strict=True)]
    missing = sum((a - g) * n for a, g, n in zip(shares, given, sizes, strict=True))
    others = sum(n for n, s in zip(sizes, spared, strict=True) if not s)
    return [n * (g if s else g + missing / others) for n, g, s in zip(sizes, given, spared, strict=True)]


@given(layers=BUDGETS, amount=AMOUNTS, min_keep=st.integers(1, 4), limit=st.sampled_from([0.5, 1.0, 2.0, 3.0]))
def test_sparing_keeps_the_total_to_the_neuron(
    layers: list[tuple[int, float]], amount: float, min_keep: int, limit: float
) -> None:
    sizes, costs = [n for n, _ in layers], [c for _, c in layers]
    total = amount * len(sizes) if isinstance(amount, int) else round(amount * sum(sizes))
    if total > sum(max(n - min_keep, 0) for n in sizes):
        with pytest.raises(OptionError, match=f"because each layer keeps min_keep={min_keep}; lower"):
            sensitivity_counts(sizes, costs, amount, min_keep, limit)
        return
    counts = sensitivity_counts(sizes, costs, amount, min_keep, limit)
    assert sum(counts) == total
    assert all(0 <= count <= max(n - min_keep, 0) for count, n in zip(counts, sizes, strict=True))


@given(layers=BUDGETS, amount=AMOUNTS, limit=st.sampled_from([1.0, 2.0, 3.0]))
def test_sparing_is_the_textbook_formula_up_to_one_neuron(
    layers: list[tuple[int, float]], amount: float, limit: float
) -> None:
    wanted = textbook_sparing(layers, amount, limit)
    if any(count > n - 1 for count, (n, _) in zip(wanted, layers, strict=True)):
        return
    counts = sensitivity_counts([n for n, _ in layers], [c for _, c in layers], amount, 1, limit)
    assert all(abs(count - part) < 1 for count, part in zip(counts, wanted, strict=True))


@given(layers=BUDGETS, amount=AMOUNTS, data=st.data())
def test_sparing_moves_with_the_layers(layers: list[tuple[int, float]], amount: float, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(layers))))
    shuffled = [layers[k] for k in order]
    try:
        counts = sensitivity_counts([n for n, _ in layers], [c for _, c in layers], amount)
    except OptionError:
        with pytest.raises(OptionError):
            sensitivity_counts([n for n, _ in shuffled], [c for _, c in shuffled], amount)
        return
    moved = sensitivity_counts([n for n, _ in shuffled], [c for _, c in shuffled], amount)
    # Where remainders are tied the position decides, by one neuron.
    assert all(abs(count - counts[k]) <= 1 for count, k in zip(moved, order, strict=True))
    assert sum(moved) == sum(counts)


def test_sparing_moves_exactly_where_nothing_ties() -> None:
    sizes, costs = [101, 211, 307, 401], [0.9, 0.02, 0.3, 0.01]
    counts = sensitivity_counts(sizes, costs, 0.3)
    for order in ([3, 1, 0, 2], [2, 3, 1, 0], [1, 0, 3, 2]):
        assert sensitivity_counts([sizes[k] for k in order], [costs[k] for k in order], 0.3) == [
            counts[k] for k in order
        ]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=5),
    st.data(),
)
def test_heads_are_removed_where_the_expected_losses_have_the_smallest_sum(
    layers: list[tuple[int, int]], data: st.DataObject
) -> None:
    most, costs = [n for n, _ in layers], [float(c) for _, c in layers]
    total = data.draw(st.integers(0, sum(most)))
    counts = cheapest_counts(costs, most, total)

    def loss(tried: Sequence[int]) -> float:
        return sum(c * n * n for c, n in zip(costs, tried, strict=True))

    possible = [tried for tried in product(*(range(n + 1) for n in most)) if sum(tried) == total]
    assert tuple(counts) in possible
    assert loss(counts) == min(map(loss, possible))


@given(layers=BUDGETS, amount=AMOUNTS, scale=st.sampled_from([0.125, 2.0, 1024.0]))
def test_the_unit_of_sensitivity_does_not_matter(layers: list[tuple[int, float]], amount: float, scale: float) -> None:
    sizes, costs = [n for n, _ in layers], [c for _, c in layers]
    try:
        counts = sensitivity_counts(sizes, costs, amount)
    except OptionError:
        return
    assert sensitivity_counts(sizes, [c * scale for c in costs], amount) == counts


@table(
    ("sizes", "costs", "amount", "min_keep", "limit", "counts"),
    [
        # Ten times the median at a limit of two: a fifth of 30, and the other 24 from three layers.
        ([100] * 4, [1.0, 0.1, 0.1, 0.1], 0.3, 1, 2.0, [6, 38, 38, 38]),
        # The same as a number.
        ([100] * 4, [1.0, 0.1, 0.1, 0.1], 30, 1, 2.0, [6, 38, 38, 38]),
        # Exactly at the limit no layer is spared.
        ([100] * 3, [0.5, 0.25, 0.25], 0.3, 1, 2.0, [30, 30, 30]),
        # No effect at the median, or none at all.
        ([100] * 3, [0.5, 0.0, 0.0], 0.3, 1, 2.0, [30, 30, 30]),
        ([10, 20], [0.0, 0.0], 0.0, 1, 2.0, [0, 0]),
        # Remainders 0.5 each: two of four round up, the first.
        ([5] * 4, [0.1] * 4, 0.5, 1, 2.0, [3, 3, 2, 2]),
        # The others lose all they can: the rest comes from the spared layer.
        ([10] * 3, [1.0, 0.1, 0.1], 0.8, 1, 2.0, [6, 9, 9]),
        # A narrow layer cannot lose more, a wide one can.
        ([100, 4, 100], [1.0, 0.1, 0.1], 0.5, 2, 2.0, [10, 2, 90]),
        # All are above half the median: no other layer can lose more.
        ([10] * 3, [0.1] * 3, 0.3, 1, 0.5, [3, 3, 3]),
        ([], [], 0.3, 1, 2.0, []),
    ],
)
def test_sparing_by_hand(
    sizes: list[int], costs: list[float], amount: float, min_keep: int, limit: float, counts: list[int]
) -> None:
    assert sensitivity_counts(sizes, costs, amount, min_keep, limit) == counts


def sensitive(layers: Sequence[Sequence[float]], costs: Sequence[float | None]) -> list[LayerRecord]:
    entries = records(layers)
    for entry, cost in zip(entries, costs, strict=True):
        entry.sensitivity = cost
    return entries


@given(scores=SCORES, amount=st.floats(0, 0.999), cost=st.floats(0, 9))
def test_a_single_layer_is_pruned_as_by_the_local_pruner(scores: list[float], amount: float, cost: float) -> None:
    if round(amount * len(scores)) < len(scores):
        assert SensitivityPruner(amount).prune(sensitive([scores], [cost])) == LocalPruner(amount).prune(
            records([scores])
        )


def test_sensitive_layers_lose_fewer_neurons_and_their_lowest() -> None:
    entries = sensitive([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.4, 0.1, 0.3, 0.2]], [0.8, 0.1, 0.1])
    masks = SensitivityPruner(0.5).prune(entries)
    assert lists(masks) == [[True] * 4, [True, False, False, False], [True, False, False, False]]
    assert [(type(entry.amount), entry.amount) for entry in entries] == [(int, 0), (int, 3), (int, 3)]
    assert SensitivityPruner(0.5, limit=100.0).prune(entries) == LocalPruner(0.5).prune(entries)
    assert list(SensitivityPruner(0.5, multiple_of=4).prune(entries).widths.values()) == [4, 4, 4]


def test_only_the_sensitivity_pruner_asks_for_sensitivities() -> None:
    assert SensitivityPruner.needs_sensitivity
    assert not BasePruner.needs_sensitivity
    assert not LocalPruner.needs_sensitivity


@table("cost", [math.nan, math.inf, -0.1])
def test_unusable_sensitivities_are_refused_with_the_layer(cost: float) -> None:
    with pytest.raises(OptionError, match=r"layer 1 carries no sensitivity; run the pruner in a pipeline"):
        SensitivityPruner(0.3).prune(sensitive([[0.5, 0.5]] * 2, [0.1, None]))
    with pytest.raises(OptionError, match=r"layer 1: sensitivity must be a finite number >= 0"):
        SensitivityPruner(0.3).prune(sensitive([[0.5, 0.5]] * 2, [0.1, cost]))


@table("limit", [0, -1.0, math.nan, math.inf, True, "2", None])
def test_bad_limits_are_refused_at_construction(limit: Any) -> None:
    with pytest.raises(OptionError, match="limit must be a finite number > 0"):
        SensitivityPruner(0.3, limit=limit)


class ByRowNorm(BasePruner):
    """Float (out, in) scores: rows of lowest L1 norm are removed."""

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        for layer in layer_list:
            layer.pruning_mask = layer.weight * -1.0


class ByDepth(BasePruner):
    """Sets an amount on every layer: a share, then a number, then None for the pruner's."""

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        for layer, amount in zip(layer_list, (0.5, 1, None), strict=False):
            layer.pruning_mask = layer.importance
            layer.amount = amount


class Keep(BasePruner):
    """Sets the keep mask itself, in a dtype that the test chooses."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__(0.9)
        self.mask = mask

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        for layer in layer_list:
            layer.pruning_mask = self.mask


def test_matrix_scores_count_by_their_row_norm() -> None:
    weight = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.5, 5.0], [0.0, 0.5]])
    record = LayerRecord("mlp", torch.full((4,), 0.25), weight=weight)
    assert record.in_features == 2
    assert ByRowNorm(0.5).prune([record])["mlp"].tolist() == [True, False, True, False]
    assert ByRowNorm(0.5).prune([LayerRecord("mlp", torch.full((4,), 0.25), weight=lambda: weight)]).kept == 2


def test_each_layer_may_have_its_amount() -> None:
    masks = ByDepth(0.75).prune(records([[0.1, 0.2, 0.3, 0.4]] * 3))
    assert [len(masks.removed(name)) for name in masks] == [2, 1, 3]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_keep_masks_are_taken_as_they_are(dtype: torch.dtype) -> None:
    mask = torch.tensor([0, 1, 1, 0, 1], dtype=dtype)
    assert Keep(mask).prune(records([[0.9, 0.025, 0.025, 0.025, 0.025]]))["layer 0"].tolist() == mask.bool().tolist()


def test_earlier_masks_and_amounts_are_cleared_from_the_records() -> None:
    layer_list = records([[0.1, 0.2, 0.3, 0.4]])
    ByDepth(0.5).prune(layer_list)
    assert lists(LocalPruner(1).prune(layer_list)) == [[False, True, True, True]]


def test_subclass_sees_what_it_needs_and_prunes_a_model() -> None:
    seen: list[dict[str, Any]] = []

    class Sees(BasePruner):
        def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
            for layer in layer_list:
                assert tuple(layer.weight.shape) == (layer.out_features, layer.in_features)
                assert bool((layer.weight >= 0).all())
                assert layer.in_activation is not None
                assert layer.out_activation is not None
                assert len(layer.in_activation) == layer.in_features
                assert len(layer.out_activation) == len(layer.importance) == layer.out_features
                assert float(layer.importance.sum()) == pytest.approx(1.0)
                seen.append({"name": layer.name})
                layer.pruning_mask = layer.out_activation * layer.weight.sum(1)
                layer.amount = 5

    model = tiny_llama()
    pipeline = IsolatedFFNPipeline(model, None, pruner=Sees(0.3), calibration=token_ids())
    pipeline.run()
    assert [entry["name"] for entry in seen] == ["model.layers.0.mlp", "model.layers.1.mlp"]
    assert [layer.mlp.up_proj.out_features for layer in model.model.layers] == [35, 35]
    assert not any(hasattr(module, "importance") for module in model.modules())


@table("amount", [math.nan, math.inf, -math.inf, 1.0, 1.5, -0.1, -1, "0.3", True, None])
@table("pruner", [LocalPruner, GlobalPruner, SensitivityPruner])
def test_bad_amounts_are_refused_at_construction(amount: Any, pruner: type[BasePruner]) -> None:
    with pytest.raises(OptionError, match="amount must"):
        pruner(amount)


@pytest.mark.parametrize("pruner", [LocalPruner, GlobalPruner, SensitivityPruner])
def test_shares_of_numpy_are_taken_as_floats(pruner: type[BasePruner]) -> None:
    layers = sensitive([[0.1, 0.2, 0.3, 0.4]] * 2, [0.1, 0.1])
    assert pruner(np.float64(0.5)).prune(layers) == pruner(0.5).prune(layers)


@table("value", [0, -1, 1.5, True, "8"])
@table("name", ["min_keep", "multiple_of"])
def test_bad_counts_are_refused_at_construction(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{name} must be an integer >= 1"):
        LocalPruner(0.3, **{name: value})


def test_unknown_normalisation_is_refused() -> None:
    with pytest.raises(OptionError, match="expected one of auto, zscore, robust, mean, none"):
        GlobalPruner(0.3, normalize="max")  # type: ignore[arg-type]


@table("pruner", [LocalPruner, GlobalPruner, SensitivityPruner])
@table("multiple_of", [1, 4])
def test_layers_smaller_than_min_keep_keep_all_that_they_have(pruner: type[BasePruner], multiple_of: int) -> None:
    small, large = (LayerRecord(f"{n}", torch.ones(n) / n, sensitivity=1.0) for n in (3, 12))
    assert pruner(0.0, 6, multiple_of).prune([small, large]).widths == {"3": 3, "12": 12}
    if pruner is not LocalPruner:  # the large one loses what the small one cannot
        assert pruner(4 / 15, 6, multiple_of).prune([small, large]).widths == {"3": 3, "12": 8}


def test_too_few_neurons_are_refused() -> None:
    with pytest.raises(OptionError, match=r"layer 1 would keep 0 of 3 neurons, fewer than min_keep=1"):
        LocalPruner(3).prune(records([[0.1] * 5, [0.2] * 3]))
    with pytest.raises(OptionError, match=r"layer 0 would keep 4 of 5 neurons, fewer than min_keep=5"):
        LocalPruner(0.2, min_keep=5).prune(records([[0.1] * 5]))
    with pytest.raises(OptionError, match="8 of 8 neurons cannot be removed: at most 6 can"):
        GlobalPruner(8).prune(records([[0.1] * 5, [0.2] * 3]))
    with pytest.raises(OptionError, match="would keep 0 of 3"):
        Keep(torch.zeros(3, dtype=torch.bool)).prune(records([[0.1] * 3]))


@given(
    layers=LAYERS,
    amount=st.one_of(st.integers(0, 90).map(lambda p: p / 100), st.floats(0, 0.999), st.integers(0, 12)),
    normalize=st.sampled_from(["auto", "zscore", "mean", "none"]),
    min_keep=st.integers(1, 3),
    multiple_of=st.sampled_from([1, 2, 3, 8]),
    explicit=st.booleans(),
)
def test_positions_below_a_count_are_what_pruners_remove(
    layers: list[list[float]], amount: float, normalize: Any, min_keep: int, multiple_of: int, explicit: bool
) -> None:
    entries = records(layers, explicit=explicit)
    sizes = [len(values) for values in layers]
    local = LocalPruner(amount, min_keep, multiple_of)
    together = GlobalPruner(amount, min_keep, multiple_of, normalize=normalize)
    own, all_of_them = local.removal_positions(entries), together.removal_positions(entries)
    assert [sorted(positions.tolist()) for positions in own] == [list(range(size)) for size in sizes]
    assert sorted(torch.cat(all_of_them).tolist()) == list(range(sum(sizes)))
    for positions, among_all in zip(own, all_of_them, strict=True):
        # Within a layer both budgets remove in the same order.
        assert torch.equal(ascending_positions(among_all), positions)
    counts = {
        local: [local_count(amount, size) for size in sizes],
        together: [int((places < global_count(amount, sum(sizes))).sum()) for places in all_of_them],
    }
    for pruner, removed in counts.items():
        try:
            masks = list(pruner.prune(entries).values())
        except OptionError:
            continue
        for positions, mask, count in zip(own, masks, removed, strict=True):
            size = len(positions)
            width = size - count if multiple_of == 1 else round_width(size - count, size, multiple_of, min_keep)
            assert (positions >= size - width).tolist() == mask.tolist()


def test_a_layer_of_round_off_keeps_the_order_of_its_importance() -> None:
    """Normalised it is a constant layer; but its own neurons are removed in the order of the local pruner."""
    scores = [[0.25 + k * 1e-15 for k in (3, 1, 2, 0)], [0.1, 0.2, 0.3, 0.4]]
    own = LocalPruner().removal_positions(records(scores))
    among_all = GlobalPruner(normalize="zscore").removal_positions(records(scores))
    assert [ascending_positions(positions).tolist() for positions in among_all] == [p.tolist() for p in own]
    assert own[0].tolist() == [3, 1, 2, 0]


def test_rounding_down_takes_the_lowest_of_what_was_kept_however_small() -> None:
    """Scores far below one still order the neurons beside a keep mask of ones."""
    scores = [3e-20, 1e-20, 2e-20, 0.0, 0.4, 0.6]
    mask = Keep(torch.tensor([1, 1, 1, 0, 1, 1], dtype=torch.bool))
    mask.multiple_of = 4
    assert lists(mask.prune(records([scores]))) == [[True, False, True, False, True, True]]


@pytest.mark.parametrize("pruner", [LocalPruner(), GlobalPruner()])
def test_importance_that_is_not_finite_has_no_order(pruner: LocalPruner | GlobalPruner) -> None:
    with pytest.raises(LLMRankError, match="layer 1: the importance is not finite"):
        pruner.removal_positions(records([[0.5, 0.5], [math.nan, 1.0]]))


class Returns(BasePruner):
    """Sets a pruning_mask that the test chooses."""

    mask: Any = None
    own: Any = None

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        for layer in layer_list:
            layer.pruning_mask, layer.amount = self.mask, self.own


@table(
    ("mask", "message"),
    [
        (None, "set no pruning_mask on layer 0"),
        (torch.ones(4), "layer 0: expected float scores of shape"),
        (torch.ones(3, 2, 2), "layer 0: expected float scores of shape"),
        (torch.ones(3, dtype=torch.int64), "layer 0: expected float scores of shape"),
        (torch.ones(3, 2, dtype=torch.bool), "layer 0: expected a keep mask of shape"),
        (torch.tensor([1.0, math.nan, 1.0]), "layer 0: the scores of Returns are not finite"),
    ],
)
def test_unusable_masks_are_refused_with_the_layer(mask: Any, message: str) -> None:
    pruner = Returns(0.3)
    pruner.mask = mask
    with pytest.raises(LLMRankError, match=message):
        pruner.prune(records([[0.2, 0.3, 0.5]]))


def test_bad_amount_of_a_layer_is_refused() -> None:
    pruner = Returns(0.3)
    pruner.mask, pruner.own = torch.ones(3), 1.5
    with pytest.raises(OptionError, match="amount must"):
        pruner.prune(records([[0.2, 0.3, 0.5]]))


def test_base_pruner_asks_for_the_override() -> None:
    with pytest.raises(NotImplementedError, match="must override extract_scores"):
        BasePruner(0.3).prune(records([[0.5, 0.5]]))
    with pytest.raises(LLMRankError, match="carries no weight"):
        _ = records([[1.0]])[0].weight
