"""Tests of the PageRank of digraphs against networkx and an exact solve."""

import math
import warnings
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from graphs import BlockDigraph, GraphError, pagerank, weighted_pagerank
from graphs.io.convert import to_networkx
from graphs.structures.digraph import as_digraph
from tests.graphs.cases import DAMPINGS, MAGNITUDES, Array, Case, cases, random_case, unit
from tests.tables import table


@st.composite
def matrices(draw: st.DrawFn, max_size: int = 7) -> Array:
    """Weights of any digraph, row = target: cycles, self loops, dangling and unreachable nodes."""
    size = draw(st.integers(1, max_size))
    return draw(arrays(np.float64, (size, size), elements=MAGNITUDES, fill=st.nothing()))


@st.composite
def teleports(draw: st.DrawFn, size: int) -> Array | None:
    vector = draw(st.none() | arrays(np.float64, size, elements=MAGNITUDES, fill=st.nothing()))
    if vector is not None and not vector.any():
        vector[-1] = 1.0
    return vector


def exact(matrix: Array, gamma: float, teleport: Array | None) -> Array:
    """Dense solve of r = gamma (P + v d^T) r + (1 - gamma) v."""
    size = len(matrix)
    v = np.full(size, 1 / size) if teleport is None else teleport / teleport.sum()
    strength = matrix.sum(axis=0)
    transition = np.where(strength > 0, matrix / np.where(strength > 0, strength, 1), v[:, None])
    return np.linalg.solve(np.eye(size) - gamma * transition, (1 - gamma) * v)


def as_networkx(matrix: Array) -> networkx.DiGraph:
    digraph = networkx.DiGraph()
    digraph.add_nodes_from(range(len(matrix)))
    digraph.add_weighted_edges_from((j, i, matrix[i, j]) for i, j in zip(*np.nonzero(matrix), strict=True))
    return digraph


@given(st.data(), matrices(), DAMPINGS)
def test_equals_networkx(data: st.DataObject, matrix: Array, gamma: float) -> None:
    teleport = data.draw(teleports(len(matrix)))
    digraph = as_networkx(matrix)
    personalization = None if teleport is None else dict(enumerate(teleport))
    expected = networkx.pagerank(digraph, gamma, personalization, tol=1e-13 / len(matrix), max_iter=2000)
    found = pagerank(digraph, gamma, personalization).as_dict()
    assert found == pytest.approx(expected, abs=1e-10)
    assert list(found) == list(digraph)


@given(st.data(), matrices(), DAMPINGS)
def test_equals_an_exact_solve(data: st.DataObject, matrix: Array, gamma: float) -> None:
    teleport = data.draw(teleports(len(matrix)))
    result = pagerank(sparse.csr_array(matrix), gamma, teleport, tol=1e-14)
    assert result.converged
    np.testing.assert_allclose(result.scores[0], exact(matrix, gamma, teleport), rtol=1e-9, atol=1e-12)
    assert result.scores[0].sum() == pytest.approx(1.0, abs=1e-14)


@given(st.data(), matrices(), DAMPINGS)
def test_the_bound_holds_at_every_stop(data: st.DataObject, matrix: Array, gamma: float) -> None:
    teleport = data.draw(teleports(len(matrix)))
    truth = exact(matrix, gamma, teleport)
    for steps in range(1, 8):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            result = pagerank(sparse.csr_array(matrix), gamma, teleport, tol=0.0, max_iter=steps)
            plain = pagerank(sparse.csr_array(matrix), gamma, teleport, solver="power", tol=0.0, max_iter=steps)
        # The bound is for F(r), one step after the r of the residual.
        assert plain.error_bound == pytest.approx(gamma / (1 - gamma) * plain.residuals[-1], rel=1e-12)
        for found in (result, plain):
            assert np.abs(found.scores[0] - truth).sum() <= found.error_bound + 1e-13


@given(matrices(), DAMPINGS, st.integers(1, 6))
def test_an_early_stop_returns_the_iterate_and_its_residuals(matrix: Array, gamma: float, steps: int) -> None:
    size = len(matrix)
    strength = matrix.sum(axis=0)
    transition = np.where(strength > 0, matrix / np.where(strength > 0, strength, 1), 1 / size)
    iterates = [np.full(size, 1 / size)]
    for _ in range(steps):
        iterates.append(gamma * transition @ iterates[-1] + (1 - gamma) / size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result = pagerank(sparse.csr_array(matrix), gamma, solver="power", tol=0.0, max_iter=steps)
    # A residual of exactly zero may stop it earlier.
    taken = result.iterations
    np.testing.assert_allclose(result.scores[0], iterates[taken], rtol=1e-12, atol=1e-15)
    expected = np.abs(np.diff(iterates[: taken + 1], axis=0)).sum(axis=1)
    np.testing.assert_allclose(result.residuals, expected, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(result.layer_residuals[:, 0], expected, rtol=1e-9, atol=1e-14)


@given(cases(), DAMPINGS)
def test_a_layered_graph_ranks_as_its_networkx_form(case: Case, gamma: float) -> None:
    graph = case.graph()
    uniform = np.full(graph.n_nodes, 1 / graph.n_nodes)
    expected = networkx.pagerank(to_networkx(graph), gamma, tol=1e-14, max_iter=2000)
    assert pagerank(graph, gamma, uniform).as_dict() == pytest.approx(expected, abs=1e-10)


@given(cases(), DAMPINGS)
def test_the_teleport_of_a_layered_graph_is_its_activations(case: Case, gamma: float) -> None:
    # All layers get the same sum for any scale of their activations; layers of zero activations are uniform.
    graph = case.graph()
    mass = {
        (layer, k): share / len(case.sizes)
        for layer, activation in enumerate((case.inputs, *case.activations))
        for k, share in enumerate(unit(activation))
    }
    expected = networkx.pagerank(to_networkx(graph), gamma, mass, tol=1e-14, max_iter=2000)
    result = pagerank(graph, gamma)
    assert result.as_dict() == pytest.approx(expected, abs=1e-10)
    assert [scores.shape for scores in result.scores] == [(size,) for size in case.sizes]
    assert result.stacked.sum() == pytest.approx(1.0, abs=1e-14)


def test_a_graph_without_activations_teleports_uniformly() -> None:
    graph = random_case(2, (4, 5, 3)).graph()
    bare = BlockDigraph(graph.layer_sizes, as_digraph(graph).edge_blocks, graph.names)
    uniform = np.full(graph.n_nodes, 1 / graph.n_nodes)
    np.testing.assert_allclose(pagerank(bare).stacked, pagerank(graph, teleport=uniform).stacked, rtol=1e-14)
    assert np.abs(pagerank(graph).stacked - pagerank(bare).stacked).sum() > 1e-3


@given(st.data(), matrices(), DAMPINGS)
def test_columns_of_a_teleport_are_ranks_of_their_own(data: st.DataObject, matrix: Array, gamma: float) -> None:
    vectors = [data.draw(teleports(len(matrix))) for _ in range(3)]
    columns = np.column_stack([np.ones(len(matrix)) if vector is None else vector for vector in vectors])
    result = pagerank(sparse.csr_array(matrix), gamma, columns, tol=1e-14)
    assert result.scores[0].shape == columns.shape
    for k, vector in enumerate(vectors):
        np.testing.assert_allclose(result.scores[0][:, k], exact(matrix, gamma, vector), rtol=1e-9, atol=1e-12)


def test_a_layered_graph_ranks_as_its_own_layered_rank() -> None:
    # MATH section 4: with this teleport the two agree layer by layer once each layer is divided by its sum.
    case, gamma = random_case(1, (5, 6, 4)), 0.6
    activations = (case.inputs, *case.activations)
    teleport = [a / a.sum() * (1.0 if layer == 0 else 1 - gamma) for layer, a in enumerate(activations)]
    layers = pagerank(case.graph(), gamma, np.concatenate(teleport), tol=1e-15).scores
    for part, expected in zip(layers, weighted_pagerank(case.graph(), gamma).scores, strict=True):
        np.testing.assert_allclose(part / part.sum(), expected, rtol=1e-10)


# --- types of input


def test_a_matrix_has_its_targets_in_rows() -> None:
    # Node 0 points at node 1: entry (1, 0). All scores that do not teleport arrive at node 1.
    scores = pagerank(sparse.csr_array(([1.0], ([1], [0])), shape=(2, 2))).scores[0]
    assert scores[1] > scores[0]


@pytest.mark.parametrize("weight", ["weight", "cost", None])
def test_edge_attributes_are_chosen_as_in_networkx(weight: str | None) -> None:
    digraph = networkx.DiGraph()
    digraph.add_edge("a", "b", weight=1.0, cost=5.0)
    digraph.add_edge("a", "c", weight=3.0, cost=2.0)
    digraph.add_edge("c", "a")
    expected = networkx.pagerank(digraph, weight=weight, tol=1e-14)
    assert pagerank(digraph, weight=weight).as_dict() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("kind", [networkx.Graph, networkx.MultiDiGraph, networkx.MultiGraph])
def test_undirected_and_multigraphs_as_in_networkx(kind: Any) -> None:
    graph = kind()
    graph.add_weighted_edges_from([(0, 1, 1.0), (0, 1, 2.0), (1, 2, 0.5), (2, 2, 4.0), (3, 0, 1.0)])
    expected = networkx.pagerank(graph, tol=1e-14, max_iter=500)
    assert pagerank(graph).as_dict() == pytest.approx(expected, abs=1e-11)


def test_a_teleport_mapping_leaves_the_unnamed_at_zero() -> None:
    digraph = networkx.DiGraph([("a", "b"), ("c", "a")])
    found = pagerank(digraph, teleport={"a": 3.0}).as_dict()
    assert found["c"] == 0.0
    assert found == pytest.approx(
        networkx.pagerank(digraph, personalization={"a": 1}, tol=1e-14, max_iter=500), abs=1e-11
    )


def test_a_torch_teleport_is_taken() -> None:
    matrix = sparse.csr_array(np.ones((3, 3)))
    np.testing.assert_allclose(pagerank(matrix, 0.0, torch.tensor([1.0, 1.0, 2.0])).scores[0], [0.25, 0.25, 0.5])


def test_gamma_zero_is_the_teleport() -> None:
    result = pagerank(sparse.csr_array(np.ones((4, 4))), 0.0, np.arange(4.0))
    np.testing.assert_allclose(result.scores[0], np.arange(4) / 6)
    assert result.error_bound == 0.0


def test_the_input_matrix_is_left_alone() -> None:
    matrix = sparse.coo_array(([1.0, 2.0, 0.0], ([1, 1, 0], [0, 0, 1])), shape=(2, 2)).tocsr()
    before = matrix.copy()
    pagerank(matrix)
    np.testing.assert_array_equal(matrix.data, before.data)


def test_running_out_warns_the_caller() -> None:
    digraph = networkx.DiGraph([(0, 1), (1, 2), (2, 0), (0, 2)])
    with pytest.warns(RuntimeWarning, match="stopped after max_iter=2 steps") as caught:
        result = pagerank(digraph, max_iter=2, solver="power")
    assert Path(caught[0].filename) == Path(__file__)
    assert (result.converged, result.stop_reason, result.iterations) == (False, "max_iter", 2)
    assert result.block_products == len(result.residuals) == 2
    assert math.isfinite(result.error_bound)


@pytest.mark.parametrize("kernels_from", [1, 1000])
@pytest.mark.parametrize("has_cycle", [False, True])
def test_one_sweep_is_exact_if_a_layer_has_no_cycles_but_loops(
    has_cycle: bool, kernels_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphs.linalg.backends.KERNEL_ENTRIES", kernels_from)
    edges = np.triu(np.ones((6, 6)))
    edges[5, 0] = has_cycle
    result = pagerank(sparse.csr_array(edges), solver="gauss-seidel")
    assert (result.stop_reason == "exact") == (not has_cycle)
    assert (result.iterations == 1) == (not has_cycle)


# --- refusals

PAIR = networkx.DiGraph([(0, 1)])


@table(
    ("graph", "options", "message"),
    [
        (networkx.DiGraph(), {}, "at least one node"),
        (sparse.csr_array((0, 0)), {}, "square matrix"),
        (sparse.csr_array((2, 3)), {}, r"square matrix \(n, n\) with n > 0, got shape \(2, 3\)"),
        (sparse.coo_array(np.ones(3)), {}, "square matrix"),
        (np.eye(2), {}, "networkx graph, a scipy sparse matrix .* got ndarray"),
        (sparse.csr_array([[-1.0]]), {}, "non-negative, got negative"),
        (sparse.csr_array([[np.nan]]), {}, "not finite, the first at row 0, column 0"),
        (sparse.csr_array([[1j]]), {}, "expected real numbers, got dtype complex128"),
        (networkx.DiGraph([(0, 1, {"weight": "x"})]), {}, "edge attribute 'weight': expected real numbers"),
        (networkx.DiGraph([(0, 1, {"weight": -1.0})]), {}, "non-negative, got negative"),
        (PAIR, {"gamma": 1.0}, r"gamma must be a number in \[0, 1\), got 1.0"),
        (PAIR, {"backend": "dense"}, "'dense' is not for edges within a layer; expected 'auto', 'scipy' or 'torch'"),
        (PAIR, {"backend": "cupy"}, "unknown backend 'cupy'; expected one of scipy, torch, dense, auto"),
        (PAIR, {"backend": "torch", "dtype": "int8"}, "unknown dtype 'int8'"),
        (PAIR, {"teleport": np.array([1.0, 1j])}, "teleport: expected real numbers, got dtype complex128"),
        (PAIR, {"start": [np.array([1.0, 1j])]}, "start: expected vectors of real numbers, .* got dtype complex128"),
        (PAIR, {"teleport": [1.0]}, r"teleport: expected shape \(2,\), one number per node, .* got \(1,\)"),
        (PAIR, {"start": [[1.0, 1.0], [1.0, 1.0]]}, r"start: expected 1 vectors of sizes \(2,\)"),
        (PAIR, {"start": [[1.0, -1.0]]}, "start: layer 0: expected finite, non-negative numbers"),
        (PAIR, {"start": [[0.0, 0.0]]}, "start: expected a positive sum"),
        (PAIR, {"start": [["a", "b"]]}, "start: expected vectors of real numbers"),
        (PAIR, {"start": 5}, "start: expected vectors of real numbers"),
        (PAIR, {"start": [torch.ones(2, device="meta")]}, "start: expected .*, got a tensor on the meta device"),
        (PAIR, {"teleport": torch.ones(2, device="meta")}, "teleport: expected .*, got a tensor on the meta device"),
        (PAIR, {"teleport": [1.0, np.inf]}, "teleport: .* finite"),
    ],
)
def test_refusals(graph: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        pagerank(graph, **options)
