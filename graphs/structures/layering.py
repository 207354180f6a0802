"""Layering: which layer every node of a digraph belongs to, told by its nodes or found from its edges."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Hashable
from typing import TYPE_CHECKING

from graphs.errors import GraphError

if TYPE_CHECKING:
    import networkx

__all__ = ["as_integer", "as_number", "found_layers", "given_layers", "ordered_by"]


def given_layers(digraph: networkx.DiGraph, attribute: str) -> dict[Hashable, int] | None:
    """The layer of every node by its attribute.

    Parameters
    ----------
    digraph : networkx.DiGraph
    attribute : str
        An integer at every node, consecutive over all nodes; or at none.

    Returns
    -------
    dict from node to int, or None
        The lowest layer counts as 0; None where no node has the attribute. Edges are not looked at.

    Raises
    ------
    GraphError
        Some nodes have no layer, or one that is not an integer, or layers have a gap.

    Examples
    --------
    >>> import networkx
    >>> digraph = networkx.DiGraph()
    >>> digraph.add_nodes_from([("a", {"layer": 4}), ("b", {"layer": 5})])
    >>> given_layers(digraph, "layer")
    {'a': 0, 'b': 1}
    """
    given = dict(digraph.nodes(data=attribute))
    absent = [node for node, value in given.items() if value is None]
    if len(absent) == len(given):
        return None
    if absent:
        raise GraphError(
            f"node {absent[0]!r} (one of {len(absent):,}) has no attribute {attribute!r} and others have; give it to all, or "
            "pass layer=None to find layers from the edges"
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


def found_layers(digraph: networkx.DiGraph) -> dict[Hashable, int]:
    """The only layers by which every edge leads to the next one, each weakly connected component starting at 0.

    Parameters
    ----------
    digraph : networkx.DiGraph

    Returns
    -------
    dict from node to int

    Raises
    ------
    GraphError
        There are none; the message names an edge that does not fit the others. Cost: every edge looked at twice.

    Examples
    --------
    >>> import networkx
    >>> found_layers(networkx.DiGraph([("a", "b"), ("c", "b"), ("b", "d")]))
    {'a': 0, 'b': 1, 'd': 2, 'c': 0}
    """
    layers: dict[Hashable, int] = {}
    for root in digraph:
        if root in layers:
            continue
        layers[root] = 0
        component = [root]
        for node in component:
            for step, neighbours in ((1, digraph.successors(node)), (-1, digraph.predecessors(node))):
                for other in neighbours:
                    if other not in layers:
                        layers[other] = layers[node] + step
                        component.append(other)
                    elif layers[other] != layers[node] + step:
                        source, target = (node, other) if step == 1 else (other, node)
                        raise GraphError(
                            f"no layers fit: by other paths the edge {source!r} -> {target!r} leads "
                            f"{layers[target] - layers[source]:+d} layers on, expected +1; the digraph has a cycle, or paths "
                            "of different lengths: remove the edge, or rank the digraph as it is with graphs.pagerank"
                        )
        lowest = min(layers[node] for node in component)
        for node in component:
            layers[node] -= lowest
    return layers


def ordered_by(digraph: networkx.DiGraph, members: list[list[Hashable]], attribute: str) -> list[list[Hashable]]:
    """The nodes of every layer by rising value of an attribute.

    Parameters
    ----------
    digraph : networkx.DiGraph
    members : list of lists of nodes
        By layer.
    attribute : str
        An integer; where a node has none, the nodes are left in their order.

    Returns
    -------
    list of lists of nodes
        By layer.

    Raises
    ------
    GraphError
        A value is not an integer, or occurs twice in a layer.

    Examples
    --------
    >>> import networkx
    >>> digraph = networkx.DiGraph()
    >>> digraph.add_nodes_from([("a", {"index": 7}), ("b", {"index": 2})])
    >>> ordered_by(digraph, [["a", "b"]], "index")
    [['b', 'a']]
    """
    given = dict(digraph.nodes(data=attribute))
    if any(value is None for value in given.values()):
        return members
    places = {node: as_integer(value, f"{attribute!r} of node {node!r}") for node, value in given.items()}
    ordered = []
    for layer, nodes in enumerate(members):
        by_place = sorted(nodes, key=places.__getitem__)
        for one, other in itertools.pairwise(by_place):
            if places[one] == places[other]:
                raise GraphError(
                    f"{attribute!r}: nodes {one!r} and {other!r} of layer {layer} both have {places[one]}; expected one "
                    "index a node, or index=None for the digraph's own order"
                )
        ordered.append(by_place)
    return ordered


def as_number(value: object, what: str) -> float:
    """A finite float.

    Parameters
    ----------
    value : object
        Any real number but a bool, which is a mistake here.
    what : str
        How the message calls it.

    Returns
    -------
    float

    Raises
    ------
    GraphError
        Something else.

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
    raise GraphError(f"{what}: expected a finite number, got {value!r}")


def as_integer(value: object, what: str) -> int:
    """An int.

    Parameters
    ----------
    value : object
        An integer, or a float without fraction: some formats know no integers, and write 3.0.
    what : str
        How the message calls it.

    Returns
    -------
    int

    Raises
    ------
    GraphError
        Something else.

    Examples
    --------
    >>> as_integer(3.0, "layer")
    3
    """
    if not isinstance(value, bool) and isinstance(value, numbers.Integral):
        return int(value)
    number = as_number(value, what)
    if not number.is_integer():
        raise GraphError(f"{what}: expected an integer, got {value!r}")
    return int(number)
