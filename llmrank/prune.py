"""Pruners: from importance to keep masks, under a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from statistics import median
from typing import ClassVar, Literal

import torch

from graphs.concentration import count_of_share
from llmrank.errors import LLMRankError, OptionError
from llmrank.masks import Masks

__all__ = ["BasePruner", "GlobalPruner", "LayerRecord", "LocalPruner", "SensitivityPruner"]

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
        From the scorer: non-negative, of sum 1.
    pruning_mask : tensor or None
        For the pruner to set. Float: scores, (out,) or (out, in); the rows of lowest L1 norm go. Bool
        or uint8, (out,): the keep mask itself.
    amount : float, int or None
        For the pruner to set: share (float) or number (int) of rows to remove, with a float mask;
        None takes the pruner's own.
    explicit : bool
        Whether the layer was named by a `structure_dict`.
    sensitivity : float or None
        What the model's output suffers when this layer alone is cut, >= 0, see
        :func:`llmrank.sensitivity.layer_sensitivities`; None where the pruner does not ask for it.

    Examples
    --------
    >>> record = LayerRecord("mlp", torch.tensor([0.25, 0.75]), weight=torch.ones(2, 3))
    >>> record.in_features, record.out_features, record.pruning_mask is None
    (3, 2, True)
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
        sensitivity: float | None = None,
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
        self.sensitivity = sensitivity
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


class LocalPruner(BasePruner):
    """The same share of every layer: its ``round(amount * n)`` lowest neurons go.

    Parameters
    ----------
    amount, min_keep, multiple_of
        As for :class:`BasePruner`.

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

    def removal_positions(self, layer_list: Sequence[LayerRecord]) -> list[torch.Tensor]:
        """When pruning comes to a neuron: how many of its layer go before it.

        Those of a position below :func:`local_count` of the amount go; `multiple_of` moves that limit.

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
        return [ascending_positions(_importance(layer)) for layer in layer_list]


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
        own = [ascending_positions(_importance(layer)) for layer in layer_list]
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
        values = _importance(layer)
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


class SensitivityPruner(BasePruner):
    """The same share of every layer, but for the few that the model can least do without.

    A layer whose sensitivity is above `limit` times the median of all is spared: the share it gives shrinks until its
    sensitivity times that share is what `limit` times the median gives. What the spared layers do not give comes evenly
    from the others, see :func:`sparing_counts`. Within a layer the lowest neurons go, as for :class:`LocalPruner`.

    Only outliers are spared, since sensitivities are measured one layer at a time and on little text: below the limit their
    differences say too little to shift a budget by.

    Parameters
    ----------
    amount : float or int
        Share (float, [0, 1)) of all neurons, or number (int) of neurons a layer on average, to remove.
    min_keep, multiple_of
        As for :class:`BasePruner`; a layer down to `min_keep` leaves the rest to the others.
    limit : float
        How many times the median a layer's sensitivity may be before it is spared; finite, > 0. Nobody is spared where it
        is large, nor where the median is 0.

    Raises
    ------
    OptionError
        A limit out of range, or as for :class:`BasePruner`.

    Examples
    --------
    Four times as sensitive as the median, twice as much as is let pass: half the share.

    >>> importance = torch.arange(8) / 28
    >>> layers = [LayerRecord(name, importance, sensitivity=s) for name, s in (("a", 0.4), ("b", 0.1), ("c", 0.1))]
    >>> SensitivityPruner(0.5, limit=2.0).prune(layers).widths
    {'a': 6, 'b': 3, 'c': 3}
    """

    needs_sensitivity: ClassVar[bool] = True

    def __init__(self, amount: float | int = 0.3, min_keep: int = 1, multiple_of: int = 1, limit: float = 2.0) -> None:
        super().__init__(amount, min_keep, multiple_of)
        number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        if not (number and math.isfinite(limit) and limit > 0):
            raise OptionError(f"limit must be a finite number > 0, got {limit!r}")
        self.limit = limit

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        """The importance of each layer is its score; every record gets its count.

        Raises
        ------
        OptionError
            A record without a usable sensitivity, or an amount that leaves less than `min_keep` of each layer.
        """
        counts = sparing_counts(
            [layer.out_features for layer in layer_list],
            [_sensitivity(layer) for layer in layer_list],
            self.amount,
            self.min_keep,
            self.limit,
        )
        for layer, count in zip(layer_list, counts, strict=True):
            layer.pruning_mask, layer.amount = layer.importance, count


def _sensitivity(layer: LayerRecord) -> float:
    value = layer.sensitivity
    if value is None:
        raise OptionError(
            f"the record of {layer.name} carries no sensitivity; run the pruner in a pipeline, which measures it, or set "
            "record.sensitivity"
        )
    if not (math.isfinite(value) and value >= 0):
        raise OptionError(f"{layer.name}: sensitivity must be a finite number >= 0, got {value!r}")
    return float(value)


def _importance(layer: LayerRecord) -> torch.Tensor:
    """The importance as pruners compare it: float64 on the CPU, finite."""
    values = layer.importance.double().cpu()
    if not bool(torch.isfinite(values).all()):
        raise LLMRankError(
            f"{layer.name}: the importance is not finite; look at what the scorer returns for this layer"
        )
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


def local_count(amount: float | int, n: int) -> int:
    """How many of a layer's `n` neurons an amount removes: a share rounded, halves to the even number.

    >>> local_count(0.3, 1536), local_count(0.5, 5), local_count(7, 5)
    (461, 2, 7)
    """
    return amount if isinstance(amount, int) else round(amount * n)


def global_count(amount: float | int, total: int) -> int:
    """How many of all `total` neurons an amount removes: a share rounded up, as it is written.

    0.07 of 100 is 7, though 0.07 * 100 > 7 in floats.

    >>> global_count(0.07, 100), global_count(0.3, 46080), global_count(7, 5)
    (7, 13824, 7)
    """
    return amount if isinstance(amount, int) else count_of_share(amount, total)


def sparing_counts(
    sizes: Sequence[int],
    sensitivities: Sequence[float],
    amount: float | int,
    min_keep: int = 1,
    limit: float = 2.0,
) -> list[int]:
    """How many neurons each layer loses when those that are too sensitive are spared.

    With m the median sensitivity, a layer of sensitivity c > limit * m gives ``limit * m / c`` of its even part
    (`amount` of its neurons). What is missing comes from the layers that are not spared, the same share more of each;
    where one of them has no more to give, from the rest of them, and at last from the spared ones.

    Parameters
    ----------
    sizes : sequence of int
        Neurons of every layer.
    sensitivities : sequence of float
        As many, finite and >= 0.
    amount : float or int
        Share of all neurons, or number a layer.
    min_keep : int
    limit : float

    Returns
    -------
    list of int
        Together ``round(amount * N)``, or ``amount`` times the layers. Parts are rounded down and the largest remainders
        up, among equals the first.

    Raises
    ------
    OptionError
        That many are not there beyond `min_keep` of every layer.

    Notes
    -----
    In exact arithmetic, so that the order of the layers decides nothing but ties.

    Examples
    --------
    >>> sparing_counts([100, 100, 100, 100], [0.8, 0.1, 0.1, 0.1], 0.3)
    [8, 38, 37, 37]
    >>> sparing_counts([100, 100, 100, 100], [0.1, 0.1, 0.15, 0.1], 30)
    [30, 30, 30, 30]
    """
    total = amount * len(sizes) if isinstance(amount, int) else round(amount * sum(sizes))
    room = [max(n - min_keep, 0) for n in sizes]
    if total > sum(room):
        raise OptionError(
            f"removing {total} of {sum(sizes)} neurons leaves fewer than min_keep={min_keep} in each of {len(sizes)} layers; "
            "lower the amount or min_keep"
        )
    costs = [Fraction(value) for value in sensitivities]
    bound = Fraction(limit) * median(costs) if costs else Fraction(0)
    even = [Fraction(amount) if isinstance(amount, int) else Fraction(repr(amount)) * n for n in sizes]
    spared = [0 < bound < cost for cost in costs]
    parts = [
        min(part * bound / cost if spare else part, Fraction(most))
        for part, cost, spare, most in zip(even, costs, spared, room, strict=True)
    ]
    rest = sum(even, Fraction(0)) - sum(parts, Fraction(0))
    for group in (False, True):
        rest = _pour(rest, parts, sizes, room, [k for k, spare in enumerate(spared) if spare is group])
    counts = [math.floor(part) for part in parts]
    largest = sorted(range(len(parts)), key=lambda k: (counts[k] - parts[k], k))
    for k in largest[: total - sum(counts)]:
        counts[k] += 1
    return counts


def _pour(
    rest: Fraction, parts: list[Fraction], sizes: Sequence[int], room: Sequence[int], group: Sequence[int]
) -> Fraction:
    """Add the same share to the parts of a group, each up to its room; returns what found none."""
    while rest > 0 and (unfilled := [k for k in group if parts[k] < room[k]]):
        width = sum(sizes[k] for k in unfilled)
        share = min(rest / width, *((room[k] - parts[k]) / sizes[k] for k in unfilled))
        for k in unfilled:
            parts[k] += share * sizes[k]
        rest -= share * width
    return rest


def ascending_positions(scores: torch.Tensor) -> torch.Tensor:
    """How many scores are lower than each; among equals the lower index counts as lower.

    Parameters
    ----------
    scores : (n,) tensor
        On the CPU.

    Returns
    -------
    (n,) int64 tensor
        A permutation of 0..n-1.

    Examples
    --------
    >>> ascending_positions(torch.tensor([0.5, 0.1, 0.5])).tolist()
    [1, 0, 2]
    """
    return torch.argsort(torch.argsort(scores, stable=True))


def keep_highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Keep the `count` highest; among equals the lower index goes first.

    >>> keep_highest(torch.tensor([0.5, 0.1, 0.5]), 1).tolist()
    [False, False, True]
    """
    return ascending_positions(scores) >= len(scores) - count


def round_width(kept: int, total: int, multiple: int, min_keep: int) -> int:
    """`kept` rounded to the nearest multiple, at least min_keep, at most the layer itself.

    Halfway it is the even multiple.

    >>> round_width(1075, 1536, 64, 1), round_width(12, 20, 8, 1), round_width(20, 28, 8, 1), round_width(3, 20, 8, 1)
    (1088, 16, 16, 8)
    """
    rounded = int(multiple * round(kept / multiple))
    if rounded < max(min_keep, 1):
        rounded = multiple * math.ceil(max(min_keep, 1) / multiple)
    return min(rounded, total)
