"""Which neurons of a layer are lower than which."""

from __future__ import annotations

import torch

__all__ = ["ascending_positions", "keep_highest"]


def ascending_positions(scores: torch.Tensor) -> torch.Tensor:
    """How many scores are lower than each; among equals the lower index counts as lower.

    Parameters
    ----------
    scores : (n,) tensor
        On the CPU.

    Returns
    -------
    (n,) int64 tensor
        A permutation of 0..n-1.

    Examples
    --------
    >>> ascending_positions(torch.tensor([0.5, 0.1, 0.5])).tolist()
    [1, 0, 2]
    """
    return torch.argsort(torch.argsort(scores, stable=True))


def keep_highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Keep the `count` highest; among equals the lower index goes first.

    >>> keep_highest(torch.tensor([0.5, 0.1, 0.5]), 1).tolist()
    [False, False, True]
    """
    return ascending_positions(scores) >= len(scores) - count
