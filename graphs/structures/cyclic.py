"""Digraphs with cycles that are made from a layered graph."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import sparse

from graphs.checks import check_share
from graphs.errors import GraphError
from graphs.linalg.blocks import SparseBlock
from graphs.structures.digraph import BlockDigraph, EdgeBlock, edge_blocks
from graphs.structures.layered import LayeredGraph, check_layered

__all__ = ["bidirectional_graph", "residual_graph"]


def bidirectional_graph(graph: LayeredGraph) -> BlockDigraph:
    """Build the digraph that has every edge of a layered graph and its reverse, with the same weight; blocks are not copied.

    A random walk on this digraph is reversible, and it alternates between even and odd layers.

    Parameters
    ----------
    graph : LayeredGraph

    Raises
    ------
    GraphError
        It is no LayeredGraph.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 2.0]]], [1, 1], [[1, 1]])
    >>> bidirectional_graph(graph).to_scipy().toarray()
    array([[0., 0., 1., 1.],
           [0., 0., 0., 2.],
           [1., 0., 0., 0.],
           [1., 2., 0., 0.]])
    """
    check_layered(graph)
    forward = edge_blocks(graph)
    backward = tuple(EdgeBlock(e.target, e.source, e.block, transposed=True) for e in forward)
    return BlockDigraph(graph.layer_sizes, forward + backward, graph.names, graph.activations)


def residual_graph(graph: LayeredGraph, beta: float = 0.5, stream: Sequence[int] | None = None) -> BlockDigraph:
    """Build the digraph of a chain of FFNs with their residual stream: skip connections, and edges from last to first layer.

    The layers in `stream` hold the residual stream before and after each FFN. Node j of such a layer passes a share `beta` of its
    score to node j of the next layer in `stream`, and ``1 - beta`` into the FFN between these layers. Node j of the last layer
    passes its score to node j of the first layer in `stream`. If beta > 0, a node of the stream that has no edges into the FFN
    passes its entire score to the next layer in `stream`.

    Parameters
    ----------
    graph : LayeredGraph
        A chain of FFNs; its blocks are not copied.
    beta : float
        Share of a score that takes the skip connection, 0..1.
    stream : sequence of int, optional
        The layers that hold the residual stream, two or more, ascending, of equal sizes, the last layer among them. By default
        every second layer, as in a chain of FFNs with two blocks each.

    Raises
    ------
    GraphError
        `stream` does not fit its description, or beta is out of range.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[1.0, 1.0]], [[1.0], [3.0]]], [1, 1], [[1], [1, 1]])
    >>> residual_graph(graph, beta=0.25).to_scipy().toarray()
    array([[0.  , 0.  , 0.  , 1.  , 0.  ],
           [0.  , 0.  , 0.  , 0.  , 1.  ],
           [0.75, 0.75, 0.  , 0.  , 0.  ],
           [0.25, 0.  , 0.25, 0.  , 0.  ],
           [0.  , 0.25, 0.75, 0.  , 0.  ]])
    """
    check_layered(graph)
    beta = check_share("beta", beta)
    last = len(graph.blocks)
    try:
        stream = tuple(range(0, last + 1, 2)) if stream is None else tuple(map(operator.index, stream))
    except TypeError as error:
        raise GraphError(f"stream: expected the numbers of layers, such as (0, 2), got {stream!r}") from error
    if len(stream) < 2 or list(stream) != sorted(set(stream)) or stream[0] < 0 or stream[-1] != last:
        raise GraphError(
            f"stream: expected at least two ascending layers >= 0 that end with the last, {last}, got {stream}; if FFNs "
            "do not have two blocks each, name the layers of the residual stream"
        )
    sizes = [graph.layer_sizes[layer] for layer in stream]
    if len(set(sizes)) > 1:
        raise GraphError(f"stream: expected layers of one size, got sizes {sizes} of layers {stream}")
    identity = SparseBlock(sparse.csr_array(sparse.eye_array(sizes[0], format="csr", dtype=np.float64)))
    edges = [replace(e, share=1.0 - beta if e.source in stream else 1.0) for e in edge_blocks(graph)]
    edges += [EdgeBlock(source, target, identity, share=beta) for source, target in itertools.pairwise(stream)]
    edges.append(EdgeBlock(stream[-1], stream[0], identity, share=1.0))
    return BlockDigraph(graph.layer_sizes, tuple(edges), graph.names, graph.activations)
