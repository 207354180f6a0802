"""The steps that all ranks share: check the first iterate, run the solver, and build the RankResult."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray
from graphs.linalg.layer_vectors import State, read
from graphs.linalg.validation import as_real
from graphs.ranking.digraph_problem import DigraphProblem
from graphs.ranking.layered_problem import LayeredProblem
from graphs.solvers import Solver, StoppingCriteria, automatic_solver, solve
from graphs.solvers.certificate import KeepHighest
from graphs.solvers.result import DegenerateLayer, RankResult

__all__ = ["check_start", "solve_for_rank"]


def solve_for_rank(
    problem: LayeredProblem | DigraphProblem,
    solver: Solver | None,
    start: State | None,
    criteria: StoppingCriteria,
    keep: KeepHighest | None,
    setup_seconds: float,
    **attributes: Any,
) -> RankResult:
    """Solve a problem and build the result. If `max_iter` stops the solver, it warns, at the line of the caller's caller.

    Without a `solver`, :func:`graphs.solvers.registry.automatic_solver` chooses one. Without a `start`, the problem gives its
    default. `attributes` are the attributes of the result that the solver does not know: names, method, parameters, labels.

    Raises
    ------
    GraphError
        As for :func:`graphs.solvers.iteration.solve`.

    Examples
    --------
    >>> from graphs.linalg.backends import make_backend
    >>> from graphs.ranking.layered_problem import WeightedPageRankProblem
    >>> from graphs.structures.layered import LayeredGraph
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 3], [[1]])
    >>> problem = WeightedPageRankProblem(graph, make_backend("auto", None, "float64"), products=1, gamma=0.5, theta=1.0)
    >>> solve_for_rank(problem, None, None, StoppingCriteria(), None, 0.0, names=graph.names, method="example").solver_reason
    'no edge leads back, so one pass in layer order is exact'
    """
    solver_reason = ""
    if solver is None:
        solver, solver_reason = automatic_solver(problem)

    def to_scores(state: State) -> tuple[FloatArray, ...]:
        return tuple(read(state))

    if keep is not None:
        criteria = replace(criteria, certify=keep.certificate)
    solution = solve(problem, solver, problem.start() if start is None else start, criteria, to_scores)
    if solution.stop_reason == "max_iter":
        warnings.warn(
            f"{solver.name} iteration stopped after max_iter={criteria.max_iter} steps with residual "
            f"{solution.residuals[-1]:.1e} above the tolerance {solution.tolerance:.1e}; the result is the last iterate "
            "(converged=False): raise max_iter or tol",
            RuntimeWarning,
            stacklevel=3,
        )
    degenerate = problem.degenerate if isinstance(problem, LayeredProblem) else {}
    return RankResult(
        scores=to_scores(solution.state),
        residuals=solution.residuals,
        layer_residuals=solution.layer_residuals,
        error_bounds=solution.error_bounds,
        layer_bounds=solution.layer_bounds,
        stop_reason=solution.stop_reason,
        tolerance=solution.tolerance,
        solver=solver.name,
        backend=problem.backend.name,
        solver_reason=solver_reason,
        step_products=solution.step_products,
        step_seconds=solution.step_seconds,
        setup_seconds=setup_seconds,
        certificate=solution.certificate,
        degenerate=tuple(DegenerateLayer(layer, reason) for layer, reason in sorted(degenerate.items())),
        **attributes,
    )


def check_start(start: Any, sizes: tuple[int, ...], columns: int | None, each_layer: bool) -> list[FloatArray]:
    """Check a user's first iterate, and return it scaled to sum 1: one float64 array (n_l,) or (n_l, columns) for each layer.

    If `each_layer`, every layer is scaled to sum 1; else every column is, over all layers together. `columns` is the number of
    columns of the result, or None for arrays without columns. A `start` without columns is repeated in all columns.

    Raises
    ------
    GraphError
        The shapes do not fit, entries are not real, numbers are negative (in a RankResult they count as 0) or not finite, or
        a sum is zero.

    Examples
    --------
    >>> check_start([[1, 1], [3]], (2, 1), columns=None, each_layer=True)
    [array([0.5, 0.5]), array([1.])]
    """
    given = start.scores if isinstance(start, RankResult) else start
    try:
        vectors = [as_real(vector) for vector in given]
    except (TypeError, ValueError) as error:
        raise GraphError(f"start: expected vectors of real numbers, one for each layer, got {error}") from error
    shapes = [(size,) for size in sizes], [(size, columns) for size in sizes]
    if [vector.shape for vector in vectors] not in shapes:
        raise GraphError(
            f"start: expected {len(sizes)} vectors of sizes {sizes}, got shapes {tuple(vector.shape for vector in vectors)}"
        )
    if isinstance(start, RankResult):  # one from a file can be slightly below zero
        vectors = [np.maximum(vector, 0.0) for vector in vectors]
    for layer, vector in enumerate(vectors):
        lacks_sum = each_layer and vector.sum() <= 0
        if not np.isfinite(vector).all() or (vector < 0).any() or lacks_sum:
            raise GraphError(f"start: layer {layer}: expected finite, non-negative numbers with a positive sum")
    if columns is not None:
        vectors = [np.repeat(v[:, None], columns, axis=1) if v.ndim == 1 else v for v in vectors]
    if each_layer:
        return [np.asarray(vector / vector.sum(axis=0)) for vector in vectors]
    total = np.sum([vector.sum(axis=0) for vector in vectors], axis=0)
    if (total <= 0).any():
        raise GraphError("start: expected a positive sum, got zeros; omit it for a uniform start")
    return [np.asarray(vector / total) for vector in vectors]
