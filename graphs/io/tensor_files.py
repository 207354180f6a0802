"""Safetensors files with a version and a checksum.

In the header, ``meta`` is JSON text, and ``crc32`` is a checksum of that text and all arrays.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from graphs.errors import GraphError
from graphs.io.replacement import replace_file

__all__ = ["read_tensors", "tensors_checksum", "write_tensors"]

# The key of the checksum.
CHECKSUM = "crc32"


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, npt.NDArray[Any]],
    meta: Mapping[str, Any],
    kind: str,
    version: int = 1,
) -> None:
    """Write arrays and metadata as one safetensors file.

    Parameters
    ----------
    path : path-like
        Replaced completely on success, not changed on failure.
    tensors : mapping from str to array
    meta : mapping
        Plain values that JSON can hold.
    kind, version : str, int
        One word for what the file holds, and the version of its format.

    Raises
    ------
    GraphError
        As for :func:`replace_file`.
    OSError
        The disk is full, or the system refuses.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_tensors(Path(folder, "file"), {"a": np.arange(3)}, {"colour": "red"}, "example")
    ...     read_tensors(Path(folder, "file"), "example")
    ({'colour': 'red'}, {'a': array([0, 1, 2])})
    """
    text = json.dumps({**meta, "kind": kind, "version": version})
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    with replace_file(path) as partial:
        try:
            save_file(contiguous, partial, {"meta": text, CHECKSUM: _checksum(text, contiguous)})
        except SafetensorError as error:
            # safetensors turns errors of the system, such as a full disk, into its own; callers expect an OSError.
            raise OSError(f"cannot write {path}: {error}") from error
        _sort_header(Path(partial))


def _sort_header(path: Path) -> None:
    """Sort the metadata in a header, which safetensors writes in random order, so that equal contents give equal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))


def _checksum(text: str, tensors: dict[str, Any]) -> str:
    """Compute the CRC-32 of the metadata and of every tensor's name, dtype, shape and bytes, in order of names."""
    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype.str} {tensor.shape}".encode(), crc)
        crc = zlib.crc32(tensor, crc)
    return f"{crc:08x}"


def read_tensors(
    path: str | os.PathLike[str], kind: str, version: int = 1
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Read the metadata and the arrays of a file written by :func:`write_tensors`.

    Parameters
    ----------
    path : path-like
    kind, version : str, int
        As for :func:`write_tensors`; no other kind or version is read.

    Returns
    -------
    meta : dict
        Without kind and version.
    tensors : dict from str to array
        In the shapes and dtypes in which they were written. Memory: the size of the file, even if its header claims more.

    Raises
    ------
    GraphError
        The file is missing, truncated, corrupted, or of another kind or version.

    Examples
    --------
    >>> read_tensors("absent.safetensors", "example")
    Traceback (most recent call last):
    ...
    graphs.errors.GraphError: no example file at absent.safetensors
    """
    advice = f"expected a {kind} file written by this package; the file is damaged or something else: write it again"
    if not Path(path).is_file():
        raise GraphError(f"no {kind} file at {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            text = header.get("meta", "null")
            meta = json.loads(text)
            # Kind and version are checked before the arrays are read, because the arrays may be large.
            if not isinstance(meta, dict) or meta.get("kind") != kind:
                raise GraphError(f"{path} is not a {kind} file; {advice}")
            if meta.get("version") != version:
                raise GraphError(
                    f"{path} has format version {meta.get('version')}, this package reads {version}; "
                    "upgrade the package, or write the file again"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except GraphError:
        raise
    except (
        *(SafetensorError, OSError, RecursionError, ValueError),
        # safetensors raises these for dtypes that numpy does not know.
        *(AttributeError, LookupError, TypeError),
    ) as error:
        raise GraphError(f"{path} cannot be read ({error}); {advice}") from error
    if header.get(CHECKSUM) != _checksum(text, tensors):
        raise GraphError(f"{path} is damaged (its checksum differs); {advice}")
    return {key: value for key, value in meta.items() if key not in ("kind", "version")}, tensors


def tensors_checksum(path: str | os.PathLike[str]) -> str | None:
    """Return the checksum in the header of a file of :func:`write_tensors`, without reading the arrays; None if there is none.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    str or None

    Raises
    ------
    GraphError
        The file is missing, or its header cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_tensors(Path(folder, "file"), {"a": np.arange(3, dtype=np.int64)}, {}, "example")
    ...     tensors_checksum(Path(folder, "file"))
    '8a585b1b'
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get(CHECKSUM)
    except (SafetensorError, OSError) as error:
        raise GraphError(f"{path} cannot be read ({error})") from error
