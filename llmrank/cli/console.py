"""Where a command prints, and how much: results on standard output, all else on standard error."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from graphs.io.replacement import replace_file
from llmrank.cli.progress import ProgressLog, make_progress
from llmrank.models.compat import show_no_progress_bars
from llmrank.pipeline.descriptions import json_safe

__all__ = ["QuietConsole", "add_output_options", "command_output", "print_result", "write_result"]


class QuietConsole(Console):
    """A console that prints nothing more after its reader has gone (``| head -1``). The command itself runs on.

    Names between colons stay as they are: rich would make pictures of some, and paths and specs may hold them.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Drop all further output, also what the interpreter flushes at its exit."""
        self.quiet = True
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), self.file.fileno())


def add_output_options(command: argparse.ArgumentParser) -> None:
    """Add the options that say how much is printed. Users can write them before or after the command."""
    much = command.add_mutually_exclusive_group()
    much.add_argument("--quiet", action="store_true", default=argparse.SUPPRESS, help="print nothing but errors")
    much.add_argument(
        "--verbose", action="store_true", default=argparse.SUPPRESS, help="also print what the logger llmrank says"
    )
    command.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print the result as one JSON document, and all else on standard error",
    )
    command.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="print the traceback of an error"
    )


@contextlib.contextmanager
def command_output(options: argparse.Namespace) -> Iterator[Console]:
    """Set `progress` in the options of a command, and yield the console for its tables and sentences.

    With ``--json`` these tables and sentences go to standard error, and so does what other packages print. The command puts its
    result into ``options.result``, a dict that :func:`print_result` prints.
    """
    quiet, verbose, as_json = (getattr(options, name, False) for name in ("quiet", "verbose", "json"))
    options.result = {}
    options.progress = None if quiet else ProgressLog() if verbose else make_progress()
    # Progress bars of libraries would mix with the output of the command. Their log repeats errors that are raised anyway.
    show_no_progress_bars()
    for library in ("transformers", "lm_eval"):
        logging.getLogger(library).setLevel(logging.ERROR)
    logger, handler = logging.getLogger("llmrank"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    level = logger.level
    with contextlib.ExitStack() as stack:
        if quiet:  # drops warnings and what libraries print; an error of the command is printed after this context
            nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        if verbose and not quiet:
            logger.addHandler(handler)
            logger.setLevel(logging.DEBUG)
            stack.callback(logger.setLevel, level)
            stack.callback(logger.removeHandler, handler)
        if as_json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stream = sys.stdout
        yield QuietConsole(file=stream, soft_wrap=not stream.isatty(), quiet=quiet)


def print_result(options: argparse.Namespace) -> None:
    """Print the result of a command as one JSON document on standard output, if ``--json`` asks for it."""
    if getattr(options, "json", False):
        document = json_safe({"command": options.command, **options.result})
        QuietConsole(soft_wrap=True).out(json.dumps(document, indent=2, allow_nan=False), highlight=False)


def write_result(options: argparse.Namespace) -> None:
    """Write the result of a command as JSON to the file of ``--output``, completely or not at all, if there is one."""
    if options.output is not None:
        with replace_file(options.output) as partial:
            text = json.dumps(json_safe(options.result), indent=2, allow_nan=False)
            partial.write_text(text + "\n", encoding="utf-8")
