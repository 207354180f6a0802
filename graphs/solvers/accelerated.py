"""Accelerated power iteration: extrapolation and Anderson mixing. F is the right side of the equation r = F(r)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray
from graphs.linalg.layer_vectors import (
    State,
    combine,
    inner_products,
    layer_norms,
    normalise_state,
    subtract,
    total_scores,
)
from graphs.solvers.problem import LinearProblem, Problem, Solver, SolverStep, SweptState, apply_and_read
from graphs.solvers.stationary import LayerSweep

__all__ = ["NAMES", "AndersonMixing", "ExtrapolatedSweeps", "Extrapolation"]


@dataclass(frozen=True)
class Extrapolation:
    """Power iteration that extrapolates the last iterates to their limit every `period` steps.

    A slow mode is a part of the error that a step multiplies by a factor near 1. Degree 1 assumes one slow mode (Aitken's method
    for vectors), degree 2 two slow modes (quadratic extrapolation: Kamvar, Haveliwala, Manning and Golub, WWW 2003). An
    extrapolation that does not lower the residual is undone, which costs one application of F.

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
        """Return the memory of the first step: the last iterates, the number of steps, the last residual, and no Gram matrix.

        A step that finds a Gram matrix in its memory extrapolates.
        """
        return (start,), 0, np.inf, None

    def step(self, problem: Problem, memory: Any) -> SolverStep:
        """Apply F once; twice if an extrapolation does not lower the residual."""
        iterates, steps, residual_before, gram = memory
        products = 0
        if gram is not None:
            limit = _limit(iterates, gram, each_layer=not problem.linear)
            following, changes = apply_and_read(problem, limit)
            products += problem.n_blocks
            if problem.residual(changes) < residual_before:
                return self._finish_step(problem, (limit, following), changes, steps, products, None)
        following, vectors = problem.apply_and_compare(iterates[-1])
        iterates = (*iterates, following)[-(self.degree + 2) :]
        extrapolates_next = (steps + 1) % self.period == 0 and len(iterates) == self.degree + 2
        if extrapolates_next:
            # The next step needs these inner products. From a device they come in one copy with the norms.
            vectors.append(inner_products([subtract(state, iterates[0]) for state in iterates[1:]]))
        numbers = problem.checks.read(vectors)
        changes = [float(norm) for norm in numbers[: problem.n_layers]]
        gram = sum(numbers[-1]) if extrapolates_next else None
        return self._finish_step(problem, iterates, changes, steps, products + problem.n_blocks, gram)

    def _finish_step(
        self, problem: Problem, iterates: Any, changes: list[float], steps: int, products: int, gram: FloatArray | None
    ) -> SolverStep:
        residual = problem.residual(changes)
        memory = (iterates, steps + 1, residual, gram)
        # An extrapolation makes exact layers inexact, so the bounds count only one application of F.
        return SolverStep(iterates[-1], changes, residual, problem.error_bounds(changes, 1), products, memory)


@dataclass(frozen=True)
class ExtrapolatedSweeps:
    """Gauss-Seidel sweeps that are extrapolated as :class:`Extrapolation` does it with the iterates of power iteration.

    A sweep takes about as long as an application of F, and fewer sweeps are needed. The extrapolation, of degree 2, removes slow
    modes, which sweeps keep. Together they took 0.48 to 0.69 times the steps of "quadratic" on six kinds of graphs
    (benchmarks/LOG.md). Before a sweep, the layer sums are corrected as in :class:`graphs.solvers.stationary.GaussSeidel`.

    Parameters
    ----------
    period : int
        Number of sweeps from one extrapolation to the next, at least 3.
    sorts_nodes : bool
        Whether sweeps take the nodes of a layer in the topological order of its strongly connected components. Otherwise they
        take them in the order of their numbers or, of up to 3 MiB of edges, sorted by their numbers of incoming edges within
        windows of 128 nodes; neither takes a search.
    """

    period: int = 6
    sorts_nodes: bool = True
    name: str = "gauss-seidel-quadratic"

    def __post_init__(self) -> None:
        if self.period < 3:
            raise GraphError(f"expected a period of at least 3, got {self.period!r}")

    def begin(self, problem: Problem, start: State, tol: float) -> Any:
        """Return the memory of the first step.

        It holds that of :meth:`Extrapolation.begin`, the part of the scores that teleports, and whether to aggregate.
        """
        # The problem of modified PageRank has no gamma. It is always acyclic, so that no step uses this product.
        return ((start,), 0, np.inf, None), total_scores(start) * (1.0 - getattr(problem, "gamma", 0.0)), True

    def step(self, problem: LinearProblem, memory: Any) -> SolverStep:
        """Sweep once; twice if an extrapolation does not lower the residual. If the graph is acyclic, one sweep is exact."""
        (iterates, steps, residual_before, gram), teleport_mass, aggregates = memory
        if problem.acyclic:
            return replace(LayerSweep().step(problem, iterates[-1]), memory=memory)
        products = 0
        if gram is not None:
            limit = _limit(iterates, gram, each_layer=False)
            swept, norms = problem.sweep_and_compare(
                limit, teleport_mass, aggregates=True, sorts_nodes=self.sorts_nodes
            )
            numbers = problem.checks.read([swept.residual, *norms])
            products += problem.n_blocks
            if float(numbers[0]) < residual_before:
                kept = (limit, swept.state), steps + 1, float(numbers[0]), None
                return _outcome(problem, swept, numbers, products, (kept, swept.teleport_mass, True))
        swept, norms = problem.sweep_and_compare(
            iterates[-1], teleport_mass, aggregates=aggregates, sorts_nodes=self.sorts_nodes
        )
        vectors = [swept.residual, *norms]
        iterates = (*iterates, swept.state)[-4:]
        extrapolates_next = (steps + 1) % self.period == 0 and len(iterates) == 4
        if extrapolates_next:
            vectors.append(inner_products([subtract(state, iterates[0]) for state in iterates[1:]]))
        numbers = problem.checks.read(vectors)
        residual = float(numbers[0])
        # Correcting the layer sums is sure to help only near the solution, see GaussSeidel.
        helped = not aggregates or residual <= problem.gamma * residual_before
        kept = iterates, steps + 1, residual, sum(numbers[-1]) if extrapolates_next else None
        return _outcome(problem, swept, numbers, products + problem.n_blocks, (kept, swept.teleport_mass, helped))


def _outcome(
    problem: LinearProblem, swept: SweptState, numbers: Sequence[Any], products: int, memory: Any
) -> SolverStep:
    """Make a step of a sweep; `numbers` are its residual, and the changes of the layers."""
    residual, *changes = (float(number) for number in numbers[: problem.n_layers + 1])
    bounds = problem.residual_bounds(residual)
    return SolverStep(swept.state, changes, residual, bounds, products, memory, is_image=False)


def _limit(iterates: tuple[State, ...], gram: FloatArray, *, each_layer: bool) -> State:
    """Compute the limit that the iterates would have if their error consisted of as many modes as there are iterates but two.

    `gram` holds the inner products of the differences between the later iterates and the first.
    """
    later = iterates[1:]
    coefficients = np.append(-np.linalg.lstsq(gram[:-1, :-1], gram[:-1, -1], rcond=1e-12)[0], 1.0)
    weights = np.cumsum(coefficients[::-1])[::-1]
    if not np.isfinite(weights).all() or abs(weights.sum()) < 1e-12:
        return iterates[-1]
    limit = combine((weights / weights.sum()).tolist(), later)
    return normalise_state([vector.clip(0.0) for vector in limit], each_layer)


@dataclass(frozen=True)
class AndersonMixing:
    """Power iteration that applies F to a mixture of the last iterates, not to the last iterate alone.

    The weights of the mixture are chosen so that the changes F(x) - x of the iterates x, mixed with these weights, have the
    smallest norm.

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
        change = subtract(image, mixture)
        earlier = history[-self.window :]
        differences = [subtract(change, older) for _, older in earlier]
        # From a device, the norms and all inner products come in one copy.
        *norms, products = problem.checks.read([*layer_norms(change), inner_products([*differences, change])])
        changes = [float(norm) for norm in norms]
        residual = problem.residual(changes)
        if residual > 10.0 * best:
            earlier = ()  # mixing increased the residual too much
        mixture = _mix(image, [state for state, _ in earlier], sum(products))
        # The error bound holds for states of sum 1. A mixture has large terms of both signs: scores can end below zero, and their
        # rounding changes the sum.
        mixture = normalise_state([vector.clip(0.0) for vector in mixture], each_layer=not problem.linear)
        memory = (mixture, (*earlier, (image, change)), min(best, residual))
        return SolverStep(image, changes, residual, problem.error_bounds(changes, 1), problem.n_blocks, memory)


def _mix(image: State, earlier: list[State], gram: FloatArray) -> State:
    """Mix `image`, which is F(x), with `earlier`, the images F(y) of earlier iterates y.

    `gram` holds the inner products of the differences (F(x) - x) - (F(y) - y) of all y with each other; its last row and column
    hold their inner products with F(x) - x.
    """
    scale = np.sqrt(np.diagonal(gram)[:-1])
    if not earlier or not (scale > 0).all():
        return image
    weights = np.linalg.lstsq(gram[:-1, :-1] / np.outer(scale, scale), gram[:-1, -1] / scale, rcond=1e-10)[0] / scale
    return combine([1.0, *(-weights).tolist()], [image, *(subtract(image, older) for older in earlier)])


NAMES: Mapping[str, Callable[[], Solver]] = {
    "aitken": lambda: Extrapolation(degree=1),
    "quadratic": lambda: Extrapolation(degree=2),
    "gauss-seidel-quadratic": ExtrapolatedSweeps,
    "anderson": AndersonMixing,
}
