"""Components that are found by their names, in the sources: a new one is one new file, and none is imported before it is used."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["NamedClass", "load_class", "named_classes"]


class NamedClass(NamedTuple):
    """A class that need not have been imported.

    Attributes
    ----------
    value : str
        ``module:class``, as an entry point has it.
    doc : str
        The docstring.
    """

    value: str
    doc: str


def load_class(value: str) -> Any:
    """Import the class ``module:class``."""
    module, _, name = value.partition(":")
    return getattr(importlib.import_module(module), name)


def named_classes(package: str, attribute: str = "name") -> dict[str, NamedClass]:
    """Return, by their names, the classes in the modules of a package that set a class attribute to their name.

    Parameters
    ----------
    package : str
        It is imported, but its modules are not: their sources are read.
    attribute : str
        The name of the class attribute: a ``ClassVar`` whose value is a literal.

    Examples
    --------
    >>> named_classes("llmrank.repair")["bias"].value
    'llmrank.repair.bias:BiasRepair'
    """
    found: dict[str, NamedClass] = {}
    declaration = f"{attribute}: ClassVar"
    for path in sorted(Path(importlib.import_module(package).__path__[0]).glob("*.py")):
        source = path.read_text(encoding="utf-8")
        # Most modules have no such class, and parsing them takes time.
        statements = ast.parse(source).body if declaration in source else []
        for defined in (each for each in statements if isinstance(each, ast.ClassDef)):
            for each in defined.body:
                if isinstance(each, ast.AnnAssign) and each.value and ast.unparse(each).startswith(declaration):
                    doc = ast.get_docstring(defined) or ""
                    found[ast.literal_eval(each.value)] = NamedClass(f"{package}.{path.stem}:{defined.name}", doc)
    return found
