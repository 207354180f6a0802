"""Reads texts that a user names and that are never long: settings, items, reports of runs."""

from __future__ import annotations

import errno
from pathlib import Path

__all__ = ["read_bounded"]

# A device such as /dev/zero never ends.
LARGEST = 1 << 28


def read_bounded(path: Path, encoding: str = "utf-8") -> str:
    """Read a text of at most 256 MiB.

    Raises
    ------
    OSError
        The file cannot be read, or is larger.
    UnicodeDecodeError
        It is no text in this encoding.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(
            errno.EFBIG, f"expected at most {LARGEST >> 20} MiB, and there is more; is it the right file?", str(path)
        )
    return content.decode(encoding)
