"""Checks at the doors: numbers in range, a layer and a node of a graph, the scores of a rank of that graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray, as_numpy
from graphs.solvers.result import RankResult
from graphs.structures.layered import LayeredGraph

__all__ = [
    "as_vector",
    "check_count",
    "check_layer",
    "check_node",
    "check_share",
    "layer_scores",
    "refuse_other_sizes",
    "scores_of",
]


def check_share(name: str, value: Any, *, below_one: bool = False) -> float:
    """A number from 0 to 1.

    Parameters
    ----------
    name : str
        How the message calls it.
    value : float, or what float() takes
    below_one : bool
        Whether 1 itself is refused.

    Returns
    -------
    float
        In [0, 1], or [0, 1).

    Raises
    ------
    GraphError
        No number, NaN, or out of range.

    Examples
    --------
    >>> check_share("theta", 1), check_share("mass", "0.5")
    (1.0, 0.5)
    >>> check_share("gamma", 1, below_one=True)
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: gamma must be a number in [0, 1), got 1
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0.0 <= number <= 1.0 or (below_one and number == 1.0):
        raise GraphError(f"{name} must be a number in [0, 1{')' if below_one else ']'}, got {value!r}")
    return number


def check_count(name: str, value: Any, lowest: int = 1) -> int:
    """An integer from `lowest` on; a bool or a float without fraction is none.

    Parameters
    ----------
    name : str
        How the message calls it.
    value : int or numpy integer
    lowest : int

    Returns
    -------
    int

    Raises
    ------
    GraphError
        No integer, or a lower one.

    Examples
    --------
    >>> check_count("top", 3)
    3
    >>> check_count("top", 2.0)
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: top must be an integer >= 1, got 2.0
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < lowest:
        raise GraphError(f"{name} must be an integer >= {lowest}, got {value!r}")
    return int(value)


def check_layer(graph: LayeredGraph, layer: Any, first: int = 0, *, name: str = "layer") -> int:
    """A layer of a graph.

    Parameters
    ----------
    graph : LayeredGraph
    layer : int or numpy integer
        `first` to L; negative ones do not count from the end.
    first : int
        0, or 1 where a block into the layer is meant.
    name : str
        How the message calls it.

    Returns
    -------
    int

    Raises
    ------
    GraphError
        No such layer.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 1], [[1]])
    >>> check_layer(graph, 1)
    1
    >>> check_layer(graph, 0, first=1)
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: layer: expected a layer from 1 to 1, got 0
    """
    last = len(graph.layers) - 1
    if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)) or not first <= layer <= last:
        raise GraphError(f"{name}: expected a layer from {first} to {last}, got {layer!r}")
    return int(layer)


def check_node(graph: LayeredGraph, layer: int, node: Any) -> int:
    """A node of a layer.

    Parameters
    ----------
    graph : LayeredGraph
    layer : int
        0..L, checked already.
    node : int or numpy integer
        0..n_l - 1; negative ones do not count from the end.

    Returns
    -------
    int

    Raises
    ------
    GraphError
        No such node.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 1], [[1]])
    >>> check_node(graph, 0, 2)
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: node: expected a node of layer 0 from 0 to 1, got 2
    """
    last = graph.layers[layer] - 1
    if isinstance(node, bool) or not isinstance(node, (int, np.integer)) or not 0 <= node <= last:
        raise GraphError(f"node: expected a node of layer {layer} from 0 to {last}, got {node!r}")
    return int(node)


def as_vector(values: Any, name: str) -> FloatArray:
    """Numbers of one layer's nodes.

    Parameters
    ----------
    values : (n,) array-like or torch tensor
        Real and finite, n >= 1.
    name : str
        How messages call them.

    Returns
    -------
    (n,) float64 array
        A copy.

    Raises
    ------
    GraphError
        Not real, not one-dimensional, empty or not finite.

    Examples
    --------
    >>> as_vector([1, 2], "scores")
    array([1., 2.])
    >>> as_vector([1, float("nan")], "scores")
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: scores: expected finite numbers, got nan at node 1
    """
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


def scores_of(graph: LayeredGraph, rank: RankResult) -> tuple[FloatArray, ...]:
    """The scores of a rank, once it is known to be one of this graph.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        One score a node.

    Returns
    -------
    tuple of L+1 arrays, each (n_l,)
        The rank's own, not copies.

    Raises
    ------
    GraphError
        Not a rank, several scores a node, or other layers.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 1.0]]], [1, 3], [[1]])
    >>> scores_of(graph, weighted_pagerank(graph))[0]
    array([0.25, 0.75])
    """
    if not isinstance(rank, RankResult):
        raise GraphError(f"rank: expected a RankResult, as weighted_pagerank returns, got {type(rank).__name__}")
    refuse_other_sizes([np.shape(scores) for scores in rank.scores], graph.layers)
    return rank.scores


def layer_scores(graph: LayeredGraph, rank: RankResult) -> tuple[FloatArray, ...]:
    """The scores of a rank of this graph, to compute with: in float64, and finite.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        One score a node.

    Returns
    -------
    tuple of L+1 float64 arrays, each (n_l,)
        Copies.

    Raises
    ------
    GraphError
        As for :func:`scores_of`, or a score that is not finite.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 1.0]]], [1, 3], [[1]])
    >>> layer_scores(graph, weighted_pagerank(graph, dtype="float32"))[0].dtype
    dtype('float64')
    """
    return tuple(as_vector(scores, f"scores of layer {layer}") for layer, scores in enumerate(scores_of(graph, rank)))


def refuse_other_sizes(shapes: Sequence[tuple[int, ...]], sizes: Sequence[int], first: int = 0) -> None:
    """Refuse scores that are not one a node in layers of these sizes.

    Parameters
    ----------
    shapes : sequence of tuples of int
        Of the scores, by layer.
    sizes : sequence of int
        Of the layers.
    first : int
        Number of the first of these layers.

    Raises
    ------
    GraphError
        Another number of layers, another size of one, or several scores a node.

    Examples
    --------
    >>> refuse_other_sizes([(2,), (3,)], (2, 4))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: expected a rank of this graph: one score a node, in layers of 2, 4, got 2, 3; they part at ...
    """
    expected = [(size,) for size in sizes]
    found = list(shapes)
    if found == expected:
        return
    same = (one == other for one, other in zip(found, expected, strict=False))
    part = first + next((k for k, equal in enumerate(same) if not equal), min(len(found), len(expected)))
    raise GraphError(
        f"expected a rank of this graph: one score a node, in layers of {_listed(expected)}, got {_listed(found)}; they part "
        f"at layer {part}: rank this graph, and of several ranks pick a column"
    )


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    shown = [" x ".join(map(str, shape)) for shape in shapes]
    return ", ".join(shown if len(shown) <= 6 else (*shown[:3], "...", *shown[-2:])) or "none"
