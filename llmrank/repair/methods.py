"""What stands in for removed neurons: a bias, or new output weights for the neurons that stay.

Both look at one output map at a time, y = W x + b with x the hidden neurons, of which some are kept (K) and some
removed (R), and at the first and second moments of x over the calibration tokens. What the residual stream still lacks
behind the map, compared with the whole model, may be part of what the map is fitted to.

Sources: the bias is FLAP's (An et al. 2023, arXiv 2312.11983); the least squares those of Optimal Brain Surgeon
(Hassibi and Stork 1993) for a whole set of neurons at once, with a ridge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from llmrank.errors import OptionError
from llmrank.repair.moments import DAMPING, Moments

__all__ = ["BaseRepair", "BiasRepair", "LeastSquaresRepair", "RepairedMap"]

DAMPINGS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4)
TARGETS = ("stream", "output")


@dataclass(frozen=True, eq=False)
class RepairedMap:
    """What becomes of an output map.

    Attributes
    ----------
    weight : (out, in) tensor or None
        Zero in the columns of removed neurons. As solved float64, of a repaired model in the dtype of the map; None where the
        map holds it already.
    bias : (out,) tensor or None
        None where the map has none.
    damping : float or None
        Of the least squares, relative to the mean square of a kept neuron.
    before, after : float
        Mean square of what the calibration outputs miss, as a share of the mean square of ``W x``: cut, and repaired. To
        be missed there is what the removed neurons gave, and what the stream lacked already.
    target : {"output", "stream"}
        What it was fitted to: the map's own outputs, or what takes the stream behind it back to that of the whole model.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    damping: float | None
    before: float
    after: float
    target: Literal["output", "stream"] = "output"

    def to(self, like: torch.Tensor) -> RepairedMap:
        """In the dtype of a tensor, and on its device."""
        bias = None if self.bias is None else self.bias.to(like)
        return replace(self, weight=None if self.weight is None else self.weight.to(like), bias=bias)


class BaseRepair:
    """Base of all repairs. Override :meth:`solve`.

    Attributes
    ----------
    needs_bias : bool
        Whether the output map must have a bias.
    """

    needs_bias = False

    @property
    def follows(self) -> bool:
        """Whether to follow the whole model, for the moments to know what the stream lacks."""
        return False

    @property
    def reselects(self) -> bool:
        """Whether to choose anew, once the moments are known, which neurons of a layer stay; as many as planned."""
        return False

    def solve(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        keep: torch.Tensor,
        fit: Moments,
        held_out: Moments | None,
    ) -> RepairedMap:
        """The map that stands in for ``weight @ x + bias`` when only the kept neurons are left.

        Parameters
        ----------
        weight : (out, in) float64 tensor
        bias : (out,) float64 tensor or None
            None where the map has none, and can have none.
        keep : (in,) bool tensor
        fit, held_out : Moments
            Of different tokens; `held_out` is None where there are fewer than four batches.
        """
        raise NotImplementedError(f"{type(self).__name__} must override solve()")

    def parameters(self) -> dict[str, Any]:
        """The settings, for reports."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class BiasRepair(BaseRepair):
    """What the removed neurons gave on average goes into the bias: ``b + W_R mean_R``.

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
        moments = fit if held_out is None else fit + held_out
        change = torch.zeros_like(weight[:, keep])
        return _repaired(weight, bias, keep, change, moments, None)


@dataclass
class LeastSquaresRepair(BaseRepair):
    """New weights of the kept neurons, with which the map comes as near to its target as a linear map can.

    ``W_K + (W_R S_RK + C_K^T) (S_KK + lambda I)^-1`` with S the second moments of x and C those of x with what the stream
    lacks, both centred where the map has a bias (which then takes up the difference of the means), and
    lambda = damping * mean diagonal of S_KK. By Cholesky factorisation in float64; where S_KK is singular and undamped, by
    its eigenvectors.

    Parameters
    ----------
    damping : float or "auto"
        "auto" takes for each map what does best on the batches held out (every fourth), then fits to all.
    target : {"stream", "output"}
        What the map is fitted to: to its old outputs for what it reads now ("output", C = 0), or to what takes the stream
        behind it back to that of the whole model, and so makes up for what earlier layers lost ("stream"). The latter
        costs a further pass, and holds where a block adds what its FFN returns to the stream as it is; elsewhere, as
        with norms behind the FFN or in an encoder-decoder model, the former is done instead.
    reselect : bool
        Choose anew which neurons stay, as many of each layer as the pruner left: by the same score, in which what of a
        neuron's activation the others do not explain (:meth:`Moments.unexplained`) stands for its activation. A neuron
        that others can stand in for is cheap to remove once they do. With target "stream" by what the neurons do in the
        whole model, else in the one that is being cut.

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
        if self.damping != "auto" and not (number and 0.0 <= float(self.damping) < float("inf")):
            raise OptionError(f"damping must be 'auto' or a finite number >= 0, got {self.damping!r}")

    @property
    def follows(self) -> bool:
        """See :class:`BaseRepair`."""
        return self.target == "stream"

    @property
    def reselects(self) -> bool:
        """See :class:`BaseRepair`."""
        return self.reselect

    def solve(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        keep: torch.Tensor,
        fit: Moments,
        held_out: Moments | None,
    ) -> RepairedMap:
        """See :meth:`BaseRepair.solve`."""
        centred = bias is not None
        damping = DAMPING if self.damping == "auto" else float(self.damping)
        if self.damping == "auto" and held_out is not None:
            system = _normal_equations(weight, keep, fit, centred=centred)

            def missed(trial: float) -> float:
                return _missed(weight, keep, _change(*system, trial), held_out, centred=centred)

            damping = min(DAMPINGS, key=missed)
            del system
        moments = fit if held_out is None else fit + held_out
        change = _change(*_normal_equations(weight, keep, moments, centred=centred), damping)
        return _repaired(weight, bias, keep, change, moments, damping)


def _normal_equations(
    weight: torch.Tensor, keep: torch.Tensor, moments: Moments, *, centred: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """S_KK, (kept, kept), and S_KR W_R^T + C_K, (kept, out)."""
    right = moments.covariance(keep, ~keep, centred=centred) @ weight[:, ~keep].T
    cross, _ = moments.lacking(centred=centred)
    if cross is not None:
        right += cross[keep]
    return moments.covariance(keep, keep, centred=centred), right


def _change(inner: torch.Tensor, right: torch.Tensor, damping: float) -> torch.Tensor:
    """What is added to the kept columns, (out, kept)."""
    diagonal = inner.diagonal()
    ridge, undamped = damping * diagonal.mean(), diagonal.clone()
    # In place for the time being: of all that is in memory here a copy would be among the largest.
    diagonal.add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(inner)
    diagonal.copy_(undamped)
    if not int(failed):
        return torch.cholesky_solve(right, factor).T
    values, vectors = torch.linalg.eigh(inner)
    floor = values.max().clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    inverse = torch.where(values > floor, 1.0 / (values + ridge), torch.zeros_like(values))
    change: torch.Tensor = (vectors @ (inverse[:, None] * (vectors.T @ right))).T
    return change


def _missed(
    weight: torch.Tensor, keep: torch.Tensor, change: torch.Tensor, moments: Moments, *, centred: bool
) -> float:
    """Mean square of W_R x_R + e - change x_K, less its mean where `centred`."""
    lost = torch.empty_like(weight)
    lost[:, keep], lost[:, ~keep] = -change, weight[:, ~keep]
    cross, square = moments.lacking(centred=centred)
    mixed = 0.0 if cross is None else float((lost * cross.T).sum())
    return moments.energy(lost, centred=centred) + 2.0 * mixed + square


def _repaired(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    keep: torch.Tensor,
    change: torch.Tensor,
    moments: Moments,
    damping: float | None,
) -> RepairedMap:
    new = torch.zeros_like(weight)
    new[:, keep] = weight[:, keep] + change
    whole = moments.energy(weight, centred=False)
    cut = _missed(weight, keep, torch.zeros_like(change), moments, centred=False)
    left = _missed(weight, keep, change, moments, centred=bias is not None)
    if bias is not None:
        bias = bias + weight[:, ~keep] @ moments.mean[~keep] - change @ moments.mean[keep]
        if moments.lack is not None:
            bias = bias + moments.lack.total / moments.count
    target: Literal["output", "stream"] = "output" if moments.lack is None else "stream"
    return RepairedMap(new, bias, damping, cut / whole if whole else 0.0, left / whole if whole else 0.0, target)
