"""The numbers a person asks of a ranked graph: what there is to say of its layers, and the flow between them.

The measures of one layer's scores are those of :mod:`graphs.concentration`, which this module offers too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphs.backends import Backend, make_backend
from graphs.blocks import FloatArray
from graphs.concentration import (
    Spread,
    as_masses,
    as_vector,
    bucket_ends,
    effective_number,
    gini,
    kept_overlap,
    lorenz,
    percentiles,
    positions,
    rank_correlation,
    score_buckets,
    top_share,
)
from graphs.errors import GraphError
from graphs.layered import LayeredGraph
from graphs.operators import BlockOperator, Vector
from graphs.result import RankResult
from graphs.transition import Transition, check_share

__all__ = [
    "LayerSummary",
    "Spread",
    "effective_number",
    "flow",
    "gini",
    "kept_overlap",
    "layer_flows",
    "lorenz",
    "percentiles",
    "positions",
    "rank_correlation",
    "score_buckets",
    "strengths",
    "summarise",
    "to_columns",
    "top_share",
]


@dataclass(frozen=True)
class LayerSummary:
    """What there is to say about one layer of a ranked graph.

    Attributes
    ----------
    layer : int
        0..L.
    name : str
    nodes : int
    edges_in : int
        Edges from the layer before; 0 for layer 0.
    density : float, optional
        `edges_in` over the number there could be; None for layer 0, which has no block of edges into it.
    in_strength, out_strength : Spread, optional
        Sums of the weights of a node's in-edges and out-edges; None for layer 0, and for the last layer.
    activation : Spread
    dead : int
        Nodes of activation 0.
    unreached : int, optional
        Nodes without an edge in; None for layer 0.
    dangling : int, optional
        Nodes without an edge out, whose mass is lost; None for the last layer.
    gini, effective, top_share : float
        Concentration of the scores: :func:`gini`, :func:`effective_number`, and :func:`top_share` of the highest 1 %.
    highest : int
        The node of the highest score (position 0), and
    highest_share : float
        its share of the layer's score.
    through_graph : float, optional
        Share of the layer's score that came through the graph, the rest being the nodes' own activation:
        ``gamma m / (gamma m + 1 - gamma)``, m the mass of the sources that do not dangle. Of a weighted PageRank
        only; None for layer 0.
    """

    layer: int
    name: str
    nodes: int
    edges_in: int
    density: float | None
    in_strength: Spread | None
    out_strength: Spread | None
    activation: Spread
    dead: int
    unreached: int | None
    dangling: int | None
    gini: float
    effective: float
    top_share: float
    highest: int
    highest_share: float
    through_graph: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values for JSON: no NaN, no infinity; what does not apply is None."""
        return dataclasses.asdict(self)


def strengths(graph: LayeredGraph, layer: int) -> tuple[FloatArray, FloatArray]:
    """In- and out-strength of every node of a layer: the sums of the weights of its edges.

    Parameters
    ----------
    graph : LayeredGraph
    layer : int
        0..L.

    Returns
    -------
    in_strength, out_strength : (n_l,) float64 arrays
        Zeros where a side has no block: into layer 0, and out of layer L.

    Raises
    ------
    GraphError
        No such layer; weights that are NaN or Inf, or whose sums are.

    Notes
    -----
    Cost: one read of the block on each side.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, -2.0], [0.0, 3.0]]], [1, 1], [[1, 1]])
    >>> strengths(graph, 1)
    (array([3., 3.]), array([0., 0.]))
    """
    layer = check_layer(graph, layer)
    engine = engine_of(graph)
    into: FloatArray = np.zeros(graph.layers[layer])
    out: FloatArray = np.zeros(graph.layers[layer])
    if layer > 0:
        into = in_strength(engine, engine.operator(graph.blocks[layer - 1], 1), layer)
    if layer < len(graph.blocks):
        out = out_strength(engine, engine.operator(graph.blocks[layer], 1), layer + 1)
    return into, out


def summarise(graph: LayeredGraph, rank: RankResult) -> tuple[LayerSummary, ...]:
    """Summarise every layer of a ranked graph.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        One score a node of this graph.

    Returns
    -------
    tuple of L+1 LayerSummary

    Raises
    ------
    GraphError
        A rank of another graph or of several vectors; weights that are NaN or Inf, or whose sums are.

    Notes
    -----
    Cost: two reads of every block for the strengths, and for dense ones a third that counts edges, at the first call.
    Memory above the graph: O(nodes), and one block where the backend converts it.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 0.0]]], [1, 1], [[1, 0]])
    >>> inputs, outputs = summarise(graph, weighted_pagerank(graph))
    >>> inputs.dangling, outputs.density, outputs.dead, round(outputs.through_graph, 3)
    (1, 0.5, 1, 0.333)
    """
    scores = layer_scores(graph, rank)
    engine = engine_of(graph)
    gamma = damping_of(rank)
    into: list[FloatArray | None] = [None]
    out: list[FloatArray | None] = []
    for layer, block in enumerate(graph.blocks, start=1):
        operator = engine.operator(block, 2)
        out.append(out_strength(engine, operator, layer))
        into.append(in_strength(engine, operator, layer))
    out.append(None)
    found = []
    for layer, (name, activation) in enumerate(zip(graph.names, graph.activations, strict=True)):
        arriving, leaving, before = into[layer], out[layer], out[layer - 1]
        block_in = graph.blocks[layer - 1] if layer else None
        masses = as_masses(scores[layer])
        highest = int(np.argmin(positions(masses)))
        through = None
        if layer and before is not None and gamma is not None:
            sources = as_masses(scores[layer - 1])
            through = share_through_graph(gamma, float(sources[before > 0].sum() / sources.sum()), 1.0)
        found.append(
            LayerSummary(
                layer=layer,
                name=name,
                nodes=len(activation),
                edges_in=block_in.edges if block_in else 0,
                density=block_in.edges / math.prod(block_in.shape) if block_in else None,
                in_strength=None if arriving is None else Spread.of(arriving),
                out_strength=None if leaving is None else Spread.of(leaving),
                activation=Spread.of(activation),
                dead=int((activation == 0).sum()),
                unreached=None if arriving is None else int((arriving == 0).sum()),
                dangling=None if leaving is None else int((leaving == 0).sum()),
                gini=gini(masses),
                effective=effective_number(masses),
                top_share=top_share(masses),
                highest=highest,
                highest_share=float(masses[highest] / masses.sum()),
                through_graph=through,
            )
        )
    return tuple(found)


def to_columns(summaries: Sequence[LayerSummary]) -> dict[str, list[Any]]:
    """A table of summaries: the values of every column, one a layer.

    Parameters
    ----------
    summaries : sequence of LayerSummary

    Returns
    -------
    dict from str to list
        In the order of the attributes; a spread becomes columns such as ``in_strength_median``. None where a value
        does not apply.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0], [2.0]]], [1], [[1, 1]])
    >>> table = to_columns(summarise(graph, weighted_pagerank(graph)))
    >>> table["nodes"], table["in_strength_mean"]
    ([1, 2], [None, 1.5])
    """
    columns: dict[str, list[Any]] = {}
    parts = [field.name for field in dataclasses.fields(Spread)]
    for field in dataclasses.fields(LayerSummary):
        values = [getattr(summary, field.name) for summary in summaries]
        if "Spread" in str(field.type):
            for part in parts:
                columns[f"{field.name}_{part}"] = [None if value is None else getattr(value, part) for value in values]
        else:
            columns[field.name] = values
    return columns


def flow(
    graph: LayeredGraph,
    rank: RankResult,
    layer: int,
    buckets: int | Sequence[float] = 10,
    *,
    theta: float | None = None,
) -> FloatArray:
    """How score flows across a block, from the nodes of high and low score to those of high and low score.

    ``F[t, s] = sum of P_ij r_j over the targets i of bucket t and the sources j of bucket s``, r being the score of
    layer - 1. For a modified PageRank, whose step does not divide by out-strengths, ``a_i W_ij r_j`` takes the place of
    ``P_ij r_j``, over its sum (``zero_lowest`` is heeded).

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        One score a node of this graph.
    layer : int
        The block into this layer, 1..L.
    buckets : int or sequence of float
        As for :func:`score_buckets`.
    theta : float, optional
        Share of the edge weights against the bare edges in P; by default that of the rank, or 1. Without effect on a
        modified PageRank.

    Returns
    -------
    (buckets, buckets) float64 array
        Row = target bucket, column = source bucket; bucket 0 holds the highest scores. A column sums to the mass of
        its sources less that of those that dangle; for a modified PageRank a row sums to the mass of its targets.

    Raises
    ------
    GraphError
        No such block, a rank of another graph or of several vectors, buckets as for :func:`score_buckets`, theta out of
        range, NaN or Inf in the weights.

    Notes
    -----
    Cost: two reads of the block, one of them a product with as many columns as there are buckets; for theta < 1 a
    product a bucket. Memory: O(nodes of the two layers * buckets).

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 2.0]]], [3, 1], [[1, 1]])
    >>> flow(graph, weighted_pagerank(graph), layer=1, buckets=2)
    array([[0.375, 0.25 ],
           [0.375, 0.   ]])
    """
    scores = layer_scores(graph, rank)
    layer = check_layer(graph, layer, first=1)
    bucket_ends(buckets)
    return _flow(graph, rank, scores, layer, buckets, theta_of(rank, theta), engine_of(graph))


def layer_flows(
    graph: LayeredGraph, rank: RankResult, buckets: int | Sequence[float] = 10, *, theta: float | None = None
) -> tuple[FloatArray, ...]:
    """The :func:`flow` across every block.

    Parameters
    ----------
    graph, rank, buckets, theta
        As for :func:`flow`.

    Returns
    -------
    tuple of L (buckets, buckets) float64 arrays

    Raises
    ------
    GraphError
        As for :func:`flow`.

    Notes
    -----
    Cost: that of :func:`flow` for every block.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0], [1.0]], [[1.0, 1.0]]], [1], [[1, 1], [1]])
    >>> [part.tolist() for part in layer_flows(graph, weighted_pagerank(graph), buckets=1)]
    [[[1.0]], [[1.0]]]
    """
    scores = layer_scores(graph, rank)
    bucket_ends(buckets)
    engine, share = engine_of(graph), theta_of(rank, theta)
    return tuple(_flow(graph, rank, scores, layer, buckets, share, engine) for layer in range(1, len(graph.layers)))


def _flow(
    graph: LayeredGraph,
    rank: RankResult,
    scores: Sequence[FloatArray],
    layer: int,
    buckets: int | Sequence[float],
    theta: float,
    engine: Backend,
) -> FloatArray:
    sources, targets = (score_buckets(scores[k], buckets) for k in (layer - 1, layer))
    count = len(bucket_ends(buckets))
    masses = departing(rank, scores[layer - 1])
    columns = np.zeros((len(masses), count))
    columns[np.arange(len(masses)), sources] = masses
    operator = engine.operator(graph.blocks[layer - 1], 1 if theta == 1.0 else count)
    to_numpy, vector = engine.arithmetic.to_numpy, engine.arithmetic.vector
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        if is_modified(rank):
            activation = graph.activations[layer]
            highest = activation.max()
            own = activation / highest if highest > 0 else np.ones_like(activation)
            arrived = to_numpy(operator.matvec(vector(columns))) * own[:, None]
            arrived /= arrived.sum() or 1.0
        elif theta == 1.0:
            strength = out_strength(engine, operator, layer)[:, None]
            shares = np.divide(columns, strength, out=np.zeros_like(columns), where=strength > 0)
            arrived = to_numpy(operator.matvec(vector(shares)))
        else:
            transition = Transition(operator, theta, engine.arithmetic)
            arrived = np.stack([to_numpy(transition.apply(operator, vector(part))) for part in columns.T], axis=1)
    found = np.zeros((count, count))
    np.add.at(found, targets, arrived)
    if not np.isfinite(found).all():
        raise not_finite(layer)
    return found


def layer_scores(graph: LayeredGraph, rank: RankResult) -> tuple[FloatArray, ...]:
    """The scores of `rank` by layer in float64, after a check that they are those of `graph`."""
    shapes = [np.shape(scores) for scores in rank.scores]
    if shapes != [(size,) for size in graph.layers]:
        raise GraphError(
            f"expected a rank of this graph, one score a node in layers of {list(graph.layers)}, got scores of shapes "
            f"{shapes}; rank this graph, or pick one column of several"
        )
    return tuple(as_vector(scores, f"scores of layer {layer}") for layer, scores in enumerate(rank.scores))


def check_layer(graph: LayeredGraph, layer: Any, first: int = 0) -> int:
    """`layer` as an index from `first` to the last layer, else a GraphError that says so."""
    last = len(graph.layers) - 1
    if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)) or not first <= layer <= last:
        raise GraphError(f"expected a layer from {first} to {last}, got {layer!r}")
    return int(layer)


def is_modified(rank: RankResult) -> bool:
    """Whether score passes an edge as ``W_ij r_j``, not as ``P_ij r_j``."""
    return rank.method == "modified pagerank"


def damping_of(rank: RankResult) -> float | None:
    """Gamma of a weighted PageRank of layers; other scores have no part that came through the graph."""
    return float(rank.parameters["gamma"]) if rank.method == "weighted pagerank" else None


def theta_of(rank: RankResult, theta: float | None) -> float:
    """The theta asked for, else that of the rank, else 1."""
    return check_share("theta", rank.parameters.get("theta", 1.0) if theta is None else theta)


def departing(rank: RankResult, scores: FloatArray) -> FloatArray:
    """What the sources of a block pass on: their scores, the lowest zeroed where the modified rank did so."""
    count = int(rank.parameters.get("zero_lowest", 0.0) * len(scores)) if is_modified(rank) else 0
    if not count:
        return scores
    found: FloatArray = scores.copy()
    found[np.argsort(scores, kind="stable")[:count]] = 0.0
    return found


def share_through_graph(gamma: float, passed: float, own: float) -> float:
    """``gamma passed / (gamma passed + (1 - gamma) own)``; 0 where nothing came from either."""
    total = gamma * passed + (1.0 - gamma) * own
    return gamma * passed / total if total > 0.0 else 0.0


def engine_of(graph: LayeredGraph) -> Backend:
    """The backend that reads a graph's blocks, in float64, where they lie."""
    return make_backend("auto", None, "float64", graph.blocks)


def in_strength(engine: Backend, operator: BlockOperator, layer: int) -> FloatArray:
    """In-strengths of the targets of the block into `layer`, finite."""
    return _finite(engine, operator.in_strength, layer)


def out_strength(engine: Backend, operator: BlockOperator, layer: int) -> FloatArray:
    """Out-strengths of the sources of the block into `layer`, finite."""
    return _finite(engine, operator.out_strength, layer)


def _finite(engine: Backend, sums: Callable[[], Vector], layer: int) -> FloatArray:
    with np.errstate(over="ignore", invalid="ignore"):
        found: FloatArray = engine.arithmetic.to_numpy(sums())
        if not np.isfinite(found.sum()):
            raise not_finite(layer)
    return found


def not_finite(layer: int) -> GraphError:
    """The error for weights of the block into `layer` that do not add up to a number."""
    return GraphError(
        f"block {layer}: the strengths are not finite: the edge weights hold NaN or Inf, or overflow float64; "
        "check the weights"
    )
