"""What ``llmrank components`` takes."""

from __future__ import annotations

import argparse

__all__ = ["add_components_options"]


def add_components_options(command: argparse.ArgumentParser) -> None:
    """Add the argument of ``llmrank components``."""
    command.add_argument("name", metavar="NAME", nargs="?", help="the component to describe")
