"""First and second moments of the inputs of a map, summed up batch by batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from llmrank.calibration.forward import at_least_float32, unpadded_rows

__all__ = ["Centre", "MissingOutput", "MomentSums", "Moments"]

# The mean input of a map, (n,), and the mean of what the residual stream lacks, (out,): a bias takes these up.
Centre: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]
# How many columns of the second moments are updated at once.
BAND = 256
# Damping of the linear prediction of a neuron from the others, as a share of the mean square of a neuron.
PREDICTION_DAMPING = 1e-2


@dataclass(frozen=True, eq=False)
class MissingOutput:
    """Sums over calibration tokens of e, the output that is missing.

    Added to a map's output, e brings the residual stream behind the map back to that of the dense model.

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


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over calibration tokens of x, the inputs of a map.

    Attributes
    ----------
    count : int
        Number of tokens.
    total : (n,) float64 tensor
        Sum of x.
    second : (n, n) float64 tensor
        Sum of x x^T.
    lack : MissingOutput or None
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
    lack: MissingOutput | None = None

    @classmethod
    def of(cls, values: torch.Tensor, lack: torch.Tensor | None = None) -> Moments:
        """Compute the moments of inputs (tokens, n), and of the missing output (tokens, out)."""
        sums = _Sums(values.shape[-1], values.device)
        sums.add(values, lack)
        return sums.moments()

    @property
    def mean(self) -> torch.Tensor:
        """(n,): the mean of x."""
        return self.total / self.count

    @property
    def finite(self) -> bool:
        """Whether no value was NaN or Inf, nor overflowed."""
        return bool(torch.isfinite(self.second).all()) and (self.lack is None or math.isfinite(self.lack.square))

    @property
    def centre(self) -> Centre:
        """The mean of x, and that of e, which is None where e is not known."""
        return self.mean, None if self.lack is None else self.lack.total / self.count

    def covariance(self, rows: torch.Tensor, columns: torch.Tensor, centre: Centre | None = None) -> torch.Tensor:
        """Compute the mean of x_i x_j, (rows, columns), after a centre is subtracted from x.

        Parameters
        ----------
        rows, columns : (n,) bool tensors
            The neurons i and j.
        centre : Centre, optional
            The centre of these or of other moments; zero by default.
        """
        i, j = rows.nonzero(), columns.nonzero().T
        block = self.second[i, j].div_(self.count)
        if centre is not None:
            middle, mean = centre[0], self.mean
            block.addr_(mean[rows] - middle[rows], middle[columns], alpha=-1.0)
            block.addr_(middle[rows], mean[columns], alpha=-1.0)
        return block

    def energy(self, weight: torch.Tensor, centre: Centre | None = None) -> float:
        """Compute the mean of ||weight @ x||^2 for a (out, n) float64 weight, after a centre is subtracted from x."""
        energy = float(((weight @ self.second) * weight).sum()) / self.count
        if centre is None:
            return energy
        middle, mean = weight @ centre[0], weight @ self.mean
        return energy + float(middle @ (middle - 2.0 * mean))

    def lacking(self, centre: Centre | None = None) -> tuple[torch.Tensor | None, float]:
        """Compute the means of x e^T, (n, out), and of ||e||^2, after a centre is subtracted; None and 0 where e is not known."""
        if self.lack is None:
            return None, 0.0
        cross, square = self.lack.cross / self.count, self.lack.square / self.count
        if centre is not None and centre[1] is not None:
            (middle, middle_lack), (mean, mean_lack) = (centre[0], centre[1]), (self.mean, self.lack.total / self.count)
            cross.addr_(mean - middle, middle_lack, alpha=-1.0).addr_(middle, mean_lack, alpha=-1.0)
            square += float(middle_lack @ (middle_lack - 2.0 * mean_lack))
        return cross, square

    def unexplained(self) -> torch.Tensor:
        """Compute the part of each neuron's activation that the other neurons do not explain, (n,) float64.

        It is the square root of ``1 / ((S + lambda I)^-1)_jj``, where S is the mean of x x^T and lambda 1 % of its mean
        diagonal: the root mean square of the error when x_j is predicted linearly, as well as possible, from the other neurons.
        Optimal Brain Surgeon (Hassibi and Stork 1993) ranks a neuron by this and its weights.

        Examples
        --------
        >>> x = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 2.0], [-1.0, -1.0, 1.0]])
        >>> Moments.of(x).unexplained().round(decimals=2).tolist()
        [0.16, 0.16, 1.25]
        """
        covariance = self.second / self.count
        ridge = PREDICTION_DAMPING * covariance.diagonal().mean()
        if float(ridge) == 0.0:
            return torch.zeros_like(self.total)
        covariance.diagonal().add_(ridge)
        factor = torch.linalg.cholesky(covariance)
        del covariance
        return torch.cholesky_inverse(factor).diagonal().rsqrt()


class _Sums:
    """Sums that grow batch by batch into moments."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.count = 0
        self._total = torch.zeros(size, dtype=torch.float64, device=device)
        self._lower = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._lack: MissingOutput | None = None

    def add(self, values: torch.Tensor, lack: torch.Tensor | None) -> None:
        """Add inputs (tokens, n) and the missing output (tokens, out).

        Values narrower than float64 are multiplied in float32.
        """
        wide = at_least_float32(values)
        self.count += len(values)
        self._total += wide.sum(0)
        # The matrix is symmetric: only the lower triangle is computed, in bands of columns.
        for start in range(0, wide.shape[1], BAND):
            band = slice(start, start + BAND)
            self._lower[start:, band] += wide[:, start:].T @ wide[:, band]
        if lack is not None:
            lack = lack.to(wide)
            wider = lack.double()
            if self._lack is None:
                self._lack = MissingOutput(
                    wider.new_zeros(wider.shape[1]), wider.new_zeros(wide.shape[1], wider.shape[1]), 0.0
                )
            self._lack.total.add_(wider.sum(0))
            self._lack.cross.add_(wide.T @ lack)
            self._lack = replace(self._lack, square=self._lack.square + float(wider.square().sum()))

    def moments(self) -> Moments:
        """Return the moments of everything added. They share the tensors of these sums: add nothing afterwards."""
        for start in range(0, len(self._lower), BAND):
            stop = start + BAND
            corner = self._lower[start:stop, start:stop]
            corner.copy_(corner.tril() + corner.tril(-1).T)
            self._lower[start:stop, stop:] = self._lower[stop:, start:stop].T
        return Moments(self.count, self._total, self._lower, self._lack)


class MomentSums:
    """Sums up the moments of the batches to fit to, and separately those of the held-out batches.

    It is a :class:`llmrank.calibration.blockwise.Reader`.

    Parameters
    ----------
    size : int
        Number of neurons.
    device : torch.device
    fitted : int, optional
        How many batches to fit to; the later ones are held out. By default none is held out.
    hold_out : bool
        Sum up the moments of the held-out batches; if not, they are ignored.
    """

    def __init__(self, size: int, device: torch.device, fitted: int | None = None, *, hold_out: bool = True) -> None:
        # MPS has no float64.
        self._device = torch.device("cpu") if device.type == "mps" else device
        self._size = size
        self._fitted, self._holds_out = fitted, hold_out
        self._fit = _Sums(size, self._device)
        # Made when the first held-out batch comes.
        self._held_out: _Sums | None = None
        self._batches = 0
        self._read: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        """See :class:`llmrank.calibration.forward.Accumulator`."""
        self._read.append((values, mask))

    def end_batch(self, lack: torch.Tensor | None) -> None:
        """See :class:`llmrank.calibration.blockwise.Reader`."""
        sums: _Sums | None = self._fit
        if self._fitted is not None and self._batches >= self._fitted:
            if self._holds_out and self._held_out is None:
                self._held_out = _Sums(self._size, self._device)
            sums = self._held_out
        self._batches += 1
        if sums is not None:
            for values, mask in self._read:
                missing = None
                if lack is not None:
                    # Some blocks give their FFN the tokens of all sequences in one row.
                    missing = unpadded_rows(lack.reshape(*values.shape[:-1], lack.shape[-1]), mask).to(self._device)
                sums.add(unpadded_rows(values, mask).to(self._device), missing)
        self._read.clear()

    def moments(self) -> tuple[Moments, Moments | None]:
        """Return, after the last batch, the moments of the batches to fit to, and of the held-out ones if there are any."""
        held_out = self._held_out
        return self._fit.moments(), held_out.moments() if held_out is not None and held_out.count else None

    @property
    def count(self) -> int:
        """Number of tokens to fit to."""
        return self._fit.count
