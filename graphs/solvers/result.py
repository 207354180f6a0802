"""The result of a rank: its scores, how they were computed, and how exact they are."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.checks import check_count
from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray
from graphs.solvers.certificate import Certificate

__all__ = ["ConvergenceError", "DegenerateLayer", "RankResult", "StopReason"]

StopReason: TypeAlias = Literal["exact", "tolerance", "certified", "callback", "max_iter"]


@dataclass(frozen=True)
class DegenerateLayer:
    """A layer whose scores or activations were all zero, so that a rule replaced them.

    Attributes
    ----------
    layer : int
        Index of the layer.
    reason : str
        What was zero, and what replaced it.
    """

    layer: int
    reason: str


@dataclass(frozen=True, eq=False)
class RankResult:
    """The scores of a rank, with a record of the solver's steps and bounds on the error of the scores.

    Attributes
    ----------
    scores : tuple of arrays, each (n_l,) or (n_l, k)
        Scores of the nodes by layer. The scores of a layered rank sum to 1 in every layer; those of :func:`graphs.pagerank`
        sum to 1 over all layers, in each of k columns.
    names : tuple of str
        Names of the layers.
    residuals : (iterations,) float64 array
        L1 residual after every step: for layered ranks the largest over the layers, for ``pagerank`` the sum over the layers. For
        a sweep it is 0, for Gauss-Seidel an upper bound.
    layer_residuals : (iterations, layers) float64 array
        L1 change of the scores of every layer in the last application of the equation in a step. For Gauss-Seidel, the change in
        the whole step; for a sweep, 0.
    error_bounds : (iterations,) float64 array
        Proven bound on the L1 distance to the exact scores after every step, up to round-off (for layered ranks the
        largest over the layers); ``inf`` where no bound is known.
    layer_bounds : tuple of float
        The error bound of every layer after the last step.
    stop_reason : {"exact", "tolerance", "certified", "callback", "max_iter"}
        Why the solver stopped.
    tolerance : float
        The tolerance that was applied: the requested one, in float32 at least 8 eps.
    solver, backend, method : str
        Names of the solver, of the backend, and of the kind of rank.
    solver_reason : str
        Why this solver was chosen, if ``solver="auto"`` chose it; else empty.
    parameters : dict
        Parameters of the rank, such as gamma and theta.
    step_products, step_seconds : (iterations,) arrays
        The numbers of block products and of seconds from the start of the first step to the end of each step.
    setup_seconds : float
        Wall time before the first step.
    certificate : Certificate, optional
        The certificate, if the rank was computed with ``keep``.
    degenerate : tuple of DegenerateLayer
        Layers whose scores or activations were all zero and were replaced by a rule.
    labels : sequence, optional
        Labels of the nodes of a digraph, in the order of the scores.
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
    solver_reason: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    step_products: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    step_seconds: FloatArray = field(default_factory=lambda: np.zeros(0))
    setup_seconds: float = 0.0
    certificate: Certificate | None = None
    degenerate: tuple[DegenerateLayer, ...] = ()
    labels: Sequence[Hashable] | None = None

    @property
    def iterations(self) -> int:
        """Number of steps of the solver; 1 for a sweep."""
        return len(self.residuals)

    @property
    def converged(self) -> bool:
        """Whether the scores are exact, within the tolerance, or certified as required."""
        return self.stop_reason in ("exact", "tolerance", "certified")

    @property
    def error_bound(self) -> float:
        """The last of the error bounds; inf if there is none."""
        return float(self.error_bounds[-1]) if len(self.error_bounds) else math.inf

    @property
    def block_products(self) -> int:
        """Number of products of a block with a vector (or with k vectors at once) in all steps."""
        return int(self.step_products[-1]) if len(self.step_products) else 0

    @property
    def solve_seconds(self) -> float:
        """Wall time of the steps."""
        return float(self.step_seconds[-1]) if len(self.step_seconds) else 0.0

    @property
    def stacked(self) -> FloatArray:
        """All scores in one array, (nodes,) or (nodes, k)."""
        return np.concatenate(self.scores)

    def as_dict(self) -> dict[Hashable, Any]:
        """Map every node to its score, or to the list of its k scores.

        A node's key is its label if the graph has labels, else ``(layer, index)``.
        """
        if self.labels is not None:
            return dict(zip(self.labels, self.stacked.tolist(), strict=True))
        return {(layer, k): s for layer, scores in enumerate(self.scores) for k, s in enumerate(scores.tolist())}

    def top(self, layer: int, count: int = 10) -> list[tuple[int, float]]:
        """List the `count` nodes of a layer with the highest scores as (index, score), highest first.

        Raises
        ------
        GraphError
            The nodes have several scores each, or a number is out of range.
        """
        layer = check_count("layer", layer, 0, len(self.scores) - 1)
        count = check_count("count", count, 0)
        if self.scores[layer].ndim != 1:
            raise GraphError(
                f"top: expected one score per node, got {self.scores[layer].shape[1]}; select a column of the scores"
            )
        order = np.argsort(-self.scores[layer], kind="stable")[:count]
        return [(int(node), float(self.scores[layer][node])) for node in order]

    def check_convergence(self) -> RankResult:
        """Return self if the solver converged, else raise a :class:`ConvergenceError` that holds self."""
        if not self.converged:
            raise ConvergenceError(self._summary(), self)
        return self

    def _summary(self) -> str:
        residual = f"{self.residuals[-1]:.1e}" if len(self.residuals) else "none"
        state = "converged" if self.converged else "NOT converged"
        return (
            f"{self.method} {state} ({self.stop_reason}) after {self.iterations} iteration(s), residual {residual}, "
            f"tolerance {self.tolerance:.1e}, error bound {self.error_bound:.1e}"
        )

    def __repr__(self) -> str:
        return (
            f"RankResult({len(self.scores)} layers, {sum(map(len, self.scores)):,} nodes; {self._summary()}; "
            f"{self.solver} on {self.backend}, {self.block_products} block products, "
            f"{self.setup_seconds + self.solve_seconds:.3g} s)"
        )


class ConvergenceError(RuntimeError):
    """A solver stopped before it reached its tolerance, and the caller asked for an exception.

    Attributes
    ----------
    result : RankResult
        The result that did not converge: the scores of the last step, with the record of all steps.
    """

    def __init__(self, message: str, result: RankResult) -> None:
        super().__init__(message)
        self.result = result
