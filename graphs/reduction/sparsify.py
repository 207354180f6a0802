"""Sparsification: dropping edges of a layered graph, with a proven bound on the change of its ranks.

PageRank passes score along edges by the transition matrix P, whose column j holds the shares of the out-edges of source j. The
column of a source with edges has sum 1. If some of these edges are dropped, their share therefore goes to the kept ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from graphs.analysis.incident_edges import padded_lines
from graphs.checks import check_share
from graphs.linalg.blocks import Block, SparseBlock, index_dtype
from graphs.reduction.backbone import significant_in_edges
from graphs.reduction.edge_rules import EdgeRule, edge_rule
from graphs.reduction.edge_selection import check_finite_weights
from graphs.structures.layered import LayeredGraph, check_layered

__all__ = ["Sparsification", "sparsify"]

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Sparsification:
    """A sparsified graph, how much was dropped, and bounds on how far its ranks can differ.

    The bounds hold for any activations and teleport vector, up to round-off. There is no bound for the modified PageRank,
    which does not divide columns by their sums.

    Attributes
    ----------
    graph : LayeredGraph
        The sparsified graph. Its blocks (the edges from one layer to the next) are stored in CSR form; its activations and names
        are those of the original.
    edges_before, edges_after : int
        Number of edges of the original and of the sparsified graph.
    dropped_weight_shares : tuple of L floats
        For every block, eps: the largest share of its out-strength (the weight of its out-edges) that a source lost, in [0, 1).
    dropped_edge_shares : tuple of L floats
        For every block, eps_k: the largest share of the number of its out-edges that a source lost, in [0, 1).
    dangling_blocks : tuple of L bools
        For every block, whether it has a dangling source (one without out-edges); sparsification adds no such source.
    """

    graph: LayeredGraph
    edges_before: int
    edges_after: int
    dropped_weight_shares: tuple[float, ...]
    dropped_edge_shares: tuple[float, ...]
    dangling_blocks: tuple[bool, ...]

    @property
    def dangling(self) -> bool:
        """Whether any block has a source without out-edges."""
        return any(self.dangling_blocks)

    @property
    def kept_share(self) -> float:
        """Share of the edges of the original that are kept, 0..1; 1 for a graph without edges."""
        return self.edges_after / self.edges_before if self.edges_before else 1.0

    def layer_bounds(self, gamma: float, theta: float = 1.0) -> tuple[float, ...]:
        """Bound the L1 error of every layer of :func:`graphs.weighted_pagerank`.

        The error of a layer is the L1 distance between its scores in the rank of the original and in that of the sparsified
        graph.

        With ``s_l = theta * eps + (1 - theta) * eps_k`` for block l, the bounds are ``e_0 = 0`` and
        ``e_l = gamma * (e_{l-1} + (1 - e_{l-1} / 2) * 2 s_l)``.

        Parameters
        ----------
        gamma, theta : float
            As for :func:`graphs.weighted_pagerank`, 0..1.

        Returns
        -------
        tuple of L+1 floats
            In [0, 2], layer 0 first. From the first layer on whose scores can differ and whose in-edges come from a layer with a
            dangling source, the bounds are inf.

        Raises
        ------
        GraphError
            gamma or theta out of range.

        Notes
        -----
        Proof. Let P and r be the transition and the scores of the sources in the original graph, P' and r' those in the
        sparsified graph, and e the L1 distance of r and r'. In column j of P, the dropped edges have the share
        ``s_j = theta eps_j + (1 - theta) eps_kj``, where source j lost the shares eps_j and eps_kj. In P', the kept edges gain
        this share. So the L1 change of the column is exactly ``2 s_j``, which is at most ``2 s``. Let ``m = min(r, r')``, with
        sum ``1 - e/2``. Then ``P r - P' r' = (P - P') m + P (r - m) - P' (r' - m)`` has an L1 norm of at most
        ``2 s (1 - e/2) + e/2 + e/2``. The teleport is the same in both ranks and cancels. Scores of a layer are divided by their
        sum, which changes nothing while no source dangles.

        Examples
        --------
        >>> graph = LayeredGraph.from_weights([[[3.0, 1.0], [1.0, 1.0]]], [1, 1], [[1, 1]])
        >>> sparsify(graph, threshold=0.3).layer_bounds(gamma=0.5)
        (0.0, 0.25)
        """
        gamma, theta = check_share("gamma", gamma), check_share("theta", theta)
        half_distance = 0.0
        differ = False  # whether scores can differ, even if a tiny gamma rounds `half_distance` to 0
        bounds = [0.0]
        for weight, edges, dangling in zip(
            self.dropped_weight_shares, self.dropped_edge_shares, self.dangling_blocks, strict=True
        ):
            if math.isfinite(half_distance):
                share = theta * weight + (1.0 - theta) * edges
                half_distance = gamma * (half_distance + share - half_distance * share)
                differ = differ or (gamma > 0.0 and share > 0.0)
                # Where a source dangles, the scores of a layer are divided by a sum below 1, for which there is no bound here.
                # Scores that cannot differ stay equal.
                if differ and dangling:
                    half_distance = math.inf
            bounds.append(min(2.0, 2.0 * half_distance) if math.isfinite(half_distance) else math.inf)
        return tuple(bounds)

    def error_bound(self, gamma: float, theta: float = 1.0) -> float:
        """Bound the largest L1 error of a layer of :func:`graphs.weighted_pagerank`.

        The bound is the maximum of :meth:`layer_bounds`.

        Parameters
        ----------
        gamma, theta : float
            As for :meth:`layer_bounds`.

        Returns
        -------
        float
            In [0, 2]; inf if a layer bound is inf.

        Raises
        ------
        GraphError
            gamma or theta out of range.

        Examples
        --------
        >>> graph = LayeredGraph.from_weights([[[3.0, 1.0], [1.0, 1.0]]], [1, 1], [[1, 1]])
        >>> sparsify(graph, top_k=1).error_bound(gamma=0.5)
        0.5
        """
        return max(self.layer_bounds(gamma, theta))

    def pagerank_bound(self, gamma: float) -> float:
        """Bound the L1 error of :func:`graphs.pagerank` of the whole graph (one vector with sum 1).

        The bound is ``2 gamma eps / (1 - gamma + gamma eps)``, where eps is the maximum of :attr:`dropped_weight_shares`. By the
        proof of :meth:`layer_bounds`, the distance e of the two ranks satisfies ``e <= gamma (e + (1 - e/2) * 2 eps)``.

        Parameters
        ----------
        gamma : float
            Damping, in [0, 1).

        Returns
        -------
        float
            In [0, 2]. Dangling nodes do not matter, because both graphs distribute their scores by the teleport.

        Raises
        ------
        GraphError
            gamma out of range.

        Examples
        --------
        >>> graph = LayeredGraph.from_weights([[[3.0, 1.0], [1.0, 1.0]]], [1, 1], [[1, 1]])
        >>> round(sparsify(graph, top_k=1).pagerank_bound(gamma=0.5), 4)
        0.6667
        """
        gamma = check_share("gamma", gamma, below_one=True)
        share = max(self.dropped_weight_shares)
        return min(2.0, 2.0 * gamma * share / (1.0 - gamma + gamma * share))


def sparsify(
    graph: LayeredGraph,
    *,
    top_k: int | None = None,
    threshold: float | None = None,
    weight_share: float | None = None,
    significance: float | None = None,
) -> Sparsification:
    """Drop light edges of a layered graph.

    Give exactly one of `top_k`, `threshold`, `weight_share` and `significance`. A source that has edges keeps at least the
    heaviest; among equal weights the edge to the lower target is kept first. The weights of kept edges do not change; several
    edges between the same two nodes become one edge.

    Cost: a sort of every column; for `significance` also one pass over the rows. Memory: the result, and about three times the
    CSR form of one block.

    Parameters
    ----------
    graph : LayeredGraph
        Not changed.
    top_k : int, optional
        Keep the `top_k` heaviest out-edges of every source; at least 1.
    threshold : float, optional
        Drop edges whose share of their source's out-strength is below the threshold, 0..1.
    weight_share : float, optional
        Of the out-edges of every source, keep the fewest that together hold this share of its out-strength, 0..1. A share of 1
        keeps all edges.
    significance : float, optional
        Keep the backbone that the disparity filter finds: edges whose ``alpha = (1 - p)**(k - 1)`` is below this level, 0..1
        (0.05 is usual), at their source or at their target; see :mod:`graphs.reduction.backbone`. At the source, p is the edge's
        share of the out-strength, and k is the out-degree. At the target, p is its share of the in-strength, and k is the
        in-degree.

    Returns
    -------
    Sparsification
        Its blocks are sorted CSR in the dtype of the weights (float32 or float64), with int32 indices where they fit.

    Raises
    ------
    GraphError
        None or several of the four parameters are given, one is out of range, or the weights hold NaN or Inf.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[4.0, 1.0], [3.0, 1.0], [1.0, 0.0]]], [1, 1], [[1, 1, 1]])
    >>> result = sparsify(graph, top_k=1)
    >>> result.graph.block(1).toarray()
    array([[4., 1.],
           [0., 0.],
           [0., 0.]])
    >>> result.dropped_weight_shares, result.kept_share
    ((0.5,), 0.4)
    """
    check_layered(graph)
    rule = edge_rule(top_k, threshold, weight_share, significance)
    level = None if significance is None else float(significance)
    parts = [
        _sparsify_block(block, rule, level, f"block {position}") for position, block in enumerate(graph.blocks, start=1)
    ]
    return Sparsification(
        graph=LayeredGraph(tuple(part.block for part in parts), graph.activations, graph.names),
        edges_before=sum(part.edges_before for part in parts),
        edges_after=sum(part.block.n_edges for part in parts),
        dropped_weight_shares=tuple(part.dropped_weight_share for part in parts),
        dropped_edge_shares=tuple(part.dropped_edge_share for part in parts),
        dangling_blocks=tuple(part.dangling for part in parts),
    )


@dataclass(frozen=True)
class _SparsifiedBlock:
    block: SparseBlock
    edges_before: int
    dropped_weight_share: float
    dropped_edge_share: float
    dangling: bool


def _sparsify_block(block: Block, rule: EdgeRule, significance: float | None, name: str) -> _SparsifiedBlock:
    """Drop the edges that the rule does not keep; `significance` also keeps edges that are significant at their target."""
    csr = block.to_csr()
    check_finite_weights(csr.data, name)
    significant: npt.NDArray[np.bool_] | None = None
    if significance is not None:
        by_row = significant_in_edges(csr, significance)
        # `by_row` is in the order of csr.data. As a CSR matrix that is converted to CSC, it comes into the order of csc.data.
        significant = sparse.csr_array((by_row, csr.indices, csr.indptr), shape=csr.shape).tocsc().data
    csc = csr.tocsc()
    del csr  # large for a dense block
    before = int(csc.nnz)
    degrees = np.diff(csc.indptr)
    dangling = bool((degrees == 0).any())
    kept = np.zeros(before, dtype=np.bool_)
    counts = np.zeros_like(degrees)
    dropped_weight_share = 0.0
    for columns, places, weights in padded_lines(csc):
        # Padding is lighter than any edge, so it stays last. Among equal weights a stable sort leaves lower targets first.
        order = np.argsort(-weights, axis=1, kind="stable")
        places = np.take_along_axis(places, order, axis=1)
        weights = np.take_along_axis(weights, order, axis=1)
        # Weights are scaled by a power of two, so that no sum overflows or is subnormal.
        weights = np.ldexp(weights, -np.frexp(weights[:, :1])[1])
        offsets = np.arange(weights.shape[1])
        keep = offsets < rule(weights, degrees[columns])[:, np.newaxis]
        if significant is not None:
            keep |= significant[places] & (offsets < degrees[columns, np.newaxis])
        counts[columns] = keep.sum(axis=1)
        kept[places[keep]] = True
        # If no edge is dropped, the sum of the dropped weights is exactly zero; 1 minus the kept share may not be.
        shares = np.where(keep, 0.0, weights).sum(axis=1) / weights.sum(axis=1)
        dropped_weight_share = max(dropped_weight_share, float(shares.max()))
    after = int(counts.sum())
    if after == before:
        unchanged = block if isinstance(block, SparseBlock) and not block.parallel else SparseBlock(csc.tocsr())
        return _SparsifiedBlock(unchanged, before, 0.0, 0.0, dangling)
    dtype = index_dtype(*csc.shape, after)
    indptr = np.concatenate(([0], np.cumsum(counts))).astype(dtype)
    indices = csc.indices[kept].astype(dtype, copy=False)
    sparsified = sparse.csc_array((csc.data[kept], indices, indptr), shape=csc.shape)
    dropped_edge_share = float(((degrees - counts) / np.maximum(degrees, 1)).max())
    # The conversion from CSC sorts the indices.
    result = SparseBlock(sparsified.tocsr())
    return _SparsifiedBlock(result, before, dropped_weight_share, dropped_edge_share, dangling)
