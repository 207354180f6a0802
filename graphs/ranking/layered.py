"""Weighted and modified PageRank of layered graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from graphs.checks import check_share
from graphs.linalg.backends import BackendName, make_backend
from graphs.ranking.layered_problem import ModifiedPageRankProblem, WeightedPageRankProblem
from graphs.ranking.solve import check_start, solve_for_rank
from graphs.solvers import LayerSweep, Solver, SolverProgress, check_stopping_criteria, solver_by_name
from graphs.solvers.certificate import KeepHighest, check_keep
from graphs.solvers.result import RankResult
from graphs.structures.layered import LayeredGraph, check_layered

if TYPE_CHECKING:
    import torch

__all__ = ["modified_pagerank", "weighted_pagerank"]


def weighted_pagerank(
    graph: LayeredGraph,
    gamma: float = 0.5,
    theta: float = 1.0,
    solver: Literal["auto", "sweep", "power", "gauss-seidel", "aitken", "quadratic", "anderson"] | Solver = "sweep",
    backend: BackendName = "auto",
    device: str | torch.device | None = None,
    dtype: str = "float64",
    tol: float = 1e-12,
    max_iter: int = 1000,
    *,
    start: RankResult | Sequence[Any] | None = None,
    callback: Callable[[SolverProgress], Any] | None = None,
    keep: KeepHighest | None = None,
) -> RankResult:
    """Rank the nodes of a layered graph by weighted PageRank.

    ``r_l = N(gamma P_l r_{l-1} + (1 - gamma) a_l / sum(a_l))`` with
    ``P_l = theta W_l Ds^-1 + (1 - theta) 1[W_l != 0] Dk^-1`` and ``r_0 = a_0 / sum(a_0)``. r_l holds the scores of layer l, a_l
    its activations, and W_l is the block of edge weights into it. N scales to sum 1. Ds and Dk are diagonal, with the
    out-strengths (sums of edge weights) and the out-degrees of the source nodes.

    Parameters
    ----------
    graph : LayeredGraph
        L blocks, L+1 layers.
    gamma : float
        Damping, 0..1: the share of a score that comes along edges.
    theta : float
        Share of the first term of P_l, in which scores follow edge weights, 0..1. In the second term they follow bare edges: all
        edges of a source count the same.
    solver : str or Solver
        "sweep", "auto" and "gauss-seidel" take one pass in layer order, which is exact. "power" is exact after L steps. The other
        solvers are for comparison.
    backend : {"auto", "scipy", "torch", "dense"}
        "scipy" and "torch" multiply blocks in CSR form, "dense" multiplies dense weights without a copy, and "auto" chooses
        the cheapest form for each block.
    device : str or torch.device, optional
        By default the device of the first dense torch weights, else the CPU; for "scipy" always the CPU.
    dtype : {"float64", "float32"}
        The dtype of the scores; with float32 the tolerance is at least 8 eps.
    tol : float
        Absolute L1 residual (the largest of all layers) at which an iteration stops.
    max_iter : int
        Largest number of steps. A solver that has not converged by then warns and returns its last iterate.
    start : RankResult or sequence of L+1 arrays, optional
        First iterate (a warm start), of positive sum in every layer; r_0 replaces its layer 0. Uniform by default.
    callback : callable, optional
        Called with a :class:`graphs.solvers.SolverProgress` after every step; the solver stops if it returns True.
    keep : KeepHighest, optional
        Stop as soon as it is certain which nodes have the highest scores, and return the certificate.

    Returns
    -------
    RankResult
        Scores by layer, of sum 1 in every layer.

    Raises
    ------
    GraphError
        A parameter is out of range, a name is unknown, `start` or `keep` does not fit the graph, the solver or the device
        cannot be used, or the weights hold NaN or Inf, or overflow.

    Notes
    -----
    Cost: two reads of every block for a sweep, L + 1 for power iteration; theta < 1 adds at least one. A backend that multiplies
    dense weights in CSR form stores a CSR copy: of one block at a time in a sweep, of all blocks in an iteration.

    The error of r_l is at most gamma times the error that r_{l-1} had when r_l was computed. There is an exception: a dangling
    source of block l (a node without edges) loses its score, so N rescales layer l. Then no bound is known until r_l is exact.

    Source: LLM-Rank (arXiv 2410.13299), equation for weighted PageRank.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 2.0]]], [1, 1], [[1, 1]])
    >>> weighted_pagerank(graph, gamma=1.0).scores[1]
    array([0.25, 0.75])
    """
    gamma, theta = check_share("gamma", gamma), check_share("theta", theta)
    started = perf_counter()
    _check_kinds(graph, keep)
    chosen_solver, criteria = solver_by_name(solver), check_stopping_criteria(tol, max_iter, callback)
    chosen_backend = make_backend(backend, device, dtype, graph.blocks)
    problem = WeightedPageRankProblem(graph, chosen_backend, _products(chosen_solver, graph, max_iter), gamma, theta)
    return solve_for_rank(
        problem,
        chosen_solver,
        None if start is None else problem.start_from(check_start(start, graph.layer_sizes, None, each_layer=True)),
        criteria,
        None if keep is None else keep.check(graph.layer_sizes),
        perf_counter() - started,
        names=graph.names,
        method="weighted pagerank",
        parameters={"gamma": gamma, "theta": theta},
    )


def modified_pagerank(
    graph: LayeredGraph,
    solver: Literal["auto", "sweep", "power", "gauss-seidel", "aitken", "quadratic", "anderson"] | Solver = "sweep",
    backend: BackendName = "auto",
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
    """Rank the nodes of a layered graph by modified PageRank: ``r_l = N((W_l r_{l-1}) * a_l)``, ``r_0 = a_0 / sum(a_0)``.

    N, W_l and a_l are as in :func:`weighted_pagerank`. Cost: one read of every block for a sweep. Source: LLM-Rank (arXiv
    2410.13299), modified PageRank.

    Parameters
    ----------
    graph, solver, backend, device, dtype, tol, max_iter, start, callback, keep
        As for :func:`weighted_pagerank`.
    zero_lowest : float
        Share of a layer's n scores, 0..1. The lowest ``int(zero_lowest * n)`` scores count as zero in the step to the next layer.
        The result still reports these scores.

    Returns
    -------
    RankResult
        Scores by layer, of sum 1 in every layer. The error bound is inf until the scores are exact, and then 0.

    Raises
    ------
    GraphError
        As for :func:`weighted_pagerank`.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 1.0]]], [1, 1], [[2, 1]])
    >>> modified_pagerank(graph).scores[1]
    array([0.5, 0.5])
    """
    zero_lowest = check_share("zero_lowest", zero_lowest)
    started = perf_counter()
    _check_kinds(graph, keep)
    chosen_solver, criteria = solver_by_name(solver), check_stopping_criteria(tol, max_iter, callback)
    chosen_backend = make_backend(backend, device, dtype, graph.blocks)
    problem = ModifiedPageRankProblem(graph, chosen_backend, _products(chosen_solver, graph, max_iter), zero_lowest)
    return solve_for_rank(
        problem,
        chosen_solver,
        None if start is None else problem.start_from(check_start(start, graph.layer_sizes, None, each_layer=True)),
        criteria,
        None if keep is None else keep.check(graph.layer_sizes),
        perf_counter() - started,
        names=graph.names,
        method="modified pagerank",
        parameters={"zero_lowest": zero_lowest},
    )


def _check_kinds(graph: Any, keep: Any) -> None:
    check_layered(graph)
    if keep is not None:
        check_keep(keep)


def _products(solver: Solver | None, graph: LayeredGraph, max_iter: int) -> int:
    """Estimate how often every block will be multiplied."""
    return 1 if solver is None or isinstance(solver, LayerSweep) else min(len(graph.blocks), max_iter)
