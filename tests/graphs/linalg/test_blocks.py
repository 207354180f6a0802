"""Tests of blocks: canonical CSR, dense blocks without copies, and errors."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from graphs import GraphError
from graphs.linalg.blocks import DenseBlock, NumpyBufferMaker, SparseBlock, index_dtype
from graphs.linalg.validation import as_block
from tests.graphs.cases import SIGNED, Array
from tests.tables import table

MATRICES = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=SIGNED, fill=st.nothing())
)


def assert_canonical(csr: sparse.csr_array) -> None:
    csr.check_format(full_check=True)
    assert csr.has_canonical_format
    assert (csr.data > 0).all()
    assert csr.indptr.dtype == csr.indices.dtype == np.int32


@given(MATRICES, st.sampled_from([np.asarray, np.asfortranarray, torch.tensor, sparse.csr_array, sparse.coo_array]))
def test_the_csr_of_any_form_is_the_absolute_matrix(matrix: Array, form: Any) -> None:
    block = as_block(form(matrix), "block")
    csr = block.to_csr()
    assert_canonical(csr)
    np.testing.assert_array_equal(csr.toarray(), np.abs(matrix))
    assert block.shape == matrix.shape
    assert block.n_edges == csr.nnz == np.count_nonzero(matrix)


@given(MATRICES, st.integers(1, 40), st.booleans())
def test_bands_tile_the_block_exactly_once(matrix: Array, elements: int, column_major: bool) -> None:
    block = DenseBlock((np.asfortranarray(matrix) if column_major else matrix, -matrix))
    total = np.zeros(matrix.shape)
    for band in block.bands(NumpyBufferMaker(np.float64), elements):
        assert band.matrix.size <= max(elements, *matrix.shape)
        total[band.rows, band.columns] += band.matrix
    np.testing.assert_array_equal(total, 2 * np.abs(matrix))


def test_long_rows_and_many_bands_make_the_same_csr() -> None:
    # More than 2**19 entries, that is several bands of the default size.
    matrix = np.random.default_rng(1).standard_normal((700, 1100)) * (np.arange(1100) % 3 > 0)
    for form in (matrix, np.asfortranarray(matrix)):
        csr = as_block(form, "block").to_csr()
        assert_canonical(csr)
        np.testing.assert_array_equal(csr.toarray(), np.abs(matrix))


@table(
    ("extents", "kind"),
    [
        ((), np.int32),
        ((0, 5), np.int32),
        ((2**31 - 1, 7), np.int32),
        ((2**31, 7), np.int64),
        ((7, 2**40), np.int64),
    ],
)
def test_indices_are_int32_while_every_extent_fits(extents: tuple[int, ...], kind: type) -> None:
    assert index_dtype(*extents) is kind


def test_int64_indices_narrow_to_int32() -> None:
    csr = sparse.csr_array(np.eye(3))
    wide = sparse.csr_array((csr.data, csr.indices.astype(np.int64), csr.indptr.astype(np.int64)), shape=(3, 3))
    assert_canonical(as_block(wide, "block").to_csr())


def test_a_sparse_block_is_a_copy_in_canonical_form() -> None:
    given_matrix = sparse.csr_array(([-2.0, 0.0, 3.0, -1.0], ([0, 0, 1, 1]), [0, 2, 4]), shape=(2, 2))
    before = given_matrix.copy()
    csr = as_block(given_matrix, "block").to_csr()
    assert_canonical(csr)
    np.testing.assert_array_equal(csr.toarray(), [[2, 0], [0, 2]])
    np.testing.assert_array_equal(given_matrix.data, before.data)
    np.testing.assert_array_equal(given_matrix.indices, before.indices)


def test_a_canonical_matrix_is_copied_too() -> None:
    given_matrix = sparse.csr_array([[0.0, 2.0], [1.0, 3.0]])
    csr = as_block(given_matrix, "block").to_csr()
    assert_canonical(csr)
    for part in ("data", "indices", "indptr"):
        assert not np.shares_memory(getattr(csr, part), getattr(given_matrix, part)), part


def test_explicit_zeros_and_weights_that_cancel_are_no_edges() -> None:
    matrix = sparse.coo_array(([0.0, 2.0, -2.0, 1.0], ([0, 1, 1, 1], [0, 0, 0, 1])), shape=(2, 2))
    csr = as_block(matrix, "block").to_csr()
    assert_canonical(csr)
    assert csr.nnz == 1


@table(("dtype", "kept"), [("f4", "f4"), ("f8", "f8"), ("i2", "f8"), ("?", "f8")])
def test_the_csr_keeps_float32_and_widens_the_rest(dtype: str, kept: str) -> None:
    matrix = np.array([[1, 0], [1, 1]]).astype(dtype)
    assert as_block(sparse.csr_array(matrix), "block").to_csr().dtype == kept
    assert as_block(matrix, "block").to_csr().dtype == kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_narrow_torch_weights_make_a_float32_csr_of_the_same_values(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0.1, -3.0], [0.0, 0.7]]).to(dtype)
    csr = as_block(tensor, "block").to_csr()
    assert csr.dtype == np.float32
    np.testing.assert_array_equal(csr.toarray(), tensor.float().abs().numpy())


def test_edges_of_tiny_and_huge_float64_weights_are_counted_as_the_csr_has_them() -> None:
    block = as_block(np.array([[1e-300, 0.0], [1e300, -1e-50]]), "block")
    assert block.n_edges == block.to_csr().nnz == 3


# --- a dense block does not copy


@pytest.mark.parametrize("view", [lambda w: w, lambda w: w.T, lambda w: w[::2, 1:]])
def test_dense_arrays_are_referred_to(view: Any) -> None:
    weight = np.ones((4, 4), dtype=np.float32)
    block = as_block(view(weight), "block")
    assert isinstance(block, DenseBlock)
    assert np.shares_memory(block.matrices[0], weight)
    weight[:] = 5.0
    assert (block.to_csr().toarray() == 5.0).all()


@table("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dense_tensors_are_referred_to(dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4, dtype=dtype))
    block = as_block(weight, "block")
    assert isinstance(block, DenseBlock)
    assert block.matrices[0].data_ptr() == weight.data_ptr()
    assert not block.matrices[0].requires_grad


@table(
    ("matrix", "column_major"),
    [
        (np.ones((3, 4)), False),
        (np.ones((3, 4), order="F"), True),
        (np.ones((3, 4)).T, True),
        (torch.ones(3, 4), False),
        (torch.ones(3, 4).t(), True),
    ],
)
def test_bands_follow_the_memory_order(matrix: Any, column_major: bool) -> None:
    assert DenseBlock((matrix,)).column_major is column_major


def test_a_sparse_block_gives_its_matrix_not_a_copy() -> None:
    block = as_block(sparse.csr_array(np.eye(2)), "block")
    assert isinstance(block, SparseBlock)
    assert block.to_csr() is block.to_csr()


# --- refusals

NOT_FINITE = np.array([[1.0, 2.0], [3.0, np.nan]])


@table(
    ("value", "message"),
    [
        ((), "it: expected at least one matrix in the tuple"),
        (np.ones(3), r"it: expected a matrix of shape \(targets, sources\).* got 1 dimensions"),
        (torch.ones(1, 2, 3), "it: expected a matrix .* got 3 dimensions"),
        (None, "it: expected a matrix .* got 0 dimensions"),
        ([[1.0], [1.0, 2.0]], "it: expected a matrix with rows of one length"),
        (np.ones((0, 2)), r"it: expected a matrix .* both at least 1.* shape \(0, 2\)"),
        (torch.ones(2, 0), "it: expected a matrix .* both at least 1"),
        (sparse.csr_array((0, 2)), "it: expected a sparse matrix .* both at least 1"),
        (sparse.coo_array(np.ones(3)), r"it: expected a sparse matrix .* got shape \(3,\)"),
        (np.ones((2, 2)) * 1j, "it: expected real numbers, got dtype complex128"),
        (np.array([["a"]]), "it: expected real numbers, got dtype <U1"),
        (sparse.csr_array([[1j]]), "it: expected real numbers, got dtype complex128"),
        (torch.ones(2, 2) * 1j, "it: expected real weights that are not quantised, got torch.complex64"),
        (
            torch.sparse_coo_tensor(size=(2, 2), device="meta", check_invariants=False),
            "it: the weights are on the meta device",
        ),
        (torch.ones(2, 2, device="meta"), "it: the weights are on the meta device .*load the model first"),
        ((np.ones((2, 2)), np.ones((2, 3))), r"it: expected parallel edges in .* one shape, got \(2, 2\) and \(2, 3\)"),
        (
            (sparse.eye_array(2), np.ones((2, 3))),
            r"it: expected parallel edges in .* one shape, got \(2, 2\) and \(2, 3\)",
        ),
        (NOT_FINITE, r"it: 1 weight\(s\) are not finite, the first at row 1, column 1 \(nan\)"),
        (np.array([[np.inf, -np.inf]]), r"it: 2 weight\(s\) are not finite, the first at row 0, column 0 \(inf\)"),
        ((np.ones((2, 2)), NOT_FINITE), "not finite, the first at row 1, column 1"),
        (torch.tensor(NOT_FINITE).bfloat16(), "not finite, the first at row 1, column 1"),
        (torch.tensor(NOT_FINITE).half().t(), "not finite, the first at row 1, column 1"),
        (torch.tensor(NOT_FINITE).to(torch.float8_e4m3fn), "not finite, the first at row 1, column 1"),
        (sparse.csr_array([[1.0, np.inf]]), r"it: 1 weight\(s\) are not finite, the first at row 0, column 1;"),
        (sparse.csr_array([[1.0, np.nan]]), r"it: 1 weight\(s\) are not finite, the first at row 0, column 1;"),
        (torch.tensor([[1.0, -np.inf]]).half(), "not finite, the first at row 0, column 1 "),
        (sparse.csr_array(NOT_FINITE), "not finite, the first at row 1, column 1"),
        (
            sparse.csr_array(([1.0, 1e308, 1e308], [0, 1, 1], [0, 1, 3]), shape=(2, 2)),
            r"it: 1 weight\(s\) are not finite, the first at row 1, column 1; expected finite numbers",
        ),
    ],
)
def test_refusals(value: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        as_block(value, "it")


# torch is retiring these tensors; files written with them still exist.
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_quantised_tensor_is_refused() -> None:
    quantised = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    with pytest.raises(GraphError, match="dequantise them first"):
        as_block(quantised, "it")


@pytest.mark.parametrize(
    "weights", [np.full((2, 2), 3e38, np.float32), np.full((2, 2), 1.5e308), torch.full((9, 9), 6e4).half()]
)
def test_a_sum_that_overflows_is_no_refusal(weights: Any) -> None:
    # The check for NaN reads sums first; finite weights are valid even if their sum overflows.
    assert as_block(weights, "it").shape == tuple(weights.shape)


def test_unchecked_dense_weights_are_not_read() -> None:
    assert as_block(NOT_FINITE, "it", check_finite=False).shape == (2, 2)
    with pytest.raises(GraphError, match="not finite"):
        as_block(sparse.csr_array(NOT_FINITE), "it", check_finite=False)
