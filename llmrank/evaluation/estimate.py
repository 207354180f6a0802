"""Estimates: a mean with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A mean over values that were observed in groups, and its standard error.

    The error is computed over groups (such as texts), because the values of a group (those of its tokens) depend on each other.

    Attributes
    ----------
    value : float
    error : float or None
        Standard error of `value`; None if there are fewer than two groups, or the mean is not finite.
    count : int
        Number of values that the mean is taken over.
    """

    value: float
    error: float | None
    count: int

    @classmethod
    def of(cls, totals: Sequence[float], counts: Sequence[int] | None = None) -> Estimate:
        """Estimate the mean of all values from the sum over each group.

        Parameters
        ----------
        totals : sequence of float
            Sum over the values of each group.
        counts : sequence of int, optional
            Number of values in each group; by default every group is one value. Groups without values are ignored.

        Returns
        -------
        Estimate
            ``m = sum(totals) / sum(counts)`` with the variance of a ratio of sums over n groups,
            ``n / (n - 1) * sum((total - m * count)^2) / sum(counts)^2``.

        Raises
        ------
        ValueError
            There is no value.

        Examples
        --------
        Two texts of two tokens each; all values are 1 in the first text, and 0 in the second:

        >>> Estimate.of([2.0, 0.0], [2, 2])
        Estimate(value=0.5, error=0.5, count=4)
        """
        sums = np.asarray(totals, np.float64)
        sizes = np.ones(len(sums), np.int64) if counts is None else np.asarray(counts, np.int64)
        sums, sizes = sums[sizes > 0], sizes[sizes > 0]
        count, n_groups = int(sizes.sum()), len(sizes)
        if count == 0:
            raise ValueError("expected at least one value to take a mean of, got none; give more data")
        value = float(sums.sum() / count)
        if n_groups < 2 or not math.isfinite(value):
            return cls(value, None, count)
        squares = float(np.square(sums - value * sizes).sum())
        return cls(value, math.sqrt(n_groups / (n_groups - 1) * squares) / count, count)
