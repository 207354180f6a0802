"""RankResult: what a solver found, how, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from graphs.blocks import FloatArray
from graphs.errors import ConvergenceError

__all__ = ["Degenerate", "RankResult", "StopReason"]

StopReason: TypeAlias = Literal["exact", "tolerance", "max_iter"]


@dataclass(frozen=True)
class Degenerate:
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
    scores : tuple of arrays, each (n_l,)
        Importance by layer, every array of sum 1. A general digraph has a single layer.
    names : tuple of str
        Layer names.
    iterations : int
        Steps of the power iteration, or 1 for a sweep.
    residuals : (iterations,) float64 array
        L1 distance between consecutive iterates; for layered graphs the largest over the layers.
    converged : bool
        Whether the tolerance held or the result is exact.
    stop_reason : {"exact", "tolerance", "max_iter"}
        Why the solver stopped.
    error_bound : float
        Proven bound on the L1 distance to the fixed point (largest over the layers), round-off
        aside; ``inf`` where no bound is known.
    tolerance : float
        The tolerance that held, after the floor of the dtype.
    solver, backend, method : str
        How it was computed.
    parameters : dict
        gamma, theta and the like.
    block_products : int
        Blocks multiplied with a vector.
    setup_seconds, solve_seconds : float
        Wall time before (operators, strengths) and during the products. A sweep sets up layer by
        layer and counts all as solving.
    degenerate : tuple of Degenerate
        Layers where a fallback replaced the formula.
    labels : tuple, optional
        Node labels of a general digraph, in the order of the scores.
    """

    scores: tuple[FloatArray, ...]
    names: tuple[str, ...]
    iterations: int
    residuals: FloatArray
    converged: bool
    stop_reason: StopReason
    error_bound: float
    tolerance: float
    solver: str
    backend: str
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    block_products: int = 0
    setup_seconds: float = 0.0
    solve_seconds: float = 0.0
    degenerate: tuple[Degenerate, ...] = ()
    labels: tuple[Hashable, ...] | None = None

    @property
    def stacked(self) -> FloatArray:
        """All scores in one vector, (nodes,)."""
        return np.concatenate(self.scores)

    def as_dict(self) -> dict[Hashable, float]:
        """Score by node: label for a general digraph, else ``(layer, index)``."""
        if self.labels is not None:
            return dict(zip(self.labels, self.scores[0].tolist(), strict=True))
        return {(layer, k): float(s) for layer, scores in enumerate(self.scores) for k, s in enumerate(scores)}

    def top(self, layer: int, count: int = 10) -> list[tuple[int, float]]:
        """The `count` highest nodes of a layer as (index, score), highest first."""
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
