"""Krylov subspaces (scipy): (I - gamma P) x = v."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.sparse import linalg

from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray
from graphs.linalg.layer_vectors import State, distances
from graphs.solvers.problem import LinearProblem, SolverStep, check_linear

__all__ = ["Krylov"]


@dataclass(frozen=True)
class Krylov:
    """GMRES or BiCGSTAB on (I - gamma P) x = v, the solution divided by its sum.

    A step is a cycle of `inner` iterations followed by one application of F, whose change gives residual and bound:
    those that scipy estimates are not trusted.

    Parameters
    ----------
    method : {"gmres", "bicgstab"}
    inner : int
        Iterations of a cycle, at the most; for GMRES also the vectors that it stores.

    Notes
    -----
    The vectors of the method are float64 on the CPU, whatever the operators compute in.
    """

    method: Literal["gmres", "bicgstab"] = "gmres"
    inner: int = 10

    def __post_init__(self) -> None:
        """Check the knobs."""
        if self.method not in ("gmres", "bicgstab") or self.inner < 1:
            raise GraphError(
                f"expected method 'gmres' or 'bicgstab' and inner >= 1, got {self.method!r} and {self.inner!r}"
            )

    @property
    def name(self) -> str:
        """The method."""
        return self.method

    def begin(self, problem: LinearProblem, start: State, tol: float) -> Any:
        """The start, scaled as the solution is scaled when no node dangles."""
        check_linear(problem, self.name)
        return problem.stack(start) / (1.0 - problem.gamma), tol, None

    def step(self, problem: LinearProblem, memory: Any) -> SolverStep:
        """One cycle a column, and one application of F."""
        x, tol, last = memory
        right = problem.stack(problem.teleport)
        products = 0
        solution = np.empty_like(x)
        for column in range(1 if x.ndim == 1 else x.shape[1]):
            at = (slice(None),) if x.ndim == 1 else (slice(None), column)
            solution[at], spent = self._cycle(problem, x, right, at, tol)
            products += spent
        state = problem.split(solution / solution.sum(axis=0))
        image = problem.apply(state)
        changes = distances(image, state)
        scale = solution.sum(axis=0)
        if last is not None and not problem.residual(changes) <= last[1]:
            # A cycle that made it worse is taken back, for a plain step, which cannot.
            state, scale = last[0], last[2]
            image = problem.apply(state)
            changes = distances(image, state)
            products += 1
        residual = problem.residual(changes)
        return SolverStep(
            image,
            changes,
            residual,
            problem.error_bounds(changes, 1),
            (products + 1) * problem.n_blocks,
            (problem.stack(image) * scale, tol, (image, residual, scale)),
        )

    def _cycle(
        self, problem: LinearProblem, x: FloatArray, right: FloatArray, at: Any, tol: float
    ) -> tuple[FloatArray, int]:
        spent = 0

        def residual_operator(vector: FloatArray) -> FloatArray:
            nonlocal spent
            spent += 1
            # One column by itself, whatever their number.
            column = vector.ravel()
            return column - problem.gamma * problem.stack(problem.transition(problem.split(column)))

        n_nodes = len(x)
        system = linalg.LinearOperator((n_nodes, n_nodes), matvec=residual_operator, dtype=np.float64)
        # The 1-norm is up to sqrt(n) times the 2-norm that scipy looks at.
        options: dict[str, Any] = {"x0": x[at], "rtol": 0.0, "atol": 0.1 * tol / np.sqrt(n_nodes)}
        if self.method == "gmres":
            found, _ = linalg.gmres(system, right[at], restart=self.inner, maxiter=1, **options)
        else:
            found, _ = linalg.bicgstab(system, right[at], maxiter=self.inner, **options)
        return (found if np.isfinite(found).all() and found.sum() > 0 else x[at]), spent
