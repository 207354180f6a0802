"""Tests of operators against dense matrix algebra."""

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphs.linalg.backends import Arithmetic, NumpyArithmetic, TorchArithmetic, TorchBufferMaker, make_backend
from graphs.linalg.blocks import DenseBlock, NumpyBufferMaker, as_numpy
from graphs.linalg.operators import BlockOperator, CSRKernelOperator, DenseOperator, KernelOperator
from graphs.linalg.validation import as_block
from tests.graphs.cases import Array
from tests.graphs.linalg.test_blocks import MATRICES
from tests.tables import table

NUMPY, TORCH, COMPILED = NumpyArithmetic(), TorchArithmetic(), NumpyArithmetic(compiled=True)


@pytest.fixture
def kernels_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use kernels for blocks of every size."""
    monkeypatch.setattr("graphs.linalg.backends.KERNEL_ENTRIES", 1)


def tensors(block: DenseBlock) -> DenseBlock:
    return replace(block, matrices=tuple(torch.tensor(matrix) for matrix in block.matrices))


def kernel(block: DenseBlock) -> KernelOperator:
    matrices = tuple(m.T if block.column_major else m for m in block.matrices)
    return KernelOperator(tuple(np.ascontiguousarray(m) for m in matrices), block, "float64")


# Two entries per band: every band is a single row or column.
OPERATORS: dict[str, tuple[Arithmetic, Callable[[DenseBlock], BlockOperator]]] = {
    "scipy csr": (NUMPY, NUMPY.csr_operator),
    "torch csr": (TORCH, TORCH.csr_operator),
    "numpy dense": (NUMPY, NUMPY.dense_operator),
    "torch dense": (TORCH, TORCH.dense_operator),
    "compiled csr": (NUMPY, lambda block: CSRKernelOperator(block.to_csr().astype(np.float64))),
    "compiled dense": (NUMPY, kernel),
    "numpy bands": (NUMPY, lambda block: DenseOperator(block, np, NumpyBufferMaker(np.float64), 2)),
    "torch bands": (
        TORCH,
        lambda block: DenseOperator(tensors(block), torch, TorchBufferMaker(torch.device("cpu"), torch.float64), 2),
    ),
}


@pytest.mark.parametrize("kind", OPERATORS)
@given(
    weight=MATRICES,
    column_major=st.booleans(),
    parallel=st.booleans(),
    squarings=st.integers(0, 1),
    seed=st.integers(0, 99),
)
def test_operators_equal_plain_matrix_algebra(
    kind: str, weight: Array, column_major: bool, parallel: bool, squarings: int, seed: int
) -> None:
    arithmetic, make = OPERATORS[kind]
    order = np.asfortranarray if column_major else np.ascontiguousarray
    matrices = (weight, weight[::-1].copy()) if parallel else (weight,)
    operator = make(DenseBlock(tuple(order(matrix) for matrix in matrices), squarings))
    dense = np.sum([np.abs(matrix) ** 2**squarings for matrix in matrices], axis=0)
    assert_operator(operator, dense, arithmetic, seed)


@pytest.mark.parametrize("squarings", [0, 1, 2])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_backend_multiplies_by_squares_in_either_order(
    squarings: int, order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphs.linalg.backends.KERNEL_ENTRIES", 1)
    weight = np.array(np.random.default_rng(0).uniform(-2.0, 2.0, (19, 11)), np.float32, order=order)
    operator = make_backend("dense", None, "float32").operator(DenseBlock((weight,), squarings), 1)
    assert isinstance(operator, KernelOperator) == (squarings < 2)
    dense = np.abs(weight.astype(np.float64)) ** 2**squarings
    assert_operator(operator, dense, NumpyArithmetic("float32"), rtol=2e-6)


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_edge_whose_square_is_no_float32_is_an_edge_in_either_order(order: Any) -> None:
    weight = np.array([[1.0, 1e-25]] * 3, np.float32, order=order)
    operator = KernelOperator((weight if order == "C" else weight.T,), DenseBlock((weight,), 1), "float32")
    np.testing.assert_array_equal(operator.out_degree(), [3.0, 3.0])
    np.testing.assert_array_equal(operator.mixed_matvec(np.ones(2), np.ones(2)), np.full(3, 3.0))
    assert operator.mixed_matvec(np.ones(2), np.ones(2)).dtype == np.float32


def assert_operator(
    operator: BlockOperator, dense: Array, arithmetic: Arithmetic, seed: int = 0, rtol: float = 1e-13
) -> None:
    """Compare every method of an operator with the dense non-negative matrix of its block."""
    rng = np.random.default_rng(seed)
    n_targets, n_sources = dense.shape
    x, y, z = rng.random(n_sources), rng.random(n_sources), rng.random(n_targets)
    many_x, many_z = rng.random((n_sources, 3)), rng.random((n_targets, 3))
    vector, back = arithmetic.vector, arithmetic.to_numpy
    pattern = (dense != 0).astype(float)
    assert operator.shape == dense.shape
    # Twice: a band must not spoil the block.
    for _ in range(2):
        np.testing.assert_allclose(back(operator.out_strength()), dense.sum(axis=0), rtol=rtol)
        np.testing.assert_allclose(back(operator.in_strength()), dense.sum(axis=1), rtol=rtol)
        np.testing.assert_array_equal(back(operator.out_degree()), pattern.sum(axis=0))
        np.testing.assert_allclose(back(operator.matvec(vector(x))), dense @ x, rtol=rtol)
        np.testing.assert_allclose(back(operator.rmatvec(vector(z))), dense.T @ z, rtol=rtol)
        np.testing.assert_allclose(back(operator.matvec(vector(many_x))), dense @ many_x, rtol=rtol)
        np.testing.assert_allclose(back(operator.rmatvec(vector(many_z))), dense.T @ many_z, rtol=rtol)
        mixed = back(operator.mixed_matvec(vector(x), vector(y)))
        np.testing.assert_allclose(mixed, dense @ x + pattern @ y, rtol=rtol)
        np.testing.assert_allclose(back(operator.row_maxima(vector(x))), (dense * x).max(axis=1), rtol=rtol)
        np.testing.assert_allclose(back(operator.column_maxima(vector(z))), (dense.T * z).max(axis=1), rtol=rtol)
        results = (operator.matvec(vector(x)), operator.rmatvec(vector(z)), operator.out_strength())
        assert {str(result.dtype).removeprefix("torch.") for result in results} == {arithmetic.dtype}


@table("kind", OPERATORS)
def test_a_single_column_stays_a_column(kind: str) -> None:
    arithmetic, make = OPERATORS[kind]
    weight = np.random.default_rng(1).random((4, 3))
    operator, column = make(DenseBlock((weight,))), arithmetic.vector(np.ones((3, 1)))
    np.testing.assert_allclose(arithmetic.to_numpy(operator.matvec(column)), weight.sum(axis=1, keepdims=True))
    row = arithmetic.vector(np.ones((4, 1)))
    np.testing.assert_allclose(arithmetic.to_numpy(operator.rmatvec(row)), weight.sum(axis=0)[:, None])


@table("shape", [(1, 1), (1, 3), (3, 1), (2, 3)])
@table("view", [np.s_[::-1], np.s_[:, ::-1], np.s_[::-1, ::-1]])
@table("kind", ["numpy dense", "torch dense", "torch csr"])
def test_views_that_run_backwards(kind: str, shape: tuple[int, int], view: Any) -> None:
    # To numpy a single row is contiguous in every memory order.
    arithmetic, make = OPERATORS[kind]
    weight = np.random.default_rng(1).standard_normal(shape)[view]
    assert_operator(make(DenseBlock((weight,))), np.abs(weight), arithmetic)


# --- kernels on weights as models store them

RNG = np.random.default_rng(5)
GATE_UP = RNG.standard_normal((26, 11)) * (RNG.random((26, 11)) < 0.7)
UP = RNG.standard_normal((13, 11)) * (RNG.random((13, 11)) < 0.7)


def narrowed(weight: Array, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(weight).to(dtype)


# Weights that the kernels can read without a copy.
READ_IN_PLACE: dict[str, tuple[Any, ...]] = {
    "float64": (UP,),
    "float32": (UP.astype(np.float32),),
    "read-only": (np.frombuffer(UP.tobytes()).reshape(UP.shape),),
    "column-major": (np.asfortranarray(UP),),
    "transposed view": (GATE_UP.T,),
    "two": (UP, GATE_UP[:13].copy()),
    "two, column-major": (np.asfortranarray(UP), np.asfortranarray(GATE_UP[:13])),
    "fused halves": (GATE_UP[:13], GATE_UP[13:]),
    "fused halves in float32": tuple(np.split(GATE_UP.astype(np.float32), 2)),
    "the same twice": (UP, UP),
    "tensor": (torch.tensor(UP),),
    "float32 tensor": (narrowed(UP, torch.float32),),
    "bfloat16 tensor": (narrowed(UP, torch.bfloat16),),
    "parameter": (torch.nn.Parameter(narrowed(UP, torch.bfloat16)),),
    "fused bfloat16 halves": narrowed(GATE_UP, torch.bfloat16).chunk(2),
    "column-major bfloat16 tensor": (narrowed(UP, torch.bfloat16).t().contiguous().t(),),
    "two column-major tensors": tuple(narrowed(w, torch.float32).t().contiguous().t() for w in np.split(GATE_UP, 2)),
    "one row": (UP[:1],),
    "one column": (np.ascontiguousarray(UP[:, :1]),),
    "one entry": (np.array([[-2.5]]),),
}
# Weights that the kernels cannot read without a copy, which are read in bands.
READ_IN_BANDS: dict[str, tuple[Any, ...]] = {
    "every second column": (GATE_UP[:, ::2],),
    "every second row": (GATE_UP[::2],),
    "part of the columns": (GATE_UP[:, 2:7],),
    "reversed": (UP[::-1],),
    "mirrored": (UP[:, ::-1],),
    "mixed orders": (UP, np.asfortranarray(GATE_UP[:13])),
    "mixed orders, column-major first": (np.asfortranarray(UP), GATE_UP[:13].copy()),
    "mixed widths": (UP, GATE_UP[:13].astype(np.float32)),
    "mixed half types": (narrowed(UP, torch.bfloat16), narrowed(GATE_UP[:13], torch.float32)),
    "three": (UP, GATE_UP[:13], GATE_UP[13:]),
    "float16 tensor": (narrowed(UP, torch.float16),),
    "float8 tensor": (narrowed(UP, torch.float8_e4m3fn),),
    "fused bfloat16 columns": narrowed(GATE_UP.T, torch.bfloat16).contiguous().chunk(2, dim=1),
    "bfloat16 stride": (narrowed(GATE_UP, torch.bfloat16)[::2, ::3],),
}


def summed(matrices: tuple[Any, ...]) -> Array:
    wide = [m.detach().double().numpy() if isinstance(m, torch.Tensor) else m.astype(np.float64) for m in matrices]
    return np.asarray(np.sum([np.abs(w) for w in wide], axis=0))


@pytest.mark.usefixtures("kernels_for_all")
@table("dtype", ["float64", "float32"])
@table("storage", READ_IN_PLACE)
def test_kernels_on_every_storage(storage: str, dtype: str) -> None:
    arithmetic = NumpyArithmetic(dtype, compiled=True)
    block = as_block(READ_IN_PLACE[storage], "block")
    assert isinstance(block, DenseBlock)
    operator = arithmetic.dense_operator(block)
    assert isinstance(operator, KernelOperator)
    dense = summed(READ_IN_PLACE[storage])
    assert_operator(operator, dense, arithmetic, rtol=1e-13 if dtype == "float64" else 2e-6)


@pytest.mark.usefixtures("kernels_for_all")
@table("storage", READ_IN_BANDS)
def test_bands_where_kernels_would_need_a_copy(storage: str) -> None:
    block = as_block(READ_IN_BANDS[storage], "block")
    assert isinstance(block, DenseBlock)
    operator = COMPILED.dense_operator(block)
    assert_operator(operator, summed(READ_IN_BANDS[storage]), NUMPY)
    assert isinstance(operator, DenseOperator)


@pytest.mark.usefixtures("kernels_for_all")
@table("storage", READ_IN_PLACE)
def test_kernels_share_the_memory_of_the_weights(storage: str) -> None:
    given = READ_IN_PLACE[storage]
    block = as_block(given, "block")
    assert isinstance(block, DenseBlock)
    operator = COMPILED.dense_operator(block)
    assert isinstance(operator, KernelOperator)
    for matrix, source in zip(operator._matrices, given, strict=True):
        tensor = isinstance(source, torch.Tensor)
        assert matrix.ctypes.data == (source.data_ptr() if tensor else source.ctypes.data)
        assert matrix.itemsize == source.itemsize


@pytest.mark.usefixtures("kernels_for_all")
def test_kernels_see_a_weight_change() -> None:
    # Surgery writes to parameters; a view shows the new values, and a copy would not.
    weight = narrowed(UP, torch.bfloat16)
    operator = COMPILED.dense_operator(DenseBlock((weight,)))
    before = operator.out_strength()
    weight.mul_(2.0)
    np.testing.assert_allclose(operator.out_strength(), 2 * before, rtol=1e-15)


@pytest.mark.usefixtures("kernels_for_all")
def test_weights_outlive_who_made_them() -> None:
    operator = COMPILED.dense_operator(DenseBlock((narrowed(UP, torch.bfloat16),)))
    gc.collect()
    expected = as_numpy(narrowed(UP, torch.bfloat16)).astype(np.float64)
    np.testing.assert_allclose(operator.in_strength(), np.abs(expected).sum(axis=1), rtol=1e-14)


@pytest.mark.usefixtures("kernels_for_all")
@table("dtype", ["float64", "float32"])
@table("weights", [np.float32, np.float64])
def test_compiled_csr_on_every_width(dtype: str, weights: Any) -> None:
    arithmetic = NumpyArithmetic(dtype, compiled=True)
    operator = arithmetic.csr_operator(as_block(UP.astype(weights), "block"))
    assert isinstance(operator, CSRKernelOperator)
    assert operator.csr.dtype == dtype
    dense = np.abs(UP.astype(weights)).astype(np.float64)
    assert_operator(operator, dense, arithmetic, rtol=1e-13 if dtype == "float64" else 2e-6)


@pytest.mark.usefixtures("kernels_for_all")
@table("storage", ["float64", "column-major", "two", "bfloat16 tensor"])
def test_vectors_of_any_stride(storage: str) -> None:
    block = as_block(READ_IN_PLACE[storage], "block")
    assert isinstance(block, DenseBlock)
    dense = summed(READ_IN_PLACE[storage])
    for operator in (COMPILED.dense_operator(block), COMPILED.csr_operator(block)):
        for view in (lambda v: np.repeat(v, 3)[::3], lambda v: v[::-1], lambda v: np.column_stack((v, v))[:, 1]):
            x, y, z = view(RNG.random(11)), view(RNG.random(11)), view(RNG.random(13))
            np.testing.assert_allclose(operator.matvec(x), dense @ x, rtol=1e-13)
            np.testing.assert_allclose(operator.rmatvec(z), dense.T @ z, rtol=1e-13)
            np.testing.assert_allclose(operator.mixed_matvec(x, y), dense @ x + (dense != 0) @ y, rtol=1e-13)


def test_torch_csr_has_int32_indices() -> None:
    # torch converts int64 indices at every product, which is five times slower.
    tensor = TORCH.csr(as_block(np.eye(3), "block").to_csr())
    assert tensor.crow_indices().dtype == tensor.col_indices().dtype == torch.int32


def test_column_sums_of_many_float32_entries_do_not_drift() -> None:
    weight = np.full((1 << 17, 1), 0.1, dtype=np.float32)
    arithmetic = NumpyArithmetic("float32")
    exact = float(weight.sum(dtype=np.float64))
    csr = as_block(weight, "block").to_csr()
    for operator in (
        arithmetic.csr_operator(as_block(weight, "block")),
        arithmetic.dense_operator(DenseBlock((weight,))),
        CSRKernelOperator(csr),
        KernelOperator((weight,), DenseBlock((weight,)), "float32"),
    ):
        assert operator.out_strength()[0] == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("arithmetic", [NUMPY, TORCH, COMPILED])
def test_arithmetic(arithmetic: Arithmetic) -> None:
    values = np.array([2.0, 0.0, 0.5, 0.5, 4.0])
    vector, back = arithmetic.vector(values), arithmetic.to_numpy
    np.testing.assert_array_equal(back(arithmetic.reciprocal(vector)), [0.5, 0, 2, 2, 0.25])
    # Of two equal scores the one of lower index is zeroed first.
    np.testing.assert_array_equal(back(arithmetic.with_lowest_zeroed(vector, 2)), [2, 0, 0, 0.5, 4])
    np.testing.assert_array_equal(back(arithmetic.with_lowest_zeroed(vector, 0)), values)
    np.testing.assert_array_equal(back(vector), values)
    copy = back(vector)
    copy[0] = 9.0
    assert back(vector)[0] == 2.0
    values[0] = 7.0
    assert back(vector)[0] == 2.0
