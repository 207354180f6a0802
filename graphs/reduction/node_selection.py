"""Selection of consecutive layers, and of the nodes with the highest scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray
from graphs.structures.indices import check_layer
from graphs.structures.layered import LayeredGraph

__all__ = ["check_consecutive_layers", "count_for_score_share", "highest_scored"]

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]


def check_consecutive_layers(graph: LayeredGraph, layers: Sequence[int] | None, fewest: int = 1) -> tuple[int, ...]:
    """Check that layers exist and are consecutive, and return them as ints.

    Parameters
    ----------
    graph : LayeredGraph
    layers : sequence of int, optional
        All layers by default.
    fewest : int
        Minimum number of layers.

    Returns
    -------
    tuple of int

    Raises
    ------
    GraphError
        A layer does not exist, the layers are not consecutive and ascending, or they are fewer than `fewest`.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 1], [[1]])
    >>> check_consecutive_layers(graph, None), check_consecutive_layers(graph, range(1, 2))
    ((0, 1), (1,))
    """
    if layers is None:
        layers = range(len(graph.layer_sizes))
    chosen = tuple(check_layer(graph, layer, name="layers") for layer in layers)
    if len(chosen) < fewest or list(chosen) != list(range(chosen[0], chosen[-1] + 1)):
        raise GraphError(
            f"layers: expected at least {fewest} consecutive ascending layers, such as range(1, 4); got {list(chosen)}"
        )
    return chosen


def highest_scored(scores: FloatArray, count: int) -> IntArray:
    """Find the `count` nodes with the highest scores; among equal scores the lower index is taken first.

    Parameters
    ----------
    scores : (n,) array
    count : int
        Maximum number of nodes.

    Returns
    -------
    (min(count, n),) int array
        Indices in ascending order.

    Examples
    --------
    >>> highest_scored(np.array([0.1, 0.5, 0.4]), 2)
    array([1, 2])
    """
    order: IntArray = np.argsort(-scores, kind="stable")[:count]
    return np.sort(order)


def count_for_score_share(scores: FloatArray, share: float) -> int:
    """Compute the lowest number of nodes of a layer that together hold at least a given share of its score.

    Parameters
    ----------
    scores : (n,) array
        Non-negative.
    share : float
        0..1.

    Returns
    -------
    int
        1..n; 1 where the share is 0 or all scores are zero.

    Examples
    --------
    >>> count_for_score_share(np.array([1.0, 5.0, 4.0]), 0.8)
    2
    """
    running = np.cumsum(-np.sort(-scores))
    if running[-1] <= 0.0:
        return 1
    return min(len(running), int((running / running[-1] < share).sum()) + 1)
