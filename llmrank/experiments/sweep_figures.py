"""Figures of a sweep: perplexity against the share removed, the size left, and the speed, with the Pareto front."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphs.draw.axes import LINE_HEIGHT, SMALL_FONT, label_log_axis, size_in_inches
from graphs.draw.colours import FAINT, line_style
from llmrank.errors import OptionError
from llmrank.experiments.sweep_result import METHOD, SweepResult, method_of
from llmrank.inspection.figures import FORMATS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_sweep", "pareto_front", "write_sweep_figures"]

# Up to this many methods, each has a colour and its name. If there are more, only those on the Pareto front have them.
MOST_NAMED = 8
# Rows whose perplexity is more than this many times that of the dense model are not drawn.
LARGEST_RATIO = 20.0
# Values on an x axis that differ by less than this share of its range count as equal.
ROUNDING = 0.005
# The plots, one for each quantity on the x axis: its value for a row, its label, and whether more of it is better.
PANELS: dict[str, tuple[Callable[[Mapping[str, Any]], float], str, bool]] = {
    "removed": (lambda row: 100.0 * row["removed"], "neurons removed (%)", True),
    "parameters": (lambda row: row["parameters"] / 1e6, "parameters (millions)", False),
    "bytes": (lambda row: row["bytes"] / 1e6, "size (MB)", False),
    "speed": (lambda row: row["speed"]["ratio"], "speed / speed of the dense model", True),
}


def write_sweep_figures(result: SweepResult) -> list[Path]:
    """Draw one figure for each model into the directory of the sweep, and return the paths.

    A model that cannot be drawn is left out with a warning.

    Raises
    ------
    OptionError
        No model has a row with results.
    OSError
        The directory cannot be written.
    """
    paths: list[Path] = []
    errors = []
    for model in dict.fromkeys(row["model"] for row in result.rows):
        try:
            figure = draw_sweep(result, model)
        except OptionError as error:
            errors.append(str(error))
            continue
        paths += save_figure(figure, result.directory, "sweep-" + re.sub(r"[^\w.-]+", "_", model), FORMATS)
    if not paths:
        raise OptionError("; ".join(errors) or f"the sweep in {result.directory} has no rows yet to draw")
    for sentence in errors:
        warnings.warn(sentence, stacklevel=2)
    return paths


def draw_sweep(result: SweepResult, model: str) -> Figure:
    """Draw the rows of one model.

    Parameters
    ----------
    result : SweepResult
    model : str
        The name of the model in the rows.

    Returns
    -------
    matplotlib Figure
        Perplexity against the share of neurons removed, parameters and bytes and, if it was measured, speed. A line joins the
        rows of a method. Filled points are on the Pareto front: no other row is better in one respect and as good in the other.

    Raises
    ------
    OptionError
        No row of the model has results.
    """
    rows = [row for row in result.rows if row["model"] == model and "error" not in row]
    if not rows or not math.isfinite(float(rows[0]["perplexity"])):
        raise OptionError(
            f"no row of {model} has results to draw, or the dense model has no perplexity to compare with"
        )
    dense = float(rows[0]["perplexity"])
    drawn = [row for row in rows if float(row["perplexity"]) <= LARGEST_RATIO * dense]
    varying = [name for name in METHOD if len({row.get(name, 0) for row in rows if row["scorer"]}) > 1] or ["scorer"]
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in drawn:
        if row["scorer"] is not None:
            lines.setdefault(method_of(row, varying), []).append(row)
    panels = [name for name in PANELS if name != "speed" or all("speed" in row for row in drawn)]
    figure = new_figure(4.0 * len(panels) + 1.5, 4.4)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    on_front = {method_of(row, varying) for panel in panels for row in pareto_front(drawn, panel)}
    named = [name for name in lines if len(lines) <= MOST_NAMED or name in on_front]
    styles = {name: line_style(position) for position, name in enumerate(named)}
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_panel(axes, panel, drawn, lines, styles)
    _label_perplexities(all_axes[0], [float(row["perplexity"]) for row in drawn])
    _name_lines(all_axes[0], lines, styles)
    figure.suptitle(f"{model}: perplexity, lower is better. {_remarks(rows, drawn, lines, styles)}", fontsize=10)
    return figure


def pareto_front(rows: Sequence[Mapping[str, Any]], panel: str) -> list[Mapping[str, Any]]:
    """Return the rows on the Pareto front of a plot: no other row is better. The rows are ordered along the x axis.

    A row is better than another if its perplexity is lower and its value on the x axis no worse, or the other way round. Values
    on the x axis that differ by less than half a percent of their range count as equal, because shares are rounded to neurons.

    Examples
    --------
    >>> rows = [{"removed": x, "perplexity": y} for x, y in ((0.0, 20.0), (0.1, 25.0), (0.1, 24.0), (0.2, 24.0))]
    >>> [(row["removed"], row["perplexity"]) for row in pareto_front(rows, "removed")]
    [(0.0, 20.0), (0.2, 24.0)]
    """
    value, _, more_is_better = PANELS[panel]
    costs = [-value(row) if more_is_better else value(row) for row in rows]
    places = [(cost, float(row["perplexity"])) for cost, row in zip(costs, rows, strict=True)]
    rounding = ROUNDING * (max(costs) - min(costs))

    def is_better(one: tuple[float, float], other: tuple[float, float]) -> bool:
        lower, smaller = one[1] < other[1], one[0] < other[0] - rounding
        return (lower and one[0] <= other[0] + rounding) or (smaller and one[1] <= other[1])

    front = [row for row, own in zip(rows, places, strict=True) if not any(is_better(each, own) for each in places)]
    return sorted(front, key=value)


def _draw_panel(
    axes: Axes,
    panel: str,
    rows: Sequence[dict[str, Any]],
    lines: Mapping[str, Sequence[dict[str, Any]]],
    styles: Mapping[str, dict[str, Any]],
) -> None:
    value, label, _ = PANELS[panel]
    front = pareto_front(rows, panel)
    axes.plot(
        [value(row) for row in front],
        [float(row["perplexity"]) for row in front],
        color="#DDDDDD",
        linewidth=6,
        solid_capstyle="round",
        zorder=0,
    )
    for name, own in sorted(lines.items(), key=lambda item: item[0] in styles):
        ordered = sorted(own, key=value)
        x, y = [value(row) for row in ordered], [float(row["perplexity"]) for row in ordered]
        style = styles.get(name, {"color": "#BBBBBB", "marker": "o", "linestyle": "-"})
        axes.plot(x, y, **{**style, "marker": "none"}, linewidth=1.2 if name in styles else 0.8)
        for x_point, y_point, row in zip(x, y, ordered, strict=True):
            filled = any(row is each for each in front)
            axes.plot(
                x_point,
                y_point,
                marker=style["marker"],
                markersize=6.5 if filled else 4.5,
                color=style["color"],
                markerfacecolor=style["color"] if filled else "white",
            )
    dense = next((row for row in rows if row["scorer"] is None), None)
    if dense is not None:
        axes.axhline(float(dense["perplexity"]), color=FAINT, linewidth=0.8, linestyle=(0, (1, 3)), zorder=0)
        axes.plot(value(dense), float(dense["perplexity"]), marker="*", markersize=11, color="#000000")
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)


def _label_perplexities(axes: Axes, values: Sequence[float]) -> None:
    axes.set_yscale("log")
    low, high = min(values), max(values)
    room = (high / low) ** 0.06 if high > low else 1.1
    axes.set_ylim(low / room, high * room)
    label_log_axis(axes.yaxis, low / room, high * room)
    axes.set_ylabel("perplexity")


def _name_lines(
    axes: Axes, lines: Mapping[str, Sequence[dict[str, Any]]], styles: Mapping[str, dict[str, Any]]
) -> None:
    """Write the name of every line with a colour beside its end, at the right of the axes, where no two names overlap."""
    if not styles:
        return
    low, high = (math.log(limit) for limit in axes.get_ylim())
    ends = {}
    for name in styles:
        last = max(lines[name], key=lambda row: row["removed"])
        ends[name] = (100.0 * last["removed"], (math.log(float(last["perplexity"])) - low) / (high - low))
    gap = 1.15 * LINE_HEIGHT / size_in_inches(axes)[1]
    ordered = sorted(ends, key=lambda name: ends[name][1])
    heights = _spread([ends[name][1] for name in ordered], gap)
    transform = axes.get_yaxis_transform()
    for name, height in zip(ordered, heights, strict=True):
        colour, (x, y) = styles[name]["color"], ends[name]
        axes.annotate(
            name,
            xy=(x, math.exp(low + y * (high - low))),
            xytext=(1.03, math.exp(low + height * (high - low))),
            textcoords=transform,
            color=colour,
            fontsize=SMALL_FONT + 0.5,
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkB": 5, "relpos": (0.0, 0.5)},
            annotation_clip=False,
        )


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights apart until neighbours differ by `gap` or more, with the least sum of squared moves.

    Examples
    --------
    >>> [round(height, 2) for height in _spread([0.5, 0.5, 0.9], 0.1)]
    [0.45, 0.55, 0.9]
    """
    # Imported here, because this takes long.
    from scipy.optimize import isotonic_regression

    steps = gap * np.arange(len(heights))
    return [float(height) for height in isotonic_regression(np.asarray(heights) - steps).x + steps]


def _remarks(rows: Sequence[Any], drawn: Sequence[Any], lines: Mapping[str, Any], styles: Mapping[str, Any]) -> str:
    """Say what the marks of a figure mean, and which rows and methods it leaves out."""
    parts = ["Star: dense model. Filled points and grey band: Pareto front."]
    unnamed = len(lines) - len(styles)
    if unnamed:
        parts.append(f"Grey: {unnamed} methods that are not on it.")
    if len(rows) > len(drawn):
        parts.append(f"Not drawn: {len(rows) - len(drawn)} rows above {LARGEST_RATIO:.0f} times the dense model.")
    return " ".join(parts)
