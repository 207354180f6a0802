"""Tests of the choice of a backend and of every block's operator."""

import importlib.util
import itertools
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from graphs import GraphError, LayeredGraph, pagerank, weighted_pagerank
from graphs.linalg.backends import KERNEL_ENTRIES, make_backend
from graphs.linalg.blocks import Block, DenseBlock
from graphs.linalg.cost_model import Costs
from graphs.linalg.operators import CSRKernelOperator, CSROperator, DenseOperator, KernelOperator, TorchCSROperator
from graphs.linalg.validation import as_block
from tests.graphs.cases import random_case


def test_the_backend_reports_what_computes() -> None:
    graph = random_case(1, (3, 4)).graph()
    for rank in (weighted_pagerank, pagerank):
        assert rank(graph).backend == "compiled (float64, auto)"
        assert rank(graph, backend="scipy").backend == "scipy (float64, csr)"
        assert rank(graph, backend="torch").backend == "torch (cpu, float64, csr)"
        assert rank(graph, backend="dense").backend == "compiled (float64, dense)"
        assert rank(graph, backend="auto", dtype="float32").backend == "compiled (float32, auto)"


def test_weights_in_torch_are_computed_in_numpy_on_the_cpu() -> None:
    case = random_case(1, (3, 4))
    graph = case.graph([torch.tensor(w) for w in case.weights])
    for device in (None, "cpu", torch.device("cpu")):
        assert weighted_pagerank(graph, device=device).backend == "compiled (float64, auto)"


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
def test_auto_picks_the_cheaper_form(block: Block, products: int, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    # The rule holds for any table of costs.
    table = {"compiled": Costs(csr_product=3.0, dense_to_csr=20.0, csr_to_dense=10.0)}
    monkeypatch.setattr("graphs.linalg.backends.COSTS", {**table, "cuda": table["compiled"]})
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
    with pytest.raises(GraphError, match="device 'cuda' needs torch"):
        make_backend("auto", "cuda", "float64")
    # On the CPU only "torch" does.
    for name in ("scipy", "dense", "auto"):
        assert make_backend(name, "cpu", "float64").arithmetic.dtype == "float64"


# --- kernels for large blocks

SIDE = int(KERNEL_ENTRIES**0.5)


@pytest.mark.parametrize(("side", "kind"), [(SIDE, KernelOperator), (SIDE - 1, DenseOperator)])
def test_dense_blocks_get_kernels_from_a_size_on(side: int, kind: type) -> None:
    block = DenseBlock((np.ones((side, side), dtype=np.float32),))
    for name in ("dense", "auto"):
        assert type(make_backend(name, None, "float64").operator(block, 2)) is kind
    assert type(make_backend("torch", None, "float64").operator(block, 2)) is TorchCSROperator
    assert type(make_backend("scipy", None, "float64").operator(block, 2)) is CSROperator


@pytest.mark.parametrize(("entries", "kind"), [(KERNEL_ENTRIES, CSRKernelOperator), (KERNEL_ENTRIES - 1, CSROperator)])
def test_csr_blocks_get_kernels_from_as_many_entries_on(entries: int, kind: type) -> None:
    # 64 entries per row are few, so that auto keeps the block sparse.
    indptr = np.minimum(np.arange(KERNEL_ENTRIES // 64 + 1) * 64, entries)
    indices = np.concatenate([np.arange(64)] * (KERNEL_ENTRIES // 64))[:entries] * 100
    csr = sparse.csr_array((np.ones(entries), indices, indptr), shape=(KERNEL_ENTRIES // 64, 6400))
    block = as_block(csr, "block")
    assert block.n_edges == entries
    assert type(make_backend("auto", None, "float64").operator(block, 30)) is kind
    assert type(make_backend("scipy", None, "float64").operator(block, 30)) is CSROperator


def test_large_blocks_rank_as_on_scipy() -> None:
    # As in real use: blocks above the limit, nothing patched, all forms of weights in one graph.
    rng = np.random.default_rng(3)
    sizes = (600, 500, 640, 520, 530)
    weights: list[Any] = [rng.standard_normal((n, m)) for m, n in itertools.pairwise(sizes)]
    weights[0] = weights[0].astype(np.float32)
    weights[1] = torch.tensor(weights[1]).to(torch.bfloat16)
    weights[2] = np.asfortranarray(weights[2])
    weights[3] = (weights[3], weights[3][::-1].copy())
    assert all(n * m >= KERNEL_ENTRIES for m, n in itertools.pairwise(sizes))
    graph = LayeredGraph.from_weights(weights, rng.random(600), [rng.random(n) for n in sizes[1:]])
    for rank in (
        lambda **options: weighted_pagerank(graph, 0.7, 1.0, **options),
        lambda **options: weighted_pagerank(graph, 0.7, 0.3, **options),
        lambda **options: pagerank(graph, **options),
    ):
        found = rank(backend="auto")
        assert found.backend == "compiled (float64, auto)"
        np.testing.assert_allclose(found.stacked, rank(backend="scipy").stacked, rtol=1e-12)
        np.testing.assert_allclose(rank(dtype="float32").stacked, found.stacked, rtol=1e-4)


def test_scipy_computes_on_a_cpu_with_a_number_too() -> None:
    assert make_backend("scipy", "cpu:0", "float64").name == "scipy (float64, csr)"


# --- modules that are loaded


def modules_after(statements: str) -> set[str]:
    code = f"import sys\n{textwrap.dedent(statements)}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    return set(run.stdout.split())


def test_small_graphs_load_no_compiler() -> None:
    loaded = modules_after("""
        import graphs
        assert "numba" not in sys.modules
        graph = graphs.LayeredGraph.from_weights([[[1.0, 2.0], [0.0, 3.0]]], [1, 2], [[1, 1]])
        for backend in ("auto", "dense", "scipy"):
            graphs.weighted_pagerank(graph, theta=0.5, backend=backend)
            graphs.weighted_pagerank(graph, solver="power", backend=backend)
            graphs.modified_pagerank(graph, backend=backend)
            graphs.pagerank(graph, backend=backend)
            graphs.pagerank(graphs.bidirectional_graph(graph), backend=backend)
        graphs.pagerank(graphs.bidirectional_graph(graph).to_scipy())
    """)
    assert "graphs.ranking.layered" in loaded
    assert not loaded & {"numba", "llvmlite", "graphs.linalg.kernels", "torch"}


@pytest.mark.slow
def test_large_graphs_load_it_and_not_torch() -> None:
    loaded = modules_after(f"""
        import graphs, numpy
        ones = numpy.ones({SIDE}, dtype=numpy.float32)
        graphs.weighted_pagerank(graphs.LayeredGraph.from_weights([numpy.outer(ones, ones)], ones, [ones]))
    """)
    assert {"numba", "graphs.linalg.kernels"} <= loaded
    assert "torch" not in loaded
