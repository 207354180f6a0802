"""Files that are replaced completely or not at all; safetensors files with a version and a checksum, and JSON with a checksum.

In the header of a safetensors file, ``meta`` is JSON text, and ``crc32`` is a checksum of that text and all arrays.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from graphs.errors import GraphError

try:
    import fcntl
except ImportError:  # Windows has no fcntl: nothing is locked there, and no leftover is removed
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "LOCK",
    "checked_json",
    "file_checksum",
    "hidden_directory",
    "parse_checked_json",
    "read_json",
    "read_tensors",
    "remove_leftovers",
    "replace_file",
    "take_lock",
    "tensors_checksum",
    "write_json",
    "write_tensors",
]

LOCK = "lock"
SUFFIX = ".partial"
# The key of the checksum in a JSON file or in the header of a safetensors file, and how many bytes of a file are read at once.
CHECKSUM, CHUNK = "crc32", 1 << 22


@contextlib.contextmanager
def hidden_directory(directory: Path, name: str) -> Iterator[Path]:
    """Make a hidden directory in which to prepare a file or directory; it is removed when the context ends.

    A killed process leaves its hidden directory behind, and :func:`remove_leftovers` removes it later. The hidden directory holds
    a file ``lock``, which is locked as long as the context is open, so that other processes see that this process is alive. Where
    the file system has no locks, the file is not locked. The file has the permissions that any new file gets.

    Parameters
    ----------
    directory : Path
        Parent of the hidden directory.
    name : str
        Name of the file or directory; :func:`remove_leftovers` finds hidden directories by its first 40 characters.

    Yields
    ------
    Path
        The hidden directory, which holds only the lock file.

    Raises
    ------
    OSError
        The disk is full, or the system refuses.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with hidden_directory(Path(folder), "model") as place:
    ...         print([path.name for path in place.iterdir()])
    ...     print(list(Path(folder).iterdir()))
    ['lock']
    []
    """
    prefix = ".".join([_name_start(name), *_machine_hashes(), ""])
    with contextlib.ExitStack() as stack:
        lock = None
        # Another process may remove a new directory before it is locked; then the next one is made.
        while lock is None:
            place = Path(tempfile.mkdtemp(prefix=prefix, suffix=SUFFIX, dir=directory))
            stack.callback(_remove, place)
            lock = take_lock(place)
        stack.callback(os.close, lock)
        yield place


def remove_leftovers(directory: Path, name: str, undo: Callable[[Path], None] | None = None) -> None:
    """Remove the hidden directories that :func:`hidden_directory` made for a name, if their processes have died.

    Hidden directories of other machines (with another host name and another boot id) are kept: whether they are locked may not be
    visible here.

    Parameters
    ----------
    directory : Path
        Parent of the hidden directories. If it cannot be read, or its file system has no locks, nothing is removed.
    name : str
        As for :func:`hidden_directory`.
    undo : callable, optional
        Called with every hidden directory before it is removed.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with hidden_directory(Path(folder), "model") as place:
    ...         remove_leftovers(Path(folder), "model")
    ...         print(place.exists())
    True
    """
    try:
        places = [*directory.iterdir()]
    except OSError:
        return
    for place in places:
        # Four words follow the start: the two hashes of the machine, a random word and the suffix.
        start, *hashes = place.name.rsplit(".", 4)[:3]
        if start != _name_start(name) or not place.name.endswith(SUFFIX) or not {*hashes} & {*_machine_hashes()}:
            continue
        with contextlib.suppress(OSError):
            lock = take_lock(place, require_lock=True)
            if lock is None:
                continue
            try:
                if undo is not None:
                    undo(place)
                _remove(place)
            finally:
                os.close(lock)


def _remove(place: Path) -> None:
    """Remove a hidden directory; if that is interrupted, try once more and then raise the interruption."""
    try:
        shutil.rmtree(place, ignore_errors=True)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _name_start(name: str) -> str:
    """Return the start of a hidden directory's name; it is short, because systems refuse long file names."""
    return f".{name[:40]}"


def _machine_hashes() -> tuple[str, str]:
    """Return two hashes that identify this machine: one of its host name, and one of its boot id.

    The host name stays the same when the machine restarts, and all containers on the machine have the same boot id. A system
    without a boot id gives the hash of the host name twice.
    """
    host = platform.node()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        boot = host
    host_hash, boot_hash = (hashlib.blake2s(text.encode(), digest_size=4).hexdigest() for text in (host, boot))
    return host_hash, boot_hash


def take_lock(place: Path, *, require_lock: bool = False, by_process: bool = False) -> int | None:
    """Open and lock the file ``lock`` of a directory; a process gives the lock back when it closes the file, or dies.

    Parameters
    ----------
    place : Path
    require_lock : bool
        Whether to return None on a file system without locks, as if another process held the lock. Otherwise the file is opened
        there without a lock.
    by_process : bool
        Whether the lock belongs to the whole process and not to one descriptor. Then a process may take a lock that it holds
        already, and gives it back as soon as it closes any of its descriptors of the file.

    Returns
    -------
    int or None
        The descriptor of the file; None if the lock is held elsewhere, or if the directory does not exist any more.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     locks = [take_lock(Path(folder), by_process=True) for _ in range(2)]
    ...     print(None in locks)
    ...     for lock in locks:
    ...         os.close(lock)
    False
    """
    try:
        lock = os.open(place / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if fcntl is None:
            raise OSError("no locks on this system")
        (fcntl.lockf if by_process else fcntl.flock)(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another process may have removed the file between opening and locking.
        held = os.path.samestat(os.fstat(lock), (place / LOCK).stat())
    except (BlockingIOError, PermissionError, FileNotFoundError):
        held = False
    except OSError:
        held = not require_lock
    if held:
        return lock
    os.close(lock)
    return None


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` on success and is removed on failure.

    A killed process leaves its temporary file behind. The next call for the same path removes this file.

    Parameters
    ----------
    path : path-like
        If it is a symbolic link, its target is replaced. An existing file keeps its permissions.

    Yields
    ------
    Path
        An empty file to write to. Readers of `path` see the old file until the context ends.

    Raises
    ------
    GraphError
        The directory does not exist, or the path is a directory, a device or a pipe.
    OSError
        The disk is full, or the system refuses.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replace_file(Path(folder, "file")) as partial:
    ...         _ = partial.write_text("new text")
    ...     Path(folder, "file").read_text()
    'new text'
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise GraphError(f"cannot write {path}: there is no directory {target.parent}; create it first")
    if target.exists() and not target.is_file():
        file_type = "a directory" if target.is_dir() else "a device or a pipe"
        raise GraphError(f"cannot write {path}: it is {file_type}; expected the path of a file")
    remove_leftovers(target.parent, target.name)
    with hidden_directory(target.parent, target.name) as place:
        partial = place / "content"
        partial.touch()
        mode = stat.S_IMODE((target if target.exists() else partial).stat().st_mode)
        yield partial
        partial.chmod(mode)
        partial.replace(target)


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
