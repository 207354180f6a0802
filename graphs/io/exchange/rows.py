"""The rows of the tables of nodes and edges, independent of the file format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray

__all__ = ["EDGE_COLUMNS", "EdgeRows", "NodeRows", "column_places"]

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]

EDGE_COLUMNS = ("source_layer", "source", "target_layer", "target", "weight")


@dataclass(frozen=True, eq=False)
class NodeRows:
    """The nodes of a graph, one a row.

    Attributes
    ----------
    layer, index : int64 arrays, (n,)
    names : list of n str, or None
        The name of each node's layer.
    activation : float64 array, (n,)
    score : float64 array, (n,), or None
    """

    layer: IntArray
    index: IntArray
    names: list[str] | None
    activation: FloatArray
    score: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class EdgeRows:
    """Some edges of a graph, one a row.

    Attributes
    ----------
    source_layer, source, target_layer, target : int arrays, (k,)
    weight : float32 or float64 array, (k,)
    """

    source_layer: IntArray
    source: IntArray
    target_layer: IntArray
    target: IntArray
    weight: FloatArray


def column_places(columns: list[str], required: tuple[str, ...], where: object) -> dict[str, int]:
    """Map the name of every column to its place.

    Parameters
    ----------
    columns, required : sequence of str
        The columns that a table has, and those that it must have.
    where : object
        Name of the table in error messages.

    Returns
    -------
    dict from str to int

    Raises
    ------
    GraphError
        A required column is missing, or a name occurs twice.

    Examples
    --------
    >>> column_places(["index", "layer", "colour"], ("layer", "index"), "nodes.csv")
    {'index': 0, 'layer': 1, 'colour': 2}
    """
    missing = [name for name in required if name not in columns]
    if missing or len(set(columns)) != len(columns):
        fault = f"has no column {', '.join(missing)}" if missing else "has a column twice"
        raise GraphError(f"{where} {fault}; expected {', '.join(required)}, got {', '.join(columns)[:200]}")
    return {name: place for place, name in enumerate(columns)}
