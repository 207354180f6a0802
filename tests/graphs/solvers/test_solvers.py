"""Tests of solvers: exact after L steps on layered ranks, with true bounds at every earlier stop, and common errors."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks.random_graphs import layered, uniform
from graphs import (
    ConvergenceError,
    GraphError,
    LayeredGraph,
    RankResult,
    bidirectional_graph,
    modified_pagerank,
    pagerank,
    residual_graph,
    weighted_pagerank,
)
from graphs.linalg.layer_vectors import DeferredChecks, layer_norms, normalise_state, subtract, total_scores
from graphs.ranking.layered_problem import WeightedPageRankProblem
from graphs.solvers import (
    SOLVERS,
    AndersonMixing,
    Extrapolation,
    GaussSeidel,
    Krylov,
    LayerSweep,
    PowerIteration,
    SolverProgress,
    SolverStep,
    SparseLU,
    SweptState,
    attainable_tolerance,
    automatic_solver,
    check_stopping_criteria,
    solve,
    solver_by_name,
)
from tests.graphs.cases import DAMPINGS, SHARES, Array, Case, assert_layers_equal, cases, distance, random_case
from tests.graphs.ranking.make_golden import modified_step, textbook_modified, textbook_weighted, weighted_step
from tests.tables import table

ROUND_OFF = 1e-12
LAYERED = ("power", "sweep", "gauss-seidel", "gauss-seidel-quadratic", "aitken", "quadratic", "anderson")
LINEAR = ("gmres", "bicgstab", "lu")


@st.composite
def starts(draw: st.DrawFn, sizes: tuple[int, ...]) -> list[Array]:
    """Any first iterate with positive mass in every layer; most of it may sit on a single node."""
    start = [
        draw(arrays(np.float64, n, elements=st.sampled_from([0.0, 1e-3, 1.0, 50.0]), fill=st.nothing())) for n in sizes
    ]
    for vector in start:
        if not vector.any():
            vector[0] = 1.0
    return start


def jacobi(case: Case, step: Any, steps: int, start: list[Array] | None = None) -> tuple[list[list[Any]], list[float]]:
    """The iteration in plain loops: the last iterate and every residual. Layer 0 is r_0 from the start on."""
    weights, inputs, activations = case.lists()
    first = [a / sum(inputs) for a in inputs] if any(inputs) else [1 / len(inputs)] * len(inputs)
    current = [first] + [[1 / size] * size for size in case.sizes[1:]]
    if start is not None:
        current = [first] + [(vector / vector.sum()).tolist() for vector in start[1:]]
    residuals = []
    for _ in range(steps):
        following = [first] + [step(w, r, a) for w, r, a in zip(weights, current[:-1], activations, strict=True)]
        residuals.append(
            max(sum(abs(x - y) for x, y in zip(a, b, strict=True)) for a, b in zip(following, current, strict=True))
        )
        current = following
    return current, residuals


def stopped(rank: Callable[..., RankResult], *args: Any, **options: Any) -> RankResult:
    """A rank whose warning of failed convergence is ignored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return rank(*args, **options)


def assert_bounds_hold(exact: list[Any], rank: Callable[..., RankResult], *args: Any, **options: Any) -> RankResult:
    """Compute a rank, and compare every layer of every step with the exact scores."""
    steps: list[SolverProgress] = []

    def watch(progress: SolverProgress) -> None:
        steps.append(progress)
        for layer, scores in enumerate(progress.scores()):
            error = float(np.abs(scores - exact[layer]).sum())
            assert error <= progress.layer_bounds[layer] + ROUND_OFF, f"step {progress.iteration}, layer {layer}"
            assert abs(scores.sum() - 1.0) <= ROUND_OFF

    result = stopped(rank, *args, callback=watch, **options)
    assert result.iterations == len(steps)
    assert result.layer_bounds == tuple(steps[-1].layer_bounds)
    assert result.error_bounds.tolist() == [max(p.layer_bounds) for p in steps] == [p.error_bound for p in steps]
    assert result.residuals.tolist() == [p.residual for p in steps]
    assert result.layer_residuals.tolist() == [p.layer_residuals for p in steps]
    return result


# --- all solvers, the same scores


@given(cases(), SHARES, SHARES, st.sampled_from(LAYERED))
def test_every_solver_reaches_the_textbook_scores_of_the_weighted_rank(
    case: Case, gamma: float, theta: float, solver: str
) -> None:
    expected = textbook_weighted(*case.lists(), gamma, theta)
    result = weighted_pagerank(case.graph(), gamma, theta, solver, tol=1e-13)
    assert_layers_equal(result.scores, expected, rtol=1e-9)
    assert result.converged
    assert result.solver == solver


@given(cases(), st.sampled_from([0.0, 0.0, 0.3, 0.5]), st.sampled_from(LAYERED))
def test_every_solver_reaches_the_textbook_scores_of_the_modified_rank(
    case: Case, zero_lowest: float, solver: str
) -> None:
    expected = textbook_modified(*case.lists(), zero_lowest)
    exact = modified_pagerank(case.graph(), zero_lowest=zero_lowest)
    assert_layers_equal(exact.scores, expected, rtol=1e-9)
    found = modified_pagerank(case.graph(), solver, zero_lowest=zero_lowest, tol=0.0 if solver == "power" else 1e-13)
    if zero_lowest == 0.0 or solver in ("power", "sweep", "gauss-seidel", "gauss-seidel-quadratic"):
        assert_layers_equal(found.scores, expected, rtol=1e-9)
        assert found.converged


@pytest.mark.parametrize("solver", LAYERED)
@table("backend", ["scipy", "torch", "dense", "auto"])
def test_every_solver_on_every_backend(solver: Any, backend: Any) -> None:
    graph = random_case(11, (7, 12, 7, 12, 7, 12, 7), density=0.6).graph()
    for gamma in (0.5, 0.99, 1.0):
        exact = weighted_pagerank(graph, gamma, 0.8).scores
        result = assert_bounds_hold(list(exact), weighted_pagerank, graph, gamma, 0.8, solver, backend)
        assert distance(result.scores, exact) < 1e-11
        assert result.converged
    exact = modified_pagerank(graph).scores
    result = assert_bounds_hold(list(exact), modified_pagerank, graph, solver, backend)
    assert distance(result.scores, exact) < 1e-11


@pytest.mark.parametrize("solver", LAYERED)
def test_every_solver_keeps_its_bounds_on_a_deep_chain(solver: Any) -> None:
    graph = layered((6,) * 61, 0.5, seed=1)
    exact = list(weighted_pagerank(graph, 0.8).scores)
    result = assert_bounds_hold(exact, weighted_pagerank, graph, 0.8, 1.0, solver, tol=1e-10)
    if solver in ("sweep", "gauss-seidel", "gauss-seidel-quadratic"):
        assert (result.iterations, result.block_products, result.error_bound) == (1, 60, 0.0)
    else:
        assert result.stop_reason == "tolerance"
        assert result.iterations < 60
        assert 0 < result.error_bound <= 1e-10 * 0.8 / 0.2
    if solver in ("power", "anderson"):
        assert result.block_products == 60 * result.iterations


@table("solver", [*LINEAR, Krylov(), SparseLU()])
def test_solvers_of_linear_systems_say_what_to_use_instead(solver: Any) -> None:
    graph = random_case(1, (2, 3)).graph()
    for rank in (weighted_pagerank, modified_pagerank):
        with pytest.raises(GraphError, match=r"expects a linear system.*use solver='sweep' \(exact\) or 'power'"):
            rank(graph, solver=solver)


def test_every_name_is_tested() -> None:
    assert {*LAYERED, *LINEAR} == set(SOLVERS)
    for name in SOLVERS:
        solver = solver_by_name(name)
        assert solver is not None
        assert solver.name == name
        assert solver_by_name(solver) is solver


@pytest.mark.parametrize("solver", ["auto", "sweep"])
def test_auto_sweeps(solver: Any) -> None:
    for result in (
        weighted_pagerank(random_case(1, (4, 5, 4)).graph(), solver=solver),
        modified_pagerank(random_case(1, (4, 5, 4)).graph(), solver=solver),
    ):
        assert (result.solver, result.stop_reason, result.iterations, result.block_products) == ("sweep", "exact", 1, 2)
        assert (result.error_bound, result.layer_bounds) == (0.0, (0.0, 0.0, 0.0))
        assert result.solver_reason == (
            "no edge leads back, so one pass in layer order is exact" if solver == "auto" else ""
        )


# --- exactness of power iteration


@given(st.data(), cases(), SHARES, SHARES)
def test_power_iteration_is_exact_after_l_steps_from_any_start(
    data: st.DataObject, case: Case, gamma: float, theta: float
) -> None:
    graph, depth = case.graph(), len(case.weights)
    options: dict[str, Any] = {"solver": "power", "tol": 0.0, "start": data.draw(starts(case.sizes))}
    for power, sweep in (
        (weighted_pagerank(graph, gamma, theta, **options), weighted_pagerank(graph, gamma, theta)),
        (modified_pagerank(graph, **options), modified_pagerank(graph)),
    ):
        assert_layers_equal(power.scores, sweep.scores)
        assert power.iterations <= depth
        assert power.converged
        assert power.error_bound == 0.0
        assert power.block_products == depth * power.iterations
        # A residual of zero before step L means that the start was the fixed point up to rounding.
        assert power.stop_reason == ("exact" if power.iterations == depth else "tolerance")
        assert power.degenerate == sweep.degenerate


@given(st.data(), cases(min_blocks=2), SHARES)
def test_layers_up_to_the_step_are_exact_and_have_the_bound_zero(data: st.DataObject, case: Case, gamma: float) -> None:
    graph, depth = case.graph(), len(case.weights)
    start = data.draw(st.none() | starts(case.sizes))
    for rank, args in ((weighted_pagerank, (graph, gamma)), (modified_pagerank, (graph,))):
        exact = rank(*args).scores  # type: ignore[operator]
        steps = data.draw(st.integers(1, depth))
        result = stopped(rank, *args, solver="power", tol=0.0, max_iter=steps, start=start)
        for layer in range(result.iterations + 1):
            np.testing.assert_allclose(result.scores[layer], exact[layer], rtol=1e-10, atol=1e-13)
            assert result.layer_bounds[layer] == 0.0


@pytest.mark.parametrize("rank", [weighted_pagerank, modified_pagerank])
def test_layer_0_of_a_start_is_ignored(rank: Any) -> None:
    case = random_case(21, (3, 3, 3, 3))
    start = [np.array([1.0, 0.0, 0.0])] + [np.ones(3)] * 3
    right = [case.inputs, *start[1:]]
    for steps in (1, 2, 3):
        found = stopped(rank, case.graph(), solver="power", max_iter=steps, start=start)
        expected = stopped(rank, case.graph(), solver="power", max_iter=steps, start=right)
        assert_layers_equal(found.scores, expected.scores)
        np.testing.assert_allclose(found.residuals, expected.residuals, rtol=1e-9)
    assert_layers_equal(found.scores, rank(case.graph()).scores)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_generic_start_takes_exactly_l_steps(depth: int) -> None:
    graph = random_case(depth, (6,) * (depth + 1)).graph()
    for result in (weighted_pagerank(graph, solver="power"), modified_pagerank(graph, solver="power")):
        assert (result.iterations, result.stop_reason, result.converged) == (depth, "exact", True)
        assert (result.error_bound, result.block_products, result.solver) == (0.0, depth**2, "power")
        np.testing.assert_array_equal(result.step_products, depth * np.arange(1, depth + 1))


@given(st.data(), cases(min_blocks=2), SHARES, SHARES)
def test_residuals_are_those_of_the_plain_iteration(
    data: st.DataObject, case: Case, gamma: float, theta: float
) -> None:
    start = data.draw(st.none() | starts(case.sizes))
    options: dict[str, Any] = {"solver": "power", "tol": 0.0, "start": start}
    result = weighted_pagerank(case.graph(), gamma, theta, **options)
    _, residuals = jacobi(case, lambda w, r, a: weighted_step(w, r, a, gamma, theta), result.iterations, start)
    np.testing.assert_allclose(result.residuals, residuals, rtol=1e-9, atol=1e-13)
    np.testing.assert_array_equal(result.residuals, result.layer_residuals.max(axis=1))
    result = modified_pagerank(case.graph(), **options)
    _, residuals = jacobi(case, lambda w, r, a: modified_step(w, r, a, 0.0), result.iterations, start)
    np.testing.assert_allclose(result.residuals, residuals, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_an_early_stop_returns_the_last_iterate(steps: int) -> None:
    case = random_case(1, (4, 5, 4, 5, 4))
    with pytest.warns(RuntimeWarning, match=f"stopped after max_iter={steps} steps"):
        result = weighted_pagerank(case.graph(), 0.8, 0.7, "power", max_iter=steps)
    iterate, residuals = jacobi(case, lambda w, r, a: weighted_step(w, r, a, 0.8, 0.7), steps)
    assert_layers_equal(result.scores, iterate)
    np.testing.assert_allclose(result.residuals, residuals)
    assert (result.iterations, result.stop_reason, result.converged) == (steps, "max_iter", False)
    assert result.block_products == 4 * steps


def test_the_tolerance_stops_a_deep_chain_early() -> None:
    graph = random_case(3, (5,) * 41).graph()
    result = weighted_pagerank(graph, 0.2, solver="power", tol=1e-6)
    assert (result.stop_reason, result.converged, result.tolerance) == ("tolerance", True, 1e-6)
    assert result.iterations < 15
    assert result.residuals[-1] <= 1e-6 < result.residuals[-2]
    assert 0 < distance(result.scores, weighted_pagerank(graph, 0.2).scores) <= result.error_bound + 1e-15


@table("solver", [LayerSweep(), PowerIteration(), Extrapolation(1), AndersonMixing(2), GaussSeidel()])
def test_a_solver_object_stands_for_its_name(solver: Any) -> None:
    graph = random_case(3, (4, 5, 4, 5)).graph()
    result = weighted_pagerank(graph, solver=solver)
    assert result.solver == solver.name
    assert_layers_equal(result.scores, weighted_pagerank(graph).scores)


# --- bounds of early stops, layer by layer


@given(st.data(), cases(min_blocks=2), SHARES, SHARES)
def test_layer_bounds_hold_at_every_step(data: st.DataObject, case: Case, gamma: float, theta: float) -> None:
    # Also with gamma 1 and dangling nodes: where no bound is known it is infinite, and holds.
    exact = textbook_weighted(*case.lists(), gamma, theta)
    start = data.draw(st.none() | starts(case.sizes))
    solver = data.draw(st.sampled_from(["power", "aitken", "quadratic", "anderson"]))
    options: dict[str, Any] = {"solver": solver, "tol": 0.0, "max_iter": 12, "start": start}
    assert_bounds_hold([np.array(e) for e in exact], weighted_pagerank, case.graph(), gamma, theta, **options)
    exact = textbook_modified(*case.lists(), 0.0)
    assert_bounds_hold([np.array(e) for e in exact], modified_pagerank, case.graph(), **options)


@given(st.data(), cases(min_blocks=2), SHARES, SHARES)
def test_layer_bounds_follow_from_the_layer_before(data: st.DataObject, case: Case, gamma: float, theta: float) -> None:
    # |F(r)_l - r*_l| <= gamma |r_{l-1} - r*_{l-1}|, and the error of r_{l-1} is at most that of F(r)_{l-1} plus its change.
    steps = data.draw(st.integers(1, len(case.weights)))
    result = stopped(weighted_pagerank, case.graph(), gamma, theta, "power", tol=0.0, max_iter=steps)
    expected = [0.0]
    for layer, (weight, change) in enumerate(zip(case.weights, result.layer_residuals[-1][:-1], strict=True), start=1):
        before = expected[-1] + change
        if layer <= result.iterations or before == 0.0:
            expected.append(0.0)
        elif not weight.any(axis=0).all():
            expected.append(math.inf)
        else:
            # With gamma 0 the error of the layer before does not matter.
            expected.append(gamma * before if gamma > 0.0 else 0.0)
    assert result.layer_bounds == pytest.approx(tuple(expected), rel=1e-12)
    assert result.error_bound == max(result.layer_bounds)


@given(st.data(), cases(min_blocks=2), DAMPINGS, SHARES)
def test_the_bound_is_no_worse_than_that_of_a_contraction(
    data: st.DataObject, case: Case, gamma: float, theta: float
) -> None:
    graph = case.without_dangling().graph()
    for steps in range(1, len(case.weights)):
        result = stopped(weighted_pagerank, graph, gamma, theta, "power", tol=0.0, max_iter=steps)
        assert result.error_bound <= gamma / (1 - gamma) * result.residuals[-1] * (1 + 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("knobs", [(1, 2), (1, 4), (2, 3), (2, 4)])
def test_jumps_beyond_the_simplex_keep_the_bounds(knobs: tuple[int, int]) -> None:
    # After starts far from the solution extrapolations are negative; the bounds must hold for the clipped ones.
    for seed in range(60):
        rng = np.random.default_rng(seed)
        n_nodes, depth = int(rng.integers(2, 5)), int(rng.integers(5, 30))
        graph = layered((n_nodes,) * (depth + 1), rng.choice([0.3, 0.6]), seed=seed)
        start = [rng.pareto(0.3, n_nodes) + 1e-9 for _ in range(depth + 1)]
        for gamma in (0.9, 0.99):
            exact = list(weighted_pagerank(graph, gamma).scores)
            options: dict[str, Any] = {"solver": Extrapolation(*knobs), "start": start, "max_iter": 40}
            result = assert_bounds_hold(exact, weighted_pagerank, graph, gamma, **options)
            assert min(scores.min() for scores in result.scores) >= 0.0


def mixing_start(gamma: float, depth: int) -> tuple[Case, list[Array]]:
    """Identity blocks, and a start whose layers all have an error of 1 - gamma^l in the same direction."""
    case = Case([np.eye(2)] * depth, np.array([1.0, 0.0]), [np.array([1.0, 0.0])] * depth)
    errors = 1 - gamma ** np.arange(depth + 1)
    return case, [np.array([1 - error / 2, error / 2]) for error in errors]


def test_the_bound_is_attained_in_every_layer() -> None:
    # After one step the error of layer l is gamma times that of layer l - 1, which was 1 - gamma^(l-1).
    gamma, depth = 0.5, 40
    case, start = mixing_start(gamma, depth)
    result = stopped(weighted_pagerank, case.graph(), gamma, solver="power", max_iter=1, start=start)
    exact = weighted_pagerank(case.graph(), gamma).scores
    errors = [float(np.abs(a - b).sum()) for a, b in zip(result.scores, exact, strict=True)]
    np.testing.assert_allclose(errors[1:], gamma * (1 - gamma ** np.arange(depth)), atol=1e-15)
    np.testing.assert_allclose(result.layer_bounds, errors, rtol=1e-9, atol=1e-15)
    assert result.error_bound == pytest.approx(gamma / (1 - gamma) * result.residuals[-1], rel=1e-9)


@pytest.mark.parametrize("solver", ["power", "aitken", "quadratic", "anderson"])
def test_a_wrong_contraction_is_caught(monkeypatch: pytest.MonkeyPatch, solver: str) -> None:
    case, start = mixing_start(0.5, 40)
    exact = list(weighted_pagerank(case.graph(), 0.5).scores)
    assert_bounds_hold(exact, weighted_pagerank, case.graph(), 0.5, solver=solver, start=start)
    right = WeightedPageRankProblem._contraction
    monkeypatch.setattr(WeightedPageRankProblem, "_contraction", lambda self, layer: right(self, layer) / 2)
    with pytest.raises(AssertionError, match="step 1, layer"):
        assert_bounds_hold(exact, weighted_pagerank, case.graph(), 0.5, solver=solver, start=start)


def test_no_bound_is_claimed_where_none_is_known() -> None:
    case = random_case(4, (4, 5, 4, 5, 4))
    dangling = Case([w.copy() for w in case.weights], case.inputs, case.activations)
    dangling.weights[2][:, 1] = 0.0
    result = stopped(weighted_pagerank, dangling.graph(), 0.5, solver="power", max_iter=1)
    assert result.layer_bounds[:2] == (0.0, 0.0)
    assert 0.0 < result.layer_bounds[2] < 1.0
    assert result.layer_bounds[3:] == (math.inf, math.inf)
    assert result.error_bound == math.inf
    result = stopped(modified_pagerank, case.graph(), solver="power", max_iter=2)
    assert result.layer_bounds == (0.0, 0.0, 0.0, math.inf, math.inf)
    # Once the layers before are exact, dangling nodes do not matter.
    assert stopped(weighted_pagerank, dangling.graph(), 0.5, solver="power", max_iter=3).error_bound < math.inf
    assert weighted_pagerank(dangling.graph(), 0.5, solver="power").error_bound == 0.0
    assert modified_pagerank(case.graph(), solver="power").error_bound == 0.0


def test_gamma_1_has_a_bound_too() -> None:
    case = random_case(4, (4, 5, 4, 5, 4))
    exact = weighted_pagerank(case.graph(), 1.0).scores
    for steps in (1, 2, 3):
        result = stopped(weighted_pagerank, case.graph(), 1.0, solver="power", max_iter=steps)
        errors = [np.abs(a - b).sum() for a, b in zip(result.scores, exact, strict=True)]
        assert 0 < max(errors) <= result.error_bound < math.inf
        assert (np.array(errors) <= np.array(result.layer_bounds) + 1e-14).all()


# --- running out of iterations

CYCLIC = bidirectional_graph(layered([4, 6, 5], seed=8))


@pytest.mark.parametrize("solver", ["power", "aitken", "quadratic", "anderson", PowerIteration()])
def test_running_out_warns_the_caller_and_returns_the_iterate(solver: Any) -> None:
    graph = random_case(5, (4, 5, 4)).graph()
    name = solver if isinstance(solver, str) else solver.name
    message = (
        rf"^{name} iteration .*max_iter=1 steps with residual .* above the tolerance 1.0e-12.*raise max_iter or tol"
    )
    for call in (
        lambda: weighted_pagerank(graph, solver=solver, max_iter=1),
        lambda: modified_pagerank(graph, solver=solver, max_iter=1),
        lambda: pagerank(CYCLIC, solver=solver, max_iter=1),
    ):
        with pytest.warns(RuntimeWarning, match=message) as caught:
            result = call()
        assert len(caught) == 1
        assert Path(caught[0].filename) == Path(__file__)
        assert (result.stop_reason, result.converged, result.iterations) == ("max_iter", False, 1)
        with pytest.raises(ConvergenceError, match=r"NOT converged \(max_iter\) after 1 iteration") as raised:
            result.check_convergence()
        assert raised.value.result is result


@pytest.mark.parametrize("solver", ["gauss-seidel", "gmres", "bicgstab", Krylov("gmres", inner=2), "auto"])
def test_running_out_on_a_digraph_names_the_solver(solver: Any) -> None:
    name = "gauss-seidel" if solver == "auto" else solver if isinstance(solver, str) else solver.name
    with pytest.warns(RuntimeWarning, match=f"^{name} iteration") as caught:
        result = pagerank(CYCLIC, 0.99, solver=solver, tol=0.0, max_iter=2)
    assert Path(caught[0].filename) == Path(__file__)
    assert result.solver == name


def test_convergence_is_returned_when_asked_for() -> None:
    result = weighted_pagerank(random_case(5, (4, 5, 4)).graph())
    assert result.check_convergence() is result


# --- callbacks

DOORS = {
    "weighted": lambda **options: weighted_pagerank(random_case(7, (4, 5, 4, 5, 4)).graph(), 0.9, **options),
    "modified": lambda **options: modified_pagerank(random_case(7, (4, 5, 4, 5, 4)).graph(), **options),
    "pagerank": lambda **options: pagerank(CYCLIC, 0.9, **options),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("solver", ["power", "aitken", "quadratic", "anderson"])
def test_a_callback_sees_every_step_and_may_stop(door: str, solver: str) -> None:
    seen: list[SolverProgress] = []
    kept: list[Any] = []

    def watch(progress: SolverProgress) -> bool:
        seen.append(progress)
        kept.append(progress.scores())
        return progress.iteration == 3

    result = DOORS[door](solver=solver, callback=watch)
    assert (result.stop_reason, result.converged, result.iterations, len(seen)) == ("callback", False, 3, 3)
    assert [p.iteration for p in seen] == [1, 2, 3]
    assert [p.residual for p in seen] == result.residuals.tolist()
    assert [p.error_bound for p in seen] == result.error_bounds.tolist()
    assert [p.layer_residuals for p in seen] == result.layer_residuals.tolist()
    assert [p.block_products for p in seen] == result.step_products.tolist()
    assert [p.seconds for p in seen] == result.step_seconds.tolist()
    assert seen[-1].layer_bounds == list(result.layer_bounds)
    assert all(0.0 <= a <= b for a, b in zip([0.0, *result.step_seconds], result.step_seconds, strict=False))
    assert_layers_equal(result.scores, kept[-1], rtol=1e-15)
    # The scores of a step do not change later, and they are copies.
    for progress, scores in zip(seen, kept, strict=True):
        for again, first in zip(progress.scores(), scores, strict=True):
            np.testing.assert_array_equal(again, first)
            again[:] = -1.0
    with pytest.raises(ConvergenceError, match=r"NOT converged \(callback\)"):
        result.check_convergence()
    # The first steps of a run equal a shorter run.
    for steps, scores in enumerate(kept, start=1):
        assert_layers_equal(scores, stopped(DOORS[door], solver=solver, max_iter=steps).scores, rtol=1e-15)


@pytest.mark.parametrize("door", DOORS)
def test_a_callback_that_stops_what_has_converged_changes_nothing(door: str) -> None:
    result = DOORS[door](callback=lambda progress: progress.iteration == DOORS[door]().iterations)
    assert result.converged
    assert result.stop_reason == ("tolerance" if door == "pagerank" else "exact")


def test_a_callback_that_returns_nothing_stops_nothing() -> None:
    assert DOORS["pagerank"](callback=lambda progress: None).converged


@table("door", DOORS)
@table(
    ("options", "message"),
    [
        ({"callback": 3}, "callback must be a function of a SolverProgress, got 3"),
        ({"max_iter": 0}, "max_iter must be an integer >= 1, got 0"),
        ({"tol": -1.0}, r"tol must be a number >= 0 \(absolute L1 residual\), got -1.0"),
        ({"tol": math.nan}, "tol must be a number >= 0"),
        ({"tol": "x"}, "tol must be a number >= 0"),
        (
            {"solver": "newton"},
            "unknown solver 'newton'; expected 'auto', .*'lu', .*'power', .*or a Solver object",
        ),
        ({"solver": 3}, "unknown solver 3"),
        ({"solver": PowerIteration}, "unknown solver"),
    ],
)
def test_limits_and_names_are_checked(door: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        DOORS[door](**options)


@table(
    ("make", "message"),
    [
        (lambda: Extrapolation(degree=3), "degree 1 or 2 and a period above it, got degree 3"),
        (lambda: Extrapolation(degree=2, period=2), "a period above it, got degree 2, period 2"),
        (lambda: AndersonMixing(window=0), "window of at least 1, got 0"),
        (lambda: Krylov("cg"), "expected method 'gmres' or 'bicgstab'"),  # type: ignore[arg-type]
        (lambda: Krylov(inner=0), "inner >= 1, got 'gmres' and 0"),
    ],
)
def test_knobs_are_checked(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        make()


def test_lu_refuses_more_edges_than_it_was_given() -> None:
    with pytest.raises(GraphError, match=r"up to 10 edges, got one of 108; use solver='auto', or SparseLU"):
        pagerank(CYCLIC, solver=SparseLU(max_edges=10))


# --- starts


@pytest.mark.parametrize("solver", ["power", "aitken", "quadratic", "anderson"])
def test_a_start_at_the_fixed_point_stops_at_once(solver: str) -> None:
    fixed: RankResult
    for fixed, again in (
        (DOORS["weighted"](), lambda start: DOORS["weighted"](solver=solver, tol=1e-14, start=start)),
        (DOORS["modified"](), lambda start: DOORS["modified"](solver=solver, tol=1e-14, start=start)),
        (DOORS["pagerank"](solver="lu"), lambda start: DOORS["pagerank"](solver=solver, start=start)),
    ):
        for start in (fixed, fixed.scores, [7.0 * scores for scores in fixed.scores]):
            result = again(start)
            assert (result.iterations, result.stop_reason, result.converged) == (1, "tolerance", True)
            assert_layers_equal(result.scores, fixed.scores, rtol=1e-11)


@pytest.mark.parametrize("solver", ["gauss-seidel", "gmres", "bicgstab"])
def test_warm_starts_of_the_solvers_of_digraphs(solver: str) -> None:
    teleport = np.ones(CYCLIC.n_nodes)
    teleport[0] += 1e-6
    cold = pagerank(CYCLIC, 0.95, solver=solver, teleport=teleport)
    for start in (cold, list(cold.scores)):
        assert pagerank(CYCLIC, 0.95, solver=solver, teleport=teleport, start=start).iterations == 1
    uniform = pagerank(CYCLIC, 0.95, solver=solver, teleport=np.ones(CYCLIC.n_nodes))
    warm = pagerank(CYCLIC, 0.95, solver=solver, teleport=teleport, start=uniform)
    assert warm.residuals[0] <= 0.01 * cold.residuals[0] + 1e-14
    assert warm.iterations <= cold.iterations
    assert sum(np.abs(a - b).sum() for a, b in zip(warm.scores, cold.scores, strict=True)) < 1e-10


def test_one_start_serves_all_columns() -> None:
    teleport = np.random.default_rng(2).random((CYCLIC.n_nodes, 3))
    single = pagerank(CYCLIC, solver="power", max_iter=1000)
    many = pagerank(CYCLIC, solver="power", teleport=teleport, start=single)
    expected = pagerank(CYCLIC, solver="lu", teleport=teleport)
    assert np.abs(many.stacked - expected.stacked).sum(axis=0).max() < 1e-10
    again = pagerank(CYCLIC, solver="power", teleport=teleport, start=expected)
    assert again.iterations == 1


@table(
    ("start", "message"),
    [
        ([np.ones(2)], r"start: expected 3 vectors of sizes \(2, 3, 2\), got shapes"),
        ([np.ones(2), np.ones(2), np.ones(2)], r"start: expected 3 vectors of sizes \(2, 3, 2\)"),
        ([np.ones((2, 1)), np.ones((3, 1)), np.ones((2, 1))], "start: expected 3 vectors of sizes"),
        (
            [np.ones(2), np.zeros(3), np.ones(2)],
            "start: layer 1: expected finite, non-negative numbers with a positive",
        ),
        ([np.ones(2), np.ones(3), np.array([1.0, -1.0])], "start: layer 2: expected finite, non-negative"),
        ([np.ones(2), np.array([1, np.nan, 1]), np.ones(2)], "start: layer 1: expected finite"),
    ],
)
def test_starts_that_do_not_fit_are_refused(start: list[Array], message: str) -> None:
    graph = random_case(1, (2, 3, 2)).graph()
    for rank in (weighted_pagerank, modified_pagerank):
        with pytest.raises(GraphError, match=message):
            rank(graph, solver="power", start=start)
    if not message.endswith("with a positive"):
        with pytest.raises(GraphError, match=message):
            pagerank(bidirectional_graph(graph), start=start)


def test_a_digraph_may_start_with_an_empty_layer_but_not_with_nothing() -> None:
    digraph = bidirectional_graph(random_case(1, (2, 3, 2)).graph())
    empty = [np.zeros(2), np.zeros(3), np.array([0.0, 2.0])]
    for solver in ("auto", "power"):
        found = pagerank(digraph, solver=solver, start=empty)
        assert_layers_equal(found.scores, pagerank(digraph, solver="lu").scores, rtol=1e-9)
    with pytest.raises(GraphError, match="start: expected a positive sum, got zeros"):
        pagerank(digraph, start=[np.zeros(2), np.zeros(3), np.zeros(2)])
    with pytest.raises(GraphError, match="start: expected a positive sum, got zeros"):
        pagerank(
            digraph, teleport=np.ones((7, 2)), start=[np.eye(2, 2)[:, :1] * [1, 0], np.zeros((3, 2)), np.zeros((2, 2))]
        )


def test_only_the_last_iterate_is_flagged_as_degenerate() -> None:
    # The start puts layer 1 on a dangling node alone; the fixed point does not.
    case = Case([np.eye(2), np.array([[1.0, 0.0], [1.0, 0.0]])], np.array([1.0, 1.0]), [np.ones(2), np.ones(2)])
    options: dict[str, Any] = {"solver": "power", "start": [np.ones(2), np.array([0.0, 1.0]), np.ones(2)]}
    for result in (weighted_pagerank(case.graph(), 1.0, **options), modified_pagerank(case.graph(), **options)):
        assert result.degenerate == ()
        assert_layers_equal(result.scores, [[0.5, 0.5]] * 3)


# --- float32


def test_float32_holds_no_tolerance_below_its_resolution() -> None:
    floor = 8 * np.finfo(np.float32).eps
    assert attainable_tolerance(0.0, "float32") == floor
    assert attainable_tolerance(1e-3, "float32") == 1e-3
    assert attainable_tolerance(0.0, "float64") == 0.0
    graph = random_case(6, (5,) * 61).graph()
    result = weighted_pagerank(graph, 0.3, solver="power", tol=0.0, dtype="float32")
    assert (result.stop_reason, result.tolerance) == ("tolerance", floor)
    assert result.iterations < 60
    assert all(scores.dtype == np.float32 for scores in result.scores)


def test_clipping_keeps_the_mass_of_every_column() -> None:
    state = [np.array([[0.5, -0.25], [-0.1, 0.25]]), np.array([[0.6, 1.0]])]
    found = normalise_state([vector.clip(0.0) for vector in state], each_layer=False)
    assert min(vector.min() for vector in found) == 0.0
    np.testing.assert_allclose(total_scores(found), [1.0, 1.0], rtol=1e-14)


# --- accelerated solvers need fewer steps


@pytest.mark.slow
def test_acceleration_needs_fewer_products_where_one_mode_is_slow() -> None:
    # Two cliques with weak edges between them: one eigenvalue near 1, all others small.
    graph = residual_graph(LayeredGraph.from_weights(*two_blocks()), beta=0.5)
    spent = {
        solver: pagerank(graph, 0.999, solver=solver, max_iter=40_000).block_products
        for solver in ("power", "aitken", "quadratic", "anderson", "gmres", "bicgstab")
    }
    for solver in ("aitken", "quadratic", "anderson", "gmres", "bicgstab"):
        assert spent[solver] < spent["power"] / 4, spent


@pytest.mark.parametrize(
    "graph",
    [uniform(scale=8, edge_factor=8), residual_graph(layered([16, 48, 16, 48, 16], seed=6)), CYCLIC],
    ids=["uniform", "residual", "bidirectional"],
)
def test_aggregation_takes_the_slow_part_out_of_gauss_seidel(graph: Any) -> None:
    # Without aggregation the sum of a layer against the teleporting mass improves by only the factor gamma per sweep.
    passes = {flag: pagerank(graph, 0.99, solver=GaussSeidel(flag), max_iter=5000).iterations for flag in (True, False)}
    assert passes[True] < passes[False] / 4, passes


def test_gauss_seidel_begins_with_the_teleporting_mass_of_its_start() -> None:
    # No node dangles, so that 1 - gamma of the mass teleports, and a start at the fixed point does not change.
    exact = pagerank(CYCLIC, 0.9, solver="lu")
    for aggregation in (True, False):
        result = pagerank(CYCLIC, 0.9, solver=GaussSeidel(aggregation), start=exact)
        assert (result.iterations, result.stop_reason) == (1, "tolerance")


def two_blocks() -> tuple[list[Array], Array, list[Array]]:
    rng = np.random.default_rng(5)
    halves = np.kron(np.eye(2), np.ones((4, 4))) + 1e-3
    weights = [halves * (rng.random((8, 8)) + 0.5) for _ in range(2)]
    return weights, rng.random(8), [rng.random(8), rng.random(8)]


# --- the protocol: solvers do not depend on graphs


class Doubling:
    """The problem r_l = 2 r_{l-1} + 1 with r_0 = 1, without a graph."""

    n_layers = 4
    n_blocks = 3
    dtype = "float64"
    steps_to_exact = 3
    acyclic = True
    linear = False
    sweepable = True

    def __init__(self) -> None:
        self.checks = DeferredChecks()
        self.visits = 0

    def start(self) -> list[Array]:
        return [np.array([1.0]), *(np.array([0.0]) for _ in range(3))]

    def apply(self, state: list[Array]) -> list[Array]:
        self.visits += 3
        return [state[0], *(2 * vector + 1 for vector in state[:-1])]

    def apply_and_compare(self, state: list[Array]) -> tuple[list[Array], list[Array]]:
        image = self.apply(state)
        return image, layer_norms(subtract(image, state))

    def sweep(self, state: list[Array], jump: Any) -> SweptState:
        found = [state[0]]
        for _ in range(3):
            self.visits += 1
            found.append(2 * found[-1] + 1)
        return SweptState(found, jump, 0.0)

    def residual(self, changes: Any) -> float:
        return max(changes)

    def error_bounds(self, changes: Any, steps: int) -> list[float]:
        return [0.0 if layer <= steps else math.inf for layer in range(4)]


@pytest.mark.parametrize(("solver", "visits"), [(LayerSweep(), 3), (GaussSeidel(), 3), (PowerIteration(), 9)])
def test_solvers_take_any_problem(solver: Any, visits: int) -> None:
    problem = Doubling()
    solution = solve(problem, solver, problem.start(), check_stopping_criteria(0.0, 10, None), tuple)  # type: ignore[arg-type]
    assert [float(v[0]) for v in solution.state] == [1.0, 3.0, 7.0, 15.0]
    assert problem.visits == solution.step_products[-1] == visits
    assert solution.stop_reason == "exact"
    assert solution.error_bounds[-1] == 0.0
    chosen, why = automatic_solver(problem)  # type: ignore[arg-type]
    assert (chosen, why[:12]) == (LayerSweep(), "no edge lead")


def test_anyone_can_write_a_solver() -> None:
    class Twice:
        """A solver that applies F twice per step."""

        name = "twice"

        def begin(self, problem: Any, start: Any, tol: float) -> Any:
            return start

        def step(self, problem: Any, memory: Any) -> SolverStep:
            middle = problem.apply(memory)
            last = problem.apply(middle)
            changes = [float(np.abs(a - b).sum()) for a, b in zip(last, middle, strict=True)]
            bounds = problem.error_bounds(changes, 1)
            return SolverStep(last, changes, problem.residual(changes), bounds, 2 * problem.n_blocks, last)

    result = pagerank(CYCLIC, 0.9, solver=Twice())
    plain = pagerank(CYCLIC, 0.9, solver="power")
    assert (result.solver, result.stop_reason) == ("twice", "tolerance")
    assert result.iterations in (plain.iterations // 2, (plain.iterations + 1) // 2)
    assert result.block_products == 2 * result.iterations * len(CYCLIC.edge_blocks)
    assert_layers_equal(result.scores, plain.scores, rtol=1e-9)


def test_a_solver_that_leaves_the_finite_numbers_is_stopped() -> None:
    class Broken(PowerIteration):
        def step(self, problem: Any, memory: Any) -> SolverStep:
            step = super().step(problem, memory)
            return SolverStep(step.state, step.changes, math.nan, step.bounds, step.products, step.memory)

    with pytest.raises(
        GraphError, match="solver 'power': expected finite residuals, got nan; use solver='power', or dtype"
    ):
        pagerank(CYCLIC, solver=Broken())
