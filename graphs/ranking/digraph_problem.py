"""The fixed-point problem whose solution is the PageRank of a digraph of blocks.

P is the transition matrix: entry P_ij is the share of the score of node j that its edge takes to node i. A state is a list with
the scores of each layer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import add

import numpy as np
from scipy import sparse

from graphs.errors import GraphError
from graphs.linalg.backends import Backend
from graphs.linalg.blocks import FloatArray, SparseBlock
from graphs.linalg.layer_vectors import (
    DeferredChecks,
    State,
    column_sums,
    layer_norms,
    read,
    scale_columns,
    scale_rows,
    subtract,
    total_scores,
    weighted_sums,
)
from graphs.linalg.operators import BlockOperator, CSRKernelOperator, CSROperator, Vector
from graphs.linalg.transition import check_scale
from graphs.ranking.node_sweep import NodeSweep, is_acyclic
from graphs.solvers.direct import FEW_NODES
from graphs.solvers.problem import SweptState
from graphs.structures.digraph import BlockDigraph, EdgeBlock

__all__ = ["DigraphProblem"]


@dataclass(frozen=True, eq=False)
class _BlockTransition:
    """The part of P on the edges of one block: source scores are multiplied by `scale`, then by the operator."""

    edges: EdgeBlock
    operator: BlockOperator
    scale: Vector
    share: Vector
    """The share of every source node's score that takes these edges, (n_source,)."""

    def __call__(self, vector: Vector) -> Vector:
        x = scale_rows(vector, self.scale)
        return self.operator.rmatvec(x) if self.edges.transposed else self.operator.matvec(x)


class DigraphProblem:
    """The equation r = gamma P r + (gamma * d + 1 - gamma) v; d is the sum of the scores of dangling nodes.

    Parameters
    ----------
    digraph : BlockDigraph
    backend : Backend
    gamma : float
        Damping, in [0, 1).
    teleport : (nodes,) or (nodes, k) float64 array
        v, every column of sum 1.
    products : int
        About how often every block will be multiplied; the backend chooses the form of a block by it.
    """

    steps_to_exact = None
    """None: no number of applications of the equation is known to give the exact rank."""
    linear = True

    def __init__(
        self, digraph: BlockDigraph, backend: Backend, gamma: float, teleport: FloatArray, products: int
    ) -> None:
        self.digraph = digraph = _within_range(digraph, backend.arithmetic.dtype)
        self.backend = backend
        self.gamma = gamma
        self.dtype = backend.arithmetic.dtype
        self.n_layers = len(digraph.layer_sizes)
        self.n_blocks = len(digraph.edge_blocks)
        self.n_columns: int | None = None if teleport.ndim == 1 else teleport.shape[1]
        self._layer_order, _ = digraph.topological_order
        self.checks = DeferredChecks()
        self.teleport: State = self.split(teleport)
        self._teleport_sums: FloatArray = np.stack(read([column_sums(vector) for vector in self.teleport]))
        self._transitions = self._make_transitions(products)
        self._transitions_into: defaultdict[int, list[_BlockTransition]] = defaultdict(list)
        for transition in self._transitions:
            self._transitions_into[transition.edges.target].append(transition)
        self._node_sweeps: dict[tuple[int, bool], NodeSweep] = {}

    # --- vectors

    def split(self, stacked: FloatArray) -> State:
        """Split a numpy array over all nodes into a state."""
        return self.backend.arithmetic.vectors(np.split(stacked, self.digraph.offsets[1:-1]))

    def stack(self, state: State) -> FloatArray:
        """Join a state into one float64 numpy array over all nodes."""
        return np.concatenate(read(state)).astype(np.float64)

    def start(self) -> State:
        """Return the uniform state."""
        return [vector * 0.0 + 1.0 / self.digraph.n_nodes for vector in self.teleport]

    # --- the equation

    def apply(self, state: State) -> State:
        """Apply F, the right side of the equation, to the given state, with one product per block."""
        along_edges = [vector * self.gamma for vector in self.apply_transition(state)]
        # Every score that did not come along edges teleports, the scores of dangling nodes included.
        teleport_mass = (1.0 - total_scores(along_edges)).clip(0.0)  # rounding may take it below
        self.checks.add(teleport_mass.sum(), _check_mass)
        return [vector + scale_columns(v, teleport_mass) for vector, v in zip(along_edges, self.teleport, strict=True)]

    def apply_and_compare(self, state: State) -> tuple[State, list[Vector]]:
        """Apply F, and compute the L1 change of every layer.

        Cost: one product per block. If there is only one layer, of float64, few passes over its vectors are all else.
        """
        if self._damped_scale is None:
            image = self.apply(state)
            return image, layer_norms(subtract(image, state))
        (before,), (teleport,), (transition,) = state, self.teleport, self._transitions
        scores = transition.operator.matvec(before * self._damped_scale)
        teleport_mass = 1.0 - float(column_sums(scores))
        self.checks.add(teleport_mass, _check_mass)
        scores += teleport * max(teleport_mass, 0.0)
        change = scores - before
        return [scores], [column_sums(np.abs(change, out=change))]

    @cached_property
    def _damped_scale(self) -> FloatArray | None:
        """Gamma times the scale of the block, if P is one CSR block that is not transposed, in float64; else None."""
        fits = self._has_one_vector and self.sweepable and self._transitions
        return self._transitions[0].scale * self.gamma if fits else None

    @property
    def _has_one_vector(self) -> bool:
        """Whether a state is one vector of float64, without columns."""
        return self.n_layers == 1 and self.n_columns is None and self.dtype == "float64"

    def apply_transition(self, state: State) -> State:
        """Apply P, with one product per block; the scores of dangling nodes are lost."""
        arriving = []
        for layer in range(self.n_layers):
            parts = [transition(state[transition.edges.source]) for transition in self._transitions_into[layer]]
            arriving.append(reduce(add, parts) if parts else state[layer] * 0.0)
        return arriving

    def residual(self, changes: Sequence[float]) -> float:
        """Sum the L1 changes of all layers."""
        return sum(changes)

    def error_bounds(self, changes: Sequence[float], steps: int) -> list[float]:
        """Bound the L1 error of F(r) in every layer, from the L1 distance between r and F(r) in every layer."""
        return [self.gamma / (1.0 - self.gamma) * sum(changes)] * self.n_layers

    def residual_bounds(self, residual: float) -> list[float]:
        """Bound the L1 error in every layer of any r of sum 1, from the L1 norm of F(r) - r."""
        return [residual / (1.0 - self.gamma)] * self.n_layers

    def row_maxima(self) -> list[FloatArray]:
        """Bound max_j P_ij from above for every node i, by layer.

        Here P has entries for dangling nodes too: a dangling node passes its score to all nodes in proportion to v.
        """
        sizes, n_transitions = self.digraph.layer_sizes, len(self._transitions)
        maxima = [
            t.operator.column_maxima(t.scale) if t.edges.transposed else t.operator.row_maxima(t.scale)
            for t in self._transitions
        ]
        numbers = self.checks.read([*maxima, *(t.share for t in self._transitions), *self.teleport])
        block_maxima, block_shares = numbers[:n_transitions], numbers[n_transitions : 2 * n_transitions]
        teleport = numbers[2 * n_transitions :]
        pair_maxima: dict[tuple[int, int], FloatArray] = {}
        share_sums: list[FloatArray] = [np.zeros(size) for size in sizes]
        for transition, highest, share in zip(self._transitions, block_maxima, block_shares, strict=True):
            source, target = transition.edges.source, transition.edges.target
            # The maxima of parallel blocks add up, because they may come from the same node j.
            pair_maxima[source, target] = highest + pair_maxima.get((source, target), np.zeros(sizes[target]))
            share_sums[source] = share_sums[source] + share
        result: list[FloatArray] = [np.zeros(size) for size in sizes]
        for (_, target), highest in pair_maxima.items():
            result[target] = np.maximum(result[target], highest)
        # The shares of a node sum to 1, or to 0 if it is a dangling node.
        has_dangling = any((sums < 0.5).any() for sums in share_sums)
        if has_dangling:
            result = [np.maximum(highest, v) for highest, v in zip(result, teleport, strict=True)]
        return result

    @property
    def roundoff(self) -> float:
        """Allowance for the relative rounding error of a score.

        A product adds up to as many terms as a layer has nodes. The errors of these sums add up over the layers of a sweep, and
        over repeated products; gamma weakens the errors of earlier products, so these together count like 1 / (1 - gamma).
        """
        epsilon = float(np.finfo(self.dtype).eps)
        return epsilon * (max(self.digraph.layer_sizes) + 16) * (self.n_layers + 2.0 / (1.0 - self.gamma))

    # --- sweeps in layer order

    @property
    def sweepable(self) -> bool:
        """Whether sweeps are possible: the edges within a layer must be one scipy CSR block, and not transposed."""
        inner = [t for t in self._transitions if t.edges.within_layer]
        fit = all(isinstance(t.operator, CSROperator) and not t.edges.transposed for t in inner)
        return fit and len(inner) == len({t.edges.target for t in inner})

    @cached_property
    def acyclic(self) -> bool:
        """Whether one sweep in layer order (and in node order within a layer) is known to be exact."""
        if not self.sweepable or any(self._leads_back(t) for t in self._transitions):
            return False
        operators = [t.operator for t in self._transitions if t.edges.within_layer]
        return all(isinstance(operator, CSROperator) and is_acyclic(operator) for operator in operators)

    @property
    def has_few_nodes(self) -> bool:
        """Whether there is one layer, of so few nodes that a dense factorisation takes less time than iterating."""
        return self.n_layers == 1 and self.digraph.n_nodes <= FEW_NODES

    @property
    def sweeps_fast(self) -> bool:
        """Whether there is one layer, and a compiled kernel sweeps it."""
        return self.n_layers == 1 and self.sweepable and isinstance(self._transitions[0].operator, CSRKernelOperator)

    def sweep(self, state: State, teleport_mass: Vector, *, sorts_nodes: bool = True) -> SweptState:
        """Take one Gauss-Seidel sweep over x = gamma P x + teleport_mass * v in layer order, with one product per block.

        Within a layer the nodes come in the topological order of its strongly connected components or, if not `sorts_nodes`, in
        one that takes no search, see :class:`graphs.ranking.node_sweep.NodeSweep`.
        """
        current = list(state)
        # Along an edge that leads back, a sweep uses the old score of the source, which changes later in the sweep. If no such
        # score changed, the new x would solve the equation. So the residual is computed from their changes along these edges.
        absolute_changes, signed_changes = teleport_mass * 0.0, teleport_mass * 0.0
        for layer in self._layer_order:
            total = scale_columns(self.teleport[layer], teleport_mass)
            for transition in self._transitions_into[layer]:
                if not transition.edges.within_layer:
                    total = total + transition(current[transition.edges.source]) * self.gamma
            if any(transition.edges.within_layer for transition in self._transitions_into[layer]):
                current[layer], change = self._node_sweep(layer, sorts_nodes).sweep(current[layer], total)
                # Which part of it leads back is not known. At most all of it does, in either direction.
                absolute_changes = absolute_changes + 2.0 * change
            else:
                current[layer] = total
        for transition in self._transitions:
            if self._leads_back(transition):
                source = transition.edges.source
                change = scale_rows(current[source] - state[source], transition.share)
                absolute_changes = absolute_changes + column_sums(abs(change))
                signed_changes = signed_changes + column_sums(change)
        mass = total_scores(current)
        self.checks.add(mass.sum(), _check_mass)
        residual = self._swept_residual(absolute_changes, signed_changes, mass).max()
        return SweptState([scale_columns(vector, 1.0 / mass) for vector in current], teleport_mass / mass, residual)

    def _swept_residual(self, absolute_changes: Vector, signed_changes: Vector, mass: Vector) -> Vector:
        """Bound the L1 norm of F(x / mass) - x / mass after a sweep to x, of sum `mass`, from the changes that may lead back."""
        # Let e = gamma P x + teleport_mass * v - x. Its entries sum to gamma * signed_changes, and its L1 norm is at most
        # gamma * absolute_changes. F(x / mass) - x / mass is (e - sum(e) v) / mass.
        return self.gamma * (absolute_changes + abs(signed_changes)) / mass

    def aggregate(self, state: State, teleport_mass: Vector) -> State:
        """Scale the layers of a state so that the layer sums solve the equation of a small graph with one node for each layer.

        The edges of the small graph are the flows of the current scores between layers. The proportions within a layer remain.
        Cost: no product, because the shares say how much score leaves a layer along a block.
        """
        sums = [column_sums(vector) for vector in state]
        sent = [weighted_sums(state[t.edges.source], t.share) for t in self._transitions]
        numbers = [np.atleast_1d(number) for number in self.checks.read([*sums, *sent, teleport_mass])]
        layer_sums = np.stack(numbers[: self.n_layers])  # (layers, columns)
        flow = np.zeros((layer_sums.shape[1], self.n_layers, self.n_layers))  # (columns, targets, sources)
        for transition, leaving in zip(self._transitions, numbers[self.n_layers : -1], strict=True):
            source, target = transition.edges.source, transition.edges.target
            flow[:, target, source] += np.divide(
                leaving, layer_sums[source], out=np.zeros_like(leaving), where=layer_sums[source] > 0
            )
        teleported = self._teleport_sums.reshape(layer_sums.shape) * numbers[-1]
        system = np.eye(self.n_layers) - self.gamma * flow
        try:
            solution = np.linalg.solve(system, teleported.T[:, :, None])[:, :, 0].T
        except np.linalg.LinAlgError:
            solution = layer_sums
        # If gamma is next to 1, rounding makes the system singular, or its solution negative. Then nothing is scaled.
        solution = np.where((solution >= 0).all(axis=0), solution, layer_sums)
        factors = np.divide(solution, layer_sums, out=np.ones_like(solution), where=layer_sums > 0)
        # One transfer for all layers.
        rows = self.backend.arithmetic.vector(factors)
        return [vector * factor for vector, factor in zip(state, rows, strict=True)]

    def sweep_and_compare(
        self, state: State, teleport_mass: Vector, *, aggregates: bool, sorts_nodes: bool = True
    ) -> tuple[SweptState, list[Vector]]:
        """Sweep, from the scaled layers of :meth:`aggregate` if `aggregates`, and compute the L1 change of every layer.

        Cost: one product per block. If there is only one layer, of float64, few passes over its vectors are all else.
        """
        if self._has_one_vector:
            from graphs.linalg import kernels

            (before,), (teleport,) = state, self.teleport
            node_sweep, factor, jump = self._node_sweep(0, sorts_nodes), 1.0, float(teleport_mass)
            if aggregates:
                # The equation of aggregate for one layer, which has one block: _node_sweep has raised if it has several.
                remaining = float(column_sums(before) - self.gamma * weighted_sums(before, self._transitions[0].share))
                # If gamma is next to 1, rounding may leave nothing. Then the layer is not scaled.
                factor = jump / remaining if remaining > 0.0 else 1.0
            scores, moved = node_sweep.sweep(before, teleport, (jump, factor))
            # numpy adds pairwise. Added one after another, a million equal scores would be wrong by 1e-11.
            mass = float(column_sums(scores))
            self.checks.add(mass, _check_mass)
            # The entries of e in _swept_residual sum to this, which rounding may take above the sum of their absolute values.
            lost = self.gamma * float(weighted_sums(scores, self._transitions[0].share)) + jump - mass
            signed = min(abs(lost) / self.gamma, moved) if self.gamma else 0.0
            change = kernels.scale_and_compare(scores, 1.0 / mass, before)
            return SweptState([scores], jump / mass, self._swept_residual(moved, signed, mass)), [change]
        start = self.aggregate(state, teleport_mass) if aggregates else state
        swept = self.sweep(start, teleport_mass, sorts_nodes=sorts_nodes)
        return swept, layer_norms(subtract(swept.state, state))

    # --- the matrix

    @property
    def n_edges(self) -> int:
        """Number of edges of all blocks together."""
        return sum(block.n_edges for block in self.digraph.blocks)

    def matrix(self) -> sparse.csr_array:
        """Build P as one CSR matrix for direct solvers, (nodes, nodes) float64."""
        matrix = self.digraph.to_scipy()  # a copy
        matrix.data = matrix.data.astype(np.float64, copy=False)
        strength = np.bincount(matrix.indices, weights=matrix.data, minlength=matrix.shape[1])
        matrix.data /= strength[matrix.indices]
        return matrix

    # --- construction

    def _make_transitions(self, products: int) -> list[_BlockTransition]:
        arithmetic = self.backend.arithmetic
        operators: dict[int, BlockOperator] = {}
        strengths: list[Vector] = []
        # Sweeps in node order need the edges within a layer as CSR.
        within_layer = {id(edges.block) for edges in self.digraph.edge_blocks if edges.within_layer}
        for edges in self.digraph.edge_blocks:
            # A block that is used twice, such as for edges in both directions, has one operator.
            key = id(edges.block)
            if key not in operators:
                as_csr = key in within_layer and self.backend.form == "auto"
                operators[key] = (
                    arithmetic.csr_operator(edges.block) if as_csr else self.backend.operator(edges.block, products)
                )
            operator = operators[key]
            with np.errstate(over="ignore", invalid="ignore"):
                strength = operator.in_strength() if edges.transposed else operator.out_strength()
                total = strength.sum()
            self.checks.add(total, _check_strengths, f"edges from layer {edges.source} to layer {edges.target}")
            strengths.append(strength)
        totals: dict[int, Vector] = {}
        for edges, strength in zip(self.digraph.edge_blocks, strengths, strict=True):
            # A node's total is what its edge weights are divided by: its strength in all blocks. If the blocks have shares, its
            # weights in a block are divided by its strength in that block and multiplied by the share of the block. Its total is
            # then the sum of the shares of those blocks in which it has edges.
            part = strength
            if edges.share is not None:
                part = (strength * 0.0 + float(edges.share)) * (strength > 0)
            totals[edges.source] = totals[edges.source] + part if edges.source in totals else part
        transitions = []
        for edges, strength in zip(self.digraph.edge_blocks, strengths, strict=True):
            with np.errstate(over="ignore"):
                scale = arithmetic.reciprocal(totals[edges.source])
                if edges.share is not None:
                    scale = scale * arithmetic.reciprocal(strength) * edges.share
            self.checks.add(scale.sum(), check_scale, f"edges from layer {edges.source} to layer {edges.target}")
            transitions.append(_BlockTransition(edges, operators[id(edges.block)], scale, scale * strength))
        return transitions

    def _leads_back(self, transition: _BlockTransition) -> bool:
        """Tell whether the edges lead from a layer to an earlier one in the order of sweeps."""
        return self._layer_order.index(transition.edges.source) > self._layer_order.index(transition.edges.target)

    def _node_sweep(self, layer: int, sorts_nodes: bool) -> NodeSweep:
        if (layer, sorts_nodes) not in self._node_sweeps:
            inner = [t for t in self._transitions_into[layer] if t.edges.within_layer]
            if len(inner) > 1 or not isinstance(inner[0].operator, CSROperator) or inner[0].edges.transposed:
                raise GraphError(
                    f"layer {layer} has edges within itself; sweeps expect them in one scipy CSR block that is not transposed: "
                    "use backend='scipy', join such blocks, or use solver='power', 'anderson' or 'gmres'"
                )
            self._node_sweeps[layer, sorts_nodes] = NodeSweep(
                inner[0].operator, inner[0].scale, self.gamma, sorts_nodes
            )
        return self._node_sweeps[layer, sorts_nodes]


def _within_range(digraph: BlockDigraph, dtype: str) -> BlockDigraph:
    """Return the digraph, with the weights of a node divided by one power of two where they are near the limits of the dtype.

    The division is exact, and does not change P. Without it, weights could vanish in the dtype, or the reciprocals of their sums
    overflow. Dense blocks stay as they are, unless a sparse one from the same layer has such weights.
    """
    unsafe = {e.source for e in digraph.edge_blocks if isinstance(e.block, SparseBlock) and not e.block.fits(dtype)}
    made = list(digraph.edge_blocks)
    # With shares, the weights of each block are divided by their own sums; otherwise a node's weights in all blocks are.
    together: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, edges in enumerate(made):
        if edges.source in unsafe:
            together[(edges.source,) if edges.share is None else (edges.source, number)].append(number)
    for numbers in together.values():
        blocks = {number: SparseBlock(made[number].block.to_csr()) for number in numbers}
        axes = {number: int(made[number].transposed) for number in numbers}
        exponents = np.maximum.reduce([block.exponents(axes[number]) for number, block in blocks.items()])
        for number, block in blocks.items():
            made[number] = replace(made[number], block=block.divided(exponents, axes[number]))
    return replace(digraph, edge_blocks=tuple(made)) if unsafe else digraph


def _check_mass(total: float) -> None:
    if not math.isfinite(total):
        raise GraphError(
            "a rank step gave NaN or Inf: the edge weights hold non-finite numbers, or overflow the dtype; check "
            "the weights, or use dtype='float64'"
        )


def _check_strengths(total: float) -> None:
    if not math.isfinite(total):
        raise GraphError(
            "the out-strengths are not finite: the weights hold NaN or Inf, or overflow the dtype; check the weights, or use "
            "dtype='float64'"
        )
