"""Weighted and modified PageRank of layered graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphs.backends import Backend, make_backend
from graphs.blocks import as_numpy
from graphs.errors import GraphError
from graphs.layer_maps import GraphMap, ModifiedMap, WeightedMap
from graphs.layered import LayeredGraph
from graphs.operators import Vector
from graphs.result import Degenerate, RankResult
from graphs.solvers import LayerSweep, PowerIteration, Solver, check_iteration, warn_unconverged
from graphs.transition import check_share, normalise

if TYPE_CHECKING:
    import torch

__all__ = ["modified_pagerank", "weighted_pagerank"]


def weighted_pagerank(
    graph: LayeredGraph,
    gamma: float = 0.5,
    theta: float = 1.0,
    solver: Literal["power", "sweep"] | Solver = "sweep",
    backend: Literal["scipy", "torch", "dense", "auto"] = "auto",
    device: str | torch.device | None = None,
    dtype: str = "float64",
    tol: float = 1e-12,
    max_iter: int = 1000,
) -> RankResult:
    """Weighted PageRank of a layered graph.

    ``r_l = N(gamma P_l r_{l-1} + (1 - gamma) a_l / sum(a_l))`` with
    ``P_l = theta W_l Ds^-1 + (1 - theta) 1[W_l != 0] Dk^-1`` and ``r_0 = a_0 / sum(a_0)``.

    Parameters
    ----------
    graph : LayeredGraph
        L blocks, L+1 layers.
    gamma : float
        Damping, 0..1: the share of a node's score that comes through the graph. 0 leaves the
        activations alone, 1 the graph alone.
    theta : float
        Share of the edge weights against the bare edges, 0..1.
    solver : {"sweep", "power"} or Solver
        One exact pass in layer order, or power iteration. Both reach the same scores. A Solver object
        brings its own tolerance and iterations.
    backend : {"auto", "scipy", "torch", "dense"}
        Explicit CSR on scipy or torch, dense bands, or the cheapest for each block.
    device : str or torch.device, optional
        Where torch computes; by default where the weights lie.
    dtype : {"float64", "float32"}
        Of the computation; float32 keeps the tolerance above 8 eps.
    tol : float
        Absolute L1 tolerance of the power iteration.
    max_iter : int
        Steps of the power iteration at the most.

    Returns
    -------
    RankResult
        Scores of every layer, each of sum 1.

    Raises
    ------
    GraphError
        Parameters out of range, unknown names, NaN or Inf in the weights.

    Notes
    -----
    Cost: two reads of every block for a sweep (strengths, product); L + 1 for power iteration at
    theta = 1. Memory above the weights, for a sweep: O(nodes), and one block in CSR form (or one band of
    it). Power iteration keeps what it converts of stored blocks (another dtype, another device); dense
    blocks it converts anew at every step on the backends "scipy" and "torch": call
    ``graph.with_csr()`` first where memory allows.

    On "auto" and "dense", numpy arrays are multiplied by torch if it has been imported, else by numpy;
    the scores agree to round-off.

    Source: LLM-Rank (arXiv 2410.13299), equation for weighted PageRank.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 2.0]]], [1, 1], [[1, 1]])
    >>> weighted_pagerank(graph, gamma=1.0).scores[1]
    array([0.25, 0.75])
    """
    gamma, theta = check_share("gamma", gamma), check_share("theta", theta)
    return _rank(
        graph,
        lambda backend: WeightedMap(graph, backend, gamma, theta),
        "weighted pagerank",
        {"gamma": gamma, "theta": theta},
        solver,
        make_backend(backend, device, dtype, graph),
        tol,
        max_iter,
    )


def modified_pagerank(
    graph: LayeredGraph,
    solver: Literal["power", "sweep"] | Solver = "sweep",
    backend: Literal["scipy", "torch", "dense", "auto"] = "auto",
    device: str | torch.device | None = None,
    dtype: str = "float64",
    tol: float = 1e-12,
    max_iter: int = 1000,
    zero_lowest: float = 0.0,
) -> RankResult:
    """Modified PageRank of a layered graph: ``r_l = N((W_l r_{l-1}) * a_l)``.

    Parameters
    ----------
    graph, solver, backend, device, dtype, tol, max_iter
        As for :func:`weighted_pagerank`.
    zero_lowest : float
        Before every step the ``int(zero_lowest * n)`` lowest scores of the previous layer count as
        zero (the reported scores keep them), 0..1.

    Returns
    -------
    RankResult
        Scores of every layer, each of sum 1. No contraction is known for this map, so the error
        bound is 0 after L steps and inf before.

    Raises
    ------
    GraphError
        As for :func:`weighted_pagerank`.

    Notes
    -----
    Cost: one read of every block for a sweep. Source: LLM-Rank (arXiv 2410.13299), modified PageRank.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 1.0]]], [1, 1], [[2, 1]])
    >>> modified_pagerank(graph).scores[1]
    array([0.5, 0.5])
    """
    zero_lowest = check_share("zero_lowest", zero_lowest)
    return _rank(
        graph,
        lambda backend: ModifiedMap(graph, backend, zero_lowest),
        "modified pagerank",
        {"zero_lowest": zero_lowest},
        solver,
        make_backend(backend, device, dtype, graph),
        tol,
        max_iter,
    )


def _rank(
    graph: LayeredGraph,
    make_map: Callable[[Backend], GraphMap],
    method: str,
    parameters: dict[str, Any],
    solver: str | Solver,
    backend: Backend,
    tol: float,
    max_iter: int,
) -> RankResult:
    start = perf_counter()
    chosen = _layered_solver(graph, solver, backend, tol, max_iter)
    layers = make_map(backend)
    setup = perf_counter() - start
    solution = chosen.solve(layers)
    if solution.stop_reason == "max_iter":
        last = solution.residuals[-1] if solution.residuals else float("inf")
        warn_unconverged(solution.iterations, last, solution.tolerance, frames=3)
    scores = tuple(backend.arithmetic.to_numpy(vector) for vector in solution.vectors)
    return RankResult(
        scores=scores,
        names=graph.names,
        iterations=solution.iterations,
        residuals=np.asarray(solution.residuals, dtype=np.float64),
        converged=solution.stop_reason != "max_iter",
        stop_reason=solution.stop_reason,
        error_bound=solution.error_bound,
        tolerance=solution.tolerance,
        solver=chosen.name,
        backend=backend.name,
        method=method,
        parameters=parameters,
        block_products=solution.block_products,
        setup_seconds=setup,
        solve_seconds=solution.seconds,
        degenerate=tuple(Degenerate(layer, reason) for layer, reason in sorted(layers.degenerate.items())),
    )


def _layered_solver(graph: LayeredGraph, solver: str | Solver, backend: Backend, tol: float, max_iter: int) -> Solver:
    tol, max_iter = check_iteration(tol, max_iter)
    if isinstance(solver, str) and solver == "sweep":
        return LayerSweep()
    if isinstance(solver, str) and solver == "power":
        return PowerIteration(tol=tol, max_iter=max_iter)
    if isinstance(solver, str) or not hasattr(solver, "solve"):
        raise GraphError(f"unknown solver {solver!r}; expected 'sweep', 'power' or a Solver object")
    if isinstance(solver, PowerIteration):
        tol, max_iter = check_iteration(solver.tol, solver.max_iter)
        start = None if solver.start is None else _start(graph, solver.start, backend)
        return replace(solver, tol=tol, max_iter=max_iter, start=start)
    return solver


def _start(graph: LayeredGraph, start: Any, backend: Backend) -> list[Vector]:
    """A user's first iterate, validated and normalised layer by layer."""
    vectors = [np.asarray(as_numpy(vector), dtype=np.float64) for vector in start]
    if [vector.shape for vector in vectors] != [(size,) for size in graph.layers]:
        raise GraphError(
            f"start: expected {len(graph.layers)} vectors of sizes {graph.layers}, got shapes "
            f"{tuple(vector.shape for vector in vectors)}"
        )
    for layer, vector in enumerate(vectors):
        if not np.isfinite(vector).all() or (vector < 0).any() or vector.sum() <= 0:
            raise GraphError(f"start: layer {layer} needs finite, non-negative numbers with a positive sum")
    return [normalise(backend.arithmetic.vector(vector)).vector for vector in vectors]
