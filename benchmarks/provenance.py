"""Provenance of results: machine, versions, date and command."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from llmrank.pipeline.descriptions import environment


def provenance(**more: Any) -> dict[str, Any]:
    """Return machine, versions, date and command line."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "command": shlex.join(
            ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *map(_without_directory, sys.argv[1:])]
        ),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **environment(),
        **more,
    }


def _without_directory(argument: str) -> str:
    """Return the last part of an absolute path, because directories differ between machines."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def cpu_name() -> str:
    """Return the name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
