"""Figures of a sweep show its rows, and the Pareto front is that of a brute-force comparison."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import OptionError
from llmrank.experiments.sweep_figures import MOST_NAMED, draw_sweep, pareto_front, write_sweep_figures
from llmrank.experiments.sweep_result import SweepResult


def row(scorer: str | None, amount: float, perplexity: Any, **more: Any) -> dict[str, Any]:
    method = dict.fromkeys(("pruner", "pipeline", "repair")) if scorer is None else {"pruner": "local"}
    return {
        "model": "org/tiny",
        "scorer": scorer,
        "pipeline": "isolated",
        "repair": "none",
        **method,
        "amount": amount,
        "removed": amount,
        "perplexity": perplexity,
        "parameters": int(1e6 * (1 - amount)),
        "bytes": int(4e6 * (1 - amount)),
        **more,
    }


def result(n_scorers: int, tmp_path: Path, **more: Any) -> SweepResult:
    rows = [row(None, 0.0, 20.0, **more)]
    for k in range(n_scorers):
        rows += [row(f"scorer-{k}", amount, 20.0 * (1 + amount) ** (2 + k), **more) for amount in (0.1, 0.3, 0.2)]
    return SweepResult(rows, tmp_path)


points = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), min_size=1, max_size=12)


@given(points)
def test_no_row_is_better_than_one_of_the_front(places: list[tuple[int, int]]) -> None:
    rows = [row("wpr", x / 10, float(y)) for x, y in places]
    for panel in ("removed", "parameters"):
        front = pareto_front(rows, panel)
        expected = {(x, y) for x, y in places if not any(a >= x and b <= y and (a, b) != (x, y) for a, b in places)}
        assert {(round(10 * each["removed"]), each["perplexity"]) for each in front} == expected
        assert len(front) == sum(place in expected for place in places)


def test_shares_that_differ_by_rounding_count_as_equal() -> None:
    rows = [row(None, 0.0, 20.0), row("wpr", 0.1001, 26.0), row("norm", 0.1, 25.0), row("mpr", 0.3, 50.0)]
    assert [each["scorer"] for each in pareto_front(rows, "removed")] == [None, "norm", "mpr"]


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_few_methods_are_all_named(tmp_path: Path) -> None:
    figure = draw_sweep(result(3, tmp_path), "org/tiny")
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "neurons removed (%)",
        "parameters (millions)",
        "size (MB)",
    ]
    assert sorted(labels(figure.axes[0])) == ["scorer-0", "scorer-1", "scorer-2"]
    assert not labels(figure.axes[1])
    first = next(line for line in figure.axes[0].lines if len(line.get_xdata()) == 3)
    assert list(first.get_xdata()) == pytest.approx([10.0, 20.0, 30.0])
    assert list(first.get_ydata()) == pytest.approx([20 * 1.1**2, 20 * 1.2**2, 20 * 1.3**2])
    heights = sorted(text.xyann[1] for text in figure.axes[0].texts)
    assert all(low < high for low, high in pairwise(heights))


def test_of_many_methods_those_on_the_front_are_named(tmp_path: Path) -> None:
    figure = draw_sweep(result(MOST_NAMED + 1, tmp_path), "org/tiny")
    assert labels(figure.axes[0]) == ["scorer-0"]
    assert f"Grey: {MOST_NAMED} methods" in figure.get_suptitle()


def test_speed_is_drawn_if_all_rows_have_it(tmp_path: Path) -> None:
    speed = {"ratio": 1.2}
    assert len(draw_sweep(result(1, tmp_path, speed=speed), "org/tiny").axes) == 4


def test_rows_far_above_the_others_are_left_out_and_said(tmp_path: Path) -> None:
    rows = [row(None, 0.0, 20.0), row("wpr", 0.3, 30.0), row("norm", 0.3, "inf"), row("norm", 0.5, 401.0)]
    figure = draw_sweep(SweepResult(rows, tmp_path), "org/tiny")
    assert "Not drawn: 2 rows above 20 times the dense model." in figure.get_suptitle()
    assert labels(figure.axes[0]) == ["wpr"]


def test_there_is_a_figure_for_each_model(tmp_path: Path) -> None:
    rows = result(2, tmp_path).rows
    others = [{**each, "model": "other"} for each in rows]
    paths = write_sweep_figures(SweepResult([*rows, *others], tmp_path))
    assert sorted(path.name for path in paths) == sorted(path.name for path in tmp_path.iterdir())
    assert sorted(path.name for path in paths) == [
        "sweep-org_tiny.png",
        "sweep-org_tiny.svg",
        "sweep-other.png",
        "sweep-other.svg",
    ]
    dense_alone = draw_sweep(SweepResult(rows[:1], tmp_path), "org/tiny")
    assert len(dense_alone.axes) == 3
    failed = {**row("wpr", 0.3, 1.0), "error": "no"}
    with pytest.raises(OptionError, match="no row of org/tiny has results"):
        draw_sweep(SweepResult([failed], tmp_path), "org/tiny")


def test_a_model_that_cannot_be_drawn_does_not_stop_the_others(tmp_path: Path) -> None:
    worthless = {**row(None, 0.0, "inf"), "model": "a"}
    with pytest.warns(UserWarning, match="no row of a has results"):
        paths = write_sweep_figures(SweepResult([worthless, *result(2, tmp_path).rows], tmp_path))
    assert [path.name for path in paths] == ["sweep-org_tiny.png", "sweep-org_tiny.svg"]
    for rows, message in (([worthless], "no row of a has results"), ([], "has no rows yet to draw")):
        with pytest.raises(OptionError, match=message):
            write_sweep_figures(SweepResult(rows, tmp_path))
