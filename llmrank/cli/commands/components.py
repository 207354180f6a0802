"""``llmrank components``: list the components, or the options of one."""

from __future__ import annotations

import argparse
import inspect
import re
from typing import Any

from rich.table import Table
from rich.text import Text

from llmrank.cli.result import CommandResult
from llmrank.cli.terminal import Terminal
from llmrank.errors import OptionError
from llmrank.pipeline.registry import REGISTRIES, Registry

__all__ = ["run_components"]


def run_components(options: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run ``llmrank components``."""
    if options.name is None:
        found = {registry.kind: _summaries(registry) for registry in REGISTRIES}
        _print_all(terminal)
        return CommandResult(
            {kind: {name: {"summary": summary} for name, summary in named.items()} for kind, named in found.items()}
        )
    registries = [registry for registry in REGISTRIES if options.name in registry.names()]
    if not registries:
        names = ", ".join(name for registry in REGISTRIES for name in registry.names())
        raise OptionError(f"unknown component {options.name!r}; expected one of {names}")
    for registry in registries:
        _print_component(registry, options.name, terminal)
    return CommandResult({each.kind: {options.name: _described(each, options.name)} for each in registries})


def _summaries(registry: Registry[Any]) -> dict[str, str]:
    """Return a sentence for each component of a registry: what it is, or why it cannot be used."""

    def summary(name: str) -> str:
        try:
            return _without_markup(_summary(registry.find(name)))
        except OptionError as error:  # a component of another distribution
            return str(error)

    return {name: summary(name) for name in registry.names()}


def _print_all(terminal: Terminal) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("kind", "name", "what it is"):
        table.add_column(heading, overflow="fold")
    for registry in REGISTRIES:
        for name, summary in _summaries(registry).items():
            table.add_row(registry.kind, name, Text(summary))
    terminal.print(table)
    terminal.say("llmrank components NAME prints the options of one component.")


def _described(registry: Registry[Any], name: str) -> dict[str, Any]:
    """Return what a component is, and its options, as values for JSON."""
    options = {
        field.name: {"type": field.kind, "default": field.default, "summary": _without_markup(field.doc)}
        for field in registry.fields(name)
    }
    return {"summary": _without_markup(_summary(registry.find(name))), "options": options}


def _print_component(registry: Registry[Any], name: str, terminal: Terminal) -> None:
    component = registry.find(name)
    terminal.print(
        Text(f"{registry.kind} {name}", style="bold"), Text(f"({component.__module__}.{component.__qualname__})")
    )
    terminal.print(Text(_without_markup(_summary(component))))
    fields = registry.fields(name)
    if not fields:
        terminal.say("It has no options.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("option", "type", "default", "what it is"):
        table.add_column(heading, overflow="fold")
    for field in fields:
        default = "" if field.default in ((), []) else str(field.default).lower()
        table.add_row(field.name, Text(field.kind), Text(default), Text(_without_markup(field.doc)))
    terminal.print(table)


def _summary(component: type) -> str:
    """Return the first paragraph of a docstring, as one line."""
    return " ".join((inspect.getdoc(component) or "").split("\n\n")[0].split())


def _without_markup(text: str) -> str:
    """Return the text of a docstring without reStructuredText roles and backticks."""
    return re.sub(r":\w+:`[~\w.]*?(\w+)`", r"\1", text).replace("``", "").replace("`", "")
