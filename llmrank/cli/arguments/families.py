"""What ``llmrank families`` takes."""

from __future__ import annotations

import argparse

__all__ = ["add_families_options"]


def add_families_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank families``."""
    command.add_argument(
        "pattern", metavar="PATTERN", nargs="?", help="part of a model type, or a pattern such as 'qwen*'"
    )
