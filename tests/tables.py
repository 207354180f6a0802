"""Tables of quick rows that are one case of a test."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest

Test = Callable[..., None]
Row = dict[str, Any]


def table(names: str | tuple[str, ...], rows: Iterable[Any]) -> Callable[[Test], Test]:
    """Run a test for every row of a table in a single case, which lists all rows that fail.

    It is written as ``pytest.mark.parametrize`` is, and meant for tables of like and quick rows, such as refused arguments. All
    rows share the fixtures.
    """
    keys = (names,) if isinstance(names, str) else names
    found = [dict(zip(keys, (row,) if isinstance(names, str) else row, strict=True)) for row in rows]
    return lambda test: every_row(test, keys, lambda _: found)


def every_row(test: Test, keys: tuple[str, ...], rows_of: Callable[[Row], list[Row]]) -> Test:
    """The test of all rows that belong to its other arguments."""
    parameters = inspect.signature(test).parameters
    assert set(keys) <= set(parameters), f"{test.__name__} does not take {keys}"

    @functools.wraps(test)
    def run(**others: Any) -> None:
        rows = rows_of(others)
        assert rows, "a table has rows"
        failures = [(row, error) for row in rows if (error := failure(test, **row, **others)) is not None]
        if failures:
            found = [f"{row}: {type(error).__name__}: {error}" for row, error in failures]
            raise AssertionError(f"{len(found)} of {len(rows)} rows fail\n" + "\n".join(found)) from failures[0][1]

    left = [parameter for name, parameter in parameters.items() if name not in keys]
    run.__signature__ = inspect.Signature(left)  # type: ignore[attr-defined]
    return run


def failure(test: Test, **arguments: Any) -> BaseException | None:
    """What a test raises; a skip, or an interrupt, ends the case."""
    try:
        test(**arguments)
    except (Exception, pytest.fail.Exception) as error:
        return error
    return None
