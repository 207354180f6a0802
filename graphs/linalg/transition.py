"""The step of a layered rank across one block, for weighted and for modified PageRank.

Source: LLM-Rank (arXiv 2410.13299). Only this module holds the two formulas and their rules for degenerate layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from graphs.errors import GraphError
from graphs.linalg.backends import Arithmetic
from graphs.linalg.operators import BlockOperator, Vector

__all__ = ["Normalised", "Transition", "modified_step", "normalise", "weighted_step"]


@dataclass(frozen=True)
class Normalised:
    """A non-negative vector of sum 1, and the fallback that it was made from, if any.

    Attributes
    ----------
    vector : Vector
    fallback : str
        ``"activation"`` if the given vector was zero, ``"uniform"`` if the activations were zero too or not given, else empty.
    """

    vector: Vector
    fallback: str = ""


def normalise(vector: Vector, fallback: Vector | None = None) -> Normalised:
    """Divide a non-negative vector by its sum; a zero vector is first replaced by `fallback`, or if that is zero too, by ones.

    Raises
    ------
    GraphError
        The sum is not finite: the weights or activations hold NaN or Inf, or the dtype overflowed.

    Examples
    --------
    >>> import numpy as np
    >>> normalise(np.array([1.0, 3.0]))
    Normalised(vector=array([0.25, 0.75]), fallback='')
    >>> normalise(np.zeros(2), np.array([1.0, 3.0]))
    Normalised(vector=array([0.25, 0.75]), fallback='activation')
    """
    total = float(vector.sum())
    if not math.isfinite(total):
        raise GraphError(
            "a rank step gave NaN or Inf: edge weights or activations hold non-finite numbers, or overflow the dtype; "
            "check both, or use dtype='float64'"
        )
    if total > 0.0:
        return Normalised(vector / total)
    if fallback is not None:
        replacement = normalise(fallback)
        return Normalised(replacement.vector, replacement.fallback or "activation")
    return Normalised(vector * 0.0 + 1.0 / max(len(vector), 1), "uniform")


class Transition:
    """The transition P = theta W Ds^-1 + (1 - theta) 1[W != 0] Dk^-1; P itself is never formed.

    W is a block, Ds its out-strengths and Dk its out-degrees. Cost at theta = 1: one read of W here, and one per product.

    Parameters
    ----------
    operator : BlockOperator
        W, (n_targets, n_sources); it is not kept.
    theta : float
        Share of the edge weights against the bare edges, 0..1.
    arithmetic : Arithmetic

    Attributes
    ----------
    has_dangling : bool
        Whether some source is a dangling node.
    """

    def __init__(self, operator: BlockOperator, theta: float, arithmetic: Arithmetic) -> None:
        self.theta = theta
        strength = operator.out_strength()
        if not math.isfinite(float(strength.sum())):
            raise GraphError(
                "the out-strengths are not finite: the edge weights hold NaN or Inf, or overflow the dtype; "
                "check the weights, or use dtype='float64'"
            )
        self.has_dangling = bool((strength == 0).any())
        self._inverse_strength = arithmetic.reciprocal(strength)
        self._inverse_degree: Vector | None = None
        self._has_all_edges = False
        if theta < 1.0:
            degree = operator.out_degree()
            self._has_all_edges = bool((degree == operator.shape[0]).all())
            self._inverse_degree = arithmetic.reciprocal(degree)

    def apply(self, operator: BlockOperator, scores: Vector) -> Vector:
        """Compute P @ scores, (n_targets,); the scores of dangling sources are lost."""
        weighted = scores * self._inverse_strength * self.theta
        if self._inverse_degree is None:
            return operator.matvec(weighted)
        bare = scores * self._inverse_degree * (1.0 - self.theta)
        if self._has_all_edges:
            # All targets receive the same from bare edges.
            return operator.matvec(weighted) + bare.sum()
        return operator.mixed_matvec(weighted, bare)

    def row_maxima(self, operator: BlockOperator) -> Vector:
        """Compute an upper bound on max_j P_ij for every target i, (n_targets,)."""
        maxima = operator.row_maxima(self._inverse_strength) * self.theta
        return maxima if self._inverse_degree is None else maxima + self._inverse_degree.max() * (1.0 - self.theta)


def weighted_step(passed: Vector, activation: Vector, gamma: float) -> Normalised:
    """Compute the weighted rank of a layer: r_l = N(gamma P r_{l-1} + (1 - gamma) N(a_l)), where N is :func:`normalise`.

    Parameters
    ----------
    passed : Vector, (n_l,)
        P r_{l-1}: the scores that come along edges.
    activation : Vector, (n_l,)
        a_l, non-negative; uniform if all are zero. The outer N falls back to a_l.
    gamma : float
        Damping, 0..1.

    Examples
    --------
    >>> import numpy as np
    >>> weighted_step(np.array([0.0, 1.0]), np.array([3.0, 1.0]), gamma=0.5).vector
    array([0.375, 0.625])
    """
    teleport = normalise(activation)
    mixed = passed * gamma + teleport.vector * (1.0 - gamma)
    return normalise(mixed, activation)


def modified_step(product: Vector, activation: Vector) -> Normalised:
    """Compute the modified rank of a layer: r_l = N(`product` * a_l), elementwise, where `product` is W r_{l-1}.

    N is :func:`normalise`, with the fallback a_l. If all activations a_l are zero, uniform activations replace them.

    Examples
    --------
    >>> import numpy as np
    >>> modified_step(np.array([1.0, 1.0]), np.array([3.0, 1.0])).vector
    array([0.75, 0.25])
    """
    if float(activation.sum()) > 0.0:
        return normalise(product * activation, activation)
    return normalise(product, activation)
