"""Tables of nodes and edges, as CSV or Parquet, for pandas, spreadsheets and databases.

The table ``nodes`` has the columns layer, index, name (of the layer), activation and, if there are scores, score. The table
``edges`` has the columns source_layer, source, target_layer, target and weight. CSV files are UTF-8 with commas, a header, and
names in quotes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.errors import GraphError
from graphs.io.convert import scores_to_write
from graphs.io.exchange.formats import Format
from graphs.io.replacement import replace_file
from graphs.linalg.blocks import FloatArray
from graphs.reduction.edge_selection import check_finite_weights, row_bands
from graphs.reduction.subgraphs import Subgraph
from graphs.solvers.result import RankResult
from graphs.structures.layered import LayeredGraph

__all__ = ["as_cell", "write_tables"]

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]
# Some rows of a table: an array for every column, or a list of text for the column ``name``.
Rows: TypeAlias = dict[str, Any]
# The names of the columns, in order, each with the name of its pyarrow type.
Columns: TypeAlias = dict[str, str]

NODE_COLUMNS = {"layer": "int32", "index": "int64", "name": "string", "activation": "float64"}
EDGE_COLUMNS = {"source_layer": "int32", "source": "int64", "target_layer": "int32", "target": "int64"}

# UTF-8 cannot encode half of a surrogate pair, and some readers of CSV stop at a null character.
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
# A spreadsheet takes a text that begins so for a formula, also with the wide signs of East Asian keyboards.
COMPUTED = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


def write_tables(
    graph: LayeredGraph | Subgraph,
    directory_or_stem: str | os.PathLike[str],
    rank: RankResult | None = None,
    format: Literal["csv", "parquet"] = "csv",  # noqa: A002 (the parameter's name in pandas and pyarrow)
) -> tuple[Path, Path]:
    """Write a table of nodes and a table of edges.

    Parameters
    ----------
    graph : LayeredGraph or Subgraph
        The nodes of a subgraph keep their layers and indices in the original graph.
    directory_or_stem : path-like
        An existing directory, in which ``nodes.csv`` and ``edges.csv`` (or ``.parquet``) are written. Any other path is taken as
        the stem of ``STEM.nodes.csv`` and ``STEM.edges.csv``. Each file is replaced completely or not at all.
    rank : RankResult, optional
        A rank of the graph, or of the subgraph's original graph, with one score a node. By default the scores that a subgraph
        holds are written, and none for a graph.
    format : {"csv", "parquet"}
        Parquet needs pyarrow (the extra ``tables``).

    Returns
    -------
    tuple of Path
        The path of the table of nodes, and that of the table of edges.

    Raises
    ------
    GraphError
        The format is unknown, pyarrow is missing, the rank is of another graph, a layer name holds a null character or half of
        a surrogate pair, weights are NaN or Inf, the directory does not exist, or the path is not that of a file.
    OSError
        The disk is full, or the system refuses.

    Notes
    -----
    In CSV an apostrophe stands before a name that a spreadsheet would compute, and floats have all digits. Parquet holds weights
    as float32 if all blocks are float32. The same graph gives the same bytes (for Parquet, with the same version of pyarrow).
    Memory: the table of nodes, and a part of the table of edges.

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
    if format not in WRITERS:
        raise GraphError(f"unknown format {format!r}; expected one of {', '.join(WRITERS)}")
    write = WRITERS[format]
    layered, layers, nodes = _parts(graph)
    for name in layered.names:
        if UNWRITABLE.search(name):
            raise GraphError(
                f"the layer name {name!r} holds a null character or half of a surrogate pair; give the layer another name"
            )
    node_columns = NODE_COLUMNS | ({} if scores is None else {"score": "float64"})
    edge_columns = EDGE_COLUMNS | {"weight": str(_weight_dtype(layered))}
    base = Path(directory_or_stem)
    nodes_path, edges_path = (
        base / f"{table}.{format}" if base.is_dir() else base.parent / f"{base.name}.{table}.{format}"
        for table in ("nodes", "edges")
    )
    with replace_file(nodes_path) as nodes_file, replace_file(edges_path) as edges_file:
        write(edges_file, edge_columns, _edge_rows(layered, layers, nodes))
        write(nodes_file, node_columns, [_node_rows(layered, layers, nodes, scores)])
    return nodes_path, edges_path


def _parts(graph: LayeredGraph | Subgraph) -> tuple[LayeredGraph, tuple[int, ...], tuple[IntArray, ...]]:
    """Return the layered graph, and the layers and the indices that its nodes have in the original graph."""
    if isinstance(graph, LayeredGraph):
        return graph, tuple(range(len(graph.layer_sizes))), tuple(np.arange(size) for size in graph.layer_sizes)
    return graph.graph, graph.layers, graph.nodes


def _node_rows(
    graph: LayeredGraph, layers: tuple[int, ...], nodes: tuple[IntArray, ...], scores: tuple[FloatArray, ...] | None
) -> Rows:
    rows = {
        "layer": np.repeat(layers, graph.layer_sizes),
        "index": np.concatenate(nodes),
        "name": [name for name, size in zip(graph.names, graph.layer_sizes, strict=True) for _ in range(size)],
        "activation": np.concatenate(graph.activations),
    }
    return rows if scores is None else {**rows, "score": np.concatenate(scores).astype(np.float64)}


def _edge_rows(graph: LayeredGraph, layers: tuple[int, ...], nodes: tuple[IntArray, ...]) -> Iterator[Rows]:
    for position, block in enumerate(graph.blocks, start=1):
        for targets, csr in row_bands(block):
            check_finite_weights(csr.data, f"block {position}")
            yield {
                "source_layer": np.full(csr.nnz, layers[position - 1]),
                "source": nodes[position - 1][csr.indices],
                "target_layer": np.full(csr.nnz, layers[position]),
                "target": nodes[position][np.repeat(targets, np.diff(csr.indptr))],
                "weight": csr.data,
            }


def _weight_dtype(graph: LayeredGraph) -> Any:
    """Return the narrowest dtype that holds the weights of all blocks."""
    # The first entry of a block tells the dtype of all, so no block is read.
    first = np.zeros(1, dtype=np.int64)
    return np.result_type(*(next(row_bands(block, first, first))[1].dtype for block in graph.blocks))


def _write_csv(path: Path, columns: Columns, chunks: Iterable[Rows]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(",".join(columns) + "\n")
        for rows in chunks:
            texts = [
                map(_quoted, rows[name]) if column_type == "string" else map(repr, rows[name].tolist())
                for name, column_type in columns.items()
            ]
            file.writelines(",".join(row) + "\n" for row in zip(*texts, strict=True))


def _quoted(text: str) -> str:
    # Some readers of CSV would take a carriage return in an unquoted name for the end of a line.
    return '"' + as_cell(text).replace('"', '""') + '"'


def as_cell(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would compute.

    Parameters
    ----------
    text : str
        For a cell of a table.

    Returns
    -------
    str

    Examples
    --------
    >>> as_cell("=1+1"), as_cell("model.layers.0")
    ("'=1+1", 'model.layers.0')
    """
    return f"'{text}" if text.startswith(COMPUTED) else text


def _write_parquet(path: Path, columns: Columns, chunks: Iterable[Rows]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise GraphError(
            "Parquet needs pyarrow, which is not installed; pip install 'llmrank[tables]', or use format='csv'"
        ) from error
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(column_type)) for name, column_type in columns.items()])
    # Parquet can store a column as a dictionary of its values. Weights repeat too seldom for that to save space.
    encoded = [name for name in columns if name != "weight"]
    with parquet.ParquetWriter(path, schema, use_dictionary=encoded, write_page_checksum=True) as writer:
        for rows in chunks:
            arrays = [pyarrow.array(rows[field.name]).cast(field.type) for field in schema]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


WRITERS: dict[str, Callable[[Path, Columns, Iterable[Rows]], None]] = {"csv": _write_csv, "parquet": _write_parquet}

FORMATS = (
    Format("csv", lambda graph, stem, rank, _: write_tables(graph, stem, rank, "csv")),
    Format(
        "parquet",
        lambda graph, stem, rank, _: write_tables(graph, stem, rank, "parquet"),
        package="pyarrow",
        extra="tables",
    ),
)
