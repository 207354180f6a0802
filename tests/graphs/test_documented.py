"""Every public function of files and figures says what it takes, gives and refuses, and shows itself in use."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import FunctionType
from typing import Any

import pytest

import graphs.draw
import graphs.exchange

MODULES = [
    *("graphs.arrays", "graphs.files", "graphs.io"),
    *(
        f"{package.__name__}.{info.name}"
        for package in (graphs.exchange, graphs.draw)
        for info in pkgutil.iter_modules(package.__path__)
    ),
]


def functions() -> list[tuple[str, Any]]:
    found = []
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, FunctionType):
                found.append((f"{module.__name__}.{name}", value))
    return found


@pytest.mark.parametrize(("name", "function"), functions(), ids=[name for name, _ in functions()])
def test_it_is_documented(name: str, function: Any) -> None:
    text = inspect.getdoc(function)
    assert text
    signature = inspect.signature(inspect.unwrap(function))
    if signature.parameters:
        section = text.split("Parameters\n----------\n")[1].split("\n\n")[0]
        for parameter in signature.parameters:
            assert parameter in section, parameter
    annotation = str(signature.return_annotation)
    if annotation != "None":
        assert ("Yields\n------\n" if annotation.startswith("Iterator") else "Returns\n-------\n") in text
    source = inspect.getsource(function)
    assert "raise GraphError" not in source or "Raises\n------\n" in text
    assert "Examples\n--------\n>>> " in text
