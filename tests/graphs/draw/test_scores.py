"""Figures of scores show the same numbers as plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import PathCollection
from scipy.stats import spearmanr

from graphs import GraphError
from graphs.draw import compare_scores, kept_by_layer, score_heatmap
from graphs.draw.scores import MAX_COLUMNS, MAX_DOTS
from tests.graphs.draw.test_draw import legible

VALUES = st.one_of(st.just(0.0), st.sampled_from([1.0, 2.0]), st.floats(1e-3, 1e3))
LAYER = st.lists(VALUES, min_size=1, max_size=12)
LAYERS = st.lists(LAYER, min_size=1, max_size=8)


def heavy(seed: int, size: int) -> Any:
    return np.random.default_rng(seed).pareto(1.5, size) + 0.01


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=15), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_dots_are_percentiles_and_the_title_counts(pairs: list[tuple[float, float]], keep: float) -> None:
    a, b = (list(part) for part in zip(*pairs, strict=True))
    ax = compare_scores(a, b, ("first", "second"), keep=keep)
    (dots,) = (c for c in ax.collections if isinstance(c, PathCollection))
    wanted = [[100 * (sum(v < x for v in of) + sum(v == x for v in of) / 2) / len(of) for x in of] for of in (a, b)]
    np.testing.assert_allclose(dots.get_offsets(), np.transpose(wanted))
    title = ax.get_title()
    if len(set(a)) > 1 and len(set(b)) > 1:
        assert float(title.split()[1].rstrip(";")) == pytest.approx(spearmanr(a, b).statistic, abs=0.0051)
    else:
        assert title.startswith("Spearman undefined")
    count = round(keep * len(a))
    kept = [set(sorted(range(len(of)), key=lambda k: (of[k], k))[len(of) - count :]) for of in (a, b)]
    lines = ax.get_lines()
    assert lines[0].get_xdata()[0] == pytest.approx(100 * (1 - count / len(a)))
    if count:
        share = 100 * len(kept[0] & kept[1]) / count
        shown = title.rsplit("keeps ", 1)[1]
        assert shown.startswith(">") or float(shown.split()[0]) == pytest.approx(share, abs=0.51)
    else:
        assert title.endswith("keeps none")


def test_masks_select_the_kept_nodes() -> None:
    a = [1.0, 2.0, 3.0, 4.0]
    ax = legible(compare_scores(a, a, ("x", "y"), keep=([True, False, True, True], [False, False, True, False])))
    assert ax.get_title().endswith("of the nodes that x keeps (75 %), y keeps 33 %")
    assert compare_scores(a, a).get_lines()[:] == []


@pytest.mark.parametrize("size", [10, MAX_DOTS, MAX_DOTS + 1, 1_000_000])
def test_comparisons_of_any_size_count_every_node(size: int) -> None:
    a = np.random.default_rng(0).random(size)
    b = a + 0.2 * np.random.default_rng(1).random(size)
    ax = compare_scores(a, torch.from_numpy(b), keep=0.7)
    (drawn,) = ax.collections
    assert (len(drawn.get_offsets()) if size <= MAX_DOTS else int(drawn.get_array().sum())) == size
    legible(ax)


def plain_image(scores: Any, columns: int, widest: int) -> Any:
    image = np.full((len(scores), columns), np.nan)
    for row, values in enumerate(scores):
        falling = sorted(values, reverse=True)
        mean = sum(values) / len(values) or 1.0
        for column in range(columns):
            part = falling[column * widest // columns : (column + 1) * widest // columns]
            if part:
                image[row, column] = sum(part) / len(part) / mean
    return image


@settings(deadline=None, max_examples=30)
@given(LAYERS)
def test_the_heat_map_holds_scores_over_the_mean(scores: list[list[float]]) -> None:
    widest = max(map(len, scores))
    expected = plain_image(scores, widest, widest)
    keep = [np.arange(len(values)) % 2 == 0 for values in scores]
    ax = score_heatmap(scores, keep)
    positive = expected[np.isfinite(expected) & (expected > 0)]
    floor = positive.min() if len(positive) else 1.0
    np.testing.assert_allclose(
        ax.images[0].get_array().filled(np.nan), np.log10(np.maximum(expected, floor)), atol=1e-12
    )
    kept = [int(mask.sum()) for mask in keep]
    assert ax.get_lines()[0].get_xdata().tolist() == np.repeat(kept, 2).tolist()
    # These masks do not remove the lowest scores, so no node is removed because it is right of the line.
    assert ax.get_xlabel().replace("\n", " ") == "node, highest score first; white line: number of nodes kept"


def test_wide_layers_are_averaged_into_columns() -> None:
    scores = [heavy(0, 4 * MAX_COLUMNS), heavy(1, MAX_COLUMNS)]
    ax = legible(score_heatmap(scores))
    shown = ax.images[0].get_array()
    assert shown.shape == (2, MAX_COLUMNS)
    np.testing.assert_allclose(10 ** shown[0], plain_image(scores, MAX_COLUMNS, 4 * MAX_COLUMNS)[0])
    assert np.ma.getmaskarray(np.ma.masked_invalid(shown))[1, MAX_COLUMNS // 4 :].all()
    assert not ax.get_lines()


def test_bars_share_a_layer_between_kept_and_removed() -> None:
    scores, keep = [[1.0, 3.0, 0.0], [0.0, 0.0]], [[True, False, False], [True, True]]
    ax = legible(kept_by_layer(scores, keep))
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx([1 / 3, 1.0, 2 / 3, 0.0])
    assert ax.get_lines()[0].get_ydata() == pytest.approx([0.75, 0.0])
    assert [bar.get_hatch() for bar in ax.patches] == [None, None, "///", "///"]


def test_invalid_arguments_are_refused() -> None:
    for scores in ([], [[1.0], np.ones((2, 2))], [[]], [[-1.0, 2.0]], [[np.nan]], [["a"]]):
        with pytest.raises(GraphError, match="expected"):
            score_heatmap(scores)
    for masked in (score_heatmap, kept_by_layer):
        with pytest.raises(GraphError, match=r"same layers, got shapes \[\(2,\)\] and \[\(1,\)\]"):
            masked([[1.0, 2.0]], [[True]])
        with pytest.raises(GraphError, match="same layers"):
            masked([[1.0, 2.0]], [])
    with pytest.raises(GraphError, match="same nodes, got 1 and 2"):
        compare_scores([1.0], [1.0, 2.0])
    with pytest.raises(GraphError, match="expected two labels"):
        compare_scores([1.0], [1.0], ("a", "b", "c"))  # type: ignore[arg-type]
    for keep in (1.5, "all", float("nan"), -0.1):
        with pytest.raises(GraphError, match="keep, if it is not a tuple of two masks, must be a number"):
            compare_scores([1.0], [1.0], keep=keep)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="same layers"):
        compare_scores([1.0], [1.0], keep=([True], [True, False]))
