"""Checks of the arguments of figures: scores, names and keep masks of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray, as_numpy
from graphs.linalg.validation import as_vector
from graphs.solvers.result import RankResult

__all__ = ["BoolArray", "IntArray", "check_keep_masks", "check_layer_names", "check_layer_scores"]

BoolArray: TypeAlias = npt.NDArray[np.bool_]
IntArray: TypeAlias = npt.NDArray[np.integer[Any]]


def check_layer_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Check the names of `count` layers; if there are none, make the names "layer 0" and so on.

    Parameters
    ----------
    names : sequence of str, optional
    count : int

    Returns
    -------
    tuple of `count` str

    Raises
    ------
    GraphError
        A wrong number of names, or names that are not distinct.

    Examples
    --------
    >>> check_layer_names(None, 2)
    ('layer 0', 'layer 1')
    """
    if names is None:
        return tuple(f"layer {layer}" for layer in range(count))
    labels = tuple(str(name) for name in names)
    if len(labels) != count or len(set(labels)) != count:
        raise GraphError(f"expected {count} distinct names, one a layer, got {len(labels)}: {', '.join(labels[:8])}")
    return labels


def check_layer_scores(scores: Sequence[Any]) -> list[FloatArray]:
    """Check the scores of every layer, and convert them to float64 vectors.

    Parameters
    ----------
    scores : sequence of (n_l,) array-likes
        Non-negative and finite; numpy or torch.

    Returns
    -------
    list of (n_l,) float64 arrays

    Raises
    ------
    GraphError
        A RankResult, no layer, an empty layer, several scores a node, or scores that are negative, not finite or not real.

    Examples
    --------
    >>> check_layer_scores([[1, 3]])
    [array([1., 3.])]
    """
    if isinstance(scores, RankResult):
        raise GraphError("expected the scores of every layer, got a RankResult; pass its `scores`")
    vectors = [as_vector(given, f"scores of layer {layer}") for layer, given in enumerate(scores)]
    if not vectors:
        raise GraphError("expected the scores of at least one layer, got none")
    for layer, vector in enumerate(vectors):
        if vector.min() < 0.0:
            raise GraphError(
                f"scores of layer {layer}: expected non-negative numbers, got {vector.min()}; take absolute values first"
            )
    return vectors


def check_keep_masks(scores: Sequence[FloatArray], keep: Sequence[Any]) -> list[BoolArray]:
    """Check that keep masks fit the scores, and convert them to booleans.

    Parameters
    ----------
    scores : sequence of (n_l,) arrays
    keep : sequence of (n_l,) array-likes
        True keeps a node; numpy or torch.

    Returns
    -------
    list of (n_l,) bool arrays

    Raises
    ------
    GraphError
        Masks and layers differ in number or in size.

    Examples
    --------
    >>> check_keep_masks([np.array([1.0, 3.0])], [[0, 1]])
    [array([False,  True])]
    """
    masks = [as_numpy(mask) for mask in keep]
    if [values.shape for values in scores] != [mask.shape for mask in masks]:
        raise GraphError(
            f"expected scores and keep masks of the same layers, got shapes {[v.shape for v in scores]} and "
            f"{[mask.shape for mask in masks]}"
        )
    return [mask.astype(np.bool_) for mask in masks]
