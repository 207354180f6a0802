"""Tests of LayeredGraph: its attributes, its errors, and that it does not copy weights."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from graphs import GraphError, LayeredGraph, weighted_pagerank
from graphs.analysis.incident_edges import source_weights, target_weights
from graphs.linalg.backends import make_backend
from graphs.linalg.blocks import DenseBlock, SparseBlock
from graphs.linalg.operators import KernelOperator
from graphs.reduction.edge_selection import row_bands
from tests.graphs.cases import Case, assert_layers_equal, lu_layers, random_case
from tests.graphs.forms import every_form, formed
from tests.tables import table

WEIGHTS = [np.array([[1.0, -2.0], [0.0, 3.0], [1.0, 0.0]]), np.array([[1.0, 1.0, 0.0]])]


def make(**changes: Any) -> LayeredGraph:
    arguments = {"weights": WEIGHTS, "inputs": [1, 2], "activations": [[1, 2, 3], [4]]}
    return LayeredGraph.from_weights(**{**arguments, **changes})


def test_counts() -> None:
    graph = make()
    assert graph.layer_sizes == (2, 3, 1)
    assert graph.offsets == (0, 2, 5, 6)
    assert (graph.n_nodes, graph.n_edges, graph.capacity) == (6, 6, 9)
    assert graph.density == pytest.approx(6 / 9)
    assert graph.names == ("layer 0", "layer 1", "layer 2")


def test_a_block_is_the_csr_into_its_layer() -> None:
    graph = make()
    np.testing.assert_array_equal(graph.block(1).toarray(), np.abs(WEIGHTS[0]))
    np.testing.assert_array_equal(graph.block(2).toarray(), WEIGHTS[1])
    for layer in (0, 3, -1):
        with pytest.raises(GraphError, match=f"layer must be an integer from 1 to 2, got {layer}"):
            graph.block(layer)


def test_other_activations_of_one_layer_leave_the_rest_alone() -> None:
    graph = LayeredGraph.from_weights([np.ones((3, 2)), np.ones((2, 3))], [1, 1], [[1, 2, 3], [1, 1]])
    other = graph.with_activations(1, [4.0, 0.0, 6.0])
    assert [vector.tolist() for vector in other.activations] == [[1, 1], [4, 0, 6], [1, 1]]
    assert graph.activations[1].tolist() == [1, 2, 3]
    assert other.blocks is graph.blocks
    for layer, vector, message in (
        (3, [1.0], "from 0 to 2"),
        (1, [1.0], "shape"),
        (1, [1.0, -1.0, 0.0], "non-negative"),
    ):
        with pytest.raises(GraphError, match=message):
            graph.with_activations(layer, vector)


def test_with_csr_stores_every_block_and_changes_no_number() -> None:
    graph = random_case(1, (5, 6, 4), density=0.5).graph()
    stored = graph.with_csr()
    assert not any(isinstance(block, SparseBlock) for block in graph.blocks)
    assert all(isinstance(block, SparseBlock) for block in stored.blocks)
    assert stored.block(1) is stored.block(1)
    for layer in (1, 2):
        np.testing.assert_array_equal(stored.block(layer).toarray(), graph.block(layer).toarray())
    assert stored.activations is graph.activations
    assert stored.names == graph.names
    assert (stored.n_edges, stored.layer_sizes) == (graph.n_edges, graph.layer_sizes)


@every_form
def test_the_reversed_graph_has_the_transposed_blocks_in_opposite_order(form: str) -> None:
    graph, case = formed(random_case(2, (5, 6, 4, 3), density=0.6), form)
    back = graph.reversed()
    assert back.layer_sizes == (3, 4, 6, 5)
    assert back.names == graph.names[::-1]
    assert_layers_equal(back.activations, [*case.activations[::-1], case.inputs])
    for layer, weight in enumerate(case.weights[::-1], start=1):
        csr = back.block(layer)
        assert csr.has_canonical_format
        assert csr.indices.dtype == np.int32
        np.testing.assert_allclose(csr.toarray(), weight.T, rtol=1e-6)
    twice = back.reversed()
    for layer in (1, 2, 3):
        np.testing.assert_array_equal(twice.block(layer).toarray(), graph.block(layer).toarray())


@table("backend", ["auto", "dense", "scipy", "torch"])
@every_form
def test_ranks_of_the_reversed_graph_are_those_of_the_transposed_matrices(form: str, backend: Any) -> None:
    graph, case = formed(random_case(3, (5, 6, 4), density=0.6), form)
    layers = [case.inputs, *case.activations][::-1]
    by_hand = Case([weight.T for weight in case.weights[::-1]], layers[0], layers[1:])
    found = weighted_pagerank(graph.reversed(), 0.7, 0.4, backend=backend).scores
    assert_layers_equal(found, lu_layers(by_hand, 0.7, 0.4), rtol=1e-6)


def test_reversing_copies_no_dense_weight() -> None:
    numbers, tensor = np.ones((3, 2), np.float32), torch.ones(2, 3)
    graph = LayeredGraph.from_weights([(numbers, numbers), tensor], [1, 1], [[1, 1, 1], [1, 1]]).reversed()
    second, first = graph.blocks
    assert isinstance(first, DenseBlock)
    assert isinstance(second, DenseBlock)
    assert all(np.shares_memory(matrix, numbers) for matrix in first.matrices)
    assert second.matrices[0].data_ptr() == tensor.data_ptr()


def test_the_compiled_kernels_read_a_reversed_block_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphs.linalg.backends.KERNEL_ENTRIES", 1)
    for form in (np.ascontiguousarray, np.asfortranarray, lambda w: torch.tensor(w).bfloat16()):
        case = random_case(4, (7, 9))
        block = case.graph([form(case.weights[0])]).reversed().blocks[0]
        assert isinstance(make_backend("auto", None, "float64", [block]).operator(block, 1), KernelOperator)


@every_form
def test_the_squared_graph_has_squared_weights_and_activations(form: str) -> None:
    case = random_case(5, (5, 6, 4), density=0.6)
    graph, seen = formed(case, form)
    # Parallel edges are squared one by one, and their squares add up.
    squares = [weight**2 for weight in seen.weights]
    if form.startswith("parallel"):
        squares = [w**2 + (2 * w[:, ::-1]) ** 2 for w in case.weights]
    elif form == "three":
        squares = [2 * w**2 + w[::-1] ** 2 for w in case.weights]
    energies = graph.squared()
    assert_layers_equal(energies.activations, [case.inputs**2, *(a**2 for a in case.activations)])
    assert energies.names == graph.names
    for layer, wanted in enumerate(squares, start=1):
        np.testing.assert_allclose(energies.block(layer).toarray(), wanted, rtol=1e-12)
        assert energies.blocks[layer - 1].n_edges == np.count_nonzero(wanted)
        row, column = (
            target_weights(energies.blocks[layer - 1], 1),
            source_weights(energies.blocks[layer - 1], 1, layer),
        )
        np.testing.assert_allclose(row, wanted[1], rtol=1e-12)
        np.testing.assert_allclose(column, wanted[:, 1], rtol=1e-12)
        excerpt = [csr.toarray() for _, csr in row_bands(energies.blocks[layer - 1], np.array([0, 2]))]
        np.testing.assert_allclose(np.concatenate(excerpt), wanted[[0, 2]], rtol=1e-12)
    by_hand = Case(squares, case.inputs**2, [a**2 for a in case.activations])
    for backend in ("auto", "dense", "scipy", "torch"):
        assert_layers_equal(
            weighted_pagerank(energies, 0.7, 0.4, backend=backend).scores, lu_layers(by_hand, 0.7, 0.4), rtol=1e-9
        )


@every_form
def test_squares_can_be_squared(form: str) -> None:
    graph, _ = formed(random_case(5, (5, 6), density=0.6), form)
    once, twice = (g.block(1).toarray() for g in (graph.squared(), graph.squared().squared()))
    if form in ("parallel", "parallel csr", "three"):
        assert (twice[once > 0] < once[once > 0] ** 2).any()
    else:
        np.testing.assert_allclose(twice, once**2, rtol=1e-12)


@every_form
def test_the_first_of_parallel_edges_alone(form: str) -> None:
    case = random_case(6, (5, 6, 4), density=0.6)
    graph, seen = formed(case, form)
    wanted = [np.abs(w) for w in case.weights] if form.startswith("parallel") or form == "three" else seen.weights
    first = graph.first_parallel()
    assert (first.activations, first.names) == (graph.activations, graph.names)
    for layer, weight in enumerate(wanted, start=1):
        np.testing.assert_allclose(first.block(layer).toarray(), weight, rtol=1e-12)
        np.testing.assert_allclose(first.squared().block(layer).toarray(), weight**2, rtol=1e-12)
        back = graph.reversed().first_parallel().block(3 - layer).toarray()
        np.testing.assert_allclose(back, weight.T, rtol=1e-12)
        assert first.blocks[layer - 1].n_edges == np.count_nonzero(weight)
    assert first.first_parallel().block(1).toarray().tolist() == first.block(1).toarray().tolist()


def test_stored_parallel_edges_are_squared_one_by_one_after_a_reversal_too() -> None:
    graph = LayeredGraph.from_weights([tuple(sparse.csr_array(w) for w in ([[1, -2]], [[3, 0]]))], [1, 2], [[3]])
    assert graph.block(1).toarray().tolist() == [[4, 2]]
    assert graph.squared().block(1).toarray().tolist() == [[10, 4]]
    assert graph.squared().squared().block(1).toarray().tolist() == [[82, 16]]
    assert graph.reversed().squared().block(1).toarray().tolist() == [[10], [4]]


def test_squares_must_be_finite() -> None:
    with pytest.raises(GraphError, match="activations of layer 2: 1 value"):
        make(activations=[[1, 2, 3], [1e200]]).squared()


def test_a_stored_weight_too_small_to_have_a_square_is_no_edge() -> None:
    tiny = sparse.csr_array([[1e-200, 2.0]])
    graph = LayeredGraph.from_weights([tiny], [1, 1], [[1]])
    assert graph.n_edges == 2
    assert graph.squared().n_edges == 1
    assert graph.n_edges == 2


def test_activations_are_read_only_copies() -> None:
    inputs = np.array([1.0, 2.0])
    graph = make(inputs=inputs)
    inputs[0] = 99.0
    assert graph.activations[0][0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        graph.activations[0][0] = 5.0


def test_the_graph_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().names = ()  # type: ignore[misc]


@table(
    "vector",
    [(1, 2), np.array([1, 2], np.int8), torch.tensor([1.0, 2.0]).bfloat16(), torch.tensor([1.0, 2.0]).requires_grad_()],
)
def test_activations_of_any_form_become_float64(vector: Any) -> None:
    activations = make(inputs=vector).activations[0]
    assert activations.dtype == np.float64
    np.testing.assert_array_equal(activations, [1.0, 2.0])


def test_names_are_kept_in_order() -> None:
    assert make(names=["in", "hidden", "out"]).names == ("in", "hidden", "out")


def test_repr_counts_what_is_cheap_to_count() -> None:
    assert repr(make()) == "LayeredGraph(3 layers: 2 -> 3 -> 1 nodes, 6 nodes, 6 edges, density 0.667)"
    deep = random_case(1, (2,) * 9).graph()
    assert "9 layers: 2 -> 2 -> 2 -> ... -> 2 -> 2 nodes" in repr(deep)
    large = np.broadcast_to(np.float32(1.0), (1100, 1100))
    graph = LayeredGraph.from_weights([large], np.ones(1100), [np.ones(1100)], check_finite=False)
    assert "at most 1,210,000 edges" in repr(graph)
    assert "edges" not in vars(graph.blocks[0])


@table(
    ("changes", "message"),
    [
        ({"weights": []}, "at least one weight matrix"),
        ({"activations": [[1, 2, 3]]}, r"one activation vector per weight matrix \(2; .*got 1"),
        (
            {"weights": WEIGHTS[::-1]},
            "block 2: expected 1 source nodes, the targets of block 1, got 2; consecutive",
        ),
        ({"weights": [WEIGHTS[0], np.ones(3)]}, "block 2: expected a matrix"),
        ({"weights": [WEIGHTS[0], np.array([[1, 2, np.nan]])]}, "block 2: .* row 0, column 2"),
        ({"names": ["a", "b"]}, r"expected 3 distinct layer names, got \['a', 'b'\]"),
        ({"names": ["a", "b", "a"]}, "expected 3 distinct layer names"),
        ({"inputs": [1, 2, 3]}, r"inputs: expected shape \(2,\), one number per node, got \(3,\)"),
        ({"inputs": [[1, 2]]}, r"inputs: expected shape \(2,\)"),
        ({"inputs": ["a", "b"]}, "inputs: expected 2 real numbers, got list"),
        ({"inputs": None}, "inputs: "),
        ({"inputs": [1, 1j]}, "inputs: expected 2 real numbers, .* complex128"),
        ({"inputs": [[1], [1, 2]]}, "inputs: expected 2 real numbers"),
        ({"activations": [[1, -2, 3], [4]]}, "activations of layer 1: expected non-negative .* got -2.0 at node 1"),
        ({"activations": [[1, 2, 3], [np.nan]]}, r"activations of layer 2: 1 value.* first at node 0 \(nan\)"),
        (
            {"activations": [[1, np.inf, 3], [4]]},
            r"activations of layer 1: .* first at node 1 \(inf\); check the model",
        ),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        make(**changes)


def test_a_graph_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="at least one weight matrix"):
        make(weights=[])
