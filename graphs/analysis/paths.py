"""Paths: the strongest ways through a node, from layer to layer.

Strength is the product of the transition probabilities P_ij of the edges, as :mod:`graphs.analysis.incident_edges` has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.analysis.flow import theta_of
from graphs.analysis.incident_edges import (
    IncidentEdges,
    SourceTotals,
    column_of,
    highest_in_rows,
    incident_edges,
    row_of,
)
from graphs.analysis.strengths import default_backend
from graphs.checks import check_count
from graphs.errors import GraphError
from graphs.linalg.backends import Backend
from graphs.linalg.blocks import BAND_ELEMENTS, FloatArray
from graphs.ranking.scores import check_scores
from graphs.solvers.result import RankResult
from graphs.structures.indices import check_layer, check_node
from graphs.structures.layered import LayeredGraph

__all__ = ["Path", "strongest_paths"]

IntArray: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Path:
    """A path of edges from layer to layer.

    Attributes
    ----------
    nodes : tuple of (layer, node)
        In the direction of the edges.
    probability : float
        Product of P_ij along it: the chance that a walk from the first node takes it.
    """

    nodes: tuple[tuple[int, int], ...]
    probability: float


def strongest_paths(
    graph: LayeredGraph,
    rank: RankResult,
    layer: int,
    node: int,
    k: int = 5,
    before: int = 1,
    after: int = 1,
    *,
    theta: float | None = None,
) -> tuple[Path, ...]:
    """The k paths through a node with the highest product of transition probabilities.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        One score a node of this graph; only its theta matters.
    layer, node : int
        0..L, and 0..n_l - 1.
    k : int
        How many paths at the most.
    before, after : int
        How many layers the paths begin before `layer`, and end after it.
    theta : float, optional
        Share of the edge weights against the bare edges in P; by default that of the rank, or 1 (a modified PageRank knows
        no P: its paths are those of a walk by weight).

    Returns
    -------
    tuple of Path
        Falling, all distinct, each from layer - before to layer + after; fewer than `k` where there are no more.

    Raises
    ------
    GraphError
        No such layer or node, a rank of another graph or of several vectors, paths that would leave the graph, NaN or Inf in
        the weights, another parameter out of range.

    Notes
    -----
    Exact. A path that continues one of the k best from a node j on is at least as probable as one that continues a
    worse one, so k paths for every node suffice, found layer by layer from the end (Bellman's principle; for k paths
    Hoffman and Pavley, 1959). At most k edges of a node can begin its k best. Products are taken from the last edge to
    the first; of equal ones the path with the lower nodes, first layer first, comes first (round-off aside).

    Cost: of the block out of `layer` one column. Of every other a read for the out-strengths (two for theta < 1), and of
    those that do not touch the node one more, with k scans of every band in the cache. Memory: O(k) numbers a node of the
    layers between, and a few bands. A probability below the smallest float64 reads 0, its path is found still.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[3.0, 1.0], [1.0, 1.0]], [[1.0, 2.0], [3.0, 2.0]]], [1, 1], [[1, 1], [1, 1]])
    >>> for path in strongest_paths(graph, weighted_pagerank(graph), layer=1, node=0, k=2):
    ...     print(path.nodes, path.probability)
    ((0, 0), (1, 0), (2, 1)) 0.5625
    ((0, 1), (1, 0), (2, 1)) 0.375
    """
    check_scores(graph, rank)
    layer = check_layer(graph, layer)
    node = check_node(graph, layer, node)
    k, before, after = check_count("k", k), check_count("before", before, 0), check_count("after", after, 0)
    theta = theta_of(rank, theta)
    first, last = layer - before, layer + after
    if first < 0 or last >= len(graph.layers):
        raise GraphError(
            f"paths from layer {first} to {last} would leave the graph, which has layers 0 to {len(graph.blocks)}; "
            f"expected before <= {layer} and after <= {len(graph.blocks) - layer}"
        )
    engine = default_backend(graph)
    beams = [_Beam.none(graph.layers[last], k)]
    beams[0].values[slice(None) if after else node, 0] = 1.0
    exponent = 0
    for position in range(last - 1, first - 1, -1):
        beam = _Beam.none(graph.layers[position], k)
        for fan in _outgoing(graph, position, layer, node, theta, engine):
            beam.admit(fan, beams[-1])
        # Powers of two, kept apart, so that long products do not underflow.
        shift = math.frexp(float(beam.values.max()))[1]
        beam.values[:] = np.ldexp(beam.values, -shift)
        exponent += shift
        beams.append(beam)
    values = beams[-1].values.ravel()
    best = [int(start) for start in np.argsort(-values, kind="stable")[:k] if values[start] > 0]
    return tuple(Path(_trace(beams[::-1], first, start), math.ldexp(float(values[start]), exponent)) for start in best)


def _outgoing(
    graph: LayeredGraph, position: int, layer: int, node: int, theta: float, engine: Backend
) -> Iterator[IncidentEdges]:
    """Transition probabilities out of layer `position`, by source; where that is, or leads to, `layer`, of `node` alone."""
    block = graph.blocks[position]
    if position == layer:
        column = column_of(block, node, position + 1)
        chances = SourceTotals.alone(column, theta).chances(column)
        yield IncidentEdges(np.array([node]), np.arange(len(column)), chances[None, :])
        return
    sources = SourceTotals.of(graph, position + 1, theta, engine)
    if position + 1 == layer:
        yield IncidentEdges(np.arange(block.shape[1]), np.array([node]), sources.chances(row_of(block, node))[:, None])
        return
    for fan in incident_edges(block, "source"):
        yield IncidentEdges(fan.nodes, fan.ends, sources.chances(fan.weights, (fan.nodes, None)))


@dataclass(frozen=True)
class _Beam:
    """The k best paths from every node of a layer on.

    Attributes
    ----------
    values : (n, k) float64 array
        Products, falling; 0 where there is no path.
    ends, turns : (n, k) int64 arrays
        The next node, and which of its k paths goes on from there.
    """

    values: FloatArray
    ends: IntArray
    turns: IntArray

    @classmethod
    def none(cls, size: int, k: int) -> _Beam:
        ends, turns = (np.zeros((size, k), dtype=np.int64) for _ in range(2))
        return cls(np.zeros((size, k)), ends, turns)

    def admit(self, fan: IncidentEdges, ahead: _Beam) -> None:
        """Let the paths that begin with the edges of a fan (its weights being P) compete with those found so far."""
        keys = fan.weights * ahead.values[fan.ends, 0]
        better = np.flatnonzero(keys.max(axis=1) > self.values[fan.nodes, -1])
        k = self.values.shape[1]
        width = min(k, keys.shape[1])
        # A band of candidates at a time, for k of them begin with each of the best edges.
        step = max(1, BAND_ELEMENTS // (width * k))
        for rows in (better[start : start + step] for start in range(0, len(better), step)):
            nodes = fan.nodes[rows]
            picks, _ = highest_in_rows(keys[rows], width)
            picks.sort(axis=1)  # of equal products the lower end is to come first
            ends = fan.ends_at(rows, picks)
            products = fan.weights[rows[:, None], picks][:, :, None] * ahead.values[ends]
            candidates = (
                (self.values, products.reshape(len(rows), width * k)),
                (self.ends, np.repeat(ends, k, axis=1)),
                (self.turns, np.tile(np.arange(k), (len(rows), width))),
            )
            values, *_ = both = [np.concatenate((known[nodes], new), axis=1) for known, new in candidates]
            order = np.argsort(-values, axis=1, kind="stable")[:, :k]
            for (known, _), contenders in zip(candidates, both, strict=True):
                known[nodes] = np.take_along_axis(contenders, order, axis=1)


def _trace(beams: list[_Beam], first: int, start: int) -> tuple[tuple[int, int], ...]:
    """The nodes of path `start` of the first beam, which counts paths node by node."""
    node, turn = divmod(start, beams[0].values.shape[1])
    nodes = [(first, node)]
    for layer, beam in enumerate(beams[:-1], start=first + 1):
        node, turn = int(beam.ends[node, turn]), int(beam.turns[node, turn])
        nodes.append((layer, node))
    return tuple(nodes)
