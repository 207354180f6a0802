"""The layers of an inspection, and how users name a layer, an expert or a neuron.

A layer holds the hidden neurons of one FFN, or those of all experts of a mixture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrank.errors import OptionError
from llmrank.models import FFNs, PrunableLayer
from llmrank.score.model_graph import LayerNodes, ModelGraph

__all__ = [
    "InspectedLayer",
    "check_neuron",
    "find_layers",
    "find_part",
    "parse_neuron",
    "parts_by_layer",
    "split_neuron",
]


@dataclass(frozen=True, eq=False)
class InspectedLayer:
    """A layer of a graph whose nodes are prunable neurons.

    Attributes
    ----------
    name : str
        Name of the prunable layer, or of the mixture of experts.
    graph, position : int
        Index of the graph, and of the layer in the graph.
    parts : tuple of LayerNodes
        The prunable layer; or one part for each expert of the mixture, shared experts included, in the order of the nodes.
    is_mixture : bool
    """

    name: str
    graph: int
    position: int
    parts: tuple[LayerNodes, ...]
    is_mixture: bool

    @property
    def size(self) -> int:
        """Number of neurons."""
        return sum(part.layer.size for part in self.parts)

    @property
    def layers(self) -> list[PrunableLayer]:
        """The prunable layers of all parts."""
        return [part.layer for part in self.parts]

    def join(self, values: Mapping[str, Any]) -> npt.NDArray[Any]:
        """Join arrays or tensors of the parts, by the names of their prunable layers, into one array of the layer's neurons."""
        return np.concatenate([np.asarray(values[layer.name]) for layer in self.layers])

    def part_of(self, neuron: int) -> LayerNodes:
        """Return the part that holds a neuron."""
        return next(part for part in self.parts if part.start <= neuron < part.nodes.stop)

    def label(self, neuron: int) -> str:
        """Return the name of a neuron's layer; in a mixture, the name of its expert and its index there."""
        part = self.part_of(neuron)
        return f"neuron {neuron - part.start} of {part.layer.name}" if self.is_mixture else self.name


def find_layers(graphs: Sequence[ModelGraph]) -> dict[str, InspectedLayer]:
    """Return the layers of the graphs whose nodes are prunable neurons, by name, in the order of the model."""
    found: dict[str, InspectedLayer] = {}
    for index, entry in enumerate(graphs):
        parts: dict[int, list[LayerNodes]] = {}
        for place in entry.prunable:
            parts.setdefault(place.position, []).append(place)
        for position, places in parts.items():
            is_mixture = bool(entry.statistics[position].experts)
            name = entry.graph.names[position] if is_mixture else places[0].layer.name
            found[name] = InspectedLayer(name, index, position, tuple(places), is_mixture)
    return found


def parts_by_layer(ffns: FFNs) -> dict[str, dict[str, int]]:
    """Return the layers that an inspection of these FFNs will have, by name; each is a dict from its parts' names to their sizes.

    >>> from torch import nn
    >>> from llmrank.models import find_ffns
    >>> parts_by_layer(find_ffns(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))))
    {'0': {'0': 8}}
    """
    found: dict[str, dict[str, int]] = {}
    for ffn in ffns:
        for layer in ffn.prunable.values():
            name = layer.name if ffn.mixture is None else ffn.mixture.name
            found.setdefault(name, {})[layer.name] = layer.size
    return found


def parse_neuron(layers: Mapping[str, Mapping[str, int]], text: str) -> tuple[str, int]:
    """Parse a neuron as users write it: ``model.layers.3.mlp:17``, or ``3:17`` for neuron 17 of the fourth layer.

    Before the colon there may also be an expert: its name, or ``3.5`` for the sixth expert of the fourth layer. Then the number
    after the colon counts the neurons of that expert. A layer whose name is ``3`` takes precedence over the fourth layer.

    Parameters
    ----------
    layers : mapping from str to mapping from str to int
        See :func:`parts_by_layer`.
    text : str

    Returns
    -------
    layer : str
        Name of the layer.
    neuron : int
        Index in the layer.

    Raises
    ------
    OptionError
        The text has another form, or there is no such layer or neuron.

    Examples
    --------
    >>> layers = {"model.layers.0.mlp": {"model.layers.0.mlp": 40}, "mixture": {"mixture.0": 8, "mixture.1": 8}}
    >>> parse_neuron(layers, "0:17"), parse_neuron(layers, "1.1:2"), parse_neuron(layers, "mixture.1:2")
    (('model.layers.0.mlp', 17), ('mixture', 10), ('mixture', 10))
    """
    label, neuron = split_neuron(text)
    layer, expert = find_part(layers, label)
    parts = layers[layer]
    if expert is None:
        check_neuron(layer, neuron, sum(parts.values()))
        return layer, neuron
    check_neuron(expert, neuron, parts[expert])
    start = sum(size for _, size in takewhile(lambda part: part[0] != expert, parts.items()))
    return layer, start + neuron


def find_part(layers: Mapping[str, Mapping[str, int]], text: str) -> tuple[str, str | None]:
    """Find a layer, or an expert of a mixture, by its name or number; see :func:`parse_neuron`.

    Returns
    -------
    layer : str
    expert : str or None
        None for the whole layer.

    Raises
    ------
    OptionError
        There is no such layer.
    """
    names = list(layers)
    if text in layers:
        return text, None
    for name, parts in layers.items():
        if text in parts:
            return name, text
    numbers = re.fullmatch(r"([0-9]{1,18})(?:\.([0-9]{1,18}))?", text)
    if numbers is not None and int(numbers[1]) < len(names):
        name = names[int(numbers[1])]
        if numbers[2] is None:
            return name, None
        if len(layers[name]) > 1 and int(numbers[2]) < len(layers[name]):
            return name, list(layers[name])[int(numbers[2])]
    raise OptionError(
        f"there is no prunable layer {text!r}; expected 0 to {len(names) - 1}, or one of {', '.join(names)}"
    )


def split_neuron(text: str) -> tuple[str, int]:
    """Split ``LAYER:NEURON``; this needs no model.

    Raises
    ------
    OptionError
        The text has another form.

    Examples
    --------
    >>> split_neuron("model.layers.3.mlp:17")
    ('model.layers.3.mlp', 17)
    """
    layer, colon, neuron = (part.strip() for part in text.rpartition(":"))
    if not colon or not layer or not re.fullmatch("[0-9]{1,18}", neuron):
        raise OptionError(f"expected LAYER:NEURON, such as 3:17 or model.layers.3.mlp:17, got {text!r}")
    return layer, int(neuron)


def check_neuron(layer: str, neuron: int, size: int) -> None:
    """Raise an OptionError if a layer of this size does not have the neuron."""
    if not 0 <= neuron < size:
        raise OptionError(f"{layer} has neurons 0 to {size - 1}, got {neuron}")
