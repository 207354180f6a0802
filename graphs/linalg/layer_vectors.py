"""States: the scores of all layers as a list of vectors, and the arithmetic that solvers do with them.

A layer's vector is (n,), or (n, k) for k ranks at once; it belongs to numpy or torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from graphs.linalg.operators import Vector

__all__ = [
    "State",
    "column_sums",
    "combine",
    "distances",
    "dot",
    "masses",
    "normalised",
    "rows_scaled",
    "subtract",
    "times",
]

State: TypeAlias = list[Vector]


def column_sums(vector: Vector) -> Vector:
    """The sum of every column, () or (k,), in float64: numpy adds the rows of a float32 matrix one by one.

    Examples
    --------
    >>> column_sums(np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32))
    array([4., 6.])
    """
    if isinstance(vector, np.ndarray):
        return np.asarray(vector.sum(axis=0, dtype=np.float64))
    return vector.sum(0, dtype=sys.modules["torch"].float64)


def times(vector: Vector, factor: Vector) -> Vector:
    """`vector` with every column times its factor, () or (k,), in the vector's own dtype.

    Examples
    --------
    >>> times(np.ones((2, 2)), np.array([1.0, 3.0]))
    array([[1., 3.],
           [1., 3.]])
    """
    if isinstance(vector, np.ndarray):
        return vector * np.asarray(factor, dtype=vector.dtype)
    return vector * factor.to(vector.dtype)


def masses(state: State) -> Vector:
    """The sum of every column over all layers, () or (k,), in float64.

    Examples
    --------
    >>> float(masses([np.array([0.25, 0.25]), np.array([0.5])]))
    1.0
    """
    total = column_sums(state[0])
    for vector in state[1:]:
        total = total + column_sums(vector)
    return total


def distances(state: State, other: State) -> list[float]:
    """L1 distance layer by layer; of several columns the largest.

    Examples
    --------
    >>> distances([np.array([0.5, 0.5]), np.array([1.0])], [np.array([0.25, 0.75]), np.array([1.0])])
    [0.5, 0.0]
    """
    return [float(column_sums(abs(a - b)).max()) for a, b in zip(state, other, strict=True)]


def subtract(state: State, other: State) -> State:
    """State - other.

    Examples
    --------
    >>> subtract([np.array([3.0])], [np.array([1.0])])
    [array([2.])]
    """
    return [a - b for a, b in zip(state, other, strict=True)]


def dot(state: State, other: State) -> float:
    """Inner product over all layers and columns.

    Examples
    --------
    >>> dot([np.array([1.0, 2.0]), np.array([1.0])], [np.array([3.0, 4.0]), np.array([1.0])])
    12.0
    """
    return float(sum(float((a * b).sum()) for a, b in zip(state, other, strict=True)))


def combine(weights: Sequence[float], states: Sequence[State]) -> State:
    """The sum of weight times state.

    Examples
    --------
    >>> combine([2.0, -1.0], [[np.array([1.0])], [np.array([3.0])]])
    [array([-1.])]
    """
    result = [vector * weights[0] for vector in states[0]]
    for weight, state in zip(weights[1:], states[1:], strict=True):
        result = [total + vector * weight for total, vector in zip(result, state, strict=True)]
    return result


def normalised(state: State, each_layer: bool) -> State:
    """Every column scaled to mass 1, over all layers or in each.

    Examples
    --------
    >>> normalised([np.array([1.0, 1.0]), np.array([2.0])], each_layer=False)
    [array([0.25, 0.25]), array([0.5])]
    >>> normalised([np.array([1.0, 1.0]), np.array([2.0])], each_layer=True)
    [array([0.5, 0.5]), array([1.])]
    """
    if each_layer:
        return [times(vector, 1.0 / column_sums(vector)) for vector in state]
    factor = 1.0 / masses(state)
    return [times(vector, factor) for vector in state]


def rows_scaled(vector: Vector, factors: Vector) -> Vector:
    """`vector` (n,) or (n, k) with row j times factors[j].

    Examples
    --------
    >>> rows_scaled(np.ones((2, 2)), np.array([1.0, 3.0]))
    array([[1., 1.],
           [3., 3.]])
    """
    return vector * (factors if vector.ndim == 1 else factors[:, None])
