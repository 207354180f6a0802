"""Rules for how many of its out-edges a source keeps; the kept edges are the heaviest ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.checks import check_count, check_share
from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray
from graphs.reduction.backbone import disparity

__all__ = ["EdgeRule", "edge_rule"]

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]
EdgeRule: TypeAlias = Callable[[FloatArray, IntArray], IntArray]  # see `edge_rule`


def edge_rule(
    top_k: int | None = None,
    threshold: float | None = None,
    weight_share: float | None = None,
    significance: float | None = None,
) -> EdgeRule:
    """Make the function that computes how many out-edges each source keeps, from the one parameter that is given.

    Parameters
    ----------
    top_k, threshold, weight_share, significance
        As for :func:`graphs.reduction.sparsify.sparsify`.

    Returns
    -------
    callable
        Its arguments are the weights (c, d) of the out-edges of c sources, in decreasing order and padded with zeros, and the
        out-degrees (c,) of these sources, at least 1. It returns the number of edges to keep for each source, (c,), from 1 to the
        out-degree.

    Raises
    ------
    GraphError
        No parameter or several, or one that is out of range.

    Examples
    --------
    >>> edge_rule(weight_share=0.8)(np.array([[4.0, 3.0, 1.0], [1.0, 1.0, 0.0]]), np.array([3, 2]))
    array([2, 2])
    """
    given = {"top_k": top_k, "threshold": threshold, "weight_share": weight_share, "significance": significance}
    named = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise GraphError(
            f"expected exactly one of top_k, threshold, weight_share and significance, got {', '.join(named) or 'none'}"
        )
    if top_k is not None:
        limit = check_count("top_k", top_k)
        return lambda weights, degrees: np.minimum(degrees, min(limit, weights.shape[1]))
    # Quotients are compared, because products round badly: 55 / 100 is 0.55, but 0.55 * 100 is above 55. The strength is
    # the last of the running sums: unlike a sum in another order, it is never below one of them.
    if threshold is not None:
        lowest = check_share("threshold", threshold)
        return lambda weights, degrees: np.clip(
            (weights / _running_sums(weights)[:, -1:] >= lowest).sum(axis=1), 1, degrees
        )
    if significance is not None:
        level = check_share("significance", significance)

        def count_significant(weights: FloatArray, degrees: IntArray) -> IntArray:
            # A heavier edge has no larger alpha, so the significant edges are the first ones.
            alphas = disparity(weights, _running_sums(weights)[:, -1:], degrees[:, np.newaxis])
            counts: IntArray = (alphas < level).sum(axis=1)
            return np.clip(counts, 1, degrees)

        return count_significant
    share = check_share("weight_share", weight_share)

    def count_for_share(weights: FloatArray, degrees: IntArray) -> IntArray:
        if share == 1.0:
            return degrees
        running = _running_sums(weights)
        too_few: IntArray = (running / running[:, -1:] < share).sum(axis=1)
        return np.minimum(too_few + 1, degrees)

    return count_for_share


def _running_sums(weights: FloatArray) -> FloatArray:
    """Compute the running sums of each row, (c, d); the last column holds the out-strengths."""
    running: FloatArray = np.cumsum(weights, axis=1)
    return running
