"""Repairs: a bias, or new output weights of the kept neurons, make up for the removed ones without training.

Both look at one output map at a time, y = W x + b with x the hidden neurons, of which some are kept (K) and some
removed (R), and at the first and second moments of x over the calibration tokens. What the residual stream behind the map
lacks compared with the dense model may be part of what the map is fitted to.

Sources: the bias is FLAP's (An et al. 2023, arXiv 2312.11983); the least squares are those of Optimal Brain Surgeon
(Hassibi and Stork 1993) for a whole set of neurons at once, with a ridge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from llmrank.errors import OptionError
from llmrank.surgery.repair.moments import Centre, Moments

__all__ = ["BaseRepair", "BiasRepair", "LeastSquaresRepair", "RepairedMap"]

# Four dampings a decade, between the ends that nothing lies beyond: an undamped fit, and weights left as they were cut.
DAMPINGS = (0.0, *(10.0 ** (quarter / 4) for quarter in range(-24, 17)), math.inf)
# Where no token is held out to choose by. It trusts the fit about as much as the map that was cut.
CAUTIOUS_DAMPING = 1.0
# Fewer leave much of what least squares can give, on the models that were measured.
TOKENS_PER_NEURON = 4
TARGETS = ("stream", "output")


@dataclass(frozen=True, eq=False)
class RepairedMap:
    """The new weights of an output map.

    Attributes
    ----------
    weight : (out, in) tensor or None
        Zero in the columns of removed neurons. A repair solves it in float64; a repaired model holds it in the dtype of the map.
        None where the map holds it already.
    bias : (out,) tensor or None
        None where the map has none.
    damping : float or None
        Damping of the least squares, relative to the mean square of each kept neuron; infinite where the weights are left as they
        were cut. None for other repairs.
    before, after : float or None
        Error of the map on held-out calibration tokens, as a share of the mean square of ``W x``: as it is cut, and repaired.
        The error is what the removed neurons gave, and with target "stream" what the stream lacked already. None where no
        token was held out.
    target : {"output", "stream"}
        What the map was fitted to: its own outputs, or what brings the residual stream behind it back to that of the dense
        model.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    damping: float | None
    before: float | None
    after: float | None
    target: Literal["output", "stream"] = "output"

    def to(self, like: torch.Tensor) -> RepairedMap:
        """Convert to the dtype and device of a tensor."""
        bias = None if self.bias is None else self.bias.to(like)
        return replace(self, weight=None if self.weight is None else self.weight.to(like), bias=bias)


class BaseRepair:
    """Base class of all repairs. Override :meth:`solve`.

    Attributes
    ----------
    needs_bias : bool
        Whether the output map must have a bias.
    """

    needs_bias = False

    @property
    def follows(self) -> bool:
        """Whether the repair needs the dense model's residual stream, to know what the stream of the cut model lacks."""
        return False

    @property
    def reselects(self) -> bool:
        """Whether the kept neurons of a layer are chosen anew, as many as planned, once the moments are known."""
        return False

    def solve(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        keep: torch.Tensor,
        fit: Moments,
        held_out: Moments | None,
    ) -> RepairedMap:
        """Compute the map that replaces ``weight @ x + bias`` when only the kept neurons are left.

        Parameters
        ----------
        weight : (out, in) float64 tensor
        bias : (out,) float64 tensor or None
            None where the map has none, and can have none.
        keep : (in,) bool tensor
        fit : Moments
            Moments of the calibration tokens to fit to.
        held_out : Moments or None
            Moments of other tokens, to choose and to judge by; None where there are none.

        Returns
        -------
        RepairedMap
            In float64.
        """
        raise NotImplementedError(f"{type(self).__name__} must override solve()")

    def tokens_wanted(self, kept: int) -> int:  # noqa: ARG002 -- for repairs that are fitted to every kept neuron
        """Return how many calibration tokens a layer takes that keeps so many neurons; 0 where few do as well."""
        return 0

    def parameters(self) -> dict[str, Any]:
        """Return the settings, for reports."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class BiasRepair(BaseRepair):
    """Add what the removed neurons gave on average to the bias: ``b + W_R mean_R``.

    Examples
    --------
    >>> moments = Moments.of(torch.tensor([[1.0, 2.0], [1.0, 4.0]]))
    >>> weight, keep = torch.tensor([[1.0, 1.0]]).double(), torch.tensor([True, False])
    >>> BiasRepair().solve(weight, torch.zeros(1).double(), keep, moments, None).bias
    tensor([3.], dtype=torch.float64)
    """

    needs_bias = True

    def solve(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        keep: torch.Tensor,
        fit: Moments,
        held_out: Moments | None,
    ) -> RepairedMap:
        """See :meth:`BaseRepair.solve`."""
        if bias is None:
            raise OptionError(
                "repair by bias needs output maps with a bias, and this model's have none nor can its configuration give them "
                "one; use repair 'lstsq', which changes their weights"
            )
        return _repaired(weight, bias, keep, torch.zeros_like(weight[:, keep]), fit, held_out, None)


@dataclass
class LeastSquaresRepair(BaseRepair):
    """Fit new weights of the kept neurons, with which the map comes as near to its target as a linear map can.

    The new weights are ``W_K + (W_R S_RK + C_K^T) (S_KK + damping * diag(S_KK))^-1``, with S the second moments of x, and C those
    of x with what the stream lacks. Both are centred where the map has a bias, which then takes up the difference of the means.
    The ridge is in proportion to the mean square of each kept neuron, because the activations of some neurons are many times
    larger than those of others. Solved in float64; where S_KK is singular and undamped, the smallest solution is taken, each
    neuron measured in its own scale.

    Parameters
    ----------
    damping : float or "auto"
        "auto" takes for each map the damping with the smallest error on the held-out tokens: 0, 1e-6 to 1e4, or infinite, which
        leaves its weights as they were cut (a bias takes up the means all the same). Without held-out tokens it is 1.
    target : {"stream", "output"}
        "output" fits the map to its old outputs for what it reads now (C = 0). "stream" fits it to what brings the residual
        stream behind it back to that of the dense model, and so makes up for what earlier layers lost. "stream" costs a further
        pass, and is possible where a block adds what its FFN returns to the stream as it is; elsewhere, as with norms behind the
        FFN or in an encoder-decoder model, "output" is used instead.
    reselect : bool
        Choose anew which neurons are kept, as many of each layer as the pruner kept: by the same score, with
        :meth:`Moments.unexplained`, the part of a neuron's activation that the other neurons do not explain, in place of its
        activation. A neuron that others can replace is cheap to remove once they do. With target "stream" the moments are those
        of the dense model, else of the model that is being cut.

    Notes
    -----
    Cost: an eigen-decomposition of the (kept, kept) matrix for "auto", which makes every damping cost O(kept^2) only; a Cholesky
    factorisation for a given damping.

    Examples
    --------
    Neuron 2 is the sum of 0 and 1, so that nothing is lost without it:

    >>> x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> moments = Moments.of(torch.cat([x, x.sum(1, keepdim=True)], dim=1))
    >>> weight, keep = torch.tensor([[1.0, 2.0, 10.0]]).double(), torch.tensor([True, True, False])
    >>> LeastSquaresRepair(damping=0.0).solve(weight, None, keep, moments, None).weight.round(decimals=9)
    tensor([[11., 12.,  0.]], dtype=torch.float64)
    """

    damping: float | str = "auto"
    target: str = "stream"
    reselect: bool = False

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise OptionError(f"unknown target {self.target!r}; expected one of {', '.join(TARGETS)}")
        number = isinstance(self.damping, (int, float)) and not isinstance(self.damping, bool)
        if self.damping != "auto" and not (number and 0.0 <= float(self.damping) < math.inf):
            raise OptionError(f"damping must be 'auto' or a finite number >= 0, got {self.damping!r}")

    @property
    def follows(self) -> bool:
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
        # A bias takes up the means of the tokens that are fitted to.
        centre = None if bias is None else fit.centre
        system = _System.of(weight, keep, fit, centre)
        if self.damping != "auto":
            damping = float(self.damping)
            change = system.solve(damping)
        elif held_out is None:
            damping = CAUTIOUS_DAMPING
            change = system.solve(damping)
        else:
            damping, change = system.solve_best(_System.of(weight, keep, held_out, centre))
        return _repaired(weight, bias, keep, change, fit, held_out, damping)


@dataclass(frozen=True, eq=False)
class _System:
    """The normal equations of one map.

    Attributes
    ----------
    inner : (kept, kept) float64 tensor
        S_KK.
    right : (kept, out) float64 tensor
        S_KR W_R^T + C_K: moments of the kept neurons with what is to be made up for.
    """

    inner: torch.Tensor
    right: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, keep: torch.Tensor, moments: Moments, centre: Centre | None) -> _System:
        right = moments.covariance(keep, ~keep, centre) @ weight[:, ~keep].T
        cross, _ = moments.lacking(centre)
        if cross is not None:
            right += cross[keep]
        return cls(moments.covariance(keep, keep, centre), right)

    @property
    def scale(self) -> torch.Tensor:
        """One over the root mean square of each kept neuron, (kept,); 0 for a neuron that is always 0."""
        square = self.inner.diagonal().clamp_min(0.0)
        return torch.where(square > 0.0, square.rsqrt(), 0.0)

    def scaled(self, scale: torch.Tensor) -> _System:
        """Measure every neuron in units of `scale`; overwrites these moments."""
        return _System(self.inner.mul_(scale[:, None]).mul_(scale), self.right.mul_(scale[:, None]))

    def solve(self, damping: float) -> torch.Tensor:
        """What is added to the kept columns, (out, kept), by Cholesky factorisation; overwrites the moments."""
        scale = self.scale
        scaled = self.scaled(scale)
        scaled.inner.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(scaled.inner)
        if not int(failed):
            return (torch.cholesky_solve(scaled.right, factor) * scale[:, None]).T
        scaled.inner.diagonal().sub_(damping)
        values, vectors = torch.linalg.eigh(scaled.inner)
        inverse = _inverse(values, damping)
        change: torch.Tensor = (vectors @ (inverse[:, None] * (vectors.T @ scaled.right)) * scale[:, None]).T
        return change

    def solve_best(self, held_out: _System) -> tuple[float, torch.Tensor]:
        """The damping with the smallest error on held-out tokens, and what it adds to the kept columns, (out, kept).

        In the eigenvectors of the scaled S_KK the solution for a damping is a diagonal matrix times fixed coefficients, and the
        held-out error a quadratic form of that diagonal, so that a damping costs O(kept^2). Overwrites all moments.
        """
        scale = self.scale
        scaled, judge = self.scaled(scale), held_out.scaled(scale)
        values, vectors = torch.linalg.eigh(scaled.inner)
        coefficients = vectors.T @ scaled.right
        # The error but for a constant is d^T curvature d - 2 slope^T d, with d = 1 / (values + damping).
        slope = (coefficients * (vectors.T @ judge.right)).sum(1)
        curvature = (vectors.T @ judge.inner @ vectors).mul_(coefficients @ coefficients.T)

        def error(damping: float) -> float:
            d = _inverse(values, damping)
            return float(d @ (curvature @ d) - 2.0 * (slope @ d))

        damping = min(DAMPINGS, key=error)
        solved = vectors @ (_inverse(values, damping)[:, None] * coefficients)
        return damping, (solved * scale[:, None]).T


def _inverse(values: torch.Tensor, damping: float) -> torch.Tensor:
    """One over the damped eigenvalues; 0 for those that are 0 but for round-off."""
    floor = values.max().clamp_min(0.0) * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > floor, 1.0 / (values + damping), 0.0)


def _error(
    weight: torch.Tensor, keep: torch.Tensor, change: torch.Tensor, moments: Moments, centre: Centre | None
) -> float:
    """Mean square of W_R x_R + e - change x_K, with x and e taken less a centre."""
    lost = torch.empty_like(weight)
    lost[:, keep], lost[:, ~keep] = -change, weight[:, ~keep]
    cross, square = moments.lacking(centre)
    mixed = 0.0 if cross is None else float((lost * cross.T).sum())
    return moments.energy(lost, centre) + 2.0 * mixed + square


def _repaired(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    keep: torch.Tensor,
    change: torch.Tensor,
    fit: Moments,
    held_out: Moments | None,
    damping: float | None,
) -> RepairedMap:
    new = torch.zeros_like(weight)
    new[:, keep] = weight[:, keep] + change
    before = after = None
    if held_out is not None:
        whole = held_out.energy(weight)
        errors = (
            _error(weight, keep, torch.zeros_like(change), held_out, None),
            _error(weight, keep, change, held_out, None if bias is None else fit.centre),
        )
        before, after = (error / whole if whole else 0.0 for error in errors)
    if bias is not None:
        mean, lack = fit.centre
        bias = bias + weight[:, ~keep] @ mean[~keep] - change @ mean[keep]
        bias = bias if lack is None else bias + lack
    target: Literal["output", "stream"] = "output" if fit.lack is None else "stream"
    return RepairedMap(new, bias, damping, before, after, target)
