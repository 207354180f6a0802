"""PageRank of any digraph, with cycles or dangling nodes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphs.checks import check_share
from graphs.errors import GraphError
from graphs.linalg.backends import make_backend
from graphs.linalg.blocks import FloatArray
from graphs.ranking.digraph_problem import DigraphProblem
from graphs.ranking.solve import solve_for_rank, starting_state
from graphs.solvers import LayerSweep, Solver, SolverProgress, SparseLU, check_stopping_criteria, solver_by_name
from graphs.solvers.certificate import KeepHighest
from graphs.solvers.result import RankResult
from graphs.structures.digraph import BlockDigraph, as_digraph, teleport_vector
from graphs.structures.layered import LayeredGraph

if TYPE_CHECKING:
    import networkx
    import torch
    from scipy import sparse

__all__ = ["pagerank"]

# Block products that a graph with cycles is guessed to take, when a block's form is chosen.
GUESSED_PRODUCTS = 30


def pagerank(
    graph: networkx.DiGraph | sparse.csr_array | LayeredGraph | BlockDigraph | Any,
    gamma: float = 0.85,
    teleport: Mapping[Hashable, float] | FloatArray | None = None,
    weight: str | None = "weight",
    solver: str | Solver = "auto",
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
    """PageRank of any digraph, with cycles or dangling nodes.

    ``r = gamma P r + (gamma * dangling mass + 1 - gamma) v``: dangling nodes and the random jump go
    to the teleport vector v.

    Parameters
    ----------
    graph : networkx graph, scipy sparse matrix (n, n), LayeredGraph or BlockDigraph
        In a matrix **row = target, column = source** as everywhere in this package: pass the
        transpose of a source-by-target adjacency matrix. Weights must be non-negative; undirected
        networkx graphs count every edge in both directions. :func:`graphs.residual_graph` and
        :func:`graphs.bidirectional_graph` make graphs with cycles from a layered one.
    gamma : float
        Damping, in [0, 1).
    teleport : mapping from node to weight, (n,) array, or (n, k) array, optional
        Scaled to sum 1; nodes left out of a mapping get 0. By default the graph's activations, every
        layer's scaled to the same mass; uniform where a graph has none. k columns are k ranks (personalised PageRank), found
        together: a step reads the edges once for all of them (but gmres and bicgstab take one column after the other).
    weight : str or None
        networkx edge attribute; None counts every edge as 1.
    solver : str or Solver
        "auto" looks at the structure: without cycles one sweep is exact, else Gauss-Seidel in layer order, or
        power iteration with quadratic extrapolation where there are no layers; the result says what was picked, and why.
        By name: "sweep", "power", "gauss-seidel", "aitken", "quadratic", "anderson", "gmres", "bicgstab", "lu";
        see :mod:`graphs.solvers`.
    backend : {"auto", "scipy", "torch", "dense"}
        How blocks are multiplied, see :func:`graphs.weighted_pagerank`. Edges within a layer (a general
        matrix) are CSR: compiled ("auto"), of scipy, or of torch; torch takes no passes in node order.
    device, dtype
        As for :func:`graphs.weighted_pagerank`.
    tol : float
        Absolute L1 residual of the unit-mass vector. networkx multiplies its `tol` by the number of
        nodes: ``networkx.pagerank(G, tol=t)`` corresponds to ``tol = n * t`` here.
    max_iter : int
        Steps at the most; if they run out the last iterate comes back, with a warning.
    start : RankResult or sequence of arrays, optional
        First iterate, one array a layer: a warm start. Uniform by default.
    callback : callable, optional
        Takes a :class:`graphs.solvers.SolverProgress` after every step; stops the iteration by returning True.
    keep : KeepHighest, optional
        Stop as soon as the set of these nodes is certain, and return the certificate. Not for k columns.

    Returns
    -------
    RankResult
        Scores by layer, of sum 1 over all layers; ``as_dict()`` keys them by node. The error bound holds up to round-off:
        P with its dangling mass given to v is a contraction by gamma in the L1 norm, so an r with
        residual ``||F(r) - r||`` is off by at most ``residual / (1 - gamma)``, and F(r) by gamma times that.

    Raises
    ------
    GraphError
        Empty graph, negative or non-finite weights, a sparse matrix with damaged index arrays, a teleport vector that does not
        fit, a solver that is not for this graph.

    Examples
    --------
    >>> import networkx as nx
    >>> round(pagerank(nx.DiGraph([("a", "b"), ("b", "a"), ("c", "a")])).as_dict()["c"], 3)
    0.05
    """
    begun = perf_counter()
    gamma = check_share("gamma", gamma, below_one=True)
    limits, chosen = check_stopping_criteria(tol, max_iter, callback), solver_by_name(solver)
    digraph = as_digraph(graph, weight)
    jump = teleport_vector(digraph, teleport)
    if keep is not None:
        keep.check(digraph.layers)
        if jump.ndim == 2:
            raise GraphError(f"keep: expected one teleport vector, got {jump.shape[1]}; rank them one at a time")
    inner = any(edges.source == edges.target for edges in digraph.edges)
    if inner and backend == "dense":
        raise GraphError("backend 'dense' is not for edges within a layer; expected 'auto', 'scipy' or 'torch'")
    engine = make_backend(backend, device, dtype, digraph.blocks)
    once = isinstance(chosen, (LayerSweep, SparseLU)) or (chosen is None and digraph.topological[1])
    problem = DigraphProblem(digraph, engine, gamma, jump, 1 if once else GUESSED_PRODUCTS)
    first = None if start is None else starting_state(start, digraph.layers, problem.n_columns, each_layer=False)
    return solve_for_rank(
        problem,
        chosen,
        None if first is None else problem.split(np.concatenate(first)),
        limits,
        keep,
        engine,
        perf_counter() - begun,
        names=digraph.names,
        method="pagerank",
        parameters={"gamma": gamma, "nodes": digraph.nodes},
        labels=digraph.labels,
    )
