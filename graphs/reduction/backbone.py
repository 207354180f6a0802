"""The disparity filter, which finds the edges of a node that are heavier than chance would make them.

Chance is this null model: a node's strength (the sum of the weights of its k edges) is divided among these edges at random, as
k - 1 uniform points divide an interval. One edge then gets at least the share p of the strength with probability
``alpha = (1 - p)**(k - 1)``. An edge of the graph that has the share p is significant at this node if its alpha is small.

Source: Serrano, Boguna and Vespignani, Extracting the multiscale backbone of complex weighted networks, PNAS 106 (2009)
6483-6488, doi 10.1073/pnas.0808904106, equation 2. In digraphs, out-edges and in-edges are tested separately.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from graphs.linalg.blocks import BAND_ELEMENTS, FloatArray

__all__ = ["disparity", "significant_in_edges"]

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]


def disparity(weights: FloatArray, strengths: FloatArray, degrees: IntArray) -> FloatArray:
    """Compute alpha for edges at one of their nodes: the probability that chance makes an edge at least as heavy.

    Parameters
    ----------
    weights, strengths : float64 arrays that broadcast
        Weight of every edge, and strength of the node at which it is tested, above 0.
    degrees : int array that broadcasts
        Number of edges of this node on the tested side (in-edges or out-edges), at least 1.

    Returns
    -------
    float64 array
        In [0, 1]; 1 for the only edge of a node.

    Examples
    --------
    >>> disparity(np.array([8.0, 1.0, 1.0]), np.array(10.0), np.array(3))
    array([0.04, 0.81, 0.81])
    """
    # This is 1 - p, computed without p: near 1, a rounded p would lose digits.
    others = np.maximum(strengths - weights, 0.0) / strengths
    alphas: FloatArray = np.power(others, np.asarray(degrees, dtype=np.float64) - 1.0)  # 0 ** 0 is 1
    return alphas


def significant_in_edges(csr: sparse.csr_array, significance: float) -> npt.NDArray[np.bool_]:
    """Tell which edges are significant at their targets.

    Parameters
    ----------
    csr : csr_array, (n_targets, n_sources)
        Positive, finite weights.
    significance : float
        An edge is significant if its alpha among the in-edges of its target is below this level.

    Returns
    -------
    (nnz,) bool array
        One value for each entry of ``csr.data``. Cost: one pass.

    Examples
    --------
    >>> csr = sparse.csr_array([[8.0, 1.0, 1.0], [0.0, 5.0, 0.0]])
    >>> significant_in_edges(csr, 0.05)
    array([ True, False, False, False])
    """
    significant = np.zeros(csr.nnz, dtype=np.bool_)
    all_degrees = np.diff(csr.indptr)
    rows = np.flatnonzero(all_degrees)
    stops = csr.indptr[rows + 1].astype(np.int64)
    # The rows are taken in groups of about BAND_ELEMENTS edges, so that little memory is needed.
    for group in np.split(rows, np.flatnonzero(np.diff(stops // BAND_ELEMENTS)) + 1) if len(rows) else ():
        start, stop = int(csr.indptr[group[0]]), int(csr.indptr[group[-1] + 1])
        degrees = all_degrees[group]
        firsts = (csr.indptr[group] - start).astype(np.int64)
        weights = csr.data[start:stop].astype(np.float64)
        # Scaled by a power of two, so that no sum overflows.
        exponents = np.frexp(np.maximum.reduceat(weights, firsts))[1]
        weights = np.ldexp(weights, -np.repeat(exponents, degrees))
        strengths = np.repeat(np.add.reduceat(weights, firsts), degrees)
        significant[start:stop] = disparity(weights, strengths, np.repeat(degrees, degrees)) < significance
    return significant
