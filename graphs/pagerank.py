"""The doors: ranks of layered graphs, and PageRank of any digraph."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from graphs.blocks import FloatArray, SparseBlock, as_block, as_numpy
from graphs.errors import GraphError
from graphs.layered import LayeredGraph
from graphs.operators import Backend, BlockOperator, Vector, make_backend
from graphs.result import Degenerate, RankResult, StopReason
from graphs.solvers import (
    LayerSweep,
    PowerIteration,
    Solver,
    contraction_bound,
    held_tolerance,
    warn_unconverged,
)
from graphs.transition import Normalised, Transition, check_share, modified_step, normalise, weighted_step

if TYPE_CHECKING:
    import networkx
    import torch

__all__ = ["modified_pagerank", "pagerank", "weighted_pagerank"]


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
        lambda backend: _WeightedMap(graph, backend, gamma, theta),
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
        lambda backend: _ModifiedMap(graph, backend, zero_lowest),
        "modified pagerank",
        {"zero_lowest": zero_lowest},
        solver,
        make_backend(backend, device, dtype, graph),
        tol,
        max_iter,
    )


class _LayerMap:
    """What the two maps share: activations as vectors, operators, and the notes on fallbacks."""

    contraction = float("inf")

    def __init__(self, graph: LayeredGraph, backend: Backend) -> None:
        self.graph = graph
        self.backend = backend
        self.n_layers = len(graph.activations)
        self.dtype = backend.arithmetic.dtype
        self.degenerate: dict[int, str] = {}
        self._activations = [backend.arithmetic.vector(_near_one(vector)) for vector in graph.activations]
        self._operators: dict[int, BlockOperator] = {}

    def initial(self) -> Vector:
        first = normalise(self._activations[0])
        self._note(0, first, "the input activations sum to zero")
        return first.vector

    def uniform(self, layer: int) -> Vector:
        return normalise(self._activations[layer] * 0.0).vector

    def _operator(self, layer: int, products: int) -> BlockOperator:
        """The operator of a block; kept only where it costs no memory to speak of or will be used again."""
        if layer in self._operators:
            return self._operators[layer]
        block = self.graph.blocks[layer - 1]
        try:
            operator = self.backend.operator(block, products)
        except GraphError as error:
            raise GraphError(f"block {layer}: {error}") from error
        if products > 1 and (block.stored or self.backend.form == "auto"):
            self._operators[layer] = operator
        return operator

    def _note(self, layer: int, result: Normalised, zero: str) -> None:
        if result.fallback:
            self.degenerate[layer] = f"{zero}; {result.fallback} scores stand in"


def _near_one(vector: FloatArray) -> FloatArray:
    """`vector` times the power of two that brings its maximum just below 1.

    Ranks do not depend on the scale of a layer's activations. This one keeps sums and float32 from
    overflowing and small activations from vanishing, without rounding.
    """
    scaled: FloatArray = np.ldexp(vector, -np.frexp(vector.max())[1])
    return scaled


class _WeightedMap(_LayerMap):
    def __init__(self, graph: LayeredGraph, backend: Backend, gamma: float, theta: float) -> None:
        super().__init__(graph, backend)
        self.gamma = gamma
        self.theta = theta
        # Contracts by gamma while no column dangles; a dangling one makes N non-linear.
        self.contraction = gamma
        self._transitions: dict[int, Transition] = {}

    def step(self, layer: int, previous: Vector, products: int) -> Vector:
        operator = self._operator(layer, products)
        # Only the last visit speaks of the result: an early iterate may be degenerate alone.
        self.degenerate.pop(layer, None)
        try:
            if layer not in self._transitions:
                self._transitions[layer] = Transition(operator, self.theta, self.backend.arithmetic)
                if self._transitions[layer].dangling:
                    self.contraction = float("inf")
            passed = self._transitions[layer].apply(operator, previous)
            activation = self._activations[layer]
            if float(activation.sum()) == 0.0:
                self.degenerate[layer] = "the activations sum to zero; uniform ones stand in"
            result = weighted_step(passed, activation, self.gamma)
        except GraphError as error:
            raise GraphError(f"block {layer}: {error}") from error
        self._note(layer, result, "no mass arrived")
        return result.vector


class _ModifiedMap(_LayerMap):
    def __init__(self, graph: LayeredGraph, backend: Backend, zero_lowest: float) -> None:
        super().__init__(graph, backend)
        self.zero_lowest = zero_lowest

    def step(self, layer: int, previous: Vector, products: int) -> Vector:
        count = int(self.zero_lowest * len(previous))
        if count:
            previous = self.backend.arithmetic.with_lowest_zeroed(previous, count)
        self.degenerate.pop(layer, None)
        activation = self._activations[layer]
        if float(activation.sum()) == 0.0:
            self.degenerate[layer] = "the activations sum to zero; uniform ones stand in"
        try:
            result = modified_step(self._operator(layer, products).matvec(previous), activation)
        except GraphError as error:
            raise GraphError(f"block {layer}: {error}") from error
        self._note(layer, result, "no mass arrived")
        return result.vector


def _rank(
    graph: LayeredGraph,
    make_map: Callable[[Backend], _WeightedMap | _ModifiedMap],
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


def _check_iteration(tol: Any, max_iter: Any) -> tuple[float, int]:
    if not (isinstance(tol, (int, float, np.floating)) and tol >= 0.0):
        raise GraphError(f"tol must be a number >= 0 (absolute L1 residual), got {tol!r}")
    if not (isinstance(max_iter, (int, np.integer)) and max_iter >= 1):
        raise GraphError(f"max_iter must be an integer >= 1, got {max_iter!r}")
    return float(tol), int(max_iter)


def _layered_solver(graph: LayeredGraph, solver: str | Solver, backend: Backend, tol: float, max_iter: int) -> Solver:
    tol, max_iter = _check_iteration(tol, max_iter)
    if isinstance(solver, str) and solver == "sweep":
        return LayerSweep()
    if isinstance(solver, str) and solver == "power":
        return PowerIteration(tol=tol, max_iter=max_iter)
    if isinstance(solver, str) or not hasattr(solver, "solve"):
        raise GraphError(f"unknown solver {solver!r}; expected 'sweep', 'power' or a Solver object")
    if isinstance(solver, PowerIteration):
        tol, max_iter = _check_iteration(solver.tol, solver.max_iter)
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


@dataclass(frozen=True)
class _Digraph:
    csr: sparse.csr_array
    labels: tuple[Hashable, ...]


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
    tol, max_iter = _check_iteration(tol, max_iter)
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
