"""Files that are replaced completely or not at all, and the hidden directories in which they are prepared."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from graphs.errors import GraphError

try:
    import fcntl
except ImportError:  # Windows has no fcntl: nothing is locked there, and no leftover is removed
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "LOCK",
    "hidden_directory",
    "remove_leftovers",
    "replace_file",
    "take_lock",
]

LOCK = "lock"
SUFFIX = ".partial"


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
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        # Interrupted just behind os.close, rmtree closes the descriptor once more. That error may not replace the interruption.
        if isinstance(error, OSError) and isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
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
