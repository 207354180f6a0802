"""Tests of the checks of arguments and of their error messages."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from graphs import (
    BlockDigraph,
    GraphError,
    LayeredGraph,
    bidirectional_graph,
    pagerank,
    residual_graph,
    save_graph,
    save_rank,
    sparsify,
    weighted_pagerank,
)
from graphs.checks import check_count, check_score_shapes, check_share
from graphs.linalg.validation import as_vector
from graphs.ranking.scores import check_scores, finite_scores
from graphs.structures.indices import check_layer, check_node
from tests.graphs.cases import random_case
from tests.tables import table

GRAPH = random_case(3, (7, 9, 5, 8), density=0.6).graph()
RANK = weighted_pagerank(GRAPH)


@table("value", [1, 5, np.int64(3), np.uint8(2), 10**30])
def test_counts(value: Any) -> None:
    found = check_count("k", value)
    assert found == value
    assert type(found) is int


@table("value", [0, -1, True, np.True_, 2.0, np.float64(2), "2", None, math.nan, [1]])
def test_counts_that_are_none(value: Any) -> None:
    with pytest.raises(GraphError, match="k must be an integer >= 1, got"):
        check_count("k", value)


def test_a_count_may_begin_elsewhere() -> None:
    assert check_count("top", 0, 0) == 0
    with pytest.raises(GraphError, match="top must be an integer >= 2, got 1"):
        check_count("top", 1, 2)


@table("value", [-1, 4, True, 1.0, "1", None, np.float64(1)])
def test_layers_and_nodes_that_are_none(value: Any) -> None:
    with pytest.raises(GraphError, match="layer_b: expected a layer from 0 to 3, got"):
        check_layer(GRAPH, value, name="layer_b")
    if value != 4:
        with pytest.raises(GraphError, match="node: expected a node of layer 2 from 0 to 4, got"):
            check_node(GRAPH, 2, value)


def test_layers_and_nodes() -> None:
    assert [check_layer(GRAPH, layer) for layer in (0, np.int32(3))] == [0, 3]
    assert [check_node(GRAPH, 2, node) for node in (0, np.int64(4))] == [0, 4]
    assert type(check_layer(GRAPH, np.int32(3))) is type(check_node(GRAPH, 2, np.int64(4))) is int
    with pytest.raises(GraphError, match="layer: expected a layer from 1 to 3, got 0"):
        check_layer(GRAPH, 0, first=1)
    with pytest.raises(GraphError, match="from 0 to 4, got 5"):
        check_node(GRAPH, 2, 5)


@table("value", [-1, 4, 1.0, "1", None, np.array([]), {}])
def test_methods_that_take_a_layer_refuse_what_is_none(value: Any) -> None:
    for call in (GRAPH.block, RANK.top, lambda layer: GRAPH.with_activations(layer, [1.0] * 7)):
        with pytest.raises(GraphError, match="layer must be an integer from"):
            call(value)
    if not isinstance(value, int) or value < 0:
        with pytest.raises(GraphError, match="count must be an integer >= 0"):
            RANK.top(1, value)


def test_vectors() -> None:
    given = np.array([1.0, 2.0])
    found = as_vector(given, "it")
    found[0] = 5.0
    assert given.tolist() == [1.0, 2.0]
    assert as_vector(torch.tensor([1, 2]).bfloat16(), "it").dtype == np.float64
    assert as_vector([True, False], "it").tolist() == [1.0, 0.0]
    for bad in ([], [[1.0]], 1.0, ["a"], [1j], [math.inf], None):
        with pytest.raises(GraphError, match="it: expected"):
            as_vector(bad, "it")


def test_scores_are_the_ranks_own_and_those_to_compute_with_copies() -> None:
    narrow = weighted_pagerank(GRAPH, dtype="float32")
    assert check_scores(GRAPH, narrow) is narrow.scores
    for wide, own in zip(finite_scores(GRAPH, narrow), narrow.scores, strict=True):
        assert wide.dtype == np.float64
        np.testing.assert_array_equal(wide, own)
        assert not np.shares_memory(wide, own)


def test_ranks_that_are_not_of_the_graph_are_refused() -> None:
    with pytest.raises(GraphError, match="expected a RankResult, as weighted_pagerank returns, got list"):
        check_scores(GRAPH, list(RANK.scores))  # type: ignore[arg-type]
    with pytest.raises(GraphError, match=r"in layers of 7, 9, 5, 8, got 2, 3, 2; the first difference is at layer 0:"):
        check_scores(GRAPH, weighted_pagerank(random_case(0, (2, 3, 2)).graph()))
    with pytest.raises(GraphError, match=r"got 7, 9, 5; the first difference is at layer 3:"):
        check_scores(GRAPH, weighted_pagerank(random_case(0, (7, 9, 5)).graph()))
    two = pagerank(GRAPH, 0.5, np.ones((29, 2)) / 29)
    with pytest.raises(GraphError, match=r"got 7 x 2, 9 x 2, 5 x 2, 8 x 2; .* select one column"):
        check_scores(GRAPH, two)
    spoiled = dataclasses.replace(RANK, scores=(*RANK.scores[:3], np.full(8, np.nan)))
    assert check_scores(GRAPH, spoiled) is spoiled.scores
    with pytest.raises(GraphError, match="scores of layer 3: expected finite numbers, got nan at node 0"):
        finite_scores(GRAPH, spoiled)


def test_a_long_list_of_layers_is_cut_and_says_where_the_two_part() -> None:
    sizes = [3] * 40
    check_score_shapes([(size,) for size in sizes], sizes)
    shapes = [(4 if layer == 20 else 3,) for layer in range(40)]
    message = r"in layers of 3, 3, 3, \.\.\., 3, 3, got 3, 3, 3, \.\.\., 3, 3; the first difference is at layer 25:"
    with pytest.raises(GraphError, match=message):
        check_score_shapes(shapes, sizes, first=5)


@table("value", [0, 1, 0.5, np.float32(0.25)])
def test_shares_are_floats(value: Any) -> None:
    assert check_share("theta", value) == float(value)


@table("value", [-1e-9, 1 + 1e-9, float("nan"), float("inf"), None, "x", [0.5, 0.5], 10**400])
def test_what_is_no_share_is_refused_by_name(value: Any) -> None:
    with pytest.raises(GraphError, match=r"theta must be a number in \[0, 1\], got"):
        check_share("theta", value)


def test_a_share_below_one() -> None:
    with pytest.raises(GraphError, match=r"gamma must be a number in \[0, 1\), got 1"):
        check_share("gamma", 1, below_one=True)


@table(
    "call",
    [
        residual_graph,
        bidirectional_graph,
        lambda value: sparsify(value, top_k=1),
        lambda value: save_graph(value, "never-written"),
        weighted_pagerank,
    ],
)
def test_functions_of_layered_graphs_refuse_anything_else(call: Any) -> None:
    with pytest.raises(
        GraphError, match=r"graph must be a LayeredGraph \(LayeredGraph.from_weights makes one\), got csr_array"
    ):
        call(GRAPH.to_scipy())


@table(
    ("changed", "message"),
    [
        ({"weights": 5}, "weights: expected a sequence with an entry for each layer, got int"),
        ({"activations": None}, "activations: expected a sequence with an entry for each layer, got NoneType"),
        ({"names": np.array(0.5)}, "names: expected a sequence with an entry for each layer, got ndarray"),
    ],
)
def test_a_layered_graph_says_which_argument_is_no_sequence(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        LayeredGraph.from_weights(**{"weights": [[[1.0]]], "inputs": [1.0], "activations": [[1.0]], **changed})


@table(
    ("changed", "message"),
    [
        ({"names": 0.0}, "names must be a tuple, got float"),
        ({"layer_sizes": [2]}, "layer_sizes must be a tuple, got list"),
        ({"labels": 0.5}, "labels: expected a sequence, got float"),
    ],
)
def test_a_digraph_says_which_argument_is_of_a_wrong_type(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        BlockDigraph(**{"layer_sizes": (2,), "edge_blocks": (), "names": ("x",), **changed})


def test_layers_of_the_stream_and_results_have_types_too() -> None:
    with pytest.raises(GraphError, match=r"stream: expected the numbers of layers, such as .*, got 2"):
        residual_graph(GRAPH, stream=2)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="result must be a RankResult, as pagerank returns it, got float"):
        save_rank(0.5, "never-written")  # type: ignore[arg-type]
