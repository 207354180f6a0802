"""Cases in which every two values of two parameters meet, instead of every combination of all."""

from collections.abc import Callable, Container
from typing import Any

import pytest
from allpairspy import AllPairs

from tests.tables import Test, every_row


def pairs(**values: Any) -> list[tuple[Any, ...]]:
    """Few combinations of values, so that any two values of two parameters occur together in one of them.

    Most faults need at most two particular values, and the number of all combinations grows with every parameter.
    """
    return [tuple(case) for case in AllPairs([list(choices) for choices in values.values()])]


def pairwise(*, indirect: tuple[str, ...] = (), slow: Container[Any] = (), **values: Any) -> pytest.MarkDecorator:
    """Parametrise a test with :func:`pairs`; cases whose first value is in `slow` are slow tests."""
    cases = [pytest.param(*case, marks=[pytest.mark.slow] if case[0] in slow else []) for case in pairs(**values)]
    return pytest.mark.parametrize(tuple(values), cases, indirect=indirect)


def pairwise_by_first(**values: Any) -> Callable[[Test], pytest.MarkDecorator]:
    """One case for each value of the first parameter, which runs all of :func:`pairs` with that value."""
    first, *others = values
    choices = list(values[first])
    rows = [dict(zip(values, case, strict=True)) for case in pairs(**values)]

    def of(given: dict[str, Any]) -> list[dict[str, Any]]:
        return [{name: row[name] for name in others} for row in rows if row[first] is given[first]]

    return lambda test: pytest.mark.parametrize(first, choices)(every_row(test, tuple(others), of))
