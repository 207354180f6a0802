"""Components that are found by their names: a new one is one new file."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TypeVar

__all__ = ["named_classes"]

T = TypeVar("T")


def named_classes(package: str, base: type[T]) -> dict[str, type[T]]:
    """Return, by their names, the subclasses of `base` in the modules of a package that set a class attribute ``name``."""
    found: dict[str, type[T]] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        for entry in vars(module).values():
            is_defined_here = (
                isinstance(entry, type) and issubclass(entry, base) and entry.__module__ == module.__name__
            )
            if is_defined_here and "name" in vars(entry):
                found[entry.name] = entry
    return found
