"""Sweeps over the nodes of one layer whose edges join them with each other, and the test whether these edges form cycles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse import csgraph

from graphs.linalg.blocks import FloatArray
from graphs.linalg.layer_vectors import column_sums, scale_rows
from graphs.linalg.operators import CSRKernelOperator, CSROperator

__all__ = ["NodeSweep", "is_acyclic"]

# A walk on a uniform graph of 100,000 nodes meets itself after about 130 steps. It compares so many sources of a node.
WALK_STEPS = 1000
COMPARED = 64


class NodeSweep:
    """Gauss-Seidel sweeps over the nodes of one layer.

    Parameters
    ----------
    operator : CSROperator
        The weights W of the edges within the layer, (n, n).
    scale : (n,) array
        A source's score is multiplied by it before its edges; P is ``W * scale``.
    gamma : float
        Damping, below 1.
    sorts_nodes : bool
        The order of the nodes: by strongly connected component, in topological order, or if False, that of
        :func:`graphs.linalg.kernels.rows_by_length`.

    Attributes
    ----------
    back_shares : (n,) float64 array
        The share of every node's score that goes to nodes earlier in this order.
    weights : array or None
        The weights that a sweep reads; None if all are equal, for then they are a part of `scale`.
    """

    def __init__(self, operator: CSROperator, scale: FloatArray, gamma: float, sorts_nodes: bool) -> None:
        from graphs.linalg import kernels

        csr, scale = operator.csr, scale.astype(np.float64)
        order = _topological_order(csr) if sorts_nodes else kernels.rows_by_length(csr.indptr)
        position = np.empty_like(order)
        position[order] = np.arange(len(order))
        back_sums, loops = kernels.csr_back_sums(csr.indptr, csr.indices, csr.data, position)
        self.back_shares = back_sums * scale
        reciprocals = 1.0 / (1.0 - gamma * loops * scale)
        # The kernel need not read weights that are all equal.
        equal = csr.nnz and csr.data[0] == csr.data[-1] and bool((csr.data == csr.data[0]).all())
        self.weights: Any = None if equal else csr.data
        scale = scale * float(csr.data[0]) if equal else scale
        arrays = csr.indptr, csr.indices, self.weights, order, scale, reciprocals, self.back_shares
        self._pass = partial(kernels.gauss_seidel, *arrays, gamma)

    def sweep(
        self, before: FloatArray, constant: FloatArray, factors: tuple[float, float] = (1.0, 1.0)
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Compute the scores after one sweep from `before`; `constant` is what arrives from other layers and by teleport.

        `constant` and `before`, (n,) or (n, k), are multiplied by `factors`. Return the scores, and the changes of those that
        lead back, summed as absolute values and with their signs: () or (k,).
        """
        parts: Sequence[Any]
        if before.ndim == 1:
            parts = self._pass(constant, before, factors)
        else:
            each = [self._pass(*columns, factors) for columns in zip(constant.T, before.T, strict=True)]
            parts = [np.stack(columns, axis=-1) for columns in zip(*each, strict=True)]
        scores, absolute, signed = parts
        if before.dtype == np.float64:
            return scores, np.asarray(absolute), np.asarray(signed)
        after = scores.astype(before.dtype)
        # Rounding to a narrower dtype is a change too.
        change = scale_rows(after - before, self.back_shares)
        return after, column_sums(abs(change)), column_sums(change)


def is_acyclic(operator: CSROperator) -> bool:
    """Tell whether the edges within a layer have no cycles except self-loops, which a sweep solves exactly.

    Examples
    --------
    >>> from scipy import sparse
    >>> is_acyclic(CSROperator(sparse.csr_array([[1.0, 0.0], [1.0, 0.0]])))
    True
    """
    if _walk_meets_itself(operator.csr):
        return False
    if isinstance(operator, CSRKernelOperator):
        # The kernel is faster than a search for strongly connected components.
        from graphs.linalg import kernels

        return kernels.is_acyclic(operator.csr.indptr, operator.csr.indices)
    components, _ = csgraph.connected_components(operator.csr, directed=True, connection="strong")
    return int(components) == operator.shape[0]


def _walk_meets_itself(csr: Any) -> bool:
    """Walk along edges from target to source, and tell whether a node was met again; then it lies on a cycle.

    The walk goes to the source with most incoming edges, because one that ends at a node without incoming edges says nothing.
    """
    indptr, indices = csr.indptr, csr.indices
    degrees = np.diff(indptr)
    node, met = int(degrees.argmax()), set[int]()
    for _ in range(WALK_STEPS):
        met.add(node)
        sources = indices[indptr[node] : indptr[node + 1]][:COMPARED]
        sources = sources[sources != node]
        if not len(sources):
            return False
        node = int(sources[degrees[sources].argmax()])
        if node in met:
            return True
    return False


def _topological_order(csr: Any) -> Any:
    """Sort nodes by strongly connected component, so that no edge between components leads to an earlier node."""
    _, component = csgraph.connected_components(csr, directed=True, connection="strong")
    targets = np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr))
    # scipy numbers components in this order or in reverse.
    forward = bool((component[csr.indices] <= component[targets]).all())
    return np.argsort(component if forward else -component, kind="stable").astype(csr.indices.dtype)
