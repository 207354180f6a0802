"""Sparsification against a slow reference, and its bounds against true errors."""

import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from graphs import GraphError, LayeredGraph, pagerank, weighted_pagerank
from graphs.linalg.blocks import SparseBlock
from graphs.reduction.sparsify import Sparsification, sparsify
from tests.graphs.cases import SHARES, Array, Case, cases, distance, random_case, transition_matrix
from tests.tables import table

ROUND_OFF = 1e-12
RULES: list[dict[str, Any]] = [
    *({"top_k": k} for k in (1, 2, 3)),
    *({"threshold": t} for t in (0.0, 0.1, 0.3, 0.6, 1.0)),
    *({"weight_share": m} for m in (0.0, 0.4, 0.7, 0.95)),
]
# By these rules the edges that a source keeps depend only on its own edges.
BY_SOURCE = RULES.copy()
RULES += [{"significance": s} for s in (0.0, 0.05, 0.3, 1.0)]
rules = st.one_of(
    st.fixed_dictionaries({"top_k": st.integers(1, 6)}),
    st.fixed_dictionaries({"threshold": st.floats(0.0, 1.0)}),
    st.fixed_dictionaries({"weight_share": st.floats(0.0, 1.0)}),
    st.fixed_dictionaries({"significance": st.floats(0.0, 1.0)}),
)
every_rule = table("rule", RULES)


def graph_of(*weights: Any) -> LayeredGraph:
    sizes = [np.shape(weights[0])[1], *(np.shape(weight)[0] for weight in weights)]
    return LayeredGraph.from_weights(weights, np.ones(sizes[0]), [np.ones(size) for size in sizes[1:]])


def kept_of(weight: Any, **rule: Any) -> Array:
    return np.asarray(sparsify(graph_of(weight), **rule).graph.block(1).toarray())


def exactly_kept(column: Sequence[int], rule: str, value: Fraction) -> list[int]:
    """Sparsify a column of integer weights by the definition, in rational numbers."""
    edges = sorted((-abs(weight), target) for target, weight in enumerate(column) if weight)
    total = sum(-weight for weight, _ in edges)
    if rule == "top_k":
        stays = edges[: int(value)]
    elif rule == "threshold":
        stays = edges[:1] + [edge for edge in edges[1:] if Fraction(-edge[0], total) >= value]
    else:
        stays = next(
            (
                edges[:count]
                for count in range(1, len(edges) + 1)
                if Fraction(sum(-weight for weight, _ in edges[:count]), total) >= value
            ),
            edges,
        )
    targets = {target for _, target in stays}
    return [abs(weight) if target in targets else 0 for target, weight in enumerate(column)]


def errors(case: Case, found: Sparsification, gamma: float, theta: float) -> list[float]:
    """The true L1 error of every layer."""
    before, after = (weighted_pagerank(graph, gamma, theta).scores for graph in (case.graph(), found.graph))
    return [float(np.abs(b - a).sum()) for b, a in zip(before, after, strict=True)]


# --- kept edges


@given(
    arrays(np.int64, st.tuples(st.integers(1, 7), st.integers(1, 4)), elements=st.integers(-6, 6)),
    st.one_of(
        st.tuples(st.just("top_k"), st.integers(1, 8).map(Fraction)),
        st.tuples(st.sampled_from(["threshold", "weight_share"]), st.fractions(0, 1, max_denominator=40)),
    ),
)
def test_the_kept_edges_agree_with_the_definition(weight: Array, rule: tuple[str, Fraction]) -> None:
    # Small integers are often equal, and meet thresholds and masses exactly.
    name, value = rule
    found = kept_of(weight, **{name: int(value) if name == "top_k" else float(value)})
    expected = [exactly_kept([int(entry) for entry in column], name, value) for column in weight.T]
    np.testing.assert_array_equal(found, np.transpose(expected))


@table("rule", BY_SOURCE)
@table("elements", [1, 7, 1 << 19])
def test_group_size_does_not_matter(rule: dict[str, Any], elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Degrees from 0 to 40, so that groups are padded; one column a group is the reference.
    rng = np.random.default_rng(0)
    weight = rng.integers(1, 9, (40, 41)) * (rng.permuted(np.tri(40, 41, 0), axis=0))
    expected = [kept_of(column[:, None], **rule)[:, 0] for column in weight.T]
    lost = [sparsify(graph_of(column[:, None]), **rule).dropped_weight_shares[0] for column in weight.T]
    monkeypatch.setattr("graphs.analysis.incident_edges.BAND_ELEMENTS", elements)
    np.testing.assert_array_equal(kept_of(weight, **rule), np.transpose(expected))
    assert sparsify(graph_of(weight), **rule).dropped_weight_shares == pytest.approx([max(lost)], abs=1e-15)


def test_edges_are_compared_with_the_strength_of_their_source() -> None:
    weight = np.array([[100.0, 1.0], [10.0, 3.0], [1.0, 0.0]])
    np.testing.assert_array_equal(kept_of(weight, threshold=0.2), [[100, 1], [0, 3], [0, 0]])
    np.testing.assert_array_equal(kept_of(weight, weight_share=0.95), [[100, 1], [10, 3], [0, 0]])


def test_ties_go_to_the_lower_target() -> None:
    weight = np.array([[1.0, 2.0], [2.0, 2.0], [2.0, 2.0], [2.0, 1.0]])
    np.testing.assert_array_equal(kept_of(weight, top_k=2), [[0, 2], [2, 2], [2, 0], [0, 0]])
    np.testing.assert_array_equal(kept_of(np.ones((10, 1)), weight_share=0.3)[:, 0], [1] * 3 + [0] * 7)
    np.testing.assert_array_equal(kept_of(np.ones((10, 1)), threshold=0.11)[:, 0], [1] + [0] * 9)
    np.testing.assert_array_equal(kept_of(np.ones((10, 1)), threshold=0.1)[:, 0], [1] * 10)


@given(cases(), rules)
def test_every_source_with_an_edge_keeps_its_heaviest(case: Case, rule: dict[str, Any]) -> None:
    found = sparsify(case.graph(), **rule)
    for weight, block in zip(case.weights, found.graph.blocks, strict=True):
        before, after = np.abs(weight), block.to_csr().toarray()
        np.testing.assert_array_equal(after.max(axis=0), before.max(axis=0))
        np.testing.assert_array_equal(after, np.where(after != 0, before, 0))
    assert found.dangling == case.dangles


@given(cases(), st.integers(1, 6), st.integers(1, 6), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_weaker_rule_keeps_a_superset(case: Case, k: int, l: int, low: float, high: float) -> None:  # noqa: E741
    low, high = sorted((low, high))
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"top_k": min(k, l)}, {"top_k": max(k, l)}),
        ({"threshold": high}, {"threshold": low}),
        ({"weight_share": low}, {"weight_share": high}),
        ({"significance": low}, {"significance": high}),
    ]
    for few, many in pairs:
        fewer, more = sparsify(case.graph(), **few), sparsify(case.graph(), **many)
        for small, large in zip(fewer.graph.blocks, more.graph.blocks, strict=True):
            assert (large.to_csr().toarray()[small.to_csr().toarray() != 0] != 0).all()
        assert fewer.kept_share <= more.kept_share
        assert fewer.dropped_weight_shares >= more.dropped_weight_shares
        assert fewer.pagerank_bound(0.7) >= more.pagerank_bound(0.7)


@given(cases(), rules)
def test_sparsifying_again_by_the_same_count_or_threshold_drops_nothing(case: Case, rule: dict[str, Any]) -> None:
    once = sparsify(case.graph(), **rule)
    twice = sparsify(once.graph, **rule)
    if "significance" not in rule and rule.get("weight_share", 1.0) == 1.0:
        assert twice.kept_share == 1.0
        assert twice.graph.blocks == once.graph.blocks


def test_sparsifying_again_by_the_same_mass_may_drop_more() -> None:
    once = sparsify(graph_of(np.ones((10, 1))), weight_share=0.5)
    assert (once.edges_after, sparsify(once.graph, weight_share=0.5).edges_after) == (5, 3)


@given(
    cases(),
    st.sampled_from([{"weight_share": 1.0}, {"threshold": 0.0}, {"top_k": 5}, {"top_k": 10**30}]),
    SHARES,
    SHARES,
)
def test_rules_that_drop_nothing_have_bounds_of_zero(
    case: Case, rule: dict[str, Any], gamma: float, theta: float
) -> None:
    found = sparsify(case.graph(), **rule)
    for weight, block in zip(case.weights, found.graph.blocks, strict=True):
        np.testing.assert_array_equal(block.to_csr().toarray(), np.abs(weight))
    assert (found.kept_share, found.edges_after) == (1.0, found.edges_before)
    assert {*found.dropped_weight_shares, *found.dropped_edge_shares} == {0.0}
    # Dangling columns too: equal vectors stay equal.
    assert found.layer_bounds(gamma, theta) == (0.0,) * len(case.sizes)
    assert found.error_bound(gamma, theta) == found.pagerank_bound(0.9) == 0.0


def test_full_mass_keeps_edges_too_light_to_count() -> None:
    weight = np.array([[1.0], [1e-40], [5e-324]])
    assert sparsify(graph_of(weight), weight_share=1.0).kept_share == 1.0
    assert sparsify(graph_of(weight), weight_share=1.0 - 1e-16).edges_after == 1


@table("scale", [5e-324, 1e-320, 1e-200, 1e300, 4e307])
@every_rule
def test_the_scale_of_weights_does_not_matter(rule: dict[str, Any], scale: float) -> None:
    # 4 * 4e307 is finite and the sum of a column is not; 5e-324 is the smallest number.
    weight = np.array([[4.0, 1.0], [2.0, 1.0], [1.0, 4.0], [4.0, 0.0]])
    if scale < 1e-300:
        scale = 5e-324 * np.ceil(scale / 5e-324)
    found, expected = sparsify(graph_of(weight * scale), **rule), sparsify(graph_of(weight), **rule)
    np.testing.assert_array_equal(found.graph.block(1).toarray() != 0, expected.graph.block(1).toarray() != 0)
    assert found.dropped_weight_shares == pytest.approx(expected.dropped_weight_shares, abs=1e-15)


# --- results


@given(cases(), rules)
def test_dropped_shares_are_the_largest_of_a_column(case: Case, rule: dict[str, Any]) -> None:
    found = sparsify(case.graph(), **rule)
    for position, weight in enumerate(case.weights):
        before, after = np.abs(weight), found.graph.block(position + 1).toarray()
        has = before.any(axis=0)
        by_weight = [1 - a.sum() / b.sum() for b, a in zip(before.T[has], after.T[has], strict=True)]
        by_count = [
            1 - np.count_nonzero(a) / np.count_nonzero(b) for b, a in zip(before.T[has], after.T[has], strict=True)
        ]
        assert found.dropped_weight_shares[position] == pytest.approx(max(by_weight, default=0.0), abs=1e-14)
        assert found.dropped_edge_shares[position] == pytest.approx(max(by_count, default=0.0), abs=1e-14)
    assert found.edges_before == case.graph().n_edges
    assert found.edges_after == found.graph.n_edges
    assert found.kept_share == (found.edges_after / found.edges_before if found.edges_before else 1.0)


@given(cases(), rules, SHARES)
def test_columns_of_the_transition_change_by_twice_the_dropped_share(
    case: Case, rule: dict[str, Any], theta: float
) -> None:
    found = sparsify(case.graph(), **rule)
    for position, weight in enumerate(case.weights):
        change = transition_matrix(weight, theta) - transition_matrix(found.graph.block(position + 1).toarray(), theta)
        share = theta * found.dropped_weight_shares[position] + (1 - theta) * found.dropped_edge_shares[position]
        assert np.abs(change).sum(axis=0).max() <= 2 * share + ROUND_OFF
        if weight.shape[1] == 1:
            assert np.abs(change).sum() == pytest.approx(2 * share, abs=ROUND_OFF)


def test_the_graph_keeps_activations_names_and_is_sorted_csr() -> None:
    case = random_case(0, (6, 9, 4), density=0.8)
    graph = LayeredGraph.from_weights(case.weights, case.inputs, case.activations, names=("in", "hidden", "out"))
    found = sparsify(graph, top_k=3).graph
    assert found.names == graph.names
    assert all(a is b for a, b in zip(found.activations, graph.activations, strict=True))
    for block in found.blocks:
        assert isinstance(block, SparseBlock)
        csr = block.to_csr()
        assert csr.indices.dtype == csr.indptr.dtype == np.int32
        again = sparse.csr_array((csr.data, csr.indices, csr.indptr), shape=csr.shape)
        assert again.has_canonical_format
        assert (csr.data > 0).all()


def test_int64_indices_become_int32_where_they_fit() -> None:
    csr = sparse.random_array((20, 10), density=0.5, format="csr", random_state=0)
    wide = sparse.csr_array((csr.data, csr.indices.astype(np.int64), csr.indptr.astype(np.int64)), shape=csr.shape)
    graph = LayeredGraph((SparseBlock(wide),), (np.ones(10), np.ones(20)), ("a", "b"))
    found = sparsify(graph, top_k=2).graph.block(1)
    assert found.indices.dtype == found.indptr.dtype == np.int32
    np.testing.assert_array_equal(found.toarray(), kept_of(csr, top_k=2))


FORMS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "strided": lambda weight: np.repeat(weight, 2, axis=1)[:, ::2],
    "csr": sparse.csr_array,
    "csc": sparse.csc_array,
    "torch": torch.from_numpy,
    "torch transposed": lambda weight: torch.from_numpy(np.ascontiguousarray(weight.T)).T,
    "parameter": lambda weight: torch.nn.Parameter(torch.from_numpy(weight)),
    "parallel": lambda weight: (weight / 2, -weight / 2),
}


@every_rule
@table("dtype", [np.float32, np.float64])
def test_the_form_of_the_weights_does_not_matter(rule: dict[str, Any], dtype: Any) -> None:
    case = random_case(3, (7, 12), density=0.6)
    weight = np.round(case.weights[0] * 4).astype(dtype)
    expected = sparsify(case.graph([weight.astype(np.float64)]), **rule)
    for name, form in FORMS.items():
        given = weight.copy()
        found = sparsify(case.graph([form(given)]), **rule)
        np.testing.assert_array_equal(found.graph.block(1).toarray(), expected.graph.block(1).toarray(), err_msg=name)
        assert found.graph.block(1).dtype == dtype, name
        assert found.dropped_weight_shares == expected.dropped_weight_shares, name
        np.testing.assert_array_equal(given, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_become_float32(dtype: torch.dtype) -> None:
    found = sparsify(graph_of(torch.tensor([[1.0, -2.0], [3.0, 0.5]], dtype=dtype)), top_k=1).graph.block(1)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.toarray(), [[0, 2], [3, 0]])


def test_stored_blocks_are_not_changed() -> None:
    weight = random_case(1, (6, 8)).weights[0]
    graph = graph_of(sparse.csr_array(weight))
    before = graph.block(1).copy()
    sparsify(graph, top_k=2)
    np.testing.assert_array_equal(graph.block(1).toarray(), before.toarray())
    assert sparsify(graph, weight_share=1.0).graph.blocks[0] is graph.blocks[0]


def test_a_graph_without_edges_stays_the_same() -> None:
    found = sparsify(graph_of(np.zeros((3, 2))), top_k=1)
    assert (found.edges_before, found.edges_after, found.kept_share, found.dangling) == (0, 0, 1.0, True)
    assert found.layer_bounds(0.5) == (0.0, 0.0)


# --- the bounds


@given(cases(), rules, SHARES, SHARES)
def test_layers_without_dangling_columns_keep_their_bounds(
    case: Case, rule: dict[str, Any], gamma: float, theta: float
) -> None:
    case = case.without_dangling()
    found = sparsify(case.graph(), **rule)
    bounds = found.layer_bounds(gamma, theta)
    truth = errors(case, found, gamma, theta)
    assert bounds[0] == truth[0] == 0.0
    assert all(error <= bound + ROUND_OFF for error, bound in zip(truth, bounds, strict=True))
    assert found.error_bound(gamma, theta) == max(bounds) <= 2 * gamma + ROUND_OFF
    changes = [
        2 * (theta * weight + (1 - theta) * edges)
        for weight, edges in zip(found.dropped_weight_shares, found.dropped_edge_shares, strict=True)
    ]
    for (before, after), change in zip(itertools.pairwise(bounds), changes, strict=True):
        assert after <= gamma * (before + change) + ROUND_OFF
    if gamma < 1:
        assert max(bounds) <= gamma / (1 - gamma) * max(changes) + ROUND_OFF


@given(cases(min_blocks=2), rules, SHARES, SHARES)
def test_from_the_first_difference_at_a_dangling_column_on_no_bound_is_claimed(
    case: Case, rule: dict[str, Any], gamma: float, theta: float
) -> None:
    found = sparsify(case.graph(), **rule)
    bounds = found.layer_bounds(gamma, theta)
    truth = errors(case, found, gamma, theta)
    assert all(error <= bound + ROUND_OFF for error, bound in zip(truth, bounds, strict=True))
    differs = False
    lost = False
    for position, weight in enumerate(case.weights):
        share = theta * found.dropped_weight_shares[position] + (1 - theta) * found.dropped_edge_shares[position]
        differs = differs or (share > 0 and gamma > 0)
        lost = lost or (differs and not weight.any(axis=0).all())
        assert (bounds[position + 1] == np.inf) == lost
        assert differs or bounds[position + 1] == 0.0
    assert (found.error_bound(gamma, theta) == np.inf) == lost


def test_a_difference_that_rounds_to_nothing_still_ends_the_bounds() -> None:
    full, dangling = np.array([[0.0], [0.0], [1.0], [1.0]]), np.zeros((3, 4))
    found = sparsify(graph_of(full, dangling), top_k=1)
    assert found.layer_bounds(1e-310)[2] == np.inf


def test_a_dangling_column_ends_the_bounds_at_its_block() -> None:
    weights = [np.array([[3.0, 1.0], [1.0, 1.0]])] * 3
    full = sparsify(graph_of(*weights), top_k=1).layer_bounds(0.5)
    weights[1] = np.array([[3.0, 0.0], [1.0, 0.0]])
    found = sparsify(graph_of(*weights), top_k=1)
    assert found.dangling
    assert found.layer_bounds(0.5) == (0.0, full[1], np.inf, np.inf)
    # A dangling column before the first difference does not matter.
    weights = [np.array([[3.0, 0.0], [0.0, 0.0]]), weights[0]]
    assert sparsify(graph_of(*weights), top_k=1).layer_bounds(0.5) == (0.0, 0.0, full[1])
    assert found.error_bound(0.0) == 0.0


@table("gamma", [0.1, 0.5, 0.9, 1.0])
@table("theta", [0.0, 0.4, 1.0])
@table("n_blocks", [1, 2, 3, 4])
def test_the_layer_bounds_are_attained(gamma: float, theta: float, n_blocks: int) -> None:
    # A tree: every node of layer l has two children, of shares 0.7 and 0.3, and loses the second. Scores that differ
    # never meet again, and because the teleport goes to the first node only, nothing replaces the lost score.
    weights = [np.kron(np.eye(2**layer), [[7.0], [3.0]]) for layer in range(n_blocks)]
    first = [np.eye(1, 2**layer)[0] for layer in range(n_blocks + 1)]
    case = Case(weights, first[0], first[1:])
    found = sparsify(case.graph(), threshold=0.5)
    assert found.layer_bounds(gamma, theta) == pytest.approx(errors(case, found, gamma, theta), abs=ROUND_OFF)
    assert found.error_bound(gamma, theta) == pytest.approx(max(errors(case, found, gamma, theta)), abs=ROUND_OFF)


@given(cases(), rules, st.floats(0.0, 0.99), st.integers(0, 2**32 - 1))
def test_the_general_rank_keeps_its_bound(case: Case, rule: dict[str, Any], gamma: float, seed: int) -> None:
    found = sparsify(case.graph(), **rule)
    rng = np.random.default_rng(seed)
    teleport = rng.exponential(size=found.graph.n_nodes) ** 4
    uniform = np.full(found.graph.n_nodes, 1.0 / found.graph.n_nodes)
    for vector in (None, uniform, teleport):
        before, after = (
            pagerank(graph, gamma, vector, tol=1e-14, max_iter=10_000).stacked for graph in (case.graph(), found.graph)
        )
        # Over all layers together, because the scores sum to 1 over all layers, not in each.
        assert distance([before], [after]) <= found.pagerank_bound(gamma) + 1e-10
    assert found.pagerank_bound(gamma) <= gamma / (1 - gamma) * 2 * max(found.dropped_weight_shares) + ROUND_OFF


@pytest.mark.parametrize("gamma", [0.001, 0.3, 0.6])
def test_the_bound_of_the_general_rank_is_nearly_attained(gamma: float) -> None:
    # The tree again, deep enough that little score reaches its leaves, which dangle and would teleport it back.
    n_blocks = 12
    case = Case(
        [np.kron(np.eye(2**layer), [[7.0], [3.0]]) for layer in range(n_blocks)],
        np.ones(1),
        [np.ones(2 ** (layer + 1)) for layer in range(n_blocks)],
    )
    found = sparsify(case.graph(), top_k=1)
    home = np.eye(1, found.graph.n_nodes)[0]
    before, after = (pagerank(graph, gamma, home, tol=1e-13).stacked for graph in (case.graph(), found.graph))
    truth = distance([before], [after])
    assert 0.97 * found.pagerank_bound(gamma) <= truth <= found.pagerank_bound(gamma) + 1e-10


def test_bounds_of_large_graphs_hold() -> None:
    case = random_case(5, (60, 150, 40, 120))
    for rule in RULES:
        found = sparsify(case.graph(), **rule)
        for gamma, theta in itertools.product((0.2, 0.5, 0.85, 1.0), (0.0, 0.5, 1.0)):
            truth, bounds = errors(case, found, gamma, theta), found.layer_bounds(gamma, theta)
            assert all(error <= bound + ROUND_OFF for error, bound in zip(truth, bounds, strict=True))


# --- refused arguments


@table(
    ("rule", "message"),
    [
        ({}, "expected exactly one of top_k, threshold, weight_share and significance, got none"),
        (
            {"top_k": 2, "weight_share": 0.5},
            "expected exactly one of top_k, threshold, weight_share and significance, got top_k=2, weight_share=0.5",
        ),
        ({"top_k": 0}, "top_k must be an integer >= 1, got 0"),
        ({"threshold": -0.1}, r"threshold must be a number in \[0, 1\], got -0.1"),
        ({"weight_share": 1.5}, r"weight_share must be a number in \[0, 1\], got 1.5"),
        ({"significance": 1.5}, r"significance must be a number in \[0, 1\], got 1.5"),
        ({"significance": 0.5, "weight_share": 0.5}, r"got weight_share=0.5, significance=0.5"),
    ],
)
def test_invalid_rules_are_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        sparsify(graph_of(np.eye(2)), **rule)


def test_numpy_scalars_are_numbers() -> None:
    weight = random_case(0, (4, 6)).weights[0]
    np.testing.assert_array_equal(kept_of(weight, top_k=np.int64(2)), kept_of(weight, top_k=2))
    np.testing.assert_array_equal(kept_of(weight, weight_share=np.float32(0.5)), kept_of(weight, weight_share=0.5))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_unchecked_weights_that_are_not_finite_are_found(bad: float) -> None:
    case = random_case(1, (4, 5, 4))
    case.weights[1][2, 3] = bad
    graph = LayeredGraph.from_weights(case.weights, case.inputs, case.activations, check_finite=False)
    with pytest.raises(GraphError, match="block 2: the edge weights hold NaN or Inf"):
        sparsify(graph, top_k=1)


def test_dampings_out_of_range_are_refused() -> None:
    found = sparsify(graph_of(np.eye(2)), top_k=1)
    for bound in (found.layer_bounds, found.error_bound):
        with pytest.raises(GraphError, match=r"gamma must be a number in \[0, 1\], got 1.1"):
            bound(1.1)
        with pytest.raises(GraphError, match=r"theta must be a number in \[0, 1\], got -1"):
            bound(0.5, -1)
    with pytest.raises(GraphError, match=r"gamma must be a number in \[0, 1\), got 1"):
        found.pagerank_bound(1)
