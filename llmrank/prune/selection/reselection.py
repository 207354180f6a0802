"""During a repair, choose again which neurons of a layer are kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmrank.prune.records.order import keep_highest
from llmrank.score.base_scorer import BaseScorer
from llmrank.score.model_graph import ModelGraph
from llmrank.score.rank_graphs import rank_graphs

__all__ = ["Reselection"]


class Reselection:
    """Chooses the keep mask of a layer again, with as many neurons: its graph is ranked with new activations.

    Parameters
    ----------
    scorer : BaseScorer
    graphs : sequence of ModelGraph
        All graphs of the model, with the activations by which the neurons were chosen before.

    Notes
    -----
    Cost: for every layer, one rank of the graph that holds it, and of each graph before that on the same residual stream.
    """

    def __init__(self, scorer: BaseScorer, graphs: Sequence[ModelGraph]) -> None:
        self._scorer = scorer
        self._graphs = list(graphs)

    @property
    def reads_earlier_layers(self) -> bool:
        """Whether the choice in a layer reads weights of earlier layers, so that these weights may be replaced only after it."""
        return any(entry.follows or len(entry.prunable) > 1 for entry in self._graphs)

    def __call__(self, layer: str, keep: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """Choose a keep mask of as many neurons as `keep`, by new activations, (n,) float64; later calls use these too."""
        index, place = next(
            (index, place)
            for index, entry in enumerate(self._graphs)
            for place in entry.prunable
            if place.layer.name == layer
        )
        entry = self._graphs[index] = self._graphs[index].with_norms(place, activations)
        # The graph is ranked together with the graphs before it on the same residual stream.
        start = index
        while self._graphs[start].follows:
            start -= 1
        importance = entry.importance(rank_graphs(self._scorer, self._graphs[start : index + 1])[-1])[layer]
        heads = place.layer.heads
        if heads is not None:
            of_units = importance.view(heads.n_units, heads.unit_size).sum(1)
            kept = keep_highest(of_units, int(keep.sum()) // heads.unit_size)
            return kept.repeat_interleave(heads.unit_size)
        return keep_highest(importance, int(keep.sum()))
