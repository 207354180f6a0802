"""The promised names and parameters, and the commands with their options; ``python -m tests.public_surface`` notes them."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import graphs
import llmrank
from llmrank import cli

FILE = Path(__file__).with_name("public_surface.txt")
# Both packages, and what other packages extend.
PACKAGES = (graphs, llmrank, llmrank.pipeline, llmrank.prune, llmrank.repair, llmrank.score)


def parameters(function: Any) -> str:
    """Return the names, kinds and defaults of parameters, without types."""
    shown = []
    for each in inspect.signature(function).parameters.values():
        plain = each.replace(annotation=inspect.Parameter.empty)
        # An object shows its address.
        has_object = " object at 0x" in repr(plain.default)
        shown.append(plain.replace(default=type(plain.default).__name__) if has_object else plain)
    return str(inspect.Signature(shown))


def lines(packages: Sequence[ModuleType]) -> Iterator[str]:
    """Yield a line for each public name, and for each public method of a class where it is listed first.

    Methods that come from a public class are listed with that class.
    """
    named = [(package, name, getattr(package, name)) for package in packages for name in sorted(package.__all__)]
    public = {found for *_, found in named if inspect.isclass(found)}
    seen: set[type] = set()
    for package, name, found in named:
        path = f"{package.__name__}.{name}"
        if isinstance(found, ModuleType) or not callable(found) or found in seen:
            yield path
        elif inspect.isclass(found):
            seen.add(found)
            yield path if issubclass(found, Exception) else f"{path}{parameters(found)}"
            bases = [base for base in found.__mro__ if base.__module__.startswith(("graphs.", "llmrank."))]
            own = [found, *(base for base in bases if base not in public)]
            for method in sorted({each for base in own for each in vars(base) if not each.startswith("_")}):
                function = getattr(found, method, None)
                yield f"{path}.{method}{parameters(function) if callable(function) else ''}"
        else:
            yield f"{path}{parameters(found)}"


def options() -> Iterator[str]:
    """Yield a line for each command, with its options."""
    root: Any = cli.parser(cli.COMMANDS)
    (commands,) = (each.choices for each in root._actions if isinstance(each, argparse._SubParsersAction))
    for name, command in sorted(commands.items()):
        flags = {
            flag for action in command._actions for flag in action.option_strings or [action.metavar or action.dest]
        }
        yield f"llmrank {name} {' '.join(sorted(map(str, flags)))}"


def surface() -> str:
    """Return the surface of the packages and of the command line."""
    return "\n".join([*lines(PACKAGES), *options()]) + "\n"


if __name__ == "__main__":
    FILE.write_text(surface(), encoding="utf-8")
