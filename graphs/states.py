"""States: the scores of all layers as a list of vectors, and the arithmetic that solvers do with them.

A layer's vector is (n,), or (n, k) for k ranks at once; it belongs to numpy or torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from graphs.operators import Vector

__all__ = ["State", "combine", "distances", "dot", "masses", "normalised", "rows_scaled", "subtract"]

State: TypeAlias = list[Vector]


def masses(state: State) -> Vector:
    """The sum of every column over all layers: a number, or (k,)."""
    total = state[0].sum(0)
    for vector in state[1:]:
        total = total + vector.sum(0)
    return total


def distances(state: State, other: State) -> list[float]:
    """L1 distance layer by layer; of several columns the largest."""
    return [float(abs(a - b).sum(0).max()) for a, b in zip(state, other, strict=True)]


def subtract(state: State, other: State) -> State:
    """State - other."""
    return [a - b for a, b in zip(state, other, strict=True)]


def dot(state: State, other: State) -> float:
    """Inner product over all layers and columns."""
    return float(sum(float((a * b).sum()) for a, b in zip(state, other, strict=True)))


def combine(weights: Sequence[float], states: Sequence[State]) -> State:
    """The sum of weight times state."""
    result = [vector * weights[0] for vector in states[0]]
    for weight, state in zip(weights[1:], states[1:], strict=True):
        result = [total + vector * weight for total, vector in zip(result, state, strict=True)]
    return result


def normalised(state: State, each_layer: bool) -> State:
    """Every column scaled to mass 1, over all layers or in each."""
    if each_layer:
        return [vector / vector.sum(0) for vector in state]
    total = masses(state)
    return [vector / total for vector in state]


def rows_scaled(vector: Vector, factors: Vector) -> Vector:
    """`vector` (n,) or (n, k) with row j times factors[j]."""
    return vector * (factors if vector.ndim == 1 else factors[:, None])
