"""Baselines that look at a node and at what leaves it: Wanda-sp and FLAP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from graphs import LayeredGraph, RankResult
from llmrank.calibration.statistics import LayerStatistics
from llmrank.errors import OptionError
from llmrank.score.base_scorer import BaseScorer, as_share
from llmrank.score.baselines import check_norm_order
from llmrank.score.model_graph import edge_weights

__all__ = ["FLAPScorer", "OutgoingScorer", "WandaSPScorer"]


class OutgoingScorer(BaseScorer):
    """Scores of a node from its statistics and the weights that leave it."""

    def _factor(self, outgoing: torch.Tensor) -> torch.Tensor:
        """(n,) from the (n_next, n) weights that leave the layer."""
        raise NotImplementedError

    def _own(self, statistics: LayerStatistics) -> torch.Tensor:
        """(n,) from the layer's statistics."""
        raise NotImplementedError

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        """The score of every layer that edges leave; the last one, which none leave, gets its activations.

        Raises
        ------
        OptionError
            Without statistics.
        """
        if len(statistics) != len(graph.layers):
            raise OptionError(f"{type(self).__name__} needs the statistics of all {len(graph.layers)} layers")
        start = perf_counter()
        scores = []
        for layer in range(len(graph.layers) - 1):
            outgoing = edge_weights(graph, layer + 1)
            value = self._own(statistics[layer]).to(outgoing) * self._factor(outgoing)
            scores.append(as_share(self._checked(value, graph.names[layer], graph.layers[layer])).numpy())
        scores.append(as_share(torch.from_numpy(np.array(graph.activations[-1]))).numpy())
        return self._result(graph, scores, perf_counter() - start)


@dataclass
class WandaSPScorer(OutgoingScorer):
    """Wanda-sp: ``||x_j||_2 * ||down_:j||_p`` of a hidden neuron, p = 1 (its own) or 2.

    Source: An et al. 2023 (arXiv 2312.11983), who carry Wanda over to whole channels. Dividing the
    L1 norm by the number of rows (a mean instead of a sum) changes no order.

    Parameters
    ----------
    p : float
        Norm of the column of the output projection.
    """

    p: float = 1.0

    def __post_init__(self) -> None:
        check_norm_order(self.p)

    def _factor(self, outgoing: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.linalg.vector_norm(outgoing, ord=self.p, dim=0)
        return result

    def _own(self, statistics: LayerStatistics) -> torch.Tensor:
        return statistics.norm


@dataclass
class FLAPScorer(OutgoingScorer):
    """FLAP's WIFV: ``Var(x_j) * ||down_:j||_2^2``.

    The squared error of removing neuron j alone while its mean is kept as a bias.
    Source: An et al. 2023 (arXiv 2312.11983).
    """

    def _factor(self, outgoing: torch.Tensor) -> torch.Tensor:
        return outgoing.square().sum(0)

    def _own(self, statistics: LayerStatistics) -> torch.Tensor:
        return statistics.variance
