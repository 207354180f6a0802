"""Which neurons stay, chosen anew once it is known what the others explain of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmrank.prune import keep_highest
from llmrank.prune.masks import Masks
from llmrank.score import BaseScorer
from llmrank.score.model_graph import ModelGraph
from llmrank.score.rank_graphs import rank_graphs

__all__ = ["Reselection"]


class Reselection:
    """Ranks a layer's graph again, with other activations of that layer, and keeps as many neurons as were kept before.

    Parameters
    ----------
    scorer : BaseScorer
    graphs : sequence of ModelGraph
        As they were ranked first.
    among : Masks, optional
        What earlier steps have left there; nothing else is chosen.

    Notes
    -----
    Cost: a rank of the graph that holds the layer, and of those that it follows; in a chain that is the whole chain, for every
    layer.
    """

    def __init__(self, scorer: BaseScorer, graphs: Sequence[ModelGraph], among: Masks | None = None) -> None:
        self._scorer = scorer
        self._among = among
        self._graphs = list(graphs)

    @property
    def looks_back(self) -> bool:
        """Whether the choice in a layer reads weights that lead to it from layers before it that were chosen in."""
        return any(entry.follows or len(entry.prunable) > 1 for entry in self._graphs)

    def __call__(self, layer: str, keep: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """The keep mask of a layer.

        Parameters
        ----------
        layer : str
            Its name.
        keep : (n,) bool tensor
            What was to stay.
        activations : (n,) float64 tensor
            What stands for those of its neurons, from now on.

        Returns
        -------
        (n,) bool tensor
            With as many kept.
        """
        index, position = next(
            (index, position)
            for index, entry in enumerate(self._graphs)
            for position, prunable in entry.prunable.items()
            if prunable.name == layer
        )
        entry = self._graphs[index] = self._graphs[index].with_norms(position, activations)
        start = index
        while self._graphs[start].follows:
            start -= 1
        importance = entry.importance(rank_graphs(self._scorer, self._graphs[start : index + 1])[-1])[layer]
        if self._among is not None:
            importance = importance.where(self._among[layer], -torch.inf)
        return keep_highest(importance, int(keep.sum()))
