"""Checks of layer and node numbers against a graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphs.errors import GraphError
from graphs.structures.layered import LayeredGraph

__all__ = ["check_layer", "check_node"]


def check_layer(graph: LayeredGraph, layer: Any, first: int = 0, *, name: str = "layer") -> int:
    """Check the number of a layer and return it as an int.

    Parameters
    ----------
    graph : LayeredGraph
    layer : int or numpy integer
        From `first` to the number of the last layer; negative numbers are errors.
    first : int
        Lowest valid number: 1 if the layer must have a block into it, else 0.
    name : str
        Name of the value in error messages.

    Raises
    ------
    GraphError
        `layer` is not an integer, or is out of range.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 1], [[1]])
    >>> check_layer(graph, 0, first=1)
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: layer: expected a layer from 1 to 1, got 0
    """
    last = len(graph.layer_sizes) - 1
    if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)) or not first <= layer <= last:
        raise GraphError(f"{name}: expected a layer from {first} to {last}, got {layer!r}")
    return int(layer)


def check_node(graph: LayeredGraph, layer: int, node: Any) -> int:
    """Check the index of a node in a layer and return it as an int.

    Parameters
    ----------
    graph : LayeredGraph
    layer : int
        Number of the layer, which is not checked.
    node : int or numpy integer
        From 0 to the size of the layer minus 1; negative numbers are errors.

    Raises
    ------
    GraphError
        `node` is not an integer, or is out of range.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 1], [[1]])
    >>> check_node(graph, 0, 2)
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: node: expected a node of layer 0 from 0 to 1, got 2
    """
    last = graph.layer_sizes[layer] - 1
    if isinstance(node, bool) or not isinstance(node, (int, np.integer)) or not 0 <= node <= last:
        raise GraphError(f"node: expected a node of layer {layer} from 0 to {last}, got {node!r}")
    return int(node)
