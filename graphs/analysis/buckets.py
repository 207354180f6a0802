"""Buckets: groups of the nodes of a layer, by score."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.analysis.measures import positions
from graphs.errors import GraphError

__all__ = ["bucket_ends", "score_buckets"]

IntArray: TypeAlias = npt.NDArray[np.int64]


def score_buckets(scores: Any, buckets: int | Sequence[float] = 10) -> IntArray:
    """Divide the nodes of a layer into buckets by score, and return the bucket of every node.

    Parameters
    ----------
    scores : (n,) array-like
        Finite.
    buckets : int or sequence of float
        The number of buckets of (nearly) equal size; or the share of the nodes in each bucket, with sum 1, such as
        ``(0.01, 0.09, 0.9)``. A bucket that would end inside a node includes this node, so a small layer can have empty buckets.

    Returns
    -------
    (n,) int64 array
        Bucket 0 holds the highest scores. Equal scores are ordered as in :func:`graphs.analysis.measures.positions`: the higher
        index comes first.

    Raises
    ------
    GraphError
        Scores that are empty, not one-dimensional or not finite, or buckets that are not as described.

    Examples
    --------
    >>> score_buckets([0.1, 0.4, 0.3, 0.2], 2), score_buckets([0.1, 0.4, 0.3, 0.2], (0.1, 0.9))
    (array([1, 0, 0, 1]), array([1, 0, 1, 1]))
    """
    places = positions(scores)
    ends = [math.ceil(end * len(places)) for end in bucket_ends(buckets)]
    return np.searchsorted(ends, places, side="right").astype(np.int64)


def bucket_ends(buckets: int | Sequence[float]) -> list[Fraction]:
    """Compute where every bucket ends, as an exact share of the nodes.

    Parameters
    ----------
    buckets : int or sequence of float
        As for :func:`score_buckets`.

    Returns
    -------
    list of Fraction
        In ascending order; the last end is 1.

    Raises
    ------
    GraphError
        `buckets` is neither an integer from 1 on, nor positive shares of sum 1.

    Examples
    --------
    >>> [str(end) for end in bucket_ends((0.07, 0.93))]
    ['7/100', '1']
    """
    given: Any = buckets
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool) and given >= 1:
        return [Fraction(k, int(given)) for k in range(1, int(given) + 1)]
    try:
        # Fractions hold decimal numbers exactly: 0.07 of 100 nodes is 7, though 0.07 * 100 > 7 in floats.
        shares = [Fraction(repr(float(share))) for share in given]
    except (TypeError, ValueError):
        shares = []
    if not shares or min(shares) <= 0 or not math.isclose(sum(shares), 1.0, rel_tol=1e-9):
        raise GraphError(f"buckets: expected an integer >= 1, or positive shares of sum 1, got {buckets!r}")
    # The given shares can sum to a little more than 1, so each end is cut to 1.
    return [*(min(end, Fraction(1)) for end in itertools.accumulate(shares[:-1])), Fraction(1)]
