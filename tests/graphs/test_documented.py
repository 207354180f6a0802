"""Every public function shows itself in use; of summaries, files and figures it also says what it takes, gives and refuses."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import FunctionType
from typing import Any

import pytest

import graphs.draw
import graphs.io.exchange

EVERY = [info.name for info in pkgutil.walk_packages(graphs.__path__, "graphs.")]
MODULES = [
    *("graphs.io.arrays", "graphs.io.files", "graphs.io.graph_files"),
    *(
        "graphs.checks",
        "graphs.reduction.backbone",
        "graphs.reduction.sparsify",
        "graphs.analysis.measures",
        "graphs.analysis.strengths",
        "graphs.analysis.flow",
    ),
    *(
        "graphs.analysis.layer_summary",
        "graphs.analysis.incident_edges",
        "graphs.analysis.node_summary",
        "graphs.analysis.paths",
        "graphs.reduction.edge_selection",
        "graphs.reduction.subgraphs",
    ),
    *("graphs.structures.layering", "graphs.io.convert"),
    *(
        f"{package.__name__}.{info.name}"
        for package in (graphs.io.exchange, graphs.draw)
        for info in pkgutil.iter_modules(package.__path__)
    ),
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


@pytest.mark.parametrize(("name", "function"), functions(EVERY), ids=[name for name, _ in functions(EVERY)])
def test_it_shows_itself_in_use(name: str, function: Any) -> None:
    assert "Examples\n--------\n>>> " in (inspect.getdoc(function) or "")
