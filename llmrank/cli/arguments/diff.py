"""What ``llmrank diff`` takes."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_diff_options"]


def add_diff_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank diff``."""
    kinds = "a directory that llmrank prune or llmrank rank has written, or a report.json"
    command.add_argument("a", metavar="A", type=Path, help=kinds)
    command.add_argument("b", metavar="B", type=Path, help="another, of the same model")
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="also write the differences, as JSON, to this file"
    )
