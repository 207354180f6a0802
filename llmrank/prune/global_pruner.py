"""One budget for all layers together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from llmrank.errors import OptionError
from llmrank.models.costs import ModelCosts, Unit
from llmrank.prune.amounts import Protect, global_count
from llmrank.prune.base_pruner import BasePruner
from llmrank.prune.layer_record import LayerRecord, ascending_positions, bare_record, importance_of

__all__ = ["GlobalPruner", "Normalize"]

Normalize = Literal["auto", "zscore", "robust", "mean", "none"]


class GlobalPruner(BasePruner):
    """The ``ceil(amount * N)`` lowest neurons of all layers together, so that widths differ by layer.

    Parameters
    ----------
    amount, min_keep, multiple_of, protect, of
        As for :class:`BasePruner`; a layer down to `min_keep` is passed over for the next lowest.
    normalize : {"auto", "zscore", "robust", "mean", "none"}
        How scores of layers of different width are made comparable: standardised by mean and population deviation, by the
        median and the median absolute deviation from it (the mean one where that is 0), scaled to mean 1, or not at all
        (the paper's). Auto is zscore, and none for layers named by a `structure_dict`. A few very high scores make the rest of a
        layer look average by zscore, and spare it; not so by the median.
    per_cost : bool
        Compare what a neuron is worth for what it costs: the scores divided by the neuron's parameters, or by its bytes or
        FLOPs where `of` is of these. It matters where neurons of different layers cost differently, as in MLPs whose layers
        differ in width. A ratio needs scores that count from zero: it goes with mean (auto then) and none.

    Raises
    ------
    OptionError
        An unknown normalisation, or one that does not go with `per_cost`, or as for :class:`BasePruner`.

    Examples
    --------
    >>> layers = [LayerRecord("a", torch.tensor([0.1, 0.7, 0.2])), LayerRecord("b", torch.tensor([0.6, 0.4]))]
    >>> {name: keep.tolist() for name, keep in GlobalPruner(2, normalize="none").prune(layers).items()}
    {'a': [False, True, False], 'b': [True, True]}
    """

    def __init__(
        self,
        amount: float | int = 0.3,
        min_keep: int = 1,
        multiple_of: int = 1,
        normalize: Normalize = "auto",
        *,
        per_cost: bool = False,
        protect: Protect = (),
        of: Unit = "neurons",
    ) -> None:
        super().__init__(amount, min_keep, multiple_of, protect=protect, of=of)
        if normalize not in ("auto", "zscore", "robust", "mean", "none"):
            raise OptionError(f"unknown normalize {normalize!r}; expected auto, zscore, robust, mean or none")
        if per_cost and normalize in ("zscore", "robust"):
            raise OptionError(
                f"per_cost divides scores, and those of normalize={normalize!r} may be negative; use mean or none with it"
            )
        self.normalize: Normalize = normalize
        self.per_cost = per_cost

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        """One order over all layers; every record gets its keep mask."""
        total = sum(layer.out_features for layer in layer_list)
        remove = global_count(self.amount, total)
        free = [layer for layer in layer_list if not layer.protected]
        most = sum(max(layer.out_features - self.min_keep, 0) for layer in free)
        if free and remove > most:
            which = "" if len(free) == len(layer_list) else " that are not protected"
            raise OptionError(
                f"removing {remove} of {total} neurons leaves fewer than min_keep={self.min_keep} in each of "
                f"{len(free)} layers{which}; lower the amount: at most {most} neurons can go"
            )
        for layer, positions in zip(layer_list, self.removal_positions(layer_list), strict=True):
            layer.pruning_mask = positions >= min(remove, total)

    def check(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None = None) -> None:
        """See :meth:`BasePruner.check`; how many can go follows from the sizes."""
        plain = GlobalPruner(self.amount, self.min_keep, self.multiple_of, protect=self.protect, of=self.of)
        plain.prune([bare_record(layer.name, layer.out_features) for layer in layer_list], costs)

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
            and all of protected ones come last, where no permitted amount reaches; those that are gone come first.

        Raises
        ------
        LLMRankError
            Importance that is not finite, or with `per_cost` a record without its cost.

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
        protected = torch.cat(
            [
                torch.arange(len(p)) >= (0 if layer.protected else len(p) - self.min_keep)
                for layer, p in zip(layer_list, own, strict=True)
            ]
        )
        order = torch.argsort(standing, stable=True)
        order = torch.cat([order[~protected[order]], order[protected[order]]])
        together = torch.split(torch.argsort(order), [len(p) for p in own])
        return [positions[p] for positions, p in zip(together, own, strict=True)]

    def _normalised(self, layer: LayerRecord) -> torch.Tensor:
        """What a neuron is worth among those of all layers; those that are gone count for nothing, and go first."""
        values = importance_of(layer)
        there = layer.there
        standing = _standing(values[there], self._normalisation(layer))
        if self.per_cost:
            standing = standing / self._cost(layer)
        return torch.full_like(values, -torch.inf).masked_scatter(there, standing)

    def _normalisation(self, layer: LayerRecord) -> Normalize:
        if self.normalize != "auto":
            return self.normalize
        if layer.explicit:
            return "none"
        return "mean" if self.per_cost else "zscore"

    def _cost(self, layer: LayerRecord) -> int:
        if layer.cost is None:
            raise OptionError(
                f"the record of {layer.name} carries no cost to divide by; run the pruner in a pipeline, or set record.cost"
            )
        unit = "parameters" if self.of == "neurons" else self.of.removeprefix("ffn-")
        cost: int = getattr(layer.cost, unit)
        return cost


def _standing(values: torch.Tensor, normalize: Normalize) -> torch.Tensor:
    if normalize == "mean":
        mean = values.mean()
        return values / mean if mean > 0 else values
    if normalize == "none":
        return values
    # A constant layer has no standing among others: round-off must not make one up.
    if float(values.max() - values.min()) <= 1e-9 * float(values.abs().max()):
        return torch.zeros_like(values)
    if normalize == "zscore":
        return (values - values.mean()) / values.std(correction=0)
    centred = values - _median(values)
    deviation = _median(centred.abs())
    # Where half of the neurons are worth the same, there is still the other half.
    return centred / (deviation if deviation > 0 else centred.abs().mean())


def _median(values: torch.Tensor) -> torch.Tensor:
    """Halfway between the two in the middle of an even number."""
    ascending, middle = values.sort().values, (len(values) - 1) // 2
    return (ascending[middle] + ascending[len(values) // 2]) / 2
