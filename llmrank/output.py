"""Directories of results: written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from graphs.files import current_umask
from llmrank.errors import CheckpointError

__all__ = ["check_output", "whole_directory"]


def check_output(directory: str | os.PathLike[str]) -> Path:
    """Raise unless results can be written there: absent or empty, in a writable place.

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
        The directory exists and is not empty, is a file or a broken link, or cannot be written.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as place:
    ...     check_output(Path(place) / "pruned").name
    'pruned'
    """
    path = Path(directory)
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path} is a link to a place that is not there; remove it, or choose another --output")
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; expected a directory that does not exist yet")
    if path.is_dir() and any(path.iterdir()):
        raise CheckpointError(f"{path} exists and is not empty; choose another --output, or remove it first")
    place = path.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise CheckpointError(f"{place} is a file, so nothing can be written below it; choose another --output")
    if not os.access(place, os.W_OK):
        raise CheckpointError(f"{place} is not writable; choose another --output")
    return path


@contextlib.contextmanager
def whole_directory(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a directory whose content is `directory`'s on success and vanishes on failure.

    A full disk or a kill leaves nothing half-written under the target's name. An absent target appears at once; one
    that is there and empty is filled and not replaced, for it may be a mount, a link, or where a shell stands.

    Parameters
    ----------
    directory : path-like
        Absent or empty.

    Yields
    ------
    Path
        Where to write: beside an absent target, within an empty one.

    Raises
    ------
    CheckpointError
        See :func:`check_output`.
    OSError
        The disk is full or refuses.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as place:
    ...     with whole_directory(Path(place) / "seen") as partial:
    ...         _ = (partial / "summary.json").write_text("{}")
    ...     [path.name for path in (Path(place) / "seen").iterdir()]
    ['summary.json']
    """
    target = check_output(directory)
    filled = target.is_dir()
    place = target if filled else target.parent
    place.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.absolute().name}.", suffix=".partial", dir=place))
    try:
        yield partial
        if filled:
            _move_up(partial, target)
        else:
            partial.chmod(0o777 & ~current_umask())
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_up(partial: Path, target: Path) -> None:
    """Move everything in `partial` to `target`, or nothing."""
    moved: list[Path] = []
    try:
        for entry in sorted(partial.iterdir()):
            entry.rename(target / entry.name)
            moved.append(target / entry.name)
    except BaseException:
        for entry in moved:
            entry.rename(partial / entry.name)
        raise
