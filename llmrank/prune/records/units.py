"""Units: sets of neurons that are removed as a whole.

In most layers a unit is one neuron. The experts of a mixture stay equally wide, so a unit holds a neuron of every expert: unit k
holds, from each expert, the neuron with the k-th lowest score. If whole experts are removed, a unit is all neurons of one expert;
if the router divides the experts into groups, it is all neurons of one expert of each group.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch

from llmrank.errors import OptionError, check_type
from llmrank.models import FFNs, PrunableLayer
from llmrank.models.experts import Mixture

__all__ = ["EXPERT_WIDTH_MULTIPLE", "TARGETS", "Target", "Units", "check_targets", "parse_targets", "units_of"]

Target: TypeAlias = Literal["neurons", "experts"]
TARGETS: tuple[Target, ...] = get_args(Target)
# The products by which transformers computes experts need rows of a multiple of 16 bytes: 8 numbers in half precision.
EXPERT_WIDTH_MULTIPLE = 8


@dataclass(frozen=True, eq=False)
class Units:
    """The units of one layer, or of several layers that lose units together.

    Attributes
    ----------
    name : str
        Name of the layer, or of the mixture of experts.
    layers : tuple of PrunableLayer
    n_units : int
    target : {"neurons", "experts"}
        What a unit is made of.
    n_groups : int
        Number of groups of experts, if units are experts. With each unit, every group loses one expert.
    min_keep : int
        Fewest units that can be kept.
    multiple_of : int
        The number of kept units must be a multiple of this, unless all are kept.
    """

    name: str
    layers: tuple[PrunableLayer, ...]
    n_units: int
    target: Target = "neurons"
    n_groups: int = 1
    min_keep: int = 1
    multiple_of: int = 1

    @property
    def n_neurons(self) -> int:
        """Number of neurons in each unit."""
        return sum(layer.size for layer in self.layers) // self.n_units

    @property
    def are_neurons(self) -> bool:
        """Whether every unit is one neuron."""
        return self.target == "neurons" and len(self.layers) == 1

    def assign(self, scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Assign every neuron to a unit, by the scores of the neurons.

        Parameters
        ----------
        scores : mapping from str to (n,) float64 tensor
            By the name of the layer; minus infinity for neurons that are removed already.

        Returns
        -------
        dict from str to (n,) int64 tensor
            The unit of each neuron, by the name of the layer.
        """
        if self.target == "experts":
            totals = torch.stack([_total(scores[layer.name]) for layer in self.layers]).view(self.n_groups, -1)
            # Without groups, unit k is expert k. With groups, it is the k-th lowest expert of each group.
            order = torch.arange(self.n_units).expand_as(totals) if self.n_groups == 1 else _positions(totals)
            units = order.flatten().tolist()
            return {layer.name: torch.full((layer.size,), units[k]) for k, layer in enumerate(self.layers)}
        if len(self.layers) == 1:
            return {self.layers[0].name: torch.arange(self.n_units)}
        return {layer.name: _positions(scores[layer.name]) // (layer.size // self.n_units) for layer in self.layers}

    def importance(self, order: Mapping[str, torch.Tensor], scores: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the importance of every unit, (units,) float64: the sum of the scores of its neurons.

        `order` holds the scores by which neurons are assigned to units, see :meth:`assign`; `scores` holds those that are summed.
        """
        total = torch.zeros(self.n_units, dtype=torch.float64)
        for name, unit in self.assign(order).items():
            total.index_add_(0, unit, scores[name].double().cpu())
        return total

    def present(self, order: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return which units these masks keep, (units,) bool.

        An expert is kept if any of its neurons is, and a unit of neurons if all of them are.
        """
        kept_any = torch.zeros(self.n_units, dtype=torch.bool)
        kept_all = torch.ones(self.n_units, dtype=torch.bool)
        for name, unit in self.assign(order).items():
            kept_any[unit[masks[name]]] = True
            kept_all[unit[~masks[name]]] = False
        return kept_any if self.target == "experts" else kept_all

    def masks(self, keep: torch.Tensor, scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Translate a keep mask of units, (units,), into keep masks of the layers' neurons."""
        return {name: keep[unit] for name, unit in self.assign(scores).items()}

    def widths(self, n_kept: int) -> dict[str, int]:
        """Return the widths of the layers if `n_kept` units are kept; of experts, the first ones are taken to be kept."""
        if self.target == "neurons":
            return {layer.name: n_kept * (layer.size // self.n_units) for layer in self.layers}
        by_group = len(self.layers) // self.n_groups
        return {layer.name: layer.size * (k % by_group < n_kept) for k, layer in enumerate(self.layers)}


def _total(scores: torch.Tensor) -> torch.Tensor:
    """Return the sum of the scores, without the minus infinity of removed neurons; minus infinity if all are removed."""
    present = scores[~scores.isneginf()]
    return present.sum() if len(present) else scores.new_tensor(-torch.inf)


def _positions(scores: torch.Tensor) -> torch.Tensor:
    """Return the position of each score in ascending order along the last axis."""
    return torch.argsort(torch.argsort(scores, dim=-1, stable=True), dim=-1)


def parse_targets(targets: str | Sequence[str]) -> tuple[Target, ...]:
    """Return what is to be removed as a tuple; raise an OptionError if it is unknown.

    >>> parse_targets("neurons"), parse_targets(["experts"])
    (('neurons',), ('experts',))
    """
    check_type("targets", targets, (str, Collection), f"a name or a list of names ({', '.join(TARGETS)})")
    given = tuple(targets.split(",")) if isinstance(targets, str) else tuple(targets)
    if not given or len(set(given)) < len(given) or not set(given) <= set(TARGETS):
        raise OptionError(f"unknown targets {','.join(map(str, given))!r}; expected {', '.join(TARGETS)} or both")
    return given  # type: ignore[return-value]


def check_targets(targets: Sequence[Target], ffns: FFNs) -> None:
    """Raise an OptionError if experts are to be removed from a model without experts."""
    if "experts" in targets and not ffns.mixtures:
        raise OptionError(
            "this model has no experts that could be removed; expected a mixture of experts with a router, or targets='neurons' "
            "(--targets neurons)"
        )
    for mixture in ffns.mixtures if "experts" in targets else ():
        if mixture.min_kept == mixture.n_experts:
            raise OptionError(
                f"no expert of {mixture.name} can be removed: its router {mixture.router_name} ({type(mixture.router).__name__}) "
                f"is no matrix with one row for each expert, or needs all {mixture.n_experts} of them; expected such a "
                "matrix, or targets='neurons' (--targets neurons)"
            )


def units_of(
    layers: Iterable[PrunableLayer],
    targets: Sequence[Target] = ("neurons",),
    expert_widths: Collection[int] | None = None,
) -> list[Units]:
    """Return the units of prunable layers, in their order; layers that lose nothing under these targets are left out.

    Parameters
    ----------
    layers : iterable of PrunableLayer
    targets : sequence of {"neurons", "experts"}
        What is removed; exactly one target.
    expert_widths : collection of int, optional
        Numbers of neurons of the model's experts; by default those of the experts among `layers`.
    """
    layers = list(layers)
    if expert_widths is None:
        expert_widths = {layer.size for layer in layers if layer.mixture is not None}
    groups: dict[str, list[PrunableLayer]] = {}
    for layer in layers:
        mixture = layer.pruned_with if targets == ("neurons",) else layer.mixture
        if mixture is not None or targets == ("neurons",):
            groups.setdefault(layer.name if mixture is None else mixture.name, []).append(layer)
    found = []
    for name, group in groups.items():
        if group[0].pruned_with is not None:
            found.append(_of_mixture(name, group, targets[0]))
        else:
            # If an FFN is as wide as experts elsewhere, one field of the configuration may state both widths: both are rounded.
            multiple = EXPERT_WIDTH_MULTIPLE if group[0].size in expert_widths else 1
            found.append(Units(name, tuple(group), group[0].size, multiple_of=multiple))
    return found


def _of_mixture(name: str, layers: Sequence[PrunableLayer], target: Target) -> Units:
    mixture: Mixture = layers[0].pruned_with  # type: ignore[assignment]
    if target == "experts":
        n_units = len(layers) // mixture.n_groups
        return Units(name, tuple(layers), n_units, "experts", mixture.n_groups, mixture.min_kept)
    # A shared expert may be several times as wide as the experts. Then each unit holds several of its neurons.
    width = min(layer.size for layer in layers)
    return Units(name, tuple(layers), width, multiple_of=EXPERT_WIDTH_MULTIPLE)
