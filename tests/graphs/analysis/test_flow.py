"""Flow between buckets against its definition."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphs import GraphError, LayeredGraph, modified_pagerank, weighted_pagerank
from graphs.analysis.buckets import score_buckets
from graphs.analysis.flow import flow, gamma_of
from tests.graphs.analysis.test_measures import NO_BUCKETS
from tests.graphs.cases import SHARES, Array, Case, cases, random_case, transition_matrix
from tests.graphs.forms import as_modified, as_scores, every_form, formed
from tests.tables import table


def expected_flow(weight: Array, scores: tuple[Array, Array], buckets: Any, theta: float) -> Array:
    matrix = transition_matrix(weight, theta) * scores[0]
    sources, targets = (score_buckets(part, buckets) for part in scores)
    count = buckets if isinstance(buckets, int) else len(buckets)
    found = np.zeros((count, count))
    for i, j in itertools.product(range(len(targets)), range(len(sources))):
        found[targets[i], sources[j]] += matrix[i, j]
    return found


@every_form
@given(case=cases(), theta=SHARES, buckets=st.one_of(st.integers(1, 6), st.just((0.2, 0.3, 0.5))))
def test_flow_agrees_with_its_definition(case: Case, theta: float, buckets: Any, form: str) -> None:
    graph, seen = formed(case, form)
    rank = weighted_pagerank(graph, 0.6, theta)
    for layer, weight in enumerate(seen.weights, start=1):
        before, after = rank.scores[layer - 1], rank.scores[layer]
        found = flow(graph, rank, layer, buckets)
        np.testing.assert_allclose(found, expected_flow(weight, (before, after), buckets, theta), rtol=1e-9, atol=1e-12)
        assert found.sum() == pytest.approx(before[weight.any(axis=0)].sum())
        # A theta argument, and scores of a method without theta.
        half = flow(graph, rank, layer, buckets, theta=0.5)
        np.testing.assert_allclose(half, expected_flow(weight, (before, after), buckets, 0.5), rtol=1e-9, atol=1e-12)
        plain = flow(graph, as_scores(rank), layer, buckets)
        np.testing.assert_allclose(plain, expected_flow(weight, (before, after), buckets, 1.0), rtol=1e-9, atol=1e-12)


@every_form
@given(case=cases(), zero_lowest=st.sampled_from([0.0, 0.3, 0.6, 1.0]), buckets=st.integers(1, 4))
def test_flow_of_a_modified_rank_agrees_with_its_definition(
    case: Case, zero_lowest: float, buckets: int, form: str
) -> None:
    graph, seen = formed(case, form)
    rank = modified_pagerank(graph, zero_lowest=zero_lowest)
    for layer, weight in enumerate(seen.weights, start=1):
        before, after = rank.scores[layer - 1].copy(), rank.scores[layer]
        sources, targets = score_buckets(before, buckets), score_buckets(after, buckets)
        before[np.argsort(before, kind="stable")[: int(zero_lowest * len(before))]] = 0
        activation = case.activations[layer - 1]
        matrix = (activation if activation.any() else np.ones(len(activation)))[:, None] * weight * before
        expected = np.zeros((buckets, buckets))
        for i, j in itertools.product(range(len(targets)), range(len(sources))):
            expected[targets[i], sources[j]] += matrix[i, j]
        found = flow(graph, rank, layer, buckets)
        np.testing.assert_allclose(found, expected / (expected.sum() or 1.0), rtol=1e-9, atol=1e-12)
        if expected.sum() > 0:
            masses = np.bincount(targets, weights=after, minlength=buckets)
            np.testing.assert_allclose(found.sum(axis=1), masses, atol=1e-12)


@table("form", ["csr", "float32", "bfloat16", "parallel"])
@table("theta", [1.0, 0.4])
def test_large_blocks_give_the_same_numbers_through_compiled_kernels(form: str, theta: float) -> None:
    # Compiled kernels are used from 2**18 entries on.
    case = random_case(4, (700, 600), density=1.0 if form != "csr" else 0.9)
    graph, seen = formed(case, form)
    rank = weighted_pagerank(graph, 0.5, theta)
    expected = expected_flow(seen.weights[0], (rank.scores[0], rank.scores[1]), 4, theta)
    np.testing.assert_allclose(flow(graph, rank, 1, 4), expected, rtol=1e-9)


def test_a_rank_without_gamma_has_no_damping() -> None:
    rank = weighted_pagerank(random_case(0, (3, 4)).graph(), gamma=0.3)
    assert gamma_of(rank) == 0.3
    assert gamma_of(as_modified(rank)) is None
    rank.parameters.pop("gamma")
    assert gamma_of(rank) is None


# --- refused arguments


@table("buckets", NO_BUCKETS)
def test_invalid_buckets_are_refused(buckets: Any) -> None:
    graph = random_case(0, (2, 3)).graph()
    rank = weighted_pagerank(graph)
    with pytest.raises(GraphError, match="buckets: expected an integer"):
        flow(graph, rank, 1, buckets)


@table("layer", [-1, 0, 2, True, 1.0, "1", None])
def test_layers_out_of_range_are_refused(layer: Any) -> None:
    graph = random_case(0, (3, 4)).graph()
    with pytest.raises(GraphError, match="expected a layer from 1 to 1"):
        flow(graph, weighted_pagerank(graph), layer)


def test_theta_out_of_range() -> None:
    graph = random_case(0, (3, 4)).graph()
    with pytest.raises(GraphError, match="theta must be"):
        flow(graph, weighted_pagerank(graph), 1, theta=1.5)


def test_a_modified_flow_whose_sum_overflows_is_refused() -> None:
    # Every product is finite; over an infinite sum they would all be zero.
    graph = LayeredGraph.from_weights([np.full((3, 1), 1.7e308)], [1], [[1, 1, 1]])
    rank = as_modified(weighted_pagerank(LayeredGraph.from_weights([np.ones((3, 1))], [1], [[1, 1, 1]])))
    with pytest.raises(GraphError, match=r"block 1: .*NaN or Inf"):
        flow(graph, rank, 1)
