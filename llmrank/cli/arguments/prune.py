"""What ``llmrank demo`` and ``llmrank prune`` take."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmrank.cli.arguments.shared import (
    add_evaluation,
    add_method_options,
    add_model_options,
    add_run_options,
    directory,
)
from llmrank.cli.demo_models import DEMO_NAME

__all__ = ["add_demo_options", "add_prune_options"]


def add_demo_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank demo``."""
    group = command.add_argument_group("model and output")
    group.add_argument("--model", help=f"a model directory, hub name or .gguf file instead of {DEMO_NAME} from PyPI")
    group.add_argument(
        "--output", type=directory, default=Path("llmrank-demo"), help="directory to write (%(default)s)"
    )
    add_model_options(group)
    add_method_options(command)
    # The model needs minutes to write a text.
    command.set_defaults(evaluate=True, calibration="built-in")


def add_prune_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank prune``."""
    command.add_argument("model", metavar="MODEL", help="a directory, a hub name, or a .gguf file")
    add_run_options(command)
    add_evaluation(add_method_options(command))
