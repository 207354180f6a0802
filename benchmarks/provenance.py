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

from llmrank.pipeline.report import environment


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


# What a protocol knows by name, and what its rows are called after.
NAMED = ("scorers", "topologies", "repairs")


def with_earlier_names(earlier: Any, now: Any) -> Any:
    """The present protocol, and beside its own scorers, topologies and repairs those that only the earlier one knows."""
    if not (isinstance(earlier, dict) and isinstance(now, dict)):
        return now
    return {
        name: {**earlier.get(name, {}), **value} if name in NAMED else with_earlier_names(earlier.get(name), value)
        for name, value in now.items()
    }


def continues(earlier: Any, now: Any) -> bool:
    """Whether the earlier protocol says the same of all it names, and the present one at most names more."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        return earlier.keys() <= now.keys() and all(continues(value, now[name]) for name, value in earlier.items())
    # Tuples come back from a file as lists.
    return bool(json.loads(json.dumps(now)) == earlier)


def opened(output: Path, protocol: dict[str, Any]) -> dict[str, Any]:
    """What a result file holds already, if it has the same protocol; and this run's command and machine beside the others.

    What is known by name (scorers, topologies, repairs) may have become more since, or fewer: rows that were measured are kept.
    """
    results: dict[str, Any] = {"provenance": provenance(seed=0), "protocol": protocol}
    if output.is_file():
        earlier: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        protocol = with_earlier_names(earlier.get("protocol"), protocol)
        if "protocol" in earlier and continues(earlier["protocol"], protocol):
            earlier["protocol"] = protocol
            earlier.setdefault("resumed", []).append(results["provenance"])
            print(f"resuming {output.name}")
            return earlier
        print(f"{output.name} has another protocol and is begun anew")
    return results
