"""The layer maps that solvers iterate: weighted and modified PageRank of a layered graph."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from graphs.errors import GraphError
from graphs.linalg.backends import Backend
from graphs.linalg.blocks import FloatArray
from graphs.linalg.layer_vectors import State
from graphs.linalg.operators import BlockOperator, Vector
from graphs.linalg.transition import Normalised, Transition, modified_step, normalise, weighted_step
from graphs.solvers.problem import SweptState
from graphs.structures.layered import LayeredGraph

__all__ = ["LayeredProblem", "ModifiedPageRankProblem", "WeightedPageRankProblem"]


class LayeredProblem:
    """What the two maps share: layer 0 is given, layer l follows from layer l-1 alone.

    Parameters
    ----------
    graph : LayeredGraph
    backend : Backend
        Gives every block its operator.
    products : int
        About how often every block will be multiplied. Above 1 operators are kept.
    """

    acyclic = True
    linear = False

    def __init__(self, graph: LayeredGraph, backend: Backend, products: int) -> None:
        self.graph = graph
        self.backend = backend
        self.products = products
        self.n_layers = len(graph.activations)
        self.n_blocks = self.n_layers - 1
        self.depth = self.n_layers - 1
        self.dtype = backend.arithmetic.dtype
        self.degenerate: dict[int, str] = {}
        self._activations = [backend.arithmetic.vector(_near_one(vector)) for vector in graph.activations]
        self._operators: dict[int, BlockOperator] = {}

    def split(self, layers: Sequence[FloatArray]) -> State:
        """Numpy arrays by layer as a state; layer 0 is given."""
        return [self._first(), *(self.backend.arithmetic.vector(vector) for vector in layers[1:])]

    def start(self) -> State:
        """r_0 and uniform layers."""
        return [self._first(), *(normalise(vector * 0.0).vector for vector in self._activations[1:])]

    def apply(self, state: State) -> State:
        """Every layer from the given state."""
        return [self._first(), *(self.step(layer, state[layer - 1]) for layer in range(1, self.n_layers))]

    def sweep(self, state: State, teleporting: Vector) -> SweptState:
        """Every layer from the one before: the fixed point."""
        found = [self._first()]
        for layer in range(1, self.n_layers):
            found.append(self.step(layer, found[-1]))
        return SweptState(found, teleporting, 0.0)

    def residual(self, changes: Sequence[float]) -> float:
        """The largest over the layers, each of mass 1."""
        return float(np.max(changes))

    def error_bounds(self, changes: Sequence[float], steps: int) -> list[float]:
        """L1 error of F(r) in every layer.

        The layers up to `steps` are exact. Beyond, r_l = N(gamma P r_{l-1} + ...) is off by gamma times what the
        r_{l-1} that it was made of is off, which is the error of F(r)_{l-1} and its last change; where N
        is not linear (or for the modified rank) nothing is known.
        """
        found = [0.0]
        for layer in range(1, self.n_layers):
            before = found[-1] + changes[layer - 1] if layer > steps else 0.0
            factor = self._contraction(layer)
            # From an exact layer follows an exact one, whatever the map; and nothing follows from any where gamma is 0.
            found.append(factor * before if before and factor else 0.0)
        return found

    def row_maxima(self) -> list[FloatArray] | None:
        """max_j P_ij of every node by layer, or None where no bound needs it."""
        return None

    @property
    def roundoff(self) -> float:
        """Relative error of a score by rounding: an allowance, for sums of as many terms as a layer has nodes."""
        return float(np.finfo(self.dtype).eps) * (max(self.graph.layers) + 16) * self.n_layers

    def step(self, layer: int, previous: Vector) -> Vector:
        """r_layer from r_{layer-1}."""
        raise NotImplementedError

    def _contraction(self, layer: int) -> float:
        """By how much the step into `layer` shrinks L1 distances at the least; inf where that is not known."""
        return math.inf

    def _first(self) -> Vector:
        """r_0 = a_0 / sum(a_0)."""
        first = normalise(self._activations[0])
        self._note(0, first, "the input activations sum to zero")
        return first.vector

    def _operator(self, layer: int) -> BlockOperator:
        """The operator of a block; kept only where it will be used again."""
        if layer in self._operators:
            return self._operators[layer]
        block = self.graph.blocks[layer - 1]
        try:
            operator = self.backend.operator(block, self.products)
        except GraphError as error:
            raise GraphError(f"block {layer}: {error}") from error
        if self.products > 1:
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


class WeightedPageRankProblem(LayeredProblem):
    """r_l = N(gamma P_l r_{l-1} + (1 - gamma) a_l / sum(a_l)); see :func:`graphs.weighted_pagerank`."""

    def __init__(self, graph: LayeredGraph, backend: Backend, products: int, gamma: float, theta: float) -> None:
        super().__init__(graph, backend, products)
        self.damping = gamma
        self.theta = theta
        self._transitions: dict[int, Transition] = {}

    def row_maxima(self) -> list[FloatArray]:
        """max_j P_ij of every node by layer; 1 in layer 0, which is given."""
        to_numpy = self.backend.arithmetic.to_numpy
        steps = (self._transitions[layer].row_maxima(self._operator(layer)) for layer in range(1, self.n_layers))
        return [np.ones(self.graph.layers[0]), *map(to_numpy, steps)]

    def _contraction(self, layer: int) -> float:
        # A dangling source makes N non-linear.
        known = layer in self._transitions and not self._transitions[layer].dangling
        return self.damping if known else math.inf

    def step(self, layer: int, previous: Vector) -> Vector:
        """r_layer from r_{layer-1}."""
        operator = self._operator(layer)
        # Only the last visit speaks of the result: an early iterate may be degenerate alone.
        self.degenerate.pop(layer, None)
        try:
            if layer not in self._transitions:
                self._transitions[layer] = Transition(operator, self.theta, self.backend.arithmetic)
            passed = self._transitions[layer].apply(operator, previous)
            activation = self._activations[layer]
            if float(activation.sum()) == 0.0:
                self.degenerate[layer] = "the activations sum to zero; uniform ones stand in"
            result = weighted_step(passed, activation, self.damping)
        except GraphError as error:
            raise GraphError(f"block {layer}: {error}") from error
        self._note(layer, result, "no mass arrived")
        return result.vector


class ModifiedPageRankProblem(LayeredProblem):
    """r_l = N((W_l r_{l-1}) * a_l); see :func:`graphs.modified_pagerank`."""

    def __init__(self, graph: LayeredGraph, backend: Backend, products: int, zero_lowest: float) -> None:
        super().__init__(graph, backend, products)
        self.zero_lowest = zero_lowest

    def step(self, layer: int, previous: Vector) -> Vector:
        """r_layer from r_{layer-1}."""
        count = int(self.zero_lowest * len(previous))
        if count:
            previous = self.backend.arithmetic.with_lowest_zeroed(previous, count)
        self.degenerate.pop(layer, None)
        activation = self._activations[layer]
        if float(activation.sum()) == 0.0:
            self.degenerate[layer] = "the activations sum to zero; uniform ones stand in"
        try:
            result = modified_step(self._operator(layer).matvec(previous), activation)
        except GraphError as error:
            raise GraphError(f"block {layer}: {error}") from error
        self._note(layer, result, "no mass arrived")
        return result.vector
