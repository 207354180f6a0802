"""Scores that multiply statistics by the weights on one side of a node: into it (Wanda), or out of it (Wanda-sp, FLAP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from llmrank.calibration.statistics import LayerStatistics
from llmrank.score.base_scorer import BaseScorer, OutgoingScorer
from llmrank.score.baselines import check_norm_order

__all__ = ["FLAPScorer", "WandaSPScorer", "WandaScorer"]


@dataclass
class WandaScorer(BaseScorer):
    """Wanda, summed over the inputs of node j: ``sum_k |W_jk| a_k``, where a holds the norms of the inputs.

    Source: Sun et al. 2023 (arXiv 2306.11695), here as a score of whole neurons.
    """

    name: ClassVar[str] = "wanda"

    def score(
        self,
        prev_importance: torch.Tensor,
        in_activations: torch.Tensor,
        out_activations: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """Multiply the weight by the input norms."""
        return weight @ in_activations


@dataclass
class WandaSPScorer(OutgoingScorer):
    """Wanda-sp: ``||x_j||_2 * ||down_:j||_p`` for hidden neuron j; the paper takes p = 1.

    Source: An et al. 2023 (arXiv 2312.11983), who apply Wanda to whole neurons.

    Parameters
    ----------
    p : float
        Order of the norm of the output map's column, at least 1.
    """

    name: ClassVar[str] = "wanda-sp"

    p: float = 1.0

    def __post_init__(self) -> None:
        check_norm_order(self.p)

    def _weight_factor(self, outgoing: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.linalg.vector_norm(outgoing, ord=self.p, dim=0)
        return result

    def _activation_factor(self, statistics: LayerStatistics) -> torch.Tensor:
        return statistics.norm


@dataclass
class FLAPScorer(OutgoingScorer):
    """FLAP's weighted input feature variance (WIFV): ``Var(x_j) * ||down_:j||_2^2`` for hidden neuron j.

    In an FFN with one hidden layer, this is the mean squared error of the output if neuron j alone is removed and a bias makes up
    for the neuron's mean.
    Source: An et al. 2023 (arXiv 2312.11983).
    """

    name: ClassVar[str] = "flap"

    def _weight_factor(self, outgoing: torch.Tensor) -> torch.Tensor:
        return outgoing.square().sum(0)

    def _activation_factor(self, statistics: LayerStatistics) -> torch.Tensor:
        return statistics.variance
