"""Tests of RankResult."""

from typing import Any

import networkx
import numpy as np
import pytest

from graphs import (
    ConvergenceError,
    GraphError,
    LayeredGraph,
    RankResult,
    modified_pagerank,
    pagerank,
    weighted_pagerank,
)
from tests.tables import table

GRAPH = LayeredGraph.from_weights([np.eye(3)], [1, 2, 1], [[3, 1, 1]], names=["in", "out"])
LONG = LayeredGraph.from_weights([[[1.0, 2, 0], [0, 1, 1]], [[1.0, 3]]], [1, 2, 1], [[3, 1], [1]])


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
    assert "sweep on scipy (float64, csr), 1 block products" in shown
    with pytest.warns(RuntimeWarning):
        stopped = modified_pagerank(LONG, "power", max_iter=1)
    assert "NOT converged (max_iter) after 1 iteration(s), residual " in repr(stopped)
    assert "error bound inf" in repr(stopped)


def test_a_general_rank_has_its_layers_and_is_stacked_in_order() -> None:
    result = pagerank(LONG)
    assert [len(scores) for scores in result.scores] == [3, 2, 1]
    assert list(result.as_dict()) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]
    np.testing.assert_array_equal(result.stacked, list(result.as_dict().values()))
    assert result.stacked.sum() == pytest.approx(1.0, abs=1e-15)
    assert result.solver_reason


def test_several_ranks_at_once() -> None:
    teleport = np.array([[1.0, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]]).T
    result = pagerank(LONG, teleport=teleport)
    assert result.stacked.shape == (6, 2)
    np.testing.assert_array_equal(result.stacked[:, 1], np.concatenate([scores[:, 1] for scores in result.scores]))
    assert result.as_dict()[0, 1] == result.scores[0][1].tolist()
    with pytest.raises(GraphError, match="top: expected one score per node, got 2; select a column"):
        result.top(0)


def result_of(stop_reason: Any, **traces: Any) -> RankResult:
    empty = np.zeros(0)
    fields = {"residuals": empty, "layer_residuals": np.zeros((0, 1)), "error_bounds": empty} | traces
    return RankResult(
        (np.ones(1),),
        ("only",),
        layer_bounds=(0.5,),
        stop_reason=stop_reason,
        tolerance=1e-3,
        solver="s",
        backend="b",
        method="m",
        **fields,
    )


@table(
    ("stop_reason", "converged"),
    [("exact", True), ("tolerance", True), ("certified", True), ("callback", False), ("max_iter", False)],
)
def test_converged_follows_from_why_it_stopped(stop_reason: str, converged: bool) -> None:
    result = result_of(stop_reason)
    assert result.converged is converged
    if converged:
        assert result.check_convergence() is result
    else:
        with pytest.raises(ConvergenceError, match=rf"m NOT converged \({stop_reason}\)") as caught:
            result.check_convergence()
        assert caught.value.result is result


def test_summaries_are_the_last_entries_of_the_traces() -> None:
    result = result_of(
        "tolerance",
        residuals=np.array([0.5, 0.1]),
        layer_residuals=np.array([[0.5], [0.1]]),
        error_bounds=np.array([np.inf, 0.25]),
        step_products=np.array([3, 7]),
        step_seconds=np.array([0.5, 0.75]),
    )
    assert (result.iterations, result.error_bound, result.block_products, result.solve_seconds) == (2, 0.25, 7, 0.75)
    nothing = result_of("max_iter")
    assert (nothing.iterations, nothing.error_bound, nothing.block_products, nothing.solve_seconds) == (0, np.inf, 0, 0)
    assert "residual none" in repr(nothing)
