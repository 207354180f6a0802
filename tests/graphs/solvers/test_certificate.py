"""Tests of certificates: a certified set is that of the exact scores, in a thousand cases and at every step."""

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from benchmarks.random_graphs import layered
from graphs import (
    Certificate,
    GraphError,
    KeepHighest,
    LayeredGraph,
    RankResult,
    bidirectional_graph,
    load_rank,
    modified_pagerank,
    pagerank,
    residual_graph,
    save_rank,
    weighted_pagerank,
)
from graphs.structures.digraph import as_digraph
from tests.graphs.cases import Array, cases, random_case, transition_matrix
from tests.graphs.ranking.make_golden import textbook_modified, textbook_weighted
from tests.tables import table

EPS = float(np.finfo(np.float64).eps)


def highest(scores: Sequence[Array], weights: Sequence[float], count: int) -> list[Array]:
    """The `count` highest of all entries times the weight of their vector; of equal entries the lower index is removed."""
    entries = [
        (value * weight, part, index)
        for part, (vector, weight) in enumerate(zip(scores, weights, strict=True))
        for index, value in enumerate(vector)
    ]
    masks = [np.zeros(len(vector), dtype=bool) for vector in scores]
    for _, part, index in sorted(entries)[len(entries) - count :]:
        masks[part][index] = True
    return masks


def kept_by(keep: KeepHighest, scores: Sequence[Array]) -> dict[int, Array]:
    """The keep masks of these scores."""
    masks = {layer: highest([scores[layer]], [1.0], count)[0] for layer, count in (keep.counts or {}).items()}
    weights = keep.weights if keep.weights is not None else [1.0] * len(keep.pooled)
    pooled = highest([scores[layer] for layer in keep.pooled], list(weights), keep.count)
    return masks | dict(zip(keep.pooled, pooled, strict=True))


def assert_same_sets(found: Mapping[int, Array], expected: Mapping[int, Array]) -> None:
    assert set(found) == set(expected)
    for layer, mask in expected.items():
        assert found[layer].dtype == np.bool_
        np.testing.assert_array_equal(found[layer], mask, err_msg=f"layer {layer}")


class Watched:
    """A KeepHighest that compares the certificate of every step with the exact scores."""

    def __init__(self, keep: KeepHighest, exact: Sequence[Array]) -> None:
        self.keep, self.exact, self.expected = keep, exact, kept_by(keep, exact)
        self.certified: list[bool] = []

    def check(self, layers: Sequence[int]) -> Any:
        self.keep.check(layers)
        return self

    def certificate(self, scores: Any, bounds: Any, caps: Any, roundoff: float) -> Certificate:
        for layer, (found, exact) in enumerate(zip(scores, self.exact, strict=True)):
            cap = 1.0 if caps is None else np.minimum(caps[layer], 1.0)
            # A row maximum of zero belongs to a node without incoming edges, whose score has no error.
            slack = np.full(len(found), math.inf) if bounds[layer] == math.inf else bounds[layer] / 2 * cap
            assert (np.abs(found - exact) <= slack + roundoff * found + 1e-12).all(), f"layer {layer}"
        certificate = self.keep.certificate(scores, bounds, caps, roundoff)
        if certificate.certified:
            assert_same_sets(certificate.keep, self.expected)
        self.certified.append(certificate.certified)
        return certificate

    def check_result(self, result: RankResult) -> bool:
        """Check that the certificate of the result is that of the last step; return whether it stopped the iteration."""
        keep, certificate = self.keep, result.certificate
        assert certificate is not None
        assert len(self.certified) == result.iterations
        assert_same_sets(certificate.keep, kept_by(keep, result.scores))
        assert certificate.certified == self.certified[-1]
        assert not any(self.certified[:-1])
        assert set(certificate.gaps) == set(certificate.required_gaps) == {*(keep.counts or {}), *keep.pooled[:1]}
        if certificate.certified:
            assert result.converged
        else:
            assert result.stop_reason != "certified"
        return result.stop_reason == "certified"


@st.composite
def keeps(draw: st.DrawFn, sizes: Sequence[int], pooled: bool) -> KeepHighest:
    """Counts for some layers, or a budget for several, or both."""
    order = draw(st.permutations(range(len(sizes))))
    together = order[: draw(st.integers(1, len(sizes)))] if pooled else []
    alone = order[len(together) :] if pooled else order[: draw(st.integers(1, len(sizes)))]
    counts = {layer: draw(st.integers(0, sizes[layer])) for layer in alone}
    if not pooled:
        return KeepHighest(counts)
    weights = draw(st.none() | st.just([float(sizes[layer]) for layer in together]))
    return KeepHighest(counts or None, together, draw(st.integers(0, sum(sizes[layer] for layer in together))), weights)


@st.composite
def chains(draw: st.DrawFn) -> tuple[LayeredGraph, list[Array], float, float]:
    """A layered graph, its exact weighted scores, gamma and theta. Some have dangling nodes or ties; most are generic."""
    gamma = draw(st.sampled_from([0.1, 0.5, 0.9, 1.0]))
    theta = draw(st.sampled_from([1.0, 0.6, 0.0]))
    if draw(st.integers(0, 3)) == 0:
        case = draw(cases(min_blocks=2))
    else:
        sizes = [draw(st.integers(1, 6)) for _ in range(draw(st.integers(3, 10)))]
        case = random_case(draw(st.integers(0, 10**6)), sizes, draw(st.sampled_from([1.0, 0.5])))
    exact = [np.array(layer) for layer in textbook_weighted(*case.lists(), gamma, theta)]
    return case.graph(), exact, gamma, theta


@st.composite
def digraphs(draw: st.DrawFn) -> tuple[Any, Array]:
    """A digraph, most of them with cycles, in one layer or in several, and a teleport vector."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    kind = draw(st.sampled_from(["matrix", "dag", "symmetric", "residual", "bidirectional"]))
    graph: Any
    if kind in ("residual", "bidirectional"):
        chain = layered([3, 5, 3, 4, 3], draw(st.sampled_from([1.0, 0.4])), seed=int(rng.integers(1000)))
        graph = (
            residual_graph(chain, draw(st.sampled_from([0.2, 0.8])))
            if kind == "residual"
            else bidirectional_graph(chain)
        )
    else:
        n_nodes = draw(st.integers(2, 9))
        matrix = rng.random((n_nodes, n_nodes)) * (
            rng.random((n_nodes, n_nodes)) < draw(st.sampled_from([0.2, 0.5, 0.9]))
        )
        matrix = np.tril(matrix, -1) if kind == "dag" else np.sign(matrix + matrix.T) if kind == "symmetric" else matrix
        graph = sparse.csr_array(matrix)
    n_nodes = as_digraph(graph).n_nodes
    return graph, np.ones(n_nodes) if draw(st.booleans()) else rng.random(n_nodes) + 1e-3


def dense(graph: Any, gamma: float, teleport: Array) -> list[Array]:
    """A dense solve of r = gamma (P + v d^T) r + (1 - gamma) v, split into layers."""
    digraph = as_digraph(graph)
    matrix, jump = digraph.to_scipy().astype(np.float64).toarray(), teleport / teleport.sum()
    transition = transition_matrix(matrix, 1.0)
    transition[:, ~matrix.any(axis=0)] = jump[:, None]
    scores = np.linalg.solve(np.eye(len(matrix)) - gamma * transition, (1 - gamma) * jump)
    return np.split(scores, digraph.offsets[1:-1])


# --- a thousand cases


@pytest.mark.parametrize("pooled", [False, True])
def test_certified_sets_of_layered_ranks_are_those_of_the_exact_scores(pooled: bool) -> None:
    early: list[bool] = []

    @settings(max_examples=250)
    @given(st.data(), chains(), st.sampled_from(["power", "power", "aitken", "anderson"]))
    def check(data: st.DataObject, chain: tuple[LayeredGraph, list[Array], float, float], solver: Any) -> None:
        graph, exact, gamma, theta = chain
        keep = data.draw(keeps(graph.layer_sizes, pooled))
        watched: Any = Watched(keep, exact)
        with warnings.catch_warnings():
            # Anderson mixing may stay above every tolerance that rounding allows.
            warnings.simplefilter("ignore", RuntimeWarning)
            result = weighted_pagerank(graph, gamma, theta, solver, tol=1e-15, max_iter=60, keep=watched)
        early.append(watched.check_result(result))

    check()
    assert sum(early) >= 100


@pytest.mark.parametrize("pooled", [False, True])
def test_certified_sets_of_digraphs_are_those_of_the_exact_scores(pooled: bool) -> None:
    early: list[bool] = []

    @settings(max_examples=250)
    @given(
        st.data(),
        digraphs(),
        st.sampled_from([0.3, 0.85, 0.99]),
        st.sampled_from(
            ["power", "power", "gauss-seidel", "gauss-seidel-quadratic", "quadratic", "anderson", "gmres", "auto"]
        ),
    )
    def check(data: st.DataObject, drawn: tuple[Any, Array], gamma: float, solver: str) -> None:
        graph, teleport = drawn
        keep = data.draw(keeps(as_digraph(graph).layer_sizes, pooled))
        watched: Any = Watched(keep, dense(graph, gamma, teleport))
        result = pagerank(graph, gamma, teleport, solver=solver, max_iter=5000, keep=watched)
        early.append(watched.check_result(result))

    check()
    assert sum(early) >= 100


@given(cases(min_blocks=2), st.data())
def test_certified_sets_of_modified_ranks(case: Any, data: st.DataObject) -> None:
    exact = [np.array(layer) for layer in textbook_modified(*case.lists(), 0.0)]
    keep = data.draw(keeps(case.sizes, pooled=False))
    watched: Any = Watched(keep, exact)
    result = modified_pagerank(case.graph(), "power", tol=0.0, keep=watched)
    watched.check_result(result)
    # No bound is known for layers that are not exact yet; layers that were exact in the start may be certified earlier.
    asked = [layer for layer, count in (keep.counts or {}).items() if 0 < count < case.sizes[layer]]
    if result.stop_reason == "certified":
        assert result.iterations <= max([*asked, 1])
        assert [result.layer_bounds[layer] for layer in asked] == [0.0] * len(asked)


def test_a_modified_rank_is_certified_early_where_the_start_was_right() -> None:
    # Layer 1 has one node, so that its uniform start is exact; layer 2, which no edge reaches, follows in the first step.
    weights = [np.zeros((1, 2)), np.zeros((4, 1)), np.zeros((4, 4))]
    graph = LayeredGraph.from_weights(weights, [0, 0], [[0], [0, 0, 0, 1], [0, 0, 0, 0]])
    result = modified_pagerank(graph, "power", tol=0.0, keep=KeepHighest({2: 1}))
    assert (result.stop_reason, result.iterations, result.layer_bounds[2]) == ("certified", 1, 0.0)
    assert result.certificate is not None
    assert result.certificate.keep[2].tolist() == [False, False, False, True]


# --- certificates are sharp: a set that is not certified could change


def worst(scores: Sequence[Array], slacks: Sequence[Array], weights: Sequence[float], keep: Sequence[Array]) -> float:
    """The least margin of a kept node over a removed one, if each score may be wrong by its slack."""
    margins = []
    for (a, kept), (b, stays) in itertools.product(enumerate(keep), repeat=2):
        for i, j in itertools.product(np.flatnonzero(kept), np.flatnonzero(~stays)):
            margins.append(weights[a] * (scores[a][i] - slacks[a][i]) - weights[b] * (scores[b][j] + slacks[b][j]))
    return min(margins, default=math.inf)


@settings(max_examples=200)
@given(st.data(), st.booleans(), st.booleans())
def test_a_certificate_is_given_exactly_where_no_error_within_the_bounds_matters(
    data: st.DataObject, pooled: bool, capped: bool
) -> None:
    # An error of L1 norm b and sum 0 takes b/2 from one entry and gives b/2 to another, up to the row maxima.
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=3))  # so that means do not round
    scores = [np.array([data.draw(st.integers(0, 8)) / 8 for _ in range(size)]) for size in sizes]
    bounds = [data.draw(st.sampled_from([1, 3, 8, 9, 16, 17, 32, 33])) / 64 for _ in sizes]
    caps = [np.array([data.draw(st.sampled_from([0.25, 0.5, 1.0, 3.0])) for _ in range(size)]) for size in sizes]
    roundoff = data.draw(st.sampled_from([0.0, 0.125]))
    slacks = [
        bound / 2 * (np.minimum(cap, 1.0) if capped else 1.0) + roundoff * (vector + vector.mean())
        for vector, bound, cap in zip(scores, bounds, caps, strict=True)
    ]
    keep = data.draw(keeps(sizes, pooled))
    certificate = keep.certificate(scores, bounds, caps if capped else None, roundoff)
    assert_same_sets(certificate.keep, kept_by(keep, scores))
    weights = list(keep.weights) if keep.weights is not None else [1.0] * len(keep.pooled)
    groups = [([layer], [1.0]) for layer in keep.counts or {}]
    if pooled:
        groups.append((list(keep.pooled), weights))
    margins = []
    for layers, factors in groups:
        masks = [certificate.keep[layer] for layer in layers]
        margins.append(worst([scores[k] for k in layers], [slacks[k] for k in layers], factors, masks))
        gap, bound = certificate.gaps[layers[0]], certificate.required_gaps[layers[0]]
        stay = [w * s for k, w, m in zip(layers, factors, masks, strict=True) for s in scores[k][m]]
        go = [w * s for k, w, m in zip(layers, factors, masks, strict=True) for s in scores[k][~m]]
        assert gap == (min(stay) - max(go) if stay and go else math.inf)
        # All numbers have few bits, so that no sum rounds.
        assert bound == (gap - margins[-1] if stay and go else 0.0)
    assert certificate.certified == (min(margins) > 0)
    assert certificate.certified == all(certificate.gaps[k] > bound for k, bound in certificate.required_gaps.items())


def test_mixtures_of_iterates_may_leave_dust_where_scores_are_zero() -> None:
    # Two nodes of score 0: the order of their rounding errors certifies nothing, unless the layer is exact.
    scores = [np.array([1.0, 1e-17, 0.0])]
    for bound, certified in ((1e-18, False), (0.0, True)):
        assert KeepHighest({0: 2}).certificate(scores, [bound], None, 1e-14).certified is certified


def test_the_gap_has_to_exceed_the_bound() -> None:
    for gap, certified in ((0.4375, False), (0.5, False), (0.5625, True)):
        certificate = KeepHighest({1: 1}).certificate([np.ones(1), np.array([0.0, gap])], [0.0, 0.5])
        assert (certificate.gaps, certificate.required_gaps) == ({1: gap}, {1: 0.5})
        assert certificate.certified is certified
        assert_same_sets(certificate.keep, {1: np.array([False, True])})


def test_round_off_is_allowed_for() -> None:
    graph = LayeredGraph.from_weights([np.ones((2, 1))], [1], [[1, 1 + 1e-6]])
    ring = sparse.csr_array(np.roll(np.eye(3), 1, axis=0))
    teleport = np.array([1.0, 1.0 + 1e-6, 1.0])
    for dtype, certified in (("float64", True), ("float32", False)):
        for result in (
            weighted_pagerank(graph, 0.0, dtype=dtype, keep=KeepHighest({1: 1})),
            pagerank(ring, 0.5, teleport, solver="lu", dtype=dtype, keep=KeepHighest({0: 1})),
        ):
            assert result.certificate is not None
            assert result.certificate.certified is certified, dtype


def test_caps_certify_earlier() -> None:
    # In a layer of many nodes no single node can have received half of the change.
    graph, keep = layered((64,) * 21, seed=4), KeepHighest(dict.fromkeys(range(1, 21), 20))
    result = weighted_pagerank(graph, 0.5, solver="power", keep=keep)
    assert result.stop_reason == "certified"
    assert result.iterations < 20
    assert not keep.certificate(result.scores, result.layer_bounds).certified


def test_an_unknown_bound_certifies_nothing_but_the_trivial() -> None:
    scores = [np.array([0.1, 0.9]), np.array([0.5, 0.5])]
    for keep in (KeepHighest({0: 1}), KeepHighest(pooled=(0, 1), count=2), KeepHighest({1: 1}, pooled=(0,), count=1)):
        certificate = keep.certificate(scores, [math.inf, math.inf])
        assert not certificate.certified
    assert not KeepHighest(pooled=(0, 1), count=1).certificate(scores, [0.0, math.inf]).certified
    for keep in (KeepHighest({0: 0, 1: 2}), KeepHighest(pooled=(0, 1), count=0), KeepHighest(pooled=(1, 0), count=4)):
        certificate = keep.certificate(scores, [math.inf, math.inf])
        assert certificate.certified
        assert set(certificate.gaps.values()) == {math.inf}
        assert set(certificate.required_gaps.values()) == {0.0}


# --- ties


@pytest.mark.parametrize("solver", ["sweep", "power"])
def test_ties_are_never_certified(solver: Any) -> None:
    graph = LayeredGraph.from_weights([np.ones((4, 2)), np.eye(4)], [1, 1], [[1, 1, 1, 1], [1, 1, 2, 2]])
    for count in (1, 2, 3):
        certificate = weighted_pagerank(graph, solver=solver, keep=KeepHighest({1: count})).certificate
        assert certificate is not None
        assert not certificate.certified
        # The lower index is removed.
        np.testing.assert_array_equal(certificate.keep[1], np.arange(4) >= 4 - count)
        assert abs(certificate.gaps[1]) <= EPS
    for count, certified in ((1, False), (2, True), (3, False), (0, True), (4, True)):
        certificate = weighted_pagerank(graph, solver=solver, keep=KeepHighest({2: count})).certificate
        assert certificate is not None
        assert certificate.certified is certified
    # A tie in one layer prevents the certificate of all layers.
    certificate = weighted_pagerank(graph, solver=solver, keep=KeepHighest({1: 2, 2: 2})).certificate
    assert certificate is not None
    assert not certificate.certified
    assert certificate.gaps[2] > certificate.required_gaps[2]


def test_ties_of_a_symmetric_digraph() -> None:
    star = sparse.csr_array(np.array([[0, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=float))
    for solver in ("power", "gauss-seidel", "auto", "lu"):
        hub = pagerank(star, solver=solver, keep=KeepHighest({0: 1}))
        tie = pagerank(star, solver=solver, keep=KeepHighest({0: 2}))
        assert hub.certificate is not None
        assert tie.certificate is not None
        assert hub.certificate.certified
        assert hub.certificate.keep[0].tolist() == [True, False, False, False]
        assert not tie.certificate.certified
        assert tie.stop_reason in ("tolerance", "exact")
        assert hub.iterations <= tie.iterations


# --- stopping


def test_a_certificate_stops_before_the_tolerance() -> None:
    graph = bidirectional_graph(layered([6, 9, 6], seed=3))
    for solver in ("power", "gauss-seidel", "gauss-seidel-quadratic", "quadratic", "anderson", "gmres"):
        plain = pagerank(graph, 0.9, solver=solver)
        exact = pagerank(graph, 0.9, solver="lu")
        keep = KeepHighest({1: 5}, pooled=(0, 2), count=4, weights=(2.0, 1.0))
        watched: Any = Watched(keep, exact.scores)
        result = pagerank(graph, 0.9, solver=solver, keep=watched)
        assert watched.check_result(result)
        assert (result.stop_reason, result.converged) == ("certified", True)
        assert result.iterations < plain.iterations
        assert result.residuals[-1] > result.tolerance
        assert result.check_convergence() is result
        np.testing.assert_array_equal(plain.residuals[: result.iterations], result.residuals)


def test_a_deep_chain_is_certified_long_before_its_last_layer() -> None:
    graph = layered((8,) * 41, seed=4)
    keep = KeepHighest(dict.fromkeys(range(1, 41), 3))
    exact = weighted_pagerank(graph, 0.5)
    result = weighted_pagerank(graph, 0.5, solver="power", keep=keep)
    assert result.stop_reason == "certified"
    assert result.iterations < weighted_pagerank(graph, 0.5, solver="power").iterations
    assert result.certificate is not None
    assert_same_sets(result.certificate.keep, kept_by(keep, exact.scores))
    # After one step less some layer is not certified.
    steps = result.iterations - 1
    with pytest.warns(RuntimeWarning, match=f"max_iter={steps}") as caught:
        before = weighted_pagerank(graph, 0.5, solver="power", keep=keep, max_iter=steps)
    assert Path(caught[0].filename) == Path(__file__)
    assert before.certificate is not None
    assert not before.certificate.certified
    assert not before.converged


def test_the_exact_and_the_tolerance_come_first() -> None:
    graph = random_case(2, (4, 5, 4)).graph()
    result = weighted_pagerank(graph, keep=KeepHighest({1: 2}))
    assert (result.stop_reason, result.iterations) == ("exact", 1)
    assert result.certificate is not None
    assert result.certificate.certified
    assert weighted_pagerank(graph).certificate is None
    result = pagerank(bidirectional_graph(graph), solver="power", tol=10.0, keep=KeepHighest({1: 2}))
    assert result.stop_reason == "tolerance"
    # A certificate has priority over a callback that stops.
    result = pagerank(graph, solver="power", keep=KeepHighest({0: 0}), callback=lambda progress: True)
    assert (result.stop_reason, result.iterations) == ("certified", 1)


# --- refusals

DOORS: dict[str, Callable[..., RankResult]] = {
    "weighted": lambda **options: weighted_pagerank(random_case(1, (2, 3, 2)).graph(), **options),
    "modified": lambda **options: modified_pagerank(random_case(1, (2, 3, 2)).graph(), **options),
    "pagerank": lambda **options: pagerank(random_case(1, (2, 3, 2)).graph(), **options),
}


@table("door", DOORS)
@table(
    ("keep", "message"),
    [
        (KeepHighest(), "keep: expected counts of layers, or pooled layers, got neither"),
        (KeepHighest({3: 1}), r"keep: expected layers 0\.\.2 and counts up to their sizes, got 1 of layer 3"),
        (KeepHighest({-1: 1}), "got 1 of layer -1"),
        (KeepHighest({1: 4}), "got 4 of layer 1"),
        (KeepHighest({1: -1}), "got -1 of layer 1"),
        (
            KeepHighest(pooled=(0, 3)),
            r"keep: expected distinct pooled layers from 0\.\.2 .*got a count of 0 for layers \(0, 3\)",
        ),
        (KeepHighest(pooled=(0, -1)), r"got a count of 0 for layers \(0, -1\)"),
        (KeepHighest(pooled=(0, 1), count=6), r"a count up to their 5 nodes, got a count of 6 for layers \(0, 1\)"),
        (KeepHighest(pooled=(0, 1), count=-1), r"got a count of -1 for layers"),
        (KeepHighest({1: 1}, pooled=(0, 1), count=2), "without counts of their own"),
        (KeepHighest(pooled=(0, 0), count=2), "keep: "),
        (
            KeepHighest(pooled=(0, 1), count=2, weights=(1.0,)),
            "keep: expected one finite positive weight for each pooled layer",
        ),
        (
            KeepHighest(pooled=(0, 1), count=2, weights=(1.0, 0.0)),
            r"one finite positive weight for each pooled layer, got \(1.0, 0.0\)",
        ),
        (KeepHighest(pooled=(0, 1), count=2, weights=(1.0, math.inf)), "one finite positive weight"),
    ],
)
def test_what_does_not_fit_is_refused(door: str, keep: KeepHighest, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        DOORS[door](keep=keep)


def test_what_fits_passes_the_check() -> None:
    for keep in (KeepHighest({0: 2, 2: 0}), KeepHighest({0: 1}, (1, 2), 5), KeepHighest(None, (2, 1), 0, (0.5, 3.0))):
        assert keep.check((2, 3, 2)) is keep
        assert DOORS["weighted"](keep=keep).certificate is not None


def test_several_columns_are_refused() -> None:
    graph = bidirectional_graph(random_case(1, (2, 3, 2)).graph())
    with pytest.raises(GraphError, match=r"keep: expected one teleport vector \(n,\), got shape \(7, 3\); rank"):
        pagerank(graph, teleport=np.ones((7, 3)), keep=KeepHighest({1: 1}))


# --- files


@pytest.mark.parametrize(
    "keep",
    [KeepHighest({1: 5, 0: 0}), KeepHighest({1: 9}, (2, 0), 4, (2.0, 1.0)), KeepHighest(pooled=(0, 1, 2), count=21)],
)
def test_a_certificate_survives_a_file(keep: KeepHighest, tmp_path: Path) -> None:
    graph = bidirectional_graph(layered([6, 9, 6], seed=3))
    for options in ({"solver": "power"}, {"solver": "gauss-seidel"}, {"tol": 10.0}):
        result = pagerank(graph, 0.9, keep=keep, **options)
        save_rank(result, tmp_path / "rank.safetensors")
        again = load_rank(tmp_path / "rank.safetensors")
        first, second = result.certificate, again.certificate
        assert isinstance(first, Certificate)
        assert isinstance(second, Certificate)
        assert_same_sets(second.keep, first.keep)
        assert (second.certified, dict(second.gaps), dict(second.required_gaps)) == (
            first.certified,
            dict(first.gaps),
            dict(first.required_gaps),
        )
        assert (again.stop_reason, again.converged, again.layer_bounds) == (
            result.stop_reason,
            result.converged,
            result.layer_bounds,
        )
    save_rank(pagerank(graph), tmp_path / "plain.safetensors")
    assert load_rank(tmp_path / "plain.safetensors").certificate is None
