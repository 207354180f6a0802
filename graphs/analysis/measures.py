"""Measures of the scores of one layer: how concentrated they are, how they order nodes, and how two scores agree.

Measures of concentration treat scores that are all zero as equal scores.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.checks import check_share
from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray, as_numpy
from graphs.linalg.validation import as_vector

__all__ = [
    "count_of_share",
    "effective_number",
    "gini",
    "lorenz",
    "percentiles",
    "positions",
    "rank_correlation",
    "scale_scores",
    "share_also_kept",
    "top_share",
]

IntArray: TypeAlias = npt.NDArray[np.int64]


def gini(scores: Any) -> float:
    """Compute the Gini coefficient: 0 if all n scores are equal, 1 - 1/n if one node holds all of the score.

    Cost: a sort. Source: C. Gini, Variabilità e mutabilità, 1912.

    Parameters
    ----------
    scores : (n,) array-like
        Non-negative.

    Returns
    -------
    float
        In [0, 1 - 1/n]: half the mean absolute difference of two nodes' scores, divided by the mean score.

    Raises
    ------
    GraphError
        Scores that are not one-dimensional, empty, negative or not finite.

    Examples
    --------
    >>> gini([1, 1, 1, 1]), gini([0, 0, 0, 1])
    (0.0, 0.75)
    """
    ascending = np.sort(scale_scores(scores))
    size = len(ascending)
    half = size // 2
    # Scores are paired from both ends, so that no gap is negative, and equal scores give exactly 0.
    gaps = ascending[::-1][:half] - ascending[:half]
    return float((size - 1.0 - 2.0 * np.arange(half)) @ gaps / (size * ascending.sum()))


def effective_number(scores: Any) -> float:
    """Compute the effective number of nodes ``1 / sum(p**2)``, where p are shares of the score; k equal scores give k.

    Cost: one pass. Source: E. H. Simpson, Measurement of diversity, Nature 163, 1949.

    Parameters
    ----------
    scores : (n,) array-like
        Non-negative.

    Returns
    -------
    float
        In [1, n].

    Raises
    ------
    GraphError
        Scores that are not one-dimensional, empty, negative or not finite.

    Examples
    --------
    >>> effective_number([1, 1, 0, 0]), effective_number([0, 0, 5])
    (2.0, 1.0)
    """
    scaled = scale_scores(scores)
    return float(np.clip(scaled.sum() ** 2 / (scaled @ scaled), 1.0, len(scaled)))


def top_share(scores: Any, share: float = 0.01) -> float:
    """Compute the share of the layer's score that the ``ceil(share * n)`` nodes with the highest scores hold.

    Cost: a partition of the scores, O(n).

    Parameters
    ----------
    scores : (n,) array-like
        Non-negative.
    share : float
        Share of the nodes, 0..1, rounded up as by :func:`count_of_share`.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    GraphError
        Scores that are not one-dimensional, empty, negative or not finite; or `share` out of range.

    Examples
    --------
    >>> top_share([1, 1, 6, 0, 0], share=0.2)
    0.75
    """
    scaled = scale_scores(scores)
    count = count_of_share(check_share("share", share), len(scaled))
    if count in (0, len(scaled)):
        return float(count > 0)
    highest = np.partition(scaled, len(scaled) - count)[-count:]
    return min(1.0, float(highest.sum() / scaled.sum()))


def lorenz(scores: Any) -> tuple[FloatArray, FloatArray]:
    """Compute the Lorenz curve: the share y of the score that is held by the share x of the nodes with the lowest scores.

    Cost: a sort. Source: M. O. Lorenz, Methods of measuring the concentration of wealth, 1905.

    Parameters
    ----------
    scores : (n,) array-like
        Non-negative.

    Returns
    -------
    x, y : (n + 1,) float64 arrays
        From (0, 0) to (1, 1), convex.

    Raises
    ------
    GraphError
        Scores that are not one-dimensional, empty, negative or not finite.

    Examples
    --------
    >>> x, y = lorenz([3, 1, 0, 0])
    >>> y
    array([0.  , 0.  , 0.  , 0.25, 1.  ])
    """
    scaled = scale_scores(scores)
    held = np.concatenate(([0.0], np.cumsum(np.sort(scaled))))
    return np.arange(len(held)) / len(scaled), held / held[-1]


def rank_correlation(a: Any, b: Any) -> float:
    """Compute Spearman's rank correlation of two scores of the same nodes; equal scores get their average rank.

    Cost: two sorts. Source: C. Spearman, The proof and measurement of association between two things, 1904.

    Parameters
    ----------
    a, b : (n,) array-like
        Finite.

    Returns
    -------
    float
        In [-1, 1]; nan where all scores in `a` or all in `b` are equal.

    Raises
    ------
    GraphError
        Scores that are not one-dimensional, empty, not finite, or of different lengths.

    Examples
    --------
    >>> rank_correlation([1, 2, 3], [10, 100, 1000]), rank_correlation([1, 2, 3], [3, 2, 1])
    (1.0, -1.0)
    """
    first, second = as_vector(a, "a"), as_vector(b, "b")
    if len(first) != len(second):
        raise GraphError(f"expected two scores of the same nodes, got {len(first)} and {len(second)} numbers")
    mean = (len(first) + 1) / 2.0
    first, second = _average_ranks(first) - mean, _average_ranks(second) - mean
    norm = math.sqrt(float((first @ first) * (second @ second)))
    return float(np.clip(first @ second / norm, -1.0, 1.0)) if norm else math.nan


def share_also_kept(a: Any, b: Any) -> float:
    """Compute the share of the nodes kept by `a` that `b` keeps too.

    Parameters
    ----------
    a, b : (n,) bool array-like
        Keep masks of the same nodes: True for a node that is kept.

    Returns
    -------
    float
        In [0, 1]; nan where `a` keeps no node.

    Raises
    ------
    GraphError
        Masks that are not boolean, not one-dimensional, or of different lengths.

    Examples
    --------
    >>> share_also_kept([True, True, False], [True, False, True])
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
    """Compute the position of every node in its layer: 0 is the highest score, n - 1 the node that pruning removes first.

    Cost: a stable sort.

    Parameters
    ----------
    scores : (n,) array-like
        Finite.

    Returns
    -------
    (n,) int64 array
        A permutation of 0..n-1. Among equal scores the lower index is removed first, so it has the larger position.

    Raises
    ------
    GraphError
        Scores that are not one-dimensional, empty or not finite.

    Examples
    --------
    >>> positions([0.2, 0.5, 0.2, 0.1])
    array([2, 0, 1, 3])
    """
    values = as_vector(scores, "scores")
    places = np.empty(len(values), dtype=np.int64)
    places[np.argsort(values, kind="stable")] = np.arange(len(values))[::-1]
    return places


def percentiles(scores: Any) -> FloatArray:
    """Compute the percentile of every node: the share of nodes with a lower score, plus half the share with an equal score.

    Cost: a sort.

    Parameters
    ----------
    scores : (n,) array-like
        Finite.

    Returns
    -------
    (n,) float64 array
        In (0, 1), with mean 1/2.

    Raises
    ------
    GraphError
        Scores that are not one-dimensional, empty or not finite.

    Examples
    --------
    >>> percentiles([5, 1, 5, 9])
    array([0.5  , 0.125, 0.5  , 0.875])
    """
    values = as_vector(scores, "scores")
    return (_average_ranks(values) - 0.5) / len(values)


def count_of_share(share: float, total: int) -> int:
    """Compute the number of nodes in a share of `total` nodes, rounded up: ``ceil(share * total)``.

    Parameters
    ----------
    share : float
        0..1, read as the decimal number that Python prints for it: 0.07 of 100 nodes is 7, though ``0.07 * 100 > 7`` in floats.
    total : int

    Returns
    -------
    int

    Examples
    --------
    >>> count_of_share(0.07, 100), count_of_share(0.071, 100)
    (7, 8)
    """
    return math.ceil(Fraction(repr(float(share))) * total)


def scale_scores(scores: Any) -> FloatArray:
    """Scale scores by a power of two to a maximum in [0.5, 1), so that sums of scores and of squares are finite and not 0.

    Parameters
    ----------
    scores : (n,) array-like
        Non-negative.

    Returns
    -------
    (n,) float64 array
        Ones if all scores are zero.

    Raises
    ------
    GraphError
        Scores that are not one-dimensional, empty, negative or not finite.

    Examples
    --------
    >>> scale_scores([3.0, 0.0, 6.0])
    array([0.375, 0.   , 0.75 ])
    """
    array = as_vector(scores, "scores")
    if (array < 0).any():
        node = int(np.flatnonzero(array < 0)[0])
        raise GraphError(f"scores: expected non-negative numbers, got {array[node]} at node {node}")
    highest = float(array.max())
    return np.ldexp(array, -math.frexp(highest)[1]) if highest > 0.0 else np.ones_like(array)


def _average_ranks(values: FloatArray) -> FloatArray:
    """Return ranks from 1, lowest value first; equal values get the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: FloatArray = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]
    return ranks
