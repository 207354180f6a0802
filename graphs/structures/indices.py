"""Layers and nodes by their numbers, checked against a graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphs.errors import GraphError
from graphs.structures.layered import LayeredGraph

__all__ = ["check_layer", "check_node"]


def check_layer(graph: LayeredGraph, layer: Any, first: int = 0, *, name: str = "layer") -> int:
    """A layer of a graph.

    Parameters
    ----------
    graph : LayeredGraph
    layer : int or numpy integer
        `first` to L; negative ones do not count from the end.
    first : int
        0, or 1 where a block into the layer is meant.
    name : str
        How the message calls it.

    Returns
    -------
    int

    Raises
    ------
    GraphError
        No such layer.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 1], [[1]])
    >>> check_layer(graph, 1)
    1
    >>> check_layer(graph, 0, first=1)
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: layer: expected a layer from 1 to 1, got 0
    """
    last = len(graph.layers) - 1
    if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)) or not first <= layer <= last:
        raise GraphError(f"{name}: expected a layer from {first} to {last}, got {layer!r}")
    return int(layer)


def check_node(graph: LayeredGraph, layer: int, node: Any) -> int:
    """A node of a layer.

    Parameters
    ----------
    graph : LayeredGraph
    layer : int
        0..L, checked already.
    node : int or numpy integer
        0..n_l - 1; negative ones do not count from the end.

    Returns
    -------
    int

    Raises
    ------
    GraphError
        No such node.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 1], [[1]])
    >>> check_node(graph, 0, 2)
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: node: expected a node of layer 0 from 0 to 1, got 2
    """
    last = graph.layers[layer] - 1
    if isinstance(node, bool) or not isinstance(node, (int, np.integer)) or not 0 <= node <= last:
        raise GraphError(f"node: expected a node of layer {layer} from 0 to {last}, got {node!r}")
    return int(node)
