"""Flow of score from layer to layer, between buckets of nodes of high and low score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphs.analysis.buckets import score_buckets
from graphs.analysis.flow import flow, is_modified
from graphs.draw.axes import SMALL, label_layers, new_axes, wrap_to_axes
from graphs.draw.colours import COLOUR_MAP, add_log_colour_bar, hatch_background, log_norm
from graphs.draw.inputs import IntArray
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

# Maximum number of layers whose ribbons a reader can follow; more become a heat map.
MAX_LAYERS = 12
# Maximum number of buckets with shares of whole per cents and distinct colours.
MAX_BUCKETS = 8
# Half the width of a bar, half the width of its flat middle, and the gap between two bars of a stack.
HALF, FLAT, GAP = 0.09, 0.03, 0.025
# Inches that the legend needs beside the axes.
LEGEND = 1.8


@dataclass(frozen=True, eq=False)
class _Stack:
    """Score that arrives at, is held by and leaves each bucket of a layer, divided by the layer's score; (buckets,)."""

    arrives: FloatArray
    holds: FloatArray
    leaves: FloatArray


def layer_flow(
    graph: LayeredGraph,
    rank: RankResult,
    layers: Sequence[int] | None = None,
    buckets: int | Sequence[float] = 5,
    ax: Axes | None = None,
) -> Axes:
    """Draw how score flows between buckets of nodes, layer by layer: stacked bars joined by ribbons.

    A layer is a stack of bars, the nodes with the highest scores on top. The middle of a bar is as high as the score of its
    nodes, its left edge as the score that reaches them over edges, its right edge as the score that leaves them. Where the
    edges differ from the middle, the nodes' own activations or dangling nodes make the difference. The width of a ribbon is
    :func:`graphs.analysis.flow.flow`, and its colour is that of the bucket it comes from.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        A rank of this graph, with one score a node.
    layers : sequence of int, optional
        Consecutive, ascending layers; all by default.
    buckets : int or sequence of float
        The number of buckets, 1 to `MAX_BUCKETS`; they end at equal steps of the logarithm from the highest 1 % of the nodes
        to all of them (5 buckets: 1, 3, 10, 32 and 100 %). Or the share of the nodes in each bucket, with sum 1.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        For more than `MAX_LAYERS` layers a heat map, which the title says: for every block and bucket, the share of the
        bucket's score that edges carry to the bucket of the same place in the next layer, divided by the share of all score
        that this bucket gets. 1 is the value that chance would give.

    Raises
    ------
    GraphError
        A rank of another graph, layers that are not consecutive, a number of buckets out of range, shares that do not
        sum to 1, weights that are not finite.

    Notes
    -----
    Cost: two reads of each block between the layers, and its product with one vector a bucket: some 0.5 s for a block
    of 4096 x 11008. Extra memory: that of :func:`graphs.analysis.flow.flow`.

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
    shares = _shares(buckets)
    names = [graph.names[layer] for layer in chosen]
    if len(chosen) > MAX_LAYERS:
        flows = [flow(graph, rank, layer, shares) for layer in chosen[1:]]
        return _draw_persistence(new_axes(ax), flows, shares, names)
    totals = [float(scores[layer].sum()) or 1.0 for layer in chosen]
    holds = [
        np.bincount(score_buckets(scores[layer], shares), weights=scores[layer], minlength=len(shares)) / total
        for layer, total in zip(chosen, totals, strict=True)
    ]
    # The flow of a modified PageRank has sum 1 already; that of another rank has the sum of its sources' scores.
    flows = [
        flow(graph, rank, layer, shares) / (1.0 if is_modified(rank) else total)
        for layer, total in zip(chosen[1:], totals, strict=False)
    ]
    stacks = [
        _Stack(
            arrives=flows[place - 1].sum(axis=1) if place else held,
            holds=held,
            leaves=flows[place].sum(axis=0) if place < len(flows) else held,
        )
        for place, held in enumerate(holds)
    ]
    ax = new_axes(ax)
    _draw_ribbons(ax, flows, stacks)
    _draw_bars(ax, stacks, shares)
    tallest = max(max(part.sum() for part in (stack.arrives, stack.holds, stack.leaves)) for stack in stacks)
    ax.set_xlim(-0.5, len(chosen) - 0.5)
    ax.set_ylim(_top(len(shares)) - max(tallest, 1.0) - GAP * len(shares), _top(len(shares)) + GAP)
    labels_height = label_layers(ax, names, beside=LEGEND)
    ax.set_yticks([])
    ax.set_ylabel(wrap_to_axes(ax, "score of the layer, highest scores on top", 10.0, labels_height, upright=True))
    key = "layer (bar: score; its edges: score that arrives and leaves; ribbon: in the colour of its source)"
    ax.set_xlabel(wrap_to_axes(ax, key, 9.0, LEGEND), fontsize=9)
    for side in ("top", "right", "left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=SMALL + 0.5)
    ax.set_title(wrap_to_axes(ax, "Flow of score between nodes of high and low score", 10.0, LEGEND), fontsize=10)
    return ax


def _shares(buckets: Any) -> list[float]:
    """Compute the share of the nodes in every bucket."""
    if isinstance(buckets, (int, np.integer)) and not isinstance(buckets, bool):
        if not 1 <= buckets <= MAX_BUCKETS:
            raise GraphError(f"expected 1 to {MAX_BUCKETS} buckets, or the shares of the nodes in them, got {buckets}")
        steps = max(int(buckets) - 1, 1)
        ends = [round(100.0 ** (k / steps)) for k in range(int(buckets))] if buckets > 1 else [100]
        return [(end - start) / 100.0 for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    try:
        shares = [float(share) for share in buckets]
    except (TypeError, ValueError):
        shares = []
    if not shares or len(shares) > MAX_BUCKETS or min(shares) <= 0 or abs(sum(shares) - 1.0) > 1e-9:
        raise GraphError(f"expected 1 to {MAX_BUCKETS} buckets, or positive shares of sum 1, got {buckets!r}")
    return shares


def _bucket_names(shares: Sequence[float]) -> list[str]:
    if len(shares) == 1:
        return ["all nodes"]
    words = ["highest", *["next"] * (len(shares) - 2), "lowest"]
    return [
        f"{word} {percent(round(share, 6)).replace('.0 %', ' %')}" for word, share in zip(words, shares, strict=True)
    ]


def _top(count: int) -> float:
    return 1.0 + GAP * (count - 1)


def _tops(heights: FloatArray) -> FloatArray:
    """Compute the upper edge of every bar of a stack, the first on top."""
    above = np.concatenate(([0.0], np.cumsum(heights)[:-1]))
    return np.asarray(_top(len(heights)) - above - GAP * np.arange(len(heights)))


def _draw_bars(ax: Axes, stacks: Sequence[_Stack], shares: Sequence[float]) -> None:
    """Draw the buckets of every layer as stacked bars."""
    from matplotlib.collections import PolyCollection

    for bucket, (name, colour) in enumerate(zip(_bucket_names(shares), _colours(len(shares)), strict=True)):
        bars, widths = [], []
        for layer, stack in enumerate(stacks):
            x = layer + np.array([-HALF, -FLAT, FLAT, HALF])
            parts = (stack.arrives, stack.holds, stack.holds, stack.leaves)
            upper = np.array([_tops(part)[bucket] for part in parts])
            lower = upper - np.array([part[bucket] for part in parts])
            bars.append(np.column_stack((np.append(x, x[::-1]), np.append(upper, lower[::-1]))))
            # A bucket without score gets no outline.
            widths.append(0.4 if (upper > lower).any() else 0.0)
        ax.add_collection(
            PolyCollection(
                bars, facecolors=[colour], edgecolors="#333333", linewidths=widths, label=_legend_entry(name), zorder=2
            ),
            autolim=False,
        )


def _legend_entry(name: str) -> str:
    return name if name == "all nodes" else f"{name} of nodes"


def _draw_ribbons(ax: Axes, flows: Sequence[FloatArray], stacks: Sequence[_Stack]) -> None:
    """Draw the flow between buckets as ribbons between the bars of neighbouring layers."""
    from matplotlib.collections import PolyCollection

    count = len(stacks[0].holds)
    along = np.linspace(0.0, 1.0, 24)
    # The curve is level at both ends, so a ribbon leaves and enters its bars straight.
    bend = along * along * (3.0 - 2.0 * along)
    for source, colour in enumerate(_colours(count)):
        ribbons = []
        for layer, part in enumerate(flows):
            x = layer + HALF + along * (1.0 - 2.0 * HALF)
            # At a source ribbons are ordered by target, at a target by source.
            start = _tops(stacks[layer].leaves)[source] - np.concatenate(([0.0], np.cumsum(part[:, source])))[:-1]
            for target in np.flatnonzero(part[:, source] > 0.0):
                stop = _tops(stacks[layer + 1].arrives)[target] - part[target, :source].sum()
                upper = start[target] + (stop - start[target]) * bend
                lower = upper - part[target, source]
                ribbons.append(np.column_stack((np.append(x, x[::-1]), np.append(upper, lower[::-1]))))
        ax.add_collection(
            PolyCollection(ribbons, facecolors=[colour], alpha=0.5, edgecolors="#777777", linewidths=0.15, zorder=1),
            autolim=False,
        )


def _colours(count: int) -> list[Any]:
    """Choose colours from dark for high scores to light for low ones, which stay ordered in grey print."""
    from matplotlib import colormaps

    return [colormaps[COLOUR_MAP](value) for value in np.linspace(0.0, 0.95, count)]


def _draw_persistence(ax: Axes, flows: Sequence[FloatArray], shares: Sequence[float], names: Sequence[str]) -> Axes:
    """Draw the heat map of the score that stays in its bucket, for many layers."""
    ratios = np.full((len(shares), len(flows)), np.nan)
    for block, part in enumerate(flows):
        own = np.diag(part)
        chance = part.sum(axis=1) * part.sum(axis=0) / (part.sum() or 1.0)
        known: IntArray = np.flatnonzero(chance > 0.0)
        ratios[known, block] = own[known] / chance[known]
    persistence = np.ma.masked_invalid(ratios)
    hatch_background(ax)
    edges = np.arange(len(flows) + 1) + 0.5
    places = np.arange(len(shares) + 1) - 0.5
    mesh = ax.pcolormesh(edges, places, persistence, cmap=COLOUR_MAP, norm=log_norm(persistence))
    add_log_colour_bar(ax, mesh, "score that stays in its bucket,\nrelative to chance")
    ax.set_xlim(edges[0], edges[-1])
    ax.set_ylim(len(shares) - 0.5, -0.5)
    label_layers(ax, names[1:], np.arange(1.0, len(names)))
    ax.set_yticks(range(len(shares)), [_legend_entry(name) for name in _bucket_names(shares)], fontsize=SMALL)
    ax.set_xlabel("block into layer")
    first, last = short_names(names)[:: len(names) - 1]
    many = f"{len(names)} layers ({first} to {last}), too many for ribbons (up to {MAX_LAYERS}):"
    ax.set_title(wrap_to_axes(ax, f"{many}\nhow much score stays among nodes of similar score", 10.0), fontsize=10)
    return ax
