"""Solvers: from a map of layers (or of one stacked vector) to its fixed point.

A solver is frozen knobs and a loop. What it iterates is a :class:`LayerMap`: layer 0 is given, layer
l depends on layer l-1 alone. On such a map L steps of :class:`PowerIteration` are exact from any
start of positive mass, and one :class:`LayerSweep` costs what a single step costs.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from graphs.errors import GraphError
from graphs.operators import Vector
from graphs.result import StopReason

__all__ = ["LayerMap", "LayerSweep", "PowerIteration", "Solution", "Solver", "contraction_bound", "held_tolerance"]


def held_tolerance(tol: float, dtype: str) -> float:
    """The tolerance that a unit-mass vector of this dtype can hold: at least 8 eps in float32."""
    return max(tol, 8.0 * float(np.finfo(np.float32).eps)) if dtype == "float32" else tol


def contraction_bound(residual: float, contraction: float) -> float:
    """C / (1 - c) times the last residual: bounds the L1 error of a c-contraction; inf from c = 1."""
    if residual == 0.0:
        return 0.0
    return contraction / (1.0 - contraction) * residual if contraction < 1.0 else math.inf


def check_iteration(tol: Any, max_iter: Any) -> tuple[float, int]:
    """Both as plain numbers, or a GraphError that names the bad one."""
    if not (isinstance(tol, (int, float, np.floating)) and tol >= 0.0):
        raise GraphError(f"tol must be a number >= 0 (absolute L1 residual), got {tol!r}")
    if not (isinstance(max_iter, (int, np.integer)) and max_iter >= 1):
        raise GraphError(f"max_iter must be an integer >= 1, got {max_iter!r}")
    return float(tol), int(max_iter)


class LayerMap(Protocol):
    """A map whose layer l depends on layer l-1 alone."""

    n_layers: int
    """L + 1."""
    dtype: str
    """float64 or float32: what the tolerance can be."""
    contraction: float
    """Proven L1 contraction factor, or inf where none is known; final after every layer was visited."""

    def initial(self) -> Vector:
        """r_0, of mass 1."""

    def uniform(self, layer: int) -> Vector:
        """The uniform vector of a layer."""

    def step(self, layer: int, previous: Vector, products: int) -> Vector:
        """r_layer from r_{layer-1}; `products` tells how often the layer will be visited."""


@dataclass(frozen=True)
class Solution:
    """What a solver returns, still in the arithmetic's vectors."""

    vectors: list[Vector]
    iterations: int
    residuals: list[float]
    stop_reason: StopReason
    error_bound: float
    tolerance: float
    block_products: int
    seconds: float


class Solver(Protocol):
    """Anything that finds the fixed point of a layer map."""

    @property
    def name(self) -> str:
        """What the result reports."""

    def solve(self, layers: LayerMap) -> Solution:
        """Find the fixed point."""


@dataclass(frozen=True)
class LayerSweep:
    """One pass in layer order: exact, at the cost of one power step, one block in use at a time."""

    name: str = "sweep"

    def solve(self, layers: LayerMap) -> Solution:
        """The fixed point, exact up to round-off."""
        start = perf_counter()
        vectors = [layers.initial()]
        for layer in range(1, layers.n_layers):
            vectors.append(layers.step(layer, vectors[-1], 1))
        return Solution(vectors, 1, [0.0], "exact", 0.0, 0.0, layers.n_layers - 1, perf_counter() - start)


@dataclass(frozen=True)
class PowerIteration:
    """All layers at once, again and again: r <- F(r).

    Stops when the residual (the largest L1 change of a layer, each of mass 1) is at most the
    tolerance, or after L steps, when the result is exact whatever the residual.

    Parameters
    ----------
    tol : float
        Absolute L1 tolerance.
    max_iter : int
        Steps at the most; if they run out the last iterate comes back, and the ranks warn.
    start : sequence of L+1 arrays, optional
        First iterate, of positive mass in every layer; uniform by default. Layer 0 is ignored.
    """

    tol: float = 1e-12
    max_iter: int = 1000
    start: Any = None
    name: str = "power"

    def solve(self, layers: LayerMap) -> Solution:
        """Iterate to the tolerance or to exactness."""
        begin = perf_counter()
        depth = layers.n_layers - 1
        tol = held_tolerance(self.tol, layers.dtype)
        first = layers.initial()
        if self.start is None:
            current = [first] + [layers.uniform(layer) for layer in range(1, depth + 1)]
        else:
            current = [first, *list(self.start)[1:]]
        residuals: list[float] = []
        expected = min(depth, self.max_iter)
        reason: StopReason = "max_iter"
        while len(residuals) < self.max_iter:
            following = [first]
            residual = 0.0
            for layer in range(1, depth + 1):
                vector = layers.step(layer, current[layer - 1], expected)
                residual = max(residual, float(abs(vector - current[layer]).sum()))
                following.append(vector)
            current = following
            residuals.append(residual)
            if len(residuals) >= depth:
                reason = "exact"
                break
            if residual <= tol:
                reason = "tolerance"
                break
        exact = len(residuals) >= depth
        bound = 0.0 if exact or not residuals else contraction_bound(residuals[-1], layers.contraction)
        if not residuals:
            bound = math.inf
        return Solution(
            current, len(residuals), residuals, reason, bound, tol, depth * len(residuals), perf_counter() - begin
        )


def warn_unconverged(iterations: int, residual: float, tol: float, frames: int) -> None:
    """Say that the iterations ran out, `frames` calls above this one (the caller of a public door)."""
    warnings.warn(
        f"power iteration stopped after max_iter={iterations} steps with residual {residual:.1e} above the "
        f"tolerance {tol:.1e}; the result is the last iterate (converged=False): raise max_iter or tol",
        RuntimeWarning,
        stacklevel=frames + 1,
    )
