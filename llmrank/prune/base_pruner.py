"""The base class of pruners: subclasses set scores or masks on the records of layers, from which it makes the keep masks."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

import torch

from llmrank.errors import LLMRankError, OptionError, check_choice, check_count
from llmrank.models.costs import UNITS, ModelCosts, Unit, unit_name
from llmrank.prune.amounts import (
    Multiple,
    Protect,
    check_amount,
    check_multiple,
    check_protect,
    default_multiple,
    local_count,
    protected_names,
    round_width,
)
from llmrank.prune.masks import Masks
from llmrank.prune.records.layer_record import LayerRecord, record_of_size
from llmrank.prune.records.order import ascending_positions, keep_highest
from llmrank.prune.records.units import Target, sharing_targets

__all__ = ["BasePruner"]


class BasePruner:
    """Base class of all pruners. Override :meth:`extract_scores`.

    Parameters
    ----------
    amount : float or int
        Share (float, [0, 1)) or number (int) of neurons to remove: from each layer (local pruning), or from all
        layers together (global pruning). If a pipeline removes experts, `amount`, `min_keep` and `multiple_of` count experts.
    min_keep : int
        Smallest number of neurons that a layer keeps; a layer with fewer neurons keeps all. Local pruning refuses an amount that
        would leave fewer.
    multiple_of : int or "auto"
        The number of neurons that a layer keeps is rounded to the nearest multiple of this, see :func:`round_width`; 1 rounds
        nothing. "auto" rounds the widths of large layers to multiples of 64 or 32, which are fast and can be quantised, see
        :func:`default_multiple`. It does not round if `amount` is a number of neurons, if experts are removed, or if layers do
        not get smaller (those of a `structure_dict`).
    protect : str, int, or sequence of them
        Layers from which nothing is removed: names or patterns (``"model.layers.0"``, ``"*.encoder.*"``) and positions (0, -1),
        see :func:`protected_names`. A share of all layers together counts the neurons of protected layers too, so the other
        layers lose more.
    amount_of : str
        The unit of `amount`: ``"neurons"`` or a cost. The costs of the FFNs' linear maps are ``"ffn-parameters"``,
        ``"ffn-bytes"`` and ``"ffn-flops"`` (for one token), those of the model ``"parameters"``, ``"bytes"`` and ``"flops"``.
        ``"cache"`` are the bytes of the KV cache for one token; only heads can be removed by it. An amount of a cost
        is a total over all layers. The fewest neurons that save at least this amount are removed, with widths that are rounded.

    Attributes
    ----------
    needs_sensitivity : bool
        Class attribute: whether a pipeline must measure :attr:`LayerRecord.sensitivity` before pruning.
    shares_measured : tuple of float
        Class attribute: the shares of each layer that a pipeline removes to measure its losses; empty for one loss, of `amount`.
    joins_targets : bool
        Class attribute: whether one amount of a cost can cover neurons and heads together.

    Raises
    ------
    OptionError
        An option is out of range or not finite.

    Examples
    --------
    >>> class FirstHalf(BasePruner):
    ...     def extract_scores(self, layer_list):
    ...         for layer in layer_list:
    ...             layer.pruning_mask = torch.arange(layer.out_features) < layer.out_features // 2
    >>> FirstHalf(0.5).prune([LayerRecord("mlp", torch.ones(4) / 4)])["mlp"].tolist()
    [True, True, False, False]
    """

    # The name on the command line and in the registries.
    name: ClassVar[str]

    needs_sensitivity: ClassVar[bool] = False
    shares_measured: ClassVar[tuple[float, ...]] = ()
    joins_targets: ClassVar[bool] = False

    def __init__(
        self,
        amount: float | int = 0.3,
        min_keep: int = 1,
        multiple_of: Multiple = "auto",
        *,
        protect: Protect = (),
        amount_of: Unit = "neurons",
    ) -> None:
        self.amount = check_amount(amount)
        check_count("min_keep", min_keep)
        check_choice("amount_of", amount_of, UNITS)
        self.min_keep = min_keep
        self.multiple_of: Multiple = check_multiple(multiple_of)
        self.protect = check_protect(protect)
        self.amount_of: Unit = amount_of

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        """Set `pruning_mask` on every record, and `amount` if it differs from the pruner's; see :class:`LayerRecord`."""
        raise NotImplementedError(f"{type(self).__name__} must override extract_scores()")

    def prune(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None = None) -> Masks:
        """Compute the keep masks of all layers.

        Parameters
        ----------
        layer_list : sequence of LayerRecord
            The `pruning_mask`, `amount` and `protected` of the records are overwritten.
        costs : ModelCosts, optional
            Costs of the model, needed if the amount is a cost.

        Returns
        -------
        Masks
            For each layer an (n,) bool tensor; True = kept.

        Raises
        ------
        OptionError
            The amount is more than can be removed (the message says how much can); an entry of `protect` selects no layer; the
            costs are missing.
        LLMRankError
            `extract_scores` set no usable `pruning_mask` on a record.

        Notes
        -----
        An amount of a cost takes about log2(N) calls of `extract_scores`, where N is the number of neurons in all layers.
        """
        self._mark_protected(layer_list)
        return self.with_neuron_share(layer_list, costs)._choose_masks(layer_list)

    def _mark_protected(self, layer_list: Sequence[LayerRecord]) -> None:
        """Set `protected` on every record."""
        protected = protected_names(self.protect, [layer.name for layer in layer_list])
        for layer in layer_list:
            layer.protected = layer.name in protected

    def check(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None = None) -> None:
        """Raise if the options are impossible for these layers, whatever their scores.

        Pipelines call this method before they measure anything. The base class refuses entries of `protect` that select no layer,
        and amounts of a cost that are more than can be removed; subclasses may override it to refuse more. Only the names and
        sizes of the layers may be used.

        Raises
        ------
        OptionError
            See :meth:`prune`.
        """
        protected = protected_names(self.protect, [layer.name for layer in layer_list])
        if self.amount_of == "neurons":
            return
        target, costs = self._cost_to_remove(costs)
        smallest_widths: dict[str, int] = {}
        for layer in layer_list:
            if layer.name not in protected:
                fewest = self.fewest(layer)
                width = round_width(fewest, layer.out_features, self.multiple_for(layer), fewest)
                smallest_widths |= layer.widths(width)
        most = costs.removed_cost(smallest_widths, self.amount_of)
        if target > most:
            raise self._amount_error(most, costs, layer_list)

    def _check_as(self, kind: type[BasePruner], layer_list: Sequence[LayerRecord], costs: ModelCosts | None) -> None:
        """Prune records of these sizes as a pruner of this kind does, so that an impossible amount raises."""
        pruner = kind(self.amount, self.min_keep, self.multiple_of, protect=self.protect, amount_of=self.amount_of)
        pruner.prune([record_of_size(layer.name, layer.out_features, layer.units) for layer in layer_list], costs)

    def parts(self, targets: Sequence[Target]) -> list[tuple[Target, ...]]:
        """Divide targets into those that share one amount, and others.

        >>> BasePruner(0.3).parts(["neurons", "experts", "heads"])
        [('neurons', 'experts'), ('heads',)]
        """
        together = self.joins_targets and self.amount_of != "neurons" and set(targets) == {"neurons", "heads"}
        return [tuple(targets)] if together else sharing_targets(targets)

    def fewest(self, layer: LayerRecord) -> int:
        """Return the smallest number of neurons that a layer keeps; `min_keep` does not count for units of which it has few."""
        return layer.min_keep if _has_few(layer) else max(self.min_keep, layer.min_keep)

    def _possible_count(self, layer: LayerRecord) -> int:
        """Return how many neurons the amount removes from a layer, or fewer if the layer cannot lose so many."""
        return min(local_count(self.amount, layer.out_features), layer.out_features - self.fewest(layer))

    def multiple_for(self, layer: LayerRecord) -> int:
        """Return the multiple to which the number of neurons that a layer keeps is rounded.

        If the amount is a cost, it is the largest multiple that "auto" may choose, because the share of neurons is not known yet.
        """
        multiple = self.multiple_of
        if _has_few(layer):
            return layer.multiple_of
        if multiple == "auto":
            share = self.amount if self.amount_of == "neurons" else 1.0
            rounds = not layer.explicit and (layer.units is None or layer.units.target == "neurons")
            multiple = default_multiple(share, layer.out_features, self.fewest(layer)) if rounds else 1
        return math.lcm(multiple, layer.multiple_of)

    def routers_limit(self, layer_list: Sequence[LayerRecord]) -> bool:
        """Whether the routers of some mixtures need more experts than `min_keep`."""
        return any(layer.min_keep > self.min_keep for layer in layer_list)

    def amount_in_neurons(self, layer_list: Sequence[LayerRecord]) -> float | int:
        """Return the amount in neurons.

        If it is an integer and all units are equally large, it counts units, and is converted. Otherwise it is returned as it is.
        """
        sizes = {layer.neurons_per_unit for layer in layer_list}
        return self.amount * sizes.pop() if isinstance(self.amount, int) and len(sizes) == 1 else self.amount

    def for_groups(
        self, groups: Sequence[Sequence[LayerRecord]], names: Sequence[str] | None = None
    ) -> list[BasePruner]:
        """Return a pruner like this one for each group of layers.

        Positions in `protect` count through all groups, or through `names` if these are given.
        """
        if not self.protect:
            return [self] * len(groups)
        protected = protected_names(self.protect, names or [layer.name for group in groups for layer in group])
        pruners = []
        for group in groups:
            pruners.append(copy.copy(self))
            pruners[-1].protect = tuple(k for k, layer in enumerate(group) if layer.name in protected)
        return pruners

    def with_exact_share(self) -> BasePruner:
        """Return a copy of this pruner that rounds no widths, unless `multiple_of` is a number."""
        pruner = copy.copy(self)
        pruner.multiple_of = 1 if self.multiple_of == "auto" else self.multiple_of
        return pruner

    def with_neuron_share(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None) -> BasePruner:
        """Return a copy whose amount is the smallest share of neurons that, with rounded widths, reaches the cost."""
        if self.amount_of == "neurons":
            return self
        target, costs = self._cost_to_remove(costs)
        n_neurons = max(sum(layer.out_features for layer in layer_list), 1)
        trial = copy.copy(self)
        trial.amount, trial.amount_of = 0.0, "neurons"
        # With amount 0, this call raises all errors that have another cause than the amount. In the loop the amount is the cause.
        most = costs.removed_cost(_widths(layer_list, trial._choose_masks(layer_list)), self.amount_of)
        # A bisection: removing `low` neurons is too little; removing `high` neurons is enough, or impossible.
        low, high, reached = -1 if most >= target else 0, n_neurons, False
        while high - low > 1:
            middle = (low + high) // 2
            trial.amount = _share_of_count(middle, n_neurons)
            try:
                widths = _widths(layer_list, trial._choose_masks(layer_list))
            except OptionError:  # `middle` is more than can be removed
                high = middle
                continue
            removed = costs.removed_cost(widths, self.amount_of)
            if removed >= target:
                high, reached = middle, True
            else:
                low, most = middle, max(most, removed)
        if not reached:
            raise self._amount_error(most, costs, layer_list)
        trial.amount = _share_of_count(high, n_neurons)
        return trial

    def _cost_to_remove(self, costs: ModelCosts | None) -> tuple[Fraction, ModelCosts]:
        """Return the amount as an absolute cost, and the costs of the model; raise if these are missing."""
        if costs is None:
            raise OptionError(
                f"an amount of {unit_name(self.amount_of)} needs the costs of the model; run the pruner in a pipeline, or pass "
                "costs=ModelCosts(model, ffns)"
            )
        if not costs.total(self.amount_of):
            raise OptionError(
                f"these layers have no {unit_name(self.amount_of)} that could be removed; expected another unit than "
                f"{self.amount_of!r}, or other targets"
            )
        if isinstance(self.amount, int):
            return Fraction(self.amount), costs
        return Fraction(repr(float(self.amount))) * costs.total(self.amount_of), costs

    def _amount_error(self, most: int, costs: ModelCosts, layer_list: Sequence[LayerRecord]) -> OptionError:
        """Make the error for an amount above `most`, the largest cost that can be removed."""
        total = costs.total(self.amount_of)
        asked = f"{self.amount:,} of {total:,}" if isinstance(self.amount, int) else f"{self.amount:.1%} of the"
        possible = f"{most:,}" if isinstance(self.amount, int) else _percent(most / total if total else 0.0)
        kept = " and the protected layers all of theirs" if self.protect else ""
        multiple = max(self.multiple_for(layer) for layer in layer_list)
        rounded = f", and a multiple of {multiple} (multiple_of)" if multiple > 1 else ""
        attention = "" if any(_has_few(layer) for layer in layer_list) else "attention, "
        rest = "" if self.amount_of.startswith("ffn-") else f", and {attention}embeddings and norms are not pruned"
        units = layer_list[0].units
        if self.amount_of == "cache" and not most and not self.protect:
            return OptionError(
                f"{asked} {unit_name(self.amount_of)} cannot be removed: in each attention all heads share one key and one "
                "value, which stay; use another unit (amount_of)"
            )
        if self.amount_of == "cache":
            return OptionError(
                f"{asked} {unit_name(self.amount_of)} cannot be removed: at most {possible} can, because each attention keeps a "
                f"key and a value{kept}; lower the amount"
            )
        if units is not None and units.target == "blocks":
            return OptionError(
                f"{asked} {unit_name(self.amount_of)} cannot be removed: at most {possible} can, because one block stays"
                f"{' and protected ones do' if self.protect else ''}; lower the amount"
            )
        return OptionError(
            f"{asked} {unit_name(self.amount_of)} cannot be removed: at most {possible} can, because each layer keeps "
            f"{self.min_keep} neuron{'s' if self.min_keep > 1 else ''} (min_keep){rounded}{kept}{rest}; lower the amount"
        )

    def _choose_masks(self, layer_list: Sequence[LayerRecord]) -> Masks:
        for layer in layer_list:
            layer.pruning_mask, layer.amount = None, None
        self.extract_scores(layer_list)
        return Masks({layer.name: self._keep_mask(layer) for layer in layer_list})

    def _keep_mask(self, layer: LayerRecord) -> torch.Tensor:
        """Make the keep mask of a layer from the mask or scores that `extract_scores` set."""
        n = layer.out_features
        if layer.protected:
            return torch.ones(n, dtype=torch.bool)
        mask = layer.pruning_mask
        if mask is None:
            raise LLMRankError(
                f"{type(self).__name__}.extract_scores set no pruning_mask on {layer.name}; set one on every record"
            )
        mask = torch.as_tensor(mask).detach().cpu()
        if mask.dtype in (torch.bool, torch.uint8):
            if mask.shape != (n,):
                raise LLMRankError(f"{layer.name}: expected a keep mask of shape ({n},), got {tuple(mask.shape)}")
            keep, scores = mask.bool(), layer.importance.double().cpu()
        else:
            if mask.shape[:1] != (n,) or mask.ndim > 2 or not mask.is_floating_point():
                raise LLMRankError(
                    f"{layer.name}: expected float scores of shape ({n},) or ({n}, in), or a bool / uint8 keep mask, got "
                    f"{mask.dtype} of shape {tuple(mask.shape)}"
                )
            scores = mask.double().abs()
            scores = scores.sum(1) if scores.ndim == 2 else scores
            if not bool(torch.isfinite(scores).all()):
                raise LLMRankError(
                    f"{layer.name}: the scores of {type(self).__name__} are not finite; check the importance and extract_scores"
                )
            amount = check_amount(self.amount if layer.amount is None else layer.amount)
            keep = keep_highest(scores, max(n - local_count(amount, n), 0))
        kept, fewest = int(keep.sum()), self.fewest(layer)
        if kept < min(fewest, n):
            what = "neurons" if layer.units is None else layer.units.counted
            limit = f"min_keep={self.min_keep}" if fewest == self.min_keep else f"the {fewest} that the router needs"
            raise OptionError(
                f"{layer.name} would keep {kept} of {n} {what}, fewer than {limit}; lower the amount (at most "
                f"{max(n - fewest, 0)} of them can be removed){' or min_keep' if fewest == self.min_keep else ''}"
            )
        multiple = self.multiple_for(layer)
        if multiple > 1:
            # The removed neurons come first in this order, then the kept ones, each group by its scores.
            order = ascending_positions(scores) + n * keep.long()
            keep = keep_highest(order, round_width(kept, n, multiple, fewest))
        return keep


def _has_few(layer: LayerRecord) -> bool:
    return layer.units is not None and layer.units.has_few


def _widths(layer_list: Sequence[LayerRecord], masks: Masks) -> dict[str, int]:
    """Return the widths of the model's layers under masks of records."""
    widths: dict[str, int] = {}
    for layer in layer_list:
        widths |= layer.widths(int(masks[layer.name].sum()))
    return widths


def _share_of_count(count: int, n_neurons: int) -> float:
    """Return a share that gives `count` of `n_neurons`, whether it is rounded up or to the nearest number."""
    return max(count - 0.25, 0.0) / n_neurons


def _percent(share: float) -> str:
    """Format a share as a percentage, rounded down, because more may be impossible."""
    return f"{math.floor(share * 1000) / 10:.1f}%"
