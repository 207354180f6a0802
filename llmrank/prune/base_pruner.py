"""The base of all pruners: from what a child says of every record to keep masks."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

import torch

from llmrank.errors import LLMRankError, OptionError
from llmrank.models.costs import UNITS, ModelCosts, Unit, unit_name
from llmrank.prune.amounts import Protect, check_amount, check_protect, local_count, protected_names, round_width
from llmrank.prune.layer_record import LayerRecord, ascending_positions, keep_highest
from llmrank.prune.masks import Masks

__all__ = ["BasePruner"]


class BasePruner:
    """Base of all pruners. Override :meth:`extract_scores`.

    Parameters
    ----------
    amount : float or int
        Share (float, [0, 1)) or number (int) of neurons to remove: of each layer (local pruning), or of all
        layers together (global).
    min_keep : int
        Neurons that every layer keeps at least.
    multiple_of : int
        Kept widths are rounded to the nearest multiple (halfway to the even one, up where that leaves fewer than
        `min_keep`), for hardware; see :func:`round_width`.
    protect : str, int, or sequence of them
        Layers that keep everything: names or patterns (``"model.layers.0"``, ``"*.encoder.*"``) and positions (0, -1), see
        :func:`protected_names`. An amount is of all prunable layers as ever: under one budget for all of them the others
        give more; under the same share for each, each of the others gives that share.
    of : str
        What `amount` is a share or a number of: ``"neurons"``, or what they cost: ``"ffn-parameters"``, ``"ffn-bytes"`` and
        ``"ffn-flops"`` (for a token) of the FFNs' linear maps, ``"parameters"``, ``"bytes"`` and ``"flops"`` of the whole
        model. It is always a total then, and the fewest neurons go that reach it; `multiple_of` rounds afterwards.

    Attributes
    ----------
    needs_sensitivity : bool
        Class attribute; where True a pipeline measures :attr:`LayerRecord.sensitivity` beforehand.

    Raises
    ------
    OptionError
        Out of range or not finite.

    Examples
    --------
    >>> class FirstHalf(BasePruner):
    ...     def extract_scores(self, layer_list):
    ...         for layer in layer_list:
    ...             layer.pruning_mask = torch.arange(layer.out_features) < layer.out_features // 2
    >>> FirstHalf(0.5).prune([LayerRecord("mlp", torch.ones(4) / 4)])["mlp"].tolist()
    [True, True, False, False]
    """

    needs_sensitivity: ClassVar[bool] = False

    def __init__(
        self,
        amount: float | int = 0.3,
        min_keep: int = 1,
        multiple_of: int = 1,
        *,
        protect: Protect = (),
        of: Unit = "neurons",
    ) -> None:
        self.amount = check_amount(amount)
        for name, value in (("min_keep", min_keep), ("multiple_of", multiple_of)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise OptionError(f"{name} must be an integer >= 1, got {value!r}")
        if of not in UNITS:
            raise OptionError(f"unknown unit {of!r} of an amount; expected one of {', '.join(UNITS)}")
        self.min_keep = min_keep
        self.multiple_of = multiple_of
        self.protect = check_protect(protect)
        self.of: Unit = of

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        """Give every record a `pruning_mask`, and where wanted an `amount`; see :class:`LayerRecord`."""
        raise NotImplementedError(f"{type(self).__name__} must override extract_scores()")

    def prune(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None = None) -> Masks:
        """Keep masks of all records.

        Parameters
        ----------
        layer_list : sequence of LayerRecord
            Their masks and amounts are set anew.
        costs : ModelCosts, optional
            Of the model, where the amount is not of neurons.

        Returns
        -------
        Masks
            A (n,) bool tensor a layer, True = kept, by the name of its record.

        Raises
        ------
        OptionError
            An amount that leaves a layer with fewer than `min_keep` neurons, or is more than the FFNs can give (the message
            says how much that is); a protected layer that is not there; costs missing.
        LLMRankError
            `extract_scores` left a record without a usable mask.

        Notes
        -----
        An amount that is not of neurons takes log2(N) rounds of `extract_scores`, N being the neurons of all layers.
        """
        protected = protected_names(self.protect, [layer.name for layer in layer_list])
        for layer in layer_list:
            layer.protected = layer.name in protected
        pruner = self if self.of == "neurons" else self._in_neurons(layer_list, costs)
        return pruner._masks(layer_list)

    def check(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None = None) -> None:
        """Refuse what cannot be whatever the scores, before anything is measured.

        Here: protected layers that are not there, and more of a unit than the FFNs can give. A child whose counts follow
        from its amount checks more.

        Parameters
        ----------
        layer_list : sequence of LayerRecord
            Of which names and sizes are looked at.
        costs : ModelCosts, optional
            As for :meth:`prune`.

        Raises
        ------
        OptionError
            As for :meth:`prune`.
        """
        protected = protected_names(self.protect, [layer.name for layer in layer_list])
        if self.of == "neurons":
            return
        target, costs = self._target(costs), self._costs(costs)
        least = {
            layer.name: min(self.min_keep, layer.out_features) for layer in layer_list if layer.name not in protected
        }
        most = costs.removed(least, self.of)
        if target > most:
            raise self._impossible(most, costs)

    def apart(self, groups: Sequence[Sequence[LayerRecord]]) -> list[BasePruner]:
        """A pruner like this one for each of several groups by itself; what is protected is looked for in all of them."""
        if not self.protect:
            return [self] * len(groups)
        protected = protected_names(self.protect, [layer.name for group in groups for layer in group])
        pruners = []
        for group in groups:
            pruners.append(copy.copy(self))
            pruners[-1].protect = tuple(k for k, layer in enumerate(group) if layer.name in protected)
        return pruners

    def towards(self, amount: float | int) -> BasePruner:
        """A pruner like this one, on the way to its amount: with a smaller one, and widths as they come."""
        step = copy.copy(self)
        step.amount, step.multiple_of = check_amount(amount), 1
        return step

    def _in_neurons(self, layer_list: Sequence[LayerRecord], costs: ModelCosts | None) -> BasePruner:
        """A pruner like this one, with the smallest share of neurons whose removal reaches the amount."""
        target, costs = self._target(costs), self._costs(costs)
        total = sum(layer.out_features for layer in layer_list)
        trial = self.towards(0.0)
        trial.of = "neurons"
        # Of nothing: what is wrong with more than the amount is said here.
        most = costs.removed(trial._masks(layer_list).widths, self.of)
        low, high, reached = -1 if most >= target else 0, max(total, 1), False
        while high - low > 1:
            middle = (low + high) // 2
            # A quarter less: rounded up as well as to the nearest it is this number of all neurons.
            trial.amount = max(middle - 0.25, 0.0) / max(total, 1)
            try:
                widths = trial._masks(layer_list).widths
            except OptionError:  # more than the layers have
                high = middle
                continue
            removed = costs.removed(widths, self.of)
            if removed >= target:
                high, reached = middle, True
            else:
                low, most = middle, max(most, removed)
        if not reached:
            raise self._impossible(most, costs)
        trial.amount, trial.multiple_of = max(high - 0.25, 0.0) / max(total, 1), self.multiple_of
        return trial

    def _costs(self, costs: ModelCosts | None) -> ModelCosts:
        if costs is None:
            raise OptionError(
                f"an amount of {unit_name(self.of)} needs the costs of the model; run the pruner in a pipeline, or pass "
                "costs=ModelCosts(model, ffns)"
            )
        return costs

    def _target(self, costs: ModelCosts | None) -> Fraction:
        if isinstance(self.amount, int):
            return Fraction(self.amount)
        return Fraction(repr(float(self.amount))) * self._costs(costs).whole(self.of)

    def _impossible(self, most: int, costs: ModelCosts) -> OptionError:
        whole = costs.whole(self.of)
        asked = f"{self.amount:,} of {whole:,}" if isinstance(self.amount, int) else f"{self.amount:.1%} of the"
        possible = f"{most:,}" if isinstance(self.amount, int) else _percent(most / whole if whole else 0.0)
        kept = " and the protected layers" if self.protect else ""
        rest = "" if self.of.startswith("ffn-") else ", and attention, embeddings and norms stay"
        return OptionError(
            f"{asked} {unit_name(self.of)} cannot be removed: at most {possible} can, for each layer keeps "
            f"{self.min_keep} neuron{'s' if self.min_keep > 1 else ''} (min_keep){kept}{rest}; lower the amount"
        )

    def _masks(self, layer_list: Sequence[LayerRecord]) -> Masks:
        for layer in layer_list:
            layer.pruning_mask, layer.amount = None, None
        self.extract_scores(layer_list)
        return Masks({layer.name: self._resolve(layer) for layer in layer_list})

    def _resolve(self, layer: LayerRecord) -> torch.Tensor:
        if layer.protected:
            return torch.ones(layer.out_features, dtype=torch.bool)
        mask = layer.pruning_mask
        if mask is None:
            raise LLMRankError(f"{type(self).__name__}.extract_scores gave {layer.name} no pruning_mask")
        mask = torch.as_tensor(mask).detach().cpu()
        n, gone = layer.out_features, layer.gone
        if mask.dtype in (torch.bool, torch.uint8):
            if mask.shape != (n,):
                raise LLMRankError(f"{layer.name}: expected a keep mask of shape ({n},), got {tuple(mask.shape)}")
            keep = mask.bool() & layer.there
            scores = layer.importance.double().cpu().where(layer.there, -torch.inf)
        else:
            if mask.shape[:1] != (n,) or mask.ndim > 2 or not mask.is_floating_point():
                raise LLMRankError(
                    f"{layer.name}: expected float scores of shape ({n},) or ({n}, in), or a bool / uint8 keep mask, got "
                    f"{mask.dtype} of shape {tuple(mask.shape)}"
                )
            scores = mask.double().abs()
            scores = scores.sum(1) if scores.ndim == 2 else scores
            if not bool(torch.isfinite(scores).all()):
                raise LLMRankError(f"{layer.name}: the scores of {type(self).__name__} are not finite")
            scores = scores.where(layer.there, -torch.inf)
            amount = check_amount(self.amount if layer.amount is None else layer.amount)
            keep = keep_highest(scores, max(n - max(local_count(amount, n), gone), 0))
        kept = int(keep.sum())
        if kept < self.min_keep:
            raise OptionError(
                f"{layer.name} would keep {kept} of {n} neurons, fewer than min_keep={self.min_keep}; lower the amount (at most "
                f"{max(n - self.min_keep, 0)} of them can go) or min_keep"
            )
        if self.multiple_of > 1:
            # What goes anyway is lower than all that stays.
            order = ascending_positions(scores) + n * keep.long()
            keep = keep_highest(order, self._rounded(kept, n, n - gone))
        return keep

    def _rounded(self, kept: int, n: int, there: int) -> int:
        """The width of a layer of `n` neurons, of which some are there; what is gone does not come back to fill it up."""
        width = round_width(kept, n, self.multiple_of, self.min_keep)
        if width <= there:
            return width
        lower = there - there % self.multiple_of
        return lower if lower >= self.min_keep else there


def _percent(share: float) -> str:
    """Rounded down: an amount that can be asked for."""
    return f"{math.floor(share * 1000) / 10:.1f}%"
