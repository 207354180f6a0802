"""Every public function has an example; those of the rooms that users call also document parameters, results and errors."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import FunctionType
from typing import Any

import pytest

import graphs

EVERY = [info.name for info in pkgutil.walk_packages(graphs.__path__, "graphs.")]
# Modules whose functions document their parameters, results and errors in sections.
MODULES = [
    "graphs.checks",
    "graphs.structures.layering",
    *(name for name in EVERY if name.split(".")[1] in ("analysis", "reduction", "io", "draw")),
]


def functions(modules: list[str]) -> list[tuple[str, Any]]:
    found = []
    for module in map(importlib.import_module, modules):
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, FunctionType) and value.__module__ == module.__name__:
                found.append((f"{module.__name__}.{name}", value))
    return found


@pytest.mark.parametrize(("name", "function"), functions(MODULES), ids=[name for name, _ in functions(MODULES)])
def test_docstring_sections(name: str, function: Any) -> None:
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


@pytest.mark.parametrize(("name", "function"), functions(EVERY), ids=[name for name, _ in functions(EVERY)])
def test_docstring_example(name: str, function: Any) -> None:
    assert "Examples\n--------\n>>> " in (inspect.getdoc(function) or "")
