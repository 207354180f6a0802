"""Figures of scores: heat maps by layer, the shares of nodes kept and removed by layer, and a comparison of two scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphs.analysis.measures import percentiles, positions, rank_correlation, share_also_kept
from graphs.checks import check_share
from graphs.draw.axes import SMALL_FONT, label_log_axis, new_axes, size_in_inches, use_whole_ticks, wrap_to_axes
from graphs.draw.colours import COLOUR_MAP, KEPT, REMOVED, SCORE_REMOVED, hatch_background
from graphs.draw.inputs import BoolArray, check_keep_masks, check_layer_names, check_layer_scores
from graphs.draw.wording import as_literal, percent
from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MAX_COLUMNS", "MAX_DOTS", "compare_scores", "group_heatmap", "kept_by_layer", "score_heatmap"]

# Maximum number of columns of a heat map: more could not be seen on a page.
MAX_COLUMNS = 400
# Up to this number of nodes, each node gets a dot. More nodes are drawn as a density.
MAX_DOTS = 1000


def score_heatmap(scores: Sequence[Any], keep: Sequence[Any] | None = None, ax: Axes | None = None) -> Axes:
    """Draw a heat map with a row for each layer: nodes from the highest score on, coloured by score / mean of the layer.

    A row has at most `MAX_COLUMNS` cells; each shows the mean of one or several nodes. Cost: a sort of every layer.

    Parameters
    ----------
    scores : sequence of (n_l,) arrays
        Non-negative.
    keep : sequence of (n_l,) bool arrays, optional
        Keep masks: True for a node that is kept. A white line marks how many nodes every layer keeps.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    GraphError
        Scores that :func:`graphs.draw.inputs.check_layer_scores` refuses, or masks of other sizes.

    Examples
    --------
    >>> ax = score_heatmap([[1.0, 3.0, 2.0], [1.0, 1.0]], [[False, True, True], [True, False]])
    >>> ax.get_ylabel()
    'layer'
    """
    layers = check_layer_scores(scores)
    masks = None if keep is None else check_keep_masks(layers, keep)
    widest = max(map(len, layers))
    columns = min(MAX_COLUMNS, widest)
    bounds = np.linspace(0, widest, columns + 1).astype(int)
    image = np.full((len(layers), columns), np.nan)
    for row, values in enumerate(layers):
        relative = np.sort(values)[::-1] / (values.mean() or 1.0)
        inside = bounds[:-1] < len(values)
        starts = bounds[:-1][inside]
        stops = np.minimum(bounds[1:][inside], len(values))
        image[row, inside] = np.add.reduceat(relative, starts) / (stops - starts)
    ax = new_axes(ax)
    positive = image[np.isfinite(image) & (image > 0)]
    floor = float(positive.min()) if len(positive) else 1.0
    shown = np.log10(np.maximum(image, floor))
    # If the colour scale reached up to the few highest scores, the others could not be told apart.
    low, high = np.nanpercentile(shown, [1, 99])
    if not low < high:
        low, high = low - 0.5, high + 0.5
    extent = (0, widest, len(layers) - 0.5, -0.5)
    picture = ax.imshow(
        shown, aspect="auto", cmap=COLOUR_MAP, extent=extent, interpolation="nearest", vmin=low, vmax=high
    )
    bar = ax.figure.colorbar(picture, ax=ax, pad=0.02, extend="both")
    bar.set_label("score / layer mean")
    label_log_axis(bar.ax.yaxis, 10.0**low, 10.0**high, logarithms=True)
    hatch_background(ax)
    if masks is not None:
        from matplotlib.patheffects import withStroke

        kept = [int(mask.sum()) for mask in masks]
        ax.step(
            np.repeat(kept, 2),
            np.ravel([(row - 0.5, row + 0.5) for row in range(len(kept))]),
            color="white",
            linewidth=1.5,
            # White alone is invisible on the brightest colours and on the background.
            path_effects=[withStroke(linewidth=3.0, foreground="black")],
        )
    line = "" if masks is None else "; white line: number of nodes kept"
    ax.set_xlabel(wrap_to_axes(ax, f"node, highest score first{line}"))
    ax.set_ylabel("layer")
    ax.set_ylim(len(layers) - 0.5, -0.5)
    use_whole_ticks(ax.xaxis, ax.yaxis)
    return ax


def kept_by_layer(scores: Sequence[Any], keep: Sequence[Any], ax: Axes | None = None) -> Axes:
    """Draw, for every layer, the shares of nodes kept and removed, and the share of the layer's score that is removed.

    Parameters
    ----------
    scores : sequence of (n_l,) arrays
        Non-negative.
    keep : sequence of (n_l,) bool arrays
        Keep masks: True for a node that is kept.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    GraphError
        Scores that :func:`graphs.draw.inputs.check_layer_scores` refuses, or masks of other sizes.

    Examples
    --------
    >>> ax = kept_by_layer([[1.0, 3.0]], [[False, True]])
    >>> ax.get_lines()[0].get_ydata().tolist()
    [0.25]
    """
    layers = check_layer_scores(scores)
    masks = check_keep_masks(layers, keep)
    ax = new_axes(ax)
    kept = np.array([mask.mean() for mask in masks])
    removed_score = [
        float(values[~mask].sum() / (values.sum() or 1.0)) for values, mask in zip(layers, masks, strict=True)
    ]
    places = np.arange(len(layers))
    ax.bar(places, kept, color=KEPT, width=0.85, label="nodes kept")
    ax.bar(
        places, 1.0 - kept, bottom=kept, color=REMOVED, width=0.85, label="nodes removed", hatch="///", edgecolor="white",
        linewidth=0.0,
    )  # fmt: skip
    ax.plot(
        places,
        removed_score,
        color=SCORE_REMOVED,
        marker="o",
        markersize=3,
        linewidth=1,
        label="score removed",
        clip_on=False,
    )
    ax.set_xlabel("layer")
    ax.set_ylabel("share")
    ax.set_ylim(0, 1)
    ax.margins(x=0.01)
    use_whole_ticks(ax.xaxis)
    columns = 3 if size_in_inches(ax)[0] > 3.8 else 2
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False, fontsize=SMALL_FONT + 0.5)
    return ax


def group_heatmap(
    values: Sequence[Any],
    removed: Sequence[Any] | None = None,
    *,
    labels: Sequence[str] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw a heat map with a row for each layer and a cell for each group of its nodes; crosses mark groups that are removed.

    Parameters
    ----------
    values : sequence of (g_l,) arrays
        Non-negative, such as the score of each group.
    removed : sequence of (g_l,) bool arrays, optional
    labels : sequence of str, optional
        The name of each row; by default its number.
    title : str
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        If the cells are large enough, each holds its value.

    Raises
    ------
    GraphError
        Values that :func:`graphs.draw.inputs.check_layer_scores` refuses, masks of other sizes, or a wrong number of labels.

    Examples
    --------
    >>> ax = group_heatmap([[0.25, 0.75], [0.5, 0.5]], [[True, False], [False, False]], title="use")
    >>> len(ax.images), ax.get_title()
    (1, 'use')
    """
    rows = check_layer_scores(values)
    names = check_layer_names([str(row) for row in range(len(rows))] if labels is None else labels, len(rows))
    marks = None if removed is None else check_keep_masks(rows, removed)
    image = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, cells in enumerate(rows):
        image[row, : len(cells)] = cells
    ax = new_axes(ax)
    highest = float(np.nanmax(image)) or 1.0
    # If the colour scale reached up to a few values far above the others, the others could not be told apart.
    common = float(np.nanpercentile(image, 99))
    top = common if 0.0 < 1.3 * common < highest else highest
    picture = ax.imshow(image, aspect="auto", cmap=COLOUR_MAP, interpolation="nearest", vmin=0.0, vmax=top)
    ax.figure.colorbar(picture, ax=ax, pad=0.02, extend="max" if top < highest else "neither")
    hatch_background(ax)
    for row, mask in enumerate(marks or ()):
        for column in np.flatnonzero(mask):
            ends = np.array([-0.46, 0.46])
            for direction in (1, -1):
                ax.plot(column + ends, row + direction * ends, color=REMOVED, linewidth=1.4, solid_capstyle="butt")
    width, height = (inches / n for inches, n in zip(size_in_inches(ax), image.shape[::-1], strict=True))
    if width > 0.33 and height > 0.19:
        _write_values(ax, image, top)
    ax.set_xlim(-0.5, image.shape[1] - 0.5)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    step = max(1, -(-len(rows) // 24))
    ax.set_yticks(range(0, len(rows), step), [as_literal(name) for name in names[::step]])
    use_whole_ticks(ax.xaxis)
    ax.set_ylabel("layer")
    ax.set_title(wrap_to_axes(ax, title), fontsize=10)
    return ax


def _write_values(ax: Axes, image: FloatArray, top: float) -> None:
    """Write every value into its cell, with an outline that keeps it readable on a cross."""
    from matplotlib.patheffects import withStroke

    for row, column in np.argwhere(np.isfinite(image)):
        ink, ground = ("black", "white") if image[row, column] > 0.55 * top else ("white", "black")
        ax.text(
            column,
            row,
            f"{image[row, column]:.3g}",
            color=ink,
            fontsize=SMALL_FONT,
            ha="center",
            va="center",
            path_effects=[withStroke(linewidth=1.5, foreground=ground, alpha=0.6)],
        )


def compare_scores(
    a: Any,
    b: Any,
    labels: tuple[str, str] = ("first", "second"),
    keep: float | tuple[Any, Any] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the percentile of every node by one score against its percentile by another score. Cost: up to six sorts.

    Parameters
    ----------
    a, b : (n,) arrays
        Two scores of the same nodes, non-negative.
    labels : tuple of two str
    keep : float, or tuple of two (n,) bool arrays, optional
        The share of nodes that each score keeps, 0..1 (among equal scores the lower index is removed first), or a keep mask for
        `a` and one for `b`. Lines mark the shares removed. The title gives the share of the nodes kept by `a` that `b` keeps.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        A dot for each of up to `MAX_DOTS` nodes, or else hexagons coloured by the number of nodes. The title gives Spearman's
        rank correlation.

    Raises
    ------
    GraphError
        Scores that are empty, negative, not finite or of two lengths, a share out of range, wrong masks, or not two labels.

    Examples
    --------
    >>> ax = compare_scores([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0], ("norm", "rank"), keep=0.5)
    >>> ax.get_title()
    'Spearman 0.80; of the nodes that norm keeps (50 %), rank keeps 100 %'
    """
    first, second = check_layer_scores([a, b])
    size = len(first)
    if len(second) != size:
        raise GraphError(f"expected two scores of the same nodes, got {size} and {len(second)} scores")
    if len(labels) != 2:
        raise GraphError(f"expected two labels, got {list(labels)}")
    masks = None if keep is None else _masks_of_both(first, second, keep)
    names = [as_literal(str(label)) for label in labels]
    ax = new_axes(ax)
    x, y = 100.0 * percentiles(first), 100.0 * percentiles(second)
    if size <= MAX_DOTS:
        ax.scatter(x, y, s=14, color=KEPT, alpha=0.6, linewidths=0)
    else:
        cells = ax.hexbin(
            x, y, gridsize=(48, 24), extent=(0, 100, 0, 100), mincnt=1, bins="log", cmap=COLOUR_MAP, linewidths=0.1
        )
        bar = ax.figure.colorbar(cells, ax=ax, pad=0.02)
        bar.set_label("nodes")
        label_log_axis(bar.ax.yaxis, *bar.ax.get_ylim())
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 100)
    ax.set_xlabel(wrap_to_axes(ax, f"percentile by {names[0]}"))
    ax.set_ylabel(wrap_to_axes(ax, f"percentile by {names[1]}", upright=True))
    agreement = rank_correlation(first, second)
    title = f"Spearman {agreement:.2f}" if np.isfinite(agreement) else "Spearman undefined (equal scores)"
    if masks is not None:
        cuts = [100.0 * (1.0 - mask.mean()) for mask in masks]
        ax.axvline(cuts[0], color=REMOVED, linewidth=1.4, linestyle="--")
        ax.axhline(cuts[1], color=REMOVED, linewidth=1.4, linestyle="--")
        title += f"; of the nodes that {names[0]} keeps ({percent(float(masks[0].mean()))}), {names[1]} keeps "
        title += percent(share_also_kept(*masks)) if masks[0].any() else "none"
    ax.set_title(wrap_to_axes(ax, title), fontsize=10)
    return ax


def _masks_of_both(first: FloatArray, second: FloatArray, keep: Any) -> list[BoolArray]:
    """Check two keep masks, or make those that keep a share of the nodes."""
    if isinstance(keep, (tuple, list)):
        return check_keep_masks([first, second], keep)
    share = check_share("keep, if it is not a tuple of two masks,", keep)
    # The position of a score is 0 for the highest score, 1 for the next, and so on.
    return [positions(values) < round(share * len(values)) for values in (first, second)]
