"""Power iteration and sweep: exact after L steps, with an honest account of every earlier stop."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from graphs import ConvergenceError, GraphError, LayerSweep, PowerIteration, modified_pagerank, weighted_pagerank
from graphs.solvers import contraction_bound, held_tolerance
from tests.graphs.cases import DAMPINGS, SHARES, Array, Case, assert_layers_equal, cases, distance, random_case
from tests.graphs.make_golden import modified_step, weighted_step


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
    """The iteration in plain loops: the last iterate and every residual."""
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


# --- exactness


@given(st.data(), cases(), SHARES, SHARES)
def test_power_iteration_is_exact_after_l_steps_from_any_start(
    data: st.DataObject, case: Case, gamma: float, theta: float
) -> None:
    graph, depth = case.graph(), len(case.weights)
    solver = PowerIteration(tol=0.0, start=data.draw(starts(case.sizes)))
    for power, sweep in (
        (weighted_pagerank(graph, gamma, theta, solver), weighted_pagerank(graph, gamma, theta)),
        (modified_pagerank(graph, solver), modified_pagerank(graph)),
    ):
        assert_layers_equal(power.scores, sweep.scores)
        assert power.iterations <= depth
        assert power.converged
        assert power.error_bound == 0.0
        assert power.block_products == depth * power.iterations
        # A residual of zero before step L means that the start was the fixed point, or near enough.
        assert power.stop_reason == ("exact" if power.iterations == depth else "tolerance")
        assert power.degenerate == sweep.degenerate


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_generic_start_takes_exactly_l_steps(depth: int) -> None:
    graph = random_case(depth, (6,) * (depth + 1)).graph()
    for result in (weighted_pagerank(graph, solver="power"), modified_pagerank(graph, solver="power")):
        assert (result.iterations, result.stop_reason, result.converged) == (depth, "exact", True)
        assert (result.error_bound, result.block_products, result.solver) == (0.0, depth**2, "power")


@given(st.data(), cases(min_blocks=2), SHARES, SHARES)
def test_residuals_are_those_of_the_plain_iteration(
    data: st.DataObject, case: Case, gamma: float, theta: float
) -> None:
    start = data.draw(st.none() | starts(case.sizes))
    result = weighted_pagerank(case.graph(), gamma, theta, PowerIteration(tol=0.0, start=start))
    _, residuals = jacobi(case, lambda w, r, a: weighted_step(w, r, a, gamma, theta), result.iterations, start)
    np.testing.assert_allclose(result.residuals, residuals, rtol=1e-9, atol=1e-13)
    result = modified_pagerank(case.graph(), PowerIteration(tol=0.0, start=start))
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


def test_a_start_at_the_fixed_point_stops_at_once() -> None:
    graph = random_case(2, (4, 5, 4, 5)).graph()
    fixed = weighted_pagerank(graph).scores
    result = weighted_pagerank(graph, solver=PowerIteration(tol=1e-14, start=fixed))
    assert (result.iterations, result.stop_reason, result.converged) == (1, "tolerance", True)


def test_the_tolerance_stops_a_deep_chain_early() -> None:
    graph = random_case(3, (5,) * 41).graph()
    result = weighted_pagerank(graph, 0.2, solver="power", tol=1e-6)
    assert (result.stop_reason, result.converged, result.tolerance) == ("tolerance", True, 1e-6)
    assert result.iterations < 15
    assert result.residuals[-1] <= 1e-6 < result.residuals[-2]
    assert 0 < distance(result.scores, weighted_pagerank(graph, 0.2).scores) <= result.error_bound + 1e-15


@pytest.mark.parametrize("solver", [LayerSweep(), PowerIteration(), PowerIteration(tol=0.0, max_iter=3)])
def test_a_solver_object_stands_for_its_name(solver: Any) -> None:
    graph = random_case(3, (4, 5, 4, 5)).graph()
    result = weighted_pagerank(graph, solver=solver)
    assert result.solver == solver.name
    assert_layers_equal(result.scores, weighted_pagerank(graph).scores)


# --- the certificate


@given(st.data(), cases(min_blocks=2), DAMPINGS, SHARES)
def test_the_bound_holds_at_every_early_stop_where_no_column_dangles(
    data: st.DataObject, case: Case, gamma: float, theta: float
) -> None:
    case = case.without_dangling()
    graph = case.graph()
    exact = weighted_pagerank(graph, gamma, theta).scores
    start = data.draw(st.none() | starts(case.sizes))
    for steps in range(1, len(case.weights)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            result = weighted_pagerank(graph, gamma, theta, PowerIteration(tol=0.0, max_iter=steps, start=start))
        assert result.error_bound == pytest.approx(gamma / (1 - gamma) * result.residuals[-1], rel=1e-12)
        assert distance(result.scores, exact) <= result.error_bound + 1e-13


def test_the_bound_is_attained() -> None:
    # Errors of 1 - gamma^l leave the same residual (1 - gamma) in every layer, and gamma in the last.
    gamma, depth = 0.5, 40
    case = Case([np.eye(2)] * depth, np.array([1.0, 0.0]), [np.array([1.0, 0.0])] * depth)
    errors = 1 - gamma ** np.arange(depth + 1)
    start = [np.array([1 - error / 2, error / 2]) for error in errors]
    with pytest.warns(RuntimeWarning):
        result = weighted_pagerank(case.graph(), gamma, solver=PowerIteration(max_iter=1, start=start))
    error = distance(result.scores, weighted_pagerank(case.graph(), gamma).scores)
    assert error == pytest.approx(result.error_bound, rel=1e-9)


def test_no_bound_is_claimed_where_none_is_known() -> None:
    case = random_case(4, (4, 5, 4, 5))
    dangling = Case([w.copy() for w in case.weights], case.inputs, case.activations)
    dangling.weights[2][:, 1] = 0.0
    with pytest.warns(RuntimeWarning):
        assert weighted_pagerank(dangling.graph(), 0.5, solver="power", max_iter=2).error_bound == math.inf
    with pytest.warns(RuntimeWarning):
        assert weighted_pagerank(case.graph(), 1.0, solver="power", max_iter=2).error_bound == math.inf
    with pytest.warns(RuntimeWarning):
        assert modified_pagerank(case.graph(), solver="power", max_iter=2).error_bound == math.inf
    assert weighted_pagerank(dangling.graph(), 0.5, solver="power").error_bound == 0.0
    assert modified_pagerank(case.graph(), solver="power").error_bound == 0.0


@pytest.mark.parametrize(
    ("residual", "contraction", "bound"),
    [(0.1, 0.5, 0.1), (0.1, 0.0, 0.0), (0.1, 1.0, math.inf), (0.1, math.inf, math.inf), (0.0, math.inf, 0.0)],
)
def test_contraction_bound(residual: float, contraction: float, bound: float) -> None:
    assert contraction_bound(residual, contraction) == pytest.approx(bound)


# --- running out of iterations


def test_running_out_warns_the_caller_and_returns_the_iterate() -> None:
    graph = random_case(5, (4, 5, 4)).graph()
    message = r"max_iter=1 steps with residual .* above the tolerance 1.0e-12.*raise max_iter or tol"
    with pytest.warns(RuntimeWarning, match=message) as caught:
        weighted = weighted_pagerank(graph, solver="power", max_iter=1)
    assert Path(caught[0].filename) == Path(__file__)
    with pytest.warns(RuntimeWarning) as caught:
        modified = modified_pagerank(graph, solver="power", max_iter=1)
    assert Path(caught[0].filename) == Path(__file__)
    for result in (weighted, modified):
        with pytest.raises(ConvergenceError, match="NOT converged") as raised:
            result.require_convergence()
        assert raised.value.result is result


def test_convergence_is_returned_when_asked_for() -> None:
    result = weighted_pagerank(random_case(5, (4, 5, 4)).graph())
    assert result.require_convergence() is result


# --- float32


def test_float32_holds_no_tolerance_below_its_resolution() -> None:
    floor = 8 * np.finfo(np.float32).eps
    assert held_tolerance(0.0, "float32") == floor
    assert held_tolerance(1e-3, "float32") == 1e-3
    assert held_tolerance(0.0, "float64") == 0.0
    graph = random_case(6, (5,) * 61).graph()
    result = weighted_pagerank(graph, 0.3, solver="power", tol=0.0, dtype="float32")
    assert (result.stop_reason, result.tolerance) == ("tolerance", floor)
    assert result.iterations < 60
    assert all(scores.dtype == np.float32 for scores in result.scores)


# --- starts and knobs


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ([np.ones(2)], r"start: expected 3 vectors of sizes \(2, 3, 2\), got shapes"),
        ([np.ones(2), np.ones(2), np.ones(2)], r"start: expected 3 vectors of sizes \(2, 3, 2\)"),
        ([np.ones((2, 1)), np.ones((3, 1)), np.ones((2, 1))], "start: expected 3 vectors of sizes"),
        ([np.ones(2), np.zeros(3), np.ones(2)], "start: layer 1 needs finite, non-negative numbers with a positive"),
        ([np.ones(2), np.ones(3), np.array([1.0, -1.0])], "start: layer 2 needs finite, non-negative"),
        ([np.ones(2), np.array([1, np.nan, 1]), np.ones(2)], "start: layer 1 needs finite"),
    ],
)
def test_starts_that_do_not_fit_are_refused(start: list[Array], message: str) -> None:
    graph = random_case(1, (2, 3, 2)).graph()
    with pytest.raises(GraphError, match=message):
        weighted_pagerank(graph, solver=PowerIteration(start=start))


@pytest.mark.parametrize("knobs", [{"max_iter": 0}, {"tol": -1.0}])
def test_the_knobs_of_a_solver_object_are_checked(knobs: dict[str, Any]) -> None:
    with pytest.raises(GraphError, match=next(iter(knobs))):
        weighted_pagerank(random_case(1, (2, 3)).graph(), solver=PowerIteration(**knobs))


def test_only_the_last_iterate_is_flagged_as_degenerate() -> None:
    # The start puts layer 1 on a dangling node alone; the fixed point does not.
    case = Case([np.eye(2), np.array([[1.0, 0.0], [1.0, 0.0]])], np.array([1.0, 1.0]), [np.ones(2), np.ones(2)])
    solver = PowerIteration(start=[np.ones(2), np.array([0.0, 1.0]), np.ones(2)])
    for result in (weighted_pagerank(case.graph(), 1.0, solver=solver), modified_pagerank(case.graph(), solver)):
        assert result.degenerate == ()
        assert_layers_equal(result.scores, [[0.5, 0.5]] * 3)


# --- the protocol: solvers know nothing of graphs


@dataclass
class Doubling:
    """r_l = 2 r_{l-1} + 1, no graph anywhere."""

    n_layers: int
    dtype: str = "float64"
    contraction: float = math.inf
    visits: int = 0

    def initial(self) -> Array:
        return np.array([1.0])

    def uniform(self, layer: int) -> Array:
        return np.array([0.0])

    def step(self, layer: int, previous: Array, products: int) -> Array:
        self.visits += 1
        return 2 * previous + 1


@pytest.mark.parametrize(("solver", "visits"), [(LayerSweep(), 3), (PowerIteration(), 9)])
def test_solvers_take_any_layer_map(solver: Any, visits: int) -> None:
    layers = Doubling(4)
    solution = solver.solve(layers)
    assert [float(v[0]) for v in solution.vectors] == [1.0, 3.0, 7.0, 15.0]
    assert layers.visits == solution.block_products == visits
