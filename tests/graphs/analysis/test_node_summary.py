"""Node facts and strongest edges against their definitions and networkx."""

import dataclasses
import itertools
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from graphs import GraphError, LayeredGraph, RankResult, modified_pagerank, weighted_pagerank
from graphs.analysis import incident_edges, node_summary
from graphs.analysis.flow import flow
from graphs.analysis.layer_summary import summarise_layers
from graphs.analysis.measures import percentiles, positions
from graphs.analysis.node_summary import NodeSummary, RankedEdge, strongest_edges
from graphs.analysis.paths import Path, strongest_paths
from graphs.analysis.strengths import strengths
from graphs.linalg.backends import make_backend
from graphs.linalg.blocks import DenseBlock
from graphs.reduction.subgraphs import top_subgraph
from tests.graphs.cases import SHARES, Array, Case, cases, networkx_layers, random_case, transition_matrix, unit
from tests.graphs.forms import as_modified, as_scores, every_form, formed
from tests.tables import table

facts_of = node_summary.summarise_node


def tied_case(seed: int, sizes: tuple[int, ...]) -> Case:
    """Small integer weights, many of them zero or equal, and equal activations."""
    rng = np.random.default_rng(seed)
    weights = [rng.integers(-2, 3, (n, m)).astype(np.float64) for m, n in itertools.pairwise(sizes)]
    return Case(weights, np.ones(sizes[0]), [np.ones(size) for size in sizes[1:]])


def strongest(masses: Array, top: int) -> list[int]:
    """The nodes with the highest values; of equal ones the lower first; none that carries nothing."""
    return sorted((k for k in range(len(masses)) if masses[k] > 0), key=lambda k: (-masses[k], k))[:top]


# --- one node


@every_form
@given(case=cases(max_blocks=3), theta=SHARES, gamma=SHARES, top=st.integers(0, 6))
def test_node_summaries_agree_with_their_definition(
    case: Case, theta: float, gamma: float, top: int, form: str
) -> None:
    graph, seen = formed(case, form)
    rank = weighted_pagerank(graph, gamma, theta)
    activations = [case.inputs, *case.activations]
    for layer, size in enumerate(graph.layer_sizes):
        for node in range(size):
            found = facts_of(graph, rank, layer, node, top)
            assert (found.layer, found.node, found.name) == (layer, node, graph.names[layer])
            assert found.score == rank.scores[layer][node]
            assert found.percentile == percentiles(rank.scores[layer])[node]
            assert found.position == positions(rank.scores[layer])[node]
            assert found.activation == activations[layer][node]
            into, out = strengths(graph, layer)
            assert (found.in_strength, found.out_strength) == pytest.approx((into[node], out[node]))
            assert len(found.in_edges) <= top
            assert len(found.out_edges) <= top
            if layer:
                weight = seen.weights[layer - 1]
                assert found.in_degree == np.count_nonzero(weight[node])
                matrix = transition_matrix(weight, theta)
                masses = matrix[node] * rank.scores[layer - 1]
                check_edges(found.in_edges, weight[node], matrix[node], masses / (masses.sum() or 1.0))
                carried = [edge.share for edge in found.in_edges]
                assert carried == pytest.approx(sorted(masses / (masses.sum() or 1.0), reverse=True)[: len(carried)])
                assert len(carried) == min(top, np.count_nonzero(masses))
                assert sum(carried) <= 1 + 1e-12
                through = gamma * masses.sum()
                total = through + (1 - gamma) * unit(activations[layer])[node]
                assert found.through_graph == pytest.approx(through / total if total else 0.0)
            else:
                assert (found.in_degree, found.in_edges, found.through_graph) == (0, (), None)
            if layer < len(graph.blocks):
                weight = seen.weights[layer]
                column = transition_matrix(weight, theta)[:, node]
                assert found.out_degree == np.count_nonzero(weight[:, node])
                check_edges(found.out_edges, weight[:, node], column, column)
                heaviest = sorted(weight[:, node], reverse=True)[: len(found.out_edges)]
                assert [edge.weight for edge in found.out_edges] == pytest.approx(heaviest)
                assert len(found.out_edges) == min(top, found.out_degree)
            else:
                assert (found.out_degree, found.out_edges) == (0, ())


def check_edges(edges: tuple[RankedEdge, ...], weights: Array, chances: Array, carried: Array) -> None:
    assert len({edge.node for edge in edges}) == len(edges)
    for edge in edges:
        expected = (weights[edge.node], chances[edge.node], carried[edge.node])
        assert (edge.weight, edge.probability, edge.share) == pytest.approx(expected)


@pytest.mark.parametrize("theta", [1.0, 0.4])
def test_scores_and_positions_agree_with_networkx_pagerank(theta: float) -> None:
    case = random_case(11, (6, 9, 4, 7), density=0.6)
    graph, gamma = case.graph(), 0.7
    rank = weighted_pagerank(graph, gamma, theta)
    for layer, expected in enumerate(networkx_layers(case, gamma, theta)):
        falling = sorted(range(len(expected)), key=lambda node: -expected[node])
        for node, score in enumerate(expected):
            found = facts_of(graph, rank, layer, node)
            assert found.score == pytest.approx(score, rel=1e-9)
            assert found.position == falling.index(node)
            assert found.percentile == pytest.approx(1 - (falling.index(node) + 0.5) / len(expected))
            if layer:
                # The share of the teleport before normalising; no source dangles here.
                own = (1 - gamma) * unit(case.activations[layer - 1])[node]
                assert found.through_graph == pytest.approx(1 - own / score, rel=1e-8)


@pytest.mark.parametrize("zero_lowest", [0.0, 0.4])
def test_edges_of_a_modified_rank_carry_weight_times_score(zero_lowest: float) -> None:
    case = random_case(6, (5, 7, 4))
    graph = case.graph()
    rank = modified_pagerank(graph, zero_lowest=zero_lowest)
    for layer, weight in enumerate(case.weights, start=1):
        before = rank.scores[layer - 1].copy()
        before[np.argsort(before)[: int(zero_lowest * len(before))]] = 0
        masses = np.abs(weight) * before
        np.testing.assert_allclose(unit(masses.sum(axis=1) * case.activations[layer - 1]), rank.scores[layer])
        edges = strongest_edges(graph, rank, layer, top=5)
        for node, row in enumerate(masses):
            facts = facts_of(graph, rank, layer, node)
            expected = strongest(row, 5)
            assert [edge.node for edge in facts.in_edges] == expected
            assert [edge.share for edge in facts.in_edges] == pytest.approx(row[expected] / row.sum())
            assert edges.in_nodes[node][: len(expected)].tolist() == expected
            assert edges.in_shares[node][: len(expected)] == pytest.approx(row[expected] / row.sum())
            assert facts.through_graph is None


def test_equal_edges_are_ordered_by_node_and_edges_that_carry_nothing_are_left_out() -> None:
    weight = np.array([[2.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]])
    graph = LayeredGraph.from_weights([weight], [1, 2, 2, 0], [[1, 1]])
    rank = weighted_pagerank(graph)
    # Node 0 gets 1/5 from 0 and half of 2/5 from 1; source 3 has score 0.
    found = facts_of(graph, rank, 1, 0)
    assert [(edge.node, edge.share) for edge in found.in_edges] == [(0, 0.5), (1, 0.5)]
    assert found.in_degree == 3
    assert [edge.node for edge in facts_of(graph, rank, 0, 1).out_edges] == [0, 1]
    edges = strongest_edges(graph, rank, 1, top=3)
    assert edges.in_nodes.tolist() == [[0, 1, -1], [2, 1, -1]]
    assert strongest_edges(graph, rank, 0, top=2).out_nodes.tolist() == [[0, -1], [0, 1], [1, -1], [0, 1]]


def test_huge_activations_have_a_share_of_the_teleport() -> None:
    graph = LayeredGraph.from_weights([[[1.0], [1.0]]], [1], [[1.7e308, 1.7e308]])
    assert facts_of(graph, weighted_pagerank(graph, gamma=0.5), 1, 0).through_graph == 0.5


def test_node_summaries_of_layers_with_one_node_and_with_zeros() -> None:
    graph = LayeredGraph.from_weights([[[0.0, 0.0]], [[3.0], [0.0]]], [0, 0], [[0], [0, 0]])
    rank = weighted_pagerank(graph, gamma=1.0)
    found = facts_of(graph, rank, 1, 0)
    assert found == NodeSummary(
        1, 0, "layer 1", 1.0, 0.5, 0, 0.0, 0.0, 3.0, 0, 1, 0.0, (), (RankedEdge(0, 3.0, 1.0, 1.0),)
    )
    silent = as_scores(rank, scores=(np.zeros(2), np.zeros(1), np.zeros(2)))
    assert facts_of(graph, silent, 2, 0).in_edges == ()
    assert strongest_edges(graph, silent, 2).in_nodes.tolist() == [[-1] * 3] * 2
    assert strongest_edges(graph, silent, 1, top=1).out_nodes.tolist() == [[0]]


# --- all nodes of a layer


def assert_edges_are_those_of_the_facts(graph: LayeredGraph, rank: RankResult, top: int, theta: float | None) -> None:
    for layer, size in enumerate(graph.layer_sizes):
        found = strongest_edges(graph, rank, layer, top, theta=theta)
        assert all(part.shape == (size, top) for part in found)
        for node in range(size):
            facts = facts_of(graph, rank, layer, node, top, theta=theta)
            for edges, nodes, shares in (
                (facts.in_edges, found.in_nodes[node], found.in_shares[node]),
                (facts.out_edges, found.out_nodes[node], found.out_shares[node]),
            ):
                missing = top - len(edges)
                assert nodes.tolist() == [edge.node for edge in edges] + [-1] * missing
                assert shares == pytest.approx([edge.share for edge in edges] + [0.0] * missing)


@every_form
@given(case=cases(), theta=SHARES, top=st.integers(1, 6))
def test_strongest_edges_agree_with_node_summaries(case: Case, theta: float, top: int, form: str) -> None:
    graph, _ = formed(case, form)
    rank = weighted_pagerank(graph, 0.8, theta)
    assert_edges_are_those_of_the_facts(graph, rank, top, None)
    assert_edges_are_those_of_the_facts(graph, as_scores(rank), top, 0.5)


@every_form
@table("elements", [1, 13, 64])
def test_band_size_does_not_matter_even_for_equal_edges(
    form: str, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DenseBlock.bands, "__defaults__", (elements,))
    monkeypatch.setattr(incident_edges, "BAND_ELEMENTS", elements)
    graph, seen = formed(tied_case(1, (9, 12, 1, 7)), form)
    rank = weighted_pagerank(graph)
    assert_edges_are_those_of_the_facts(graph, rank, 3, None)
    assert_edges_are_those_of_the_facts(graph, as_modified(rank), 4, None)
    for layer in (1, 2, 3):
        expected = [strongest(column, 3) for column in seen.weights[layer - 1].T]
        found = strongest_edges(graph, rank, layer - 1).out_nodes
        assert [[node for node in row if node >= 0] for row in found.tolist()] == expected


@pytest.mark.parametrize("form", ["csr", "bfloat16", "column-major"])
def test_large_layers(form: str) -> None:
    graph, seen = formed(random_case(8, (700, 900, 50), density=0.9), form)
    rank = weighted_pagerank(graph)
    found = strongest_edges(graph, rank, 1, top=4)
    masses = transition_matrix(seen.weights[0], 1.0) * rank.scores[0]
    np.testing.assert_array_equal(found.in_nodes, np.argsort(-masses, axis=1, kind="stable")[:, :4])
    np.testing.assert_allclose(found.in_shares, -np.sort(-masses, axis=1)[:, :4] / masses.sum(axis=1)[:, None])
    np.testing.assert_array_equal(found.out_nodes, np.argsort(-seen.weights[1].T, axis=1, kind="stable")[:, :4])
    shares = seen.weights[1] / seen.weights[1].sum(axis=0)
    np.testing.assert_allclose(found.out_shares, -np.sort(-shares.T, axis=1)[:, :4])


@pytest.mark.parametrize("form", ["csr", "bfloat16"])
@pytest.mark.parametrize("theta", [1.0, 0.4])
def test_operators_of_torch_give_the_same(form: str, theta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # The operators of a graph on a GPU, here on the CPU.
    graph, _ = formed(random_case(10, (6, 9, 5), density=0.6), form)
    rank = weighted_pagerank(graph, 0.7, theta)

    def answers() -> list[Any]:
        edges = [part for layer in range(3) for part in strongest_edges(graph, rank, layer)]
        flows = [flow(graph, rank, layer, 3) for layer in (1, 2)]
        return [
            *(part.tolist() for part in (*edges, *flows, *strengths(graph, 1))),
            *(dataclasses.astuple(facts_of(graph, rank, layer, 2)) for layer in range(3)),
            *(layer.to_dict() for layer in summarise_layers(graph, rank)),
            strongest_paths(graph, rank, 1, 2),
            *top_subgraph(graph, rank, 3).weight_shares,
        ]

    expected = answers()
    for module in (
        "analysis.strengths",
        "analysis.flow",
        "analysis.layer_summary",
        "analysis.node_summary",
        "analysis.paths",
        "reduction.subgraphs",
    ):
        monkeypatch.setattr(
            f"graphs.{module}.default_backend", lambda graph: make_backend("torch", "cpu", "float64", graph.blocks)
        )
    assert_close(answers(), expected)


def assert_close(found: Any, expected: Any) -> None:
    """Compare nested values, with numbers equal up to round-off."""
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    elif isinstance(expected, dict):
        assert_close([*found.items()], [*expected.items()])
    elif isinstance(expected, Path):
        assert_close(dataclasses.astuple(found), dataclasses.astuple(expected))
    else:
        assert found == (pytest.approx(expected) if isinstance(expected, float) else expected)


def test_sparse_edges_among_a_few_hubs() -> None:
    # A dense row and a dense column among sparse ones: padding must stay small, and nothing may be lost.
    weight = sparse.random_array((400, 300), density=0.01, random_state=np.random.default_rng(0), format="lil")
    weight[7], weight[:, 9] = 0.5, 0.25
    graph = LayeredGraph.from_weights([weight.tocsr()], np.ones(300), [np.ones(400)])
    rank = weighted_pagerank(graph)
    dense = weight.toarray()
    masses = transition_matrix(dense, 1.0) * rank.scores[0]
    found = strongest_edges(graph, rank, 1, top=2).in_nodes
    assert [[node for node in row if node >= 0] for row in found.tolist()] == [strongest(row, 2) for row in masses]
    found = strongest_edges(graph, rank, 0, top=2).out_nodes
    assert [[node for node in row if node >= 0] for row in found.tolist()] == [strongest(row, 2) for row in dense.T]


def test_strongest_edges_need_only_the_memory_of_bands() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(3000, 2000, generator=generator).bfloat16() for _ in range(2)]
    down = torch.randn(2000, 3000, generator=generator).bfloat16()
    graph = LayeredGraph.from_weights(
        [tuple(weights), down, tuple(weights)], torch.ones(2000), [torch.ones(n) for n in (3000, 2000, 3000)]
    )
    rank = weighted_pagerank(graph)
    strongest_edges(graph, rank, 0)  # whatever loads once
    tracemalloc.start()
    strongest_edges(graph, rank, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # One block in float64 takes 48 MB, a band 4 MB.
    assert peak < 30e6


# --- refused arguments


@table(
    ("ask", "message"),
    [
        (lambda graph, rank: facts_of(graph, rank, 3, 0), "expected a layer from 0 to 2, got 3"),
        (lambda graph, rank: facts_of(graph, rank, 1, 4), "expected a node of layer 1 from 0 to 3, got 4"),
        (lambda graph, rank: facts_of(graph, rank, 1, -1), "expected a node of layer 1"),
        (lambda graph, rank: facts_of(graph, rank, 1, np.True_), "expected a node of layer 1"),
        (lambda graph, rank: facts_of(graph, rank, 1, 0, -1), "top must be an integer >= 0"),
        (lambda graph, rank: facts_of(graph, rank, 1, 0, theta=2), "theta must be"),
        (lambda graph, rank: strongest_edges(graph, rank, -1), "expected a layer from 0 to 2, got -1"),
        (lambda graph, rank: strongest_edges(graph, rank, 1, 0), "top must be an integer >= 1, got 0"),
        (lambda graph, rank: strongest_edges(graph, rank, 1, theta=-1), "theta must be"),
    ],
)
def test_arguments_out_of_range_are_refused(ask: Callable[[LayeredGraph, RankResult], Any], message: str) -> None:
    graph = random_case(0, (3, 4, 2)).graph()
    with pytest.raises(GraphError, match=message):
        ask(graph, weighted_pagerank(graph))


def test_the_values_are_plain_and_frozen() -> None:
    graph = random_case(0, (3, 4, 2)).graph()
    found = facts_of(graph, weighted_pagerank(graph), 1, np.int64(2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.score = 0.0  # type: ignore[misc]
    kinds = {type(value) for value in dataclasses.asdict(found).values()}
    assert kinds <= {int, float, str, tuple}
    assert {type(value) for edge in found.in_edges for value in dataclasses.astuple(edge)} == {int, float}
