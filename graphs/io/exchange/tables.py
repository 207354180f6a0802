"""Tables of nodes and edges, as CSV or Parquet, for pandas, spreadsheets and databases.

There are three files: ``nodes`` (layer, index, name, activation and, with a rank, score), ``edges`` (source_layer, source,
target_layer, target, weight), and a manifest in JSON with the checksums of the two. Tables of another program have no
manifest. Writing goes block by block, so only a part of the graph is in memory.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.errors import GraphError
from graphs.io.convert import scores_to_write
from graphs.io.exchange import csv_files, parquet_files
from graphs.io.exchange.assembly import Labels, assemble_graph
from graphs.io.exchange.rows import EdgeRows, NodeRows
from graphs.io.files import replacing
from graphs.linalg.blocks import FloatArray
from graphs.reduction.edge_selection import check_finite_weights, row_chunks
from graphs.reduction.subgraphs import Subgraph
from graphs.solvers.result import RankResult
from graphs.structures.layered import LayeredGraph

__all__ = ["read_tables", "write_tables"]

Format: TypeAlias = Literal["csv", "parquet"]
IntArray: TypeAlias = npt.NDArray[np.integer[Any]]

FORMATS: dict[str, ModuleType] = {"csv": csv_files, "parquet": parquet_files}
VERSION = 1

# UTF-8 cannot encode half of a surrogate pair, and some readers of CSV stop at a null.
UNWRITABLE = re.compile("[\0\ud800-\udfff]")


def write_tables(
    graph: LayeredGraph | Subgraph,
    where: str | os.PathLike[str],
    rank: RankResult | None = None,
    format: Format = "csv",  # noqa: A002 (the parameter's name in pandas and pyarrow)
) -> tuple[Path, Path]:
    """Write a table of nodes, a table of edges and a manifest.

    Parameters
    ----------
    graph : LayeredGraph or Subgraph
        Layers and indices of a subgraph are those of the original.
    where : path-like
        An existing directory, for ``nodes.csv``, ``edges.csv`` and ``manifest.csv.json`` in it; else the start of the
        paths, for ``STEM.nodes.csv`` and so on. Each file is replaced completely on success and not changed on failure;
        the manifest comes last.
    rank : RankResult, optional
        A rank of the graph, or of the subgraph's original, with one score a node. By default a subgraph uses its own scores.
    format : {"csv", "parquet"}
        Parquet needs pyarrow (the extra ``tables``).

    Returns
    -------
    tuple of Path
        The paths of the tables of nodes and of edges.

    Raises
    ------
    GraphError
        Unknown format, pyarrow is missing, a rank of another graph, a layer name that text files cannot hold, NaN or Inf in
        the weights, or a directory that does not exist.
    OSError
        The disk is full, or the system refuses.

    Notes
    -----
    CSV holds every float with enough digits to read it back exactly; Parquet holds weights as float32 if all blocks are. The
    same graph gives the same bytes (Parquet: with the same pyarrow). Memory: a band of a dense block. Cost of CSV: about
    a microsecond and 25 bytes an edge.

    Examples
    --------
    >>> import tempfile
    >>> graph = LayeredGraph.from_weights([[[0.5, 2.0]]], [1, 1], [[1]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     nodes, edges = write_tables(graph, folder)
    ...     print(edges.read_text())
    source_layer,source,target_layer,target,weight
    0,0,1,0,0.5
    0,1,1,0,2.0
    <BLANKLINE>
    """
    scores = scores_to_write(graph, rank)
    layered = graph if isinstance(graph, LayeredGraph) else graph.graph
    if format not in FORMATS:
        raise GraphError(f"unknown format {format!r}; expected one of {', '.join(FORMATS)}")
    if format == "parquet":
        parquet_files.import_pyarrow()
    for name in layered.names:
        if UNWRITABLE.search(name):
            raise GraphError(
                f"the layer name {name!r} holds a character that text files cannot hold; give the layers other names"
            )
    nodes, edges, manifest = _paths(where, format)
    with replacing(manifest) as manifest_file, replacing(nodes) as nodes_file, replacing(edges) as edges_file:
        if format == "parquet":
            parquet_files.write_edges(_edge_rows(graph), edges_file, _weight_dtype(layered))
        else:
            csv_files.write_edges(_edge_rows(graph), edges_file)
        FORMATS[format].write_nodes(_node_rows(graph, scores), nodes_file)
        metadata = {"kind": "tables", "version": VERSION, "subgraph": not isinstance(graph, LayeredGraph)}
        manifest_file.write_text(
            json.dumps({**metadata, "crc32": {"nodes": _crc32(nodes_file), "edges": _crc32(edges_file)}}, indent=1)
            + "\n"
        )
    return nodes, edges


def read_tables(
    where: str | os.PathLike[str],
    format: Format | None = None,  # noqa: A002 (as above)
    *,
    partial: bool = False,
) -> tuple[LayeredGraph, Labels]:
    """Read a layered graph from a table of nodes and one of edges.

    Parameters
    ----------
    where : path-like
        As for :func:`write_tables`.
    format : {"csv", "parquet"}, optional
        By default the format of the files that exist.
    partial : bool
        Whether the tables are those of a subgraph: layers then may begin at any number and indices may have gaps, and nodes
        are numbered anew in their order. A manifest says this itself. Otherwise a gap is an error.

    Returns
    -------
    graph : LayeredGraph
        Stored CSR blocks: float64 from CSV, which holds float32 weights exactly; from Parquet in the dtype of the column.
    labels : tuple of tuples
        ``labels[l][k]`` is the (layer, index) of node k of layer l in the tables.

    Raises
    ------
    GraphError
        A table or pyarrow is missing; a table is damaged (its checksum differs from the manifest, or it is cut off), lacks a
        column, or has text where numbers belong; nodes are repeated, layers or indices have gaps, a layer has several names;
        edges are repeated, negative, between layers that do not follow each other, or between nodes that do not exist.

    Notes
    -----
    Rows may be in any order. Cost of CSV: about a microsecond an edge. Memory: 24 bytes an edge.

    Examples
    --------
    >>> import tempfile
    >>> graph = LayeredGraph.from_weights([[[0.5, 2.0]]], [1, 1], [[1]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_tables(graph, Path(folder, "graph"))
    ...     read_tables(Path(folder, "graph"))[0]
    LayeredGraph(2 layers: 2 -> 1 nodes, 3 nodes, 2 edges, density 1)
    """
    if format is not None and format not in FORMATS:
        raise GraphError(f"unknown format {format!r}; expected one of {', '.join(FORMATS)}")
    formats = [
        file_format
        for file_format in FORMATS
        if format in (file_format, None) and all(path.is_file() for path in _paths(where, file_format)[:2])
    ]
    if len(formats) != 1:
        names = " or ".join(
            f"{_paths(where, file_format)[0].name} and {_paths(where, file_format)[1].name}"
            for file_format in formats or FORMATS
        )
        raise GraphError(
            f"there are tables in {len(formats)} formats at {where}; choose one with format="
            if formats
            else f"no tables at {where}; expected {names} in {_paths(where, 'csv')[0].parent}"
        )
    nodes_file, edges_file, manifest = _paths(where, formats[0])
    partial = _check_manifest(manifest, nodes_file, edges_file) or partial
    reader = FORMATS[formats[0]]
    return assemble_graph(
        reader.read_nodes(nodes_file), reader.read_edges(edges_file), nodes_file, edges_file, partial=partial
    )


def _paths(where: str | os.PathLike[str], file_format: str) -> tuple[Path, Path, Path]:
    base = Path(where)
    directory, prefix = (base, "") if base.is_dir() else (base.parent, f"{base.name}.")
    return (
        directory / f"{prefix}nodes.{file_format}",
        directory / f"{prefix}edges.{file_format}",
        directory / f"{prefix}manifest.{file_format}.json",
    )


def _node_rows(graph: LayeredGraph | Subgraph, scores: tuple[FloatArray, ...] | None) -> NodeRows:
    layered, layers, nodes = _parts(graph)
    sizes = [len(at) for at in nodes]
    return NodeRows(
        layer=np.repeat(layers, sizes),
        index=np.concatenate(nodes),
        names=[name for name, size in zip(layered.names, sizes, strict=True) for _ in range(size)],
        activation=np.concatenate(layered.activations),
        score=None if scores is None else np.concatenate(scores).astype(np.float64),
    )


def _edge_rows(graph: LayeredGraph | Subgraph) -> Iterator[EdgeRows]:
    layered, layers, nodes = _parts(graph)
    for position, block in enumerate(layered.blocks, start=1):
        for chunk, csr in row_chunks(block):
            check_finite_weights(csr.data, f"block {position}")
            yield EdgeRows(
                source_layer=np.full(csr.nnz, layers[position - 1]),
                source=nodes[position - 1][csr.indices],
                target_layer=np.full(csr.nnz, layers[position]),
                target=nodes[position][np.repeat(chunk, np.diff(csr.indptr))],
                weight=csr.data,
            )


def _parts(graph: LayeredGraph | Subgraph) -> tuple[LayeredGraph, tuple[int, ...], tuple[IntArray, ...]]:
    """Return the graph, and the original layers and indices of its nodes."""
    if isinstance(graph, LayeredGraph):
        return graph, tuple(range(len(graph.layers))), tuple(np.arange(size) for size in graph.layers)
    return graph.graph, graph.layers, graph.nodes


def _weight_dtype(graph: LayeredGraph) -> Any:
    one = np.zeros(1, dtype=np.int64)
    return np.result_type(*(next(row_chunks(block, one, one))[1].dtype for block in graph.blocks))


def _crc32(path: Path) -> str:
    crc = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            crc = zlib.crc32(part, crc)
    return f"{crc:08x}"


def _check_manifest(manifest: Path, nodes: Path, edges: Path) -> bool:
    """Check the tables against the manifest, if there is one; return whether it says that they are a subgraph's."""
    if not manifest.is_file():
        return False
    try:
        metadata = json.loads(manifest.read_text(encoding="utf-8"))
        kind, version, part = metadata["kind"], metadata["version"], metadata["subgraph"]
        expected = {"nodes": metadata["crc32"]["nodes"], "edges": metadata["crc32"]["edges"]}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise GraphError(
            f"{manifest} is not a manifest of tables ({error}); write the tables again, or remove it"
        ) from error
    if kind != "tables" or version != VERSION or not isinstance(part, bool):
        raise GraphError(
            f"{manifest} is of kind {kind!r} and version {version!r}, this package reads tables of version {VERSION}; upgrade "
            "the package, or write the tables again"
        )
    for path, name in ((nodes, "nodes"), (edges, "edges")):
        if _crc32(path) != expected[name]:
            raise GraphError(
                f"{path} is not as it was written (its checksum differs from that in {manifest.name}); write it again, or remove "
                "the manifest if it was changed on purpose"
            )
    return part
