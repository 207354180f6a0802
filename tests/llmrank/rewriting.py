"""Changes of what a file holds, with a checksum that is right again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from graphs.io.tensor_files import read_tensors, tensors_checksum, write_tensors
from llmrank.execution.json_files import file_checksum, read_json, write_json

__all__ = ["note_checksum", "rewrite_json", "rewrite_tensors"]


def rewrite_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Let `change` change the content of a file in place."""
    content = read_json(path)
    change(content)
    write_json(path, content, allow_nan=True)


def rewrite_tensors(path: Path, kind: str, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
    """Let ``change(meta, arrays)`` change the content of a file in place."""
    meta, arrays = read_tensors(path, kind)
    change(meta, arrays)
    write_tensors(path, arrays, meta, kind)
    note_checksum(path)


def note_checksum(path: Path) -> None:
    """Note the checksum of a file in the file beside it that holds the old one, if there is one."""
    for name, checksum in (("ranking.json", tensors_checksum), ("progress.json", file_checksum)):
        manifest = path.parent / name
        if manifest.is_file() and path.name in read_json(manifest)["files"]:
            noted = {path.name: checksum(path)}
            rewrite_json(manifest, lambda content, noted=noted: content["files"].update(noted))  # type: ignore[misc]
