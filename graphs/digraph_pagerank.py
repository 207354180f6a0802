"""PageRank of any digraph, with cycles or dangling nodes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from graphs.backends import make_backend
from graphs.blocks import FloatArray, SparseBlock, as_numpy
from graphs.errors import GraphError
from graphs.layered import LayeredGraph
from graphs.result import RankResult, StopReason
from graphs.solvers import check_iteration, contraction_bound, held_tolerance, warn_unconverged
from graphs.transition import Transition, check_share, normalise
from graphs.validation import as_block

if TYPE_CHECKING:
    import networkx
    import torch

__all__ = ["pagerank"]


def pagerank(
    graph: networkx.DiGraph | sparse.csr_array | LayeredGraph | Any,
    gamma: float = 0.85,
    teleport: Mapping[Hashable, float] | FloatArray | None = None,
    weight: str | None = "weight",
    backend: Literal["scipy", "torch"] = "scipy",
    device: str | torch.device | None = None,
    dtype: str = "float64",
    tol: float = 1e-12,
    max_iter: int = 1000,
) -> RankResult:
    """PageRank of any digraph, with cycles or dangling nodes.

    ``r = gamma P r + (gamma * dangling mass + 1 - gamma) v``: dangling nodes and the random jump go
    to the teleport vector v.

    Parameters
    ----------
    graph : networkx graph, scipy sparse matrix (n, n), or LayeredGraph
        In a matrix **row = target, column = source** as everywhere in this package: pass the
        transpose of a source-by-target adjacency matrix. Weights must be non-negative; undirected
        networkx graphs count every edge in both directions.
    gamma : float
        Damping, in [0, 1).
    teleport : mapping from node to weight, or (n,) array, optional
        Scaled to sum 1; nodes left out of a mapping get 0; uniform by default.
    weight : str or None
        networkx edge attribute; None counts every edge as 1.
    backend : {"scipy", "torch"}
        Whose CSR product.
    device, dtype
        As for :func:`weighted_pagerank`.
    tol : float
        Absolute L1 residual of the unit-mass vector. networkx multiplies its `tol` by the number of
        nodes: ``networkx.pagerank(G, tol=t)`` corresponds to ``tol = n * t`` here.
    max_iter : int
        Steps at the most.

    Returns
    -------
    RankResult
        One score vector; ``as_dict()`` keys it by node. The error bound
        ``gamma / (1 - gamma) * residual`` always holds.

    Raises
    ------
    GraphError
        Empty graph, negative or non-finite weights, a teleport vector that does not fit.

    Examples
    --------
    >>> import networkx as nx
    >>> round(pagerank(nx.DiGraph([("a", "b"), ("b", "a"), ("c", "a")])).as_dict()["c"], 3)
    0.05
    """
    start = perf_counter()
    gamma = check_share("gamma", gamma, below_one=True)
    tol, max_iter = check_iteration(tol, max_iter)
    if backend not in ("scipy", "torch"):
        raise GraphError(f"unknown backend {backend!r} for a general digraph; expected 'scipy' or 'torch'")
    digraph = _digraph(graph, weight)
    n_nodes = len(digraph.labels)
    engine = make_backend(backend, device, dtype)
    arithmetic = engine.arithmetic
    vector = arithmetic.vector(_teleport(teleport, digraph.labels))
    operator = arithmetic.csr_operator(SparseBlock(digraph.csr))
    transition = Transition(operator, 1.0, arithmetic)
    held = held_tolerance(tol, arithmetic.dtype)
    setup = perf_counter() - start

    start = perf_counter()
    rank = normalise(vector * 0.0).vector
    residuals: list[float] = []
    reason: StopReason = "max_iter"
    while len(residuals) < max_iter:
        passed = transition.apply(operator, rank)
        # What did not pass is the mass of the dangling nodes; it teleports with the jump.
        following = passed * gamma
        following = following + vector * (1.0 - following.sum())
        residuals.append(float(abs(following - rank).sum()))
        rank = following
        if residuals[-1] <= held:
            reason = "tolerance"
            break
    else:
        warn_unconverged(max_iter, residuals[-1], held, frames=2)
    return RankResult(
        scores=(arithmetic.to_numpy(rank / rank.sum()),),
        names=("digraph",),
        iterations=len(residuals),
        residuals=np.asarray(residuals),
        converged=reason != "max_iter",
        stop_reason=reason,
        error_bound=contraction_bound(residuals[-1], gamma),
        tolerance=held,
        solver="power",
        backend=engine.name,
        method="pagerank",
        parameters={"gamma": gamma, "nodes": n_nodes},
        block_products=len(residuals),
        setup_seconds=setup,
        solve_seconds=perf_counter() - start,
        labels=digraph.labels,
    )


@dataclass(frozen=True)
class _Digraph:
    csr: sparse.csr_array
    labels: tuple[Hashable, ...]


def _digraph(graph: Any, weight: str | None) -> _Digraph:
    labels: tuple[Hashable, ...]
    if isinstance(graph, LayeredGraph):
        csr = graph.to_scipy()
        labels = tuple((layer, k) for layer, size in enumerate(graph.layers) for k in range(size))
    elif hasattr(graph, "adj") and hasattr(graph, "is_directed"):
        import networkx

        labels = tuple(graph)
        if not labels:
            raise GraphError("expected a graph with at least one node, got an empty one")
        try:
            adjacency = networkx.to_scipy_sparse_array(graph, weight=weight, dtype=np.float64, format="csr")
        except (TypeError, ValueError) as error:
            raise GraphError(f"edge attribute {weight!r}: expected real numbers ({error})") from error
        csr = adjacency.T.tocsr()
    elif sparse.issparse(graph):
        csr = sparse.csr_array(graph)
        if csr.ndim != 2 or csr.shape[0] != csr.shape[1] or csr.shape[0] == 0:
            raise GraphError(f"expected a square matrix (n, n) with n > 0, got shape {csr.shape}")
        labels = tuple(range(csr.shape[0]))
    else:
        raise GraphError(
            "expected a networkx graph, a scipy sparse matrix (row = target) or a LayeredGraph, "
            f"got {type(graph).__name__}"
        )
    if csr.nnz and (csr.data < 0).any():
        raise GraphError("edge weights must be non-negative, got negative ones; take absolute values if that is meant")
    return _Digraph(as_block(csr, "graph").to_csr(), labels)


def _teleport(teleport: Any, labels: tuple[Hashable, ...]) -> FloatArray:
    if teleport is None:
        return np.full(len(labels), 1.0 / len(labels))
    if isinstance(teleport, Mapping):
        known = set(labels)
        unknown = [label for label in teleport if label not in known]
        if unknown:
            raise GraphError(f"teleport names nodes that are not in the graph: {unknown[:5]}")
        teleport = [teleport.get(label, 0.0) for label in labels]
    try:
        vector = np.asarray(as_numpy(teleport), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise GraphError(f"teleport: expected real numbers, got {error}") from error
    if vector.shape != (len(labels),):
        raise GraphError(f"teleport: expected shape ({len(labels)},), one number per node, got {vector.shape}")
    if not np.isfinite(vector).all() or (vector < 0).any() or vector.sum() <= 0:
        raise GraphError("teleport: expected finite, non-negative numbers with a positive sum")
    return np.asarray(vector / vector.sum())
