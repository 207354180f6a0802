"""Convergence figures, and properties that all figures share."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from graphs import GraphError, LayeredGraph, RankResult, draw, pagerank, residual_graph, weighted_pagerank
from graphs.draw import convergence
from graphs.draw.axes import SMALL_FONT, label_layers, log_ticks, new_axes
from graphs.draw.colours import (
    COLOUR_MAP,
    FAINT,
    KEPT,
    LINE_COLOURS,
    REMOVED,
    SCORE_REMOVED,
    add_log_colour_bar,
    line_style,
    log_norm,
)
from graphs.draw.convergence import MAX_STEPS
from graphs.draw.wording import MAX_CHARACTERS, as_literal, percent, short_names
from graphs.reduction.subgraphs import top_subgraph
from tests.graphs.cases import random_case
from tests.tables import table

CYCLIC = residual_graph(random_case(1, (6, 9, 6, 9, 6)).graph())
GRAPH = random_case(2, (7, 12, 5)).graph()
RANK = weighted_pagerank(GRAPH)
KEEP = [np.arange(size) % 2 == 0 for size in GRAPH.layer_sizes]
FIGURES: dict[str, Callable[[Any], Any]] = {
    "convergence": lambda ax: draw.convergence([pagerank(CYCLIC)], ax=ax),
    "score_heatmap": lambda ax: draw.score_heatmap(RANK.scores, KEEP, ax),
    "kept_by_layer": lambda ax: draw.kept_by_layer(RANK.scores, KEEP, ax),
    "group_heatmap": lambda ax: draw.group_heatmap(
        [[1.0, 3.0, 0.0], [2.0, 2.0]], [[0, 0, 1], [1, 0]], title="use", ax=ax
    ),
    "score_distribution": lambda ax: draw.score_distribution(RANK.scores, ax=ax),
    "lorenz_curves": lambda ax: draw.lorenz_curves(RANK.scores, ax=ax),
    "compare_scores": lambda ax: draw.compare_scores(RANK.scores[1], GRAPH.activations[1], keep=0.5, ax=ax),
    "node_link": lambda ax: draw.node_link(top_subgraph(GRAPH, RANK, nodes=3), ax),
    "adjacency_heatmap": lambda ax: draw.adjacency_heatmap(GRAPH, 1, RANK, ax=ax),
    "layer_flow": lambda ax: draw.layer_flow(GRAPH, RANK, ax=ax),
}
every_figure = table("name", list(FIGURES))


def rank_of(graph: LayeredGraph, scores: Any) -> RankResult:
    """A weighted rank of `graph` with given scores."""
    return replace(RANK, scores=tuple(np.asarray(part, dtype=np.float64) for part in scores), names=graph.names)


def legible(ax: Any) -> Any:
    """Draw for print, and check that no text is too small, cut off, or overlaps another along the x axis."""
    figure = ax.figure
    figure.set_dpi(150)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    unseen = {text for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for text in outside(axis)}
    for text in figure.findobj(Text):
        if not text.get_text().strip() or not text.get_visible() or text in unseen:
            continue
        box, page = text.get_window_extent(), figure.bbox
        assert text.get_fontsize() >= SMALL_FONT, text
        assert page.x0 - 1 <= box.x0, text
        assert page.y0 - 1 <= box.y0, text
        assert box.x1 <= page.x1 + 1, text
        assert box.y1 <= page.y1 + 1, text
    level = [
        text for text in ax.get_xticklabels() if text.get_text() and not text.get_rotation() and text not in unseen
    ]
    boxes = sorted((text.get_window_extent() for text in level), key=lambda box: float(box.x0))
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(boxes))
    return ax


def outside(axis: Any) -> list[Text]:
    """Labels of ticks beyond the limits of an axis: they exist, but are not drawn."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    beyond = [
        tick for tick in ticks if tick.get_loc() < low - 1e-9 * abs(low) or tick.get_loc() > high + 1e-9 * abs(high)
    ]
    return [label for tick in beyond for label in (tick.label1, tick.label2)]


def test_every_figure_of_the_package_is_listed_here() -> None:
    assert set(FIGURES) == set(draw.__all__)


@every_figure
def test_given_axes_are_used_or_new_ones_made(name: str) -> None:
    own = Figure(figsize=(6, 4), layout="constrained").subplots()
    assert FIGURES[name](own) is own
    first, second = FIGURES[name](None), FIGURES[name](None)
    assert first.figure is not second.figure
    assert first.figure.get_size_inches().tolist() == [8.0, 4.0]


@every_figure
def test_figures_are_legible_in_print(name: str) -> None:
    legible(FIGURES[name](None))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FIGURES))
@table(("size", "rows", "columns"), [((10, 8), 2, 1), ((10, 4), 1, 2)])
def test_figures_share_a_page(name: str, size: tuple[float, float], rows: int, columns: int) -> None:
    one, other = Figure(figsize=size, layout="constrained").subplots(rows, columns)
    for panel in (one, other):
        FIGURES[name](panel)
    legible(one)
    legible(other)
    first, second = (
        [text.get_window_extent() for text in (panel.title, panel.xaxis.label, panel.yaxis.label, *panel.texts)]
        for panel in (one, other)
    )
    assert not any(box.overlaps(rival) for box in first for rival in second if box.width and rival.width)


LONG = "transformer.encoder.blocks.{}.feed_forward_network.intermediate_dense_projection:hidden_activations"


def unusual(kind: str) -> tuple[LayeredGraph, RankResult]:
    """Unusual graphs and their ranks."""
    sizes = {"pair": (9, 7), "single node": (6, 1, 5), "three nodes": (1, 1, 1), "forty layers": (12,) * 40}
    graph = random_case(3, sizes.get(kind, (8, 30, 8, 30))).graph()
    if kind == "long names":
        graph = LayeredGraph(
            graph.blocks, graph.activations, tuple(LONG.format(k) for k in range(len(graph.layer_sizes)))
        )
    rank = weighted_pagerank(graph)
    if kind == "equal scores":
        rank = rank_of(graph, [np.full(size, 1.0 / size) for size in graph.layer_sizes])
    if kind == "zero scores":
        rank = rank_of(graph, [np.zeros(size) for size in graph.layer_sizes])
    if kind == "one scores all":
        rank = rank_of(graph, [np.arange(size) == 0 for size in graph.layer_sizes])
    return graph, rank


UNUSUAL = (
    *("pair", "single node", "three nodes", "forty layers"),
    *("equal scores", "zero scores", "one scores all", "long names"),
)


def drawn(name: str, graph: LayeredGraph, rank: RankResult, ax: Any = None) -> Any:
    keep = [np.arange(size) < max(1, 0.7 * size) for size in graph.layer_sizes]
    figures: dict[str, Callable[[], Any]] = {
        "convergence": lambda: draw.convergence([rank], ax=ax),
        "score_heatmap": lambda: draw.score_heatmap(rank.scores, keep, ax),
        "kept_by_layer": lambda: draw.kept_by_layer(rank.scores, keep, ax),
        "group_heatmap": lambda: draw.group_heatmap(rank.scores, [~mask for mask in keep], ax=ax),
        "score_distribution": lambda: draw.score_distribution(rank.scores, graph.names, ax),
        "lorenz_curves": lambda: draw.lorenz_curves(rank.scores, graph.names, ax),
        "compare_scores": lambda: draw.compare_scores(
            rank.scores[-1], graph.activations[-1], ("a rank", "an activation"), keep=0.5, ax=ax
        ),
        "node_link": lambda: draw.node_link(top_subgraph(graph, rank, nodes=5), ax),
        "adjacency_heatmap": lambda: draw.adjacency_heatmap(graph, 1, rank, ax=ax),
        "layer_flow": lambda: draw.layer_flow(graph, rank, ax=ax),
    }
    assert figures.keys() == FIGURES.keys()
    return figures[name]()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FIGURES))
@table("kind", UNUSUAL)
def test_unusual_graphs_are_legible(name: str, kind: str) -> None:
    legible(drawn(name, *unusual(kind)))
    # The width of a journal column.
    legible(drawn(name, *unusual(kind), Figure(figsize=(4.5, 3.2), layout="constrained").subplots()))


@every_figure
def test_layers_and_nodes_are_counted_in_whole_numbers(name: str) -> None:
    ax = legible(drawn(name, *unusual("three nodes")))
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_label().get_text().startswith(("layer", "node")):
            assert all(float(place).is_integer() for place in axis.get_majorticklocs())


def test_drawing_leaves_no_global_state() -> None:
    code = (
        "import sys, numpy as np; from graphs import draw; assert 'matplotlib' not in sys.modules; "
        "draw.lorenz_curves([np.ones(3)]); draw.score_heatmap([np.ones(3)]); import matplotlib as m; "
        "assert 'matplotlib.pyplot' not in sys.modules; assert m.rcParams == m.rcParamsDefault or m.rcParams['backend']"
    )
    root = Path(__file__).parents[3]
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root, timeout=120
    )
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize(
    ("against", "attribute"), [("products", "step_products"), ("seconds", "step_seconds"), ("steps", None)]
)
def test_convergence_draws_bound_and_residual_of_every_step(against: Any, attribute: str | None) -> None:
    results = [pagerank(CYCLIC, solver=name) for name in ("power", "gauss-seidel")]
    ax = convergence(results, against)
    lines = ax.get_lines()
    assert len(lines) == 4
    for result, bound, residual in zip(results, lines[::2], lines[1::2], strict=True):
        across = np.arange(1, result.iterations + 1) if attribute is None else getattr(result, attribute)
        np.testing.assert_array_equal(bound.get_xdata(), across)
        np.testing.assert_array_equal(bound.get_ydata(), result.error_bounds)
        np.testing.assert_array_equal(residual.get_ydata(), result.residuals)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["power", "gauss-seidel"]


def test_exact_steps_and_unknown_bounds_leave_gaps() -> None:
    result = weighted_pagerank(random_case(1, (4, 5, 4)).graph(), solver="power")
    bound = convergence([result], labels=["layered"]).get_lines()[0]
    assert np.isnan(bound.get_ydata()[-1])
    assert np.isfinite(bound.get_ydata()[0])


def test_invalid_arguments_are_refused() -> None:
    result = pagerank(CYCLIC)
    with pytest.raises(GraphError, match="expected at least one result"):
        convergence([])
    with pytest.raises(GraphError, match="got 1 results and 'miles'"):
        convergence([result], "miles")  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="expected 1 labels"):
        convergence([result], labels=["a", "b"])


def test_eight_lines_differ_in_colour_dashes_and_marker() -> None:
    looks = [line_style(position) for position in range(8)]
    for part in ("color", "linestyle", "marker"):
        assert len({look[part] for look in looks}) == 8


def linear(colour: Any) -> Any:
    """Convert an sRGB colour to linear light."""
    from matplotlib.colors import to_rgb

    channels = np.array(to_rgb(colour))
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def luminance(colour: Any) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


# Machado, Oliveira and Fernandes (2009): how readers see who lack one kind of cones.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour: Any, blindness: str) -> Any:
    """Compute CIE L*a*b* of a colour as a reader sees it."""
    seen = np.clip(np.asarray(BLINDNESS[blindness]) @ linear(colour), 0.0, 1.0)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.maximum(np.asarray(to_xyz) @ seen / [0.9505, 1.0, 1.089], 1e-3))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@table("colour", [*LINE_COLOURS, KEPT, REMOVED, SCORE_REMOVED, FAINT])
def test_lines_have_contrast_on_white(colour: str) -> None:
    """WCAG 2.1 requires a contrast of 3 to 1 for graphics."""
    assert 1.05 / (luminance(colour) + 0.05) >= 3.0


@table("blindness", list(BLINDNESS))
def test_colours_differ_for_colour_blind_readers(blindness: str) -> None:
    for one, other in itertools.combinations(LINE_COLOURS, 2):
        assert np.linalg.norm(lab(one, blindness) - lab(other, blindness)) > 12.0, (one, other)
    assert np.linalg.norm(lab(KEPT, blindness) - lab(REMOVED, blindness)) > 40.0


@table("blindness", list(BLINDNESS))
def test_the_colour_map_rises_in_lightness(blindness: str) -> None:
    from matplotlib import colormaps

    lightness = [lab(colormaps[COLOUR_MAP](value)[:3], blindness)[0] for value in np.linspace(0, 1, 24)]
    assert (np.diff(lightness) > 0).all()


@given(st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=6, unique=True))
def test_short_names_stay_distinct(names: list[str]) -> None:
    short = short_names(names)
    assert len(set(short)) == len(names)


@table(
    ("names", "expected"),
    [
        (["model.layers.11.mlp", "model.layers.11.mlp:output"], ("11 mlp", "11 mlp output")),
        (["transformer.h.0.mlp"], ("0 mlp",)),
        (["encoder.block.0", "encoder.block.1"], ("block 0", "block 1")),
        (["fc1", "net.fc2"], ("fc1", "net fc2")),
        (["a.0.x", "b.0.x"], ("a.0.x", "b.0.x")),
        (["..."], ("...",)),
        (["7"], ("7",)),
    ],
)
def test_short_names_keep_what_tells_layers_apart(names: list[str], expected: tuple[str, ...]) -> None:
    assert short_names(names) == expected


def test_long_names_lose_their_middle() -> None:
    (short,) = short_names(["layers.3.an_uncommonly_long_name_of_a_projection"])
    assert len(short) <= MAX_CHARACTERS + 1
    assert "…" in short
    assert short.startswith("3 an_unc")
    assert short.endswith("projection")


@table("text", ["$a$", "$x", r"\$5", "_hidden", "a_b^c"])
def test_text_is_shown_literally(text: str) -> None:
    ax = new_axes(None)
    ax.plot([0, 1], [0, 1], label=as_literal(text))
    ax.set_title(as_literal(text))
    ax.legend()
    legible(ax)
    assert len(ax.get_legend().get_texts()) == 1


@given(st.floats(0.0, 1.0))
def test_percentages_do_not_round_to_all_or_nothing(share: float) -> None:
    text = percent(share)
    assert (text == "100 %") == (1.0 - share < 1e-11)
    assert (text == "0 %") == (share == 0.0)
    if text[0].isdigit():
        assert abs(float(text.split()[0]) - 100.0 * share) <= (0.05 if share < 0.0995 else 0.5) + 1e-9


@table("count", [1, 2, 9, 30, 200])
def test_layer_names_never_overlap(count: int) -> None:
    ax = new_axes(None)
    ax.set_xlim(-0.5, count - 0.5)
    label_layers(ax, [f"model.layers.{k}.mlp:output" for k in range(count)])
    legible(ax)
    boxes = [text.get_window_extent() for text in ax.get_xticklabels()]
    starts = sorted(box.x1 for box in boxes)
    # Slanted names end side by side, at least a line apart.
    assert all(right - left >= 0.13 * 150 for left, right in itertools.pairwise(starts))


@given(st.floats(1e-12, 1e12), st.floats(1.0001, 1e12))
def test_a_colour_bar_has_numbers_and_not_too_many(low: float, factor: float) -> None:
    cells = np.ma.array([[low, low * factor, 0.0]])
    norm = log_norm(cells)
    assert (norm.vmin, norm.vmax) == (low, low * factor)
    ax = new_axes(None)
    add_log_colour_bar(ax, ax.pcolormesh(cells, norm=norm), "weight")
    ticks = ax.figure.axes[1].get_yticks()
    assert 3 <= len(ticks) <= 9
    assert (ticks >= low * (1 - 1e-12)).all()
    assert (ticks <= low * factor * (1 + 1e-12)).all()


def test_a_colour_scale_of_one_value_surrounds_it() -> None:
    assert (log_norm(np.ma.array([3.0, 3.0])).vmin, log_norm(np.ma.array([3.0])).vmax) == (1.5, 6.0)
    assert log_norm(np.ma.array([0.0])).vmin == 0.5


@table("low", [5e-324, 1e-310, 1e-3, 1e300, sys.float_info.max])
@table("high", [5e-324, 1e-310, 1e-3, 1e300, sys.float_info.max])
def test_colour_scales_cover_all_floats(low: float, high: float) -> None:
    norm = log_norm(np.ma.array([low, high]))
    assert 0.0 < norm.vmin < norm.vmax < np.inf
    ticks = log_ticks(norm.vmin, norm.vmax)
    assert 3 <= len(ticks) <= 9
    assert norm.vmin <= min(ticks) <= max(ticks) <= norm.vmax


def test_long_runs_are_thinned_and_keep_their_ends() -> None:
    steps = 50_000
    result = replace(
        pagerank(CYCLIC),
        residuals=np.geomspace(1, 1e-9, steps),
        error_bounds=np.geomspace(2, 1e-8, steps),
        step_products=np.arange(1, steps + 1) * 4,
        step_seconds=np.arange(1, steps + 1) * 1e-3,
    )
    bound, residual = convergence([result]).get_lines()
    assert 0.5 * MAX_STEPS < len(bound.get_xdata()) <= MAX_STEPS
    for line, values in ((bound, result.error_bounds), (residual, result.residuals)):
        assert (line.get_xdata()[0], line.get_xdata()[-1]) == (4, 4 * steps)
        np.testing.assert_array_equal(line.get_ydata(), values[line.get_xdata() // 4 - 1])


def test_solvers_differ_by_more_than_colour_and_exact_ends_are_named() -> None:
    exact = weighted_pagerank(GRAPH, solver="power")
    assert exact.stop_reason == "exact"
    ax = legible(convergence([pagerank(CYCLIC, solver="power"), pagerank(CYCLIC), exact], labels=["a", "b", "c"]))
    bounds = ax.get_lines()[::2]
    assert len({line.get_linestyle() for line in bounds}) == len({line.get_marker() for line in bounds}) == 3
    entries = [text.get_text() for text in ax.get_legend().get_texts()]
    assert entries == ["a", "b", f"c (exact after {exact.iterations})"]
    # The marker is at the end of the visible line.
    assert bounds[2].get_markevery() == [exact.iterations - 2]


def test_the_colour_bar_of_scores_has_scores() -> None:
    ax = draw.score_heatmap([np.geomspace(1, 1000, 50)])
    legible(ax)
    bar = ax.figure.axes[1]
    shown = {float(text.get_text()): place for text, place in zip(bar.get_yticklabels(), bar.get_yticks(), strict=True)}
    assert len(shown) >= 3
    for value, place in shown.items():
        assert value == pytest.approx(10.0**place, rel=1e-2)
    assert bar.get_ylabel() == "score / layer mean"
