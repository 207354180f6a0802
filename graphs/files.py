"""Files of arrays: safetensors with a checksum, versioned, no pickle, never half-written.

The header's ``meta`` entry is JSON, its ``crc32`` entry a checksum over that text and all arrays.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
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
    """A temporary file beside `path` that takes its place on success and vanishes on failure.

    Parameters
    ----------
    path : path-like
        A file or what is to become one. A symbolic link stays one, and what it leads to is replaced. An old file leaves its
        permissions to the new one; otherwise they are those of any new file.

    Yields
    ------
    Path
        Empty, to be written; whoever reads `path` sees the old file until the block has ended.

    Raises
    ------
    GraphError
        The directory is not there, or the path is a directory, a device or a pipe.
    OSError
        The system refuses.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "file")) as partial:
    ...         _ = partial.write_text("all of it")
    ...     Path(folder, "file").read_text()
    'all of it'
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise GraphError(f"cannot write {path}: there is no directory {target.parent}; create it first")
    if target.exists() and not target.is_file():
        what = "a directory" if target.is_dir() else "a device or a pipe"
        raise GraphError(f"cannot write {path}: it is {what}; expected the path of a file")
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~current_umask()
    # Names may be as long as the system allows; this one is longer than the target's.
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:40]}.", suffix=".partial", dir=target.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(mode)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def current_umask() -> int:
    """The permissions that new files shall not have; mkstemp and mkdtemp ignore it and make private ones.

    Returns
    -------
    int
        Bits, such as 0o022.

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
        As :func:`replacing`.
    OSError
        The disk is full or refuses.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_tensors(Path(folder, "file"), {"a": np.arange(3)}, {"colour": "red"}, "example")
    ...     read_tensors(Path(folder, "file"), "example")
    ({'colour': 'red'}, {'a': array([0, 1, 2])})
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

    Parameters
    ----------
    path : path-like
    kind : str
        What the file shall hold.
    version : int
        Of that kind's format; no other is read.

    Returns
    -------
    meta : dict
        Without kind and version.
    tensors : dict from str to array
        In the shapes and dtypes in which they were written. Memory: the size of the file, whatever its header claims.

    Raises
    ------
    GraphError
        Missing, truncated, corrupted, of another kind or version.

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
            # Before the arrays are read: they may be those of a whole model.
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
        # Types that numpy does not know.
        *(AttributeError, LookupError, TypeError),
    ) as error:
        raise GraphError(f"{path} cannot be read ({error}); {advice}") from error
    if header.get("crc32") != _checksum(text, tensors):
        raise GraphError(f"{path} is damaged (its checksum differs); {advice}")
    return {key: value for key, value in meta.items() if key not in ("kind", "version")}, tensors
