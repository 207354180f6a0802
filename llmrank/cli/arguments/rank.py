"""What ``llmrank rank`` and ``llmrank apply`` take."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmrank.cli.arguments.shared import (
    add_evaluation,
    add_method_options,
    add_run_options,
)

__all__ = ["OF_RANKING", "add_apply_options", "add_rank_options"]

OF_RANKING = "that of the ranking"
# Options that have no effect where masks are applied, because the masks say what is removed.
METHOD = ("amount", "scorer", "pipeline", "pruner", "targets", "amount_of", "repair", "form", "evaluate")


def add_rank_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank rank``."""
    command.add_argument("model", metavar="MODEL", help="a directory, a hub name, or a .gguf file")
    add_run_options(command, uploads=False)
    add_method_options(command, chooses=False, prunes=False)
    command.add_argument(
        "--losses",
        action="store_true",
        help="also measure what the model loses by more and more of each layer: llmrank plan needs it, and llmrank apply "
        "--pruner least-loss need not measure it again",
    )


def add_apply_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank apply``."""
    command.add_argument(
        "ranking", metavar="RANKING", type=Path, help="a directory that llmrank rank has written, or masks.safetensors"
    )
    command.add_argument("model", metavar="MODEL", help="the model that was ranked")
    add_run_options(command)
    add_evaluation(add_method_options(command, calibrates=False))
    command.set_defaults(scorer=OF_RANKING, pipeline=OF_RANKING, calibration=None, samples=None, sequence_length=None)
    command.set_defaults(method_defaults={name: command.get_default(name) for name in METHOD})
