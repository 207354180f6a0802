"""Repair by least squares: new output weights for the kept neurons.

Source: Optimal Brain Surgeon (Hassibi and Stork 1993), for a set of neurons at once and with a ridge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from llmrank.errors import OptionError
from llmrank.surgery.repair.base_repair import BaseRepair, RepairedMap, repaired_map
from llmrank.surgery.repair.moments import Centre, Moments

__all__ = ["LeastSquaresRepair"]

# Four dampings a decade, and the two ends: an undamped fit, and kept weights that do not change.
DAMPINGS = (0.0, *(10.0 ** (quarter / 4) for quarter in range(-24, 17)), math.inf)
# For "auto" without held-out tokens: the fit and the old weights count about the same.
CAUTIOUS_DAMPING = 1.0
# With fewer tokens the measured gain was clearly smaller.
TOKENS_PER_NEURON = 4
TARGETS = ("stream", "output")


@dataclass
class LeastSquaresRepair(BaseRepair):
    """Fit new weights for the kept neurons by damped least squares, so that the output of the map comes near to its target.

    The new weights are ``W_K + (W_R S_RK + C_K^T) (S_KK + damping * diag(S_KK))^-1``, where S are the second moments of x, and
    C those of x with what the residual stream lacks. If the map has a bias, both are centred, and the bias makes up for the
    difference of the means. The equations are solved in float64. If S_KK is singular and not damped, the solution of least norm
    is taken, after each neuron is divided by its root mean square.

    Parameters
    ----------
    damping : float or "auto"
        "auto" takes for each map the damping with the smallest error on the held-out tokens: 0, 1e-6 to 1e4, or infinite, which
        leaves the kept weights unchanged (a bias still makes up for the means). Without held-out tokens it is 1.
    target : {"stream", "output"}
        "output" fits the map to its old outputs, for the inputs that it gets now (C = 0). "stream" fits it to what brings the
        residual stream behind it back to that of the dense model, and so makes up for losses in earlier layers too, at the cost
        of one more forward pass. If the block does not add the output of its FFN to the stream unchanged, as with norms behind
        the FFN, and in encoder-decoder models, "output" is used instead.
    reselect : bool
        Whether to choose anew which neurons are kept, as many in each layer as the pruner kept. They are ranked by the same
        scorer, but the norm of a neuron's activations is replaced by the part of them that the other neurons do not explain,
        :meth:`Moments.unexplained`: it costs little to remove a neuron that the repaired others replace.

    Notes
    -----
    Cost: a Cholesky factorisation of the (kept, kept) matrix, or for "auto" with held-out tokens an eigen-decomposition.

    Examples
    --------
    Neuron 2 is the sum of neurons 0 and 1, so nothing is lost without it:

    >>> x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> moments = Moments.of(torch.cat([x, x.sum(1, keepdim=True)], dim=1))
    >>> weight, keep = torch.tensor([[1.0, 2.0, 10.0]]).double(), torch.tensor([True, True, False])
    >>> LeastSquaresRepair(damping=0.0).solve(weight, None, keep, moments, None).weight.round(decimals=9)
    tensor([[11., 12.,  0.]], dtype=torch.float64)
    """

    name: ClassVar[str] = "lstsq"

    damping: float | str = "auto"
    target: str = "stream"
    reselect: bool = False

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise OptionError(f"unknown target {self.target!r}; expected one of {', '.join(TARGETS)}")
        is_number = isinstance(self.damping, (int, float)) and not isinstance(self.damping, bool)
        if self.damping != "auto" and not (is_number and 0.0 <= float(self.damping) < math.inf):
            raise OptionError(f"damping must be 'auto' or a finite number >= 0, got {self.damping!r}")

    @property
    def needs_dense_stream(self) -> bool:
        """See :class:`BaseRepair`."""
        return self.target == "stream"

    @property
    def reselects(self) -> bool:
        """See :class:`BaseRepair`."""
        return self.reselect

    def tokens_wanted(self, kept: int) -> int:
        """See :meth:`BaseRepair.tokens_wanted`."""
        return TOKENS_PER_NEURON * kept

    def solve(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        keep: torch.Tensor,
        fit: Moments,
        held_out: Moments | None,
    ) -> RepairedMap:
        """See :meth:`BaseRepair.solve`."""
        # A bias makes up for the means over the tokens to fit to.
        centre = None if bias is None else fit.centre
        equations = _NormalEquations.of(weight, keep, fit, centre)
        if self.damping == "auto" and held_out is not None:
            damping, change = equations.solve_best(_NormalEquations.of(weight, keep, held_out, centre))
        else:
            damping = CAUTIOUS_DAMPING if self.damping == "auto" else float(self.damping)
            change = equations.solve(damping)
        return repaired_map(weight, bias, keep, change, fit, held_out, damping)


@dataclass(frozen=True, eq=False)
class _NormalEquations:
    """The normal equations of one map: ``gram @ change.T = right``."""

    gram: torch.Tensor  # S_KK, (kept, kept)
    right: torch.Tensor  # S_KR W_R^T + C_K, (kept, out): moments of the kept neurons with what the output lacks

    @classmethod
    def of(cls, weight: torch.Tensor, keep: torch.Tensor, moments: Moments, centre: Centre | None) -> _NormalEquations:
        right = moments.covariance(keep, ~keep, centre) @ weight[:, ~keep].T
        cross, _ = moments.missing_moments(centre)
        if cross is not None:
            right += cross[keep]
        return cls(moments.covariance(keep, keep, centre), right)

    @property
    def scale(self) -> torch.Tensor:
        """(kept,): one over the root of each diagonal entry of the Gram matrix; 0 where the entry is 0."""
        square = self.gram.diagonal().clamp_min(0.0)
        return torch.where(square > 0.0, square.rsqrt(), 0.0)

    def scaled(self, scale: torch.Tensor) -> _NormalEquations:
        """Multiply every neuron by its entry of `scale`; this overwrites the tensors of these equations."""
        return _NormalEquations(self.gram.mul_(scale[:, None]).mul_(scale), self.right.mul_(scale[:, None]))

    def solve(self, damping: float) -> torch.Tensor:
        """Return the change of the kept columns, (out, kept), by Cholesky factorisation; this overwrites the equations."""
        scale = self.scale
        scaled = self.scaled(scale)
        scaled.gram.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(scaled.gram)
        if not int(failed):
            return (torch.cholesky_solve(scaled.right, factor) * scale[:, None]).T
        scaled.gram.diagonal().sub_(damping)
        values, vectors = torch.linalg.eigh(scaled.gram)
        inverse = _inverse(values, damping)
        change: torch.Tensor = (vectors @ (inverse[:, None] * (vectors.T @ scaled.right)) * scale[:, None]).T
        return change

    def solve_best(self, held_out: _NormalEquations) -> tuple[float, torch.Tensor]:
        """Return the damping with the smallest error on held-out tokens, and its change of the kept columns, (out, kept).

        In the basis of eigenvectors of the scaled S_KK the solution for a damping is a diagonal matrix times fixed
        coefficients, and the held-out error is a quadratic function of that diagonal. Both systems of equations are overwritten.
        """
        scale = self.scale
        scaled, scaled_held_out = self.scaled(scale), held_out.scaled(scale)
        values, vectors = torch.linalg.eigh(scaled.gram)
        coefficients = vectors.T @ scaled.right
        # Up to a constant the error is d^T curvature d - 2 slope^T d, with d = 1 / (values + damping).
        slope = (coefficients * (vectors.T @ scaled_held_out.right)).sum(1)
        curvature = (vectors.T @ scaled_held_out.gram @ vectors).mul_(coefficients @ coefficients.T)

        def error(damping: float) -> float:
            d = _inverse(values, damping)
            return float(d @ (curvature @ d) - 2.0 * (slope @ d))

        damping = min(DAMPINGS, key=error)
        solved = vectors @ (_inverse(values, damping)[:, None] * coefficients)
        return damping, (solved * scale[:, None]).T


def _inverse(values: torch.Tensor, damping: float) -> torch.Tensor:
    """Return one over the damped eigenvalues; 0 for eigenvalues that are 0 up to round-off."""
    floor = values.max().clamp_min(0.0) * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > floor, 1.0 / (values + damping), 0.0)
