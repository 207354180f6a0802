"""RankResult: what a solver found, how, and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray
from graphs.solvers.certificate import Certificate

__all__ = ["ConvergenceError", "DegenerateLayer", "RankResult", "StopReason"]

StopReason: TypeAlias = Literal["exact", "tolerance", "certified", "callback", "max_iter"]


@dataclass(frozen=True)
class DegenerateLayer:
    """A layer where a defined fallback replaced the formula.

    Attributes
    ----------
    layer : int
        Which layer.
    reason : str
        What was missing, in words.
    """

    layer: int
    reason: str


@dataclass(frozen=True, eq=False)
class RankResult:
    """Scores with the evidence for them.

    Attributes
    ----------
    scores : tuple of arrays, each (n_l,) or (n_l, k)
        Importance by layer. A layered rank sums to 1 in every layer; a PageRank (``pagerank``) sums
        to 1 over all layers, in each of its k columns.
    names : tuple of str
        Layer names.
    iterations : int
        Steps of the solver; 1 for a sweep.
    residuals : (iterations,) float64 array
        L1 residual of every step, of a vector of mass 1: for layered ranks the largest over the layers, for
        a PageRank the sum. Power iteration: the distance of consecutive iterates; Gauss-Seidel: a bound
        on the distance of r and F(r).
    layer_residuals : (iterations, layers) float64 array
        L1 change of every layer in every step.
    error_bounds : (iterations,) float64 array
        Proven bound on the L1 distance to the fixed point after every step (for layered ranks the
        largest over the layers), round-off aside; ``inf`` where no bound is known.
    layer_bounds : tuple of float
        The bound of every layer after the last step.
    converged : bool
        Whether the result is exact, within the tolerance, or certified as asked.
    stop_reason : {"exact", "tolerance", "certified", "callback", "max_iter"}
        Why the solver stopped.
    tolerance : float
        The tolerance that held, after the floor of the dtype.
    solver, backend, method : str
        How it was computed.
    choice : str
        Why that solver, where it was chosen by ``solver="auto"``.
    parameters : dict
        gamma, theta and the like.
    block_products : int
        Blocks multiplied with a vector (or k vectors at once), all steps together.
    step_products, step_seconds : (iterations,) arrays
        Block products and seconds since the first step, after every step.
    setup_seconds, solve_seconds : float
        Wall time before (operators, strengths) and during the steps. Layered ranks read strengths at the first visit of
        a layer and count that as solving.
    certificate : Certificate, optional
        Where ``keep`` was asked for.
    degenerate : tuple of DegenerateLayer
        Layers where a fallback replaced the formula.
    labels : tuple, optional
        Node labels of a general digraph, in the order of the scores.
    """

    scores: tuple[FloatArray, ...]
    names: tuple[str, ...]
    residuals: FloatArray
    layer_residuals: FloatArray
    error_bounds: FloatArray
    layer_bounds: tuple[float, ...]
    stop_reason: StopReason
    tolerance: float
    solver: str
    backend: str
    method: str
    choice: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    step_products: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    step_seconds: FloatArray = field(default_factory=lambda: np.zeros(0))
    setup_seconds: float = 0.0
    certificate: Certificate | None = None
    degenerate: tuple[DegenerateLayer, ...] = ()
    labels: tuple[Hashable, ...] | None = None

    @property
    def iterations(self) -> int:
        """Steps taken."""
        return len(self.residuals)

    @property
    def converged(self) -> bool:
        """Whether the result is exact, within the tolerance, or certified as asked."""
        return self.stop_reason in ("exact", "tolerance", "certified")

    @property
    def error_bound(self) -> float:
        """The bound after the last step; inf without one."""
        return float(self.error_bounds[-1]) if len(self.error_bounds) else math.inf

    @property
    def block_products(self) -> int:
        """Blocks multiplied in all steps."""
        return int(self.step_products[-1]) if len(self.step_products) else 0

    @property
    def solve_seconds(self) -> float:
        """Wall time of the steps."""
        return float(self.step_seconds[-1]) if len(self.step_seconds) else 0.0

    @property
    def stacked(self) -> FloatArray:
        """All scores in one vector, (nodes,), or (nodes, k)."""
        return np.concatenate(self.scores)

    def as_dict(self) -> dict[Hashable, Any]:
        """Score by node: label for a general digraph, else ``(layer, index)``; k scores a node as a list."""
        if self.labels is not None:
            return dict(zip(self.labels, self.stacked.tolist(), strict=True))
        return {(layer, k): s for layer, scores in enumerate(self.scores) for k, s in enumerate(scores.tolist())}

    def top(self, layer: int, count: int = 10) -> list[tuple[int, float]]:
        """The `count` highest nodes of a layer as (index, score), highest first; of a single rank."""
        if self.scores[layer].ndim != 1:
            raise GraphError(
                f"top: expected one score a node, got {self.scores[layer].shape[1]}; pick a column of scores"
            )
        order = np.argsort(-self.scores[layer], kind="stable")[:count]
        return [(int(node), float(self.scores[layer][node])) for node in order]

    def require_convergence(self) -> RankResult:
        """Return self, or raise :class:`ConvergenceError` (which carries self) if not converged."""
        if not self.converged:
            raise ConvergenceError(self._verdict(), self)
        return self

    def _verdict(self) -> str:
        residual = f"{self.residuals[-1]:.1e}" if len(self.residuals) else "none"
        state = "converged" if self.converged else "NOT converged"
        return (
            f"{self.method} {state} ({self.stop_reason}) after {self.iterations} iteration(s), residual {residual}, "
            f"tolerance {self.tolerance:.1e}, error bound {self.error_bound:.1e}"
        )

    def __repr__(self) -> str:
        return (
            f"RankResult({len(self.scores)} layers, {sum(map(len, self.scores)):,} nodes; {self._verdict()}; "
            f"{self.solver} on {self.backend}, {self.block_products} block products, "
            f"{self.setup_seconds + self.solve_seconds:.3g} s)"
        )


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
