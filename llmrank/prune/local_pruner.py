"""Local pruning: every layer loses the same share, or the same number, of its neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from llmrank.models.costs import ModelCosts
from llmrank.prune.base_pruner import BasePruner
from llmrank.prune.records.layer_record import LayerRecord, importance_of
from llmrank.prune.records.order import ascending_positions

__all__ = ["LocalPruner"]


class LocalPruner(BasePruner):
    """Remove the same share of every layer: the lowest ``round(amount * n)`` of its n neurons, or `amount` if it is an int.

    Parameters
    ----------
    amount, min_keep, multiple_of, protect, amount_of
        As for :class:`BasePruner`. If `amount_of` is a cost, `amount` is a total over all layers, and every layer loses the same
        share of its neurons, and every attention of its heads if these are removed too.

    Examples
    --------
    >>> layers = [LayerRecord("a", torch.tensor([0.1, 0.7, 0.2])), LayerRecord("b", torch.tensor([0.6, 0.4]))]
    >>> {name: keep.tolist() for name, keep in LocalPruner(0.5).prune(layers).items()}
    {'a': [False, True, False], 'b': [True, False]}
    """

    name: ClassVar[str] = "local"
    joins_targets: ClassVar[bool] = True

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        """Use the importance of each layer as its scores."""
        few = [layer.units is not None and layer.units.has_few for layer in layer_list]
        for layer, has_few in zip(layer_list, few, strict=True):
            layer.pruning_mask = layer.importance
            # An attention that has lost all that it can does not stop the neurons beside it.
            if has_few and not all(few):
                layer.amount = self._possible_count(layer)

    def check(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None = None) -> None:
        """See :meth:`BasePruner.check`. It refuses every amount that is impossible for layers of these sizes."""
        self._check_as(LocalPruner, layer_list, costs)

    def removal_positions(self, layer_list: Sequence[LayerRecord]) -> list[torch.Tensor]:
        """Return for every neuron how many neurons of its layer are removed before it.

        An amount of neurons removes the neurons at positions below ``local_count(amount, n)``, except in protected layers; see
        :func:`llmrank.prune.local_count`. An amount of a cost sets another limit. Then `multiple_of` rounds the widths.

        Parameters
        ----------
        layer_list : sequence of LayerRecord

        Returns
        -------
        list of (n,) int64 tensors
            For each layer a permutation of 0..n-1; the amount does not change it.

        Raises
        ------
        LLMRankError
            The importance is not finite.

        Examples
        --------
        >>> layers = [LayerRecord("a", torch.tensor([0.1, 0.7, 0.2])), LayerRecord("b", torch.tensor([0.6, 0.4]))]
        >>> [positions.tolist() for positions in LocalPruner().removal_positions(layers)]
        [[0, 2, 1], [1, 0]]
        """
        return [ascending_positions(importance_of(layer)) for layer in layer_list]
