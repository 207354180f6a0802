"""How many neurons an amount is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from graphs.analysis.measures import count_of_share
from llmrank.errors import OptionError

__all__ = ["Protect", "check_amount", "check_protect", "global_count", "local_count", "protected_names", "round_width"]


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


Protect: TypeAlias = Sequence[str | int] | str | int


def check_protect(protect: Protect) -> tuple[str | int, ...]:
    """`protect` as a tuple, or an OptionError.

    >>> check_protect("model.layers.0"), check_protect([0, -1])
    (('model.layers.0',), (0, -1))
    """
    entries = (protect,) if isinstance(protect, (str, int)) else protect
    if not isinstance(entries, Sequence) or any(
        isinstance(entry, bool) or not isinstance(entry, (str, int)) for entry in entries
    ):
        raise OptionError(
            "protect must be names or patterns of layers, or their positions (0 is the first, -1 the last), got "
            f"{protect!r}"
        )
    return tuple(entries)


def protected_names(protect: Sequence[str | int], names: Sequence[str]) -> set[str]:
    """The layers that are meant.

    Parameters
    ----------
    protect : sequence of str or int
        A pattern (``*``, ``?``, ``[...]``) matches the name of a layer or of anything that holds it: ``model.layers.0``
        means all that is inside. A number is a position among the layers, from the end where it is negative.
    names : sequence of str
        Of all prunable layers, in the model's order.

    Raises
    ------
    OptionError
        An entry that means no layer; the message lists the names.

    Examples
    --------
    >>> sorted(protected_names([-1, "layers.0"], ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]))
    ['layers.0.mlp', 'layers.2.mlp']
    """
    found: set[str] = set()
    for entry in protect:
        if isinstance(entry, int):
            meant = [names[entry]] if -len(names) <= entry < len(names) else []
        else:
            meant = [name for name in names if fnmatchcase(name, entry) or fnmatchcase(name, f"{entry}.*")]
        if not meant:
            raise OptionError(
                f"protect: {entry!r} means no prunable layer; expected a position below {len(names)}, or a name or pattern "
                f"of {', '.join(names)}"
            )
        found.update(meant)
    return found
