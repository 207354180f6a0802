"""Cases in which every two values of two parameters meet, instead of every combination of all."""

from collections.abc import Container
from typing import Any

import pytest
from allpairspy import AllPairs


def pairwise(*, indirect: tuple[str, ...] = (), slow: Container[Any] = (), **values: Any) -> pytest.MarkDecorator:
    """Parametrise a test with few cases, so that any two values of two parameters occur together in one of them.

    Most faults need at most two particular values, and the number of all combinations grows with every parameter. Cases whose
    first value is in `slow` are slow tests.
    """
    cases = [
        pytest.param(*case, marks=[pytest.mark.slow] if case[0] in slow else [])
        for case in AllPairs([list(choices) for choices in values.values()])
    ]
    return pytest.mark.parametrize(tuple(values), cases, indirect=indirect)
