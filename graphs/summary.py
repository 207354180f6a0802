"""The numbers a person asks of a ranked graph: concentration, agreement, strengths, and the flow between layers.

Scores are the non-negative numbers of one layer, of any scale; a layer of zeros counts as uniform, as it does in the
ranks. Nodes are ordered as pruning removes them: by score, and among equals the lower index goes first.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.backends import Backend, make_backend
from graphs.blocks import FloatArray, as_numpy
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

IntArray: TypeAlias = npt.NDArray[np.int64]


def gini(scores: Any) -> float:
    """Gini coefficient: 0 where all scores are equal, towards 1 where one node holds everything.

    Parameters
    ----------
    scores : (n,) array-like
        Non-negative.

    Returns
    -------
    float
        In [0, 1 - 1/n]: half the mean absolute difference of two nodes over the mean score. Twice the area between
        the diagonal and :func:`lorenz`.

    Raises
    ------
    GraphError
        Not one-dimensional, empty, negative or not finite.

    Notes
    -----
    Cost: a sort. Source: C. Gini, Variabilità e mutabilità, 1912.

    Examples
    --------
    >>> gini([1, 1, 1, 1]), gini([0, 0, 0, 1])
    (0.0, 0.75)
    """
    ascending = np.sort(_masses(scores))
    size = len(ascending)
    half = size // 2
    # Pairs from both ends: no term is negative, so nothing cancels, and equal scores give exactly 0.
    gaps = ascending[::-1][:half] - ascending[:half]
    return float((size - 1.0 - 2.0 * np.arange(half)) @ gaps / (size * ascending.sum()))


def effective_number(scores: Any) -> float:
    """How many equal nodes would be as concentrated: ``1 / sum(p**2)`` of the shares p.

    Parameters
    ----------
    scores : (n,) array-like
        Non-negative.

    Returns
    -------
    float
        In [1, n]: the inverse Simpson (Herfindahl) index.

    Raises
    ------
    GraphError
        Not one-dimensional, empty, negative or not finite.

    Notes
    -----
    Cost: one pass. Source: E. H. Simpson, Measurement of diversity, Nature 163, 1949.

    Examples
    --------
    >>> effective_number([1, 1, 0, 0]), effective_number([0, 0, 5])
    (2.0, 1.0)
    """
    masses = _masses(scores)
    return float(np.clip(masses.sum() ** 2 / (masses @ masses), 1.0, len(masses)))


def top_share(scores: Any, share: float = 0.01) -> float:
    """The share of all score that the highest ``ceil(share * n)`` nodes hold.

    Parameters
    ----------
    scores : (n,) array-like
        Non-negative.
    share : float
        Share of the nodes, 0..1; read as it is written, so that 0.07 of 100 nodes are 7.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    GraphError
        Scores as for :func:`gini`, or `share` out of range.

    Notes
    -----
    Cost: a partition of the scores, O(n).

    Examples
    --------
    >>> top_share([1, 1, 6, 0, 0], share=0.2)
    0.75
    """
    masses = _masses(scores)
    count = math.ceil(Fraction(repr(check_share("share", share))) * len(masses))
    if count in (0, len(masses)):
        return float(count > 0)
    highest = np.partition(masses, len(masses) - count)[-count:]
    return min(1.0, float(highest.sum() / masses.sum()))


def lorenz(scores: Any) -> tuple[FloatArray, FloatArray]:
    """The Lorenz curve: which share of the score the lowest x of the nodes hold.

    Parameters
    ----------
    scores : (n,) array-like
        Non-negative.

    Returns
    -------
    x, y : (n + 1,) float64 arrays
        From (0, 0) to (1, 1), convex, never above the diagonal but for round-off.

    Raises
    ------
    GraphError
        Not one-dimensional, empty, negative or not finite.

    Notes
    -----
    Cost: a sort. Source: M. O. Lorenz, Methods of measuring the concentration of wealth, 1905.

    Examples
    --------
    >>> x, y = lorenz([3, 1, 0, 0])
    >>> y
    array([0.  , 0.  , 0.  , 0.25, 1.  ])
    """
    masses = _masses(scores)
    held = np.concatenate(([0.0], np.cumsum(np.sort(masses))))
    return np.arange(len(held)) / len(masses), held / held[-1]


def rank_correlation(a: Any, b: Any) -> float:
    """Spearman's rank correlation of two scores of the same nodes; ties get their average rank.

    Parameters
    ----------
    a, b : (n,) array-like
        Finite; they may be negative.

    Returns
    -------
    float
        In [-1, 1]; nan where one of them is constant, since then there is no order to agree with.

    Raises
    ------
    GraphError
        Not one-dimensional, empty, not finite, or of different lengths.

    Notes
    -----
    Cost: two sorts. Source: C. Spearman, The proof and measurement of association between two things, 1904.

    Examples
    --------
    >>> rank_correlation([1, 2, 3], [10, 100, 1000]), rank_correlation([1, 2, 3], [3, 2, 1])
    (1.0, -1.0)
    """
    first, second = _vector(a, "a"), _vector(b, "b")
    if len(first) != len(second):
        raise GraphError(f"expected two scores of the same nodes, got {len(first)} and {len(second)} numbers")
    middle = (len(first) + 1) / 2.0
    first, second = _average_ranks(first) - middle, _average_ranks(second) - middle
    spread = math.sqrt(float((first @ first) * (second @ second)))
    return float(np.clip(first @ second / spread, -1.0, 1.0)) if spread else math.nan


def kept_overlap(a: Any, b: Any) -> float:
    """The share of the nodes that `a` keeps which `b` keeps too.

    Parameters
    ----------
    a, b : (n,) bool array-like
        Keep masks of the same nodes.

    Returns
    -------
    float
        In [0, 1]; nan where `a` keeps nothing. Symmetric where both keep as many.

    Raises
    ------
    GraphError
        Not boolean, not one-dimensional, or of different lengths.

    Examples
    --------
    >>> kept_overlap([True, True, False], [True, False, True])
    0.5
    """
    first, second = as_numpy(a), as_numpy(b)
    for name, mask in (("a", first), ("b", second)):
        if mask.dtype != np.bool_ or mask.ndim != 1:
            raise GraphError(f"{name}: expected a bool keep mask (n,), got {mask.dtype} of shape {mask.shape}")
    if len(first) != len(second):
        raise GraphError(f"expected keep masks of the same nodes, got {len(first)} and {len(second)} entries")
    kept = int(first.sum())
    return int((first & second).sum()) / kept if kept else math.nan


def positions(scores: Any) -> IntArray:
    """The place of every node in its layer: 0 is the highest, n - 1 the first that pruning removes.

    Parameters
    ----------
    scores : (n,) array-like
        Finite.

    Returns
    -------
    (n,) int64 array
        A permutation of 0..n-1. Among equals the lower index is removed first, so it has the larger position.

    Raises
    ------
    GraphError
        Not one-dimensional, empty or not finite.

    Notes
    -----
    Cost: a stable sort.

    Examples
    --------
    >>> positions([0.2, 0.5, 0.2, 0.1])
    array([2, 0, 1, 3])
    """
    values = _vector(scores, "scores")
    found = np.empty(len(values), dtype=np.int64)
    found[np.argsort(values, kind="stable")] = np.arange(len(values))[::-1]
    return found


def percentiles(scores: Any) -> FloatArray:
    """The share of the layer's nodes with a lower score, those with the same score (itself too) counted half.

    Parameters
    ----------
    scores : (n,) array-like
        Finite.

    Returns
    -------
    (n,) float64 array
        In (0, 1), of mean 1/2; equal for equal scores. The percentile rank of the "mean" kind.

    Raises
    ------
    GraphError
        Not one-dimensional, empty or not finite.

    Notes
    -----
    Cost: a sort.

    Examples
    --------
    >>> percentiles([5, 1, 5, 9])
    array([0.5  , 0.125, 0.5  , 0.875])
    """
    values = _vector(scores, "scores")
    return (_average_ranks(values) - 0.5) / len(values)


@dataclass(frozen=True)
class Spread:
    """Five numbers and the mean of a layer's values; quartiles interpolate linearly."""

    minimum: float
    lower_quartile: float
    median: float
    upper_quartile: float
    maximum: float
    mean: float

    @classmethod
    def of(cls, values: Any) -> Spread:
        """The spread of (n,) finite numbers.

        Raises
        ------
        GraphError
            Not one-dimensional, empty or not finite.

        Examples
        --------
        >>> Spread.of([1, 2, 3, 10]).median
        2.5
        """
        array = _vector(values, "values")
        lowest, lower, median, upper, highest = np.quantile(array, [0.0, 0.25, 0.5, 0.75, 1.0]).tolist()
        return cls(lowest, lower, median, upper, highest, float(array.mean()))


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
        masses = _masses(scores[layer])
        highest = int(np.argmin(positions(masses)))
        through = None
        if layer and before is not None and gamma is not None:
            sources = _masses(scores[layer - 1])
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


def score_buckets(scores: Any, buckets: int | Sequence[float] = 10) -> IntArray:
    """The bucket of every node when nodes are ordered by score, highest first.

    Parameters
    ----------
    scores : (n,) array-like
        Finite.
    buckets : int or sequence of float
        How many buckets of equal size; or the share of the nodes in each, of sum 1, such as ``(0.01, 0.09, 0.9)``.
        Higher buckets round up, so bucket 0 is never empty; the last ones may be, in a layer of few nodes.

    Returns
    -------
    (n,) int64 array
        0 for the highest scores; order and ties as in :func:`positions`.

    Raises
    ------
    GraphError
        Scores as for :func:`positions`; no bucket, or shares that are not positive or do not sum to 1.

    Examples
    --------
    >>> score_buckets([0.1, 0.4, 0.3, 0.2], 2), score_buckets([0.1, 0.4, 0.3, 0.2], (0.1, 0.9))
    (array([1, 0, 0, 1]), array([1, 0, 1, 1]))
    """
    places = positions(scores)
    ends = [math.ceil(end * len(places)) for end in _bucket_ends(buckets)]
    return np.searchsorted(ends, places, side="right").astype(np.int64)


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
    _bucket_ends(buckets)
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
    _bucket_ends(buckets)
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
    count = len(_bucket_ends(buckets))
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


def _bucket_ends(buckets: int | Sequence[float]) -> list[Fraction]:
    """Where every bucket ends, as an exact share of the nodes; the last is 1."""
    given: Any = buckets
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool) and given >= 1:
        return [Fraction(k, int(given)) for k in range(1, int(given) + 1)]
    try:
        shares = [Fraction(repr(float(share))) for share in given]
    except (TypeError, ValueError):
        shares = []
    if not shares or min(shares) <= 0 or not math.isclose(sum(shares), 1.0, rel_tol=1e-9):
        raise GraphError(f"buckets: expected an integer >= 1, or positive shares of sum 1, got {buckets!r}")
    return [*itertools.accumulate(shares[:-1]), Fraction(1)]


def layer_scores(graph: LayeredGraph, rank: RankResult) -> tuple[FloatArray, ...]:
    """The scores of `rank` by layer in float64, after a check that they are those of `graph`."""
    shapes = [np.shape(scores) for scores in rank.scores]
    if shapes != [(size,) for size in graph.layers]:
        raise GraphError(
            f"expected a rank of this graph, one score a node in layers of {list(graph.layers)}, got scores of shapes "
            f"{shapes}; rank this graph, or pick one column of several"
        )
    return tuple(_vector(scores, f"scores of layer {layer}") for layer, scores in enumerate(rank.scores))


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


def _vector(values: Any, name: str) -> FloatArray:
    try:
        given = as_numpy(values)
        if given.dtype.kind not in "biuf":
            raise TypeError(f"dtype {given.dtype}")
    except (TypeError, ValueError) as error:
        raise GraphError(f"{name}: expected real numbers (n,), got {type(values).__name__}: {error}") from error
    if given.ndim != 1 or not len(given):
        raise GraphError(f"{name}: expected one number a node, shape (n,) with n >= 1, got shape {given.shape}")
    array: FloatArray = given.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise GraphError(f"{name}: expected finite numbers, got {array[bad[0]]} at node {bad[0]}")
    return array


def _masses(scores: Any) -> FloatArray:
    """Scores as non-negative numbers of maximum near 1, so that no sum or square overflows or vanishes."""
    array = _vector(scores, "scores")
    if (array < 0).any():
        node = int(np.flatnonzero(array < 0)[0])
        raise GraphError(f"scores: expected non-negative numbers, got {array[node]} at node {node}")
    highest = float(array.max())
    # A power of two rounds nothing.
    return np.ldexp(array, -math.frexp(highest)[1]) if highest > 0.0 else np.ones_like(array)


def _average_ranks(values: FloatArray) -> FloatArray:
    """Ranks from 1, lowest first; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: FloatArray = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]
    return found
