"""Certificates: proofs that further steps of a solver cannot change which nodes have the highest scores and are kept.

The slack of a score is how far the exact score may be from it. Two vectors of equal sum at L1 distance b differ by at most b/2 in
any entry, so b/2 is a slack of all scores whose L1 error is at most b. Once every kept score exceeds every removed score by more
than the slacks of both, the exact scores keep the same nodes.

Scores that are F of an earlier iterate have smaller slacks. (F is the right side of the equation r = F(r), P its transition
matrix, and gamma the damping.) Their error is gamma P z for some z of sum 0. Entry i of this error is at most
``gamma * max_j P_ij`` times the sum of the positive entries of z. So the slack of node i is only ``b / 2 * max_j P_ij``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray

__all__ = ["Certificate", "KeepHighest", "check_keep"]

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Certificate:
    """The nodes with the highest scores, and whether they are proven to be those of the exact rank.

    Attributes
    ----------
    keep : mapping from layer to bool array, (n_l,)
        The keep mask of every layer that :class:`KeepHighest` names. Among equal scores the lower index is removed first.
    certified : bool
        Whether the exact scores are proven to give the same keep masks.
    gaps : mapping from layer to float
        Lowest kept score minus highest removed score, by layer. All pooled layers together have one entry, under the first of
        them, for their weighted scores. inf where no node or every node is kept.
    required_gaps : mapping from layer to float
        The number that the gap has to exceed, round-off included; 0 where no node or every node is kept.
    """

    keep: Mapping[int, BoolArray]
    certified: bool
    gaps: Mapping[int, float]
    required_gaps: Mapping[int, float]


@dataclass(frozen=True)
class KeepHighest:
    """How many of the nodes with the highest scores to keep, in single layers and in several layers together.

    Parameters
    ----------
    counts : mapping from layer to int, optional
        Number of nodes to keep in each of these layers.
    pooled : sequence of int, optional
        Layers whose nodes are compared with each other: `count` nodes are kept in all of them together.
    count : int
        Number of nodes to keep in the pooled layers.
    weights : sequence of float, optional
        One factor for each pooled layer, by which its scores are multiplied before they are compared; 1 by default.

    Examples
    --------
    >>> from graphs import LayeredGraph, weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 2.0]]], [1, 1], [[1, 1]])
    >>> weighted_pagerank(graph, keep=KeepHighest({1: 1})).certificate.keep[1]
    array([False,  True])
    """

    counts: Mapping[int, int] | None = None
    pooled: Sequence[int] = ()
    count: int = 0
    weights: Sequence[float] | None = None

    def check(self, layer_sizes: Sequence[int]) -> KeepHighest:
        """Return self; raise a GraphError if self names no layer, or does not fit a graph with layers of these sizes."""
        n_layers = len(layer_sizes)
        counts = self.counts or {}
        for layer, count in (*counts.items(), *((layer, self.count) for layer in self.pooled)):
            if not isinstance(layer, (int, np.integer)) or not isinstance(count, (int, np.integer)):
                raise GraphError(
                    f"keep: expected whole numbers as layers and counts, got layer {layer!r} and count {count!r}"
                )
        for layer, count in counts.items():
            if not 0 <= layer < n_layers or not 0 <= count <= layer_sizes[layer]:
                raise GraphError(
                    f"keep: expected layers 0..{n_layers - 1} and counts up to their sizes, got {count} of layer {layer}"
                )
        sizes = [layer_sizes[layer] for layer in self.pooled if 0 <= layer < n_layers]
        distinct = len(set(self.pooled)) == len(self.pooled) == len(sizes)
        if not distinct or not 0 <= self.count <= sum(sizes) or set(self.pooled) & set(counts):
            raise GraphError(
                f"keep: expected distinct pooled layers from 0..{n_layers - 1} without counts of their own, and a count up "
                f"to their {sum(sizes)} nodes, got a count of {self.count} for layers {tuple(self.pooled)}"
            )
        weights = self._pooled_weights()
        if len(weights) != len(self.pooled) or not all(0 < weight < np.inf for weight in weights):
            raise GraphError(f"keep: expected one finite positive weight for each pooled layer, got {weights}")
        if not counts and not self.pooled:
            raise GraphError("keep: expected counts of layers, or pooled layers, got neither")
        return self

    def certificate(
        self,
        scores: Sequence[FloatArray],
        bounds: Sequence[float],
        row_maxima: Sequence[FloatArray] | None = None,
        roundoff: float = 0.0,
    ) -> Certificate:
        """Find the nodes with the highest scores, and decide whether every error within the bounds leaves them the same.

        Parameters
        ----------
        scores : sequence of (n_l,) arrays
        bounds : sequence of float
            Bound on the L1 error of every layer.
        row_maxima : sequence of (n_l,) arrays, optional
            Upper bounds on ``max_j P_ij`` of every node i, by layer; only if the scores are F of another iterate.
        roundoff : float
            Allowance for the relative rounding error of a score.
        """
        slacks = [
            _slack(vector.astype(np.float64), bound, None if row_maxima is None else row_maxima[layer], roundoff)
            for layer, (vector, bound) in enumerate(zip(scores, bounds, strict=True))
        ]
        keep: dict[int, BoolArray] = {}
        gaps: dict[int, float] = {}
        required: dict[int, float] = {}
        certified = True
        # Each group of layers, the number of nodes to keep in it, and the weight of each layer.
        groups: list[tuple[tuple[int, ...], int, Sequence[float]]]
        groups = [((layer,), count, (1.0,)) for layer, count in (self.counts or {}).items()]
        if self.pooled:
            groups.append((tuple(self.pooled), self.count, self._pooled_weights()))
        for layers, count, weights in groups:
            pool, slack = (
                np.concatenate([part[k].astype(np.float64) * w for k, w in zip(layers, weights, strict=True)])
                for part in (scores, slacks)
            )
            kept = np.zeros(len(pool), dtype=bool)
            kept[np.argsort(pool, kind="stable")[len(pool) - count :]] = True
            keep |= dict(zip(layers, np.split(kept, np.cumsum([len(scores[k]) for k in layers])[:-1]), strict=True))
            gaps[layers[0]], required[layers[0]] = np.inf, 0.0
            if 0 < count < len(pool):
                gap = float(pool[kept].min() - pool[~kept].max())
                lowest, highest = (pool - slack)[kept].min(), (pool + slack)[~kept].max()
                certified = certified and bool(lowest > highest)
                gaps[layers[0]] = gap
                required[layers[0]] = gap - float(lowest - highest) if np.isfinite(lowest) else np.inf
        return Certificate(keep, certified, gaps, required)

    def _pooled_weights(self) -> Sequence[float]:
        return (1.0,) * len(self.pooled) if self.weights is None else self.weights


def check_keep(keep: Any) -> None:
    """Raise a GraphError unless a value has the methods of a :class:`KeepHighest`.

    Parameters
    ----------
    keep : object

    Raises
    ------
    GraphError
        It has not.

    Examples
    --------
    >>> check_keep(5)
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: keep must be a KeepHighest, got int; leave it out to run to the tolerance
    """
    if isinstance(keep, type) or not all(hasattr(keep, name) for name in ("check", "certificate")):
        raise GraphError(f"keep must be a KeepHighest, got {type(keep).__name__}; leave it out to run to the tolerance")


def _slack(scores: FloatArray, bound: float, row_maxima: FloatArray | None, roundoff: float) -> FloatArray:
    """Bound the error of every score of a layer."""
    if bound == 0.0:
        return roundoff * scores
    if bound == np.inf:
        return np.full(len(scores), np.inf)
    # A solver may mix iterates, so the rounding error of a score also grows with the mean score: 0 can become 1e-17.
    spread = bound / 2.0 * (1.0 if row_maxima is None else np.minimum(row_maxima, 1.0))
    return spread + roundoff * (scores + float(scores.mean()))
