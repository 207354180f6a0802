"""Subgraphs against loops over the dense matrices and against networkx."""

import tracemalloc
from typing import Any

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from graphs import GraphError, LayeredGraph, RankResult, pagerank, weighted_pagerank
from graphs.io.convert import to_networkx
from graphs.linalg.blocks import DenseBlock, SparseBlock
from graphs.linalg.stacking import StackedBlock
from graphs.reduction.subgraphs import Subgraph, between, ego, top_subgraph
from tests.graphs.cases import SHARES, Array, Case, cases, random_case
from tests.tables import table

CASE = random_case(3, (7, 9, 5, 8), density=0.6)
GRAPH = CASE.graph()
RANK = weighted_pagerank(GRAPH)
DENSE = [np.abs(weight) for weight in CASE.weights]
# Two equal scores in every layer.
TIED = Case([np.ones((3, 2)), np.ones((2, 3))], np.ones(2), [np.ones(3), np.ones(2)])

FORMS: dict[str, Any] = {
    "csr": sparse.csr_array,
    "Fortran": np.asfortranarray,
    "float32": lambda weight: weight.astype(np.float32),
    "parallel": lambda weight: (weight / 2, -weight / 2),
    "torch": torch.from_numpy,
    "bfloat16": lambda weight: torch.from_numpy(weight).bfloat16(),
    "stacked targets": lambda weight: StackedBlock.from_weights([2 * weight[:2], weight[2:]], [0.5, 1.0], 0),
    "stacked sources": lambda weight: StackedBlock.from_weights([weight[:, :1], 4 * weight[:, 1:]], [1.0, 0.25], 1),
}


def highest(scores: Array, count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda k: (-scores[k], k))[:count])


def check(shown: Subgraph, graph: LayeredGraph, rank: RankResult | None) -> None:
    """Check the properties that every subgraph of an original has."""
    assert all(after == before + 1 for before, after in zip(shown.layers, shown.layers[1:], strict=False))
    assert shown.graph.names == tuple(graph.names[layer] for layer in shown.layers)
    assert shown.total_nodes == tuple(graph.layer_sizes[layer] for layer in shown.layers)
    assert shown.graph.layer_sizes == tuple(map(len, shown.nodes))
    assert shown.labels == tuple(
        tuple((layer, node) for node in nodes.tolist()) for layer, nodes in zip(shown.layers, shown.nodes, strict=True)
    )
    for layer, nodes, activations in zip(shown.layers, shown.nodes, shown.graph.activations, strict=True):
        assert nodes.dtype == np.int64
        assert (np.diff(nodes) > 0).all()
        np.testing.assert_array_equal(activations, graph.activations[layer][nodes])
        assert not nodes.flags.writeable
        assert not activations.flags.writeable
    for position, (block, share) in enumerate(zip(shown.graph.blocks, shown.weight_shares, strict=True)):
        assert isinstance(block, SparseBlock)
        csr = block.to_csr()
        assert csr.has_canonical_format
        assert csr.indices.dtype == csr.indptr.dtype == np.int32
        whole = graph.block(shown.layers[position + 1])
        assert csr.dtype == whole.dtype
        rows, columns = shown.nodes[position + 1], shown.nodes[position]
        part = csr.toarray()
        np.testing.assert_array_equal(part, np.where(part > 0, whole.toarray()[np.ix_(rows, columns)], 0))
        total = float(whole.sum(dtype=np.float64))
        assert share == pytest.approx(part.sum(dtype=np.float64) / total if total else 1.0, rel=1e-6)
        assert 0.0 <= share <= 1.0
    if rank is None:
        assert shown.scores is None
        assert shown.score_shares is None
        return
    assert shown.scores is not None
    assert shown.score_shares is not None
    for layer, nodes, scores, share in zip(shown.layers, shown.nodes, shown.scores, shown.score_shares, strict=True):
        np.testing.assert_array_equal(scores, rank.scores[layer][nodes])
        assert not scores.flags.writeable
        assert share == pytest.approx(scores.sum() / rank.scores[layer].sum())


def induced(shown: Subgraph, dense: list[Array]) -> bool:
    """Tell whether the subgraph has every edge among its nodes."""
    return all(
        np.count_nonzero(block.to_csr().toarray())
        == np.count_nonzero(dense[shown.layers[k]][np.ix_(shown.nodes[k + 1], shown.nodes[k])])
        for k, block in enumerate(shown.graph.blocks)
    )


# --- nodes with the highest scores


@given(cases(), st.integers(1, 7))
def test_the_highest_nodes_and_all_their_edges(case: Case, nodes: int) -> None:
    graph = case.graph()
    rank = weighted_pagerank(graph)
    shown = top_subgraph(graph, rank, nodes)
    check(shown, graph, rank)
    assert [at.tolist() for at in shown.nodes] == [highest(scores, nodes) for scores in rank.scores]
    assert induced(shown, case.weights)


@given(cases(), SHARES)
def test_the_fewest_nodes_that_hold_a_share(case: Case, score_share: float) -> None:
    graph = case.graph()
    rank = weighted_pagerank(graph)
    shown = top_subgraph(graph, rank, score_share=score_share)
    check(shown, graph, rank)
    assert shown.scores is not None
    for scores, held in zip(rank.scores, shown.scores, strict=True):
        assert held.sum() >= score_share * scores.sum() - 1e-12
        assert len(held) == 1 or held.sum() - held.min() < score_share * scores.sum() + 1e-12


def test_a_mass_met_exactly_takes_no_node_more() -> None:
    shown = top_subgraph(TIED.graph(), weighted_pagerank(TIED.graph()), score_share=0.5)
    assert shown.labels == (((0, 0),), ((1, 0), (1, 1)), ((2, 0),))
    assert shown.score_shares == pytest.approx((1 / 2, 2 / 3, 1 / 2))
    assert shown.weight_shares == pytest.approx((2 / 6, 2 / 6))


def test_a_layer_without_score_shows_one_node() -> None:
    # A PageRank of the digraph that teleports to one layer only: layers that nothing reaches have score 0.
    graph = LayeredGraph.from_weights([np.eye(2, 3), np.zeros((2, 2))], np.ones(3), [np.ones(2), np.ones(2)])
    rank = pagerank(graph, 0.5, np.array([1.0, 0, 0, 0, 0, 0, 0]))
    shown = top_subgraph(graph, rank, score_share=0.9)
    assert shown.labels[2] == ((2, 0),)
    assert shown.score_shares is not None
    assert shown.score_shares[2] == 1.0
    assert shown.weight_shares[1] == 1.0


def test_twenty_nodes_by_default() -> None:
    graph = random_case(1, (30, 5, 40)).graph()
    assert top_subgraph(graph, weighted_pagerank(graph)).graph.layer_sizes == (20, 5, 20)


@given(cases(), st.integers(1, 4), st.integers(1, 6))
def test_the_edges_that_carry_most(case: Case, nodes: int, edges: int) -> None:
    graph = case.graph()
    rank = weighted_pagerank(graph)
    shown = top_subgraph(graph, rank, nodes, edges=edges)
    check(shown, graph, rank)
    for k, block in enumerate(shown.graph.blocks):
        dense = np.abs(case.weights[k])
        strengths = dense.sum(axis=0)
        found = {(i, j) for i, j in zip(*np.nonzero(block.to_csr().toarray()), strict=True)}
        flows = {
            (i, j): dense[target, source] / strengths[source] * rank.scores[k][source]
            for i, target in enumerate(shown.nodes[k + 1])
            for j, source in enumerate(shown.nodes[k])
            if dense[target, source]
        }
        assert len(found) == min(edges, len(flows))
        kept = [flows[edge] for edge in found]
        left = [flow for edge, flow in flows.items() if edge not in found]
        # Up to round-off, because the strengths are summed in another order here.
        assert min(kept, default=1.0) >= max(left, default=0.0) * (1 - 1e-12)


def test_equal_edges_are_kept_by_lower_target_then_source() -> None:
    graph = TIED.graph()
    shown = top_subgraph(graph, weighted_pagerank(graph), edges=3)
    np.testing.assert_array_equal(shown.graph.block(1).toarray(), [[1, 1], [1, 0], [0, 0]])


@table("layers", [(0, 1), (1, 2, 3), range(2, 4), np.arange(3)])
def test_some_layers_only(layers: Any) -> None:
    shown = top_subgraph(GRAPH, RANK, 3, layers=layers)
    check(shown, GRAPH, RANK)
    assert shown.layers == tuple(layers)
    whole = top_subgraph(GRAPH, RANK, 3)
    for layer, nodes in zip(shown.layers, shown.nodes, strict=True):
        np.testing.assert_array_equal(nodes, whole.nodes[layer])


# --- around a node


@given(cases(), st.data(), st.integers(1, 4))
def test_an_ego_graph_agrees_with_networkx(case: Case, data: st.DataObject, hops: int) -> None:
    graph = case.graph()
    layer = data.draw(st.integers(0, len(case.sizes) - 1))
    node = data.draw(st.integers(0, case.sizes[layer] - 1))
    digraph = to_networkx(graph)
    ahead = networkx.single_source_shortest_path_length(digraph, (layer, node), cutoff=hops)
    behind = networkx.single_source_shortest_path_length(digraph.reverse(), (layer, node), cutoff=hops)
    if len(ahead) == len(behind) == 1:
        with pytest.raises(GraphError, match=f"node {node} of layer {layer} has no edge"):
            ego(graph, layer, node, hops)
        return
    shown = ego(graph, layer, node, hops)
    check(shown, graph, None)
    assert {label for labels in shown.labels for label in labels} == set(ahead) | set(behind)
    expected = {(u, v) for u, v in digraph.edges() if ahead.get(u, hops) < hops or behind.get(v, hops) < hops}
    assert set(to_networkx(shown).edges()) == expected


@given(cases(), st.data(), st.integers(1, 3), st.integers(1, 3))
def test_only_the_heaviest_edges_of_every_node_are_followed(
    case: Case, data: st.DataObject, hops: int, top: int
) -> None:
    layer = data.draw(st.integers(0, len(case.sizes) - 1))
    node = data.draw(st.integers(0, case.sizes[layer] - 1))
    expected: set[Any] = set()
    for step in (-1, 1):
        met = {node}
        for hop in range(hops):
            into = layer - hop if step < 0 else layer + hop + 1
            if not 1 <= into < len(case.sizes):
                break
            dense = np.abs(case.weights[into - 1])
            reached = set()
            for one in met:
                line = dense[one] if step < 0 else dense[:, one]
                for other in sorted(np.flatnonzero(line), key=lambda k, line=line: (-line[k], k))[:top]:
                    source, target = (other, one) if step < 0 else (one, other)
                    expected.add(((into - 1, source), (into, target)))
                    reached.add(int(other))
            met = reached
    if not expected:
        return
    shown = ego(case.graph(), layer, node, hops, top)
    check(shown, case.graph(), None)
    assert set(to_networkx(shown).edges()) == expected


def test_an_ego_graph_has_scores() -> None:
    shown = ego(GRAPH, 2, 1, hops=2, top=2, rank=RANK)
    check(shown, GRAPH, RANK)
    assert shown.layers == (0, 1, 2, 3)
    np.testing.assert_array_equal(shown.nodes[2], [1])


def test_an_ego_graph_that_is_too_large_is_refused_early() -> None:
    weight = np.broadcast_to(np.linspace(1.0, 2.0, 5000), (5000, 5000))
    graph = LayeredGraph.from_weights([weight, weight], np.ones(5000), [np.ones(5000)] * 2)
    tracemalloc.start()
    try:
        with pytest.raises(GraphError, match=r"more than max_edges=1,000,000 edges; follow fewer edges .* top="):
            ego(graph, 2, 0, hops=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 150e6
    assert ego(graph, 2, 0, hops=2, top=3).graph.n_edges == 3 + 9
    assert ego(graph, 2, 0, max_edges=5000).graph.n_edges == 5000
    with pytest.raises(GraphError, match="max_edges=4,999"):
        ego(graph, 2, 0, max_edges=4999)


# --- between layers


@given(cases(min_blocks=2), st.data())
def test_between_holds_complete_blocks(case: Case, data: st.DataObject) -> None:
    first, last = sorted(data.draw(st.sets(st.integers(0, len(case.sizes) - 1), min_size=2, max_size=2)))
    graph = case.graph()
    shown = between(graph, first, last)
    check(shown, graph, None)
    assert shown.layers == tuple(range(first, last + 1))
    assert [at.tolist() for at in shown.nodes] == [list(range(graph.layer_sizes[k])) for k in shown.layers]
    assert shown.weight_shares == pytest.approx((1.0,) * (last - first))
    assert induced(shown, case.weights)


def test_between_has_scores() -> None:
    everything = between(GRAPH, 1, 3, RANK)
    check(everything, GRAPH, RANK)
    assert everything.score_shares == (1.0, 1.0, 1.0)


# --- forms of the weights


@table("form", FORMS)
def test_the_form_of_the_weights_does_not_matter(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [np.round(weight * 4) / 4 for weight in CASE.weights]
    plain = CASE.graph([sparse.csr_array(weight) for weight in weights])
    graph = CASE.graph([FORMS[form](weight) for weight in weights])
    rank = weighted_pagerank(plain)
    with monkeypatch.context() as patch:
        # A dense block is never converted to CSR completely.
        patch.setattr(DenseBlock, "to_csr", None)
        patch.setattr(StackedBlock, "to_csr", None)
        found = [subgraph(graph, rank) for subgraph in SUBGRAPHS]
    for shown, subgraph in zip(found, SUBGRAPHS, strict=True):
        expected = subgraph(plain, rank)
        assert shown.labels == expected.labels
        assert shown.weight_shares == pytest.approx(expected.weight_shares)
        for one, other in zip(shown.graph.blocks, expected.graph.blocks, strict=True):
            np.testing.assert_array_equal(one.to_csr().toarray(), other.to_csr().toarray())


SUBGRAPHS: list[Any] = [
    lambda graph, rank: top_subgraph(graph, rank, 4),
    lambda graph, rank: top_subgraph(graph, rank, 4, edges=6),
    lambda graph, rank: top_subgraph(graph, rank, score_share=0.6),
    lambda graph, rank: ego(graph, 1, 2, hops=2, top=3),
    lambda graph, rank: ego(graph, 2, 0),
    lambda graph, rank: between(graph, 0, 2),
    lambda graph, rank: top_subgraph(graph, rank, 3, layers=range(1, 4)),
]


@pytest.mark.parametrize("elements", [1, 13])
def test_band_size_does_not_matter(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [subgraph(GRAPH, RANK) for subgraph in SUBGRAPHS]
    monkeypatch.setattr("graphs.reduction.edge_selection.BAND_ELEMENTS", elements)
    for subgraph, wanted in zip(SUBGRAPHS, expected, strict=True):
        shown = subgraph(GRAPH, RANK)
        check(shown, GRAPH, RANK if shown.scores else None)
        assert shown.labels == wanted.labels
        for one, other in zip(shown.graph.blocks, wanted.graph.blocks, strict=True):
            np.testing.assert_array_equal(one.to_csr().toarray(), other.to_csr().toarray())


def test_a_subgraph_does_not_change_its_original() -> None:
    graph = CASE.graph([sparse.csr_array(weight) for weight in CASE.weights])
    before = [block.to_csr().copy() for block in graph.blocks]
    between(graph, 0, 3, RANK)
    top_subgraph(graph, RANK, 100)
    for block, csr in zip(graph.blocks, before, strict=True):
        np.testing.assert_array_equal(block.to_csr().indices, csr.indices)
        np.testing.assert_array_equal(block.to_csr().data, csr.data)
    assert graph.activations[0].shape == (7,)


def test_scores_of_another_rank_of_the_original() -> None:
    other = weighted_pagerank(GRAPH, 0.9)
    shown = ego(GRAPH, 2, 1, top=2)
    for layer, nodes, scores in zip(shown.layers, shown.nodes, shown.scores_from(other), strict=True):
        np.testing.assert_array_equal(scores, other.scores[layer][nodes])
    small = random_case(1, (2, 2)).graph()
    with pytest.raises(GraphError, match="expected a RankResult of the original graph with a layer 3"):
        shown.scores_from(weighted_pagerank(small))
    wrong = random_case(1, (7, 9, 6, 8)).graph()
    with pytest.raises(GraphError, match="in layers of 9, 5, 8, got 9, 6, 8"):
        shown.scores_from(weighted_pagerank(wrong))


# --- refused arguments


@table(
    ("arguments", "message"),
    [
        ({"nodes": 2, "score_share": 0.5}, "expected nodes or score_share, got both: nodes=2, score_share=0.5"),
        ({"nodes": 0}, "nodes must be an integer >= 1, got 0"),
        ({"score_share": 1.1}, r"score_share must be a number in \[0, 1\], got 1.1"),
        ({"edges": 0}, "edges must be an integer >= 1, got 0"),
        ({"max_edges": 0}, "max_edges must be an integer >= 1, got 0"),
        ({"layers": [1]}, r"at least 2 consecutive ascending layers, .* got \[1\]"),
        ({"layers": []}, r"at least 2 consecutive ascending layers, .* got \[\]"),
        ({"layers": [0, 2]}, r"got \[0, 2\]"),
        ({"layers": [2, 1]}, r"got \[2, 1\]"),
        ({"layers": [2, 3, 4]}, "layers: expected a layer from 0 to 3, got 4"),
        ({"layers": [-1, 0]}, "layers: expected a layer from 0 to 3, got -1"),
        (
            {"nodes": 9, "max_edges": 20},
            r"more than max_edges=20 edges; choose fewer nodes or layers, or raise max_edges",
        ),
        ({"nodes": 9, "edges": 10, "max_edges": 20}, "choose fewer edges, nodes or layers, or raise max_edges"),
    ],
)
def test_top_subgraph_refuses_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        top_subgraph(GRAPH, RANK, **arguments)


@table(
    ("arguments", "message"),
    [
        ((4, 0), "layer: expected a layer from 0 to 3, got 4"),
        ((1, 9), "node: expected a node of layer 1 from 0 to 8, got 9"),
        ((1, -1), "node: expected a node of layer 1 from 0 to 8, got -1"),
        ((1, 1, 0), "hops must be an integer >= 1, got 0"),
        ((1, 1, 1, 0), "top must be an integer >= 1, got 0"),
    ],
)
def test_ego_refuses_invalid_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        ego(GRAPH, *arguments)


@table(
    ("arguments", "message"),
    [
        ((2, 2), "expected layer_a below layer_b, got 2 and 2"),
        ((3, 1), "expected layer_a below layer_b, got 3 and 1"),
        ((0, 4), "layer_b: expected a layer from 0 to 3, got 4"),
        ((0, 1, None, 5), "more than max_edges=5 edges"),
    ],
)
def test_between_refuses_wrong_layers(arguments: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        between(GRAPH, *arguments)
