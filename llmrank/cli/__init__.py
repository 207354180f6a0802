"""The command line: ``llmrank demo | prune | inspect | evaluate | components | families``."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from graphs import GraphError
from llmrank.calibration.text.built_in import BuiltInText
from llmrank.cli.components import run_components
from llmrank.cli.evaluate import evaluate_options, run_evaluate, run_families
from llmrank.cli.inspect import add_inspect_options, run_inspect
from llmrank.cli.options import check_numbers, directory, method_options, model_options, text_source
from llmrank.cli.progress import make_progress
from llmrank.cli.prune import run_demo, run_prune
from llmrank.errors import LLMRankError, is_out_of_memory
from llmrank.models.demo_models import DEMO_NAME
from llmrank.pipeline.report import environment

__all__ = ["main"]


class QuietConsole(Console):
    """A console whose reader may go away (``llmrank prune ... | head -1``): what is being computed is still written to disk."""

    def on_broken_pipe(self) -> None:
        """Say no more, neither now nor when the interpreter flushes its streams."""
        self.quiet = True
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), self.file.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Whatever goes wrong is told in a sentence on standard error, and with ``--debug`` by its traceback too.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the process by default.

    Returns
    -------
    int
        The exit status: 0; 1 for a bug, that is an error that nobody foresaw; 2 for bad input, or where the system refuses (a
        file, or memory); 130 if interrupted, 143 by SIGTERM, 129 by SIGHUP. A reader of the output may go away.

    Raises
    ------
    SystemExit
        0 after ``--help`` or ``--version``, 2 for arguments that make no command.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # Closed streams (``>&-``) are None, and the next file that is opened would take their place.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (as long as the process)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal's encoding has no letter for is shown by its number: no reason to lose what was computed.
            stream.reconfigure(errors="backslashreplace")
    root = parser()
    for argument in arguments:
        # argparse takes the value for the end of the options, and hands on an empty list.
        if argument.startswith("--") and argument.endswith("=--"):
            root.error(f"argument {argument.removesuffix('=--')}: expected a value, got '--'")
    options = root.parse_args(arguments)
    console = QuietConsole(soft_wrap=not sys.stdout.isatty())
    # The library's own log and bars would interleave with ours; its errors arrive as exceptions.
    for library in ("transformers", "lm_eval"):
        logging.getLogger(library).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    options.progress = make_progress()
    try:
        with _signals_interrupt():
            check_numbers(options)
            torch.manual_seed(getattr(options, "seed", 0))
            status: int = options.run(options, console)
    except (Exception, KeyboardInterrupt) as error:
        if getattr(options, "debug", False):
            traceback.print_exc()
        status, sentence = _told(error)
        with contextlib.suppress(OSError):  # nobody is left to be told
            QuietConsole(stderr=True, soft_wrap=True).print(f"llmrank: {sentence}", markup=False, highlight=False)
    return status


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP of a terminal that closes, end a command as Ctrl-C does: half-written results are removed."""
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # Where someone else sees to a signal (nohup), it is left to them.
    signals = [number for number in signals if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        signals = []

    def interrupt(number: int, _frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one shall not stop the removal
        raise KeyboardInterrupt(number)

    for number in signals:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)


def _told(error: BaseException) -> tuple[int, str]:
    """The exit status that an error means, and what to say of it."""
    if isinstance(error, KeyboardInterrupt):
        return (
            128 + (error.args[0] if error.args else signal.SIGINT),
            "interrupted; a checkpoint directory is only there if it is complete",
        )
    if is_out_of_memory(error):
        reason = f" ({error})" if str(error) else ""
        return 2, (
            f"error: memory does not suffice{reason}; use shorter sequences (--sequence-length), fewer of them (--samples) or at "
            "once (--batch-size 1), a narrower type (--dtype bfloat16), or another --device"
        )
    if isinstance(error, (LLMRankError, GraphError, OSError)):
        return 2, f"error: {error}"
    return 1, (
        f"this is a bug in llmrank, which did not foresee {type(error).__name__}: {error}; please report it to its maintainers, "
        "with the command and what it prints with --debug"
    )


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    # Before the command and after it.
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of whatever goes wrong"
    )
    root = argparse.ArgumentParser(
        prog="llmrank", description="Prune language models through the graph of their FFNs.", parents=[common]
    )
    root.add_argument("--version", action="version", version=f"llmrank {environment()['llmrank']}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser(
        "demo", help=f"prune {DEMO_NAME} and show what it cost; nothing to prepare", parents=[common]
    )
    group = command.add_argument_group("model and output")
    group.add_argument("--model", help=f"a model directory, hub name or .gguf file instead of {DEMO_NAME} from PyPI")
    group.add_argument(
        "--output", type=directory, default=Path("llmrank-demo"), help="directory to write (%(default)s)"
    )
    model_options(group)
    method_options(command)
    command.set_defaults(run=run_demo, evaluate=True, pipeline="chained", calibration=BuiltInText.name)

    command = commands.add_parser("prune", help="prune a model and write a checkpoint", parents=[common])
    command.add_argument("model", metavar="MODEL", help="a directory, a hub name, or a .gguf file")
    group = command.add_argument_group("model and output")
    group.add_argument("--output", type=directory, required=True, help="directory to write; absent or empty")
    model_options(group)
    method_options(command).add_argument(
        "--evaluate",
        nargs="?",
        const=True,
        default=None,
        type=text_source,
        metavar="TEXT",
        help="perplexity before and after on a text file or dataset:NAME, or on the built-in text without TEXT; put it last or "
        "write --evaluate=TEXT",
    )
    command.set_defaults(run=run_prune)

    command = commands.add_parser("inspect", help="show the graph of a model and where its rank lies", parents=[common])
    command.add_argument("model", metavar="MODEL", nargs="?", help=f"default: {DEMO_NAME}")
    add_inspect_options(command)
    model_options(command.add_argument_group("model"))
    method_options(command, cuts=False)
    command.set_defaults(run=run_inspect, calibration=BuiltInText.name)

    command = commands.add_parser(
        "evaluate", help="how good a model is, pruned or not, and how close to another", parents=[common]
    )
    evaluate_options(command)
    model_options(command.add_argument_group("model"))
    command.set_defaults(run=run_evaluate)

    command = commands.add_parser(
        "components", help="list pipelines, scorers, pruners and repairs, or the options of one", parents=[common]
    )
    command.add_argument("name", metavar="NAME", nargs="?", help="the component to describe")
    command.set_defaults(run=run_components)

    command = commands.add_parser("families", help="list the model families that are tested", parents=[common])
    command.set_defaults(run=run_families)
    return root
