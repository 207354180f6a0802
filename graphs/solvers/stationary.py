"""Stationary iterations: power, the sweep of an acyclic graph, Gauss-Seidel in layer order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from graphs.errors import GraphError
from graphs.linalg.layer_vectors import State, distances, total_mass
from graphs.solvers.problem import LinearProblem, Problem, SolverStep

__all__ = ["GaussSeidel", "LayerSweep", "PowerIteration"]


@dataclass(frozen=True)
class PowerIteration:
    """All layers at once, again and again: r <- F(r).

    On a layered DAG with L blocks it is exact after L steps. With cycles the error shrinks by gamma a
    step at the least; on a periodic graph by no more.
    """

    name: str = "power"

    def begin(self, problem: Problem, start: State, tol: float) -> Any:
        """The start, and no step taken."""
        return start, 0

    def step(self, problem: Problem, memory: Any) -> SolverStep:
        """One application of F."""
        state, steps = memory
        following = problem.apply(state)
        changes = distances(following, state)
        steps += 1
        return SolverStep(
            following,
            changes,
            problem.residual(changes),
            problem.error_bounds(changes, steps),
            problem.n_blocks,
            (following, steps),
            exact=problem.depth is not None and steps >= problem.depth,
        )


@dataclass(frozen=True)
class LayerSweep:
    """One pass in layer order: exact on an acyclic graph, at the cost of one power step."""

    name: str = "sweep"

    def begin(self, problem: Problem, start: State, tol: float) -> Any:
        """Refuse a graph with cycles."""
        if not getattr(problem, "sweepable", True):
            raise GraphError(
                "solver 'sweep' takes edges within a layer in node order, which needs them as scipy CSR; use "
                "backend='scipy' or 'auto'"
            )
        if not problem.acyclic:
            raise GraphError(
                "solver 'sweep' is one pass along the edges, and this graph has cycles; use solver='gauss-seidel' (repeated "
                "passes) or 'auto'"
            )
        return start

    def step(self, problem: Problem, memory: Any) -> SolverStep:
        """The pass."""
        swept = problem.sweep(memory, total_mass(memory))
        zeros = [0.0] * problem.n_layers
        return SolverStep(swept.state, zeros, 0.0, zeros, problem.n_blocks, swept.state, exact=True, is_image=False)


@dataclass(frozen=True)
class GaussSeidel:
    """Passes in layer order, every layer from the newest ones: a handful on a nearly layered graph.

    Parameters
    ----------
    aggregation : bool
        Before each pass solve the small chain whose states are the layers, with the flows that the current
        scores imply, and rescale the layers to its solution (iterative aggregation and disaggregation: Takahashi 1975; Koury,
        McAllister and Stewart 1984). It removes the slow part of the error, mass on its way around the
        cycles, and costs no product.

    Notes
    -----
    With x the pass's outcome before scaling, x misses x = gamma P x + teleporting v by gamma times what flowed
    against the order since the last pass; that gives residual and bound without a further product.
    """

    aggregation: bool = True
    name: str = "gauss-seidel"

    def begin(self, problem: Problem, start: State, tol: float) -> Any:
        """The start, with the teleporting it would have if no node dangled."""
        gamma = getattr(problem, "gamma", 0.0)
        return start, total_mass(start) * (1.0 - gamma), math.inf, self.aggregation

    def step(self, problem: LinearProblem, memory: Any) -> SolverStep:
        """Aggregate, then one pass."""
        state, teleporting, before, aggregate = memory
        if problem.acyclic:
            swept = LayerSweep().step(problem, state)
            return SolverStep(
                swept.state, swept.changes, 0.0, swept.bounds, swept.products, memory, exact=True, is_image=False
            )
        begun = problem.aggregate(state, teleporting) if aggregate else state
        swept = problem.sweep(begun, teleporting)
        # Aggregation converges only near the solution: after one that did worse than a power step comes a plain pass.
        failed = aggregate and swept.residual > problem.gamma * before
        return SolverStep(
            swept.state,
            distances(swept.state, state),
            swept.residual,
            problem.residual_bounds(swept.residual),
            problem.n_blocks,
            (swept.state, swept.teleporting, swept.residual, self.aggregation and not failed),
            is_image=False,
        )
