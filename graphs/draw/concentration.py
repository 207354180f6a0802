"""Concentration of the scores of layers: distributions and Lorenz curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphs.analysis.measures import gini, lorenz
from graphs.draw.axes import SMALL_FONT, label_log_axis, new_axes, wrap_to_axes
from graphs.draw.colours import FAINT, LINE_COLOURS, line_style
from graphs.draw.inputs import check_layer_names, check_layer_scores
from graphs.draw.wording import percent, short_names
from graphs.linalg.blocks import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MAX_LINES", "MAX_POINTS", "lorenz_curves", "score_distribution"]

# Up to this number of layers, each layer gets a line. More layers are drawn as bands.
MAX_LINES = 8
# Maximum number of points of a line: more could not be seen on a page, and vector files would be larger.
MAX_POINTS = 1000


def score_distribution(scores: Sequence[Any], names: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw for every layer the share of nodes that score at least x times the layer's mean (CCDF, logarithmic axes).

    A power law gives a straight line, and nearly equal scores give a steep one. The marker on a line shows the node with the
    highest score. The axis cannot show scores of zero, so the legend gives the share of nodes that have them, for up to
    `MAX_LINES` layers.
    Cost: a few sorts of every layer.

    Parameters
    ----------
    scores : sequence of (n_l,) arrays
        Non-negative.
    names : sequence of str, optional
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        Up to `MAX_LINES` layers: a line of at most `MAX_POINTS` points for each. More layers: bands for the range and the
        middle half of the layers, and lines for their median and for the layers with the highest and the lowest Gini
        coefficient. Layers whose scores are all zero are not drawn.

    Raises
    ------
    GraphError
        Scores that :func:`graphs.draw.inputs.check_layer_scores` refuses, too few or too many names, or equal names.

    Examples
    --------
    >>> ax = score_distribution([[1.0, 1.0, 4.0]], ["only"])
    >>> line = ax.get_lines()[0]
    >>> line.get_xdata().tolist(), line.get_ydata().round(2).tolist()
    ([0.5, 2.0], [1.0, 0.33])
    """
    layers = check_layer_scores(scores)
    labels = short_names(check_layer_names(names, len(layers)))
    ax = new_axes(ax)
    curves = [_exceedance(values) for values in layers]
    if len(layers) <= MAX_LINES:
        for position, (values, (x, y), label) in enumerate(zip(layers, curves, labels, strict=True)):
            _exceedance_line(ax, x, y, f"{label}{_zeros_text(values)}", line_style(position))
    else:
        scored = [values for values in layers if values.any()]
        if scored:
            smallest = 1.0 / max(map(len, scored))
            shares = np.geomspace(smallest, 1.0, 200) if smallest < 1.0 else np.ones(1)
            reached = np.array([_at_shares(values, shares) for values in scored])
            lowest = reached[reached > 0].min()
            for low, high, style in _bands(len(layers), len(scored)):
                left, right = np.quantile(reached, [low, high], axis=0)
                # A logarithmic axis cannot show zeros.
                visible = right > 0
                ax.fill_betweenx(shares[visible], np.maximum(left, lowest)[visible], right[visible], **style)
            median = np.median(reached, axis=0)
            ax.plot(
                np.where(median > 0, median, np.nan), shares, color=LINE_COLOURS[0], linewidth=1.6, label="median layer"
            )
        for layer, description, style in _extremes(layers):
            _exceedance_line(ax, *curves[layer], f"{description}: {labels[layer]}", style)
    ax.axvline(1.0, color=FAINT, linewidth=0.8, zorder=0)
    ax.set_xscale("log")
    ax.set_yscale("log")
    if any(values.any() for values in layers):
        # Around a single point matplotlib would extend the axis far beyond the share 1.
        ax.set_ylim(top=min(ax.get_ylim()[1], 1.2))
    else:
        ax.set_ylim(0.1, 1.2)
    for axis in (ax.xaxis, ax.yaxis):
        label_log_axis(axis, *axis.get_view_interval())
    ax.set_xlabel("score / layer mean")
    ax.set_ylabel(wrap_to_axes(ax, "share of nodes that score at least x", upright=True))
    layer_lines = ax.get_lines()[:-1]  # the last line is the vertical one at the mean
    _legend(ax, _emptier_corner(ax, layer_lines))
    return ax


def lorenz_curves(scores: Sequence[Any], names: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw for every layer the share of its score that its lowest-scored nodes hold; the legend gives Gini coefficients.

    Curves and coefficients are those of :mod:`graphs.analysis.measures`. Cost: a few sorts of every layer.

    Parameters
    ----------
    scores : sequence of (n_l,) arrays
        Non-negative.
    names : sequence of str, optional
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        Lines or bands as in :func:`score_distribution`. The diagonal stands for equal scores.

    Raises
    ------
    GraphError
        As for :func:`score_distribution`.

    Examples
    --------
    >>> ax = lorenz_curves([[1.0, 3.0]], ["only"])
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['equality', 'only, Gini 0.25']
    """
    layers = check_layer_scores(scores)
    labels = short_names(check_layer_names(names, len(layers)))
    ax = new_axes(ax)
    ax.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, label="equality")
    if len(layers) <= MAX_LINES:
        for position, (values, label) in enumerate(zip(layers, labels, strict=True)):
            _lorenz_line(ax, values, f"{label}, {_gini_text(values)}", line_style(position))
    else:
        scored = [values for values in layers if values.any()]
        if scored:
            grid = np.linspace(0.0, 1.0, 201)
            held = np.array([np.interp(grid, *lorenz(values)) for values in scored])
            for low, high, style in _bands(len(layers), len(scored)):
                ax.fill_between(grid, *np.quantile(held, [low, high], axis=0), **style)
            ax.plot(grid, np.median(held, axis=0), color=LINE_COLOURS[0], linewidth=1.6, label="median layer")
        for layer, description, style in _extremes(layers):
            _lorenz_line(ax, layers[layer], f"{description}: {labels[layer]}, {_gini_text(layers[layer])}", style)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel("share of nodes, lowest scores first")
    ax.set_ylabel(wrap_to_axes(ax, "share of the layer's score", upright=True))
    _legend(ax, "upper left")
    return ax


def _exceedance(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Compute a layer's line: its positive scores divided by their mean, ascending, and the share of nodes that reach each."""
    mean = values.mean()
    if not mean > 0.0:
        return np.zeros(0), np.zeros(0)
    relative = np.sort(values)[::-1] / mean
    # Of several equal scores only the last is taken: all of them reach this score, and its place counts them all.
    last = np.append(relative[1:] != relative[:-1], True) & (relative > 0.0)
    places = np.flatnonzero(last)
    if len(places) > MAX_POINTS:
        places = places[np.unique(np.geomspace(1, len(places), MAX_POINTS).round().astype(int)) - 1]
    return relative[places][::-1], (places[::-1] + 1) / len(values)


def _exceedance_line(ax: Axes, x: FloatArray, y: FloatArray, label: str, style: dict[str, Any]) -> None:
    # The share at a score also holds for lower x, down to the next lower score.
    ax.plot(
        x, y, label=label, linewidth=1.4, drawstyle="steps-pre", markersize=6, markevery=[-1] if len(x) else [], **style
    )


def _at_shares(values: FloatArray, shares: FloatArray) -> FloatArray:
    """Compute for each share the highest score, divided by the mean, that at least this share of the nodes reach."""
    relative = np.sort(values)[::-1] / values.mean()
    # Round-off can leave a product a little above a whole number. Without the subtraction, it would then be rounded up.
    places = np.ceil(shares * len(values) - 1e-9).astype(int) - 1
    return np.asarray(relative[np.clip(places, 0, len(values) - 1)])


def _zeros_text(values: FloatArray) -> str:
    share = float((values == 0).mean())
    return "" if share == 0.0 else " (all zero)" if share == 1.0 else f" ({percent(share)} zero)"


def _gini_text(values: FloatArray) -> str:
    return f"Gini {gini(values):.2f}" if values.any() else "all zero"


def _lorenz_line(ax: Axes, values: FloatArray, label: str, style: dict[str, Any]) -> None:
    x, y = lorenz(values) if values.any() else (np.zeros(0), np.zeros(0))
    if len(x) > MAX_POINTS:
        places = np.linspace(0, len(x) - 1, MAX_POINTS).round().astype(int)
        x, y = x[places], y[places]
    ax.plot(x, y, label=label, linewidth=1.4, markersize=5, markevery=(0.15, 0.25), **style)


def _bands(n_layers: int, n_scored: int) -> list[tuple[float, float, dict[str, Any]]]:
    """Return (lower quantile, upper quantile, style) of each band over the `n_scored` layers with scores above 0.

    The wide band comes first, so that the narrow one is drawn over it.
    """
    without = n_layers - n_scored
    label = f"{n_scored} layers ({without} more without score)" if without else f"all {n_layers} layers"
    return [
        (0.0, 1.0, {"color": LINE_COLOURS[5], "alpha": 0.3, "linewidth": 0, "label": label}),
        (0.25, 0.75, {"color": LINE_COLOURS[2], "alpha": 0.5, "linewidth": 0, "label": "middle half of them"}),
    ]


def _extremes(layers: Sequence[FloatArray]) -> list[tuple[int, str, dict[str, Any]]]:
    """Return (layer, description, line style) of the most and of the least unequal layer."""
    coefficients = {layer: gini(values) for layer, values in enumerate(layers) if values.any()}
    if not coefficients:
        return []
    return [
        (max(coefficients, key=coefficients.__getitem__), "most unequal", line_style(1)),
        (min(coefficients, key=coefficients.__getitem__), "least unequal", line_style(3)),
    ]


def _emptier_corner(ax: Axes, lines: Sequence[Any]) -> Literal["upper right", "lower left"]:
    """Choose the corner for a legend: above or below the decreasing lines, where fewer of their points are."""
    points = np.concatenate([np.zeros((0, 2)), *(line.get_xydata() for line in lines)])
    in_axes = ax.transAxes.inverted().transform(ax.transData.transform(points[np.isfinite(points).all(axis=1)]))
    above, below = (in_axes > 0.5).all(axis=1), (in_axes < 0.5).all(axis=1)
    return "upper right" if above.sum() <= below.sum() else "lower left"


def _legend(ax: Axes, location: Literal["upper left", "upper right", "lower left"]) -> None:
    if ax.get_legend_handles_labels()[0]:
        # Lines may pass behind the legend.
        ax.legend(loc=location, framealpha=0.85, edgecolor="none", fontsize=SMALL_FONT + 0.5, handlelength=3.5)
