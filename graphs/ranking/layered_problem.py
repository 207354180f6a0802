"""The fixed-point problems of weighted and modified PageRank on a layered graph.

r is a state, a list with the scores r_l of each layer l. N scales the scores of a layer to sum 1. F computes every layer from the
one before; the rank is the fixed point of F. P is the transition matrix of weighted PageRank: P_ij is the share of the score of
node j that comes to node i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from graphs.errors import GraphError
from graphs.linalg.backends import Backend
from graphs.linalg.blocks import FloatArray, SparseBlock
from graphs.linalg.layer_vectors import DeferredChecks, State, layer_norms, subtract
from graphs.linalg.operators import BlockOperator, Vector
from graphs.linalg.transition import (
    Transition,
    check_sum,
    divide_by_sum,
    modified_product,
    uniform,
    weighted_mixture,
)
from graphs.solvers.problem import SweptState
from graphs.structures.layered import LayeredGraph

__all__ = ["LayeredProblem", "ModifiedPageRankProblem", "WeightedPageRankProblem"]


class LayeredProblem:
    """The base class of both problems: layer 0 is given, and layer l follows from layer l-1 alone.

    Parameters
    ----------
    graph : LayeredGraph
    backend : Backend
        Chooses the operator of every block.
    products : int
        About how often every block will be multiplied. If it is above 1, operators are kept for the next product.
    """

    acyclic = True
    sweepable = True
    sweeps_fast = False
    has_few_nodes = False
    linear = False

    def __init__(self, graph: LayeredGraph, backend: Backend, products: int) -> None:
        self.graph = graph
        self.backend = backend
        self.products = products
        self.n_layers = len(graph.activations)
        self.n_blocks = self.n_layers - 1
        self.steps_to_exact = self.n_layers - 1
        self.dtype = backend.arithmetic.dtype
        self.degenerate: dict[int, str] = {}
        self.checks = DeferredChecks()
        self._activations_are_zero = [not vector.any() for vector in graph.activations]
        self._activations = backend.arithmetic.vectors([_scaled_below_one(vector) for vector in graph.activations])
        self._teleports = [divide_by_sum(vector, uniform(vector))[0] for vector in self._activations]
        if self._activations_are_zero[0]:
            self.degenerate[0] = "the input activations sum to zero; uniform scores are used"
        self._operators: dict[int, BlockOperator] = {}

    def start_from(self, layers: Sequence[FloatArray]) -> State:
        """Convert a user's first iterate to a state; r_0 replaces its layer 0."""
        return [self._teleports[0], *self.backend.arithmetic.vectors(layers[1:])]

    def start(self) -> State:
        """Return r_0 and uniform scores in the other layers."""
        return [self._teleports[0], *map(uniform, self._activations[1:])]

    def apply(self, state: State) -> State:
        """Apply F: compute every layer from the given state."""
        return [self._teleports[0], *(self.step(layer, state[layer - 1]) for layer in range(1, self.n_layers))]

    def apply_and_compare(self, state: State) -> tuple[State, list[Vector]]:
        """Apply F, and compute the L1 change of every layer."""
        image = self.apply(state)
        return image, layer_norms(subtract(image, state))

    def sweep(self, state: State, teleport_mass: Vector) -> SweptState:
        """Compute every layer from the one before, which gives the fixed point."""
        layers = [self._teleports[0]]
        for layer in range(1, self.n_layers):
            layers.append(self.step(layer, layers[-1]))
        return SweptState(layers, teleport_mass, 0.0)

    def residual(self, changes: Sequence[float]) -> float:
        """Return the largest of the changes, and not their sum, because the scores of every layer sum to 1."""
        return float(np.max(changes))

    def error_bounds(self, changes: Sequence[float], steps: int) -> list[float]:
        """Bound the L1 error of F(r) in every layer, from the L1 distance between r and F(r) in every layer.

        The layers up to `steps` are exact. A later layer F(r)_l was computed from r_{l-1}, so its error is at most gamma times
        the error of r_{l-1}. This error is at most that of F(r)_{l-1} plus the distance from r_{l-1} to F(r)_{l-1}.
        """
        bounds = [0.0]
        for layer in range(1, self.n_layers):
            previous = bounds[-1] + changes[layer - 1] if layer > steps else 0.0
            factor = self._contraction(layer)
            # A layer is exact if the layer before is exact or the factor is 0; this avoids 0 * inf.
            bounds.append(factor * previous if previous and factor else 0.0)
        return bounds

    def row_maxima(self) -> list[FloatArray] | None:
        """Bound max_j P_ij of every node i from above, by layer; None for a rank without error bounds."""
        return None

    @property
    def roundoff(self) -> float:
        """Allowance for the relative rounding error of a score; sums have up to as many terms as a layer has nodes."""
        return float(np.finfo(self.dtype).eps) * (max(self.graph.layer_sizes) + 16) * self.n_layers

    def step(self, layer: int, previous: Vector) -> Vector:
        """Compute r_layer from r_{layer-1}."""
        # The result reports only the last step, so the note of an earlier step is dropped.
        self.degenerate.pop(layer, None)
        if self._activations_are_zero[layer]:
            self.degenerate[layer] = "the activations sum to zero; uniform ones are used"
        subject = f"block {layer}"
        vector, total = divide_by_sum(self._unscaled_step(layer, previous, subject), self._teleports[layer])
        self.checks.add(total, partial(self._check_total, layer), subject)
        return vector

    def _unscaled_step(self, layer: int, previous: Vector, subject: str) -> Vector:
        """Compute r_layer from r_{layer-1} before it is scaled to sum 1; `subject` begins the message of an error."""
        raise NotImplementedError

    def _check_total(self, layer: int, total: float) -> None:
        """Check the sum of a layer before it was scaled to sum 1, and note what replaced a layer of zeros."""
        check_sum(total)
        if not total > 0.0:
            zero = self._activations_are_zero[layer]
            used = "uniform scores are" if zero else "the activations, scaled to sum 1, are"
            self.degenerate[layer] = f"all scores are zero; {used} used"

    def _within_range(self, layer: int, block: SparseBlock) -> SparseBlock:
        """Return a block whose weights are divided by powers of two so that the dtype can hold them; the rank stays the same."""
        raise NotImplementedError

    def _contraction(self, layer: int) -> float:
        """Bound the factor by which the step into `layer` multiplies L1 distances; inf where no bound is known."""
        return math.inf

    def _operator(self, layer: int) -> BlockOperator:
        """Return the operator of the block into `layer`; it is kept only if it will be used again."""
        if layer in self._operators:
            return self._operators[layer]
        block = self.graph.blocks[layer - 1]
        if isinstance(block, SparseBlock) and not block.fits(self.dtype):
            block = self._within_range(layer, block)
        operator = self.backend.operator(block, self.products)
        if self.products > 1:
            self._operators[layer] = operator
        return operator


def _scaled_below_one(vector: FloatArray) -> FloatArray:
    """Multiply a vector by a power of two so that its maximum lies in [0.5, 1); zeros remain zeros.

    Ranks do not depend on this factor. Without it, activations could overflow, or vanish in float32.
    """
    scaled: FloatArray = np.ldexp(vector, -np.frexp(vector.max())[1])
    return scaled


class WeightedPageRankProblem(LayeredProblem):
    """r_l = N(gamma P_l r_{l-1} + (1 - gamma) a_l / sum(a_l)); see :func:`graphs.weighted_pagerank`."""

    def __init__(self, graph: LayeredGraph, backend: Backend, products: int, gamma: float, theta: float) -> None:
        super().__init__(graph, backend, products)
        self.gamma = gamma
        self.theta = theta
        self._transitions: dict[int, Transition] = {}

    def _within_range(self, layer: int, block: SparseBlock) -> SparseBlock:
        # All weights of a source may be divided by the same number, because P has them divided by their sum.
        divided = block.divided(block.exponents(axis=0), axis=0, dtype=self.dtype)
        if self.theta < 1.0 and divided.n_edges < block.n_edges:
            raise GraphError(
                f"block {layer}: the weights of one source differ by more than {self.dtype} can hold, and theta < 1 counts every "
                "edge; use theta=1, or remove the edges of the smallest weights"
            )
        return divided

    def row_maxima(self) -> list[FloatArray]:
        """Bound max_j P_ij of every node i from above, by layer; 1 in layer 0, which is given."""
        maxima = [self._transitions[layer].row_maxima(self._operator(layer)) for layer in range(1, self.n_layers)]
        return [np.ones(self.graph.layer_sizes[0]), *self.checks.read(maxima)]

    def _contraction(self, layer: int) -> float:
        # The score of a dangling source (a node without edges) is lost. Then N has to scale the layer up, and is not linear.
        known = layer in self._transitions and not self._transitions[layer].has_dangling
        return self.gamma if known else math.inf

    def _unscaled_step(self, layer: int, previous: Vector, subject: str) -> Vector:
        operator = self._operator(layer)
        if layer not in self._transitions:
            arithmetic = self.backend.arithmetic
            self._transitions[layer] = Transition(operator, self.theta, arithmetic, self.checks, subject)
        passed = self._transitions[layer].apply(operator, previous)
        return weighted_mixture(passed, self._teleports[layer], self.gamma)


class ModifiedPageRankProblem(LayeredProblem):
    """r_l = N((W_l r_{l-1}) * a_l); see :func:`graphs.modified_pagerank`."""

    def __init__(self, graph: LayeredGraph, backend: Backend, products: int, zero_lowest: float) -> None:
        super().__init__(graph, backend, products)
        self.zero_lowest = zero_lowest

    def _within_range(self, layer: int, block: SparseBlock) -> SparseBlock:
        highest = block.exponents(axis=0).max()
        return block.divided(np.full(block.shape[1], highest, dtype=np.int32), axis=0)

    def _unscaled_step(self, layer: int, previous: Vector, subject: str) -> Vector:
        count = int(self.zero_lowest * len(previous))
        if count:
            previous = self.backend.arithmetic.with_lowest_zeroed(previous, count)
        product = self._operator(layer).matvec(previous)
        return modified_product(product, self._activations[layer], not self._activations_are_zero[layer])
