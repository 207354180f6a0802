"""The map whose fixed point is the PageRank of a digraph in blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from graphs.errors import GraphError
from graphs.linalg.backends import Backend
from graphs.linalg.blocks import FloatArray
from graphs.linalg.layer_vectors import State, column_sums, masses, rows_scaled, times
from graphs.linalg.operators import BlockOperator, CSRKernelOperator, CSROperator, Vector
from graphs.solvers.problem import SweptState
from graphs.structures.digraph import BlockDigraph, EdgeBlock

__all__ = ["DigraphProblem"]


@dataclass(frozen=True, eq=False)
class _Passage:
    """Edges ready to multiply: P = scale applied to the source, then the operator."""

    edges: EdgeBlock
    operator: BlockOperator
    scale: Vector
    share: Vector
    """The part of every source node's mass that goes this way, (n_source,)."""

    def __call__(self, vector: Vector) -> Vector:
        x = rows_scaled(vector, self.scale)
        return self.operator.rmatvec(x) if self.edges.transposed else self.operator.matvec(x)


class DigraphProblem:
    """F(r) = gamma P r + (gamma * dangling mass + 1 - gamma) v, block by block.

    Parameters
    ----------
    digraph : BlockDigraph
    backend : Backend
        Gives every block its operator.
    gamma : float
        Damping, [0, 1).
    teleport : (nodes,) or (nodes, k) float64 array
        v, every column of sum 1.
    products : int
        About how often every block will be multiplied: decides between its forms.
    """

    depth = None
    """Plain iteration is never exact: dangling mass comes back through v."""
    linear = True

    def __init__(
        self, digraph: BlockDigraph, backend: Backend, gamma: float, teleport: FloatArray, products: int
    ) -> None:
        self.digraph = digraph
        self.backend = backend
        self.gamma = gamma
        self.dtype = backend.arithmetic.dtype
        self.layers = len(digraph.layers)
        self.block_count = len(digraph.edges)
        self.columns: int | None = None if teleport.ndim == 1 else teleport.shape[1]
        self._order, self._layers_acyclic = digraph.topological
        self.teleport: State = self.split(teleport)
        self._passages = self._make_passages(products)
        self._into: defaultdict[int, list[_Passage]] = defaultdict(list)
        for passage in self._passages:
            self._into[passage.edges.target].append(passage)
        self._within: dict[int, _Within] = {}

    # --- vectors

    def split(self, stacked: FloatArray) -> State:
        """A stacked numpy array as a state."""
        offsets = self.digraph.offsets[1:-1]
        return [self.backend.arithmetic.vector(part) for part in np.split(stacked, offsets)]

    def stacked(self, state: State) -> FloatArray:
        """A state as one float64 numpy array."""
        return np.concatenate([self.backend.arithmetic.to_numpy(vector) for vector in state]).astype(np.float64)

    def start(self) -> State:
        """The uniform state."""
        return [vector * 0.0 + 1.0 / self.digraph.nodes for vector in self.teleport]

    # --- the map

    def apply(self, state: State) -> State:
        """F: every layer from the given state. One product a block."""
        passed = [self._passed(layer, state) for layer in range(self.layers)]
        following = [vector * self.gamma for vector in passed]
        # What did not pass is the mass of the dangling nodes; it teleports with the jump.
        jump = 1.0 - masses(following)
        self._refuse_nonfinite(jump)
        return [vector + times(v, jump) for vector, v in zip(following, self.teleport, strict=True)]

    def transition(self, state: State) -> State:
        """P: the mass that arrives along the edges, that of dangling nodes lost. One product a block."""
        return [self._passed(layer, state) for layer in range(self.layers)]

    def total(self, changes: Sequence[float]) -> float:
        """The L1 norm over all layers."""
        return sum(changes)

    def bounds(self, changes: Sequence[float], steps: int) -> list[float]:
        """L1 error of the last of two iterates r, F(r) that differ by `changes`, for every layer."""
        return [self.gamma / (1.0 - self.gamma) * sum(changes)] * self.layers

    def residual_bounds(self, residual: float) -> list[float]:
        """L1 error of any r of mass 1 with this ||F(r) - r||_1, for every layer."""
        return [residual / (1.0 - self.gamma)] * self.layers

    def caps(self) -> list[FloatArray]:
        """max_j P_ij of every node, dangling sources included, by layer: no entry of P z exceeds it times |z|_1."""
        arithmetic = self.backend.arithmetic
        pairs: dict[tuple[int, int], FloatArray] = {}
        for passage in self._passages:
            edges = passage.edges
            maxima = passage.operator.column_maxima if edges.transposed else passage.operator.row_maxima
            # Parallel blocks add up; nodes of another source layer are other nodes.
            pairs[edges.source, edges.target] = arithmetic.to_numpy(maxima(passage.scale)) + pairs.get(
                (edges.source, edges.target), np.zeros(self.digraph.layers[edges.target])
            )
        found: list[FloatArray] = [np.zeros(size) for size in self.digraph.layers]
        for (_, target), cap in pairs.items():
            found[target] = np.maximum(found[target], cap)
        sent: list[FloatArray] = [np.zeros(size) for size in self.digraph.layers]
        for passage in self._passages:
            sent[passage.edges.source] = sent[passage.edges.source] + arithmetic.to_numpy(passage.share)
        if any(bool((layer < 0.5).any()) for layer in sent):
            teleports = [arithmetic.to_numpy(v) for v in self.teleport]
            found = [np.maximum(cap, v) for cap, v in zip(found, teleports, strict=True)]
        return found

    @property
    def roundoff(self) -> float:
        """Relative error of a score by rounding: an allowance, ample against what was ever measured.

        Sums have as many terms as a layer has nodes, and follow one another along the paths that matter.
        """
        epsilon = float(np.finfo(self.dtype).eps)
        return epsilon * (max(self.digraph.layers) + 16) * (self.layers + 2.0 / (1.0 - self.gamma))

    # --- passes in layer order

    @property
    def sweepable(self) -> bool:
        """Whether passes are possible: edges within a layer need scipy CSR."""
        inner = [p for p in self._passages if self._is_inner(p)]
        return all(isinstance(p.operator, CSROperator) for p in inner) and len(inner) == len(
            {p.edges.target for p in inner}
        )

    @cached_property
    def acyclic(self) -> bool:
        """Whether one pass in layer order (and in node order within a layer) is exact."""
        if self._layers_acyclic:
            return True
        if not self.sweepable:
            return False
        if any(p.edges.source != p.edges.target and self._against(p.edges) for p in self._passages):
            return False
        return all(_is_acyclic(p.operator) for p in self._passages if self._is_inner(p))

    def relax(self, state: State, jump: Vector) -> SweptState:
        """One Gauss-Seidel pass over x = gamma P x + jump * v in layer order. One product a block."""
        current = list(state)
        back, signed = jump * 0.0, jump * 0.0
        for layer in self._order:
            inner = [p for p in self._into[layer] if self._is_inner(p)]
            total = times(self.teleport[layer], jump)
            for passage in self._into[layer]:
                if not self._is_inner(passage):
                    total = total + passage(current[passage.edges.source]) * self.gamma
            if inner:
                before = current[layer]
                current[layer] = self._split(layer).solve(before, total)
                change = rows_scaled(current[layer] - before, self.backend.arithmetic.vector(self._split(layer).back))
                back, signed = back + column_sums(abs(change)), signed + column_sums(change)
            else:
                current[layer] = total
        for passage in self._passages:
            # Mass that ran against the order was taken from the old state: that, and nothing else, is not yet solved.
            if not self._is_inner(passage) and self._against(passage.edges):
                source = passage.edges.source
                change = rows_scaled(current[source] - state[source], passage.share)
                back, signed = back + column_sums(abs(change)), signed + column_sums(change)
        mass = masses(current)
        self._refuse_nonfinite(mass)
        # x misses its equation by e of norm gamma * back at most; scaled to mass 1, F(x) - x is e - sum(e) v.
        residual = float((self.gamma * (back + abs(signed)) / mass).max())
        return SweptState([times(vector, 1.0 / mass) for vector in current], jump / mass, residual)

    def aggregated(self, state: State, jump: Vector) -> State:
        """`state` with the layers' masses set to those of the small chain of layers that it implies.

        Within a layer proportions stay; between layers the flows that they cause are solved exactly. Costs no
        product: what leaves a layer is known from the shares alone. With one layer it sets the mass against the jump, which
        passes alone would bring in line by no more than gamma a pass.
        """
        to_numpy = self.backend.arithmetic.to_numpy
        held = np.stack([np.atleast_1d(to_numpy(column_sums(vector))) for vector in state])  # (layers, columns)
        flow = np.zeros((held.shape[1], self.layers, self.layers))
        for passage in self._passages:
            source, target = passage.edges.source, passage.edges.target
            sent = np.atleast_1d(to_numpy(column_sums(rows_scaled(state[source], passage.share))))
            flow[:, target, source] += np.divide(sent, held[source], out=np.zeros_like(sent), where=held[source] > 0)
        arriving = np.stack([np.atleast_1d(to_numpy(column_sums(v) * jump)) for v in self.teleport])
        system = np.eye(self.layers) - self.gamma * flow.astype(np.float64)
        wanted = np.linalg.solve(system, arriving.T[:, :, None])[:, :, 0].T
        factors = np.divide(wanted, held, out=np.ones_like(wanted), where=held > 0)
        if self.columns is None:
            return [vector * float(factor[0]) for vector, factor in zip(state, factors, strict=True)]
        vector_of = self.backend.arithmetic.vector
        return [vector * vector_of(factor) for vector, factor in zip(state, factors, strict=True)]

    # --- the matrix

    @property
    def edges(self) -> int:
        """Number of edges, parallel ones counted apart."""
        return sum(block.edges for block in self.digraph.blocks)

    def matrix(self) -> sparse.csc_array:
        """P as one CSC matrix, (nodes, nodes) float64: for direct solvers."""
        matrix = self.digraph.to_scipy().astype(np.float64)
        strength = np.bincount(matrix.indices, weights=matrix.data, minlength=matrix.shape[1])
        matrix.data /= strength[matrix.indices]
        return matrix.tocsc()

    # --- inside

    def _make_passages(self, products: int) -> list[_Passage]:
        arithmetic = self.backend.arithmetic
        operators: dict[int, BlockOperator] = {}
        strengths: list[Vector] = []
        # Passes in node order need the rows of edges within a layer.
        inner = {id(edges.block) for edges in self.digraph.edges if edges.source == edges.target}
        for edges in self.digraph.edges:
            key = id(edges.block)
            if key not in operators:
                as_csr = key in inner and self.backend.form == "auto"
                make = self.backend.arithmetic.csr_operator
                operators[key] = make(edges.block) if as_csr else self.backend.operator(edges.block, products)
            operator = operators[key]
            with np.errstate(over="ignore", invalid="ignore"):
                strength = operator.in_strength() if edges.transposed else operator.out_strength()
            total = float(strength.sum())
            if total - total != 0.0:
                raise GraphError(
                    f"edges from layer {edges.source} to layer {edges.target}: the out-strengths are not finite: the "
                    "weights hold NaN or Inf, or overflow the dtype; check the weights, or use dtype='float64'"
                )
            strengths.append(strength)
        totals: dict[int, Vector] = {}
        for edges, strength in zip(self.digraph.edges, strengths, strict=True):
            # With shares the part of a node's mass that has somewhere to go, else its strength over all edges.
            part = strength
            if edges.share is not None:
                part = arithmetic.vector((arithmetic.to_numpy(strength) > 0) * edges.share)
            totals[edges.source] = totals[edges.source] + part if edges.source in totals else part
        passages = []
        for edges, strength in zip(self.digraph.edges, strengths, strict=True):
            scale = arithmetic.reciprocal(totals[edges.source])
            if edges.share is not None:
                scale = scale * arithmetic.reciprocal(strength) * edges.share
            passages.append(_Passage(edges, operators[id(edges.block)], scale, scale * strength))
        return passages

    def _passed(self, layer: int, state: State) -> Vector:
        total = state[layer] * 0.0
        for passage in self._into[layer]:
            total = total + passage(state[passage.edges.source])
        return total

    def _is_inner(self, passage: _Passage) -> bool:
        return passage.edges.source == passage.edges.target

    def _against(self, edges: EdgeBlock) -> bool:
        return self._order.index(edges.source) >= self._order.index(edges.target)

    def _split(self, layer: int) -> _Within:
        if layer not in self._within:
            inner = [p for p in self._into[layer] if self._is_inner(p)]
            if len(inner) > 1 or not isinstance(inner[0].operator, CSROperator) or inner[0].edges.transposed:
                raise GraphError(
                    f"layer {layer} has edges within itself; passes in node order need them as one scipy CSR block: use "
                    "backend='scipy', or solver='power', 'anderson' or 'gmres'"
                )
            self._within[layer] = _Within(inner[0].operator, inner[0].scale, self.gamma)
        return self._within[layer]

    def _refuse_nonfinite(self, mass: Vector) -> None:
        total = float(mass.sum())
        if total - total != 0.0:
            raise GraphError(
                "a rank step gave NaN or Inf: the edge weights hold non-finite numbers, or overflow the dtype; check "
                "the weights, or use dtype='float64'"
            )


class _Within:
    """Edges inside one layer, for passes in node order: components first, in topological order."""

    def __init__(self, operator: CSROperator, scale: FloatArray, gamma: float) -> None:
        csr = operator.csr
        self._csr, self._scale, self._gamma = csr, scale.astype(np.float64), gamma
        _, component = csgraph.connected_components(csr, directed=True, connection="strong")
        rows = np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr))
        self.order = _topological_order(component, rows, csr.indices)
        position = np.empty(len(self.order), dtype=np.int64)
        position[self.order] = np.arange(len(self.order))
        against = position[csr.indices] > position[rows]
        weights = csr.data * self._scale[csr.indices]
        self.back: Any = np.bincount(csr.indices, weights=weights * against, minlength=csr.shape[1])

    def solve(self, before: FloatArray, jump: FloatArray) -> FloatArray:
        """The layer after one pass from `before`, with `jump` arriving from elsewhere."""
        from graphs.linalg import kernels

        columns = []
        for old, arriving in zip(np.atleast_2d(before.T), np.atleast_2d(jump.T), strict=True):
            x = old.astype(np.float64)
            kernels.gauss_seidel(
                self._csr.indptr,
                self._csr.indices,
                self._csr.data,
                self._scale,
                self.order,
                self._gamma,
                arriving.astype(np.float64),
                x,
            )
            columns.append(x)
        return np.stack(columns, axis=1).astype(before.dtype) if before.ndim == 2 else columns[0].astype(before.dtype)


def _is_acyclic(operator: BlockOperator) -> bool:
    """Whether the edges of a layer with itself have no cycle, loops aside: a loop is solved with its node."""
    if isinstance(operator, CSRKernelOperator):
        # Strong components cost some ten products, and where there are cycles this ends early.
        from graphs.linalg import kernels

        return kernels.is_acyclic(operator.csr.indptr, operator.csr.indices)
    if not isinstance(operator, CSROperator):
        return False
    components, _ = csgraph.connected_components(operator.csr, directed=True, connection="strong")
    return int(components) == operator.shape[0]


def _topological_order(component: Any, targets: Any, sources: Any) -> Any:
    """Nodes by component, sources first; scipy numbers strong components in one direction or the other."""
    between = component[targets] != component[sources]
    forward = bool((component[sources] <= component[targets])[between].all())
    backward = bool((component[sources] >= component[targets])[between].all())
    if forward or not backward:
        # Neither would still be a valid order for Gauss-Seidel, only not the best; exactness is checked apart.
        return np.argsort(component, kind="stable").astype(np.int64)
    return np.argsort(-component, kind="stable").astype(np.int64)
