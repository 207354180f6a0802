"""Figures of graphs of millions of edges, and of the layers of a 7B model, take seconds and little memory."""

from __future__ import annotations

import io
import itertools
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from graphs import GraphError, LayeredGraph, RankResult
from graphs.draw import (
    adjacency_heatmap,
    compare_scores,
    kept_by_layer,
    layer_flow,
    lorenz_curves,
    node_link,
    score_distribution,
    score_heatmap,
)
from graphs.linalg.blocks import DenseBlock, SparseBlock
from graphs.reduction.subgraphs import top_subgraph
from tests.graphs.draw.test_draw import legible, rank_of

MB = 1 << 20


def bounded(act: Callable[[], Any], seconds: float, megabytes: float) -> Any:
    """Check that `act` stays within the limits and return its result; tracing its memory takes part of the time."""
    begun = time.perf_counter()
    tracemalloc.start()
    try:
        result = act()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - begun < seconds
    assert peak < megabytes * MB
    return result


def heavy(sizes: list[int]) -> list[Any]:
    rng = np.random.default_rng(0)
    scores = [rng.pareto(1.2, size) + 1e-3 for size in sizes]
    return [values / values.sum() for values in scores]


@pytest.fixture(scope="module")
def ten_million_edges() -> tuple[LayeredGraph, RankResult]:
    size, degree = 50_000, 100
    indptr = np.arange(size + 1, dtype=np.int32) * degree
    # Every row has an edge in each of 100 bands of columns, shifted row by row.
    indices = (np.arange(degree) * (size // degree) + np.arange(size)[:, None] % (size // degree)).astype(np.int32)
    rng = np.random.default_rng(0)
    blocks = tuple(
        SparseBlock(
            sparse.csr_array((rng.random(size * degree, dtype=np.float32), indices.ravel(), indptr), (size, size))
        )
        for _ in range(2)
    )
    graph = LayeredGraph(blocks, (np.ones(size),) * 3, ("a", "b", "c"))
    assert graph.n_edges == 10_000_000
    return graph, rank_of(graph, heavy([size] * 3))


@pytest.fixture(scope="module")
def seven_billion() -> tuple[LayeredGraph, RankResult]:
    """33 layers, 1.4 G edges: all rows of a block share their memory."""
    sizes = [4096, 11008] * 16 + [4096]
    rng = np.random.default_rng(0)
    blocks = tuple(
        DenseBlock((np.broadcast_to(rng.standard_normal(m, dtype=np.float32), (n, m)),))
        for m, n in itertools.pairwise(sizes)
    )
    names = tuple(f"model.layers.{k // 2}.mlp:{'output' if k % 2 == 0 else 'hidden'}" for k in range(len(sizes)))
    graph = LayeredGraph(blocks, tuple(np.ones(size) for size in sizes), names)
    return graph, rank_of(graph, heavy(sizes))


SCORE_FIGURES: dict[str, Callable[[RankResult], Any]] = {
    "score_heatmap": lambda rank: score_heatmap(rank.scores, [part > np.median(part) for part in rank.scores]),
    "kept_by_layer": lambda rank: kept_by_layer(rank.scores, [part > np.median(part) for part in rank.scores]),
    "score_distribution": lambda rank: score_distribution(rank.scores, rank.names),
    "lorenz_curves": lambda rank: lorenz_curves(rank.scores, rank.names),
    "compare_scores": lambda rank: compare_scores(
        np.concatenate(rank.scores), np.concatenate(rank.scores[::-1]), keep=0.7
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SCORE_FIGURES))
@pytest.mark.parametrize("case", ["ten_million_edges", "seven_billion"])
def test_score_figures(name: str, case: str, request: pytest.FixtureRequest) -> None:
    _, rank = request.getfixturevalue(case)
    page = io.BytesIO()
    ax = bounded(lambda: legible(SCORE_FIGURES[name](rank)), seconds=10, megabytes=100)
    ax.figure.savefig(page, format="svg")
    # The figure is an aggregate, so its file does not grow with the nodes.
    assert page.tell() < 3 * MB


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ten_million_edges", "seven_billion"])
def test_blocks_become_buckets(case: str, request: pytest.FixtureRequest) -> None:
    graph, rank = request.getfixturevalue(case)
    ax = bounded(lambda: legible(adjacency_heatmap(graph, 1, rank)), seconds=10, megabytes=100)
    assert ax.collections[0].get_array().shape == (64, 64)


def test_ten_million_edges_flow_as_ribbons(ten_million_edges: tuple[LayeredGraph, RankResult]) -> None:
    ax = bounded(lambda: legible(layer_flow(*ten_million_edges)), seconds=10, megabytes=200)
    assert len(ax.get_legend().get_texts()) == 5


@pytest.mark.slow
def test_the_flow_of_a_7b_model_is_a_heat_map(seven_billion: tuple[LayeredGraph, RankResult]) -> None:
    ax = bounded(lambda: legible(layer_flow(*seven_billion)), seconds=60, megabytes=100)
    assert ax.get_title().startswith("33 layers")


def test_the_ribbons_of_a_7b_layer(seven_billion: tuple[LayeredGraph, RankResult]) -> None:
    ax = bounded(lambda: legible(layer_flow(*seven_billion, layers=range(3))), seconds=10, megabytes=100)
    assert len(ax.get_legend().get_texts()) == 5


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ten_million_edges", "seven_billion"])
def test_node_link_takes_a_subgraph_or_refuses(case: str, request: pytest.FixtureRequest) -> None:
    graph, rank = request.getfixturevalue(case)
    drawn = bounded(
        lambda: legible(node_link(top_subgraph(graph, rank, nodes=20, layers=range(3)))), seconds=20, megabytes=300
    )
    assert f"60 of {sum(graph.layer_sizes[:3]):,} nodes" in drawn.get_title()
    whole = top_subgraph(graph, rank, nodes=1000, layers=(0, 1))
    with pytest.raises(GraphError, match="up to 300 nodes, got 2,000"):
        node_link(whole)
