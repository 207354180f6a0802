"""Budgets: their units, protected layers and impossible amounts, against textbook loops."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llmrank.errors import OptionError
from llmrank.models import find_ffns
from llmrank.models.costs import UNITS, ModelCosts, Unit
from llmrank.pipeline import BasePipeline
from llmrank.prune import (
    BasePruner,
    GlobalPruner,
    LayerRecord,
    LeastLossPruner,
    LocalPruner,
    SensitivityPruner,
    protected_names,
    sensitivity_counts,
)
from llmrank.prune.budget import Reached, budget_notes, check_budget, describe_amount, reached_amounts
from llmrank.prune.masks import Masks
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline
from tests.llmrank.tiny_models import STRUCTURE, Snapshot, mlp, tiny_llama, token_ids
from tests.pairwise import pairwise
from tests.tables import table

NAMES = [f"model.layers.{k}.mlp" for k in range(12)]
PRUNERS = [LocalPruner, GlobalPruner, SensitivityPruner]
every_pruner = pytest.mark.parametrize("pruner", PRUNERS)


def records(layers: Sequence[Sequence[float]], names: Sequence[str] = NAMES) -> list[LayerRecord]:
    return [
        LayerRecord(name, torch.tensor(scores, dtype=torch.float64), sensitivity=0.1)
        for name, scores in zip(names, layers, strict=False)
    ]


def random_scores(sizes: Sequence[int], seed: int) -> list[list[float]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(n, generator=generator, dtype=torch.float64).tolist() for n in sizes]


# --- protected layers


@table(
    ("protect", "positions"),
    [
        ((), []),
        ([0, -1], [0, 11]),
        ("model.layers.1", [1]),
        ("model.layers.1*", [1, 10, 11]),
        (["model.layers.[23].mlp", 2, "*.11.*"], [2, 3, 11]),
        ("*", list(range(12))),
        (3, [3]),
    ],
)
def test_layers_are_named_by_pattern_or_position(protect: Any, positions: list[int]) -> None:
    assert protected_names(LocalPruner(protect=protect).protect, NAMES) == {NAMES[k] for k in positions}


@table("protect", ["model.layers.12", "mlp", "MODEL.layers.0.mlp", 12, -13, "model.layers.[0", ""])
def test_entries_that_select_no_layer_are_refused_with_the_names(protect: str | int) -> None:
    for pruner in (LocalPruner(0.5, protect=["*.0.mlp", protect]), GlobalPruner(0.5, protect=protect)):
        with pytest.raises(
            OptionError, match=r"selects no prunable layer.*model\.layers\.0\.mlp, model\.layers\.1\.mlp"
        ):
            pruner.prune(records([[0.5, 0.5]] * 12))


@table("protect", [True, 1.5, [None], [["a"]], {"a": 1}, {0}])
def test_other_types_are_refused_at_construction(protect: Any) -> None:
    with pytest.raises(OptionError, match="protect must be names or patterns"):
        LocalPruner(protect=protect)


@every_pruner
def test_protected_layers_keep_everything(pruner: type[BasePruner]) -> None:
    scores = random_scores([30, 18, 10], 0)
    masks = pruner(0.3, multiple_of=4, protect=[1, "model.layers.2"]).prune(records(scores))
    assert list(masks.widths.values())[1:] == [18, 10]
    assert masks.widths[NAMES[0]] in (12, 20)


def test_other_layers_lose_more_under_a_global_budget_and_the_same_under_a_local_one() -> None:
    scores = random_scores([20, 20, 20], 1)
    assert list(LocalPruner(0.25, protect=1).prune(records(scores)).widths.values()) == [15, 20, 15]
    widths = GlobalPruner(0.25, protect=1, normalize="none").prune(records(scores)).widths
    assert widths[NAMES[1]] == 20
    assert sum(widths.values()) == 45
    # The lowest 15 of the two that are not protected.
    lowest = sorted((score, k) for k in (0, 2) for score in scores[k])[:15]
    assert widths[NAMES[0]] == 20 - sum(k == 0 for _, k in lowest)
    assert list(SensitivityPruner(0.25, protect=1).prune(records(scores)).widths.values()) == [12, 20, 13]


def test_protected_layers_do_not_count_for_the_median() -> None:
    """Of 0.1, 0.1 and 0.5 the last is above 2 medians; of 0.1 and 0.5 it is not."""
    layers = [0.1, 0.1, 0.5]
    assert sensitivity_counts([100] * 3, layers, 0.3) == [39, 39, 12]
    assert sensitivity_counts([100] * 3, layers, np.float64(0.3)) == [39, 39, 12]
    with pytest.raises(OptionError, match=r"amount must be a share in \[0, 1\)"):
        sensitivity_counts([100] * 3, layers, 1.5)
    assert sensitivity_counts([100] * 3, layers, 0.3, protected=[True, False, False]) == [0, 45, 45]
    assert sensitivity_counts([100] * 2, layers[:2], 0.3, protected=[True, True]) == [0, 0]
    with pytest.raises(
        OptionError, match=r"at most 99 can, .*min_keep=1 and the protected layers all of theirs; lower"
    ):
        sensitivity_counts([100] * 2, layers[:2], 0.5, protected=[True, False])


def test_protection_overrules_pruners_of_third_parties() -> None:
    class Half(BasePruner):
        def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
            for layer in layer_list:
                layer.pruning_mask = torch.arange(layer.out_features) % 2 == 0

    assert list(Half(protect=-1).prune(records([[0.1] * 4] * 3)).widths.values()) == [2, 2, 4]


def test_protection_is_set_anew_at_every_call() -> None:
    entries = records([[0.1, 0.2]] * 2)
    LocalPruner(0.5, protect=0).prune(entries)
    assert list(LocalPruner(0.5).prune(entries).widths.values()) == [1, 1]


# --- units of an amount


def sequential(sizes: Sequence[int]) -> tuple[nn.Module, ModelCosts, list[str]]:
    model = mlp(*sizes)
    ffns = find_ffns(model)
    return model, ModelCosts(model, ffns), [layer.name for ffn in ffns for layer in ffn.prunable.values()]


def parameters_left(sizes: Sequence[int]) -> int:
    return sum((a + 1) * b for a, b in itertools.pairwise(sizes))


@given(
    hidden=st.lists(st.integers(2, 12), min_size=1, max_size=3),
    share=st.integers(0, 60).map(lambda p: p / 100),
    seed=st.integers(0, 5),
)
def test_global_pruning_removes_the_fewest_neurons_that_reach_the_parameters(
    hidden: list[int], share: float, seed: int
) -> None:
    sizes = [4, *hidden, 3]
    _, costs, names = sequential(sizes)
    scores = random_scores(hidden, seed)
    # One by one, from the lowest.
    left, whole = list(hidden), parameters_left(sizes)
    order = sorted((score, layer) for layer, values in enumerate(scores) for score in values)
    wanted = Fraction(repr(share)) * whole
    while order and whole - parameters_left([4, *left, 3]) < wanted:
        _, layer = order.pop(0)
        if left[layer] > 1:
            left[layer] -= 1
    pruner = GlobalPruner(share, normalize="none", amount_of="parameters")
    if whole - parameters_left([4, *left, 3]) < wanted:
        with pytest.raises(OptionError, match="model parameters cannot be removed: at most"):
            pruner.prune(records(scores, names), costs)
    else:
        assert list(pruner.prune(records(scores, names), costs).widths.values()) == left


@given(hidden=st.lists(st.integers(2, 12), min_size=1, max_size=3), share=st.integers(0, 60).map(lambda p: p / 100))
def test_local_pruning_removes_the_same_share_of_every_layer(hidden: list[int], share: float) -> None:
    sizes = [4, *hidden, 3]
    _, costs, names = sequential(sizes)
    whole = parameters_left(sizes)
    # Shares at which any layer changes, from the lowest.
    found = None
    for part in sorted({(k - 0.25) / sum(hidden) for k in range(1, sum(hidden))} | {0.0}):
        left = [n - round(part * n) for n in hidden]
        if min(left) > 0 and whole - parameters_left([4, *left, 3]) >= Fraction(repr(share)) * whole:
            found = left
            break
    pruner = LocalPruner(share, amount_of="parameters")
    entries = records(random_scores(hidden, 0), names)
    if found is None:
        with pytest.raises(OptionError, match="at most"):
            pruner.prune(entries, costs)
    else:
        assert list(pruner.prune(entries, costs).widths.values()) == found


@every_pruner
@table("unit", [unit for unit in UNITS if unit not in {"neurons", "cache"}])
def test_every_unit_is_reached_by_the_fewest_neurons(pruner: type[BasePruner], unit: Unit) -> None:
    model = tiny_llama(num_hidden_layers=3)
    ffns = find_ffns(model)
    costs = ModelCosts(model, ffns)
    entries = records(random_scores([40] * 3, 2))
    masks = pruner(0.2, amount_of=unit).prune(entries, costs)
    removed = costs.removed_cost(masks.widths, unit)
    assert removed >= 0.2 * costs.total(unit)
    # One neuron less from each layer that loses some would not suffice; under one budget not even a single one less.
    step = 3 if pruner is LocalPruner else 1
    assert removed - step * (removed // (120 - masks.kept)) < 0.2 * costs.total(unit)
    # The same as a number.
    count = math.ceil(0.2 * costs.total(unit))
    assert pruner(count, amount_of=unit).prune(entries, costs) == masks


def test_with_equal_widths_a_share_of_ffn_parameters_is_one_of_neurons() -> None:
    model = tiny_llama(num_hidden_layers=3)
    costs = ModelCosts(model, find_ffns(model))
    for pruner in (LocalPruner, GlobalPruner):
        entries = records(random_scores([40] * 3, 3))
        assert pruner(0.3, amount_of="ffn-parameters").prune(entries, costs) == pruner(0.3).prune(entries)


def test_other_layers_lose_what_protected_layers_do_not() -> None:
    model = tiny_llama(num_hidden_layers=3)
    costs = ModelCosts(model, find_ffns(model))
    for pruner in (LocalPruner, GlobalPruner):
        masks = pruner(0.2, amount_of="bytes", protect=0).prune(records(random_scores([40] * 3, 3)), costs)
        assert masks.widths[NAMES[0]] == 40
        assert 0.2 <= costs.removed_cost(masks.widths, "bytes") / costs.total("bytes") < 0.23


@table("pruner", [LocalPruner, GlobalPruner])
@table(("multiple", "most"), [(1, 0.21), (8, 0.27), (16, 0.31)])
def test_rounded_widths_reach_a_cost(pruner: type[BasePruner], multiple: int, most: float) -> None:
    model = tiny_llama()
    costs = ModelCosts(model, find_ffns(model))
    masks = pruner(0.2, multiple_of=multiple, amount_of="bytes").prune(records(random_scores([40] * 2, 4)), costs)
    assert {width % multiple for width in masks.widths.values()} <= {0, 40 % multiple}
    assert 0.2 <= costs.removed_cost(masks.widths, "bytes") / costs.total("bytes") < most


@every_pruner
def test_large_layers_keep_fast_widths_by_default(pruner: type[BasePruner]) -> None:
    sizes = [1536, 511, 256, 255]
    layers = records(random_scores(sizes, 5))
    widths = list(pruner(0.3).prune(layers).widths.values())
    assert [width % multiple for width, multiple in zip(widths, (64, 32, 32, 1), strict=True)] == [0] * 4
    exact = list(pruner(0.3, multiple_of=1).prune(layers).widths.values())
    assert [abs(a - b) <= n / 16 for a, b, n in zip(widths, exact, sizes, strict=True)] == [True] * 4
    assert widths[3] == exact[3]
    # A number of neurons is that number.
    number = [pruner(5, multiple_of=multiple).prune(layers).widths for multiple in ("auto", 1)]
    assert number[0] == number[1]


def test_a_small_share_is_not_rounded_to_nothing() -> None:
    for percent in range(1, 100):
        masks = LocalPruner(percent / 100).prune(records(random_scores([1536], 6)))
        assert 0 < masks.removed_share <= percent / 100 + 1 / 24
        assert percent > 95 or abs(masks.removed_share - percent / 100) <= 1 / 48
    for n, min_keep in ((1537, 1), (1000, 1), (1024, 970)):
        (scores,) = random_scores([n], 7)
        removed = []
        for count in range(1, n // 2):
            if count > n - min_keep:
                break
            masks = LocalPruner(count / n, min_keep=min_keep).prune(records([scores]))
            removed.append(n - masks.kept)
            assert abs(removed[-1] - count) <= max(count / 2, 0)
        assert removed == sorted(removed)


def test_layers_that_get_no_smaller_lose_the_exact_share() -> None:
    (scores,) = random_scores([1024], 8)
    explicit = LayerRecord("rows", torch.tensor(scores), explicit=True)
    assert LocalPruner(0.3).prune([explicit]).kept == 1024 - 307
    assert LocalPruner(0.3, multiple_of=64).prune([explicit]).kept == 704


def test_the_default_widths_reach_a_cost_and_say_what_is_possible() -> None:
    model = tiny_llama(intermediate_size=1024)
    ffns = find_ffns(model)
    costs = ModelCosts(model, ffns)
    layers = records(random_scores([1024] * 2, 7))
    for share in (0.1, 0.3, 0.5, 0.8):
        masks = LocalPruner(share, amount_of="bytes").prune(layers, costs)
        assert {width % 64 for width in masks.widths.values()} == {0}
        assert share <= costs.removed_cost(masks.widths, "bytes") / costs.total("bytes") < share + 1 / 16
    asked = LocalPruner(0.93, amount_of="ffn-bytes")
    check_budget(asked, ffns, costs, jointly=True)
    for refused in (0.95, 0.99):
        with pytest.raises(OptionError, match=r"at most 93\.7% can.*and a multiple of 64 \(multiple_of\)"):
            check_budget(LocalPruner(refused, amount_of="ffn-bytes"), ffns, costs, jointly=True)
        check_budget(LocalPruner(refused, multiple_of=1, amount_of="ffn-bytes"), ffns, costs, jointly=True)
    sentence = describe_amount(LocalPruner(0.3), ffns, costs)
    assert sentence.startswith("320 of 1,024 hidden neurons in each of 2 layers (640 in total, 31.2 %)")
    assert sentence.endswith("with widths rounded to multiples of 64 (multiple_of=1 rounds none)")
    assert describe_amount(GlobalPruner(0.3), ffns, costs).endswith(
        "before widths are rounded to multiples of 64 (multiple_of=1 rounds none)"
    )
    assert "multiple" not in describe_amount(LocalPruner(0.3, multiple_of=1), ffns, costs)
    # An amount of a cost is described with the multiple that its share of the neurons has.
    assert "multiples of 32 (" in describe_amount(LocalPruner(0.03, amount_of="ffn-bytes"), ffns, costs)
    assert "multiple" not in describe_amount(LocalPruner(0.005, amount_of="ffn-bytes"), ffns, costs)


@pytest.mark.parametrize("pruner", [*PRUNERS, BasePruner])
def test_more_than_can_be_removed_is_refused_with_the_possible_amount(pruner: type[BasePruner]) -> None:
    model = tiny_llama()
    ffns = find_ffns(model)
    costs = ModelCosts(model, ffns)
    most = 2 * 39 * 48 / costs.total("parameters")
    message = (
        rf"95.0% of the model parameters cannot be removed: at most {math.floor(1000 * most) / 10:.1f}% can.*embeddings"
    )
    with pytest.raises(OptionError, match=message):
        check_budget(pruner(0.95, amount_of="parameters"), ffns, costs, jointly=True)
    # The amount in the message is possible.
    check_budget(pruner(math.floor(1000 * most) / 1000, amount_of="parameters"), ffns, costs, jointly=True)
    with pytest.raises(
        OptionError, match=f"9,999 of {costs.total('ffn-parameters'):,} FFN parameters.*at most 3,744 can"
    ):
        check_budget(pruner(9999, amount_of="ffn-parameters"), ffns, costs, jointly=True)
    with pytest.raises(OptionError, match=r"at most 1,872 can.*and the protected layers all of theirs; lower"):
        check_budget(pruner(2000, amount_of="ffn-parameters", protect=0), ffns, costs, jointly=True)


def test_an_amount_of_costs_needs_costs_and_a_known_unit() -> None:
    with pytest.raises(OptionError, match="an amount of model bytes needs the costs of the model; run the pruner in a"):
        LocalPruner(0.2, amount_of="bytes").prune(records([[0.5, 0.5]]))
    with pytest.raises(OptionError, match="unknown amount_of 'tokens'; expected one of neurons, ffn-parameters"):
        LocalPruner(0.2, amount_of="tokens")  # type: ignore[arg-type]


# --- normalisation


@given(
    layers=st.lists(st.lists(st.integers(0, 5).map(lambda k: k / 8), min_size=2, max_size=9), min_size=2, max_size=4)
)
def test_robust_normalisation_by_sorting(layers: list[list[float]]) -> None:
    def median(values: Sequence[float]) -> float:
        ordered, n = sorted(values), len(values)
        return ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2

    standing = []
    for scores in layers:
        away = [score - median(scores) for score in scores]
        sizes = [abs(value) for value in away]
        spread = median(sizes) or sum(sizes) / len(sizes) or 1.0
        standing.append([value / spread for value in away])
    count = sum(map(len, layers)) - len(layers) - 1
    keep = [[True] * len(scores) for scores in layers]
    left = count
    for _, layer, k in sorted((round(s, 9), i, k) for i, values in enumerate(standing) for k, s in enumerate(values)):
        if left and sum(keep[layer]) > 1:
            keep[layer][k] = False
            left -= 1
    found = GlobalPruner(count, normalize="robust").prune(records(layers))
    assert list(found.widths.values()) == [sum(mask) for mask in keep]


def test_with_robust_normalisation_a_heavy_tail_does_not_spare_a_layer() -> None:
    even = [0.5 + 0.05 * k for k in range(10)]
    heavy = [*even[:9], 90.0]
    spared = GlobalPruner(4, normalize="zscore").prune(records([even, heavy])).widths
    fair = GlobalPruner(4, normalize="robust").prune(records([even, heavy])).widths
    assert list(spared.values()) == [6, 10]
    assert list(fair.values()) == [8, 8]


# --- checks before anything is measured, and notes afterwards


@table(
    ("pruner", "message"),
    [
        (LocalPruner(40), "would keep 0 of 40 neurons, fewer than min_keep=1.*at most 39"),
        (GlobalPruner(80), "80 of 80 neurons cannot be removed: at most 78 can"),
        (SensitivityPruner(40), "80 of 80 neurons cannot be removed"),
        (LocalPruner(0.9, amount_of="bytes"), "at most"),
        (LocalPruner(protect="model.layers.7"), "selects no prunable layer"),
        (GlobalPruner(0.6, protect=0), "and the protected layers all of theirs"),
        (GlobalPruner(protect=[0, 1]), "every prunable layer is protected"),
    ],
)
@table("topology", [ChainedFFNPipeline, IsolatedFFNPipeline])
def test_impossible_budgets_cost_no_pass(pruner: BasePruner, message: str, topology: type[BasePipeline]) -> None:
    model = tiny_llama()
    snapshot = Snapshot(model)
    calls: list[Any] = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(OptionError, match=message):
        topology(model, None, pruner=pruner, calibration=token_ids(), evaluation=token_ids(1, 8)).run()
    handle.remove()
    assert calls == []
    snapshot.assert_restored()


def test_listed_linears_are_counted_group_by_group_and_protected_by_name() -> None:
    for pruner in (LocalPruner(0.25, protect="*.0.mlp"), GlobalPruner(0.25, protect="*.0.mlp")):
        pipeline = IsolatedFFNPipeline(tiny_llama(), None, STRUCTURE, pruner=pruner, calibration=token_ids())
        pipeline.run()
        assert pipeline.masks is not None
        widths = list(pipeline.masks.widths.values())
        assert widths[:2] == [40, 16]
        assert sum(widths[2:]) == 42
    with pytest.raises(
        OptionError, match=r"structure_dict zeroes rows of Linears.*an amount of model bytes means nothing"
    ):
        IsolatedFFNPipeline(tiny_llama(), None, STRUCTURE, pruner=LocalPruner(0.2, amount_of="bytes"))


@pytest.mark.parametrize("form", ["compact", "zero", "mask"])
def test_reports_hold_the_reached_amount_in_each_unit(form: Any) -> None:
    model = tiny_llama()
    pipeline = IsolatedFFNPipeline(
        model, None, pruner=GlobalPruner(0.2, amount_of="bytes"), calibration=token_ids(), form=form
    )
    pipeline.run()
    assert pipeline.report is not None
    plain = pipeline.report.to_dict()
    reached = plain["reached"]
    assert list(reached) == [unit for unit in UNITS if unit != "cache"]  # no heads were looked for
    assert plain["neurons"]["amount_of"] == "bytes"
    assert 0.2 <= reached["bytes"]["share"] < 0.21
    assert reached["neurons"]["removed"] == plain["neurons"]["removed"]
    if form == "compact":
        assert reached["bytes"]["removed"] == plain["before"]["bytes"] - plain["after"]["bytes"]
    assert plain["warnings"] == []


def test_rounding_that_misses_a_target_is_noted() -> None:
    model = tiny_llama()
    ffns = find_ffns(model)
    costs = ModelCosts(model, ffns)
    asked = LocalPruner(0.2, multiple_of=16, amount_of="bytes")
    found = reached_amounts(Masks({name: torch.arange(40) < 32 for name in NAMES[:2]}), costs)
    (sentence,) = budget_notes(asked, found)
    assert f"{found['bytes']['share']:.2%} of the model bytes was removed where 20.00% was asked for" in sentence
    assert sentence.endswith("widths are rounded")
    more = {**found, "bytes": {**found["bytes"], "share": 0.25}}
    assert budget_notes(asked, more)[0].endswith("the next larger widths would save too little")
    assert budget_notes(LocalPruner(found["bytes"]["share"], amount_of="bytes"), found) == []
    assert budget_notes(LocalPruner(int(found["bytes"]["removed"]), amount_of="bytes"), found) == []
    assert budget_notes(LocalPruner(8), found) == []
    assert "20.0% was removed where 30.0% was asked for" in budget_notes(LocalPruner(0.3), found)[0]


@table(("share", "said"), [(0.1985, True), (0.1995, False), (0.2195, False), (0.2205, True)])
@table("amount", [0.2, 200])
def test_costs_may_be_exceeded_by_more_than_they_may_be_missed_by(amount: float, share: float, said: bool) -> None:
    reached: Reached = {"bytes": {"before": 1000, "removed": 1000 * share, "share": share}}
    assert bool(budget_notes(LocalPruner(amount, amount_of="bytes"), reached)) is said


@table(("share", "said"), [(0.179, True), (0.181, False), (0.219, False), (0.221, True)])
def test_neurons_may_be_missed_by_rounding_either_way(share: float, said: bool) -> None:
    reached: Reached = {"neurons": {"before": 1000, "removed": 1000 * share, "share": share}}
    assert bool(budget_notes(LocalPruner(0.2), reached)) is said


# --- descriptions of an amount


class Halving(BasePruner):
    """A pruner of a third party, whose number of neurons is unknown before it has seen the scores."""

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        for layer in layer_list:
            layer.pruning_mask = layer.weight.sum(1) > 1


@table(
    ("pruner", "said"),
    [
        # A gated FFN over 16 features has 48 parameters for each neuron; the model has 7,504.
        (
            LocalPruner(30),
            "30 of 40 hidden neurons in each of 2 layers (60 in total, 75.0 %), 2,880 of 7,504 parameters",
        ),
        (
            LocalPruner(0.3),
            "12 of 40 hidden neurons in each of 2 layers (24 in total, 30.0 %), 1,152 of 7,504 parameters",
        ),
        (
            LocalPruner(0.3, multiple_of=16),
            "8 of 40 hidden neurons in each of 2 layers (16 in total, 20.0 %), 768 of 7,504 parameters",
        ),
        (
            LocalPruner(30, protect=0),
            "30 of 80 hidden neurons in 1 layer (37.5 %; 1 protected layer keeps all), 1,440 of 7,504 parameters",
        ),
        (GlobalPruner(30), "30 of 80 hidden neurons in 2 layers together (37.5 %), 1,440 of 7,504 parameters"),
        (GlobalPruner(0.3), "24 of 80 hidden neurons in 2 layers together (30.0 %), 1,152 of 7,504 parameters"),
        (
            GlobalPruner(0.3, multiple_of=16),
            "24 of 80 hidden neurons in 2 layers together (30.0 %), 1,152 of 7,504 parameters, before widths are rounded",
        ),
        (SensitivityPruner(30), "60 of 80 hidden neurons in 2 layers together (75.0 %), 2,880 of 7,504 parameters"),
        (SensitivityPruner(0.3), "24 of 80 hidden neurons in 2 layers together (30.0 %), 1,152 of 7,504 parameters"),
        (
            LocalPruner(0.2, amount_of="bytes"),
            "6,144 of 30,016 model bytes (20.5 %), with 16 of 40 hidden neurons in each of 2 layers (32 in total, 40.0 %), 1,536",
        ),
        (
            GlobalPruner(1000, amount_of="parameters"),
            "1,008 of 7,504 model parameters (13.4 %), with 21 of 80 hidden neurons in 2 layers together (26.2 %)",
        ),
        (LeastLossPruner(0.3), "at least 24 of 80 neurons (30.0 %), where that is expected to cost least"),
        (
            LeastLossPruner(0.1, amount_of="parameters"),
            "at least 751 of 7,504 model parameters (10.0 %), where that is expected to cost least",
        ),
        (Halving(0.3), "Halving decides how many neurons that is"),
    ],
)
def test_an_amount_is_described_in_neurons_as_a_share_and_in_parameters(pruner: BasePruner, said: str) -> None:
    model = tiny_llama()
    ffns = find_ffns(model)
    assert describe_amount(pruner, ffns, ModelCosts(model, ffns)).startswith(said)


@pairwise(pruner=PRUNERS, unit=[unit for unit in UNITS if unit != "cache"], amount=[5, 0.3], protect=[(), (1,)])
def test_the_described_amount_is_what_is_removed(
    pruner: type[BasePruner], amount: float, protect: Sequence[int], unit: Unit
) -> None:
    if unit != "neurons":
        amount = 300 * amount if isinstance(amount, int) else amount / 4
    model = tiny_llama()
    made = pruner(amount, protect=protect, amount_of=unit)
    ffns = find_ffns(model)
    said = describe_amount(made, ffns, ModelCosts(model, ffns))
    pipeline = IsolatedFFNPipeline(model, None, pruner=made, calibration=token_ids())
    pipeline.run()
    report = pipeline.report
    assert report is not None
    removed = report.reached["neurons"]["removed"]
    assert f"({removed} in total" in said or f"{removed} of 80 hidden neurons in" in said
    told = re.search(r"([0-9,]+) of 7,504 (model )?parameters", said)
    assert told is not None
    assert int(told[1].replace(",", "")) == report.before.parameters - report.after.parameters
    if unit != "neurons":
        assert said.startswith(f"{report.reached[unit]['removed']:,} of {report.reached[unit]['before']:,} ")


def test_layers_of_different_widths_and_costs_are_described_in_total() -> None:
    model = mlp(4, 8, 20, 3)
    ffns = find_ffns(model)
    costs = ModelCosts(model, ffns)
    assert describe_amount(LocalPruner(2), ffns, costs).startswith("4 of 28 hidden neurons in 2 layers (14.3 %), ")
    # 8 neurons of 4 + 1 + 20 parameters, and 20 of 8 + 1 + 3: two have 2 * 440 / 28 on average.
    said = describe_amount(GlobalPruner(2), ffns, costs)
    assert said == "2 of 28 hidden neurons in 2 layers together (7.1 %), about 31 of 283 parameters"


@every_pruner
def test_amounts_beyond_any_model_are_refused(pruner: type[BasePruner]) -> None:
    layers = records(random_scores((8, 8), 0))
    with pytest.raises(OptionError, match="min_keep=1"):
        pruner(10**23).prune(layers)
    assert pruner(10**23, protect="*").prune(layers).widths == {NAMES[0]: 8, NAMES[1]: 8}
