"""Tests of sweeps over the nodes of one layer against the same steps on vectors, and against a direct solution."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from graphs import pagerank
from graphs.linalg.backends import make_backend
from graphs.linalg.layer_vectors import layer_norms, subtract
from graphs.linalg.operators import CSRKernelOperator, CSROperator
from graphs.ranking import node_sweep
from graphs.ranking.digraph_problem import DigraphProblem
from graphs.ranking.node_sweep import NodeSweep, is_acyclic
from graphs.solvers import ExtrapolatedSweeps
from graphs.structures.digraph import as_digraph
from tests.graphs.cases import Array
from tests.tables import table

GAMMA = 0.85


def random_digraph(*, equal: bool, seed: int = 0, n_nodes: int = 300) -> sparse.csr_array:
    """Edges between windows of rows and within them, rows of many lengths, self-loops, and dangling nodes."""
    rng = np.random.default_rng(seed)
    present = rng.random((n_nodes, n_nodes)) < rng.random(n_nodes)[:, None] ** 4
    np.fill_diagonal(present, rng.random(n_nodes) < 0.2)
    present[:, rng.random(n_nodes) < 0.1] = False
    return sparse.csr_array(np.where(present, 3.0 if equal else rng.random((n_nodes, n_nodes)) + 0.1, 0.0))


@table("equal", [True, False])
@table("sorts_nodes", [True, False])
@table("aggregates", [True, False])
def test_the_step_of_one_layer_is_the_step_on_vectors(equal: bool, sorts_nodes: bool, aggregates: bool) -> None:
    csr, rng = random_digraph(equal=equal), np.random.default_rng(1)
    teleport, before = rng.random((2, csr.shape[0]))
    teleport, before = teleport / teleport.sum(), before / before.sum()
    backend = make_backend("scipy", None, "float64")
    problem = DigraphProblem(as_digraph(csr), backend, GAMMA, teleport, products=30)
    state, mass = [before], np.float64(0.2)
    start = problem.aggregate(state, mass) if aggregates else state
    expected = problem.sweep(start, mass, sorts_nodes=sorts_nodes)
    given = before.copy()
    found, (change,) = problem.sweep_and_compare(state, mass, aggregates=aggregates, sorts_nodes=sorts_nodes)
    np.testing.assert_array_equal(before, given)
    np.testing.assert_allclose(found.state[0], expected.state[0], rtol=1e-12)
    assert float(found.teleport_mass) == pytest.approx(float(expected.teleport_mass), rel=1e-12)
    true = float(layer_norms(subtract(problem.apply(found.state), found.state))[0])
    assert true <= float(found.residual) <= float(expected.residual)
    assert float(change) == pytest.approx(float(layer_norms(subtract(expected.state, state))[0]), rel=1e-12)


@table("kind", [None, CSROperator, CSRKernelOperator])
@table("gamma", [0.0, GAMMA, 1.0 - 2.0**-52])
def test_an_application_to_one_layer_is_the_application_to_vectors(kind: Any, gamma: float) -> None:
    csr, rng = random_digraph(equal=False), np.random.default_rng(1)
    teleport, before = rng.random((2, csr.shape[0]))
    teleport, before = teleport / teleport.sum(), before / before.sum()
    backend = make_backend("scipy", None, "float64")
    problem = DigraphProblem(as_digraph(csr), backend, gamma, teleport, products=30)
    if kind is not None:
        problem._transitions[0] = replace(problem._transitions[0], operator=kind(csr))
    given = before.copy()
    expected = problem.apply([before])
    found, (change,) = problem.apply_and_compare([before])
    np.testing.assert_array_equal(before, given)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    assert float(change) == pytest.approx(float(layer_norms(subtract(expected, [before]))[0]), rel=1e-12)


@table("equal", [True, False])
@table("sorts_nodes", [True, False])
@table("dtype", ["float64", "float32"])
@table("columns", [None, 2])
def test_sweeps_end_at_the_direct_solution(equal: bool, sorts_nodes: bool, dtype: str, columns: int | None) -> None:
    csr = random_digraph(equal=equal, seed=2)
    weights, indices = csr.data.copy(), csr.indices.copy()
    teleport: Array | None = None
    if columns:
        teleport = np.random.default_rng(3).random((csr.shape[0], columns))
    solver = ExtrapolatedSweeps(sorts_nodes=sorts_nodes)
    found = pagerank(csr, GAMMA, teleport, solver=solver, dtype=dtype, tol=1e-13)
    exact = pagerank(csr, GAMMA, teleport, solver="lu")
    error = abs(found.stacked - exact.stacked).sum(axis=0).max()
    assert error <= (1e-12 if dtype == "float64" else 1e-5)
    assert error <= found.error_bound + 1e-14
    np.testing.assert_array_equal(csr.data, weights)
    np.testing.assert_array_equal(csr.indices, indices)


@table("sorts_nodes", [True, False])
@table("few_bytes", [0, 2**30])
def test_the_order_of_the_nodes(monkeypatch: pytest.MonkeyPatch, *, few_bytes: int, sorts_nodes: bool) -> None:
    monkeypatch.setattr(node_sweep, "FEW_BYTES", few_bytes)
    csr = random_digraph(equal=False, seed=5)
    found = pagerank(csr, GAMMA, solver=ExtrapolatedSweeps(sorts_nodes=sorts_nodes), tol=1e-13)
    np.testing.assert_allclose(found.stacked, pagerank(csr, GAMMA, solver="lu").stacked, rtol=0, atol=1e-13)


def test_equal_weights_are_not_read() -> None:
    scale, weights = np.ones(300), random_digraph(equal=True)
    assert NodeSweep(CSROperator(weights), scale, GAMMA, sorts_nodes=False).weights is None
    weights.data[5] = 2.0  # neither the first nor the last
    assert NodeSweep(CSROperator(weights), scale, GAMMA, sorts_nodes=False).weights is weights.data
    found, exact = (pagerank(weights, GAMMA, solver=solver) for solver in ("gauss-seidel", "lu"))
    np.testing.assert_allclose(found.stacked, exact.stacked, rtol=0, atol=1e-13)


def test_scores_of_many_nodes_sum_to_one() -> None:
    # A running sum of equal scores is wrong by 2e-11 here.
    n_nodes = 1_000_000
    sources = np.arange(n_nodes)
    targets = np.concatenate(((sources + 1) % n_nodes, (sources + 7) % n_nodes))
    ring = sparse.csr_array((np.ones(2 * n_nodes), (targets, np.tile(sources, 2))), shape=(n_nodes, n_nodes))
    assert float(pagerank(ring).stacked.sum()) == pytest.approx(1.0, abs=1e-14)


@table("gamma", [np.nextafter(1.0, 0.0), 1.0 - 2.0**-52])
@table("columns", [None, 2])
def test_sweeps_with_gamma_next_to_one_give_scores(gamma: float, columns: int | None) -> None:
    ring = sparse.csr_array(np.roll(np.eye(300), 1, axis=0) + np.roll(np.eye(300), 3, axis=0))
    teleport = None if columns is None else np.random.default_rng(0).random((300, columns))
    found = pagerank(ring, float(gamma), teleport, solver="gauss-seidel-quadratic", max_iter=200)
    assert found.converged
    assert (found.stacked >= 0.0).all()
    assert found.residuals[-1] >= 0.0


@table("kind", [CSROperator, CSRKernelOperator])
@table("has_cycle", [False, True])
@table("leads_back", [False, True])
def test_a_cycle_that_a_walk_may_miss(*, has_cycle: bool, leads_back: bool, kind: type[CSROperator]) -> None:
    # The node with most incoming edges has sources without any, but for the last one, if that leads to the cycle.
    n_nodes = 400
    edges = np.zeros((n_nodes, n_nodes))
    edges[0, n_nodes - 50 :] = 1.0
    edges[0, 0] = 1.0
    edges[1, 2] = 1.0
    edges[2, 1] = has_cycle
    edges[n_nodes - 1, 1] = leads_back
    assert is_acyclic(kind(sparse.csr_array(edges))) is not has_cycle


@table("backend", ["auto", "scipy", "torch"])
def test_a_matrix_is_read_where_it_lies_unless_its_arrays_are_special(backend: Any) -> None:
    plain = random_digraph(equal=False, seed=4)
    assert np.shares_memory(as_digraph(plain).blocks[0].to_csr().data, plain.data)
    expected = pagerank(plain, backend=backend)
    strided, backwards, readonly = (plain.copy() for _ in range(3))
    for name in ("data", "indices", "indptr"):
        part = getattr(plain, name)
        setattr(strided, name, np.repeat(part, 2)[::2])
        setattr(backwards, name, part[::-1].copy()[::-1])
        getattr(readonly, name).flags.writeable = False
    for matrix in (strided, backwards, readonly):
        assert not np.shares_memory(as_digraph(matrix).blocks[0].to_csr().data, matrix.data)
        np.testing.assert_array_equal(pagerank(matrix, backend=backend).stacked, expected.stacked)
