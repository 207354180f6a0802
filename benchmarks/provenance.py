"""What every result states: machine, versions, time and the command that made it."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from llmrank.report import environment


def provenance(**more: Any) -> dict[str, Any]:
    """Machine, versions, date and command line."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "command": " ".join(
            ["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *map(_without_directory, sys.argv[1:])]
        ),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **environment(),
        **more,
    }


def _without_directory(argument: str) -> str:
    """Results travel, directories do not: of an absolute path the last part."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def cpu_name() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write(path: Path, content: str | dict[str, Any]) -> None:
    """Write a result, replacing the file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    text = content if isinstance(content, str) else json.dumps(content, indent=1) + "\n"
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    print(f"wrote {path}")
