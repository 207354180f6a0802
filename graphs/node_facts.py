"""One node of a ranked graph: where it stands, which edges carry its score, and the strongest paths through it.

P is the transition of the weighted rank, row = target: ``P_ij = theta W_ij / s_j + (1 - theta) / k_j`` for an edge
from j to i, s_j and k_j being the out-strength and out-degree of j. A source without an edge has no transition.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.backends import Backend
from graphs.blocks import BAND_ELEMENTS, Block, DenseBlock, FloatArray, NumpyBuffers, as_numpy
from graphs.errors import GraphError
from graphs.layered import LayeredGraph
from graphs.result import RankResult
from graphs.summary import (
    check_layer,
    damping_of,
    departing,
    engine_of,
    is_modified,
    layer_scores,
    not_finite,
    out_strength,
    percentiles,
    positions,
    share_through_graph,
    theta_of,
)
from graphs.transition import check_share

__all__ = ["EdgeFact", "NodeFacts", "Path", "StrongestEdges", "node_facts", "strongest_edges", "strongest_paths"]

IntArray: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EdgeFact:
    """One edge of a node.

    Attributes
    ----------
    node : int
        The node at the other end, by its index in the layer before (or after).
    weight : float
        W_ij, the sum of parallel edges.
    probability : float
        P_ij, the share of its source's mass that takes this edge.
    carried : float
        Of an in-edge: the share of all that arrives at the node which comes along this edge. Of an out-edge: the
        share of the node's mass that leaves along it, which is `probability`.
    """

    node: int
    weight: float
    probability: float
    carried: float


@dataclass(frozen=True)
class NodeFacts:
    """What there is to say about one node of a ranked graph.

    Attributes
    ----------
    layer, node : int
    name : str
        Of the layer.
    score : float
    percentile : float
        Share of the layer's nodes with a lower score, equal ones (itself too) counted half; see
        :func:`graphs.summary.percentiles`.
    position : int
        0 for the highest score; among equals the lower index is removed first, so it stands behind.
    activation : float
    in_strength, out_strength : float
        Sums of the weights of its edges; 0 where there is no block on that side.
    in_degree, out_degree : int
        Their numbers.
    through_graph : float, optional
        Share of its score that came through the graph and not from its own activation; of a weighted PageRank only,
        None for layer 0.
    in_edges : tuple of EdgeFact
        Those that carry most, falling; of equal ones the lower node comes first. Edges that carry nothing are left out.
    out_edges : tuple of EdgeFact
        The heaviest, likewise.
    """

    layer: int
    node: int
    name: str
    score: float
    percentile: float
    position: int
    activation: float
    in_strength: float
    out_strength: float
    in_degree: int
    out_degree: int
    through_graph: float | None
    in_edges: tuple[EdgeFact, ...]
    out_edges: tuple[EdgeFact, ...]


class StrongestEdges(NamedTuple):
    """The strongest edges of every node of a layer, falling; see :func:`strongest_edges`.

    Attributes
    ----------
    in_nodes : (n, top) int64 array
        Sources in the layer before; -1 where there are fewer edges that carry anything.
    in_shares : (n, top) float64 array
        Share of what arrives at the node that comes along the edge; 0 beside -1.
    out_nodes, out_shares : (n, top) arrays
        Targets in the layer after, and the share of the node's mass that leaves along the edge, P_ij.
    """

    in_nodes: IntArray
    in_shares: FloatArray
    out_nodes: IntArray
    out_shares: FloatArray


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


def node_facts(
    graph: LayeredGraph, rank: RankResult, layer: int, node: int, top: int = 5, *, theta: float | None = None
) -> NodeFacts:
    """Everything about one node.

    Along an in-edge travels ``P_ij r_j``, r being the score of the layer before; for a modified PageRank, whose step
    does not divide by out-strengths, ``W_ij r_j`` (``zero_lowest`` is heeded).

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        One score a node of this graph.
    layer, node : int
        0..L, and 0..n_l - 1.
    top : int
        How many edges to name on either side, at least 0.
    theta : float, optional
        Share of the edge weights against the bare edges in P; by default that of the rank, or 1.

    Returns
    -------
    NodeFacts

    Raises
    ------
    GraphError
        No such layer or node, a rank of another graph or of several vectors, NaN or Inf in the weights.

    Notes
    -----
    Cost: one read of the block into the layer, for the out-strengths of the sources (two for theta < 1), and one row
    and one column of weights. For all nodes of a layer use :func:`strongest_edges`.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 1.0], [3.0, 0.0]]], [1, 3], [[1, 1]])
    >>> facts = node_facts(graph, weighted_pagerank(graph), layer=1, node=0)
    >>> facts.position, facts.percentile, [(edge.node, edge.probability) for edge in facts.in_edges]
    (0, 0.75, [(1, 1.0), (0, 0.25)])
    >>> [round(edge.carried, 3) for edge in facts.in_edges]
    [0.923, 0.077]
    """
    scores = layer_scores(graph, rank)
    layer = check_layer(graph, layer)
    node = _check_node(graph, layer, node)
    top = _check_count("top", top, 0)
    theta = theta_of(rank, theta)
    own, activations = scores[layer], graph.activations[layer]
    arriving: FloatArray = np.zeros(0)
    leaving: FloatArray = np.zeros(0)
    in_edges: tuple[EdgeFact, ...] = ()
    out_edges: tuple[EdgeFact, ...] = ()
    through = None
    if layer > 0:
        sources = _Sources.of(graph, layer, theta, engine_of(graph))
        arriving = _row(graph.blocks[layer - 1], node)
        chances = sources.chances(arriving)
        masses = (arriving if is_modified(rank) else chances) * departing(rank, scores[layer - 1])
        in_edges = _edges(masses, top, arriving, chances, masses / (masses.sum() or 1.0))
        gamma = damping_of(rank)
        if gamma is not None:
            teleport = activations[node] / activations.sum() if activations.any() else 1.0 / len(activations)
            passed = float(masses.sum() / (scores[layer - 1].sum() or 1.0))
            through = share_through_graph(gamma, passed, float(teleport))
    if layer < len(graph.blocks):
        leaving = _column(graph.blocks[layer], node, layer + 1)
        chances = _Sources.alone(leaving, theta).chances(leaving)
        out_edges = _edges(leaving, top, leaving, chances, chances)
    return NodeFacts(
        layer=layer,
        node=node,
        name=graph.names[layer],
        score=float(own[node]),
        percentile=float(percentiles(own)[node]),
        position=int(positions(own)[node]),
        activation=float(activations[node]),
        in_strength=float(arriving.sum()),
        out_strength=float(leaving.sum()),
        in_degree=int(np.count_nonzero(arriving)),
        out_degree=int(np.count_nonzero(leaving)),
        through_graph=through,
        in_edges=in_edges,
        out_edges=out_edges,
    )


def strongest_edges(
    graph: LayeredGraph, rank: RankResult, layer: int, top: int = 3, *, theta: float | None = None
) -> StrongestEdges:
    """The edges of :func:`node_facts` for all nodes of a layer at once.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        One score a node of this graph.
    layer : int
        0..L.
    top : int
        How many edges to name on either side, at least 1.
    theta : float, optional
        As for :func:`node_facts`.

    Returns
    -------
    StrongestEdges
        Four (n_l, top) arrays, which unpack; no edges (-1) on a side without a block.

    Raises
    ------
    GraphError
        As for :func:`node_facts`.

    Notes
    -----
    Cost: two reads of the blocks on both sides (three for theta < 1), with `top` scans of every band in the cache.
    Memory: the result and a few bands of a dense block, or a few times the edges of a CSR one.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 1.0], [3.0, 0.0]]], [1, 3], [[1, 1]])
    >>> edges = strongest_edges(graph, weighted_pagerank(graph), layer=1, top=2)
    >>> edges.in_nodes
    array([[ 1,  0],
           [ 0, -1]])
    >>> edges.in_shares.round(3)
    array([[0.923, 0.077],
           [1.   , 0.   ]])
    """
    scores = layer_scores(graph, rank)
    layer = check_layer(graph, layer)
    top = _check_count("top", top)
    theta = theta_of(rank, theta)
    engine = engine_of(graph)
    size = graph.layers[layer]
    into, out = _Leaders.none(size, top), _Leaders.none(size, top)
    arrived = np.zeros(size)
    if layer > 0:
        sources = _Sources.of(graph, layer, theta, engine)
        passed = departing(rank, scores[layer - 1])
        for fan in _fans(graph.blocks[layer - 1], "target"):
            chances = fan.weights if is_modified(rank) else sources.chances(fan.weights, fan.ends)
            masses = chances * passed[fan.ends]
            arrived[fan.nodes] += masses.sum(axis=1)
            into.admit(fan, masses)
    if layer < len(graph.blocks):
        sources = _Sources.of(graph, layer + 1, theta, engine)
        for fan in _fans(graph.blocks[layer], "source"):
            out.admit(fan, fan.weights)
        out.keys[:] = sources.chances(out.keys, np.index_exp[:, np.newaxis])
    return StrongestEdges(into.ends, into.keys / np.where(arrived > 0, arrived, 1.0)[:, None], out.ends, out.keys)


def strongest_paths(
    graph: LayeredGraph,
    layer: int,
    node: int,
    k: int = 5,
    before: int = 1,
    after: int = 1,
    theta: float = 1.0,
) -> tuple[Path, ...]:
    """The k paths through a node with the highest product of transition probabilities.

    Parameters
    ----------
    graph : LayeredGraph
    layer, node : int
        0..L, and 0..n_l - 1.
    k : int
        How many paths at the most.
    before, after : int
        How many layers the paths begin before `layer`, and end after it.
    theta : float
        Share of the edge weights against the bare edges in P, 0..1.

    Returns
    -------
    tuple of Path
        Falling, all distinct, each from layer - before to layer + after; fewer than `k` where there are no more.

    Raises
    ------
    GraphError
        No such layer or node, paths that would leave the graph, NaN or Inf in the weights, another parameter out of
        range.

    Notes
    -----
    Exact. A path that continues one of the k best from a node j on is at least as probable as one that continues a
    worse one, so k paths for every node suffice, found layer by layer from the end (Bellman's principle; for k paths
    Hoffman and Pavley, 1959). At most k edges of a node can begin its k best. Products are taken from the last edge to
    the first; of equal ones the path with the lower nodes, first layer first, comes first (round-off aside).

    Cost: one read of every block before `layer` for the out-strengths; of a block that does not touch the node a second
    one, with k scans of every band in the cache. Memory: O(k) numbers a node of the
    layers between, and a few bands. A probability below the smallest float64 reads 0, its path is found still.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[3.0, 1.0], [1.0, 1.0]], [[1.0, 2.0], [3.0, 2.0]]], [1, 1], [[1, 1], [1, 1]])
    >>> for path in strongest_paths(graph, layer=1, node=0, k=2):
    ...     print(path.nodes, path.probability)
    ((0, 0), (1, 0), (2, 1)) 0.5625
    ((0, 1), (1, 0), (2, 1)) 0.375
    """
    layer = check_layer(graph, layer)
    node = _check_node(graph, layer, node)
    k, before, after = _check_count("k", k), _check_count("before", before, 0), _check_count("after", after, 0)
    theta = check_share("theta", theta)
    first, last = layer - before, layer + after
    if first < 0 or last >= len(graph.layers):
        raise GraphError(
            f"paths from layer {first} to {last} would leave the graph, which has layers 0 to {len(graph.blocks)}; "
            f"expected before <= {layer} and after <= {len(graph.blocks) - layer}"
        )
    engine = engine_of(graph)
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


@dataclass(frozen=True)
class _Sources:
    """What P needs to know of the sources of a block; 1 in place of the 0 of those that dangle."""

    strength: FloatArray
    degree: FloatArray | None
    theta: float

    @classmethod
    def of(cls, graph: LayeredGraph, layer: int, theta: float, engine: Backend) -> _Sources:
        """All sources of the block into `layer`. Cost: a read of the block, two for theta < 1."""
        operator = engine.operator(graph.blocks[layer - 1], 1 if theta == 1.0 else 2)
        strength = out_strength(engine, operator, layer)
        degree = None if theta == 1.0 else engine.arithmetic.to_numpy(operator.out_degree())
        return cls(np.where(strength > 0, strength, 1.0), None if degree is None else np.maximum(degree, 1.0), theta)

    @classmethod
    def alone(cls, column: FloatArray, theta: float) -> _Sources:
        """One source, given by the weights of its edges."""
        strength, degree = float(column.sum()), float(np.count_nonzero(column))
        return cls(np.array([strength or 1.0]), None if theta == 1.0 else np.array([degree or 1.0]), theta)

    def chances(self, weights: FloatArray, at: Any = ...) -> FloatArray:
        """P_ij of `weights` whose sources, by the index `at`, broadcast against them."""
        found: FloatArray = weights / self.strength[at]
        if self.degree is not None:
            found = self.theta * found + (1.0 - self.theta) * ((weights > 0) / self.degree[at])
        return found


@dataclass(frozen=True)
class _Fan:
    """Edges of some nodes of a block towards one side, ordered by the node at the other end.

    Attributes
    ----------
    nodes : (m,) int array
    ends : (w,) or (m, w) int array
        The nodes at the other end, ascending.
    weights : (m, w) float64 array
        0 where there is no edge.
    """

    nodes: IntArray
    ends: IntArray
    weights: FloatArray

    def ends_at(self, rows: IntArray, picks: IntArray) -> IntArray:
        """The ends of the columns `picks` (r, c) of the rows `rows` (r,)."""
        return self.ends[picks] if self.ends.ndim == 1 else self.ends[rows[:, None], picks]


def _fans(block: Block, of: Literal["source", "target"]) -> Iterator[_Fan]:
    """All edges of a block, by their targets or by their sources, a band at a time.

    The edges of one node may be spread over several fans of a dense block, in the order of their ends.
    """
    if isinstance(block, DenseBlock):
        for band in block.bands(NumpyBuffers(np.float64)):
            rows, columns = (np.arange(part.start, part.stop) for part in (band.rows, band.columns))
            # In rows of contiguous memory: they are scanned many times.
            if of == "target":
                yield _Fan(rows, columns, np.ascontiguousarray(band.matrix))
            else:
                yield _Fan(columns, rows, np.ascontiguousarray(band.matrix.T))
        return
    csr = block.to_csr()
    lines = csr if of == "target" else csr.tocsc()
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
        yield _Fan(nodes, lines.indices[places].astype(np.int64), weights)


def _outgoing(
    graph: LayeredGraph, position: int, layer: int, node: int, theta: float, engine: Backend
) -> Iterator[_Fan]:
    """Transition probabilities out of layer `position`, by source; where that is, or leads to, `layer`, of `node` alone."""
    block = graph.blocks[position]
    if position == layer:
        column = _column(block, node, position + 1)
        chances = _Sources.alone(column, theta).chances(column)
        yield _Fan(np.array([node]), np.arange(len(column)), chances[None, :])
        return
    sources = _Sources.of(graph, position + 1, theta, engine)
    if position + 1 == layer:
        yield _Fan(np.arange(block.shape[1]), np.array([node]), sources.chances(_row(block, node))[:, None])
        return
    for fan in _fans(block, "source"):
        yield _Fan(fan.nodes, fan.ends, sources.chances(fan.weights, (fan.nodes, None)))


def _highest(keys: FloatArray, count: int) -> tuple[IntArray, FloatArray]:
    """Columns and values of the `count` highest of every row, falling, of equals the first; overwrites `keys` (m, w).

    Scans, not a partition: for a handful they are several times faster, and they know which of two equals comes first.
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


@dataclass(frozen=True)
class _Leaders:
    """The edges of highest key of every node: ends (n, top), -1 for none, and keys (n, top)."""

    ends: IntArray
    keys: FloatArray

    @classmethod
    def none(cls, size: int, top: int) -> _Leaders:
        return cls(np.full((size, top), -1, dtype=np.int64), np.zeros((size, top)))

    def admit(self, fan: _Fan, keys: FloatArray) -> None:
        """Let the edges of a fan compete by `keys` (m, w); those of key 0 do not count."""
        # After a few bands most nodes know better edges already.
        rows = np.flatnonzero(keys.max(axis=1) > self.keys[fan.nodes, -1])
        nodes = fan.nodes[rows]
        picks, found = _highest(keys[rows], self.keys.shape[1])
        known = np.concatenate((self.keys[nodes], found), axis=1)
        ends = np.concatenate((self.ends[nodes], fan.ends_at(rows, picks)), axis=1)
        # Stable: fans come in the order of their ends, so of equals the lower end stays in front, and empty places
        # stay in front of edges of key 0.
        order = np.argsort(-known, axis=1, kind="stable")[:, : self.keys.shape[1]]
        self.keys[nodes] = np.take_along_axis(known, order, axis=1)
        self.ends[nodes] = np.take_along_axis(ends, order, axis=1)


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

    def admit(self, fan: _Fan, ahead: _Beam) -> None:
        """Let the paths that begin with the edges of a fan (its weights being P) compete with those found so far."""
        keys = fan.weights * ahead.values[fan.ends, 0]
        better = np.flatnonzero(keys.max(axis=1) > self.values[fan.nodes, -1])
        k = self.values.shape[1]
        width = min(k, keys.shape[1])
        # A band of candidates at a time, for k of them begin with each of the best edges.
        step = max(1, BAND_ELEMENTS // (width * k))
        for rows in (better[start : start + step] for start in range(0, len(better), step)):
            nodes = fan.nodes[rows]
            picks, _ = _highest(keys[rows], width)
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


def _row(block: Block, target: int) -> FloatArray:
    """W_ij of all sources j of one target, (n_sources,) float64."""
    if isinstance(block, DenseBlock):
        return _total([matrix[target] for matrix in block.matrices])
    csr = block.to_csr()
    row = np.zeros(csr.shape[1])
    edges = slice(csr.indptr[target], csr.indptr[target + 1])
    row[csr.indices[edges]] = csr.data[edges]
    return row


def _column(block: Block, source: int, layer: int) -> FloatArray:
    """W_ij of all targets i of one source of the block into `layer`, (n_targets,) float64, finite."""
    if isinstance(block, DenseBlock):
        column = _total([matrix[:, source] for matrix in block.matrices])
    else:
        csr = block.to_csr()
        column = np.zeros(csr.shape[0])
        edges = np.flatnonzero(csr.indices == source)
        column[np.searchsorted(csr.indptr, edges, side="right") - 1] = csr.data[edges]
    if not np.isfinite(column.sum()):
        raise not_finite(layer)
    return column


def _total(parts: list[Any]) -> FloatArray:
    """Absolute values of parallel edges, added in float64."""
    found: FloatArray = np.sum([np.abs(as_numpy(part).astype(np.float64)) for part in parts], axis=0)
    return found


def _edges(
    keys: FloatArray, top: int, weights: FloatArray, chances: FloatArray, carried: FloatArray
) -> tuple[EdgeFact, ...]:
    """The `top` edges of highest key; of equals the lower node first."""
    order = np.argsort(-keys, kind="stable")[:top]
    return tuple(
        EdgeFact(int(end), float(weights[end]), float(chances[end]), float(carried[end]))
        for end in order
        if keys[end] > 0
    )


def _check_node(graph: LayeredGraph, layer: int, node: Any) -> int:
    size = graph.layers[layer]
    if isinstance(node, bool) or not isinstance(node, (int, np.integer)) or not 0 <= node < size:
        raise GraphError(f"expected a node of layer {layer} from 0 to {size - 1}, got {node!r}")
    return int(node)


def _check_count(name: str, count: Any, lowest: int = 1) -> int:
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < lowest:
        raise GraphError(f"{name}: expected an integer >= {lowest}, got {count!r}")
    return int(count)
