"""Operators against plain matrix algebra, and the choice of backend."""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from graphs import GraphError, LayeredGraph, weighted_pagerank
from graphs.backends import Arithmetic, NumpyArithmetic, TorchArithmetic, TorchBuffers, make_backend
from graphs.blocks import Block, DenseBlock, NumpyBuffers
from graphs.operators import BlockOperator, CSROperator, DenseOperator, TorchCSROperator
from graphs.validation import as_block
from tests.graphs.cases import Array, random_case, torch_not_imported
from tests.graphs.test_blocks import MATRICES

NUMPY, TORCH = NumpyArithmetic(), TorchArithmetic()


def tensors(block: DenseBlock) -> DenseBlock:
    return DenseBlock(tuple(torch.tensor(matrix) for matrix in block.matrices))


# Two entries to a band: every band is a single row or column.
OPERATORS: dict[str, tuple[Arithmetic, Callable[[DenseBlock], BlockOperator]]] = {
    "scipy csr": (NUMPY, NUMPY.csr_operator),
    "torch csr": (TORCH, TORCH.csr_operator),
    "numpy dense": (NUMPY, NUMPY.dense_operator),
    "torch dense": (TORCH, TORCH.dense_operator),
    "numpy bands": (NUMPY, lambda block: DenseOperator(block, np, NumpyBuffers(np.float64), 2)),
    "torch bands": (
        TORCH,
        lambda block: DenseOperator(tensors(block), torch, TorchBuffers(torch.device("cpu"), torch.float64), 2),
    ),
}


@pytest.mark.parametrize("kind", OPERATORS)
@given(weight=MATRICES, column_major=st.booleans(), seed=st.integers(0, 99))
def test_operators_equal_plain_matrix_algebra(kind: str, weight: Array, column_major: bool, seed: int) -> None:
    arithmetic, make = OPERATORS[kind]
    operator = make(DenseBlock((np.asfortranarray(weight) if column_major else weight,)))
    rng = np.random.default_rng(seed)
    x, y = rng.random(weight.shape[1]), rng.random(weight.shape[1])
    vector, back = arithmetic.vector, arithmetic.to_numpy
    dense, pattern = np.abs(weight), (weight != 0).astype(float)
    assert operator.shape == weight.shape
    # Twice: a band must not spoil the block.
    for _ in range(2):
        np.testing.assert_allclose(back(operator.out_strength()), dense.sum(axis=0), rtol=1e-13)
        np.testing.assert_array_equal(back(operator.out_degree()), pattern.sum(axis=0))
        np.testing.assert_allclose(back(operator.matvec(vector(x))), dense @ x, rtol=1e-13)
        mixed = back(operator.mixed_matvec(vector(x), vector(y)))
        np.testing.assert_allclose(mixed, dense @ x + pattern @ y, rtol=1e-13)


def test_torch_csr_has_int32_indices() -> None:
    # With int64 torch converts at every product: five times slower.
    tensor = TORCH.csr(as_block(np.eye(3), "block").to_csr())
    assert tensor.crow_indices().dtype == tensor.col_indices().dtype == torch.int32


def test_column_sums_of_many_float32_entries_do_not_drift() -> None:
    weight = np.full((1 << 17, 1), 0.1, dtype=np.float32)
    arithmetic = NumpyArithmetic("float32")
    exact = float(weight.sum(dtype=np.float64))
    for operator in (
        arithmetic.csr_operator(as_block(weight, "block")),
        arithmetic.dense_operator(DenseBlock((weight,))),
    ):
        assert operator.out_strength()[0] == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("arithmetic", [NUMPY, TORCH])
def test_arithmetic(arithmetic: Arithmetic) -> None:
    values = np.array([2.0, 0.0, 0.5, 0.5, 4.0])
    vector, back = arithmetic.vector(values), arithmetic.to_numpy
    np.testing.assert_array_equal(back(arithmetic.reciprocal(vector)), [0.5, 0, 2, 2, 0.25])
    # Of the two halves the one with the lower index goes first.
    np.testing.assert_array_equal(back(arithmetic.with_lowest_zeroed(vector, 2)), [2, 0, 0, 0.5, 4])
    np.testing.assert_array_equal(back(arithmetic.with_lowest_zeroed(vector, 0)), values)
    np.testing.assert_array_equal(back(vector), values)
    copy = back(vector)
    copy[0] = 9.0
    assert back(vector)[0] == 2.0
    values[0] = 7.0
    assert back(vector)[0] == 2.0


# --- the choice of backend


def test_the_backend_reports_what_computes() -> None:
    graph = random_case(1, (3, 4)).graph()
    assert weighted_pagerank(graph, backend="scipy").backend == "numpy (float64, csr)"
    assert weighted_pagerank(graph, backend="torch").backend == "torch (cpu, float64, csr)"
    assert weighted_pagerank(graph, backend="dense").backend == "torch (cpu, float64, dense)"
    assert weighted_pagerank(graph, backend="auto", dtype="float32").backend == "torch (cpu, float32, auto)"
    with torch_not_imported():
        assert weighted_pagerank(graph).backend == "numpy (float64, auto)"


def test_dtypes_have_torch_names_too() -> None:
    for dtype in (torch.float32, "torch.float32", "float32"):
        assert make_backend("torch", None, dtype).arithmetic.dtype == "float32"  # type: ignore[arg-type]


def csr_block(density: float) -> Block:
    return as_block(sparse.random_array((50, 50), density=density, random_state=np.random.default_rng(1)), "block")


def dense_block(density: float) -> Block:
    return DenseBlock((csr_block(density).to_csr().toarray(),))


@pytest.mark.parametrize(
    ("block", "products", "kind"),
    [
        # Converting costs more than a few products save, in either direction.
        (dense_block(0.01), 2, DenseOperator),
        (csr_block(1.0), 2, CSROperator),
        # Many products pay for it: below a third of the entries CSR is cheaper.
        (dense_block(0.01), 200, CSROperator),
        (dense_block(0.9), 200, DenseOperator),
        (csr_block(0.9), 200, DenseOperator),
        (csr_block(0.01), 200, CSROperator),
    ],
)
def test_auto_picks_the_cheaper_form(block: Block, products: int, kind: type) -> None:
    with torch_not_imported():
        assert type(make_backend("auto", None, "float64").operator(block, products)) is kind


@pytest.mark.parametrize(
    ("name", "kind"), [("torch", TorchCSROperator), ("scipy", CSROperator), ("dense", DenseOperator)]
)
def test_a_named_backend_is_kept_for_any_block(name: str, kind: type) -> None:
    backend = make_backend(name, None, "float64")
    for block in (csr_block(0.01), dense_block(1.0)):
        assert type(backend.operator(block, 1)) is kind
        assert type(backend.operator(block, 1000)) is kind


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("backend", ["torch", "dense", "auto"])
def test_cuda_without_cuda_is_refused_with_advice(backend: Any) -> None:
    graph = LayeredGraph.from_weights([np.eye(2)], [1, 1], [[1, 1]])
    message = "device 'cuda' cannot be used here .*expected 'cpu', or 'cuda' .* on a machine with that GPU and a CUDA"
    with pytest.raises(GraphError, match=message):
        weighted_pagerank(graph, backend=backend, device="cuda")
    with pytest.raises(GraphError, match=message):
        graph.to_torch("cuda")


def test_torch_asked_for_and_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    with pytest.raises(GraphError, match="backend 'torch' needs torch, which is not installed; pip install torch"):
        make_backend("torch", None, "float64")
    with torch_not_imported(), pytest.raises(GraphError, match="'auto' needs torch"):
        make_backend("auto", "cpu", "float64")
