"""Figures show what the results hold."""

from typing import Any

import numpy as np
import pytest

from graphs import GraphError, pagerank, residual_graph, weighted_pagerank
from graphs.draw import convergence
from tests.graphs.cases import random_case

CYCLIC = residual_graph(random_case(1, (6, 9, 6, 9, 6)).graph())


@pytest.mark.parametrize(
    ("against", "attribute"), [("products", "step_products"), ("seconds", "step_seconds"), ("steps", None)]
)
def test_convergence_draws_bound_and_residual_of_every_step(against: Any, attribute: str | None) -> None:
    results = [pagerank(CYCLIC, solver=name) for name in ("power", "gauss-seidel")]
    ax = convergence(results, against)
    lines = ax.get_lines()
    assert len(lines) == 4
    for result, bound, residual in zip(results, lines[::2], lines[1::2], strict=True):
        across = np.arange(1, result.iterations + 1) if attribute is None else getattr(result, attribute)
        np.testing.assert_array_equal(bound.get_xdata(), across)
        np.testing.assert_array_equal(bound.get_ydata(), result.error_bounds)
        np.testing.assert_array_equal(residual.get_ydata(), result.residuals)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["power", "gauss-seidel"]


def test_exact_steps_and_unknown_bounds_leave_gaps() -> None:
    result = weighted_pagerank(random_case(1, (4, 5, 4)).graph(), solver="power")
    bound = convergence([result], labels=["layered"]).get_lines()[0]
    assert np.isnan(bound.get_ydata()[-1])
    assert np.isfinite(bound.get_ydata()[0])


def test_refusals() -> None:
    result = pagerank(CYCLIC)
    with pytest.raises(GraphError, match="expected results"):
        convergence([])
    with pytest.raises(GraphError, match="got 1 and 'miles'"):
        convergence([result], "miles")  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="expected 1 labels"):
        convergence([result], labels=["a", "b"])
