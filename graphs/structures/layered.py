"""Layered graphs: layers of nodes with activations, and the blocks of edges between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from graphs.checks import check_count, check_sequence, check_type
from graphs.errors import GraphError
from graphs.linalg.backends import TorchArithmetic
from graphs.linalg.blocks import Block, FloatArray, SparseBlock, index_dtype
from graphs.linalg.validation import as_block, as_real

if TYPE_CHECKING:
    import torch

__all__ = ["LayeredGraph", "check_layered"]


@dataclass(frozen=True, eq=False, repr=False)
class LayeredGraph:
    """A layered weighted digraph: every edge leads from layer l-1 to layer l.

    A graph is read-only. :meth:`from_weights` does not copy dense arrays of float32 or float64, nor dense tensors of any
    floating dtype: if their entries change, the graph changes.

    Attributes
    ----------
    blocks : tuple of L blocks
        ``blocks[l - 1]`` holds the edges from layer l-1 to layer l.
    activations : tuple of L+1 float64 arrays, each (n_l,)
        The non-negative activation of every node, from layer 0 (the inputs) on.
    names : tuple of L+1 str
        The name of every layer.
    """

    blocks: tuple[Block, ...]
    activations: tuple[FloatArray, ...]
    names: tuple[str, ...]

    @classmethod
    def from_weights(
        cls,
        weights: Sequence[Any],
        inputs: Any,
        activations: Sequence[Any],
        names: Sequence[str] | None = None,
        *,
        check_finite: bool = True,
    ) -> LayeredGraph:
        """Build a graph from weight matrices; edge weights are their absolute values.

        Parameters
        ----------
        weights : sequence of L matrices, each (n_l, n_{l-1})
            Row = target, column = source, as in ``torch.nn.Linear.weight``. A matrix is an array, a torch tensor (any
            device and floating dtype), a scipy or torch sparse matrix, a tuple of these for parallel edges, whose
            absolute values add up, or a block, such as a :class:`~graphs.linalg.stacking.StackedBlock`.
        inputs : (n_0,) array-like
            Activations of layer 0, non-negative.
        activations : sequence of L array-likes, each (n_l,)
            Activations of layers 1..L, non-negative.
        names : sequence of L+1 str, optional
            Layer names; ``layer 0`` and so on by default.
        check_finite : bool
            Whether to read dense weights now to find NaN and Inf; otherwise the first product finds them.

        Raises
        ------
        GraphError
            There is no matrix; one is empty, not two-dimensional, damaged or without data; shapes, or the numbers of
            activations and names, do not fit; names repeat; numbers are not finite or not real; or activations are negative.

        Examples
        --------
        >>> graph = LayeredGraph.from_weights([[[1.0, -2.0], [0.0, 3.0], [1.0, 0.0]]], [1, 1], [[1, 2, 3]])
        >>> graph
        LayeredGraph(2 layers: 2 -> 3 nodes, 5 nodes, 4 edges, density 0.667)
        """
        for name, values in {
            "weights": weights,
            "activations": activations,
            "names": () if names is None else names,
        }.items():
            check_sequence(name, values, "a sequence with an entry for each layer")
        if len(weights) == 0:
            raise GraphError("expected at least one weight matrix (one block of edges), got none")
        if len(activations) != len(weights):
            raise GraphError(
                f"expected one activation vector per weight matrix ({len(weights)}; layer 0 goes into "
                f"`inputs`), got {len(activations)}"
            )
        blocks = tuple(
            as_block(weight, f"block {position}", check_finite) for position, weight in enumerate(weights, start=1)
        )
        for position, (before, block) in enumerate(itertools.pairwise(blocks), start=2):
            expected, n_sources = before.shape[0], block.shape[1]
            if n_sources != expected:
                raise GraphError(
                    f"block {position}: expected {expected} source nodes, the targets of block {position - 1}, got {n_sources}; "
                    "consecutive matrices have shapes (n_l, n_{l-1}) and (n_{l+1}, n_l)"
                )
        sizes = (blocks[0].shape[1], *(block.shape[0] for block in blocks))
        if names is None:
            names = [f"layer {layer}" for layer in range(len(sizes))]
        names = tuple(str(name) for name in names)
        if len(names) != len(sizes) or len(set(names)) != len(names):
            raise GraphError(f"expected {len(sizes)} distinct layer names, got {list(names)}")
        vectors = tuple(
            _check_activations(vector, size, layer)
            for layer, (vector, size) in enumerate(zip((inputs, *activations), sizes, strict=True))
        )
        return cls(blocks, vectors, names)

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Number of nodes in every layer, (n_0, ..., n_L)."""
        return tuple(len(vector) for vector in self.activations)

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return sum(self.layer_sizes)

    @property
    def n_edges(self) -> int:
        """Number of edges. Cost: one pass over dense blocks at the first call."""
        return sum(block.n_edges for block in self.blocks)

    @property
    def capacity(self) -> int:
        """Largest possible number of edges: pairs of a node and a node of the next layer."""
        return sum(block.shape[0] * block.shape[1] for block in self.blocks)

    @property
    def density(self) -> float:
        """Number of edges divided by the capacity, 0..1. Cost: that of :attr:`n_edges`."""
        return self.n_edges / self.capacity if self.capacity else 0.0

    @property
    def offsets(self) -> tuple[int, ...]:
        """Index of the first node of every layer among all nodes, then the number of nodes (L+2 numbers)."""
        return tuple(itertools.accumulate(self.layer_sizes, initial=0))

    def block(self, layer: int) -> sparse.csr_array:
        """Return the edges into `layer` (1..L) as CSR, row = target. A dense block is converted at every call."""
        return self.blocks[check_count("layer", layer, 1, len(self.blocks)) - 1].to_csr()

    def with_csr(self) -> LayeredGraph:
        """Return the graph with every block stored as CSR, which saves conversions; parallel edges become one edge."""
        return LayeredGraph(tuple(SparseBlock(block.to_csr()) for block in self.blocks), self.activations, self.names)

    def with_activations(self, layer: int, activations: Any) -> LayeredGraph:
        """Return the graph with other activations in one layer.

        Parameters
        ----------
        layer : int
            0..L.
        activations : (n_l,) array-like
            Non-negative.

        Raises
        ------
        GraphError
            There is no such layer, the shape is wrong, or numbers are negative, not finite or not real.

        Examples
        --------
        >>> graph = LayeredGraph.from_weights([[[1.0, -2.0]]], [1, 1], [[3]])
        >>> graph.with_activations(0, [1, 5]).activations
        (array([1., 5.]), array([3.]))
        """
        layer = check_count("layer", layer, 0, len(self.blocks))
        vectors = list(self.activations)
        vectors[layer] = _check_activations(activations, len(vectors[layer]), layer)
        return replace(self, activations=tuple(vectors))

    def reversed(self) -> LayeredGraph:
        """Return the graph with all edges reversed: layer 0 holds the outputs.

        In a rank of the reversed graph, a node's score comes from the nodes to which its edges lead in this graph.

        Examples
        --------
        >>> graph = LayeredGraph.from_weights([[[1.0, -2.0], [0.0, 3.0]], [[4.0, 5.0]]], [1, 2], [[3, 4], [5]])
        >>> graph.reversed()
        LayeredGraph(3 layers: 1 -> 2 -> 2 nodes, 5 nodes, 5 edges, density 0.833)
        """
        blocks = tuple(block.transposed() for block in self.blocks[::-1])
        return LayeredGraph(blocks, self.activations[::-1], self.names[::-1])

    def squared(self) -> LayeredGraph:
        """Return the graph with squared weights and activations; parallel edges are squared before they are added up.

        Squares add up as energies (sums of squares) do: if the values of any two source nodes have a mean product of zero, the
        energy of their weighted sum is the sum, over the edges, of squared weight times squared activation.

        Raises
        ------
        GraphError
            The square of an activation overflows.

        Examples
        --------
        >>> graph = LayeredGraph.from_weights([([[1.0, -2.0]], [[3.0, 0.0]])], [1, 2], [[3]])
        >>> graph.squared().block(1).toarray(), graph.squared().activations
        (array([[10.,  4.]]), (array([1., 4.]), array([9.])))
        """
        with np.errstate(over="ignore"):  # _check_activations finds an overflow
            squares = [np.square(vector) for vector in self.activations]
        vectors = tuple(_check_activations(vector, len(vector), layer) for layer, vector in enumerate(squares))
        return LayeredGraph(tuple(block.squared() for block in self.blocks), vectors, self.names)

    def first_parallel(self) -> LayeredGraph:
        """Return the graph without the second and further ones of parallel edges; activations stay as they are.

        Where the weights of a block were given as several matrices (a tuple), the edges of the first matrix remain. Parallel
        edges that have become one edge (:meth:`with_csr`) cannot be told apart any more and stay. Cost: none; nothing is copied.

        Examples
        --------
        >>> graph = LayeredGraph.from_weights([([[1.0, -2.0]], [[3.0, 0.0]])], [1, 2], [[3]])
        >>> graph.block(1).toarray(), graph.first_parallel().block(1).toarray()
        (array([[4., 2.]]), array([[1., 2.]]))
        """
        return replace(self, blocks=tuple(block.first_parallel() for block in self.blocks))

    def to_scipy(self) -> sparse.csr_array:
        """Build one CSR matrix of the graph.

        Returns
        -------
        scipy.sparse.csr_array, shape (nodes, nodes)
            Row = target, column = source; node k of layer l has index ``offsets[l] + k``. Indices are int32 if the numbers
            of nodes and edges fit, else int64. Memory: 8 to 16 bytes per edge.

        Examples
        --------
        >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 2.0]]], [1, 1], [[1, 1]])
        >>> graph.to_scipy().toarray()[2:, :2]
        array([[1., 0.],
               [1., 2.]])
        """
        matrices = [block.to_csr() for block in self.blocks]
        offsets, n_nodes = self.offsets, self.n_nodes
        n_edges = sum(int(matrix.nnz) for matrix in matrices)
        dtype = index_dtype(n_nodes, n_edges)
        # scipy's block stacking would overflow int32 if the indices of each block fit in int32, but those of all blocks do not.
        data = np.empty(n_edges, dtype=np.result_type(*[matrix.dtype for matrix in matrices]))
        indices = np.empty(n_edges, dtype=dtype)
        indptr = np.zeros(n_nodes + 1, dtype=dtype)
        start = 0
        for layer, matrix in enumerate(matrices, start=1):
            stop = start + int(matrix.nnz)
            data[start:stop] = matrix.data
            indices[start:stop] = matrix.indices
            indices[start:stop] += dtype(offsets[layer - 1])
            rows = slice(offsets[layer] + 1, offsets[layer + 1] + 1)
            indptr[rows] = matrix.indptr[1:]
            indptr[rows] += dtype(start)
            start = stop
        return sparse.csr_array((data, indices, indptr), shape=(n_nodes, n_nodes))

    def to_torch(self, device: str | torch.device = "cpu", dtype: str = "float64") -> torch.Tensor:
        """Build one torch CSR tensor of the graph.

        Parameters
        ----------
        device : str or torch.device
        dtype : {"float64", "float32"}

        Returns
        -------
        torch.Tensor, sparse CSR, shape (nodes, nodes)
            The matrix of :meth:`to_scipy`.

        Raises
        ------
        GraphError
            The device cannot be used, or the dtype is neither float64 nor float32.

        Examples
        --------
        >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 2.0]]], [1, 1], [[1, 1]])
        >>> graph.to_torch().to_dense().tolist()[2:]
        [[1.0, 0.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0]]
        """
        return TorchArithmetic(device, dtype).csr(self.to_scipy())

    def __repr__(self) -> str:
        sizes = self.layer_sizes
        shown = " -> ".join(map(str, sizes if len(sizes) <= 6 else (*sizes[:3], "...", *sizes[-2:])))
        # Counting the edges of large dense blocks reads all weights, which is too slow for a repr.
        if all(isinstance(block, SparseBlock) for block in self.blocks) or self.capacity <= 1_000_000:
            edges = f"{self.n_edges:,} edges, density {self.density:.3g}"
        else:
            edges = f"at most {self.capacity:,} edges"
        return f"LayeredGraph({len(sizes)} layers: {shown} nodes, {self.n_nodes:,} nodes, {edges})"


def _check_activations(vector: Any, size: int, layer: int) -> FloatArray:
    """Check the activations of a layer and copy them to a read-only float64 array."""
    name = "inputs" if layer == 0 else f"activations of layer {layer}"
    try:
        array = as_real(vector)
    except (TypeError, ValueError) as error:
        raise GraphError(f"{name}: expected {size} real numbers, got {type(vector).__name__}: {error}") from error
    if array.shape != (size,):
        raise GraphError(f"{name}: expected shape ({size},), one number per node, got {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise GraphError(
            f"{name}: {len(bad)} value(s) are not finite, the first at node {bad[0]} ({array[bad[0]]}); "
            "check the model and its calibration for NaN or overflow"
        )
    if (array < 0).any():
        node = int(np.flatnonzero(array < 0)[0])
        raise GraphError(
            f"{name}: expected non-negative numbers (norms), got {array[node]} at node {node}; take absolute values"
        )
    array.setflags(write=False)
    return array


def check_layered(graph: Any) -> None:
    """Check that this is a layered graph.

    Parameters
    ----------
    graph : object

    Raises
    ------
    GraphError
        It is something else.

    Examples
    --------
    >>> check_layered(LayeredGraph.from_weights([[[1.0]]], [1.0], [[1.0]]))
    >>> check_layered("graph.safetensors")
    Traceback (most recent call last):
        ...
    graphs.errors.GraphError: graph must be a LayeredGraph (LayeredGraph.from_weights makes one), got str
    """
    check_type("graph", graph, LayeredGraph, "a LayeredGraph (LayeredGraph.from_weights makes one)")
