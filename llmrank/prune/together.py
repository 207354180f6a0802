"""One budget for all layers together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from llmrank.errors import OptionError
from llmrank.prune.counts import global_count
from llmrank.prune.order import ascending_positions
from llmrank.prune.pruner import BasePruner
from llmrank.prune.records import LayerRecord, importance_of

__all__ = ["GlobalPruner", "Normalize"]


Normalize = Literal["auto", "zscore", "mean", "none"]


class GlobalPruner(BasePruner):
    """The ``ceil(amount * N)`` lowest neurons of all layers together, so that widths differ by layer.

    Parameters
    ----------
    amount, min_keep, multiple_of
        As for :class:`BasePruner`; a layer down to `min_keep` is passed over for the next lowest.
    normalize : {"auto", "zscore", "mean", "none"}
        How scores of layers of different width are made comparable: standardised by the population
        deviation, scaled to mean 1, or not at all (the paper's). Auto is zscore, and none for layers
        named by a `structure_dict`.

    Raises
    ------
    OptionError
        An unknown normalisation, or as for :class:`BasePruner`.

    Examples
    --------
    >>> layers = [LayerRecord("a", torch.tensor([0.1, 0.7, 0.2])), LayerRecord("b", torch.tensor([0.6, 0.4]))]
    >>> {name: keep.tolist() for name, keep in GlobalPruner(2, normalize="none").prune(layers).items()}
    {'a': [False, True, False], 'b': [True, True]}
    """

    def __init__(
        self, amount: float | int = 0.3, min_keep: int = 1, multiple_of: int = 1, normalize: Normalize = "auto"
    ) -> None:
        super().__init__(amount, min_keep, multiple_of)
        if normalize not in ("auto", "zscore", "mean", "none"):
            raise OptionError(f"unknown normalize {normalize!r}; expected auto, zscore, mean or none")
        self.normalize: Normalize = normalize

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        """One order over all layers; every record gets its keep mask."""
        total = sum(layer.out_features for layer in layer_list)
        remove = global_count(self.amount, total)
        if total - remove < self.min_keep * len(layer_list):
            raise OptionError(
                f"removing {remove} of {total} neurons leaves fewer than min_keep={self.min_keep} in each of "
                f"{len(layer_list)} layers; lower the amount"
            )
        for layer, positions in zip(layer_list, self.removal_positions(layer_list), strict=True):
            layer.pruning_mask = positions >= remove

    def removal_positions(self, layer_list: Sequence[LayerRecord]) -> list[torch.Tensor]:
        """When pruning comes to a neuron: how many of all layers go before it.

        Those of a position below :func:`global_count` of the amount go; `multiple_of` then moves the limit within each
        layer. There the order is that of :class:`LocalPruner`, so the two differ in where they cut, not in what is lower.

        Parameters
        ----------
        layer_list : sequence of LayerRecord

        Returns
        -------
        list of (n,) int64 tensors
            One a layer, together a permutation of 0..N-1, whatever the amount. The `min_keep` highest of every layer
            come last, where no permitted amount reaches.

        Raises
        ------
        LLMRankError
            Importance that is not finite.

        Notes
        -----
        Cost: two sorts.

        Examples
        --------
        >>> layers = [LayerRecord("a", torch.tensor([0.1, 0.7, 0.2])), LayerRecord("b", torch.tensor([0.6, 0.4]))]
        >>> [positions.tolist() for positions in GlobalPruner(normalize="none").removal_positions(layers)]
        [[0, 4, 1], [3, 2]]
        """
        own = [ascending_positions(importance_of(layer)) for layer in layer_list]
        # Every layer in its own order: a stable sort leaves it so where two scores differ by less than their
        # normalised values can say.
        standing = torch.cat(
            [self._normalised(layer)[torch.argsort(p)] for layer, p in zip(layer_list, own, strict=True)]
        )
        protected = torch.cat([torch.arange(len(p)) >= len(p) - self.min_keep for p in own])
        order = torch.argsort(standing, stable=True)
        order = torch.cat([order[~protected[order]], order[protected[order]]])
        together = torch.split(torch.argsort(order), [len(p) for p in own])
        return [positions[p] for positions, p in zip(together, own, strict=True)]

    def _normalised(self, layer: LayerRecord) -> torch.Tensor:
        values = importance_of(layer)
        normalize = self.normalize
        if normalize == "auto":
            normalize = "none" if layer.explicit else "zscore"
        if normalize == "zscore":
            # A constant layer has no standing among others: round-off must not make one up.
            if float(values.max() - values.min()) <= 1e-9 * float(values.abs().max()):
                return torch.zeros_like(values)
            return (values - values.mean()) / values.std(correction=0)
        if normalize == "mean":
            mean = values.mean()
            return values / mean if mean > 0 else values
        return values
