"""Every public function has an example; those of the rooms that users call also document parameters, results and errors."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import FunctionType
from typing import Any

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


def undocumented(function: Any) -> list[str]:
    """The parameters and sections that its docstring lacks."""
    text = inspect.getdoc(function) or ""
    signature = inspect.signature(inspect.unwrap(function))
    section = text.partition("Parameters\n----------\n")[2].split("\n\n")[0]
    missing = [parameter for parameter in signature.parameters if parameter not in section]
    annotation = str(signature.return_annotation)
    wanted = ["Yields" if annotation.startswith("Iterator") else "Returns"] if annotation != "None" else []
    wanted += ["Raises"] if "raise GraphError" in inspect.getsource(function) else []
    return missing + [title for title in wanted if f"{title}\n{'-' * len(title)}\n" not in text]


def test_docstring_sections() -> None:
    found = functions(MODULES)
    assert len(found) > 50
    wrong = {name: missing for name, function in found if (missing := undocumented(function))}
    assert not wrong, wrong


def test_docstring_example() -> None:
    found = functions(EVERY)
    assert len(found) > 100
    wrong = [name for name, function in found if "Examples\n--------\n>>> " not in (inspect.getdoc(function) or "")]
    assert not wrong, wrong
