"""Global pruning: one budget for all layers together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias, get_args

import torch

from llmrank.errors import check_choice
from llmrank.models.costs import ModelCosts, Unit
from llmrank.prune.amounts import Multiple, Protect, check_removable, global_count
from llmrank.prune.base_pruner import BasePruner
from llmrank.prune.records.layer_record import LayerRecord, importance_of
from llmrank.prune.records.order import ascending_positions

__all__ = ["GlobalPruner", "Normalize"]

Normalize: TypeAlias = Literal["auto", "zscore", "robust", "mean", "none"]


class GlobalPruner(BasePruner):
    """Remove the lowest ``ceil(amount * N)`` of all N neurons, or `amount` if it is an int; layers may lose different shares.

    Parameters
    ----------
    amount, min_keep, multiple_of, protect, amount_of
        See :class:`BasePruner`. When a layer has only `min_keep` neurons left, other layers lose more.
    normalize : {"auto", "zscore", "robust", "mean", "none"}
        How the scores of different layers are made comparable. "zscore" standardises the scores of each layer by their mean and
        population standard deviation. "robust" standardises them by their median and their median absolute deviation from it (if
        that is 0, their mean absolute deviation). "mean" scales them to mean 1. "none" leaves them unchanged, as LLM-Rank does
        (arXiv 2410.13299). "auto" is "robust", but "none" for layers named by a `structure_dict`. A few very high scores make
        the standard deviation of a layer large, and "zscore" then treats its other neurons as average; "robust" does not.

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
        multiple_of: Multiple = "auto",
        normalize: Normalize = "auto",
        *,
        protect: Protect = (),
        amount_of: Unit = "neurons",
    ) -> None:
        super().__init__(amount, min_keep, multiple_of, protect=protect, amount_of=amount_of)
        check_choice("normalize", normalize, get_args(Normalize))
        self.normalize: Normalize = normalize

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        """Order the neurons of all layers, and set a keep mask on every record."""
        n_neurons = [layer.out_features * layer.neurons_per_unit for layer in layer_list]
        protected = [layer.protected for layer in layer_list]
        count = global_count(self.amount_in_neurons(layer_list), sum(n_neurons))
        if not all(protected):
            fewest = [self.fewest(layer) * layer.neurons_per_unit for layer in layer_list]
            check_removable(count, n_neurons, fewest, protected, routed=self.routers_limit(layer_list))
        positions = self.removal_positions(layer_list)
        # How many neurons are removed before each unit, a unit being one neuron or several that are removed together.
        unit_sizes = torch.cat([torch.full((layer.out_features,), layer.neurons_per_unit) for layer in layer_list])
        sizes_in_order = unit_sizes[torch.argsort(torch.cat(positions))]
        removed_before = sizes_in_order.cumsum(0) - sizes_in_order
        for layer, layer_positions in zip(layer_list, positions, strict=True):
            # If all layers are protected, the amount has not been checked, and may be too large for an int64 tensor.
            layer.pruning_mask = removed_before[layer_positions] >= min(count, sum(n_neurons))

    def check(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None = None) -> None:
        """See :meth:`BasePruner.check`. It refuses every amount that is impossible for layers of these sizes."""
        self._check_as(GlobalPruner, layer_list, costs)

    def removal_positions(self, layer_list: Sequence[LayerRecord]) -> list[torch.Tensor]:
        """Return for every neuron how many neurons of all layers are removed before it.

        An amount of neurons removes the neurons at positions below ``global_count(amount, N)``, see :func:`global_count`. If the
        amount is a cost, the limit follows from what each neuron saves. Then `multiple_of` rounds the widths. Within a layer the
        order is the same as for :class:`LocalPruner`.

        Parameters
        ----------
        layer_list : sequence of LayerRecord

        Returns
        -------
        list of (n,) int64 tensors
            One tensor for each layer. Together they are a permutation of 0..N-1, which does not depend on the amount. All neurons
            of protected layers and the `min_keep` highest of every other layer come last.

        Raises
        ------
        LLMRankError
            The importance is not finite.

        Examples
        --------
        >>> layers = [LayerRecord("a", torch.tensor([0.1, 0.7, 0.2])), LayerRecord("b", torch.tensor([0.6, 0.4]))]
        >>> [positions.tolist() for positions in GlobalPruner(normalize="none").removal_positions(layers)]
        [[0, 4, 1], [3, 2]]
        """
        in_layer = [ascending_positions(importance_of(layer)) for layer in layer_list]
        # The values are sorted within each layer first, because different scores may have equal normalised values. The stable
        # sort below keeps the order of such scores.
        values = torch.cat(
            [self._normalised(layer)[torch.argsort(p)] for layer, p in zip(layer_list, in_layer, strict=True)]
        )
        comes_last = torch.cat(
            [
                torch.arange(len(p)) >= (0 if layer.protected else len(p) - self.fewest(layer))
                for layer, p in zip(layer_list, in_layer, strict=True)
            ]
        )
        order = torch.argsort(values, stable=True)
        order = torch.cat([order[~comes_last[order]], order[comes_last[order]]])
        in_model = torch.split(torch.argsort(order), [len(p) for p in in_layer])
        return [positions[p] for positions, p in zip(in_model, in_layer, strict=True)]

    def _normalised(self, layer: LayerRecord) -> torch.Tensor:
        """Return scores that are comparable between layers."""
        normalize = self.normalize
        if normalize == "auto":
            normalize = "none" if layer.explicit else "robust"
        return _normalise(importance_of(layer), normalize)


def _normalise(values: torch.Tensor, normalize: Normalize) -> torch.Tensor:
    if normalize == "mean":
        mean = values.mean()
        return values / mean if mean > 0 else values
    if normalize == "none":
        return values
    # If the scores of a layer are equal up to round-off, all of its neurons are average.
    if float(values.max() - values.min()) <= 1e-9 * float(values.abs().max()):
        return torch.zeros_like(values)
    if normalize == "zscore":
        return (values - values.mean()) / values.std(correction=0)
    centred = values - _median(values)
    deviation = _median(centred.abs())
    # If more than half of the scores are equal, their median deviation is 0, but their mean deviation is not.
    return centred / (deviation if deviation > 0 else centred.abs().mean())


def _median(values: torch.Tensor) -> torch.Tensor:
    """Return the median; for an even number of values the mean of the two in the middle."""
    ascending, middle = values.sort().values, (len(values) - 1) // 2
    return (ascending[middle] + ascending[len(values) // 2]) / 2
