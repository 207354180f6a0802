"""What a command has found out, as values: printed for ``--json``, and written to the file of ``--output``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from graphs.io.replacement import replace_file
from llmrank.cli.terminal import Terminal
from llmrank.execution.json_files import json_safe

__all__ = ["CommandResult", "print_result", "write_result"]


class CommandResult(NamedTuple):
    """What a command returns.

    Attributes
    ----------
    content : mapping
        What the JSON document of ``--json`` holds besides the name of the command.
    status : int
        The exit status.
    """

    content: Mapping[str, Any]
    status: int = 0


def print_result(command: str, result: CommandResult) -> None:
    """Print the result of a command as one JSON document on standard output."""
    document = json_safe({"command": command, **result.content})
    Terminal(soft_wrap=True).out(json.dumps(document, indent=2, allow_nan=False), highlight=False)


def write_result(content: Mapping[str, Any], path: Path | None) -> None:
    """Write the content of a result as JSON to a file, completely or not at all, if there is a path."""
    if path is not None:
        with replace_file(path) as partial:
            text = json.dumps(json_safe(content), indent=2, allow_nan=False)
            partial.write_text(text + "\n", encoding="utf-8")
