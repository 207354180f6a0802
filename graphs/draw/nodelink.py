"""Node-link drawing of a small subgraph of a large layered graph, with the share of the graph that it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphs.analysis.measures import positions
from graphs.draw.axes import LETTER, LINE, SMALL, label_layers, new_axes, size_in_inches, wrap_to_axes
from graphs.draw.colours import KEPT
from graphs.draw.inputs import IntArray
from graphs.draw.wording import percent
from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray
from graphs.reduction.subgraphs import Subgraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MAX_EDGES", "MAX_NODES", "node_link"]

# Maximum number of nodes that a reader can tell apart on a page.
MAX_NODES = 300
# Maximum number of edges drawn, the heaviest first: lighter ones would only blur the figure.
MAX_EDGES = 4000
# Top and bottom of the nodes of a layer, and the largest distance between two neighbours, in data coordinates.
TOP, BOTTOM, WIDEST_PITCH = 1.0, 0.0, 0.25
# The height of the box for the nodes that are not shown.
OTHER = -0.17
# Inches for the words below the boxes, and for title and x label beyond one line each.
BELOW, TITLES = 0.5, 0.35
# Smallest and largest area of a node in points squared.
SMALLEST, LARGEST = 8.0, 260.0
# Points from one index to the next; digits have no descenders.
DIGITS = 7.6


@dataclass(frozen=True, eq=False)
class _Lines:
    """The edges to draw: their ends in data coordinates, and their weights over the heaviest shown edge of their block."""

    segments: FloatArray
    strength: FloatArray
    total: int


def node_link(subgraph: Subgraph, ax: Axes | None = None, max_nodes: int = MAX_NODES) -> Axes:
    """Draw nodes as dots, edges as lines from left to right, and one box a layer for the nodes that are not shown.

    Layers are columns with the highest score on top; without scores, nodes are ordered by index. The area of a node is
    proportional to its score. The width of a line is proportional to its weight over the heaviest edge of its block. The
    title says which share of the score and of the weight the figure shows.

    Parameters
    ----------
    subgraph : Subgraph
        The subgraph to draw; see :func:`graphs.reduction.subgraphs.top_subgraph`.
    ax : matplotlib Axes, optional
    max_nodes : int
        Maximum number of nodes; more raise an error.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    GraphError
        More than `max_nodes` nodes, or an argument that is not a Subgraph.

    Notes
    -----
    Of more than `MAX_EDGES` edges the heaviest are drawn, by weight over the heaviest of their block, and the title says
    so. Nodes are labelled by their index where there is space. Cost: a sort of the subgraph's edges; the original graph is
    not read.

    Examples
    --------
    >>> from graphs import LayeredGraph, weighted_pagerank
    >>> from graphs.reduction.subgraphs import top_subgraph
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]]], [1, 1], [[1, 1, 2]])
    >>> ax = node_link(top_subgraph(graph, weighted_pagerank(graph), nodes=2))
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['layer 0', 'layer 1']
    """
    if not isinstance(subgraph, Subgraph):
        raise GraphError(
            f"node_link draws a Subgraph, got {type(subgraph).__name__}; choose its nodes with "
            "graphs.reduction.subgraphs.top_subgraph(graph, rank, nodes=20)"
        )
    counts = [len(nodes) for nodes in subgraph.nodes]
    if sum(counts) > max_nodes:
        each = max_nodes // len(counts)
        fewer = f"nodes={each}" if each else f"nodes=1, layers=range({max_nodes})"
        raise GraphError(
            f"node_link draws up to {max_nodes} nodes, got {sum(counts):,} in {len(counts)} layers; take fewer with "
            f"top_subgraph(graph, rank, {fewer}), or draw adjacency_heatmap or "
            "layer_flow of the graph"
        )
    ax = new_axes(ax)
    ax.set_xlim(-0.5, len(counts) - 0.5)
    labels_height = label_layers(ax, subgraph.graph.names)
    # The words below the boxes need a fixed height in inches, however high the axes are.
    below = BELOW / max(size_in_inches(ax)[1] - labels_height - TITLES, 2 * BELOW)
    ax.set_ylim(OTHER - max(0.22, (TOP + 0.06 - OTHER) * below / (1.0 - below)), TOP + 0.06)
    scores = _scores(subgraph)
    heights = [_heights(values) for values in scores]
    lines = _lines(subgraph, heights)
    _draw_edges(ax, lines)
    _draw_nodes(ax, subgraph, heights, scores, size_in_inches(ax)[1] - labels_height)
    _draw_others(ax, subgraph)
    ax.set_yticks([])
    ax.set_ylabel("highest score on top" if subgraph.scores is not None else "nodes by index")
    key = "layer (width of a line: weight over the heaviest of its block; box: all other nodes and their score)"
    ax.set_xlabel(wrap_to_axes(ax, key, 9.0), fontsize=9)
    for side in ("top", "right", "left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.set_title(wrap_to_axes(ax, _title(subgraph, lines), 9.5), fontsize=9.5)
    return ax


def _scores(subgraph: Subgraph) -> list[FloatArray]:
    """Return the values that decide order and size; without scores they decrease with the index."""
    if subgraph.scores is not None:
        return [np.asarray(values, dtype=np.float64) for values in subgraph.scores]
    return [-np.arange(len(nodes), dtype=np.float64) for nodes in subgraph.nodes]


def _heights(values: FloatArray) -> FloatArray:
    """Compute the y of every node: highest score on top, evenly spaced and centred."""
    count = len(values)
    pitch = min(WIDEST_PITCH, (TOP - BOTTOM) / max(count - 1, 1))
    return np.asarray((TOP + BOTTOM) / 2 + pitch * ((count - 1) / 2 - positions(values)))


def _lines(subgraph: Subgraph, heights: Sequence[FloatArray]) -> _Lines:
    """Compute the lines of the heaviest edges, relative to the heaviest edge of their block."""
    segments, strengths = [np.zeros((0, 2, 2))], [np.zeros(0)]
    for layer, block in enumerate(subgraph.graph.blocks, start=1):
        edges = block.to_csr().tocoo()
        if not edges.nnz:
            continue
        ends = np.empty((edges.nnz, 2, 2))
        ends[:, 0, 0], ends[:, 1, 0] = layer - 1, layer
        ends[:, 0, 1] = heights[layer - 1][edges.col]
        ends[:, 1, 1] = heights[layer][edges.row]
        segments.append(ends)
        strengths.append(edges.data / edges.data.max())
    strength = np.concatenate(strengths)
    # The heaviest edges come last, so that they are drawn over the others.
    order = np.argsort(strength, kind="stable")[-MAX_EDGES:]
    return _Lines(np.concatenate(segments)[order], strength[order], len(strength))


def _draw_edges(ax: Axes, lines: _Lines) -> None:
    from matplotlib.collections import LineCollection

    colours = np.zeros((len(lines.strength), 4))
    # Where many lines cross, only the heavy ones are dark.
    crowd = min(1.0, (300.0 / max(len(lines.strength), 1)) ** 0.5)
    colours[:, 3] = (0.08 + 0.72 * lines.strength**2) * (0.35 + 0.65 * crowd)
    ax.add_collection(
        LineCollection(list(lines.segments), linewidths=0.2 + 1.8 * lines.strength, colors=colours, zorder=1),
        autolim=False,
    )


def _draw_nodes(
    ax: Axes, subgraph: Subgraph, heights: Sequence[FloatArray], scores: Sequence[FloatArray], height: float
) -> None:
    """Draw the nodes of every layer, with areas by score, and their indices where there is space."""
    low, high = ax.get_ylim()
    pitches = [
        72.0 * height / (high - low) * float(np.diff(np.sort(values)).min(initial=WIDEST_PITCH)) for values in heights
    ]
    column = size_in_inches(ax)[0] / len(heights)
    # Neighbours may touch but not overlap.
    largest = min(LARGEST, max(SMALLEST, (0.95 * min(*pitches, 72.0 * column)) ** 2))
    highest = max((float(values.max()) for values in scores if len(values)), default=0.0)
    equal_areas = subgraph.scores is None or highest <= 0.0
    # An index beside its node must end before the next column.
    letters = max((len(str(int(nodes.max()))) for nodes in subgraph.nodes if len(nodes)), default=1)
    wide = column >= 0.35 + LETTER * letters
    for layer, (y, values, nodes) in enumerate(zip(heights, scores, subgraph.nodes, strict=True)):
        areas = np.full(len(y), largest / 4) if equal_areas else np.maximum(SMALLEST, largest * values / highest)
        ax.scatter(np.full(len(y), float(layer)), y, s=areas, color=KEPT, edgecolors="white", linewidths=0.5, zorder=3)
        if wide and pitches[layer] >= DIGITS:
            _label(ax, layer, y, nodes, np.sqrt(areas) / 2)


def _label(ax: Axes, layer: int, heights: FloatArray, nodes: IntArray, radii: FloatArray) -> None:
    """Write the indices of the nodes of a layer beside them."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3.0, foreground="white")]
    for y, node, radius in zip(heights, nodes.tolist(), radii, strict=True):
        # So close that no edge shows in between, which would look like a minus. Labels of the first layer are on the left,
        # where it has no edges.
        side = -1 if layer == 0 else 1
        ax.annotate(
            str(node),
            (layer, y),
            xytext=(side * (radius + 1.5), 0),
            textcoords="offset points",
            ha="right" if side < 0 else "left",
            va="center",
            fontsize=SMALL,
            path_effects=halo,
            zorder=4,
        )


def _draw_others(ax: Axes, subgraph: Subgraph) -> None:
    """Draw one box a layer for the nodes that are not shown, with their number and their share of the score."""
    hidden = [total - len(nodes) for total, nodes in zip(subgraph.total_nodes, subgraph.nodes, strict=True)]
    places = [layer for layer, count in enumerate(hidden) if count]
    if not places:
        return
    column = size_in_inches(ax)[0] / len(hidden)
    area = min(110.0, max(SMALLEST, (72.0 * column * 0.6) ** 2))
    look: dict[str, Any] = {"marker": "s", "facecolor": "white", "edgecolor": "#666666", "hatch": "//////"}
    ax.scatter(places, [OTHER] * len(places), s=area, zorder=3, **look)
    show_count = column > LETTER * len(f"{max(hidden):,} others") + 0.05
    horizontal = column > LETTER * 5
    for layer in places:
        rows = [f"{hidden[layer]:,} others"] if show_count else []
        if subgraph.score_shares is not None and column > LINE:
            rows.append(percent(1.0 - subgraph.score_shares[layer]))
        ax.annotate(
            "\n".join(rows),
            (layer, OTHER),
            xytext=(0, -2 - area**0.5 / 2),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=SMALL,
            rotation=0 if horizontal else 90,
        )


def _title(subgraph: Subgraph, lines: _Lines) -> str:
    shown, total = sum(map(len, subgraph.nodes)), sum(subgraph.total_nodes)
    drawn = len(lines.strength)
    edges = f"{drawn:,} edges" if drawn == lines.total else f"the heaviest {drawn:,} of {lines.total:,} edges"
    parts = []
    if subgraph.score_shares is not None:
        parts.append(f"{_range(subgraph.score_shares)} of a layer's score")
    if subgraph.weight_shares:
        parts.append(f"{_range(subgraph.weight_shares)} of a block's weight")
    holds = f"\nThey hold {' and '.join(parts)}" if parts else ""
    return f"{shown:,} of {total:,} nodes, {edges}{holds}"


def _range(shares: Sequence[Any]) -> str:
    low, high = percent(float(min(shares))), percent(float(max(shares)))
    return low if low == high else f"{low.removesuffix(' %')} to {high}"
