"""Rows as Parquet, through pyarrow, with a checksum of every page.

Parquet compresses, so the contents may be many times larger than the file. No more edges are accepted than there are pairs
of nodes; the number of nodes has no such limit.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from graphs.errors import GraphError
from graphs.io.exchange.rows import EDGE_COLUMNS, EdgeRows, NodeRows, column_places

__all__ = ["import_pyarrow", "read_edges", "read_nodes", "write_edges", "write_nodes"]

# Rows read at once.
CHUNK = 1 << 19


def import_pyarrow() -> tuple[Any, Any]:
    """Import pyarrow and pyarrow.parquet, or raise an error that says what to install.

    Returns
    -------
    pyarrow, pyarrow.parquet : modules

    Raises
    ------
    GraphError
        pyarrow is not installed.

    Examples
    --------
    >>> pyarrow, parquet = import_pyarrow()
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise GraphError(
            "Parquet needs pyarrow, which is not installed; pip install 'llmrank[tables]', or use format='csv'"
        ) from error


def write_nodes(rows: NodeRows, path: Path) -> None:
    """Write a table of nodes: layer int32, index int64, name string, activation and score double.

    Parameters
    ----------
    rows : NodeRows
    path : Path
        Overwritten.

    Raises
    ------
    GraphError
        pyarrow is not installed.
    OSError
        The system cannot write the file.

    Examples
    --------
    >>> import tempfile
    >>> rows = NodeRows(np.array([0]), np.array([3]), ["in"], np.array([0.1]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_nodes(rows, Path(folder, "nodes.parquet"))
    ...     read_nodes(Path(folder, "nodes.parquet")).names
    ['in']
    """
    pyarrow, parquet = import_pyarrow()
    columns = {
        "layer": pyarrow.array(rows.layer, pyarrow.int32()),
        "index": pyarrow.array(rows.index, pyarrow.int64()),
        "name": pyarrow.array(rows.names or [""] * len(rows.layer), pyarrow.string()),
        "activation": pyarrow.array(rows.activation, pyarrow.float64()),
    }
    if rows.score is not None:
        columns["score"] = pyarrow.array(rows.score, pyarrow.float64())
    table = pyarrow.table(columns)
    with parquet.ParquetWriter(path, table.schema, write_page_checksum=True) as writer:
        writer.write_table(table)


def write_edges(chunks: Iterable[EdgeRows], path: Path, weights: Any = np.float64) -> None:
    """Write a table of edges, one chunk as one row group: layers int32, nodes int64, weight float or double.

    Parameters
    ----------
    chunks : iterable of EdgeRows
    path : Path
    weights : float32 or float64
        Type of the weight column; narrower weights are widened.

    Raises
    ------
    GraphError
        pyarrow is not installed.
    OSError
        The system cannot write the file.

    Examples
    --------
    >>> import tempfile
    >>> one = np.array([1])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_edges([EdgeRows(one - 1, one, one, one, np.array([0.5]))], Path(folder, "edges.parquet"))
    ...     [rows.weight.tolist() for rows in read_edges(Path(folder, "edges.parquet"))]
    [[0.5]]
    """
    pyarrow, parquet = import_pyarrow()
    types = {name: pyarrow.int32() if name.endswith("layer") else pyarrow.int64() for name in EDGE_COLUMNS}
    types["weight"] = pyarrow.from_numpy_dtype(np.dtype(weights))
    schema = pyarrow.schema(list(types.items()))
    # Weights repeat too seldom for a dictionary to save space.
    encoded = [name for name in EDGE_COLUMNS if name != "weight"]
    with parquet.ParquetWriter(path, schema, use_dictionary=encoded, write_page_checksum=True) as writer:
        for rows in chunks:
            arrays = [pyarrow.array(getattr(rows, name)).cast(column_type) for name, column_type in types.items()]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def read_nodes(path: Path) -> NodeRows:
    """Read a table of nodes; the column ``name`` is optional, other columns are ignored.

    Parameters
    ----------
    path : Path

    Returns
    -------
    NodeRows
        int64 and float64, without scores.

    Raises
    ------
    GraphError
        The file is damaged or not such a table, or pyarrow is not installed.

    Examples
    --------
    >>> import tempfile
    >>> rows = NodeRows(np.array([0]), np.array([3]), None, np.array([0.1]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_nodes(rows, Path(folder, "nodes.parquet"))
    ...     read_nodes(Path(folder, "nodes.parquet")).activation
    array([0.1])
    """
    wanted = ("layer", "index", "activation")
    parts = list(_batches(path, wanted, ("name",)))
    named = bool(parts) and "name" in parts[0]
    names = [name for part in parts for name in part["name"]] if named else None
    if names is not None and not all(isinstance(name, str) for name in names):
        raise GraphError(f"{path}: expected text in the column name, one a row")
    return NodeRows(
        layer=_joined(parts, "layer", np.int64),
        index=_joined(parts, "index", np.int64),
        names=names,
        activation=_joined(parts, "activation", np.float64),
    )


def read_edges(path: Path) -> Iterator[EdgeRows]:
    """Read a table of edges chunk by chunk; other columns are ignored.

    Parameters
    ----------
    path : Path

    Yields
    ------
    EdgeRows
        Up to `CHUNK` rows: int64, and weights in float32 if the column has that type, else float64.

    Raises
    ------
    GraphError
        The file is damaged or not such a table, or pyarrow is not installed.

    Examples
    --------
    >>> import tempfile
    >>> one = np.array([1])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_edges([EdgeRows(one - 1, one, one, one, np.array([0.5]))], Path(folder, "edges.parquet"))
    ...     [rows.target.tolist() for rows in read_edges(Path(folder, "edges.parquet"))]
    [[1]]
    """
    for part in _batches(path, EDGE_COLUMNS, ()):
        yield EdgeRows(*(part[name] for name in EDGE_COLUMNS))


def _joined(parts: list[dict[str, Any]], name: str, dtype: Any) -> Any:
    return np.concatenate([np.zeros(0, dtype), *(part[name] for part in parts)]).astype(dtype, copy=False)


def _batches(path: Path, wanted: tuple[str, ...], optional: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the columns by name, chunk by chunk: numbers as int64, float32 or float64 arrays, text as lists."""
    pyarrow, parquet = import_pyarrow()
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = [str(name) for name in file.schema_arrow.names]
            column_places(names, wanted, path)
            columns = [*wanted, *(name for name in optional if name in names)]
            for batch in file.iter_batches(CHUNK, columns=columns):
                yield {name: _values(pyarrow, batch.column(name), name, path) for name in columns}
    except GraphError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise GraphError(
            f"{path} cannot be read as Parquet ({error}); the file is damaged or something else"
        ) from error


def _values(pyarrow: Any, column: Any, name: str, path: Path) -> Any:
    if column.null_count:
        raise GraphError(f"{path}: {column.null_count} row(s) have no {name}; expected one in every row")
    if name == "name":
        return column.to_pylist()
    types = pyarrow.types
    if name in ("weight", "activation"):
        if not (types.is_floating(column.type) or types.is_integer(column.type)):
            raise GraphError(f"{path}: expected numbers in the column {name}, got {column.type}")
        values = column.to_numpy(zero_copy_only=False)
        return values if values.dtype == np.float32 else values.astype(np.float64)
    if not types.is_integer(column.type):
        raise GraphError(f"{path}: expected integers in the column {name}, got {column.type}")
    return column.to_numpy(zero_copy_only=False).astype(np.int64)
