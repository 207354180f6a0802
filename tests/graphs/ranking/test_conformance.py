"""Tests that every storage, backend and solver gives the same ranks; those marked gpu run on CUDA."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from graphs import LayeredGraph, bidirectional_graph, modified_pagerank, pagerank, weighted_pagerank
from graphs.linalg.backends import NumpyArithmetic
from graphs.linalg.operators import CSRKernelOperator, KernelOperator
from tests.graphs.cases import Array, assert_layers_equal, random_case, torch_not_imported
from tests.graphs.ranking.make_golden import textbook_modified, textbook_weighted
from tests.pairwise import pairs, pairwise_by_first
from tests.tables import table

BACKENDS = ["scipy", "torch", "dense", "auto"]
# These two use compiled kernels for large blocks; the tests use kernels for blocks of every size.
COMPILED = ["dense in kernels", "auto in kernels"]
every_backend = pytest.mark.parametrize("backend", [*BACKENDS, *COMPILED], indirect=True)
GRAPHS = {
    "full": random_case(1, (9, 14, 9, 14, 9)),
    "half": random_case(2, (9, 14, 9, 14, 9), density=0.5),
    "sparse": random_case(3, (30, 40, 30), density=0.05),
    "single": random_case(4, (1, 1)),
    "narrow": random_case(5, (6, 1, 6)),
    "deep": random_case(6, (4,) * 12, density=0.6),
}
# A dangling column in the middle and a block of zeros.
GRAPHS["dangling"] = random_case(7, (8, 9, 8))
GRAPHS["dangling"].weights[1][:, 3] = 0.0
GRAPHS["zero block"] = random_case(8, (8, 9, 8))
GRAPHS["zero block"].weights[0][:] = 0.0
EXPECTED = {
    name: (
        textbook_weighted(*case.lists(), 0.6, 1.0),
        textbook_weighted(*case.lists(), 0.9, 0.4),
        textbook_modified(*case.lists(), 0.0),
        textbook_modified(*case.lists(), 0.4),
    )
    for name, case in GRAPHS.items()
}


def coo_with_duplicates(weight: Array) -> sparse.coo_array:
    # Two halves at one place add up to the weight; an explicit zero is not an edge.
    rows, columns = np.nonzero(weight)
    values = weight[rows, columns]
    entries = np.concatenate((values / 2, values / 2, [0.0]))
    places = (np.concatenate((rows, rows, [0])), np.concatenate((columns, columns, [0])))
    return sparse.coo_array((entries, places), shape=weight.shape)


NUMPY_STORAGES: dict[str, Callable[[Array], Any]] = {
    "array": lambda w: w,
    "nested lists": lambda w: w.tolist(),
    "column-major array": np.asfortranarray,
    "transposed view": lambda w: np.ascontiguousarray(w.T).T,
    "reversed view": lambda w: np.ascontiguousarray(w[::-1, ::-1])[::-1, ::-1],
    "strided view": lambda w: np.repeat(np.repeat(w, 2, axis=0), 3, axis=1)[::2, ::3],
    "big-endian array": lambda w: w.astype(">f8"),
    "long double array": lambda w: w.astype(np.longdouble),
    "csr": sparse.csr_array,
    "csc": sparse.csc_array,
    "csr matrix": sparse.csr_matrix,
    "coo with duplicates": coo_with_duplicates,
}
TORCH_STORAGES: dict[str, Callable[[Array], Any]] = {
    "tensor": torch.tensor,
    "parameter": lambda w: torch.nn.Parameter(torch.tensor(w)),
    "transposed tensor": lambda w: torch.tensor(w).t().contiguous().t(),
    "torch coo": lambda w: torch.tensor(w).to_sparse(),
    "torch csr": lambda w: torch.tensor(w).to_sparse_csr(),
}


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backend; the kernels of "dense in kernels" take blocks of every size."""
    name, _, kernels = str(request.param).partition(" in ")
    if kernels:
        monkeypatch.setattr("graphs.linalg.backends.KERNEL_ENTRIES", 1)
    return name


def ranks(graph: LayeredGraph, **options: Any) -> list[Any]:
    return [
        weighted_pagerank(graph, 0.6, **options),
        weighted_pagerank(graph, 0.9, 0.4, **options),
        modified_pagerank(graph, **options),
        modified_pagerank(graph, zero_lowest=0.4, **options),
    ]


def assert_ranks(graph: LayeredGraph, name: str, rtol: float, **options: Any) -> None:
    for result, expected in zip(ranks(graph, **options), EXPECTED[name], strict=True):
        assert_layers_equal(result.scores, expected, rtol)
        assert result.converged


@every_backend
@table(("name", "solver"), itertools.product(GRAPHS, ["sweep", "power"]))
def test_every_backend_and_solver(name: str, solver: str, backend: str) -> None:
    case = GRAPHS[name]
    for graph in (case.graph(), case.graph().with_csr()):
        assert_ranks(graph, name, 1e-10, solver=solver, backend=backend)


@pytest.mark.parametrize("backend", COMPILED, indirect=True)
@table(("name", "gamma", "theta"), pairs(name=GRAPHS, gamma=[0.0, 0.3, 1.0], theta=[0.0, 0.5, 1.0]))
def test_kernels_at_every_gamma_and_theta(name: str, gamma: float, theta: float, backend: str) -> None:
    case = GRAPHS[name]
    expected = textbook_weighted(*case.lists(), gamma, theta)
    column_major = [np.asfortranarray(w) for w in case.weights]
    for graph in (case.graph(), case.graph(column_major), case.graph().with_csr()):
        assert_layers_equal(weighted_pagerank(graph, gamma, theta, backend=backend).scores, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", COMPILED, indirect=True)
def test_the_kernels_are_what_these_tests_met(backend: str) -> None:
    case = GRAPHS["half"]
    result = weighted_pagerank(case.graph(), backend=backend)  # type: ignore[arg-type]
    assert result.backend == f"compiled (float64, {backend})"
    arithmetic = NumpyArithmetic(compiled=True)
    block: Any = case.graph().blocks[0]
    assert isinstance(arithmetic.dense_operator(block), KernelOperator)
    assert isinstance(arithmetic.csr_operator(block), CSRKernelOperator)


@every_backend
@table(("name", "solver"), itertools.product(GRAPHS, ["auto", "power"]))
def test_every_backend_ranks_general_graphs_alike(name: str, solver: str, backend: str) -> None:
    graph = GRAPHS[name].graph()
    teleport = np.random.default_rng(1).random((graph.n_nodes, 3))
    for digraph in (graph, graph.with_csr(), bidirectional_graph(graph)):
        reference = pagerank(digraph, 0.7, solver="lu", backend="scipy")
        found = pagerank(digraph, 0.7, solver=solver, backend=backend)  # type: ignore[arg-type]
        assert_layers_equal(found.scores, reference.scores)
        together = pagerank(digraph, 0.7, teleport, solver=solver, backend=backend)  # type: ignore[arg-type]
        for column in range(3):
            alone = pagerank(digraph, 0.7, teleport[:, column], solver="lu", backend="scipy").stacked
            np.testing.assert_allclose(together.stacked[:, column], alone, rtol=1e-9, atol=1e-12)
        if backend != "dense" and (backend, solver) != ("torch", "auto"):
            # As one matrix, whose edges run within its only layer.
            single: Any = pagerank(digraph.to_scipy(), 0.7, teleport, solver=solver, backend=backend)  # type: ignore[arg-type]
            np.testing.assert_allclose(single.scores[0], together.stacked, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@every_backend
@table("storage", [*NUMPY_STORAGES, *TORCH_STORAGES])
def test_every_storage(storage: str, backend: str) -> None:
    store = (NUMPY_STORAGES | TORCH_STORAGES)[storage]
    for name in ("half", "dangling", "zero block"):
        case = GRAPHS[name]
        assert_ranks(case.graph([store(w) for w in case.weights]), name, 1e-10, backend=backend)


@pytest.mark.parametrize("backend", ["scipy", "dense", "auto", *COMPILED], indirect=True)
@table("storage", NUMPY_STORAGES)
def test_every_numpy_storage_without_torch(storage: str, backend: str) -> None:
    case = GRAPHS["half"]
    with torch_not_imported():
        graph = case.graph([NUMPY_STORAGES[storage](w) for w in case.weights])
        assert_ranks(graph, "half", 1e-10, backend=backend)


@every_backend
@table(("name", "solver"), itertools.product(GRAPHS, ["sweep", "power"]))
def test_float32_agrees_within_its_resolution(name: str, solver: str, backend: str) -> None:
    case = GRAPHS[name]
    for graph in (case.graph(), case.graph().with_csr()):
        assert_ranks(graph, name, 1e-4, solver=solver, backend=backend, dtype="float32")


@every_backend
@table("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_narrow_weights_rank_as_their_widened_values(dtype: torch.dtype, backend: str) -> None:
    case = GRAPHS["half"]
    narrow = [torch.tensor(w).to(dtype) for w in case.weights]
    wide = [w.double().numpy() for w in narrow]
    reference = ranks(case.graph(wide), backend="scipy")
    for found, expected in zip(ranks(case.graph(narrow), backend=backend), reference, strict=True):
        assert_layers_equal(found.scores, expected.scores, 1e-10)


@every_backend
@table("kind", [np.float16, np.float32, np.int8, np.uint16, np.int64, np.bool_])
def test_other_numpy_numbers_rank_as_their_widened_values(kind: Any, backend: str) -> None:
    case = random_case(9, (6, 7, 6))
    narrow = [(np.abs(w * 10) if kind is np.uint16 else w * 10).astype(kind) for w in case.weights]
    wide = [w.astype(np.float64) for w in narrow]
    reference = ranks(case.graph(wide), backend="scipy")
    for found, expected in zip(ranks(case.graph(narrow), backend=backend), reference, strict=True):
        assert_layers_equal(found.scores, expected.scores, 1e-10)


@every_backend
def test_read_only_weights_are_enough(backend: str) -> None:
    case = GRAPHS["half"]
    for weight in (frozen := [w.copy() for w in case.weights]):
        weight.setflags(write=False)
    assert_ranks(case.graph(frozen), "half", 1e-10, backend=backend)


@every_backend
def test_mixed_storages_in_one_graph(backend: str) -> None:
    case = GRAPHS["half"]
    stores: list[Callable[[Array], Any]] = [torch.tensor, sparse.csc_array, np.asfortranarray, lambda w: w]
    graph = case.graph([store(w) for store, w in zip(stores, case.weights, strict=True)])
    assert_ranks(graph, "half", 1e-10, backend=backend)


@every_backend
@table("parts", ["dense", "sparse", "sparse and dense", "three", "mixed orders", "fused", "fused bfloat16"])
def test_every_kind_of_parallel_edges(parts: str, backend: str) -> None:
    case, other = GRAPHS["half"], random_case(12, GRAPHS["half"].sizes, density=0.5)
    split: Callable[[Array, Array], tuple[Any, ...]] = {
        "dense": lambda u, g: (u, torch.tensor(g)),
        "sparse": lambda u, g: (sparse.csr_array(u), sparse.csc_array(g)),
        "sparse and dense": lambda u, g: (sparse.csr_array(u), torch.tensor(g)),
        "three": lambda u, g: (u, g / 2, -g / 2),
        "mixed orders": lambda u, g: (np.asfortranarray(u), np.ascontiguousarray(g)),
        "fused": lambda u, g: tuple(np.split(np.concatenate((u, g)), 2)),
        "fused bfloat16": lambda u, g: torch.tensor(np.concatenate((u, g))).bfloat16().chunk(2),
    }[parts]
    pairs = list(zip(case.weights, other.weights, strict=True))
    if parts == "fused bfloat16":
        pairs = [tuple(torch.tensor(w).bfloat16().double().numpy() for w in pair) for pair in pairs]  # type: ignore[misc]
    reference = ranks(case.graph([np.abs(u) + np.abs(g) for u, g in pairs]), backend="scipy")
    for found, expected in zip(ranks(case.graph([split(*p) for p in pairs]), backend=backend), reference, strict=True):
        assert_layers_equal(found.scores, expected.scores, 1e-10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pairwise_by_first(
    backend=["torch", "dense", "auto"], name=GRAPHS, solver=["sweep", "power"], dtype=["float64", "float32"]
)
def test_cuda_gives_what_the_textbook_gives(name: str, solver: str, backend: str, dtype: str) -> None:
    case, rtol = GRAPHS[name], 1e-10 if dtype == "float64" else 1e-4
    on_device = [torch.tensor(w, device="cuda") for w in case.weights]
    for graph in (case.graph(), case.graph().with_csr(), case.graph(on_device)):
        assert_ranks(graph, name, rtol, solver=solver, backend=backend, device="cuda", dtype=dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_weights_are_ranked_where_they_lie_and_on_scipy_too() -> None:
    case = GRAPHS["half"]
    half = [torch.tensor(w, device="cuda").to(torch.bfloat16) for w in case.weights]
    result = weighted_pagerank(case.graph(half), backend="dense")
    assert result.backend.startswith("torch (cuda")
    assert_layers_equal(result.scores, weighted_pagerank(case.graph(half), backend="scipy").scores)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_large_block_on_cuda_equals_scipy() -> None:
    case = random_case(13, (1024, 4096, 1024), density=0.3)
    reference = weighted_pagerank(case.graph(), 0.7, 0.5, backend="scipy").scores
    for backend in ("torch", "dense"):
        found = weighted_pagerank(case.graph(), 0.7, 0.5, backend=backend, device="cuda").scores
        assert_layers_equal(found, reference, 1e-9)
