"""Arithmetic on states: lists with one vector for each layer.

A vector is a numpy array or a torch tensor of shape (n,), or (n, k) for k ranks at once.
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
    "normalise_state",
    "scale_columns",
    "scale_rows",
    "subtract",
    "total_scores",
]

State: TypeAlias = list[Vector]


def column_sums(vector: Vector) -> Vector:
    """Sum every column of a vector in float64, because float32 would lose digits; the result has shape () or (k,).

    Examples
    --------
    >>> column_sums(np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32))
    array([4., 6.])
    """
    if isinstance(vector, np.ndarray):
        return np.asarray(vector.sum(axis=0, dtype=np.float64))
    return vector.sum(0, dtype=sys.modules["torch"].float64)


def scale_columns(vector: Vector, factor: Vector) -> Vector:
    """Multiply every column of a vector by its own factor, in the dtype of the vector; `factor` has shape () or (k,).

    Examples
    --------
    >>> scale_columns(np.ones((2, 2)), np.array([1.0, 3.0]))
    array([[1., 3.],
           [1., 3.]])
    """
    if isinstance(vector, np.ndarray):
        return vector * np.asarray(factor, dtype=vector.dtype)
    return vector * factor.to(vector.dtype)


def total_scores(state: State) -> Vector:
    """Sum every column over all layers in float64; the result has shape () or (k,).

    Examples
    --------
    >>> float(total_scores([np.array([0.25, 0.25]), np.array([0.5])]))
    1.0
    """
    return sum(column_sums(vector) for vector in state)


def distances(state: State, other: State) -> list[float]:
    """Compute the L1 distance between two states in every layer; the largest of all columns counts.

    Examples
    --------
    >>> distances([np.array([0.5, 0.5]), np.array([1.0])], [np.array([0.25, 0.75]), np.array([1.0])])
    [0.5, 0.0]
    """
    return [float(column_sums(abs(a - b)).max()) for a, b in zip(state, other, strict=True)]


def subtract(state: State, other: State) -> State:
    """Subtract one state from another: state - other.

    Examples
    --------
    >>> subtract([np.array([3.0])], [np.array([1.0])])
    [array([2.])]
    """
    return [a - b for a, b in zip(state, other, strict=True)]


def dot(state: State, other: State) -> float:
    """Compute the inner product of two states, over all layers and columns.

    Examples
    --------
    >>> dot([np.array([1.0, 2.0]), np.array([1.0])], [np.array([3.0, 4.0]), np.array([1.0])])
    12.0
    """
    return float(sum(float((a * b).sum()) for a, b in zip(state, other, strict=True)))


def combine(weights: Sequence[float], states: Sequence[State]) -> State:
    """Compute the weighted sum of states.

    Examples
    --------
    >>> combine([2.0, -1.0], [[np.array([1.0])], [np.array([3.0])]])
    [array([-1.])]
    """
    result = [vector * weights[0] for vector in states[0]]
    for weight, state in zip(weights[1:], states[1:], strict=True):
        result = [total + vector * weight for total, vector in zip(result, state, strict=True)]
    return result


def normalise_state(state: State, each_layer: bool) -> State:
    """Scale every column to sum 1: over all layers together, or in each layer.

    Examples
    --------
    >>> normalise_state([np.array([1.0, 1.0]), np.array([2.0])], each_layer=False)
    [array([0.25, 0.25]), array([0.5])]
    """
    if each_layer:
        return [scale_columns(vector, 1.0 / column_sums(vector)) for vector in state]
    factor = 1.0 / total_scores(state)
    return [scale_columns(vector, factor) for vector in state]


def scale_rows(vector: Vector, factors: Vector) -> Vector:
    """Multiply row j of a vector by `factors[j]`; the vector has shape (n,) or (n, k), and `factors` has shape (n,).

    Examples
    --------
    >>> scale_rows(np.ones((2, 2)), np.array([1.0, 3.0]))
    array([[1., 1.],
           [3., 3.]])
    """
    return vector * (factors if vector.ndim == 1 else factors[:, None])
