"""Checks of arguments: numbers in range, and one score a node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphs.errors import GraphError

__all__ = [
    "check_count",
    "check_score_shapes",
    "check_share",
]


def check_share(name: str, value: Any, *, below_one: bool = False) -> float:
    """A number from 0 to 1.

    Parameters
    ----------
    name : str
        How the message calls it.
    value : float, or what float() takes
    below_one : bool
        Whether 1 itself is refused.

    Returns
    -------
    float
        In [0, 1], or [0, 1).

    Raises
    ------
    GraphError
        No number, NaN, or out of range.

    Examples
    --------
    >>> check_share("theta", 1), check_share("mass", "0.5")
    (1.0, 0.5)
    >>> check_share("gamma", 1, below_one=True)
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: gamma must be a number in [0, 1), got 1
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0.0 <= number <= 1.0 or (below_one and number == 1.0):
        raise GraphError(f"{name} must be a number in [0, 1{')' if below_one else ']'}, got {value!r}")
    return number


def check_count(name: str, value: Any, lowest: int = 1) -> int:
    """An integer from `lowest` on; a bool or a float without fraction is none.

    Parameters
    ----------
    name : str
        How the message calls it.
    value : int or numpy integer
    lowest : int

    Returns
    -------
    int

    Raises
    ------
    GraphError
        No integer, or a lower one.

    Examples
    --------
    >>> check_count("top", 3)
    3
    >>> check_count("top", 2.0)
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: top must be an integer >= 1, got 2.0
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < lowest:
        raise GraphError(f"{name} must be an integer >= {lowest}, got {value!r}")
    return int(value)


def check_score_shapes(shapes: Sequence[tuple[int, ...]], sizes: Sequence[int], first: int = 0) -> None:
    """Refuse scores that are not one a node in layers of these sizes.

    Parameters
    ----------
    shapes : sequence of tuples of int
        Of the scores, by layer.
    sizes : sequence of int
        Of the layers.
    first : int
        Number of the first of these layers.

    Raises
    ------
    GraphError
        Another number of layers, another size of one, or several scores a node.

    Examples
    --------
    >>> check_score_shapes([(2,), (3,)], (2, 4))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: expected a rank of this graph: one score a node, in layers of 2, 4, got 2, 3; they part at ...
    """
    expected = [(size,) for size in sizes]
    found = list(shapes)
    if found == expected:
        return
    same = (one == other for one, other in zip(found, expected, strict=False))
    part = first + next((k for k, equal in enumerate(same) if not equal), min(len(found), len(expected)))
    raise GraphError(
        f"expected a rank of this graph: one score a node, in layers of {_listed(expected)}, got {_listed(found)}; they part "
        f"at layer {part}: rank this graph, and of several ranks pick a column"
    )


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    shown = [" x ".join(map(str, shape)) for shape in shapes]
    return ", ".join(shown if len(shown) <= 6 else (*shown[:3], "...", *shown[-2:])) or "none"
