"""Sparse LU: the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse import linalg

from graphs.errors import GraphError
from graphs.linalg.layer_vectors import State, distances
from graphs.solvers.problem import LinearProblem, SolverStep, check_linear

__all__ = ["SparseLU"]


@dataclass(frozen=True)
class SparseLU:
    """Factorise I - gamma P and solve for all teleport vectors at once. For checks, not for speed.

    Parameters
    ----------
    max_edges : int
        More are refused: the factors of a graph that is no chain of small blocks fill up.
    """

    max_edges: int = 20_000_000
    name: str = "lu"

    def begin(self, problem: LinearProblem, start: State, tol: float) -> Any:
        """Refuse what is not linear, or too large to be put together."""
        check_linear(problem, self.name)
        n_edges = problem.edges
        if n_edges > self.max_edges:
            raise GraphError(
                f"solver 'lu' is for up to {self.max_edges:,} edges, the graph has {n_edges:,}; use solver='auto', or "
                "SparseLU(max_edges=...)"
            )

    def step(self, problem: LinearProblem, memory: Any) -> SolverStep:
        """Factorise, solve, and apply F once, whose change gives residual and bound."""
        matrix = problem.matrix()
        system = sparse.csc_array(sparse.eye_array(matrix.shape[0], format="csc") - problem.gamma * matrix)
        solution = linalg.splu(system).solve(np.ascontiguousarray(problem.stack(problem.teleport)))
        state = problem.split(solution / solution.sum(axis=0))
        image = problem.apply(state)
        changes = distances(image, state)
        return SolverStep(
            image,
            changes,
            problem.residual(changes),
            problem.error_bounds(changes, 1),
            problem.n_blocks,
            None,
            exact=True,
        )
