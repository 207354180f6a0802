"""The layer maps that solvers iterate: weighted and modified PageRank of a layered graph."""

from __future__ import annotations

import numpy as np

from graphs.backends import Backend
from graphs.blocks import FloatArray
from graphs.errors import GraphError
from graphs.layered import LayeredGraph
from graphs.operators import BlockOperator, Vector
from graphs.transition import Normalised, Transition, modified_step, normalise, weighted_step

__all__ = ["GraphMap", "ModifiedMap", "WeightedMap"]


class GraphMap:
    """What the two maps share: activations as vectors, operators, and the notes on fallbacks.

    Parameters
    ----------
    graph : LayeredGraph
    backend : Backend
        Gives every block its operator.
    """

    contraction = float("inf")

    def __init__(self, graph: LayeredGraph, backend: Backend) -> None:
        self.graph = graph
        self.backend = backend
        self.n_layers = len(graph.activations)
        self.dtype = backend.arithmetic.dtype
        self.degenerate: dict[int, str] = {}
        self._activations = [backend.arithmetic.vector(_near_one(vector)) for vector in graph.activations]
        self._operators: dict[int, BlockOperator] = {}

    def initial(self) -> Vector:
        """r_0 = a_0 / sum(a_0)."""
        first = normalise(self._activations[0])
        self._note(0, first, "the input activations sum to zero")
        return first.vector

    def uniform(self, layer: int) -> Vector:
        """The uniform vector of a layer."""
        return normalise(self._activations[layer] * 0.0).vector

    def step(self, layer: int, previous: Vector, products: int) -> Vector:
        """r_layer from r_{layer-1}."""
        raise NotImplementedError

    def _operator(self, layer: int, products: int) -> BlockOperator:
        """The operator of a block; kept only where it costs no memory to speak of or will be used again."""
        if layer in self._operators:
            return self._operators[layer]
        block = self.graph.blocks[layer - 1]
        try:
            operator = self.backend.operator(block, products)
        except GraphError as error:
            raise GraphError(f"block {layer}: {error}") from error
        if products > 1 and (block.stored or self.backend.form == "auto"):
            self._operators[layer] = operator
        return operator

    def _note(self, layer: int, result: Normalised, zero: str) -> None:
        if result.fallback:
            self.degenerate[layer] = f"{zero}; {result.fallback} scores stand in"


def _near_one(vector: FloatArray) -> FloatArray:
    """`vector` times the power of two that brings its maximum just below 1.

    Ranks do not depend on the scale of a layer's activations. This one keeps sums and float32 from
    overflowing and small activations from vanishing, without rounding.
    """
    scaled: FloatArray = np.ldexp(vector, -np.frexp(vector.max())[1])
    return scaled


class WeightedMap(GraphMap):
    """r_l = N(gamma P_l r_{l-1} + (1 - gamma) a_l / sum(a_l)); see :func:`graphs.weighted_pagerank`."""

    def __init__(self, graph: LayeredGraph, backend: Backend, gamma: float, theta: float) -> None:
        super().__init__(graph, backend)
        self.gamma = gamma
        self.theta = theta
        # Contracts by gamma while no column dangles; a dangling one makes N non-linear.
        self.contraction = gamma
        self._transitions: dict[int, Transition] = {}

    def step(self, layer: int, previous: Vector, products: int) -> Vector:
        """r_layer from r_{layer-1}; `products` tells how often the layer will be visited."""
        operator = self._operator(layer, products)
        # Only the last visit speaks of the result: an early iterate may be degenerate alone.
        self.degenerate.pop(layer, None)
        try:
            if layer not in self._transitions:
                self._transitions[layer] = Transition(operator, self.theta, self.backend.arithmetic)
                if self._transitions[layer].dangling:
                    self.contraction = float("inf")
            passed = self._transitions[layer].apply(operator, previous)
            activation = self._activations[layer]
            if float(activation.sum()) == 0.0:
                self.degenerate[layer] = "the activations sum to zero; uniform ones stand in"
            result = weighted_step(passed, activation, self.gamma)
        except GraphError as error:
            raise GraphError(f"block {layer}: {error}") from error
        self._note(layer, result, "no mass arrived")
        return result.vector


class ModifiedMap(GraphMap):
    """r_l = N((W_l r_{l-1}) * a_l); see :func:`graphs.modified_pagerank`."""

    def __init__(self, graph: LayeredGraph, backend: Backend, zero_lowest: float) -> None:
        super().__init__(graph, backend)
        self.zero_lowest = zero_lowest

    def step(self, layer: int, previous: Vector, products: int) -> Vector:
        """r_layer from r_{layer-1}; `products` tells how often the layer will be visited."""
        count = int(self.zero_lowest * len(previous))
        if count:
            previous = self.backend.arithmetic.with_lowest_zeroed(previous, count)
        self.degenerate.pop(layer, None)
        activation = self._activations[layer]
        if float(activation.sum()) == 0.0:
            self.degenerate[layer] = "the activations sum to zero; uniform ones stand in"
        try:
            result = modified_step(self._operator(layer, products).matvec(previous), activation)
        except GraphError as error:
            raise GraphError(f"block {layer}: {error}") from error
        self._note(layer, result, "no mass arrived")
        return result.vector
