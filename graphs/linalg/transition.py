"""One step of a layered rank, for weighted and for modified PageRank: from the scores of a layer to those of the next.

r_l are the scores of layer l, a_l its activations, and W the block of edge weights from layer l-1 to layer l. Source: LLM-Rank
(arXiv 2410.13299). Only this module holds the two formulas, and the rules that replace scores or activations that are all zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from graphs.errors import GraphError
from graphs.linalg.backends import Arithmetic
from graphs.linalg.layer_vectors import DeferredChecks, is_on_cpu
from graphs.linalg.operators import BlockOperator, Vector

__all__ = [
    "Normalised",
    "Transition",
    "check_scale",
    "check_sum",
    "divide_by_sum",
    "modified_product",
    "modified_step",
    "normalise",
    "uniform",
    "weighted_mixture",
    "weighted_step",
]


@dataclass(frozen=True)
class Normalised:
    """A non-negative vector of sum 1, and what replaced the given vector, if that was zero.

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
    check_sum(total)
    if total > 0.0:
        return Normalised(vector / total)
    if fallback is not None:
        replacement = normalise(fallback)
        return Normalised(replacement.vector, replacement.fallback or "activation")
    return Normalised(uniform(vector), "uniform")


def uniform(vector: Vector) -> Vector:
    """Return the uniform vector of sum 1 in the shape, dtype and device of a finite vector.

    Examples
    --------
    >>> import numpy as np
    >>> uniform(np.array([1.0, 3.0]))
    array([0.5, 0.5])
    """
    return vector * 0.0 + 1.0 / max(len(vector), 1)


def check_sum(total: float) -> None:
    """Raise a GraphError if the sum of a vector of scores is not finite.

    Examples
    --------
    >>> check_sum(math.inf)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: a rank step gave NaN or Inf: edge weights or activations hold non-finite numbers, ...
    """
    if not math.isfinite(total):
        raise GraphError(
            "a rank step gave NaN or Inf: edge weights or activations hold non-finite numbers, or overflow the dtype; "
            "check both, or use dtype='float64'"
        )


def divide_by_sum(vector: Vector, substitute: Vector) -> tuple[Vector, Vector]:
    """Return two things: a non-negative vector divided by its sum (or `substitute` if the sum is zero), and the sum.

    The sum stays on its device and is not checked here: the caller passes it to :func:`check_sum` once it is on the CPU.

    Examples
    --------
    >>> import numpy as np
    >>> divide_by_sum(np.array([1.0, 3.0]), np.ones(2))[0], divide_by_sum(np.zeros(2), np.ones(2))[0]
    (array([0.25, 0.75]), array([1., 1.]))
    """
    total = vector.sum()
    if is_on_cpu(total):
        total = float(total)
        return (vector / total if total > 0.0 else substitute), total
    return (vector / total).where(total > 0.0, substitute), total


class Transition:
    """The transition P = theta W Ds^-1 + (1 - theta) 1[W != 0] Dk^-1; P itself is never formed.

    W is a block; Ds and Dk are diagonal, with its out-strengths and its out-degrees. Cost at theta = 1: one read of W to make the
    transition, and one for each product.

    Parameters
    ----------
    operator : BlockOperator
        W, (n_targets, n_sources). The transition does not keep it, so each method takes it again.
    theta : float
        Share of the first term, in which scores follow edge weights, 0..1. In the second term they follow bare edges: the edges
        of a source count the same.
    arithmetic : Arithmetic
    checks : DeferredChecks, optional
        Takes the checks of W, and makes them when the caller reads numbers from the device. By default W is checked at once.
    subject : str
        What W is called at the beginning of an error message.

    Attributes
    ----------
    has_dangling : bool
        Whether some source is a dangling node (has no edges); True until that is known.

    Raises
    ------
    GraphError
        The out-strengths are not finite.
    """

    def __init__(
        self,
        operator: BlockOperator,
        theta: float,
        arithmetic: Arithmetic,
        checks: DeferredChecks | None = None,
        subject: str = "",
    ) -> None:
        self.theta = theta
        self.has_dangling = True
        self._has_all_edges = False
        later = DeferredChecks() if checks is None else checks
        strength = operator.out_strength()
        later.add(strength.sum(), _check_strengths, subject)
        later.add((strength == 0).any(), self._note_dangling)
        with np.errstate(over="ignore"):
            self._inverse_strength = arithmetic.reciprocal(strength)
        later.add(self._inverse_strength.sum(), check_scale, subject)
        self._inverse_degree: Vector | None = None
        if theta < 1.0:
            degree = operator.out_degree()
            later.add((degree == operator.shape[0]).all(), self._note_all_edges)
            self._inverse_degree = arithmetic.reciprocal(degree)
        if checks is None:
            later.read()

    def _note_dangling(self, found: float) -> None:
        self.has_dangling = bool(found)

    def _note_all_edges(self, found: float) -> None:
        self._has_all_edges = bool(found)

    def apply(self, operator: BlockOperator, scores: Vector) -> Vector:
        """Compute P @ scores, (n_targets,); the scores of dangling sources are lost."""
        weighted = scores * self._inverse_strength * self.theta
        if self._inverse_degree is None:
            return operator.matvec(weighted)
        bare = scores * self._inverse_degree * (1.0 - self.theta)
        if self._has_all_edges:
            # Every source has an edge to every target, so all targets receive the same from bare edges.
            return operator.matvec(weighted) + bare.sum()
        return operator.mixed_matvec(weighted, bare)

    def row_maxima(self, operator: BlockOperator) -> Vector:
        """Compute an upper bound on max_j P_ij for every target i, (n_targets,)."""
        maxima = operator.row_maxima(self._inverse_strength) * self.theta
        return maxima if self._inverse_degree is None else maxima + self._inverse_degree.max() * (1.0 - self.theta)


def check_scale(total: float) -> None:
    """Raise a GraphError if the sum of the reciprocals of out-strengths is not finite.

    Examples
    --------
    >>> check_scale(math.inf)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: an out-strength is so small that its reciprocal overflows the dtype; ...
    """
    if not math.isfinite(total):
        raise GraphError(
            "an out-strength is so small that its reciprocal overflows the dtype; multiply the weights by a large number, which "
            "changes no rank (or use float64 instead of float32)"
        )


def _check_strengths(total: float) -> None:
    if not math.isfinite(total):
        raise GraphError(
            "the out-strengths are not finite: the edge weights hold NaN or Inf, or overflow the dtype; "
            "check the weights, or use dtype='float64'"
        )


def weighted_mixture(passed: Vector, teleport: Vector, gamma: float) -> Vector:
    """Compute gamma P r_{l-1} + (1 - gamma) N(a_l) from `passed`, P r_{l-1}, and `teleport`, N(a_l), each (n_l,).

    Examples
    --------
    >>> import numpy as np
    >>> weighted_mixture(np.array([0.0, 1.0]), np.array([0.75, 0.25]), gamma=0.5)
    array([0.375, 0.625])
    """
    return passed * gamma + teleport * (1.0 - gamma)


def weighted_step(passed: Vector, activation: Vector, gamma: float) -> Normalised:
    """Compute the weighted rank of a layer: r_l = N(gamma P r_{l-1} + (1 - gamma) N(a_l)), where N is :func:`normalise`.

    Parameters
    ----------
    passed : Vector, (n_l,)
        P r_{l-1}: the scores that come along edges.
    activation : Vector, (n_l,)
        a_l, non-negative; uniform activations replace them if all are zero. a_l is also the fallback of the outer N.
    gamma : float
        Damping, 0..1.

    Examples
    --------
    >>> import numpy as np
    >>> weighted_step(np.array([0.0, 1.0]), np.array([3.0, 1.0]), gamma=0.5).vector
    array([0.375, 0.625])
    """
    return normalise(weighted_mixture(passed, normalise(activation).vector, gamma), activation)


def modified_product(product: Vector, activation: Vector, has_activation: bool) -> Vector:
    """Compute `product` * a_l, (n_l,), where `product` is W r_{l-1}; if all activations are zero, the product alone.

    Examples
    --------
    >>> import numpy as np
    >>> modified_product(np.array([1.0, 2.0]), np.array([3.0, 1.0]), has_activation=True)
    array([3., 2.])
    """
    return product * activation if has_activation else product


def modified_step(product: Vector, activation: Vector) -> Normalised:
    """Compute the modified rank of a layer: r_l = N(`product` * a_l), elementwise, where `product` is W r_{l-1}.

    N is :func:`normalise`, with the fallback a_l. If all activations a_l are zero, uniform activations replace them.

    Examples
    --------
    >>> import numpy as np
    >>> modified_step(np.array([1.0, 1.0]), np.array([3.0, 1.0])).vector
    array([0.75, 0.25])
    """
    return normalise(modified_product(product, activation, float(activation.sum()) > 0.0), activation)
