"""The exception for wrong input; :class:`graphs.solvers.result.ConvergenceError` is the one for failed convergence."""

from __future__ import annotations

__all__ = ["GraphError"]


class GraphError(ValueError):
    """A graph, a parameter or a file is wrong, or a package or device is missing.

    The message says what was expected, what was given and, if it is not obvious, what to do.
    """
