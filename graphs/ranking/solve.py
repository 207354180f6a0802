"""What all doors share: from a problem and a solver to a RankResult."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from graphs.errors import GraphError
from graphs.linalg.backends import Backend
from graphs.linalg.blocks import FloatArray, as_numpy
from graphs.linalg.layer_vectors import State
from graphs.solvers import Solver, StoppingCriteria, automatic_solver, solve, warn_unconverged
from graphs.solvers.certificate import KeepHighest
from graphs.solvers.problem import Problem
from graphs.solvers.result import DegenerateLayer, RankResult

__all__ = ["solve_for_rank", "starting_state"]


def solve_for_rank(
    problem: Problem,
    solver: Solver | None,
    start: State | None,
    limits: StoppingCriteria,
    keep: KeepHighest | None,
    backend: Backend,
    setup_seconds: float,
    **described: Any,
) -> RankResult:
    """Solve and report; warns the caller of the door that called this if the steps run out.

    Parameters
    ----------
    problem : Problem
    solver : Solver or None
        None chooses.
    start : State or None
        None is the problem's own.
    limits : StoppingCriteria
    keep : KeepHighest or None
        Asks for a certificate.
    backend : Backend
    setup_seconds : float
    **described
        The rest of the result: names, method, parameters, labels.

    Examples
    --------
    >>> from graphs.linalg.backends import make_backend
    >>> from graphs.ranking.layered_problem import WeightedPageRankProblem
    >>> from graphs.structures.layered import LayeredGraph
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 3], [[1]])
    >>> backend = make_backend("auto", None, "float64", graph.blocks)
    >>> problem = WeightedPageRankProblem(graph, backend, products=1, gamma=0.5, theta=1.0)
    >>> solve_for_rank(problem, None, None, StoppingCriteria(), None, backend, 0.0, names=graph.names, method="by hand").choice
    'no edge leads back, so one pass in layer order is exact'
    """
    choice = ""
    if solver is None:
        solver, choice = automatic_solver(problem)

    def to_scores(state: State) -> tuple[FloatArray, ...]:
        return tuple(backend.arithmetic.to_numpy(vector) for vector in state)

    if keep is not None:
        limits = replace(limits, certify=keep.certificate)
    solution = solve(problem, solver, problem.start() if start is None else start, limits, to_scores)
    if solution.stop_reason == "max_iter":
        warn_unconverged(
            solver.name, len(solution.residuals), float(solution.residuals[-1]), solution.tolerance, frames=3
        )
    degenerate = getattr(problem, "degenerate", {})
    return RankResult(
        scores=to_scores(solution.state),
        residuals=solution.residuals,
        layer_residuals=solution.layer_residuals,
        error_bounds=solution.error_bounds,
        layer_bounds=solution.layer_bounds,
        stop_reason=solution.stop_reason,
        tolerance=solution.tolerance,
        solver=solver.name,
        backend=backend.name,
        choice=choice,
        step_products=solution.block_products,
        step_seconds=solution.seconds,
        setup_seconds=setup_seconds,
        certificate=solution.certificate,
        degenerate=tuple(DegenerateLayer(layer, reason) for layer, reason in sorted(degenerate.items())),
        **described,
    )


def starting_state(start: Any, sizes: tuple[int, ...], columns: int | None, each_layer: bool) -> list[FloatArray]:
    """A user's first iterate by layer, validated; a RankResult (warm start) or one array a layer.

    Parameters
    ----------
    start : RankResult or sequence of arrays
        Arrays of shape (n_l,), or (n_l, k) for k columns.
    sizes : tuple of int
    columns : int or None
        Columns wanted; one column serves for all.
    each_layer : bool
        Whether every layer is scaled to mass 1, or the whole.

    Raises
    ------
    GraphError
        Other shapes, negative or non-finite numbers, nothing but zeros.

    Examples
    --------
    >>> starting_state([[1, 1], [3]], (2, 1), columns=None, each_layer=True)
    [array([0.5, 0.5]), array([1.])]
    """
    given = start.scores if isinstance(start, RankResult) else start
    vectors = [np.asarray(as_numpy(vector), dtype=np.float64) for vector in given]
    if isinstance(start, RankResult):
        # Mixing and Krylov methods stopped early may leave scores a little below zero.
        vectors = [np.maximum(vector, 0.0) for vector in vectors]
    shapes = [(size,) for size in sizes], [(size, columns) for size in sizes]
    if [vector.shape for vector in vectors] not in shapes:
        raise GraphError(
            f"start: expected {len(sizes)} vectors of sizes {sizes}, got shapes {tuple(vector.shape for vector in vectors)}"
        )
    for layer, vector in enumerate(vectors):
        empty = each_layer and vector.sum() <= 0
        if not np.isfinite(vector).all() or (vector < 0).any() or empty:
            raise GraphError(f"start: layer {layer} needs finite, non-negative numbers with a positive sum")
    if columns is not None:
        vectors = [np.repeat(v[:, None], columns, axis=1) if v.ndim == 1 else v for v in vectors]
    if each_layer:
        return [np.asarray(vector / vector.sum(axis=0)) for vector in vectors]
    total = np.sum([vector.sum(axis=0) for vector in vectors], axis=0)
    if (total <= 0).any():
        raise GraphError("start: expected a positive sum, got zeros")
    return [np.asarray(vector / total) for vector in vectors]
