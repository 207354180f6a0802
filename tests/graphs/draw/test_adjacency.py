"""Cells of the adjacency heat map are means of weights, whatever the form of the block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from graphs import GraphError, LayeredGraph, modified_pagerank, weighted_pagerank
from graphs.draw import adjacency_heatmap
from graphs.draw.adjacency import MAX_BUCKETS
from graphs.linalg.blocks import BAND_ELEMENTS, DenseBlock, SparseBlock
from tests.graphs.cases import Case, cases, random_case
from tests.graphs.draw.test_draw import legible, rank_of
from tests.graphs.forms import stacked


def plain_means(weight: Any, targets: Any, sources: Any, buckets: int) -> Any:
    """Compute the cells by loops, with the highest score first and the higher of equal indices first."""
    orders = [sorted(range(len(s)), key=lambda k: (-s[k], -k)) for s in (targets, sources)]
    cuts = [[k * len(order) // b for k in range(b + 1)] for order in orders for b in [min(buckets, len(order))]]
    means = np.zeros([len(cut) - 1 for cut in cuts])
    for i in range(means.shape[0]):
        for j in range(means.shape[1]):
            rows, columns = (order[cut[k] : cut[k + 1]] for order, cut, k in zip(orders, cuts, (i, j), strict=True))
            means[i, j] = np.mean([abs(weight[r, c]) for r in rows for c in columns])
    return means


def shown(ax: Any) -> Any:
    (mesh,) = ax.collections
    return mesh.get_array().filled(0.0)


FORMS: dict[str, Any] = {
    "dense": lambda w: w,
    "column-major": np.asfortranarray,
    "sparse": sparse.csr_array,
    "parallel": lambda w: (w, 2 * w),
    "torch": lambda w: torch.from_numpy(w).bfloat16(),
    "stacked targets": lambda w: stacked(w, 0)[0],
    "stacked sources": lambda w: stacked(w, 1)[0],
}


@settings(deadline=None, max_examples=40)
@given(cases(max_size=7), st.integers(1, 9), st.sampled_from(list(FORMS)))
def test_cells_are_means_by_buckets(case: Case, buckets: int, form: str) -> None:
    graph = case.graph([FORMS[form](weight) for weight in case.weights])
    rank = modified_pagerank(graph)
    for layer in range(1, len(case.sizes)):
        weight = graph.block(layer).toarray().astype(np.float64)
        expected = plain_means(weight, rank.scores[layer], rank.scores[layer - 1], buckets)
        np.testing.assert_allclose(shown(adjacency_heatmap(graph, layer, rank, buckets)), expected, rtol=1e-12)


@pytest.mark.parametrize("form", ["row-major", "column-major", "sparse"])
def test_blocks_of_several_bands_add_up(form: str) -> None:
    n_targets, n_sources = 900, 2 * BAND_ELEMENTS // 900 + 101
    weight = np.random.default_rng(0).standard_normal((n_targets, n_sources), dtype=np.float32)
    weight[np.random.default_rng(1).random(weight.shape) < 0.2] = 0.0
    matrix = np.asfortranarray(weight) if form == "column-major" else weight
    block = SparseBlock(sparse.csr_array(weight)) if form == "sparse" else DenseBlock((matrix,))
    block = SparseBlock(abs(block.csr)) if isinstance(block, SparseBlock) else block
    graph = LayeredGraph((block,), (np.ones(n_sources), np.ones(n_targets)), ("a", "b"))
    rng = np.random.default_rng(2)
    scores = [rng.permutation(n_sources) + 1.0, rng.permutation(n_targets) + 1.0]
    ordered = np.abs(weight[np.argsort(-scores[1])][:, np.argsort(-scores[0])]).astype(np.float64)
    edges = [np.arange(65) * n // 64 for n in ordered.shape]
    sums = np.add.reduceat(np.add.reduceat(ordered, edges[0][:-1], axis=0), edges[1][:-1], axis=1)
    expected = sums / np.outer(np.diff(edges[0]), np.diff(edges[1]))
    ax = legible(adjacency_heatmap(graph, 1, rank_of(graph, scores)))
    np.testing.assert_allclose(shown(ax), expected, rtol=1e-9)
    assert ax.get_title() == f"Edges a to b: mean weight, 64 x 64 cells of 900 x {n_sources:,} nodes"
    assert ax.get_xlabel() == "nodes of a, highest score first"


def test_missing_edges_are_hatched_and_the_scale_has_numbers() -> None:
    graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.001, 1.002]]], [2, 1], [[1, 2]])
    ax = legible(adjacency_heatmap(graph, 1, weighted_pagerank(graph, gamma=0.0)))
    (mesh,) = ax.collections
    assert np.ma.getmaskarray(mesh.get_array()).tolist() == [[False, False], [False, True]]
    assert ax.patch.get_hatch()
    labels = [text.get_text() for text in ax.figure.axes[1].get_yticklabels()]
    assert labels[0] == "1"
    assert len(labels) == 5


@pytest.mark.parametrize("weight", [[[0.0, 0.0]], [[1.0, 1.0]], [[5.0]]])
def test_degenerate_blocks(weight: Any) -> None:
    graph = LayeredGraph.from_weights([weight], [1] * len(weight[0]), [[1]])
    ax = legible(adjacency_heatmap(graph, 1, weighted_pagerank(graph)))
    assert ("no edges" in ax.get_title()) == (not np.any(weight))
    legible(adjacency_heatmap(graph, 1, rank_of(graph, [np.zeros(size) for size in graph.layer_sizes])))


def test_invalid_arguments_are_refused() -> None:
    graph = random_case(0, (3, 4)).graph()
    rank = weighted_pagerank(graph)
    for layer in (0, 2, -1, 1.0, True):
        with pytest.raises(GraphError, match="expected a layer from 1 to 1"):
            adjacency_heatmap(graph, layer, rank)  # type: ignore[arg-type]
    for buckets in (0, MAX_BUCKETS + 1, 2.5, True):
        with pytest.raises(GraphError, match=f"buckets must be an integer from 1 to {MAX_BUCKETS}"):
            adjacency_heatmap(graph, 1, rank, buckets)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="expected a rank of this graph"):
        adjacency_heatmap(random_case(0, (4, 3)).graph(), 1, rank)
    broken = LayeredGraph.from_weights([np.full((4, 3), np.nan)], [1] * 3, [[1] * 4], check_finite=False)
    with pytest.raises(GraphError, match="NaN or Inf"):
        adjacency_heatmap(broken, 1, rank)
