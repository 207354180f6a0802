"""Certified masks: when the set of nodes to keep can no longer change.

A pruner needs the set of the highest scores, not the scores. Two vectors of equal mass at L1 distance b
differ by b/2 at the most in any entry: once every kept score stands by more than both their slacks of b/2 above every score
that goes, no better iterate can swap the two.

Where the iterate is F of an earlier one, its error is gamma P z for some z of sum 0, and an entry of that is at
most ``max_j P_ij`` times the positive part of z. So the slack of node i is ``b / 2 * max_j P_ij``, in a layer of a thousand
nodes some hundreds of times less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray

__all__ = ["Certificate", "KeepHighest"]

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Certificate:
    """Which nodes have the highest scores, and whether that is proven.

    Attributes
    ----------
    keep : mapping from layer to bool array, (n_l,)
        The nodes to keep. Ties break by lower index: the lower one goes.
    certified : bool
        Whether the exact scores give the same sets.
    gaps : mapping from layer to float
        Lowest kept score minus highest removed one, by layer; for a pooled choice one entry for all its layers'
        first; inf where nothing or everything is kept.
    bounds : mapping from layer to float
        What the gap has to exceed: the slacks of a kept and a removed node, and an allowance for round-off.
    """

    keep: Mapping[int, BoolArray]
    certified: bool
    gaps: Mapping[int, float]
    bounds: Mapping[int, float]


@dataclass(frozen=True)
class KeepHighest:
    """The nodes that a pruner will keep: the highest of every layer, or of several layers together.

    Parameters
    ----------
    counts : mapping from layer to int
        How many of each layer's nodes to keep.
    pooled : sequence of int, optional
        Layers that share one budget; `count` of all their nodes are kept.
    count : int
        That budget.
    weights : sequence of float, optional
        Scores of the pooled layers are multiplied by these before they are compared (the layer's size
        makes scores that sum to 1 multiples of the mean); 1 by default.

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

    def check(self, layers: Sequence[int]) -> KeepHighest:
        """Self, or a GraphError where layers or counts do not fit a graph of these sizes."""
        counts = self.counts or {}
        for layer, count in (*counts.items(), *((layer, self.count) for layer in self.pooled)):
            if not isinstance(layer, (int, np.integer)) or not isinstance(count, (int, np.integer)):
                raise GraphError(
                    f"keep: expected whole numbers as layers and counts, got layer {layer!r} and count {count!r}"
                )
        for layer, count in counts.items():
            if not 0 <= layer < len(layers) or not 0 <= count <= layers[layer]:
                raise GraphError(
                    f"keep: expected layers of 0..{len(layers) - 1} and counts up to their sizes, got {count} of layer {layer}"
                )
        sizes = [layers[layer] for layer in self.pooled if 0 <= layer < len(layers)]
        distinct = len(set(self.pooled)) == len(self.pooled) == len(sizes)
        if not distinct or not 0 <= self.count <= sum(sizes) or set(self.pooled) & set(counts):
            raise GraphError(
                f"keep: expected distinct pooled layers of 0..{len(layers) - 1} that have no count of their own and a count "
                f"up to their {sum(sizes)} nodes, got {self.count} of layers {tuple(self.pooled)}"
            )
        weights = self.weights if self.weights is not None else [1.0] * len(self.pooled)
        if len(weights) != len(self.pooled) or not all(0 < weight < np.inf for weight in weights):
            raise GraphError(f"keep: expected one positive weight a pooled layer, got {weights}")
        if not counts and not self.pooled:
            raise GraphError("keep: expected counts for some layers, or pooled layers, got neither")
        return self

    def certificate(
        self,
        scores: Sequence[FloatArray],
        bounds: Sequence[float],
        caps: Sequence[FloatArray] | None = None,
        roundoff: float = 0.0,
    ) -> Certificate:
        """The highest nodes by these scores, and whether the errors that are possible leave the sets alone.

        Parameters
        ----------
        scores : sequence of (n_l,) arrays
        bounds : sequence of float
            L1 error by layer.
        caps : sequence of (n_l,) arrays, optional
            ``max_j P_ij`` of every node, where the scores are F of something.
        roundoff : float
            Relative error of a score by rounding.
        """
        slacks = [
            _slack(vector.astype(np.float64), bound, None if caps is None else caps[layer], roundoff)
            for layer, (vector, bound) in enumerate(zip(scores, bounds, strict=True))
        ]
        keep: dict[int, BoolArray] = {}
        gaps: dict[int, float] = {}
        needed: dict[int, float] = {}
        sure = True
        groups: list[tuple[tuple[int, ...], int, tuple[float, ...]]]
        groups = [((layer,), count, (1.0,)) for layer, count in (self.counts or {}).items()]
        if self.pooled:
            weights = tuple(self.weights) if self.weights is not None else (1.0,) * len(self.pooled)
            groups.append((tuple(self.pooled), self.count, weights))
        for layers, count, weights in groups:
            together, slack = (
                np.concatenate([part[k].astype(np.float64) * w for k, w in zip(layers, weights, strict=True)])
                for part in (scores, slacks)
            )
            kept = np.zeros(len(together), dtype=bool)
            kept[np.argsort(together, kind="stable")[len(together) - count :]] = True
            keep |= dict(zip(layers, np.split(kept, np.cumsum([len(scores[k]) for k in layers])[:-1]), strict=True))
            gaps[layers[0]], needed[layers[0]] = np.inf, 0.0
            if 0 < count < len(together):
                gap = float(together[kept].min() - together[~kept].max())
                lowest, highest = (together - slack)[kept].min(), (together + slack)[~kept].max()
                sure = sure and bool(lowest > highest)
                gaps[layers[0]] = gap
                needed[layers[0]] = gap - float(lowest - highest) if np.isfinite(lowest) else np.inf
        return Certificate(keep, sure, gaps, needed)


def _slack(scores: FloatArray, bound: float, caps: FloatArray | None, roundoff: float) -> FloatArray:
    """How far every score of a layer may be off."""
    if bound == 0.0:
        return roundoff * scores
    if bound == np.inf:
        return np.full(len(scores), np.inf)
    # Half of the L1 error at a node at most, since both vectors have the same mass; but for rounding, which mixtures of
    # iterates suffer on the scale of the layer, not of the score: a node of score 0 may come out at 1e-17.
    spread = bound / 2.0 * (1.0 if caps is None else np.minimum(caps, 1.0))
    return spread + roundoff * (scores + float(scores.mean()))
