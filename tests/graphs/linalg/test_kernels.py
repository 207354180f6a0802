"""Tests of the compiled kernels against numpy, exact sums and plain loops."""

import concurrent.futures
import itertools
import math
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from graphs import LayeredGraph, weighted_pagerank
from graphs.linalg import kernels
from graphs.linalg.threads import POOL, ThreadPool
from tests.graphs.cases import Array
from tests.pairwise import pairs, pairwise_by_first
from tests.tables import table

# One row or column, fewer rows than threads, and odd sizes.
SHAPES = [(1, 1), (1, 7), (7, 1), (2, 3), (3, 33), (17, 5), (31, 64), (64, 31), (101, 67)]
KINDS = ["float32", "float64", "bfloat16"]
THREADS = [1, 2, 3, 8]


@pytest.fixture(params=THREADS)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Set the number of ranges of rows, whatever the machine and the size. Some ranges get no row."""
    monkeypatch.setattr(POOL, "size", request.param)
    monkeypatch.setattr(kernels, "DENSE_WEIGHTS_PER_THREAD", 1)
    monkeypatch.setattr(kernels, "CSR_ENTRIES_PER_THREAD", 1)
    return int(request.param)


def stored(weight: Array, kind: str) -> Array:
    """The weights as the kernels read them; uint16 holds the bits of bfloat16."""
    if kind == "bfloat16":
        return torch.tensor(weight).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    return np.ascontiguousarray(weight.astype(kind))


def magnitudes(matrix: Array) -> Array:
    """|w| in float64, widened by torch and not by the kernels' own code."""
    if matrix.dtype == np.uint16:
        tensor = torch.from_numpy(matrix.view(np.int16)).view(torch.bfloat16)
        return np.abs(tensor.double().numpy())
    return np.abs(matrix.astype(np.float64))


def random_matrices(shape: tuple[int, int], kind: str, count: int, seed: int = 0) -> tuple[Array, ...]:
    rng = np.random.default_rng(seed)
    found = [rng.standard_normal(shape) * (rng.random(shape) < 0.6) for _ in range(count)]
    return tuple(stored(weight, kind) for weight in found)


def summed(matrices: tuple[Array, ...], squared: bool = False) -> Array:
    return np.asarray(np.sum([magnitudes(matrix) ** (2 if squared else 1) for matrix in matrices], axis=0))


# --- dense weights


@table(("shape", "kind", "count", "squared"), pairs(shape=SHAPES, kind=KINDS, count=[1, 2], squared=[False, True]))
def test_dense_kernels_equal_numpy(shape: tuple[int, int], kind: str, count: int, squared: bool, threads: int) -> None:
    matrices = random_matrices(shape, kind, count)
    before = [matrix.copy() for matrix in matrices]
    weight, rng = summed(matrices, squared), np.random.default_rng(1)
    pattern = (weight != 0).astype(float)
    x, y, z = rng.random(shape[1]), rng.random(shape[1]), rng.random(shape[0])
    found = {
        "row": (kernels.row_products(matrices, x, squared), weight @ x),
        "column": (kernels.column_products(matrices, z, squared), weight.T @ z),
        "mixed": (kernels.row_products_mixed(matrices, x, y, squared), weight @ x + pattern @ y),
        "counts": (kernels.column_counts(matrices, squared), pattern.sum(axis=0)),
    }
    for name, (result, expected) in found.items():
        assert result.dtype == np.float64, name
        np.testing.assert_allclose(result, expected, rtol=1e-14, err_msg=name)
    for matrix, copy in zip(matrices, before, strict=True):
        np.testing.assert_array_equal(matrix, copy)


@pytest.mark.parametrize("kind", KINDS)
def test_signs_of_vectors_are_kept(kind: str) -> None:
    # Weights lose their sign and vectors do not, because accelerated solvers multiply differences.
    matrices = random_matrices((21, 7), kind, 1)
    x, z = np.random.default_rng(1).standard_normal((2, 21))
    np.testing.assert_allclose(kernels.row_products(matrices, x[:7]), summed(matrices) @ x[:7], rtol=1e-12)
    np.testing.assert_allclose(kernels.column_products(matrices, z), summed(matrices).T @ z, rtol=1e-12)


@table("kind", KINDS)
@table("bad", [np.nan, np.inf, -np.inf])
@table("count", [1, 2])
@table("place", [3, 20])  # a row that is read with others, and one of those that are left over
def test_nan_and_inf_pass_through(kind: str, bad: float, count: int, place: int) -> None:
    weight = np.random.default_rng(0).random((21, 6)) + 0.1
    spoilt = weight.copy()
    spoilt[place, 2] = bad
    # Only the second of two matrices has a bad weight.
    matrices = (stored(weight, kind), stored(spoilt, kind))[-count:]
    expected = abs(bad)
    ones, row = np.ones(6), np.ones(21)
    for result, node in (
        (kernels.row_products(matrices, ones), place),
        (kernels.column_products(matrices, row), 2),
        (kernels.row_products_mixed(matrices, ones, ones), place),
    ):
        assert result[node] == expected or (math.isnan(expected) and math.isnan(result[node]))
        assert np.isfinite(np.delete(result, node)).all()
    # An infinite or undefined weight is not zero.
    np.testing.assert_array_equal(kernels.column_counts(matrices), np.full(6, 21.0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_in_the_vector_pass_through(bad: float) -> None:
    matrices = (np.ones((3, 4)),)
    x = np.array([1.0, bad, 1.0, 1.0])
    assert not np.isfinite(kernels.row_products(matrices, x)).any()
    assert not np.isfinite(kernels.row_products_mixed(matrices, np.ones(4), x)).any()
    assert not np.isfinite(kernels.column_products(matrices, x[:3])).any()
    # Inf times a weight of zero is undefined, as in numpy.
    assert np.isnan(kernels.row_products((np.zeros((2, 4)),), np.array([1.0, np.inf, 1.0, 1.0]))).all()


def test_the_pattern_multiplies_no_zero_by_infinity() -> None:
    # 1[w != 0] @ y ignores entries of y without an edge, also NaN and Inf.
    matrices = (np.array([[1.0, 0.0]]),)
    np.testing.assert_array_equal(kernels.row_products_mixed(matrices, np.ones(2), np.array([2.0, np.inf])), [3.0])


@pytest.mark.parametrize(
    ("kind", "smallest"),
    [("float32", 2.0**-149), ("float64", 5e-324), ("bfloat16", 2.0**-133)],
)
def test_denormal_weights_are_weights(kind: str, smallest: float) -> None:
    values = np.array([[smallest, -3 * smallest], [0.0, -0.0]])
    matrices = (stored(values, kind),)
    np.testing.assert_array_equal(magnitudes(matrices[0]), np.abs(values))
    np.testing.assert_array_equal(kernels.row_products(matrices, np.ones(2)), [4 * smallest, 0.0])
    np.testing.assert_array_equal(kernels.column_products(matrices, np.ones(2)), [smallest, 3 * smallest])
    np.testing.assert_array_equal(kernels.column_counts(matrices), [1.0, 1.0])
    np.testing.assert_array_equal(kernels.row_products_mixed(matrices, np.zeros(2), np.ones(2)), [2.0, 0.0])


def test_every_bfloat16_is_read_right() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 1)
    found, expected = kernels.row_products((bits,), np.ones(1)), magnitudes(bits)[:, 0]
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(expected).sum() == 2 * 127
    assert np.isinf(expected).sum() == 2
    np.testing.assert_array_equal(kernels.column_counts((bits.reshape(1, -1),)), expected != 0)


def test_the_largest_float32_do_not_overflow() -> None:
    top = np.finfo(np.float32).max
    matrices = (np.full((2, 3), top, dtype=np.float32),) * 2
    np.testing.assert_allclose(kernels.row_products(matrices, np.ones(3)), 6 * float(top), rtol=1e-15)
    np.testing.assert_allclose(kernels.column_products(matrices, np.ones(2)), 4 * float(top), rtol=1e-15)


@pytest.mark.parametrize("squared", [False, True])
def test_float32_weights_of_any_size_are_summed_to_a_few_roundings(squared: bool) -> None:
    # In one row and in one column, weights lie between 1e-30 and 1e30; the squares of the smallest are no float32.
    weight = (10.0 ** np.random.default_rng(0).uniform(-30, 30, (43, 29))).astype(np.float32)
    x, y = 10.0 ** np.random.default_rng(1).uniform(-60, 60, (2, 43))
    exact = weight.astype(np.float64) ** (2 if squared else 1)
    expected = [math.fsum(row) for row in exact * x[:29]], [math.fsum(column) for column in exact.T * y]
    np.testing.assert_allclose(kernels.row_products((weight,), x[:29], squared), expected[0], rtol=4e-16)
    np.testing.assert_allclose(kernels.column_products((weight,), y, squared), expected[1], rtol=4e-16)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_float64_whatever_the_width(kind: str) -> None:
    matrices = random_matrices((300, 401), kind, 1)
    weight = magnitudes(matrices[0])
    x = np.random.default_rng(2).random(401).astype(np.float32).astype(np.float64)
    exact = np.array([math.fsum(a * b for a, b in zip(row, x, strict=True)) for row in weight.tolist()])
    np.testing.assert_allclose(kernels.row_products(matrices, x), exact, rtol=5e-15)
    # float32 vectors are widened before they are multiplied.
    np.testing.assert_allclose(kernels.row_products(matrices, x.astype(np.float32)), exact, rtol=5e-15)
    sums = np.array([math.fsum(column) for column in weight.T.tolist()])
    np.testing.assert_allclose(kernels.column_products(matrices, np.ones(300)), sums, rtol=5e-15)


# --- CSR


def random_csr(shape: tuple[int, int], density: float, index: Any, seed: int = 0, dtype: Any = np.float64) -> Any:
    rng = np.random.default_rng(seed)
    csr = sparse.csr_array(np.where(rng.random(shape) < density, rng.random(shape), 0.0).astype(dtype))
    return csr.indptr.astype(index), csr.indices.astype(index), csr.data, csr


def uneven_csr(counts: list[int], n_columns: int, index: Any) -> Any:
    rng = np.random.default_rng(4)
    indptr = np.concatenate(([0], np.cumsum(counts))).astype(index)
    pieces = [np.sort(rng.choice(n_columns, count, replace=False)) for count in counts]
    indices, data = np.concatenate(pieces).astype(index), rng.random(int(indptr[-1]))
    return indptr, indices, data, sparse.csr_array((data, indices, indptr), shape=(len(counts), n_columns))


def assert_csr(indptr: Array, indices: Array, data: Array, csr: Any, rtol: float = 1e-14) -> None:
    rng = np.random.default_rng(5)
    dense = csr.toarray().astype(np.float64)
    x, y = rng.random(dense.shape[1]), rng.random(dense.shape[0])
    found = kernels.csr_products(indptr, indices, data, x)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, dense @ x, rtol=rtol, atol=0.0)
    found = kernels.csr_column_products(indptr, indices, data, y, dense.shape[1])
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, dense.T @ y, rtol=rtol, atol=0.0)


@table(("shape", "density", "index"), pairs(shape=SHAPES, density=[0.0, 0.1, 1.0], index=[np.int32, np.int64]))
def test_csr_kernels_equal_numpy(shape: tuple[int, int], density: float, index: Any, threads: int) -> None:
    assert_csr(*random_csr(shape, density, index))


@table(
    "counts",
    [
        [0, 0, 0, 5],
        [5, 0, 0, 0],
        [0, 400, 0],
        [400] + [0] * 100,
        [0] * 100 + [400],
        [400] + [1] * 200,
        [1] * 200 + [400] + [1] * 3,
        [0, 400, 0, 400, 0, 1],
        [1] * 7,
        [400],
    ],
)
def test_csr_kernels_on_uneven_and_empty_rows(counts: list[int], threads: int) -> None:
    for index in (np.int32, np.int64):
        assert_csr(*uneven_csr(counts, 450, index))


def test_csr_kernels_on_float32_sum_in_float64() -> None:
    indptr, indices, data, csr = random_csr((1, 20_000), 1.0, np.int32, dtype=np.float32)
    # A float32 sum of so many numbers has an error of at least 1e-7.
    exact = math.fsum(data.tolist())
    assert kernels.csr_products(indptr, indices, data, np.ones(20_000))[0] == pytest.approx(exact, rel=1e-13)
    ones = np.ones(20_000, dtype=np.float32)
    assert kernels.csr_products(indptr, indices, data, ones)[0] == pytest.approx(exact, rel=1e-13)
    assert_csr(indptr, indices, data, csr)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_pass_through_csr(bad: float) -> None:
    indptr, indices, data, _ = random_csr((6, 5), 1.0, np.int32)
    data[7] = bad
    for result, place in (
        (kernels.csr_products(indptr, indices, data, np.ones(5)), 1),
        (kernels.csr_column_products(indptr, indices, data, np.ones(6), 5), 2),
    ):
        np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(result)), [place])
        assert math.isnan(result[place]) == math.isnan(bad)


# --- Gauss-Seidel


def plain_gauss_seidel(weight: Array, scale: Array, order: Any, gamma: float, jump: Array, x: Array) -> Array:
    """Solve the equation of every node in turn, with the current values of the others."""
    x = x.copy()
    for i in order:
        matrix = gamma * weight * scale
        others = sum(matrix[i, j] * x[j] for j in range(len(x)) if j != i)
        x[i] = (jump[i] + others) / (1.0 - matrix[i, i])
    return x


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("sorts", [True, False])
@pairwise_by_first(index=[np.int32, np.int64], loops=[True, False], size=[1, 2, 7, 12], gamma=[0.0, 0.5, 0.99])
def test_gauss_seidel_equals_a_plain_loop(
    index: Any, loops: bool, size: int, gamma: float, sorts: bool, equal: bool
) -> None:
    rng = np.random.default_rng(size)
    weight = np.where(rng.random((size, size)) < 0.6, 1.0 if equal else rng.random((size, size)), 0.0)
    np.fill_diagonal(weight, (1.0 if equal else 2.0) if loops else 0.0)
    strength = weight.sum(axis=0)
    scale = np.divide(1.0, strength, out=np.zeros(size), where=strength > 0)
    order, jump, x = rng.permutation(size) if sorts else None, rng.random(size), rng.random(size)
    csr = sparse.csr_array(weight)
    indptr, indices = csr.indptr.astype(index), csr.indices.astype(index)
    reciprocals = 1.0 / (1.0 - gamma * weight.diagonal() * scale) if loops else None
    arrays = indptr, indices, None if equal else csr.data, order, scale, reciprocals
    for jump_factor, factor in ((1.0, 1.0), (0.25, 3.0)):
        given = x.copy()
        found, change = kernels.gauss_seidel(*arrays, gamma, jump, given, (jump_factor, factor))
        np.testing.assert_array_equal(given, x)
        before, nodes = x * factor, range(size) if order is None else order
        expected = plain_gauss_seidel(weight, scale, nodes, gamma, jump * jump_factor, before)
        np.testing.assert_allclose(found, expected, rtol=1e-13)
        assert change == pytest.approx(abs(expected - before).sum(), rel=1e-12)


@table("index", [np.int32, np.int64])
@table("size", [1, 127, 128, 129, 700])
def test_rows_are_sorted_by_length_in_windows(index: Any, size: int) -> None:
    lengths = np.random.default_rng(size).integers(0, 200, size)
    order = kernels.rows_by_length(np.concatenate(([0], np.cumsum(lengths))).astype(index))
    assert order.dtype == index
    expected = np.lexsort((np.arange(size), np.minimum(lengths, 63), np.arange(size) // 128))
    np.testing.assert_array_equal(order, expected)


def test_scale_and_compare_equals_numpy() -> None:
    x, before = np.random.default_rng(3).standard_normal((2, 1000))
    expected = x * 0.3
    assert kernels.scale_and_compare(x, 0.3, before) == pytest.approx(abs(expected - before).sum(), rel=1e-13)
    np.testing.assert_array_equal(x, expected)


def test_gauss_seidel_meets_its_equation_on_an_acyclic_graph_in_one_pass() -> None:
    rng = np.random.default_rng(8)
    names = rng.permutation(30)
    weight = np.zeros((30, 30))
    weight[np.ix_(names, names)] = np.tril(rng.random((30, 30)))
    scale, jump, x = 1.0 / weight.sum(axis=0), rng.random(30), rng.random(30)
    csr = sparse.csr_array(weight)
    reciprocals = 1.0 / (1.0 - 0.9 * weight.diagonal() * scale)
    arrays = csr.indptr, csr.indices, csr.data, names, scale, reciprocals
    x, _ = kernels.gauss_seidel(*arrays, 0.9, jump, x)
    # Self-loops (on the diagonal) are solved with their node.
    np.testing.assert_allclose(x, np.linalg.solve(np.eye(30) - 0.9 * weight * scale, jump), rtol=1e-12)


def test_gauss_seidel_on_float32_weights() -> None:
    rng = np.random.default_rng(9)
    weight = rng.random((6, 6)).astype(np.float32)
    scale, jump, x = (1.0 / weight.sum(axis=0)).astype(np.float64), rng.random(6), rng.random(6)
    expected = plain_gauss_seidel(weight.astype(np.float64), scale, range(6), 0.8, jump, x)
    csr = sparse.csr_array(weight)
    reciprocals = 1.0 / (1.0 - 0.8 * csr.diagonal().astype(np.float64) * scale)
    arrays = csr.indptr, csr.indices, csr.data, None, scale, reciprocals
    x, _ = kernels.gauss_seidel(*arrays, 0.8, jump, x)
    np.testing.assert_allclose(x, expected, rtol=1e-13)


# --- several Python threads at once


def test_concurrent_calls_do_not_mix() -> None:
    matrices = [random_matrices((40, 50), kind, 2, seed) for seed, kind in enumerate(KINDS * 2)]
    csrs = [random_csr((60, 45), 0.5, np.int32, seed) for seed in range(4)]
    x, z, u = np.random.default_rng(1).random(50), np.random.default_rng(2).random(40), np.random.default_rng(3)
    v, w = u.random(45), u.random(60)
    jobs: list[tuple[Callable[[], Array], Array]] = []
    for pair in matrices:
        dense = summed(pair)
        jobs += [
            (lambda p=pair: kernels.row_products(p, x), dense @ x),  # type: ignore[misc]
            (lambda p=pair: kernels.column_products(p, z), dense.T @ z),  # type: ignore[misc]
            (lambda p=pair: kernels.row_products_mixed(p, x, x), dense @ x + (dense != 0) @ x),  # type: ignore[misc]
            (lambda p=pair: kernels.column_counts(p), (dense != 0).sum(axis=0)),  # type: ignore[misc]
        ]
    for indptr, indices, data, csr in csrs:
        parts = (indptr, indices, data)
        jobs += [
            (lambda p=parts: kernels.csr_products(*p, v), csr @ v),  # type: ignore[misc]
            (lambda p=parts: kernels.csr_column_products(*p, w, 45), csr.T @ w),  # type: ignore[misc]
        ]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = [(pool.submit(job), expected) for _ in range(20) for job, expected in jobs]
        for future, expected in found:
            np.testing.assert_allclose(future.result(timeout=60), expected, rtol=1e-13)


def test_concurrent_ranks_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphs.linalg.backends.KERNEL_ENTRIES", 1)
    rng = np.random.default_rng(1)
    graphs = [
        LayeredGraph.from_weights(
            [rng.standard_normal((30, 20)), rng.standard_normal((25, 30))],
            rng.random(20),
            [rng.random(30), rng.random(25)],
        )
        for _ in range(6)
    ]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda graph: weighted_pagerank(graph, 0.7, 0.4).stacked, graphs * 8))
    for result, graph in zip(found, graphs * 8, strict=True):
        np.testing.assert_allclose(result, weighted_pagerank(graph, 0.7, 0.4, backend="scipy").stacked, rtol=1e-12)


@pytest.mark.slow
def test_kernels_leave_the_threads_of_torch_alone() -> None:
    # numba's OpenMP layer would set the number of threads of torch too, which slows down its small products.
    code = """
        import numpy, torch
        from graphs.linalg import kernels
        torch.set_num_threads(1)
        print(torch.get_num_threads())
        kernels.row_products((numpy.ones((64, 64)),), numpy.ones(64))
        print(torch.get_num_threads())
    """
    # As on a machine with several cores.
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"NUMBA_NUM_THREADS": "2"},
    )
    assert run.stdout == "1\n1\n"


def test_kernels_may_reorder_sums_and_nothing_else() -> None:
    compiled = [value for value in vars(kernels).values() if hasattr(value, "targetoptions")]
    assert len(compiled) >= 10
    for kernel in compiled:
        assert set(kernel.targetoptions["fastmath"]) <= {"reassoc", "contract", "nsz"}, kernel


# --- accuracy of a rank


def exact_weighted(weights: list[Array], activations: list[Array], gamma: float, theta: float) -> list[Array]:
    """The formula with exactly rounded sums, divisions in extended precision."""

    def total(terms: Any) -> np.longdouble:
        # Splitting off float64 heads keeps the tails of the products that fsum would round.
        values = np.asarray(terms, dtype=np.longdouble)
        heads = values.astype(np.float64)
        return np.longdouble(math.fsum(heads.tolist())) + np.longdouble(math.fsum((values - heads).astype(np.float64)))

    wide = [np.abs(weight.astype(np.longdouble)) for weight in weights]
    jumps = [a.astype(np.longdouble) / total(a) for a in activations]
    ranks = [jumps[0]]
    for weight, jump in zip(wide, jumps[1:], strict=True):
        strength = np.array([total(column) for column in weight.T])
        degree = (weight != 0).sum(axis=0)
        shares = theta * weight / strength + (1 - np.longdouble(theta)) * (weight != 0) / degree
        passed = np.array([total(row) for row in shares * ranks[-1]])
        mixed = gamma * passed + (1 - np.longdouble(gamma)) * jump
        ranks.append(mixed / total(mixed))
    return ranks


@pytest.mark.parametrize("kind", ["float32", "float32 tensor", "bfloat16 tensor", "column-major", "csr"])
@pytest.mark.parametrize(("gamma", "theta"), [(0.5, 1.0), (0.9, 1.0), (0.75, 0.5), (1.0, 1.0)])
def test_a_float64_rank_of_narrow_weights_is_exact_to_1e_14(
    monkeypatch: pytest.MonkeyPatch, kind: str, gamma: float, theta: float
) -> None:
    if np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps:
        pytest.skip("no extended precision here")
    monkeypatch.setattr("graphs.linalg.backends.KERNEL_ENTRIES", 1)
    rng = np.random.default_rng(11)
    sizes = (211, 307, 190)
    weights = [
        torch.tensor(rng.standard_normal((n, m)) / 30).to(torch.bfloat16 if "bfloat16" in kind else torch.float32)
        for m, n in itertools.pairwise(sizes)
    ]
    wide = [weight.double().numpy() for weight in weights]
    activations = [rng.random(size) for size in sizes]
    store: Callable[[Any], Any] = {
        "float32": lambda w: w.numpy(),
        "column-major": lambda w: np.asfortranarray(w.numpy()),
        "csr": lambda w: sparse.csr_array(w.numpy()),
    }.get(kind, lambda w: w)
    graph = LayeredGraph.from_weights([store(weight) for weight in weights], activations[0], activations[1:])
    expected = exact_weighted(wide, activations, gamma, theta)
    found = weighted_pagerank(graph, gamma, theta)
    for scores, wanted in zip(found.scores, expected, strict=True):
        assert scores.dtype == np.float64
        assert float(np.abs(scores / wanted - 1).max()) < 1e-14


# --- the threads


def run_parts(pool: ThreadPool, seconds: float = 0.0) -> list[tuple[int, int, int]]:
    """The ranges that a kernel had computed when the pool returned; other threads take longer than the calling one."""
    done: list[tuple[int, int, int]] = []
    caller = threading.get_ident()

    def kernel(start: int, stop: int, part: int) -> None:
        if seconds:
            time.sleep(seconds if threading.get_ident() == caller else 4 * seconds)
        done.append((start, stop, part))

    pool.run(kernel, [0, 10, 20, 30])
    return sorted(done)


EVERY_PART_ONCE = [(0, 10, 0), (10, 20, 1), (20, 30, 2)]


def test_every_range_is_computed_once() -> None:
    pool = ThreadPool()
    for turn in range(200):
        if turn % 50 == 49:
            time.sleep(0.005)  # long enough for every thread to sleep
        assert run_parts(pool) == EVERY_PART_ONCE


def test_ranges_run_on_several_threads() -> None:
    together = threading.Barrier(2, timeout=60)  # broken, if one thread computed both ranges
    pool = ThreadPool()
    pool.run(lambda *_: together.wait() and None, [0, 1, 2])


def test_the_calling_thread_computes_what_no_other_can(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, submit = ThreadPool(), concurrent.futures.ThreadPoolExecutor.submit

    def refuse(executor: Any, work: Callable[[], None]) -> None:
        submit(executor, work)  # as when a thread cannot start: the task is in the queue all the same
        raise RuntimeError("can't start new thread")

    assert run_parts(pool, 0.05) == EVERY_PART_ONCE  # a range that another thread has taken is waited for
    monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, "submit", refuse)
    assert run_parts(pool, 0.05) == EVERY_PART_ONCE


def test_threads_that_are_busy_are_not_waited_for() -> None:
    pool, go = ThreadPool(), threading.Event()
    pool._executor = concurrent.futures.ThreadPoolExecutor(1)
    busy = pool._executor.submit(go.wait, 60)
    assert run_parts(pool) == EVERY_PART_ONCE
    assert not busy.done()
    go.set()


def test_an_error_in_any_range_reaches_the_caller() -> None:
    for bad in range(3):

        def kernel(start: int, stop: int, part: int, bad: int = bad) -> None:
            time.sleep(0.01)  # until every thread has taken a range
            if part == bad:
                raise ValueError(f"range {part}")

        with pytest.raises(ValueError, match=f"range {bad}"):
            ThreadPool().run(kernel, [0, 1, 2, 3])


def test_small_products_run_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(POOL, "size", 8)
    rows, columns = 400, 1_000
    assert kernels._even_cuts(rows, columns) == [0, rows]
    assert kernels._even_cuts(10 * rows, columns) == [0, 1000, 2000, 3000, 4000]  # not 8: each has a million weights
    assert kernels._even_cuts(100 * rows, columns) == [5_000 * k for k in range(9)]
    assert kernels._entry_cuts(np.arange(rows + 1)) == [0, rows]
    assert kernels._entry_cuts(np.arange(rows + 1) * 1_000) == [0, 100, 200, 300, 400]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_products_work_in_a_forked_process() -> None:
    code = """
        import os
        import numpy as np
        from graphs.linalg import kernels
        matrix = np.ones((3000, 1000))
        kernels.POOL.size = 2
        assert kernels.row_products((matrix,), np.ones(1000)).sum() == 3e6
        assert kernels.POOL._executor._threads
        child = os.fork()
        if child == 0:
            kernels.POOL.size = 2
            os._exit(0 if kernels.row_products((matrix,), np.ones(1000)).sum() == 3e6 else 1)
        print(os.waitpid(child, 0)[1])
    """
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert run.stdout == "0\n"


@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([np.int32, np.int64]))
def test_acyclic_is_what_networkx_says_without_loops(n: int, seed: int, forward: bool, kind: type) -> None:
    random = np.random.default_rng(seed)
    dense = (random.random((n, n)) < 1.5 / n).astype(float)
    if forward:  # edges to later nodes only, and loops, in a shuffled order
        dense = np.tril(dense)
        order = random.permutation(n)
        dense = dense[np.ix_(order, order)]
    csr = sparse.csr_array(dense)
    graph = nx.from_scipy_sparse_array(csr.T, create_using=nx.DiGraph)
    graph.remove_edges_from(list(nx.selfloop_edges(graph)))
    found = kernels.is_acyclic(csr.indptr.astype(kind), csr.indices.astype(kind))
    assert found == nx.is_directed_acyclic_graph(graph)
    assert found or not forward
