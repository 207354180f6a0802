"""The loop around a solver: tolerance, trace, callback, certificate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray
from graphs.linalg.layer_vectors import State
from graphs.solvers.certificate import Certificate
from graphs.solvers.problem import Problem, Solver
from graphs.solvers.result import StopReason

__all__ = [
    "Solution",
    "SolverProgress",
    "StoppingCriteria",
    "attainable_tolerance",
    "check_stopping_criteria",
    "solve",
    "warn_unconverged",
]


@dataclass(frozen=True)
class SolverProgress:
    """What a callback sees after every step.

    Attributes
    ----------
    iteration : int
        Steps so far.
    residual, error_bound : float
        Of the answer so far, as in the result.
    layer_residuals, layer_bounds : list of float
        By layer.
    block_products : int
        So far.
    seconds : float
        Since the first step, callbacks included.
    scores : callable
        Returns the answer so far as float arrays by layer (copies).
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
    """When to stop.

    Attributes
    ----------
    tol : float
        Absolute L1 residual.
    max_iter : int
        Steps at the most.
    callback : callable, optional
        Takes a :class:`SolverProgress`; stops the iteration by returning True.
    certify : callable, optional
        As :meth:`graphs.solvers.certificate.KeepHighest.certificate`; the iteration stops once it is certified.
    """

    tol: float = 1e-12
    max_iter: int = 1000
    callback: Callable[[SolverProgress], Any] | None = None
    certify: Callable[..., Certificate] | None = None


@dataclass(frozen=True)
class Solution:
    """What the loop returns; arrays have one entry (or row) a step."""

    state: State
    residuals: FloatArray
    layer_residuals: FloatArray
    error_bounds: FloatArray
    layer_bounds: tuple[float, ...]
    block_products: npt.NDArray[np.int64]
    seconds: FloatArray
    stop_reason: StopReason
    tolerance: float
    certificate: Certificate | None


def attainable_tolerance(tol: float, dtype: str) -> float:
    """The tolerance that a unit-mass vector of this dtype can hold: at least 8 eps in float32.

    Examples
    --------
    >>> attainable_tolerance(1e-12, "float64"), attainable_tolerance(1e-12, "float32") > 1e-7
    (1e-12, True)
    """
    return max(tol, 8.0 * float(np.finfo(np.float32).eps)) if dtype == "float32" else tol


def check_stopping_criteria(tol: Any, max_iter: Any, callback: Any) -> StoppingCriteria:
    """All as they should be, or a GraphError that names the bad one.

    Examples
    --------
    >>> check_stopping_criteria(1e-9, 50, None)
    StoppingCriteria(tol=1e-09, max_iter=50, callback=None, certify=None)
    """
    if not (isinstance(tol, (int, float, np.floating)) and tol >= 0.0):
        raise GraphError(f"tol must be a number >= 0 (absolute L1 residual), got {tol!r}")
    if not (isinstance(max_iter, (int, np.integer)) and max_iter >= 1):
        raise GraphError(f"max_iter must be an integer >= 1, got {max_iter!r}")
    if callback is not None and not callable(callback):
        raise GraphError(f"callback must be callable with a Progress, got {callback!r}")
    return StoppingCriteria(float(tol), int(max_iter), callback)


def solve(
    problem: Problem,
    solver: Solver,
    start: State,
    limits: StoppingCriteria,
    to_scores: Callable[[State], tuple[FloatArray, ...]],
) -> Solution:
    """Step until the answer is exact, within the tolerance or certified, or the steps run out.

    Parameters
    ----------
    problem : Problem
    solver : Solver
    start : State
    limits : StoppingCriteria
    to_scores : callable
        A state as numpy arrays.

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
    tol = attainable_tolerance(limits.tol, problem.dtype)
    memory = solver.begin(problem, start, tol)
    begun = perf_counter()
    residuals: list[float] = []
    layer_residuals: list[list[float]] = []
    bounds: list[float] = []
    products: list[int] = []
    seconds: list[float] = []
    certificate: Certificate | None = None
    caps: list[FloatArray] | None = None
    reason: StopReason = "max_iter"
    while len(residuals) < limits.max_iter:
        # NaN and Inf are looked for where masses are taken; numpy's own warnings would only come before.
        with np.errstate(over="ignore", invalid="ignore"):
            step = solver.step(problem, memory)
        memory, state = step.memory, step.state
        residuals.append(step.residual)
        layer_residuals.append(step.changes)
        bounds.append(float(np.max(step.bounds)))
        products.append(step.products + (products[-1] if products else 0))
        seconds.append(perf_counter() - begun)
        if step.exact:
            reason = "exact"
        elif step.residual <= tol:
            reason = "tolerance"
        if limits.certify is not None:
            if step.is_image and caps is None:
                caps = problem.row_maxima()
            certificate = limits.certify(
                to_scores(state), step.bounds, caps if step.is_image else None, problem.roundoff
            )
            if certificate.certified and reason == "max_iter":
                reason = "certified"
        if limits.callback is not None:
            progress = SolverProgress(
                iteration=len(residuals),
                residual=step.residual,
                error_bound=bounds[-1],
                layer_residuals=step.changes,
                layer_bounds=step.bounds,
                block_products=products[-1],
                seconds=seconds[-1],
                scores=lambda state=state: to_scores(state),  # type: ignore[misc]
            )
            if limits.callback(progress) and reason == "max_iter":
                reason = "callback"
        if reason != "max_iter":
            break
        if not math.isfinite(step.residual):
            raise GraphError(f"solver {solver.name!r} left the finite numbers; use solver='power', or dtype='float64'")
    return Solution(
        state=state,
        residuals=np.asarray(residuals),
        layer_residuals=np.asarray(layer_residuals),
        error_bounds=np.asarray(bounds),
        layer_bounds=tuple(step.bounds),
        block_products=np.asarray(products, dtype=np.int64),
        seconds=np.asarray(seconds),
        stop_reason=reason,
        tolerance=tol,
        certificate=certificate,
    )


def warn_unconverged(solver: str, iterations: int, residual: float, tol: float, frames: int) -> None:
    """Say that the iterations ran out, `frames` calls above this one (the caller of a public door).

    Examples
    --------
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn_unconverged("power", iterations=5, residual=1e-3, tol=1e-9, frames=0)
    >>> str(caught[0].message)[:46]
    'power iteration stopped after max_iter=5 steps'
    """
    warnings.warn(
        f"{solver} iteration stopped after max_iter={iterations} steps with residual {residual:.1e} above the "
        f"tolerance {tol:.1e}; the result is the last iterate (converged=False): raise max_iter or tol",
        RuntimeWarning,
        stacklevel=frames + 1,
    )
