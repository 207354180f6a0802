"""Measures of one layer's scores: concentration, order, agreement of two, buckets.

Scores are the numbers of one layer, of any scale; where they are masses, a layer of zeros counts as uniform, as it does
in the ranks. Nodes are ordered as pruning removes them: by score, and among equals the lower index goes first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.checks import check_share
from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray, as_numpy
from graphs.linalg.validation import as_vector

__all__ = [
    "Spread",
    "as_masses",
    "bucket_ends",
    "count_of_share",
    "effective_number",
    "gini",
    "kept_overlap",
    "lorenz",
    "percentiles",
    "positions",
    "rank_correlation",
    "score_buckets",
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
    ascending = np.sort(as_masses(scores))
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
    masses = as_masses(scores)
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
    masses = as_masses(scores)
    count = count_of_share(check_share("share", share), len(masses))
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
    masses = as_masses(scores)
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
    first, second = as_vector(a, "a"), as_vector(b, "b")
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
    values = as_vector(scores, "scores")
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
    values = as_vector(scores, "scores")
    return (_average_ranks(values) - 0.5) / len(values)


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
    ends = [math.ceil(end * len(places)) for end in bucket_ends(buckets)]
    return np.searchsorted(ends, places, side="right").astype(np.int64)


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
        array = as_vector(values, "values")
        lowest, lower, median, upper, highest = np.quantile(array, [0.0, 0.25, 0.5, 0.75, 1.0]).tolist()
        return cls(lowest, lower, median, upper, highest, float(array.mean()))


def count_of_share(share: float, total: int) -> int:
    """How many of `total` nodes a share of them is, rounded up: ``ceil(share * total)``.

    Parameters
    ----------
    share : float
        0..1; read as it is written: 0.07 of 100 is 7, though ``0.07 * 100 > 7`` in floats.
    total : int

    Returns
    -------
    int

    Examples
    --------
    >>> count_of_share(0.07, 100), count_of_share(0.071, 100)
    (7, 8)
    """
    return math.ceil(_as_written(share) * total)


def _as_written(share: float) -> Fraction:
    """The decimal number that a share is written as, exactly."""
    return Fraction(repr(float(share)))


def bucket_ends(buckets: int | Sequence[float]) -> list[Fraction]:
    """Where every bucket ends, as an exact share of the nodes.

    Parameters
    ----------
    buckets : int or sequence of float
        As for :func:`score_buckets`.

    Returns
    -------
    list of Fraction
        Ascending; the last is 1.

    Raises
    ------
    GraphError
        No bucket, or shares that are not positive or do not sum to 1.

    Examples
    --------
    >>> [str(end) for end in bucket_ends((0.07, 0.93))]
    ['7/100', '1']
    """
    given: Any = buckets
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool) and given >= 1:
        return [Fraction(k, int(given)) for k in range(1, int(given) + 1)]
    try:
        shares = [_as_written(share) for share in given]
    except (TypeError, ValueError):
        shares = []
    if not shares or min(shares) <= 0 or not math.isclose(sum(shares), 1.0, rel_tol=1e-9):
        raise GraphError(f"buckets: expected an integer >= 1, or positive shares of sum 1, got {buckets!r}")
    # Shares may sum to a little over 1.
    return [*(min(end, Fraction(1)) for end in itertools.accumulate(shares[:-1])), Fraction(1)]


def as_masses(scores: Any) -> FloatArray:
    """Scores to add up: of maximum near 1, so that no sum or square overflows or vanishes.

    Parameters
    ----------
    scores : (n,) array-like
        Non-negative.

    Returns
    -------
    (n,) float64 array
        The scores times one power of two, exactly as they relate; ones where all are zero.

    Raises
    ------
    GraphError
        Not one-dimensional, empty, negative or not finite.

    Examples
    --------
    >>> as_masses([3.0, 0.0, 6.0])
    array([0.375, 0.   , 0.75 ])
    >>> as_masses([0, 0])
    array([1., 1.])
    """
    array = as_vector(scores, "scores")
    if (array < 0).any():
        node = int(np.flatnonzero(array < 0)[0])
        raise GraphError(f"scores: expected non-negative numbers, got {array[node]} at node {node}")
    highest = float(array.max())
    return np.ldexp(array, -math.frexp(highest)[1]) if highest > 0.0 else np.ones_like(array)


def _average_ranks(values: FloatArray) -> FloatArray:
    """Ranks from 1, lowest first; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: FloatArray = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]
    return found
