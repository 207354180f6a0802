"""The errors of the graph side: wrong input, and (on request) failed convergence."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphs.solvers.result import RankResult

__all__ = ["ConvergenceError", "GraphError"]


class GraphError(ValueError):
    """A graph, a parameter or a file is not what was expected.

    The message says what was expected, what came, and what to do about it.
    """


class ConvergenceError(RuntimeError):
    """An iteration stopped before its tolerance held, and the caller asked for an exception.

    Attributes
    ----------
    result : RankResult
        The unconverged result: the last iterate with its residual trace.
    """

    def __init__(self, message: str, result: RankResult) -> None:
        super().__init__(message)
        self.result = result
