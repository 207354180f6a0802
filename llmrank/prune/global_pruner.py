"""Global pruning: one budget for all layers together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from llmrank.errors import OptionError
from llmrank.models.costs import ModelCosts, Unit
from llmrank.prune.amounts import Protect, global_count
from llmrank.prune.base_pruner import BasePruner
from llmrank.prune.layer_record import LayerRecord, ascending_positions, importance_of, record_of_size

__all__ = ["GlobalPruner", "Normalize"]

Normalize = Literal["auto", "zscore", "robust", "mean", "none"]


class GlobalPruner(BasePruner):
    """Remove the ``ceil(amount * N)`` lowest of all N neurons, so that widths differ between layers.

    Parameters
    ----------
    amount, min_keep, multiple_of, protect, amount_of
        See :class:`BasePruner`; once a layer is down to `min_keep`, the next lowest neuron of another layer is removed instead.
    normalize : {"auto", "zscore", "robust", "mean", "none"}
        How scores of layers of different width are made comparable: "zscore" standardises them by mean and population
        deviation, "robust" by the median and the median absolute deviation from it (the mean one if that is 0), "mean" scales
        them to mean 1, "none" leaves them unchanged (as in the paper). "auto" is zscore, or none for layers named by a
        `structure_dict`. With zscore, a few very high scores make the other neurons of a layer look average, so that they are
        kept; with robust they do not.

    Raises
    ------
    OptionError
        The normalisation is unknown; or see :class:`BasePruner`.

    Examples
    --------
    >>> layers = [LayerRecord("a", torch.tensor([0.1, 0.7, 0.2])), LayerRecord("b", torch.tensor([0.6, 0.4]))]
    >>> {name: keep.tolist() for name, keep in GlobalPruner(2, normalize="none").prune(layers).items()}
    {'a': [False, True, False], 'b': [True, True]}
    """

    name: ClassVar[str] = "global"

    def __init__(
        self,
        amount: float | int = 0.3,
        min_keep: int = 1,
        multiple_of: int = 1,
        normalize: Normalize = "auto",
        *,
        protect: Protect = (),
        amount_of: Unit = "neurons",
    ) -> None:
        super().__init__(amount, min_keep, multiple_of, protect=protect, amount_of=amount_of)
        if normalize not in ("auto", "zscore", "robust", "mean", "none"):
            raise OptionError(f"unknown normalize {normalize!r}; expected auto, zscore, robust, mean or none")
        self.normalize: Normalize = normalize

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        """Order the neurons of all layers, and set a keep mask on every record."""
        total = sum(layer.out_features for layer in layer_list)
        remove = global_count(self.amount, total)
        unprotected = [layer for layer in layer_list if not layer.protected]
        most = sum(max(layer.out_features - self.min_keep, 0) for layer in unprotected)
        if unprotected and remove > most:
            which = "" if len(unprotected) == len(layer_list) else " that are not protected"
            raise OptionError(
                f"removing {remove} of {total} neurons leaves fewer than min_keep={self.min_keep} in each of "
                f"{len(unprotected)} layers{which}; lower the amount: at most {most} neurons can be removed"
            )
        for layer, positions in zip(layer_list, self.removal_positions(layer_list), strict=True):
            layer.pruning_mask = positions >= min(remove, total)

    def check(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None = None) -> None:
        """See :meth:`BasePruner.check`; how many neurons can be removed follows from the sizes."""
        plain = GlobalPruner(
            self.amount, self.min_keep, self.multiple_of, protect=self.protect, amount_of=self.amount_of
        )
        plain.prune([record_of_size(layer.name, layer.out_features) for layer in layer_list], costs)

    def removal_positions(self, layer_list: Sequence[LayerRecord]) -> list[torch.Tensor]:
        """Return for every neuron how many neurons of all layers are removed before it.

        The neurons at positions below :func:`global_count` of the amount are removed; `multiple_of` then moves the limit within
        each layer. Within a layer the order is that of :class:`LocalPruner`: the two differ only in how many neurons a layer
        loses.

        Parameters
        ----------
        layer_list : sequence of LayerRecord

        Returns
        -------
        list of (n,) int64 tensors
            One for each layer, together a permutation of 0..N-1, whatever the amount. The `min_keep` highest of every layer
            and all neurons of protected layers come last, beyond every permitted amount; neurons that earlier steps removed come
            first.

        Raises
        ------
        LLMRankError
            The importance is not finite.

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
        # Each layer is sorted in its own order first: the stable sort below keeps that order where two scores differ but their
        # normalised values are equal.
        values = torch.cat(
            [self._normalised(layer)[torch.argsort(p)] for layer, p in zip(layer_list, own, strict=True)]
        )
        protected = torch.cat(
            [
                torch.arange(len(p)) >= (0 if layer.protected else len(p) - self.min_keep)
                for layer, p in zip(layer_list, own, strict=True)
            ]
        )
        order = torch.argsort(values, stable=True)
        order = torch.cat([order[~protected[order]], order[protected[order]]])
        together = torch.split(torch.argsort(order), [len(p) for p in own])
        return [positions[p] for positions, p in zip(together, own, strict=True)]

    def _normalised(self, layer: LayerRecord) -> torch.Tensor:
        """Return scores that are comparable between layers; minus infinity for neurons that earlier steps removed."""
        values = importance_of(layer)
        present = layer.present_mask
        normalised = _normalise(values[present], self._normalisation(layer))
        return torch.full_like(values, -torch.inf).masked_scatter(present, normalised)

    def _normalisation(self, layer: LayerRecord) -> Normalize:
        if self.normalize != "auto":
            return self.normalize
        return "none" if layer.explicit else "zscore"


def _normalise(values: torch.Tensor, normalize: Normalize) -> torch.Tensor:
    if normalize == "mean":
        mean = values.mean()
        return values / mean if mean > 0 else values
    if normalize == "none":
        return values
    # In a constant layer all neurons are average: round-off must not make a difference.
    if float(values.max() - values.min()) <= 1e-9 * float(values.abs().max()):
        return torch.zeros_like(values)
    if normalize == "zscore":
        return (values - values.mean()) / values.std(correction=0)
    centred = values - _median(values)
    deviation = _median(centred.abs())
    # Where half of the scores are equal, the other half still gives a mean deviation.
    return centred / (deviation if deviation > 0 else centred.abs().mean())


def _median(values: torch.Tensor) -> torch.Tensor:
    """Return the median; of an even number of values the mean of the two in the middle."""
    ascending, middle = values.sort().values, (len(values) - 1) // 2
    return (ascending[middle] + ascending[len(values) // 2]) / 2
