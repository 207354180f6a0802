"""What the tests of the command line share: how a command is run, and refused."""

from __future__ import annotations

from typing import Any

import pytest

from llmrank import cli

SHORT = ["--samples", "2", "--sequence-length", "16"]


def run(*arguments: Any) -> int:
    """The exit status of ``llmrank ARGUMENTS``, run in this process."""
    return cli.main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """What a refused command says on standard error, as one line."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return " ".join(captured.err.split())
