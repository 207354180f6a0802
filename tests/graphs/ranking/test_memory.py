"""Tests of memory on large graphs: weights are not copied, and a rank converts one block at a time."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphs import LayeredGraph, bidirectional_graph, modified_pagerank, pagerank, weighted_pagerank
from tests.graphs.cases import torch_not_imported

SIZE, BLOCKS = 384, 24
BLOCK_BYTES = SIZE * SIZE * 8


def peak(action: Callable[[], Any]) -> int:
    """The peak of numpy's memory during `action`, above the memory before, in bytes."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def weights() -> list[Any]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal((SIZE, SIZE)) for _ in range(BLOCKS)]


@pytest.fixture(scope="module")
def chain() -> LayeredGraph:
    return LayeredGraph.from_weights(weights(), np.ones(SIZE), [np.ones(SIZE)] * BLOCKS)


def test_building_a_graph_copies_no_weights() -> None:
    given = weights()
    used = peak(lambda: LayeredGraph.from_weights(given, np.ones(SIZE), [np.ones(SIZE)] * BLOCKS))
    assert used < BLOCK_BYTES / 4


@pytest.mark.parametrize(
    ("backend", "blocks"),
    # CSR needs values and indices, in parts and joined, about four times the dense float64; bands need one buffer.
    [("scipy", 5), ("dense", 1.5), ("auto", 1.5)],
)
@pytest.mark.parametrize(
    "rank",
    [
        lambda graph, **options: weighted_pagerank(graph, 0.5, 0.5, **options),
        lambda graph, **options: modified_pagerank(graph, **options),
    ],
    ids=["weighted", "modified"],
)
def test_a_sweep_holds_one_block_at_a_time(chain: LayeredGraph, rank: Any, backend: str, blocks: float) -> None:
    with torch_not_imported():
        assert peak(lambda: rank(chain, backend=backend)) < blocks * BLOCK_BYTES


@pytest.mark.parametrize(
    ("backend", "blocks"),
    # Iterations keep the CSR of every block, which with its int32 indices is one and a half times the dense block.
    [("scipy", 1.5 * BLOCKS + 4), ("dense", 1.5), ("auto", 1.5)],
)
@pytest.mark.filterwarnings("ignore:power iteration stopped after max_iter=2:RuntimeWarning")
def test_power_iteration_holds_what_it_converted(chain: LayeredGraph, backend: Any, blocks: float) -> None:
    with torch_not_imported():
        used = peak(lambda: weighted_pagerank(chain, solver="power", backend=backend, max_iter=2))
    assert used < blocks * BLOCK_BYTES


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("solver", ["sweep", "power"])
@pytest.mark.filterwarnings("ignore:power iteration stopped after max_iter=2:RuntimeWarning")
def test_kernels_read_weights_where_they_lie(
    monkeypatch: pytest.MonkeyPatch, dtype: Any, order: Any, solver: Any
) -> None:
    monkeypatch.setattr("graphs.linalg.backends.KERNEL_ENTRIES", 1)
    given = [np.asarray(w, dtype=dtype, order=order) for w in weights()[:4]]
    graph = LayeredGraph.from_weights(given, np.ones(SIZE), [np.ones(SIZE)] * 4)

    def rank() -> Any:
        weighted_pagerank(graph, solver=solver, max_iter=2)
        return modified_pagerank(graph, solver=solver, max_iter=2)

    rank()  # compiles
    assert peak(rank) < 0.1 * BLOCK_BYTES


@pytest.mark.parametrize("solver", ["power", "gauss-seidel"])
@pytest.mark.filterwarnings("ignore:.* iteration stopped after max_iter=3:RuntimeWarning")
def test_general_ranks_read_weights_where_they_lie(monkeypatch: pytest.MonkeyPatch, solver: str) -> None:
    monkeypatch.setattr("graphs.linalg.backends.KERNEL_ENTRIES", 1)
    given = [w.astype(np.float32) for w in weights()[:4]]
    graph = bidirectional_graph(LayeredGraph.from_weights(given, np.ones(SIZE), [np.ones(SIZE)] * 4))

    def rank() -> Any:
        return pagerank(graph, solver=solver, tol=0.0, max_iter=3)

    rank()
    assert peak(rank) < 0.3 * BLOCK_BYTES


def test_parallel_edges_need_one_more_buffer(chain: LayeredGraph) -> None:
    pairs = [(w, w) for w in weights()]
    with torch_not_imported():
        graph = LayeredGraph.from_weights(pairs, np.ones(SIZE), [np.ones(SIZE)] * BLOCKS)
        assert peak(lambda: weighted_pagerank(graph, backend="dense")) < 2.5 * BLOCK_BYTES
