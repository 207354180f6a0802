"""The loop that runs a solver and records its steps, until one of the stopping criteria holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray
from graphs.linalg.layer_vectors import State
from graphs.solvers.certificate import Certificate
from graphs.solvers.problem import Problem, Solver, SolverStep
from graphs.solvers.result import StopReason

__all__ = [
    "Solution",
    "SolverProgress",
    "StoppingCriteria",
    "attainable_tolerance",
    "check_stopping_criteria",
    "solve",
]


@dataclass(frozen=True)
class SolverProgress:
    """The state of a solver after a step, as a callback receives it.

    Attributes
    ----------
    iteration : int
        Number of steps so far.
    residual, error_bound : float
        Residual and error bound after this step, as in :class:`graphs.RankResult`.
    layer_residuals, layer_bounds : list of float
        L1 change and error bound of every layer.
    block_products : int
        Block products so far.
    seconds : float
        Time since the start of the first step, callbacks included.
    scores : callable
        Returns copies of the current scores, one array for each layer.
    """

    iteration: int
    residual: float
    error_bound: float
    layer_residuals: list[float]
    layer_bounds: list[float]
    block_products: int
    seconds: float
    scores: Callable[[], tuple[FloatArray, ...]]


@dataclass(frozen=True)
class StoppingCriteria:
    """The conditions under which the loop stops.

    Attributes
    ----------
    tol : float
        Absolute L1 residual at which the loop stops.
    max_iter : int
        Largest number of steps.
    callback : callable, optional
        Called with a :class:`SolverProgress` after every step; the loop stops if it returns True.
    certify : callable, optional
        A function like :meth:`graphs.solvers.certificate.KeepHighest.certificate`, called after every step; the loop stops if the
        certificate that it returns is certified.
    """

    tol: float = 1e-12
    max_iter: int = 1000
    callback: Callable[[SolverProgress], Any] | None = None
    certify: Callable[..., Certificate] | None = None


@dataclass(frozen=True)
class Solution:
    """The last state of the loop, with the record of its steps as in :class:`graphs.RankResult`."""

    state: State
    residuals: FloatArray
    layer_residuals: FloatArray
    error_bounds: FloatArray
    layer_bounds: tuple[float, ...]
    step_products: npt.NDArray[np.int64]
    step_seconds: FloatArray
    stop_reason: StopReason
    tolerance: float
    certificate: Certificate | None


def attainable_tolerance(tol: float, dtype: str) -> float:
    """Return the tolerance, but in float32 at least 8 eps, because rounding can keep the residual above a lower tolerance.

    Examples
    --------
    >>> attainable_tolerance(1e-12, "float64"), attainable_tolerance(1e-12, "float32") > 1e-7
    (1e-12, True)
    """
    return max(tol, 8.0 * float(np.finfo(np.float32).eps)) if dtype == "float32" else tol


def check_stopping_criteria(tol: Any, max_iter: Any, callback: Any) -> StoppingCriteria:
    """Check a user's stopping criteria, and raise a GraphError that names a wrong one.

    Examples
    --------
    >>> check_stopping_criteria(1e-9, 50, None)
    StoppingCriteria(tol=1e-09, max_iter=50, callback=None, certify=None)
    """
    try:
        tolerance = float(tol) if isinstance(tol, (int, float, np.floating)) else math.nan
    except OverflowError:
        tolerance = math.nan
    if not tolerance >= 0.0:
        raise GraphError(f"tol must be a number >= 0 (absolute L1 residual), got {tol!r}")
    if not (isinstance(max_iter, (int, np.integer)) and max_iter >= 1):
        raise GraphError(f"max_iter must be an integer >= 1, got {max_iter!r}")
    if callback is not None and not callable(callback):
        raise GraphError(f"callback must be a function of a SolverProgress, got {callback!r}")
    return StoppingCriteria(tolerance, int(max_iter), callback)


def solve(
    problem: Problem,
    solver: Solver,
    start: State,
    criteria: StoppingCriteria,
    to_scores: Callable[[State], tuple[FloatArray, ...]],
) -> Solution:
    """Run a solver until its scores are exact, within the tolerance or certified, or until the callback or `max_iter` stops it.

    Parameters
    ----------
    problem : Problem
    solver : Solver
    start : State
        First iterate.
    criteria : StoppingCriteria
    to_scores : callable
        Converts a state to numpy arrays.

    Returns
    -------
    Solution
        The state after the last step, the record of all steps, and why the loop stopped.

    Raises
    ------
    GraphError
        The solver is not for this problem, or weights, sums or a residual are NaN or Inf.

    Examples
    --------
    >>> from graphs.linalg.backends import make_backend
    >>> from graphs.ranking.layered_problem import WeightedPageRankProblem
    >>> from graphs.structures.layered import LayeredGraph
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 3], [[1]])
    >>> problem = WeightedPageRankProblem(graph, make_backend("auto", None, "float64"), products=1, gamma=0.5, theta=1.0)
    >>> from graphs.solvers.stationary import PowerIteration
    >>> solve(problem, PowerIteration(), problem.start(), StoppingCriteria(), tuple).stop_reason
    'exact'
    """
    tol = attainable_tolerance(criteria.tol, problem.dtype)
    memory = solver.begin(problem, start, tol)
    trace = _Trace()
    row_maxima: list[FloatArray] | None = None
    certificate: Certificate | None = None
    reason: StopReason = "max_iter"  # until another reason stops the loop
    while len(trace.residuals) < criteria.max_iter:
        # NaN and Inf raise an error, in the step or at the end of this loop, so numpy need not warn of them.
        with np.errstate(over="ignore", invalid="ignore"):
            step = solver.step(problem, memory)
        # Make the checks that still wait because the solver did not read any numbers.
        problem.checks.read()
        memory = step.memory
        trace.record(step)
        if step.exact:
            reason = "exact"
        elif step.residual <= tol:
            reason = "tolerance"
        if criteria.certify is not None:
            if step.is_image and row_maxima is None:
                row_maxima = problem.row_maxima()
            maxima = row_maxima if step.is_image else None
            certificate = criteria.certify(to_scores(step.state), step.bounds, maxima, problem.roundoff)
            if certificate.certified and reason == "max_iter":
                reason = "certified"
        if criteria.callback is not None:
            progress = trace.progress(step, partial(to_scores, step.state))
            if criteria.callback(progress) and reason == "max_iter":
                reason = "callback"
        if reason != "max_iter":
            break
        if not math.isfinite(step.residual):
            raise GraphError(
                f"solver {solver.name!r}: expected finite residuals, got {step.residual}; use solver='power', or "
                "dtype='float64'"
            )
    return Solution(
        state=step.state,
        residuals=np.asarray(trace.residuals),
        layer_residuals=np.asarray(trace.layer_residuals),
        error_bounds=np.asarray(trace.error_bounds),
        layer_bounds=tuple(step.bounds),
        step_products=np.asarray(trace.block_products, dtype=np.int64),
        step_seconds=np.asarray(trace.seconds),
        stop_reason=reason,
        tolerance=tol,
        certificate=certificate,
    )


@dataclass
class _Trace:
    """The record of the steps so far."""

    started: float = field(default_factory=perf_counter)
    residuals: list[float] = field(default_factory=list)
    layer_residuals: list[list[float]] = field(default_factory=list)
    error_bounds: list[float] = field(default_factory=list)
    block_products: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def record(self, step: SolverStep) -> None:
        self.residuals.append(step.residual)
        self.layer_residuals.append(step.changes)
        self.error_bounds.append(max(step.bounds))
        self.block_products.append(step.products + (self.block_products[-1] if self.block_products else 0))
        self.seconds.append(perf_counter() - self.started)

    def progress(self, step: SolverStep, scores: Callable[[], tuple[FloatArray, ...]]) -> SolverProgress:
        return SolverProgress(
            iteration=len(self.residuals),
            residual=step.residual,
            error_bound=self.error_bounds[-1],
            layer_residuals=step.changes,
            layer_bounds=step.bounds,
            block_products=self.block_products[-1],
            seconds=self.seconds[-1],
            scores=scores,
        )
