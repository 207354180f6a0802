"""Stacked blocks: blocks below or beside each other, each with a scale, and their operator.

For example, the edges into the hidden neurons of a mixture of experts are a stack along axis 0. The edges out of these neurons
are a stack along axis 1.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy import sparse

from graphs.errors import GraphError
from graphs.linalg.blocks import BAND_ELEMENTS, Band, Block, BufferMaker, FloatArray, Nodes, narrow_indices
from graphs.linalg.operators import BlockOperator, Vector
from graphs.linalg.validation import as_block

__all__ = ["PlacedBlock", "StackedBlock", "StackedOperator"]


@dataclass(frozen=True, eq=False)
class PlacedBlock:
    """A part of a stacked block: `scale` times `block`. `spans` are the ranges of its targets and of its sources in the stack."""

    spans: tuple[slice, slice]
    scale: float
    block: Block


@dataclass(frozen=True, eq=False)
class StackedBlock(Block):
    """Blocks stacked along an axis, each multiplied by a scale; nothing is copied.

    Parameters
    ----------
    parts : tuple of blocks
        For axis 0, all parts have the same sources: part p has shape (n_p, n_sources). For axis 1, all parts have the same
        targets: part p has shape (n_targets, n_p).
    scales : tuple of float
        One non-negative number for each part. A part with scale 0 has no edges, and its weights are not read.
    axis : {0, 1}
        0 if the targets of the parts follow each other, 1 if the sources do.

    Raises
    ------
    GraphError
        There is no part; the axis is neither 0 nor 1; the number of scales or the shapes of the parts do not fit; or a scale
        is negative, NaN or Inf.
    """

    parts: tuple[Block, ...]
    scales: tuple[float, ...]
    axis: Literal[0, 1]

    def __post_init__(self) -> None:
        if self.axis not in (0, 1):
            raise GraphError(
                f"a stacked block: expected axis 0 (targets follow each other) or 1 (sources do), got {self.axis!r}"
            )
        if not self.parts or len(self.scales) != len(self.parts):
            raise GraphError(
                f"a stacked block: expected at least one part and one scale for each, got {len(self.parts)} part(s) and "
                f"{len(self.scales)} scale(s)"
            )
        for position, (part, scale) in enumerate(zip(self.parts, self.scales, strict=True)):
            if part.shape[1 - self.axis] != self.parts[0].shape[1 - self.axis]:
                raise GraphError(
                    f"part {position} of a stacked block: expected as many {('sources', 'targets')[self.axis]} as part 0 has, "
                    f"{self.parts[0].shape[1 - self.axis]}, got shape {part.shape}; parts have shape (targets, sources)"
                )
            if not 0.0 <= scale < math.inf:
                raise GraphError(
                    f"part {position} of a stacked block: expected a finite scale of at least 0, got {scale}"
                )

    @classmethod
    def from_weights(
        cls, parts: Sequence[Any], scales: Any = None, axis: Literal[0, 1] = 0, *, check_finite: bool = True
    ) -> StackedBlock:
        """Stack weight matrices; edge weights are the scales times their absolute values.

        Parameters
        ----------
        parts : sequence of matrices
            Each in one of the forms of the weights of :meth:`graphs.LayeredGraph.from_weights`.
        scales : array-like, one number for each part, optional
            1 by default.
        axis, check_finite
            `axis` as for the class, `check_finite` as for :meth:`graphs.LayeredGraph.from_weights`.

        Raises
        ------
        GraphError
            As for the class; or a part is no valid weight matrix, see :meth:`graphs.LayeredGraph.from_weights`.

        Examples
        --------
        >>> stacked = StackedBlock.from_weights([[[1.0, -2.0]], [[3.0, 0.0], [4.0, 5.0]]], [0.5, 2.0])
        >>> stacked.shape, stacked.n_edges
        ((3, 2), 5)
        >>> stacked.to_csr().toarray()
        array([[ 0.5,  1. ],
               [ 6. ,  0. ],
               [ 8. , 10. ]])
        """
        blocks = tuple(
            as_block(part, f"part {position} of a stacked block", check_finite) for position, part in enumerate(parts)
        )
        try:
            numbers = (1.0,) * len(blocks) if scales is None else tuple(map(float, scales))
        except (TypeError, ValueError) as error:
            raise GraphError(f"scales of a stacked block: expected one number for each part, got {scales!r}") from error
        return cls(blocks, numbers, axis)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_targets, n_sources)."""
        lengths = [part.shape[self.axis] for part in self.parts]
        across = self.parts[0].shape[1 - self.axis]
        return (sum(lengths), across) if self.axis == 0 else (across, sum(lengths))

    @cached_property
    def placed(self) -> tuple[PlacedBlock, ...]:
        """The parts with edges: those whose scale is not 0."""
        placed = []
        start = 0
        for part, scale in zip(self.parts, self.scales, strict=True):
            along, across = slice(start, start + part.shape[self.axis]), slice(0, part.shape[1 - self.axis])
            start = along.stop
            if scale > 0.0:
                placed.append(PlacedBlock((along, across) if self.axis == 0 else (across, along), scale, part))
        return tuple(placed)

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return sum(part.block.n_edges for part in self.placed)

    @property
    def device(self) -> Any:
        """The device of the first torch matrix of the parts; None if there is none."""
        return next((part.device for part in self.parts if part.device is not None), None)

    @property
    def csr_dtype(self) -> Any:
        """The widest dtype of the parts."""
        return np.result_type(*(part.csr_dtype for part in self.parts))

    def transposed(self) -> StackedBlock:
        """Return the transposed parts, stacked along the other axis."""
        return StackedBlock(tuple(part.transposed() for part in self.parts), self.scales, 0 if self.axis else 1)

    def squared(self) -> StackedBlock:
        """Return the squared parts with squared scales."""
        scales = tuple(scale * scale for scale in self.scales)
        return StackedBlock(tuple(part.squared() for part in self.parts), scales, self.axis)

    def first_parallel(self) -> StackedBlock:
        """Return the parts, each with the first of its parallel matrices alone."""
        return StackedBlock(tuple(part.first_parallel() for part in self.parts), self.scales, self.axis)

    def bands(self, buffer_maker: BufferMaker, n_entries: int = BAND_ELEMENTS) -> Iterator[Band]:
        """Yield the scaled bands of the parts, part by part."""
        for part in self.placed:
            first_row, first_column = (span.start for span in part.spans)
            for band in part.block.bands(buffer_maker, n_entries):
                matrix = band.matrix
                matrix *= part.scale
                yield Band(_moved(band.rows, first_row), _moved(band.columns, first_column), matrix)

    def submatrix(self, rows: Nodes, columns: Nodes, dtype: Any = None) -> FloatArray:
        """Compute some weights as a dense array."""
        chosen = [np.arange(size)[nodes] for size, nodes in zip(self.shape, (rows, columns), strict=True)]
        weights = np.zeros((len(chosen[0]), len(chosen[1])), dtype or self.csr_dtype)
        for part in self.placed:
            # For rows and for columns: where the nodes of this part are in `chosen`, and their numbers within the part.
            places = [slice(*np.searchsorted(n, (s.start, s.stop))) for n, s in zip(chosen, part.spans, strict=True)]
            within_part = [n[p] - s.start for n, p, s in zip(chosen, places, part.spans, strict=True)]
            part_weights = weights[places[0], places[1]]  # a view
            part_weights[:] = part.block.submatrix(within_part[0], within_part[1], dtype)
            part_weights *= part.scale
        return weights

    def to_csr(self) -> sparse.csr_array:
        """Build the CSR form of all parts. Memory: twice the result."""
        matrices = []
        for part, scale in zip(self.parts, self.scales, strict=True):
            csr = (part.to_csr() if scale > 0.0 else sparse.csr_array(part.shape)).astype(self.csr_dtype)
            csr.data *= scale
            csr.eliminate_zeros()  # products that round to zero
            matrices.append(csr)
        stack = sparse.vstack if self.axis == 0 else sparse.hstack
        return narrow_indices(stack(matrices, format="csr"))


def _moved(span: slice, distance: int) -> slice:
    return slice(span.start + distance, span.stop + distance)


class StackedOperator:
    """A stacked block that is multiplied part by part, each part by its own operator.

    Parameters
    ----------
    block : StackedBlock
    operators : sequence of BlockOperator
        One operator for each part in ``block.placed``. It does not multiply by the scale of the part.
    zeros : callable
        Makes a vector of zeros for the operators, see :meth:`graphs.linalg.backends.Arithmetic.zeros`.
    """

    def __init__(
        self, block: StackedBlock, operators: Sequence[BlockOperator], zeros: Callable[[tuple[int, ...]], Vector]
    ) -> None:
        self.shape = block.shape
        self._parts = tuple(zip(block.placed, operators, strict=True))
        self._zeros = zeros

    def _combined(
        self,
        side: Literal[0, 1],
        compute: Callable[[PlacedBlock, BlockOperator], Vector],
        like: Vector = None,
        combine: Callable[[Vector, Vector], Vector] = operator.add,
    ) -> Vector:
        """Combine what `compute` gives for each part into one vector over the targets (side 0) or the sources (side 1).

        The vector has shape (n,), or (n, k) if `like` has k columns.
        """
        total = self._zeros((self.shape[side], *(() if like is None else like.shape[1:])))
        for part, part_operator in self._parts:
            span = part.spans[side]
            total[span] = combine(total[span], compute(part, part_operator))
        return total

    def out_strength(self) -> Vector:
        """Compute the column sums."""
        return self._combined(1, lambda part, w: w.out_strength() * part.scale)

    def in_strength(self) -> Vector:
        """Compute the row sums."""
        return self._combined(0, lambda part, w: w.in_strength() * part.scale)

    def out_degree(self) -> Vector:
        """Count the edges of every column."""
        return self._combined(1, lambda _, w: w.out_degree())

    def matvec(self, x: Vector) -> Vector:
        """Compute W @ x."""
        return self._combined(0, lambda part, w: w.matvec(x[part.spans[1]]) * part.scale, x)

    def rmatvec(self, y: Vector) -> Vector:
        """Compute W.T @ y."""
        return self._combined(1, lambda part, w: w.rmatvec(y[part.spans[0]]) * part.scale, y)

    def mixed_matvec(self, x: Vector, y: Vector) -> Vector:
        """Compute W @ x + 1[W != 0] @ y."""
        return self._combined(0, lambda part, w: w.mixed_matvec(x[part.spans[1]] * part.scale, y[part.spans[1]]))

    def row_maxima(self, x: Vector) -> Vector:
        """Compute max_j W_ij x_j."""
        return self._combined(0, lambda part, w: w.row_maxima(x[part.spans[1]]) * part.scale, combine=_maximum)

    def column_maxima(self, y: Vector) -> Vector:
        """Compute max_i W_ij y_i."""
        return self._combined(1, lambda part, w: w.column_maxima(y[part.spans[0]]) * part.scale, combine=_maximum)


def _maximum(first: Vector, second: Vector) -> Vector:
    # numpy and torch both have the method clip; their functions for an elementwise maximum differ.
    return first.clip(min=second)
