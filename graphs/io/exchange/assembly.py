"""Assembly of rows of nodes and edges into a layered graph; errors name the row that does not fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from graphs.errors import GraphError
from graphs.io.exchange.rows import EdgeRows, NodeRows
from graphs.linalg.blocks import FloatArray
from graphs.structures.layered import LayeredGraph

__all__ = ["Labels", "assemble_graph"]

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]
Labels: TypeAlias = tuple[tuple[tuple[int, int], ...], ...]

REPEATED_EDGE_ADVICE = "expected every pair of nodes once: add their weights up"


def assemble_graph(
    rows: NodeRows, chunks: Iterable[EdgeRows], nodes_file: Path, edges_file: Path, *, partial: bool
) -> tuple[LayeredGraph, Labels]:
    """Assemble a layered graph from rows in any order.

    Parameters
    ----------
    rows : NodeRows
    chunks : iterable of EdgeRows
    nodes_file, edges_file : Path
        Names of the tables in error messages.
    partial : bool
        Whether layers may begin at any number and indices may have gaps.

    Returns
    -------
    graph : LayeredGraph
        Stored CSR blocks, in the dtype of the edges' weights.
    labels : tuple of tuples
        The (layer, index) of every node in the tables.

    Raises
    ------
    GraphError
        The rows do not make a layered graph.

    Examples
    --------
    >>> nodes = NodeRows(np.array([4, 3]), np.array([7, 2]), None, np.ones(2))
    >>> edges = EdgeRows(*(np.array([k]) for k in (3, 2, 4, 7)), np.array([0.5]))
    >>> graph, labels = assemble_graph(nodes, [edges], Path("nodes"), Path("edges"), partial=True)
    >>> labels, graph.block(1).toarray()
    ((((3, 2),), ((4, 7),)), array([[0.5]]))
    """
    layers, nodes, order = _layers(rows, nodes_file, partial)
    bounds = np.cumsum([len(at) for at in nodes])[:-1]
    names = _names(rows, order, bounds, nodes_file)
    blocks = _blocks(chunks, layers, nodes, edges_file)
    activations = np.split(rows.activation[order], bounds)
    try:
        graph = LayeredGraph.from_weights(blocks, activations[0], activations[1:], names)
    except GraphError as error:
        raise GraphError(f"{nodes_file}: {error}") from error
    return graph, tuple(tuple((layer, k) for k in at.tolist()) for layer, at in zip(layers, nodes, strict=True))


def _layers(rows: NodeRows, path: Path, partial: bool) -> tuple[tuple[int, ...], list[IntArray], IntArray]:
    """Return the numbers of the layers, the ascending indices of the nodes of each, and the order of the rows."""
    order = np.lexsort((rows.index, rows.layer))
    layer, index = rows.layer[order], rows.index[order]
    numbers, starts = np.unique(layer, return_index=True)
    if len(numbers) < 2:
        raise GraphError(f"{path}: expected nodes of at least two layers, got {len(numbers)}")
    first = int(numbers[0]) if partial else 0
    if numbers[0] < 0 or numbers[0] != first or int(numbers[-1]) - int(numbers[0]) + 1 != len(numbers):
        raise GraphError(
            f"{path}: expected consecutive layers from {first}, got {', '.join(map(str, numbers[:10]))}; a row is missing or "
            "wrong, or the tables are those of a subgraph: pass partial=True"
        )
    nodes = np.split(index, starts[1:])
    for number, at in zip(numbers.tolist(), nodes, strict=True):
        repeated = at[1:][at[1:] == at[:-1]]
        if len(repeated) or at[0] < 0:
            fault = f"index {repeated[0]} twice" if len(repeated) else f"index {at[0]}"
            raise GraphError(f"{path}: layer {number} has {fault}; expected every node once, counted from 0")
        if not partial and at[-1] != len(at) - 1:
            gap = int(np.flatnonzero(at != np.arange(len(at)))[0])
            raise GraphError(
                f"{path}: layer {number} has no index {gap} and goes on to {at[-1]}; a row is missing, or the tables are "
                "those of a subgraph: pass partial=True"
            )
    return tuple(numbers.tolist()), nodes, order


def _names(rows: NodeRows, order: IntArray, bounds: IntArray, path: Path) -> list[str] | None:
    if rows.names is None:
        return None
    names = []
    for part in np.split(order, bounds):
        given = {rows.names[row] for row in part}
        if len(given) != 1:
            raise GraphError(
                f"{path}: expected one name a layer, got {', '.join(map(repr, sorted(given)[:3]))} in layer {rows.layer[part[0]]}"
            )
        names.append(given.pop())
    return names


def _blocks(
    chunks: Iterable[EdgeRows], layers: tuple[int, ...], nodes: list[IntArray], path: Path
) -> list[sparse.csr_array]:
    """Build the blocks from the rows of the edges, which may be in any order."""
    parts: list[list[tuple[IntArray, IntArray, FloatArray]]] = [[] for _ in layers[1:]]
    free_pairs = [len(targets) * len(sources) for sources, targets in itertools.pairwise(nodes)]
    dtype: Any = np.float64
    for rows in chunks:
        dtype = rows.weight.dtype
        inside = (rows.source_layer >= layers[0]) & (rows.source_layer < layers[-1])
        _check_rows(~inside | (rows.target_layer != rows.source_layer + 1), rows, "lead from a layer to the next", path)
        _check_rows(~np.isfinite(rows.weight) | (rows.weight < 0), rows, "have a finite, non-negative weight", path)
        for layer in np.unique(rows.source_layer):
            among = np.flatnonzero(rows.source_layer == layer)
            position = int(layer) - layers[0]
            free_pairs[position] -= len(among)
            # Checked before all rows are read, because a small file can repeat a row a billion times.
            if free_pairs[position] < 0:
                raise GraphError(
                    f"{path}: more edges from layer {layer} to {layer + 1} than pairs of nodes; {REPEATED_EDGE_ADVICE}"
                )
            ends = []
            for at, given in ((nodes[position + 1], rows.target[among]), (nodes[position], rows.source[among])):
                places = np.searchsorted(at, given)
                absent = at[np.minimum(places, len(at) - 1)] != given
                if absent.any():
                    _check_rows(
                        np.isin(np.arange(len(rows.weight)), among[absent]),
                        rows,
                        "join nodes of the table of nodes",
                        path,
                    )
                ends.append(places.astype(np.int32 if len(at) < 2**31 else np.int64))
            parts[position].append((ends[0], ends[1], rows.weight[among]))
    blocks = []
    for part, sources, targets in zip(parts, nodes[:-1], nodes[1:], strict=True):
        shape = len(targets), len(sources)
        if not part:
            blocks.append(sparse.csr_array(shape, dtype=dtype))
            continue
        into, out_of, weights = (np.concatenate(columns) for columns in zip(*part, strict=True))
        csr = sparse.csr_array(sparse.coo_array((weights, (into, out_of)), shape=shape))
        if csr.nnz != len(weights):
            raise GraphError(
                f"{path}: {len(weights) - csr.nnz} edge(s) from layer {layers[len(blocks)]} to {layers[len(blocks) + 1]} "
                f"occur more than once; {REPEATED_EDGE_ADVICE}"
            )
        blocks.append(csr)
    return blocks


def _check_rows(bad: npt.NDArray[np.bool_], rows: EdgeRows, expected: str, path: Path) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise GraphError(
            f"{path}: expected edges that {expected}, got one from node {rows.source[row]} of layer {rows.source_layer[row]} "
            f"to node {rows.target[row]} of layer {rows.target_layer[row]} of weight {rows.weight[row]}"
        )
