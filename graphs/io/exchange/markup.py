"""GraphML and GEXF: files that Gephi, yEd, Cytoscape and igraph open, for graphs small enough to draw.

Node ids are ``layer:index``. Nodes have the typed attributes ``layer``, ``index``, ``name``, ``activation`` and, with a
rank, ``score``; edges have ``weight``. Floats are written with all digits, so that they are read back bit for bit. A
comment at the start holds a checksum of the rest, which other programs ignore.

Formats: graphml.graphdrawing.org/specification.html, gexf.net (1.2draft).
"""

from __future__ import annotations

import io
import os
import re
import warnings
import zlib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from xml.etree.ElementTree import ParseError

import numpy as np

from graphs.errors import GraphError
from graphs.io.convert import from_networkx, node_labels, to_networkx
from graphs.io.exchange.scan import scan
from graphs.io.files import replacing
from graphs.reduction.subgraphs import Subgraph
from graphs.solvers.result import RankResult
from graphs.structures.layered import LayeredGraph

if TYPE_CHECKING:
    import networkx

__all__ = ["read_gexf", "read_graphml", "write_gexf", "write_graphml"]

Labelled: TypeAlias = tuple[LayeredGraph, tuple[tuple[Hashable, ...], ...]]

# Characters that XML 1.0 cannot hold, and the carriage return, which XML readers turn into a line feed.
UNWRITABLE = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# The attributes that make a layered graph.
GRAPH_ATTRIBUTES = {"layer", "index", "name", "activation", "weight"}

# The XML declaration, the comment with the checksum, and the content that it covers.
CHECKSUM_COMMENT = re.compile(
    rb"\A(<\?xml[^>]*\?>\s*)<!-- crc32 of the lines below: ([0-9a-f]{8}) -->\n(.*)\Z", re.DOTALL
)


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
        Layers and indices of a subgraph are those of the original.
    path : path-like
        Replaced completely on success, not changed on failure. The same graph gives the same bytes.
    rank : RankResult, optional
        A rank of the graph, or of the subgraph's original, with one score a node. By default a subgraph uses its own scores.
    max_edges : int
        Maximum number of edges; more raise an error, because no viewer draws as many. Every edge takes some 100 bytes of the
        file, and 1.6 KB of memory and 30 microseconds to write.

    Raises
    ------
    GraphError
        Too many edges, a rank of another graph, a layer name that XML cannot hold, NaN or Inf in the weights, a directory
        that does not exist, or a path that is a directory.
    OSError
        The disk is full, or the system refuses.

    Examples
    --------
    >>> import tempfile, networkx
    >>> graph = LayeredGraph.from_weights([[[0.1, 2.0]]], [1, 1], [[1]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_graphml(graph, Path(folder, "graph.graphml"))
    ...     networkx.read_graphml(Path(folder, "graph.graphml")).edges(data=True)
    OutEdgeDataView([('0:0', '1:0', {'weight': 0.1}), ('0:1', '1:0', {'weight': 2.0})])
    """
    digraph = _digraph_to_write(graph, rank, max_edges)
    import networkx

    written = io.BytesIO()
    # Not write_graphml, whose output differs where lxml is installed.
    networkx.write_graphml_xml(digraph, written)
    with replacing(path) as partial:
        partial.write_bytes(_with_checksum(written.getvalue()))


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
        As for :func:`write_graphml`. Gephi draws the weight of an edge as its thickness.

    Raises
    ------
    GraphError, OSError
        As for :func:`write_graphml`.

    Examples
    --------
    >>> import tempfile, networkx
    >>> graph = LayeredGraph.from_weights([[[0.1, 2.0]]], [1, 1], [[1]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_gexf(graph, Path(folder, "graph.gexf"))
    ...     networkx.read_gexf(Path(folder, "graph.gexf")).edges(data="weight")
    OutEdgeDataView([('0:0', '1:0', 0.1), ('0:1', '1:0', 2.0)])
    """
    digraph = _digraph_to_write(graph, rank, max_edges)
    import networkx

    written = io.BytesIO()
    networkx.write_gexf(digraph, written)
    # The date would make the bytes differ from day to day, and the format does not allow an empty name.
    content = re.sub(rb' lastmodifieddate="[^"]*"| name=""', b"", written.getvalue(), count=2)
    with replacing(path) as partial:
        partial.write_bytes(_with_checksum(content))


def read_graphml(path: str | os.PathLike[str], max_edges: int = 1_000_000) -> Labelled:
    """Read a layered graph from GraphML, of this package or of another program.

    Parameters
    ----------
    path : path-like
    max_edges : int
        Maximum number of edges; more raise an error, because networkx needs two kilobytes an edge to read them.

    Returns
    -------
    graph : LayeredGraph
    labels : tuple of tuples of str
        ``labels[l][k]`` is the id in the file of node k of layer l. :func:`graphs.io.convert.from_networkx` describes how
        layers are found in files that do not state them.

    Raises
    ------
    GraphError
        The file is missing, truncated, damaged, not XML or not GraphML; it has a document type declaration (entities can expand
        without end), nests too deep, has too many edges, several graphs, or ids that are missing, repeated or unknown; or
        the graph is not layered.

    Examples
    --------
    >>> import tempfile
    >>> graph = LayeredGraph.from_weights([[[0.1, 2.0]]], [1, 1], [[1]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_graphml(graph, Path(folder, "graph.graphml"))
    ...     again, labels = read_graphml(Path(folder, "graph.graphml"))
    >>> labels, again.block(1).toarray()
    ((('0:0', '0:1'), ('1:0',)), array([[0.1, 2. ]]))
    """
    return _read(path, "graphml", "GraphML", lambda networkx, file: networkx.read_graphml(file), max_edges)


def read_gexf(path: str | os.PathLike[str], max_edges: int = 1_000_000) -> Labelled:
    """Read a layered graph from GEXF (1.1, 1.2 or 1.3), of this package or of another program.

    Parameters
    ----------
    path, max_edges
        As for :func:`read_graphml`.

    Returns
    -------
    graph, labels
        As for :func:`read_graphml`.

    Raises
    ------
    GraphError
        As for :func:`read_graphml`.

    Examples
    --------
    >>> import tempfile
    >>> graph = LayeredGraph.from_weights([[[0.1, 2.0]]], [1, 1], [[1]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_gexf(graph, Path(folder, "graph.gexf"))
    ...     read_gexf(Path(folder, "graph.gexf"))[0]
    LayeredGraph(2 layers: 2 -> 1 nodes, 3 nodes, 2 edges, density 1)
    """
    return _read(path, "gexf", "GEXF", lambda networkx, file: networkx.read_gexf(file), max_edges)


def _digraph_to_write(graph: LayeredGraph | Subgraph, rank: RankResult | None, max_edges: int) -> networkx.DiGraph:
    """Check that a graph can be written, and convert it to a digraph with the node ids of the file."""
    layered = graph if isinstance(graph, LayeredGraph) else graph.graph
    n_edges = layered.edges
    if n_edges > max_edges:
        raise GraphError(
            f"the graph has {n_edges:,} edges, above max_edges={max_edges:,}, more than a viewer shows; write a part "
            "(top_subgraph, ego, between) or its backbone (sparsify), or write all edges as tables (write_tables), or raise "
            "max_edges"
        )
    for name in layered.names:
        bad = UNWRITABLE.search(name)
        if bad:
            raise GraphError(
                f"the layer name {name!r} holds {bad.group()!r}, which XML cannot hold; use names without control characters"
            )
    digraph = to_networkx(graph, max_edges, rank)
    if not all(np.isfinite(weight) for _, _, weight in digraph.edges(data="weight")):
        raise GraphError("the edge weights hold NaN or Inf; expected finite numbers: repair or reload them")
    import networkx

    ids = {label: f"{label[0]}:{label[1]}" for layer in node_labels(graph) for label in layer}
    return networkx.relabel_nodes(digraph, ids)


def _with_checksum(content: bytes) -> bytes:
    """Insert a comment with the checksum of all lines but the first, the XML declaration, after that line."""
    declaration, rest = content.split(b"\n", 1)
    return b"%b\n<!-- crc32 of the lines below: %08x -->\n%b" % (declaration, zlib.crc32(rest), rest)


def _apply_defaults(digraph: networkx.DiGraph) -> None:
    """Set the default values of the file on all nodes and edges, because networkx does not."""
    edges = (values for _, _, values in digraph.edges(data=True))
    for element, attributes in (("node", (values for _, values in digraph.nodes(data=True))), ("edge", edges)):
        stated = digraph.graph.get(f"{element}_default", {})
        defaults = {name: value for name, value in stated.items() if name in GRAPH_ATTRIBUTES}
        if defaults:
            for values in attributes:
                for name, default in defaults.items():
                    values.setdefault(name, default)


def _read(
    path: str | os.PathLike[str],
    root: str,
    format_name: str,
    read: Callable[[Any, io.BytesIO], Any],
    max_edges: int,
) -> Labelled:
    """Check a file, let networkx read it, and convert the digraph to a layered graph."""
    if not Path(path).is_file():
        raise GraphError(f"no {format_name} file at {path}")
    content = Path(path).read_bytes()
    checked = CHECKSUM_COMMENT.match(content)
    if checked and int(checked[2], 16) != zlib.crc32(checked[3]):
        raise GraphError(
            f"{path} is not as it was written (its checksum differs): it is damaged and must be written again, or it was "
            "changed on purpose; then remove the comment with the checksum"
        )
    declared = scan(content, root, f"{path} is not a {format_name} file that can be read", max_edges)
    import networkx

    try:
        with warnings.catch_warnings():
            # networkx warns of ports and untyped keys, which do not matter here; the rest is checked below.
            warnings.simplefilter("ignore")
            digraph = read(networkx, io.BytesIO(content))
    except (
        *(networkx.NetworkXException, ParseError, ArithmeticError, AttributeError, LookupError),
        *(RuntimeError, TypeError, ValueError),
    ) as error:
        # networkx assumes that the file is valid, and raises many kinds of errors if it is not.
        raise GraphError(
            f"{path} is not a {format_name} file that can be read ({type(error).__name__}: {error}); the file is damaged or "
            "something else: write it again"
        ) from error
    built = len(digraph), digraph.number_of_edges()
    if built != (declared.nodes, declared.edges):
        raise GraphError(
            f"{path}: the file has {declared.nodes:,} nodes and {declared.edges:,} edges, but they make a graph of "
            f"{built[0]:,} and {built[1]:,}; expected one graph without nested graphs, whose nodes and parallel edges have "
            "distinct ids and whose edges join its nodes: correct it, or write it again"
        )
    _apply_defaults(digraph)
    try:
        return from_networkx(digraph)
    except GraphError as error:
        raise GraphError(f"{path}: {error}") from error
