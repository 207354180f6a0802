"""PageRank of graphs of all kinds, against a dense solution in float64: the error is within the bound that is returned."""

from __future__ import annotations

import itertools
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from graphs import BlockDigraph, LayeredGraph, bidirectional_graph, pagerank, residual_graph
from graphs.structures.digraph import as_digraph, teleport_vector
from tests.graphs.cases import Array
from tests.hostile.harness import Attack, Failed

__all__ = ["RANKS"]

GAMMAS = (0.0, 0.3, 0.5, 0.85, 0.9, 0.99, 0.999)
ANY_GRAPH = ("auto", "power", "aitken", "quadratic", "anderson", "gmres", "bicgstab", "lu")
SWEEPS = ("gauss-seidel", "gauss-seidel-quadratic")
# Weights near the limits of float32 and far beyond, and those of ordinary graphs.
SPREADS = (0.0, 1.0, 5.0, 70.0)
# Of a distribution. A larger allowance would hide an error.
MOST_ROUNDOFF = 0.01
# Steps; those of the solvers that restart are cycles of many products.
MAX_ITER, MAX_CYCLES = 20_000, 100


def digraph(rng: np.random.Generator, spread: float) -> sparse.csr_array:
    """Return a digraph with dangling nodes, self-loops, parts that nothing joins, and nodes without any edge."""
    n_nodes = int(rng.choice([1, 2, 3, 7, 30, 100, 128, 129, 200]))
    n_edges = int(rng.integers(0, 6 * n_nodes + 1))
    targets, sources = rng.integers(0, n_nodes, (2, n_edges))
    if rng.random() < 0.3:  # all edges lead forward
        targets, sources = np.maximum(targets, sources), np.minimum(targets, sources)
    if rng.random() < 0.3:  # two parts
        sources = sources % max(1, n_nodes // 2) + (targets >= n_nodes // 2) * (n_nodes // 2)
        sources = np.minimum(sources, n_nodes - 1)
    weights = np.exp(spread * rng.standard_normal(n_edges))
    # Parallel edges add up.
    return sparse.csr_array(sparse.coo_array((weights, (targets, sources)), shape=(n_nodes, n_nodes)))


def layered(rng: np.random.Generator, spread: float) -> LayeredGraph:
    """Return a chain of FFNs, whose blocks are dense or sparse with zeros, and some of whose activations are all zero."""
    width = int(rng.integers(1, 12))
    sizes = [width, *(size for _ in range(rng.integers(1, 4)) for size in (int(rng.integers(1, 24)), width))]
    weights: list[Any] = []
    for n_sources, n_targets in itertools.pairwise(sizes):
        block = np.exp(spread * rng.standard_normal((n_targets, n_sources))) * (
            rng.random((n_targets, n_sources)) < 0.8
        )
        weights.append(sparse.csr_array(block) if rng.random() < 0.5 else block)
    activations = [rng.random(size) * (rng.random() < 0.9) for size in sizes]
    return LayeredGraph.from_weights(weights, activations[0], activations[1:])


def exact(graph: BlockDigraph, gamma: float, teleport: Array) -> Array:
    """Solve the equation by LU, with extended precision where weights are scaled."""
    matrix = graph.to_scipy().toarray().astype(np.longdouble)
    matrix /= np.maximum(matrix.max(axis=0), np.finfo(np.longdouble).tiny)
    strength = matrix.sum(axis=0)
    p = np.divide(matrix, strength, out=np.zeros_like(matrix), where=strength > 0).astype(np.float64)
    solution = np.linalg.solve(np.eye(len(p)) - gamma * p, teleport)
    return np.asarray(solution / solution.sum(axis=0))


def case(_shared: None, rng: random.Random, _folder: Path) -> str:
    """Rank one graph by one solver."""
    generator = np.random.default_rng(rng.getrandbits(64))
    kind, spread, gamma = rng.choice(["digraph", "residual", "bidirectional"]), rng.choice(SPREADS), rng.choice(GAMMAS)
    if kind == "digraph":
        graph: Any = digraph(generator, spread)
    else:
        make = residual_graph if kind == "residual" else bidirectional_graph
        graph = make(layered(generator, min(spread, 5.0)))
    blocks = as_digraph(graph)
    columns = rng.choice([(), (), (3,)])
    teleport: Any = None
    if rng.random() < 0.5:
        teleport = generator.random((blocks.n_nodes, *columns)) * (generator.random((blocks.n_nodes, *columns)) < 0.7)
        teleport[generator.integers(blocks.n_nodes)] += 1.0
    one_layer = len(blocks.layer_sizes) == 1
    solver = rng.choice(ANY_GRAPH + (SWEEPS if one_layer else SWEEPS[:1]))
    dtype = rng.choice(["float64", "float64", "float32"])
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # that it has not converged: what it returns is judged all the same
        found = pagerank(
            graph,
            gamma,
            teleport,
            solver=solver,
            dtype=dtype,
            max_iter=MAX_CYCLES if solver in ("gmres", "bicgstab") else MAX_ITER,
            tol=10.0 ** rng.uniform(-13, -4),
        )
    expected = exact(blocks, gamma, teleport_vector(blocks, teleport))
    scores = np.concatenate(found.scores).astype(np.float64)
    error = float(np.abs(scores - expected).sum(axis=0).max())
    # Round-off of sums in this precision, which the equation multiplies by at most 1 / (1 - gamma); LU has as much.
    roundoff = 8.0 * (blocks.n_nodes + 8) * float(np.finfo(dtype).eps) / (1.0 - gamma)
    if roundoff > MOST_ROUNDOFF:
        return "not judged: the precision is too low for this gamma"
    bound = float(found.error_bound)
    if not np.isfinite(scores).all() or bool((scores < 0.0).any()) or abs(scores.sum(axis=0) - 1.0).max() > roundoff:
        raise Failed(f"{solver} on {kind}: the scores are no distribution")
    if error > bound + roundoff:
        raise Failed(
            f"{solver}, {dtype}, {kind} of {blocks.n_nodes} nodes, gamma {gamma}: error {error:.2e}, bound {bound:.2e}"
        )
    return "within the bound" if found.converged else "not converged, within the bound"


RANKS = Attack("ranks", "PageRank by every solver, against LU in float64", lambda _: None, case)
