"""Conversion of layered graphs to and from named arrays, for safetensors and npz files.

The block into layer l, which holds the edges from layer l-1, is written in CSR form: as ``block.l.data``, ``block.l.indices`` and
``block.l.indptr``. The activations of layer l are ``activation.l``. The metadata hold the names of the layers and the shapes of
the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from graphs.errors import GraphError
from graphs.linalg.validation import check_compressed
from graphs.reduction.edge_selection import check_finite_weights
from graphs.structures.layered import LayeredGraph

__all__ = ["graph_arrays", "graph_from_arrays", "graph_metadata"]

Array: TypeAlias = npt.NDArray[Any]

PARTS = ("data", "indices", "indptr")


def graph_arrays(graph: LayeredGraph) -> Iterator[tuple[str, Array]]:
    """Yield the arrays of a graph, each with its name; dense blocks are converted to CSR one at a time.

    Parameters
    ----------
    graph : LayeredGraph

    Yields
    ------
    name : str
    array : array, (k,)
        float64 activations; float32 or float64 data; int32 indices where they fit, else int64.

    Raises
    ------
    GraphError
        NaN or Inf in the weights, which :func:`graph_from_arrays` would not accept.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[0.5, 2.0]]], [1, 1], [[1]])
    >>> [name for name, _ in graph_arrays(graph)]
    ['activation.0', 'activation.1', 'block.1.data', 'block.1.indices', 'block.1.indptr']
    """
    for layer, vector in enumerate(graph.activations):
        yield f"activation.{layer}", vector
    for position, block in enumerate(graph.blocks, start=1):
        csr = block.to_csr()
        check_finite_weights(csr.data, f"block {position}")
        for part in PARTS:
            yield f"block.{position}.{part}", getattr(csr, part)


def graph_metadata(graph: LayeredGraph) -> dict[str, Any]:
    """Return the metadata of a graph, in types that JSON can hold.

    Parameters
    ----------
    graph : LayeredGraph

    Returns
    -------
    dict
        ``names``, one for each layer, and ``shapes``, (n_l, n_{l-1}) for each block.

    Examples
    --------
    >>> graph_metadata(LayeredGraph.from_weights([[[0.5, 2.0]]], [1, 1], [[1]]))
    {'names': ['layer 0', 'layer 1'], 'shapes': [[1, 2]]}
    """
    return {"names": list(graph.names), "shapes": [list(block.shape) for block in graph.blocks]}


def graph_from_arrays(arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> LayeredGraph:
    """Build a graph from its arrays and metadata, with the same numbers bit for bit.

    A wrong size in `metadata` costs no memory: the arrays are compared with the sizes before anything is allocated.

    Parameters
    ----------
    arrays : mapping from str to (k,) array
        The arrays of :func:`graph_arrays` by name; other names are ignored.
    metadata : mapping
        The metadata of :func:`graph_metadata`.

    Returns
    -------
    LayeredGraph
        Its blocks are stored in CSR form.

    Raises
    ------
    GraphError
        Something is missing, has the wrong type or does not fit the rest; activations are negative or not finite; or edges
        are repeated, out of order, or have weights that are not positive and finite.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[0.5, 2.0]]], [1, 1], [[1]])
    >>> graph_from_arrays(dict(graph_arrays(graph)), graph_metadata(graph))
    LayeredGraph(2 layers: 2 -> 1 nodes, 3 nodes, 2 edges, density 1)
    """
    names, shapes = metadata.get("names"), metadata.get("shapes")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise GraphError(f"expected the names of the layers, a list of texts, got {str(names)[:80]}")
    if not isinstance(shapes, list) or not shapes or not all(map(_is_shape, shapes)):
        raise GraphError(f"expected the shapes of the blocks, a list of pairs of integers > 0, got {str(shapes)[:80]}")
    weights = [_block(arrays, position, tuple(shape)) for position, shape in enumerate(shapes, start=1)]
    activations = [_vector(arrays, f"activation.{layer}") for layer in range(len(weights) + 1)]
    return LayeredGraph.from_weights(weights, activations[0], activations[1:], names)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 < n < 2**63 for n in value)


def _vector(arrays: Mapping[str, Array], name: str) -> Array:
    if name not in arrays:
        raise GraphError(f"there is no array {name}")
    array = arrays[name]
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise GraphError(f"{name}: expected a vector of numbers, got shape {array.shape} of dtype {array.dtype}")
    return array


def _block(arrays: Mapping[str, Array], position: int, shape: tuple[int, int]) -> sparse.csr_array:
    data, indices, indptr = (_vector(arrays, f"block.{position}.{part}") for part in PARTS)
    if data.dtype not in (np.float32, np.float64) or indices.dtype.kind != "i" or indptr.dtype.kind != "i":
        raise GraphError(
            f"block {position}: expected float32 or float64 data and signed integer indices and indptr, got dtypes {data.dtype}, "
            f"{indices.dtype} and {indptr.dtype}"
        )
    check_compressed("csr", (data, indices, indptr), shape, f"block {position}")
    csr = sparse.csr_array((data, indices, indptr), shape=shape)
    if not csr.has_canonical_format or not (data > 0).all():
        raise GraphError(f"block {position} has edges that are repeated, out of order or not positive")
    return csr
