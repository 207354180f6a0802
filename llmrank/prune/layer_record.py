"""What pruners see of a model: its prunable layers, one record each."""

from __future__ import annotations

from collections.abc import Callable

import torch

from llmrank.errors import LLMRankError
from llmrank.models.costs import Cost

__all__ = ["LayerRecord", "ascending_positions", "bare_record", "importance_of", "keep_highest"]


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
        :func:`llmrank.pipeline.sensitivity.layer_sensitivities`; None where the pruner does not ask for it.
    cost : Cost or None
        Of one of its neurons.
    present : (out,) bool tensor or None
        Which neurons an earlier step of a schedule has left there; None is all. The others go in any case, and count as
        removed.
    protected : bool
        Whether it keeps all its neurons, whatever the pruner says; set by :meth:`llmrank.prune.BasePruner.prune`.

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
        cost: Cost | None = None,
        present: torch.Tensor | None = None,
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
        self.cost = cost
        self.present = present
        self.protected = False
        self.pruning_mask: torch.Tensor | None = None
        self.amount: float | int | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The edge weights into the layer."""
        if self._weight is None:
            raise LLMRankError(f"the record of {self.name} carries no weight")
        return self._weight if isinstance(self._weight, torch.Tensor) else self._weight()

    @property
    def there(self) -> torch.Tensor:
        """(out,) bool tensor: :attr:`present`, spelt out."""
        return torch.ones(self.out_features, dtype=torch.bool) if self.present is None else self.present

    @property
    def gone(self) -> int:
        """How many neurons earlier steps have removed."""
        return self.out_features - int(self.there.sum())


def bare_record(name: str, size: int, *, explicit: bool = False) -> LayerRecord:
    """A record that says no more than the size: enough to find out whether an amount can be.

    >>> bare_record("mlp", 4).out_features
    4
    """
    return LayerRecord(name, torch.ones(size, dtype=torch.float64), explicit=explicit, sensitivity=0.0)


def importance_of(layer: LayerRecord) -> torch.Tensor:
    """The importance as pruners compare it: float64 on the CPU, finite; minus infinity where a neuron is gone."""
    values = layer.importance.double().cpu()
    if not bool(torch.isfinite(values).all()):
        raise LLMRankError(
            f"{layer.name}: the importance is not finite; look at what the scorer returns for this layer"
        )
    return values if layer.present is None else values.where(layer.present, -torch.inf)


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
