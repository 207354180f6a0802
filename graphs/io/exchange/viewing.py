"""Graphs for viewers, programs that show every node and edge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphs.errors import GraphError
from graphs.io.convert import to_networkx
from graphs.reduction.subgraphs import Subgraph
from graphs.solvers.result import RankResult
from graphs.structures.layered import LayeredGraph

if TYPE_CHECKING:
    import networkx

__all__ = ["digraph_to_view"]


def digraph_to_view(graph: LayeredGraph | Subgraph, rank: RankResult | None, max_edges: int) -> networkx.DiGraph:
    """Convert a graph to a digraph as :func:`graphs.io.convert.to_networkx` does, if a viewer can show it.

    Parameters
    ----------
    graph : LayeredGraph or Subgraph
    rank : RankResult or None
    max_edges : int

    Returns
    -------
    networkx.DiGraph

    Raises
    ------
    GraphError
        `graph` is neither; it has more than `max_edges` edges, or NaN or Inf in its weights or scores; or the rank is of another
        graph.

    Examples
    --------
    >>> digraph_to_view(LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 1], [[1]]), None, 2).number_of_edges()
    2
    """
    if not isinstance(graph, (LayeredGraph, Subgraph)):
        raise GraphError(f"expected a LayeredGraph or a Subgraph, got {type(graph).__name__}")
    n_edges = (graph if isinstance(graph, LayeredGraph) else graph.graph).n_edges
    if n_edges > max_edges:
        raise GraphError(
            f"the graph has {n_edges:,} edges, above max_edges={max_edges:,}, more than a viewer shows; write a part "
            "(top_subgraph, ego, between) or its backbone (sparsify), or write all edges as tables (write_tables), or raise "
            "max_edges"
        )
    digraph = to_networkx(graph, max_edges, rank)
    if not all(np.isfinite(weight) for _, _, weight in digraph.edges(data="weight")):
        raise GraphError("the edge weights hold NaN or Inf; expected finite numbers: repair or reload them")
    if not all(np.isfinite(score) for _, score in digraph.nodes(data="score", default=0.0)):
        raise GraphError("the scores hold NaN or Inf; expected finite numbers: rank the graph again")
    return digraph
