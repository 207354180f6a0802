"""Summaries against textbook loops, networkx and scipy, and what must hold for any scores."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse, stats

from graphs import GraphError, LayeredGraph, RankResult, modified_pagerank, pagerank, weighted_pagerank
from graphs.blocks import DenseBlock
from graphs.summary import (
    LayerSummary,
    Spread,
    effective_number,
    flow,
    gini,
    kept_overlap,
    layer_flows,
    lorenz,
    percentiles,
    positions,
    rank_correlation,
    score_buckets,
    strengths,
    summarise,
    to_columns,
    top_share,
)
from llmrank.prune import keep_highest
from tests.graphs.cases import MAGNITUDES, SHARES, Array, Case, cases, random_case, transition_matrix, unit

# What a user may hand over -> what the library is given, and the weights it is to see.
FORMS: dict[str, Callable[[Array], tuple[Any, Array]]] = {
    "csr": lambda w: (sparse.csr_array(w), np.abs(w)),
    "float64": lambda w: (w, np.abs(w)),
    "float32": lambda w: (w.astype(np.float32), np.abs(w.astype(np.float32)).astype(np.float64)),
    "column-major": lambda w: (np.asfortranarray(w), np.abs(w)),
    "bfloat16": lambda w: (torch.tensor(w).bfloat16(), torch.tensor(w).bfloat16().double().abs().numpy()),
    "parallel": lambda w: ((w, 2 * w[:, ::-1]), np.abs(w) + 2 * np.abs(w[:, ::-1])),
    "three": lambda w: (
        (torch.tensor(w), torch.tensor(w[::-1].copy()), torch.tensor(w)),
        2 * np.abs(w) + np.abs(w[::-1]),
    ),
}
every_form = pytest.mark.parametrize("form", FORMS)

scores_of_a_layer = st.integers(1, 30).flatmap(lambda n: arrays(np.float64, n, elements=MAGNITUDES))
# Small integers tie often.
tied = st.lists(st.integers(0, 4).map(float), min_size=1, max_size=12)


def formed(case: Case, form: str) -> tuple[LayeredGraph, Case]:
    """The graph in a form of weights, and the case whose weights are those of the graph."""
    pairs = [FORMS[form](weight) for weight in case.weights]
    return case.graph([given for given, _ in pairs]), dataclasses.replace(case, weights=[seen for _, seen in pairs])


def as_scores(rank: RankResult, **changes: Any) -> RankResult:
    """The same scores, as a scorer that knows no graph gives them."""
    return dataclasses.replace(rank, method="NormScorer", parameters={}, **changes)


# --- concentration


def gini_by_pairs(scores: Array) -> float:
    total = sum(abs(a - b) for a in scores for b in scores)
    return float(total / (2 * len(scores) * sum(scores))) if sum(scores) else 0.0


@given(scores_of_a_layer)
def test_gini_is_the_mean_difference_of_all_pairs(scores: Array) -> None:
    assert gini(scores) == pytest.approx(gini_by_pairs(scores), abs=1e-12)
    assert 0.0 <= gini(scores) < 1.0


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_concentration_at_its_ends(size: int) -> None:
    one = np.zeros(size)
    one[size // 2] = 3.0
    assert gini(one) == pytest.approx(1 - 1 / size)
    assert effective_number(one) == 1.0
    assert top_share(one, 1 / size if size < 8 else 0.001) == 1.0
    for level in (0.0, 0.1, 3.0):  # zeros count as uniform
        equal = np.full(size, level)
        assert gini(equal) == 0.0
        assert effective_number(equal) == pytest.approx(size, rel=1e-14)
        assert top_share(equal, 0.5) == pytest.approx(math.ceil(size / 2) / size)
        np.testing.assert_allclose(lorenz(equal)[1], lorenz(equal)[0], atol=1e-14)


@given(scores_of_a_layer)
def test_effective_number_is_the_inverse_of_the_sum_of_squared_shares(scores: Array) -> None:
    squares = sum(p * p for p in unit(scores).tolist())
    assert effective_number(scores) == pytest.approx(1 / squares)
    assert 1.0 <= effective_number(scores) <= len(scores)


@given(scores_of_a_layer, st.floats(0.0, 1.0))
def test_top_share_by_a_loop(scores: Array, share: float) -> None:
    count = math.ceil(Fraction(repr(share)) * len(scores))
    held = sum(sorted(unit(scores).tolist(), reverse=True)[:count])
    assert top_share(scores, share) == pytest.approx(held, abs=1e-12)
    assert 0.0 <= top_share(scores, share) <= 1.0


def test_the_top_share_reads_the_share_as_it_is_written() -> None:
    assert 0.07 * 100 > 7
    assert top_share(np.ones(100), 0.07) == pytest.approx(0.07)
    assert top_share(np.ones(3), 0) == 0.0
    assert top_share(np.ones(3), 1) == 1.0


@given(scores_of_a_layer)
def test_the_lorenz_curve_is_convex_below_the_diagonal_and_measures_gini(scores: Array) -> None:
    x, y = lorenz(scores)
    assert len(x) == len(y) == len(scores) + 1
    assert (x[0], y[0], x[-1], y[-1]) == (0.0, 0.0, 1.0, 1.0)
    steps = np.diff(y)
    assert (steps >= 0).all()
    assert (np.diff(steps) >= -1e-14).all()
    assert (y <= x + 1e-14).all()
    area = float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum())
    assert gini(scores) == pytest.approx(1 - 2 * area, abs=1e-12)
    assert y[-2] == pytest.approx(1 - top_share(scores, 1e-9))


@given(scores_of_a_layer, st.floats(1e-3, 1e3), st.randoms(use_true_random=False))
def test_concentration_knows_neither_scale_nor_order_nor_copies(scores: Array, scale: float, random: Any) -> None:
    order = list(range(len(scores)))
    random.shuffle(order)
    for measure in (gini, effective_number, lambda s: top_share(s, 0.25)):
        # Exact where nothing rounds.
        assert measure(scores * 0.125) == measure(scores)
        assert measure(scores * scale) == pytest.approx(measure(scores), abs=1e-12)
        assert measure(scores[order]) == pytest.approx(measure(scores), rel=1e-13)
    assert gini(scores[order]) == gini(scores)
    assert gini(np.tile(scores, 3)) == pytest.approx(gini(scores), abs=1e-12)
    assert effective_number(np.tile(scores, 3)) == pytest.approx(3 * effective_number(scores))


@pytest.mark.parametrize("scale", [5e-324, 1e-200, 1e200, 4e307])
def test_concentration_at_the_ends_of_float64(scale: float) -> None:
    scores = np.array([1.0, 2.0, 4.0, 1.0])
    assert gini(scores * scale) == pytest.approx(gini(scores))
    assert effective_number(scores * scale) == pytest.approx(effective_number(scores))
    assert top_share(scores * scale, 0.25) == pytest.approx(0.5)
    np.testing.assert_allclose(lorenz(scores * scale)[1], [0, 0.125, 0.25, 0.5, 1])


# --- agreement


@given(tied, st.data())
def test_rank_correlation_is_scipys(a: list[float], data: st.DataObject) -> None:
    b = data.draw(st.lists(st.integers(-3, 3), min_size=len(a), max_size=len(a)))
    found = rank_correlation(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
        assert found == rank_correlation(b, a)
        assert rank_correlation(a, a) == pytest.approx(1.0)
        assert rank_correlation(a, np.negative(b)) == pytest.approx(-found)
        assert rank_correlation(np.exp(a), b) == found


def test_kept_overlap() -> None:
    a, b = np.array([True, True, True, False]), torch.tensor([True, False, True, True])
    assert kept_overlap(a, b) == 2 / 3
    assert kept_overlap(a, a) == 1.0
    assert kept_overlap(a, ~a) == 0.0
    assert kept_overlap([True, False], [True, True]) == 1.0
    assert kept_overlap([True, True], [True, False]) == 0.5
    assert math.isnan(kept_overlap([False, False], [True, False]))


@given(tied)
def test_positions_follow_the_order_of_removal(scores: list[float]) -> None:
    found = positions(scores)
    alive = dict(enumerate(scores))
    while alive:
        lowest = min(alive, key=lambda node: (alive[node], node))
        assert found[lowest] == len(alive) - 1
        del alive[lowest]
    for count in range(len(scores) + 1):
        np.testing.assert_array_equal(found < count, keep_highest(torch.tensor(scores), count).numpy())


@given(tied)
def test_percentiles_are_scipys_of_the_mean_kind(scores: list[float]) -> None:
    expected = [stats.percentileofscore(scores, score, kind="mean") / 100 for score in scores]
    np.testing.assert_allclose(percentiles(scores), expected)
    assert percentiles(scores).mean() == pytest.approx(0.5)


@given(tied, st.integers(1, 15))
def test_equal_buckets(scores: list[float], buckets: int) -> None:
    found, places = score_buckets(scores, buckets), positions(scores)
    for node, bucket in enumerate(found):
        # Bucket b takes the places from ceil(b n / B) on.
        assert -(-bucket * len(scores) // buckets) <= places[node] < -(-(bucket + 1) * len(scores) // buckets)
    sizes = np.bincount(found, minlength=buckets)
    assert sizes[0] >= 1
    assert np.ptp(sizes) <= 1


def test_buckets_by_shares() -> None:
    scores = np.arange(1000.0)
    assert np.bincount(score_buckets(scores, (0.01, 0.09, 0.9))).tolist() == [10, 90, 900]
    assert np.bincount(score_buckets(scores, [0.07, 0.93])).tolist() == [70, 930]
    assert np.bincount(score_buckets(scores[:5], (0.01, 0.09, 0.9)), minlength=3).tolist() == [1, 0, 4]
    assert score_buckets([2.0], (0.5, 0.5)).tolist() == [0]
    assert np.bincount(score_buckets(scores, [1 / 3] * 3)).tolist() == [334, 333, 333]


@pytest.mark.parametrize("measure", [gini, effective_number, top_share, lorenz, positions, percentiles, score_buckets])
@pytest.mark.parametrize(
    "scores", [[], [[1.0, 2.0]], 3.0, [1.0, np.nan], [np.inf], ["a"], [1j], [[1], [1, 2]], None], ids=str
)
def test_scores_that_are_none(measure: Callable[[Any], Any], scores: Any) -> None:
    with pytest.raises(GraphError, match="scores: expected"):
        measure(scores)


@pytest.mark.parametrize("measure", [gini, effective_number, top_share, lorenz])
def test_masses_are_not_negative(measure: Callable[[Any], Any]) -> None:
    with pytest.raises(GraphError, match=r"non-negative numbers, got -2.0 at node 1"):
        measure([1.0, -2.0])


def test_scores_may_be_tensors() -> None:
    assert gini(torch.tensor([0, 0, 0, 1]).bfloat16()) == 0.75
    assert positions(torch.tensor([1.0, 2.0], requires_grad=True)).tolist() == [1, 0]


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, "x"])
def test_shares_out_of_range(share: Any) -> None:
    with pytest.raises(GraphError, match="share must be"):
        top_share([1.0], share)


@pytest.mark.parametrize("buckets", [0, -1, True, 2.5, [], [0.5, 0.4], [1.5, -0.5], [0.5, math.nan], "10", None])
def test_buckets_that_are_none(buckets: Any) -> None:
    graph = random_case(0, (2, 3)).graph()
    rank = weighted_pagerank(graph)
    for ask in (
        lambda: score_buckets([1.0], buckets),
        lambda: flow(graph, rank, 1, buckets),
        lambda: layer_flows(graph, rank, buckets),
    ):
        with pytest.raises(GraphError, match="buckets: expected an integer"):
            ask()


def test_pairs_that_do_not_match() -> None:
    with pytest.raises(GraphError, match="same nodes, got 2 and 1"):
        rank_correlation([1, 2], [1])
    with pytest.raises(GraphError, match="same nodes, got 2 and 1"):
        kept_overlap([True, False], [True])
    with pytest.raises(GraphError, match="b: expected a bool keep mask"):
        kept_overlap([True], [1])
    with pytest.raises(GraphError, match="a: expected a bool keep mask"):
        kept_overlap([[True]], [True])
    with pytest.raises(GraphError, match="b: expected finite"):
        rank_correlation([1, 2], [1, np.nan])


# --- layers


@every_form
@given(case=cases())
def test_strengths_are_sums_of_weights(case: Case, form: str) -> None:
    graph, seen = formed(case, form)
    for layer, size in enumerate(graph.layers):
        into = [sum(seen.weights[layer - 1][i].tolist()) for i in range(size)] if layer else [0.0] * size
        out = (
            [sum(seen.weights[layer][:, j].tolist()) for j in range(size)]
            if layer < len(graph.blocks)
            else [0.0] * size
        )
        found = strengths(graph, layer)
        np.testing.assert_allclose(found[0], into, rtol=1e-12)
        np.testing.assert_allclose(found[1], out, rtol=1e-12)


@pytest.mark.parametrize("form", ["csr", "float64", "column-major", "bfloat16"])
def test_strengths_and_counts_are_networkxs(form: str) -> None:
    case = random_case(3, (5, 9, 6, 1, 4), density=0.4)
    case.weights[1][:, 2] = 0
    case.weights[2][0] = 0
    graph, _ = formed(case, form)
    digraph = graph.to_networkx()
    summaries = summarise(graph, weighted_pagerank(graph))
    for layer, size in enumerate(graph.layers):
        nodes = [(layer, k) for k in range(size)]
        into, out = strengths(graph, layer)
        np.testing.assert_allclose(into, [digraph.in_degree(node, weight="weight") for node in nodes])
        np.testing.assert_allclose(out, [digraph.out_degree(node, weight="weight") for node in nodes])
        found = summaries[layer]
        assert found.edges_in == sum(digraph.in_degree(node) for node in nodes)
        assert found.unreached == (None if layer == 0 else sum(digraph.in_degree(node) == 0 for node in nodes))
        assert found.dangling == (None if layer == 4 else sum(digraph.out_degree(node) == 0 for node in nodes))
    assert (summaries[1].dangling or 0) >= 1


@every_form
@given(case=cases(), gamma=SHARES)
def test_a_summary_by_loops(case: Case, gamma: float, form: str) -> None:
    graph, seen = formed(case, form)
    rank = weighted_pagerank(graph, gamma)
    summaries = summarise(graph, rank)
    activations = [case.inputs, *case.activations]
    assert [summary.layer for summary in summaries] == list(range(len(activations)))
    for layer, found in enumerate(summaries):
        scores = rank.scores[layer]
        assert (found.name, found.nodes) == (graph.names[layer], len(scores))
        assert found.activation == Spread.of(activations[layer])
        assert found.dead == sum(a == 0 for a in activations[layer])
        assert found.gini == pytest.approx(gini_by_pairs(scores), abs=1e-12)
        assert found.effective == pytest.approx(1 / sum(p * p for p in unit(scores)))
        assert found.top_share == pytest.approx(max(unit(scores)))
        highest = max(range(len(scores)), key=lambda node: (scores[node], node))
        assert (found.highest, found.highest_share) == (highest, pytest.approx(unit(scores)[highest]))
        if layer == 0:
            assert (found.edges_in, found.density, found.in_strength) == (0, None, None)
            assert (found.unreached, found.through_graph) == (None, None)
        else:
            weight = seen.weights[layer - 1]
            assert found.edges_in == (weight != 0).sum()
            assert found.density == pytest.approx((weight != 0).mean())
            assert found.in_strength is not None
            assert dataclasses.astuple(found.in_strength) == pytest.approx(
                dataclasses.astuple(Spread.of(weight.sum(axis=1)))
            )
            assert found.unreached == (~weight.any(axis=1)).sum()
            passed = (transition_matrix(weight, 1.0) @ unit(rank.scores[layer - 1])).sum()
            total = gamma * passed + 1 - gamma
            assert found.through_graph == pytest.approx(gamma * passed / total if total else 0.0)
        if layer < len(graph.blocks):
            assert found.dangling == (~seen.weights[layer].any(axis=0)).sum()
            assert found.out_strength is not None
            assert found.out_strength.mean == pytest.approx(seen.weights[layer].sum(axis=0).mean())
        else:
            assert (found.dangling, found.out_strength) == (None, None)
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


def test_the_score_through_the_graph_is_what_the_formula_adds() -> None:
    case = random_case(7, (6, 8, 5), density=0.5)
    case.weights[1][:, :3] = 0
    graph, gamma = case.graph(), 0.7
    rank = weighted_pagerank(graph, gamma, theta=0.3)
    for layer, weight in enumerate(case.weights, start=1):
        through = gamma * transition_matrix(weight, 0.3) @ rank.scores[layer - 1]
        own = (1 - gamma) * unit(case.activations[layer - 1])
        np.testing.assert_allclose((through + own) / (through + own).sum(), rank.scores[layer])
        expected = through.sum() / (through + own).sum()
        assert summarise(graph, rank)[layer].through_graph == pytest.approx(expected)


def test_only_the_weighted_rank_of_layers_has_a_part_through_the_graph() -> None:
    graph = random_case(1, (3, 4)).graph()
    for rank in (modified_pagerank(graph), pagerank(graph), as_scores(weighted_pagerank(graph))):
        assert [summary.through_graph for summary in summarise(graph, rank)] == [None, None]


def test_a_table_of_summaries() -> None:
    graph = random_case(2, (3, 4, 2), density=0.7).graph()
    summaries = summarise(graph, weighted_pagerank(graph))
    table = to_columns(summaries)
    flat = [
        {
            f"{key}_{part}" if part else key: entry
            for key, value in summary.to_dict().items()
            for part, entry in (value.items() if isinstance(value, dict) else [("", value)])
        }
        for summary in summaries
    ]
    assert flat[1].keys() <= table.keys()
    for name, column in table.items():
        assert column == [entry.get(name) for entry in flat]
    assert list(table)[:4] == ["layer", "name", "nodes", "edges_in"]
    assert len(table) == len(dataclasses.fields(LayerSummary)) - 3 + 3 * 6
    assert to_columns([]).keys() == table.keys()


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_spread(size: int) -> None:
    values = np.random.default_rng(size).random(size)
    found = Spread.of(values)
    expected = stats.scoreatpercentile(values, [0, 25, 50, 75, 100])
    assert dataclasses.astuple(found) == pytest.approx([*expected, sum(values) / size])


# --- flow


def expected_flow(weight: Array, scores: tuple[Array, Array], buckets: Any, theta: float) -> Array:
    matrix = transition_matrix(weight, theta) * scores[0]
    sources, targets = (score_buckets(part, buckets) for part in scores)
    count = buckets if isinstance(buckets, int) else len(buckets)
    found = np.zeros((count, count))
    for i, j in itertools.product(range(len(targets)), range(len(sources))):
        found[targets[i], sources[j]] += matrix[i, j]
    return found


@every_form
@given(case=cases(), theta=SHARES, buckets=st.one_of(st.integers(1, 6), st.just((0.2, 0.3, 0.5))))
def test_flow_by_its_definition(case: Case, theta: float, buckets: Any, form: str) -> None:
    graph, seen = formed(case, form)
    rank = weighted_pagerank(graph, 0.6, theta)
    parts = layer_flows(graph, rank, buckets)
    assert len(parts) == len(graph.blocks)
    for layer, weight in enumerate(seen.weights, start=1):
        before, after = rank.scores[layer - 1], rank.scores[layer]
        found = flow(graph, rank, layer, buckets)
        np.testing.assert_allclose(found, expected_flow(weight, (before, after), buckets, theta), rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(found, parts[layer - 1])
        assert found.sum() == pytest.approx(before[weight.any(axis=0)].sum())
        # A theta of one's own, and scores that know none.
        half = flow(graph, rank, layer, buckets, theta=0.5)
        np.testing.assert_allclose(half, expected_flow(weight, (before, after), buckets, 0.5), rtol=1e-9, atol=1e-12)
        plain = flow(graph, as_scores(rank), layer, buckets)
        np.testing.assert_allclose(plain, expected_flow(weight, (before, after), buckets, 1.0), rtol=1e-9, atol=1e-12)


@every_form
@given(case=cases(), zero_lowest=st.sampled_from([0.0, 0.3, 0.6, 1.0]), buckets=st.integers(1, 4))
def test_flow_of_the_modified_rank_is_where_its_score_comes_from(
    case: Case, zero_lowest: float, buckets: int, form: str
) -> None:
    graph, seen = formed(case, form)
    rank = modified_pagerank(graph, zero_lowest=zero_lowest)
    for layer, weight in enumerate(seen.weights, start=1):
        before, after = rank.scores[layer - 1].copy(), rank.scores[layer]
        sources, targets = score_buckets(before, buckets), score_buckets(after, buckets)
        before[np.argsort(before, kind="stable")[: int(zero_lowest * len(before))]] = 0
        activation = case.activations[layer - 1]
        matrix = (activation if activation.any() else np.ones(len(activation)))[:, None] * weight * before
        expected = np.zeros((buckets, buckets))
        for i, j in itertools.product(range(len(targets)), range(len(sources))):
            expected[targets[i], sources[j]] += matrix[i, j]
        found = flow(graph, rank, layer, buckets)
        np.testing.assert_allclose(found, expected / (expected.sum() or 1.0), rtol=1e-9, atol=1e-12)
        if expected.sum() > 0:
            masses = np.bincount(targets, weights=after, minlength=buckets)
            np.testing.assert_allclose(found.sum(axis=1), masses, atol=1e-12)


@pytest.mark.parametrize("form", ["csr", "float32", "bfloat16", "parallel"])
@pytest.mark.parametrize("theta", [1.0, 0.4])
def test_large_blocks_take_the_compiled_way_to_the_same_numbers(form: str, theta: float) -> None:
    # From 2**18 entries on.
    case = random_case(4, (700, 600), density=1.0 if form != "csr" else 0.9)
    graph, seen = formed(case, form)
    rank = weighted_pagerank(graph, 0.5, theta)
    expected = expected_flow(seen.weights[0], (rank.scores[0], rank.scores[1]), 4, theta)
    np.testing.assert_allclose(flow(graph, rank, 1, 4), expected, rtol=1e-9)
    np.testing.assert_allclose(strengths(graph, 1)[0], seen.weights[0].sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(strengths(graph, 0)[1], seen.weights[0].sum(axis=0), rtol=1e-12)
    assert summarise(graph, rank)[1].edges_in == np.count_nonzero(seen.weights[0])


# --- doors


def test_a_rank_of_another_graph_is_refused() -> None:
    graph, other = random_case(0, (3, 4)).graph(), random_case(0, (4, 3)).graph()
    rank = weighted_pagerank(other)
    for ask in (lambda: summarise(graph, rank), lambda: flow(graph, rank, 1), lambda: layer_flows(graph, rank)):
        with pytest.raises(GraphError, match=r"expected a rank of this graph.*\[3, 4\].*\(4,\), \(3,\)"):
            ask()
    several = dataclasses.replace(rank, scores=tuple(np.stack([part, part], axis=1) for part in rank.scores))
    with pytest.raises(GraphError, match="pick one column"):
        summarise(other, several)
    spoiled = dataclasses.replace(rank, scores=(np.full(4, np.nan), rank.scores[1]))
    with pytest.raises(GraphError, match="scores of layer 0: expected finite"):
        summarise(other, spoiled)


@pytest.mark.parametrize("layer", [-1, 0, 2, True, 1.0, "1", None])
def test_layers_that_are_none(layer: Any) -> None:
    graph = random_case(0, (3, 4)).graph()
    with pytest.raises(GraphError, match="expected a layer from 1 to 1"):
        flow(graph, weighted_pagerank(graph), layer)
    if layer != 0:
        with pytest.raises(GraphError, match="expected a layer from 0 to 1"):
            strengths(graph, layer)


def test_theta_out_of_range() -> None:
    graph = random_case(0, (3, 4)).graph()
    with pytest.raises(GraphError, match="theta must be"):
        flow(graph, weighted_pagerank(graph), 1, theta=1.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_numbers_are_refused(bad: float) -> None:
    weight = np.ones((3, 2), dtype=np.float32)
    healthy = LayeredGraph.from_weights([weight], [1, 1], [[1, 1, 1]])
    rank = weighted_pagerank(healthy)
    weight[1, 1] = bad  # dense weights are referred to
    graph = LayeredGraph.from_weights([weight], [1, 1], [[1, 1, 1]], check_finite=False)
    assert isinstance(graph.blocks[0], DenseBlock)
    for ask in (
        lambda: strengths(graph, 0),
        lambda: strengths(graph, 1),
        lambda: summarise(graph, rank),
        lambda: flow(graph, rank, 1),
        lambda: flow(graph, rank, 1, theta=0.5),
        lambda: flow(graph, as_modified(rank), 1),
    ):
        with pytest.raises(GraphError, match=r"not finite"):
            ask()


def as_modified(rank: RankResult) -> RankResult:
    return dataclasses.replace(rank, method="modified pagerank", parameters={"zero_lowest": 0.0})


def test_summaries_copy_no_weights() -> None:
    import tracemalloc

    weight = torch.randn(2048, 3000, generator=torch.Generator().manual_seed(0)).bfloat16()
    graph = LayeredGraph.from_weights([weight], torch.ones(3000), [torch.ones(2048)])
    rank = weighted_pagerank(graph)
    summarise(graph, rank)  # whatever loads once
    tracemalloc.start()
    summarise(graph, rank)
    layer_flows(graph, rank)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # In float64 the block takes 49 MB; a band 4 MB, and in the making its float32 copy.
    assert peak < 16e6
