"""The files that hold results: written at once, and continued by a later run of the same protocol."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance


def write(path: Path, content: str | dict[str, Any]) -> None:
    """Write a result, and replace the file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    text = content if isinstance(content, str) else json.dumps(content, indent=1) + "\n"
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    print(f"wrote {path}")


def write_results(path: Path, results: dict[str, Any], table: Callable[[dict[str, Any]], str]) -> None:
    """Write results, and beside them their table in markdown."""
    write(path, results)
    write(path.with_suffix(".md"), table(results))


# These parts of a protocol have names, which the keys of the rows contain.
NAMED = ("scorers", "topologies", "repairs")


def with_earlier_names(earlier: Any, now: Any) -> Any:
    """Return the present protocol, with the scorers, topologies and repairs that only the earlier one has added."""
    if not (isinstance(earlier, dict) and isinstance(now, dict)):
        return now
    return {
        name: {**earlier.get(name, {}), **value} if name in NAMED else with_earlier_names(earlier.get(name), value)
        for name, value in now.items()
    }


def continues(earlier: Any, now: Any) -> bool:
    """Return whether the present protocol has all of the earlier one, with the same values; it may have more."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        return earlier.keys() <= now.keys() and all(continues(value, now[name]) for name, value in earlier.items())
    # A tuple is read back from a file as a list.
    return bool(json.loads(json.dumps(now)) == earlier)


def opened(output: Path, protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a result file if it has the same protocol, with the provenance of this run added; else a new one.

    Scorers, topologies and repairs may have been added or deleted since: rows that were measured are kept.
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
