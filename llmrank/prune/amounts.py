"""How many neurons an amount is."""

from __future__ import annotations

import math

from graphs.analysis.measures import count_of_share
from llmrank.errors import OptionError

__all__ = ["check_amount", "global_count", "local_count", "round_width"]


def check_amount(amount: float | int) -> float | int:
    """`amount` if it is a share in [0, 1) or a count >= 0, else an OptionError."""
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise OptionError(f"amount must be a share in [0, 1) or an integer number of neurons, got {amount!r}")
    if isinstance(amount, int):
        if amount < 0:
            raise OptionError(f"amount must not be negative, got {amount}")
        return amount
    if not (math.isfinite(amount) and 0.0 <= amount < 1.0):
        raise OptionError(f"amount must be a share in [0, 1) (0.3 removes 30 % of the neurons), got {amount!r}")
    return amount


def local_count(amount: float | int, n: int) -> int:
    """How many of a layer's `n` neurons an amount removes: a share rounded, halves to the even number.

    >>> local_count(0.3, 1536), local_count(0.5, 5), local_count(7, 5)
    (461, 2, 7)
    """
    return amount if isinstance(amount, int) else round(amount * n)


def global_count(amount: float | int, total: int) -> int:
    """How many of all `total` neurons an amount removes: a share rounded up, as it is written.

    0.07 of 100 is 7, though 0.07 * 100 > 7 in floats.

    >>> global_count(0.07, 100), global_count(0.3, 46080), global_count(7, 5)
    (7, 13824, 7)
    """
    return amount if isinstance(amount, int) else count_of_share(amount, total)


def round_width(kept: int, total: int, multiple: int, min_keep: int) -> int:
    """`kept` rounded to the nearest multiple, at least min_keep, at most the layer itself.

    Halfway it is the even multiple.

    >>> round_width(1075, 1536, 64, 1), round_width(12, 20, 8, 1), round_width(20, 28, 8, 1), round_width(3, 20, 8, 1)
    (1088, 16, 16, 8)
    """
    rounded = int(multiple * round(kept / multiple))
    if rounded < max(min_keep, 1):
        rounded = multiple * math.ceil(max(min_keep, 1) / multiple)
    return min(rounded, total)
