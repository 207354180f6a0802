"""Figures of ranked layers, drawn with matplotlib onto axes of your own or new ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphs.blocks import FloatArray
from graphs.errors import GraphError
from graphs.result import RankResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["convergence", "kept_by_layer", "score_heatmap"]

# Columns of the heat map: more are averaged, so that any width fits a page.
MAX_COLUMNS = 400
# Okabe and Ito's colours, which colour-blind readers can tell apart.
KEPT, REMOVED, LOST = "#0072B2", "#D55E00", "#000000"
LINES = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999")


def score_heatmap(scores: Sequence[FloatArray], keep: Sequence[Any], ax: Axes | None = None) -> Axes:
    """Layers against nodes sorted by score; the colour is the score over the layer's mean.

    Parameters
    ----------
    scores : sequence of (n_l,) arrays
        Non-negative.
    keep : sequence of (n_l,) bool arrays
        True = kept; a line marks where a layer's removed nodes begin.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    GraphError
        Nothing to draw, or sizes that differ.
    """
    _check(scores, keep)
    widest = max(map(len, scores))
    columns = min(MAX_COLUMNS, widest)
    image = np.full((len(scores), columns), np.nan)
    for row, values in enumerate(scores):
        relative = np.sort(values)[::-1] / (values.mean() or 1.0)
        edges = np.linspace(0, widest, columns + 1)
        for column in range(columns):
            part = relative[int(edges[column]) : max(int(edges[column]) + 1, int(edges[column + 1]))]
            if len(part):
                image[row, column] = part.mean()
    ax = _axes(ax)
    positive = image[np.isfinite(image) & (image > 0)]
    floor = float(positive.min()) if len(positive) else 1.0
    shown = np.log10(np.maximum(image, floor))
    # A few nodes hold a hundred times the mean: the scale ends before them, or all others look alike.
    low, high = np.nanpercentile(shown, [1, 99])
    picture = ax.imshow(
        shown,
        aspect="auto",
        cmap="cividis",
        extent=(0, widest, len(scores) - 0.5, -0.5),
        interpolation="nearest",
        vmin=low,
        vmax=high if high > low else low + 1.0,
    )
    bar = ax.figure.colorbar(picture, ax=ax, pad=0.02, extend="both")
    bar.set_label("score / layer mean (log10)")
    kept = [int(np.sum(mask)) for mask in keep]
    ax.step(
        np.repeat(kept, 2),
        np.ravel([(row - 0.5, row + 0.5) for row in range(len(kept))]),
        color="white",
        linewidth=1.5,
        label="removed to the right",
    )
    ax.set_xlabel("node, highest score first")
    ax.set_ylabel("layer")
    ax.set_ylim(len(scores) - 0.5, -0.5)
    return ax


def kept_by_layer(scores: Sequence[FloatArray], keep: Sequence[Any], ax: Axes | None = None) -> Axes:
    """Share of nodes kept and removed in every layer, and the share of score that went with them.

    Parameters
    ----------
    scores, keep, ax
        As for :func:`score_heatmap`.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    GraphError
        Nothing to draw, or sizes that differ.
    """
    _check(scores, keep)
    ax = _axes(ax)
    kept = np.array([np.mean(mask) for mask in keep])
    lost = [float(v[~np.asarray(m, dtype=bool)].sum() / (v.sum() or 1.0)) for v, m in zip(scores, keep, strict=True)]
    layers = np.arange(len(scores))
    ax.bar(layers, kept, color=KEPT, width=0.85, label="nodes kept")
    ax.bar(layers, 1.0 - kept, bottom=kept, color=REMOVED, width=0.85, label="nodes removed")
    ax.plot(layers, lost, color=LOST, marker="o", markersize=3, linewidth=1, label="score removed")
    ax.set_xlabel("layer")
    ax.set_ylabel("share")
    ax.set_ylim(0, 1)
    ax.margins(x=0.01)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return ax


def convergence(
    results: Sequence[RankResult],
    against: Literal["steps", "products", "seconds"] = "products",
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Error bound (line) and residual (dots) of every step, on logarithmic axes.

    Parameters
    ----------
    results : sequence of RankResult
    against : {"steps", "products", "seconds"}
        What the steps are laid out by; block products make solvers comparable.
    labels : sequence of str, optional
        By default the solvers' names.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    GraphError
        Nothing to draw, an unknown measure, or another number of labels.
    """
    if not results or against not in ("steps", "products", "seconds"):
        raise GraphError(
            f"expected results, and against steps, products or seconds; got {len(results)} and {against!r}"
        )
    names = [result.solver for result in results] if labels is None else list(labels)
    if len(names) != len(results):
        raise GraphError(f"expected {len(results)} labels, one a result, got {len(names)}")
    ax = _axes(ax)
    for position, (result, name) in enumerate(zip(results, names, strict=True)):
        across = {
            "steps": np.arange(1, result.iterations + 1),
            "products": result.step_products,
            "seconds": result.step_seconds,
        }[against]
        colour = LINES[position % len(LINES)]
        # An exact step has nothing left to show on a logarithmic axis, and an unknown bound nothing to show at all.
        bounds = np.where((result.error_bounds > 0) & np.isfinite(result.error_bounds), result.error_bounds, np.nan)
        residuals = np.where(result.residuals > 0, result.residuals, np.nan)
        ax.plot(across, bounds, color=colour, linewidth=1.4, label=name)
        ax.plot(across, residuals, color=colour, linestyle="none", marker=".", markersize=3)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel({"steps": "steps", "products": "block products", "seconds": "seconds"}[against])
    ax.set_ylabel("L1: bound on the error (line), residual (dots)")
    ax.legend(frameon=False)
    return ax


def _check(scores: Sequence[FloatArray], keep: Sequence[Any]) -> None:
    if not scores or [len(v) for v in scores] != [len(m) for m in keep]:
        raise GraphError(
            f"expected scores and keep masks of the same layers, got sizes {[len(v) for v in scores]} and "
            f"{[len(m) for m in keep]}"
        )


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    # Not pyplot: no global state, and no window.
    return Figure(figsize=(8, 4), layout="constrained").subplots()
