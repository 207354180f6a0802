"""Layer records: what pruners know of the prunable layers of a model.

What is called a neuron of a record here may also be a unit of several neurons, see :mod:`llmrank.prune.records.units`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch

from llmrank.errors import LLMRankError
from llmrank.prune.records.units import Units

__all__ = ["LayerRecord", "Sensitivity", "importance_of", "record_of_size"]

# How much the model's output changes when a layer alone is pruned: for one amount, or by the number of removed units.
Sensitivity: TypeAlias = float | Mapping[int, float]


class LayerRecord:
    """What a pruner knows of a prunable layer, and what the pruner decides for it.

    Attributes
    ----------
    name : str
    weight : (out, in) tensor
        Non-negative weights of the edges into the layer. If a function was passed in, it computes them at every read.
    in_features, out_features : int
        Number of inputs that the layer reads (0 if unknown), and number of its neurons.
    in_activation, out_activation : (in,) and (out,) tensors, or None
        Norms of the activations that the layer reads, and of the activations of its own neurons.
    importance : (out,) float64 tensor
        What the scorer gives the neurons: non-negative, with sum 1.
    pruning_mask : tensor or None
        Set by the pruner. Bool or uint8, (out,): the keep mask. Float, (out,) or (out, in): scores; the neurons whose scores
        have the lowest L1 norm are removed.
    amount : float, int or None
        Set by the pruner: share (float) or number (int) of the layer's neurons to remove, if `pruning_mask` holds scores; None
        stands for the amount of the pruner.
    explicit : bool
        Whether the layer was named by a `structure_dict`.
    sensitivity : float, mapping from int to float, or None
        How much the model's output changes when this layer alone is pruned, >= 0, see
        :func:`llmrank.pipeline.closeness.sensitivity.layer_sensitivities`: for one amount, or by the number of removed neurons if
        the pruner has :attr:`llmrank.prune.BasePruner.shares_measured`; None if the pruner does not need it.
    units : Units or None
        The units that the record's neurons stand for; None if each is one neuron.
    protected : bool
        Whether the layer keeps all neurons, whatever `pruning_mask` says; set by
        :meth:`llmrank.prune.BasePruner.prune`.

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
        explicit: bool = False,
        sensitivity: Sensitivity | None = None,
        units: Units | None = None,
    ) -> None:
        self.name = name
        self.importance = importance
        self.in_activation = in_activation
        self.out_activation = out_activation
        self._weight = weight
        self.out_features = len(importance)
        if in_activation is not None:
            self.in_features = len(in_activation)
        else:
            self.in_features = weight.shape[1] if isinstance(weight, torch.Tensor) else 0
        self.explicit = explicit
        self.sensitivity = sensitivity
        self.units = units
        self.protected = False
        self.pruning_mask: torch.Tensor | None = None
        self.amount: float | int | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The edge weights into the layer."""
        if self._weight is None:
            raise LLMRankError(f"the record of {self.name} carries no weight; pass weight= to it")
        return self._weight if isinstance(self._weight, torch.Tensor) else self._weight()

    @property
    def min_keep(self) -> int:
        """Fewest neurons that can be kept, whatever the pruner allows."""
        return 1 if self.units is None else self.units.min_keep

    @property
    def multiple_of(self) -> int:
        """The number of kept neurons must be a multiple of this, unless all are kept."""
        return 1 if self.units is None else self.units.multiple_of

    @property
    def neurons_per_unit(self) -> int:
        """Number of neurons that one neuron of the record stands for."""
        return 1 if self.units is None else self.units.n_neurons

    def widths(self, n_kept: int) -> dict[str, int]:
        """Return the widths of the model's layers, by name, if the record keeps `n_kept` of its neurons."""
        return {self.name: n_kept} if self.units is None else self.units.widths(n_kept)


def record_of_size(name: str, size: int, units: Units | None = None) -> LayerRecord:
    """Make a record from the size of a layer alone, for :meth:`llmrank.prune.BasePruner.check`.

    >>> record_of_size("mlp", 4).out_features
    4
    """
    explicit = units is not None and not units.layers[0].output_maps
    return LayerRecord(name, torch.ones(size, dtype=torch.float64), sensitivity=0.0, units=units, explicit=explicit)


def importance_of(layer: LayerRecord) -> torch.Tensor:
    """Return the importance as float64 on the CPU.

    Raises
    ------
    LLMRankError
        The importance of a neuron is not finite.
    """
    values = layer.importance.double().cpu()
    if not bool(torch.isfinite(values).all()):
        raise LLMRankError(
            f"{layer.name}: the importance is not finite; check the scores that the scorer returns for this layer"
        )
    return values
