"""Tables run all their rows, and list those that fail."""

import inspect
import itertools
import math
from typing import Any

import pytest

from tests.pairwise import pairs, pairwise_by_first
from tests.tables import table


def test_every_row_runs_and_all_that_fail_are_listed() -> None:
    seen = []

    @table("a", [1, 2])
    @table(("b", "c"), [(3, 4), (5, 6), (7, 8)])
    def check(a: int, b: int, c: int, fixture: Any) -> None:
        seen.append((a, b, c, fixture))
        assert b != 5
        with pytest.raises(ValueError, match="x"):
            int("x" if b != 7 else "7")

    assert list(inspect.signature(check).parameters) == ["fixture"]
    with pytest.raises(AssertionError) as raised:
        check(fixture="f")
    assert seen == [(a, b, b + 1, "f") for a in (1, 2) for b in (3, 5, 7)]
    assert str(raised.value).startswith("2 of 2 rows fail")
    for row in ("{'b': 5, 'c': 6}: AssertionError", "{'b': 7, 'c': 8}: Failed: DID NOT RAISE"):
        assert str(raised.value).count(row) == 2


def test_a_skip_ends_the_case_and_names_have_to_exist() -> None:
    with pytest.raises(pytest.skip.Exception):
        table("a", [1])(lambda a: pytest.skip("not here"))()
    with pytest.raises(AssertionError, match="does not take"):
        table("b", [1])(lambda a: None)
    with pytest.raises(AssertionError, match="a table has rows"):
        table("a", [])(lambda a: None)()


def test_each_value_of_the_first_meets_those_of_the_others() -> None:
    seen = []

    @pairwise_by_first(letter=["a", "b"], number=[1, 2, 3], flag=[True, False])
    def check(letter: str, number: int, flag: bool) -> None:
        seen.append((letter, number, flag))

    for letter in ("a", "b"):
        check(letter=letter)
    assert sorted(seen) == sorted(pairs(letter=["a", "b"], number=[1, 2, 3], flag=[True, False]))
    for first, second in itertools.combinations(range(3), 2):
        met = {(row[first], row[second]) for row in seen}
        assert len(met) == math.prod(len({row[k] for row in seen}) for k in (first, second))
