"""Stationary iterations: power iteration, the layer sweep of an acyclic graph, and Gauss-Seidel in layer order.

F is the right side of the equation r = F(r). On a digraph, F(r) is the sum of gamma P r and a multiple of the teleport vector v.
The memory of a solver is what one step hands to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from graphs.errors import GraphError
from graphs.linalg.layer_vectors import State, total_scores
from graphs.solvers.problem import LinearProblem, Problem, Solver, SolverStep, apply_and_read

__all__ = ["NAMES", "GaussSeidel", "LayerSweep", "PowerIteration"]


@dataclass(frozen=True)
class PowerIteration:
    """Power iteration: r <- F(r), all layers at once.

    On a layered graph with L blocks the rank is exact after L steps. On a digraph every step multiplies the L1 error by at most
    gamma.
    """

    name: str = "power"

    def begin(self, problem: Problem, start: State, tol: float) -> Any:
        """Return the memory of the first step: the start, and 0 as the number of steps so far."""
        return start, 0

    def step(self, problem: Problem, memory: Any) -> SolverStep:
        """Apply F once."""
        state, steps = memory
        following, changes = apply_and_read(problem, state)
        steps += 1
        return SolverStep(
            following,
            changes,
            problem.residual(changes),
            problem.error_bounds(changes, steps),
            problem.n_blocks,
            (following, steps),
            exact=problem.steps_to_exact is not None and steps >= problem.steps_to_exact,
        )


@dataclass(frozen=True)
class LayerSweep:
    """One sweep in layer order: exact on an acyclic graph, at the cost of one step of power iteration."""

    name: str = "sweep"

    def begin(self, problem: Problem, start: State, tol: float) -> Any:
        """Check that sweeps are possible and that the graph is acyclic; return the start as the memory."""
        if not problem.sweepable:
            raise GraphError(
                "solver 'sweep' expects the edges within each layer in one scipy CSR block that is not transposed; use "
                "backend='scipy', join such blocks, or use solver='auto'"
            )
        if not problem.acyclic:
            raise GraphError(
                "solver 'sweep' takes one pass along the edges, and in this graph edges lead back; use solver='gauss-seidel' "
                "(repeated passes) or 'auto'"
            )
        return start

    def step(self, problem: Problem, memory: Any) -> SolverStep:
        """Take the sweep."""
        swept = problem.sweep(memory, total_scores(memory))
        zeros = [0.0] * problem.n_layers
        return SolverStep(swept.state, zeros, 0.0, zeros, problem.n_blocks, swept.state, exact=True, is_image=False)


@dataclass(frozen=True)
class GaussSeidel:
    """Repeated sweeps in layer order. Few sweeps suffice if few edges lead back to earlier layers.

    Along edges that lead back, a sweep uses the scores from before the sweep. Let x be the outcome of the sweep, before x is
    scaled to sum 1, and let d be the sum of the absolute changes, in this sweep, of the scores that go along edges that lead
    back. Then the L1 norm of gamma P x + teleport_mass * v - x is at most gamma d. The residual and the error bounds follow from
    that. Edges within a layer all count as leading back, because it would cost a read of them to know which do.

    Parameters
    ----------
    aggregation : bool
        Whether to correct the layer sums before a sweep: solve the equation of a graph with one node for each layer, whose
        edges are the flows of the current scores between layers, and scale the layers to the solution (iterative aggregation
        and disaggregation: Takahashi 1975; Koury, McAllister and Stewart 1984). This costs no block product.
    """

    aggregation: bool = True
    name: str = "gauss-seidel"

    def begin(self, problem: Problem, start: State, tol: float) -> Any:
        """Return the memory of the first step.

        It holds the start, the part of its score that teleports, an infinite residual, and whether to aggregate.
        """
        # The problem of modified PageRank has no gamma. It is always acyclic, so that no step uses this product.
        gamma = getattr(problem, "gamma", 0.0)
        return start, total_scores(start) * (1.0 - gamma), math.inf, self.aggregation

    def step(self, problem: LinearProblem, memory: Any) -> SolverStep:
        """Sweep once. If the graph is not acyclic, aggregate first, unless aggregation is off or failed in the step before."""
        state, teleport_mass, residual_before, aggregate = memory
        if problem.acyclic:
            return replace(LayerSweep().step(problem, state), memory=memory)
        swept, norms = problem.sweep_and_compare(state, teleport_mass, aggregates=aggregate)
        residual, *changes = map(float, problem.checks.read([swept.residual, *norms]))
        # Aggregation is sure to converge only near the solution. If the residual did not fall as fast as in power iteration, the
        # next step does not aggregate.
        failed = aggregate and residual > problem.gamma * residual_before
        return SolverStep(
            swept.state,
            changes,
            residual,
            problem.residual_bounds(residual),
            problem.n_blocks,
            (swept.state, swept.teleport_mass, residual, self.aggregation and not failed),
            is_image=False,
        )


NAMES: Mapping[str, Callable[[], Solver]] = {"power": PowerIteration, "sweep": LayerSweep, "gauss-seidel": GaussSeidel}
