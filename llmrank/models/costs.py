"""The costs of neurons and models: parameters, bytes, and for one token FLOPs and bytes of the KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, TypeAlias

from torch import nn

from llmrank.errors import OptionError
from llmrank.models.experts import SeparateExperts
from llmrank.models.ffn import FFNs, PrunableLayer
from llmrank.models.heads import Heads
from llmrank.models.linear_map import bias_of, in_features, matrix_of, out_features

__all__ = ["UNITS", "Cost", "ModelCosts", "Unit", "layer_cost", "unit_name"]

Unit: TypeAlias = Literal[
    "neurons", "ffn-parameters", "ffn-bytes", "ffn-flops", "parameters", "bytes", "flops", "cache"
]
UNIT_NAMES: dict[Unit, str] = {
    "neurons": "hidden neurons",
    "ffn-parameters": "FFN parameters",
    "ffn-bytes": "FFN bytes",
    "ffn-flops": "FFN FLOPs per token",
    "parameters": "model parameters",
    "bytes": "model bytes",
    "flops": "model FLOPs per token",
    "cache": "bytes of the KV cache per token",
}
UNITS: tuple[Unit, ...] = tuple(UNIT_NAMES)


def unit_name(unit: Unit) -> str:
    """Return the name of a unit in words.

    >>> unit_name("flops")
    'model FLOPs per token'
    """
    return UNIT_NAMES[unit]


@dataclass(frozen=True)
class Cost:
    """The cost of a neuron, an FFN or a model.

    Attributes
    ----------
    parameters, bytes : int
        Number of parameters, and their size in memory in bytes.
    flops : int
        FLOPs for one token: a multiplication and an addition for each weight of a matrix. Biases, activation functions, norms
        and convolutions are not counted. The products of attention with the context, which grow with its length, are not either.
    cache : int
        Bytes of the KV cache, the keys and values that attentions keep for each token of the context, in the dtype of the
        weights. Only causal attentions whose heads can be removed are counted, and heads must be among the targets.

    Examples
    --------
    >>> Cost(3, 12, 4) + Cost(1, 4, 2)
    Cost(parameters=4, bytes=16, flops=6, cache=0)
    """

    parameters: int = 0
    bytes: int = 0
    flops: int = 0
    cache: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.bytes + other.bytes,
            self.flops + other.flops,
            self.cache + other.cache,
        )

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters - other.parameters,
            self.bytes - other.bytes,
            self.flops - other.flops,
            self.cache - other.cache,
        )


def layer_cost(layer: PrunableLayer) -> Cost:
    """Compute the cost of all neurons of a layer: their rows (and biases) in the input maps, and columns in the output maps.

    Examples
    --------
    >>> from llmrank.models import find_ffns
    >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> layer_cost(find_ffns(mlp)[0].prunable[1])
    Cost(parameters=64, bytes=256, flops=112, cache=0)
    """
    total = Cost()
    for input_map in layer.input_maps:
        total += _matrix_cost(input_map.n_rows, input_map.in_features, input_map.weight.element_size())
        bias = bias_of(input_map.module)
        if bias is not None:
            total += Cost(input_map.n_rows, input_map.n_rows * bias.element_size())
    for output_map in layer.output_maps:
        total += _matrix_cost(output_map.size, layer.size, output_map.weight.element_size())
    return total


@dataclass(frozen=True)
class _MapShape:
    """The shape of a linear map, from which its cost follows for any widths of the prunable layers."""

    # Number of rows of one neuron, by prunable layer: 2 in a fused map, less than 1 where heads share keys and values.
    rows_per_neuron: Mapping[str, Fraction]
    other_rows: int  # number of rows that belong to no prunable layer
    column_layer: str | None  # the prunable layer whose neurons are the columns; None if the columns are always kept
    n_columns: int  # number of columns before pruning
    weight_bytes: int  # bytes of one weight
    bias_bytes: int | None  # bytes of one entry of the bias; None without a bias

    @property
    def layers(self) -> tuple[str, ...]:
        """The prunable layers that the cost depends on."""
        return (*self.rows_per_neuron, *filter(None, [self.column_layer]))

    def cost(self, widths: Mapping[str, int]) -> Cost:
        rows = self.other_rows + int(sum(count * widths[layer] for layer, count in self.rows_per_neuron.items()))
        columns = self.n_columns if self.column_layer is None else widths[self.column_layer]
        bias = Cost() if self.bias_bytes is None else Cost(rows, rows * self.bias_bytes)
        return _matrix_cost(rows, columns, self.weight_bytes) + bias


@dataclass(frozen=True)
class _MixtureShape:
    """The sizes of the experts of a mixture, from which their cost follows for any widths."""

    layers: tuple[str, ...]  # names of the experts' layers
    per_layer: Cost  # all neurons of one expert
    size: int  # number of neurons of one expert
    per_expert: Cost  # the bias of an expert's output map, and the expert's entries in the tensors of the router
    top_k: int  # number of experts that compute for each token

    def cost(self, widths: Mapping[str, int]) -> Cost:
        kept = [widths[name] for name in self.layers if widths[name]]
        n_neurons, active = sum(kept), min(self.top_k, len(kept))
        layer, expert = self.per_layer, self.per_expert
        # Only the active experts compute for a token, but the router computes a score for every kept expert.
        flops = layer.flops * n_neurons * active // (self.size * max(len(kept), 1)) + expert.flops * len(kept)
        return Cost(
            layer.parameters * n_neurons // self.size + expert.parameters * len(kept),
            layer.bytes * n_neurons // self.size + expert.bytes * len(kept),
            flops,
        )


@dataclass(frozen=True)
class _CacheShape:
    """The heads of an attention, from which the size of its keys and values follows."""

    layers: tuple[str]
    heads: Heads
    number_bytes: int  # bytes of one number of a key or a value

    def cost(self, widths: Mapping[str, int]) -> Cost:
        _, n_groups = self.heads.counts(widths[self.layers[0]])
        return Cost(cache=2 * n_groups * self.heads.size * self.number_bytes)


@dataclass(frozen=True)
class _BlockShape:
    """What a block costs beside the maps of its FFNs, until it is left out."""

    layers: tuple[str, ...]  # names of its prunable layers
    rest: Cost  # attention and norms
    biases: Cost  # what the maps of its FFNs cost without a neuron

    def cost(self, widths: Mapping[str, int]) -> Cost:
        # The shapes of the maps count their biases even without a neuron, and a block that is left out has none.
        return self.rest if any(widths[name] for name in self.layers) else Cost() - self.biases


class ModelCosts:
    """The cost of a model, and how it falls when neurons of its FFNs are removed.

    The counts are exact, also for a map between two prunable layers.

    Parameters
    ----------
    model : nn.Module
        A parameter that several modules share counts once, but its FLOPs count for each of these modules. An embedding costs no
        FLOPs. A module that is called several times for a token counts once. Of the experts of a mixture, only as many
        as compute for a token count in the FLOPs. Routers count as parts of the FFNs.
    ffns : FFNs
        FFNs of this model.

    Attributes
    ----------
    sizes : dict from str to int
        Number of neurons of every prunable layer.
    model, ffns : Cost
        Cost of the dense model, and of all linear maps of its FFNs together.

    Examples
    --------
    >>> from llmrank.models import find_ffns
    >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> costs = ModelCosts(mlp, find_ffns(mlp))
    >>> costs.model, costs.removed_cost({"0": 6}, "parameters"), costs.total("neurons")
    (Cost(parameters=67, bytes=268, flops=112, cache=0), 16, 8)
    """

    def __init__(self, model: nn.Module, ffns: FFNs) -> None:
        self.sizes = ffns.sizes
        self._shapes = [*_shapes(ffns), *_cache_shapes(model, ffns)]
        self._blocks = _block_shapes(ffns)
        self.ffns = sum((shape.cost(self.sizes) for shape in self._shapes), Cost())
        parameters = list(model.parameters())
        # In modules whose tensors hold all experts of a mixture, tensors with two axes are biases, not matrices.
        modules_of_experts = {id(mixture.experts.owner) for mixture in ffns.mixtures if mixture.shares_tensors}
        matrices = [
            p
            for module in model.modules()
            if not isinstance(module, (nn.Embedding, nn.EmbeddingBag))
            for _, p in module.named_parameters(recurse=False, remove_duplicate=False)
            if p.ndim == 2 and p.shape[0] > 1 and id(module) not in modules_of_experts
        ]
        expert_flops = [
            2 * mixture.top_k * (p.numel() // mixture.n_experts)
            for mixture in ffns.mixtures
            for p in mixture.experts.owner.parameters(recurse=False)
            if p.ndim == 3
        ]
        # Experts that are modules were all counted among the matrices. Those that do not compute for a token are subtracted.
        expert_flops += [
            2 * p.numel() * (mixture.top_k - mixture.n_experts) // mixture.n_experts
            for mixture in ffns.mixtures
            if isinstance(mixture.experts, SeparateExperts)
            for p in mixture.experts.owner.parameters()
            if p.ndim == 2
        ]
        self.model = Cost(
            sum(p.numel() for p in parameters),
            sum(p.numel() * p.element_size() for p in parameters),
            2 * sum(p.numel() for p in matrices) + sum(expert_flops),
            self.ffns.cache,
        )

    def total(self, unit: Unit) -> int:
        """Return the cost of the dense model in a unit; in units that begin with ``ffn-``, the cost of its FFNs."""
        if unit == "neurons":
            return sum(self.sizes.values())
        return _in_unit(self.ffns if unit.startswith("ffn-") else self.model, unit)

    def removed_cost(self, widths: Mapping[str, int], unit: Unit) -> int:
        """Compute how much cost, in a unit, pruning to these widths removes.

        Parameters
        ----------
        widths : mapping from str to int
            Number of kept neurons, by the name of the prunable layer. Layers without an entry keep all neurons.
        unit : str
            One of :data:`UNITS`.

        Raises
        ------
        OptionError
            The model has no prunable layer of one of these names.
        """
        unknown = set(widths) - set(self.sizes)
        if unknown:
            raise OptionError(
                f"the model of these costs has no layer {sorted(unknown)[0]}; expected widths of layers among "
                f"{', '.join(self.sizes)}"
            )
        all_widths = {**self.sizes, **widths}
        if unit == "neurons":
            return sum(self.sizes.values()) - sum(all_widths.values())
        changed = {name for name, width in widths.items() if width != self.sizes[name]}
        shapes = self._shapes if unit.startswith("ffn-") else [*self._shapes, *self._blocks]
        removed = [
            shape.cost(self.sizes) - shape.cost(all_widths) for shape in shapes if not changed.isdisjoint(shape.layers)
        ]
        return _in_unit(sum(removed, Cost()), unit)


def _shapes(ffns: FFNs) -> list[_MapShape | _MixtureShape]:
    """Return the shapes of all maps that are pruned."""
    return [*_map_shapes(ffns), *_mixture_shapes(ffns)]


def _cache_shapes(model: nn.Module, ffns: FFNs) -> list[_CacheShape]:
    """Return the heads of every attention that keeps keys and values."""
    return [
        _CacheShape((layer.name,), ffn.heads, layer.output_maps[0].weight.element_size())
        for ffn in ffns
        for layer in ffn.prunable.values()
        # An attention that looks at the whole text keeps nothing for later tokens.
        if ffn.heads is not None and getattr(model.get_submodule(ffn.name), "is_causal", True)
    ]


def _map_shapes(ffns: FFNs) -> list[_MapShape]:
    """Return the shape of every linear map of the FFNs that are not experts.

    The result holds no tensor, because surgery replaces tensors while costs are in use.
    """
    layers = {name: layer for name, layer in ffns.layers.items() if layer.mixture is None}
    maps = [linear_map for ffn in ffns if not ffn.is_routed for linear_map in ffn.all_maps]
    modules = {id(m.module): m.module for m in maps}
    rows_per_neuron: dict[int, dict[str, Fraction]] = {key: {} for key in modules}
    column_layer: dict[int, str] = {}
    for name, layer in layers.items():
        for input_map in layer.input_maps:
            rows = rows_per_neuron[id(input_map.module)]
            rows[name] = rows.get(name, Fraction(0)) + Fraction(input_map.n_rows, input_map.size)
        for output_map in layer.output_maps:
            column_layer[id(output_map.module)] = name
    shapes = []
    for key, module in modules.items():
        rows, bias = rows_per_neuron[key], bias_of(module)
        shapes.append(
            _MapShape(
                rows,
                out_features(module) - int(sum(count * layers[name].size for name, count in rows.items())),
                column_layer.get(key),
                in_features(module),
                matrix_of(module).element_size(),
                None if bias is None else bias.element_size(),
            )
        )
    return shapes


def _block_shapes(ffns: FFNs) -> list[_BlockShape]:
    """Return what every known block costs beside the maps of its FFNs."""
    found = []
    for block in ffns.blocks:
        inside = FFNs(ffn for ffn in ffns if ffn.whole_block is block)
        of_ffns = _shapes(inside)
        full, empty = (
            sum((s.cost(w) for s in of_ffns), Cost()) for w in (inside.sizes, dict.fromkeys(inside.sizes, 0))
        )
        found.append(
            _BlockShape(tuple(inside.sizes), ModelCosts(block.module, _of_a_block(inside)).model - full, empty)
        )
    return found


def _of_a_block(ffns: FFNs) -> FFNs:
    return FFNs(replace(ffn, whole_block=None) for ffn in ffns)


def _mixture_shapes(ffns: FFNs) -> list[_MixtureShape]:
    """Return the shape of every mixture of experts."""
    shapes, layers = [], ffns.layers
    for mixture, experts in zip(ffns.mixtures, ffns.experts.values(), strict=True):
        layer, per_expert = layers[experts[0]], Cost()
        for output_map in layer.output_maps:
            bias = bias_of(output_map.module)
            if bias is not None:
                per_expert += Cost(len(bias), len(bias) * bias.element_size())
        for part in mixture.tensors_by_expert:
            tensor = part.tensors[part.name]
            if isinstance(tensor, nn.Parameter):
                n = tensor.numel() // mixture.n_experts
                per_expert += Cost(n, n * tensor.element_size(), 2 * n if tensor.ndim == 2 and n > 1 else 0)
        shapes.append(_MixtureShape(tuple(experts), layer_cost(layer), layer.size, per_expert, mixture.top_k))
    return shapes


def _matrix_cost(rows: int, columns: int, weight_bytes: int) -> Cost:
    return Cost(rows * columns, rows * columns * weight_bytes, 2 * rows * columns)


def _in_unit(cost: Cost, unit: Unit) -> int:
    value: int = getattr(cost, unit.removeprefix("ffn-"))
    return value
