"""The share of the energy of a linear map's output that each of its inputs explains, summed over calibration tokens.

Let ``y = W x`` be the output without the bias. Input j adds ``x_j W_:j`` to it, and the component of that along y, times
``||y||``, is ``x_j (W^T y)_j``. Summed over the inputs it is ``||y||^2``, so the sums over tokens

    e_j = sum_t x_j(t) (W^T y(t))_j / sum_t ||y(t)||^2

are shares of the output's energy. An input that others cancel explains little, or less than nothing, however large it is. An
input that varies together with others explains more than it adds by itself.
"""

from __future__ import annotations

import torch

__all__ = ["ExplainedSums"]


class ExplainedSums:
    """Sums over tokens from which the shares are computed.

    Parameters
    ----------
    weight : (out, n) tensor
        Weight of the linear map.
    bias : (out,) tensor or None
        Its bias.

    Notes
    -----
    Cost: one product with the weight for each token. Memory: the inputs of a batch, and a float64 vector of length n.

    Examples
    --------
    >>> weight = torch.tensor([[1.0, 1.0, 0.0]])
    >>> sums, x = ExplainedSums(weight, None), torch.tensor([[3.0, -1.0, 5.0], [3.0, -1.0, 4.0]])
    >>> sums.add_input(x)
    >>> sums.add_output(x @ weight.T)
    >>> sums.finish()
    tensor([ 1.5000, -0.5000,  0.0000], dtype=torch.float64)
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        # MPS has no float64.
        self._sum_dtype = torch.float32 if weight.device.type == "mps" else torch.float64
        self._weight = weight.detach()
        self._bias = None if bias is None else bias.detach()
        self._product_sum = torch.zeros(weight.shape[1], dtype=self._sum_dtype, device=weight.device)
        self._input: torch.Tensor | None = None

    def add_input(self, values: torch.Tensor) -> None:
        """Hold the inputs (tokens, n) of the map until its output is known."""
        self._input = values.to(self._weight.device).float()

    def add_output(self, values: torch.Tensor) -> None:
        """Add the outputs (tokens, out) of the map for the inputs given before."""
        if self._input is None:
            raise RuntimeError("an output came without its input; call add_input before each add_output")
        x, y = self._input, values.float()
        self._input = None
        if self._bias is not None:
            y = y - self._bias.float()
        back_projected = y @ self._weight.float()
        self._product_sum += (x.to(self._sum_dtype) * back_projected.to(self._sum_dtype)).sum(0)

    def finish(self) -> torch.Tensor:
        """Compute the shares, on the CPU.

        Returns
        -------
        (n,) float64 tensor
            Share of the output's energy for each input. The sum is 1 (all are 0 if there is no energy); some may be negative.
        """
        products = self._product_sum.double().cpu()
        total = products.sum()
        return products / total if total > 0 else torch.zeros_like(products)
