"""Files of arrays: safetensors with a checksum, versioned, no pickle, never half-written.

The header's ``meta`` entry is JSON, its ``crc32`` entry a checksum over that text and all arrays.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from graphs.errors import GraphError

__all__ = ["current_umask", "read_tensors", "replacing", "write_tensors"]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file beside `path` that takes its place on success and vanishes on failure.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/note.txt") as partial:
    ...         _ = partial.write_text("whole")
    ...     print([path.name for path in Path(folder).iterdir()])
    ['note.txt']
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise GraphError(f"cannot write {target}: there is no directory {target.parent}; create it first")
    if target.is_dir():
        raise GraphError(f"cannot write {target}: it is a directory; expected the path of a file")
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o666 & ~current_umask())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def current_umask() -> int:
    """The permissions that new files shall not have; mkstemp and mkdtemp ignore it and make private ones.

    Examples
    --------
    >>> 0 <= current_umask() <= 0o777
    True
    """
    current = os.umask(0)
    os.umask(current)
    return current


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, npt.NDArray[Any]],
    meta: Mapping[str, Any],
    kind: str,
    version: int = 1,
) -> None:
    """Write arrays and their metadata as one safetensors file.

    Parameters
    ----------
    path : path-like
        Replaced whole on success, untouched on failure.
    tensors : mapping from str to array
    meta : mapping
        Plain values for JSON.
    kind : str
        What the file holds, in a word; readers ask for it.
    version : int
        Of that kind's format.

    Raises
    ------
    GraphError
        The directory is not there, or the path is one.
    OSError
        The disk is full or refuses.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_tensors(f"{folder}/it.safetensors", {"x": np.arange(3)}, {"made": "by hand"}, kind="toy")
    ...     print(read_tensors(f"{folder}/it.safetensors", kind="toy"))
    ({'made': 'by hand'}, {'x': array([0, 1, 2])})
    """
    text = json.dumps({**meta, "kind": kind, "version": version})
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with replacing(path) as partial:
        try:
            save_file(contiguous, partial, {"meta": text, "crc32": _checksum(text, contiguous)})
        except SafetensorError as error:
            # The library wraps what the system said (disk full, say); a caller expects an OSError.
            raise OSError(f"cannot write {path}: {error}") from error


def _checksum(text: str, tensors: dict[str, Any]) -> str:
    """CRC-32 of the metadata and of every tensor's name, dtype, shape and bytes, in order of names."""
    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype.str} {tensor.shape}".encode(), crc)
        crc = zlib.crc32(tensor, crc)
    return f"{crc:08x}"


def read_tensors(
    path: str | os.PathLike[str], kind: str, version: int = 1
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Metadata and arrays of a file written by :func:`write_tensors`.

    Raises
    ------
    GraphError
        Missing, truncated, corrupted, of another kind or version.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_tensors(f"{folder}/it.safetensors", {"x": np.arange(3)}, {}, kind="toy")
    ...     read_tensors(f"{folder}/it.safetensors", kind="graph")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: ...it.safetensors is not a graph file; ...
    """
    advice = f"expected a {kind} file written by this package; the file is damaged or something else: write it again"
    if not Path(path).is_file():
        raise GraphError(f"no {kind} file at {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            text = header.get("meta", "null")
            meta = json.loads(text)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise GraphError(f"{path} cannot be read ({error}); {advice}") from error
    if not isinstance(meta, dict) or meta.get("kind") != kind:
        raise GraphError(f"{path} is not a {kind} file; {advice}")
    if meta.get("version") != version:
        raise GraphError(
            f"{path} has format version {meta.get('version')}, this package reads {version}; "
            "upgrade the package, or write the file again"
        )
    if header.get("crc32") != _checksum(text, tensors):
        raise GraphError(f"{path} is damaged (its checksum differs); {advice}")
    return {key: value for key, value in meta.items() if key not in ("kind", "version")}, tensors
