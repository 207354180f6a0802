"""The disparity filter against the formula in rational numbers and against networkx."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from graphs import LayeredGraph
from graphs.io.convert import to_networkx
from graphs.reduction import backbone
from graphs.reduction.backbone import disparity, significant_in_edges
from graphs.reduction.sparsify import sparsify
from tests.graphs.cases import Array, random_case


def graph_of(weight: Any) -> LayeredGraph:
    n_targets, n_sources = np.shape(weight)
    return LayeredGraph.from_weights([weight], np.ones(n_sources), [np.ones(n_targets)])


def alpha(weight: int, weights: list[int]) -> Fraction:
    """The formula: (1 - p) ** (k - 1) among the edges of one node."""
    edges = [w for w in weights if w]
    return (1 - Fraction(weight, sum(edges))) ** (len(edges) - 1)


def kept_by_the_textbook(weight: list[list[int]], level: Fraction) -> list[list[int]]:
    columns = [list(column) for column in zip(*weight, strict=True)]
    kept = [[0] * len(columns) for _ in weight]
    for i, row in enumerate(weight):
        for j, w in enumerate(row):
            if w and (alpha(w, row) < level or alpha(w, columns[j]) < level):
                kept[i][j] = w
    for j, column in enumerate(columns):
        if any(column):
            heaviest = column.index(max(column))
            kept[heaviest][j] = column[heaviest]
    return kept


integers = arrays(np.int64, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 9))
# Not a fraction of small integers, for which round-off would decide.
levels = st.sampled_from([0.0, 0.0123, 0.0503, 0.1207, 0.2031, 0.3109, 0.5003, 0.7919, 0.99])


@given(integers, levels)
def test_the_kept_edges_agree_with_the_formula(weight: Array, level: float) -> None:
    found = sparsify(graph_of(weight), significance=level).graph.block(1).toarray()
    np.testing.assert_array_equal(found, kept_by_the_textbook(weight.tolist(), Fraction(level)))


def test_an_edge_exactly_at_the_level_is_dropped() -> None:
    # Two equal edges: alpha = 1/2 at their source, and each is the only edge of its target.
    weight = np.array([[3.0], [3.0]])
    assert sparsify(graph_of(weight), significance=0.5).edges_after == 1
    assert sparsify(graph_of(weight), significance=0.500001).edges_after == 2
    # And at their target, while the heaviest edges of their sources lead elsewhere.
    weight = np.array([[3.0, 3.0], [5.0, 5.0]])
    np.testing.assert_array_equal(
        sparsify(graph_of(weight), significance=0.5).graph.block(1).toarray(), [[0, 0], [5, 5]]
    )
    assert sparsify(graph_of(weight), significance=0.500001).edges_after == 4


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2])
def test_the_backbone_follows_from_networkx_strengths(level: float) -> None:
    case = random_case(4, (30, 50, 20), density=0.5)
    # Heavy tails, because otherwise no edge is significant.
    graph = case.graph([np.sign(w) * np.abs(w) ** 4 for w in case.weights])
    digraph = to_networkx(graph)
    out_strength, in_strength = digraph.out_degree(weight="weight"), digraph.in_degree(weight="weight")
    expected = set()
    for u, v, w in digraph.edges(data="weight"):
        by_source = (1 - w / out_strength[u]) ** (digraph.out_degree(u) - 1)
        by_target = (1 - w / in_strength[v]) ** (digraph.in_degree(v) - 1)
        heaviest = max(digraph.out_edges(u, data="weight"), key=lambda edge: edge[2])[1]
        if min(by_source, by_target) < level or v == heaviest:
            expected.add((u, v))
    found = set(to_networkx(sparsify(graph, significance=level).graph).edges())
    assert found == expected
    assert len(found) < digraph.number_of_edges()


def test_a_single_edge_is_tested_at_its_other_end() -> None:
    # Target 0 has one in-edge; its source has three, and this is a light one.
    weight = np.array([[1.0, 0.0], [10.0, 5.0], [10.0, 5.0]])
    kept = sparsify(graph_of(weight), significance=0.2).graph.block(1).toarray()
    assert kept[0, 0] == 0.0
    # If it is heavy, it is kept.
    weight[0, 0] = 100.0
    assert sparsify(graph_of(weight), significance=0.2).graph.block(1).toarray()[0, 0] == 100.0


def test_edges_significant_only_at_their_target_are_kept() -> None:
    # Every out-edge of source 0 is a third of its strength; at target 0 its edge is far heavier than the others.
    weight = np.array([[9.0, 0.1, 0.1], [9.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    kept = sparsify(graph_of(weight), significance=0.05).graph.block(1).toarray()
    assert kept[0, 0] == 9.0
    np.testing.assert_array_equal(kept[0, 1:], 0.0)


@given(
    arrays(np.float64, st.integers(1, 30), elements=st.floats(1e-3, 1e3)),
    st.sampled_from([1e-300, 1.0, 1e300]),
)
def test_alpha_is_a_probability_that_decreases_with_weight_and_ignores_scale(weights: Array, scale: float) -> None:
    weights = np.sort(weights)
    found = disparity(weights, np.asarray(weights.sum()), np.asarray(len(weights)))
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found) <= 1e-15).all()
    scaled = disparity(weights * scale, np.asarray((weights * scale).sum()), np.asarray(len(weights)))
    np.testing.assert_allclose(scaled, found, rtol=1e-9, atol=1e-300)


def test_chance_spreads_a_strength_as_the_null_model_says() -> None:
    # k - 1 points cut the unit interval: the share of pieces of length p or more is alpha.
    rng = np.random.default_rng(0)
    pieces = np.diff(np.sort(rng.random((200_000, 4)), axis=1), axis=1, prepend=0.0, append=1.0)
    for p in (0.1, 0.3, 0.6):
        expected = float(disparity(np.array(p), np.array(1.0), np.array(5)))
        assert np.mean(pieces[:, 0] >= p) == pytest.approx(expected, abs=4e-3)


@pytest.mark.parametrize("elements", [1, 5, 1 << 19])
def test_group_size_does_not_matter(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    weight = rng.pareto(1.0, (40, 41)) * rng.permuted(np.tri(40, 41, 0), axis=0)
    expected = sparsify(graph_of(weight), significance=0.1)
    monkeypatch.setattr(backbone, "BAND_ELEMENTS", elements)
    monkeypatch.setattr("graphs.analysis.incident_edges.BAND_ELEMENTS", elements)
    found = sparsify(graph_of(weight), significance=0.1)
    np.testing.assert_array_equal(found.graph.block(1).toarray(), expected.graph.block(1).toarray())
    assert 0.0 < found.kept_share < 1.0


def test_sums_beyond_float64_do_not_overflow() -> None:
    weight = sparse.csr_array(np.array([[4e307, 4e307, 4e307, 4e307, 1.7e308], [5e-324, 0, 0, 0, 0]]))
    # alpha of the last of the first row: (16/33)**4 = 0.055.
    np.testing.assert_array_equal(significant_in_edges(weight, 0.06), [False, False, False, False, True, False])


def test_a_block_without_edges_has_no_significant_edges() -> None:
    assert significant_in_edges(sparse.csr_array((3, 2)), 0.5).shape == (0,)
