"""Node-link drawing of a small subgraph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphs.analysis.measures import positions
from graphs.draw.axes import LETTER_WIDTH, LINE_HEIGHT, SMALL_FONT, label_layers, new_axes, size_in_inches, wrap_to_axes
from graphs.draw.colours import KEPT
from graphs.draw.inputs import IntArray
from graphs.draw.wording import percent
from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray
from graphs.reduction.subgraphs import Subgraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MAX_EDGES", "MAX_NODES", "node_link"]

# More nodes could hardly be told apart on a page.
MAX_NODES = 300
# More edges would only blur the figure.
MAX_EDGES = 4000
# Highest and lowest y of the nodes of a layer, and the largest distance from one dot to the next, in data coordinates.
TOP, BOTTOM, WIDEST_PITCH = 1.0, 0.0, 0.25
# The y of the boxes for the nodes that are not shown.
OTHERS_Y = -0.17
# Height in inches of the words below the boxes, and of the lines that the title and the x label take beyond their first.
BELOW, TITLES = 0.5, 0.35
# Smallest and largest area of a dot, in square points.
SMALLEST, LARGEST = 8.0, 260.0
# Smallest distance in points between dots that get an index: less than the height of a line, because digits do not reach below
# the line.
INDEX_PITCH = 7.6


@dataclass(frozen=True, eq=False)
class _EdgeLines:
    """The edges to draw as lines, in ascending order of weight.

    Attributes
    ----------
    segments : (k, 2, 2) float64 array
        (x, y) of both ends of every line.
    weights : (k,) float64 array
        Weight of every edge, divided by the highest weight between its two layers.
    n_edges : int
        Number of all edges of the subgraph, whether they are drawn or not.
    """

    segments: FloatArray
    weights: FloatArray
    n_edges: int


def node_link(subgraph: Subgraph, ax: Axes | None = None, max_nodes: int = MAX_NODES) -> Axes:
    """Draw a subgraph: nodes as dots, edges as lines, and for each layer a box for the nodes that are not in the subgraph.

    Layers are columns from left to right, with the highest score on top, or in the order of indices if there are no scores. The
    area of a dot is proportional to its score, but not below a minimum. The width of a line grows with the weight of its edge,
    divided by that of the heaviest edge between the same two layers of the subgraph. Of more than `MAX_EDGES` edges, only those
    with the widest lines are drawn. The title gives the shares of the graph's weights and scores that the subgraph holds. Nodes
    are labelled by their index where there is space. Cost: a sort of the subgraph's edges.

    Parameters
    ----------
    subgraph : Subgraph
        From :func:`graphs.reduction.subgraphs.top_subgraph`, for example.
    ax : matplotlib Axes, optional
    max_nodes : int
        More nodes raise an error.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    GraphError
        More than `max_nodes` nodes, or an argument that is not a Subgraph.

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
            f"top_subgraph(graph, rank, {fewer}), or draw the graph with adjacency_heatmap or layer_flow"
        )
    ax = new_axes(ax)
    ax.set_xlim(-0.5, len(counts) - 0.5)
    labels_height = label_layers(ax, subgraph.graph.names)
    # The share of the axes that the words below the boxes take: their height in inches does not depend on that of the axes.
    below = BELOW / max(size_in_inches(ax)[1] - labels_height - TITLES, 2 * BELOW)
    ax.set_ylim(OTHERS_Y - max(0.22, (TOP + 0.06 - OTHERS_Y) * below / (1.0 - below)), TOP + 0.06)
    scores = _scores(subgraph)
    ys = [_node_ys(values) for values in scores]
    lines = _edge_lines(subgraph, ys)
    _draw_edges(ax, lines)
    _draw_nodes(ax, subgraph, ys, scores, size_in_inches(ax)[1] - labels_height)
    _draw_others(ax, subgraph)
    ax.set_yticks([])
    ax.set_ylabel("highest score on top" if subgraph.scores is not None else "nodes by index")
    explanation = "layer (width of a line: weight over the heaviest of its block; box: all other nodes and their score)"
    ax.set_xlabel(wrap_to_axes(ax, explanation, 9.0), fontsize=9)
    ax.spines[:].set_visible(False)
    ax.set_title(wrap_to_axes(ax, _title(subgraph, lines), 9.5), fontsize=9.5)
    return ax


def _scores(subgraph: Subgraph) -> list[FloatArray]:
    """Return the scores; if there are none, values that decrease with the index."""
    if subgraph.scores is not None:
        return [np.asarray(values, dtype=np.float64) for values in subgraph.scores]
    return [-np.arange(len(nodes), dtype=np.float64) for nodes in subgraph.nodes]


def _node_ys(values: FloatArray) -> FloatArray:
    """Compute the y of every node of a layer, with the highest score on top."""
    count = len(values)
    pitch = min(WIDEST_PITCH, (TOP - BOTTOM) / max(count - 1, 1))
    return np.asarray((TOP + BOTTOM) / 2 + pitch * ((count - 1) / 2 - positions(values)))


def _edge_lines(subgraph: Subgraph, ys: Sequence[FloatArray]) -> _EdgeLines:
    segments, weights = [np.zeros((0, 2, 2))], [np.zeros(0)]
    for layer, block in enumerate(subgraph.graph.blocks, start=1):
        edges = block.to_csr().tocoo()
        if not edges.nnz:
            continue
        ends = np.empty((edges.nnz, 2, 2))
        ends[:, 0, 0], ends[:, 1, 0] = layer - 1, layer
        ends[:, 0, 1] = ys[layer - 1][edges.col]
        ends[:, 1, 1] = ys[layer][edges.row]
        segments.append(ends)
        weights.append(edges.data / edges.data.max())
    relative = np.concatenate(weights)
    # Later lines are drawn over earlier ones.
    order = np.argsort(relative, kind="stable")[-MAX_EDGES:]
    return _EdgeLines(np.concatenate(segments)[order], relative[order], len(relative))


def _draw_edges(ax: Axes, lines: _EdgeLines) -> None:
    from matplotlib.collections import LineCollection

    colours = np.zeros((len(lines.weights), 4))
    # Where many lines cross, only the heavy ones are dark.
    uncrowded = min(1.0, (300.0 / max(len(lines.weights), 1)) ** 0.5)
    colours[:, 3] = (0.08 + 0.72 * lines.weights**2) * (0.35 + 0.65 * uncrowded)
    ax.add_collection(
        LineCollection(list(lines.segments), linewidths=0.2 + 1.8 * lines.weights, colors=colours, zorder=1),
        autolim=False,
    )


def _draw_nodes(
    ax: Axes, subgraph: Subgraph, ys: Sequence[FloatArray], scores: Sequence[FloatArray], height: float
) -> None:
    """Draw the dots, and their indices where there is space, on axes of `height` inches."""
    low, high = ax.get_ylim()
    pitches = [
        72.0 * height / (high - low) * float(np.diff(np.sort(values)).min(initial=WIDEST_PITCH)) for values in ys
    ]
    column_width = size_in_inches(ax)[0] / len(ys)
    # Dots of this area do not overlap, except the smallest in a layer of many nodes.
    largest = min(LARGEST, max(SMALLEST, (0.95 * min(*pitches, 72.0 * column_width)) ** 2))
    highest = max((float(values.max()) for values in scores if len(values)), default=0.0)
    equal_areas = subgraph.scores is None or highest <= 0.0
    # An index beside its node must end before the next column.
    digits = max((len(str(int(nodes.max()))) for nodes in subgraph.nodes if len(nodes)), default=1)
    indices_fit = column_width >= 0.35 + LETTER_WIDTH * digits
    for layer, (y, values, nodes) in enumerate(zip(ys, scores, subgraph.nodes, strict=True)):
        areas = np.full(len(y), largest / 4) if equal_areas else np.maximum(SMALLEST, largest * values / highest)
        ax.scatter(np.full(len(y), float(layer)), y, s=areas, color=KEPT, edgecolors="white", linewidths=0.5, zorder=3)
        if indices_fit and pitches[layer] >= INDEX_PITCH:
            _write_indices(ax, layer, y, nodes, np.sqrt(areas) / 2)


def _write_indices(ax: Axes, layer: int, ys: FloatArray, nodes: IntArray, radii: FloatArray) -> None:
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3.0, foreground="white")]
    for y, node, radius in zip(ys, nodes.tolist(), radii, strict=True):
        # A piece of an edge between a dot and its index would look like a minus sign, so the index is written close to the dot,
        # and in layer 0 to the left, where there are no edges.
        side = -1 if layer == 0 else 1
        offset = (side * (radius + 1.5), 0)
        ax.annotate(
            str(node), (layer, y), offset, textcoords="offset points", ha="right" if side < 0 else "left", va="center",
            fontsize=SMALL_FONT, path_effects=halo, zorder=4,
        )  # fmt: skip


def _draw_others(ax: Axes, subgraph: Subgraph) -> None:
    """Draw a box for the other nodes of each layer, with their number and their share of the score."""
    hidden = [total - len(nodes) for total, nodes in zip(subgraph.total_nodes, subgraph.nodes, strict=True)]
    places = [layer for layer, count in enumerate(hidden) if count]
    if not places:
        return
    column_width = size_in_inches(ax)[0] / len(hidden)
    area = min(110.0, max(SMALLEST, (72.0 * column_width * 0.6) ** 2))
    style: dict[str, Any] = {"marker": "s", "facecolor": "white", "edgecolor": "#666666", "hatch": "//////"}
    ax.scatter(places, [OTHERS_Y] * len(places), s=area, zorder=3, **style)
    show_count = column_width > LETTER_WIDTH * len(f"{max(hidden):,} others") + 0.05
    horizontal = column_width > LETTER_WIDTH * 5
    for layer in places:
        lines = [f"{hidden[layer]:,} others"] if show_count else []
        if subgraph.score_shares is not None and column_width > LINE_HEIGHT:
            lines.append(percent(1.0 - subgraph.score_shares[layer]))
        ax.annotate(
            "\n".join(lines), (layer, OTHERS_Y), (0, -2 - area**0.5 / 2), textcoords="offset points", ha="center", va="top",
            fontsize=SMALL_FONT, rotation=0 if horizontal else 90,
        )  # fmt: skip


def _title(subgraph: Subgraph, lines: _EdgeLines) -> str:
    shown, total = sum(map(len, subgraph.nodes)), sum(subgraph.total_nodes)
    drawn = len(lines.weights)
    edges = f"{lines.n_edges:,} edges"
    if drawn < lines.n_edges:
        edges += f" (the heaviest {drawn:,} drawn)"
    parts = []
    if subgraph.score_shares is not None:
        parts.append(f"{_percent_range(subgraph.score_shares)} of a layer's score")
    if subgraph.weight_shares:
        parts.append(f"{_percent_range(subgraph.weight_shares)} of a block's weight")
    holds = f"\nThey hold {' and '.join(parts)}" if parts else ""
    return f"{shown:,} of {total:,} nodes, {edges}{holds}"


def _percent_range(shares: Sequence[Any]) -> str:
    low, high = percent(float(min(shares))), percent(float(max(shares)))
    return low if low == high else f"{low.removesuffix(' %')} to {high}"
