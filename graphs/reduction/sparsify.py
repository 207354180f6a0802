"""Sparsification: a layered graph with fewer edges, and the proven bound on what that costs the ranks.

Edges are chosen source by source, because P divides every column by its own sum: a source keeps the
first of its out-edges in the order of falling weight (ties: lower target first), and P shares the
weight of the others among those kept. The backbone keeps, besides, what stands out at its target.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from graphs.checks import check_count, check_share
from graphs.errors import GraphError
from graphs.linalg.blocks import BAND_ELEMENTS, Block, FloatArray, SparseBlock, index_dtype
from graphs.reduction.backbone import disparity, significant_in_edges
from graphs.structures.layered import LayeredGraph

__all__ = ["Sparsification", "sparsify"]

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]
# (weights (c, d) of c columns, each falling and filled up with zeros; degrees (c,)) -> edges kept (c,)
Rule: TypeAlias = Callable[[FloatArray, IntArray], IntArray]


@dataclass(frozen=True)
class Sparsification:
    """A thinned graph, what was dropped, and how far that can move the ranks.

    Attributes
    ----------
    graph : LayeredGraph
        The thinned graph: stored CSR blocks; activations and names as before.
    edges_before, edges_after : int
        Number of edges.
    dropped_weight : tuple of L floats
        eps of every block: the largest share of its out-strength that a source lost, in [0, 1).
    dropped_edges : tuple of L floats
        eps_k of every block: the largest share of its out-edges that a source lost, in [0, 1).
    dangling : bool
        Whether a source of any block has no edge. Sparsification never makes one: it was so before.

    Notes
    -----
    The bounds hold up to round-off, for any activations and teleport vector; that of the layers is attained. There
    is none for the modified rank: it does not normalise columns, so a source that loses weight passes on less.
    """

    graph: LayeredGraph
    edges_before: int
    edges_after: int
    dropped_weight: tuple[float, ...]
    dropped_edges: tuple[float, ...]
    dangling: bool

    @property
    def kept(self) -> float:
        """Share of the edges kept, 0..1; 1 for a graph without edges."""
        return self.edges_after / self.edges_before if self.edges_before else 1.0

    def layer_bounds(self, gamma: float, theta: float = 1.0) -> tuple[float, ...]:
        """Bound on the L1 error of every layer of :func:`graphs.weighted_pagerank`.

        With ``s_l = theta * eps + (1 - theta) * eps_k`` of block l, the bounds are ``e_0 = 0`` and
        ``e_l = gamma * (e_{l-1} + (1 - e_{l-1} / 2) * 2 s_l)``, never above ``2 gamma``.

        Parameters
        ----------
        gamma : float
            Damping, 0..1; 1 is allowed, since there are only L steps.
        theta : float
            Share of the edge weights against the bare edges, 0..1.

        Returns
        -------
        tuple of L+1 floats
            In [0, 2], layer 0 first; inf from the first block on where a column dangles and the scores can differ:
            there N rescales by a mass that depends on the scores, and no bound is claimed.

        Raises
        ------
        GraphError
            gamma or theta out of range.

        Notes
        -----
        Proof. In column j of P the dropped edges lose the mass ``s_j = theta eps_j + (1 - theta) eps_kj`` and the kept
        ones gain it: its L1 change is exactly ``2 s_j``, at most ``2 s``. Let ``m = min(r, r')``, of mass ``1 - e/2``.
        ``P r - P' r' = (P - P') m + P (r - m) - P' (r' - m)``, of L1 norm at most ``2 s (1 - e/2) + e/2 + e/2``. The
        jump cancels, and N does nothing while no column dangles. This is below the ``gamma (e + 2 s)`` of the triangle
        inequality, and so below its limit ``gamma / (1 - gamma) * max 2 s``.

        Cost: none to speak of; on a dangling graph, one read of the indices at the first call.

        Examples
        --------
        >>> graph = LayeredGraph.from_weights([[[3.0, 1.0], [1.0, 1.0]]], [1, 1], [[1, 1]])
        >>> sparsify(graph, threshold=0.3).layer_bounds(gamma=0.5)
        (0.0, 0.25)
        """
        gamma, theta = check_share("gamma", gamma), check_share("theta", theta)
        # Half the L1 distance of two vectors of mass 1 is the mass that they do not share.
        apart = 0.0
        differ = False  # not told by `apart`, which rounds to 0 where gamma is tiny
        bounds = [0.0]
        for block, (weight, edges) in enumerate(zip(self.dropped_weight, self.dropped_edges, strict=True)):
            if math.isfinite(apart):
                share = theta * weight + (1.0 - theta) * edges
                apart = gamma * (apart + share - apart * share)
                differ = differ or (gamma > 0.0 and share > 0.0)
                # Equal vectors stay equal under N, whatever dangles.
                if differ and self._dangling_blocks[block]:
                    apart = math.inf
            bounds.append(min(2.0, 2.0 * apart) if math.isfinite(apart) else math.inf)
        return tuple(bounds)

    def error_bound(self, gamma: float, theta: float = 1.0) -> float:
        """Bound on the largest L1 error of a layer of :func:`graphs.weighted_pagerank`.

        The largest of :meth:`layer_bounds`; never above ``gamma / (1 - gamma) * max 2 s``, nor above ``2 gamma``.

        Parameters
        ----------
        gamma, theta : float
            As for :meth:`layer_bounds`.

        Returns
        -------
        float
            In [0, 2], or inf where a column dangles and the scores can differ.

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
        """Bound on the L1 error of :func:`graphs.pagerank` of the whole graph (one vector of mass 1).

        With ``eps`` the largest of :attr:`dropped_weight`: ``2 gamma eps / (1 - gamma + gamma eps)``, which is never
        above ``gamma / (1 - gamma) * 2 eps``, nor above 2.

        Parameters
        ----------
        gamma : float
            Damping, in [0, 1).

        Returns
        -------
        float
            In [0, 2]; for any teleport vector. Dangling nodes do no harm: they teleport before and after thinning.

        Raises
        ------
        GraphError
            gamma out of range.

        Notes
        -----
        Proof: as in :meth:`layer_bounds`, ``e <= gamma (e + (1 - e/2) * 2 eps)`` for the two fixed points; solve for e.

        Examples
        --------
        >>> graph = LayeredGraph.from_weights([[[3.0, 1.0], [1.0, 1.0]]], [1, 1], [[1, 1]])
        >>> round(sparsify(graph, top_k=1).pagerank_bound(gamma=0.5), 4)
        0.6667
        """
        gamma = check_share("gamma", gamma, below_one=True)
        share = max(self.dropped_weight)
        return min(2.0, 2.0 * gamma * share / (1.0 - gamma + gamma * share))

    @cached_property
    def _dangling_blocks(self) -> tuple[bool, ...]:
        """Which blocks have a source without an edge."""
        if not self.dangling:
            return (False,) * len(self.graph.blocks)
        csrs = (block.to_csr() for block in self.graph.blocks)
        return tuple(bool((np.bincount(csr.indices, minlength=csr.shape[1]) == 0).any()) for csr in csrs)


def sparsify(
    graph: LayeredGraph,
    *,
    top_k: int | None = None,
    threshold: float | None = None,
    mass: float | None = None,
    significance: float | None = None,
) -> Sparsification:
    """Drop light edges of a layered graph.

    Exactly one of `top_k`, `threshold`, `mass` and `significance` chooses. A source that has an edge keeps its heaviest
    at least; of equal weights the edge to the lower target index is kept first. Weights stay as they are (P normalises
    them).

    Parameters
    ----------
    graph : LayeredGraph
        Left as it is.
    top_k : int, optional
        Keep the `top_k` heaviest out-edges of every source, at least 1.
    threshold : float, optional
        Drop the edges whose share of their source's out-strength is below it, 0..1.
    mass : float, optional
        Keep the fewest heaviest out-edges that hold at least this share of their source's out-strength, 0..1; 1 keeps
        all, even those too light to count in float64.
    significance : float, optional
        Keep the backbone of the disparity filter: the edges of ``alpha = (1 - p)**(k - 1)`` below it, 0..1 (0.05 is
        usual), seen from their source or from their target. p is the edge's share of that node's out-strength
        (in-strength), k that node's number of out-edges (in-edges); see :mod:`graphs.reduction.backbone`. Where k = 1 alpha is 1
        and the other end judges alone; a source without a significant edge keeps its heaviest, or it would dangle and
        the bounds below would not hold.

    Returns
    -------
    Sparsification
        With stored CSR blocks of the weights' dtype (float32 or float64), sorted, int32 indices where they fit.

    Raises
    ------
    GraphError
        None or several rules, a parameter out of range, NaN or Inf in the weights.

    Notes
    -----
    Deterministic. A larger `top_k`, `mass` or `significance`, or a smaller `threshold`, keeps a superset. A second
    thinning by the same `top_k` or `threshold` drops nothing; by the same `mass` or `significance` it may, since what is
    left counts as the whole.

    Shares are taken in float64. Cost: a sort of every column, about 0.15 s per million edges (`significance`: besides, a
    pass over the rows), and memory for the result and about three times the CSR form of one block.

    Examples
    --------
    >>> graph = LayeredGraph.from_weights([[[4.0, 1.0], [3.0, 1.0], [1.0, 0.0]]], [1, 1], [[1, 1, 1]])
    >>> thinning = sparsify(graph, top_k=1)
    >>> thinning.graph.block(1).toarray()
    array([[4., 1.],
           [0., 0.],
           [0., 0.]])
    >>> thinning.dropped_weight, thinning.kept
    ((0.5,), 0.4)
    >>> sparsify(graph, mass=0.8).graph.block(1).toarray()
    array([[4., 1.],
           [3., 1.],
           [0., 0.]])
    >>> sparsify(graph, significance=0.3).graph.block(1).toarray()
    array([[4., 1.],
           [3., 0.],
           [0., 0.]])
    """
    rule = _rule(top_k, threshold, mass, significance)
    level = None if significance is None else float(significance)
    parts = [
        _thin_block(block, rule, level, f"block {position}") for position, block in enumerate(graph.blocks, start=1)
    ]
    return Sparsification(
        graph=LayeredGraph(tuple(part.block for part in parts), graph.activations, graph.names),
        edges_before=sum(part.edges_before for part in parts),
        edges_after=sum(part.block.edges for part in parts),
        dropped_weight=tuple(part.dropped_weight for part in parts),
        dropped_edges=tuple(part.dropped_edges for part in parts),
        dangling=any(part.dangling for part in parts),
    )


def _rule(top_k: int | None, threshold: float | None, mass: float | None, significance: float | None) -> Rule:
    given = {"top_k": top_k, "threshold": threshold, "mass": mass, "significance": significance}
    named = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise GraphError(
            f"expected exactly one of top_k, threshold, mass and significance, got {', '.join(named) or 'none'}"
        )
    if top_k is not None:
        return _first(check_count("top_k", top_k))
    # Quotients below, not products with the share: 9 / 10 rounds to the 0.9 asked for, 0.55 * 100 is above 55. And
    # running sums, which no cut tail can raise: a second thinning by the same threshold finds no smaller share.
    if threshold is not None:
        lowest = check_share("threshold", threshold)
        return lambda weights, degrees: np.clip((weights / _running(weights)[:, -1:] >= lowest).sum(axis=1), 1, degrees)
    if significance is not None:
        level = check_share("significance", significance)

        def surprising(weights: FloatArray, degrees: IntArray) -> IntArray:
            # A heavier edge surprises more, so the first edges are these too.
            alphas = disparity(weights, _running(weights)[:, -1:], degrees[:, np.newaxis])
            standing_out: IntArray = (alphas < level).sum(axis=1)
            return np.clip(standing_out, 1, degrees)

        return surprising
    share = check_share("mass", mass)
    if share == 1.0:
        return _first(None)

    def heaviest(weights: FloatArray, degrees: IntArray) -> IntArray:
        running = _running(weights)
        short: IntArray = (running / running[:, -1:] < share).sum(axis=1)
        return np.minimum(short + 1, degrees)

    return heaviest


def _first(limit: int | None) -> Rule:
    """The rule that keeps the first `limit` edges, or all."""
    return lambda weights, degrees: np.minimum(degrees, weights[:, :limit].shape[1])


def _running(weights: FloatArray) -> FloatArray:
    """What the first edges of every column hold together, (c, d); the last column holds the out-strengths."""
    running: FloatArray = np.cumsum(weights, axis=1)
    return running


@dataclass(frozen=True)
class _Part:
    """One thinned block."""

    block: SparseBlock
    edges_before: int
    dropped_weight: float
    dropped_edges: float
    dangling: bool


def _thin_block(block: Block, rule: Rule, significance: float | None, name: str) -> _Part:
    csr = block.to_csr()
    if not np.isfinite(csr.data).all():
        raise GraphError(f"{name}: the edge weights hold NaN or Inf; expected finite numbers: repair or reload them")
    by_target: npt.NDArray[np.bool_] | None = None
    if significance is not None:
        passes = significant_in_edges(csr, significance)
        # Carried along as values, the verdicts come out in the order of the columns.
        by_target = sparse.csr_array((passes, csr.indices, csr.indptr), shape=csr.shape).tocsc().data
    csc = csr.tocsc()
    # Large: a dense block's CSR is nobody else's, and goes before the columns are sorted.
    del csr
    before = int(csc.nnz)
    degrees = np.diff(csc.indptr)
    dangling = bool((degrees == 0).any())
    kept = np.zeros(before, dtype=np.bool_)
    counts = np.zeros_like(degrees)
    dropped = 0.0
    for columns in _columns_of_like_degree(degrees):
        width = int(degrees[columns].max())
        along = np.arange(width)
        places = csc.indptr[columns, np.newaxis].astype(np.int64) + along
        weights = csc.data[np.minimum(places, before - 1)].astype(np.float64)
        weights[along >= degrees[columns, np.newaxis]] = 0.0
        # Padding is lighter than any edge, so it comes last; stable, so of equal weights the lower target comes first.
        order = np.argsort(-weights, axis=1, kind="stable")
        places = np.take_along_axis(places, order, axis=1)
        weights = np.take_along_axis(weights, order, axis=1)
        # A power of two rounds nothing, and no sum overflows after it, nor is one lost below the smallest number.
        weights = np.ldexp(weights, -np.frexp(weights[:, :1])[1])
        stays = along < rule(weights, degrees[columns])[:, np.newaxis]
        if by_target is not None:
            stays |= by_target[np.minimum(places, before - 1)] & (along < degrees[columns, np.newaxis])
        counts[columns] = stays.sum(axis=1)
        kept[places[stays]] = True
        # Summed themselves, not as 1 minus the rest: exactly zero where nothing is dropped.
        shares = np.where(stays, 0.0, weights).sum(axis=1) / weights.sum(axis=1)
        dropped = max(dropped, float(shares.max()))
    after = int(counts.sum())
    if after == before:
        whole = block if isinstance(block, SparseBlock) else SparseBlock(csc.tocsr())
        return _Part(whole, before, 0.0, 0.0, dangling)
    kind = index_dtype(*csc.shape, after)
    indptr = np.concatenate(([0], np.cumsum(counts))).astype(kind)
    indices = csc.indices[kept].astype(kind, copy=False)
    thinned = sparse.csc_array((csc.data[kept], indices, indptr), shape=csc.shape)
    dropped_edges = float(((degrees - counts) / np.maximum(degrees, 1)).max())
    # From CSC, so sorted; the sources stay the columns.
    return _Part(SparseBlock(thinned.tocsr()), before, dropped, dropped_edges, dangling)


def _columns_of_like_degree(degrees: IntArray) -> list[IntArray]:
    """The columns with edges in groups to sort together, each padded to its highest degree.

    By falling degree: padding then adds a few groups, however unequal the degrees, and a group takes
    BAND_ELEMENTS entries (or one column).
    """
    order: IntArray = np.argsort(-degrees.astype(np.int64), kind="stable")
    order = order[degrees[order] > 0]
    groups = []
    start = 0
    while start < len(order):
        stop = start + max(1, BAND_ELEMENTS // int(degrees[order[start]]))
        groups.append(order[start:stop])
        start = stop
    return groups
