"""npz: a whole graph as plain numpy arrays in an uncompressed zip, which numpy opens anywhere.

It holds, for every block l, ``block.l.data``, ``block.l.indices`` and ``block.l.indptr`` (CSR), for every layer
``activation.l``, and ``meta``: JSON text as bytes, with the names, the shapes and the format's version. No pickle.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from graphs.errors import GraphError
from graphs.files import replacing
from graphs.layered import LayeredGraph

__all__ = ["read_npz", "write_npz"]

VERSION = 1

ADVICE = "expected an npz file written by write_npz; the file is damaged or something else: write it again"


def write_npz(graph: LayeredGraph, path: str | os.PathLike[str]) -> None:
    """Write a graph as an uncompressed npz (see the module); dense blocks are stored as their CSR.

    Parameters
    ----------
    graph : LayeredGraph
    path : path-like
        Replaced whole on success, untouched on failure. The same graph gives the same bytes. No suffix is added.

    Raises
    ------
    GraphError
        NaN or Inf in the weights, no such directory, or a path that is one.
    OSError
        The disk is full or refuses.

    Notes
    -----
    Memory: one block in CSR form. Every array has the zip's CRC-32.

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
    shapes = [list(block.shape) for block in graph.blocks]
    meta = json.dumps({"kind": "graph", "version": VERSION, "names": list(graph.names), "shapes": shapes})
    with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "meta", np.frombuffer(meta.encode("ascii"), dtype=np.uint8))
        for layer, vector in enumerate(graph.activations):
            _add(archive, f"activation.{layer}", vector)
        for position, block in enumerate(graph.blocks, start=1):
            csr = block.to_csr()
            if not np.isfinite(csr.data).all():
                raise GraphError(
                    f"block {position}: the edge weights hold NaN or Inf; expected finite numbers: repair or reload them"
                )
            for part in ("data", "indices", "indptr"):
                _add(archive, f"block.{position}.{part}", getattr(csr, part))


def _add(archive: zipfile.ZipFile, name: str, array: npt.NDArray[Any]) -> None:
    # A fixed day, the first that zip knows, in place of now.
    entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    with archive.open(entry, "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def read_npz(path: str | os.PathLike[str]) -> LayeredGraph:
    """Read a graph written by :func:`write_npz`, bit for bit.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    LayeredGraph
        Stored CSR blocks.

    Raises
    ------
    GraphError
        Missing, truncated, corrupted, compressed (which could expand without end), holding pickles, of another version,
        or inconsistent.

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
            size = Path(path).stat().st_size
            arrays = {entry.filename.removesuffix(".npy"): _array(archive, entry, size) for entry in archive.infolist()}
    except (
        *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, LookupError, ArithmeticError),
        *(NotImplementedError, RuntimeError, TypeError, ValueError, SyntaxError),
    ) as error:
        raise GraphError(f"{path} cannot be read ({error}); {ADVICE}") from error
    try:
        meta = json.loads(arrays["meta"].tobytes().decode("ascii"))
        if not isinstance(meta, dict) or meta.get("kind") != "graph":
            raise ValueError(f"its meta is {meta!r}")
        version = meta.get("version")
    except (LookupError, ValueError, RecursionError) as error:
        raise GraphError(f"{path} is not a graph ({error}); {ADVICE}") from error
    if version != VERSION:
        raise GraphError(
            f"{path} has format version {version}, this package reads {VERSION}; upgrade the package, or write the file again"
        )
    try:
        return _graph(arrays, meta)
    except (LookupError, TypeError, ValueError) as error:
        raise GraphError(f"{path} is not a consistent graph: {error}; write it again") from error


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, size: int) -> npt.NDArray[Any]:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry.filename} is compressed")
    # Room for a member is made before it is read.
    if not entry.file_size == entry.compress_size <= size:
        raise ValueError(f"{entry.filename} claims {entry.file_size} bytes of {size}")
    # The whole member at once, so that its CRC is checked before any of it is believed.
    content = archive.read(entry)
    file = io.BytesIO(content)
    major, _ = np.lib.format.read_magic(file)
    if major != 1:
        raise ValueError(f"{entry.filename} has npy version {major}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if len(shape) != 1 or fortran or dtype.hasobject:
        raise ValueError(f"{entry.filename} has shape {shape} and dtype {dtype}")
    # numpy would make room for what the header claims before it looks at what is there.
    if shape[0] < 0 or shape[0] * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"{entry.filename} claims {shape[0]} numbers of {dtype} in {len(content) - file.tell()} bytes")
    return np.frombuffer(content, dtype=dtype, offset=file.tell())


def _graph(arrays: dict[str, Any], meta: dict[str, Any]) -> LayeredGraph:
    weights = []
    for position, shape in enumerate(meta["shapes"], start=1):
        data, indices, indptr = (arrays[f"block.{position}.{part}"] for part in ("data", "indices", "indptr"))
        if data.dtype not in (np.float32, np.float64) or indices.dtype.kind != "i" or indptr.dtype.kind != "i":
            raise ValueError(f"block {position} has dtypes {data.dtype}, {indices.dtype} and {indptr.dtype}")
        csr = sparse.csr_array((data, indices, indptr), shape=tuple(shape))
        csr.check_format(full_check=True)
        if csr.nnz != len(data) or csr.nnz != len(indices):
            raise ValueError(f"block {position} has values that belong to no row")
        if not csr.has_canonical_format or not (data > 0).all():
            raise ValueError(f"block {position} has edges that are twice there, out of order or not positive")
        weights.append(csr)
    activations = [arrays[f"activation.{layer}"] for layer in range(len(weights) + 1)]
    return LayeredGraph.from_weights(weights, activations[0], activations[1:], meta["names"])
