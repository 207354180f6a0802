"""Where a command prints, and how much: results on standard output, all else on standard error."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from llmrank.cli.progress import ProgressLog, drop_output, make_progress
from llmrank.progress import Progress, progress_step

__all__ = ["Terminal", "add_output_options", "command_output", "silence_libraries"]


class Terminal(Console):
    """Where a command prints its tables and sentences, and shows its progress.

    After its reader has gone (``| head -1``) it prints nothing more, and the command itself runs on. Names between colons stay as
    they are: rich would make pictures of some, and paths and specs may hold them.

    Parameters
    ----------
    progress : callable, optional
        See :data:`llmrank.progress.Progress`; by default no progress is shown.
    errors : text file, optional
        Where a quiet terminal says what has failed.
    **options
        Those of rich's Console.
    """

    def __init__(self, progress: Progress | None = None, errors: TextIO | None = None, **options: Any) -> None:
        super().__init__(emoji=False, **options)
        self.progress, self._errors = progress, errors

    def say(self, text: str) -> None:
        """Print a text as it is, without markup and colours."""
        self.print(text, markup=False, highlight=False)

    def warn(self, sentence: str) -> None:
        """Print a warning."""
        self._stress(f"Warning: {sentence}")

    def fail(self, sentence: str) -> None:
        """Print what has failed, in a command that goes on."""
        if self.quiet and self._errors is not None:
            Terminal(file=self._errors, soft_wrap=True).say(f"llmrank: failed: {sentence}")
        self._stress(f"Failed: {sentence}")

    def _stress(self, text: str) -> None:
        self.print(Text(text, style="bold yellow"))

    def step(self, description: str) -> AbstractContextManager[None]:
        """Show the work inside the context as one step of progress."""
        return progress_step(self.progress, description)

    def on_broken_pipe(self) -> None:
        """Drop all further output, also what the interpreter flushes at its exit."""
        self.quiet = True
        drop_output(self.file)


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


def silence_libraries() -> None:
    """Turn off progress bars of libraries, which would mix with the output, and their warnings; errors are raised anyway."""
    # Imported here, because it imports torch.
    from llmrank.models.compat import show_no_progress_bars

    show_no_progress_bars()
    for library in ("transformers", "lm_eval"):
        logging.getLogger(library).setLevel(logging.ERROR)


@contextlib.contextmanager
def command_output(options: argparse.Namespace) -> Iterator[Terminal]:
    """Yield the terminal of a command.

    With ``--json`` its tables and sentences go to standard error, and so does what other packages print.
    """
    quiet, verbose, as_json = (getattr(options, name, False) for name in ("quiet", "verbose", "json"))
    logger, handler = logging.getLogger("llmrank"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    level = logger.level
    errors = sys.stderr
    with contextlib.ExitStack() as stack:
        progress = None if quiet else ProgressLog() if verbose else make_progress()
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
        yield Terminal(progress, errors, file=stream, soft_wrap=not stream.isatty(), quiet=quiet)
