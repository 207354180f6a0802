"""The same share of every layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmrank.models.costs import ModelCosts
from llmrank.prune.base_pruner import BasePruner
from llmrank.prune.layer_record import LayerRecord, ascending_positions, bare_record, importance_of

__all__ = ["LocalPruner"]


class LocalPruner(BasePruner):
    """The same share of every layer: its ``round(amount * n)`` lowest neurons go.

    Parameters
    ----------
    amount, min_keep, multiple_of, protect, of
        As for :class:`BasePruner`; of another unit than neurons `amount` is the total, to which every layer gives the same share
        of its neurons.

    Examples
    --------
    >>> layers = [LayerRecord("a", torch.tensor([0.1, 0.7, 0.2])), LayerRecord("b", torch.tensor([0.6, 0.4]))]
    >>> {name: keep.tolist() for name, keep in LocalPruner(0.5).prune(layers).items()}
    {'a': [False, True, False], 'b': [True, False]}
    """

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        """The importance of each layer is its score."""
        for layer in layer_list:
            layer.pruning_mask = layer.importance

    def check(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None = None) -> None:
        """See :meth:`BasePruner.check`; the counts follow from the sizes."""
        plain = LocalPruner(self.amount, self.min_keep, self.multiple_of, protect=self.protect, of=self.of)
        plain.prune([bare_record(layer.name, layer.out_features) for layer in layer_list], costs)

    def removal_positions(self, layer_list: Sequence[LayerRecord]) -> list[torch.Tensor]:
        """When pruning comes to a neuron: how many of its layer go before it.

        Those of a position below :func:`local_count` of the amount go, but of protected layers; `multiple_of` moves that
        limit.

        Parameters
        ----------
        layer_list : sequence of LayerRecord

        Returns
        -------
        list of (n,) int64 tensors
            One a layer, a permutation of 0..n-1, whatever the amount.

        Raises
        ------
        LLMRankError
            Importance that is not finite.

        Examples
        --------
        >>> layers = [LayerRecord("a", torch.tensor([0.1, 0.7, 0.2])), LayerRecord("b", torch.tensor([0.6, 0.4]))]
        >>> [positions.tolist() for positions in LocalPruner().removal_positions(layers)]
        [[0, 2, 1], [1, 0]]
        """
        return [ascending_positions(importance_of(layer)) for layer in layer_list]
