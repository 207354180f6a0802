"""Arithmetic on states: lists with one vector for each layer.

A vector is a numpy array or a torch tensor of shape (n,), or (n, k) for k ranks at once. If vectors are on a GPU, numbers are
copied to the CPU as rarely as possible, because the program waits for every copy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.errors import GraphError
from graphs.linalg.blocks import is_torch
from graphs.linalg.operators import Vector

__all__ = [
    "DeferredChecks",
    "State",
    "column_sums",
    "combine",
    "inner_products",
    "is_on_cpu",
    "layer_norms",
    "normalise_state",
    "read",
    "scale_columns",
    "scale_rows",
    "subtract",
    "total_scores",
    "weighted_sums",
]

State: TypeAlias = list[Vector]


def is_on_cpu(vector: Vector) -> bool:
    """Tell whether a number or vector is on the CPU: all but torch tensors of another device.

    Examples
    --------
    >>> is_on_cpu(np.ones(2)), is_on_cpu(0.5)
    (True, True)
    """
    return not is_torch(vector) or vector.device.type == "cpu"


def read(vectors: Sequence[Vector]) -> list[npt.NDArray[Any]]:
    """Copy numbers or vectors to numpy arrays; if they are not on the CPU, in one copy, so that the program waits only once.

    Parameters
    ----------
    vectors : sequence of numbers, arrays or tensors
        All of them on the CPU, or all on the same other device.

    Returns
    -------
    list of arrays
        In the shapes of the vectors. If the vectors are not on the CPU, all arrays have the widest of their dtypes.

    Examples
    --------
    >>> read([np.array([1.0, 2.0]), 3.0])
    [array([1., 2.]), array(3.)]
    """
    if all(is_on_cpu(vector) for vector in vectors):
        return [np.array(vector.numpy() if is_torch(vector) else vector) for vector in vectors]
    joined = sys.modules["torch"].cat([vector.reshape(-1) for vector in vectors]).cpu().numpy()
    parts = np.split(joined, np.cumsum([vector.numel() for vector in vectors[:-1]]))
    return [part.reshape(tuple(vector.shape)) for part, vector in zip(parts, vectors, strict=True)]


class DeferredChecks:
    """Checks of single numbers, of which none makes the program wait for a device.

    A number on the CPU is checked at once. A number on another device is checked at the next :meth:`read`, which copies it to the
    CPU together with what the caller reads.

    Examples
    --------
    >>> DeferredChecks().add(np.float64(2.0), print, "a sum")
    2.0
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Vector, Callable[[float], None], str]] = []

    def add(self, number: Vector, check: Callable[[float], None], subject: str = "") -> None:
        """Call ``check(number)`` now, or in the next :meth:`read` if the number is not on the CPU.

        `subject` begins the message of a GraphError that the check raises.
        """
        if is_on_cpu(number):
            _call(check, float(number), subject)
        else:
            self._waiting.append((number, check, subject))

    def read(self, vectors: Sequence[Vector] = ()) -> list[npt.NDArray[Any]]:
        """Copy numbers or vectors as :func:`read` does; the numbers that wait come in the same copy, and are checked.

        Raises
        ------
        GraphError
            A check fails.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting and not vectors:
            return []
        arrays = read([*(number for number, _, _ in waiting), *vectors])
        for array, (_, check, subject) in zip(arrays, waiting, strict=False):
            _call(check, float(array), subject)
        return arrays[len(waiting) :]


def _call(check: Callable[[float], None], number: float, subject: str) -> None:
    try:
        check(number)
    except GraphError as error:
        raise GraphError(f"{subject}: {error}" if subject else str(error)) from error


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


def layer_norms(state: State) -> list[Vector]:
    """Compute the L1 norm of every layer, on the device of the state; if there are several columns, the largest of their norms.

    Examples
    --------
    >>> [float(norm) for norm in layer_norms([np.array([0.5, -0.5]), np.array([2.0])])]
    [1.0, 2.0]
    """
    # The maximum of a single sum would take as long as the sum of a short vector.
    sums = [column_sums(abs(vector)) for vector in state]
    return [each.max() if each.ndim else each for each in sums]


def subtract(state: State, other: State) -> State:
    """Subtract one state from another: state - other.

    Examples
    --------
    >>> subtract([np.array([3.0])], [np.array([1.0])])
    [array([2.])]
    """
    return [a - b for a, b in zip(state, other, strict=True)]


def inner_products(states: Sequence[State]) -> Vector:
    """Compute the inner products of all pairs of states in every layer, summed over columns; the result stays on their device.

    Returns
    -------
    (layers, states, states) float64 array, or tensor on the device of the states
        The sum over the layers is the Gram matrix of the states.

    Examples
    --------
    >>> inner_products([[np.array([1.0, 2.0]), np.array([1.0])], [np.array([3.0, 4.0]), np.array([1.0])]]).sum(0)
    array([[ 6., 12.],
           [12., 26.]])
    """
    layers = list(zip(*states, strict=True))
    if is_on_cpu(layers[0][0]):
        products = np.empty((len(layers), len(states), len(states)))
        for layer, vectors in enumerate(layers):
            for row, first in enumerate(vectors):
                for column, second in enumerate(vectors[: row + 1]):
                    products[layer, row, column] = products[layer, column, row] = float((first * second).sum())
        return products
    # On a GPU, starting an operation takes most of the time, so one operation multiplies all pairs of a layer.
    torch = sys.modules["torch"]
    rows = [torch.stack([vector.reshape(-1) for vector in vectors]).double() for vectors in layers]
    return torch.stack([matrix @ matrix.T for matrix in rows])


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


def weighted_sums(vector: Vector, factors: Vector) -> Vector:
    """Sum every column in float64, with row j multiplied by `factors[j]`; the result has shape () or (k,).

    Examples
    --------
    >>> weighted_sums(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.0, 10.0]))
    array([31., 42.])
    """
    if isinstance(vector, np.ndarray) and vector.dtype == np.float64:
        return np.asarray(factors @ vector)  # in one pass
    return column_sums(scale_rows(vector, factors))
