"""``llmrank components``: list the components, or the options of one."""

from __future__ import annotations

import argparse
import re
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from llmrank.cli.result import CommandResult
from llmrank.cli.terminal import Terminal
from llmrank.errors import OptionError
from llmrank.pipeline.registry import REGISTRIES, Registry

__all__ = ["run_components"]


def run_components(options: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run ``llmrank components``."""
    if options.name is None:
        found = {each.kind: {name: {"summary": _summary(each, name)} for name in each.names()} for each in REGISTRIES}
        table = _table("kind", "name", "what it is")
        for kind, named in found.items():
            for name, described in named.items():
                table.add_row(kind, name, Text(described["summary"]))
        terminal.print(table)
        terminal.say("llmrank components NAME prints the options of one component.")
        return CommandResult(found)
    registries = [registry for registry in REGISTRIES if options.name in registry.names()]
    if not registries:
        names = ", ".join(name for registry in REGISTRIES for name in registry.names())
        raise OptionError(f"unknown component {options.name!r}; expected one of {names}")
    return CommandResult(
        {each.kind: {options.name: _print_component(each, options.name, terminal)} for each in registries}
    )


def _print_component(registry: Registry[Any], name: str, terminal: Terminal) -> dict[str, Any]:
    """Print what a component is, and its options; return them as values for JSON."""
    component, fields = registry.find(name), registry.fields(name)
    summary, docs = _summary(registry, name), {field.name: _without_markup(field.doc) for field in fields}
    terminal.print(
        Text(f"{registry.kind} {name}", style="bold"), Text(f"({component.__module__}.{component.__qualname__})")
    )
    terminal.print(Text(summary))
    table = _table("option", "type", "default", "what it is")
    for field in fields:
        default = "" if field.default in ((), []) else str(field.default).lower()
        table.add_row(field.name, Text(field.kind), Text(default), Text(docs[field.name]))
    terminal.print(table if fields else "It has no options.")
    options = {
        field.name: {"type": field.kind, "default": field.default, "summary": docs[field.name]} for field in fields
    }
    return {"summary": summary, "options": options}


def _table(*headings: str) -> Table:
    return Table(*(Column(heading, overflow="fold") for heading in headings), box=None, pad_edge=False)


def _summary(registry: Registry[Any], name: str) -> str:
    """Return what a component is, the first paragraph of its docstring as one line, or why it cannot be used."""
    try:
        described = registry.doc(name)
    except OptionError as error:  # a component of another distribution
        return str(error)
    return _without_markup(" ".join(described.split("\n\n")[0].split()))


def _without_markup(text: str) -> str:
    """Return the text of a docstring without reStructuredText roles and backticks."""
    return re.sub(r":\w+:`[~\w.]*?(\w+)`", r"\1", text).replace("``", "").replace("`", "")
