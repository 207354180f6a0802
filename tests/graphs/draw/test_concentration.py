"""Distributions and Lorenz curves show the same numbers as plain loops, line by line and as bands."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import PolyCollection

from graphs import GraphError, weighted_pagerank
from graphs.draw import lorenz_curves, score_distribution
from graphs.draw.concentration import MAX_LINES, MAX_POINTS
from tests.graphs.cases import random_case
from tests.graphs.draw.test_draw import legible

VALUES = st.one_of(st.just(0.0), st.sampled_from([1.0, 2.0]), st.floats(1e-3, 1e3))
LAYER = st.lists(VALUES, min_size=1, max_size=12)
LAYERS = st.lists(LAYER, min_size=1, max_size=MAX_LINES)


def heavy(seed: int, size: int) -> Any:
    return np.random.default_rng(seed).pareto(1.5, size) + 0.01


def entries(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


@settings(deadline=None, max_examples=30)
@given(LAYERS)
def test_a_line_is_the_share_of_nodes_with_at_least_a_score(scores: list[list[float]]) -> None:
    ax = score_distribution(scores)
    for values, line in zip(scores, ax.get_lines(), strict=False):
        mean = sum(values) / len(values)
        found = list(zip(line.get_xdata().tolist(), line.get_ydata().tolist(), strict=True))
        wanted = sorted({v / mean for v in values if v > 0}) if mean else []
        assert [x for x, _ in found] == pytest.approx(wanted)
        for x, y in found:
            assert y == pytest.approx(sum(v / mean >= x * (1 - 1e-12) for v in values) / len(values))


def test_zeros_are_named_where_they_cannot_be_drawn() -> None:
    ax = legible(score_distribution([[0.0, 1.0, 1.0, 2.0], [0.0, 0.0], [3.0]], ["a", "b", "c"]))
    assert entries(ax) == ["a (25 % zero)", "b (all zero)", "c"]
    # A single score is only a marker, because a line needs two points.
    assert ax.get_lines()[2].get_markevery() == [-1]


def test_long_lines_are_thinned_and_keep_their_ends() -> None:
    scores = heavy(0, 50_000)
    line = score_distribution([scores]).get_lines()[0]
    x, y = line.get_xdata(), line.get_ydata()
    assert 0.5 * MAX_POINTS < len(x) <= MAX_POINTS
    assert x[-1] == pytest.approx(scores.max() / scores.mean())
    assert y[0] == 1.0
    assert y[-1] == pytest.approx(1 / 50_000)
    np.testing.assert_allclose([(scores / scores.mean() >= value * (1 - 1e-12)).mean() for value in x], y)


def test_many_layers_become_bands_of_quantiles() -> None:
    layers = [heavy(k, 10 + k) * k for k in range(1, 13)]
    ax = legible(score_distribution(layers, [f"m.{k}.mlp" for k in range(12)]))
    median = next(line for line in ax.get_lines() if line.get_label() == "median layer")
    for x, share in list(zip(median.get_xdata(), median.get_ydata(), strict=True))[::17]:
        reached = []
        for values in layers:
            falling = sorted((v / values.mean() for v in values), reverse=True)
            # The largest number of nodes within this share, at least one.
            reached.append(falling[max(0, int(np.ceil(share * len(values) - 1e-9)) - 1)])
        assert x == pytest.approx(np.median(reached))
    wide, half = (c for c in ax.collections if isinstance(c, PolyCollection))
    for layer in layers:
        reach = wide.get_paths()[0].vertices
        assert reach[:, 0].max() >= layer.max() / layer.mean() * (1 - 1e-12)
    assert half.get_label() == "middle half of them"
    ginis = [plain_gini(values.tolist()) for values in layers]
    assert f"most unequal: {int(np.argmax(ginis))} mlp" in entries(ax)
    assert f"least unequal: {int(np.argmin(ginis))} mlp" in entries(ax)
    assert entries(ax)[0] == "all 12 layers"


@pytest.mark.parametrize("figure", [score_distribution, lorenz_curves])
def test_bands_leave_out_layers_without_score(figure: Any) -> None:
    layers = [heavy(k, 20) for k in range(10)] + [np.zeros(5), np.zeros(3)]
    assert (
        entries(legible(figure(layers)))[0 if figure is score_distribution else 1] == "10 layers (2 more without score)"
    )
    legible(figure([np.zeros(3)] * 9))
    legible(figure([np.ones(1)] * 9))


def plain_gini(values: list[float]) -> float:
    return sum(abs(a - b) for a in values for b in values) / (2 * len(values) * sum(values))


@settings(deadline=None, max_examples=30)
@given(LAYERS)
def test_lorenz_lines_hold_the_lowest_shares(scores: list[list[float]]) -> None:
    ax = lorenz_curves(scores)
    assert len(ax.get_lines()) == len(scores) + 1
    for values, line, entry in zip(scores, ax.get_lines()[1:], entries(ax)[1:], strict=True):
        if sum(values) == 0:
            assert entry.endswith("all zero")
            assert len(line.get_xdata()) == 0
            continue
        running = list(itertools.accumulate(sorted(values), initial=0.0))
        np.testing.assert_allclose(line.get_ydata(), np.array(running) / running[-1], atol=1e-12)
        np.testing.assert_allclose(line.get_xdata(), np.arange(len(values) + 1) / len(values))
        assert float(entry.rsplit(" ", 1)[1]) == pytest.approx(plain_gini(values), abs=0.0051)


def test_lorenz_bands() -> None:
    layers = [heavy(k, 40) for k in range(11)]
    ax = legible(lorenz_curves(layers))
    median = next(line for line in ax.get_lines() if line.get_label() == "median layer")
    place = int(np.argmin(np.abs(median.get_xdata() - 0.5)))
    lowest = [np.sort(values)[:20].sum() / values.sum() for values in layers]
    assert median.get_ydata()[place] == pytest.approx(np.median(lowest))
    most = max(range(11), key=lambda k: plain_gini(layers[k].tolist()))
    assert f"most unequal: layer {most}, Gini {plain_gini(layers[most].tolist()):.2f}" in entries(ax)
    assert len(lorenz_curves([heavy(0, 5000)]).get_lines()[1].get_xdata()) == MAX_POINTS


def test_invalid_arguments_are_refused() -> None:
    ranked = weighted_pagerank(random_case(0, (3, 2)).graph())
    for figure in (score_distribution, lorenz_curves):
        with pytest.raises(GraphError, match="at least one layer, got none"):
            figure([])
        with pytest.raises(GraphError, match=r"layer 1: expected one number for each node.*shape \(2, 2\)"):
            figure([[1.0], np.ones((2, 2))])
        with pytest.raises(GraphError, match="layer 0: expected one number for each node"):
            figure([[]])
        with pytest.raises(GraphError, match=r"layer 0: expected non-negative numbers, got -1\.0"):
            figure([[-1.0, 2.0]])
        with pytest.raises(GraphError, match="layer 0: expected finite numbers, got nan"):
            figure([[np.nan]])
        with pytest.raises(GraphError, match="dtype <U1"):
            figure([["a"]])
        with pytest.raises(GraphError, match="pass its `scores`"):
            figure(ranked)
    for named in (score_distribution, lorenz_curves):
        with pytest.raises(GraphError, match="expected 2 distinct names, one a layer, got 1"):
            named([[1.0], [1.0]], ["a"])
        with pytest.raises(GraphError, match="distinct names"):
            named([[1.0], [1.0]], ["a", "a"])
