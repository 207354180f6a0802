"""Tests of sweeps over the nodes of one layer against the same steps on vectors, and against a direct solution."""

import numpy as np
import pytest
from scipy import sparse

from graphs import pagerank
from graphs.linalg.backends import make_backend
from graphs.linalg.layer_vectors import layer_norms, subtract
from graphs.ranking.digraph_problem import DigraphProblem
from graphs.solvers import ExtrapolatedSweeps
from graphs.structures.digraph import as_digraph
from tests.graphs.cases import Array
from tests.tables import table

GAMMA = 0.85


def random_digraph(equal: bool, seed: int = 0, n_nodes: int = 300) -> sparse.csr_array:
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
    csr, rng = random_digraph(equal), np.random.default_rng(1)
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
    assert float(found.residual) == pytest.approx(float(expected.residual), rel=1e-9)
    assert float(change) == pytest.approx(float(layer_norms(subtract(expected.state, state))[0]), rel=1e-12)


@table("equal", [True, False])
@table("sorts_nodes", [True, False])
@table("dtype", ["float64", "float32"])
@table("columns", [None, 2])
def test_sweeps_end_at_the_direct_solution(equal: bool, sorts_nodes: bool, dtype: str, columns: int | None) -> None:
    csr = random_digraph(equal, seed=2)
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
    # The weights are read where they lie.
    np.testing.assert_array_equal(csr.data, weights)
    np.testing.assert_array_equal(csr.indices, indices)
