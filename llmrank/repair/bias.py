"""Repair by bias: the mean output of the removed neurons is added to the output map's bias.

Source: FLAP (An et al. 2023, arXiv 2312.11983).
"""

from __future__ import annotations

from typing import ClassVar

import torch

from llmrank.errors import OptionError
from llmrank.repair.base_repair import BaseRepair, RepairedMap, repaired_map
from llmrank.repair.moments import Moments

__all__ = ["BiasRepair"]


class BiasRepair(BaseRepair):
    """Add the mean output of the removed neurons (R) to the bias: ``b + W_R mean_R``.

    Examples
    --------
    >>> moments = Moments.of(torch.tensor([[1.0, 2.0], [1.0, 4.0]]))
    >>> weight, keep = torch.tensor([[1.0, 1.0]]).double(), torch.tensor([True, False])
    >>> BiasRepair().solve(weight, torch.zeros(1).double(), keep, moments, None).bias
    tensor([3.], dtype=torch.float64)
    """

    name: ClassVar[str] = "bias"

    needs_bias = True
    reads_removed = False

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
                "repair by bias needs output maps with a bias; this model's have none, and its configuration cannot give them "
                "one; use repair 'lstsq', which changes their weights"
            )
        return repaired_map(weight, bias, keep, torch.zeros_like(weight[:, keep]), fit, held_out, None)
