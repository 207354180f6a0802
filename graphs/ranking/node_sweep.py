"""Sweeps over the nodes of one layer whose edges join them with each other, and the test whether these edges form cycles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse import csgraph

from graphs.linalg.blocks import FloatArray
from graphs.linalg.layer_vectors import column_sums
from graphs.linalg.operators import CSRKernelOperator, CSROperator

__all__ = ["NodeSweep", "is_acyclic"]

# A walk on a uniform graph of 100,000 nodes meets itself after about 130 steps. It compares so many sources of a node.
WALK_STEPS = 1000
COMPARED = 64

# Sorting rows by length saves time where a sweep reads no more bytes of edges than this, which caches hold. Beyond, it makes the
# reads irregular, and on some processors twice as slow (benchmarks/LOG.md).
FEW_BYTES = 3 * 2**20


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
        The order of the nodes: by strongly connected component, in topological order, or if False, that of their numbers; for
        few edges that of :func:`graphs.linalg.kernels.rows_by_length`.

    Attributes
    ----------
    weights : array or None
        The weights that a sweep reads; None if all are equal, for then they are a part of `scale`.
    """

    def __init__(self, operator: CSROperator, scale: FloatArray, gamma: float, sorts_nodes: bool) -> None:
        from graphs.linalg import kernels

        csr, scale = operator.csr, scale.astype(np.float64)
        loops = gamma * csr.diagonal() * scale
        reciprocals = 1.0 / (1.0 - loops) if loops.any() else None
        # The kernel need not read weights that are all equal.
        equal = csr.nnz and csr.data[0] == csr.data[-1] and bool((csr.data == csr.data[0]).all())
        self.weights: Any = None if equal else csr.data
        scale = scale * float(csr.data[0]) if equal else scale
        order = None
        if sorts_nodes:
            order = _topological_order(csr)
        elif csr.indices.nbytes + (0 if equal else csr.data.nbytes) <= FEW_BYTES:
            order = kernels.rows_by_length(csr.indptr)
        self._pass = partial(
            kernels.gauss_seidel, csr.indptr, csr.indices, self.weights, order, scale, reciprocals, gamma
        )

    def sweep(
        self, before: FloatArray, constant: FloatArray, factors: tuple[float, float] = (1.0, 1.0)
    ) -> tuple[FloatArray, FloatArray]:
        """Compute the scores after one sweep from `before`; `constant` is what arrives from other layers and by teleport.

        `constant` and `before`, (n,) or (n, k), are multiplied by `factors`. Return the scores and their L1 change, () or (k,).
        """
        parts: Sequence[Any]
        if before.ndim == 1:
            parts = self._pass(constant, before, factors)
        else:
            each = [self._pass(*columns, factors) for columns in zip(constant.T, before.T, strict=True)]
            parts = [np.stack(columns, axis=-1) for columns in zip(*each, strict=True)]
        scores, change = parts
        if before.dtype == np.float64:
            return scores, np.asarray(change)
        after = scores.astype(before.dtype)
        return after, column_sums(abs(after - before))  # rounding to a narrower dtype is a change too


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
