"""Graphs for tests: tiny graphs whose PageRank is known on paper, and small seeded graphs of every kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from benchmarks.random_graphs import kronecker, power_law, road, uniform
from tests.graphs.cases import Array


@dataclass(frozen=True, eq=False)
class Tiny:
    """A graph small enough for pencil and paper.

    Attributes
    ----------
    name : str
        A description.
    csr : scipy.sparse.csr_array, shape (n, n), float64
        Edge weights, row = target.
    answer : callable
        ``answer(gamma)`` is its exact PageRank for gamma in [0, 1), (n,) float64 of sum 1, by a formula:
        the solution of ``r = gamma P r + (gamma * d + 1 - gamma) v``, where v is uniform and d is the sum of the scores
        of dangling nodes.

    Examples
    --------
    >>> pair = next(tiny for tiny in TINY if tiny.name == "two nodes, one edge")
    >>> print(pair.answer(0.5))
    [0.4 0.6]
    """

    name: str
    csr: sparse.csr_array
    answer: Callable[[float], Array]


def matrix_of(targets: Array, sources: Array, weights: Array, n_nodes: int) -> sparse.csr_array:
    """Build a CSR matrix with int32 indices, row = target, from distinct edges."""
    coordinates = targets.astype(np.int32), sources.astype(np.int32)
    return sparse.csr_array(sparse.coo_array((weights, coordinates), shape=(n_nodes, n_nodes)))


def _two_rings(sizes: tuple[int, int] = (120, 200), weight: float = 0.1) -> sparse.csr_array:
    """Two directed rings of weight 1, joined by one light edge each way between their first nodes.

    Mass stays in its ring for about ``size / weight`` steps, and the rings themselves are all but
    periodic: many eigenvalues of P lie near the unit circle.
    """
    first, second = (np.arange(size) for size in sizes)
    sources = np.concatenate((first, second + sizes[0], [0, sizes[0]]))
    targets = np.concatenate((np.roll(first, -1), np.roll(second, -1) + sizes[0], [sizes[0], 0]))
    weights = np.concatenate((np.ones(sum(sizes)), [weight, weight]))
    return matrix_of(targets, sources, weights, sum(sizes))


def _empty_rows(n_nodes: int = 400, n_edges: int = 1600, seed: int = 0) -> sparse.csr_array:
    """Edges from one random half of the nodes to another: half the rows and half the columns are empty."""
    rng = np.random.default_rng(seed)
    half = n_nodes // 2
    senders, receivers = rng.permutation(n_nodes)[:half], rng.permutation(n_nodes)[:half]
    targets, sources = rng.choice(receivers, n_edges), rng.choice(senders, n_edges)
    keys = np.unique(targets[targets != sources] * n_nodes + sources[targets != sources])
    return matrix_of(keys // n_nodes, keys % n_nodes, np.ones(len(keys)), n_nodes)


SEEDED: Mapping[str, Callable[[], sparse.csr_array]] = {
    "kronecker": lambda: kronecker(scale=9, edge_factor=8),
    "uniform": lambda: uniform(scale=9, edge_factor=8),
    "road": lambda: road(side=24),
    "power law": lambda: power_law(n_nodes=600),
    "two rings": _two_rings,
    "empty rows": _empty_rows,
}
"""Functions that make graphs of 320 to 600 nodes, by name."""


def _tiny(
    name: str,
    n_nodes: int,
    edges: Sequence[tuple[int, int] | tuple[int, int, float]],
    solution: Callable[[float], Sequence[float] | Array],
) -> Tiny:
    """Build one of the tiny graphs from its edges, (source, target) or (source, target, weight).

    `solution` computes a multiple of x with ``x = gamma P x + 1``. The PageRank is x divided by its sum, because the scores
    of dangling nodes also go to the uniform v.
    """

    def answer(gamma: float) -> Array:
        x = np.asarray(solution(gamma), dtype=np.float64)
        rank: Array = x / x.sum()
        return rank

    sources, targets = (np.array([edge[end] for edge in edges], dtype=np.int64) for end in (0, 1))
    weights = np.array([edge[2] if len(edge) == 3 else 1.0 for edge in edges], dtype=np.float64)
    return Tiny(name, matrix_of(targets, sources, weights, n_nodes), answer)


TINY: tuple[Tiny, ...] = (
    # The one node has all of the score, whether it comes along the self-loop or by teleport.
    _tiny("single node", 1, [], lambda _: [1.0]),
    _tiny("single node, self loop", 1, [(0, 0)], lambda _: [1.0]),
    # No score comes along edges: x = 1.
    _tiny("no edges", 3, [], lambda _: [1.0] * 3),
    # x_0 = 1, x_1 = 1 + g x_0.
    _tiny("two nodes, one edge", 2, [(0, 1)], lambda g: [1.0, 1.0 + g]),
    # x_0 = 1, x_k = 1 + g x_{k-1}: the geometric sum 1 + g + ... + g^k.
    _tiny("path", 6, [(k, k + 1) for k in range(5)], lambda g: (1.0 - g ** np.arange(1.0, 7.0)) / (1.0 - g)),
    # As the path, but the last node keeps its score: x_3 = 1 + g x_2 + g x_3, so x_3 = (1 + g + g^2 + g^3) / (1 - g).
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
    # A path of 3 as above, and a cycle of 4 in which x = 1 + g x: the score of the dangling node goes to both.
    _tiny(
        "two components",
        7,
        [(0, 1), (1, 2), (3, 4), (4, 5), (5, 6), (6, 3)],
        lambda g: [1.0, 1.0 + g, 1.0 + g + g**2, *[1.0 / (1.0 - g)] * 4],
    ),
)
"""Graphs of 1 to 8 nodes with their exact PageRank."""
