"""First and second moments of what a map reads, gathered batch by batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from llmrank.calibration.forward import at_least_float32, unpadded_rows

__all__ = ["Centre", "MissingOutput", "MomentSums", "Moments"]

# The mean of what a map reads, (n,), and of what the stream lacks, (out,): what a bias takes up.
Centre: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]
# Columns of the second moments that are added to at once.
BAND = 256
# What a linear stand-in for a neuron is damped by, as a share of the mean square of a neuron.
DAMPING = 1e-2


@dataclass(frozen=True, eq=False)
class MissingOutput:
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
        """The moments of values (tokens, n), and of what is lacking (tokens, out)."""
        sums = _Sums(values.shape[-1], values.device)
        sums.add(values, lack)
        return sums.moments()

    @property
    def mean(self) -> torch.Tensor:
        """(n,)."""
        return self.total / self.count

    @property
    def finite(self) -> bool:
        """Whether no value was NaN or Inf, nor overflowed."""
        return bool(torch.isfinite(self.second).all()) and (self.lack is None or math.isfinite(self.lack.square))

    @property
    def centre(self) -> Centre:
        """The mean of x, and that of e; the latter None without a lack."""
        return self.mean, None if self.lack is None else self.lack.total / self.count

    def covariance(self, rows: torch.Tensor, columns: torch.Tensor, centre: Centre | None = None) -> torch.Tensor:
        """Mean of x_i x_j, (rows, columns), with x taken less a centre.

        Parameters
        ----------
        rows, columns : (n,) bool tensors
            The neurons i and j.
        centre : Centre, optional
            Of these or of other moments; nothing is subtracted without.
        """
        i, j = rows.nonzero(), columns.nonzero().T
        block = self.second[i, j].div_(self.count)
        if centre is not None:
            less, mean = centre[0], self.mean
            block.addr_(mean[rows] - less[rows], less[columns], alpha=-1.0).addr_(less[rows], mean[columns], alpha=-1.0)
        return block

    def energy(self, weight: torch.Tensor, centre: Centre | None = None) -> float:
        """Mean of ||weight @ x||^2, with x taken less a centre; of a (out, n) float64 tensor."""
        found = float(((weight @ self.second) * weight).sum()) / self.count
        if centre is None:
            return found
        less, mean = weight @ centre[0], weight @ self.mean
        return found + float(less @ (less - 2.0 * mean))

    def lacking(self, centre: Centre | None = None) -> tuple[torch.Tensor | None, float]:
        """Mean of x e^T, (n, out), and mean of ||e||^2, both taken less a centre; None and 0 without a lack."""
        if self.lack is None:
            return None, 0.0
        cross, square = self.lack.cross / self.count, self.lack.square / self.count
        if centre is not None and centre[1] is not None:
            (less, lack), (mean, mean_lack) = (centre[0], centre[1]), (self.mean, self.lack.total / self.count)
            cross.addr_(mean - less, lack, alpha=-1.0).addr_(less, mean_lack, alpha=-1.0)
            square += float(lack @ (lack - 2.0 * mean_lack))
        return cross, square

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
        covariance = self.second / self.count
        ridge = DAMPING * covariance.diagonal().mean()
        if float(ridge) == 0.0:
            return torch.zeros_like(self.total)
        covariance.diagonal().add_(ridge)
        factor = torch.linalg.cholesky(covariance)
        del covariance
        return torch.cholesky_inverse(factor).diagonal().rsqrt()


class _Sums:
    """Moments that grow batch by batch."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.count = 0
        self._total = torch.zeros(size, dtype=torch.float64, device=device)
        self._lower = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._lack: MissingOutput | None = None

    def add(self, values: torch.Tensor, lack: torch.Tensor | None) -> None:
        """Take values (tokens, n) and what is lacking (tokens, out) in.

        Products of what is narrower than float64 are float32's.
        """
        wide = at_least_float32(values)
        self.count += len(values)
        self._total += wide.sum(0)
        # The matrix is symmetric: bands of columns from the diagonal down are all that is computed.
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
        """Of all that was added; the tensors are these sums' own, so that nothing is to be added afterwards."""
        for start in range(0, len(self._lower), BAND):
            stop = start + BAND
            corner = self._lower[start:stop, start:stop]
            corner.copy_(corner.tril() + corner.tril(-1).T)
            self._lower[start:stop, stop:] = self._lower[stop:, start:stop].T
        return Moments(self.count, self._total, self._lower, self._lack)


class MomentSums:
    """Moments of the batches that pass, those to fit to apart from those held out.

    A :class:`llmrank.calibration.blockwise.Reader`.

    Parameters
    ----------
    size : int
        Neurons.
    device : torch.device
    fitted : int, optional
        How many batches, the first ones, are fitted to; those after them are held out. None holds out nothing.
    hold_out : bool
        Gather the moments of what is held out, too; else those batches are passed over.
    """

    def __init__(self, size: int, device: torch.device, fitted: int | None = None, *, hold_out: bool = True) -> None:
        # MPS has no float64.
        self._device = torch.device("cpu") if device.type == "mps" else device
        self._size = size
        self._fitted, self._holds_out = fitted, hold_out
        self._fit = _Sums(size, self._device)
        # Made when there is a batch for them.
        self._held_out: _Sums | None = None
        self._batches = 0
        self._read: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        """See :class:`llmrank.calibration.forward.Accumulator`."""
        self._read.append((values, mask))

    def end_batch(self, lack: torch.Tensor | None) -> None:
        """See :class:`llmrank.calibration.blockwise.Reader`."""
        part: _Sums | None = self._fit
        if self._fitted is not None and self._batches >= self._fitted:
            if self._holds_out and self._held_out is None:
                self._held_out = _Sums(self._size, self._device)
            part = self._held_out
        self._batches += 1
        if part is not None:
            for values, mask in self._read:
                missing = None
                if lack is not None:
                    # Some blocks hand their FFN the tokens of all sequences in one row.
                    missing = unpadded_rows(lack.reshape(*values.shape[:-1], lack.shape[-1]), mask).to(self._device)
                part.add(unpadded_rows(values, mask).to(self._device), missing)
        self._read.clear()

    def moments(self) -> tuple[Moments, Moments | None]:
        """Moments of the batches to fit to, and of those held out, if there are any; once all of them have passed."""
        held_out = self._held_out
        return self._fit.moments(), held_out.moments() if held_out is not None and held_out.count else None

    @property
    def count(self) -> int:
        """Tokens to fit to."""
        return self._fit.count
