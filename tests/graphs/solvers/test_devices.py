"""Every solver on simulated devices: the scores of the CPU, and a bounded number of synchronisations at any depth."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.random_graphs import layered
from graphs import (
    GraphError,
    LayeredGraph,
    RankResult,
    bidirectional_graph,
    modified_pagerank,
    pagerank,
    residual_graph,
    weighted_pagerank,
)
from graphs.linalg.stacking import StackedBlock
from graphs.solvers import SOLVERS, Krylov, Solver, SparseLU, solver_by_name
from graphs.solvers.certificate import KeepHighest
from graphs.solvers.krylov_cycles import CYCLES, gmres_cycle
from tests.devices import FIRST, SECOND, DeviceTraffic, on_device
from tests.graphs.cases import assert_layers_equal, random_case

# Simulated devices answer every operation in Python.
pytestmark = pytest.mark.slow

LINEAR = ("gmres", "bicgstab", "lu")
NOT_CYCLIC = ("sweep",)
# The extrapolations, after every eighth step, are among them.
STEPS = 10
# With a tolerance of 0, the later ones do not lower the residual, and are tried twice.
KRYLOV_STEPS = 5
DEPTHS = (3, 31)
# A step's numbers come in one copy; Gauss-Seidel reads before and after a sweep, and some steps try twice.
MOST_SYNCHRONISATIONS = 2

Rank = Callable[..., RankResult]


def graph_of(n_layers: int, devices: tuple[torch.device, ...] = ()) -> LayeredGraph:
    """A layered graph; with devices, its blocks are dense tensors on them in turn."""
    graph = layered([5, 8] * (n_layers // 2) + [5], 0.7, seed=3)
    if not devices:
        return graph
    weights = [on_device(b.to_csr().toarray(), d) for b, d in zip(graph.blocks, itertools.cycle(devices), strict=False)]
    return LayeredGraph.from_weights(weights, graph.activations[0], graph.activations[1:])


def rank_of(kind: str, graph: LayeredGraph, **options: Any) -> RankResult:
    if kind == "weighted":
        return weighted_pagerank(graph, 0.6, 0.5, **options)
    if kind == "modified":
        return modified_pagerank(graph, zero_lowest=0.2, **options)
    digraphs: dict[str, Callable[[LayeredGraph], Any]] = {
        "layers": lambda g: g,
        "both ways": bidirectional_graph,
        "residual": residual_graph,
    }
    return pagerank(digraphs[kind](graph), 0.6, **options)


KINDS = ("weighted", "modified", "layers", "both ways", "residual")
PAIRS = [
    (solver, kind)
    for solver, kind in itertools.product(SOLVERS, KINDS)
    if not (solver in LINEAR and kind in ("weighted", "modified"))
    and not (solver == "sweep" and kind in ("both ways", "residual"))
]


class Meter:
    """Counts what crosses in every step of a solver, the checks after the step included."""

    def __init__(self, traffic: DeviceTraffic, solver: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
        self.traffic = traffic
        self.steps: list[DeviceTraffic] = []
        step = type(solver).step

        def metered(own: Any, problem: Any, memory: Any) -> Any:
            self.started = traffic.copy()
            return step(own, problem, memory)

        monkeypatch.setattr(type(solver), "step", metered)

    def __call__(self, progress: Any) -> None:
        self.steps.append(self.traffic.since(self.started))


def metered(
    kind: str, graph: LayeredGraph, solver: Any, traffic: DeviceTraffic, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[list[DeviceTraffic], DeviceTraffic, RankResult]:
    """Rank on the first device: what crosses in every step, and in all."""
    chosen = solver_by_name(solver)
    assert chosen is not None
    meter, before = Meter(traffic, chosen, monkeypatch), traffic.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* stopped after max_iter")
        max_iter = KRYLOV_STEPS if isinstance(chosen, Krylov) else STEPS
        result = rank_of(kind, graph, solver=chosen, device=FIRST, callback=meter, **{"max_iter": max_iter, **options})
    return meter.steps, traffic.since(before), result


@pytest.mark.parametrize(
    # At the largest depth, modified ranks and a graph with cycles take the ways of the others.
    ("solver", "kind", "n_layers"),
    [(*pair, max(DEPTHS) if pair[1] in ("modified", "both ways") else min(DEPTHS)) for pair in PAIRS],
)
def test_a_step_synchronises_at_most_twice_at_any_depth(
    solver: str, kind: str, n_layers: int, device_traffic: DeviceTraffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, total, result = metered(
        kind, graph_of(n_layers), solver, device_traffic, monkeypatch, backend="torch", tol=0.0
    )
    assert result.backend == f"torch ({FIRST}, float64, csr)"
    assert max(step.synchronisations for step in steps) <= MOST_SYNCHRONISATIONS
    # Beside its steps, a rank synchronises to try the device, and for what is constant and for the scores.
    assert total.synchronisations - sum(step.synchronisations for step in steps) <= 4
    # The first step of a layered rank makes the operators.
    assert max((step.transfers for step in steps[1:]), default=0) <= 1


@pytest.mark.parametrize(("solver", "kind"), [pair for pair in PAIRS if pair[0] != "lu"])
def test_weights_on_the_device_do_not_cross(
    solver: str, kind: str, device_traffic: DeviceTraffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = graph_of(7, (FIRST,))
    steps, total, _ = metered(kind, graph, solver, device_traffic, monkeypatch, backend="dense", tol=0.0)
    assert max(step.synchronisations for step in steps) <= MOST_SYNCHRONISATIONS
    assert max(step.transfers for step in steps) <= 1
    assert total.synchronisations - sum(step.synchronisations for step in steps) <= 4
    # The activations or the teleport distribution, and the sparse block of the skip connections.
    assert total.transfers - sum(step.transfers for step in steps) <= 2


@pytest.mark.parametrize(("number", "solver", "kind"), [(number, *pair) for number, pair in enumerate(PAIRS)])
@pytest.mark.usefixtures("device_traffic")
def test_devices_give_the_scores_of_the_cpu(number: int, solver: str, kind: str) -> None:
    expected = rank_of(kind, graph_of(7), solver=solver, backend="scipy")
    for place, devices in enumerate([(), (FIRST,), (FIRST, SECOND)]):
        # Every backend once, each with other devices from pair to pair.
        backend = ("torch", "dense", "auto")[(place + number) % 3]
        if (kind, backend) != ("residual", "dense"):
            found = rank_of(kind, graph_of(7, devices), solver=solver, backend=backend, device=FIRST)
            assert found.backend.startswith(f"torch ({FIRST}"), (backend, devices)
            assert (found.converged, found.stop_reason) == (True, expected.stop_reason)
            assert_layers_equal(found.scores, expected.scores, 1e-9)
            assert found.error_bound == pytest.approx(expected.error_bound, abs=1e-10)
    narrow = rank_of(kind, graph_of(7), solver=solver, backend="torch", device=FIRST, dtype="float32")
    assert narrow.converged
    assert {scores.dtype for scores in narrow.scores} == {np.dtype(np.float32)}
    assert_layers_equal(narrow.scores, expected.scores, 1e-4)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name not in NOT_CYCLIC])
def test_several_columns_on_a_device(
    solver: str, device_traffic: DeviceTraffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = graph_of(5)
    teleport = np.random.default_rng(1).random((graph.n_nodes, 3))
    expected = rank_of("both ways", graph, teleport=teleport, solver="lu").stacked
    found = rank_of("both ways", graph, teleport=teleport, solver=solver, backend="torch", device=FIRST)
    np.testing.assert_allclose(found.stacked, expected, rtol=1e-9, atol=1e-12)
    steps, _, _ = metered(
        "both ways", graph, solver, device_traffic, monkeypatch, backend="torch", tol=0.0, teleport=teleport
    )
    assert max(step.synchronisations for step in steps) <= MOST_SYNCHRONISATIONS


@pytest.mark.usefixtures("device_traffic")
def test_the_knobs_of_krylov_methods_on_a_device() -> None:
    graph = bidirectional_graph(graph_of(7))
    expected = pagerank(graph, 0.9, solver="lu").scores
    for solver in (Krylov("gmres", inner=1), Krylov("gmres", inner=40), Krylov("bicgstab", inner=3)):
        found = pagerank(graph, 0.9, solver=solver, backend="torch", device=FIRST)
        assert found.stop_reason == "tolerance"
        assert_layers_equal(found.scores, expected, 1e-9)


# --- what is checked and noted


@pytest.mark.parametrize("solver", ["power", "sweep", "anderson", "quadratic"])
@pytest.mark.usefixtures("device_traffic")
def test_zeros_are_noted_on_a_device_as_on_the_cpu(solver: str) -> None:
    case = random_case(7, (6, 7, 6, 5))
    case.weights[1][:] = 0.0
    case.activations[0][:] = 0.0
    case.weights[0][:, 2] = 0.0
    for activations in (case.activations, [*case.activations[:2], np.zeros(5)]):
        for inputs in (case.inputs, np.zeros(6)):
            graph = LayeredGraph.from_weights(case.weights, inputs, activations)
            for rank in (weighted_pagerank, modified_pagerank):
                here = rank(graph, solver=solver, backend="scipy")  # type: ignore[operator]
                there = rank(graph, solver=solver, backend="torch", device=FIRST)  # type: ignore[operator]
                assert there.degenerate == here.degenerate
                assert_layers_equal(there.scores, here.scores)
                if solver in ("power", "sweep"):  # others have bounds by what rounds to zero
                    np.testing.assert_allclose(there.error_bounds, here.error_bounds, atol=1e-12)


@pytest.mark.parametrize("solver", ["power", "sweep", "anderson"])
@pytest.mark.usefixtures("device_traffic")
def test_numbers_that_are_not_finite_are_refused_on_a_device_with_the_message_of_the_cpu(solver: str) -> None:
    case = random_case(2, (4, 5, 4))
    too_large = [np.full_like(case.weights[0], 1.5e308), case.weights[1]]
    unknown = [case.weights[0], np.where(case.weights[1] > 0, np.nan, 1.0)]
    for rank, weights in ((weighted_pagerank, too_large), (weighted_pagerank, unknown), (modified_pagerank, unknown)):
        graph = LayeredGraph.from_weights(weights, case.inputs, case.activations, check_finite=False)
        with pytest.raises(GraphError) as here:
            rank(graph, solver=solver, backend="scipy")  # type: ignore[operator]
        with pytest.raises(GraphError) as there:
            rank(graph, solver=solver, backend="torch", device=FIRST)  # type: ignore[operator]
        assert str(there.value) == str(here.value)
    with pytest.raises(GraphError, match="block 1: the out-strengths are not finite"):
        weighted_pagerank(case.graph(too_large), solver=solver, backend="torch", device=FIRST)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name not in NOT_CYCLIC])
@pytest.mark.usefixtures("device_traffic")
def test_strengths_that_overflow_are_refused_on_a_device(solver: str) -> None:
    case = random_case(2, (4, 5, 4))
    graph = bidirectional_graph(case.graph([np.full_like(w, 1.5e308) for w in case.weights]))
    with pytest.raises(GraphError, match="edges from layer 0 to layer 1: the out-strengths are not finite"):
        pagerank(graph, solver=solver, backend="torch", device=FIRST)


@pytest.mark.usefixtures("device_traffic")
def test_a_solver_that_reads_nothing_is_checked_by_the_loop() -> None:
    class Blind:
        """Applies F once, and claims to be exact."""

        name = "blind"

        def begin(self, problem: Any, start: Any, tol: float) -> Any:
            return start

        def step(self, problem: Any, memory: Any) -> Any:
            from graphs.solvers import SolverStep

            zeros = [0.0] * problem.n_layers
            return SolverStep(problem.apply(memory), zeros, 0.0, zeros, problem.n_blocks, memory, exact=True)

    case = random_case(2, (4, 5, 4))
    for rank in (weighted_pagerank, lambda g, **o: pagerank(bidirectional_graph(g), **o)):
        assert rank(case.graph(), solver=Blind(), backend="torch", device=FIRST).stop_reason == "exact"  # type: ignore[operator]
        with pytest.raises(GraphError, match="out-strengths are not finite"):
            rank(  # type: ignore[operator]
                case.graph([np.full_like(w, 1.5e308) for w in case.weights]),
                solver=Blind(),
                backend="torch",
                device=FIRST,
            )


@pytest.mark.parametrize("kind", ["weighted", "both ways"])
def test_a_certificate_costs_one_synchronisation_a_step(
    kind: str, device_traffic: DeviceTraffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = KeepHighest({1: 3})
    expected = rank_of(kind, graph_of(13), solver="power", keep=keep)
    steps, _, found = metered(
        kind, graph_of(13), "power", device_traffic, monkeypatch, backend="torch", keep=keep, max_iter=40
    )
    assert found.certificate is not None
    assert expected.certificate is not None
    assert found.iterations == expected.iterations
    np.testing.assert_array_equal(found.certificate.keep[1], expected.certificate.keep[1])
    # The bounds on the transition come once.
    assert sum(step.synchronisations for step in steps) <= 2 * len(steps) + 1


# --- stacked blocks, and weights that stay on the CPU


def test_stacked_blocks_cross_only_when_their_operators_are_made(
    device_traffic: DeviceTraffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = random_case(4, (5, 8, 5))
    up = StackedBlock.from_weights(np.split(case.weights[0], 2), [0.25, 2.0], 0)
    down = StackedBlock.from_weights(np.split(case.weights[1], 2, axis=1), [1.0, 0.5], 1)
    graph = LayeredGraph.from_weights([up, down], case.inputs, case.activations)
    for kind in ("weighted", "both ways"):
        steps, _, found = metered(kind, graph, "power", device_traffic, monkeypatch, backend="torch", max_iter=100)
        assert {step.transfers for step in steps[1:]} == {0}
        assert_layers_equal(found.scores, rank_of(kind, graph, backend="scipy", solver="power").scores, 1e-9)


def test_lu_reads_the_graph_from_a_device_block_by_block(
    device_traffic: DeviceTraffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = graph_of(7, (FIRST,))
    (step,), _, _ = metered("both ways", graph, SparseLU(), device_traffic, monkeypatch, backend="dense")
    # A direct solver factorises on the CPU.
    assert step.synchronisations <= MOST_SYNCHRONISATIONS + 2 * len(graph.blocks)


# --- cycles of Krylov methods


@pytest.mark.parametrize("method", CYCLES)
@pytest.mark.parametrize("columns", [None, 3])
def test_a_cycle_solves_a_small_system(method: str, columns: int | None) -> None:
    rng = np.random.default_rng(1)
    matrix = torch.tensor(np.eye(6) * 3 + rng.random((6, 6)))
    right = torch.tensor(rng.random((6,) if columns is None else (6, columns)))
    # At the threshold, columns no longer change; without one, round-off is all that is left.
    for inner, threshold in ((6, 0.0), (12, 0.0), (12, 1e-12)):
        found = CYCLES[method](lambda v: matrix @ v, torch.zeros_like(right), right, inner, threshold)
        torch.testing.assert_close(found, torch.linalg.solve(matrix, right), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", CYCLES)
def test_a_cycle_leaves_a_solution_alone(method: str) -> None:
    right = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    for threshold in (0.0, 1e-9):
        found = CYCLES[method](lambda v: 2 * v, right / 2, right, 4, threshold)
        torch.testing.assert_close(found, right / 2, rtol=0, atol=0)


def test_a_cycle_whose_residual_cannot_fall_stands_still() -> None:
    # A quarter turn: the residual is orthogonal to its product, and GCR has no direction that lowers it.
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    right = torch.tensor([1.0, 0.0], dtype=torch.float64)
    found = gmres_cycle(lambda v: turn @ v, torch.zeros_like(right), right, 5, 0.0)
    assert found.isfinite().all()
    assert float((right - turn @ found).norm()) <= 1.0


@pytest.mark.parametrize("inner", [1, 2, 5])
def test_gcr_takes_the_iterates_of_scipys_gmres(inner: int) -> None:
    from scipy.sparse.linalg import gmres

    rng = np.random.default_rng(2)
    matrix, right = np.eye(20) - 0.4 * rng.random((20, 20)) / 10, rng.random(20)
    expected, _ = gmres(matrix, right, rtol=0.0, atol=0.0, restart=inner, maxiter=1)
    wide = torch.tensor(matrix)
    found = gmres_cycle(lambda v: wide @ v, torch.zeros(20, dtype=torch.float64), torch.tensor(right), inner, 0.0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
    assert math.isfinite(float(found.sum()))
