"""Certified masks: when the set of nodes to keep can no longer change.

A pruner needs the set of the highest scores, not the scores. Two vectors of equal mass at L1 distance b
differ by b/2 at the most in what any entry gained, and by b/2 in what any lost: once the lowest kept score stands more
than b above the highest that goes, no better iterate can swap the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphs.blocks import FloatArray
from graphs.errors import GraphError

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
        What the gap has to exceed: the error bound, and an allowance for round-off.
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
        for layer, count in counts.items():
            if not 0 <= layer < len(layers) or not 0 <= count <= layers[layer]:
                raise GraphError(
                    f"keep: expected layers of 0..{len(layers) - 1} and counts up to their sizes, got {count} of layer {layer}"
                )
        sizes = [layers[layer] for layer in self.pooled if 0 <= layer < len(layers)]
        if len(sizes) < len(self.pooled) or not 0 <= self.count <= sum(sizes) or set(self.pooled) & set(counts):
            raise GraphError(
                f"keep: expected pooled layers of 0..{len(layers) - 1} that have no count of their own and a count up to "
                f"their {sum(sizes)} nodes, got {self.count} of layers {tuple(self.pooled)}"
            )
        weights = self.weights if self.weights is not None else [1.0] * len(self.pooled)
        if len(weights) != len(self.pooled) or not all(weight > 0 for weight in weights):
            raise GraphError(f"keep: expected one positive weight a pooled layer, got {weights}")
        if not counts and not self.pooled:
            raise GraphError("keep: expected counts for some layers, or pooled layers, got neither")
        return self

    def certificate(self, scores: Sequence[FloatArray], bounds: Sequence[float]) -> Certificate:
        """The highest nodes by these scores, and whether errors up to `bounds` (L1, by layer) leave the sets alone.

        Parameters
        ----------
        scores : sequence of (n_l,) arrays
        bounds : sequence of float
        """
        keep: dict[int, BoolArray] = {}
        gaps: dict[int, float] = {}
        needed: dict[int, float] = {}
        for layer, count in (self.counts or {}).items():
            mask, gap, bound = _highest([scores[layer]], [bounds[layer]], [1.0], count, len(scores))
            keep[layer], gaps[layer], needed[layer] = mask[0], gap, bound
        if self.pooled:
            chosen = [scores[layer] for layer in self.pooled]
            weights = self.weights if self.weights is not None else [1.0] * len(chosen)
            errors = [bounds[layer] for layer in self.pooled]
            masks, gap, bound = _highest(chosen, errors, weights, self.count, len(scores))
            keep |= dict(zip(self.pooled, masks, strict=True))
            gaps[self.pooled[0]], needed[self.pooled[0]] = gap, bound
        return Certificate(keep, all(gap > needed[layer] for layer, gap in gaps.items()), gaps, needed)


def _highest(
    scores: Sequence[FloatArray], bounds: Sequence[float], weights: Sequence[float], count: int, n_layers: int
) -> tuple[list[BoolArray], float, float]:
    """Masks of the `count` highest weighted scores, the gap below them, and what it has to exceed."""
    together = np.concatenate([vector.astype(np.float64) * w for vector, w in zip(scores, weights, strict=True)])
    size = len(together)
    order = np.argsort(together, kind="stable")
    kept = np.zeros(size, dtype=bool)
    kept[order[size - count :]] = True
    masks = np.split(kept, np.cumsum([len(vector) for vector in scores])[:-1])
    if count in (0, size):
        return masks, float("inf"), 0.0
    # Sums of n terms in another order, and one rounding a layer on the way.
    epsilon = float(np.finfo(scores[0].dtype).eps)
    slack = [(bound + 16.0 * n_layers * epsilon) * w for bound, w in zip(bounds, weights, strict=True)]
    per_node = np.repeat(slack, [len(vector) for vector in scores])
    if len(scores) == 1:
        gap = float(together[order[size - count]] - together[order[size - count - 1]])
        return masks, gap, slack[0]
    # Half of a layer's error may lift a node that goes, half of another's may press down one that stays.
    lowest, highest = (together - per_node / 2)[kept].min(), (together + per_node / 2)[~kept].max()
    gap = float(together[kept].min() - together[~kept].max())
    return masks, gap, gap - float(lowest - highest)
