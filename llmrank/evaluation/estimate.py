"""A mean and how far it may be off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A mean over things that were observed in groups, and its standard error.

    Tokens of one text are no independent draws, texts are: the error is that of the groups.

    Attributes
    ----------
    value : float
    error : float or None
        Standard error of `value`; None where there are less than two groups, or the mean is not finite.
    count : int
        Things that the mean is over.
    """

    value: float
    error: float | None
    count: int

    @classmethod
    def of(cls, totals: Sequence[float], counts: Sequence[int] | None = None) -> Estimate:
        """The mean of everything, from the sum over each group.

        Parameters
        ----------
        totals : sequence of float
            Sum over the things of each group.
        counts : sequence of int, optional
            How many things those are; 1 each by default. Groups of none do not count.

        Returns
        -------
        Estimate
            ``m = sum(totals) / sum(counts)`` with the variance of a ratio of sums over n groups,
            ``n / (n - 1) * sum((total - m * count)^2) / sum(counts)^2``. For groups of one this is the sample variance
            divided by n.

        Raises
        ------
        ValueError
            Nothing to take a mean of.

        Examples
        --------
        Three right of four, each by itself:

        >>> Estimate.of([1, 1, 0, 1])
        Estimate(value=0.75, error=0.25, count=4)

        Two texts of two tokens, alike within each:

        >>> Estimate.of([2.0, 0.0], [2, 2])
        Estimate(value=0.5, error=0.5, count=4)
        """
        sums = np.asarray(totals, np.float64)
        sizes = np.ones(len(sums), np.int64) if counts is None else np.asarray(counts, np.int64)
        sums, sizes = sums[sizes > 0], sizes[sizes > 0]
        count, groups = int(sizes.sum()), len(sizes)
        if count == 0:
            raise ValueError("expected at least one thing to take a mean of, got none")
        value = float(sums.sum() / count)
        if groups < 2 or not math.isfinite(value):
            return cls(value, None, count)
        spread = float(np.square(sums - value * sizes).sum())
        return cls(value, math.sqrt(groups / (groups - 1) * spread) / count, count)
