"""Rows as CSV in UTF-8: commas, a header, one line a row; floats have as many digits as are needed to read them back exactly.

Reading also accepts a byte order mark, quotes around any field, and Windows line ends, which other programs write.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from graphs.errors import GraphError
from graphs.io.exchange.rows import EDGE_COLUMNS, EdgeRows, NodeRows, column_places

__all__ = ["read_edges", "read_nodes", "write_edges", "write_nodes"]

# Lines read at once; numpy needs some 80 MB to parse them.
CHUNK = 1 << 20

# Python's int also takes underscores, spaces and digits of other scripts, which are errors in a table.
INTEGER = re.compile(r"-?[0-9]{1,18}")
FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


def write_nodes(rows: NodeRows, path: Path) -> None:
    r"""Write a table of nodes, with the score in the last column if there is one.

    Parameters
    ----------
    rows : NodeRows
        Layer names may hold any characters except null and lone surrogates.
    path : Path
        Overwritten.

    Raises
    ------
    OSError
        The system cannot write the file.

    Examples
    --------
    >>> import tempfile
    >>> rows = NodeRows(np.array([0]), np.array([3]), ["in"], np.array([0.1]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_nodes(rows, Path(folder, "nodes.csv"))
    ...     Path(folder, "nodes.csv").read_text()
    'layer,index,name,activation\n0,3,"in",0.1\n'
    """
    names = [""] * len(rows.layer) if rows.names is None else rows.names
    # Always quoted, because some readers of CSV take a bare carriage return in a name for the end of a line.
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    columns = [
        map(str, rows.layer.tolist()),
        map(str, rows.index.tolist()),
        quoted,
        map(repr, rows.activation.tolist()),
    ]
    header = "layer,index,name,activation"
    if rows.score is not None:
        columns.append(map(repr, rows.score.tolist()))
        header += ",score"
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(header + "\n")
        file.writelines(",".join(row) + "\n" for row in zip(*columns, strict=True))


def write_edges(chunks: Iterable[EdgeRows], path: Path) -> None:
    r"""Write a table of edges chunk by chunk. Cost: about a microsecond an edge.

    Parameters
    ----------
    chunks : iterable of EdgeRows
        Consumed one after the other; only one is in memory.
    path : Path
        Overwritten.

    Raises
    ------
    OSError
        The system cannot write the file.

    Examples
    --------
    >>> import tempfile
    >>> one = np.array([1])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_edges([EdgeRows(one - 1, one, one, one, np.array([0.5], dtype=np.float32))], Path(folder, "edges.csv"))
    ...     Path(folder, "edges.csv").read_text()
    'source_layer,source,target_layer,target,weight\n0,1,1,1,0.5\n'
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(",".join(EDGE_COLUMNS) + "\n")
        for rows in chunks:
            columns = (getattr(rows, name).tolist() for name in EDGE_COLUMNS)
            file.writelines(f"{a},{s},{b},{t},{w!r}\n" for a, s, b, t, w in zip(*columns, strict=True))


def read_nodes(path: Path) -> NodeRows:
    r"""Read a table of nodes; the column ``name`` is optional, other columns are ignored.

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
        The file is not such a table, or ends within a line.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "nodes.csv").write_text("index,layer,activation\n3,0,0.5\n")
    ...     read_nodes(Path(folder, "nodes.csv")).index
    array([3])
    """
    _check_last_line(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, [])
            places = column_places(header, ("layer", "index", "activation"), path)
            rows = list(lines)
    except (csv.Error, UnicodeDecodeError) as error:
        raise GraphError(f"{path} is not a table in CSV ({error}); write it again") from error
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise GraphError(f"{path}: row {number} has {len(row)} columns, expected the {len(header)} of the header")
    columns = {name: [row[place] for row in rows] for name, place in places.items()}
    for name, pattern in (("layer", INTEGER), ("index", INTEGER), ("activation", FLOAT)):
        for number, text in enumerate(columns[name], start=1):
            if not pattern.fullmatch(text):
                raise GraphError(f"{path}: {name} of row {number}: expected a number, got {text[:50]!r}")
    return NodeRows(
        layer=np.array([int(text) for text in columns["layer"]], dtype=np.int64),
        index=np.array([int(text) for text in columns["index"]], dtype=np.int64),
        names=columns.get("name"),
        activation=np.array([float(text) for text in columns["activation"]], dtype=np.float64),
    )


def read_edges(path: Path) -> Iterator[EdgeRows]:
    r"""Read a table of edges chunk by chunk; other columns are ignored.

    Parameters
    ----------
    path : Path

    Yields
    ------
    EdgeRows
        Up to `CHUNK` rows, int64 and float64.

    Raises
    ------
    GraphError
        The file is not such a table, or ends within a line.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "edges.csv").write_text(",".join(EDGE_COLUMNS) + "\n0,3,1,7,0.5\n")
    ...     [rows.weight.tolist() for rows in read_edges(Path(folder, "edges.csv"))]
    [[0.5]]
    """
    _check_last_line(path)
    dtypes = np.dtype([(name, np.float64 if name == "weight" else np.int64) for name in EDGE_COLUMNS])
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = next(csv.reader([file.readline()], strict=True), [])
            places = column_places(header, EDGE_COLUMNS, path)
            # With usecols numpy does not check the length of rows, so it is only used where there are other columns.
            picked = None if tuple(header) == EDGE_COLUMNS else [places[name] for name in EDGE_COLUMNS]
            while True:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    warnings.filterwarnings("ignore", message=".*contained no data", category=UserWarning)
                    rows = np.loadtxt(
                        file,
                        dtypes,
                        delimiter=",",
                        comments=None,
                        quotechar='"',
                        usecols=picked,
                        max_rows=CHUNK,
                        ndmin=1,
                        encoding="utf-8",
                    )
                if not len(rows):
                    return
                yield EdgeRows(*(np.ascontiguousarray(rows[name]) for name in EDGE_COLUMNS))
    except GraphError:
        raise
    except (csv.Error, ValueError, OverflowError, Warning) as error:
        raise GraphError(
            f"{path}: expected rows of {', '.join(EDGE_COLUMNS)} ({error}); correct it, or write it again"
        ) from error


def _check_last_line(path: Path) -> None:
    """Check that the last line is complete: a line that is cut off may have lost digits and still be a number."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size:
            file.seek(size - 1)
        if file.read(1) != b"\n":
            raise GraphError(
                f"{path} is empty or ends within a line; expected a line feed at its end: the table is cut off"
            )
