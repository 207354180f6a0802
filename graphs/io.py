"""Save and load graphs and ranks: safetensors, versioned, no pickle, never half-written.

A graph file holds, for every block l, ``block.l.data``, ``block.l.indices`` and ``block.l.indptr``
(CSR) and for every layer ``activation.l``; a rank file ``score.l`` and ``residuals``. The header's
``meta`` entry is JSON, its ``crc32`` entry a checksum over that text and all tensors.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy import sparse

from graphs.errors import GraphError
from graphs.layered import LayeredGraph
from graphs.result import Degenerate, RankResult
from graphs.validation import as_block

__all__ = ["load_graph", "load_rank", "save_graph", "save_rank"]

VERSION = 1
# The fields of a RankResult that JSON takes as they are.
PLAIN_FIELDS = (
    *("iterations", "converged", "stop_reason", "tolerance", "solver", "backend", "method", "parameters"),
    *("block_products", "setup_seconds", "solve_seconds"),
)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file beside `path` that takes its place on success and vanishes on failure."""
    target = Path(path)
    if not target.parent.is_dir():
        raise GraphError(f"cannot write {target}: there is no directory {target.parent}; create it first")
    if target.is_dir():
        raise GraphError(f"cannot write {target}: it is a directory; expected the path of a file")
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _write(path: str | os.PathLike[str], tensors: dict[str, Any], meta: dict[str, Any]) -> None:
    text = json.dumps(meta)
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with replacing(path) as partial:
        try:
            save_file(contiguous, partial, {"meta": text, "crc32": _checksum(text, contiguous)})
        except SafetensorError as error:
            # The library wraps what the system said (disk full, say); a caller expects an OSError.
            raise OSError(f"cannot write {path}: {error}") from error


def _checksum(text: str, tensors: dict[str, Any]) -> str:
    """CRC-32 of the metadata and of every tensor's name, dtype, shape and bytes, in order of names."""
    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype.str} {tensor.shape}".encode(), crc)
        crc = zlib.crc32(tensor, crc)
    return f"{crc:08x}"


def _read(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    advice = f"expected a {kind} file written by this package; the file is damaged or something else: write it again"
    if not Path(path).is_file():
        raise GraphError(f"no {kind} file at {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            text = header.get("meta", "null")
            meta = json.loads(text)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise GraphError(f"{path} cannot be read ({error}); {advice}") from error
    if not isinstance(meta, dict) or meta.get("kind") != kind:
        raise GraphError(f"{path} is not a {kind} file; {advice}")
    if meta.get("version") != VERSION:
        raise GraphError(
            f"{path} has format version {meta.get('version')}, this package reads {VERSION}; "
            "upgrade the package, or write the file again"
        )
    if header.get("crc32") != _checksum(text, tensors):
        raise GraphError(f"{path} is damaged (its checksum differs); {advice}")
    return meta, tensors


def save_graph(graph: LayeredGraph, path: str | os.PathLike[str]) -> None:
    """Write a graph as safetensors (see the module); dense blocks are stored as their CSR.

    Parameters
    ----------
    graph : LayeredGraph
    path : path-like
        Replaced whole on success, untouched on failure. Memory: the whole graph in CSR form.

    Raises
    ------
    GraphError
        The directory is not there, or the path is one.
    OSError
        The disk is full or refuses.
    """
    tensors: dict[str, Any] = {}
    shapes = []
    for position, block in enumerate(graph.blocks, start=1):
        csr = block.to_csr()
        shapes.append([int(extent) for extent in csr.shape])
        tensors[f"block.{position}.data"] = csr.data
        tensors[f"block.{position}.indices"] = csr.indices
        tensors[f"block.{position}.indptr"] = csr.indptr
    for layer, vector in enumerate(graph.activations):
        tensors[f"activation.{layer}"] = vector
    _write(path, tensors, {"kind": "graph", "version": VERSION, "names": list(graph.names), "shapes": shapes})


def load_graph(path: str | os.PathLike[str]) -> LayeredGraph:
    """Read a graph written by :func:`save_graph`, bit for bit.

    Raises
    ------
    GraphError
        Missing, truncated, corrupted, of another kind or version, or inconsistent.
    """
    meta, tensors = _read(path, "graph")
    try:
        weights = []
        for position, shape in enumerate(meta["shapes"], start=1):
            csr = sparse.csr_array(
                tuple(tensors[f"block.{position}.{part}"] for part in ("data", "indices", "indptr")), shape=tuple(shape)
            )
            csr.check_format(full_check=True)
            if csr.nnz != len(tensors[f"block.{position}.data"]):
                raise ValueError(f"block {position} has values that belong to no row")
            weights.append(as_block(csr, f"block {position}").to_csr())
        activations = [tensors[f"activation.{layer}"] for layer in range(len(weights) + 1)]
        return LayeredGraph.from_weights(weights, activations[0], activations[1:], meta["names"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise GraphError(f"{path} is not a consistent graph file: {error}; write it again") from error


def save_rank(result: RankResult, path: str | os.PathLike[str]) -> None:
    """Write a rank as safetensors; node labels of general digraphs are kept as text.

    Parameters
    ----------
    result : RankResult
    path : path-like
        Replaced whole on success, untouched on failure.

    Raises
    ------
    GraphError, OSError
        As :func:`save_graph`.
    """
    plain = {name: getattr(result, name) for name in PLAIN_FIELDS}
    meta = {
        "kind": "rank",
        "version": VERSION,
        "names": list(result.names),
        # JSON has no infinity.
        "error_bound": result.error_bound if math.isfinite(result.error_bound) else None,
        "degenerate": [asdict(entry) for entry in result.degenerate],
        "labels": None if result.labels is None else [str(label) for label in result.labels],
        **plain,
    }
    tensors = {f"score.{layer}": scores for layer, scores in enumerate(result.scores)}
    _write(path, {**tensors, "residuals": result.residuals}, meta)


def load_rank(path: str | os.PathLike[str]) -> RankResult:
    """Read a rank written by :func:`save_rank`.

    Raises
    ------
    GraphError
        As :func:`load_graph`.
    """
    meta, tensors = _read(path, "rank")
    try:
        meta = {key: value for key, value in meta.items() if key not in ("kind", "version")}
        meta["names"] = tuple(meta["names"])
        meta["error_bound"] = math.inf if meta["error_bound"] is None else meta["error_bound"]
        meta["degenerate"] = tuple(Degenerate(**entry) for entry in meta["degenerate"])
        meta["labels"] = None if meta["labels"] is None else tuple(meta["labels"])
        scores = tuple(tensors[f"score.{layer}"] for layer in range(len(meta["names"])))
        return RankResult(scores=scores, residuals=tensors["residuals"], **meta)
    except (KeyError, TypeError) as error:
        raise GraphError(f"{path} is not a consistent rank file: {error}; write it again") from error
