"""Random graphs for tests and benchmarks, in the style of the GAP suite.

Every matrix is a ``scipy.sparse.csr_array`` of shape (nodes, nodes) with **row = target, column = source**: float64 weights,
int32 indices where they fit, sorted, without duplicates or explicit zeros. The same arguments give the same graph.

Source: Beamer, Asanovic and Patterson 2015, arXiv 1508.03619. :func:`kronecker` and :func:`uniform` make graphs like Kron and
Urand of the suite; :func:`road` and :func:`power_law` imitate its maps of roads and of the web.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from graphs.checks import check_count, check_share
from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray, index_dtype
from graphs.structures.layered import LayeredGraph

__all__ = ["kronecker", "layered", "power_law", "road", "uniform"]

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]

# R-MAT draws an edge by its quadrant of the adjacency matrix. These are the probabilities of three quadrants in Graph500 and GAP;
# the probability of the fourth is 0.05.
RMAT_A, RMAT_B, RMAT_C = 0.57, 0.19, 0.19

# Edges are sorted by keys below the square of the number of nodes, which have to fit in int64.
MAX_SCALE = 30
MAX_NODES = 2**MAX_SCALE

# Number of edges drawn together; their buffers stay in the cache.
RMAT_BATCH = 1 << 17


def kronecker(scale: int = 10, edge_factor: int = 16, seed: int = 0) -> sparse.csr_array:
    """Draw a Kronecker (R-MAT) digraph with the parameters of Graph500 and GAP's Kron: skewed degrees, small diameter.

    Every edge is drawn in `scale` levels. The first level draws a quadrant of the adjacency matrix, and each following level
    draws a quadrant of that quadrant, with probabilities 0.57, 0.19, 0.19 and 0.05; in the end one entry remains. Then node
    numbers are permuted. Repeated edges become one edge of weight 1, and self-loops are removed. GAP also adds the reverse of
    every edge.

    Cost: `scale` random numbers per drawn edge and one sort. Source: Chakrabarti, Zhan and Faloutsos 2004, "R-MAT: a recursive
    model for graph mining".

    Parameters
    ----------
    scale : int
        log2 of the number of nodes, 1 to 30.
    edge_factor : int
        Number of edges drawn per node.
    seed : int
        Seed of numpy's default generator, not negative.

    Returns
    -------
    scipy.sparse.csr_array, shape (2**scale, 2**scale)
        All weights 1.0.

    Raises
    ------
    GraphError
        An argument is out of range.

    Examples
    --------
    >>> graph = kronecker(scale=8)
    >>> graph.shape, float(graph.sum(axis=1).max()) > 5 * graph.nnz / 256
    ((256, 256), True)
    """
    scale = check_count("scale", scale, 1, MAX_SCALE)
    edge_factor = check_count("edge_factor", edge_factor, 1)
    rng = _generator(seed)
    n_nodes = 2**scale
    n_edges = edge_factor * n_nodes
    targets, sources = np.zeros(n_edges, np.int32), np.zeros(n_edges, np.int32)
    for start in range(0, n_edges, RMAT_BATCH):
        target, source = targets[start : start + RMAT_BATCH], sources[start : start + RMAT_BATCH]
        for _ in range(scale):
            point = rng.random(len(target), dtype=np.float32)
            lower = point >= RMAT_A + RMAT_B
            target <<= 1
            source <<= 1
            source |= lower
            # In R-MAT, rows are sources and columns are targets. Quadrants a and b are the upper half, b and d the right half.
            target |= point >= np.where(lower, np.float32(RMAT_A + RMAT_B + RMAT_C), np.float32(RMAT_A))
    labels = rng.permutation(n_nodes)
    return _unweighted(labels[targets], labels[sources], n_nodes)


def uniform(scale: int = 10, edge_factor: int = 16, seed: int = 0) -> sparse.csr_array:
    """Draw a uniform random digraph like GAP's Urand: degrees near their mean, small diameter.

    Both ends of every edge are drawn independently and uniformly (Erdos-Renyi with a fixed number of edges). Repeated edges
    become one edge of weight 1, and self-loops are removed. Cost: one sort of the edges.

    Parameters
    ----------
    scale, edge_factor, seed : int
        As for :func:`kronecker`.

    Returns
    -------
    scipy.sparse.csr_array, shape (2**scale, 2**scale)
        All weights 1.0.

    Raises
    ------
    GraphError
        An argument is out of range.

    Examples
    --------
    >>> graph = uniform(scale=8)
    >>> graph.shape, bool((graph.diagonal() == 0).all())
    ((256, 256), True)
    """
    n_nodes = 2 ** check_count("scale", scale, 1, MAX_SCALE)
    n_edges = n_nodes * check_count("edge_factor", edge_factor, 1)
    rng = _generator(seed)
    return _unweighted(rng.integers(n_nodes, size=n_edges), rng.integers(n_nodes, size=n_edges), n_nodes)


def road(side: int = 32, keep: float = 0.95, seed: int = 0) -> sparse.csr_array:
    """Draw a grid of streets like a road network, with low degrees and a large diameter.

    The nodes are the crossings of a square grid, node ``side * row + column``, with a street in both directions between
    neighbours. A random selection of ``round(keep * count)`` of the ``count`` streets remains. Their lengths are uniform in
    [0.5, 2), and the weight of an edge is 1 / length. A crossing without streets is a dangling node. Cost: one sort of at most
    ``4 * side * (side - 1)`` edges.

    Parameters
    ----------
    side : int
        Number of crossings along a side, 2 to 32768.
    keep : float
        Share of the streets that remain, 0 to 1.
    seed : int
        As for :func:`kronecker`.

    Returns
    -------
    scipy.sparse.csr_array, shape (side**2, side**2)
        Symmetric; weights in (0.5, 2].

    Raises
    ------
    GraphError
        An argument is out of range.

    Examples
    --------
    >>> road(side=10, keep=0.9).nnz == 2 * round(0.9 * 180)
    True
    """
    side = check_count("side", side, 2, int(MAX_NODES**0.5))
    keep = check_share("keep", keep)
    rng = _generator(seed)
    crossing = np.arange(side * side).reshape(side, side)
    one = np.concatenate((crossing[:, :-1].ravel(), crossing[:-1].ravel()))
    other = np.concatenate((crossing[:, 1:].ravel(), crossing[1:].ravel()))
    kept = rng.permutation(len(one))[: round(keep * len(one))]
    one, other = one[kept], other[kept]
    weights = 1.0 / rng.uniform(0.5, 2.0, len(kept))
    return _weighted(np.concatenate((other, one)), np.concatenate((one, other)), np.tile(weights, 2), side * side)


def power_law(n_nodes: int = 1024, degree: int = 8, exponent: float = 2.1, seed: int = 0) -> sparse.csr_array:
    """Draw a digraph whose in-degrees have a power-law tail, like links on the web.

    ``n_nodes // 10`` random nodes are dangling: they have no outgoing edges. Every other node draws `degree` targets; the k-th
    most popular node is drawn with a probability proportional to ``k ** (-1 / (exponent - 1))``. So the share of nodes with an
    in-degree above d decreases like ``d ** (1 - exponent)``. Repeated edges become one edge of weight 1. A self-loop is replaced
    by an edge to the next most popular node. Cost: one binary search per edge and one sort of the edges.

    Parameters
    ----------
    n_nodes : int
        Number of nodes, 2 to 2**30.
    degree : int
        Number of targets drawn for each source.
    exponent : float
        Exponent of the density of in-degrees, above 1; for the web it is about 2.1.
    seed : int
        As for :func:`kronecker`.

    Returns
    -------
    scipy.sparse.csr_array, shape (n_nodes, n_nodes)
        All weights 1.0.

    Raises
    ------
    GraphError
        An argument is out of range.

    Examples
    --------
    >>> graph = power_law(n_nodes=200)
    >>> int((graph.sum(axis=0) == 0).sum())
    20
    """
    n_nodes = check_count("n_nodes", n_nodes, 2, MAX_NODES)
    degree = check_count("degree", degree, 1)
    if not (isinstance(exponent, (int, float, np.floating)) and 1.0 < exponent < float("inf")):
        raise GraphError(f"exponent must be a finite number above 1 (that of the web is about 2.1), got {exponent!r}")
    rng = _generator(seed)
    shares = np.arange(1, n_nodes + 1, dtype=np.float64) ** (-1.0 / (exponent - 1.0))
    sources = np.repeat(rng.permutation(n_nodes)[n_nodes // 10 :], degree)
    targets = rng.choice(n_nodes, size=len(sources), p=shares / shares.sum())
    targets = np.where(targets == sources, (targets + 1) % n_nodes, targets)
    labels = rng.permutation(n_nodes)
    return _unweighted(labels[targets], labels[sources], n_nodes)


def layered(sizes: Sequence[int], density: float = 1.0, seed: int = 0) -> LayeredGraph:
    """Draw a random layered graph, as a control for the graph of a trained FFN of the same shape.

    Weights are absolute standard normal numbers, none of them zero, and activations are lognormal (0, 1). No source dangles: a
    source without an edge gets one to a random target.

    Cost: one pass over a dense block, one sort of the edges of a sparse block. At a density above 1/20, the draw of a sparse
    block needs 8 bytes per possible edge.

    Parameters
    ----------
    sizes : sequence of L+1 int
        Size of every layer, from the inputs on; at least two layers of at least one node.
    density : float
        Share of the possible edges that is drawn, 0 to 1, before sources without an edge get one. At 1, blocks are dense
        float32; below 1, they are CSR with float64 weights.
    seed : int
        Seed of numpy's default generator, not negative.

    Returns
    -------
    LayeredGraph
        L blocks.

    Raises
    ------
    GraphError
        An argument is out of range.

    Examples
    --------
    >>> layered([8, 32, 8])
    LayeredGraph(3 layers: 8 -> 32 -> 8 nodes, 48 nodes, 512 edges, density 1)
    """
    try:
        layer_sizes = [check_count("each of sizes", size) for size in sizes]
    except TypeError as error:
        raise GraphError(f"sizes must be a sequence of integers, one per layer, got {sizes!r}") from error
    if len(layer_sizes) < 2:
        raise GraphError(f"expected sizes of at least two layers, got {layer_sizes}")
    density = check_share("density", density)
    rng = _generator(seed)
    weights = [
        _dense_block(rng, n_targets, n_sources) if density == 1 else _sparse_block(rng, n_targets, n_sources, density)
        for n_sources, n_targets in itertools.pairwise(layer_sizes)
    ]
    inputs, *activations = [rng.lognormal(size=size) for size in layer_sizes]
    return LayeredGraph.from_weights(weights, inputs, activations)


def _dense_block(rng: np.random.Generator, n_targets: int, n_sources: int) -> FloatArray:
    weights = rng.standard_normal((n_targets, n_sources), dtype=np.float32)
    np.abs(weights, out=weights)
    # Some float32 draws are zero, which would be a missing edge.
    np.maximum(weights, np.finfo(np.float32).tiny, out=weights)
    return weights


def _sparse_block(rng: np.random.Generator, n_targets: int, n_sources: int, density: float) -> sparse.csr_array:
    capacity = n_targets * n_sources
    drawn = rng.choice(capacity, size=round(density * capacity), replace=False, shuffle=False)
    dangling = np.flatnonzero(np.bincount(drawn % n_sources, minlength=n_sources) == 0)
    added = rng.integers(n_targets, size=len(dangling)) * n_sources + dangling
    keys = np.sort(np.concatenate((drawn, added)))
    weights = np.maximum(np.abs(rng.standard_normal(len(keys))), np.finfo(np.float64).tiny)
    return _from_keys(keys, weights, n_targets, n_sources)


def _from_keys(keys: IntArray, weights: FloatArray, n_targets: int, n_sources: int) -> sparse.csr_array:
    """Build a CSR from sorted, distinct int64 keys ``target * n_sources + source``."""
    indptr = np.searchsorted(keys, np.arange(n_targets + 1, dtype=np.int64) * n_sources)
    dtype = index_dtype(n_sources, len(keys))
    return sparse.csr_array(
        (weights, (keys % n_sources).astype(dtype), indptr.astype(dtype)), shape=(n_targets, n_sources)
    )


def _unweighted(targets: IntArray, sources: IntArray, n_nodes: int) -> sparse.csr_array:
    """Build a CSR of weights 1, without self-loops; repeated edges become one."""
    keys = targets.astype(np.int64) * n_nodes
    keys += sources
    keys = keys[targets != sources]
    keys.sort()
    keys = keys[np.diff(keys, prepend=-1) != 0]
    return _from_keys(keys, np.ones(len(keys)), n_nodes, n_nodes)


def _weighted(targets: IntArray, sources: IntArray, weights: FloatArray, n_nodes: int) -> sparse.csr_array:
    keys = targets.astype(np.int64) * n_nodes + sources
    order = np.argsort(keys)
    return _from_keys(keys[order], weights[order], n_nodes, n_nodes)


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(check_count("seed", seed, 0))
