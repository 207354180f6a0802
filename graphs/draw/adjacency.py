"""Heat map of the edges of one block: mean weights between buckets of nodes, which are ordered by score."""

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
from graphs.linalg.blocks import BAND_ELEMENTS, Block, DenseBlock, FloatArray, NumpyBuffers
from graphs.ranking.scores import finite_scores
from graphs.solvers.result import RankResult
from graphs.structures.indices import check_layer
from graphs.structures.layered import LayeredGraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MAX_BUCKETS", "adjacency_heatmap"]

# Maximum number of buckets a side; a page shows no more.
MAX_BUCKETS = 400


def adjacency_heatmap(
    graph: LayeredGraph, layer: int, rank: RankResult, buckets: int = 64, ax: Axes | None = None
) -> Axes:
    """Draw the mean weight between buckets of the nodes of two neighbouring layers, ordered by score.

    Rows are targets and columns are sources, with the highest scores first. A missing edge counts as a weight of zero; a cell
    without edges is hatched. The colour scale is logarithmic.

    Parameters
    ----------
    graph : LayeredGraph
    layer : int
        1..L: the layer that the block leads into.
    rank : RankResult
        A rank of this graph.
    buckets : int
        Number of buckets of (nearly) equal size in both layers, 1 to `MAX_BUCKETS`; a layer with fewer nodes has one bucket a
        node.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        The array of their mesh is the (targets, sources) matrix of means, masked where there is no edge.

    Raises
    ------
    GraphError
        No such layer, a rank of another graph, a number of buckets out of range, or weights that are not finite.

    Notes
    -----
    Of b buckets of n nodes, bucket k starts at position ``k * n // b``. Cost: one pass over the block, band by band, in
    float64: about a second for 4096 x 11008. Memory: three bands, however large the block.

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
    targets, sources = (_bounds(len(scores[k]), buckets) for k in (layer, layer - 1))
    sums = _bucket_sums(
        graph.blocks[layer - 1], _bucket_of(scores[layer], targets), _bucket_of(scores[layer - 1], sources)
    )
    if not np.isfinite(sums).all():
        raise not_finite_error(layer)
    means = np.ma.masked_equal(sums / np.outer(np.diff(targets), np.diff(sources)), 0.0)
    ax = new_axes(ax)
    hatch_background(ax)
    mesh = ax.pcolormesh(sources, targets, means, cmap=COLOUR_MAP, norm=log_norm(means), rasterized=True)
    add_log_colour_bar(ax, mesh, "mean weight of a pair of nodes")
    source, target = short_names(graph.names)[layer - 1 : layer + 1]
    ax.set_xlim(0, sources[-1])
    ax.set_ylim(targets[-1], 0)
    use_whole_ticks(ax.xaxis, ax.yaxis)
    ax.set_xlabel(wrap_to_axes(ax, f"nodes of {source}, highest score first"))
    ax.set_ylabel(wrap_to_axes(ax, f"nodes of {target}, highest score first", upright=True))
    cells = f"{len(targets) - 1} x {len(sources) - 1} cells of {targets[-1]:,} x {sources[-1]:,} nodes"
    title = "mean weight" if means.count() else "no edges"
    ax.set_title(wrap_to_axes(ax, f"Edges {source} to {target}: {title}, {cells}"), fontsize=10)
    return ax


def _bounds(count: int, buckets: int) -> IntArray:
    """Compute where each bucket of `count` nodes starts, and where the last one ends; no bucket is empty."""
    buckets = min(buckets, count)
    return np.arange(buckets + 1, dtype=np.int64) * count // buckets


def _bucket_of(scores: FloatArray, bounds: IntArray) -> IntArray:
    """Compute the bucket of every node; bucket 0 holds the highest scores."""
    return np.asarray(np.searchsorted(bounds, positions(scores), side="right") - 1)


def _bucket_sums(block: Block, targets: IntArray, sources: IntArray) -> FloatArray:
    """Add up the weights between every target bucket (row) and every source bucket (column), given the buckets of the nodes."""
    total = np.zeros((int(targets.max()) + 1, int(sources.max()) + 1))
    if isinstance(block, DenseBlock):
        for band in block.bands(NumpyBuffers(np.float64)):
            # Reads are along the contiguous axis of the matrix.
            if block.column_major:
                _add_sums(total.T, band.matrix.T, sources[band.columns], targets)
            else:
                _add_sums(total, band.matrix, targets[band.rows], sources)
        return total
    csr = block.to_csr()
    start = 0
    while start < csr.shape[0]:
        # As many rows as fit into a band, but at least one.
        stop = int(np.searchsorted(csr.indptr, int(csr.indptr[start]) + BAND_ELEMENTS, side="right")) - 1
        stop = min(max(stop, start + 1), csr.shape[0])
        entries = slice(int(csr.indptr[start]), int(csr.indptr[stop]))
        rows = np.repeat(targets[start:stop], np.diff(csr.indptr[start : stop + 1]))
        cells = rows * total.shape[1] + sources[csr.indices[entries]]
        total += np.bincount(cells, weights=csr.data[entries], minlength=total.size).reshape(total.shape)
        start = stop
    return total


def _add_sums(total: FloatArray, matrix: FloatArray, rows: IntArray, columns: IntArray) -> None:
    """Add the entries of `matrix` to the cells of their buckets, given the buckets of its rows and columns."""
    order = np.argsort(columns, kind="stable")
    sorted_columns = columns[order]
    starts = np.flatnonzero(np.append(True, sorted_columns[1:] != sorted_columns[:-1]))
    sums = np.zeros((total.shape[0], len(starts)))
    np.add.at(sums, rows, np.add.reduceat(matrix[:, order], starts, axis=1))
    total[:, sorted_columns[starts]] += sums
