"""Strengths: the sums of the weights of a node's edges, in and out, and the backend that reads a graph for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphs.errors import GraphError
from graphs.linalg.backends import Backend, make_backend
from graphs.linalg.blocks import FloatArray
from graphs.linalg.operators import BlockOperator, Vector
from graphs.structures.indices import check_layer
from graphs.structures.layered import LayeredGraph

__all__ = ["default_backend", "in_strength", "not_finite", "out_strength", "strengths"]


def strengths(graph: LayeredGraph, layer: int) -> tuple[FloatArray, FloatArray]:
    """In- and out-strength of every node of a layer: the sums of the weights of its edges.

    Parameters
    ----------
    graph : LayeredGraph
    layer : int
        0..L.

    Returns
    -------
    in_strength, out_strength : (n_l,) float64 arrays
        Zeros where a side has no block: into layer 0, and out of layer L.

    Raises
    ------
    GraphError
        No such layer; weights that are NaN or Inf, or whose sums are.

    Notes
    -----
    Cost: one read of the block on each side.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, -2.0], [0.0, 3.0]]], [1, 1], [[1, 1]])
    >>> strengths(graph, 1)
    (array([3., 3.]), array([0., 0.]))
    """
    layer = check_layer(graph, layer)
    engine = default_backend(graph)
    into: FloatArray = np.zeros(graph.layers[layer])
    out: FloatArray = np.zeros(graph.layers[layer])
    if layer > 0:
        into = in_strength(engine, engine.operator(graph.blocks[layer - 1], 1), layer)
    if layer < len(graph.blocks):
        out = out_strength(engine, engine.operator(graph.blocks[layer], 1), layer + 1)
    return into, out


def default_backend(graph: LayeredGraph) -> Backend:
    """The backend that reads a graph's blocks, in float64, where they lie.

    Parameters
    ----------
    graph : LayeredGraph

    Returns
    -------
    Backend
        On the GPU where the graph's first torch matrix lies on one, else on the CPU.

    Examples
    --------
    >>> default_backend(LayeredGraph.from_weights([[[1.0, -2.0]]], [1, 1], [[1]])).name
    'compiled (float64, auto)'
    """
    return make_backend("auto", None, "float64", graph.blocks)


def in_strength(engine: Backend, operator: BlockOperator, layer: int) -> FloatArray:
    """In-strengths of the targets of one block.

    Parameters
    ----------
    engine : Backend
        That of the operator, in float64.
    operator : BlockOperator
        The block into `layer`, (n_targets, n_sources).
    layer : int
        For the message.

    Returns
    -------
    (n_targets,) float64 array

    Raises
    ------
    GraphError
        Weights that are NaN or Inf, or whose sums are.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, -2.0], [0.0, 3.0]]], [1, 1], [[1, 1]])
    >>> engine = default_backend(graph)
    >>> in_strength(engine, engine.operator(graph.blocks[0], 1), layer=1)
    array([3., 3.])
    """
    return _finite(engine, operator.in_strength, layer)


def out_strength(engine: Backend, operator: BlockOperator, layer: int) -> FloatArray:
    """Out-strengths of the sources of one block.

    Parameters
    ----------
    engine, operator, layer
        As for :func:`in_strength`.

    Returns
    -------
    (n_sources,) float64 array

    Raises
    ------
    GraphError
        As for :func:`in_strength`.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, -2.0], [0.0, 3.0]]], [1, 1], [[1, 1]])
    >>> engine = default_backend(graph)
    >>> out_strength(engine, engine.operator(graph.blocks[0], 1), layer=1)
    array([1., 5.])
    """
    return _finite(engine, operator.out_strength, layer)


def _finite(engine: Backend, sums: Callable[[], Vector], layer: int) -> FloatArray:
    with np.errstate(over="ignore", invalid="ignore"):
        found: FloatArray = engine.arithmetic.to_numpy(sums())
        if not np.isfinite(found.sum()):
            raise not_finite(layer)
    return found


def not_finite(layer: int) -> GraphError:
    """The error for weights that do not add up to a number.

    Parameters
    ----------
    layer : int
        That their block leads into.

    Returns
    -------
    GraphError
        To be raised.

    Examples
    --------
    >>> print(not_finite(2))
    block 2: the edge weights hold NaN or Inf, or their sum overflows, so strengths are not finite; reload or rescale them
    """
    return GraphError(
        f"block {layer}: the edge weights hold NaN or Inf, or their sum overflows, so strengths are not finite; "
        "reload or rescale them"
    )
