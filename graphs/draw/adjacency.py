"""Heat map of the edges of one block: mean weights between buckets of nodes, by score.

A block holds the edges from one layer to the next. A bucket is a group of nodes of a layer with similar scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphs.analysis.measures import positions
from graphs.analysis.strengths import not_finite_error
from graphs.checks import check_count
from graphs.draw.axes import new_axes, use_whole_ticks, wrap_to_axes
from graphs.draw.colours import COLOUR_MAP, add_log_colour_bar, hatch_background, log_norm
from graphs.draw.inputs import IntArray
from graphs.draw.wording import short_names
from graphs.linalg.blocks import BAND_ELEMENTS, Block, FloatArray, NumpyBufferMaker, SparseBlock
from graphs.ranking.scores import finite_scores
from graphs.solvers.result import RankResult
from graphs.structures.indices import check_layer
from graphs.structures.layered import LayeredGraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MAX_BUCKETS", "adjacency_heatmap"]

# With more buckets on a side, the cells would be too small to see on a page.
MAX_BUCKETS = 400


def adjacency_heatmap(
    graph: LayeredGraph, layer: int, rank: RankResult, buckets: int = 64, ax: Axes | None = None
) -> Axes:
    """Draw the mean weight between buckets of the nodes of two neighbouring layers, ordered by score.

    Rows are targets and columns are sources, with the highest scores first. A missing edge counts as a weight of zero; a cell
    without edges is hatched. The colour scale is logarithmic. Cost: one read of the block. Memory: a few bands, which are parts
    of the block of 4 MB each.

    Parameters
    ----------
    graph : LayeredGraph
    layer : int
        1..L: the layer that the block leads into.
    rank : RankResult
        The rank of this graph, with one score a node.
    buckets : int
        Number of buckets of (nearly) equal size in each of the two layers, 1 to `MAX_BUCKETS`. A layer of fewer nodes gets one
        bucket for each node.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        ``ax.collections[0].get_array()`` holds the means, (target buckets, source buckets), masked where there is no edge.

    Raises
    ------
    GraphError
        No such layer, a rank of another graph or with several scores a node, a number of buckets out of range, or scores,
        weights or sums of weights that are not finite.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0], [0.0, 8.0]]], [1, 3], [[1, 1]])
    >>> ax = adjacency_heatmap(graph, 1, weighted_pagerank(graph))
    >>> ax.collections[0].get_array().filled(0.0)
    array([[8., 0.],
           [2., 1.]])
    """
    scores = finite_scores(graph, rank)
    layer = check_layer(graph, layer, first=1)
    buckets = check_count("buckets", buckets, 1, MAX_BUCKETS)
    target_bounds, source_bounds = (_bounds(len(scores[k]), buckets) for k in (layer, layer - 1))
    sums = _bucket_sums(
        graph.blocks[layer - 1],
        _bucket_of(scores[layer], target_bounds),
        _bucket_of(scores[layer - 1], source_bounds),
    )
    if not np.isfinite(sums).all():
        raise not_finite_error(layer)
    means = np.ma.masked_equal(sums / np.outer(np.diff(target_bounds), np.diff(source_bounds)), 0.0)
    ax = new_axes(ax)
    hatch_background(ax)
    norm = log_norm(means)
    mesh = ax.pcolormesh(source_bounds, target_bounds, means, cmap=COLOUR_MAP, norm=norm, rasterized=True)
    add_log_colour_bar(ax, mesh, "mean weight of a pair of nodes")
    source, target = short_names(graph.names)[layer - 1 : layer + 1]
    ax.set_xlim(0, source_bounds[-1])
    ax.set_ylim(target_bounds[-1], 0)
    use_whole_ticks(ax.xaxis, ax.yaxis)
    ax.set_xlabel(wrap_to_axes(ax, f"nodes of {source}, highest score first"))
    ax.set_ylabel(wrap_to_axes(ax, f"nodes of {target}, highest score first", upright=True))
    nodes = f"{target_bounds[-1]:,} x {source_bounds[-1]:,} nodes"
    content = "mean weight" if means.count() else "no edges"
    title = f"Edges {source} to {target}: {content}, {means.shape[0]} x {means.shape[1]} cells of {nodes}"
    ax.set_title(wrap_to_axes(ax, title), fontsize=10)
    return ax


def _bounds(count: int, buckets: int) -> IntArray:
    """Compute the positions where each bucket of `count` nodes starts, and where the last one ends."""
    buckets = min(buckets, count)
    return np.arange(buckets + 1, dtype=np.int64) * count // buckets


def _bucket_of(scores: FloatArray, bounds: IntArray) -> IntArray:
    """Compute the bucket of every node; bucket 0 holds the highest scores."""
    return np.asarray(np.searchsorted(bounds, positions(scores), side="right") - 1)


def _bucket_sums(block: Block, target_buckets: IntArray, source_buckets: IntArray) -> FloatArray:
    """Add up the weights between every target bucket (row) and every source bucket (column)."""
    total = np.zeros((int(target_buckets.max()) + 1, int(source_buckets.max()) + 1))
    if not isinstance(block, SparseBlock):
        for band in block.bands(NumpyBufferMaker(np.float64)):
            # The faster way to read a band is along its contiguous axis.
            rows, columns = target_buckets[band.rows], source_buckets[band.columns]
            if band.matrix.flags.c_contiguous:
                _add_sums(total, band.matrix, rows, columns)
            else:
                _add_sums(total.T, band.matrix.T, columns, rows)
        return total
    # The rows of a CSR block are taken in groups of at most BAND_ELEMENTS edges, or one by one.
    csr = block.csr
    start = 0
    while start < csr.shape[0]:
        stop = int(np.searchsorted(csr.indptr, int(csr.indptr[start]) + BAND_ELEMENTS, side="right")) - 1
        stop = min(max(stop, start + 1), csr.shape[0])
        entries = slice(int(csr.indptr[start]), int(csr.indptr[stop]))
        rows = np.repeat(target_buckets[start:stop], np.diff(csr.indptr[start : stop + 1]))
        cells = rows * total.shape[1] + source_buckets[csr.indices[entries]]
        total += np.bincount(cells, weights=csr.data[entries], minlength=total.size).reshape(total.shape)
        start = stop
    return total


def _add_sums(total: FloatArray, matrix: FloatArray, row_buckets: IntArray, column_buckets: IntArray) -> None:
    """Add every entry of `matrix` to the cell of `total` for the buckets of its row and its column."""
    order = np.argsort(column_buckets, kind="stable")
    ascending = column_buckets[order]
    starts = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1]))
    sums = np.zeros((total.shape[0], len(starts)))
    np.add.at(sums, row_buckets, np.add.reduceat(matrix[:, order], starts, axis=1))
    total[:, ascending[starts]] += sums
