"""The strongest paths through a node, from layer to layer.

The strength of a path is the product of the transition probabilities P_ij of its edges; see
:mod:`graphs.analysis.incident_edges`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.analysis.flow import theta_of
from graphs.analysis.incident_edges import (
    IncidentEdges,
    SourceTotals,
    highest_in_rows,
    incident_edges,
    source_weights,
    target_weights,
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
    """A path that takes one edge from each layer to the next.

    Attributes
    ----------
    nodes : tuple of (layer, node)
        In the direction of the edges.
    probability : float
        Product of the P_ij along the path: the probability that a walk from the first node takes it.
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
    """Find the k paths through a node that have the highest product of transition probabilities.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        The rank of this graph, with one score a node; only its theta matters.
    layer, node : int
        0..L, and 0..n_l - 1.
    k : int
        Maximum number of paths.
    before, after : int
        Number of layers that the paths cover before `layer`, and after it.
    theta : float, optional
        Share of the edge weights against the bare edges in P. By default that of the rank, or 1: a modified PageRank has no
        P, so its paths are those of a walk by weight.

    Returns
    -------
    tuple of Path
        Distinct paths in decreasing order, each from layer - before to layer + after; fewer than `k` where no more exist.

    Raises
    ------
    GraphError
        No such layer or node, a rank of another graph or of several vectors, paths that would leave the graph, NaN or Inf in
        the weights, or another parameter out of range.

    Notes
    -----
    The result is exact. A path that continues one of the k best from a node j is at least as probable as one that
    continues a worse one, so k paths for every node suffice, found layer by layer from the end (Bellman's principle; for k
    paths Hoffman and Pavley, 1959). At most k edges of a node can begin its k best paths. Products are taken from the last
    edge to the first. Among equal products the path with the lower nodes, first layer first, comes first (except for round-off).

    Cost: one column of the block out of `layer`. Every other block is read once for the out-strengths (twice for theta < 1),
    and blocks that do not touch the node once more, with k scans of every band in the cache. Memory: O(k) numbers a node of
    the covered layers, and a few bands. A probability below the smallest float64 is 0 in the result; its path is still found.

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
    if first < 0 or last >= len(graph.layer_sizes):
        raise GraphError(
            f"paths from layer {first} to {last} would leave the graph, which has layers 0 to {len(graph.blocks)}; "
            f"expected before <= {layer} and after <= {len(graph.blocks) - layer}"
        )
    backend = default_backend(graph)
    beams = [_Beam.empty(graph.layer_sizes[last], k)]
    beams[0].values[slice(None) if after else node, 0] = 1.0
    exponent = 0
    for position in range(last - 1, first - 1, -1):
        beam = _Beam.empty(graph.layer_sizes[position], k)
        for edges in _outgoing(graph, position, layer, node, theta, backend):
            beam.update(edges, beams[-1])
        # Powers of two, kept apart, so that long products do not underflow.
        shift = math.frexp(float(beam.values.max()))[1]
        beam.values[:] = np.ldexp(beam.values, -shift)
        exponent += shift
        beams.append(beam)
    values = beams[-1].values.ravel()
    best = [int(start) for start in np.argsort(-values, kind="stable")[:k] if values[start] > 0]
    return tuple(Path(_trace(beams[::-1], first, start), math.ldexp(float(values[start]), exponent)) for start in best)


def _outgoing(
    graph: LayeredGraph, position: int, layer: int, node: int, theta: float, backend: Backend
) -> Iterator[IncidentEdges]:
    """Yield transition probabilities out of layer `position`, by source; only those of `node` out of or into `layer`."""
    block = graph.blocks[position]
    if position == layer:
        column = source_weights(block, node, position + 1)
        probabilities = SourceTotals.of_column(column, theta).probabilities(column)
        yield IncidentEdges(np.array([node]), np.arange(len(column)), probabilities[None, :])
        return
    sources = SourceTotals.of_block(graph, position + 1, theta, backend)
    if position + 1 == layer:
        yield IncidentEdges(
            np.arange(block.shape[1]), np.array([node]), sources.probabilities(target_weights(block, node))[:, None]
        )
        return
    for edges in incident_edges(block, "source"):
        yield IncidentEdges(edges.nodes, edges.neighbours, sources.probabilities(edges.weights, (edges.nodes, None)))


@dataclass(frozen=True)
class _Beam:
    """The k best paths that start at each node of a layer.

    Attributes
    ----------
    values : (n, k) float64 array
        Products in decreasing order; 0 where there is no path.
    next_nodes, next_paths : (n, k) int64 arrays
        The node that the path goes on to, and the number of that node's path that it continues.
    """

    values: FloatArray
    next_nodes: IntArray
    next_paths: IntArray

    @classmethod
    def empty(cls, size: int, k: int) -> _Beam:
        next_nodes, next_paths = (np.zeros((size, k), dtype=np.int64) for _ in range(2))
        return cls(np.zeros((size, k)), next_nodes, next_paths)

    def update(self, edges: IncidentEdges, ahead: _Beam) -> None:
        """Let the paths that begin with these edges (whose weights are P_ij) compete with those found so far."""
        keys = edges.weights * ahead.values[edges.neighbours, 0]
        better = np.flatnonzero(keys.max(axis=1) > self.values[edges.nodes, -1])
        k = self.values.shape[1]
        width = min(k, keys.shape[1])
        # At most a band of candidates at a time, because k paths begin with each of the best edges.
        step = max(1, BAND_ELEMENTS // (width * k))
        for rows in (better[start : start + step] for start in range(0, len(better), step)):
            nodes = edges.nodes[rows]
            picks, _ = highest_in_rows(keys[rows], width)
            picks.sort(axis=1)  # among equal products the lower node comes first
            ends = edges.neighbours_at(rows, picks)
            products = edges.weights[rows[:, None], picks][:, :, None] * ahead.values[ends]
            new = _Beam(
                products.reshape(len(rows), width * k),
                np.repeat(ends, k, axis=1),
                np.tile(np.arange(k), (len(rows), width)),
            )
            both = [
                np.concatenate((known[nodes], added), axis=1)
                for known, added in zip(self._arrays(), new._arrays(), strict=True)
            ]
            order = np.argsort(-both[0], axis=1, kind="stable")[:, :k]
            for known, contenders in zip(self._arrays(), both, strict=True):
                known[nodes] = np.take_along_axis(contenders, order, axis=1)

    def _arrays(self) -> tuple[npt.NDArray[Any], ...]:
        return self.values, self.next_nodes, self.next_paths


def _trace(beams: list[_Beam], first: int, start: int) -> tuple[tuple[int, int], ...]:
    """List the nodes of path number `start` of the first beam, where paths are counted node by node."""
    node, number = divmod(start, beams[0].values.shape[1])
    nodes = [(first, node)]
    for layer, beam in enumerate(beams[:-1], start=first + 1):
        node, number = int(beam.next_nodes[node, number]), int(beam.next_paths[node, number])
        nodes.append((layer, node))
    return tuple(nodes)
