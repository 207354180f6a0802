"""LayeredGraph: what it holds, what it refuses, and that weights are not copied."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from graphs import GraphError, LayeredGraph
from tests.graphs.cases import random_case

WEIGHTS = [np.array([[1.0, -2.0], [0.0, 3.0], [1.0, 0.0]]), np.array([[1.0, 1.0, 0.0]])]


def make(**changes: Any) -> LayeredGraph:
    arguments = {"weights": WEIGHTS, "inputs": [1, 2], "activations": [[1, 2, 3], [4]]}
    return LayeredGraph.from_weights(**{**arguments, **changes})


def test_counts() -> None:
    graph = make()
    assert graph.layers == (2, 3, 1)
    assert graph.offsets == (0, 2, 5, 6)
    assert (graph.nodes, graph.edges, graph.capacity) == (6, 6, 9)
    assert graph.density == pytest.approx(6 / 9)
    assert graph.names == ("layer 0", "layer 1", "layer 2")


def test_a_block_is_the_csr_into_its_layer() -> None:
    graph = make()
    np.testing.assert_array_equal(graph.block(1).toarray(), np.abs(WEIGHTS[0]))
    np.testing.assert_array_equal(graph.block(2).toarray(), WEIGHTS[1])
    for layer in (0, 3, -1):
        with pytest.raises(GraphError, match=f"expected a layer from 1 to 2 .* got {layer}"):
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
    assert not any(block.stored for block in graph.blocks)
    assert all(block.stored for block in stored.blocks)
    assert stored.block(1) is stored.block(1)
    for layer in (1, 2):
        np.testing.assert_array_equal(stored.block(layer).toarray(), graph.block(layer).toarray())
    assert stored.activations is graph.activations
    assert stored.names == graph.names
    assert (stored.edges, stored.layers) == (graph.edges, graph.layers)


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


@pytest.mark.parametrize(
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": []}, "at least one weight matrix"),
        ({"activations": [[1, 2, 3]]}, r"one activation vector per weight matrix \(2; .*got 1"),
        ({"weights": WEIGHTS[::-1]}, "block 2 has 2 source nodes but block 1 ends in 1; consecutive matrices must"),
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
