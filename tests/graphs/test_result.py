"""RankResult: the ways to read a rank."""

from typing import Any

import networkx
import numpy as np
import pytest

from graphs import LayeredGraph, pagerank, weighted_pagerank

GRAPH = LayeredGraph.from_weights([np.eye(3)], [1, 2, 1], [[3, 1, 1]], names=["in", "out"])


def test_scores_by_node() -> None:
    result = weighted_pagerank(GRAPH, gamma=0.0)
    assert result.as_dict() == pytest.approx(
        {(0, 0): 0.25, (0, 1): 0.5, (0, 2): 0.25, (1, 0): 0.6, (1, 1): 0.2, (1, 2): 0.2}
    )
    np.testing.assert_allclose(result.stacked, [0.25, 0.5, 0.25, 0.6, 0.2, 0.2])
    assert result.names == ("in", "out")


def test_scores_by_label() -> None:
    found: dict[Any, float] = pagerank(networkx.DiGraph([("a", "b"), ("b", "a")])).as_dict()
    assert found == pytest.approx({"a": 0.5, "b": 0.5})


def test_top_is_highest_first_and_ties_keep_their_order() -> None:
    result = weighted_pagerank(GRAPH, gamma=0.0)
    assert [node for node, _ in result.top(0)] == [1, 0, 2]
    assert result.top(1, 2) == [(0, pytest.approx(0.6)), (1, pytest.approx(0.2))]


def test_repr_gives_the_verdict() -> None:
    shown = repr(weighted_pagerank(GRAPH, backend="scipy"))
    assert "2 layers, 6 nodes; weighted pagerank converged (exact) after 1 iteration(s)" in shown
    assert "sweep on numpy (float64, csr), 1 block products" in shown
