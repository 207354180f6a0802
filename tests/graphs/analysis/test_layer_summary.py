"""Summaries against textbook loops and networkx."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from scipy import stats

from graphs import LayeredGraph, modified_pagerank, pagerank, weighted_pagerank
from graphs.analysis.flow import flow
from graphs.analysis.layer_summary import Spread, summarise_layers
from tests.graphs.analysis.test_measures import gini_by_pairs
from tests.graphs.cases import SHARES, Case, cases, networkx_layers, random_case, transition_matrix, unit
from tests.graphs.forms import as_scores, every_form, formed
from tests.tables import table


def test_the_highest_node_agrees_with_networkx_pagerank() -> None:
    case = random_case(12, (6, 150, 8, 120), density=0.6)
    found = summarise_layers(case.graph(), weighted_pagerank(case.graph(), gamma=0.7, theta=0.4))
    for summary, scores in zip(found, networkx_layers(case, 0.7, 0.4), strict=True):
        falling = sorted(scores, reverse=True)
        assert summary.highest_node == list(scores).index(falling[0])
        assert summary.highest_share == pytest.approx(falling[0])
        assert summary.top_share == pytest.approx(sum(falling[: -(-len(scores) // 100)]))
        assert summary.effective_number == pytest.approx(1 / sum(score * score for score in scores))
        assert summary.through_graph == (None if summary.layer == 0 else pytest.approx(0.7))


@every_form
@given(case=cases(), gamma=SHARES)
def test_layer_summaries_agree_with_loops(case: Case, gamma: float, form: str) -> None:
    graph, seen = formed(case, form)
    rank = weighted_pagerank(graph, gamma)
    summaries = summarise_layers(graph, rank)
    activations = [case.inputs, *case.activations]
    assert [summary.layer for summary in summaries] == list(range(len(activations)))
    for layer, found in enumerate(summaries):
        scores = rank.scores[layer]
        assert (found.name, found.n_nodes) == (graph.names[layer], len(scores))
        assert found.activation == Spread.of(activations[layer])
        assert found.n_dead == sum(a == 0 for a in activations[layer])
        assert found.gini == pytest.approx(gini_by_pairs(scores), abs=1e-12)
        assert found.effective_number == pytest.approx(1 / sum(p * p for p in unit(scores)))
        assert found.top_share == pytest.approx(max(unit(scores)))
        highest = max(range(len(scores)), key=lambda node: (scores[node], node))
        assert (found.highest_node, found.highest_share) == (highest, pytest.approx(unit(scores)[highest]))
        if layer == 0:
            assert (found.n_in_edges, found.density, found.in_strength) == (0, None, None)
            assert (found.n_unreached, found.through_graph) == (None, None)
        else:
            weight = seen.weights[layer - 1]
            assert found.n_in_edges == (weight != 0).sum()
            assert found.density == pytest.approx((weight != 0).mean())
            assert found.in_strength is not None
            assert dataclasses.astuple(found.in_strength) == pytest.approx(
                dataclasses.astuple(Spread.of(weight.sum(axis=1)))
            )
            assert found.n_unreached == (~weight.any(axis=1)).sum()
            passed = (transition_matrix(weight, 1.0) @ unit(rank.scores[layer - 1])).sum()
            total = gamma * passed + 1 - gamma
            assert found.through_graph == pytest.approx(gamma * passed / total if total else 0.0)
        if layer < len(graph.blocks):
            assert found.n_dangling == (~seen.weights[layer].any(axis=0)).sum()
            assert found.out_strength is not None
            assert found.out_strength.mean == pytest.approx(seen.weights[layer].sum(axis=0).mean())
        else:
            assert (found.n_dangling, found.out_strength) == (None, None)
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


def test_the_share_through_the_graph_agrees_with_the_formula() -> None:
    case = random_case(7, (6, 8, 5), density=0.5)
    case.weights[1][:, :3] = 0
    graph, gamma = case.graph(), 0.7
    rank = weighted_pagerank(graph, gamma, theta=0.3)
    for layer, weight in enumerate(case.weights, start=1):
        through = gamma * transition_matrix(weight, 0.3) @ rank.scores[layer - 1]
        own = (1 - gamma) * unit(case.activations[layer - 1])
        np.testing.assert_allclose((through + own) / (through + own).sum(), rank.scores[layer])
        expected = through.sum() / (through + own).sum()
        assert summarise_layers(graph, rank)[layer].through_graph == pytest.approx(expected)


def test_only_the_weighted_rank_of_layers_has_a_part_through_the_graph() -> None:
    graph = random_case(1, (3, 4)).graph()
    for rank in (modified_pagerank(graph), pagerank(graph), as_scores(weighted_pagerank(graph))):
        assert [summary.through_graph for summary in summarise_layers(graph, rank)] == [None, None]


@table("form", ["csr", "float32", "bfloat16", "parallel"])
def test_edges_of_large_blocks_are_counted(form: str) -> None:
    graph, seen = formed(random_case(4, (700, 600), density=1.0 if form != "csr" else 0.9), form)
    assert summarise_layers(graph, weighted_pagerank(graph))[1].n_in_edges == np.count_nonzero(seen.weights[0])


@table("size", [1, 2, 5, 9])
def test_spread(size: int) -> None:
    values = np.random.default_rng(size).random(size)
    found = Spread.of(values)
    expected = stats.scoreatpercentile(values, [0, 25, 50, 75, 100])
    assert dataclasses.astuple(found) == pytest.approx([*expected, sum(values) / size])


def test_the_mean_of_huge_values_is_finite() -> None:
    assert Spread.of([1.7e308] * 2).mean == 1.7e308
    assert Spread.of([0.0, 0.0]).mean == 0.0
    assert Spread.of([5e-324] * 3).mean == 5e-324


# --- refused arguments


def test_summaries_copy_no_weights() -> None:
    weight = torch.randn(2048, 3000, generator=torch.Generator().manual_seed(0)).bfloat16()
    graph = LayeredGraph.from_weights([weight], torch.ones(3000), [torch.ones(2048)])
    rank = weighted_pagerank(graph)
    summarise_layers(graph, rank)  # whatever loads once
    tracemalloc.start()
    summarise_layers(graph, rank)
    flow(graph, rank, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # In float64 the block takes 49 MB; a band 4 MB, and its float32 copy for a moment.
    assert peak < 16e6
