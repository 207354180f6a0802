"""Units: sets of neurons that are removed as a whole.

In most layers a unit is one neuron. The experts of a mixture stay equally wide, so a unit holds a neuron of every expert: unit k
holds, from each expert, the neuron with the k-th lowest score. If whole experts are removed, a unit is all neurons of one expert;
if the router divides the experts into groups, it is all neurons of one expert of each group. Of an attention, a unit is a group
of heads that share keys and values, or one head if all share them. A block is a unit of all neurons in its layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import nn

from llmrank.errors import OptionError, check_type
from llmrank.models import FFNs, PrunableLayer
from llmrank.models.blocks import TransformerBlock
from llmrank.models.experts import Mixture
from llmrank.models.finding.blocks import with_blocks
from llmrank.models.finding.heads import find_heads
from llmrank.models.stack import with_statable_blocks
from llmrank.prune.records.order import ascending_positions

__all__ = [
    "EXPERT_WIDTH_MULTIPLE",
    "KINDS",
    "TARGETS",
    "BlockUnits",
    "ExpertUnits",
    "HeadUnits",
    "NeuronUnits",
    "Target",
    "Units",
    "check_targets",
    "find_units",
    "has_units",
    "names_in_order",
    "parse_targets",
    "sharing_targets",
    "units_in_order",
    "units_of",
    "units_of_part",
]

Target: TypeAlias = Literal["neurons", "experts", "heads", "blocks"]
TARGETS: tuple[Target, ...] = get_args(Target)
# The products by which transformers computes experts need rows of a multiple of 16 bytes: 8 numbers in half precision.
EXPERT_WIDTH_MULTIPLE = 8


@dataclass(frozen=True, eq=False)
class Units(ABC):
    """The units of one layer, or of several layers that lose units together. A child class for each target answers for its kind.

    Attributes
    ----------
    name : str
        Name of the layer, or of the mixture of experts.
    layers : tuple of PrunableLayer
    n_units : int
    min_keep : int
        Fewest units that can be kept.
    multiple_of : int
        The number of kept units must be a multiple of this, unless all are kept.
    target : {"neurons", "experts", "heads", "blocks"}
        What a unit is made of.
    has_few : bool
        Whether layers have so few of these units that a budget counts them one by one: `min_keep` and `multiple_of` of pruners do
        not count for them, and sensitivities choose those that cost least.
    losses_add_up : bool
        Whether the loss of several such units is about the sum of their losses. If not, sensitivities alone choose, and they are
        measured in turn.
    shares_amount : bool
        Whether one amount counts these units and others that hold the same neurons.
    """

    name: str
    layers: tuple[PrunableLayer, ...]
    n_units: int
    min_keep: int = 1
    multiple_of: int = 1
    target: ClassVar[Target]
    has_few: ClassVar[bool] = False
    losses_add_up: ClassVar[bool] = True
    shares_amount: ClassVar[bool] = True

    @classmethod
    def find(cls, model: nn.Module, ffns: FFNs) -> FFNs:  # noqa: ARG003
        """Return the FFNs of a model with what is needed to remove such units.

        Raises
        ------
        LLMRankError
            The model has no such units, or they cannot be removed.
        """
        return ffns

    @classmethod
    def are_in(cls, layer: PrunableLayer) -> bool:
        """Whether a layer has such units."""
        return layer.heads is None

    @classmethod
    @abstractmethod
    def divide(cls, layers: Sequence[PrunableLayer], expert_widths: Collection[int]) -> list[Units]:
        """Divide layers into units, see :func:`units_of`."""

    @classmethod
    @abstractmethod
    def check(cls, ffns: FFNs) -> None:
        """Raise an OptionError if these FFNs have no such units, or if a mixture among them can lose none."""

    @property
    def counted(self) -> str:
        """What messages call the units that they count."""
        return self.target

    @property
    def n_neurons(self) -> int:
        """Number of neurons in each unit."""
        return sum(layer.size for layer in self.layers) // self.n_units

    @property
    def are_neurons(self) -> bool:
        """Whether every unit is one neuron."""
        return False

    def assign(self, scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Assign every neuron to a unit: by the scores of the neurons, or equally many neighbours to each unit in turn.

        Parameters
        ----------
        scores : mapping from str to (n,) float64 tensor
            By the name of the layer.

        Returns
        -------
        dict from str to (n,) int64 tensor
            The unit of each neuron, by the name of the layer.
        """
        return {layer.name: torch.arange(layer.size) // (layer.size // self.n_units) for layer in self.layers}

    def widths(self, n_kept: int) -> dict[str, int]:
        """Return the widths of the layers if `n_kept` units are kept."""
        return {layer.name: n_kept * (layer.size // self.n_units) for layer in self.layers}

    def importance(self, scores: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the importance of every unit, (units,) float64: the sum of the scores of its neurons."""
        total = torch.zeros(self.n_units, dtype=torch.float64)
        for name, unit in self.assign(scores).items():
            total.index_add_(0, unit, scores[name].double().cpu())
        return total

    def masks(self, keep: torch.Tensor, scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Translate a keep mask of units, (units,), into keep masks of the layers' neurons."""
        return {name: keep[unit] for name, unit in self.assign(scores).items()}


class NeuronUnits(Units):
    """Units of neurons: one neuron of a layer, or of a mixture as many of every expert as keep the experts equally wide."""

    target = "neurons"

    @classmethod
    def divide(cls, layers: Sequence[PrunableLayer], expert_widths: Collection[int]) -> list[Units]:
        """See :meth:`Units.divide`."""
        found: list[Units] = []
        of_ffns = [layer for layer in layers if layer.heads is None]
        for name, group in _grouped(of_ffns, lambda layer: layer.pruned_with).items():
            # A shared expert may be several times as wide as the experts. Then each unit holds several of its neurons.
            width = min(layer.size for layer in group)
            # If an FFN is as wide as experts elsewhere, one field of the configuration may state both widths: both are rounded.
            rounds = group[0].pruned_with is not None or width in expert_widths
            found.append(cls(name, group, width, multiple_of=EXPERT_WIDTH_MULTIPLE if rounds else 1))
        return found

    @classmethod
    def check(cls, ffns: FFNs) -> None:
        """See :meth:`Units.check`; every FFN has neurons."""

    @property
    def are_neurons(self) -> bool:
        """See :attr:`Units.are_neurons`."""
        return len(self.layers) == 1

    def assign(self, scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See :meth:`Units.assign`."""
        if self.are_neurons:
            return super().assign(scores)
        return {
            layer.name: ascending_positions(scores[layer.name]) // (layer.size // self.n_units) for layer in self.layers
        }


@dataclass(frozen=True, eq=False)
class ExpertUnits(Units):
    """Units of whole experts: one of a mixture, or one of each group into which its router divides the experts.

    Attributes
    ----------
    n_groups : int
        Number of groups. With each unit, every group loses one expert.
    """

    n_groups: int = 1
    target = "experts"

    @classmethod
    def divide(cls, layers: Sequence[PrunableLayer], expert_widths: Collection[int]) -> list[Units]:  # noqa: ARG003
        """See :meth:`Units.divide`; layers outside mixtures are left out."""
        found: list[Units] = []
        for name, group in _grouped([each for each in layers if each.mixture], lambda layer: layer.mixture).items():
            mixture = group[0].mixture
            if mixture is not None:
                n_groups = mixture.n_groups
                found.append(cls(name, group, len(group) // n_groups, mixture.min_kept, n_groups=n_groups))
        return found

    @classmethod
    def check(cls, ffns: FFNs) -> None:
        """See :meth:`Units.check`."""
        if not ffns.mixtures:
            raise OptionError(
                "this model has no experts that could be removed; expected a mixture of experts with a router, or "
                "targets='neurons' (--targets neurons)"
            )
        for mixture in ffns.mixtures:
            if mixture.min_kept == mixture.n_experts:
                router = f"{mixture.router_name} ({type(mixture.router).__name__})"
                raise OptionError(
                    f"no expert of {mixture.name} can be removed: its router {router} is no matrix with one row for each expert, "
                    f"or needs all {mixture.n_experts} of them; expected such a matrix, or targets='neurons' (--targets neurons)"
                )

    def assign(self, scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See :meth:`Units.assign`."""
        totals = torch.stack([scores[layer.name].sum() for layer in self.layers]).view(self.n_groups, -1)
        # Without groups, unit k is expert k. With groups, it is the k-th lowest expert of each group.
        order = torch.arange(self.n_units).expand_as(totals) if self.n_groups == 1 else ascending_positions(totals)
        units = order.flatten().tolist()
        return {layer.name: torch.full((layer.size,), units[k]) for k, layer in enumerate(self.layers)}

    def widths(self, n_kept: int) -> dict[str, int]:
        """See :meth:`Units.widths`; the first experts of each group are taken to be kept."""
        by_group = len(self.layers) // self.n_groups
        return {layer.name: layer.size * (k % by_group < n_kept) for k, layer in enumerate(self.layers)}


class HeadUnits(Units):
    """Units of heads of an attention, see :class:`llmrank.models.heads.Heads`."""

    target = "heads"
    has_few = True
    shares_amount = False

    @classmethod
    def find(cls, model: nn.Module, ffns: FFNs) -> FFNs:
        """See :meth:`Units.find`; the attention of a block stands in front of its FFNs."""
        attentions = find_heads(model, ffns)
        return FFNs(part for ffn in ffns for part in (attentions.get(ffn.name), ffn) if part is not None)

    @classmethod
    def are_in(cls, layer: PrunableLayer) -> bool:
        """See :meth:`Units.are_in`."""
        return layer.heads is not None

    @classmethod
    def divide(cls, layers: Sequence[PrunableLayer], expert_widths: Collection[int]) -> list[Units]:  # noqa: ARG003
        """See :meth:`Units.divide`; layers of FFNs are left out."""
        return [cls(layer.name, (layer,), layer.heads.n_units) for layer in layers if layer.heads is not None]

    @classmethod
    def check(cls, ffns: FFNs) -> None:
        """See :meth:`Units.check`."""
        if all(units.n_units == 1 for units in units_of(ffns.layers.values(), "heads")):
            raise OptionError(
                "every attention of this model has one head, which must stay; expected targets='neurons' (--targets neurons)"
            )

    @property
    def counted(self) -> str:
        """See :attr:`Units.counted`."""
        heads = self.layers[0].heads
        return "groups of heads" if heads is not None and heads.n_groups > 1 else "heads"


class BlockUnits(Units):
    """A block as the only unit of all layers in it, see :class:`llmrank.models.blocks.TransformerBlock`."""

    target = "blocks"
    has_few = True
    losses_add_up = False
    shares_amount = False

    @classmethod
    def find(cls, model: nn.Module, ffns: FFNs) -> FFNs:
        """See :meth:`Units.find`; blocks that must stay are marked."""
        return with_statable_blocks(model, with_blocks(model, ffns))

    @classmethod
    def are_in(cls, layer: PrunableLayer) -> bool:
        """See :meth:`Units.are_in`."""
        return layer.block is not None

    @classmethod
    def divide(cls, layers: Sequence[PrunableLayer], expert_widths: Collection[int]) -> list[Units]:  # noqa: ARG003
        """See :meth:`Units.divide`; layers of which no block is known are left out."""
        groups = _grouped([layer for layer in layers if layer.block], lambda layer: layer.block)
        return [
            cls(name, group, 1, min_keep=int(group[0].block is not None and group[0].block.stays))
            for name, group in groups.items()
        ]

    @classmethod
    def check(cls, ffns: FFNs) -> None:
        """See :meth:`Units.check`."""
        if len(ffns.blocks) < 2:
            raise OptionError(
                "this model has one block, which must stay; expected targets='neurons' (--targets neurons)"
            )


KINDS: dict[Target, type[Units]] = {kind.target: kind for kind in (NeuronUnits, ExpertUnits, HeadUnits, BlockUnits)}


def _grouped(
    layers: Iterable[PrunableLayer], whole_of: Callable[[PrunableLayer], Mixture | TransformerBlock | None]
) -> dict[str, tuple[PrunableLayer, ...]]:
    """Return the layers that lose units together, by the name of their mixture or block; one without stands alone."""
    groups: dict[str, tuple[PrunableLayer, ...]] = {}
    for layer in layers:
        whole = whole_of(layer)
        name = layer.name if whole is None else whole.name
        groups[name] = (*groups.get(name, ()), layer)
    return groups


def parse_targets(targets: str | Sequence[str]) -> tuple[Target, ...]:
    """Return what is to be removed as a tuple; raise an OptionError if it is unknown.

    >>> parse_targets("neurons"), parse_targets(["experts", "heads"])
    (('neurons',), ('experts', 'heads'))
    """
    check_type("targets", targets, (str, Collection), f"a name or a list of names ({', '.join(TARGETS)})")
    given: tuple[Any, ...]
    try:
        given = tuple(targets.split(",")) if isinstance(targets, str) else tuple(targets)
        is_known = len(given) > 0 and len(set(given)) == len(given) and set(given) <= set(TARGETS)
    except TypeError:  # entries that are no names, such as lists
        given, is_known = (targets,), False
    if not is_known:
        raise OptionError(f"unknown targets {','.join(map(str, given))!r}; expected some of {', '.join(TARGETS)}")
    return given


def check_targets(targets: Sequence[Target], ffns: FFNs) -> None:
    """Raise an OptionError if these FFNs do not have what a target names, or if a mixture among them can lose none of it."""
    for target in targets:
        KINDS[target].check(ffns)


def sharing_targets(targets: Sequence[Target]) -> list[tuple[Target, ...]]:
    """Divide targets into those that share one amount, because they remove the same neurons, and others.

    >>> sharing_targets(["heads", "neurons", "experts"])
    [('neurons', 'experts'), ('heads',)]
    """
    together = tuple(t for t in targets if KINDS[t].shares_amount)
    return [*([together] if together else []), *((t,) for t in targets if not KINDS[t].shares_amount)]


def units_in_order(layers: Iterable[PrunableLayer], parts: Sequence[Sequence[Target]]) -> list[Units]:
    """Return the units of parts of the targets, see :func:`sharing_targets`, in the order of the layers."""
    layers = list(layers)
    place = {layer.name: k for k, layer in enumerate(layers)}
    units = [each for part in parts for each in units_of_part(layers, part)]
    return sorted(units, key=lambda each: place[each.layers[0].name])


def names_in_order(layers: Iterable[PrunableLayer], parts: Sequence[Sequence[Target]]) -> list[str]:
    """Return the names of :func:`units_in_order`."""
    return [each.name for each in units_in_order(layers, parts)]


def has_units(layer: PrunableLayer, targets: Sequence[Target]) -> bool:
    """Whether a layer has units of any of these targets."""
    return any(KINDS[target].are_in(layer) for target in targets)


def find_units(model: nn.Module, ffns: FFNs, targets: Sequence[Target]) -> FFNs:
    """Return the FFNs, and attentions, from which these targets remove units; see :meth:`Units.find`."""
    for target in targets:
        ffns = KINDS[target].find(model, ffns)
    return FFNs(
        ffn for ffn in ffns if not ffn.prunable or any(has_units(each, targets) for each in ffn.prunable.values())
    )


def units_of(
    layers: Iterable[PrunableLayer],
    target: Target = "neurons",
    expert_widths: Collection[int] | None = None,
) -> list[Units]:
    """Return the units of prunable layers, in their order; layers that have no such units are left out.

    Parameters
    ----------
    layers : iterable of PrunableLayer
    target : {"neurons", "experts", "heads", "blocks"}
        What a unit is made of.
    expert_widths : collection of int, optional
        Numbers of neurons of the model's experts; by default those of the experts among `layers`.
    """
    layers = list(layers)
    if expert_widths is None:
        expert_widths = {layer.size for layer in layers if layer.mixture is not None}
    return KINDS[target].divide(layers, expert_widths)


def units_of_part(
    layers: Iterable[PrunableLayer], part: Sequence[Target], expert_widths: Collection[int] | None = None
) -> list[Units]:
    """Return the units of targets that share an amount, one kind after the other; of neurons and experts those of neurons."""
    layers, kinds = list(layers), [t for t in part if t != "experts" or "neurons" not in part]
    return [each for kind in kinds for each in units_of(layers, kind, expert_widths)]
