"""How many neurons an amount removes, and which layers are protected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

from graphs.analysis.measures import count_of_share
from llmrank.errors import OptionError

__all__ = [
    "Multiple",
    "Protect",
    "check_amount",
    "check_multiple",
    "check_protect",
    "check_removable",
    "default_multiple",
    "global_count",
    "local_count",
    "protected_names",
    "round_width",
]

# Names and patterns of layers, and positions among the layers, see protected_names.
Protect: TypeAlias = Sequence[str | int] | str | int
# A number, or "auto" for default_multiple.
Multiple: TypeAlias = int | Literal["auto"]
# Multiples of these are as fast as the smaller number of multiplications promises, and can be quantised in blocks of 32.
FAST_MULTIPLES = (64, 32)
# A multiple is at most this part of a layer, so that rounding to the nearest one changes the share by a sixteenth at most, unless
# only one multiple is left.
LARGEST_MULTIPLE = 1 / 8
# Rounding changes the number of neurons to remove by at most this part of it.
LARGEST_CHANGE = 1 / 2


def check_amount(amount: float | int) -> float | int:
    """Return `amount` if it is a share (a float in [0, 1)) or a number (an int >= 0); otherwise raise an OptionError."""
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise OptionError(f"amount must be a share in [0, 1) or an integer number, got {amount!r}")
    if isinstance(amount, int):
        if amount < 0:
            raise OptionError(f"amount must not be negative, got {amount}")
        return amount
    if not 0.0 <= amount < 1.0:
        raise OptionError(f"amount must be a share in [0, 1) (0.3 removes 30 %), got {amount!r}")
    return float(amount)  # converts a numpy float, because the repr of a share is later read as a decimal number


def local_count(amount: float | int, n: int) -> int:
    """Return how many of a layer's `n` neurons an amount removes; a share is rounded, halves to the even number.

    >>> local_count(0.3, 1536), local_count(0.5, 5), local_count(7, 5)
    (461, 2, 7)
    """
    return amount if isinstance(amount, int) else round(amount * n)


def global_count(amount: float | int, total: int) -> int:
    """Return how many of all `total` neurons an amount removes; a share, read as the decimal number of its repr, is rounded up.

    >>> global_count(0.07, 100), global_count(0.3, 46080), global_count(7, 5)
    (7, 13824, 7)
    """
    return amount if isinstance(amount, int) else count_of_share(amount, total)


def round_width(kept: int, total: int, multiple: int, min_keep: int) -> int:
    """Round the number of kept neurons to the nearest multiple of `multiple` that is at least `min_keep`, but at most to `total`.

    Ties go to the even multiple.

    >>> round_width(1075, 1536, 64, 1), round_width(12, 20, 8, 1), round_width(20, 28, 8, 1), round_width(3, 20, 8, 1)
    (1088, 16, 16, 8)
    """
    rounded = multiple * round(kept / multiple)
    if rounded < min_keep:
        rounded = multiple * math.ceil(min_keep / multiple)
    return min(rounded, total)


def check_multiple(multiple_of: Multiple) -> Multiple:
    """Return `multiple_of` if it is an integer >= 1 or "auto"; otherwise raise an OptionError."""
    if isinstance(multiple_of, str):
        is_known = multiple_of == "auto"
    else:
        is_known = isinstance(multiple_of, int) and not isinstance(multiple_of, bool) and multiple_of >= 1
    if not is_known:
        raise OptionError(f'multiple_of must be an integer >= 1 or "auto", got {multiple_of!r}')
    return multiple_of


def default_multiple(amount: float | int, n: int, min_keep: int = 1) -> int:
    """Return the multiple to which the width of a layer of `n` neurons is rounded if nothing else is asked for.

    Layers of 512 neurons or more keep a multiple of 64, and those of 256 or more a multiple of 32. The smaller multiple, or 1, is
    taken if rounding would change the number of removed neurons by more than half. For an amount that is a number of neurons it
    is 1.

    >>> default_multiple(0.3, 1536), default_multiple(0.3, 256), default_multiple(0.3, 255), default_multiple(461, 1536)
    (64, 32, 1, 1)
    >>> default_multiple(0.02, 1536), default_multiple(0.01, 1536), default_multiple(0.04, 1024, min_keep=1000)
    (32, 1, 1)
    """
    if isinstance(amount, int):
        return 1
    removed = min(local_count(amount, n), n - min(min_keep, n))
    for multiple in FAST_MULTIPLES:
        change = abs(n - round_width(n - removed, n, multiple, min_keep) - removed)
        if multiple <= LARGEST_MULTIPLE * n and change <= LARGEST_CHANGE * removed:
            return multiple
    return 1


def check_removable(
    count: int,
    sizes: Sequence[int],
    min_keep: Sequence[int],
    protected: Sequence[bool],
    *,
    routed: bool = False,
) -> None:
    """Raise an OptionError if layers of these sizes cannot lose `count` neurons together.

    Each layer keeps at least its `min_keep`, and a protected layer all of its neurons. `routed` says that routers are the reason
    for `min_keep`, for the message.
    """
    layers = zip(sizes, min_keep, protected, strict=True)
    most = sum(max(n - fewest, 0) for n, fewest, keeps_all in layers if not keeps_all)
    if count > most:
        kept = (
            "routers need as many experts as a token gets" if routed else f"each layer keeps min_keep={min(min_keep)}"
        )
        raise OptionError(
            f"{count} of {sum(sizes)} neurons cannot be removed: at most {most} can, because {kept}"
            f"{' and the protected layers all of theirs' if any(protected) else ''}; lower the amount"
            f"{'' if routed else ' or min_keep'}"
        )


def check_protect(protect: Protect) -> tuple[str | int, ...]:
    """Return `protect` as a tuple; raise an OptionError if it does not hold names, patterns and positions.

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
    """Return the names of the layers that `protect` selects.

    Parameters
    ----------
    protect : sequence of str or int
        A name or pattern (``*``, ``?``, ``[...]``) matches a layer or a module that holds it: ``model.layers.0`` selects all
        layers inside. A number is a position among the layers, counted from the end if negative.
    names : sequence of str
        Names of the layers to select from, in the model's order.

    Raises
    ------
    OptionError
        An entry selects no layer; the message lists the names.

    Examples
    --------
    >>> sorted(protected_names([-1, "layers.0"], ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]))
    ['layers.0.mlp', 'layers.2.mlp']
    """
    protected: set[str] = set()
    for entry in protect:
        if isinstance(entry, int):
            selected = [names[entry]] if -len(names) <= entry < len(names) else []
        else:
            selected = [name for name in names if fnmatchcase(name, entry) or fnmatchcase(name, f"{entry}.*")]
        if not selected:
            raise OptionError(
                f"protect: {entry!r} selects no prunable layer; expected a position from {-len(names)} to {len(names) - 1}, "
                f"or a name or pattern of {', '.join(names)}"
            )
        protected.update(selected)
    return protected
