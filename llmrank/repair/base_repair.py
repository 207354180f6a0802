"""The base class of repairs, and the result of a repair."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

import torch

from llmrank.repair.moments import Centre, Moments, project_outputs

__all__ = ["BaseRepair", "RepairedMap", "Target", "repaired_map"]

# What a map is fitted to, see RepairedMap.
Target: TypeAlias = Literal["output", "stream"]


@dataclass(frozen=True, eq=False)
class RepairedMap:
    """The new weights of an output map.

    Attributes
    ----------
    weight : (out, in) tensor or None
        Zero in the columns of removed neurons. None if the model holds the weight already.
    bias : (out,) tensor or None
        None if the map has no bias.
    damping : float or None
        Damping of the least squares, relative to the mean square (with a bias, the variance) of each kept neuron; infinite where
        the kept weights do not change. None for other repairs.
    before, after : float or None
        Mean square error of the map on held-out tokens without and with the repair, as a share of the mean square of its target:
        the output with all neurons, and with target "stream" also what the residual stream lacks because of earlier FFNs. The
        error is the target minus the output with the kept neurons. None if no token was held out. If the map has more than 128
        outputs, random combinations of them are measured, see :func:`llmrank.repair.moments.project_outputs`.
    target : {"output", "stream"}
        Whether the map was fitted to its own outputs, or to those that give the residual stream of the dense model.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    damping: float | None
    before: float | None
    after: float | None
    target: Target = "output"

    def to(self, like: torch.Tensor) -> RepairedMap:
        """Convert to the dtype and device of a tensor."""
        bias = None if self.bias is None else self.bias.to(like)
        return replace(self, weight=None if self.weight is None else self.weight.to(like), bias=bias)


class BaseRepair:
    """Base class of all repairs. Override :meth:`solve`.

    A repair works on one output map at a time, y = W x + b, where x holds the activations of kept (K) and removed (R) neurons. It
    uses the first and second moments of x over the calibration tokens.

    Attributes
    ----------
    needs_bias : bool
        Whether the output map must have a bias. A map without one gets one if the model's configuration has an entry for it.
    reads_removed : bool
        Whether :meth:`solve` needs the moments of removed neurons. If not, it may get a map of the kept neurons alone,
        (out, kept), and `keep` is True everywhere. What the removed neurons add to the output is then part of the missing output
        of the moments, whatever the target is. A class that overrides :meth:`solve` says it again.
    """

    # The name in the registries and on the command line, which leave out classes of this package without one.
    name: ClassVar[str]

    needs_bias = False
    reads_removed = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Another way to solve may need the moments of removed neurons, even if that of the base class does not.
        if "solve" in vars(cls) and "reads_removed" not in vars(cls):
            cls.reads_removed = True

    @property
    def needs_dense_stream(self) -> bool:
        """Whether the repair needs the residual stream of the dense model."""
        return False

    @property
    def reselects(self) -> bool:
        """Whether the repair chooses anew, from the moments of a layer, which neurons the layer keeps, as many as planned."""
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
            None if the map has none and is not given one, see :attr:`needs_bias`.
        keep : (in,) bool tensor
        fit : Moments
            Moments of the calibration tokens to fit to.
        held_out : Moments or None
            Moments of the held-out tokens, by which a repair is tuned and measured; None if no token is held out.

        Returns
        -------
        RepairedMap
            In float64.
        """
        raise NotImplementedError(f"{type(self).__name__} must override solve()")

    def tokens_wanted(self, kept: int) -> int:  # noqa: ARG002 -- for subclasses
        """Return how many calibration tokens suffice for a layer that keeps `kept` neurons; 0 if any number suffices."""
        return 0

    def operations(self, size: int, kept: int, outputs: int) -> float:  # noqa: ARG002 -- for subclasses
        """Return about how many float64 operations :meth:`solve` takes; one in float32 counts half. 0 stands for no time."""
        return 0.0

    def parameters(self) -> dict[str, Any]:
        """Return the settings of the repair for reports: its public attributes."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


def repaired_map(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    keep: torch.Tensor,
    change: torch.Tensor,
    fit: Moments,
    held_out: Moments | None,
    damping: float | None,
) -> RepairedMap:
    """Make the repaired map in float64 from the change, (out, kept), of the kept columns of the weight.

    A bias, if the map has one, makes up for the mean of what the output lacks after the change.
    """
    new_weight = torch.zeros_like(weight)
    new_weight[:, keep] = weight[:, keep] + change
    before = after = None
    if held_out is not None:
        projected, projected_change = project_outputs(weight), project_outputs(change)
        scale = _square_with_missing(projected, held_out, None)
        errors = (
            _error(projected, keep, torch.zeros_like(projected_change), held_out, None),
            _error(projected, keep, projected_change, held_out, None if bias is None else fit.centre),
        )
        # Round-off can make an error of zero negative.
        before, after = (max(error / scale, 0.0) if scale else 0.0 for error in errors)
    if bias is not None:
        mean, mean_missing = fit.centre
        bias = bias + weight[:, ~keep] @ mean[~keep] - change @ mean[keep]
        bias = bias if mean_missing is None else bias + mean_missing
    target: Target = "output" if fit.missing is None else "stream"
    return RepairedMap(new_weight, bias, damping, before, after, target)


def _error(
    weight: torch.Tensor, keep: torch.Tensor, change: torch.Tensor, moments: Moments, centre: Centre | None
) -> float:
    """Compute the mean square of W_R x_R + e - change x_K, where e is the missing output.

    K are the kept and R the removed neurons. A centre is first subtracted from x and e. The weight and the change have been
    reduced by :func:`project_outputs`.
    """
    error_weight = torch.empty_like(weight)
    error_weight[:, keep], error_weight[:, ~keep] = -change, weight[:, ~keep]
    return _square_with_missing(error_weight, moments, centre)


def _square_with_missing(weight: torch.Tensor, moments: Moments, centre: Centre | None) -> float:
    """Compute the mean square of weight x + e; see :func:`_error`."""
    cross = moments.missing_cross(centre)
    mixed = 0.0 if cross is None else float((weight * project_outputs(cross.T)).sum())
    return moments.energy(weight, centre) + 2.0 * mixed + moments.missing_square(centre)
