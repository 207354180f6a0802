"""One interface to the PageRank of other libraries, so that a benchmark can treat all of them alike.

All solve the same problem. W is a scipy CSR matrix (n, n), **row = target, column = source**, with
positive float64 weights and no duplicate entries. P is W with every column divided by its sum. v is a
teleport vector of sum 1. Find r of sum 1 with

    r = gamma P r + (gamma * total score of dangling nodes + 1 - gamma) v

A :class:`Peer` builds the library's own graph object from W, solves on it, and translates a target L1 error
of r into the library's own tolerance::

    for peer in available():
        graph = peer.build(csr, v)
        scores = peer.solve(graph, gamma, v, **peer.settings(1e-9, n, gamma))

The translations rest on ``||r_{k+1} - r*||_1 <= gamma / (1 - gamma) * ||r_{k+1} - r_k||_1``, and on
``||r_k - r*||_1 <= 1 / (1 - gamma) * ||r_{k+1} - r_k||_1`` for libraries that return the older of the
two vectors. No residual below 8 eps is asked for, because float64 may not reach it.

`build` uses the input that the library reads fastest. `solve` includes all that the library does on every
call. The environment sets the number of threads: compare under OMP_NUM_THREADS=1 or another number, and
state it. Libraries are imported where they are used. :func:`missing` names those that are not installed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import combinations
from math import ceil, log, sqrt
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse import linalg

from graphs.linalg.blocks import FloatArray

__all__ = ["CORRECT", "PEERS", "Peer", "Probe", "agreement", "available", "diagnose", "faults", "missing", "versions"]

Settings = dict[str, Any]

CORRECT = 1e-8
"""Largest L1 error of scores that are called correct."""

_TIGHT = 1e-16  # an L1 error that no library reaches, so that each takes its tightest setting
_SMALLEST = 8 * float(np.finfo(np.float64).eps)  # smallest L1 residual that rounding lets a step reach, at sum 1


@dataclass(frozen=True)
class Peer:
    """A library's PageRank, or one of its solvers.

    Attributes
    ----------
    name
        Unique among the peers.
    method
        The algorithm, in words.
    library
        Distribution name, as pip knows it.
    build
        ``build(csr, v)``: the library's graph object of a CSR matrix (n, n), row = target.
    solve
        ``solve(graph, gamma, v, **settings)``: scores (n,), float64, normalised as the library does.
    settings
        ``settings(target_l1_error, n, gamma)``: keywords of `solve` that should reach that L1 error,
        or come as near as the library allows. Empty if nothing can be set.
    takes_teleport
        Whether v may differ from the uniform vector. If not, `solve` ignores it.
    takes_tolerance
        Whether accuracy can be chosen.
    threads
        Number of threads: "1", or how the library uses several.
    notes
        How the tolerance translates, and whether the library agrees with the definition above.
    module
        Import name, if it is not `library`.
    """

    name: str
    method: str
    library: str
    build: Callable[[sparse.csr_array, FloatArray], Any]
    solve: Callable[..., FloatArray]
    settings: Callable[[float, int, float], Settings]
    notes: str
    takes_teleport: bool = True
    takes_tolerance: bool = True
    threads: str = "1"
    module: str = ""

    @property
    def installed(self) -> bool:
        return find_spec(self.module or self.library) is not None


# --- tolerances


def _residual(target: float, gamma: float, stale: bool = False) -> float:
    """Return the L1 residual of a power step that bounds the error by `target`, for scores of sum 1."""
    # For gamma < 1/2 a residual above the target is enough. Asking for the target itself costs a step or two.
    share = 1.0 - gamma if stale else (1.0 - gamma) / max(gamma, 1.0 - gamma)
    return max(_SMALLEST, target * share)


def _steps(residual: float, gamma: float) -> int:
    """Return the power steps that reach an L1 residual from any start of sum 1, with a few more for rounding."""
    return 50 + (ceil(log(residual / 2) / log(gamma)) if gamma > 0 else 1)


def _l1_settings(target: float, _n: int, gamma: float) -> Settings:
    tol = _residual(target, gamma)
    return {"tol": tol, "max_iter": _steps(tol, gamma)}


def _stale_l1_settings(target: float, _n: int, gamma: float) -> Settings:
    tol = _residual(target, gamma, stale=True)
    return {"tol": tol, "max_iter": _steps(tol, gamma)}


def _networkx_settings(target: float, n: int, gamma: float) -> Settings:
    settings = _l1_settings(target, n, gamma)
    return {**settings, "tol": settings["tol"] / n}


def _rustworkx_settings(target: float, n: int, gamma: float) -> Settings:
    settings = _stale_l1_settings(target, n, gamma)
    return {**settings, "tol": settings["tol"] / n}


def _l2_settings(target: float, n: int, gamma: float) -> Settings:
    settings = _l1_settings(target, n, gamma)
    return {**settings, "tol": settings["tol"] / sqrt(n)}


def _linear_settings(target: float, n: int, gamma: float) -> Settings:
    """Return the tolerance on the L2 residual of (I - gamma P) x = v.

    ``||x - x*||_1 <= sqrt(n) ||residual||_2 / (1 - gamma)``. The sum of x is at least 1, and scaling it
    to 1 at most doubles the error.
    """
    tol = max(_SMALLEST / 8, target * (1.0 - gamma) / 2) / sqrt(n)
    return {"tol": tol, "max_iter": _steps(tol, gamma)}


def _arpack_settings(target: float, n: int, gamma: float) -> Settings:
    """Return the tolerance on the residual of an eigenvector of L2 norm 1 and L1 norm at least 1; 0 is machine precision."""
    tol = target * (1.0 - gamma) / sqrt(n)
    return {"tol": tol if tol > _SMALLEST / 8 else 0.0}


def _neumann_settings(target: float, _n: int, gamma: float) -> Settings:
    """Return the number of terms of sum_k gamma^k P^k v. After K terms, scaled to sum 1, its error is at most 2 gamma^(K+1).

    ``||P^k v||_1`` does not grow with k, so the other terms are at most the share gamma^(K+1) of the sum.
    """
    return {"max_iter": ceil(log(max(target, _SMALLEST / 8) / 2) / log(gamma)) if gamma > 0 else 1}


def _diteration_settings(target: float, _n: int, gamma: float) -> Settings:
    """Return the tolerance on the remaining fluid over 1 - gamma. The sum of the scores is at least 1 - gamma."""
    tol = target * (1.0 - gamma) / 2
    return {"tol": tol, "max_iter": _steps(max(tol, _SMALLEST), gamma)}


def _nothing_to_set(_target: float, _n: int, _gamma: float) -> Settings:
    return {}


# --- scipy: ten lines that a good user writes


def _strength_shares(csr: sparse.csr_array) -> FloatArray:
    """Return 1 / out-strength, (n,), and 0 for dangling nodes."""
    strength = np.asarray(csr.sum(axis=0), dtype=np.float64).ravel()
    return np.divide(1.0, strength, out=np.zeros_like(strength), where=strength > 0)


def _build_scaled(csr: sparse.csr_array, _v: FloatArray) -> tuple[sparse.csr_array, FloatArray]:
    # To scale the vector instead of the matrix saves a copy. With row = target there is nothing to transpose.
    return _int32(sparse.csr_array(csr)), _strength_shares(csr)


def _build_scaled_columns(csr: sparse.csr_array, _v: FloatArray) -> tuple[sparse.csc_array, FloatArray]:
    return _int32(sparse.csc_array(csr)), _strength_shares(csr)


def _int32(csr: Any) -> Any:
    """Convert the indices to 32 bits if they fit, so that every product reads a third less."""
    if csr.indices.dtype == np.int32 or max(csr.nnz, *csr.shape) > np.iinfo(np.int32).max:
        return csr
    parts = (csr.data, csr.indices.astype(np.int32), csr.indptr.astype(np.int32))
    return type(csr)(parts, shape=csr.shape)


def _solve_power(
    graph: tuple[sparse.sparray, FloatArray], gamma: float, v: FloatArray, tol: float, max_iter: int
) -> FloatArray:
    matrix, shares = graph
    shares = gamma * shares
    rank = v
    for _ in range(max_iter):
        following = matrix @ (shares * rank)
        # The score that did not come along edges, from teleport and dangling nodes, goes to v.
        following += (1.0 - following.sum()) * v
        residual = np.abs(following - rank).sum()
        rank = following
        if residual <= tol:
            break
    return rank


def _solve_gmres(
    graph: tuple[sparse.csr_array, FloatArray], gamma: float, v: FloatArray, tol: float, max_iter: int
) -> FloatArray:
    matrix, shares = graph
    shares = gamma * shares
    operator = linalg.LinearOperator(matrix.shape, matvec=lambda x: x - matrix @ (shares * x), dtype=np.float64)
    # Below this share of ||v|| rounding stops all progress, and GMRES would restart without end.
    solution, _ = linalg.gmres(operator, v, rtol=_SMALLEST / (1.0 - gamma), atol=tol, maxiter=max_iter)
    return np.asarray(solution / solution.sum())


def _build_csc(csr: sparse.csr_array, _v: FloatArray) -> sparse.csc_array:
    columns = _int32(sparse.csc_array(csr))
    # The conversion may return the caller's own arrays, so a new array is scaled.
    scaled = columns.data * np.repeat(_strength_shares(csr), np.diff(columns.indptr))
    return sparse.csc_array((scaled, columns.indices, columns.indptr), shape=csr.shape)


def _solve_lu(graph: sparse.csc_array, gamma: float, v: FloatArray) -> FloatArray:
    system = sparse.csc_array(sparse.eye_array(graph.shape[0], format="csc") - gamma * graph)
    solution = linalg.spsolve(system, v)
    return np.asarray(solution / solution.sum())


# --- networkx, igraph, rustworkx, networkit


def _edges(csr: sparse.csr_array) -> tuple[list[int], list[int], list[float]]:
    """Return source, target and weight of every edge, as the lists that Python APIs read fastest."""
    table = csr.tocoo()
    targets, sources = table.coords
    return sources.tolist(), targets.tolist(), table.data.astype(np.float64, copy=False).tolist()


def _build_networkx(csr: sparse.csr_array, _v: FloatArray) -> Any:
    import networkx

    graph = networkx.DiGraph()
    graph.add_nodes_from(range(csr.shape[0]))
    graph.add_weighted_edges_from(zip(*_edges(csr), strict=True))
    return graph


def _solve_networkx(graph: Any, gamma: float, v: FloatArray, tol: float, max_iter: int) -> FloatArray:
    import networkx

    teleport = dict(enumerate(v.tolist()))
    scores = networkx.pagerank(graph, alpha=gamma, personalization=teleport, tol=tol, max_iter=max_iter)
    return np.fromiter(scores.values(), dtype=np.float64, count=len(scores))


ARPACK_ATTEMPTS = 10


def _build_igraph(csr: sparse.csr_array, _v: FloatArray) -> tuple[Any, list[float]]:
    import igraph

    sources, targets, weights = _edges(csr)
    # An iterator of pairs is read 5 times faster than an array (m, 2), and weights must be a list.
    return igraph.Graph(csr.shape[0], zip(sources, targets, strict=True), directed=True), weights


def _solve_prpack(graph: tuple[Any, list[float]], gamma: float, v: FloatArray) -> FloatArray:
    digraph, weights = graph
    return np.array(digraph.personalized_pagerank(damping=gamma, reset=v.tolist(), weights=weights))


def _solve_igraph_arpack(graph: tuple[Any, list[float]], gamma: float, v: FloatArray, tol: float) -> FloatArray:
    import igraph

    digraph, weights = graph
    options = igraph.ARPACKOptions()
    options.tol = tol
    solve = partial(
        digraph.personalized_pagerank,
        damping=gamma,
        reset=v.tolist(),
        weights=weights,
        implementation="arpack",
        arpack_options=options,
    )
    # It starts from a random vector, and for some of them LAPACK fails. A user would call it again.
    for _ in range(ARPACK_ATTEMPTS - 1):
        with contextlib.suppress(igraph.InternalError):
            return np.array(solve())
    return np.array(solve())


def _build_rustworkx(csr: sparse.csr_array, _v: FloatArray) -> Any:
    import rustworkx

    n_nodes = csr.shape[0]
    # Measured: 0.2 us an edge from a list, 0.02 us an entry from a dense matrix.
    if csr.nnz * 10 >= n_nodes**2:
        return rustworkx.PyDiGraph.from_adjacency_matrix(csr.toarray().T.astype(np.float64, order="C"), null_value=0.0)
    graph = rustworkx.PyDiGraph(node_count_hint=n_nodes, edge_count_hint=csr.nnz)
    graph.add_nodes_from(range(n_nodes))
    graph.extend_from_weighted_edge_list(list(zip(*_edges(csr), strict=True)))
    return graph


def _solve_rustworkx(graph: Any, gamma: float, v: FloatArray, tol: float, max_iter: int) -> FloatArray:
    import rustworkx

    teleport = dict(enumerate(v.tolist()))
    scores = rustworkx.pagerank(
        graph, alpha=gamma, weight_fn=float, personalization=teleport, tol=tol, max_iter=max_iter
    )
    return np.fromiter(scores.values(), dtype=np.float64, count=len(scores))


def _build_networkit(csr: sparse.csr_array, _v: FloatArray) -> Any:
    import networkit

    return networkit.GraphFromCsr(sparse.csr_array(csr.T), directed=True, weighted=True)


def _solve_networkit(graph: Any, gamma: float, _v: FloatArray, tol: float, max_iter: int) -> FloatArray:
    from networkit import centrality

    # Documented as SinkHandling.DISTRIBUTE_SINKS, a name the class of networkit 11 lacks.
    sinks = centrality.SinkHandling.DistributeSinks
    algorithm = centrality.PageRank(graph, damp=gamma, tol=tol, distributeSinks=sinks)
    algorithm.norm = centrality.Norm.L1_NORM
    algorithm.maxIterations = max_iter
    return np.asarray(algorithm.run().scores(asarray=True))


# --- scikit-network, fast-pagerank: scipy matrices, row = source


def _build_adjacency(csr: sparse.csr_array, _v: FloatArray) -> sparse.csr_matrix:
    # Both ask for the older csr_matrix.
    return _int32(sparse.csr_matrix(csr.T))


def _solve_sknetwork(
    graph: sparse.csr_matrix,
    gamma: float,
    v: FloatArray,
    tol: float = 0.0,
    max_iter: int = 10,
    *,
    solver: str,
) -> FloatArray:
    from sknetwork.ranking import PageRank

    ranking = PageRank(damping_factor=gamma, solver=solver, n_iter=max_iter, tol=tol)
    return np.asarray(ranking.fit_predict(graph, v), dtype=np.float64)


def _solve_fast_power(graph: sparse.csr_matrix, gamma: float, v: FloatArray, tol: float, max_iter: int) -> FloatArray:
    import fast_pagerank

    return np.asarray(fast_pagerank.pagerank_power(graph, p=gamma, personalize=v, tol=tol, max_iter=max_iter))


def _solve_fast_exact(graph: sparse.csr_matrix, gamma: float, v: FloatArray) -> FloatArray:
    import fast_pagerank

    return np.asarray(fast_pagerank.pagerank(graph, p=gamma, personalize=v))


# --- the peers

_OPENMP = "OpenMP (OMP_NUM_THREADS)"
_SKNETWORK_SINKS = (
    "Wrong where nodes dangle, a bug: the operator is gamma P x + b * sum(x) with b_i = (1 - gamma * [i has out-edges]) "
    "v_i, which weighs the node that receives the jump where x_j of the node that jumps should be weighed. "
)


def _sknetwork(
    solver: str, method: str, settings: Callable[[float, int, float], Settings], notes: str, threads: str = "1"
) -> Peer:
    return Peer(
        name=f"scikit-network {solver}",
        method=method,
        library="scikit-network",
        module="sknetwork",
        build=_build_adjacency,
        solve=partial(_solve_sknetwork, solver=solver),
        settings=settings,
        takes_teleport=solver != "push",
        takes_tolerance=True,
        threads=threads,
        notes=notes,
    )


PEERS: tuple[Peer, ...] = (
    Peer(
        name="scipy power iteration",
        method="power iteration on scipy's CSR product",
        library="scipy",
        build=_build_scaled,
        solve=_solve_power,
        settings=_l1_settings,
        notes="Ours, the textbook's ten lines. tol: absolute L1 residual.",
    ),
    Peer(
        name="scipy power iteration, CSC",
        method="power iteration on scipy's CSC product",
        library="scipy",
        build=_build_scaled_columns,
        solve=_solve_power,
        settings=_l1_settings,
        notes="Ours, the same lines. scipy's CSC product adds to many sums at a time where CSR waits for one: a third "
        "faster where columns are long and the vectors fit the cache, no faster on a large sparse graph.",
    ),
    Peer(
        name="scipy GMRES",
        method="GMRES(20) on (I - gamma P) x = v, scaled to mass 1",
        library="scipy",
        build=_build_scaled,
        solve=_solve_gmres,
        settings=_linear_settings,
        notes="Ours. tol: absolute L2 residual of the system.",
    ),
    Peer(
        name="scipy spsolve",
        method="sparse LU of I - gamma P (SuperLU, COLAMD), scaled to mass 1",
        library="scipy",
        build=_build_csc,
        solve=_solve_lu,
        settings=_nothing_to_set,
        takes_tolerance=False,
        notes="Ours. Direct: exact to rounding. Fill-in may cost O(n^2) memory and O(n^3) time on graphs with cycles.",
    ),
    Peer(
        name="networkx",
        method="power iteration on scipy's CSR product",
        library="networkx",
        build=_build_networkx,
        solve=_solve_networkx,
        settings=_networkx_settings,
        notes="Stops at an L1 residual below n * tol. Turns the graph into a matrix at every call.",
    ),
    Peer(
        name="igraph PRPACK",
        method="Gauss-Seidel by strongly connected components; dense elimination below 128 nodes",
        library="igraph",
        build=_build_igraph,
        solve=_solve_prpack,
        settings=_nothing_to_set,
        takes_tolerance=False,
        threads=_OPENMP,
        notes="Tolerance fixed at 1e-10 of the L1 error before scaling to mass 1: 2e-10 after it, less with few dangling nodes. "
        "Without cycles it is exact after one sweep. Components of more than 512 nodes are swept by several threads, "
        "whose races change the order of the sweep and not what it converges to.",
    ),
    Peer(
        name="igraph ARPACK",
        method="implicitly restarted Arnoldi",
        library="igraph",
        build=_build_igraph,
        solve=_solve_igraph_arpack,
        settings=_arpack_settings,
        notes="tol: residual relative to an eigenvector of L2 norm 1; 0 is machine precision.",
    ),
    Peer(
        name="networkit",
        method="power iteration",
        library="networkit",
        build=_build_networkit,
        solve=_solve_networkit,
        settings=_l1_settings,
        takes_teleport=False,
        threads=_OPENMP,
        notes="Uniform teleport only: a difference of definition, no bug. With DistributeSinks its dangling nodes are treated as "
        "here; by default their mass leaks and the scores are rescaled. tol: absolute L1 residual under Norm.L1_NORM.",
    ),
    Peer(
        name="rustworkx",
        method="power iteration",
        library="rustworkx",
        build=_build_rustworkx,
        solve=_solve_rustworkx,
        settings=_rustworkx_settings,
        notes="Stops at an L1 residual below n * tol and returns the older vector. Reads the weights through Python and "
        "makes its matrix at every call.",
    ),
    Peer(
        name="fast-pagerank power",
        method="power iteration on scipy's CSR product",
        library="fast-pagerank",
        module="fast_pagerank",
        build=_build_adjacency,
        solve=_solve_fast_power,
        settings=_l2_settings,
        notes="tol: absolute L2 residual, asked for sqrt(n) times smaller than the L1 residual. Scales the matrix at every call.",
    ),
    Peer(
        name="fast-pagerank exact",
        method="sparse LU of I - gamma P (SuperLU, COLAMD), scaled to mass 1",
        library="fast-pagerank",
        module="fast_pagerank",
        build=_build_adjacency,
        solve=_solve_fast_exact,
        settings=_nothing_to_set,
        takes_tolerance=False,
        notes="Direct: exact to rounding, with the fill-in of sparse LU.",
    ),
    _sknetwork(
        "RH",
        "Neumann series by Ruffini-Horner, scaled to mass 1",
        _neumann_settings,
        "No tolerance, a number of terms, which is fixed beforehand: K of them leave 2 gamma^(K+1) of L1 error at most.",
    ),
    _sknetwork(
        "diteration",
        "asynchronous diffusion in float32",
        _diteration_settings,
        "The definition, loosely: float32, an L1 error of 1e-7 at best, on one thread. On several, which is the default, a "
        "bug: threads add to and clear the same entries without atomics and mass is lost, another at every run. On 2 "
        "threads errors of 1e-6 to 1e-2 on a layered graph of 2 M edges, 0.003 to 0.3 on cyclic ones of 150 nodes.",
        threads=_OPENMP,
    ),
    _sknetwork(
        "piteration",
        "power iteration on scipy's CSR product",
        _stale_l1_settings,
        _SKNETWORK_SINKS + "Correct without dangling nodes. tol: L1 residual; returns the older vector.",
    ),
    _sknetwork(
        "lanczos",
        "implicitly restarted Arnoldi (scipy eigs)",
        _arpack_settings,
        _SKNETWORK_SINKS + "Correct without dangling nodes.",
    ),
    _sknetwork(
        "bicgstab",
        "BiCGSTAB on (I - gamma P) x = b, scaled to mass 1",
        _linear_settings,
        _SKNETWORK_SINKS + "Here this is the exact PageRank of another teleport vector, b scaled to mass 1; handing it "
        "v_i / (1 - gamma * [i has out-edges]) undoes that. Without dangling nodes loose: tol goes to scipy's atol alone, "
        "and its rtol stays at the default 1e-5.",
    ),
    _sknetwork(
        "push",
        "residual push in float32",
        _diteration_settings,
        "Wrong on every graph, a bug: pushes (1 - gamma) of a residual where gamma is due and never clears it; out-strengths "
        "are cut to integers, the share an edge gets ignores its weight, and v only scales the first residuals.",
        threads=_OPENMP,
    ),
)


# --- installed libraries


def available() -> tuple[Peer, ...]:
    """Return the peers whose library is installed."""
    return tuple(peer for peer in PEERS if peer.installed)


def missing() -> tuple[str, ...]:
    """Return the libraries that are not installed, by pip's name, each once."""
    return tuple(dict.fromkeys(peer.library for peer in PEERS if not peer.installed))


def versions() -> dict[str, str]:
    """Return the version of every installed library, by pip's name."""
    return {library: version(library) for library in dict.fromkeys(peer.library for peer in available())}


# --- agreement with the definition


def agreement(
    csr: sparse.csr_array,
    gamma: float,
    v: FloatArray,
    reference: FloatArray,
    peers: Iterable[Peer] | None = None,
) -> list[dict[str, Any]]:
    """Compare every peer, at its tightest setting, with a vector that is known to be right.

    Parameters
    ----------
    csr : scipy CSR (n, n)
        Row = target, column = source, positive weights.
    gamma : float
        Damping, in (0, 1).
    v, reference : (n,) float64
        Teleport vector and scores, each of sum 1.
    peers : iterable of Peer, optional
        :func:`available` by default.

    Returns
    -------
    list of dict
        A row for each peer. ``l1_error`` and ``largest_relative_error`` are against `reference`, the worst of
        five solves if threads may race. ``between_runs`` is the largest L1 distance between these solves.
        ``uniform_l1_error`` is the error of a peer without teleport vector against the scores of a uniform
        one. :func:`diagnose` measures ``honours_teleport``, ``honours_dangling`` and ``honours_weights`` on
        small graphs. ``verdict`` is "correct" (L1 error up to :data:`CORRECT`), "loose (...)" (the right
        problem, not solved as well) or "wrong (...)" with the cause. The row also has ``notes``, and the seconds
        of one build and solve, as an order of magnitude only.
    """
    n_nodes = csr.shape[0]
    uniform = np.full(n_nodes, 1.0 / n_nodes)
    needs = {
        "dangling": bool((_strength_shares(csr) == 0).any()),
        "weights": bool((csr.data != csr.data[0]).any()) if csr.nnz else False,
        "teleport": bool((v != v[0]).any()),
    }
    rows = []
    for peer in available() if peers is None else peers:
        lacks = _lacks(peer)
        row: dict[str, Any] = {
            "name": peer.name,
            "library": peer.library,
            **{f"honours_{need}": need not in lacks for need in needs},
            "notes": peer.notes,
        }
        settings = peer.settings(_TIGHT, n_nodes, gamma)
        try:
            start = perf_counter()
            graph = peer.build(csr, v)
            row["build_seconds"] = perf_counter() - start
            start = perf_counter()
            solved = [peer.solve(graph, gamma, v, **settings)]
            row["solve_seconds"] = perf_counter() - start
            if peer.threads != "1":
                solved += [peer.solve(graph, gamma, v, **settings) for _ in range(_TRIES - 1)]
        except Exception as error:  # a library may raise anything; that it fails is the result
            rows.append({**row, "l1_error": np.nan, "verdict": f"wrong (raises {type(error).__name__}: {error})"})
            continue
        scores = max(solved, key=lambda vector: _l1(vector, reference))
        row["l1_error"] = _l1(scores, reference)
        row["between_runs"] = _scatter(solved)
        row["largest_relative_error"] = _largest_relative(scores, reference)
        if not peer.takes_teleport:
            plain = _solve_power(_build_scaled(csr, uniform), gamma, uniform, **_l1_settings(_TIGHT, n_nodes, gamma))
            row["uniform_l1_error"] = _l1(scores, plain)
        row["verdict"] = _verdict(row, [lack for lack in lacks if needs.get(lack, True)])
        rows.append(row)
    return rows


@cache
def _lacks(peer: Peer) -> tuple[str, ...]:
    """Return what a peer does not honour. It depends on no graph, so it is measured once."""
    return faults(diagnose(peer))


def _largest_relative(scores: FloatArray, reference: FloatArray) -> float:
    positive = reference > 0
    return float((np.abs(scores - reference)[positive] / reference[positive]).max())


def _verdict(row: dict[str, Any], unmet: list[str]) -> str:
    if row["l1_error"] <= CORRECT:
        return "correct"
    if not unmet:
        unsteady = ", another at every run" if row["between_runs"] > CORRECT else ""
        return f"loose (L1 error {row['l1_error']:.0e}{unsteady})"
    if "plain" in unmet:
        return "wrong (on every graph, see the notes)"
    if unmet == ["teleport"] and row.get("uniform_l1_error", np.inf) <= CORRECT:
        return f"wrong (takes no teleport vector; correct for a uniform one, L1 error {row['uniform_l1_error']:.0e})"
    return f"wrong (does not honour {', '.join(unmet)})"


_SEMANTIC = 0.02  # above this L1 error a library solves another problem, and not only this one badly
_TRIES = 5


class Probe(NamedTuple):
    """L1 error of a peer on a small graph, and the largest L1 distance between repeated solves."""

    l1_error: float
    between_runs: float


def diagnose(peer: Peer, gamma: float = 0.85, n: int = 150) -> dict[str, Probe]:
    """Solve small random graphs with cycles and self-loops, one difficulty at a time.

    Keys: "plain" (unit weights, no dangling nodes, uniform teleport), then the same with "dangling"
    nodes, with unequal "weights", with an unequal "teleport" vector, and with "all" three. A dense solve
    gives the right scores. After a large error the solve is repeated, to tell a data race between threads
    from another definition; the least error counts. The error is infinite if the library raises.
    """
    cases = {
        "plain": frozenset[str](),
        "dangling": frozenset({"dangling"}),
        "weights": frozenset({"weights"}),
        "teleport": frozenset({"teleport"}),
        "all": frozenset({"dangling", "weights", "teleport"}),
    }
    return {case: _solve_probe(peer, gamma, *_probe(difficulties, n)) for case, difficulties in cases.items()}


def _solve_probe(peer: Peer, gamma: float, csr: sparse.csr_array, v: FloatArray) -> Probe:
    right = _dense(csr, gamma, v)
    settings = peer.settings(_TIGHT, len(v), gamma)
    solved: list[FloatArray] = []
    try:
        graph = peer.build(csr, v)
        while len(solved) < _TRIES and (not solved or _l1(solved[-1], right) > _SEMANTIC):
            solved.append(peer.solve(graph, gamma, v, **settings))
    except Exception:  # as in `agreement`
        return Probe(np.inf, 0.0)
    return Probe(min(_l1(scores, right) for scores in solved), _scatter(solved))


def faults(probes: dict[str, Probe]) -> tuple[str, ...]:
    """Return what a peer does not honour, of "dangling", "weights" and "teleport", from :func:`diagnose`.

    If it fails without any of them, return "plain" and all three. An error counts if it is clearly larger
    than the differences between runs.
    """
    lacking = [
        case for case, (error, scatter) in probes.items() if error > _SEMANTIC and (scatter == 0 or error > 3 * scatter)
    ]
    if "plain" in lacking:
        return ("plain", "dangling", "weights", "teleport")
    return tuple(case for case in lacking if case != "all")


def _l1(one: FloatArray, other: FloatArray) -> float:
    return float(np.abs(one - other).sum())


def _scatter(solved: list[FloatArray]) -> float:
    return max((_l1(one, other) for one, other in combinations(solved, 2)), default=0.0)


def _probe(difficulties: frozenset[str], n: int) -> tuple[sparse.csr_array, FloatArray]:
    """Return a random graph of about 5 edges a node, in which ignoring a difficulty moves much of the score."""
    random = np.random.default_rng(0)
    dense = (random.random((n, n)) < 4 / n).astype(np.float64)
    dense[np.roll(np.arange(n), -1), np.arange(n)] = 1.0  # a ring, so that no column is empty
    weights, teleport = random.pareto(1.0, (n, n)) + 0.1, random.pareto(1.0, n) + 0.01
    if "dangling" in difficulties:
        dense[:, : n // 3] = 0.0
    if "weights" in difficulties:
        dense *= weights
    v = teleport if "teleport" in difficulties else np.ones(n)
    return sparse.csr_array(dense), v / v.sum()


def _dense(csr: sparse.csr_array, gamma: float, v: FloatArray) -> FloatArray:
    transition = csr.toarray() * _strength_shares(csr)
    solution = np.linalg.solve(np.eye(len(v)) - gamma * transition, v)
    return np.asarray(solution / solution.sum())
