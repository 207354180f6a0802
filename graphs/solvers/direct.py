"""LU: a direct solver, by which the other solvers are checked, and which is the fastest one for few nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.linalg import lapack
from scipy.sparse import linalg

from graphs.errors import GraphError
from graphs.linalg.layer_vectors import State
from graphs.solvers.problem import LinearProblem, Solver, SolverStep, apply_and_read, check_linear

__all__ = ["NAMES", "SparseLU"]

# Up to so many nodes a dense factorisation took less time than iterating (nine edges a node; benchmarks/LOG.md).
FEW_NODES = 128


@dataclass(frozen=True)
class SparseLU:
    """A solver that factorises I - gamma P, and solves for all teleport vectors v at once.

    P is the transition matrix, and gamma the damping. For up to 128 nodes the matrix is dense, which is faster than iterating.
    For more it is sparse; that is for checks, not for speed. The first iterate does not matter.

    Parameters
    ----------
    max_edges : int
        Graphs with more edges are refused, because the factors need far more memory than the graph.
    """

    max_edges: int = 20_000_000
    name: str = "lu"

    def begin(self, problem: LinearProblem, start: State, tol: float) -> Any:
        """Raise a GraphError if the problem is not linear or its graph has too many edges."""
        check_linear(problem, self.name)
        n_edges = problem.n_edges
        if n_edges > self.max_edges:
            raise GraphError(
                f"solver 'lu' expects a graph of up to {self.max_edges:,} edges, got one of {n_edges:,}; use solver='auto', "
                "or SparseLU(max_edges=...)"
            )

    def step(self, problem: LinearProblem, memory: Any) -> SolverStep:
        """Factorise, solve, and apply F once to the solution, for the residual and the error bounds."""
        matrix, teleport = problem.matrix(), problem.stack(problem.teleport)
        if len(teleport) <= FEW_NODES:
            # numpy's solve starts threads from 100 nodes on, which wait for a core for up to 80 ms where others compute.
            *_, solution, info = lapack.dgesv(np.eye(len(teleport)) - problem.gamma * matrix.toarray(), teleport)
            if info != 0:
                raise GraphError(f"gamma={problem.gamma!r} is too near to 1 for a factorisation; use solver='power'")
        else:
            system = sparse.csc_array(sparse.eye_array(matrix.shape[0], format="csr") - problem.gamma * matrix)
            solution = linalg.splu(system).solve(np.ascontiguousarray(teleport))
        # P loses the scores of dangling nodes, which ought to teleport. That only scales the solution, so its sum corrects it.
        solution = solution.clip(0.0)  # rounding may take scores below zero
        solved = problem.split(solution / solution.sum(axis=0))
        image, changes = apply_and_read(problem, solved)
        bounds = problem.error_bounds(changes, 1)
        return SolverStep(image, changes, problem.residual(changes), bounds, problem.n_blocks, None, exact=True)


NAMES: Mapping[str, Callable[[], Solver]] = {"lu": SparseLU}
