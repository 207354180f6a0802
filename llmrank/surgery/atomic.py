"""Directories of results, written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from graphs.io.replacement import LOCK, hidden_directory, remove_leftovers
from llmrank.errors import CheckpointError

__all__ = ["atomic_directory", "check_encoding", "check_output"]

# Names within the hidden directory: the directory that results are written to, and the list of its entries while they are moved.
CONTENT, JOURNAL = "content", "journal"
# If the target cannot be replaced, the hidden directory is made inside the target, under this name.
NAME_INSIDE = "filled"


def check_output(directory: str | os.PathLike[str]) -> Path:
    """Raise unless results can be written to a directory, which must be absent or empty, and in a writable place.

    If an earlier process was killed while it wrote to the directory, its remains are removed.

    Parameters
    ----------
    directory : path-like

    Returns
    -------
    Path
        `directory`.

    Raises
    ------
    CheckpointError
        The directory is not empty or cannot be written; or the path is not UTF-8, or leads to a file or a broken link.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     check_output(Path(place) / "pruned").name
    'pruned'
    """
    path = Path(directory)
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path} is a link to a place that does not exist; remove it, or choose another --output")
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; expected a directory that does not exist yet")
    check_encoding(path)
    target = path.resolve()
    remove_leftovers(target.parent, target.name)
    remove_leftovers(target, NAME_INSIDE, undo=_delete_if_incomplete)
    if path.is_dir() and any(path.iterdir()):
        raise CheckpointError(f"{path} exists and is not empty; choose another --output")
    ancestor = path.absolute()
    while not ancestor.exists():
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise CheckpointError(f"{ancestor} is a file, so nothing can be written below it; choose another --output")
    if not os.access(ancestor, os.W_OK):
        raise CheckpointError(f"{ancestor} is not writable; choose another --output")
    return path


def check_encoding(path: Path) -> None:
    """Raise a CheckpointError unless a path is valid UTF-8, because the writers of weights take no other."""
    try:
        str(path.resolve()).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"the path {str(path)!a} is not valid UTF-8; choose another path") from error


@contextlib.contextmanager
def atomic_directory(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary directory that becomes `directory` on success and is removed on failure.

    The temporary directory replaces `directory` in one rename: if the process is killed, `directory` is unchanged or complete.
    Some directories cannot be replaced, such as a mount point or the current directory. The entries are moved into them one by
    one; config.json is the last, because no loader takes a directory without it for a checkpoint. If a process is killed, the
    next call for the same `directory` removes what it left behind (not on Windows).

    Parameters
    ----------
    directory : path-like
        A directory that does not exist yet, or an empty one.

    Yields
    ------
    Path
        Where to write. All files get the permissions of a new file.

    Raises
    ------
    CheckpointError
        See :func:`check_output`; or another process has written to `directory` within the context.
    OSError
        The disk is full, or another error of the system.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     with atomic_directory(Path(place) / "seen") as partial:
    ...         _ = (partial / "summary.json").write_text("{}")
    ...     [path.name for path in (Path(place) / "seen").iterdir()]
    ['summary.json']
    """
    target = check_output(directory).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    moves_entries = target.is_dir() and not _is_replaceable(target)
    place, name = (target, NAME_INSIDE) if moves_entries else (target.parent, target.name)
    with hidden_directory(place, name) as hidden:
        partial = hidden / CONTENT
        partial.mkdir()
        yield partial
        mode = stat.S_IMODE((hidden / LOCK).stat().st_mode)
        for path in partial.rglob("*"):
            if path.is_file():
                path.chmod(mode)
        try:
            if moves_entries:
                _move_up(partial)
            else:
                if target.is_dir():
                    partial.chmod(stat.S_IMODE(target.stat().st_mode))
                partial.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise CheckpointError(
                    f"another process also wrote to {directory}; its files are left as they are; choose another --output and run "
                    "again"
                ) from error
            raise


def _is_replaceable(target: Path) -> bool:
    status = target.stat()
    return (
        os.name == "posix"
        and (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
        and os.access(target.parent, os.W_OK)
        and not _is_mount(target)
        and not target.samefile(".")
    )


def _is_mount(path: Path) -> bool:
    """Whether a path is a mount point, also one that shows a part of the same file system, which os.path.ismount overlooks."""
    if os.path.ismount(path):
        return True
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    return str(path).replace("\\", "\\134").replace(" ", "\\040") in (line.split()[4] for line in mounts)


def _move_up(partial: Path) -> None:
    """Move all entries of `partial` to the directory that holds the hidden directory, or none of them."""
    hidden, target = partial.parent, partial.parent.parent
    if any(entry != hidden for entry in target.iterdir()):
        raise FileExistsError(errno.EEXIST, "not empty any more", str(target))
    names = sorted((entry.name for entry in partial.iterdir()), key=lambda name: (name == "config.json", name))
    (hidden / JOURNAL).write_text(json.dumps(names), encoding="utf-8")
    try:
        for name in names:
            (partial / name).rename(target / name)
    finally:
        _delete_if_incomplete(hidden)


def _delete_if_incomplete(hidden: Path) -> None:
    """Delete the entries that :func:`_move_up` has moved, unless it has moved all; in both cases delete the list of entries."""
    try:
        names = json.loads((hidden / JOURNAL).read_text(encoding="utf-8"))
        left = {entry.name for entry in (hidden / CONTENT).iterdir()}
    except (OSError, ValueError):  # nothing had been moved yet
        return
    # Somebody else may have made the directory, and a list in it must not say what is deleted elsewhere.
    is_ours = isinstance(names, list) and all(isinstance(name, str) and _is_entry(name) for name in names)
    for path in [hidden.parent / name for name in names if left and name not in left] if is_ours else []:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    # If the list stayed, a later process could delete entries of the same names that others have written since.
    (hidden / JOURNAL).unlink()


def _is_entry(name: str) -> bool:
    """Whether a name is that of an entry of a directory, and leads nowhere else."""
    return name not in ("", "..") and Path(name).name == name
