"""Means and their standard errors, against the textbook and against simulation."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from llmrank.evaluation.estimate import Estimate


def test_groups_of_one_item_have_the_error_of_a_sample_mean() -> None:
    values = [0.5, 2.0, -1.0, 4.0, 4.0]
    found = Estimate.of(values)
    assert found.value == pytest.approx(statistics.mean(values))
    assert found.error == pytest.approx(statistics.stdev(values) / math.sqrt(5))
    assert found.count == 5


def test_groups_of_one_size_have_the_error_of_their_means() -> None:
    found = Estimate.of([4.0, 8.0, 6.0, 14.0], [4, 4, 4, 4])
    assert found.value == 2.0
    assert found.error == pytest.approx(statistics.stdev([1.0, 2.0, 1.5, 3.5]) / 2)


def test_the_error_is_that_of_the_groups_drawn() -> None:
    """The oracle is the spread of the mean over many draws; items of a group are similar, and groups differ in size."""
    rng = np.random.default_rng(0)
    values, errors = [], []
    for _ in range(2000):
        sizes = rng.integers(1, 9, 40)
        found = Estimate.of(sizes * rng.normal(1.0, 2.0, 40), sizes)
        values.append(found.value)
        errors.append(found.error)
    assert statistics.mean(values) == pytest.approx(1.0, abs=0.05)
    assert statistics.mean(errors) == pytest.approx(statistics.stdev(values), rel=0.1)


def test_empty_groups_are_ignored() -> None:
    assert Estimate.of([1.0, 0.0, 3.0], [2, 0, 2]) == Estimate.of([1.0, 3.0], [2, 2])
    assert Estimate.of([5.0, 0.0], [2, 0]).error is None


@pytest.mark.parametrize("totals", [[3.0], [math.inf, 1.0], [math.nan, 1.0]])
def test_there_is_no_error_for_one_group_or_an_infinite_mean(totals: list[float]) -> None:
    assert Estimate.of(totals).error is None


@pytest.mark.parametrize(("totals", "counts"), [([], None), ([0.0], [0])])
def test_a_mean_of_nothing_is_refused(totals: list[float], counts: list[int] | None) -> None:
    with pytest.raises(ValueError, match="at least one value"):
        Estimate.of(totals, counts)
