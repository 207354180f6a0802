"""Accelerated power iteration: extrapolation and Anderson mixing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphs.errors import GraphError
from graphs.linalg.layer_vectors import State, combine, distances, dot, normalise_state, subtract
from graphs.solvers.problem import Problem, Solver, SolverStep

__all__ = ["NAMES", "AndersonMixing", "Extrapolation"]


@dataclass(frozen=True)
class Extrapolation:
    """Power iteration that extrapolates the last iterates to their limit every `period` steps.

    Degree 1 assumes one slow mode (Aitken's method for vectors), degree 2 two slow modes (quadratic extrapolation: Kamvar,
    Haveliwala, Manning and Golub, WWW 2003). An extrapolation that does not lower the residual is undone, which costs
    one application of F.

    Parameters
    ----------
    degree : {1, 2}
        Number of slow modes that are assumed.
    period : int
        Number of steps from one extrapolation to the next; more than `degree`.
    """

    degree: int = 2
    period: int = 8

    def __post_init__(self) -> None:
        if self.degree not in (1, 2) or self.period <= self.degree:
            raise GraphError(
                f"expected degree 1 or 2 and a period above it, got degree {self.degree!r}, period {self.period!r}"
            )

    @property
    def name(self) -> str:
        """Name of the solver: aitken or quadratic."""
        return "aitken" if self.degree == 1 else "quadratic"

    def begin(self, problem: Problem, start: State, tol: float) -> Any:
        """Return the memory of the first step: the last iterates, the number of steps, and the last residual."""
        return (start,), 0, np.inf

    def step(self, problem: Problem, memory: Any) -> SolverStep:
        """Apply F once; twice if an extrapolation does not lower the residual."""
        iterates, steps, residual_before = memory
        products = 0
        if steps and steps % self.period == 0 and len(iterates) == self.degree + 2:
            limit = self._extrapolate(iterates, each_layer=not problem.linear)
            following = problem.apply(limit)
            changes = distances(following, limit)
            products += problem.n_blocks
            if problem.residual(changes) < residual_before:
                return self._finish_step(problem, (limit, following), changes, steps, products)
        following = problem.apply(iterates[-1])
        changes = distances(following, iterates[-1])
        iterates = (*iterates, following)[-(self.degree + 2) :]
        return self._finish_step(problem, iterates, changes, steps, products + problem.n_blocks)

    def _finish_step(
        self, problem: Problem, iterates: Any, changes: list[float], steps: int, products: int
    ) -> SolverStep:
        residual = problem.residual(changes)
        memory = (iterates, steps + 1, residual)
        # An extrapolation makes exact layers inexact, so the bounds count only one application of F.
        return SolverStep(iterates[-1], changes, residual, problem.error_bounds(changes, 1), products, memory)

    def _extrapolate(self, iterates: tuple[State, ...], *, each_layer: bool) -> State:
        """Compute the limit of the iterates if the error consists of `degree` geometric modes."""
        first, *rest = iterates
        differences = [subtract(state, first) for state in rest]
        *basis, last = differences
        gram = np.array([[dot(a, b) for b in basis] for a in basis])
        right = np.array([dot(a, last) for a in basis])
        coefficients = np.append(-np.linalg.lstsq(gram, right, rcond=1e-12)[0], 1.0)
        weights = np.cumsum(coefficients[::-1])[::-1]
        if not np.isfinite(weights).all() or abs(weights.sum()) < 1e-12:
            return iterates[-1]
        limit = combine((weights / weights.sum()).tolist(), rest)
        return normalise_state([vector.clip(0.0) for vector in limit], each_layer)


@dataclass(frozen=True)
class AndersonMixing:
    """Power iteration on mixtures of the last iterates x, with weights that make the same mixture of F(x) - x shortest.

    Source: Anderson 1965; Walker and Ni, SIAM J. Numer. Anal. 49 (2011).

    Parameters
    ----------
    window : int
        Largest number of earlier iterates in the mixture, at least 1; each is stored as two states.
    """

    window: int = 6
    name: str = "anderson"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise GraphError(f"expected a window of at least 1, got {self.window!r}")

    def begin(self, problem: Problem, start: State, tol: float) -> Any:
        """Return the memory of the first step: the state to which F is applied, the history, and the lowest residual."""
        return start, (), np.inf

    def step(self, problem: Problem, memory: Any) -> SolverStep:
        """Apply F once, and compute the mixture for the next step."""
        mixture, history, best = memory
        image = problem.apply(mixture)
        changes = distances(image, mixture)
        residual = problem.residual(changes)
        if residual > 10.0 * best:
            history = ()  # mixing increased the residual too much
        history = (*history, (image, subtract(image, mixture)))[-(self.window + 1) :]
        # The bound needs a sum of 1, and a mixture has large terms of both signs, whose rounding changes the sum.
        mixture = normalise_state(self._mix(history), each_layer=not problem.linear)
        memory = (mixture, history, min(best, residual))
        return SolverStep(image, changes, residual, problem.error_bounds(changes, 1), problem.n_blocks, memory)

    def _mix(self, history: tuple[tuple[State, State], ...]) -> State:
        """Mix the images F(x) of a history of pairs F(x), F(x) - x."""
        *earlier, (image, change) = history
        images = [subtract(image, older) for older, _ in earlier]
        changes = [subtract(change, older) for _, older in earlier]
        scale = np.array([np.sqrt(dot(d, d)) for d in changes])
        if not earlier or not (scale > 0).all():
            return image
        gram = np.array([[dot(a, b) for b in changes] for a in changes]) / np.outer(scale, scale)
        right = np.array([dot(d, change) for d in changes]) / scale
        weights = np.linalg.lstsq(gram, right, rcond=1e-10)[0] / scale
        return combine([1.0, *(-weights).tolist()], [image, *images])


NAMES: Mapping[str, Callable[[], Solver]] = {
    "aitken": lambda: Extrapolation(degree=1),
    "quadratic": lambda: Extrapolation(degree=2),
    "anderson": AndersonMixing,
}
