"""The command line.

The commands are those of ``llmrank --help``, and of :data:`COMMANDS`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from graphs.errors import GraphError
from llmrank.cli.arguments.shared import check_numbers, find_texts
from llmrank.cli.config import CommandParser
from llmrank.cli.demo_models import DEMO_NAME
from llmrank.cli.processes import check_processes
from llmrank.cli.result import print_result
from llmrank.cli.terminal import Terminal, add_output_options, command_output, silence_libraries
from llmrank.errors import LLMRankError, ProcessError, is_out_of_memory
from llmrank.execution.launched import launched_processes
from llmrank.version import __version__

__all__ = ["main"]

# Command -> the name of its modules, and what it does. The module in llmrank.cli.arguments has the function add_COMMAND_options.
# That in llmrank.cli.commands has run_COMMAND; it is imported when the command runs, because torch takes seconds.
COMMANDS = {
    "demo": ("prune", f"prune {DEMO_NAME} and compare it with the dense model"),
    "prune": ("prune", "prune a model and write a checkpoint"),
    "rank": ("rank", "calibrate and rank a model once, to prune it by any amount later"),
    "plan": ("plan", "show what would be removed where, and what it is expected to cost"),
    "apply": ("rank", "prune a model by a ranking or by masks"),
    "heal": ("heal", "let a pruned model learn the predictions of its dense model"),
    "predict": ("heal", "write the predictions of a dense model to a file, to heal with"),
    "sweep": ("sweep", "prune models in many ways, and measure each"),
    "inspect": ("inspect", "show the graph of a model and the scores of its neurons"),
    "evaluate": ("evaluate", "measure how good a model is, pruned or not, and how close it is to another"),
    "diff": ("diff", "show how two pruned checkpoints, or two rankings, of one model differ"),
    "export": ("export", "write a checkpoint whose layers differ in width for llama.cpp or vLLM"),
    "components": ("components", "list pipelines, scorers, pruners and repairs, or the options of one"),
    "families": ("families", "list the model types of transformers, and which of them llmrank can prune"),
}
# Options and arguments that name a file or a directory. The package shtab makes the completion of the shells from COMPLETION.
FILES = {
    "plot",
    "a",
    "against",
    "b",
    "calibration",
    "checkpoints",
    "config",
    "evaluate",
    "figure",
    "items",
    "model",
    "offload_folder",
    "output",
    "pruned",
    "ranking",
    "task_dir",
    "text",
    "tokenizer",
}
COMPLETION = {
    "bash": "_shtab_compgen_files",
    "fish": "(__fish_complete_path (commandline -ct))",
    "tcsh": "f",
    "zsh": "_files",
}
# If a run in several processes fails, process 0 prints why. The other processes wait this long before they end.
SECONDS_TO_SPEAK = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. An error is printed on standard error as a sentence; ``--debug`` prints its traceback first.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default the arguments of the process.

    Returns
    -------
    int
        The exit status: 0 after success, also if the reader of the output has gone; 1 after an unexpected error, which is a bug;
        2 after bad input, a file that cannot be read, written or fetched, or too little memory; 130 after Ctrl-C, 143 after
        SIGTERM, 129 after SIGHUP.

    Raises
    ------
    SystemExit
        0 after ``--help`` or ``--version``, 2 for invalid arguments.
    """
    try:
        return _run(_parse(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt as error:  # while arguments are parsed
        status, sentence = _status_and_sentence(error)
        Terminal(stderr=True, soft_wrap=True).say(f"llmrank: {sentence}")
        return status


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Make the streams usable, and parse the arguments."""
    # A closed stream (``>&-``) is None, and its file descriptor is free: the next file that is opened would get it.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (as long as the process)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Characters that the terminal's encoding lacks are escaped: an error here would lose the results of the command.
            stream.reconfigure(errors="backslashreplace")
    command = next((argument for argument in arguments if argument in COMMANDS), None)
    root = parser([command] if command else [])
    for argument in arguments:
        # argparse would take the value "--" for the end of the options, and set the option to an empty list.
        if argument.startswith("--") and argument.endswith("=--"):
            root.error(f"argument {argument.removesuffix('=--')}: expected a value, got '--'")
    return root.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    """Run a command whose arguments have been parsed; return the exit status."""
    rank, _ = launched_processes()
    received: list[int] = []
    if rank and sys.stdout is not None:  # only process 0 prints
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (as long as the process)
    try:
        check_numbers(options)
        # Packages are imported before signals interrupt, because compiled code may abort then, and before streams are redirected,
        # because loggers keep the stream that they find.
        check_processes(options)
        find_texts(options)
        module = importlib.import_module(f"llmrank.cli.commands.{COMMANDS[options.command][0]}")
        if "torch" in sys.modules:  # commands that only print what is known do not load it
            silence_libraries()
            sys.modules["torch"].manual_seed(getattr(options, "seed", 0))
        with command_output(options) as terminal, _signals_interrupt(received):
            run = getattr(module, f"run_{options.command}")
            result = run(options, Terminal(quiet=True) if rank else terminal)
        if getattr(options, "json", False):
            print_result(options.command, result)
        return int(result.status)
    except (Exception, KeyboardInterrupt) as error:
        if getattr(options, "debug", False):
            traceback.print_exc()
        # Code that is interrupted may raise another error in place of the interruption, such as compiled code that converts an
        # argument, or the system for a file that is closed twice. Our own errors say why they are raised.
        if received and not isinstance(error, (LLMRankError, GraphError)):
            error = KeyboardInterrupt(received[0])
        status, sentence = _status_and_sentence(error)
        # Process 0 prints the error. If process 0 has died without saying why, the others print it.
        if rank == 0 or (isinstance(error, ProcessError) and error.rank == 0 and not error.said_why):
            with contextlib.suppress(OSError):  # standard error is closed
                Terminal(stderr=True, soft_wrap=True).say(f"llmrank: {sentence}")
        if rank:  # a launcher ends all processes as soon as one has ended, and process 0 must still print the error
            time.sleep(SECONDS_TO_SPEAK)
        return status


@contextlib.contextmanager
def _signals_interrupt(received: list[int]) -> Iterator[None]:
    """Make SIGTERM and SIGHUP (a terminal closes) end a command as Ctrl-C does, so that half-written results are removed.

    The numbers of these signals, and that of Ctrl-C, are appended to `received` as they come.
    """
    usual: dict[str, Any] = {"SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL, "SIGINT": signal.default_int_handler}
    before = {getattr(signal, name): handler for name, handler in usual.items() if hasattr(signal, name)}
    # A signal that is ignored (nohup), or that has a handler already, keeps this treatment.
    before = {number: handler for number, handler in before.items() if signal.getsignal(number) is handler}
    if threading.current_thread() is not threading.main_thread():
        before = {}

    process = os.getpid()

    def interrupt(number: int, _frame: Any) -> None:
        # In a forked worker the signal has its usual effect: a pool sends a worker one SIGTERM, and waits until it has ended.
        if os.getpid() != process:
            signal.signal(number, before[number])
            os.kill(os.getpid(), number)
            return
        received.append(number)
        if number != signal.SIGINT:  # a second signal must not stop the removal of half-written results
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _status_and_sentence(error: BaseException) -> tuple[int, str]:
    """Return the exit status for an error, and the sentence to print."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + (error.args[0] if error.args else signal.SIGINT), (
            "interrupted; a checkpoint directory exists only if it is complete. To go on with a sweep, repeat the command, and "
            "so with llmrank heal --checkpoints; to go on with a run with --low-memory, repeat it with --resume. Other commands "
            "begin anew"
        )
    if is_out_of_memory(error):
        reason = f" ({error})" if str(error) else ""
        return 2, (
            f"error: not enough memory{reason}; use shorter sequences (--sequence-length), fewer sequences (--samples), "
            "smaller batches (--batch-size 1), a narrower type (--dtype bfloat16), or another --device"
        )
    if isinstance(error, (LLMRankError, GraphError, OSError)):
        return 2, f"error: {error}"
    return 1, (
        f"this is a bug in llmrank, which did not expect {type(error).__name__}: {error}; please report it to its maintainers, "
        "with the command and what it prints with --debug"
    )


def parser(names: Collection[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """Return the parser of the command line, with the options of the commands of these names."""
    # The options of `common` are accepted before the command and after it.
    common = CommandParser(add_help=False)
    add_output_options(common)
    root = argparse.ArgumentParser(
        prog="llmrank", description="Prune language models through the graph of their FFNs.", parents=[common]
    )
    root.add_argument("--version", action="version", version=f"llmrank {__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=CommandParser)
    for name, (module_name, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, parents=[common])
        if name in names:
            module = importlib.import_module(f"llmrank.cli.arguments.{module_name}")
            getattr(module, f"add_{name}_options")(command)
    for command in commands.choices.values():
        command.add_config_option()
        for action in command.options:
            if action.dest in FILES:
                action.complete = COMPLETION  # type: ignore[attr-defined]
    return root
