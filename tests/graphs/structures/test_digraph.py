"""Tests of digraphs of blocks, and of sweeps over them, against dense matrices built entry by entry."""

import itertools
from typing import Any

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from benchmarks.random_graphs import layered
from graphs import BlockDigraph, GraphError, LayeredGraph, bidirectional_graph, pagerank, residual_graph
from graphs.linalg.backends import make_backend
from graphs.linalg.blocks import DenseBlock, SparseBlock
from graphs.linalg.layer_vectors import total_scores
from graphs.ranking.digraph_problem import DigraphProblem
from graphs.solvers import GaussSeidel
from graphs.structures.digraph import EdgeBlock, as_digraph, teleport_vector
from tests.graphs.cases import Array, Case, cases, random_case, unit
from tests.tables import table

BETAS = (0.0, 0.25, 1.0)


def block(matrix: Any) -> SparseBlock:
    return SparseBlock(sparse.csr_array(np.asarray(matrix, dtype=np.float64)))


def column_stochastic(matrix: Array) -> Array:
    """Divide every column by its sum; a zero column remains."""
    result, matrix = np.zeros(matrix.shape), matrix.astype(np.float64)
    for j in range(matrix.shape[1]):
        if matrix[:, j].sum() > 0:
            result[:, j] = matrix[:, j] / matrix[:, j].sum()
    return result


def residual_matrix(case: Case, beta: float, stream: tuple[int, ...]) -> Array:
    """P of the residual graph, entry by entry: shares, divided by the sum of the shares that a node can use."""
    sizes = case.sizes
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    matrix = np.zeros((offsets[-1], offsets[-1]))
    for layer, size in enumerate(sizes):
        for j in range(size):
            column = np.zeros(offsets[-1])
            into_ffn = np.abs(case.weights[layer][:, j]) if layer < len(case.weights) else np.zeros(1)
            skips = layer in stream
            if into_ffn.sum() > 0:
                share = 1 - beta if skips else 1.0
                column[offsets[layer + 1] : offsets[layer + 2]] += share * into_ffn / into_ffn.sum()
            if skips:
                following = stream[(stream.index(layer) + 1) % len(stream)]
                column[offsets[following] + j] += beta if layer != stream[-1] else 1.0
            if column.sum() > 0:
                matrix[:, offsets[layer] + j] = column / column.sum()
    return matrix


def bidirectional_matrix(case: Case) -> Array:
    """P of the bidirectional graph."""
    offsets = np.concatenate(([0], np.cumsum(case.sizes)))
    matrix = np.zeros((offsets[-1], offsets[-1]))
    for layer, weight in enumerate(case.weights):
        for i, j in itertools.product(*map(range, weight.shape)):
            matrix[offsets[layer + 1] + i, offsets[layer] + j] = abs(weight[i, j])
            matrix[offsets[layer] + j, offsets[layer + 1] + i] = abs(weight[i, j])
    return column_stochastic(matrix)


def problem(digraph: BlockDigraph, gamma: float, teleport: Any = None, backend: str = "auto") -> DigraphProblem:
    jump = teleport_vector(digraph, teleport)
    return DigraphProblem(digraph, make_backend(backend, None, "float64", digraph.blocks), gamma, jump, 5)


def transition(digraph: BlockDigraph, backend: str = "auto") -> Array:
    """P column by column, by products with the operators."""
    found = problem(digraph, 0.5, backend=backend)
    columns = [found.stack(found.apply_transition(found.split(unit))) for unit in np.eye(digraph.n_nodes)]
    return np.stack(columns, axis=1)


@st.composite
def streams(draw: st.DrawFn) -> Case:
    """A chain of two FFNs whose residual layers are of one size; zeros and dangling columns included."""
    width = draw(st.integers(1, 4))
    case = draw(cases(min_blocks=4, max_blocks=4, max_size=4))
    sizes = [width if layer % 2 == 0 else size for layer, size in enumerate(case.sizes)]
    weights = [np.resize(w, (n, m)) for w, (m, n) in zip(case.weights, itertools.pairwise(sizes), strict=True)]
    activations = [np.resize(a, size) for a, size in zip((case.inputs, *case.activations), sizes, strict=True)]
    return Case(weights, activations[0], activations[1:])


# --- the two digraphs that are made from a chain


@given(streams(), st.sampled_from([*BETAS, 0.7]))
def test_the_residual_graph_is_that_of_the_textbook(case: Case, beta: float) -> None:
    digraph = residual_graph(case.graph(), beta)
    expected = residual_matrix(case, beta, (0, 2, 4))
    np.testing.assert_allclose(transition(digraph), expected, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(column_stochastic(digraph.to_scipy().toarray()), expected, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(problem(digraph, 0.5).matrix().toarray(), expected, rtol=1e-13, atol=1e-15)


@given(cases())
def test_the_bidirectional_graph_is_that_of_the_textbook(case: Case) -> None:
    digraph = bidirectional_graph(case.graph())
    expected = bidirectional_matrix(case)
    np.testing.assert_allclose(transition(digraph), expected, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(problem(digraph, 0.5).matrix().toarray(), expected, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(column_stochastic(digraph.to_scipy().toarray()), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("backend", ["scipy", "torch", "dense", "auto"])
@table("beta", BETAS)
def test_every_backend_acts_as_the_textbook(backend: str, beta: float) -> None:
    case = random_case(1, (4, 7, 4, 6, 4), density=0.5)
    expected = residual_matrix(case, beta, (0, 2, 4))
    np.testing.assert_allclose(
        transition(residual_graph(case.graph(), beta), backend), expected, rtol=1e-13, atol=1e-15
    )
    expected = bidirectional_matrix(case)
    np.testing.assert_allclose(transition(bidirectional_graph(case.graph()), backend), expected, rtol=1e-13, atol=1e-15)


def test_no_node_of_a_full_residual_graph_dangles() -> None:
    for beta in BETAS:
        matrix = transition(residual_graph(random_case(1, (4, 7, 4, 6, 4)).graph(), beta))
        np.testing.assert_allclose(matrix.sum(axis=0), 1.0, rtol=1e-13)


@pytest.mark.parametrize("beta", [0.25, 0.6, 1.0])
def test_a_node_without_edges_into_the_ffn_passes_everything_on(beta: float) -> None:
    case = random_case(2, (3, 5, 3))
    case.weights[0][:, 1] = 0.0
    matrix = transition(residual_graph(case.graph(), beta))
    assert matrix[8 + 1, 1] == pytest.approx(1.0, rel=1e-14)
    assert matrix[:, 1].sum() == pytest.approx(1.0, rel=1e-14)
    assert matrix[8 + 0, 0] == pytest.approx(beta, rel=1e-14)
    assert matrix[3:8, 0].sum() == pytest.approx(1 - beta, rel=1e-14)


def test_the_ends_of_beta() -> None:
    case = random_case(2, (3, 5, 3))
    skip = transition(residual_graph(case.graph(), 1.0))
    np.testing.assert_array_equal(skip[8:, :3], np.eye(3))
    assert not skip[3:8].any()  # nothing goes into the FFN
    np.testing.assert_array_equal(skip[:3, 8:], np.eye(3))
    none = transition(residual_graph(case.graph(), 0.0))
    assert not none[8:, :3].any()
    np.testing.assert_allclose(none[3:8, :3], column_stochastic(np.abs(case.weights[0])), rtol=1e-13)


def test_streams_may_be_named() -> None:
    # FFNs of one block, so that every layer belongs to the stream; and a stream that begins in the middle.
    case = random_case(3, (4, 4, 4))
    digraph = residual_graph(case.graph(), 0.25, stream=(0, 1, 2))
    np.testing.assert_allclose(transition(digraph), residual_matrix(case, 0.25, (0, 1, 2)), rtol=1e-13, atol=1e-16)
    np.testing.assert_allclose(
        column_stochastic(digraph.to_scipy().toarray()), residual_matrix(case, 0.25, (0, 1, 2)), rtol=1e-13, atol=1e-16
    )
    case = random_case(4, (5, 3, 6, 3))
    digraph = residual_graph(case.graph(), stream=(1, 3))
    np.testing.assert_allclose(transition(digraph), residual_matrix(case, 0.5, (1, 3)), rtol=1e-13, atol=1e-16)


@table(
    ("sizes", "options", "message"),
    [
        ((3, 4, 3), {"beta": -0.1}, r"beta must be a number in \[0, 1\], got -0.1"),
        ((3, 4, 3), {"beta": 1.5}, "beta must be"),
        ((3, 4), {}, r"stream: expected at least two ascending layers >= 0 that end with the last, 1, got \(0,\)"),
        ((3, 4, 3, 4), {}, r"end with the last, 3, got \(0, 2\)"),
        ((3, 4, 2), {}, r"stream: expected layers of one size, got sizes \[3, 2\] of layers \(0, 2\)"),
        ((3, 4, 3), {"stream": (2, 0)}, "ascending"),
        ((3, 4, 3), {"stream": (0, 0, 2)}, "ascending"),
        ((3, 4, 3), {"stream": (-1, 2)}, "ascending"),
        ((3, 4, 3), {"stream": (2,)}, "at least two"),
        ((3, 4, 3), {"stream": (0, 3)}, "end with the last"),
    ],
)
def test_streams_that_do_not_fit_are_refused(sizes: Any, options: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        residual_graph(random_case(1, sizes).graph(), **options)


def test_blocks_are_not_copied() -> None:
    graph = layered([6, 9, 6], seed=1)
    for digraph in (residual_graph(graph), bidirectional_graph(graph), as_digraph(graph)):
        assert {id(b) for b in graph.blocks} <= {id(b) for b in digraph.blocks}
        assert (digraph.layer_sizes, digraph.names, digraph.n_nodes) == (graph.layer_sizes, graph.names, 21)
        assert digraph.activations is graph.activations
    two = bidirectional_graph(graph).edge_blocks
    assert [(e.source, e.target, e.transposed) for e in two] == [
        (0, 1, False),
        (1, 2, False),
        (1, 0, True),
        (2, 1, True),
    ]
    np.testing.assert_array_equal(two[2].csr().toarray(), two[0].csr().toarray().T)


# --- construction


@table(
    ("layers", "edges", "message"),
    [
        (
            (2, 3),
            [EdgeBlock(0, 1, block(np.ones((2, 3))))],
            r"from layer 0 to layer 1: expected shape \(3, 2\) .*got \(2, 3\)",
        ),
        (
            (2, 3),
            [EdgeBlock(0, 1, block(np.ones((3, 2))), transposed=True)],
            r"expected shape \(3, 2\) .* got \(2, 3\)",
        ),
        ((2, 2), [EdgeBlock(0, 1, block(np.eye(2)), share=0.5)], "shares of edges from layer 0: .* of sum 1, got"),
        (
            (2, 2),
            [EdgeBlock(0, 1, block(np.eye(2)), share=1.5), EdgeBlock(0, 0, block(np.eye(2)), share=-0.5)],
            "non-negative",
        ),
        (
            (2, 2),
            [EdgeBlock(0, 1, block(np.eye(2)), share=1.0), EdgeBlock(0, 0, block(np.eye(2)))],
            "one for each block, non-negative",
        ),
    ],
)
def test_blocks_and_shares_have_to_fit(layers: Any, edges: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        BlockDigraph(layers, tuple(edges), tuple("ab"))


def test_shares_are_of_a_layer() -> None:
    # Edges from layer 0 have shares, those from layer 1 weights: 3/4 lead to layer 0; a block without edges gets no share.
    edges = (
        EdgeBlock(0, 1, block([[2.0, 0.0], [6.0, 0.0]]), share=0.9),
        EdgeBlock(0, 0, block([[0.0, 5.0], [1.0, 0.0]]), share=0.1),
        EdgeBlock(1, 0, block([[3.0, 0.0], [0.0, 0.0]])),
        EdgeBlock(1, 1, block([[0.0, 0.0], [1.0, 0.0]])),
    )
    digraph = BlockDigraph((2, 2), edges, ("a", "b"))
    expected = np.array([[0, 1.0, 0.75, 0], [0.1, 0, 0, 0], [0.225, 0, 0, 0], [0.675, 0, 0.25, 0]])
    np.testing.assert_allclose(transition(digraph, "scipy"), expected, rtol=1e-14)
    np.testing.assert_allclose(column_stochastic(digraph.to_scipy().toarray()), expected, rtol=1e-14)


def test_parallel_blocks_add_up() -> None:
    edges = (EdgeBlock(0, 1, block([[1.0, 2.0]])), EdgeBlock(0, 1, block([[2.0], [0.0]]), transposed=True))
    digraph = BlockDigraph((2, 1), edges, ("a", "b"))
    np.testing.assert_array_equal(digraph.to_scipy().toarray(), [[0, 0, 0], [0, 0, 0], [3, 2, 0]])
    assert digraph.to_scipy().nnz == 2


def test_a_digraph_without_edges() -> None:
    digraph = BlockDigraph((2, 3), (), ("a", "b"))
    assert digraph.to_scipy().shape == (5, 5)
    assert digraph.to_scipy().nnz == 0
    result = pagerank(digraph, teleport=np.arange(5.0))
    assert (result.solver, result.stop_reason) == ("sweep", "exact")
    np.testing.assert_allclose(result.stacked, np.arange(5) / 10)


def test_repr_and_offsets() -> None:
    digraph = residual_graph(layered([3, 4, 3], seed=1))
    assert repr(digraph) == "BlockDigraph(3 layer(s) of 3, 4, 3 nodes, 4 block(s) of edges, with edges that lead back)"
    assert digraph.offsets == (0, 3, 7, 10)
    assert repr(as_digraph(sparse.csr_array([[0.0, 1.0], [0.0, 0.0]]))) == (
        "BlockDigraph(1 layer(s) of 2 nodes, 1 block(s) of edges, with edges within a layer)"
    )
    long = as_digraph(layered([1] * 8, seed=1))
    assert repr(long) == "BlockDigraph(8 layer(s) of 1, 1, 1, 1, 1, ... nodes, 7 block(s) of edges, acyclic)"
    assert long.node_labels() == tuple((layer, 0) for layer in range(8))


def test_anything_becomes_a_digraph() -> None:
    digraph = residual_graph(layered([3, 4, 3], seed=1))
    assert as_digraph(digraph) is digraph
    found = as_digraph(networkx.DiGraph([("a", "b"), ("b", "a")]))
    assert (found.layer_sizes, found.labels, len(found.edge_blocks)) == ((2,), ("a", "b"), 1)
    with pytest.raises(GraphError, match=r"expected a networkx graph, a scipy sparse matrix .*BlockDigraph, got list"):
        as_digraph([1])


# --- the order of layers


@given(st.integers(1, 6), st.data())
def test_the_order_is_topological_where_there_is_one(n_layers: int, data: st.DataObject) -> None:
    pairs = data.draw(st.sets(st.tuples(st.integers(0, n_layers - 1), st.integers(0, n_layers - 1)), max_size=8))
    digraph = BlockDigraph(
        (1,) * n_layers, tuple(EdgeBlock(s, t, block([[1.0]])) for s, t in sorted(pairs)), ("",) * n_layers
    )
    order, acyclic = digraph.topological_order
    reference = networkx.DiGraph()
    reference.add_nodes_from(range(n_layers))
    reference.add_edges_from(pairs)
    reference.remove_edges_from([(layer, layer) for layer in range(n_layers)])
    assert acyclic == networkx.is_directed_acyclic_graph(reference)
    assert sorted(order) == list(range(n_layers))
    if acyclic:
        assert all(order.index(s) < order.index(t) for s, t in pairs if s != t)
    else:
        assert order == tuple(range(n_layers))


def test_inner_edges_and_layers_in_any_order_are_swept() -> None:
    rng = np.random.default_rng(3)
    edges = (EdgeBlock(1, 0, block(rng.random((3, 2)))), EdgeBlock(0, 0, block(np.tril(rng.random((3, 3)), -1))))
    digraph = BlockDigraph((3, 2), edges, ("a", "b"))
    expected = pagerank(digraph, solver="lu")
    for solver in ("auto", "sweep"):
        result = pagerank(digraph, solver=solver)  # type: ignore[arg-type]
        assert (result.solver, result.stop_reason) == ("sweep", "exact")
        np.testing.assert_allclose(result.stacked, expected.stacked, rtol=0, atol=1e-14)


def test_inner_edges_of_a_layered_dag_are_swept_in_node_order() -> None:
    rng = np.random.default_rng(3)
    inner = np.tril(rng.random((5, 5)), -1)
    labels = rng.permutation(5)
    edges = (
        EdgeBlock(0, 0, block(inner[np.ix_(labels, labels)])),
        EdgeBlock(0, 1, block(rng.random((4, 5)))),
        EdgeBlock(1, 1, block(np.tril(rng.random((4, 4))))),
    )
    digraph = BlockDigraph((5, 4), edges, ("a", "b"))
    teleport = rng.random(9)
    for backend in ("auto", "scipy"):
        result = pagerank(digraph, 0.9, teleport, backend=backend)  # type: ignore[arg-type]
        assert (result.solver, result.stop_reason) == ("sweep", "exact")
        expected = pagerank(digraph, 0.9, teleport, solver="lu")
        np.testing.assert_allclose(result.stacked, expected.stacked, rtol=0, atol=1e-14)
    # One edge from b to a leads back.
    cyclic = BlockDigraph((5, 4), (*edges, EdgeBlock(1, 0, block(np.eye(5, 4)))), ("a", "b"))
    result = pagerank(cyclic, 0.9, teleport)
    assert (result.solver, result.stop_reason) == ("gauss-seidel", "tolerance")
    expected = pagerank(cyclic, 0.9, teleport, solver="lu")
    assert np.abs(result.stacked - expected.stacked).sum() <= result.error_bound + 1e-14
    found = pagerank(cyclic, 0.9, teleport, backend="torch")
    assert np.abs(found.stacked - expected.stacked).sum() <= found.error_bound + 1e-14
    assert found.solver not in ("gauss-seidel", "sweep")
    assert "no layers" not in found.solver_reason


# --- teleport


def test_teleport_of_the_layers() -> None:
    graph = LayeredGraph.from_weights([[[1.0, 2.0]], [[1.0], [1.0], [1.0]]], [1, 3], [[7], [0, 0, 0]])
    for digraph in (as_digraph(graph), bidirectional_graph(graph)):
        np.testing.assert_allclose(teleport_vector(digraph), np.array([1 / 4, 3 / 4, 1, 1 / 3, 1 / 3, 1 / 3]) / 3)
    np.testing.assert_allclose(teleport_vector(as_digraph(sparse.eye_array(4))), 0.25)


def test_teleport_of_a_user() -> None:
    digraph = bidirectional_graph(layered([2, 3], seed=1))
    np.testing.assert_allclose(teleport_vector(digraph, {(1, 2): 3.0, (0, 0): 1.0}), [0.25, 0, 0, 0, 0.75])
    columns = np.array([[1.0, 0], [1, 0], [0, 0], [0, 5], [0, 5]])
    np.testing.assert_allclose(teleport_vector(digraph, columns), columns / [2, 10])
    np.testing.assert_allclose(teleport_vector(digraph, torch.ones(5, dtype=torch.float32)), 0.2)
    assert teleport_vector(digraph, columns).dtype == np.float64


@table(
    ("teleport", "message"),
    [
        ({(2, 0): 1.0}, r"teleport: expected nodes of the graph, got others: \[\(2, 0\)\]"),
        ({(0, 0): "x"}, "teleport: expected real numbers"),
        ({}, "positive sum"),
        (np.ones(4), r"teleport: expected shape \(5,\), one number per node, or \(5, k\) .* got \(4,\)"),
        (np.ones((5, 0)), r"got \(5, 0\)"),
        (np.ones((5, 2, 2)), r"got \(5, 2, 2\)"),
        (np.array([[1.0, 0.0]] * 5), "positive sum"),
        (np.array([1.0, 1, 1, 1, -1]), "non-negative"),
        (np.array([1.0, 1, 1, 1, np.nan]), "finite"),
    ],
)
def test_teleports_that_do_not_fit_are_refused(teleport: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        teleport_vector(bidirectional_graph(layered([2, 3], seed=1)), teleport)


# --- the problem: F, sweeps and aggregation


@st.composite
def problems(draw: st.DrawFn) -> tuple[DigraphProblem, Array]:
    """A problem with cycles, and F as a dense matrix."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    kind = draw(st.sampled_from(["residual", "bidirectional", "matrix", "blocks"]))
    chain = layered([3, 4, 3, 5, 3], draw(st.sampled_from([1.0, 0.3])), seed=int(rng.integers(1000)))
    if kind == "residual":
        digraph = residual_graph(chain, draw(st.sampled_from([0.0, 0.3, 1.0])))
    elif kind == "bidirectional":
        digraph = bidirectional_graph(chain)
    elif kind == "matrix":
        digraph = as_digraph(sparse.csr_array(rng.random((9, 9)) * (rng.random((9, 9)) < 0.3)))
    else:
        sizes = (3, 2, 4)
        edges = [
            EdgeBlock(s, t, block(rng.random((sizes[t], sizes[s])) * (rng.random((sizes[t], sizes[s])) < 0.5)))
            for s, t in itertools.product(range(3), repeat=2)
            if rng.random() < 0.7
        ]
        digraph = BlockDigraph(sizes, tuple(edges), ("", "", ""))
    teleport = rng.random(digraph.n_nodes) * (rng.random(digraph.n_nodes) < 0.6)
    teleport[rng.integers(digraph.n_nodes)] += 1.0
    gamma = draw(st.sampled_from([0.3, 0.85, 0.99]))
    found = problem(digraph, gamma, teleport, backend="scipy")
    matrix = column_stochastic(digraph.to_scipy().toarray())
    dangling = 1.0 - matrix.sum(axis=0)
    jump = teleport / teleport.sum()
    return found, gamma * (matrix + np.outer(jump, dangling)) + (1 - gamma) * np.outer(jump, np.ones(len(jump)))


@given(problems())
def test_caps_are_the_largest_entries_of_every_row(drawn: tuple[DigraphProblem, Array]) -> None:
    found, _ = drawn
    matrix = column_stochastic(found.digraph.to_scipy().toarray())
    dangling = ~matrix.any(axis=0)
    matrix += np.outer(found.stack(found.teleport), dangling)
    caps = found.row_maxima()
    assert [len(cap) for cap in caps] == list(found.digraph.layer_sizes)
    np.testing.assert_allclose(np.concatenate(caps), matrix.max(axis=1), rtol=1e-12)


@table("backend", ["scipy", "torch", "dense", "auto"])
def test_caps_of_parallel_blocks_hold_for_their_sum(backend: str) -> None:
    case = random_case(3, (4, 4, 4))
    for digraph in (
        residual_graph(case.graph(), 0.5, stream=(0, 1, 2)),
        BlockDigraph((2, 1), (EdgeBlock(0, 1, block([[1.0, 2.0]])), EdgeBlock(0, 1, block([[1.0, 2.0]]))), ("a", "b")),
    ):
        matrix, found = transition(digraph, backend), problem(digraph, 0.5, backend=backend)
        assert (np.concatenate(found.row_maxima()) >= matrix.max(axis=1) * (1 - 1e-12)).all()


def fixed_point(matrix: Array) -> Array:
    """The fixed point of sum 1 of a column-stochastic matrix."""
    n_nodes = len(matrix)
    system = np.vstack([matrix - np.eye(n_nodes), np.ones(n_nodes)])
    result: Array = np.linalg.lstsq(system, np.eye(n_nodes + 1)[-1], rcond=None)[0]
    return result


@given(problems(), st.integers(0, 10**6))
def test_f_is_the_dense_map(drawn: tuple[DigraphProblem, Array], seed: int) -> None:
    found, matrix = drawn
    vector = unit(np.random.default_rng(seed).pareto(1.0, len(matrix)))
    image = found.stack(found.apply(found.split(vector)))
    np.testing.assert_allclose(image, matrix @ vector, rtol=1e-12, atol=1e-15)
    assert image.sum() == pytest.approx(1.0, abs=1e-14)


@given(problems(), st.integers(0, 10**6), st.booleans())
def test_the_residual_of_a_pass_is_an_upper_bound(
    drawn: tuple[DigraphProblem, Array], seed: int, aggregation: bool
) -> None:
    found, matrix = drawn
    rng = np.random.default_rng(seed)
    state = found.split(unit(rng.pareto(1.0, len(matrix))))
    solver, exact = GaussSeidel(aggregation=aggregation), fixed_point(matrix)
    memory = solver.begin(found, state, 0.0)
    for _ in range(6):
        step = solver.step(found, memory)
        memory = step.memory
        vector = found.stack(step.state)
        assert vector.sum() == pytest.approx(1.0, abs=1e-13)
        assert vector.min() >= 0.0
        assert np.abs(matrix @ vector - vector).sum() <= step.residual + 1e-14
        assert np.abs(vector - exact).sum() <= min(step.bounds) + 1e-12
        assert step.bounds == [step.residual / (1 - found.gamma) if not step.exact else 0.0] * found.n_layers
        assert step.products == len(found.digraph.edge_blocks)


@given(problems(), st.integers(0, 10**6))
def test_a_pass_solves_every_layer_from_the_newest(drawn: tuple[DigraphProblem, Array], seed: int) -> None:
    # Plain Gauss-Seidel on x = gamma P x + teleport_mass * v in the order of the layers.
    found, _ = drawn
    digraph = found.digraph
    if any(e.source == e.target for e in digraph.edge_blocks):
        return
    state = unit(np.random.default_rng(seed).pareto(1.0, digraph.n_nodes))
    transition = column_stochastic(digraph.to_scipy().toarray())
    teleport, jump = found.stack(found.teleport), 0.37
    expected = state.copy()
    for layer in digraph.topological_order[0]:
        rows = slice(*digraph.offsets[layer : layer + 2])
        expected[rows] = found.gamma * transition[rows] @ expected + jump * teleport[rows]
    swept = found.sweep(found.split(state), jump)
    np.testing.assert_allclose(found.stack(swept.state), expected / expected.sum(), rtol=1e-12, atol=1e-16)
    assert swept.teleport_mass == pytest.approx(jump / expected.sum())


@given(problems(), st.integers(0, 10**6))
def test_aggregation_solves_the_chain_of_layers(drawn: tuple[DigraphProblem, Array], seed: int) -> None:
    found, _ = drawn
    digraph = found.digraph
    state = unit(np.random.default_rng(seed).pareto(1.0, digraph.n_nodes))
    transition, jump = column_stochastic(digraph.to_scipy().toarray()), 0.37
    after = found.stack(found.aggregate(found.split(state), jump))
    arrived = found.gamma * transition @ after + jump * found.stack(found.teleport)
    for rows in map(slice, digraph.offsets[:-1], digraph.offsets[1:]):
        # The proportions within a layer remain, and the sum of a layer is the sum that arrives there.
        np.testing.assert_allclose(after[rows], after[rows].sum() * unit(state[rows]), rtol=1e-10)
        assert after[rows].sum() == pytest.approx(arrived[rows].sum(), rel=1e-9)


@given(problems())
def test_the_fixed_point_stays_where_it_is(drawn: tuple[DigraphProblem, Array]) -> None:
    found, matrix = drawn
    exact = fixed_point(matrix)
    transition = column_stochastic(found.digraph.to_scipy().toarray())
    jump = 1.0 - found.gamma * (transition @ exact).sum()
    state = found.split(np.maximum(exact, 0.0))
    np.testing.assert_allclose(found.stack(found.aggregate(state, jump)), exact, rtol=0, atol=1e-12)
    swept = found.sweep(state, jump)
    np.testing.assert_allclose(found.stack(swept.state), exact, rtol=0, atol=1e-12)
    assert swept.residual <= 1e-11
    assert float(total_scores(swept.state)) == pytest.approx(1.0, abs=1e-14)


@given(problems(), st.integers(0, 10**6))
def test_columns_are_passed_apart(drawn: tuple[DigraphProblem, Array], seed: int) -> None:
    found, _ = drawn
    rng = np.random.default_rng(seed)
    teleport = rng.random((found.digraph.n_nodes, 3)) + 0.01
    teleport /= teleport.sum(axis=0)
    states, jumps = rng.random(teleport.shape) + 0.01, rng.random(3)
    together = problem(found.digraph, found.gamma, teleport, "scipy")
    image = together.stack(together.apply(together.split(states / states.sum(axis=0))))
    aggregated = together.stack(together.aggregate(together.split(states), jumps))
    swept = together.sweep(together.split(states), jumps)
    residuals = []
    for column in range(3):
        single = problem(found.digraph, found.gamma, teleport[:, column], "scipy")
        state = single.split(states[:, column])
        one = single.stack(single.apply(single.split(states[:, column] / states[:, column].sum())))
        np.testing.assert_allclose(image[:, column], one, rtol=1e-12)
        one = single.stack(single.aggregate(state, jumps[column]))
        np.testing.assert_allclose(aggregated[:, column], one, rtol=1e-10)
        alone = single.sweep(state, jumps[column])
        np.testing.assert_allclose(together.stack(swept.state)[:, column], single.stack(alone.state), rtol=1e-12)
        residuals.append(alone.residual)
    assert swept.residual == pytest.approx(max(residuals), rel=1e-9, abs=1e-15)


def test_overflow_of_the_weights_is_told() -> None:
    # A sparse block is scaled first; a dense one is read as it is.
    edges = (EdgeBlock(0, 1, DenseBlock((np.full((3, 1), 1e308),))),)
    with pytest.raises(GraphError, match="edges from layer 0 to layer 1: the out-strengths are not finite"):
        pagerank(BlockDigraph((1, 3), edges, ("a", "b")))


def test_a_transposed_block_within_a_layer_is_left_to_solvers_that_can_multiply_by_it() -> None:
    inner = np.tril(np.random.default_rng(4).random((5, 5)), -1)
    edges = (EdgeBlock(0, 0, block(inner.T), transposed=True), EdgeBlock(0, 1, block(np.ones((2, 5)))))
    digraph = BlockDigraph((5, 2), edges, ("a", "b"))
    result = pagerank(digraph, 0.9, backend="scipy")
    expected = pagerank(digraph, 0.9, solver="lu")
    assert np.abs(result.stacked - expected.stacked).sum() <= result.error_bound + 1e-14
