"""Every solver on every graph of the gallery: the scores of a direct solve, and bounds that hold at every step."""

import functools
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import networkx
import numpy as np
import pytest
from scipy import sparse
from scipy.sparse.linalg import splu

from benchmarks.random_graphs import layered
from graphs import BlockDigraph, GraphError, RankResult, bidirectional_graph, pagerank, residual_graph
from graphs.linalg.backends import make_backend
from graphs.ranking.digraph_problem import DigraphProblem, _BlockTransition
from graphs.solvers import (
    SOLVERS,
    AndersonMixing,
    Extrapolation,
    GaussSeidel,
    Krylov,
    SolverProgress,
    SparseLU,
    solver_by_name,
)
from graphs.solvers.direct import FEW_NODES
from graphs.structures.digraph import as_digraph
from tests.graphs.cases import Array
from tests.graphs.known_graphs import SEEDED, TINY
from tests.pairwise import pairwise_by_first
from tests.tables import table

GAMMAS = (0.5, 0.85, 0.99)
TELEPORTS = ("default", "uneven")
PASSES = ("sweep", "gauss-seidel", "gauss-seidel-quadratic")
# Sums of several hundred float64 terms in another order, blown up by 1 / (1 - gamma).
ROUND_OFF = 1e-12

GRAPHS: dict[str, Callable[[], Any]] = {
    **SEEDED,
    **{f"tiny: {tiny.name}": (lambda tiny=tiny: tiny.csr) for tiny in TINY},
    "chain": lambda: layered([6, 11, 6, 9, 4], 0.5, seed=1),
    "residual, dense": lambda: residual_graph(layered([6, 11, 6, 11, 6], seed=2)),
    "residual, sparse": lambda: residual_graph(layered([8, 12, 8, 12, 8, 12, 8], 0.1, seed=3), beta=0.25),
    "bidirectional, dense": lambda: bidirectional_graph(layered([5, 9, 7], seed=4)),
    "bidirectional, sparse": lambda: bidirectional_graph(layered([8, 12, 8, 12], 0.15, seed=5)),
}


@functools.cache
def graph_of(name: str) -> Any:
    return GRAPHS[name]()


def has_cycles(csr: sparse.csr_array) -> bool:
    """By networkx; self loops are solved with their node, and count for none."""
    digraph = networkx.from_scipy_sparse_array(csr.T, create_using=networkx.DiGraph)
    digraph.remove_edges_from(list(networkx.selfloop_edges(digraph)))
    return not networkx.is_directed_acyclic_graph(digraph)


ACYCLIC = {name for name in GRAPHS if not has_cycles(as_digraph(graph_of(name)).to_scipy())}


def teleport_of(name: str, kind: str) -> Array | None:
    """None for the default, or lognormal numbers, a third of them zero."""
    if kind == "default":
        return None
    n_nodes = as_digraph(graph_of(name)).n_nodes
    vector = np.random.default_rng(n_nodes).lognormal(size=n_nodes)
    vector[1::3] = 0.0
    return vector


def direct(csr: sparse.csr_array, gamma: float, teleport: Array) -> Array:
    """LU of (I - gamma P) x = v over its sum.

    With x = gamma P x + c v for whatever c makes the sum 1: then c = gamma * dangling mass + 1 - gamma.
    """
    csc = sparse.csc_array(csr, dtype=np.float64)
    strength = np.asarray(csc.sum(axis=0)).ravel()
    scale = np.divide(1.0, strength, out=np.zeros_like(strength), where=strength > 0)
    transition = csc @ sparse.diags_array(scale)
    system = sparse.csc_array(sparse.eye_array(len(scale)) - gamma * transition)
    solution = splu(system).solve(teleport)
    scores: Array = solution / solution.sum(axis=0)
    dangling = scores[strength == 0].sum(axis=0)
    defect = gamma * transition @ scores + (gamma * dangling + 1 - gamma) * teleport - scores
    assert np.abs(defect).sum() < 1e-13, "the oracle itself"
    return scores


@functools.cache
def solved(name: str, gamma: float, kind: str) -> Array:
    digraph = as_digraph(graph_of(name))
    teleport = teleport_of(name, kind)
    return direct(
        digraph.to_scipy(), gamma, default_teleport(digraph) if teleport is None else teleport / teleport.sum()
    )


def default_teleport(digraph: BlockDigraph) -> Array:
    """Every layer's activations over their sum, all layers alike; uniform without activations."""
    if digraph.activations is None:
        return np.full(digraph.n_nodes, 1 / digraph.n_nodes)
    return np.concatenate([a / a.sum() for a in digraph.activations]) / len(digraph.layer_sizes)


@dataclass
class Trace:
    """What a callback saw."""

    steps: list[SolverProgress]
    scores: list[Array]

    def __call__(self, progress: SolverProgress) -> None:
        self.steps.append(progress)
        self.scores.append(np.concatenate(progress.scores()))


def followed(graph: Any, exact: Array, round_off: float = ROUND_OFF, **options: Any) -> RankResult:
    """The rank, after every step of it was held against the exact scores."""
    trace = Trace([], [])
    result = pagerank(graph, callback=trace, **options)
    assert result.converged
    assert len(trace.steps) == result.iterations >= 1
    for progress, scores in zip(trace.steps, trace.scores, strict=True):
        error = np.abs(scores - exact).sum(axis=0).max()
        assert error <= progress.error_bound + round_off, f"step {progress.iteration}"
        assert np.abs(scores.sum(axis=0) - 1.0).max() <= round_off
    check_record(result, trace.steps)
    np.testing.assert_array_equal(result.stacked, trace.scores[-1])
    assert result.stacked.min() >= -round_off
    return result


def check_record(result: RankResult, steps: list[SolverProgress]) -> None:
    """The arrays of a result agree with each other and with what the callback saw."""
    count = result.iterations
    assert [p.iteration for p in steps] == list(range(1, count + 1))
    assert result.residuals.tolist() == [p.residual for p in steps]
    assert result.error_bounds.tolist() == [p.error_bound for p in steps] == [max(p.layer_bounds) for p in steps]
    assert result.layer_residuals.tolist() == [p.layer_residuals for p in steps]
    assert result.layer_residuals.shape == (count, len(result.scores))
    assert result.layer_bounds == tuple(steps[-1].layer_bounds)
    assert result.step_products.tolist() == [p.block_products for p in steps]
    assert result.block_products == result.step_products[-1]
    assert (np.diff(result.step_products, prepend=0) >= 1).all() or result.block_products == 0
    assert result.step_seconds.tolist() == [p.seconds for p in steps]
    assert (np.diff(result.step_seconds, prepend=0.0) >= 0).all()
    assert result.solve_seconds == result.step_seconds[-1]
    assert result.error_bound == result.error_bounds[-1]


# --- every solver, every graph


@pairwise_by_first(solver=SOLVERS, name=GRAPHS, gamma=GAMMAS, kind=TELEPORTS)
def test_a_solver_gives_the_scores_of_a_direct_solve(name: str, solver: str, gamma: float, kind: str) -> None:
    graph = graph_of(name)
    n_blocks = len(as_digraph(graph).edge_blocks)
    teleport = teleport_of(name, kind)
    options: dict[str, Any] = {"gamma": gamma, "teleport": teleport, "solver": solver, "max_iter": 4000}
    if solver == "sweep" and name not in ACYCLIC:
        with pytest.raises(GraphError, match=r"in this graph edges lead back; use solver='gauss-seidel'.* or 'auto'"):
            pagerank(graph, **options)
        return
    result = followed(graph, solved(name, gamma, kind), **options)
    assert result.solver == solver
    assert result.solver_reason == ""
    # Two of these graphs are so slow that a residual within the tolerance leaves 100 times that.
    assert result.error_bound <= 1e-12 * (1 if "gauss-seidel" in solver else gamma) / (1 - gamma) * (1 + 1e-9)
    if solver in ("power", "gauss-seidel", "sweep", "anderson"):
        assert result.block_products == n_blocks * result.iterations
    if solver in ("sweep", "lu"):
        assert (result.iterations, result.stop_reason) == (1, "exact")
        assert result.block_products == n_blocks
    elif "gauss-seidel" in solver and name in ACYCLIC:
        assert (result.iterations, result.stop_reason, result.error_bound) == (1, "exact", 0.0)
    else:
        assert result.stop_reason == "tolerance"
        assert (result.residuals[:-1] > 1e-12).all()
        assert result.residuals[-1] <= 1e-12
    if "gauss-seidel" not in solver:
        np.testing.assert_allclose(result.residuals, result.layer_residuals.sum(axis=1), rtol=1e-12)
    if solver not in PASSES:
        # The answer is F of something, also that of the direct solve.
        np.testing.assert_allclose(result.error_bounds, gamma / (1 - gamma) * result.residuals, rtol=1e-9)


def test_the_gallery_has_both_kinds_of_graphs() -> None:
    assert {"chain", "tiny: path", "tiny: path into a trap", "tiny: star in"} <= ACYCLIC
    assert 8 <= len(ACYCLIC) <= len(GRAPHS) - 8


@pytest.mark.parametrize("solver", ["auto", *SOLVERS])
@table("tiny", TINY)
def test_tiny_graphs_have_their_answers_on_paper(solver: str, tiny: Any) -> None:
    if solver == "sweep" and f"tiny: {tiny.name}" not in ACYCLIC:
        return
    for gamma in (0.0, 0.5, 0.9):
        found = pagerank(tiny.csr, gamma, solver=solver).scores[0]
        np.testing.assert_allclose(found, tiny.answer(gamma), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["power law", "road", "residual, sparse", "bidirectional, dense", "chain"])
def test_the_oracle_and_every_solver_agree_with_networkx(name: str) -> None:
    digraph = as_digraph(graph_of(name))
    gamma, teleport = 0.85, teleport_of(name, "uneven")
    assert teleport is not None
    reference = networkx.from_scipy_sparse_array(digraph.to_scipy().T, create_using=networkx.DiGraph)
    jump = dict(enumerate(teleport))
    # networkx multiplies its tol by the number of nodes.
    found = networkx.pagerank(reference, gamma, personalization=jump, tol=1e-13 / digraph.n_nodes, max_iter=2000)
    expected = np.array([found[node] for node in range(digraph.n_nodes)])
    np.testing.assert_allclose(solved(name, gamma, "uneven"), expected, rtol=0, atol=1e-11)
    for solver in SOLVERS:
        if solver != "sweep" or name in ACYCLIC:
            scores = pagerank(digraph, gamma, teleport, solver=solver, max_iter=4000).stacked
            np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "solver",
    [
        Extrapolation(degree=1, period=2),
        Extrapolation(degree=2, period=3),
        Extrapolation(degree=2, period=40),
        AndersonMixing(window=1),
        AndersonMixing(window=25),
        GaussSeidel(aggregation=False),
        Krylov("gmres", inner=1),
        Krylov("gmres", inner=40),
        Krylov("bicgstab", inner=5),
        SparseLU(max_edges=10_000),
    ],
    ids=repr,
)
@table("name", ["two rings", "power law", "residual, dense", "bidirectional, sparse"])
def test_knobs_change_the_way_and_not_the_scores(solver: Any, name: str) -> None:
    result = followed(
        graph_of(name), solved(name, 0.9, "uneven"), gamma=0.9, teleport=teleport_of(name, "uneven"), solver=solver
    )
    assert result.solver == solver.name


@pytest.mark.parametrize("solver", SOLVERS)
@table("name", ["power law", "empty rows", "residual, dense", "residual, sparse", "chain"])
def test_bounds_hold_from_any_start(solver: str, name: str) -> None:
    if solver == "sweep" and name not in ACYCLIC:
        return
    digraph = as_digraph(graph_of(name))
    rng = np.random.default_rng(7)
    corner = np.zeros(digraph.n_nodes)
    corner[-1] = 1.0
    for stacked in (corner, rng.pareto(1.0, digraph.n_nodes), solved(name, 0.85, "uneven")):
        start = np.split(stacked, digraph.offsets[1:-1])
        followed(
            digraph, solved(name, 0.85, "uneven"), teleport=teleport_of(name, "uneven"), solver=solver, start=start
        )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("columns", [None, 2])
def test_products_are_counted_as_they_are_taken(
    monkeypatch: pytest.MonkeyPatch, solver: str, columns: int | None
) -> None:
    taken = 0
    right = _BlockTransition.__call__

    def count(self: _BlockTransition, vector: Any) -> Any:
        nonlocal taken
        taken += 1
        return right(self, vector)

    monkeypatch.setattr(_BlockTransition, "__call__", count)
    for name in ("residual, sparse", "bidirectional, dense", "chain"):
        if solver != "sweep" or name in ACYCLIC:
            taken = 0
            n_nodes = as_digraph(graph_of(name)).n_nodes
            teleport = np.random.default_rng(1).random(n_nodes if columns is None else (n_nodes, columns))
            result = pagerank(graph_of(name), 0.95, teleport, solver=solver)
            assert result.block_products == taken, name


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_tells_whether_its_answer_is_an_image(solver: str) -> None:
    # The slacks of a certificate may be cut by max_j P_ij only where the answer is F of something.
    digraph = graph_of("chain" if solver == "sweep" else "residual, dense")
    digraph = as_digraph(digraph)
    jump = default_teleport(digraph)
    found = DigraphProblem(digraph, make_backend("scipy", None, "float64", digraph.blocks), 0.9, jump, 5)
    knobs = solver_by_name(solver)
    assert knobs is not None
    step = knobs.step(found, knobs.begin(found, found.start(), 1e-12))
    assert step.is_image == (solver not in PASSES)


# --- "auto"


@table("name", GRAPHS)
def test_auto_sweeps_exactly_the_acyclic(name: str) -> None:
    for gamma, kind in itertools.product((0.5, 0.85), ("default", "uneven")):
        result = followed(graph_of(name), solved(name, gamma, kind), gamma=gamma, teleport=teleport_of(name, kind))
        if name in ACYCLIC:
            assert result.solver_reason == "no edge leads back, so one pass in layer order is exact"
            assert (result.solver, result.stop_reason, result.iterations) == ("sweep", "exact", 1)
            assert (result.error_bound, result.residuals.tolist()) == (0.0, [0.0])
        elif len(result.scores) > 1:
            assert (result.solver, result.stop_reason) == ("gauss-seidel", "tolerance")
            assert result.solver_reason.startswith("edges lead back and there are several layers")
        elif len(result.scores[0]) <= FEW_NODES:
            assert (result.solver, result.stop_reason, result.iterations) == ("lu", "exact", 1)
            assert result.solver_reason == "there are few nodes: a dense factorisation"
        else:
            assert (result.solver, result.stop_reason) == ("quadratic", "tolerance")
            assert result.solver_reason.startswith("edges lead back and there is only one layer")


@table("n_nodes", [FEW_NODES, FEW_NODES + 1])
@table("columns", [False, True])
@table("dtype", ["float64", "float32"])
@table("backend", ["scipy", "torch"])
def test_few_nodes_are_ranked_as_many_are(n_nodes: int, columns: bool, dtype: str, backend: Any) -> None:
    rng = np.random.default_rng(n_nodes)
    weights = rng.lognormal(size=(n_nodes, n_nodes)) * (rng.random((n_nodes, n_nodes)) < 0.05)
    weights[:, ::7] = 0.0  # dangling nodes
    weights[3, 3] = 2.0
    graph = sparse.csr_array(weights)
    teleport = rng.random((n_nodes, 3) if columns else n_nodes)
    shared: dict[str, Any] = {"gamma": 0.95, "teleport": teleport}
    iterated = pagerank(graph, solver="power", tol=1e-14, **shared)
    factorised = pagerank(graph, solver="lu", dtype=dtype, backend=backend, **shared)
    error = np.abs(factorised.scores[0] - iterated.scores[0]).sum(axis=0).max()
    assert error < (1e-4 if dtype == "float32" else 1e-12)
    assert factorised.stop_reason == "exact"
    found = pagerank(graph, dtype=dtype, backend=backend, **shared)
    assert (found.solver == "lu") == (n_nodes == FEW_NODES)


def test_a_damping_near_one_is_factorised() -> None:
    # In float32 the shares of node 0 sum to more than 1.
    pair = sparse.csr_array([[0.0, 3.0], [3.0, 0.0]])
    for dtype in ("float32", "float64"):
        np.testing.assert_allclose(pagerank(pair, 1.0 - 1e-8, dtype=dtype).scores[0], [0.5, 0.5], rtol=1e-6)


@table("gamma", [0.85, 0.99])
@table("dtype", ["float64", "float32"])
@table("columns", [False, True])
def test_auto_sweeps_large_graphs_with_cycles(gamma: float, dtype: str, columns: bool) -> None:
    rng = np.random.default_rng(3)
    # Some nodes are dangling, some have loops, and two halves exchange little.
    n_nodes, n_edges = 20_000, 300_000
    sources, targets = rng.integers(0, n_nodes, (2, n_edges))
    targets = np.where(rng.random(n_edges) < 0.999, targets // 2 + (sources >= n_nodes // 2) * (n_nodes // 2), targets)
    sources[sources % 11 == 0] += 1
    weights = rng.lognormal(size=n_edges)
    graph = sparse.csr_array((weights, (targets, sources)), shape=(n_nodes, n_nodes))
    teleport = rng.random((n_nodes, 2) if columns else n_nodes)
    options: dict[str, Any] = {"gamma": gamma, "teleport": teleport, "dtype": dtype}
    reference = pagerank(graph, solver="power", gamma=gamma, teleport=teleport, tol=1e-14, max_iter=5000)
    result = pagerank(graph, **options)
    assert (result.solver, result.stop_reason) == ("gauss-seidel-quadratic", "tolerance")
    assert result.solver_reason.endswith("of many edges: Gauss-Seidel sweeps with quadratic extrapolation")
    error = np.abs(result.stacked - reference.stacked).sum(axis=0).max()
    assert error <= result.error_bound + (1e-6 if dtype == "float32" else 1e-12)
    assert result.iterations < 0.8 * pagerank(graph, solver="quadratic", **options).iterations


@pytest.mark.parametrize("backend", ["auto", "scipy"])
@table("seed", range(8))
def test_a_dag_with_shuffled_labels_and_self_loops_is_swept(seed: int, backend: Any) -> None:
    rng = np.random.default_rng(seed)
    n_nodes = int(rng.integers(2, 60))
    matrix = np.tril(rng.random((n_nodes, n_nodes)) * (rng.random((n_nodes, n_nodes)) < 0.2), -1)
    matrix += np.diag(rng.random(n_nodes) * (rng.random(n_nodes) < 0.3))
    labels = rng.permutation(n_nodes)
    matrix = matrix[np.ix_(labels, labels)]
    teleport = rng.random(n_nodes) + 0.01
    exact = direct(sparse.csr_array(matrix), 0.9, teleport / teleport.sum())
    result = followed(sparse.csr_array(matrix), exact, gamma=0.9, teleport=teleport, backend=backend)
    assert (result.solver, result.stop_reason) == ("sweep", "exact")
    # One edge that closes a cycle, and it is none.
    ends = np.argwhere(matrix - np.diag(np.diag(matrix)))
    if len(ends):
        matrix[ends[0][1], ends[0][0]] = 1.0
        assert pagerank(sparse.csr_array(matrix), 0.9, teleport, backend=backend).solver == "lu"
        with pytest.raises(GraphError, match="edges lead back"):
            pagerank(sparse.csr_array(matrix), solver="sweep", backend=backend)


def test_layers_in_any_order_are_swept() -> None:
    chain = as_digraph(layered([4, 6, 5, 3], seed=6))
    order = [2, 0, 3, 1]  # layer k of the chain becomes layer order[k]
    back = np.argsort(order)
    shuffled = BlockDigraph(
        tuple(chain.layer_sizes[k] for k in back),
        tuple(type(e)(order[e.source], order[e.target], e.block) for e in chain.edge_blocks),
        tuple(chain.names[k] for k in back),
    )
    teleport = np.random.default_rng(1).random(18)
    exact = direct(shuffled.to_scipy(), 0.8, teleport / teleport.sum())
    result = followed(shuffled, exact, gamma=0.8, teleport=teleport)
    assert (result.solver, result.iterations) == ("sweep", 1)


# --- k columns


@pairwise_by_first(
    solver=SOLVERS,
    name=["power law", "empty rows", "residual, dense", "bidirectional, sparse", "chain"],
    backend=["auto", "scipy", "torch"],
)
def test_columns_are_single_ranks(name: str, solver: str, backend: Any) -> None:
    digraph = as_digraph(graph_of(name))
    inner = len(digraph.layer_sizes) == 1
    if (solver == "sweep" and name not in ACYCLIC) or (inner and backend == "torch" and solver in PASSES):
        return
    n_blocks, n_nodes = len(digraph.edge_blocks), digraph.n_nodes
    teleport = np.random.default_rng(3).lognormal(size=(n_nodes, 4))
    teleport[:, 0] = 1.0
    teleport[:, 1] = 0.0
    teleport[n_nodes // 2, 1] = 1.0
    exact = direct(digraph.to_scipy(), 0.85, teleport / teleport.sum(axis=0))
    result = followed(digraph, exact, teleport=teleport, solver=solver, backend=backend)
    assert [scores.shape for scores in result.scores] == [(size, 4) for size in digraph.layer_sizes]
    singles = [pagerank(digraph, teleport=column, solver=solver, backend=backend) for column in teleport.T]
    for column, single in enumerate(singles):
        np.testing.assert_allclose(result.stacked[:, column], single.stacked, rtol=0, atol=2e-11)
    if solver in ("power", "gauss-seidel", "sweep", "lu"):
        # A step reads every block once, for all columns together.
        assert result.block_products == n_blocks * result.iterations
    if solver in ("power", "sweep", "lu"):
        # The residual of a layer is that of its slowest column, which need not be the slowest of the next layer.
        assert 0 <= result.iterations - max(single.iterations for single in singles) <= 3


def test_one_column_is_a_matrix_of_scores() -> None:
    graph = graph_of("bidirectional, dense")
    vector = np.arange(1.0, 22.0)
    found = pagerank(graph, teleport=vector[:, None])
    assert found.stacked.shape == (21, 1)
    np.testing.assert_allclose(found.stacked[:, 0], pagerank(graph, teleport=vector).stacked, rtol=0, atol=1e-12)


# --- backends


@pairwise_by_first(
    solver=["auto", *(solver for solver in SOLVERS if solver != "sweep")],
    name=["power law", "road", "residual, dense", "residual, sparse", "bidirectional, dense"],
    backend=["scipy", "torch", "auto", "dense"],
)
def test_backends(name: str, solver: str, backend: Any) -> None:
    inner = name in SEEDED
    options = {"teleport": teleport_of(name, "uneven"), "solver": solver, "backend": backend, "max_iter": 4000}
    if inner and backend == "dense":
        with pytest.raises(GraphError, match="backend 'dense' is not for edges within a layer; expected 'auto'"):
            pagerank(graph_of(name), **options)
    elif inner and backend == "torch" and solver in PASSES:
        with pytest.raises(GraphError, match=r"layer 0 has edges within itself; .*scipy CSR.*backend='scipy'"):
            pagerank(graph_of(name), **options)
    else:
        result = followed(graph_of(name), solved(name, 0.85, "uneven"), **options)
        if solver == "auto":
            assert result.solver == ("quadratic" if inner else "gauss-seidel")
        assert result.backend.startswith(
            "torch" if backend == "torch" else "scipy" if backend == "scipy" else "compiled"
        )


def test_auto_falls_back_on_an_acyclic_matrix_too() -> None:
    # torch CSR tells nothing of an order of nodes: the graph is acyclic, but not for this backend.
    path = next(tiny for tiny in TINY if tiny.name == "path")
    result = pagerank(path.csr, 0.5, backend="torch")
    assert result.solver not in PASSES
    np.testing.assert_allclose(result.scores[0], path.answer(0.5), rtol=0, atol=1e-11)
    with pytest.raises(GraphError) as raised:
        pagerank(path.csr, 0.5, backend="torch", solver="sweep")
    assert "lead back" not in str(raised.value)


@pairwise_by_first(
    solver=["auto", *SOLVERS],
    name=["power law", "residual, dense", "bidirectional, sparse", "chain"],
    backend=["scipy", "torch", "auto"],
)
def test_float32_stops_at_its_floor(name: str, solver: str, backend: Any) -> None:
    digraph = as_digraph(graph_of(name))
    inner = len(digraph.layer_sizes) == 1
    if (solver == "sweep" and name not in ACYCLIC) or (inner and backend == "torch" and solver in PASSES):
        return
    floor = 8 * float(np.finfo(np.float32).eps)
    options: dict[str, Any] = {"solver": solver, "backend": backend, "dtype": "float32", "tol": 0.0}
    # Each rounding of half an ulp may come back 1 / (1 - gamma) times.
    result = followed(digraph, solved(name, 0.85, "default"), round_off=20 * floor, **options)
    assert result.tolerance == floor
    assert all(scores.dtype == np.float32 for scores in result.scores)
    assert result.stop_reason in ("exact", "tolerance")
    assert pagerank(digraph, tol=1e-3, dtype="float32", solver="power").tolerance == 1e-3


# --- a wrong factor would be noticed


def two_traps() -> sparse.csr_array:
    """Two nodes that keep what they have: the error shrinks by gamma a step, and by no more."""
    return sparse.csr_array(np.eye(2))


def test_the_bound_of_power_iteration_is_attained() -> None:
    for gamma in GAMMAS:
        errors, bounds = [], []

        def watch(progress: SolverProgress, errors: list[float] = errors, bounds: list[float] = bounds) -> bool:
            errors.append(float(np.abs(progress.scores()[0] - 0.5).sum()))
            bounds.append(progress.error_bound)
            return progress.iteration == 12

        pagerank(two_traps(), gamma, solver="power", start=[np.array([1.0, 0.0])], callback=watch)
        np.testing.assert_allclose(errors, gamma ** np.arange(1, 13), rtol=1e-12)
        np.testing.assert_allclose(bounds, errors, rtol=1e-9)


# 0 -> 1 -> 2 -> 0 by the weight 1. A pass in this order misses what leads back to node 0, and scores teleport to node 1.
RING = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
TELEPORT_TO_1 = np.array([0.0, 1.0, 0.0])


def test_the_bound_of_a_pass_is_attained() -> None:
    gamma, mass, old = 0.6, np.float64(0.4), 0.7
    # Nodes 0 and 1 keep their scores in this pass. All that changes is the score of node 2, all of which leads back.
    state = [np.array([gamma * old, gamma**2 * old + mass, old])]
    backend = make_backend("scipy", None, "float64")
    problem = DigraphProblem(as_digraph(sparse.csr_array(RING)), backend, gamma, TELEPORT_TO_1, products=30)
    swept, _ = problem.sweep_and_compare(state, mass, aggregates=False)
    true = float(np.abs(problem.apply(swept.state)[0] - swept.state[0]).sum())
    assert true > 0.1
    # The factor 2 of the residual is used up: mass is missing at 0, and made up for at 1.
    assert float(swept.residual) == pytest.approx(true, rel=1e-12)


def test_the_bound_of_passes_counts_every_change() -> None:
    gamma, ratios = 0.6, []
    transition = gamma * RING + (1 - gamma) * np.outer(TELEPORT_TO_1, np.ones(3))

    def watch(progress: SolverProgress) -> None:
        scores = progress.scores()[0]
        true = np.abs(transition @ scores - scores).sum()
        assert true <= progress.residual * (1 + 1e-9) + 1e-15
        if true > 1e-10:
            ratios.append(progress.residual / true)

    pagerank(sparse.csr_array(RING), gamma, TELEPORT_TO_1, solver=GaussSeidel(aggregation=False), callback=watch)
    assert len(ratios) > 3
    # After the first pass the scores of nodes 0, 1 and 2 change by 1, gamma and gamma**2 of one number. The last change leads
    # back: it is missing at node 0 and made up for at node 1. Of the others one can only say that they may lead back.
    np.testing.assert_allclose(ratios[1:], (1 / gamma**2 + 1 / gamma + 1 + 1) / 2, rtol=1e-4)


@pytest.mark.parametrize("solver", ["power", "aitken", "quadratic", "anderson"])
def test_a_wrong_contraction_is_caught(monkeypatch: pytest.MonkeyPatch, solver: str) -> None:
    def too_low(self: DigraphProblem, changes: Any, steps: int) -> list[float]:
        factor = self.gamma / 2
        return [factor / (1.0 - factor) * sum(changes)] * self.n_layers

    options: dict[str, Any] = {"gamma": 0.85, "solver": solver, "start": [np.array([1.0, 0.0])]}
    followed(two_traps(), np.full(2, 0.5), **options)
    monkeypatch.setattr(DigraphProblem, "error_bounds", too_low)
    with pytest.raises(AssertionError, match="step 1"):
        followed(two_traps(), np.full(2, 0.5), **options)


def test_a_wrong_bound_of_passes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_low(self: DigraphProblem, residual: float) -> list[float]:
        return [residual / (1.0 - self.gamma / 2)] * self.n_layers

    # Two pairs that keep what they have, and all of it in one of them: aggregation by layers knows nothing of that.
    pairs, exact = sparse.csr_array(np.kron(np.eye(2), [[0.0, 1.0], [1.0, 0.0]])), np.full(4, 0.25)
    options: dict[str, Any] = {"gamma": 0.9, "solver": "gauss-seidel", "start": [np.array([1.0, 1.0, 0.0, 0.0])]}
    followed(pairs, exact, **options)
    monkeypatch.setattr(DigraphProblem, "residual_bounds", too_low)
    with pytest.raises(AssertionError, match="step 1"):
        followed(pairs, exact, **options)


def test_a_slow_graph_stays_within_its_bound_when_stopped() -> None:
    exact = solved("two rings", 0.99, "uneven")
    teleport = teleport_of("two rings", "uneven")
    for solver in ("power", "aitken", "quadratic", "anderson", "gmres", "bicgstab"):
        for steps in (1, 9, 33):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                result = pagerank(graph_of("two rings"), 0.99, teleport, solver=solver, max_iter=steps)
            assert not result.converged
            assert 1e-9 < np.abs(result.stacked - exact).sum() <= result.error_bound
