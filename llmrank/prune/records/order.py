"""The order of scores: what is removed first, and what is kept."""

from __future__ import annotations

import torch

__all__ = ["ascending_positions", "keep_highest"]


def ascending_positions(scores: torch.Tensor) -> torch.Tensor:
    """Return the position of each score in ascending order; equal scores are in the order of their indices.

    Parameters
    ----------
    scores : (..., n) tensor
        On the CPU. Each row along the last axis is ordered by itself.

    Returns
    -------
    (..., n) int64 tensor
        Permutations of 0..n-1.

    Examples
    --------
    >>> ascending_positions(torch.tensor([0.5, 0.1, 0.5])).tolist()
    [1, 0, 2]
    """
    return torch.argsort(torch.argsort(scores, stable=True))


def keep_highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return the keep mask of the `count` highest scores; among equal scores the lower index is removed first.

    >>> keep_highest(torch.tensor([0.5, 0.1, 0.5]), 1).tolist()
    [False, False, True]
    """
    return ascending_positions(scores) >= len(scores) - count
