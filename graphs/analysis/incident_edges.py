"""Fans: the edges of the nodes of a block, node by node, and the probabilities that P gives them.

P is the transition of the weighted rank, row = target: ``P_ij = theta W_ij / s_j + (1 - theta) / k_j`` for an edge
from j to i, s_j and k_j being the out-strength and out-degree of j. A source without an edge has no transition.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.analysis.strengths import not_finite, out_strength
from graphs.linalg.backends import Backend
from graphs.linalg.blocks import BAND_ELEMENTS, Block, DenseBlock, FloatArray, NumpyBuffers, as_numpy
from graphs.structures.layered import LayeredGraph

__all__ = ["IncidentEdges", "SourceTotals", "column_of", "highest_in_rows", "incident_edges", "row_of"]

IntArray: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SourceTotals:
    """What P needs to know of the sources of a block; 1 in place of the 0 of those that dangle.

    Attributes
    ----------
    strength : (n_sources,) float64 array
    degree : (n_sources,) float64 array, or None
        None where theta is 1, which needs no degrees.
    theta : float
        Share of the edge weights against the bare edges, 0..1.
    """

    strength: FloatArray
    degree: FloatArray | None
    theta: float

    @classmethod
    def of(cls, graph: LayeredGraph, layer: int, theta: float, engine: Backend) -> SourceTotals:
        """All sources of the block into `layer`. Cost: a read of the block, two for theta < 1.

        Raises
        ------
        GraphError
            Weights that are NaN or Inf, or whose sums are.

        Examples
        --------
        >>> from graphs.analysis.strengths import default_backend
        >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [3.0, 0.0]]], [1, 1], [[1, 1]])
        >>> SourceTotals.of(graph, 1, 0.5, default_backend(graph)).chances(np.array([3.0, 0.0]))
        array([0.625, 0.   ])
        """
        operator = engine.operator(graph.blocks[layer - 1], 1 if theta == 1.0 else 2)
        strength = out_strength(engine, operator, layer)
        degree = None if theta == 1.0 else engine.arithmetic.to_numpy(operator.out_degree())
        return cls(np.where(strength > 0, strength, 1.0), None if degree is None else np.maximum(degree, 1.0), theta)

    @classmethod
    def alone(cls, column: FloatArray, theta: float) -> SourceTotals:
        """One source, given by the weights of its edges, (n_targets,).

        Examples
        --------
        >>> column = np.array([1.0, 3.0])
        >>> SourceTotals.alone(column, 1.0).chances(column)
        array([0.25, 0.75])
        """
        strength, degree = float(column.sum()), float(np.count_nonzero(column))
        return cls(np.array([strength or 1.0]), None if theta == 1.0 else np.array([degree or 1.0]), theta)

    def chances(self, weights: FloatArray, at: Any = ...) -> FloatArray:
        """The probabilities of some edges.

        Parameters
        ----------
        weights : float64 array
            W_ij; 0 where there is no edge.
        at : index, optional
            By it the sources broadcast against the weights; all sources in order by default.

        Returns
        -------
        float64 array, as `weights`
            P_ij.

        Examples
        --------
        >>> sources = SourceTotals(np.array([4.0, 2.0]), None, 1.0)
        >>> sources.chances(np.array([[1.0, 1.0], [3.0, 1.0]]))
        array([[0.25, 0.5 ],
               [0.75, 0.5 ]])
        >>> sources.chances(np.array([1.0, 3.0]), 0)
        array([0.25, 0.75])
        """
        found: FloatArray = weights / self.strength[at]
        if self.degree is not None:
            found = self.theta * found + (1.0 - self.theta) * ((weights > 0) / self.degree[at])
        return found


@dataclass(frozen=True, eq=False)
class IncidentEdges:
    """Edges of some nodes of a block towards one side, ordered by the node at the other end.

    Attributes
    ----------
    nodes : (m,) int array
    ends : (w,) or (m, w) int array
        The nodes at the other end, ascending.
    weights : (m, w) float64 array
        0 where there is no edge; whatever `ends` says there is no edge's.
    """

    nodes: IntArray
    ends: IntArray
    weights: FloatArray

    def ends_at(self, rows: IntArray, picks: IntArray) -> IntArray:
        """The ends of the columns `picks` (r, c) of the rows `rows` (r,).

        Examples
        --------
        >>> fan = IncidentEdges(np.array([4, 7]), np.array([[0, 2], [1, 3]]), np.ones((2, 2)))
        >>> fan.ends_at(np.array([1]), np.array([[1, 0]]))
        array([[3, 1]])
        """
        return self.ends[picks] if self.ends.ndim == 1 else self.ends[rows[:, None], picks]


def incident_edges(block: Block, side: Literal["source", "target"]) -> Iterator[IncidentEdges]:
    """All edges of a block, by their targets or by their sources, a band at a time.

    Parameters
    ----------
    block : Block, (n_targets, n_sources)
    side : {"source", "target"}
        Whose edges are a row of a fan.

    Yields
    ------
    IncidentEdges
        The edges of one node may be spread over several fans of a dense block, in the order of their ends; nodes
        without edges may be missing. Cost: one read; memory: a few bands of a dense block, or a few times the edges of a
        CSR one.

    Examples
    --------
    >>> block = DenseBlock((np.array([[1.0, -2.0], [3.0, 0.0]]),))
    >>> [(fan.nodes.tolist(), fan.weights.tolist()) for fan in incident_edges(block, "source")]
    [([0, 1], [[1.0, 3.0], [2.0, 0.0]])]
    """
    if isinstance(block, DenseBlock):
        for band in block.bands(NumpyBuffers(np.float64)):
            rows, columns = (np.arange(part.start, part.stop) for part in (band.rows, band.columns))
            # In rows of contiguous memory: they are scanned many times.
            if side == "target":
                yield IncidentEdges(rows, columns, np.ascontiguousarray(band.matrix))
            else:
                yield IncidentEdges(columns, rows, np.ascontiguousarray(band.matrix.T))
        return
    csr = block.to_csr()
    lines = csr if side == "target" else csr.tocsc()
    degrees = np.diff(lines.indptr).astype(np.int64)
    # By falling degree, so that padding to the highest of a group adds little, however unequal they are.
    order = np.argsort(-degrees, kind="stable")[: np.count_nonzero(degrees)]
    start = 0
    while start < len(order):
        width = int(degrees[order[start]])
        nodes = order[start : start + max(1, BAND_ELEMENTS // width)]
        start += len(nodes)
        along = np.arange(width)
        places = np.minimum(lines.indptr[nodes].astype(np.int64)[:, None] + along, lines.nnz - 1)
        weights = np.where(along < degrees[nodes, None], lines.data[places], 0.0).astype(np.float64, copy=False)
        yield IncidentEdges(nodes, lines.indices[places].astype(np.int64), weights)


def highest_in_rows(keys: FloatArray, count: int) -> tuple[IntArray, FloatArray]:
    """Columns and values of the highest keys of every row, falling, of equals the first.

    Scans, not a partition: for a handful they are several times faster, and they know which of two equals comes first.

    Parameters
    ----------
    keys : (m, w) float64 array
        Non-negative; overwritten.
    count : int
        How many of a row, at least 1; all of fewer.

    Returns
    -------
    picks, found : (m, min(count, w)) int64 and float64 arrays
        Cost: `count` scans.

    Examples
    --------
    >>> picks, found = highest_in_rows(np.array([[1.0, 3.0, 3.0]]), 2)
    >>> picks.tolist(), found.tolist()
    ([[1, 2]], [[3.0, 3.0]])
    """
    count = min(count, keys.shape[1])
    rows = np.arange(len(keys))
    picks = np.empty((len(keys), count), dtype=np.int64)
    found = np.empty((len(keys), count))
    for turn in range(count):
        picks[:, turn] = keys.argmax(axis=1)
        found[:, turn] = keys[rows, picks[:, turn]]
        keys[rows, picks[:, turn]] = -1.0
    return picks, found


def row_of(block: Block, target: int) -> FloatArray:
    """The weights of one target's edges, parallel ones added up.

    Parameters
    ----------
    block : Block, (n_targets, n_sources)
    target : int

    Returns
    -------
    (n_sources,) float64 array
        W_ij of all sources j. Not checked: NaN and Inf pass. Of a dense block nothing else is read.

    Examples
    --------
    >>> row_of(DenseBlock((np.array([[1.0, -2.0], [3.0, 0.0]]),)), 0)
    array([1., 2.])
    """
    if isinstance(block, DenseBlock):
        return _total(block, [matrix[target] for matrix in block.matrices])
    csr = block.to_csr()
    row = np.zeros(csr.shape[1])
    edges = slice(csr.indptr[target], csr.indptr[target + 1])
    row[csr.indices[edges]] = csr.data[edges]
    return row


def column_of(block: Block, source: int, layer: int) -> FloatArray:
    """The weights of one source's edges, parallel ones added up.

    Parameters
    ----------
    block : Block, (n_targets, n_sources)
    source : int
    layer : int
        That the block leads into, for the message.

    Returns
    -------
    (n_targets,) float64 array
        W_ij of all targets i. Cost: of a dense block this column; of a CSR one a scan of its indices.

    Raises
    ------
    GraphError
        Weights that are NaN or Inf, or whose sum is.

    Examples
    --------
    >>> column_of(DenseBlock((np.array([[1.0, -2.0], [3.0, 0.0]]),)), 0, layer=1)
    array([1., 3.])
    """
    if isinstance(block, DenseBlock):
        column = _total(block, [matrix[:, source] for matrix in block.matrices])
    else:
        csr = block.to_csr()
        column = np.zeros(csr.shape[0])
        edges = np.flatnonzero(csr.indices == source)
        column[np.searchsorted(csr.indptr, edges, side="right") - 1] = csr.data[edges]
    with np.errstate(over="ignore"):  # refused in the next line
        total = float(column.sum())
    if not np.isfinite(total):
        raise not_finite(layer)
    return column


def _total(block: DenseBlock, parts: list[Any]) -> FloatArray:
    """Weights of parallel edges, added in float64."""
    found: FloatArray = np.sum([block.weight(as_numpy(part).astype(np.float64)) for part in parts], axis=0)
    return found
