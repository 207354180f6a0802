"""What a command has written, file by file, without what differs from run to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["Contents", "contents", "missing_siblings"]

# The ends of the names of what differs from run to run: times, and checksums of contents that may hold times.
VARY = ("seconds", "crc32")
Contents = dict[str, Any]


def contents(output: Path) -> Contents:
    """Return the files of an output, a file or a directory, and what is in them.

    Every file is compared byte by byte, but for times. Hidden directories, which a killed process leaves, are no part of it.
    """
    files = [output] if output.is_file() else [path for path in output.rglob("*") if path.is_file()]
    return {
        "" if path == output else str(path.relative_to(output)): _content(path)
        for path in files
        if not any(part.endswith(".partial") for part in path.relative_to(output).parts)
    }


def missing_siblings(found: Contents, whole: Contents) -> list[str]:
    """Return the files of `whole` that are missing in a subdirectory of which others are found."""
    directories = {name.rpartition("/")[0] for name in found} - {""}
    return [name for name in whole if name.rpartition("/")[0] in directories and name not in found]


def _content(path: Path) -> Any:
    """Return the bytes of a file, or what they mean where something in them differs from run to run."""
    data = path.read_bytes()
    try:
        if path.suffix == ".json":
            return _constant(json.loads(data))
        if path.suffix == ".jsonl":  # what follows the last line end is not complete
            return [_constant(json.loads(line)) for line in data.split(b"\n")[:-1]]
        if path.suffix == ".safetensors":
            return _tensors(data)
    except (TypeError, ValueError, AttributeError):
        pass
    return data


def _tensors(data: bytes) -> Any:
    """Return the metadata of a file of tensors, the values of each, and what follows them, which is nothing."""
    first = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:first])
    meta = _constant(header.pop("__metadata__", {}))
    if "meta" in meta:
        meta["meta"] = _constant(json.loads(meta["meta"]))
    ends = {name: [first + end for end in each.pop("data_offsets")] for name, each in header.items()}
    tensors = {name: (each, data[slice(*ends[name])]) for name, each in header.items()}
    return meta, _constant(tensors), data[max((end for _, end in ends.values()), default=first) :]


def _constant(plain: Any) -> Any:
    """Return plain values without those that differ from run to run."""
    if isinstance(plain, dict):
        return {name: _constant(value) for name, value in plain.items() if not name.endswith(VARY)}
    return [_constant(value) for value in plain] if isinstance(plain, list) else plain
