"""Graphs as npz files: numpy arrays, without pickles, in an uncompressed zip file.

A file holds the arrays of :mod:`graphs.io.arrays` and ``meta``: JSON text as bytes, with the names, shapes, kind and version.
"""

from __future__ import annotations

import io
import json
import os
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphs.errors import GraphError
from graphs.io.arrays import graph_arrays, graph_from_arrays, graph_metadata
from graphs.io.exchange.formats import Format
from graphs.io.replacement import replace_file
from graphs.structures.layered import LayeredGraph

__all__ = ["read_npz", "write_npz"]

VERSION = 1

ADVICE = "expected a readable npz file written by write_npz; if it is damaged or something else, write it again"


def write_npz(graph: LayeredGraph, path: str | os.PathLike[str]) -> None:
    """Write a graph as an uncompressed npz file: all edges in CSR form, and several edges between the same nodes as one edge.

    Memory: about three times the CSR form of a block (the edges between two layers), if the block is dense. The zip file holds a
    CRC-32 checksum of every array.

    Parameters
    ----------
    graph : LayeredGraph
    path : path-like
        Replaced completely on success, not changed on failure. The same graph gives the same bytes. No suffix is added.

    Raises
    ------
    GraphError
        NaN or Inf in the weights, a directory that does not exist, or a path of something that is not a file.
    OSError
        The disk is full, or the system refuses.

    Examples
    --------
    >>> import tempfile
    >>> graph = LayeredGraph.from_weights([[[0.5, 2.0]]], [1, 1], [[1]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_npz(graph, Path(folder, "graph.npz"))
    ...     with np.load(Path(folder, "graph.npz")) as arrays:
    ...         arrays["block.1.data"]
    array([0.5, 2. ])
    """
    meta = json.dumps({"kind": "graph", "version": VERSION, **graph_metadata(graph)})
    with replace_file(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "meta", np.frombuffer(meta.encode("ascii"), dtype=np.uint8))
        for name, array in graph_arrays(graph):
            _add(archive, name, array)


def _add(archive: zipfile.ZipFile, name: str, array: npt.NDArray[Any]) -> None:
    # A fixed date: the current one would make the bytes differ from day to day.
    entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    with archive.open(entry, "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def read_npz(path: str | os.PathLike[str]) -> LayeredGraph:
    """Read a graph written by :func:`write_npz`; every number is the same bit for bit.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    LayeredGraph
        Its blocks are stored in CSR form. Memory while reading: about twice the size of the file.

    Raises
    ------
    GraphError
        The file is missing, unreadable, damaged, inconsistent, compressed or of another version, or it holds pickles.

    Examples
    --------
    >>> import tempfile
    >>> graph = LayeredGraph.from_weights([[[0.5, 2.0]]], [1, 1], [[1]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_npz(graph, Path(folder, "graph.npz"))
    ...     read_npz(Path(folder, "graph.npz"))
    LayeredGraph(2 layers: 2 -> 1 nodes, 3 nodes, 2 edges, density 1)
    """
    if not Path(path).is_file():
        raise GraphError(f"no npz file at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_members(Path(path).stat().st_size, entries)
            arrays = {entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in entries}
    except (
        *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
        *(ArithmeticError, LookupError, RuntimeError, TypeError, ValueError),
    ) as error:
        raise GraphError(f"{path} cannot be read ({error}); {ADVICE}") from error
    try:
        meta = json.loads(arrays["meta"].tobytes().decode("ascii"))
        if not isinstance(meta, dict) or meta.get("kind") != "graph":
            raise ValueError(f"its meta is {str(meta)[:80]}")
        version = meta.get("version")
    except (LookupError, ValueError, RecursionError) as error:
        raise GraphError(f"{path} is not a graph ({error}); {ADVICE}") from error
    if version != VERSION:
        raise GraphError(
            f"{path} has format version {version}, this package reads {VERSION}; upgrade the package, or write the file again"
        )
    try:
        return graph_from_arrays(arrays, meta)
    except GraphError as error:
        raise GraphError(f"{path} is not a consistent graph: {error}; write it again") from error


def _check_members(size: int, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse compressed members, repeated names and false sizes: with these, a small file could need much memory."""
    names: set[str] = set()
    total = 0
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{entry.filename} is compressed")
        if entry.filename in names:
            raise ValueError(f"{entry.filename} occurs twice")
        names.add(entry.filename)
        total += entry.file_size
        if entry.file_size != entry.compress_size or total > size:
            raise ValueError(
                f"{entry.filename} claims {entry.file_size} bytes but takes {entry.compress_size}, or the arrays up to it claim "
                f"{total} bytes in a file of {size}"
            )


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> npt.NDArray[Any]:
    # The whole member is read first, so that its CRC is checked before its header is used.
    content = archive.read(entry)
    file = io.BytesIO(content)
    major, _ = np.lib.format.read_magic(file)
    if major != 1:
        raise ValueError(f"{entry.filename} has npy version {major}")
    try:
        with warnings.catch_warnings():
            # numpy tries twice to read a header, and only warns if the first attempt failed. Here the warning is an error.
            warnings.simplefilter("error")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:
        # numpy parses the header as Python, and does not catch errors of the tokenizer, the parser or the dtype.
        raise ValueError(f"the header of {entry.filename} is damaged: {error}") from error
    if len(shape) != 1 or fortran or dtype.hasobject:
        raise ValueError(f"{entry.filename} has shape {shape} and dtype {dtype} (fortran_order {fortran})")
    n_bytes = len(content) - file.tell()
    if shape[0] < 0 or shape[0] * dtype.itemsize != n_bytes:
        raise ValueError(f"{entry.filename} claims {shape[0]} numbers of {dtype} in {n_bytes} bytes")
    return np.frombuffer(content, dtype=dtype, offset=file.tell())


FORMATS = (Format("npz", lambda graph, stem, *_: write_npz(graph, f"{stem}.npz")),)
