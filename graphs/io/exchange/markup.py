"""GraphML and GEXF: files that Gephi, yEd, Cytoscape and igraph open, for graphs small enough to look at.

Nodes are called ``layer:index`` and carry ``layer``, ``index``, ``name``, ``activation`` and, with a rank, ``score``, all
typed; edges carry ``weight``. Floats are written in full, so that what is read back is the same bit for bit. A comment at
the head holds a checksum of the rest, which other programs pass over.

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
from graphs.io.convert import from_networkx, graph_labels, to_networkx
from graphs.io.exchange.scan import scan
from graphs.io.files import replacing
from graphs.reduction.subgraphs import Subgraph
from graphs.solvers.result import RankResult
from graphs.structures.layered import LayeredGraph

if TYPE_CHECKING:
    import networkx

__all__ = ["read_gexf", "read_graphml", "write_gexf", "write_graphml"]

Labelled: TypeAlias = tuple[LayeredGraph, tuple[tuple[Hashable, ...], ...]]

# What XML 1.0 cannot hold, and the carriage return, which its readers turn into a line feed.
UNWRITABLE = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# The attributes that make a layered graph.
MEANT = {"layer", "index", "name", "activation", "weight"}

# Where the checksum stands, and what it is of.
SEALED = re.compile(rb"\A(<\?xml[^>]*\?>\s*)<!-- crc32 of the lines below: ([0-9a-f]{8}) -->\n(.*)\Z", re.DOTALL)


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
        Of a subgraph, layers and indices are those of the original.
    path : path-like
        Replaced whole on success, untouched on failure. The same graph gives the same bytes.
    rank : RankResult, optional
        One score a node, of the graph or of the subgraph's original. A subgraph brings its own scores by default.
    max_edges : int
        Refuse more edges than this: the file takes some 100 bytes an edge, writing it 1.6 KB of memory and 30 microseconds,
        and no viewer draws as many.

    Raises
    ------
    GraphError
        Too many edges, a rank of another graph, a layer name that XML cannot hold, NaN or Inf in the weights, no such
        directory, or a path that is one.
    OSError
        The disk is full or refuses.

    Examples
    --------
    >>> import tempfile, networkx
    >>> graph = LayeredGraph.from_weights([[[0.1, 2.0]]], [1, 1], [[1]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_graphml(graph, Path(folder, "graph.graphml"))
    ...     networkx.read_graphml(Path(folder, "graph.graphml")).edges(data=True)
    OutEdgeDataView([('0:0', '1:0', {'weight': 0.1}), ('0:1', '1:0', {'weight': 2.0})])
    """
    digraph = _for_files(graph, rank, max_edges)
    import networkx

    written = io.BytesIO()
    # Not write_graphml, which writes in another way where lxml is installed.
    networkx.write_graphml_xml(digraph, written)
    with replacing(path) as partial:
        partial.write_bytes(_sealed(written.getvalue()))


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
        As for :func:`write_graphml`. The weight is the edge's own, which Gephi draws as its thickness.

    Raises
    ------
    GraphError, OSError
        As :func:`write_graphml`.

    Examples
    --------
    >>> import tempfile, networkx
    >>> graph = LayeredGraph.from_weights([[[0.1, 2.0]]], [1, 1], [[1]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_gexf(graph, Path(folder, "graph.gexf"))
    ...     networkx.read_gexf(Path(folder, "graph.gexf")).edges(data="weight")
    OutEdgeDataView([('0:0', '1:0', 0.1), ('0:1', '1:0', 2.0)])
    """
    digraph = _for_files(graph, rank, max_edges)
    import networkx

    written = io.BytesIO()
    networkx.write_gexf(digraph, written)
    # The day it was written is not of the graph, and an empty name is not of the format.
    content = re.sub(rb' lastmodifieddate="[^"]*"| name=""', b"", written.getvalue(), count=2)
    with replacing(path) as partial:
        partial.write_bytes(_sealed(content))


def read_graphml(path: str | os.PathLike[str], max_edges: int = 1_000_000) -> Labelled:
    """Read a layered graph from GraphML, of this package or of another program.

    Parameters
    ----------
    path : path-like
    max_edges : int
        Refuse a file of more edges: networkx, which reads it, takes two kilobytes each.

    Returns
    -------
    graph : LayeredGraph
    labels : tuple of tuples of str
        ``labels[l][k]`` is the id in the file of node k of layer l; see :func:`graphs.io.convert.from_networkx`, which also
        says what becomes of files without layers.

    Raises
    ------
    GraphError
        Missing, truncated, damaged, not XML, not GraphML, a document type declaration (entities can be made to expand without
        end), nested too deep, too many edges, several graphs, ids that are missing, twice there or of nothing, or a graph that
        is not layered.

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
        As of :func:`read_graphml`.

    Raises
    ------
    GraphError
        As :func:`read_graphml`.

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


def _for_files(graph: LayeredGraph | Subgraph, rank: RankResult | None, max_edges: int) -> networkx.DiGraph:
    """The digraph whose nodes are called as in the file, once it is known to fit one."""
    shown = graph if isinstance(graph, LayeredGraph) else graph.graph
    n_edges = shown.edges
    if n_edges > max_edges:
        raise GraphError(
            f"the graph has {n_edges:,} edges, above max_edges={max_edges:,}, more than a viewer shows; write a part "
            "(top_subgraph, ego, between) or its backbone (sparsify), or the whole as tables (write_tables), or raise max_edges"
        )
    for name in shown.names:
        bad = UNWRITABLE.search(name)
        if bad:
            raise GraphError(
                f"the layer name {name!r} holds {bad.group()!r}, which XML cannot hold; name layers without control characters"
            )
    digraph = to_networkx(graph, max_edges, rank)
    if not all(np.isfinite(weight) for _, _, weight in digraph.edges(data="weight")):
        raise GraphError("the edge weights hold NaN or Inf; expected finite numbers: repair or reload them")
    import networkx

    names = {label: f"{label[0]}:{label[1]}" for layer in graph_labels(graph) for label in layer}
    return networkx.relabel_nodes(digraph, names)


def _sealed(content: bytes) -> bytes:
    """The document with a checksum of all but its first line, the declaration, behind that line."""
    declaration, rest = content.split(b"\n", 1)
    return b"%b\n<!-- crc32 of the lines below: %08x -->\n%b" % (declaration, zlib.crc32(rest), rest)


def _take_defaults(digraph: networkx.DiGraph) -> None:
    """Give nodes and edges the values that the file says once for all of them: networkx keeps those apart."""
    edges = (values for _, _, values in digraph.edges(data=True))
    for kind, elements in (("node", (values for _, values in digraph.nodes(data=True))), ("edge", edges)):
        defaults = {name: value for name, value in digraph.graph.get(f"{kind}_default", {}).items() if name in MEANT}
        if defaults:
            for values in elements:
                for name, default in defaults.items():
                    values.setdefault(name, default)


def _read(
    path: str | os.PathLike[str], root: str, kind: str, read: Callable[[Any, io.BytesIO], Any], max_edges: int
) -> Labelled:
    if not Path(path).is_file():
        raise GraphError(f"no {kind} file at {path}")
    content = Path(path).read_bytes()
    sealed = SEALED.match(content)
    if sealed and int(sealed[2], 16) != zlib.crc32(sealed[3]):
        raise GraphError(
            f"{path} is not as it was written (its checksum differs): it is damaged and must be written again, or was changed on "
            "purpose; then remove the comment with the checksum"
        )
    declared = scan(content, root, f"{path} is not a {kind} file that can be read", max_edges)
    import networkx

    try:
        with warnings.catch_warnings():
            # Of ports and untyped keys, which do not matter here: what matters is checked below.
            warnings.simplefilter("ignore")
            digraph = read(networkx, io.BytesIO(content))
    except (
        *(networkx.NetworkXException, ParseError, ArithmeticError, AttributeError, LookupError),
        *(RuntimeError, TypeError, ValueError),
    ) as error:
        # networkx trusts a file to be of its kind, and fails in whatever way it comes to.
        raise GraphError(
            f"{path} is not a {kind} file that can be read ({type(error).__name__}: {error}); the file is damaged or something "
            "else: write it again"
        ) from error
    built = len(digraph), digraph.number_of_edges()
    if built != (declared.nodes, declared.edges):
        raise GraphError(
            f"{path}: {declared.nodes:,} nodes and {declared.edges:,} edges stand there, and {built[0]:,} and {built[1]:,} are "
            "what they make; expected one graph, without graphs in it, whose nodes and parallel edges have ids of their own "
            "and whose edges join its nodes: correct it, or write it again"
        )
    _take_defaults(digraph)
    try:
        return from_networkx(digraph)
    except GraphError as error:
        raise GraphError(f"{path}: {error}") from error
