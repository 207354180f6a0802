"""Weights of any magnitude, from the smallest to the largest numbers of float64: no error is above its bound."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from graphs import BlockDigraph, EdgeBlock, GraphError, LayeredGraph, modified_pagerank, pagerank, weighted_pagerank
from graphs.linalg.blocks import DenseBlock, SparseBlock
from graphs.solvers import SOLVERS as ALL_SOLVERS

SOLVERS = ("auto", *(name for name in ALL_SOLVERS if name not in ("sweep", "aitken")))
# What rounding adds to an error bound.
ROUNDOFF = {"float64": 1e-12, "float32": 6e-5}


def random_weights(rng: np.random.Generator, shape: tuple[int, int]) -> Any:
    low, high = sorted(rng.uniform(-323, 300, 2)) if rng.random() < 0.7 else (-323, -300)
    return 10.0 ** rng.uniform(low, high, shape) * (rng.random(shape) < 0.6)


def shares(weights: Any) -> Any:
    """Divide columns by their sums, in long double; columns of zeros stay."""
    highest = weights.max(axis=0).astype(np.longdouble)
    scaled = weights / np.where(highest > 0, highest, 1)
    total = scaled.sum(axis=0)
    return scaled / np.where(total > 0, total, 1)


def exact_pagerank(weights: Any, gamma: float) -> Any:
    transition, n_nodes = shares(weights), len(weights)
    dangling = ~(weights > 0).any(axis=0)
    transition = transition + np.where(dangling, np.longdouble(1) / n_nodes, 0)
    r = np.full(n_nodes, np.longdouble(1) / n_nodes)
    for _ in range(int(40 / (1 - gamma))):
        r = gamma * (transition @ r) + (1 - np.longdouble(gamma)) / n_nodes
    return r


@pytest.mark.parametrize("dtype", ROUNDOFF)
@pytest.mark.parametrize("solver", SOLVERS)
def test_no_error_of_a_digraph_is_above_its_bound(solver: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    for number in range(25):
        weights = random_weights(rng, (5, 5))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # few steps stop far from the tolerance
            found = pagerank(sparse.csr_array(weights), 0.85, solver=solver, dtype=dtype, max_iter=(2, 300)[number % 2])
        error = abs(found.scores[0] - exact_pagerank(weights, 0.85)).sum()
        assert error <= found.error_bound + ROUNDOFF[dtype]
        assert found.scores[0].min() >= 0.0


def test_the_cases_that_were_wrong() -> None:
    tiny = sparse.csr_array([[5e-309, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(pagerank(tiny).scores[0], exact_pagerank(tiny.toarray(), 0.85).astype(float), rtol=1e-12)
    weights = np.array([[0.0, 1e-46, 0.0], [3e-47, 0.0, 1.0], [1e-46, 0.0, 0.0]])
    found = pagerank(sparse.csr_array(weights), dtype="float32")
    np.testing.assert_allclose(found.scores[0], exact_pagerank(weights, 0.85).astype(float), rtol=1e-5)


@pytest.mark.parametrize("dtype", ROUNDOFF)
@pytest.mark.parametrize("share", [None, 0.5])
def test_blocks_of_one_layer_are_scaled_together(share: float | None, dtype: str) -> None:
    """Two blocks leave layer 0, and one of them is stored the other way round."""
    rng = np.random.default_rng(1)
    for _ in range(10):
        within, onward = random_weights(rng, (3, 3)), random_weights(rng, (2, 3))
        blocks = (
            EdgeBlock(0, 0, SparseBlock(sparse.csr_array(within)), share=share),
            EdgeBlock(0, 1, SparseBlock(sparse.csr_array(onward.T)), transposed=True, share=share),
        )
        digraph = BlockDigraph((3, 2), blocks, ("a", "b"))
        joined = np.zeros((5, 5), dtype=np.longdouble)
        if share is None:
            joined[:, :3] = shares(np.vstack([within, onward]))
        else:
            joined[:, :3] = shares(np.vstack([shares(within), shares(onward)]))
        found = pagerank(digraph, dtype=dtype)
        error = abs(np.concatenate(found.scores) - exact_pagerank(joined, 0.85)).sum()
        assert error <= found.error_bound + ROUNDOFF[dtype]


@pytest.mark.parametrize("dtype", ROUNDOFF)
def test_layered_ranks(dtype: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(25):
        weights = random_weights(rng, (4, 3))
        graph = LayeredGraph.from_weights([sparse.csr_array(weights)], [1, 2, 3], [[1, 1, 2, 1]])
        first, second = np.array([1, 2, 3]) / 6, np.array([1, 1, 2, 1]) / 5
        expected = 0.5 * (shares(weights) @ first) + 0.5 * second
        found = weighted_pagerank(graph, gamma=0.5, dtype=dtype).scores[1]
        assert abs(found - expected / expected.sum()).sum() <= ROUNDOFF[dtype]
        product = (weights / (weights.max() or 1.0)) @ first * second
        if product.sum() > 0:
            found = modified_pagerank(graph, dtype=dtype).scores[1]
            assert abs(found - product / product.sum()).sum() <= ROUNDOFF[dtype]


def test_what_cannot_be_held_is_refused() -> None:
    wide = sparse.csr_array([[1e-60, 0.0], [1.0, 1.0]])
    graph = LayeredGraph.from_weights([wide], [1, 1], [[1, 1]])
    with pytest.raises(GraphError, match="differ by more than float32 can hold"):
        weighted_pagerank(graph, theta=0.5, dtype="float32")
    assert weighted_pagerank(graph, theta=0.5).scores[1][0] > 0.3
    dense = BlockDigraph((2, 1), (EdgeBlock(0, 1, DenseBlock((np.array([[5e-309, 1.0]]),))),), ("a", "b"))
    with pytest.raises(GraphError, match="its reciprocal overflows"):
        pagerank(dense)
