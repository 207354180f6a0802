"""What neurons and models cost: parameters, bytes, and FLOPs for a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import nn

from llmrank.errors import OptionError
from llmrank.models.ffn import FFN, PrunableLayer, bias_of, in_features, out_features

__all__ = ["UNITS", "Cost", "ModelCosts", "Unit", "neuron_cost", "unit_name"]

Unit: TypeAlias = Literal["neurons", "ffn-parameters", "ffn-bytes", "ffn-flops", "parameters", "bytes", "flops"]
UNITS: tuple[Unit, ...] = ("neurons", "ffn-parameters", "ffn-bytes", "ffn-flops", "parameters", "bytes", "flops")
NAMES: dict[Unit, str] = {
    "neurons": "hidden neurons",
    "ffn-parameters": "FFN parameters",
    "ffn-bytes": "FFN bytes",
    "ffn-flops": "FFN FLOPs per token",
    "parameters": "model parameters",
    "bytes": "model bytes",
    "flops": "model FLOPs per token",
}


def unit_name(unit: Unit) -> str:
    """A unit as people say it.

    >>> unit_name("flops")
    'model FLOPs per token'
    """
    return NAMES[unit]


@dataclass(frozen=True)
class Cost:
    """What something costs.

    Attributes
    ----------
    parameters, bytes : int
    flops : int
        For one token: a multiplication and an addition for each weight of a matrix. Biases, activations, norms, and
        attention's products with the context, which grow with it, are not counted.

    Examples
    --------
    >>> Cost(3, 12, 4) + Cost(1, 4, 2)
    Cost(parameters=4, bytes=16, flops=6)
    """

    parameters: int = 0
    bytes: int = 0
    flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.bytes + other.bytes, self.flops + other.flops)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.parameters - other.parameters, self.bytes - other.bytes, self.flops - other.flops)


def neuron_cost(layer: PrunableLayer) -> Cost:
    """What one neuron of a layer costs: its row in every producer, with its bias, and its column in every consumer.

    Parameters
    ----------
    layer : PrunableLayer
        All its neurons cost the same.

    Examples
    --------
    >>> from llmrank.models import find_ffns
    >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> neuron_cost(find_ffns(mlp)[0].prunable[1])
    Cost(parameters=8, bytes=32, flops=14)
    """
    total = Cost()
    for producer in layer.producers:
        total += _matrix(1, producer.in_features, producer.weight.element_size())
        bias = bias_of(producer.module)
        if bias is not None:
            total += Cost(1, bias.element_size())
    for consumer in layer.consumers:
        total += _matrix(consumer.size, 1, consumer.weight.element_size())
    return total


@dataclass(frozen=True)
class _Map:
    """A linear map by the layers whose neurons are its rows and columns, and the bytes of a weight and of a bias, if any."""

    bands: Mapping[str, int]
    other_rows: int
    reads: str | None
    n_columns: int
    weight_bytes: int
    bias_bytes: int | None

    def cost(self, widths: Mapping[str, int]) -> Cost:
        rows = self.other_rows + sum(count * widths[layer] for layer, count in self.bands.items())
        columns = self.n_columns if self.reads is None else widths[self.reads]
        bias = Cost() if self.bias_bytes is None else Cost(rows, rows * self.bias_bytes)
        return _matrix(rows, columns, self.weight_bytes) + bias


class ModelCosts:
    """What a model costs, and what of it goes with the neurons of its FFNs.

    Counted exactly: where two prunable layers follow one another, the map between them is a product of both widths.

    Parameters
    ----------
    model : nn.Module
        Not changed. Parameters that are shared count once; a matrix computes wherever a module holds it, so that a
        prediction head costs FLOPs though it shares its matrix with the embedding, which is looked up and costs none. A
        module that is called several times for a token counts once.
    ffns : sequence of FFN
        Of this model.

    Attributes
    ----------
    sizes : dict from str to int
        Neurons of every prunable layer.
    model, ffns : Cost
        Of the whole model, and of the linear maps of its FFNs.

    Examples
    --------
    >>> from llmrank.models import find_ffns
    >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> costs = ModelCosts(mlp, find_ffns(mlp))
    >>> costs.model, costs.removed({"0": 6}, "parameters"), costs.whole("neurons")
    (Cost(parameters=67, bytes=268, flops=112), 16, 8)
    """

    def __init__(self, model: nn.Module, ffns: Sequence[FFN]) -> None:
        layers = {layer.name: layer for ffn in ffns for layer in ffn.prunable.values()}
        self.sizes = {name: layer.size for name, layer in layers.items()}
        self._maps = _maps(ffns, layers)
        self.ffns = self._of(self.sizes)
        parameters = {id(p): p for p in model.parameters()}.values()
        computing = [
            p
            for module in model.modules()
            if not isinstance(module, (nn.Embedding, nn.EmbeddingBag))
            for p in module._parameters.values()
            if p is not None and p.ndim == 2
        ]
        self.model = Cost(
            sum(p.numel() for p in parameters),
            sum(p.numel() * p.element_size() for p in parameters),
            2 * sum(p.numel() for p in computing),
        )

    def whole(self, unit: Unit) -> int:
        """What there is of a unit before anything goes."""
        if unit == "neurons":
            return sum(self.sizes.values())
        return _pick(self.ffns if unit.startswith("ffn-") else self.model, unit)

    def removed(self, widths: Mapping[str, int], unit: Unit) -> int:
        """How much of a unit goes when layers are left with these widths.

        Parameters
        ----------
        widths : mapping from str to int
            Neurons that stay, by the name of the layer; layers that are not named keep all.
        unit : str
            Of :data:`UNITS`.

        Raises
        ------
        OptionError
            Layers of another model.
        """
        unknown = set(widths) - set(self.sizes)
        if unknown:
            raise OptionError(
                f"these costs are of another model: it has no layer {sorted(unknown)[0]}; expected widths of "
                f"{', '.join(self.sizes)}"
            )
        left = {**self.sizes, **widths}
        if unit == "neurons":
            return sum(self.sizes.values()) - sum(left.values())
        return _pick(self.ffns - self._of(left), unit)

    def _of(self, widths: Mapping[str, int]) -> Cost:
        return sum((entry.cost(widths) for entry in self._maps), Cost())


def _maps(ffns: Sequence[FFN], layers: Mapping[str, PrunableLayer]) -> list[_Map]:
    modules = {id(p.module): p.module for ffn in ffns for stage in ffn.stages for p in stage}
    bands: dict[int, dict[str, int]] = {key: {} for key in modules}
    reads: dict[int, str] = {}
    for name, layer in layers.items():
        for producer in layer.producers:
            own = bands[id(producer.module)]
            own[name] = own.get(name, 0) + 1
        for consumer in layer.consumers:
            reads[id(consumer.module)] = name
    found = []
    for key, module in modules.items():
        rows = sum(count * layers[name].size for name, count in bands[key].items())
        weight = module.weight
        if not isinstance(weight, torch.Tensor):
            raise TypeError(f"{type(module).__name__} has no weight tensor")
        # Not the tensors themselves: costs outlive a cut.
        bias = bias_of(module)
        found.append(
            _Map(
                bands[key],
                out_features(module) - rows,
                reads.get(key),
                in_features(module),
                weight.element_size(),
                None if bias is None else bias.element_size(),
            )
        )
    return found


def _matrix(rows: int, columns: int, weight_bytes: int) -> Cost:
    return Cost(rows * columns, rows * columns * weight_bytes, 2 * rows * columns)


def _pick(cost: Cost, unit: Unit) -> int:
    value: int = getattr(cost, unit.removeprefix("ffn-"))
    return value
