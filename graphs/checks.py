"""Checks of arguments: types, shares, counts, and the shapes of scores."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphs.errors import GraphError

__all__ = [
    "check_count",
    "check_score_shapes",
    "check_sequence",
    "check_share",
    "check_type",
]


def check_type(name: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> None:
    """Check the type of a value.

    Parameters
    ----------
    name : str
        Name of the value in error messages.
    value : object
    kinds : type or tuple of types
    expected : str
        What the value must be, in words.

    Raises
    ------
    GraphError
        The value is of another type.

    Examples
    --------
    >>> check_type("names", 5, (list, tuple), "a sequence of names")
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: names must be a sequence of names, got int
    """
    if not isinstance(value, kinds):
        raise GraphError(f"{name} must be {expected}, got {type(value).__name__}")


def check_sequence(name: str, value: Any, expected: str) -> None:
    """Check that a value has a length.

    Parameters
    ----------
    name : str
        Name of the value in error messages.
    value : object
    expected : str
        What the value must be, in words.

    Raises
    ------
    GraphError
        The value has none.

    Examples
    --------
    >>> check_sequence("labels", 5, "a label for each node")
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: labels: expected a label for each node, got int
    """
    try:
        len(value)
    except TypeError as error:
        raise GraphError(f"{name}: expected {expected}, got {type(value).__name__}") from error


def check_share(name: str, value: Any, *, below_one: bool = False) -> float:
    """Check a number from 0 to 1 and return it as a float.

    Parameters
    ----------
    name : str
        Name of the value in error messages.
    value : float, or anything that float() accepts
    below_one : bool
        Whether 1 itself is an error.

    Returns
    -------
    float
        In [0, 1], or [0, 1).

    Raises
    ------
    GraphError
        The value is not a number, is NaN, or is out of range.

    Examples
    --------
    >>> check_share("gamma", 1, below_one=True)
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: gamma must be a number in [0, 1), got 1
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not 0.0 <= number <= 1.0 or (below_one and number == 1.0):
        raise GraphError(f"{name} must be a number in [0, 1{')' if below_one else ']'}, got {value!r}")
    return number


def check_count(name: str, value: Any, lowest: int = 1, highest: int | None = None) -> int:
    """Check an integer from `lowest` to `highest` and return it as an int; a bool or a float is an error.

    Parameters
    ----------
    name : str
        Name of the value in error messages.
    value : int or numpy integer
    lowest : int
    highest : int, optional
        No limit by default.

    Returns
    -------
    int

    Raises
    ------
    GraphError
        The value is not an integer, or is out of range.

    Examples
    --------
    >>> check_count("top", 2.0)
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: top must be an integer >= 1, got 2.0
    """
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if is_integer and lowest <= value and (highest is None or value <= highest):
        return int(value)
    limits = f">= {lowest}" if highest is None else f"from {lowest} to {highest}"
    raise GraphError(f"{name} must be an integer {limits}, got {value!r}")


def check_score_shapes(shapes: Sequence[tuple[int, ...]], sizes: Sequence[int], first: int = 0) -> None:
    """Check that a rank has one score for each node, in layers of the given sizes; this needs only the shapes of its scores.

    Parameters
    ----------
    shapes : sequence of tuples of int
        Shapes of the scores, by layer.
    sizes : sequence of int
        Expected numbers of nodes, by layer.
    first : int
        The layer of the graph that ``shapes[0]`` belongs to, for the error message.

    Raises
    ------
    GraphError
        The number of layers is wrong, a layer has a wrong number of scores, or its scores are a matrix (even of a single column).

    Examples
    --------
    >>> check_score_shapes([(2,), (3,)], (2, 4))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: expected a rank of this graph: one score per node, in layers of 2, 4, got 2, 3; the first ...
    """
    expected, given = [(size,) for size in sizes], list(shapes)
    if given == expected:
        return
    pairs = enumerate(itertools.zip_longest(given, expected))
    position = next(k for k, (shape, wanted) in pairs if shape != wanted)
    raise GraphError(
        f"expected a rank of this graph: one score per node, in layers of {_listing(expected)}, got {_listing(given)}; the "
        f"first difference is at layer {first + position}: rank this graph, and select one column if nodes have several scores"
    )


def _listing(shapes: Sequence[tuple[int, ...]]) -> str:
    shown = [" x ".join(map(str, shape)) for shape in shapes]
    return ", ".join(shown if len(shown) <= 6 else (*shown[:3], "...", *shown[-2:])) or "none"
