"""Repair by least squares: new output weights for the kept neurons.

Source: Optimal Brain Surgeon (Hassibi and Stork 1993), for a set of neurons at once and with a ridge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from llmrank.errors import CalibrationError, OptionError, check_choice, check_type
from llmrank.repair.base_repair import BaseRepair, RepairedMap, repaired_map
from llmrank.repair.moments import N_COMBINATIONS, Centre, Moments, project_outputs

__all__ = ["LeastSquaresRepair"]

# Four dampings in each decade from 1e-6 to 1e4, and the two ends: 0 does not damp the fit, infinity keeps the weights unchanged.
FINITE_DAMPINGS = tuple(10.0 ** (quarter / 4) for quarter in range(-24, 17))
DAMPINGS = (0.0, *FINITE_DAMPINGS, math.inf)
# From this damping on, float32 is precise enough to compare errors.
SINGLE_PRECISION = 1e-2
# The damping of "auto" without held-out tokens: the fit and the old weights count about the same.
CAUTIOUS_DAMPING = 1.0
# Number of dampings that most searches try, nearly all in float32.
N_TRIED = 10
# Calibration tokens for each kept neuron that a repair should have: with fewer, the measured gain was clearly smaller.
TOKENS_PER_NEURON = 4
TARGETS = ("stream", "output")


@dataclass
class LeastSquaresRepair(BaseRepair):
    """Fit new weights for the kept neurons by damped least squares, so that the output of the map comes near to its target.

    The new weights are ``W_K + (W_R S_RK + C_K^T) (S_KK + damping * diag(S_KK))^-1``. Here K are the kept and R the removed
    neurons, S are the second moments of the neurons x, and C those of x with what the residual stream lacks. If the map has a
    bias, S and C are centred, and the bias makes up for the difference of the means. The equations are solved in float64. If S_KK
    is singular and not damped, each neuron is divided by its root mean square, and the solution of least norm is taken.

    Parameters
    ----------
    damping : float or "auto"
        "auto" takes for each map the damping with the smallest error on the held-out tokens: 0, one from 1e-6 to 1e4, or
        infinity. With infinity the kept weights are unchanged, and only a bias makes up for the means. Without held-out tokens
        "auto" takes 1.
    target : {"stream", "output"}
        "output" fits the map to its old outputs, for the inputs that it gets now (C = 0). "stream" fits the map to outputs that
        bring the residual stream behind it back to that of the dense model. So "stream" makes up for losses in earlier layers
        too, at the cost of one more forward pass unless memory can hold what the blocks return. "output" is used instead in
        encoder-decoder models, and if a block does not add the output of its FFN to the stream unchanged, because of a norm
        behind the FFN, say.
    reselect : bool
        Whether to choose again which neurons are kept, as many in each layer as the pruner kept. The neurons are ranked by the
        same scorer, but in place of the norm of a neuron's activations it uses the part of this norm that the other neurons do
        not explain, :meth:`Moments.unexplained`. It costs little to remove a neuron that the repaired others replace.

    Notes
    -----
    Cost: a Cholesky factorisation of the (kept, kept) matrix, or for "auto" with held-out tokens about 11 of them.

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

    reads_removed = False

    damping: float | str = "auto"
    target: str = "stream"
    reselect: bool = False

    def __post_init__(self) -> None:
        check_choice("target", self.target, TARGETS)
        is_number = isinstance(self.damping, (int, float)) and not isinstance(self.damping, bool)
        check_type("reselect", self.reselect, bool, "True or False")
        is_auto = isinstance(self.damping, str) and self.damping == "auto"
        if not is_auto and not (is_number and 0.0 <= float(self.damping) < math.inf):
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

    def operations(self, size: int, kept: int, outputs: int) -> float:
        """See :meth:`BaseRepair.operations`."""
        factor, read = kept**3 / 3.0, size if self.reselect else kept
        # The right side of the equations, the factor for the chosen damping, and new weights for all outputs.
        once = 2.0 * kept * (read - kept) * outputs + factor + 2.0 * kept**2 * outputs
        combined = min(outputs, N_COMBINATIONS)
        searched = factor + 4.0 * kept**2 * combined if self.damping == "auto" else 0.0
        errors = 6.0 * read**2 * combined  # the errors before and after the repair, and their scale
        return once + N_TRIED * searched / 2.0 + errors

    def solve(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        keep: torch.Tensor,
        fit: Moments,
        held_out: Moments | None,
    ) -> RepairedMap:
        """See :meth:`BaseRepair.solve`."""
        # The means over the tokens to fit to are subtracted, because the bias makes up for them.
        centre = None if bias is None else fit.centre
        equations = _NormalEquations.of(weight, keep, fit, centre)
        if self.damping == "auto" and held_out is not None:
            damping = equations.best_damping(
                _NormalEquations.of(weight, keep, held_out, centre, scale=equations.scale, projected=True).to_float32()
            )
            change = equations.solve(damping, has_factor=True)
        else:
            damping = CAUTIOUS_DAMPING if self.damping == "auto" else float(self.damping)
            change = equations.solve(damping)
        return repaired_map(weight, bias, keep, change, fit, held_out, damping)


class _NormalEquations:
    """The normal equations of one map, ``S_KK change^T = right``, for neurons that are divided by their root mean square.

    Parameters
    ----------
    gram : (kept, kept) tensor
        S_KK; overwritten.
    right : (kept, out) tensor
        ``S_KR W_R^T + C_K``, the moments of the kept neurons with what the output lacks; overwritten.
    scale : (kept,) tensor, optional
        What the neurons are multiplied by; by default one over their root mean square, and 0 for neurons that are always 0.
    """

    def __init__(self, gram: torch.Tensor, right: torch.Tensor, scale: torch.Tensor | None = None) -> None:
        if scale is None:
            square = gram.diagonal().clamp_min(0.0)
            scale = torch.where(square > 0.0, square.rsqrt(), 0.0)
        self.scale = scale
        self.gram = gram.mul_(scale[:, None]).mul_(scale)
        self.right = right.mul_(scale[:, None])

    def to_float32(self) -> _NormalEquations:
        """Convert the equations to float32, and return them; a float64 matrix of a wide layer takes a gigabyte."""
        self.gram, self.right = self.gram.float(), self.right.float()
        return self

    @classmethod
    def of(
        cls,
        weight: torch.Tensor,
        keep: torch.Tensor,
        moments: Moments,
        centre: Centre | None,
        *,
        scale: torch.Tensor | None = None,
        projected: bool = False,
    ) -> _NormalEquations:
        """Make the equations for a weight (out, n); with `projected`, for combinations of outputs (:func:`project_outputs`)."""
        removed, cross = weight[:, ~keep], moments.missing_cross(centre)
        if projected:
            removed, cross = project_outputs(removed), None if cross is None else project_outputs(cross.T).T
        right = moments.covariance(keep, ~keep, centre) @ removed.T
        if cross is not None:
            right += cross[keep]
        return cls(moments.covariance(keep, keep, centre), right, scale)

    def solve(self, damping: float, *, has_factor: bool = False) -> torch.Tensor:
        """Return the change of the kept columns, (out, kept), by Cholesky factorisation.

        `has_factor` says that the damped matrix is known to have a Cholesky factor, which then overwrites the equations.
        """
        if math.isinf(damping):
            return torch.zeros_like(self.right.T)
        solved = _solve(self.gram if has_factor else self.gram.clone(), self.right, damping)
        if solved is None and has_factor:
            raise CalibrationError(
                "the second moments of a map have no Cholesky factor in float64, but had one in float32; set a larger "
                "damping (--repair lstsq:damping=1)"
            )
        if solved is None:
            values, vectors = torch.linalg.eigh(self.gram)
            solved = vectors @ (_inverse(values, damping)[:, None] * (vectors.T @ self.right))
        return solved.mul_(self.scale[:, None]).T

    def best_damping(self, held_out: _NormalEquations) -> float:
        """Return the damping with the smallest error on held-out tokens.

        The error is taken to have one minimum. The search begins with 0.01, 1 and 100, and moves by two decades until a damping
        is better than both neighbours. Then it halves the distance of the neighbours again and again, down to a quarter of a
        decade. Cost: about 10 Cholesky factorisations, at most 14.

        Parameters
        ----------
        held_out : _NormalEquations
            The equations of the held-out tokens in float32, with the same scale, for combinations of the outputs
            (:func:`project_outputs`).
        """
        exact = (self.gram, project_outputs(self.right.T).T)
        single = (self.gram.float(), exact[1].float())
        # The error of each damping, minus the error as cut (without a repair), which an infinite damping has.
        errors = {math.inf: 0.0}

        def try_damping(damping: float) -> None:
            if damping in errors:
                return
            gram, right = single if damping >= SINGLE_PRECISION else exact
            solved = _solve(gram.clone(), right, damping)
            if solved is not None:
                solved = solved.float()
                errors[damping] = float((solved * (held_out.gram @ solved - 2.0 * held_out.right)).double().sum())

        last = len(FINITE_DAMPINGS) - 1
        centre, step = FINITE_DAMPINGS.index(1.0), 8
        while step:
            near = [min(max(k, 0), last) for k in (centre - step, centre, centre + step)]
            for k in near:
                try_damping(FINITE_DAMPINGS[k])
            best = min(near, key=lambda k: errors.get(FINITE_DAMPINGS[k], math.inf))
            if best == centre or step < 8:
                step //= 2
            centre = best
        if centre == 0:
            try_damping(0.0)
        return min(errors, key=lambda damping: errors[damping])


def _solve(gram: torch.Tensor, right: torch.Tensor, damping: float) -> torch.Tensor | None:
    """Solve ``(gram + damping I) x = right``, (kept, n), and overwrite `gram`; None if there is no Cholesky factor."""
    gram.diagonal().add_(damping)
    # LAPACK wants matrices stored by columns, as the transpose is. For any other layout, or without `out`, torch would copy the
    # matrix, which takes a gigabyte for a wide layer.
    columns = gram.T
    failed = torch.empty((), dtype=torch.int32, device=gram.device)
    torch.linalg.cholesky_ex(columns, out=(columns, failed))
    if int(failed):
        return None
    halfway = torch.linalg.solve_triangular(columns, right, upper=False)
    solved: torch.Tensor = torch.linalg.solve_triangular(columns.T, halfway, upper=True)
    return solved


def _inverse(values: torch.Tensor, damping: float) -> torch.Tensor:
    """Return one over the damped eigenvalues; 0 for eigenvalues that are 0 up to round-off."""
    floor = values.max().clamp_min(0.0) * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > floor, 1.0 / (values + damping), 0.0)
