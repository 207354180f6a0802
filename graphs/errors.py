"""The exception for wrong input. That for failed convergence is :class:`graphs.solvers.result.ConvergenceError`."""

from __future__ import annotations

__all__ = ["GraphError"]


class GraphError(ValueError):
    """A graph, a parameter or a file is wrong.

    The message says what was expected, what came, and what to do.
    """
