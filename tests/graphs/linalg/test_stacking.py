"""Stacked blocks against the dense matrices that they stand for, and against the textbook loops."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from graphs import (
    GraphError,
    KeepHighest,
    LayeredGraph,
    bidirectional_graph,
    modified_pagerank,
    pagerank,
    weighted_pagerank,
)
from graphs.io.graph_files import load_graph, save_graph
from graphs.linalg.backends import TorchBufferMaker, make_backend
from graphs.linalg.blocks import Block, DenseBlock, NumpyBufferMaker
from graphs.linalg.operators import DenseOperator, KernelOperator
from graphs.linalg.stacking import StackedBlock, StackedOperator
from graphs.solvers import SOLVERS
from graphs.structures.digraph import as_digraph
from tests.graphs.cases import SIGNED, Array, assert_layers_equal
from tests.graphs.linalg.test_blocks import assert_canonical
from tests.graphs.linalg.test_operators import assert_operator
from tests.graphs.ranking.make_golden import textbook_modified, textbook_weighted
from tests.graphs.ranking.test_memory import peak
from tests.tables import table

# The forms of a part: the object that a user passes, and the parallel edges in it.
PARTS: dict[str, Any] = {
    "float64": lambda w: (w, [w]),
    "float32": lambda w: (w.astype(np.float32), [w.astype(np.float32)]),
    "transposed view": lambda w: (np.ascontiguousarray(w.T).T, [w]),
    "strided view": lambda w: (np.repeat(w, 2, axis=0)[::2], [w]),
    "reversed view": lambda w: (w[::-1, ::-1].copy()[::-1, ::-1], [w]),
    "tensor": lambda w: (torch.tensor(w), [w]),
    "bfloat16": lambda w: (torch.tensor(w).bfloat16(), [torch.tensor(w).bfloat16().double().numpy()]),
    "transposed float32 tensor": lambda w: (torch.tensor(w.T.copy()).float().T, [w.astype(np.float32)]),
    "strided bfloat16": lambda w: (
        torch.tensor(np.repeat(w, 2, axis=0)).bfloat16()[::2],
        [torch.tensor(w).bfloat16().double().numpy()],
    ),
    "csr": lambda w: (sparse.csr_array(w), [w]),
    "parallel": lambda w: ((w, 2 * w[::-1]), [w, 2 * w[::-1]]),
    "parallel csr": lambda w: ((sparse.csr_array(w), sparse.csr_array(2 * w[::-1])), [w, 2 * w[::-1]]),
}
BACKENDS: list[Any] = ["scipy", "torch", "dense", "auto"]
SCALES = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.01, 10.0))


class Stack:
    """Arguments of `StackedBlock.from_weights`, and the matrices of weights and of squared weights."""

    def __init__(self, axis: Any, weights: list[Array], scales: list[float], forms: list[str]) -> None:
        pairs = [PARTS[form](weight) for form, weight in zip(forms, weights, strict=True)]
        self.block = StackedBlock.from_weights([given for given, _ in pairs], scales, axis)
        parallel = [[np.abs(np.float64(w)) * s for w in seen] for (_, seen), s in zip(pairs, scales, strict=True)]
        self.dense: Array = np.concatenate([np.sum(edges, axis=0) for edges in parallel], axis=axis)
        self.energies: Array = np.concatenate([np.sum(np.square(edges), axis=0) for edges in parallel], axis=axis)
        self.forms = forms


@st.composite
def stacks(draw: st.DrawFn, shape: tuple[int, int] | None = None, axis: int | None = None) -> Stack:
    """A stack of any parts; of a given shape if its parts along the axis fit there."""
    axis = draw(st.sampled_from([0, 1])) if axis is None else axis
    along, across = (None, draw(st.integers(1, 5))) if shape is None else (shape[axis], shape[1 - axis])
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    if along is not None:
        cuts = sorted(draw(st.sets(st.integers(1, along - 1), max_size=3))) if along > 1 else []
        lengths = np.diff([0, *cuts, along]).tolist()
    weights, scales, forms = [], [], []
    for length in lengths:
        part = (length, across) if axis == 0 else (across, length)
        weights.append(draw(arrays(np.float64, part, elements=SIGNED, fill=st.nothing())))
        scales.append(draw(SCALES))
        forms.append(draw(st.sampled_from(list(PARTS))))
    return Stack(axis, weights, scales, forms)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[LayeredGraph, LayeredGraph]:
    """A graph of stacked blocks, and the same graph of dense matrices."""
    sizes = [draw(st.integers(1, 6)) for _ in range(draw(st.integers(2, 4)))]
    found = [draw(stacks((n, m), axis=k % 2)) for k, (m, n) in enumerate(itertools.pairwise(sizes))]
    magnitudes = st.one_of(st.just(0.0), st.floats(0.01, 100.0))
    layers = [draw(arrays(np.float64, size, elements=magnitudes, fill=st.nothing())) for size in sizes]
    stacked, dense = (
        LayeredGraph.from_weights(weights, layers[0], layers[1:])
        for weights in ([stack.block for stack in found], [stack.dense for stack in found])
    )
    return stacked, dense


def mixture(seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[list[Block], list[Array], list[Array]]:
    """Two mixtures of three experts, one never used: the blocks, their dense matrices, and the activations of all layers."""
    rng = np.random.default_rng(seed)
    blocks: list[Block] = []
    dense: list[Array] = []
    for _ in range(2):
        gate, up = (torch.tensor(rng.standard_normal((3, 4, 5))).to(dtype) for _ in range(2))
        down = torch.tensor(rng.standard_normal((3, 4, 5))).to(dtype).transpose(1, 2)
        use = torch.tensor([0.7, 0.0, 0.3])
        blocks.append(StackedBlock.from_weights(list(zip(gate, up, strict=True)), use))
        blocks.append(StackedBlock.from_weights(down, axis=1))
        into = [float(pi) * (g.abs().double() + u.abs().double()) for pi, g, u in zip(use, gate, up, strict=True)]
        dense += [torch.cat(into).numpy(), torch.cat([d.abs().double() for d in down], dim=1).numpy()]
    return blocks, dense, [rng.random(size) + 0.1 for size in (5, 12, 5, 12, 5)]


# --- the block


@given(stacks(), st.integers(1, 30), st.data())
def test_a_stacked_block_is_its_dense_matrix(stack: Stack, elements: int, data: st.DataObject) -> None:
    block, dense = stack.block, stack.dense
    for found, expected in (
        (block, dense),
        (block.transposed(), dense.T),
        (block.squared(), stack.energies),
        (block.squared().squared().transposed(), None),
    ):
        csr = found.to_csr()
        assert_canonical(csr)
        assert csr.dtype == found.csr_dtype
        assert found.shape == csr.shape
        assert found.n_edges == csr.nnz
        if expected is not None:
            np.testing.assert_allclose(csr.toarray(), expected, rtol=1e-6)
        total = np.zeros(found.shape)
        for band in found.bands(NumpyBufferMaker(np.float64), elements):
            assert not total[band.rows, band.columns].any()
            total[band.rows, band.columns] = band.matrix
        np.testing.assert_allclose(total, csr.toarray(), rtol=1e-6)
        rows, columns = (
            np.array(sorted(data.draw(st.sets(st.integers(0, size - 1)))), dtype=np.int64) for size in found.shape
        )
        np.testing.assert_array_equal(found.submatrix(rows, columns), csr.toarray()[rows][:, columns])
        np.testing.assert_allclose(found.submatrix(rows, slice(None), np.float64), total[rows], rtol=1e-12)
        np.testing.assert_allclose(found.submatrix(slice(0, 1), columns, np.float64), total[:1, columns], rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("products", [1, 1000])
@settings(max_examples=30)
@given(stack=stacks(), seed=st.integers(0, 99))
def test_its_operator_is_plain_matrix_algebra(backend: str, products: int, stack: Stack, seed: int) -> None:
    chosen = make_backend(backend, None, "float64")
    found = chosen.operator(stack.block, products)
    assert isinstance(found, StackedOperator)
    # CSR holds products of float32 weights in float32; the scale is applied to the vectors.
    assert_operator(found, stack.dense, chosen.arithmetic, seed, rtol=1e-6 if "parallel" in stack.forms else 1e-11)


@settings(max_examples=30)
@given(stack=stacks(), seed=st.integers(0, 99))
def test_bands_in_torch_multiply_too(stack: Stack, seed: int) -> None:
    backend = make_backend("torch", None, "float64")
    maker = TorchBufferMaker(torch.device("cpu"), torch.float64)
    assert_operator(DenseOperator(stack.block, torch, maker, 3), stack.dense, backend.arithmetic, seed, rtol=1e-11)


def test_stacks_can_be_stacked() -> None:
    rng = np.random.default_rng(1)
    a, b, c = rng.random((2, 3)), rng.random((2, 4)), rng.random((5, 7))
    beside = StackedBlock.from_weights([a, b], [2.0, 3.0], axis=1)
    block = StackedBlock.from_weights([beside, c], [0.5, 1.0])
    dense = np.vstack([np.hstack([a, 1.5 * b]), c])
    np.testing.assert_allclose(block.to_csr().toarray(), dense)
    backend = make_backend("auto", None, "float64")
    assert_operator(backend.operator(block, 2), dense, backend.arithmetic)


def test_the_size_of_the_stack_decides_on_kernels() -> None:
    parts = [np.ones((96, 300), np.float32)] * 8
    for block, kind in ((parts, KernelOperator), (parts[:2], DenseOperator)):
        operator = make_backend("auto", None, "float32").operator(StackedBlock.from_weights(block), 2)
        assert isinstance(operator, StackedOperator)
        assert {type(part) for _, part in operator._parts} == {kind}


# --- ranks and what shows them


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-10), ("float32", 2e-4)])
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15)
@given(pair=graphs(), gamma=st.floats(0.0, 1.0), theta=st.sampled_from([0.0, 0.4, 1.0]))
def test_ranks_are_those_of_the_dense_matrices(
    backend: Any, dtype: str, rtol: float, pair: Any, gamma: float, theta: float
) -> None:
    stacked, dense = pair
    energies = stacked.squared()
    for solver, pair in itertools.product(("sweep", "power"), ((stacked, dense), (energies, energies.with_csr()))):
        options: Any = {"solver": solver, "backend": backend, "dtype": dtype}
        found, expected = (weighted_pagerank(graph, gamma, theta, **options) for graph in pair)
        assert_layers_equal(found.scores, expected.scores, rtol)
        # Weights that round otherwise may end the steps of `power` one step earlier, exactly, where it has no bound yet.
        bounds = zip(found.layer_bounds, expected.layer_bounds, strict=True)
        known = np.array([pair for pair in bounds if np.isfinite(pair).all()]).reshape(-1, 2)
        assert known[:, 0] == pytest.approx(known[:, 1], abs=1e-5)
        found, expected = (modified_pagerank(graph, **options) for graph in pair)
        assert_layers_equal(found.scores, expected.scores, rtol)


@table(("solver", "backend"), [*itertools.product(SOLVERS, ["scipy", "auto"]), ("auto", "torch"), ("auto", "dense")])
def test_every_solver_of_general_ranks(solver: Any, backend: Any) -> None:
    blocks, dense, layers = mixture()
    stacked, plain = (LayeredGraph.from_weights(weights, layers[0], layers[1:]) for weights in (blocks, dense))
    for make in (bidirectional_graph, as_digraph):
        if solver == "sweep" and make is bidirectional_graph:
            continue
        found = pagerank(make(stacked), 0.8, solver=solver, backend=backend)
        expected = pagerank(make(plain), 0.8, solver="lu", backend="scipy")
        np.testing.assert_allclose(found.stacked, expected.stacked, rtol=0, atol=1e-10)


@table("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mixture_of_experts_is_ranked_as_the_textbook_does(
    dtype: torch.dtype, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, dense, layers = mixture(dtype=dtype)
    graph = LayeredGraph.from_weights(blocks, layers[0], layers[1:])
    lists = [w.tolist() for w in dense], layers[0].tolist(), [a.tolist() for a in layers[1:]]
    rtol = 1e-10 if dtype == torch.float64 else 1e-6
    for entries in (1 << 18, 1):
        monkeypatch.setattr("graphs.linalg.backends.KERNEL_ENTRIES", entries)
        for gamma, theta in ((0.5, 1.0), (1.0, 0.3), (0.0, 1.0)):
            found = weighted_pagerank(graph, gamma, theta, backend=backend)
            assert_layers_equal(found.scores, textbook_weighted(*lists, gamma, theta), rtol)
        assert_layers_equal(modified_pagerank(graph, backend=backend).scores, textbook_modified(*lists, 0.0), rtol)
    # The expert that is never used has no edges into it: its neurons have what teleports.
    assert found.scores[1][4:8] == pytest.approx(layers[1][4:8] / layers[1].sum())


def test_energies_square_every_parallel_edge_and_every_scale() -> None:
    gate, up = np.array([[1.0, -2.0]]), np.array([[3.0, 0.0]])
    block = StackedBlock.from_weights([(gate, up), (up, up)], [0.5, 2.0])
    graph = LayeredGraph.from_weights([block], [1, 2], [[3, 1]])
    np.testing.assert_allclose(graph.squared().block(1).toarray(), [[0.25 * 10, 0.25 * 4], [4 * 18, 0]])


def test_certificates_hold() -> None:
    blocks, dense, layers = mixture()
    keep = KeepHighest({1: 3, 3: 5})
    found, expected = (
        weighted_pagerank(LayeredGraph.from_weights(w, layers[0], layers[1:]), 0.9, 0.5, "power", keep=keep).certificate
        for w in (blocks, dense)
    )
    assert found is not None
    assert expected is not None
    assert found.certified
    for layer, mask in expected.keep.items():
        np.testing.assert_array_equal(found.keep[layer], mask)
    assert found.required_gaps == pytest.approx(expected.required_gaps)


def test_a_stack_in_a_file_is_its_edges(tmp_path: Path) -> None:
    blocks, dense, layers = mixture()
    graph = LayeredGraph.from_weights(blocks, layers[0], layers[1:])
    save_graph(graph, tmp_path / "mixture.safetensors")
    found = load_graph(tmp_path / "mixture.safetensors")
    for layer, weight in enumerate(dense, start=1):
        np.testing.assert_allclose(found.block(layer).toarray(), weight)


# --- nothing is copied


@pytest.mark.parametrize("axis", [0, 1])
def test_parts_are_views(axis: Any) -> None:
    weights = np.ones((4, 6, 6), dtype=np.float32)
    tensors = torch.nn.Parameter(torch.ones(4, 6, 6).bfloat16())
    for given_parts, first in ((list(weights), lambda m: m.ctypes.data), (list(tensors), lambda m: m.data_ptr())):
        block = StackedBlock.from_weights(given_parts, [1, 2, 0, 3], axis)
        for stacked in (block, block.squared(), block.transposed()):
            for part, given_part in zip(stacked.parts, given_parts, strict=True):
                assert isinstance(part, DenseBlock)
                assert first(part.matrices[0]) == first(given_part)


@pytest.mark.parametrize("theta", [1.0, 0.5])
def test_a_rank_of_a_stack_needs_no_copy(theta: float) -> None:
    rng = np.random.default_rng(1)
    up, down = rng.random((8, 200, 300), dtype=np.float32), rng.random((8, 300, 200), dtype=np.float32)

    def rank() -> Any:
        blocks = [StackedBlock.from_weights(up, rng.random(8)), StackedBlock.from_weights(down, axis=1)]
        graph = LayeredGraph.from_weights(blocks, np.ones(300), [np.ones(1600), np.ones(300)])
        return weighted_pagerank(graph, 0.5, theta, dtype="float32")

    rank()  # compiles
    assert peak(rank) < 0.15 * up.nbytes


# --- refusals


@table(
    ("parts", "scales", "axis", "message"),
    [
        ([], None, 0, r"expected at least one part and one scale for each, got 0 part\(s\) and 0 scale\(s\)"),
        ([np.eye(2)], [1, 2], 0, r"one scale for each, got 1 part\(s\) and 2 scale\(s\)"),
        ([np.eye(2)], None, 2, "expected axis 0 .* or 1 .*, got 2"),
        ([np.eye(2), np.ones((2, 3))], None, 0, r"part 1 .* as many sources as part 0 has, 2, got shape \(2, 3\)"),
        ([np.eye(2), np.ones((3, 2))], None, 1, r"part 1 .* as many targets as part 0 has, 2, got shape \(3, 2\)"),
        ([np.eye(2)], [-1.0], 0, "part 0 of a stacked block: expected a finite scale of at least 0, got -1.0"),
        ([np.eye(2)], [np.nan], 0, "expected a finite scale of at least 0, got nan"),
        ([np.eye(2)], torch.tensor([torch.inf]), 0, "expected a finite scale of at least 0, got inf"),
        ([np.eye(2)], ["a"], 0, "expected one number for each part, got \\['a'\\]"),
        ([np.eye(2)], 3.0, 0, "expected one number for each part, got 3.0"),
        (
            [np.eye(2), np.ones(2)],
            None,
            0,
            r"part 1 of a stacked block: expected a matrix of shape \(targets, sources\)",
        ),
        ([np.array([[np.nan]])], None, 0, r"part 0 of a stacked block: 1 weight\(s\) are not finite"),
    ],
)
def test_refusals(parts: Any, scales: Any, axis: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        StackedBlock.from_weights(parts, scales, axis)


def test_a_scale_whose_square_overflows_is_refused() -> None:
    with pytest.raises(GraphError, match="expected a finite scale of at least 0, got inf"):
        StackedBlock.from_weights([np.eye(2)], [1e200]).squared()


def test_unread_weights_of_unused_parts_do_no_harm() -> None:
    block = StackedBlock.from_weights([np.eye(2), np.full((2, 2), np.nan)], [1.0, 0.0], check_finite=False)
    graph = LayeredGraph.from_weights([block], [1, 1], [[1, 1, 1, 1]])
    for backend in BACKENDS:
        rank = weighted_pagerank(graph, 1.0, backend=backend)
        assert rank.scores[1].tolist() == [0.5, 0.5, 0.0, 0.0]
    np.testing.assert_array_equal(block.to_csr().toarray(), [[1, 0], [0, 1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(block.submatrix(slice(1, 3), slice(None)), [[0, 1], [0, 0]])


def test_used_weights_that_are_not_finite_are_found_by_the_rank() -> None:
    block = StackedBlock.from_weights([np.eye(2), np.full((2, 2), np.nan)], check_finite=False)
    graph = LayeredGraph.from_weights([block], [1, 1], [[1, 1, 1, 1]])
    with pytest.raises(GraphError, match="block 1: the out-strengths are not finite"):
        weighted_pagerank(graph)
