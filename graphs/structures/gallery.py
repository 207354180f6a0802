"""Graphs to try things on: seeded ones in the manner of the GAP suite, and tiny ones whose PageRank is known on paper.

Every matrix is a ``scipy.sparse.csr_array`` of shape (nodes, nodes) with **row = target, column =
source**: float64 weights, int32 indices where they fit, sorted, without duplicates or explicit
zeros. The same arguments give the same graph.

The GAP suite (Beamer, Asanovic and Patterson 2015, arXiv 1508.03619) runs on five graphs: two
synthetic ones, Kron and Urand, which :func:`kronecker` and :func:`uniform` make in any size, and
downloads, for whose traits :func:`road` (large diameter, low degree) and :func:`power_law` (few
nodes draw most edges) stand here.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from graphs.checks import check_share
from graphs.errors import GraphError
from graphs.linalg.blocks import FloatArray, index_dtype
from graphs.structures.layered import LayeredGraph

__all__ = ["SEEDED", "TINY", "Tiny", "kronecker", "layered", "power_law", "road", "uniform"]

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]

# The quadrants of R-MAT as Graph500 and GAP set them; the fourth, d = 0.05, is the rest.
RMAT_A, RMAT_B, RMAT_C = 0.57, 0.19, 0.19

# 2**30 nodes squared still fit the int64 keys by which edges are sorted.
MAX_SCALE = 30
MAX_NODES = 2**MAX_SCALE

# Edges drawn at a time: the buffers of one batch stay in the cache through all its levels.
RMAT_BATCH = 1 << 17


@dataclass(frozen=True, eq=False)
class Tiny:
    """A graph small enough for pencil and paper.

    Attributes
    ----------
    name : str
        What it is.
    csr : scipy.sparse.csr_array, shape (n, n), float64
        Edge weights, row = target.
    answer : callable
        ``answer(gamma)`` is its exact PageRank for gamma in [0, 1), (n,) float64 of sum 1: the
        solution of ``r = gamma P r + (gamma * dangling mass + 1 - gamma) v`` with v uniform, by a
        formula and not by a solve.

    Examples
    --------
    >>> pair = next(tiny for tiny in TINY if tiny.name == "two nodes, one edge")
    >>> print(pair.answer(0.5))
    [0.4 0.6]
    """

    name: str
    csr: sparse.csr_array
    answer: Callable[[float], FloatArray]


def kronecker(scale: int = 10, edge_factor: int = 16, seed: int = 0) -> sparse.csr_array:
    """Draw a Kronecker (R-MAT) digraph with the parameters of Graph500 and GAP's Kron: skewed degrees, small diameter.

    Every edge falls through `scale` levels of quadrants with chances 0.57, 0.19, 0.19 and 0.05;
    then labels are permuted. Repeated edges collapse to weight 1 and self loops are removed, so
    fewer than ``edge_factor * 2**scale`` edges remain (16.1 of 16.8 million at scale 20). Edges
    keep their direction, where GAP also adds their reverses. Many nodes have no edge at all.

    Parameters
    ----------
    scale : int
        log2 of the number of nodes, 1 to 30.
    edge_factor : int
        Edges drawn per node.
    seed : int
        Of numpy's default generator, not negative.

    Returns
    -------
    scipy.sparse.csr_array, shape (2**scale, 2**scale)
        All weights 1.0.

    Raises
    ------
    GraphError
        An argument out of range.

    Notes
    -----
    Cost: `scale` random numbers per drawn edge and one sort; scale 20 takes 5 seconds and
    1 GB on one core. Source: Chakrabarti, Zhan and Faloutsos 2004, "R-MAT: a recursive model
    for graph mining"; parameters from Beamer, Asanovic and Patterson 2015, arXiv 1508.03619.

    Examples
    --------
    >>> graph = kronecker(scale=8)
    >>> graph.shape, float(graph.sum(axis=1).max()) > 5 * graph.nnz / 256
    ((256, 256), True)
    """
    scale = _check_count("scale", scale, 1, MAX_SCALE)
    edge_factor = _check_count("edge_factor", edge_factor, 1)
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
            # Of the upper half the right quadrant is b, of the lower half d.
            target |= point >= np.where(lower, np.float32(RMAT_A + RMAT_B + RMAT_C), np.float32(RMAT_A))
    labels = rng.permutation(n_nodes)
    return _collapsed(labels[targets], labels[sources], n_nodes)


def uniform(scale: int = 10, edge_factor: int = 16, seed: int = 0) -> sparse.csr_array:
    """Draw a uniformly random digraph of the size of :func:`kronecker`, as GAP's Urand: even degrees, small diameter.

    Both ends of every edge are drawn independently and uniformly (Erdos-Renyi with a number of
    edges). Repeated edges collapse to weight 1 and self loops are removed: at edge factor k about
    ``k + k**2 / 2`` of the drawn edges go, however large the graph is.

    Parameters
    ----------
    scale : int
        log2 of the number of nodes, 1 to 30.
    edge_factor : int
        Edges drawn per node.
    seed : int
        Of numpy's default generator, not negative.

    Returns
    -------
    scipy.sparse.csr_array, shape (2**scale, 2**scale)
        All weights 1.0.

    Raises
    ------
    GraphError
        An argument out of range.

    Notes
    -----
    Cost: one sort of the edges. Source: Beamer, Asanovic and Patterson 2015, arXiv 1508.03619.

    Examples
    --------
    >>> graph = uniform(scale=8)
    >>> graph.shape, bool((graph.diagonal() == 0).all())
    ((256, 256), True)
    """
    n_nodes = 2 ** _check_count("scale", scale, 1, MAX_SCALE)
    n_edges = n_nodes * _check_count("edge_factor", edge_factor, 1)
    rng = _generator(seed)
    return _collapsed(rng.integers(n_nodes, size=n_edges), rng.integers(n_nodes, size=n_edges), n_nodes)


def road(side: int = 32, keep: float = 0.95, seed: int = 0) -> sparse.csr_array:
    """Draw a road-like mesh: low degree and a diameter of about ``2 * side``, so news travel slowly.

    A square grid of crossings, node ``side * row + column``, with a street in both directions
    between neighbours. Of the streets, drawn without replacement, ``round(keep * count)`` stay.
    Their lengths are uniform in [0.5, 2), and an edge weighs 1 / length: who stands at a crossing
    prefers the short streets. There are no parallel streets to merge and no self loops; a crossing
    that lost all its streets dangles.

    Parameters
    ----------
    side : int
        Crossings along a side, 2 to 32768.
    keep : float
        Share of the streets that stay, 0 to 1.
    seed : int
        Of numpy's default generator, not negative.

    Returns
    -------
    scipy.sparse.csr_array, shape (side**2, side**2)
        Symmetric; weights in (0.5, 2].

    Raises
    ------
    GraphError
        An argument out of range.

    Notes
    -----
    Cost: linear in the ``2 * side * (side - 1)`` streets, but for a sort. It has the traits of the
    road networks of the GAP suite (Beamer, Asanovic and Patterson 2015, arXiv 1508.03619), whose
    own is a map of the USA.

    Examples
    --------
    >>> road(side=10, keep=0.9).nnz == 2 * round(0.9 * 180)
    True
    """
    side = _check_count("side", side, 2, int(MAX_NODES**0.5))
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
    """Draw a digraph whose in-degrees have a power-law tail, as links on the web, with a tenth of its nodes dangling.

    ``n_nodes // 10`` random nodes dangle; every other one draws `degree` targets, the node of rank k
    with probability proportional to ``k ** (-1 / (exponent - 1))``, so that the share of nodes with
    an in-degree above d falls as ``d ** (1 - exponent)``. Ranks are dealt to the labels at random.
    Repeated edges collapse to weight 1, which flattens the very top, and a self loop goes to the
    node of the next rank instead, so that nobody else dangles.

    Parameters
    ----------
    n_nodes : int
        Number of nodes, 2 to 2**30.
    degree : int
        Targets drawn per source; its out-degree or, after the collapse, a little more than it.
    exponent : float
        Of the density of the in-degrees, above 1; the web has about 2.1.
    seed : int
        Of numpy's default generator, not negative.

    Returns
    -------
    scipy.sparse.csr_array, shape (n_nodes, n_nodes)
        All weights 1.0.

    Raises
    ------
    GraphError
        An argument out of range.

    Notes
    -----
    Cost: one binary search per edge and one sort of the edges.

    Examples
    --------
    >>> graph = power_law(n_nodes=200)
    >>> int((graph.sum(axis=0) == 0).sum())
    20
    """
    n_nodes = _check_count("n_nodes", n_nodes, 2, MAX_NODES)
    degree = _check_count("degree", degree, 1)
    if not (isinstance(exponent, (int, float, np.floating)) and 1.0 < exponent < float("inf")):
        raise GraphError(f"exponent must be a finite number above 1 (the web has about 2.1), got {exponent!r}")
    rng = _generator(seed)
    shares = np.arange(1, n_nodes + 1, dtype=np.float64) ** (-1.0 / (exponent - 1.0))
    sources = np.repeat(rng.permutation(n_nodes)[n_nodes // 10 :], degree)
    targets = rng.choice(n_nodes, size=len(sources), p=shares / shares.sum())
    targets = np.where(targets == sources, (targets + 1) % n_nodes, targets)
    labels = rng.permutation(n_nodes)
    return _collapsed(labels[targets], labels[sources], n_nodes)


def layered(sizes: Sequence[int], density: float = 1.0, seed: int = 0) -> LayeredGraph:
    """Draw a control FFN: a layered graph of the shape of a network, with nothing learnt in it.

    Weights are absolute standard normal numbers, none of them zero, and activations lognormal
    (0, 1). No source dangles: one that drew no edge is given one to a random target.

    Parameters
    ----------
    sizes : sequence of L+1 int
        Nodes in every layer, the inputs first; at least two layers of at least one node.
    density : float
        Share of the possible edges, 0 to 1, drawn without replacement before bare sources are given
        theirs. At 1 blocks are dense float32, below 1 CSR with float64 weights.
    seed : int
        Of numpy's default generator, not negative.

    Returns
    -------
    LayeredGraph
        L blocks, the l-th of shape (sizes[l], sizes[l - 1]).

    Raises
    ------
    GraphError
        An argument out of range.

    Notes
    -----
    Cost: linear in the entries of a dense block. A sparse one is sorted, and for densities above a
    twentieth numpy needs 8 bytes per possible edge while it draws.

    Examples
    --------
    >>> layered([8, 32, 8])
    LayeredGraph(3 layers: 8 -> 32 -> 8 nodes, 48 nodes, 512 edges, density 1)
    """
    try:
        counts = [_check_count("every one of sizes", size, 1) for size in sizes]
    except TypeError as error:
        raise GraphError(f"sizes must be a sequence of integers, one per layer, got {sizes!r}") from error
    if len(counts) < 2:
        raise GraphError(f"expected at least two layers, the inputs and one more, got sizes {counts}")
    density = check_share("density", density)
    rng = _generator(seed)
    weights = [
        _dense_block(rng, n_targets, n_sources) if density == 1 else _sparse_block(rng, n_targets, n_sources, density)
        for n_sources, n_targets in itertools.pairwise(counts)
    ]
    inputs, *activations = [rng.lognormal(size=count) for count in counts]
    return LayeredGraph.from_weights(weights, inputs, activations)


def _dense_block(rng: np.random.Generator, n_targets: int, n_sources: int) -> FloatArray:
    weights = rng.standard_normal((n_targets, n_sources), dtype=np.float32)
    np.abs(weights, out=weights)
    # float32 draws zero once in some ten million, which would be a missing edge.
    np.maximum(weights, np.finfo(np.float32).tiny, out=weights)
    return weights


def _sparse_block(rng: np.random.Generator, n_targets: int, n_sources: int, density: float) -> sparse.csr_array:
    capacity = n_targets * n_sources
    drawn = rng.choice(capacity, size=round(density * capacity), replace=False, shuffle=False)
    bare = np.flatnonzero(np.bincount(drawn % n_sources, minlength=n_sources) == 0)
    given = rng.integers(n_targets, size=len(bare)) * n_sources + bare
    keys = np.sort(np.concatenate((drawn, given)))
    weights = np.maximum(np.abs(rng.standard_normal(len(keys))), np.finfo(np.float64).tiny)
    return _from_keys(keys, weights, n_targets, n_sources)


def _from_keys(keys: IntArray, weights: FloatArray, n_targets: int, n_sources: int) -> sparse.csr_array:
    """CSR of sorted, distinct keys ``target * n_sources + source``; both numbers of nodes are below 2**31."""
    indptr = np.searchsorted(keys, np.arange(n_targets + 1, dtype=np.int64) * n_sources)
    kind = index_dtype(n_sources, len(keys))
    return sparse.csr_array(
        (weights, (keys % n_sources).astype(kind), indptr.astype(kind)), shape=(n_targets, n_sources)
    )


def _collapsed(targets: IntArray, sources: IntArray, n_nodes: int) -> sparse.csr_array:
    """CSR of weights 1: repeated edges collapse, self loops go."""
    keys = targets.astype(np.int64) * n_nodes
    keys += sources
    keys = keys[targets != sources]
    keys.sort()
    keys = keys[np.diff(keys, prepend=-1) != 0]
    return _from_keys(keys, np.ones(len(keys)), n_nodes, n_nodes)


def _weighted(targets: IntArray, sources: IntArray, weights: FloatArray, n_nodes: int) -> sparse.csr_array:
    """CSR of distinct edges."""
    keys = targets.astype(np.int64) * n_nodes + sources
    order = np.argsort(keys)
    return _from_keys(keys[order], weights[order], n_nodes, n_nodes)


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(_check_count("seed", seed, 0))


def _check_count(name: str, value: Any, least: int, most: int | None = None) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or (most is not None and number > most):
        wanted = f">= {least}" if most is None else f"from {least} to {most}"
        raise GraphError(f"{name} must be an integer {wanted}, got {value!r}")
    return number


def _two_rings(sizes: tuple[int, int] = (120, 200), weight: float = 0.1) -> sparse.csr_array:
    """Two directed rings of weight 1, joined by one light edge each way between their first nodes.

    Mass stays in its ring for about ``size / weight`` steps, and the rings themselves are all but
    periodic: many eigenvalues of P lie near the unit circle.
    """
    first, second = (np.arange(size) for size in sizes)
    sources = np.concatenate((first, second + sizes[0], [0, sizes[0]]))
    targets = np.concatenate((np.roll(first, -1), np.roll(second, -1) + sizes[0], [sizes[0], 0]))
    weights = np.concatenate((np.ones(sum(sizes)), [weight, weight]))
    return _weighted(targets, sources, weights, sum(sizes))


def _empty_rows(n_nodes: int = 400, n_edges: int = 1600, seed: int = 0) -> sparse.csr_array:
    """Edges from one random half of the nodes to another: half the rows and half the columns are empty."""
    rng = _generator(seed)
    half = n_nodes // 2
    senders, receivers = rng.permutation(n_nodes)[:half], rng.permutation(n_nodes)[:half]
    return _collapsed(rng.choice(receivers, n_edges), rng.choice(senders, n_edges), n_nodes)


SEEDED: Mapping[str, Callable[[], sparse.csr_array]] = MappingProxyType(
    {
        "kronecker": lambda: kronecker(scale=9, edge_factor=8),
        "uniform": lambda: uniform(scale=9, edge_factor=8),
        "road": lambda: road(side=24),
        "power law": lambda: power_law(n_nodes=600),
        "two rings": _two_rings,
        "empty rows": _empty_rows,
    }
)
"""Instances of 320 to 600 nodes for tests: name -> maker."""


def _tiny(
    name: str,
    n_nodes: int,
    edges: Sequence[tuple[int, int] | tuple[int, int, float]],
    solution: Callable[[float], Sequence[float] | FloatArray],
) -> Tiny:
    """Build one of the tiny graphs from its edges, (source, target) or (source, target, weight).

    `solution` gives any multiple of x with ``x = gamma P x + 1``; the PageRank is x over its sum,
    because what dangles returns along the uniform v as the jump does.
    """

    def answer(gamma: float) -> FloatArray:
        x = np.asarray(solution(check_share("gamma", gamma, below_one=True)), dtype=np.float64)
        rank: FloatArray = x / x.sum()
        return rank

    sources, targets = (np.array([edge[end] for edge in edges], dtype=np.int64) for end in (0, 1))
    weights = np.array([edge[2] if len(edge) == 3 else 1.0 for edge in edges], dtype=np.float64)
    return Tiny(name, _weighted(targets, sources, weights, n_nodes), answer)


TINY: tuple[Tiny, ...] = (
    # One node holds all the mass, whether it comes by the loop or by the jump.
    _tiny("single node", 1, [], lambda _: [1.0]),
    _tiny("single node, self loop", 1, [(0, 0)], lambda _: [1.0]),
    # Nothing passes: x = 1.
    _tiny("no edges", 3, [], lambda _: [1.0] * 3),
    # x_0 = 1, x_1 = 1 + g x_0.
    _tiny("two nodes, one edge", 2, [(0, 1)], lambda g: [1.0, 1.0 + g]),
    # x_0 = 1, x_k = 1 + g x_{k-1}: the geometric sum 1 + g + ... + g^k.
    _tiny("path", 6, [(k, k + 1) for k in range(5)], lambda g: (1.0 - g ** np.arange(1.0, 7.0)) / (1.0 - g)),
    # As the path, but the last keeps its own: x_3 = 1 + g x_2 + g x_3, so x_3 = (1 + g + g^2 + g^3) / (1 - g).
    _tiny(
        "path into a trap",
        4,
        [(0, 1), (1, 2), (2, 3), (3, 3)],
        lambda g: [1.0, 1.0 + g, 1.0 + g + g**2, (1.0 + g + g**2 + g**3) / (1.0 - g)],
    ),
    # By symmetry all x are equal.
    _tiny("directed cycle", 5, [(k, (k + 1) % 5) for k in range(5)], lambda _: [1.0] * 5),
    _tiny("complete", 4, list(itertools.permutations(range(4), 2)), lambda _: [1.0] * 4),
    # With s = 3/4 the share of 0 -> 1 and t = 2/5 that of 1 -> 0, r_0 + r_1 = 1 and
    # r_0 = g (1 - s) r_0 + g t r_1 + (1 - g) / 2: r_0 ~ g t + (1 - g) / 2, and r_1 ~ g s + (1 - g) / 2.
    _tiny(
        "weighted two-cycle, self loops",
        2,
        [(0, 0, 1.0), (0, 1, 3.0), (1, 0, 2.0), (1, 1, 3.0)],
        lambda g: [g * 2 / 5 + (1.0 - g) / 2, g * 3 / 4 + (1.0 - g) / 2],
    ),
    # Leaves have x = 1, the hub 1 + 7 g.
    _tiny("star in", 8, [(k, 0) for k in range(1, 8)], lambda g: [1.0 + 7 * g, *[1.0] * 7]),
    # The hub has x = 1, the leaf at the end of weight k of 10 has 1 + g k / 10.
    _tiny(
        "weighted star out",
        5,
        [(0, k, float(k)) for k in range(1, 5)],
        lambda g: [1.0, *(1.0 + g * k / 10 for k in range(1, 5))],
    ),
    # Hub h = 1 + 7 g l, leaf l = 1 + g h / 7: h (1 - g^2) = 1 + 7 g and l (1 - g^2) = 1 + g / 7.
    _tiny(
        "star both ways",
        8,
        [edge for k in range(1, 8) for edge in ((0, k), (k, 0))],
        lambda g: [1.0 + 7 * g, *[1.0 + g / 7] * 7],
    ),
    # Each a = 1 + g 3 b / 2, each b = 1 + g 2 a / 3: a (1 - g^2) = 1 + 3 g / 2 and b (1 - g^2) = 1 + 2 g / 3.
    _tiny(
        "complete bipartite",
        5,
        [edge for a in (0, 1) for b in (2, 3, 4) for edge in ((a, b), (b, a))],
        lambda g: [*[1.0 + 3 * g / 2] * 2, *[1.0 + 2 * g / 3] * 3],
    ),
    # Leaves have x = 1, their parents 1 + 2 g, the root 1 + 2 g (1 + 2 g).
    _tiny(
        "tree to its root",
        7,
        [(k, (k - 1) // 2) for k in range(1, 7)],
        lambda g: [1.0 + 2 * g + 4 * g**2, *[1.0 + 2 * g] * 2, *[1.0] * 4],
    ),
    # A path of 3 as above, and a cycle of 4 in which x = 1 + g x: what dangles on the path returns to both.
    _tiny(
        "two components",
        7,
        [(0, 1), (1, 2), (3, 4), (4, 5), (5, 6), (6, 3)],
        lambda g: [1.0, 1.0 + g, 1.0 + g + g**2, *[1.0 / (1.0 - g)] * 4],
    ),
)
"""Graphs of 1 to 8 nodes with their exact PageRank."""
