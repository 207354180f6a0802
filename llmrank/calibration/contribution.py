"""What each input of a linear map explains of the map's output, summed over tokens as they pass.

With ``y = W x`` the output without the bias, input j adds ``x_j W_:j`` to it, and the part of that which points along y is
``x_j (W^T y)_j``. Summed over the inputs it is ``||y||^2``: so the sums over tokens

    e_j = sum_t x_j(t) (W^T y(t))_j / sum_t ||y(t)||^2

are shares of the output's energy. An input that others cancel explains little, or less than nothing, however large it is;
one that moves with the others explains more than it adds by itself. About the means (``x - mean(x)`` for x) the shares are
those of the output's variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Explained", "ExplainedSums"]


@dataclass(frozen=True, eq=False)
class Explained:
    """Shares of the output of a linear map.

    Attributes
    ----------
    energy : (n,) float64 tensor
        Of its energy, by input; sum 1 (zeros where there is none), single ones may be negative.
    variance : (n,) float64 tensor
        Of its variance over tokens, likewise.
    """

    energy: torch.Tensor
    variance: torch.Tensor


class ExplainedSums:
    """Streaming sums over tokens.

    Parameters
    ----------
    weight : (out, n) tensor
    bias : (out,) tensor or None

    Notes
    -----
    Cost: one product with the weight a token. Memory: the values of a batch, and two float64 vectors of n.

    Examples
    --------
    >>> weight = torch.tensor([[1.0, 1.0, 0.0]])
    >>> sums, x = ExplainedSums(weight, None), torch.tensor([[3.0, -1.0, 5.0], [3.0, -1.0, 4.0]])
    >>> sums.read(x)
    >>> sums.written(x @ weight.T)
    >>> sums.finish().energy
    tensor([ 1.5000, -0.5000,  0.0000], dtype=torch.float64)
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        # MPS has no float64.
        self._wide = torch.float32 if weight.device.type == "mps" else torch.float64
        self._weight = weight.detach()
        self._bias = None if bias is None else bias.detach()
        self._products = torch.zeros(weight.shape[1], dtype=self._wide, device=weight.device)
        self._total = torch.zeros_like(self._products)
        self._count = 0
        self._values: torch.Tensor | None = None

    def read(self, values: torch.Tensor) -> None:
        """What the map reads, (tokens, n)."""
        self._values = values.to(self._weight.device).float()

    def written(self, values: torch.Tensor) -> None:
        """What it returns for that, (tokens, out)."""
        if self._values is None:
            raise RuntimeError("a map returned something before it was given anything")
        x, y = self._values, values.float()
        self._values = None
        if self._bias is not None:
            y = y - self._bias.float()
        back = y @ self._weight.float()
        self._products += (x.to(self._wide) * back.to(self._wide)).sum(0)
        self._total += x.sum(0, dtype=self._wide)
        self._count += len(x)

    def finish(self) -> Explained:
        """The shares, on the CPU."""
        products, total = self._products.double().cpu(), self._total.double().cpu()
        mean, weight = total / max(self._count, 1), self._weight.double().cpu()
        about = products - self._count * mean * (weight.T @ (weight @ mean))
        return Explained(_shares(products), _shares(about))


def _shares(products: torch.Tensor) -> torch.Tensor:
    total = products.sum()
    return products / total if total > 0 else torch.zeros_like(products)
