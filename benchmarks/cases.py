"""The graphs of the benchmarks: chains of real FFNs, random controls of the same size, graphs with cycles, random digraphs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import sparse

from benchmarks import random_graphs
from graphs import BlockDigraph, LayeredGraph, bidirectional_graph, residual_graph
from llmrank.calibration.collect import collect_statistics
from llmrank.cli.demo_models import demo_model
from llmrank.models import FFNs, find_ffns
from llmrank.score.topologies import build_graphs
from llmrank.surgery import checkpoint
from llmrank.text import builtin_texts, tokenise

__all__ = [
    "CYCLIC",
    "gallery_graphs",
    "model_chains",
    "random_control",
    "scipy_bidirectional",
    "scipy_matrix",
    "scipy_residual",
    "shuffled_control",
    "small_chain",
]

CYCLIC: Mapping[str, Callable[[LayeredGraph], BlockDigraph]] = {
    "residual": residual_graph,
    "bidirectional": bidirectional_graph,
}


def model_chains(source: str | os.PathLike[str] | None, depths: list[int]) -> dict[int, LayeredGraph]:
    """Return chains of the first FFNs of a model, by number of FFNs. The graphs view its float32 weights and do not copy them.

    Activations are norms over four sequences of 256 tokens of the built-in text.
    """
    loaded = checkpoint.load(source or demo_model(), dtype="float32")
    ffns = find_ffns(loaded.model)
    sequences = tokenise(builtin_texts()[0], loaded.tokenizer, samples=4, sequence_length=256)
    statistics = collect_statistics(loaded.model, ffns, sequences)
    return {
        depth: build_graphs(FFNs(ffns[:depth]), statistics[:depth], "chained")[0].graph
        for depth in depths
        if depth <= len(ffns)
    }


def small_chain(n_ffns: int, seed: int = 0) -> LayeredGraph:
    """Return a chain of small random FFNs, for smoke tests."""
    return random_graphs.layered([48, *[128, 48] * n_ffns], seed=seed)


def random_control(graph: LayeredGraph, seed: int) -> LayeredGraph:
    """Return a chain of the same sizes, with Gaussian weights and the activations of `graph` in random order."""
    rng = np.random.default_rng(seed)
    weights = [
        tuple(rng.standard_normal(block.shape, dtype=np.float32) for _ in getattr(block, "matrices", (0,)))
        for block in graph.blocks
    ]
    activations = [rng.permutation(vector) for vector in graph.activations]
    return LayeredGraph.from_weights(weights, activations[0], activations[1:], graph.names)


def shuffled_control(graph: LayeredGraph, seed: int) -> LayeredGraph:
    """Return the same chain with the entries of every weight matrix permuted: the distribution stays, the structure does not."""
    rng = np.random.default_rng(seed)
    weights = []
    for layer, block in enumerate(graph.blocks, start=1):
        matrices: Any = getattr(block, "matrices", None) or (graph.block(layer).toarray(),)
        weights.append(tuple(rng.permutation(np.abs(np.asarray(m)).ravel()).reshape(m.shape) for m in matrices))
    return LayeredGraph.from_weights(weights, graph.activations[0], graph.activations[1:], graph.names)


def scipy_matrix(weights: list[tuple[Any, ...]]) -> sparse.csr_array:
    """Return the matrix of the chain (row = target, float64), built from the weights as a user of plain scipy would."""
    sizes = [weights[0][0].shape[1], *(matrices[0].shape[0] for matrices in weights)]
    blocks: list[list[Any]] = [[None] * len(sizes) for _ in sizes]
    for layer, size in enumerate(sizes):
        blocks[layer][layer] = sparse.csr_array((size, size))
    for layer, matrices in enumerate(weights):
        total = sum(np.abs(np.asarray(matrix)).astype(np.float64) for matrix in matrices)
        blocks[layer + 1][layer] = sparse.csr_array(total)
    return sparse.block_array(blocks, format="csr")


def scipy_bidirectional(weights: list[tuple[Any, ...]]) -> sparse.csr_array:
    """Return the matrix of the bidirectional graph, built with plain scipy."""
    forward = scipy_matrix(weights)
    return sparse.csr_array(forward + forward.T)


def scipy_residual(weights: list[tuple[Any, ...]], beta: float = 0.5) -> sparse.csr_array:
    """Return the matrix of the residual graph, built with plain scipy.

    Its weights are shares. It is for chains of FFNs of two layers each, without dangling nodes.
    """
    sizes = [weights[0][0].shape[1], *(matrices[0].shape[0] for matrices in weights)]
    blocks: list[list[Any]] = [[None] * len(sizes) for _ in sizes]
    for layer, matrices in enumerate(weights):
        total = sum(np.abs(np.asarray(matrix)).astype(np.float64) for matrix in matrices)
        share = (1.0 - beta) if layer % 2 == 0 else 1.0
        blocks[layer + 1][layer] = sparse.csr_array(total * (share / total.sum(axis=0)))
    for layer in range(0, len(weights), 2):
        blocks[layer + 2][layer] = beta * sparse.eye_array(sizes[layer], format="csr")
    blocks[0][len(weights)] = sparse.eye_array(sizes[0], format="csr")
    return sparse.block_array(blocks, format="csr")


def gallery_graphs(scale: int, seed: int) -> dict[str, sparse.csr_array]:
    """Return four seeded graphs like those of the GAP suite, of about ``2**scale`` nodes."""
    return {
        "kronecker": random_graphs.kronecker(scale, seed=seed),
        "uniform": random_graphs.uniform(scale, seed=seed),
        "road": random_graphs.road(round(2 ** (scale / 2)), seed=seed),
        "power law": random_graphs.power_law(2**scale, seed=seed),
    }
