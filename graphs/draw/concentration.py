"""Concentration of the scores of layers: distributions and Lorenz curves, one line a layer or bands over many layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphs.analysis.measures import gini, lorenz
from graphs.draw.axes import SMALL, new_axes, number_log_axis, wrap_to_axes
from graphs.draw.colours import FAINT, LINES, line_style
from graphs.draw.inputs import check_layer_names, check_layer_scores
from graphs.draw.wording import percent, short_names
from graphs.linalg.blocks import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MAX_LINES", "MAX_POINTS", "lorenz_curves", "score_distribution"]

# Maximum number of layers with a line each; more become bands.
MAX_LINES = 8
# Maximum number of points of a line: a page shows no more, and vector files stay small.
MAX_POINTS = 1000


def score_distribution(scores: Sequence[Any], names: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the share of a layer's nodes that score at least x times the layer's mean (CCDF, logarithmic axes).

    A power law gives a straight line, a layer of nearly equal scores a steep one. The marker is the node with the highest score.

    Parameters
    ----------
    scores : sequence of (n_l,) arrays
        Non-negative.
    names : sequence of str, optional
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        One line a layer, up to `MAX_LINES` layers; for more layers their range, middle half and median at every share of
        nodes, and the lines of the layers with the highest and the lowest Gini coefficient.

    Raises
    ------
    GraphError
        No layer, negative or non-finite scores, or a wrong number of names.

    Notes
    -----
    A logarithmic axis cannot show zeros, so the legend gives their share if there are any. A line with more than
    `MAX_POINTS` points is reduced to that many, evenly spaced on the logarithmic axis. Cost: a sort of every layer.

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
            _exceedance_line(ax, x, y, f"{label}{_zeros(values)}", line_style(position))
    else:
        scored = [k for k, values in enumerate(layers) if values.any()]
        if scored:
            smallest = 1.0 / max(len(layers[k]) for k in scored)
            shares = np.geomspace(smallest, 1.0, 200) if smallest < 1.0 else np.ones(1)
            at = np.array([_at_shares(layers[k], shares) for k in scored])
            for low, high, style in _bands(len(layers) - len(scored), len(scored)):
                left, right = np.quantile(at, [low, high], axis=0)
                # A band that reaches zero ends at the axis.
                visible = right > 0
                ax.fill_betweenx(shares[visible], np.maximum(left, at[at > 0].min())[visible], right[visible], **style)
            middle = np.median(at, axis=0)
            ax.plot(np.where(middle > 0, middle, np.nan), shares, color=LINES[0], linewidth=1.6, label="median layer")
        for k, description, look in _extremes(layers):
            _exceedance_line(ax, *curves[k], f"{description}: {labels[k]}", look)
    ax.axvline(1.0, color=FAINT, linewidth=0.8, zorder=0)
    ax.set_xscale("log")
    ax.set_yscale("log")
    if any(values.any() for values in layers):
        # Around a single point matplotlib would extend the axis to ten times the share of all nodes.
        ax.set_ylim(top=min(ax.get_ylim()[1], 1.2))
    else:
        # Without a line a logarithmic axis has no limits.
        ax.set_ylim(0.1, 1.2)
    for axis in (ax.xaxis, ax.yaxis):
        number_log_axis(axis, *axis.get_view_interval())
    ax.set_xlabel("score / layer mean")
    ax.set_ylabel(wrap_to_axes(ax, "share of nodes that score at least x", 10.0, upright=True))
    _legend(ax, _emptier_corner(ax, ax.get_lines()[:-1]))
    return ax


def lorenz_curves(scores: Sequence[Any], names: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the share of a layer's score that its lowest nodes hold; the legend gives the Gini coefficient.

    Parameters
    ----------
    scores : sequence of (n_l,) arrays
        Non-negative.
    names : sequence of str, optional
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        One line a layer, up to `MAX_LINES` layers; for more layers their range, middle half and median, and the lines of
        the layers with the highest and the lowest Gini coefficient. The diagonal is equality.

    Raises
    ------
    GraphError
        No layer, negative or non-finite scores, or a wrong number of names.

    Notes
    -----
    Curves and coefficients are those of :func:`graphs.analysis.measures.lorenz` and :func:`graphs.analysis.measures.gini`. A line
    with more than `MAX_POINTS` points is reduced to that many. Cost: a sort of every layer.

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
            _lorenz_line(ax, values, f"{label}, {_gini(values)}", line_style(position))
    else:
        scored = [values for values in layers if values.any()]
        if scored:
            grid = np.linspace(0.0, 1.0, 201)
            at = np.array([np.interp(grid, *lorenz(values)) for values in scored])
            for low, high, style in _bands(len(layers) - len(scored), len(scored)):
                ax.fill_between(grid, *np.quantile(at, [low, high], axis=0), **style)
            ax.plot(grid, np.median(at, axis=0), color=LINES[0], linewidth=1.6, label="median layer")
        for k, description, look in _extremes(layers):
            _lorenz_line(ax, layers[k], f"{description}: {labels[k]}, {_gini(layers[k])}", look)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel("share of nodes, lowest scores first")
    ax.set_ylabel(wrap_to_axes(ax, "share of the layer's score", 10.0, upright=True))
    _legend(ax, "upper left")
    return ax


def _exceedance(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return ascending scores over their mean, and the share of nodes with at least each; without zeros, at most MAX_POINTS."""
    mean = values.mean()
    if not mean > 0.0:
        return np.zeros(0), np.zeros(0)
    relative = np.sort(values)[::-1] / mean
    # The last among equal scores counts them all.
    last = np.append(relative[1:] != relative[:-1], True) & (relative > 0.0)
    places = np.flatnonzero(last)
    if len(places) > MAX_POINTS:
        places = places[np.unique(np.geomspace(1, len(places), MAX_POINTS).round().astype(int)) - 1]
    return relative[places][::-1], (places[::-1] + 1) / len(values)


def _exceedance_line(ax: Axes, x: FloatArray, y: FloatArray, label: str, look: dict[str, Any]) -> None:
    # A share applies from the next lower score up to this one.
    ax.plot(
        x, y, label=label, linewidth=1.4, drawstyle="steps-pre", markersize=6, markevery=[-1] if len(x) else [], **look
    )


def _at_shares(values: FloatArray, shares: FloatArray) -> FloatArray:
    """Compute the scores over their mean that each share of the nodes reaches."""
    relative = np.sort(values)[::-1] / values.mean()
    # The small difference keeps a share times n that should be whole from being rounded up past it.
    places = np.ceil(shares * len(values) - 1e-9).astype(int) - 1
    return np.asarray(relative[np.clip(places, 0, len(values) - 1)])


def _zeros(values: FloatArray) -> str:
    share = float((values == 0).mean())
    return "" if share == 0.0 else " (all zero)" if share == 1.0 else f" ({percent(share)} zero)"


def _gini(values: FloatArray) -> str:
    return f"Gini {gini(values):.2f}" if values.any() else "all zero"


def _lorenz_line(ax: Axes, values: FloatArray, label: str, look: dict[str, Any]) -> None:
    x, y = lorenz(values) if values.any() else (np.zeros(0), np.zeros(0))
    if len(x) > MAX_POINTS:
        places = np.linspace(0, len(x) - 1, MAX_POINTS).round().astype(int)
        x, y = x[places], y[places]
    ax.plot(x, y, label=label, linewidth=1.4, markersize=5, markevery=(0.15, 0.25), **look)


def _bands(without_score: int, count: int) -> list[tuple[float, float, dict[str, Any]]]:
    """Return (lower quantile, upper quantile, look) of the bands over the layers, the wide band first."""
    label = f"{count} layers ({without_score} more without score)" if without_score else f"all {count} layers"
    return [
        (0.0, 1.0, {"color": LINES[5], "alpha": 0.3, "linewidth": 0, "label": label}),
        (0.25, 0.75, {"color": LINES[2], "alpha": 0.5, "linewidth": 0, "label": "middle half of them"}),
    ]


def _extremes(layers: Sequence[FloatArray]) -> list[tuple[int, str, dict[str, Any]]]:
    """Return (layer, description, look) of the most and the least unequal layer."""
    coefficients = {k: gini(values) for k, values in enumerate(layers) if values.any()}
    if not coefficients:
        return []
    return [
        (max(coefficients, key=coefficients.__getitem__), "most unequal", line_style(1)),
        (min(coefficients, key=coefficients.__getitem__), "least unequal", line_style(3)),
    ]


def _emptier_corner(ax: Axes, lines: Sequence[Any]) -> Literal["upper right", "lower left"]:
    """Choose the corner beside decreasing lines that holds fewer of their points."""
    points = np.concatenate([np.zeros((0, 2)), *(line.get_xydata() for line in lines)])
    across = ax.transAxes.inverted().transform(ax.transData.transform(points[np.isfinite(points).all(axis=1)]))
    above, below = (across > 0.5).all(axis=1), (across < 0.5).all(axis=1)
    return "upper right" if above.sum() <= below.sum() else "lower left"


def _legend(ax: Axes, location: Literal["upper left", "upper right", "lower left"]) -> None:
    if ax.get_legend_handles_labels()[0]:
        # The background keeps the legend legible where lines pass behind it.
        ax.legend(loc=location, framealpha=0.85, edgecolor="none", fontsize=SMALL + 0.5, handlelength=3.5)
