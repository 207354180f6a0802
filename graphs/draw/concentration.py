"""How unequal the scores of a layer are: distributions and Lorenz curves, a line a layer or bands over many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphs.analysis.measures import gini, lorenz
from graphs.draw.axes import SMALL, fitted, new_axes, number_logs
from graphs.draw.colours import FAINT, LINES, line_look
from graphs.draw.inputs import layer_labels, score_vectors
from graphs.draw.wording import percent, short_names
from graphs.linalg.blocks import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MAX_LINES", "MAX_POINTS", "lorenz_curves", "score_distribution"]

# Layers that get a line of their own: more become bands.
MAX_LINES = 8
# Points of a line: no printer shows more, and vector files stay small.
MAX_POINTS = 1000


def score_distribution(scores: Sequence[Any], names: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Which share of a layer's nodes scores at least x times the layer's mean (CCDF, logarithmic axes).

    A straight line is a power law; a steep one, a layer whose nodes are all alike. The marker is the highest node.

    Parameters
    ----------
    scores : sequence of (n_l,) arrays
        Non-negative.
    names : sequence of str, optional
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        One line a layer, up to `MAX_LINES` layers; of more, the range, the middle half and the median over the layers
        at every share of nodes, and the lines of the layers with the highest and lowest Gini coefficient.

    Raises
    ------
    GraphError
        Nothing to draw, negative or non-finite scores, other names than layers.

    Notes
    -----
    Zeros have no place on a logarithmic axis: the legend gives their share where there are any. Of a line with
    more than `MAX_POINTS` points so many are drawn, evenly spaced on the logarithmic axis. Cost: a sort of every layer.

    Examples
    --------
    >>> ax = score_distribution([[1.0, 1.0, 4.0]], ["only"])
    >>> line = ax.get_lines()[0]
    >>> line.get_xdata().tolist(), line.get_ydata().round(2).tolist()
    ([0.5, 2.0], [1.0, 0.33])
    """
    layers = score_vectors(scores)
    labels = short_names(layer_labels(names, len(layers)))
    ax = new_axes(ax)
    curves = [_exceedance(values) for values in layers]
    if len(layers) <= MAX_LINES:
        for position, (values, (x, y), label) in enumerate(zip(layers, curves, labels, strict=True)):
            _exceedance_line(ax, x, y, f"{label}{_zeros(values)}", line_look(position))
    else:
        scored = [k for k, values in enumerate(layers) if values.any()]
        if scored:
            smallest = 1.0 / max(len(layers[k]) for k in scored)
            shares = np.geomspace(smallest, 1.0, 200) if smallest < 1.0 else np.ones(1)
            at = np.array([_at_shares(layers[k], shares) for k in scored])
            for low, high, style in _bands(len(layers) - len(scored), len(scored)):
                left, right = np.quantile(at, [low, high], axis=0)
                # A band that reaches zero ends at the axis.
                seen = right > 0
                ax.fill_betweenx(shares[seen], np.maximum(left, _least(at))[seen], right[seen], **style)
            middle = np.median(at, axis=0)
            ax.plot(np.where(middle > 0, middle, np.nan), shares, color=LINES[0], linewidth=1.6, label="median layer")
        for k, what, look in _extremes(layers):
            _exceedance_line(ax, *curves[k], f"{what}: {labels[k]}", look)
    ax.axvline(1.0, color=FAINT, linewidth=0.8, zorder=0)
    ax.set_xscale("log")
    ax.set_yscale("log")
    if any(values.any() for values in layers):
        # Around a single point an axis of shares would reach to ten times all of it.
        ax.set_ylim(top=min(ax.get_ylim()[1], 1.2))
    else:
        # Without a line a logarithmic axis has no limits.
        ax.set_ylim(0.1, 1.2)
    for axis in (ax.xaxis, ax.yaxis):
        number_logs(axis, *axis.get_view_interval())
    ax.set_xlabel("score / layer mean")
    ax.set_ylabel(fitted(ax, "share of nodes that score at least x", 10.0, upright=True))
    _legend(ax, _emptier(ax, ax.get_lines()[:-1]))
    return ax


def lorenz_curves(scores: Sequence[Any], names: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Which share of a layer's score its lowest nodes hold together; the Gini coefficient is in the legend.

    Parameters
    ----------
    scores : sequence of (n_l,) arrays
        Non-negative.
    names : sequence of str, optional
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        One line a layer, up to `MAX_LINES` layers; of more, the range, the middle half and the median over the layers,
        and the lines of the layers with the highest and lowest Gini coefficient. The diagonal is equality.

    Raises
    ------
    GraphError
        Nothing to draw, negative or non-finite scores, other names than layers.

    Notes
    -----
    Curves and coefficients are those of :func:`graphs.analysis.measures.lorenz` and :func:`graphs.analysis.measures.gini`. Of a
    line with more than `MAX_POINTS` points so many are drawn. Cost: a sort of every layer.

    Examples
    --------
    >>> ax = lorenz_curves([[1.0, 3.0]], ["only"])
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['equality', 'only, Gini 0.25']
    """
    layers = score_vectors(scores)
    labels = short_names(layer_labels(names, len(layers)))
    ax = new_axes(ax)
    ax.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, label="equality")
    if len(layers) <= MAX_LINES:
        for position, (values, label) in enumerate(zip(layers, labels, strict=True)):
            _lorenz_line(ax, values, f"{label}, {_gini(values)}", line_look(position))
    else:
        scored = [values for values in layers if values.any()]
        if scored:
            grid = np.linspace(0.0, 1.0, 201)
            at = np.array([np.interp(grid, *lorenz(values)) for values in scored])
            for low, high, style in _bands(len(layers) - len(scored), len(scored)):
                ax.fill_between(grid, *np.quantile(at, [low, high], axis=0), **style)
            ax.plot(grid, np.median(at, axis=0), color=LINES[0], linewidth=1.6, label="median layer")
        for k, what, look in _extremes(layers):
            _lorenz_line(ax, layers[k], f"{what}: {labels[k]}, {_gini(layers[k])}", look)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel("share of nodes, lowest scores first")
    ax.set_ylabel(fitted(ax, "share of the layer's score", 10.0, upright=True))
    _legend(ax, "upper left")
    return ax


def _exceedance(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Scores over their mean, rising, and the share of nodes that has at least as much; without zeros, thinned."""
    mean = values.mean()
    if not mean > 0.0:
        return np.zeros(0), np.zeros(0)
    relative = np.sort(values)[::-1] / mean
    # Of equal scores the last one counts them all.
    last = np.append(relative[1:] != relative[:-1], True) & (relative > 0.0)
    places = np.flatnonzero(last)
    if len(places) > MAX_POINTS:
        places = places[np.unique(np.geomspace(1, len(places), MAX_POINTS).round().astype(int)) - 1]
    return relative[places][::-1], (places[::-1] + 1) / len(values)


def _exceedance_line(ax: Axes, x: FloatArray, y: FloatArray, label: str, look: dict[str, Any]) -> None:
    # The share holds from the score below up to this one.
    ax.plot(
        x, y, label=label, linewidth=1.4, drawstyle="steps-pre", markersize=6, markevery=[-1] if len(x) else [], **look
    )


def _at_shares(values: FloatArray, shares: FloatArray) -> FloatArray:
    """The score over the mean that is reached by each share of the nodes."""
    relative = np.sort(values)[::-1] / values.mean()
    # A hair less: a share times n that should be whole may round up past it.
    places = np.ceil(shares * len(values) - 1e-9).astype(int) - 1
    return np.asarray(relative[np.clip(places, 0, len(values) - 1)])


def _least(at: FloatArray) -> float:
    return float(at[at > 0].min())


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


def _bands(silent: int, count: int) -> list[tuple[float, float, dict[str, Any]]]:
    """(lower quantile, upper quantile, look) of the bands over the layers, wide first."""
    whole = f"all {count} layers" if not silent else f"{count} layers ({silent} more without score)"
    return [
        (0.0, 1.0, {"color": LINES[5], "alpha": 0.3, "linewidth": 0, "label": whole}),
        (0.25, 0.75, {"color": LINES[2], "alpha": 0.5, "linewidth": 0, "label": "middle half of them"}),
    ]


def _extremes(layers: Sequence[FloatArray]) -> list[tuple[int, str, dict[str, Any]]]:
    """(layer, what it is, look) of the most and the least unequal layer."""
    unequal = {k: gini(values) for k, values in enumerate(layers) if values.any()}
    if not unequal:
        return []
    return [
        (max(unequal, key=unequal.__getitem__), "most unequal", line_look(1)),
        (min(unequal, key=unequal.__getitem__), "least unequal", line_look(3)),
    ]


def _emptier(ax: Axes, lines: Sequence[Any]) -> Literal["upper right", "lower left"]:
    """Of the two corners beside falling lines, the one with fewer of their points in it."""
    points = np.concatenate([np.zeros((0, 2)), *(line.get_xydata() for line in lines)])
    across = ax.transAxes.inverted().transform(ax.transData.transform(points[np.isfinite(points).all(axis=1)]))
    above, below = (across > 0.5).all(axis=1), (across < 0.5).all(axis=1)
    return "upper right" if above.sum() <= below.sum() else "lower left"


def _legend(ax: Axes, location: Literal["upper left", "upper right", "lower left"]) -> None:
    if ax.get_legend_handles_labels()[0]:
        # Where lines pass behind it, it stays legible.
        ax.legend(loc=location, framealpha=0.85, edgecolor="none", fontsize=SMALL + 0.5, handlelength=3.5)
