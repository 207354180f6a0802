"""PageRank of layered graphs and of other weighted digraphs.

>>> from graphs import LayeredGraph, weighted_pagerank
>>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 2.0]]], inputs=[1, 1], activations=[[1, 1]])
>>> weighted_pagerank(graph).converged
True
"""

from graphs.errors import GraphError
from graphs.io.graph_files import load_graph, load_rank, save_graph, save_rank
from graphs.ranking.digraph import pagerank
from graphs.ranking.layered import modified_pagerank, weighted_pagerank
from graphs.reduction.sparsify import Sparsification, sparsify
from graphs.solvers.certificate import Certificate, KeepHighest
from graphs.solvers.result import ConvergenceError, RankResult
from graphs.structures.cyclic import bidirectional_graph, residual_graph
from graphs.structures.digraph import BlockDigraph, EdgeBlock
from graphs.structures.layered import LayeredGraph

__all__ = [
    "BlockDigraph",
    "Certificate",
    "ConvergenceError",
    "EdgeBlock",
    "GraphError",
    "KeepHighest",
    "LayeredGraph",
    "RankResult",
    "Sparsification",
    "bidirectional_graph",
    "load_graph",
    "load_rank",
    "modified_pagerank",
    "pagerank",
    "residual_graph",
    "save_graph",
    "save_rank",
    "sparsify",
    "weighted_pagerank",
]
