"""The strongest paths through a node: those with the highest products of transition probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.analysis.flow import choose_theta
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
    """A path through consecutive layers, with one edge from each layer to the next.

    Attributes
    ----------
    nodes : tuple of (layer, node)
        In the direction of the edges.
    probability : float
        Product of the transition probabilities P_ij of the edges of the path; see :mod:`graphs.analysis.incident_edges`.
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
    """Find the k paths through a node that have the highest products of transition probabilities.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        The rank of this graph, with one score a node; only its theta is used.
    layer, node : int
        Index of the layer, 0..L, and index of the node in its layer.
    k : int
        Maximum number of paths, at least 1.
    before, after : int
        Number of edges of a path before the node, and after it.
    theta : float, optional
        Share of the edge weights in P; the rest, 1 - theta, is divided equally among the edges of a source. By default the theta
        of the rank, or 1 if the rank has none.

    Returns
    -------
    tuple of Path
        Distinct paths in decreasing order of probability, each from ``layer - before`` to ``layer + after``. Paths of equal
        probability are ordered by their nodes.

    Raises
    ------
    GraphError
        No such layer or node, a rank of another graph or with several scores a node, paths that would leave the graph, another
        parameter out of range, or NaN or Inf in the weights that are read or in their sums.

    Notes
    -----
    The result is exact up to round-off and underflow. Each of the k best paths from a node continues as one of the k best
    paths from the next node. So k paths from every node suffice, layer by layer from the end (Bellman's principle; for k paths
    Hoffman and Pavley, 1959).

    Cost: every block (the edges between two layers) on the paths is read at most twice, or three times for theta < 1. Memory:
    O(k) numbers for every node of these layers, and a few parts of 4 MB of a dense block, or a few times the edges of a CSR
    block.

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
    theta = choose_theta(rank, theta)
    first, last = layer - before, layer + after
    if first < 0 or last >= len(graph.layer_sizes):
        raise GraphError(
            f"paths from layer {first} to {last} would leave the graph, which has layers 0 to {len(graph.blocks)}; "
            f"expected before <= {layer} and after <= {len(graph.blocks) - layer}"
        )
    backend = default_backend(graph)
    ahead = _BestPaths.empty(graph.layer_sizes[last], k)
    # From the last layer on, the rest of a path is empty, with product 1. If `node` is in this layer, paths end only there.
    ahead.values[slice(None) if after else node, 0] = 1.0
    by_layer = [ahead]
    exponent = 0
    for source_layer in range(last - 1, first - 1, -1):
        found = _BestPaths.empty(graph.layer_sizes[source_layer], k)
        for edges in _out_edges(graph, source_layer, layer, node, theta, backend):
            found.update(edges, ahead)
        # Without this power of two, long products would underflow.
        shift = math.frexp(float(found.values.max()))[1]
        found.values[:] = np.ldexp(found.values, -shift)
        exponent += shift
        by_layer.insert(0, found)
        ahead = found
    values = ahead.values.ravel()
    best = [int(start) for start in np.argsort(-values, kind="stable")[:k] if values[start] > 0]
    return tuple(Path(_trace(by_layer, first, start), math.ldexp(float(values[start]), exponent)) for start in best)


def _out_edges(
    graph: LayeredGraph, source_layer: int, layer: int, node: int, theta: float, backend: Backend
) -> Iterator[IncidentEdges]:
    """Yield the edges out of `source_layer` that a path through `node` of `layer` can take, with P_ij as weights.

    Into `layer` and out of it, a path can take only the edges of `node`. Between other layers it can take all edges.
    """
    block = graph.blocks[source_layer]
    if source_layer == layer:
        column = source_weights(block, node, source_layer + 1)
        probabilities = SourceTotals.of_column(column, theta).probabilities(column)
        yield IncidentEdges(np.array([node]), np.arange(len(column)), probabilities[None, :])
        return
    sources = SourceTotals.of_block(graph, source_layer + 1, theta, backend)
    if source_layer + 1 == layer:
        yield IncidentEdges(
            np.arange(block.shape[1]), np.array([node]), sources.probabilities(target_weights(block, node))[:, None]
        )
        return
    for edges in incident_edges(block, "source"):
        yield IncidentEdges(edges.nodes, edges.neighbours, sources.probabilities(edges.weights, (edges.nodes, None)))


@dataclass(frozen=True)
class _BestPaths:
    """The k best paths that start at each node of a layer.

    Attributes
    ----------
    values : (n, k) float64 array
        Products of the P_ij in decreasing order, divided by one power of two for the whole layer; 0 where there is no path.
    next_nodes, next_paths : (n, k) int64 arrays
        The next node of the path, and which of that node's paths, 0..k-1, is the rest of the path.
    """

    values: FloatArray
    next_nodes: IntArray
    next_paths: IntArray

    @classmethod
    def empty(cls, size: int, k: int) -> _BestPaths:
        return cls(np.zeros((size, k)), np.zeros((size, k), dtype=np.int64), np.zeros((size, k), dtype=np.int64))

    def update(self, edges: IncidentEdges, ahead: _BestPaths) -> None:
        """Add the paths that begin with one of the edges and continue with a path of `ahead`; keep the k best of each node.

        The weights of the edges are P_ij.
        """
        # The best path through each edge. Nodes whose k-th path is as good already are skipped.
        keys = edges.weights * ahead.values[edges.neighbours, 0]
        better = np.flatnonzero(keys.max(axis=1) > self.values[edges.nodes, -1])
        k = self.values.shape[1]
        width = min(k, keys.shape[1])
        # Each of the `width` best edges of a node gives k candidate paths. A step takes as many nodes as have at most
        # BAND_ELEMENTS candidates together, but at least one node.
        step = max(1, BAND_ELEMENTS // (width * k))
        for rows in (better[start : start + step] for start in range(0, len(better), step)):
            nodes = edges.nodes[rows]
            picks, _ = highest_in_rows(keys[rows], width)
            picks.sort(axis=1)  # among equal products the lower node comes first
            ends = edges.neighbours_at(rows, picks)
            products = edges.weights[rows[:, None], picks][:, :, None] * ahead.values[ends]
            new = _BestPaths(
                products.reshape(len(rows), width * k),
                np.repeat(ends, k, axis=1),
                np.tile(np.arange(k), (len(rows), width)),
            )
            order = np.argsort(-np.concatenate((self.values[nodes], new.values), axis=1), axis=1, kind="stable")[:, :k]
            for known, added in zip(self._arrays(), new._arrays(), strict=True):
                known[nodes] = np.take_along_axis(np.concatenate((known[nodes], added), axis=1), order, axis=1)

    def _arrays(self) -> tuple[npt.NDArray[Any], ...]:
        return self.values, self.next_nodes, self.next_paths


def _trace(by_layer: list[_BestPaths], first: int, start: int) -> tuple[tuple[int, int], ...]:
    """List (layer, node) along one path from layer `first`; `start` is its place in the flattened arrays of this layer."""
    node, path = divmod(start, by_layer[0].values.shape[1])
    nodes = [(first, node)]
    for layer, paths in enumerate(by_layer[:-1], start=first + 1):
        node, path = int(paths.next_nodes[node, path]), int(paths.next_paths[node, path])
        nodes.append((layer, node))
    return tuple(nodes)
