"""Graphs for the tests: plain arrays, hypothesis strategies over them, and independent oracles."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import networkx
import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse
from scipy.sparse.linalg import splu

from graphs import LayeredGraph

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """The arguments of `LayeredGraph.from_weights` as float64 arrays."""

    weights: list[Array]
    inputs: Array
    activations: list[Array]

    @property
    def sizes(self) -> tuple[int, ...]:
        return (len(self.inputs), *map(len, self.activations))

    @property
    def dangles(self) -> bool:
        return any(not weight.any(axis=0).all() for weight in self.weights)

    def graph(self, weights: Sequence[Any] | None = None) -> LayeredGraph:
        return LayeredGraph.from_weights(self.weights if weights is None else weights, self.inputs, self.activations)

    def lists(self) -> tuple[list[Any], list[Any], list[Any]]:
        """The same in Python numbers, as the textbook loops take them."""
        return [w.tolist() for w in self.weights], self.inputs.tolist(), [a.tolist() for a in self.activations]

    def without_dangling(self) -> Case:
        weights = [weight.copy() for weight in self.weights]
        for weight in weights:
            for column in np.flatnonzero(~weight.any(axis=0)):
                weight[column % len(weight), column] = 1.0
        return replace(self, weights=weights)


def random_case(seed: int, sizes: Sequence[int], density: float = 1.0) -> Case:
    """A generic case (no ties) whose every column has an edge."""
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((n, m)) * (rng.random((n, m)) < density) for m, n in itertools.pairwise(sizes)]
    activations = [rng.random(size) + 0.1 for size in sizes]
    return Case(weights, activations[0], activations[1:]).without_dangling()


# Zeros are drawn often; no number is near the limits of float32, which have their own tests.
MAGNITUDES = st.one_of(st.just(0.0), st.floats(0.01, 100.0))
SIGNED = st.one_of(st.just(0.0), st.floats(0.01, 100.0), st.floats(-100.0, -0.01))
SHARES = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.0, 1.0))
DAMPINGS = st.floats(0.0, 0.95)


@st.composite
def cases(draw: st.DrawFn, max_blocks: int = 4, max_size: int = 5, min_blocks: int = 1) -> Case:
    """Any layered graph, also with zeros, dangling nodes, zero blocks and layers of zero activations."""
    n_layers = draw(st.integers(min_blocks, max_blocks)) + 1
    sizes = [draw(st.integers(1, max_size)) for _ in range(n_layers)]
    weights = [
        draw(arrays(np.float64, (n, m), elements=SIGNED, fill=st.nothing())) for m, n in itertools.pairwise(sizes)
    ]
    activations = [draw(arrays(np.float64, size, elements=MAGNITUDES, fill=st.nothing())) for size in sizes]
    return Case(weights, activations[0], activations[1:])


def unit(vector: Array) -> Array:
    return vector / vector.sum() if vector.any() else np.full(len(vector), 1.0 / len(vector))


def transition_matrix(weight: Array, theta: float) -> Array:
    """P formed explicitly, column by column."""
    matrix = np.zeros(weight.shape)
    for j in range(weight.shape[1]):
        edges = weight[:, j] != 0
        if edges.any():
            column = np.abs(weight[:, j])
            matrix[:, j] = theta * column / column.sum() + (1 - theta) * edges / edges.sum()
    return matrix


def lu_layers(case: Case, gamma: float, theta: float) -> list[Array]:
    """Sparse LU of u_0 = r_0, u_l = gamma P u_{l-1} + (1 - gamma) v_l sum(u_{l-1}); each layer divided by its sum."""
    offsets = np.concatenate(([0], np.cumsum(case.sizes)))
    system = sparse.lil_array((offsets[-1], offsets[-1]))
    for layer, (weight, activation) in enumerate(zip(case.weights, case.activations, strict=True), start=1):
        rows, columns = slice(*offsets[layer : layer + 2]), slice(*offsets[layer - 1 : layer + 1])
        jump = np.outer(unit(activation), np.ones(weight.shape[1]))
        system[rows, columns] = gamma * transition_matrix(weight, theta) + (1 - gamma) * jump
    right = np.zeros(offsets[-1])
    right[: len(case.inputs)] = unit(case.inputs)
    solution = splu(sparse.csc_array(sparse.eye_array(offsets[-1]) - system)).solve(right)
    return [part / part.sum() for part in np.split(solution, offsets[1:-1])]


def networkx_layers(case: Case, gamma: float, theta: float) -> list[Array]:
    """networkx on the stacked graph; equal to the layered rank only if no node dangles and gamma < 1."""
    digraph = networkx.DiGraph()
    teleport = {(0, k): share for k, share in enumerate(unit(case.inputs))}
    digraph.add_nodes_from(teleport)
    for layer, (weight, activation) in enumerate(zip(case.weights, case.activations, strict=True), start=1):
        teleport |= {(layer, k): (1 - gamma) * share for k, share in enumerate(unit(activation))}
        digraph.add_nodes_from((layer, k) for k in range(len(activation)))
        matrix = transition_matrix(weight, theta)
        digraph.add_weighted_edges_from(
            ((layer - 1, j), (layer, i), matrix[i, j]) for i, j in zip(*np.nonzero(matrix), strict=True)
        )
    # networkx multiplies its tol by the number of nodes.
    tol = 1e-13 / digraph.number_of_nodes()
    rank = networkx.pagerank(digraph, alpha=gamma, personalization=teleport, tol=tol, max_iter=2000)
    return [unit(np.array([rank[layer, k] for k in range(size)])) for layer, size in enumerate(case.sizes)]


def assert_layers_equal(scores: Sequence[Any], expected: Sequence[Any], rtol: float = 1e-10) -> None:
    assert len(scores) == len(expected)
    for layer, (found, wanted) in enumerate(zip(scores, expected, strict=True)):
        wanted = np.asarray(wanted, dtype=np.float64)
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol / 100, err_msg=f"layer {layer}")


def distance(scores: Sequence[Array], expected: Sequence[Array]) -> float:
    """The largest L1 distance of a layer."""
    return max(float(np.abs(a - b).sum()) for a, b in zip(scores, expected, strict=True))


@contextlib.contextmanager
def torch_not_imported() -> Iterator[None]:
    """Behave as in a process without torch, where dense blocks compute in numpy."""
    torch = sys.modules.pop("torch", None)
    try:
        yield
    finally:
        if torch is not None:
            sys.modules["torch"] = torch
