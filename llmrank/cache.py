"""The directory in which llmrank keeps files for later runs."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_directory"]


def cache_directory() -> Path:
    """Return ``$LLMRANK_CACHE``, else ``$XDG_CACHE_HOME/llmrank``, else ``~/.cache/llmrank``."""
    named = os.environ.get("LLMRANK_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmrank"
