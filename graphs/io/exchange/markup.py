"""GraphML and GEXF: files that Gephi, yEd, Cytoscape and igraph open, for graphs small enough to draw.

Node ids are ``layer:index``. Nodes and edges have the attributes of :func:`graphs.io.convert.to_networkx`, and floats are written
with all digits.
Formats: graphml.graphdrawing.org/specification.html, gexf.net (1.2draft).
"""

from __future__ import annotations

import io
import os
import re
from typing import TYPE_CHECKING

from graphs.errors import GraphError
from graphs.io.exchange.formats import Format
from graphs.io.exchange.viewing import digraph_to_view
from graphs.io.replacement import replace_file
from graphs.reduction.subgraphs import Subgraph
from graphs.solvers.result import RankResult
from graphs.structures.layered import LayeredGraph

if TYPE_CHECKING:
    import networkx

__all__ = ["write_gexf", "write_graphml"]

# Characters that XML 1.0 cannot hold, and the carriage return, which XML readers turn into a line feed.
UNWRITABLE = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_graphml(
    graph: LayeredGraph | Subgraph,
    path: str | os.PathLike[str],
    rank: RankResult | None = None,
    max_edges: int = 200_000,
) -> None:
    """Write a graph or subgraph as GraphML.

    Parameters
    ----------
    graph : LayeredGraph or Subgraph
        The nodes of a subgraph keep their layers and indices in the original graph.
    path : path-like
        Replaced completely on success, not changed on failure. The same graph gives the same bytes.
    rank : RankResult, optional
        A rank of the graph, or of the subgraph's original graph, with one score a node. By default the scores that a subgraph
        holds are written, and none for a graph.
    max_edges : int
        Maximum number of edges; more raise an error, because viewers cannot draw so many.

    Raises
    ------
    GraphError
        Too many edges, a rank of another graph, a layer name that XML cannot hold, NaN or Inf in the weights, a directory
        that does not exist, or a path of something that is not a file.
    OSError
        The disk is full, or the system refuses.

    Examples
    --------
    >>> import tempfile, networkx
    >>> graph = LayeredGraph.from_weights([[[0.1, 2.0]]], [1, 1], [[1]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_graphml(graph, f"{folder}/graph.graphml")
    ...     networkx.read_graphml(f"{folder}/graph.graphml").edges(data=True)
    OutEdgeDataView([('0:0', '1:0', {'weight': 0.1}), ('0:1', '1:0', {'weight': 2.0})])
    """
    digraph = _digraph_to_write(graph, rank, max_edges)
    import networkx

    written = io.BytesIO()
    # networkx.write_graphml would use lxml if it is installed, and so write other bytes.
    networkx.write_graphml_xml(digraph, written)
    with replace_file(path) as partial:
        partial.write_bytes(written.getvalue())


def write_gexf(
    graph: LayeredGraph | Subgraph,
    path: str | os.PathLike[str],
    rank: RankResult | None = None,
    max_edges: int = 200_000,
) -> None:
    """Write a graph or subgraph as GEXF 1.2, the format of Gephi.

    Parameters
    ----------
    graph, path, rank, max_edges
        As for :func:`write_graphml`.

    Raises
    ------
    GraphError, OSError
        As for :func:`write_graphml`.

    Examples
    --------
    >>> import tempfile, networkx
    >>> graph = LayeredGraph.from_weights([[[0.1, 2.0]]], [1, 1], [[1]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_gexf(graph, f"{folder}/graph.gexf")
    ...     networkx.read_gexf(f"{folder}/graph.gexf").edges(data="weight")
    OutEdgeDataView([('0:0', '1:0', 0.1), ('0:1', '1:0', 2.0)])
    """
    digraph = _digraph_to_write(graph, rank, max_edges)
    import networkx

    written = io.BytesIO()
    networkx.write_gexf(digraph, written)
    # The date is removed because it would make the bytes differ from day to day, and the name because an empty one is not valid
    # GEXF.
    content = re.sub(rb' lastmodifieddate="[^"]*"| name=""', b"", written.getvalue(), count=2)
    with replace_file(path) as partial:
        partial.write_bytes(content)


def _digraph_to_write(graph: LayeredGraph | Subgraph, rank: RankResult | None, max_edges: int) -> networkx.DiGraph:
    """Check that XML can hold a graph, and convert the graph to a digraph of node ids."""
    digraph = digraph_to_view(graph, rank, max_edges)
    for name in (graph if isinstance(graph, LayeredGraph) else graph.graph).names:
        bad = UNWRITABLE.search(name)
        if bad:
            raise GraphError(
                f"the layer name {name!r} holds {bad.group()!r}, which XML cannot hold or keep; give the layer another name"
            )
    import networkx

    return networkx.relabel_nodes(digraph, {(layer, index): f"{layer}:{index}" for layer, index in digraph})


FORMATS = (
    Format("graphml", lambda graph, stem, rank, _: write_graphml(graph, f"{stem}.graphml", rank), any_size=False),
    Format("gexf", lambda graph, stem, rank, _: write_gexf(graph, f"{stem}.gexf", rank), any_size=False),
)
