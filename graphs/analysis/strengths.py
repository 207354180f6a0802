"""Strengths of nodes: the sums of the weights of their in-edges and of their out-edges."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphs.errors import GraphError
from graphs.linalg.backends import Backend, make_backend
from graphs.linalg.blocks import FloatArray
from graphs.linalg.operators import Vector
from graphs.structures.indices import check_layer
from graphs.structures.layered import LayeredGraph

__all__ = ["default_backend", "finite_strength", "not_finite_error", "strengths"]


def strengths(graph: LayeredGraph, layer: int) -> tuple[FloatArray, FloatArray]:
    """Compute the in-strength and the out-strength of every node of a layer.

    Cost: one read of the edges into the layer, and one of the edges out of it.

    Parameters
    ----------
    graph : LayeredGraph
    layer : int
        From 0 (the inputs) to L (the last layer).

    Returns
    -------
    in_strength, out_strength : (n_l,) float64 arrays
        The in-strengths of layer 0 and the out-strengths of layer L are zeros.

    Raises
    ------
    GraphError
        No such layer, or NaN or Inf in the weights or their sums.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, -2.0], [0.0, 3.0]]], [1, 1], [[1, 1]])
    >>> strengths(graph, 1)
    (array([3., 3.]), array([0., 0.]))
    """
    layer = check_layer(graph, layer)
    backend = default_backend(graph)
    into: FloatArray = np.zeros(graph.layer_sizes[layer])
    out: FloatArray = np.zeros(graph.layer_sizes[layer])
    if layer > 0:
        operator = backend.operator(graph.blocks[layer - 1], products=1)
        into = finite_strength(backend, operator.in_strength, layer)
    if layer < len(graph.blocks):
        operator = backend.operator(graph.blocks[layer], products=1)
        out = finite_strength(backend, operator.out_strength, layer + 1)
    return into, out


def default_backend(graph: LayeredGraph) -> Backend:
    """Make the backend (numpy, compiled kernels or torch on a device) that computes with a graph's blocks in float64.

    Parameters
    ----------
    graph : LayeredGraph

    Returns
    -------
    Backend
        On the device of the graph's first torch matrix, or else on the CPU.

    Examples
    --------
    >>> default_backend(LayeredGraph.from_weights([[[1.0, -2.0]]], [1, 1], [[1]])).name
    'compiled (float64, auto)'
    """
    return make_backend("auto", None, "float64", graph.blocks)


def finite_strength(backend: Backend, compute: Callable[[], Vector], layer: int) -> FloatArray:
    """Compute the in-strengths or the out-strengths of a block, and check that their sum is finite.

    Parameters
    ----------
    backend : Backend
        A backend in float64.
    compute : callable
        Method `in_strength` or `out_strength` of the block's operator, which ``backend.operator`` returned.
    layer : int
        The layer that the block leads into, for the error message.

    Returns
    -------
    (n,) float64 array

    Raises
    ------
    GraphError
        NaN or Inf in the weights or their sums.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, -2.0], [0.0, 3.0]]], [1, 1], [[1, 1]])
    >>> backend = default_backend(graph)
    >>> finite_strength(backend, backend.operator(graph.blocks[0], 1).out_strength, layer=1)
    array([1., 5.])
    """
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow raises an error below
        sums: FloatArray = backend.arithmetic.to_numpy(compute())
        if not np.isfinite(sums.sum()):
            raise not_finite_error(layer)
    return sums


def not_finite_error(layer: int) -> GraphError:
    """Make the error for weights that are not finite or whose sum overflows.

    Parameters
    ----------
    layer : int
        The layer that the block leads into.

    Returns
    -------
    GraphError

    Examples
    --------
    >>> print(not_finite_error(2))
    block 2: the edge weights hold NaN or Inf, or their sum overflows; reload or rescale them
    """
    return GraphError(
        f"block {layer}: the edge weights hold NaN or Inf, or their sum overflows; reload or rescale them"
    )
