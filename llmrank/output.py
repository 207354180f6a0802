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

    Raises
    ------
    CheckpointError
        The directory exists and is not empty, is a file, or its parent cannot be written.
    """
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; expected a directory that does not exist yet")
    if path.is_dir() and any(path.iterdir()):
        raise CheckpointError(f"{path} exists and is not empty; choose another --output, or remove it first")
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise CheckpointError(f"{parent} is a file, so nothing can be written below it; choose another --output")
    if not os.access(parent, os.W_OK):
        raise CheckpointError(f"{parent} is not writable; choose another --output")
    return path


@contextlib.contextmanager
def whole_directory(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a directory beside `directory` that takes its place on success and vanishes on failure.

    A full disk or a kill leaves nothing half-written under the target's name.

    Parameters
    ----------
    directory : path-like
        Absent or empty.

    Raises
    ------
    CheckpointError
        See :func:`check_output`.
    OSError
        The disk is full or refuses.
    """
    target = check_output(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o777 & ~current_umask())
        if target.is_dir():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
