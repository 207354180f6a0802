"""Components that are found by their names, in the sources: a new one is one new file, and none is imported before it is used."""

from __future__ import annotations

import ast
import importlib
import re
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
        The name of the class attribute, whose value is a literal.

    Raises
    ------
    ImportError
        No such class is found, because the sources were not installed.

    Examples
    --------
    >>> named_classes("llmrank.repair")["bias"].value
    'llmrank.repair.bias:BiasRepair'
    """
    found: dict[str, NamedClass] = {}
    for path in sorted(Path(importlib.import_module(package).__path__[0]).glob("*.py")):
        source = path.read_text(encoding="utf-8")
        # Most modules have no such class, and parsing them takes time.
        statements = ast.parse(source).body if re.search(rf"^\s+{attribute}\b.*=", source, re.MULTILINE) else []
        for defined in (each for each in statements if isinstance(each, ast.ClassDef)):
            for name in filter(None, (_constant(each, attribute) for each in defined.body)):
                found[name] = NamedClass(f"{package}.{path.stem}:{defined.name}", ast.get_docstring(defined) or "")
    if not found:
        raise ImportError(f"{package} has no sources (*.py), by which its components are found; install them too")
    return found


def _constant(statement: ast.stmt, attribute: str) -> str | None:
    """Return the text to which a statement of a class sets a class attribute; None if it does something else."""
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign) and "ClassVar" in ast.unparse(statement.annotation):
        targets = [statement.target]
    else:  # an attribute with another annotation is a field of a dataclass
        return None
    is_named = any(isinstance(target, ast.Name) and target.id == attribute for target in targets)
    return str(statement.value.value) if is_named and isinstance(statement.value, ast.Constant) else None
