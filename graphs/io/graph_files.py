"""Save and load graphs and ranks.

A graph file holds the arrays of :mod:`graphs.io.arrays`. A rank file holds the scores ``score.l`` of every layer l, and the
residuals, bounds, products and seconds of the solver's steps. If the rank has a certificate (a proof that the exact rank keeps
the same nodes), the file also holds its gaps, its required gaps and its keep masks ``keep.l``.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any, get_args

import numpy as np

from graphs.checks import check_type
from graphs.errors import GraphError
from graphs.io.arrays import graph_arrays, graph_from_arrays, graph_metadata
from graphs.io.tensor_files import read_tensors, write_tensors
from graphs.solvers.certificate import Certificate
from graphs.solvers.result import DegenerateLayer, RankResult, StopReason
from graphs.structures.layered import LayeredGraph, check_layered

__all__ = ["load_graph", "load_rank", "save_graph", "save_rank"]

RANK_VERSION = 4

# The fields of a RankResult that are written without conversion: those in the JSON metadata, each with its types, and the arrays.
PLAIN_FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("stop_reason", "solver", "backend", "method", "solver_reason"), (str,)),
    **dict.fromkeys(("tolerance", "setup_seconds"), (int, float)),
    "parameters": (dict,),
}
ARRAY_FIELDS = ("residuals", "layer_residuals", "error_bounds", "step_products", "step_seconds")


def save_graph(graph: LayeredGraph, path: str | os.PathLike[str]) -> None:
    """Write a graph as safetensors: all edges in CSR form, and several edges between the same two nodes as one edge.

    Parameters
    ----------
    graph : LayeredGraph
    path : path-like
        Replaced completely on success, not changed on failure. Memory: the CSR form of all dense blocks.

    Raises
    ------
    GraphError
        NaN or Inf in the weights, a directory that does not exist, or a path of something that is not a file.
    OSError
        The disk is full, or the system refuses.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> graph = LayeredGraph.from_weights([[[0.5, 2.0]]], [1, 1], [[1]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_graph(graph, Path(folder, "graph.safetensors"))
    ...     load_graph(Path(folder, "graph.safetensors"))
    LayeredGraph(2 layers: 2 -> 1 nodes, 3 nodes, 2 edges, density 1)
    """
    check_layered(graph)
    write_tensors(path, dict(graph_arrays(graph)), graph_metadata(graph), "graph")


def load_graph(path: str | os.PathLike[str]) -> LayeredGraph:
    """Read a graph written by :func:`save_graph`; every number is the same bit for bit.

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
        The file is missing, truncated, corrupted, of another kind or version, or inconsistent.

    Examples
    --------
    >>> load_graph("absent.safetensors")
    Traceback (most recent call last):
    ...
    graphs.errors.GraphError: no graph file at absent.safetensors
    """
    metadata, arrays = read_tensors(path, "graph")
    try:
        return graph_from_arrays(arrays, metadata)
    except GraphError as error:
        raise GraphError(f"{path} is not a consistent graph file: {error}; write it again") from error


def save_rank(result: RankResult, path: str | os.PathLike[str]) -> None:
    """Write a rank as safetensors; labels of nodes are written as text.

    Parameters
    ----------
    result : RankResult
    path : path-like
        Replaced completely on success, not changed on failure.

    Raises
    ------
    GraphError, OSError
        As for :func:`graphs.io.tensor_files.write_tensors`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from graphs import weighted_pagerank
    >>> result = weighted_pagerank(LayeredGraph.from_weights([[[0.5, 2.0]]], [1, 3], [[1]]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_rank(result, Path(folder, "rank.safetensors"))
    ...     load_rank(Path(folder, "rank.safetensors")).scores[0]
    array([0.25, 0.75])
    """
    check_type("result", result, RankResult, "a RankResult, as pagerank returns it")
    certificate = result.certificate
    meta: dict[str, Any] = {
        "names": list(result.names),
        "degenerate": [asdict(entry) for entry in result.degenerate],
        "labels": None if result.labels is None else [str(label) for label in result.labels],
        "certified": None if certificate is None else certificate.certified,
        "certified_layers": [] if certificate is None else sorted(certificate.keep),
        **{name: getattr(result, name) for name in PLAIN_FIELDS},
    }
    tensors: dict[str, Any] = {f"score.{layer}": scores for layer, scores in enumerate(result.scores)}
    tensors |= {name: getattr(result, name) for name in ARRAY_FIELDS}
    # Bounds may be infinite, which JSON cannot hold.
    tensors["layer_bounds"] = np.asarray(result.layer_bounds, dtype=np.float64)
    if certificate is not None:
        tensors |= {f"keep.{layer}": mask.astype(np.uint8) for layer, mask in certificate.keep.items()}
        for name in ("gaps", "required_gaps"):
            entries = sorted(getattr(certificate, name).items())
            tensors[f"certificate.{name}"] = np.array(entries, dtype=np.float64)
    write_tensors(path, tensors, meta, "rank", RANK_VERSION)


def load_rank(path: str | os.PathLike[str]) -> RankResult:
    """Read a rank written by :func:`save_rank`; every number is the same bit for bit, and labels are text.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    RankResult

    Raises
    ------
    GraphError
        As for :func:`load_graph`.

    Examples
    --------
    >>> load_rank("absent.safetensors")
    Traceback (most recent call last):
    ...
    graphs.errors.GraphError: no rank file at absent.safetensors
    """
    meta, tensors = read_tensors(path, "rank", RANK_VERSION)
    try:
        arrays: dict[str, Any] = {name: tensors[name] for name in ARRAY_FIELDS}
        plain: dict[str, Any] = {name: meta[name] for name in PLAIN_FIELDS}
        result = RankResult(
            scores=tuple(tensors[f"score.{layer}"] for layer in range(len(meta["names"]))),
            names=tuple(meta["names"]),
            layer_bounds=tuple(tensors["layer_bounds"].tolist()),
            certificate=_certificate(tensors, meta["certified"], meta["certified_layers"]),
            degenerate=tuple(DegenerateLayer(**entry) for entry in meta["degenerate"]),
            labels=None if meta["labels"] is None else tuple(meta["labels"]),
            **arrays,
            **plain,
        )
        _check_consistent(result)
        return result
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise GraphError(f"{path} is not a consistent rank file: {error}; write it again") from error


def _certificate(tensors: dict[str, Any], certified: bool | None, layers: list[int]) -> Certificate | None:
    if certified is None:
        return None
    keep = {layer: tensors[f"keep.{layer}"] != 0 for layer in layers}
    gaps, required_gaps = (
        {int(layer): float(value) for layer, value in tensors[f"certificate.{name}"]}
        for name in ("gaps", "required_gaps")
    )
    return Certificate(keep, certified, gaps, required_gaps)


def _check_consistent(result: RankResult) -> None:
    """Raise a ValueError if a field has a wrong type or does not fit the others."""
    n_steps, n_layers = len(result.residuals), len(result.scores)
    column_shapes = {scores.shape[1:] for scores in result.scores}
    not_float = any(scores.dtype.kind != "f" for scores in result.scores)
    if len(column_shapes) != 1 or len(column_shapes.pop()) > 1 or not_float:
        shapes = ", ".join(f"{scores.shape} of {scores.dtype}" for scores in result.scores[:8])
        raise ValueError(f"expected float scores of shape (n,) or (n, k) for every layer, got {shapes}")
    for name in ARRAY_FIELDS:
        array = getattr(result, name)
        shape = (n_steps, n_layers) if name == "layer_residuals" else (n_steps,)
        kind = "i" if name == "step_products" else "f"
        if array.shape != shape or array.dtype.kind != kind:
            expected = f"{'integers' if kind == 'i' else 'floats'} of shape {shape}"
            raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}, expected {expected}")
    if len(result.layer_bounds) != n_layers:
        raise ValueError(f"{len(result.layer_bounds)} layer_bounds for {n_layers} layers")
    for name, types in PLAIN_FIELDS.items():
        value = getattr(result, name)
        if not isinstance(value, types) or isinstance(value, bool):
            raise ValueError(f"{name}: expected {types[-1].__name__}, got {value!r}")
    if result.stop_reason not in get_args(StopReason):
        raise ValueError(f"unknown stop_reason {result.stop_reason!r}")
    texts = [*result.names, *(entry.reason for entry in result.degenerate), *(result.labels or ())]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("names, labels or reasons are not text")
    n_nodes = sum(map(len, result.scores))
    if result.labels is not None and len(result.labels) != n_nodes:
        raise ValueError(f"{len(result.labels)} labels for {n_nodes} nodes")
    certificate = result.certificate
    if certificate is not None:
        mask_shapes = {layer: mask.shape for layer, mask in certificate.keep.items()}
        if mask_shapes != {layer: (len(result.scores[layer]),) for layer in range(n_layers) if layer in mask_shapes}:
            raise ValueError(f"keep masks of shapes {mask_shapes} do not fit the scores")
        if not certificate.gaps or certificate.gaps.keys() != certificate.required_gaps.keys():
            raise ValueError("a certificate's gaps and required gaps are missing, or of different layers")
