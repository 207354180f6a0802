"""What graphs offers; a name is imported when it is first used."""

from . import (
    analysis as analysis,
    draw as draw,
    errors as errors,
    io as io,
    linalg as linalg,
    ranking as ranking,
    reduction as reduction,
    solvers as solvers,
    structures as structures,
)
from .errors import GraphError
from .io.graph_files import load_graph, load_rank, save_graph, save_rank
from .ranking.digraph import pagerank
from .ranking.layered import modified_pagerank, weighted_pagerank
from .reduction.sparsify import Sparsification, sparsify
from .solvers.certificate import Certificate, KeepHighest
from .solvers.result import ConvergenceError, RankResult
from .structures.cyclic import bidirectional_graph, residual_graph
from .structures.digraph import BlockDigraph, EdgeBlock
from .structures.layered import LayeredGraph

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
    "analysis",
    "bidirectional_graph",
    "draw",
    "errors",
    "io",
    "linalg",
    "load_graph",
    "load_rank",
    "modified_pagerank",
    "pagerank",
    "ranking",
    "reduction",
    "residual_graph",
    "save_graph",
    "save_rank",
    "solvers",
    "sparsify",
    "structures",
    "weighted_pagerank",
]
