"""Strengths of nodes: the sums of the weights of their in-edges and of their out-edges."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphs.errors import GraphError
from graphs.linalg.backends import Backend, make_backend
from graphs.linalg.blocks import FloatArray
from graphs.linalg.operators import BlockOperator, Vector
from graphs.structures.indices import check_layer
from graphs.structures.layered import LayeredGraph

__all__ = ["default_backend", "in_strength", "not_finite_error", "out_strength", "strengths"]


def strengths(graph: LayeredGraph, layer: int) -> tuple[FloatArray, FloatArray]:
    """Compute the in-strength and out-strength of every node of a layer: the sums of the weights of its edges.

    Parameters
    ----------
    graph : LayeredGraph
    layer : int
        0..L.

    Returns
    -------
    in_strength, out_strength : (n_l,) float64 arrays
        In-strengths of layer 0 and out-strengths of layer L are zeros.

    Raises
    ------
    GraphError
        No such layer, or NaN or Inf in the weights or their sums.

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
    backend = default_backend(graph)
    into: FloatArray = np.zeros(graph.layer_sizes[layer])
    out: FloatArray = np.zeros(graph.layer_sizes[layer])
    if layer > 0:
        into = in_strength(backend, backend.operator(graph.blocks[layer - 1], 1), layer)
    if layer < len(graph.blocks):
        out = out_strength(backend, backend.operator(graph.blocks[layer], 1), layer + 1)
    return into, out


def default_backend(graph: LayeredGraph) -> Backend:
    """Make the backend that computes with a graph's blocks in float64, on the device where they lie.

    Parameters
    ----------
    graph : LayeredGraph

    Returns
    -------
    Backend
        On the GPU if the graph's first torch matrix lies on one, else on the CPU.

    Examples
    --------
    >>> default_backend(LayeredGraph.from_weights([[[1.0, -2.0]]], [1, 1], [[1]])).name
    'compiled (float64, auto)'
    """
    return make_backend("auto", None, "float64", graph.blocks)


def in_strength(backend: Backend, operator: BlockOperator, layer: int) -> FloatArray:
    """Compute the in-strengths of the targets of one block.

    Parameters
    ----------
    backend : Backend
        The operator's backend, in float64.
    operator : BlockOperator
        The block into `layer`, (n_targets, n_sources).
    layer : int
        The number of the layer, for the error message.

    Returns
    -------
    (n_targets,) float64 array

    Raises
    ------
    GraphError
        Weights or their sums are NaN or Inf.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, -2.0], [0.0, 3.0]]], [1, 1], [[1, 1]])
    >>> backend = default_backend(graph)
    >>> in_strength(backend, backend.operator(graph.blocks[0], 1), layer=1)
    array([3., 3.])
    """
    return _finite_sums(backend, operator.in_strength, layer)


def out_strength(backend: Backend, operator: BlockOperator, layer: int) -> FloatArray:
    """Compute the out-strengths of the sources of one block.

    Parameters
    ----------
    backend, operator, layer
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
    >>> backend = default_backend(graph)
    >>> out_strength(backend, backend.operator(graph.blocks[0], 1), layer=1)
    array([1., 5.])
    """
    return _finite_sums(backend, operator.out_strength, layer)


def _finite_sums(backend: Backend, compute: Callable[[], Vector], layer: int) -> FloatArray:
    with np.errstate(over="ignore", invalid="ignore"):
        sums: FloatArray = backend.arithmetic.to_numpy(compute())
        if not np.isfinite(sums.sum()):
            raise not_finite_error(layer)
    return sums


def not_finite_error(layer: int) -> GraphError:
    """Make the error for weights whose sums are not finite; the caller raises it.

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
    block 2: the edge weights hold NaN or Inf, or their sum overflows, so strengths are not finite; reload or rescale them
    """
    return GraphError(
        f"block {layer}: the edge weights hold NaN or Inf, or their sum overflows, so strengths are not finite; "
        "reload or rescale them"
    )
