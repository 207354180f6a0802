"""What ``llmrank plan`` takes."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmrank.cli.arguments.shared import AMOUNT_OF, add_model_options, amount_value

__all__ = ["add_plan_options"]


def add_plan_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank plan``."""
    command.add_argument(
        "ranking", metavar="RANKING", type=Path, help="a directory that llmrank rank --losses has written"
    )
    command.add_argument("model", metavar="MODEL", help="the model that was ranked")
    command.add_argument(
        "--amount", type=amount_value, default=0.3, help="share (0.3) or number to remove of the model (%(default)s)"
    )
    command.add_argument("--amount-of", metavar="UNIT", default="parameters", help=f"{AMOUNT_OF} (%(default)s)")
    command.add_argument(
        "--pruner", metavar="COMPONENT", default="least-loss", help="least-loss, with its options (%(default)s)"
    )
    command.add_argument("--output", type=Path, metavar="FILE", help="also write the plan, as JSON, to this file")
    command.add_argument("--figure", type=Path, metavar="FILE", help="also draw it, into a .png or .svg file")
    add_model_options(command)
