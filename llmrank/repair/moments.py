"""First and second moments of the inputs of a linear map, summed up batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TypeAlias

import torch

from llmrank.execution.hooks import rows_by_sequence, unpadded_rows
from llmrank.models.experts import Routing
from llmrank.models.forward import at_least_float32

__all__ = ["N_COMBINATIONS", "Centre", "MissingOutput", "MomentSums", "Moments", "project_outputs"]

# The mean input of a map, (n,), and the mean of its missing output (see MissingOutput), (out,), or None if that is not known.
# A bias makes up for what these means contribute, so they are subtracted before the weight is fitted.
Centre: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]
# Number of columns of the second moments that are updated at once.
BAND = 256
# Sequences of so many tokens or more are added one by one, so that the sums do not depend on the batch size. Shorter ones are
# added a batch at a time, because each addition to a large matrix would take longer than the product that is added.
LONG_SEQUENCE = 256
# Damping of the linear prediction of a neuron from the others, as a share of the mean square activation over all neurons.
PREDICTION_DAMPING = 1e-2
# If a map has more outputs than this, squared errors are measured on this number of random combinations of the outputs.
N_COMBINATIONS = 128


def project_outputs(values: torch.Tensor) -> torch.Tensor:
    """Reduce the outputs of a map to at most 128 random combinations, which keep a sum of squares on average.

    Parameters
    ----------
    values : (out, n) tensor

    Returns
    -------
    (min(out, 128), n) tensor
        `values` themselves up to 128 outputs. Otherwise R values, where R holds random signs over sqrt(128), the same in all
        calls, so that the mean of ``||R y||^2`` over such matrices is ``||y||^2``. A squared error that is spread over d
        directions is estimated with a relative standard error of about ``1 / sqrt(64 d)``.

    Notes
    -----
    Source: stochastic estimation of a trace (Hutchinson 1989).
    """
    if len(values) <= N_COMBINATIONS:
        return values
    return _signs(len(values)).to(values) @ values


@cache
def _signs(n_outputs: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (N_COMBINATIONS, n_outputs), generator=generator, dtype=torch.int8)
    return (2 * signs - 1) / math.sqrt(N_COMBINATIONS)


@dataclass(frozen=True, eq=False)
class MissingOutput:
    """Sums over calibration tokens of e, the missing output of a map.

    e is what the map should return, so that the residual stream behind the map becomes that of the dense model, less what it
    returns with all neurons that the moments are of if it `has_run`. So e makes up for pruned FFNs before the map and, if the
    moments are of the kept neurons alone, also for the removed neurons of the map; with target "output" only for these.

    Attributes
    ----------
    total : (out,) float64 tensor
        Sum of e.
    cross : (n, out) float64 tensor
        Sum of x e^T, where x is the input of the map.
    square : float
        Sum of ||e||^2 over the combinations of :func:`project_outputs`.
    has_run : bool
        Whether what the map returns is subtracted already; if not, see :meth:`Moments.less_output`.
    """

    total: torch.Tensor
    cross: torch.Tensor
    square: float
    has_run: bool = True


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over calibration tokens of x, the inputs of a map.

    Attributes
    ----------
    count : float
        Number of tokens; for an expert the sum of their squared routing weights, by which all these sums are weighted.
    total : (n,) float64 tensor
        Sum of x.
    second : (n, n) float64 tensor
        Sum of x x^T.
    missing : MissingOutput or None
        Sums of the missing output e; None if e is not known, so that the map is fitted to the outputs that it has with all
        neurons.

    Examples
    --------
    >>> moments = Moments.of(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> moments.count, moments.mean.tolist(), moments.second.tolist()
    (2.0, [2.0, 1.0], [[10.0, 2.0], [2.0, 4.0]])
    """

    count: float
    total: torch.Tensor
    second: torch.Tensor
    missing: MissingOutput | None = None

    @classmethod
    def of(cls, values: torch.Tensor, missing: torch.Tensor | None = None) -> Moments:
        """Compute the moments of inputs, (tokens, n), and of the missing output, (tokens, out), if it is given."""
        sums = _Sums(values.shape[-1], values.device)
        sums.add(values, missing)
        return sums.moments()

    @property
    def mean(self) -> torch.Tensor:
        """(n,): the mean of x."""
        return self.total / self.count

    @property
    def finite(self) -> bool:
        """Whether the sums of products are finite; they are not if a value was NaN or Inf, or a product overflowed."""
        missing = self.missing
        return bool(torch.isfinite(self.second).all()) and (
            missing is None or (math.isfinite(missing.square) and bool(torch.isfinite(missing.cross).all()))
        )

    @property
    def centre(self) -> Centre:
        """The mean of x, and the mean of e, or None if e is not known."""
        return self.mean, None if self.missing is None else self.missing.total / self.count

    def covariance(self, rows: torch.Tensor, columns: torch.Tensor, centre: Centre | None = None) -> torch.Tensor:
        """Compute the mean of x_i x_j after a centre is subtracted from x; with their own centre it is the covariance.

        Parameters
        ----------
        rows, columns : (n,) bool tensors
            Masks of the neurons i and of the neurons j.
        centre : Centre, optional
            By default nothing is subtracted.

        Returns
        -------
        (rows, columns) float64 tensor
        """
        i, j = rows.nonzero(), columns.nonzero().T
        block = self.second[i, j].div_(self.count)
        if centre is not None:
            shift, mean = centre[0], self.mean
            block.addr_(mean[rows] - shift[rows], shift[columns], alpha=-1.0)
            block.addr_(shift[rows], mean[columns], alpha=-1.0)
        return block

    def energy(self, weight: torch.Tensor, centre: Centre | None = None) -> float:
        """Compute the mean of ||weight @ x||^2 for a (out, n) float64 weight, after a centre is subtracted from x."""
        energy = float(((weight @ self.second) * weight).sum()) / self.count
        if centre is None:
            return energy
        shift, mean = weight @ centre[0], weight @ self.mean
        return energy + float(shift @ (shift - 2.0 * mean))

    def missing_cross(self, centre: Centre | None = None) -> torch.Tensor | None:
        """Compute the mean of x e^T, (n, out), after a centre is subtracted; None if e is not known."""
        if self.missing is None:
            return None
        cross = self.missing.cross / self.count
        if centre is not None and centre[1] is not None:
            mean, mean_missing = self.mean, self.missing.total / self.count
            cross.addr_(mean - centre[0], centre[1], alpha=-1.0).addr_(centre[0], mean_missing, alpha=-1.0)
        return cross

    def missing_square(self, centre: Centre | None = None) -> float:
        """Compute the mean of ||e||^2 over :func:`project_outputs`, after a centre is subtracted; 0 if e is not known."""
        if self.missing is None:
            return 0.0
        square = self.missing.square / self.count
        if centre is not None and centre[1] is not None:
            shift, mean = (project_outputs(e[:, None])[:, 0] for e in (centre[1], self.missing.total / self.count))
            square += float(shift @ (shift - 2.0 * mean))
        return square

    def less_output(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Moments:
        """Subtract what the map returns, ``weight @ x + bias``, from the missing output, if the map has not run.

        The present sum `cross` is overwritten.

        Parameters
        ----------
        weight : (out, n) float64 tensor
        bias : (out,) float64 tensor or None

        Examples
        --------
        >>> x, weight = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[2.0, 1.0]])
        >>> lack = torch.tensor([[5.0], [6.0]])
        >>> moments = Moments.of(x, lack + x @ weight.T)
        >>> wanted = replace(moments, missing=replace(moments.missing, has_run=False))
        >>> found = wanted.less_output(weight.double(), None).missing
        >>> found.total.item(), found.cross.flatten().tolist(), found.square
        (11.0, [23.0, 10.0], 61.0)
        """
        if self.missing is None or self.missing.has_run:
            return self
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        few, few_bias = project_outputs(weight), project_outputs(bias[:, None])[:, 0]

        def with_output(missing: MissingOutput) -> float:
            """Sum over tokens of the product of a missing output and the map's output, over :func:`project_outputs`."""
            of_weight = (few * project_outputs(missing.cross.T)).sum()
            return float(of_weight + few_bias @ project_outputs(missing.total[:, None])[:, 0])

        square = self.missing.square - with_output(self.missing)
        total = self.missing.total - weight @ self.total - self.count * bias
        cross = self.missing.cross.addmm_(self.second, weight.T, alpha=-1.0).addr_(self.total, bias, alpha=-1.0)
        missing = MissingOutput(total, cross, square)
        return replace(self, missing=replace(missing, square=max(square - with_output(missing), 0.0)))

    def unexplained(self) -> torch.Tensor:
        """Compute the part of each neuron's activation that the other neurons do not explain, (n,) float64.

        For neuron j it is the square root of ``1 / ((S + lambda I)^-1)_jj``, where S is the mean of x x^T, and lambda is 1 % of
        the mean of the diagonal of S. With lambda = 0 it would be the root mean square error of the best linear prediction of
        x_j from the other neurons. Source: Optimal Brain Surgeon (Hassibi and Stork 1993).

        Examples
        --------
        >>> x = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 2.0], [-1.0, -1.0, 1.0]])
        >>> Moments.of(x).unexplained().round(decimals=2).tolist()
        [0.16, 0.16, 1.25]
        """
        damped = self.second / self.count
        damping = PREDICTION_DAMPING * damped.diagonal().mean()
        if float(damping) == 0.0:
            return torch.zeros_like(self.total)
        damped.diagonal().add_(damping)
        factor = torch.linalg.cholesky(damped)
        del damped
        return torch.cholesky_inverse(factor).diagonal().rsqrt()


@contextmanager
def _full_precision() -> Iterator[None]:
    """Compute float32 products in float32, even if the user lets torch round their factors (TF32, bfloat16)."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


class _Kept:
    """The neurons of a map that are kept, and what the others add to its output.

    Parameters
    ----------
    keep : (n,) bool tensor
    weight : (out, n) tensor
        The weight of the map.
    device : torch.device
        Where the inputs are.
    """

    def __init__(self, keep: torch.Tensor, weight: torch.Tensor, device: torch.device) -> None:
        self._kept, self._removed = (mask.nonzero()[:, 0].to(device) for mask in (keep, ~keep))
        self._weight = weight

    @cached_property
    def _weight_of_removed(self) -> torch.Tensor:
        return at_least_float32(self._weight[:, self._removed.to(self._weight.device)]).to(self._removed.device)

    def split(
        self, values: torch.Tensor, missing: torch.Tensor | None, *, has_run: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the inputs of the kept neurons, (tokens, kept), and what their output lacks, (tokens, out)."""
        if not len(self._removed):
            return values, missing
        if not has_run:
            return values[:, self._kept], missing
        with _full_precision():
            of_removed = values[:, self._removed].to(self._weight_of_removed) @ self._weight_of_removed.T
        return values[:, self._kept], of_removed if missing is None else of_removed.add_(missing)


class _Sums:
    """The sums of :class:`Moments` while they grow."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.count = 0.0
        self._total = torch.zeros(size, dtype=torch.float64, device=device)
        # Only the lower triangle is summed up; moments() fills in the upper one.
        self._lower = torch.zeros(size, size, dtype=torch.float64, device=device)
        # Sums of the missing output; empty as long as it is not known.
        self._missing_total = self._missing_cross = torch.zeros(0, dtype=torch.float64, device=device)
        self._missing_square = 0.0

    @property
    def n_missing(self) -> int:
        """Number of outputs, if their missing part is known; else 0."""
        return len(self._missing_total)

    def expect_missing(self, n_outputs: int) -> None:
        """Make room for the sums of the missing output."""
        if n_outputs and not self.n_missing:
            self._missing_total = self._total.new_zeros(n_outputs)
            self._missing_cross = self._total.new_zeros(len(self._total), n_outputs)

    def add(
        self, values: torch.Tensor, missing: torch.Tensor | None = None, weights: torch.Tensor | None = None
    ) -> None:
        """Add inputs (tokens, n) and the missing output (tokens, out); products are in float32 or wider, sums in float64.

        With `weights`, (tokens,), every token counts by the square of its weight.
        """
        inputs, factor = at_least_float32(values), None
        if weights is None:
            self.count += len(values)
            self._total += inputs.sum(0)
        else:
            factor = weights.to(inputs)[:, None]
            inputs = inputs * factor
            self.count += float(factor.double().square().sum())
            self._total += (inputs * factor).sum(0)
        # The matrix is symmetric, so only its lower triangle is computed, in bands of columns.
        with _full_precision():
            for start in range(0, inputs.shape[1], BAND):
                band = slice(start, start + BAND)
                self._lower[start:, band] += inputs[:, start:].T @ inputs[:, band]
        if missing is not None:
            missing = missing.to(inputs) if factor is None else missing.to(inputs) * factor
            missing_float64 = missing.double()
            self.expect_missing(missing.shape[1])
            self._missing_total += (missing_float64 if factor is None else missing_float64 * factor).sum(0)
            with _full_precision():
                self._missing_cross += inputs.T @ missing
            self._missing_square += float(project_outputs(missing_float64.T).square().sum())

    def moments(self, *, has_run: bool = True) -> Moments:
        """Return the moments, which share the tensors of these sums, so that nothing may be added afterwards."""
        for start in range(0, len(self._lower), BAND):
            stop = start + BAND
            corner = self._lower[start:stop, start:stop]
            corner.copy_(corner.tril() + corner.tril(-1).T)
            self._lower[start:stop, stop:] = self._lower[stop:, start:stop].T
        missing = None
        if self.n_missing:
            missing = MissingOutput(self._missing_total, self._missing_cross, self._missing_square, has_run)
        return Moments(self.count, self._total, self._lower, missing)


class MomentSums:
    """Sums up the moments of the batches that a repair is fitted to, and separately the moments of the held-out batches.

    It is a :class:`llmrank.execution.pass_stream.Reader`.

    Parameters
    ----------
    size : int
        Number of neurons.
    device : torch.device
    n_fitted : int, optional
        Number of batches to fit to; later batches are held out. By default none is held out.
    sum_held_out : bool
        Whether to sum up the moments of the held-out batches.
    routing : Routing, optional
        Routing of the expert whose map is read. Each token then counts by the square of its routing weight, and what the output
        for a token lacks is divided among the experts of this token by their weights.
    keep : (size,) bool tensor, optional
        Sum up the moments of these neurons alone. What the others add to the output is added to the missing output, if the map
        has run.
    weight : (out, size) tensor, optional
        The weight of the map, which `keep` needs.

    Attributes
    ----------
    is_followed : bool
        Whether the missing output was known, beside that of removed neurons.
    """

    def __init__(
        self,
        size: int,
        device: torch.device,
        n_fitted: int | None = None,
        *,
        sum_held_out: bool = True,
        routing: Routing | None = None,
        keep: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
    ) -> None:
        # MPS (Apple's GPUs) has no float64, so sums of its values are on the CPU.
        self._device = torch.device("cpu") if device.type == "mps" else device
        self._kept = None if keep is None or weight is None else _Kept(keep, weight, self._device)
        self._size = size if keep is None else int(keep.sum())
        self._n_fitted, self._holds_out = n_fitted, sum_held_out
        self._fit = _Sums(self._size, self._device)
        # None until the first held-out batch ends.
        self._held_out: _Sums | None = None
        self._n_ended = 0
        self._routing = routing
        self.is_followed, self._has_run = False, True
        # The values of the present batch, with their mask and routing.
        self._added: list[tuple[torch.Tensor, torch.Tensor | None, Routing | None]] = []

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        """See :class:`llmrank.execution.pass_stream.Reader`."""
        routing = None if self._routing is None else replace(self._routing)
        self._added.append((values, mask, routing))

    def end_batch(self, missing: torch.Tensor | None, *, has_run: bool = True) -> None:
        """See :class:`llmrank.execution.pass_stream.Reader`."""
        sums: _Sums | None = self._fit
        if self._n_fitted is not None and self._n_ended >= self._n_fitted:
            if self._holds_out and self._held_out is None:
                self._held_out = _Sums(self._size, self._device)
            sums = self._held_out
        self._n_ended += 1
        self.is_followed |= missing is not None
        self._has_run = has_run
        if sums is not None:
            for values, mask, routing in self._added:
                if routing is not None:
                    self._add(sums, unpadded_rows(values, mask).to(self._device), *self._routed(missing, mask, routing))
                    continue
                # Some blocks flatten the sequences of a batch before their FFN: (batch * length, n), not (batch, length, n).
                lacking = [] if missing is None else [missing.reshape(*values.shape[:-1], missing.shape[-1])]
                for rows in rows_by_sequence(values, *lacking, mask=mask, shortest=LONG_SEQUENCE):
                    self._add(sums, *(each.to(self._device) for each in rows))
        self._added.clear()

    def _add(
        self,
        sums: _Sums,
        values: torch.Tensor,
        missing: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> None:
        """Add inputs of all neurons, see :meth:`_Sums.add`."""
        if self._kept is not None:
            values, missing = self._kept.split(values, missing, has_run=self._has_run)
        sums.add(values, missing, weights)

    def _routed(
        self, missing: torch.Tensor | None, mask: torch.Tensor | None, routing: Routing
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return what the outputs of an expert lack, (tokens, out), and the routing weights of its tokens, (tokens,)."""
        weights = routing.weights if mask is None else routing.weights[mask.to(routing.weights.device)]
        rows = None
        if missing is not None:
            lacking = missing.detach().reshape(-1, missing.shape[-1])[routing.tokens] / routing.totals[:, None]
            rows = unpadded_rows(lacking, mask).to(self._device)
        return rows, weights.to(self._device)

    @property
    def extent(self) -> tuple[int, bool, int]:
        """Number of outputs whose missing part is known, whether batches were held out, and that number for these batches."""
        held_out = self._held_out
        return self._fit.n_missing, held_out is not None, 0 if held_out is None else held_out.n_missing

    def parts(self, extents: Sequence[tuple[int, bool, int]]) -> list[object]:
        """Return the sums for ``Processes.add_up``, which must have the same shapes in all processes.

        `extents` holds the :attr:`extent` of every process. Sums that only other processes have are made here too, as zeros.
        """
        fitted, held_out, held_out_outputs = (max(values) for values in zip(*extents, strict=True))
        self._fit.expect_missing(fitted)
        if not held_out:
            return [self._fit]
        self._held_out = self._held_out or _Sums(self._size, self._device)
        self._held_out.expect_missing(held_out_outputs)
        return [self._fit, self._held_out]

    def moments(self) -> tuple[Moments, Moments | None]:
        """Return the moments of the batches to fit to, and of the held-out batches if any; nothing may be added afterwards."""
        held_out, has_run = self._held_out, self._has_run
        of_held_out = None if held_out is None or not held_out.count else held_out.moments(has_run=has_run)
        return self._fit.moments(has_run=has_run), of_held_out

    @property
    def count(self) -> float:
        """Number of tokens to fit to (see :class:`Moments`), of the batches that have ended."""
        return self._fit.count
