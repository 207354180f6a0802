"""The formats of files for other programs, by name.

A module of this folder lists its formats in ``FORMATS``, so a new format needs only a new file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Format", "exchange_formats"]


@dataclass(frozen=True)
class Format:
    """A format that other programs read.

    Attributes
    ----------
    name : str
        The name on the command line.
    write : callable
        Called with a graph (a subgraph if `any_size` is False), the path without a suffix, a rank, and the name of the model or
        of whatever else the graph is of. For a subgraph, the rank is of the original graph.
    any_size : bool
        Whether the format is for graphs of any size; if not, it is for subgraphs that are small enough for a viewer.
    package, extra : str
        The package that writes the format, and the extra of ``pip install 'llmrank[EXTRA]'`` that installs it. Both are empty if
        the format needs no other package.
    """

    name: str
    write: Callable[[Any, Path, Any, str], object]
    any_size: bool = True
    package: str = ""
    extra: str = ""


@cache
def exchange_formats() -> dict[str, Format]:
    """Return all formats by name, those for subgraphs first."""
    folder = __package__ or ""
    names = [info.name for info in pkgutil.iter_modules(importlib.import_module(folder).__path__)]
    modules = [importlib.import_module(f"{folder}.{name}") for name in names]
    found = [entry for module in modules for entry in getattr(module, "FORMATS", ())]
    return {entry.name: entry for entry in sorted(found, key=lambda entry: entry.any_size)}
