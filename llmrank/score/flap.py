"""The score of FLAP: the variance of a neuron times the squared norm of the weights that leave it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from llmrank.calibration.statistics import LayerStatistics
from llmrank.score.base_scorer import OutgoingScorer

__all__ = ["FLAPScorer"]


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
