"""PageRank of any digraph."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from graphs.checks import check_share
from graphs.errors import GraphError
from graphs.linalg.backends import BackendName, make_backend
from graphs.linalg.blocks import FloatArray
from graphs.ranking.digraph_problem import DigraphProblem
from graphs.ranking.solve import check_start, solve_for_rank
from graphs.solvers import LayerSweep, Solver, SolverProgress, SparseLU, check_stopping_criteria, solver_by_name
from graphs.solvers.certificate import KeepHighest, check_keep
from graphs.solvers.result import RankResult
from graphs.structures.digraph import BlockDigraph, as_digraph, teleport_vector
from graphs.structures.layered import LayeredGraph

if TYPE_CHECKING:
    import networkx
    import torch
    from scipy import sparse

__all__ = ["pagerank"]

# Estimated number of products per block, if a solver needs more than one. By it, the backend chooses dense or CSR form.
ESTIMATED_PRODUCTS = 30


def pagerank(
    graph: networkx.DiGraph | sparse.csr_array | LayeredGraph | BlockDigraph | Any,
    gamma: float = 0.85,
    teleport: Mapping[Hashable, float] | FloatArray | None = None,
    weight: str | None = "weight",
    solver: str | Solver = "auto",
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
    """Rank the nodes of any digraph, also with cycles and dangling nodes.

    ``r = gamma P r + (gamma * d + 1 - gamma) v``, where P holds the edge weights, divided by the sum of all edge weights of their
    source node; d is the sum of the scores of dangling nodes (nodes without outgoing edges), and v the teleport distribution.
    Blocks of a BlockDigraph may have shares, which change P: see :class:`graphs.EdgeBlock`.

    Parameters
    ----------
    graph : networkx graph, scipy sparse matrix (n, n), LayeredGraph or BlockDigraph
        In a matrix **row = target, column = source**: pass the transpose of a source-by-target adjacency matrix. Weights must
        be non-negative; undirected networkx graphs count every edge in both directions. A float matrix in canonical CSR form is
        read where it lies: do not change it before the call returns, in `callback` or another thread either.
    gamma : float
        Damping, in [0, 1).
    teleport : mapping from node to weight, (n,) array, or (n, k) array, optional
        Scaled to sum 1; nodes that a mapping does not name get 0. The default is the graph's activations, scaled so that
        all layers have the same sum, or uniform if the graph has none. k columns give k ranks (personalised PageRank).
    weight : str or None
        networkx edge attribute; None counts every edge as 1.
    solver : str or Solver
        A name: "sweep", "power", "gauss-seidel", "gauss-seidel-quadratic", "aitken", "quadratic", "anderson", "gmres", "bicgstab"
        or "lu"; see :mod:`graphs.solvers`. If "auto" finds no cycles, it takes one sweep, which is exact. Otherwise it takes
        Gauss-Seidel in layer order. If there is only one layer, it takes LU for up to 128 nodes, Gauss-Seidel with quadratic
        extrapolation where the compiled kernels sweep it (from 65,536 edges on, on the CPU), else power iteration with quadratic
        extrapolation.
    backend : {"auto", "scipy", "torch", "dense"}
        Backend of the products, see :func:`graphs.weighted_pagerank`. If there are edges within a layer, "dense" is an error, and
        sweeps are not possible with torch. A matrix or a networkx graph is one layer, so all its edges are within a layer.
    device, dtype
        As for :func:`graphs.weighted_pagerank`.
    tol : float
        Absolute L1 residual, of scores of sum 1, at which the solver stops. networkx multiplies its `tol` by the number of
        nodes: ``networkx.pagerank(G, tol=t)`` corresponds to ``tol = n * t`` here.
    max_iter : int
        Largest number of steps. A solver that has not converged by then returns its last iterate, with a warning.
    start : RankResult or sequence of arrays, optional
        First iterate (a warm start), one array for each layer. Uniform by default. "sweep" and "lu" do not need it.
    callback : callable, optional
        Called with a :class:`graphs.solvers.SolverProgress` after every step; the solver stops if it returns True.
    keep : KeepHighest, optional
        Stop as soon as it is certain which nodes have the highest scores, and return the certificate. An error if `teleport` has
        k columns.

    Returns
    -------
    RankResult
        Scores by layer, of sum 1 over all layers; ``as_dict()`` gives them by node. Error bounds hold up to round-off, because F,
        the right side of the equation, multiplies L1 distances by at most gamma. So the error of r is at most
        ``||F(r) - r|| / (1 - gamma)``, and the error of F(r) is at most gamma times this bound.

    Raises
    ------
    GraphError
        The graph is empty, weights are negative or not finite, index arrays are damaged, `teleport`, `start` or `keep` does not
        fit the graph, a parameter is out of range, a name is unknown, or the solver or the backend cannot rank this graph.

    Examples
    --------
    >>> import networkx as nx
    >>> round(pagerank(nx.DiGraph([("a", "b"), ("b", "a"), ("c", "a")])).as_dict()["c"], 3)
    0.05
    """
    started = perf_counter()
    gamma = check_share("gamma", gamma, below_one=True)
    chosen_solver, criteria = solver_by_name(solver), check_stopping_criteria(tol, max_iter, callback)
    digraph = as_digraph(graph, weight)
    distribution = teleport_vector(digraph, teleport)
    if keep is not None:
        check_keep(keep)
        keep.check(digraph.layer_sizes)
        if distribution.ndim == 2:
            raise GraphError(
                f"keep: expected one teleport vector (n,), got shape {distribution.shape}; rank its columns one at a time"
            )
    if isinstance(backend, str) and backend == "dense" and digraph.has_edges_within_layers:
        raise GraphError("backend 'dense' is not for edges within a layer; expected 'auto', 'scipy' or 'torch'")
    _, layers_are_acyclic = digraph.topological_order
    one_product = isinstance(chosen_solver, (LayerSweep, SparseLU)) or (
        chosen_solver is None and layers_are_acyclic and not digraph.has_edges_within_layers
    )
    products = 1 if one_product else ESTIMATED_PRODUCTS
    problem = DigraphProblem(
        digraph, make_backend(backend, device, dtype, digraph.blocks), gamma, distribution, products
    )
    first = None if start is None else check_start(start, digraph.layer_sizes, problem.n_columns, each_layer=False)
    return solve_for_rank(
        problem,
        chosen_solver,
        None if first is None else problem.split(np.concatenate(first)),
        criteria,
        keep,
        perf_counter() - started,
        names=digraph.names,
        method="pagerank",
        parameters={"gamma": gamma, "nodes": digraph.n_nodes},
        labels=digraph.labels,
    )
