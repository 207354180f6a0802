"""The exception for wrong input."""

from __future__ import annotations

__all__ = ["GraphError"]


class GraphError(ValueError):
    """A graph, a parameter or a file is wrong, or a package or device is missing."""
