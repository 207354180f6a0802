"""The whole graph as one scipy, torch or networkx object."""

import numpy as np
import pytest
import torch
from hypothesis import given

from graphs import GraphError, LayeredGraph
from graphs.convert import to_networkx, to_scipy, to_torch
from tests.graphs.cases import Array, Case, cases, random_case


def assembled(case: Case) -> Array:
    """The dense matrix of the stacked graph, row = target."""
    offsets = np.concatenate(([0], np.cumsum(case.sizes)))
    dense = np.zeros((offsets[-1], offsets[-1]))
    for layer, weight in enumerate(case.weights, start=1):
        dense[slice(*offsets[layer : layer + 2]), slice(*offsets[layer - 1 : layer + 1])] = np.abs(weight)
    return dense


@given(cases())
def test_scipy_is_the_assembled_matrix(case: Case) -> None:
    csr = to_scipy(case.graph())
    csr.check_format(full_check=True)
    np.testing.assert_array_equal(csr.toarray(), assembled(case))
    assert csr.nnz == case.graph().edges
    assert csr.has_canonical_format
    assert csr.indices.dtype == csr.indptr.dtype == np.int32


@given(cases())
def test_torch_is_the_assembled_matrix(case: Case) -> None:
    tensor = to_torch(case.graph())
    assert tensor.layout is torch.sparse_csr
    assert tensor.col_indices().dtype == tensor.crow_indices().dtype == torch.int32
    np.testing.assert_array_equal(tensor.to_dense().numpy(), assembled(case))


def test_torch_in_float32() -> None:
    case = random_case(1, (4, 5, 3))
    tensor = to_torch(case.graph(), "cpu", "float32")
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor.to_dense().numpy(), assembled(case), rtol=1e-6)


def test_the_stored_dtype_is_kept_and_the_widest_wins() -> None:
    case = random_case(1, (4, 5, 3))
    narrow = [w.astype(np.float32) for w in case.weights]
    assert to_scipy(case.graph(narrow)).dtype == np.float32
    assert to_scipy(case.graph([narrow[0], case.weights[1]])).dtype == np.float64


def test_indices_widen_where_the_whole_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    # A limit of 30 in place of 2**31 - 1: each block fits in it and their sum does not.
    case = random_case(1, (4, 5, 4))
    graph = case.graph().with_csr()
    monkeypatch.setattr("graphs.blocks.INT32_MAX", 30)
    csr = to_scipy(graph)
    assert csr.indices.dtype == csr.indptr.dtype == np.int64
    np.testing.assert_array_equal(csr.toarray(), assembled(case))


def test_converting_leaves_the_stored_blocks_alone() -> None:
    graph = random_case(2, (4, 5, 4, 3)).graph().with_csr()
    before = [(b.to_csr().indices.copy(), b.to_csr().indptr.copy()) for b in graph.blocks]
    to_scipy(graph)
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


def test_the_methods_are_the_functions() -> None:
    case = random_case(3, (3, 4))
    graph = case.graph()
    np.testing.assert_array_equal(graph.to_scipy().toarray(), assembled(case))
    np.testing.assert_array_equal(graph.to_torch(dtype="float64").to_dense().numpy(), assembled(case))
    assert graph.to_networkx().number_of_edges() == graph.edges
    with pytest.raises(GraphError, match="max_edges=1"):
        graph.to_networkx(max_edges=1)


@pytest.mark.parametrize("dtype", ["float16", "foo"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(GraphError, match="unknown dtype"):
        random_case(1, (2, 2)).graph().to_torch(dtype=dtype)


def test_other_devices_are_refused() -> None:
    with pytest.raises(GraphError, match="device 'tpu9' cannot be used here"):
        random_case(1, (2, 2)).graph().to_torch("tpu9")
