"""Tests of difficult cases: interrupts, float32 with many nodes, starts far from the solution, unusual input."""

import itertools
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import pytest
from scipy import sparse

from graphs import (
    BlockDigraph,
    EdgeBlock,
    GraphError,
    KeepHighest,
    LayeredGraph,
    modified_pagerank,
    pagerank,
    weighted_pagerank,
)
from graphs.linalg.blocks import SparseBlock
from graphs.linalg.threads import ThreadPool
from graphs.solvers import GaussSeidel, Krylov
from tests.tables import table


def ring(size: int) -> sparse.csr_array:
    nodes = np.arange(size)
    return sparse.csr_array((np.ones(size), ((nodes + 1) % size, nodes)), shape=(size, size))


# --- threads of the kernels


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs POSIX signals")
def test_an_interrupt_leaves_the_threads_usable() -> None:
    threads = ThreadPool()
    threads.size = 2

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    def slow(start: int, stop: int, part: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.3)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            threads.run(slow, [0, 1, 2])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    for _ in range(3):
        seen: list[int] = []
        threads.run(lambda start, stop, part, seen=seen: seen.append(part), [0, 1, 2])  # type: ignore[misc]
        assert sorted(seen) == [0, 1]


def test_an_error_of_any_thread_reaches_the_caller() -> None:
    threads = ThreadPool()
    threads.size = 2
    for bad in (0, 1):

        def fail(start: int, stop: int, part: int, bad: int = bad) -> None:
            if part == bad:
                raise ValueError(f"part {part}")

        with pytest.raises(ValueError, match=f"part {bad}"):
            threads.run(fail, [0, 1, 2])
    threads.run(lambda start, stop, part: None, [0, 1, 2])


def test_without_threads_to_be_had_the_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads = ThreadPool()
    threads.size = 3
    monkeypatch.setattr(threading.Thread, "start", refuse)
    seen: list[int] = []
    threads.run(lambda start, stop, part: seen.append(part), [0, 1, 2, 3])
    assert sorted(seen) == [0, 1, 2]


# --- float32


@pytest.mark.parametrize("solver", ["power", "gauss-seidel"])
def test_float32_with_many_nodes_and_columns_keeps_its_mass(solver: str) -> None:
    # numpy adds the rows of a float32 matrix one after another, which has an error of 1/1000 here.
    size = 300_000
    result = pagerank(ring(size), 0.5, np.ones((size, 2)), solver=solver, backend="scipy", dtype="float32")
    assert result.converged
    assert result.stacked.dtype == np.float32
    np.testing.assert_allclose(result.stacked.sum(axis=0, dtype=np.float64), 1.0, atol=1e-5)
    np.testing.assert_allclose(result.stacked, 1 / size, rtol=1e-4)


# --- solvers far from the solution


def wild(seed: int) -> tuple[BlockDigraph, float, Any]:
    """Two or three tiny layers, all blocks between them, weights over nine and teleports over twelve orders of magnitude."""
    rng = np.random.default_rng(seed)
    layers = tuple(int(n) for n in rng.integers(1, 5, rng.integers(2, 4)))
    edges = [
        EdgeBlock(a, b, SparseBlock(sparse.csr_array(10.0 ** rng.uniform(-6, 3, (layers[b], layers[a])))))
        for a, b in itertools.permutations(range(len(layers)), 2)
    ]
    graph = BlockDigraph(layers, tuple(edges), tuple(map(str, layers_names(layers))))
    return graph, float(rng.choice([0.85, 0.99, 0.9999])), 10.0 ** rng.uniform(-12, 0, sum(layers))


def layers_names(layers: tuple[int, ...]) -> list[str]:
    return [f"layer {k}" for k in range(len(layers))]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:gauss-seidel iteration stopped")
def test_aggregation_is_dropped_where_it_leads_astray() -> None:
    for seed in range(120):
        graph, gamma, teleport = wild(seed)
        helped = pagerank(graph, gamma, teleport, tol=1e-11, max_iter=3000)
        assert helped.solver == "gauss-seidel"
        assert helped.converged, seed
        plain = pagerank(graph, gamma, teleport, solver=GaussSeidel(aggregation=False), tol=1e-11, max_iter=300)
        # A failed aggregation costs one sweep, in at most every second step.
        if plain.converged:
            assert helped.iterations <= 2 * plain.iterations + 2, (seed, helped.iterations, plain.iterations)


def test_a_krylov_cycle_that_fails_is_taken_back() -> None:
    from tests.graphs.known_graphs import SEEDED

    result = pagerank(SEEDED["power law"](), 0.9, solver=Krylov("bicgstab", inner=2), tol=1e-10, max_iter=400)
    assert result.converged


def test_krylov_takes_columns_one_by_one_and_counts_them() -> None:
    graph = ring(50)
    teleport = np.random.default_rng(0).random((50, 6))
    single = pagerank(graph, 0.85, teleport[:, 0], solver="gmres").block_products
    together = pagerank(graph, 0.85, teleport, solver="gmres")
    assert together.block_products <= 6 * (single + 30)
    for column in range(6):
        np.testing.assert_allclose(
            together.stacked[:, column], pagerank(graph, 0.85, teleport[:, column]).stacked, atol=1e-11
        )


# --- input


def test_huge_activations_make_no_other_teleport() -> None:
    def graph(scale: float) -> LayeredGraph:
        return LayeredGraph.from_weights([np.ones((2, 2))], [1, 1], [[scale, scale]])

    np.testing.assert_allclose(pagerank(graph(1e308)).stacked, pagerank(graph(1.0)).stacked, rtol=1e-14)
    huge = np.full(4, 1e308)
    np.testing.assert_allclose(pagerank(ring(4), teleport=huge).stacked, 0.25, rtol=1e-12)


def test_labels_of_several_layers() -> None:
    block = SparseBlock(sparse.csr_array(np.ones((3, 2))))
    graph = BlockDigraph((2, 3), (EdgeBlock(0, 1, block),), ("a", "b"), labels=tuple("vwxyz"))
    found = pagerank(graph, teleport={"v": 1.0}).as_dict()
    assert list(found) == list("vwxyz")
    assert found["w"] == 0.0


BLOCK = SparseBlock(sparse.csr_array(np.ones((3, 2))))


@table(
    ("arguments", "message"),
    [
        (((), (), ()), "at least one layer"),
        (((2, 0), (), ("a", "b")), "each of at least one node"),
        (((2, 3), (), ("a",)), "expected 2 names"),
        (((2, 3), (), ("a", "b"), None, ("x",)), "5 labels, got 2 and 1"),
        (((2, 3), (EdgeBlock(-2, 1, BLOCK),), ("a", "b")), r"expected layers 0\.\.1"),
        (((2, 3), (EdgeBlock(0, 5, BLOCK),), ("a", "b")), r"expected layers 0\.\.1"),
        (((2, 3), (EdgeBlock(1, 0, BLOCK),), ("a", "b")), r"expected shape \(2, 3\)"),
        (((2, 3), (EdgeBlock(0, 1, BLOCK, share=float("nan")),), ("a", "b")), "shares of edges from layer 0"),
        (((2, 3), (), ("a", "b"), (np.array([-1.0, 3.0]), np.ones(3))), "finite, non-negative"),
        (((2, 3), (), ("a", "b"), (np.ones(2), np.ones(2))), "of sizes"),
    ],
)
def test_digraphs_that_do_not_fit_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        BlockDigraph(*arguments)


def test_counts_must_be_whole() -> None:
    for keep in (KeepHighest({1: 2.5}), KeepHighest(pooled=(0, 1), count=1.5)):  # type: ignore[dict-item, arg-type]
        with pytest.raises(GraphError, match="expected whole numbers"):
            keep.check((4, 4))


@table("rank", [weighted_pagerank, modified_pagerank, pagerank])
@table("name", ["graph", "solver", "backend", "device", "dtype", "tol", "max_iter", "start", "callback", "keep"])
def test_arguments_of_wrong_types_are_graph_errors(rank: Callable[..., Any], name: str) -> None:
    graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 1], [[1]])
    huge = 10**400
    for wrong in (b"x", [], {}, object(), np.arange(3), set(), "nonsense", huge):
        if name != "max_iter" or wrong is not huge:  # any number of steps is allowed
            with pytest.raises(GraphError):
                rank(**{"graph": graph, name: wrong})


def test_weights_beyond_float64_are_graph_errors() -> None:
    with pytest.raises(GraphError, match="expected real numbers"):
        pagerank(nx.DiGraph([(0, 1, {"weight": 10**400})]))
    with pytest.raises(GraphError, match="teleport: expected real numbers"):
        pagerank(ring(3), teleport={0: 10**400})
