"""The FFNs of a model, each described as stages of linear maps between layers of nodes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

import torch
from torch import nn

from llmrank.errors import StructureError
from llmrank.models.blocks import TransformerBlock
from llmrank.models.experts import ExpertMap, Mixture, Routing
from llmrank.models.heads import Heads
from llmrank.models.linear_map import in_features, matrix_of, out_features

__all__ = ["FFN", "FFNKind", "FFNs", "LinearMap", "PrunableLayer", "SelectedRows"]

FFNKind: TypeAlias = Literal["plain", "gated", "fused", "sequential", "explicit", "attention"]


@dataclass(frozen=True)
class LinearMap:
    """A linear map: all outputs of a module, or a range of them (such as the gate in a module that computes gate and up).

    Attributes
    ----------
    name : str
        Path of the module in the model; for a map of an expert, the path that it would have as a module.
    module : nn.Linear, Conv1D or ExpertMap
    start, size : int
        The first output and the number of outputs.
    """

    name: str
    module: nn.Module
    start: int
    size: int

    @classmethod
    def whole(cls, name: str, module: nn.Module) -> LinearMap:
        """Take all outputs of a module."""
        return cls(name, module, 0, out_features(module))

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return in_features(self.module)

    @property
    def rows(self) -> torch.Tensor:
        """Which rows of the module's matrix compute the outputs, (size,) int64."""
        return torch.arange(self.start, self.start + self.size)

    @property
    def n_rows(self) -> int:
        """Number of these rows, each counted once."""
        return self.size

    @property
    def end(self) -> int:
        """The number behind that of the last of these rows."""
        return self.start + self.size

    @property
    def weight(self) -> torch.Tensor:
        """The (size, in_features) weight: a detached view with one row for each output."""
        return matrix_of(self.module)[self.start : self.start + self.size]

    @property
    def owner(self) -> nn.Module:
        """The module of the model that holds the weight: `module`, or for a map of an expert the module of all experts."""
        return self.module.weight_part.owner if isinstance(self.module, ExpertMap) else self.module


@dataclass(frozen=True)
class SelectedRows(LinearMap):
    """Selected output rows of a linear map, in any order and possibly repeated; its weight is a copy.

    Attributes
    ----------
    selected : (size,) int64 tensor
        Numbers of the rows.
    """

    selected: torch.Tensor

    @classmethod
    def of(cls, name: str, module: nn.Module, rows: torch.Tensor) -> LinearMap:
        """Select output rows of a module, as a view if they are consecutive."""
        start = int(rows[0])
        if torch.equal(rows, torch.arange(start, start + len(rows))):
            return LinearMap(name, module, start, len(rows))
        return cls(name, module, 0, len(rows), rows)

    @property
    def rows(self) -> torch.Tensor:
        """See :attr:`LinearMap.rows`."""
        return self.selected

    @property
    def n_rows(self) -> int:
        """See :attr:`LinearMap.n_rows`."""
        return len(set(self.selected.tolist()))

    @property
    def end(self) -> int:
        """See :attr:`LinearMap.end`."""
        return int(self.selected.max()) + 1

    @property
    def weight(self) -> torch.Tensor:
        """The (size, in_features) weight."""
        matrix = matrix_of(self.module)
        return matrix[self.selected.to(matrix.device)]


@dataclass(frozen=True)
class PrunableLayer:
    """Neurons that can be removed, and the weights that are removed with them.

    The neurons of an attention are the numbers that its output map reads.

    Attributes
    ----------
    name : str
        Key of the keep mask: the path of the FFN's module or, for sequential and explicit FFNs, of the linear map that computes
        the neurons.
    size : int
        Number of neurons.
    input_maps : tuple of LinearMap
        Row j (and bias j) of each computes neuron j. In an attention, several neurons may have the same row.
    output_maps : tuple of LinearMap
        Column j of each reads neuron j. Empty for explicit FFNs (Linears that the user names), of which only rows are removed.
    mixture : Mixture or None
        The mixture that routes tokens to these neurons; None for an FFN that gets every token. All neurons of such a layer can be
        removed, and with them the expert.
    pruned_with : Mixture or None
        The mixture with whose experts this layer is pruned: all of them keep the same share of their neurons. Set for experts,
        and for a shared expert if one field of the configuration states both its width and the width of the experts.
    heads : Heads or None
        The heads that the neurons of an attention belong to; None for the neurons of an FFN.
    block : TransformerBlock or None
        The block that is left out if none of its layers keeps a neuron; None if it is not known.
    """

    name: str
    size: int
    input_maps: tuple[LinearMap, ...]
    output_maps: tuple[LinearMap, ...]
    mixture: Mixture | None = None
    pruned_with: Mixture | None = None
    heads: Heads | None = None
    block: TransformerBlock | None = None

    @property
    def token_share(self) -> Fraction:
        """Share of the tokens that these neurons get on average."""
        return Fraction(1) if self.mixture is None else Fraction(self.mixture.top_k, self.mixture.n_experts)


@dataclass(frozen=True)
class FFN:
    """A feed-forward network: k stages of linear maps between k+1 layers of nodes.

    Attributes
    ----------
    name : str
        Path of the module that holds the FFN.
    kind : {"plain", "gated", "fused", "sequential", "explicit", "attention"}
        Plain: one input map; gated: two input maps (gate, up); fused: one module computes both of them; sequential: a chain of
        two or more linear maps; explicit: Linears that the user has named; attention: the value map and the output map of an
        attention, of which nothing can be pruned unless its heads are known.
    stages : tuple of tuples of LinearMap
        All linear maps of ``stages[l]`` lead from layer l of the nodes to layer l+1. Of a gate and an up map the gate, whose
        outputs go through the activation function, is the first.
    stack : str
        Path of the stack of transformer blocks that the FFN lies in; the FFN's own path if it lies in none.
    module : nn.Module
        The module that holds the FFN; for an attention, its output map.
    mixture : Mixture or None
        The mixture that the FFN belongs to, as an expert or as a shared expert, which gets every token.
    pruned_with_experts : bool
        Whether the FFN has to keep the same share of its neurons as the experts of the mixture.
    heads : Heads or None
        The heads of an attention, if they are known.
    maps_of_heads : tuple of LinearMap
        The maps of an attention whose rows belong to its heads; row j goes with neuron j.
    whole_block : TransformerBlock or None
        The block that the FFN lies in; None if it is not known, because no blocks are to be removed.
    """

    name: str
    kind: FFNKind
    stages: tuple[tuple[LinearMap, ...], ...]
    stack: str
    module: nn.Module
    mixture: Mixture | None = None
    pruned_with_experts: bool = False
    heads: Heads | None = None
    maps_of_heads: tuple[LinearMap, ...] = ()
    whole_block: TransformerBlock | None = None

    @property
    def block(self) -> str:
        """Path of the transformer block that the FFN lies in.

        Raises
        ------
        StructureError
            The FFN lies in no stack, or the model itself is the stack.
        """
        if self.stack == self.name or not self.name.startswith(f"{self.stack}."):
            raise StructureError(
                f"{self.name or 'the model'} lies in no repeating stack of blocks inside the model, so no residual stream is "
                "known that skips it; use the chained or the isolated pipeline"
            )
        return f"{self.stack}.{self.name.removeprefix(f'{self.stack}.').split('.')[0]}"

    @property
    def is_routed(self) -> bool:
        """Whether a router decides which tokens the FFN gets."""
        return self.mixture is not None and self.mixture.is_expert(self.module)

    @property
    def sublayer_name(self) -> str:
        """The name of the FFN, or of the mixture that it belongs to."""
        return self.name if self.mixture is None else self.mixture.name

    @property
    def output_module(self) -> nn.Module:
        """The module whose output is that of the FFN; for an expert, the sum over the experts of its mixture."""
        if self.mixture is not None and self.is_routed:
            return self.mixture.summed
        return self.stages[-1][0].module

    def routing_of(self, module: nn.Module) -> Routing | None:
        """Return the tokens that an expert with this linear map gets now; None if the FFN gets every token."""
        return None if self.mixture is None else self.mixture.routing_of(module)

    @property
    def all_maps(self) -> tuple[LinearMap, ...]:
        """The linear maps of all stages, and those of the queries and keys of an attention whose heads are known."""
        return tuple(linear_map for stage in (*self.stages, self.maps_of_heads) for linear_map in stage)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the k+1 layers of nodes."""
        return (self.stages[0][0].in_features, *(stage[0].size for stage in self.stages))

    @property
    def prunable(self) -> dict[int, PrunableLayer]:
        """The prunable layers, by their index among the layers of nodes.

        The hidden layers are prunable; in an explicit FFN all layers but layer 0; in an attention none unless its heads are
        known.
        """
        if self.kind == "attention":
            if self.heads is None:
                return {}
            maps = self.maps_of_heads, self.stages[1]
            return {1: PrunableLayer(self.name, self.sizes[1], *maps, heads=self.heads, block=self.whole_block)}
        if self.kind == "explicit":
            return {
                layer: PrunableLayer(stage[0].name, stage[0].size, stage, ())
                for layer, stage in enumerate(self.stages, start=1)
            }
        layers = {}
        for layer in range(1, len(self.stages)):
            input_maps, output_maps = self.stages[layer - 1], self.stages[layer]
            name = input_maps[0].name if self.kind == "sequential" else self.name
            mixture = self.mixture if self.is_routed else None
            pruned_with = self.mixture if self.pruned_with_experts else None
            layers[layer] = PrunableLayer(
                name, input_maps[0].size, input_maps, output_maps, mixture, pruned_with, block=self.whole_block
            )
        return layers


class FFNs(tuple[FFN, ...]):
    """The FFNs of a model, in the order of its modules.

    Examples
    --------
    >>> from llmrank.models import find_ffns
    >>> ffns = find_ffns(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    >>> ffns.sizes, list(ffns.output_maps), ffns.explicit
    ({'0': 8}, ['2'], False)
    """

    __slots__ = ()

    @property
    def layers(self) -> dict[str, PrunableLayer]:
        """All prunable layers by name."""
        return {layer.name: layer for ffn in self for layer in ffn.prunable.values()}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of neurons of every prunable layer, by name."""
        return {name: layer.size for name, layer in self.layers.items()}

    @property
    def linear_maps(self) -> list[LinearMap]:
        """All linear maps, see :attr:`FFN.all_maps`."""
        return [linear_map for ffn in self for linear_map in ffn.all_maps]

    @property
    def attentions(self) -> list[FFN]:
        """The attentions among them whose heads are known, and can be removed."""
        return [ffn for ffn in self if ffn.heads is not None]

    @property
    def blocks(self) -> list[TransformerBlock]:
        """The blocks that are known, each once; some may have to stay."""
        return list({id(ffn.whole_block): ffn.whole_block for ffn in self if ffn.whole_block is not None}.values())

    def without(self, blocks: Collection[TransformerBlock]) -> FFNs:
        """Return the FFNs that lie in none of these blocks."""
        return FFNs(ffn for ffn in self if ffn.whole_block not in blocks) if blocks else self

    @property
    def modules(self) -> list[nn.Module]:
        """The modules of the model that hold the weights of the linear maps, each once."""
        return list({id(linear_map.owner): linear_map.owner for linear_map in self.linear_maps}.values())

    @property
    def mixtures(self) -> list[Mixture]:
        """The mixtures of experts, each once."""
        return list({id(ffn.mixture): ffn.mixture for ffn in self if ffn.mixture is not None}.values())

    @property
    def router_modules(self) -> list[nn.Module]:
        """The modules of routers, and others, that hold tensors with one entry for each expert; not the experts' own modules."""
        return list(
            {id(part.owner): part.owner for mixture in self.mixtures for part in mixture.tensors_by_expert}.values()
        )

    @property
    def experts(self) -> dict[str, list[str]]:
        """The names of the experts' layers, by the name of their mixture."""
        found: dict[str, list[str]] = {mixture.name: [] for mixture in self.mixtures}
        for layer in self.layers.values():
            if layer.mixture is not None:
                found[layer.mixture.name].append(layer.name)
        return found

    @property
    def output_maps(self) -> dict[str, LinearMap]:
        """The output maps of all prunable layers, by path."""
        return {output_map.name: output_map for layer in self.layers.values() for output_map in layer.output_maps}

    @property
    def explicit(self) -> bool:
        """Whether the FFNs are Linears that the user has named, of which only rows are removed."""
        return any(ffn.kind == "explicit" for ffn in self)
