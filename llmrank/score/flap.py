"""FLAP's score: the fluctuation of a neuron times the weights that leave it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from llmrank.calibration.statistics import LayerStatistics
from llmrank.score.base_scorer import OutgoingScorer

__all__ = ["FLAPScorer"]


@dataclass
class FLAPScorer(OutgoingScorer):
    """FLAP's WIFV: ``Var(x_j) * ||down_:j||_2^2``.

    This is the squared error of removing neuron j alone while a bias replaces its mean.
    Source: An et al. 2023 (arXiv 2312.11983).
    """

    name: ClassVar[str] = "flap"

    def _weight_factor(self, outgoing: torch.Tensor) -> torch.Tensor:
        return outgoing.square().sum(0)

    def _activation_factor(self, statistics: LayerStatistics) -> torch.Tensor:
        return statistics.variance
