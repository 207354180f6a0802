"""The table of plans."""

from __future__ import annotations

from typing import Any

from benchmarks.plans import KINDS, correlation, table


def row(amount: float, expected: float, first: float, second: float) -> dict[str, Any]:
    measured = {kind: {"value": value, "error": 0.01} for kind, value in zip(KINDS, (first, second), strict=True)}
    removed = {"neurons": 2 * amount, "heads": amount}
    common = {"amount": amount, "uniform": amount > 0.3, "share": amount, "removed": removed, "seconds": amount}
    return {**common, "expected": expected, "measured": measured}


ROWS = [row(0.1, 0.2, 0.1, 0.4), row(0.3, 0.5, 0.4, 0.8), row(0.4, 0.9, 1.0, 1.4)]


def test_a_plan_is_judged_by_the_mean_of_both_kinds_of_text() -> None:
    both = {"scorer": "norm", "seconds": 12.3, "rows": ROWS}
    said = table({"models": {"a": {"neurons and heads": both, "neurons": {"scorer": "norm"}}}})
    assert f"## a, neurons and heads: rank correlation 1.000; 30%: expected 0.500, measured 0.400 on {KINDS[0]}" in said
    assert "the losses took 12 s, a plan at most 0.4 s" in said
    assert (
        "| 30.0% | differ | 60% of the neurons, 30% of the heads | 0.500 | 0.400 ± 0.010 | 0.800 ± 0.010 | 1.20 |"
        in said
    )
    assert "| 40.0% | equal |" in said
    assert "## a, neurons:" not in said, "it has no rows yet"


def test_the_correlation_is_one_of_ranks() -> None:
    assert correlation(ROWS) == 1.0
    assert correlation([*ROWS, row(0.45, 1.0, 0.0, 0.0)]) < 0.5
