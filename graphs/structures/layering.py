"""Find the layer of every node of a digraph, from a node attribute or from the edges, and sort the nodes of each layer."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Hashable
from typing import TYPE_CHECKING

from graphs.errors import GraphError

if TYPE_CHECKING:
    import networkx

__all__ = ["as_integer", "as_number", "find_layers", "order_nodes", "read_layers"]


def read_layers(digraph: networkx.DiGraph, attribute: str) -> dict[Hashable, int] | None:
    """Read the layer of every node from a node attribute.

    Parameters
    ----------
    digraph : networkx.DiGraph
    attribute : str
        Name of the attribute; its values are consecutive integers.

    Returns
    -------
    dict from node to int, or None
        The layers, counted from 0 and not checked against the edges; None if no node has the attribute.

    Raises
    ------
    GraphError
        Some nodes have no layer, a layer is not an integer, or the layers have a gap.

    Examples
    --------
    >>> import networkx
    >>> digraph = networkx.DiGraph()
    >>> digraph.add_nodes_from([("a", {"layer": 4}), ("b", {"layer": 5})])
    >>> read_layers(digraph, "layer")
    {'a': 0, 'b': 1}
    """
    given = dict(digraph.nodes(data=attribute))
    absent = [node for node, value in given.items() if value is None]
    if len(absent) == len(given):
        return None
    if absent:
        raise GraphError(
            f"expected attribute {attribute!r} at all nodes or at none, got {len(absent):,} nodes without it, such as "
            f"{absent[0]!r}; add it, or pass layer=None to find layers from the edges"
        )
    layers = {node: as_integer(value, f"{attribute!r} of node {node!r}") for node, value in given.items()}
    present = sorted(set(layers.values()))
    for before, after in itertools.pairwise(present):
        if after != before + 1:
            raise GraphError(
                f"{attribute!r}: expected consecutive layers, got none between {before} and {after}; number them without a gap, "
                "or pass layer=None to find layers from the edges"
            )
    return {node: value - present[0] for node, value in layers.items()}


def find_layers(digraph: networkx.DiGraph) -> dict[Hashable, int]:
    """Find the layer of every node from the edges.

    Every edge leads from a layer to the next, and every weakly connected component begins in layer 0. Cost: every edge is read
    twice.

    Parameters
    ----------
    digraph : networkx.DiGraph

    Returns
    -------
    dict from node to int

    Raises
    ------
    GraphError
        No layers fit all edges.

    Examples
    --------
    >>> import networkx
    >>> find_layers(networkx.DiGraph([("a", "b"), ("c", "b"), ("b", "d")]))
    {'a': 0, 'b': 1, 'd': 2, 'c': 0}
    """
    layers: dict[Hashable, int] = {}
    for root in digraph:
        if root in layers:
            continue
        layers[root] = 0
        component = [root]
        for node in component:  # the list grows while it is read
            for step, neighbours in ((1, digraph.successors(node)), (-1, digraph.predecessors(node))):
                for other in neighbours:
                    if other not in layers:
                        layers[other] = layers[node] + step
                        component.append(other)
                    elif layers[other] != layers[node] + step:
                        source, target = (node, other) if step == 1 else (other, node)
                        raise GraphError(
                            f"no layers fit all edges: expected every edge to lead from a layer to the next, but the edge "
                            f"{source!r} -> {target!r} leads {layers[target] - layers[source]:+d} layers on, by the layers that "
                            "the other edges give; remove it, or rank the digraph as it is with graphs.pagerank"
                        )
        lowest = min(layers[node] for node in component)
        for node in component:
            layers[node] -= lowest
    return layers


def order_nodes(
    digraph: networkx.DiGraph, nodes_by_layer: list[list[Hashable]], attribute: str
) -> list[list[Hashable]]:
    """Sort the nodes of every layer by an integer attribute.

    Parameters
    ----------
    digraph : networkx.DiGraph
    nodes_by_layer : list of lists of nodes
    attribute : str
        Name of the attribute. If any node lacks it, all nodes keep the order that they have.

    Returns
    -------
    list of lists of nodes

    Raises
    ------
    GraphError
        A value is not an integer, or two nodes of a layer have the same value.

    Examples
    --------
    >>> import networkx
    >>> digraph = networkx.DiGraph()
    >>> digraph.add_nodes_from([("a", {"index": 7}), ("b", {"index": 2})])
    >>> order_nodes(digraph, [["a", "b"]], "index")
    [['b', 'a']]
    """
    given = dict(digraph.nodes(data=attribute))
    if any(value is None for value in given.values()):
        return nodes_by_layer
    indices = {node: as_integer(value, f"{attribute!r} of node {node!r}") for node, value in given.items()}
    ordered = [sorted(nodes, key=indices.__getitem__) for nodes in nodes_by_layer]
    for layer, nodes in enumerate(ordered):
        for one, other in itertools.pairwise(nodes):
            if indices[one] == indices[other]:
                raise GraphError(
                    f"{attribute!r}: expected a different index for every node of a layer, got {indices[one]} for nodes "
                    f"{one!r} and {other!r} of layer {layer}; correct it, or pass index=None for the digraph's own order"
                )
    return ordered


def as_number(value: object, name: str) -> float:
    """Convert a finite real number to a float.

    Parameters
    ----------
    value : object
        A bool is an error.
    name : str
        Name of the value in error messages.

    Returns
    -------
    float

    Raises
    ------
    GraphError
        The value is not a finite real number.

    Examples
    --------
    >>> as_number(3, "weight")
    3.0
    """
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise GraphError(f"{name}: expected a finite number, got {value!r}")


def as_integer(value: object, name: str) -> int:
    """Convert an integer, or a float without a fraction, to an int.

    Parameters
    ----------
    value : object
        A bool is an error.
    name : str
        Name of the value in error messages.

    Returns
    -------
    int

    Raises
    ------
    GraphError
        The value is not an integer.

    Examples
    --------
    >>> as_integer(3.0, "layer")
    3
    """
    if not isinstance(value, bool) and isinstance(value, numbers.Integral):
        return int(value)
    number = as_number(value, name)
    if not number.is_integer():
        raise GraphError(f"{name}: expected an integer, got {value!r}")
    return int(number)
