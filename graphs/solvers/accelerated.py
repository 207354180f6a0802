"""Power iteration helped along: by extrapolation, and by Anderson mixing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphs.errors import GraphError
from graphs.linalg.layer_vectors import State, combine, distances, dot, normalise_state, subtract
from graphs.solvers.problem import Problem, SolverStep

__all__ = ["AndersonMixing", "Extrapolation"]


@dataclass(frozen=True)
class Extrapolation:
    """Power iteration that every `period` steps jumps to where the last iterates seem to lead.

    Degree 1 assumes one slow mode (Aitken, in its vector form), degree 2 two of them (quadratic
    extrapolation: Kamvar, Haveliwala, Manning and Golub, WWW 2003). A jump that does not lower the residual is taken back,
    at the cost of one application.

    Parameters
    ----------
    degree : {1, 2}
    period : int
        Steps from jump to jump, above the degree.
    """

    degree: int = 2
    period: int = 8

    def __post_init__(self) -> None:
        """Check the knobs."""
        if self.degree not in (1, 2) or self.period <= self.degree:
            raise GraphError(
                f"expected degree 1 or 2 and a period above it, got degree {self.degree!r}, period {self.period!r}"
            )

    @property
    def name(self) -> str:
        """Aitken or quadratic."""
        return "aitken" if self.degree == 1 else "quadratic"

    def begin(self, problem: Problem, start: State, tol: float) -> Any:
        """The start alone."""
        return (start,), 0, np.inf

    def step(self, problem: Problem, memory: Any) -> SolverStep:
        """One application of F, or two around a jump."""
        iterates, steps, before = memory
        products = 0
        if steps and steps % self.period == 0 and len(iterates) == self.degree + 2:
            jumped = self._extrapolated(iterates, each_layer=not problem.linear)
            following = problem.apply(jumped)
            changes = distances(following, jumped)
            products += problem.n_blocks
            if problem.residual(changes) < before:
                return self._step(problem, (jumped, following), changes, steps, products)
        following = problem.apply(iterates[-1])
        changes = distances(following, iterates[-1])
        kept = (*iterates, following)[-(self.degree + 2) :]
        return self._step(problem, kept, changes, steps, products + problem.n_blocks)

    def _step(self, problem: Problem, iterates: Any, changes: list[float], steps: int, products: int) -> SolverStep:
        residual = problem.residual(changes)
        # A jump makes the layers forget that they were exact: the bound counts one application, no more.
        memory = (iterates, steps + 1, residual)
        return SolverStep(iterates[-1], changes, residual, problem.error_bounds(changes, 1), products, memory)

    def _extrapolated(self, iterates: tuple[State, ...], *, each_layer: bool) -> State:
        first, *rest = iterates
        differences = [subtract(state, first) for state in rest]
        *basis, last = differences
        gram = np.array([[dot(a, b) for b in basis] for a in basis])
        right = np.array([dot(a, last) for a in basis])
        coefficients = np.append(-np.linalg.lstsq(gram, right, rcond=1e-12)[0], 1.0)
        weights = np.cumsum(coefficients[::-1])[::-1]
        if not np.isfinite(weights).all() or abs(weights.sum()) < 1e-12:
            return iterates[-1]
        jumped = combine((weights / weights.sum()).tolist(), rest)
        return normalise_state([vector.clip(0.0) for vector in jumped], each_layer)


@dataclass(frozen=True)
class AndersonMixing:
    """Power iteration whose next point mixes the last few so that their residuals cancel best.

    Source: Anderson 1965; Walker and Ni, SIAM J. Numer. Anal. 49 (2011). The answer of a step is F of
    the point, so the bound is that of power iteration.

    Parameters
    ----------
    window : int
        Differences that are remembered; each costs two vectors.
    """

    window: int = 6
    name: str = "anderson"

    def __post_init__(self) -> None:
        """Check the knobs."""
        if self.window < 1:
            raise GraphError(f"expected a window of at least 1, got {self.window!r}")

    def begin(self, problem: Problem, start: State, tol: float) -> Any:
        """The start, and nothing to remember."""
        return start, (), np.inf

    def step(self, problem: Problem, memory: Any) -> SolverStep:
        """One application of F, and the next point."""
        point, history, best = memory
        image = problem.apply(point)
        changes = distances(image, point)
        residual = problem.residual(changes)
        if residual > 10.0 * best:
            # Mixing led astray, which a contraction cannot: forget, and go on from a plain step.
            history = ()
        history = (*history, (image, subtract(image, point)))[-(self.window + 1) :]
        # Sums of large terms of either sign lose mass by rounding, and the bound is one for mass 1.
        point = normalise_state(self._mixed(history), each_layer=not problem.linear)
        memory = (point, history, min(best, residual))
        return SolverStep(image, changes, residual, problem.error_bounds(changes, 1), problem.n_blocks, memory)

    def _mixed(self, history: Any) -> State:
        image, defect = history[-1]
        if len(history) == 1:
            return image  # type: ignore[no-any-return]
        images = [subtract(image, older) for older, _ in history[:-1]]
        defects = [subtract(defect, older) for _, older in history[:-1]]
        scale = np.array([np.sqrt(dot(d, d)) for d in defects])
        if not (scale > 0).all():
            return image  # type: ignore[no-any-return]
        gram = np.array([[dot(a, b) for b in defects] for a in defects]) / np.outer(scale, scale)
        right = np.array([dot(d, defect) for d in defects]) / scale
        weights = np.linalg.lstsq(gram, right, rcond=1e-10)[0] / scale
        return combine([1.0, *(-weights).tolist()], [image, *images])
