"""Graphs as one scipy, torch or networkx object, and graphs built from networkx."""

import random
from fractions import Fraction
from typing import Any

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphs import GraphError, LayeredGraph, weighted_pagerank
from graphs.io.convert import from_networkx, to_networkx
from graphs.reduction.subgraphs import between, top_subgraph
from tests.graphs.cases import Array, Case, cases, random_case
from tests.graphs.io.test_graph_files import same_graph
from tests.tables import table


def assembled(case: Case) -> Array:
    """The dense matrix of the stacked graph, row = target."""
    offsets = np.concatenate(([0], np.cumsum(case.sizes)))
    dense = np.zeros((offsets[-1], offsets[-1]))
    for layer, weight in enumerate(case.weights, start=1):
        dense[slice(*offsets[layer : layer + 2]), slice(*offsets[layer - 1 : layer + 1])] = np.abs(weight)
    return dense


@given(cases())
def test_scipy_is_the_assembled_matrix(case: Case) -> None:
    csr = case.graph().to_scipy()
    csr.check_format(full_check=True)
    np.testing.assert_array_equal(csr.toarray(), assembled(case))
    assert csr.nnz == case.graph().n_edges
    assert csr.has_canonical_format
    assert csr.indices.dtype == csr.indptr.dtype == np.int32


@given(cases())
def test_torch_is_the_assembled_matrix(case: Case) -> None:
    tensor = case.graph().to_torch()
    assert tensor.layout is torch.sparse_csr
    assert tensor.col_indices().dtype == tensor.crow_indices().dtype == torch.int32
    np.testing.assert_array_equal(tensor.to_dense().numpy(), assembled(case))


def test_torch_in_float32() -> None:
    case = random_case(1, (4, 5, 3))
    tensor = case.graph().to_torch("cpu", "float32")
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor.to_dense().numpy(), assembled(case), rtol=1e-6)


def test_the_stored_dtype_is_kept_and_the_widest_wins() -> None:
    case = random_case(1, (4, 5, 3))
    narrow = [w.astype(np.float32) for w in case.weights]
    assert case.graph(narrow).to_scipy().dtype == np.float32
    assert case.graph([narrow[0], case.weights[1]]).to_scipy().dtype == np.float64


def test_indices_widen_where_the_stacked_matrix_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    # With a limit of 30 instead of 2**31 - 1 each block fits, but their sum does not.
    case = random_case(1, (4, 5, 4))
    graph = case.graph().with_csr()
    monkeypatch.setattr("graphs.linalg.blocks.INT32_MAX", 30)
    csr = graph.to_scipy()
    assert csr.indices.dtype == csr.indptr.dtype == np.int64
    np.testing.assert_array_equal(csr.toarray(), assembled(case))


def test_converting_does_not_change_the_stored_blocks() -> None:
    graph = random_case(2, (4, 5, 4, 3)).graph().with_csr()
    before = [(b.to_csr().indices.copy(), b.to_csr().indptr.copy()) for b in graph.blocks]
    graph.to_scipy()
    for block, (indices, indptr) in zip(graph.blocks, before, strict=True):
        np.testing.assert_array_equal(block.to_csr().indices, indices)
        np.testing.assert_array_equal(block.to_csr().indptr, indptr)


@given(cases())
def test_networkx_has_every_node_and_edge(case: Case) -> None:
    digraph = to_networkx(case.graph())
    nodes = [(layer, k) for layer, size in enumerate(case.sizes) for k in range(size)]
    assert list(digraph) == nodes
    activations = np.concatenate((case.inputs, *case.activations))
    for (node, data), activation in zip(digraph.nodes(data=True), activations, strict=True):
        assert data == {
            "layer": node[0],
            "index": node[1],
            "name": f"layer {node[0]}",
            "activation": activation,
        }
    expected = {
        ((layer, int(j)), (layer + 1, int(i))): abs(weight[i, j])
        for layer, weight in enumerate(case.weights)
        for i, j in zip(*np.nonzero(weight), strict=True)
    }
    assert {(u, v): weight for u, v, weight in digraph.edges(data="weight")} == expected


def test_networkx_refuses_more_edges_than_allowed() -> None:
    graph = LayeredGraph.from_weights([np.ones((10, 20))], np.ones(20), [np.ones(10)])
    with pytest.raises(GraphError, match=r"200 edges, above max_edges=199; .* use to_scipy\(\), or raise max_edges"):
        to_networkx(graph, max_edges=199)
    assert to_networkx(graph, max_edges=200).number_of_edges() == 200


@pytest.mark.parametrize("dtype", ["float16", "foo"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(GraphError, match="unknown dtype"):
        random_case(1, (2, 2)).graph().to_torch(dtype=dtype)


def test_other_devices_are_refused() -> None:
    with pytest.raises(GraphError, match="device 'tpu9' cannot be used here"):
        random_case(1, (2, 2)).graph().to_torch("tpu9")


# --- networkx, with ranks and of subgraphs


@given(cases())
def test_scores_become_attributes(case: Case) -> None:
    rank = weighted_pagerank(case.graph())
    digraph = to_networkx(case.graph(), rank=rank)
    assert dict(digraph.nodes(data="score")) == rank.as_dict()
    assert all(type(score) is float for _, score in digraph.nodes(data="score"))


def test_attributes_are_plain_numbers() -> None:
    case = random_case(1, (3, 4))
    digraph = to_networkx(case.graph([case.weights[0].astype(np.float32)]), rank=weighted_pagerank(case.graph()))
    for _, facts in digraph.nodes(data=True):
        assert {name: type(value) for name, value in facts.items()} == {
            "layer": int,
            "index": int,
            "name": str,
            "activation": float,
            "score": float,
        }
    assert {type(weight) for _, _, weight in digraph.edges(data="weight")} == {float}


def test_subgraphs_keep_the_names_of_the_original() -> None:
    case = random_case(2, (6, 5, 7, 4))
    graph = case.graph()
    rank = weighted_pagerank(graph)
    shown = top_subgraph(graph, rank, 3, layers=(1, 2, 3))
    digraph, whole = to_networkx(shown), to_networkx(graph, rank=rank)
    assert set(digraph) == {label for labels in shown.labels for label in labels}
    assert dict(digraph.nodes(data=True)) == {node: whole.nodes[node] for node in digraph}
    expected = whole.subgraph(digraph)
    assert networkx.utils.graphs_equal(networkx.DiGraph(expected), digraph)
    # Another rank of the original replaces the subgraph's own scores.
    other = weighted_pagerank(graph, 0.9)
    assert to_networkx(shown, rank=other).nodes[shown.labels[0][0]]["score"] == other.as_dict()[shown.labels[0][0]]
    assert "score" not in to_networkx(between(graph, 0, 2)).nodes[0, 0]


def test_ranks_of_other_graphs_are_refused() -> None:
    with pytest.raises(GraphError, match="in layers of 3, 4, got 2, 2"):
        to_networkx(random_case(1, (3, 4)).graph(), rank=weighted_pagerank(random_case(1, (2, 2)).graph()))


# --- from networkx


@given(cases(), st.randoms(use_true_random=False))
def test_round_trips_are_exact_in_any_order(case: Case, rng: random.Random) -> None:
    graph = case.graph()
    digraph = to_networkx(graph)
    shuffled = networkx.DiGraph()
    nodes, edges = list(digraph.nodes(data=True)), list(digraph.edges(data=True))
    rng.shuffle(nodes)
    rng.shuffle(edges)
    shuffled.add_nodes_from(nodes)
    shuffled.add_edges_from(edges)
    again, labels = from_networkx(shuffled)
    assert same_graph(again, graph.with_csr())
    assert labels == tuple(tuple((layer, k) for k in range(size)) for layer, size in enumerate(case.sizes))


def test_float32_weights_come_back_as_the_same_numbers() -> None:
    case = random_case(1, (3, 4))
    narrow = case.weights[0].astype(np.float32)
    again, _ = from_networkx(to_networkx(case.graph([narrow])))
    np.testing.assert_array_equal(again.block(1).toarray(), np.abs(narrow).astype(np.float64))


def test_layer_names_come_back() -> None:
    graph = LayeredGraph.from_weights([np.eye(2)], [1, 1], [[1, 1]], names=("model.layers.0", "\u00fc & <x>"))
    assert from_networkx(to_networkx(graph))[0].names == graph.names


@table(
    ("names", "expected"),
    [
        (("a", "a", "b"), ("layer 0", "layer 1", "layer 2")),
        (("a", "b", 3), ("a", "b", "layer 2")),
        (("a", None, "b"), ("a", "layer 1", "b")),
        (("a", ["x"], "b"), ("a", "layer 1", "b")),
    ],
)
def test_names_that_are_not_one_a_layer_are_ignored(names: Any, expected: Any) -> None:
    digraph = networkx.DiGraph([(0, 1), (1, 2)])
    for node, name in enumerate(names):
        digraph.nodes[node]["name"] = name
    assert from_networkx(digraph)[0].names == expected


def layers_by_relaxing(digraph: networkx.DiGraph) -> dict[Any, int]:
    """Find layers in another way: by distances within the component, edges walked backwards counting down."""
    layers = {}
    for component in networkx.weakly_connected_components(digraph):
        undirected = networkx.Graph(digraph.subgraph(component).to_undirected())
        root = next(iter(component))
        levels = {root: 0}
        for u, v in networkx.bfs_edges(undirected, root):
            levels[v] = levels[u] + (1 if digraph.has_edge(u, v) else -1)
        lowest = min(levels.values())
        layers |= {node: level - lowest for node, level in levels.items()}
    return layers


@given(cases(), st.randoms(use_true_random=False))
def test_layers_are_found_from_edges_alone(case: Case, rng: random.Random) -> None:
    digraph = to_networkx(case.graph())
    nodes, edges = list(digraph), list(digraph.edges(data="weight"))
    rng.shuffle(nodes)
    bare = networkx.DiGraph()
    bare.add_nodes_from(nodes)
    bare.add_weighted_edges_from(edges)
    if not edges:
        with pytest.raises(GraphError, match="at least two layers"):
            from_networkx(bare)
        return
    graph, labels = from_networkx(bare)
    found = {node: layer for layer, members in enumerate(labels) for node in members}
    assert found == layers_by_relaxing(bare)
    assert graph.n_edges == len(edges)
    for members in labels:
        # Without indices, nodes are in the digraph's order.
        assert list(members) == [node for node in nodes if node in members]
    again = to_networkx(graph)
    for u, v, weight in edges:
        (a, i), (b, j) = ((found[node], labels[found[node]].index(node)) for node in (u, v))
        assert again.edges[(a, i), (b, j)]["weight"] == weight
    assert all((vector == 1).all() for vector in graph.activations)


def test_a_source_in_the_middle_gets_the_layer_of_its_edges() -> None:
    digraph = networkx.DiGraph([("a", "b"), ("b", "c"), ("late", "c"), ("x", "y")])
    digraph.add_node("alone")
    graph, labels = from_networkx(digraph)
    assert labels == (("a", "x", "alone"), ("b", "late", "y"), ("c",))
    assert graph.layer_sizes == (3, 3, 1)


@table(
    ("edges", "named"),
    [
        ([(0, 1), (1, 0)], r"\+?1 -> 0|0 -> 1"),
        ([(0, 0)], "0 -> 0"),
        ([(0, 1), (1, 2), (2, 0)], "->"),
        ([(0, 1), (1, 2), (0, 2)], "->"),
        ([("a", "b"), ("b", "c"), ("a", "d"), ("d", "e"), ("e", "c")], "->"),
    ],
)
def test_digraphs_without_layers_are_refused_by_an_edge(edges: Any, named: str) -> None:
    with pytest.raises(GraphError, match="no layers fit") as caught:
        from_networkx(networkx.DiGraph(edges))
    assert any(f"the edge {u!r} -> {v!r} leads" in str(caught.value) for u, v in edges)


def layered(**facts: Any) -> networkx.DiGraph:
    """Three nodes in two layers, with some attribute changed at node "b"."""
    digraph = networkx.DiGraph()
    digraph.add_nodes_from(
        [("a", {"layer": 0, "index": 0}), ("b", {"layer": 0, "index": 1}), ("z", {"layer": 1, "index": 0})]
    )
    digraph.add_weighted_edges_from([("a", "z", 2.0), ("b", "z", 3.0)])
    digraph.nodes["b"].update(facts)
    return digraph


@table(
    ("facts", "message"),
    [
        ({"layer": None}, "expected attribute 'layer' at all nodes or at none, got 1 nodes without it, such as 'b'"),
        ({"layer": "1"}, "'layer' of node 'b': expected a finite number, got '1'"),
        ({"layer": 0.5}, "'layer' of node 'b': expected an integer, got 0.5"),
        ({"layer": True}, "'layer' of node 'b': expected a finite number, got True"),
        (
            {"layer": 1},
            "the edge 'b' -> 'z' leads from layer 1 to layer 1; expected every edge to lead to the next layer",
        ),
        ({"layer": 3}, "expected consecutive layers, got none between 1 and 3"),
        ({"layer": -2}, "expected consecutive layers, got none between -2 and 0"),
        ({"index": 0}, "expected a different index for every node of a layer, got 0 for nodes 'a' and 'b' of layer 0"),
        ({"index": "x"}, "'index' of node 'b': expected a finite number, got 'x'"),
        ({"activation": "much"}, "'activation' of node 'b': expected a finite number, got 'much'"),
        ({"activation": float("nan")}, "'activation' of node 'b': expected a finite number, got nan"),
        ({"activation": -1.0}, "expected non-negative numbers"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        from_networkx(layered(**facts))


@table("weight", [-1.0, "1", None, True, 1j, float("nan"), float("inf"), 10**400, [1]])
def test_invalid_weights_are_refused(weight: Any) -> None:
    digraph = layered()
    digraph.edges["b", "z"]["weight"] = weight
    with pytest.raises(GraphError, match="'weight' of edge 'b' -> 'z': expected a"):
        from_networkx(digraph)


@table("weight", [2, np.float32(2), np.int64(2), Fraction(2)])
def test_any_real_number_is_a_weight(weight: Any) -> None:
    digraph = layered(layer=0.0, index=np.int64(1))
    digraph.edges["b", "z"]["weight"] = weight
    np.testing.assert_array_equal(from_networkx(digraph)[0].block(1).toarray(), [[2.0, 2.0]])


def test_missing_weights_count_as_one_and_zeros_as_no_edge() -> None:
    digraph = layered()
    del digraph.edges["a", "z"]["weight"]
    digraph.edges["b", "z"]["weight"] = 0.0
    graph, _ = from_networkx(digraph)
    assert graph.n_edges == 1
    np.testing.assert_array_equal(graph.block(1).toarray(), [[1.0, 0.0]])
    np.testing.assert_array_equal(from_networkx(digraph, weight=None)[0].block(1).toarray(), [[1.0, 1.0]])


def test_attribute_names_can_be_chosen_or_none() -> None:
    digraph = networkx.DiGraph()
    digraph.add_nodes_from([("a", {"level": 7, "a": 2.0}), ("z", {"level": 8})])
    digraph.add_edge("a", "z", w=4.0)
    graph, labels = from_networkx(digraph, weight="w", layer="level", activation="a")
    assert labels == (("a",), ("z",))
    assert (graph.block(1).toarray().tolist(), graph.activations[0].tolist(), graph.activations[1].tolist()) == (
        [[4.0]],
        [2.0],
        [1.0],
    )
    # A wrong layer does not matter where layers are derived, nor an index that is not used.
    assert from_networkx(layered(layer=5, index=0), layer=None, index=None)[1] == (("a", "b"), ("z",))


def test_indices_with_gaps_are_an_order() -> None:
    digraph = layered(index=-4)
    assert from_networkx(digraph)[1] == (("b", "a"), ("z",))


def test_parallel_edges_add_up() -> None:
    digraph = networkx.MultiDiGraph()
    digraph.add_edge("a", "z", weight=1.5)
    digraph.add_edge("a", "z", weight=2.0)
    digraph.add_edge("a", "z")
    np.testing.assert_array_equal(from_networkx(digraph)[0].block(1).toarray(), [[4.5]])
    digraph.add_edge("a", "z", weight=1.7e308)
    digraph.add_edge("a", "z", weight=1.7e308)
    with pytest.raises(GraphError, match="parallel edges into layer 1 add up beyond float64"):
        from_networkx(digraph)


def test_other_objects_than_digraphs_are_refused() -> None:
    with pytest.raises(GraphError, match="expected a networkx digraph, got dict"):
        from_networkx({})  # type: ignore[arg-type]
    for graph in (networkx.Graph([(0, 1)]), networkx.MultiGraph([(0, 1)])):
        with pytest.raises(GraphError, match="expected a directed graph, got an undirected one"):
            from_networkx(graph)
    for empty in (networkx.DiGraph(), networkx.DiGraph({0: {}})):
        with pytest.raises(GraphError, match="expected nodes in at least two layers"):
            from_networkx(empty)
