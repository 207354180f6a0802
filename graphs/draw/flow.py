"""Flow of score from layer to layer, between buckets: groups of the nodes of a layer with similar scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphs.analysis.buckets import score_buckets
from graphs.analysis.flow import flow, is_modified
from graphs.draw.axes import SMALL_FONT, label_layers, new_axes, wrap_to_axes
from graphs.draw.colours import COLOUR_MAP, add_log_colour_bar, hatch_background, log_norm
from graphs.draw.wording import percent, short_names
from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray
from graphs.ranking.scores import finite_scores
from graphs.reduction.node_selection import check_consecutive_layers
from graphs.solvers.result import RankResult
from graphs.structures.layered import LayeredGraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MAX_BUCKETS", "MAX_LAYERS", "layer_flow"]

# Up to this number of layers, a reader can follow the ribbons. More layers become a heat map.
MAX_LAYERS = 12
# With more buckets, their colours would be hard to tell apart.
MAX_BUCKETS = 8
# Half the width of a bar, half the width of its level middle, and the gap between two bars of a stack, in data coordinates.
HALF_WIDTH, HALF_FLAT, GAP = 0.09, 0.03, 0.025
# Inches that the legend takes beside the axes.
LEGEND_WIDTH = 1.8


@dataclass(frozen=True, eq=False)
class _Stack:
    """Heights of the bars of a layer, (buckets,).

    Attributes
    ----------
    arriving, held, leaving : (buckets,) float64 arrays
        Heights on the left, in the middle and on the right of the bars.
    """

    arriving: FloatArray
    held: FloatArray
    leaving: FloatArray


def layer_flow(
    graph: LayeredGraph,
    rank: RankResult,
    layers: Sequence[int] | None = None,
    buckets: int | Sequence[float] = 5,
    ax: Axes | None = None,
) -> Axes:
    """Draw how score flows between buckets of nodes, layer by layer, as stacked bars joined by ribbons.

    A layer is a stack of bars, one for each bucket, with the highest scores on top. The height of a bar in the middle is the
    score of the nodes in the bucket. On the left, it is the score that reaches these nodes along edges; on the right, it is the
    score that they pass on. Where a layer has no edges on one side, the height there is that of the middle. The width of a ribbon
    is the flow of score, and its colour is that of the source.

    Cost and memory: those of :func:`graphs.analysis.flow.flow` for every block (the edges between two layers).

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        The rank of this graph, with one score a node.
    layers : sequence of int, optional
        Consecutive, ascending layers; all by default.
    buckets : int or sequence of float
        The number of buckets, 1 to `MAX_BUCKETS`, which end at logarithmically spaced shares of the nodes (5 buckets: 1, 3,
        10, 32 and 100 %); or the share of the nodes in each bucket, with sum 1.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        For more than `MAX_LAYERS` layers, the axes hold a heat map instead, with a cell for every block and bucket. A cell shows
        the share of the flow out of the bucket that goes to the same bucket of the next layer, divided by the share of the whole
        flow that goes to that bucket. Chance would give 1.

    Raises
    ------
    GraphError
        A rank of another graph or with several scores a node, layers that do not exist or are not consecutive, buckets that
        are not as described, or scores, weights or sums of weights that are not finite.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]]], [1, 1], [[1, 1, 2]])
    >>> ax = layer_flow(graph, weighted_pagerank(graph), buckets=(0.5, 0.5))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['highest 50 % of nodes', 'lowest 50 % of nodes']
    """
    scores = finite_scores(graph, rank)
    chosen = check_consecutive_layers(graph, layers)
    shares = _bucket_shares(buckets)
    names = [graph.names[layer] for layer in chosen]
    if len(chosen) > MAX_LAYERS:
        flows = [flow(graph, rank, layer, shares) for layer in chosen[1:]]
        return _draw_persistence(new_axes(ax), flows, shares, names)
    totals = [float(scores[layer].sum()) or 1.0 for layer in chosen]
    held = [
        np.bincount(score_buckets(scores[layer], shares), weights=scores[layer], minlength=len(shares)) / total
        for layer, total in zip(chosen, totals, strict=True)
    ]
    # The flow of a modified PageRank has sum 1 or 0 already. That of another rank sums to the score of sources with out-edges.
    flows = [
        flow(graph, rank, layer, shares) / (1.0 if is_modified(rank) else total)
        for layer, total in zip(chosen[1:], totals, strict=False)
    ]
    stacks = [
        _Stack(
            arriving=flows[place - 1].sum(axis=1) if place else own,
            held=own,
            leaving=flows[place].sum(axis=0) if place < len(flows) else own,
        )
        for place, own in enumerate(held)
    ]
    ax = new_axes(ax)
    _draw_ribbons(ax, flows, stacks)
    _draw_bars(ax, stacks, shares)
    tallest = max(part.sum() for stack in stacks for part in (stack.arriving, stack.held, stack.leaving))
    ax.set_xlim(-0.5, len(chosen) - 0.5)
    top = _stack_top(len(shares))
    ax.set_ylim(top - max(tallest, 1.0) - GAP * len(shares), top + GAP)
    labels_height = label_layers(ax, names, reserved=LEGEND_WIDTH)
    ax.set_yticks([])
    ax.set_ylabel(wrap_to_axes(ax, "score of the layer, highest scores on top", reserved=labels_height, upright=True))
    explanation = "layer (bar, left to right: score that arrives, is held, leaves; ribbon: colour of its source)"
    ax.set_xlabel(wrap_to_axes(ax, explanation, 9.0, LEGEND_WIDTH), fontsize=9)
    ax.spines[:].set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=SMALL_FONT + 0.5)
    ax.set_title(
        wrap_to_axes(ax, "Flow of score between nodes of high and low score", reserved=LEGEND_WIDTH), fontsize=10
    )
    return ax


def _bucket_shares(buckets: Any) -> list[float]:
    if isinstance(buckets, (int, np.integer)) and not isinstance(buckets, bool) and 1 <= buckets <= MAX_BUCKETS:
        count = int(buckets)
        ends = [round(100.0 ** (k / (count - 1))) for k in range(count)] if count > 1 else [100]
        return [(end - start) / 100.0 for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    try:
        shares = [float(share) for share in buckets]
    except (TypeError, ValueError):
        shares = []
    if not shares or len(shares) > MAX_BUCKETS or min(shares) <= 0 or abs(sum(shares) - 1.0) > 1e-9:
        raise GraphError(f"expected 1 to {MAX_BUCKETS} buckets, or as many positive shares of sum 1, got {buckets!r}")
    return shares


def _bucket_names(shares: Sequence[float]) -> list[str]:
    if len(shares) == 1:
        return ["all nodes"]
    words = ["highest", *["next"] * (len(shares) - 2), "lowest"]
    return [
        f"{word} {percent(round(share, 6)).replace('.0 %', ' %')} of nodes"
        for word, share in zip(words, shares, strict=True)
    ]


def _stack_top(count: int) -> float:
    """Compute the upper edge of a stack of `count` bars, whose lower edge is at 0 if their heights sum to 1."""
    return 1.0 + GAP * (count - 1)


def _bar_tops(heights: FloatArray) -> FloatArray:
    """Compute the upper edge of every bar of a stack, from the top down."""
    above = np.concatenate(([0.0], np.cumsum(heights)[:-1]))
    return np.asarray(_stack_top(len(heights)) - above - GAP * np.arange(len(heights)))


def _draw_bars(ax: Axes, stacks: Sequence[_Stack], shares: Sequence[float]) -> None:
    from matplotlib.collections import PolyCollection

    for bucket, (name, colour) in enumerate(zip(_bucket_names(shares), _colours(len(shares)), strict=True)):
        bars, widths = [], []
        for layer, stack in enumerate(stacks):
            x = layer + np.array([-HALF_WIDTH, -HALF_FLAT, HALF_FLAT, HALF_WIDTH])
            parts = (stack.arriving, stack.held, stack.held, stack.leaving)
            upper = np.array([_bar_tops(part)[bucket] for part in parts])
            lower = upper - np.array([part[bucket] for part in parts])
            bars.append(np.column_stack((np.append(x, x[::-1]), np.append(upper, lower[::-1]))))
            widths.append(0.4 if (upper > lower).any() else 0.0)
        ax.add_collection(
            PolyCollection(bars, facecolors=[colour], edgecolors="#333333", linewidths=widths, label=name, zorder=2),
            autolim=False,
        )


def _draw_ribbons(ax: Axes, flows: Sequence[FloatArray], stacks: Sequence[_Stack]) -> None:
    from matplotlib.collections import PolyCollection

    along = np.linspace(0.0, 1.0, 24)
    # With this curve, ribbons meet their bars at a right angle.
    curve = along * along * (3.0 - 2.0 * along)
    for source, colour in enumerate(_colours(len(stacks[0].held))):
        ribbons = []
        for layer, block_flow in enumerate(flows):
            x = layer + HALF_WIDTH + along * (1.0 - 2.0 * HALF_WIDTH)
            widths = block_flow[:, source]
            # At a source, ribbons are ordered by target; at a target, by source.
            starts = _bar_tops(stacks[layer].leaving)[source] - np.concatenate(([0.0], np.cumsum(widths)))[:-1]
            for target in np.flatnonzero(widths > 0.0):
                stop = _bar_tops(stacks[layer + 1].arriving)[target] - block_flow[target, :source].sum()
                upper = starts[target] + (stop - starts[target]) * curve
                lower = upper - widths[target]
                ribbons.append(np.column_stack((np.append(x, x[::-1]), np.append(upper, lower[::-1]))))
        ax.add_collection(
            PolyCollection(ribbons, facecolors=[colour], alpha=0.5, edgecolors="#777777", linewidths=0.15, zorder=1),
            autolim=False,
        )


def _colours(count: int) -> list[Any]:
    """Choose the colours of buckets, from dark for high scores to light, so that grey print keeps their order."""
    from matplotlib import colormaps

    return [colormaps[COLOUR_MAP](value) for value in np.linspace(0.0, 0.95, count)]


def _draw_persistence(ax: Axes, flows: Sequence[FloatArray], shares: Sequence[float], names: Sequence[str]) -> Axes:
    """Draw a heat map of the flow that stays in its bucket from one layer to the next, relative to chance."""
    ratios = np.full((len(shares), len(flows)), np.nan)
    for block, block_flow in enumerate(flows):
        chance = block_flow.sum(axis=1) * block_flow.sum(axis=0) / (block_flow.sum() or 1.0)
        np.divide(np.diag(block_flow), chance, out=ratios[:, block], where=chance > 0.0)
    persistence = np.ma.masked_invalid(ratios)
    hatch_background(ax)
    x_bounds = np.arange(len(flows) + 1) + 0.5
    y_bounds = np.arange(len(shares) + 1) - 0.5
    mesh = ax.pcolormesh(x_bounds, y_bounds, persistence, cmap=COLOUR_MAP, norm=log_norm(persistence))
    add_log_colour_bar(ax, mesh, "score that stays in its bucket,\nrelative to chance")
    ax.set_xlim(x_bounds[0], x_bounds[-1])
    ax.set_ylim(y_bounds[-1], y_bounds[0])
    label_layers(ax, names[1:], np.arange(1.0, len(names)))
    ax.set_yticks(range(len(shares)), _bucket_names(shares), fontsize=SMALL_FONT)
    ax.set_xlabel("block into layer")
    first, last = short_names(names)[:: len(names) - 1]
    description = f"{len(names)} layers ({first} to {last}), too many for ribbons (up to {MAX_LAYERS}):"
    ax.set_title(wrap_to_axes(ax, f"{description}\nhow much score stays among nodes of similar score"), fontsize=10)
    return ax
