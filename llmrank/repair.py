"""Repair of what was removed, without training: a bias, or new output weights for the neurons that stay.

Both look at one output map at a time, y = W x + b with x the hidden neurons, of which some are kept (K) and some
removed (R), and at the first and second moments of x over the calibration tokens. FFNs are repaired in the order of
the model, each with the moments that it sees once those before it are cut and repaired. What the residual stream
still lacks behind the map, compared with the whole model, may be part of what the map is fitted to.

Sources: the bias is FLAP's (An et al. 2023, arXiv 2312.11983); the least squares those of Optimal Brain Surgeon
(Hassibi and Stork 1993) for a whole set of neurons at once, with a ridge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from llmrank.activations import counted
from llmrank.adapters import FFN
from llmrank.adapters.families import bias_attribute
from llmrank.errors import CalibrationError, OptionError
from llmrank.masks import Masks
from llmrank.stream import Stream

__all__ = [
    "BaseRepair",
    "BiasRepair",
    "Lack",
    "LeastSquaresRepair",
    "Moments",
    "RepairedMap",
    "repair_ffns",
    "substitute",
    "summary",
]

# Columns of the second moments that are added to at once.
BAND = 256
# Every so many batches one is kept out of the fit, to choose the damping by.
HELD_OUT_EVERY = 4
DAMPINGS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4)
# Where there is nothing to choose it by.
DAMPING = 1e-2
TARGETS = ("stream", "output")


@dataclass(frozen=True, eq=False)
class Lack:
    """Sums over calibration tokens of e, what the stream behind a map lacks.

    Attributes
    ----------
    total : (out,) float64 tensor
        Sum of e.
    cross : (n, out) float64 tensor
        Sum of x e^T.
    square : float
        Sum of ||e||^2.
    """

    total: torch.Tensor
    cross: torch.Tensor
    square: float

    def __add__(self, other: Lack) -> Lack:
        return Lack(self.total + other.total, self.cross + other.cross, self.square + other.square)


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over calibration tokens of what a map reads.

    Attributes
    ----------
    count : int
        Tokens.
    total : (n,) float64 tensor
        Sum of x.
    second : (n, n) float64 tensor
        Sum of x x^T.
    lack : Lack or None
        None where the map is fitted to its own outputs.

    Examples
    --------
    >>> moments = Moments.of(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> moments.count, moments.mean.tolist(), moments.second.tolist()
    (2, [2.0, 1.0], [[10.0, 2.0], [2.0, 4.0]])
    """

    count: int
    total: torch.Tensor
    second: torch.Tensor
    lack: Lack | None = None

    @classmethod
    def of(cls, values: torch.Tensor, lack: torch.Tensor | None = None) -> Moments:
        """The moments of values (tokens, n), and of what is lacking (tokens, out)."""
        sums = _Sums(values.shape[-1], values.device)
        sums.add(values, lack)
        return sums.moments()

    def __add__(self, other: Moments) -> Moments:
        lack = self.lack + other.lack if self.lack is not None and other.lack is not None else None
        return Moments(self.count + other.count, self.total + other.total, self.second + other.second, lack)

    @property
    def mean(self) -> torch.Tensor:
        """(n,)."""
        return self.total / self.count

    @property
    def finite(self) -> bool:
        """Whether no value was NaN or Inf, nor overflowed."""
        return bool(torch.isfinite(self.second).all()) and (self.lack is None or math.isfinite(self.lack.square))

    def covariance(self, *, centred: bool) -> torch.Tensor:
        """Mean of x x^T, (n, n), of x less its mean where `centred`."""
        mean = self.mean
        raw = self.second / self.count
        return raw - mean[:, None] * mean[None, :] if centred else raw

    def unexplained(self) -> torch.Tensor:
        """How much of each neuron the others do not explain, (n,) float64.

        The square root of ``1 / ((S + lambda I)^-1)_jj``, with S the mean of x x^T and lambda 1 % of its mean diagonal: the
        root mean square of what is left of x_j when the other neurons stand in for it as well as they linearly can. It is
        what Optimal Brain Surgeon counts of a neuron beside its weights (Hassibi and Stork 1993).

        Examples
        --------
        >>> x = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 2.0], [-1.0, -1.0, 1.0]])
        >>> Moments.of(x).unexplained().round(decimals=2).tolist()
        [0.16, 0.16, 1.25]
        """
        covariance = self.covariance(centred=False)
        ridge = DAMPING * covariance.diagonal().mean()
        if float(ridge) == 0.0:
            return torch.zeros_like(self.total)
        identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance + ridge * identity))
        return inverse.diagonal().rsqrt()

    def lacking(self, *, centred: bool) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """Mean of x e^T, (n, out), and mean of ||e||^2, of both less their means where `centred`; zeros without a lack."""
        if self.lack is None:
            return 0.0, 0.0
        cross, square = self.lack.cross / self.count, self.lack.square / self.count
        if not centred:
            return cross, square
        mean = self.lack.total / self.count
        return cross - self.mean[:, None] * mean[None, :], square - mean.square().sum()


@dataclass(frozen=True, eq=False)
class RepairedMap:
    """What becomes of an output map.

    Attributes
    ----------
    weight : (out, in) float64 tensor
        Zero in the columns of removed neurons.
    bias : (out,) float64 tensor or None
        None where the map has none.
    damping : float or None
        Of the least squares, relative to the mean square of a kept neuron.
    before, after : float
        Mean square of what the calibration outputs miss, as a share of the mean square of ``W x``: cut, and repaired. To
        be missed there is what the removed neurons gave, and what the stream lacked already.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    damping: float | None
    before: float
    after: float


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
            trials = {trial: _change(weight, keep, fit, trial, centred=centred) for trial in DAMPINGS}
            damping = min(trials, key=lambda trial: _missed(weight, keep, trials[trial], held_out, centred=centred))
        moments = fit if held_out is None else fit + held_out
        change = _change(weight, keep, moments, damping, centred=centred)
        return _repaired(weight, bias, keep, change, moments, damping)


def _change(
    weight: torch.Tensor, keep: torch.Tensor, moments: Moments, damping: float, *, centred: bool
) -> torch.Tensor:
    """What is added to the kept columns, (out, kept)."""
    covariance = moments.covariance(centred=centred)
    cross, _ = moments.lacking(centred=centred)
    inner, right = covariance[keep][:, keep], covariance[keep][:, ~keep] @ weight[:, ~keep].T
    if isinstance(cross, torch.Tensor):
        right = right + cross[keep]
    ridge = damping * inner.diagonal().mean()
    factor, failed = torch.linalg.cholesky_ex(
        inner + ridge * torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
    )
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
    """Mean square of W_R x_R + e - change x_K."""
    lost = torch.empty_like(weight)
    lost[:, keep], lost[:, ~keep] = -change, weight[:, ~keep]
    cross, square = moments.lacking(centred=centred)
    own = ((lost @ moments.covariance(centred=centred)) * lost).sum()
    mixed = (lost * cross.T).sum() if isinstance(cross, torch.Tensor) else 0.0
    return float(own + 2.0 * mixed + square)


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
    whole = float(((weight @ moments.covariance(centred=False)) * weight).sum())
    cut = _missed(weight, keep, torch.zeros_like(change), moments, centred=False)
    left = _missed(weight, keep, change, moments, centred=bias is not None)
    if bias is not None:
        bias = bias + weight[:, ~keep] @ moments.mean[~keep] - change @ moments.mean[keep]
        if moments.lack is not None:
            bias = bias + moments.lack.total / moments.count
    return RepairedMap(new, bias, damping, cut / whole if whole else 0.0, left / whole if whole else 0.0)


Choose: TypeAlias = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]


class _Sums:
    """Moments that grow batch by batch."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.count = 0
        self._total = torch.zeros(size, dtype=torch.float64, device=device)
        self._lower = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._lack: Lack | None = None

    def add(self, values: torch.Tensor, lack: torch.Tensor | None = None) -> None:
        """Take values (tokens, n) and what is lacking (tokens, out) in.

        Products of what is narrower than float64 are float32's.
        """
        wide = values if values.dtype == torch.float64 else values.float()
        self.count += len(values)
        self._total += wide.sum(0)
        # The matrix is symmetric: bands of columns from the diagonal down are all that is computed.
        for start in range(0, wide.shape[1], BAND):
            band = slice(start, start + BAND)
            self._lower[start:, band] += wide[:, start:].T @ wide[:, band]
        if lack is not None:
            lack = lack.to(wide)
            wider = lack.double()
            found = Lack(wider.sum(0), (wide.T @ lack).double(), float(wider.square().sum()))
            self._lack = found if self._lack is None else self._lack + found

    def moments(self) -> Moments:
        """As a value of its own."""
        below = torch.tril(self._lower, -1)
        second = below + below.T + torch.diag(self._lower.diagonal())
        return Moments(self.count, self._total.clone(), second, self._lack)


class _MomentSums:
    """Moments of the batches that pass, some of them held out."""

    def __init__(self, size: int, device: torch.device) -> None:
        # MPS has no float64.
        self._device = torch.device("cpu") if device.type == "mps" else device
        self._parts = [_Sums(size, self._device), _Sums(size, self._device)]
        self._batches = 0
        self._read: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        self._read.append((values, mask))

    def end_batch(self, lack: torch.Tensor | None) -> None:
        self._batches += 1
        part = self._parts[int(self._batches % HELD_OUT_EVERY == 0)]
        for values, mask in self._read:
            missing = None
            if lack is not None:
                # Some blocks hand their FFN the tokens of all sequences in one row.
                missing = counted(lack.reshape(*values.shape[:-1], lack.shape[-1]), mask).to(self._device)
            part.add(counted(values, mask).to(self._device), missing)
        self._read.clear()

    def moments(self) -> tuple[Moments, Moments | None]:
        """Of the batches to fit, and of those held out, if there are any."""
        fit, held_out = self._parts
        return fit.moments(), held_out.moments() if held_out.count else None

    @property
    def count(self) -> int:
        """Tokens."""
        return sum(part.count for part in self._parts)

    def together(self) -> Moments:
        """Of all batches."""
        fit, held_out = self.moments()
        return fit if held_out is None else fit + held_out


def repair_ffns(
    model: nn.Module,
    ffns: Sequence[FFN],
    masks: Masks,
    method: BaseRepair,
    stream: Stream,
    progress: Callable[[Sequence[Any], str], Any] | None = None,
    choose: Choose | None = None,
) -> tuple[Masks, dict[str, RepairedMap]]:
    """Repair the output maps of all FFNs, in the model's order; nothing is written to the model.

    Parameters
    ----------
    model : nn.Module
    ffns : sequence of FFN
        Found ones (not explicit).
    masks : Masks
    method : BaseRepair
    stream : Stream
        The calibration tokens, in front of the first FFN.
    progress : callable, optional
        See :func:`llmrank.activations.collect`.
    choose : callable, optional
        ``choose(layer, keep, unexplained)`` returns the keep mask of as many neurons by which a method that reselects
        replaces the planned one.

    Returns
    -------
    Masks
        What stays: `masks`, but for what was chosen anew.
    dict from str to RepairedMap
        By the path of the output map's module; maps that lose no neuron are left out.

    Raises
    ------
    OptionError
        FFNs of the explicit form, whose removed rows nothing stands in for.
    CalibrationError
        Non-finite activations; the message names the map.

    Notes
    -----
    Memory: moments of one map (two (n, n) float64 matrices, four to reselect, and as much again to solve) beside what the
    stream keeps.
    """
    if any(not layer.consumers for ffn in ffns for layer in ffn.prunable.values()):
        raise OptionError("repair needs whole FFNs; with structure_dict only rows go, and nothing stands in for them")
    may_add = method.needs_bias and bool(bias_attribute(model))
    repaired: dict[str, RepairedMap] = {}
    kept = dict(masks)
    with ExitStack() as standing_in:
        for ffn in progress(ffns, "Repairing") if progress else ffns:
            for layer in ffn.prunable.values():
                keep, (consumer,) = masks[layer.name], layer.consumers
                if bool(keep.all()):
                    continue
                sums = _MomentSums(layer.size, consumer.weight.device)
                whole = _MomentSums(layer.size, consumer.weight.device) if choose and method.reselects else None
                stream.feed(ffn, consumer.module, sums, whole)
                fit, held_out = sums.moments()
                if not fit.count or not (fit if held_out is None else fit + held_out).finite:
                    raise CalibrationError(
                        f"what {consumer.name} reads, or the stream behind it, is not finite once the FFNs before it are cut, or "
                        "no token reached it; "
                        "prune less, or load the model in float32"
                    )
                if choose is not None and whole is not None:
                    # Where the whole model is not followed, the stream that is already cut has to do.
                    moments = (whole if whole.count else sums).together()
                    keep = kept[layer.name] = choose(layer.name, keep, moments.unexplained().cpu())
                weight = consumer.weight.to(fit.second)
                bias = _bias(consumer.module, weight, may_add=may_add)
                solved = method.solve(weight, bias, keep.to(weight.device), fit, held_out)
                repaired[consumer.name] = solved
                substitute(standing_in, consumer.module, solved)
    return Masks(kept), repaired


def _bias(module: nn.Module, weight: torch.Tensor, *, may_add: bool) -> torch.Tensor | None:
    """The bias of a map, (out,); zeros where it has none but can be given one."""
    bias = getattr(module, "bias", None)
    if isinstance(bias, torch.Tensor):
        return bias.detach().to(weight)
    return weight.new_zeros(len(weight)) if may_add else None


def substitute(hooks: ExitStack, module: nn.Module, solved: RepairedMap) -> None:
    """Let a repaired map answer in place of a module, until `hooks` closes."""
    own: Any = module.weight
    weight = solved.weight.to(own)
    bias = None if solved.bias is None else solved.bias.to(own)

    def answer(_module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> torch.Tensor:
        return nn.functional.linear(inputs[0], weight, bias)

    hooks.callback(module.register_forward_hook(answer).remove)


def summary(repaired: Mapping[str, RepairedMap]) -> dict[str, Any]:
    """What a report says of a repair: for each map the damping and the shares missed before and after."""
    return {
        name: {"damping": solved.damping, "missed_when_cut": solved.before, "missed_when_repaired": solved.after}
        for name, solved in repaired.items()
    }
