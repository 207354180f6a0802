"""Pruners: from importance to keep masks, under a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal

import torch

from llmrank.errors import LLMRankError, OptionError
from llmrank.masks import Masks

__all__ = ["BasePruner", "GlobalPruner", "LayerRecord", "LocalPruner"]

Normalize = Literal["auto", "zscore", "mean", "none"]


class LayerRecord:
    """One prunable layer as pruners see it.

    Attributes
    ----------
    name : str
    weight : (out, in) tensor
        Non-negative edge weights into the layer; built when read, not kept.
    in_features, out_features : int
    in_activation, out_activation : (in,) and (out,) tensors
        Norms of what the layer reads, and of its own nodes.
    importance : (out,) float64 tensor
        From the scorer, of sum 1.
    pruning_mask : tensor or None
        For the pruner to set. Float: scores, (out,) or (out, in); the rows of lowest L1 norm go. Bool
        or uint8, (out,): the keep mask itself.
    amount : float, int or None
        For the pruner to set: share (float) or number (int) of rows to remove, with a float mask;
        None takes the pruner's own.
    explicit : bool
        Whether the layer was named by a `structure_dict`.
    """

    def __init__(
        self,
        name: str,
        importance: torch.Tensor,
        in_activation: torch.Tensor | None = None,
        out_activation: torch.Tensor | None = None,
        weight: Callable[[], torch.Tensor] | torch.Tensor | None = None,
        in_features: int | None = None,
        explicit: bool = False,
    ) -> None:
        self.name = name
        self.importance = importance
        self.in_activation = in_activation
        self.out_activation = out_activation
        self._weight = weight
        self.out_features = len(importance)
        if in_features is None and in_activation is not None:
            in_features = len(in_activation)
        elif in_features is None and isinstance(weight, torch.Tensor):
            in_features = weight.shape[1]
        self.in_features = in_features if in_features is not None else 0
        self.explicit = explicit
        self.pruning_mask: torch.Tensor | None = None
        self.amount: float | int | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The edge weights into the layer."""
        if self._weight is None:
            raise LLMRankError(f"the record of {self.name} carries no weight")
        return self._weight if isinstance(self._weight, torch.Tensor) else self._weight()


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
        Kept widths are rounded to the nearest multiple (up where that leaves none), for hardware.

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

    def __init__(self, amount: float | int = 0.3, min_keep: int = 1, multiple_of: int = 1) -> None:
        self.amount = check_amount(amount)
        for name, value in (("min_keep", min_keep), ("multiple_of", multiple_of)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise OptionError(f"{name} must be an integer >= 1, got {value!r}")
        self.min_keep = min_keep
        self.multiple_of = multiple_of

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        """Give every record a `pruning_mask`, and where wanted an `amount`; see :class:`LayerRecord`."""
        raise NotImplementedError(f"{type(self).__name__} must override extract_scores()")

    def prune(self, layer_list: Sequence[LayerRecord]) -> Masks:
        """Keep masks of all records.

        Raises
        ------
        OptionError
            An amount that leaves a layer with fewer than `min_keep` neurons.
        LLMRankError
            `extract_scores` left a record without a usable mask.
        """
        for layer in layer_list:
            layer.pruning_mask, layer.amount = None, None
        self.extract_scores(layer_list)
        return Masks({layer.name: self._resolve(layer) for layer in layer_list})

    def _resolve(self, layer: LayerRecord) -> torch.Tensor:
        mask = layer.pruning_mask
        if mask is None:
            raise LLMRankError(f"{type(self).__name__}.extract_scores gave {layer.name} no pruning_mask")
        mask = torch.as_tensor(mask).detach().cpu()
        n = layer.out_features
        if mask.dtype in (torch.bool, torch.uint8):
            if mask.shape != (n,):
                raise LLMRankError(f"{layer.name}: expected a keep mask of shape ({n},), got {tuple(mask.shape)}")
            keep = mask.bool()
            scores = layer.importance.double().cpu() + keep.double()
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
            amount = check_amount(self.amount if layer.amount is None else layer.amount)
            keep = keep_highest(scores, n - (amount if isinstance(amount, int) else round(amount * n)))
        kept = int(keep.sum())
        if kept < self.min_keep:
            raise OptionError(
                f"{layer.name} would keep {kept} of {n} neurons, fewer than min_keep={self.min_keep}; lower the amount or "
                "min_keep"
            )
        if self.multiple_of > 1:
            keep = keep_highest(scores, round_width(kept, n, self.multiple_of, self.min_keep))
        return keep


class LocalPruner(BasePruner):
    """The same share of every layer: its ``round(amount * n)`` lowest neurons go.

    Parameters
    ----------
    amount, min_keep, multiple_of
        As for :class:`BasePruner`.
    """

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        """The importance of each layer is its score."""
        for layer in layer_list:
            layer.pruning_mask = layer.importance


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
        sizes = [layer.out_features for layer in layer_list]
        total = sum(sizes)
        remove = self.amount if isinstance(self.amount, int) else share_of(self.amount, total)
        if total - remove < self.min_keep * len(sizes):
            raise OptionError(
                f"removing {remove} of {total} neurons leaves fewer than min_keep={self.min_keep} in each of {len(sizes)} "
                "layers; lower the amount"
            )
        scores = torch.cat([self._normalised(layer) for layer in layer_list])
        owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.long))
        order = torch.argsort(scores, stable=True)
        # The min_keep highest of every layer are protected: they are the last of it in this order.
        protected = torch.zeros(total, dtype=torch.bool)
        for position in range(len(sizes)):
            own = order[owner[order] == position]
            protected[own[len(own) - min(self.min_keep, len(own)) :]] = True
        keep = torch.ones(total, dtype=torch.bool)
        keep[order[~protected[order]][:remove]] = False
        for layer, mask in zip(layer_list, torch.split(keep, sizes), strict=True):
            layer.pruning_mask = mask

    def _normalised(self, layer: LayerRecord) -> torch.Tensor:
        values = layer.importance.double().cpu()
        normalize = self.normalize
        if normalize == "auto":
            normalize = "none" if layer.explicit else "zscore"
        if normalize == "zscore":
            # A constant layer has no order: round-off must not make one up.
            if float(values.max() - values.min()) <= 1e-9 * float(values.abs().max()):
                return torch.zeros_like(values)
            return (values - values.mean()) / values.std(correction=0)
        if normalize == "mean":
            mean = values.mean()
            return values / mean if mean > 0 else values
        return values


def check_amount(amount: float | int) -> float | int:
    """`amount` if it is a share in [0, 1) or a count >= 0, else an OptionError."""
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise OptionError(f"amount must be a share in [0, 1) or an integer number of neurons, got {amount!r}")
    if isinstance(amount, int):
        if amount < 0:
            raise OptionError(f"amount must not be negative, got {amount}")
        return amount
    if not (math.isfinite(amount) and 0.0 <= amount < 1.0):
        raise OptionError(f"amount must be a share in [0, 1) (0.3 removes 30 % of the neurons), got {amount!r}")
    return amount


def share_of(amount: float, total: int) -> int:
    """``ceil(amount * total)`` with the share as it is written: 0.07 of 100 is 7, though 0.07 * 100 > 7 in floats."""
    return math.ceil(Fraction(repr(float(amount))) * total)


def keep_highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Keep the `count` highest; among equals the lower index goes first."""
    keep = torch.ones(len(scores), dtype=torch.bool)
    keep[torch.argsort(scores, stable=True)[: max(len(scores) - count, 0)]] = False
    return keep


def round_width(kept: int, total: int, multiple: int, min_keep: int) -> int:
    """`kept` rounded to the nearest multiple, at least min_keep, at most the layer itself."""
    rounded = int(multiple * round(kept / multiple))
    if rounded < max(min_keep, 1):
        rounded = multiple * math.ceil(max(min_keep, 1) / multiple)
    return min(rounded, total)
