"""JSON with a checksum, in files and as text, values made ready for it, and checksums of other files."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from graphs import GraphError
from graphs.io.replacement import replace_file

__all__ = ["checked_json", "file_checksum", "json_safe", "parse_checked_json", "read_json", "write_json"]

# The key of the checksum, and how many bytes of a file are read at once.
CHECKSUM, CHUNK = "crc32", 1 << 22


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any], *, allow_nan: bool = False) -> None:
    """Write plain values as a JSON file with a checksum, which :func:`read_json` compares.

    Parameters
    ----------
    path : path-like
        Replaced completely on success, not changed on failure.
    content : mapping
        Values that JSON can hold; no key is "crc32".
    allow_nan : bool
        Whether NaN and Inf may be among them, which JSON itself does not know.

    Raises
    ------
    GraphError, OSError
        As for :func:`replace_file`.
    ValueError
        A number is NaN or Inf, and they are not allowed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(Path(folder, "file"), {"colour": "red"})
    ...     read_json(Path(folder, "file"))
    {'colour': 'red'}
    """
    with replace_file(path) as partial:
        Path(partial).write_text(checked_json(content, indent=2, allow_nan=allow_nan) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`write_json` has written.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    dict

    Raises
    ------
    GraphError
        The file is missing, or not as it was written.

    Examples
    --------
    >>> read_json("absent.json")
    Traceback (most recent call last):
    ...
    graphs.errors.GraphError: no file at absent.json
    """
    if not Path(path).is_file():
        raise GraphError(f"no file at {path}")
    return parse_checked_json(Path(path).read_bytes(), str(path))


def checked_json(content: Mapping[str, Any], *, indent: int | None = None, allow_nan: bool = False) -> str:
    """Return plain values as a JSON object that holds a checksum of them too; see :func:`write_json`.

    Parameters
    ----------
    content : mapping
    indent : int, optional
        Spaces of indentation; one line by default.
    allow_nan : bool

    Returns
    -------
    str

    Examples
    --------
    >>> checked_json({"colour": "red"})
    '{"colour": "red", "crc32": "c6e3beb5"}'
    """
    plain = json.loads(json.dumps(content, allow_nan=allow_nan))  # keys become strings, as they will be read
    return json.dumps({**plain, CHECKSUM: _checksum_of_json(plain)}, indent=indent)


def parse_checked_json(text: bytes, name: str) -> dict[str, Any]:
    """Return the values that :func:`checked_json` was given.

    Parameters
    ----------
    text : bytes
    name : str
        What the text is called at the beginning of an error message.

    Returns
    -------
    dict

    Raises
    ------
    GraphError
        The text is not as it was written.

    Examples
    --------
    >>> parse_checked_json(checked_json({"colour": "red"}).encode(), "line 1")
    {'colour': 'red'}
    """
    try:
        content = json.loads(text)
        is_whole = isinstance(content, dict) and content.pop(CHECKSUM, None) == _checksum_of_json(content)
    except (ValueError, RecursionError):
        is_whole = False
    if not is_whole:
        raise GraphError(f"{name} is damaged, or was changed after it had been written")
    return dict(content)


def _checksum_of_json(content: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def file_checksum(path: str | os.PathLike[str]) -> str:
    """Compute the CRC-32 of all bytes of a file, and their number.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    str

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "file").write_bytes(b"abc")
    ...     file_checksum(Path(folder, "file"))
    '352441c2 3'
    """
    crc, size = 0, 0
    with Path(path).open("rb") as file:
        while chunk := file.read(CHUNK):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return f"{crc:08x} {size}"


def json_safe(value: Any) -> Any:
    """Convert a value, with all that it holds, for strict JSON.

    A dataclass becomes a dict of its fields, and what JSON lacks, such as infinity, a string.

    Examples
    --------
    >>> json_safe({"perplexity": float("inf"), "widths": (3, 4)})
    {'perplexity': 'inf', 'widths': [3, 4]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): json_safe(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    # Scorers and pruners of third parties may hold attributes of any type.
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
