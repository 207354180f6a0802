"""Measures of one layer's scores against textbook loops and scipy, and properties that hold for any scores."""

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
from scipy import stats

from graphs import GraphError
from graphs.analysis.buckets import bucket_ends, score_buckets
from graphs.analysis.measures import (
    count_of_share,
    effective_number,
    gini,
    lorenz,
    percentiles,
    positions,
    rank_correlation,
    share_also_kept,
    top_share,
)
from llmrank.prune import keep_highest
from tests.graphs.cases import MAGNITUDES, Array, unit
from tests.tables import table

scores_of_a_layer = st.integers(1, 30).flatmap(lambda n: arrays(np.float64, n, elements=MAGNITUDES))
# Small integers tie often.
tied = st.lists(st.integers(0, 4).map(float), min_size=1, max_size=12)

# --- concentration


def gini_by_pairs(scores: Array) -> float:
    total = sum(abs(a - b) for a in scores for b in scores)
    return float(total / (2 * len(scores) * sum(scores))) if sum(scores) else 0.0


@given(scores_of_a_layer)
def test_gini_is_the_mean_difference_of_all_pairs(scores: Array) -> None:
    assert gini(scores) == pytest.approx(gini_by_pairs(scores), abs=1e-12)
    assert 0.0 <= gini(scores) < 1.0


@table("size", [1, 2, 7, 1000])
def test_concentration_of_extreme_distributions(size: int) -> None:
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


def test_the_top_share_takes_the_share_as_a_decimal() -> None:
    assert 0.07 * 100 > 7
    assert top_share(np.ones(100), 0.07) == pytest.approx(0.07)
    assert top_share(np.ones(3), 0) == 0.0
    assert top_share(np.ones(3), 1) == 1.0


@given(st.integers(0, 1000), st.integers(1, 1000), st.integers(0, 10**6))
def test_a_count_of_a_share_is_that_of_its_decimals(digits: int, per: int, total: int) -> None:
    share = Fraction(min(digits, per), 10 ** len(str(per)))
    assert count_of_share(float(share), total) == math.ceil(share * total)


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
def test_concentration_does_not_depend_on_scale_order_or_copies(scores: Array, scale: float, random: Any) -> None:
    order = list(range(len(scores)))
    random.shuffle(order)
    for measure in (gini, effective_number, lambda s: top_share(s, 0.25)):
        # Exact, because nothing is rounded.
        assert measure(scores * 0.125) == measure(scores)
        assert measure(scores * scale) == pytest.approx(measure(scores), abs=1e-12)
        assert measure(scores[order]) == pytest.approx(measure(scores), rel=1e-13)
    assert gini(scores[order]) == gini(scores)
    assert gini(np.tile(scores, 3)) == pytest.approx(gini(scores), abs=1e-12)
    assert effective_number(np.tile(scores, 3)) == pytest.approx(3 * effective_number(scores))


@table("scale", [5e-324, 1e-200, 1e200, 4e307])
def test_concentration_at_the_ends_of_float64(scale: float) -> None:
    scores = np.array([1.0, 2.0, 4.0, 1.0])
    assert gini(scores * scale) == pytest.approx(gini(scores))
    assert effective_number(scores * scale) == pytest.approx(effective_number(scores))
    assert top_share(scores * scale, 0.25) == pytest.approx(0.5)
    np.testing.assert_allclose(lorenz(scores * scale)[1], [0, 0.125, 0.25, 0.5, 1])


# --- agreement


@given(tied, st.data())
def test_rank_correlation_agrees_with_scipy(a: list[float], data: st.DataObject) -> None:
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
    assert share_also_kept(a, b) == 2 / 3
    assert share_also_kept(a, a) == 1.0
    assert share_also_kept(a, ~a) == 0.0
    assert share_also_kept([True, False], [True, True]) == 1.0
    assert share_also_kept([True, True], [True, False]) == 0.5
    assert math.isnan(share_also_kept([False, False], [True, False]))


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
def test_percentiles_agree_with_scipy(scores: list[float]) -> None:
    expected = [stats.percentileofscore(scores, score, kind="mean") / 100 for score in scores]
    np.testing.assert_allclose(percentiles(scores), expected)
    assert percentiles(scores).mean() == pytest.approx(0.5)


@given(tied, st.integers(1, 15))
def test_equal_buckets(scores: list[float], buckets: int) -> None:
    found, places = score_buckets(scores, buckets), positions(scores)
    for node, bucket in enumerate(found):
        # Bucket b holds the positions from ceil(b n / B) on.
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
    # Shares that sum to a little over 1.
    assert [float(end) for end in bucket_ends([0.5, 0.5 + 1e-10, 1e-11])] == [0.5, 1.0, 1.0]
    assert np.bincount(score_buckets(scores, [0.5, 0.5 + 1e-10, 1e-11]), minlength=3).tolist() == [500, 500, 0]


@table("measure", [gini, effective_number, top_share, lorenz, positions, percentiles, score_buckets])
@table("scores", [[], [[1.0, 2.0]], 3.0, [1.0, np.nan], [np.inf], ["a"], [1j], [[1], [1, 2]], None])
def test_invalid_scores_are_refused(measure: Callable[[Any], Any], scores: Any) -> None:
    with pytest.raises(GraphError, match="scores: expected"):
        measure(scores)


@table("measure", [gini, effective_number, top_share, lorenz])
def test_negative_masses_are_refused(measure: Callable[[Any], Any]) -> None:
    with pytest.raises(GraphError, match=r"non-negative numbers, got -2.0 at node 1"):
        measure([1.0, -2.0])


def test_scores_may_be_tensors() -> None:
    assert gini(torch.tensor([0, 0, 0, 1]).bfloat16()) == 0.75
    assert positions(torch.tensor([1.0, 2.0], requires_grad=True)).tolist() == [1, 0]


@table("share", [-0.1, 1.1, math.nan, "x"])
def test_shares_out_of_range(share: Any) -> None:
    with pytest.raises(GraphError, match="share must be"):
        top_share([1.0], share)


NO_BUCKETS: list[Any] = [0, -1, True, 2.5, [], [0.5, 0.4], [1.5, -0.5], [0.5, math.nan], "10", None]


@table("buckets", NO_BUCKETS)
def test_invalid_buckets_are_refused(buckets: Any) -> None:
    with pytest.raises(GraphError, match="buckets: expected an integer"):
        score_buckets([1.0], buckets)


def test_pairs_that_do_not_match_are_refused() -> None:
    with pytest.raises(GraphError, match="same nodes, got 2 and 1"):
        rank_correlation([1, 2], [1])
    with pytest.raises(GraphError, match="same nodes, got 2 and 1"):
        share_also_kept([True, False], [True])
    with pytest.raises(GraphError, match="b: expected a bool keep mask"):
        share_also_kept([True], [1])
    with pytest.raises(GraphError, match="a: expected a bool keep mask"):
        share_also_kept([[True]], [True])
    with pytest.raises(GraphError, match="b: expected finite"):
        rank_correlation([1, 2], [1, np.nan])
