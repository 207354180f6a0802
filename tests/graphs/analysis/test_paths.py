"""Strongest paths against enumeration and networkx."""

import dataclasses
import itertools
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from graphs import GraphError, LayeredGraph, RankResult, modified_pagerank, weighted_pagerank
from graphs.analysis import incident_edges, paths
from graphs.analysis.node_summary import summarise_node
from graphs.analysis.paths import Path, strongest_paths
from graphs.linalg.blocks import DenseBlock
from tests.graphs.cases import SHARES, Array, Case, cases, random_case, transition_matrix
from tests.graphs.forms import as_scores, every_form, formed
from tests.pairwise import pairwise_by_first
from tests.tables import table


def all_paths(matrices: list[Array], layer: int, node: int, before: int, after: int) -> list[Path]:
    """Every path through the node, best first; products are taken from the last edge to the first."""
    layers = range(layer - before, layer + after + 1)
    sizes = [matrices[0].shape[1], *(len(matrix) for matrix in matrices)]
    found = []
    for nodes in itertools.product(*([node] if k == layer else range(sizes[k]) for k in layers)):
        product = 1.0
        for step in reversed(range(len(nodes) - 1)):
            product = matrices[layers[step]][nodes[step + 1], nodes[step]] * product
        if product > 0:
            found.append(Path(tuple(zip(layers, nodes, strict=True)), float(product)))
    return sorted(found, key=lambda path: (-path.probability, path.nodes))


@every_form
@given(case=cases(min_blocks=2, max_size=4), theta=SHARES, k=st.integers(1, 12), data=st.data())
def test_paths_are_the_best_of_all_enumerated_paths(
    case: Case, theta: float, k: int, data: st.DataObject, form: str
) -> None:
    graph, seen = formed(case, form)
    layer = data.draw(st.integers(0, len(graph.blocks)))
    node = data.draw(st.integers(0, graph.layer_sizes[layer] - 1))
    before = data.draw(st.integers(0, layer))
    after = data.draw(st.integers(0, len(graph.blocks) - layer))
    matrices = [transition_matrix(weight, theta) for weight in seen.weights]
    expected = all_paths(matrices, layer, node, before, after)
    found = strongest_paths(graph, weighted_pagerank(graph, 0.5, theta), layer, node, k, before, after)
    assert len(found) == min(k, len(expected))
    assert len(set(found)) == len(found)
    by_nodes = {path.nodes: path.probability for path in expected}
    for path, wanted in zip(found, expected, strict=False):
        assert path.probability == pytest.approx(wanted.probability, rel=1e-12)
        assert path.probability == pytest.approx(by_nodes[path.nodes], rel=1e-12)


def dyadic_case(seed: int, sizes: tuple[int, ...]) -> Case:
    """Columns whose entries are 1, 2 or 4 and sum to 4, or 0: every product is exact, and many are equal."""
    rng = np.random.default_rng(seed)
    patterns = [[4], [2, 2], [2, 1, 1], [1, 1, 1, 1], []]
    weights = []
    for m, n in itertools.pairwise(sizes):
        weight = np.zeros((n, m))
        for j in range(m):
            entries = patterns[rng.integers(len(patterns))]
            weight[rng.choice(n, len(entries), replace=False), j] = entries
        weights.append(weight)
    return Case(weights, np.ones(sizes[0]), [np.ones(size) for size in sizes[1:]])


@pairwise_by_first(elements=[5, 1 << 19], seed=range(8), form=["csr", "float32", "column-major"])
def test_equal_paths_are_ordered_by_node(seed: int, elements: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DenseBlock.bands, "__defaults__", (elements,))
    for module in (incident_edges, paths):
        monkeypatch.setattr(module, "BAND_ELEMENTS", elements)
    case = dyadic_case(seed, (5, 6, 4, 7, 5))
    graph, seen = formed(case, form)
    rank = weighted_pagerank(graph)
    matrices = [transition_matrix(weight, 1.0) for weight in seen.weights]
    for layer, before, after in [(0, 0, 4), (2, 2, 2), (4, 4, 0), (1, 1, 3), (3, 0, 1), (2, 0, 0)]:
        for node in range(graph.layer_sizes[layer]):
            expected = all_paths(matrices, layer, node, before, after)
            for k in (1, 2, 3, 7, 1000):
                assert strongest_paths(graph, rank, layer, node, k, before, after) == tuple(expected[:k])


@pytest.mark.parametrize("theta", [1.0, 0.3])
def test_paths_agree_with_networkx_shortest_simple_paths(theta: float) -> None:
    case = random_case(9, (6, 8, 5, 7), density=0.7)
    graph, layer, node = case.graph(), 1, 3
    digraph = networkx.DiGraph()
    for position, weight in enumerate(case.weights):
        matrix = transition_matrix(weight, theta)
        for i, j in zip(*np.nonzero(matrix), strict=True):
            digraph.add_edge((position, int(j)), (position + 1, int(i)), length=-math.log(matrix[i, j]))
    digraph.remove_nodes_from([(1, k) for k in range(8) if k != node])
    digraph.add_edges_from((("start", (0, k)) for k in range(6)), length=0.0)
    digraph.add_edges_from((((3, k), "end") for k in range(7)), length=0.0)
    shortest = networkx.shortest_simple_paths(digraph, "start", "end", weight="length")
    rank = weighted_pagerank(graph, 0.5, theta)
    found = strongest_paths(graph, rank, layer, node, k=15, before=1, after=2)
    assert len(found) == 15
    for path, nodes in zip(found, shortest, strict=False):
        assert path.nodes == tuple(nodes[1:-1])
        length = sum(digraph.edges[edge]["length"] for edge in itertools.pairwise(nodes))
        assert path.probability == pytest.approx(math.exp(-length))


@given(cases(min_blocks=2, max_size=3).map(Case.without_dangling), SHARES)
def test_probabilities_of_all_paths_from_a_node_sum_to_one(case: Case, theta: float) -> None:
    graph = case.graph()
    found = strongest_paths(graph, weighted_pagerank(graph, 0.5, theta), 0, 0, k=200, before=0, after=len(graph.blocks))
    assert sum(path.probability for path in found) == pytest.approx(1.0)


def test_a_node_alone_is_a_path_and_dangling_nodes_have_none() -> None:
    graph = LayeredGraph.from_weights([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0]]], [1, 1], [[1, 1], [1]])
    rank = weighted_pagerank(graph)
    assert strongest_paths(graph, rank, 1, 1, before=0, after=0) == (Path(((1, 1),), 1.0),)
    assert strongest_paths(graph, rank, 1, 0) == ()
    assert strongest_paths(graph, rank, 1, 1) == ()
    assert strongest_paths(graph, rank, 1, 0, after=0) == (Path(((0, 0), (1, 0)), 1.0),)
    assert strongest_paths(graph, rank, 0, 1, before=0) == ()


def test_long_paths_do_not_underflow() -> None:
    # A thousandth at every second step, over 120 of them: below the smallest float64.
    wide, narrow = sparse.csr_array(np.ones((1024, 1))), sparse.csr_array(np.ones((1, 1024)))
    blocks = [wide, narrow] * 120
    graph = LayeredGraph.from_weights(blocks, [1], [np.ones(block.shape[0]) for block in blocks])
    rank = weighted_pagerank(graph)
    first, second = strongest_paths(graph, rank, 1, 5, k=2, before=1, after=239)
    assert first.probability == second.probability == 0.0
    assert first.nodes == tuple((layer, 5 if layer == 1 else 0) for layer in range(241))
    assert second.nodes[-2] == (239, 1)
    (short,) = strongest_paths(graph, rank, 1, 5, k=1, before=1, after=99)
    assert short.probability == 2.0**-500


@pytest.mark.parametrize("theta", [0.0, 0.3, 1.0])
def test_paths_use_the_theta_of_the_rank(theta: float) -> None:
    graph = random_case(3, (4, 6, 5), density=0.7).graph()
    rank = weighted_pagerank(graph, theta=theta)
    found = strongest_paths(graph, rank, 1, 2, k=50)
    assert found == strongest_paths(graph, as_scores(rank), 1, 2, k=50, theta=theta)
    facts = summarise_node(graph, rank, 1, 2, top=50)
    into = {edge.node: edge.probability for edge in facts.in_edges}
    out = {edge.node: edge.probability for edge in facts.out_edges}
    assert len(found) == len(into) * len(out)
    for path in found:
        (_, source), _, (_, target) = path.nodes
        assert path.probability == pytest.approx(into[source] * out[target])
    # A modified rank has no theta.
    plain = strongest_paths(graph, as_scores(rank), 1, 2, theta=1.0)
    assert strongest_paths(graph, modified_pagerank(graph), 1, 2) == plain


def test_paths_need_only_the_memory_of_bands() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(3000, 2000, generator=generator).bfloat16() for _ in range(2)]
    down = torch.randn(2000, 3000, generator=generator).bfloat16()
    graph = LayeredGraph.from_weights(
        [tuple(weights), down, tuple(weights)], torch.ones(2000), [torch.ones(n) for n in (3000, 2000, 3000)]
    )
    rank = weighted_pagerank(graph)
    strongest_paths(graph, rank, 0, 0, before=0)  # whatever loads once
    tracemalloc.start()
    strongest_paths(graph, rank, 1, 0, before=1, after=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # One block in float64 takes 48 MB, a band 4 MB.
    assert peak < 30e6


# --- refused arguments


@table(
    ("ask", "message"),
    [
        (lambda graph, rank: strongest_paths(graph, rank, 5, 0), "expected a layer from 0 to 2"),
        (lambda graph, rank: strongest_paths(graph, rank, 1, 1.0), "expected a node of layer 1"),
        (lambda graph, rank: strongest_paths(graph, rank, 1, 0, k=0), "k must be an integer >= 1"),
        (lambda graph, rank: strongest_paths(graph, rank, 1, 0, before=-1), "before must be an integer >= 0"),
        (lambda graph, rank: strongest_paths(graph, rank, 1, 0, after=1.5), "after must be an integer >= 0"),
        (lambda graph, rank: strongest_paths(graph, rank, 0, 0), r"from layer -1 to 1 .* before <= 0 and after <= 2"),
        (lambda graph, rank: strongest_paths(graph, rank, 2, 0), r"from layer 1 to 3 .* before <= 2 and after <= 0"),
        (lambda graph, rank: strongest_paths(graph, rank, 1, 0, theta=math.nan), "theta must be"),
    ],
)
def test_arguments_out_of_range_are_refused(ask: Callable[[LayeredGraph, RankResult], Any], message: str) -> None:
    graph = random_case(0, (3, 4, 2)).graph()
    with pytest.raises(GraphError, match=message):
        ask(graph, weighted_pagerank(graph))


def test_the_values_are_plain() -> None:
    graph = random_case(0, (3, 4, 2)).graph()
    (path, *_) = strongest_paths(graph, weighted_pagerank(graph), 1, 2)
    assert {type(value) for step in path.nodes for value in step} == {int}
    assert type(path.probability) is float
    with pytest.raises(dataclasses.FrozenInstanceError):
        path.probability = 0.0  # type: ignore[misc]
