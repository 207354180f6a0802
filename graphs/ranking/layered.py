"""Weighted and modified PageRank of layered graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from graphs.checks import check_share
from graphs.linalg.backends import make_backend
from graphs.ranking.layered_problem import ModifiedPageRankProblem, WeightedPageRankProblem
from graphs.ranking.solve import solve_for_rank, starting_state
from graphs.solvers import LayerSweep, Solver, SolverProgress, check_stopping_criteria, solver_by_name
from graphs.solvers.certificate import KeepHighest
from graphs.solvers.result import RankResult
from graphs.structures.layered import LayeredGraph

if TYPE_CHECKING:
    import torch

__all__ = ["modified_pagerank", "weighted_pagerank"]


def weighted_pagerank(
    graph: LayeredGraph,
    gamma: float = 0.5,
    theta: float = 1.0,
    solver: Literal["auto", "sweep", "power", "gauss-seidel", "aitken", "quadratic", "anderson"] | Solver = "sweep",
    backend: Literal["scipy", "torch", "dense", "auto"] = "auto",
    device: str | torch.device | None = None,
    dtype: str = "float64",
    tol: float = 1e-12,
    max_iter: int = 1000,
    *,
    start: RankResult | Sequence[Any] | None = None,
    callback: Callable[[SolverProgress], Any] | None = None,
    keep: KeepHighest | None = None,
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
    solver : str or Solver
        "sweep" (and "auto"): one exact pass in layer order. "power" is power iteration, exact after L steps; the
        accelerated ones are there to be studied. All reach the same scores.
    backend : {"auto", "scipy", "torch", "dense"}
        Explicit CSR on scipy or torch, dense weights read where they lie, or the cheapest for each block.
    device : str or torch.device, optional
        Where to compute; by default where the weights lie.
    dtype : {"float64", "float32"}
        Of the vectors; float32 keeps the tolerance above 8 eps.
    tol : float
        Absolute L1 residual at which an iteration stops.
    max_iter : int
        Steps at the most; if they run out the last iterate comes back, with a warning.
    start : RankResult or sequence of L+1 arrays, optional
        First iterate, of positive mass in every layer (a warm start); layer 0 is ignored. Uniform by default.
    callback : callable, optional
        Takes a :class:`graphs.solvers.SolverProgress` after every step; stops the iteration by returning True.
    keep : KeepHighest, optional
        Stop as soon as the set of these nodes is certain, and return the certificate.

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
    theta = 1. Memory above the weights, for a sweep: O(nodes), and where backends "scipy" and "torch" meet dense weights
    one block in CSR form. Iterations keep what they convert: there the CSR of the whole graph.

    The error bound of an iterate follows layer by layer: r_l is off by gamma times what r_{l-1} was off when
    r_l was made. It needs no gamma below 1, but that no source dangles; past a block where one does, N is not linear
    and no bound is known until the layer is exact.

    Source: LLM-Rank (arXiv 2410.13299), equation for weighted PageRank.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 2.0]]], [1, 1], [[1, 1]])
    >>> weighted_pagerank(graph, gamma=1.0).scores[1]
    array([0.25, 0.75])
    """
    gamma, theta = check_share("gamma", gamma), check_share("theta", theta)
    begun = perf_counter()
    chosen, limits = solver_by_name(solver), check_stopping_criteria(tol, max_iter, callback)
    engine = make_backend(backend, device, dtype, graph.blocks)
    problem = WeightedPageRankProblem(graph, engine, _products(chosen, graph, max_iter), gamma, theta)
    return solve_for_rank(
        problem,
        chosen,
        None if start is None else problem.split(starting_state(start, graph.layers, None, each_layer=True)),
        limits,
        None if keep is None else keep.check(graph.layers),
        engine,
        perf_counter() - begun,
        names=graph.names,
        method="weighted pagerank",
        parameters={"gamma": gamma, "theta": theta},
    )


def modified_pagerank(
    graph: LayeredGraph,
    solver: Literal["auto", "sweep", "power", "gauss-seidel", "aitken", "quadratic", "anderson"] | Solver = "sweep",
    backend: Literal["scipy", "torch", "dense", "auto"] = "auto",
    device: str | torch.device | None = None,
    dtype: str = "float64",
    tol: float = 1e-12,
    max_iter: int = 1000,
    zero_lowest: float = 0.0,
    *,
    start: RankResult | Sequence[Any] | None = None,
    callback: Callable[[SolverProgress], Any] | None = None,
    keep: KeepHighest | None = None,
) -> RankResult:
    """Modified PageRank of a layered graph: ``r_l = N((W_l r_{l-1}) * a_l)``.

    Parameters
    ----------
    graph, solver, backend, device, dtype, tol, max_iter, start, callback, keep
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
    begun = perf_counter()
    chosen, limits = solver_by_name(solver), check_stopping_criteria(tol, max_iter, callback)
    engine = make_backend(backend, device, dtype, graph.blocks)
    problem = ModifiedPageRankProblem(graph, engine, _products(chosen, graph, max_iter), zero_lowest)
    return solve_for_rank(
        problem,
        chosen,
        None if start is None else problem.split(starting_state(start, graph.layers, None, each_layer=True)),
        limits,
        None if keep is None else keep.check(graph.layers),
        engine,
        perf_counter() - begun,
        names=graph.names,
        method="modified pagerank",
        parameters={"zero_lowest": zero_lowest},
    )


def _products(solver: Solver | None, graph: LayeredGraph, max_iter: int) -> int:
    """About how often every block will be multiplied."""
    return 1 if solver is None or isinstance(solver, LayerSweep) else min(len(graph.blocks), max_iter)
