"""Reads texts that a user names and that are never long: settings, items, reports."""

from __future__ import annotations

import errno
from pathlib import Path

__all__ = ["read_document"]

# A device such as /dev/zero never ends.
LARGEST = 1 << 28


def read_document(path: Path, encoding: str = "utf-8") -> str:
    """Read a text of at most 256 MiB.

    Raises
    ------
    OSError
        The file cannot be read, or is larger.
    UnicodeDecodeError
        It is no text in this encoding.

    Examples
    --------
    >>> read_document(Path("/dev/zero"))
    Traceback (most recent call last):
    ...
    OSError: [Errno 27] more than 256 MiB, which is no such file: '/dev/zero'
    """
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(errno.EFBIG, f"more than {LARGEST >> 20} MiB, which is no such file", str(path))
    return content.decode(encoding)
