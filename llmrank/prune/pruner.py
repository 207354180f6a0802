"""The base of all pruners: from what a child says of every record to keep masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from llmrank.errors import LLMRankError, OptionError
from llmrank.masks import Masks
from llmrank.prune.counts import check_amount, local_count, round_width
from llmrank.prune.order import ascending_positions, keep_highest
from llmrank.prune.records import LayerRecord

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

        Parameters
        ----------
        layer_list : sequence of LayerRecord
            Their masks and amounts are set anew.

        Returns
        -------
        Masks
            A (n,) bool tensor a layer, True = kept, by the name of its record.

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
            scores = layer.importance.double().cpu()
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
            keep = keep_highest(scores, n - local_count(amount, n))
        kept = int(keep.sum())
        if kept < self.min_keep:
            raise OptionError(
                f"{layer.name} would keep {kept} of {n} neurons, fewer than min_keep={self.min_keep}; lower the amount or "
                "min_keep"
            )
        if self.multiple_of > 1:
            # What goes anyway is lower than all that stays.
            order = ascending_positions(scores) + n * keep.long()
            keep = keep_highest(order, round_width(kept, n, self.multiple_of, self.min_keep))
        return keep
