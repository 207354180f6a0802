"""Tests of the layered ranks against independent oracles, and of their invariants."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphs import GraphError, LayeredGraph, RankResult, modified_pagerank, weighted_pagerank
from tests.graphs.cases import (
    DAMPINGS,
    SHARES,
    Array,
    Case,
    assert_layers_equal,
    cases,
    lu_layers,
    networkx_layers,
    random_case,
)
from tests.graphs.ranking.make_golden import GOLDEN, make_golden, textbook_modified, textbook_weighted
from tests.tables import table

RANKS = {
    "weighted": lambda graph, **options: weighted_pagerank(graph, 0.7, 0.6, **options),
    "modified": lambda graph, **options: modified_pagerank(graph, **options),
    "modified, lowest zeroed": lambda graph, **options: modified_pagerank(graph, zero_lowest=0.4, **options),
}
every_rank = table("rank", RANKS.values())


# --- against oracles


@given(cases(), DAMPINGS, SHARES)
def test_weighted_equals_networkx_where_no_column_dangles(case: Case, gamma: float, theta: float) -> None:
    case = case.without_dangling()
    assert_layers_equal(weighted_pagerank(case.graph(), gamma, theta).scores, networkx_layers(case, gamma, theta))


@given(cases(), st.floats(0.0, 0.99), SHARES)
def test_weighted_equals_sparse_lu_with_dangling_columns_too(case: Case, gamma: float, theta: float) -> None:
    assert_layers_equal(weighted_pagerank(case.graph(), gamma, theta).scores, lu_layers(case, gamma, theta))


@given(cases(), SHARES, SHARES)
def test_weighted_equals_the_textbook_loop(case: Case, gamma: float, theta: float) -> None:
    found = weighted_pagerank(case.graph(), gamma, theta).scores
    assert_layers_equal(found, textbook_weighted(*case.lists(), gamma, theta))


@given(cases())
def test_modified_equals_the_textbook_loop(case: Case) -> None:
    assert_layers_equal(modified_pagerank(case.graph()).scores, textbook_modified(*case.lists(), 0.0))


@table("zero_lowest", [0.1, 0.29, 0.5, 0.99, 1.0])
@table("seed", range(4))
def test_modified_with_lowest_zeroed_equals_the_textbook_loop(seed: int, zero_lowest: float) -> None:
    case = random_case(seed, (10, 100, 7, 9), density=0.6)
    found = modified_pagerank(case.graph(), zero_lowest=zero_lowest).scores
    assert_layers_equal(found, textbook_modified(*case.lists(), zero_lowest))


def test_golden_script_reproduces_its_file() -> None:
    assert make_golden() == json.loads(GOLDEN.read_text())


@table("name", json.loads(GOLDEN.read_text()))
@table("solver", ["sweep", "power"])
@pytest.mark.parametrize("backend", ["scipy", "torch", "dense", "auto"])
def test_golden_values(name: str, solver: Any, backend: Any) -> None:
    case = json.loads(GOLDEN.read_text())[name]
    graph = LayeredGraph.from_weights(case["weights"], case["inputs"], case["activations"])
    for knobs, expected in case["weighted"].items():
        gamma, theta = (float(_fraction(number)) for number in knobs.split())
        assert_layers_equal(weighted_pagerank(graph, gamma, theta, solver, backend).scores, expected)
    for zero_lowest, expected in case["modified"].items():
        found = modified_pagerank(graph, solver, backend, zero_lowest=_fraction(zero_lowest))
        assert_layers_equal(found.scores, expected)


def _fraction(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return int(numerator) / int(denominator or 1)


# --- invariants


@given(cases(), SHARES, SHARES, SHARES)
def test_every_layer_has_mass_one_and_no_negative_score(case: Case, gamma: float, theta: float, zero: float) -> None:
    for result in (weighted_pagerank(case.graph(), gamma, theta), modified_pagerank(case.graph(), zero_lowest=zero)):
        for scores, size in zip(result.scores, case.sizes, strict=True):
            assert scores.shape == (size,)
            assert (scores >= 0).all()
            assert scores.sum() == pytest.approx(1.0, abs=1e-13)


def permuted(case: Case, orders: list[Array]) -> Case:
    weights = [w[orders[k + 1]][:, orders[k]] for k, w in enumerate(case.weights)]
    activations = [a[orders[k + 1]] for k, a in enumerate(case.activations)]
    return Case(weights, case.inputs[orders[0]], activations)


@every_rank
@table("seed", range(5))
def test_renumbering_the_nodes_renumbers_the_scores(rank: Any, seed: int) -> None:
    case = random_case(seed, (6, 8, 5, 7), density=0.7)
    orders = [np.random.default_rng(seed).permutation(size) for size in case.sizes]
    found = rank(permuted(case, orders).graph()).scores
    assert_layers_equal(found, [s[o] for s, o in zip(rank(case.graph()).scores, orders, strict=True)])


@every_rank
@table("scale", [1e-200, 1e-3, 7.0, 1e150])
def test_the_scale_of_a_block_does_not_matter(rank: Any, scale: float) -> None:
    case = random_case(1, (6, 8, 5, 7), density=0.7)
    for block in range(3):
        weights = [w * scale if k == block else w for k, w in enumerate(case.weights)]
        assert_layers_equal(rank(case.graph(weights)).scores, rank(case.graph()).scores)


@every_rank
@table("scale", [1e-300, 1e-60, 7.0, 1e60, 1e300])
@table("dtype", ["float64", "float32"])
def test_the_scale_of_activations_does_not_matter(rank: Any, scale: float, dtype: str) -> None:
    case = random_case(1, (6, 8, 5, 7))
    scaled = Case(case.weights, case.inputs * scale, [a * scale for a in case.activations])
    expected = rank(case.graph(), dtype=dtype)
    assert_layers_equal(
        rank(scaled.graph(), dtype=dtype).scores, expected.scores, 1e-10 if dtype == "float64" else 1e-4
    )


def test_activations_whose_sum_overflows_are_ranked() -> None:
    graph = LayeredGraph.from_weights([np.eye(2)], [1.5e308, 1.5e308], [[1e308, 1.5e308]])
    assert_layers_equal(weighted_pagerank(graph, gamma=0.0).scores, [[0.5, 0.5], [0.4, 0.6]])


@every_rank
def test_the_sign_of_weights_does_not_matter(rank: Any) -> None:
    case = random_case(2, (6, 8, 5))
    found = rank(case.graph([np.abs(w) for w in case.weights])).scores
    assert_layers_equal(found, rank(case.graph()).scores, 1e-15)


# --- parallel edges


@every_rank
@table("backend", ["scipy", "torch", "dense", "auto"])
def test_parallel_edges_add_their_absolute_values(rank: Any, backend: Any) -> None:
    up, gate = random_case(3, (5, 8, 5)), random_case(4, (5, 8, 5))
    # Signs differ, so a sum before the absolute value would cancel.
    pairs = [(u, -np.abs(g)) for u, g in zip(up.weights, gate.weights, strict=True)]
    summed = [np.abs(u) + np.abs(g) for u, g in pairs]
    found = rank(up.graph(pairs), backend=backend).scores
    assert_layers_equal(found, rank(up.graph(summed), backend="scipy").scores)


# --- limits of the parameters


@given(cases())
def test_gamma_zero_is_the_activation_score(case: Case) -> None:
    scores = weighted_pagerank(case.graph(), gamma=0.0).scores
    for found, activation in zip(scores, (case.inputs, *case.activations), strict=True):
        expected = activation / activation.sum() if activation.any() else np.full(len(activation), 1 / len(activation))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_gamma_one_ignores_the_activations_behind_the_inputs() -> None:
    case = random_case(5, (6, 8, 5))
    other = replace(case, activations=[a[::-1] ** 2 for a in case.activations])
    assert_layers_equal(weighted_pagerank(other.graph(), 1.0).scores, weighted_pagerank(case.graph(), 1.0).scores)
    expected = np.linalg.multi_dot([np.abs(w) / np.abs(w).sum(axis=0) for w in reversed(case.weights)])
    found = weighted_pagerank(case.graph(), 1.0).scores[-1]
    np.testing.assert_allclose(found, expected @ (case.inputs / case.inputs.sum()), rtol=1e-12)


def test_theta_below_one_adds_a_constant_on_full_blocks() -> None:
    # MATH: on a block without zeros the (1 - theta) term adds gamma (1 - theta) / n_l to every node.
    case = random_case(6, (6, 8))
    full, half = (weighted_pagerank(case.graph(), 0.8, theta).scores[1] for theta in (1.0, 0.5))
    teleport = 0.2 * case.activations[0] / case.activations[0].sum()
    np.testing.assert_allclose(half, 0.5 * (full - teleport) + 0.8 * 0.5 / 8 + teleport, rtol=1e-12)


def test_theta_zero_sees_edges_and_no_weights() -> None:
    case = random_case(7, (6, 8, 5), density=0.5)
    bare = [(w != 0).astype(float) for w in case.weights]
    found = weighted_pagerank(case.graph(), 0.9, 0.0).scores
    assert_layers_equal(found, weighted_pagerank(case.graph(bare), 0.9, 1.0).scores)


# --- degenerate layers


def flags(result: RankResult) -> list[tuple[int, str]]:
    return [(entry.layer, entry.reason) for entry in result.degenerate]


@every_rank
def test_ordinary_graphs_carry_no_flag(rank: Any) -> None:
    assert flags(rank(random_case(1, (4, 5, 4)).graph())) == []


@every_rank
def test_silent_inputs_count_as_uniform(rank: Any) -> None:
    case = replace(random_case(8, (4, 5, 4)), inputs=np.zeros(4))
    result = rank(case.graph())
    assert flags(result) == [(0, "the input activations sum to zero; uniform scores are used")]
    assert_layers_equal(result.scores, rank(replace(case, inputs=np.ones(4)).graph()).scores)


@every_rank
def test_silent_layers_count_as_uniform(rank: Any) -> None:
    case = random_case(8, (4, 5, 4))
    silent = replace(case, activations=[np.zeros(5), case.activations[1]])
    result = rank(silent.graph())
    assert flags(result) == [(1, "the activations sum to zero; uniform ones are used")]
    uniform = replace(case, activations=[np.ones(5), case.activations[1]])
    assert_layers_equal(result.scores, rank(uniform.graph()).scores)


@pytest.mark.parametrize("solver", ["sweep", "power"])
def test_where_no_mass_arrives_the_activations_stand_in(solver: Any) -> None:
    case = random_case(9, (4, 5, 4))
    case.weights[0][:] = 0.0
    for result in (weighted_pagerank(case.graph(), 1.0, solver=solver), modified_pagerank(case.graph(), solver=solver)):
        assert flags(result) == [(1, "all scores are zero; the activations, scaled to sum 1, are used")]
        np.testing.assert_allclose(result.scores[1], case.activations[0] / case.activations[0].sum())
    # With gamma < 1 the teleporting mass arrives after a block of zeros, and no layer is degenerate.
    assert flags(weighted_pagerank(case.graph(), 0.5, solver=solver)) == []


def test_where_neither_mass_nor_activation_is_uniform_scores_stand_in() -> None:
    graph = LayeredGraph.from_weights([np.zeros((3, 2))], [1, 1], [[0, 0, 0]])
    for result in (weighted_pagerank(graph, 1.0), modified_pagerank(graph)):
        assert flags(result) == [(1, "all scores are zero; uniform scores are used")]
        np.testing.assert_allclose(result.scores[1], 1 / 3)


def test_disjoint_product_and_activation_fall_back_to_the_activation() -> None:
    graph = LayeredGraph.from_weights([[[1.0], [0.0]]], [1], [[0, 2]])
    result = modified_pagerank(graph)
    assert flags(result) == [(1, "all scores are zero; the activations, scaled to sum 1, are used")]
    np.testing.assert_array_equal(result.scores[1], [0, 1])


# --- attributes of the result


def test_a_sweep_reports_one_exact_pass() -> None:
    result = weighted_pagerank(random_case(1, (4, 5, 4, 3)).graph(), 0.3, 0.9)
    assert (result.iterations, result.stop_reason, result.error_bound, result.converged) == (1, "exact", 0.0, True)
    assert (result.solver, result.block_products, list(result.residuals)) == ("sweep", 3, [0.0])
    assert (result.solver_reason, result.certificate, result.labels) == ("", None, None)
    assert result.layer_bounds == (0.0,) * 4
    np.testing.assert_array_equal(result.layer_residuals, np.zeros((1, 4)))
    np.testing.assert_array_equal(result.error_bounds, [0.0])
    np.testing.assert_array_equal(result.step_products, [3])
    assert list(result.step_seconds) == [result.solve_seconds]
    assert result.parameters == {"gamma": 0.3, "theta": 0.9}
    assert result.names == ("layer 0", "layer 1", "layer 2", "layer 3")
    assert result.setup_seconds >= 0
    assert result.solve_seconds > 0


def test_power_iteration_reports_every_step_of_every_layer() -> None:
    case = random_case(1, (4, 5, 4, 3))
    graph, gamma = case.graph(), 0.3
    exact = weighted_pagerank(graph, gamma).scores
    result = weighted_pagerank(graph, gamma, solver="power", tol=0.0)
    # Layer l is exact from step l on, as the last step shows.
    assert (result.iterations, result.stop_reason, result.error_bound, result.block_products) == (3, "exact", 0.0, 9)
    np.testing.assert_array_equal(result.step_products, [3, 6, 9])
    assert (np.diff(result.step_seconds) >= 0).all()
    assert result.layer_residuals.shape == (3, 4)
    np.testing.assert_array_equal(result.residuals, result.layer_residuals.max(axis=1))
    np.testing.assert_array_equal(result.layer_residuals > 0, np.triu(np.ones((3, 4)), 1))
    for steps in (1, 2):
        with pytest.warns(RuntimeWarning, match=f"stopped after max_iter={steps}"):
            stopped = weighted_pagerank(graph, gamma, solver="power", tol=0.0, max_iter=steps)
        np.testing.assert_allclose(stopped.residuals, result.residuals[:steps], rtol=1e-12)
        np.testing.assert_allclose(stopped.error_bounds, result.error_bounds[:steps], rtol=1e-12)
        assert stopped.error_bound == max(stopped.layer_bounds) > 0.0
        for layer, (found, wanted) in enumerate(zip(stopped.scores, exact, strict=True)):
            assert np.abs(found - wanted).sum() <= stopped.layer_bounds[layer] + 1e-14
            assert (stopped.layer_bounds[layer] == 0.0) == (layer <= steps)


# --- refusals

GRAPH = LayeredGraph.from_weights([np.eye(2)], [1, 1], [[1, 1]])


@table(
    ("options", "message"),
    [
        ({"gamma": 1.1}, r"gamma must be a number in \[0, 1\], got 1.1"),
        ({"theta": 2}, "theta must be a number .* got 2"),
        ({"backend": "cupy"}, "unknown backend 'cupy'; expected one of scipy, torch, dense, auto"),
        ({"dtype": "float16"}, "unknown dtype 'float16'; expected one of float64, float32"),
        ({"backend": "scipy", "device": "cuda"}, "'scipy' computes on the CPU only, got device 'cuda'; use backend="),
        ({"device": "tpu9"}, "device 'tpu9' cannot be used here .*; expected 'cpu', or 'cuda'"),
        ({"device": 1.5}, "device '1.5' cannot be used here"),
        ({"device": "meta"}, "device 'meta' cannot be used here"),
    ],
)
def test_parameters_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        weighted_pagerank(GRAPH, **options)


@table("value", [-0.1, 1.1, float("nan"), "some"])
def test_zero_lowest_out_of_range_is_refused(value: Any) -> None:
    with pytest.raises(GraphError, match="zero_lowest must be a number"):
        modified_pagerank(GRAPH, zero_lowest=value)


@table("value", [np.float32(1e-6), np.float64(1e-6), 0])
def test_numpy_scalars_are_numbers(value: Any) -> None:
    result = weighted_pagerank(GRAPH, solver="power", tol=value, max_iter=np.int64(3))  # type: ignore[arg-type]
    assert result.tolerance == value
    assert type(result.tolerance) is float


@every_rank
@table("solver", ["sweep", "power"])
@table("backend", ["scipy", "torch", "dense", "auto"])
@table("bad", [np.nan, np.inf])
def test_unchecked_weights_that_are_not_finite_are_found_by_the_rank(
    rank: Any, solver: Any, backend: Any, bad: float
) -> None:
    case = random_case(1, (4, 5, 4))
    case.weights[1][2, 3] = bad
    message = r"block 2: .*(NaN or Inf|not finite)"
    with pytest.raises(GraphError, match=message):
        rank(
            LayeredGraph.from_weights(case.weights, case.inputs, case.activations, check_finite=False),
            solver=solver,
            backend=backend,
        )
