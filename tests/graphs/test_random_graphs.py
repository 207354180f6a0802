"""Tests of the random and of the known graphs: their ranks on paper, and the traits of the random graphs."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from scipy.sparse import csgraph

from benchmarks.random_graphs import kronecker, layered, power_law, road, uniform
from graphs import GraphError, pagerank, weighted_pagerank
from graphs.linalg.blocks import SparseBlock
from tests.graphs.cases import Array, transition_matrix
from tests.graphs.known_graphs import SEEDED, TINY, Tiny
from tests.tables import table

GAMMAS = [0.0, 0.15, 0.5, 0.85, 0.99]
MAKERS: dict[str, Callable[[int], sparse.csr_array]] = {
    "kronecker": lambda seed: kronecker(7, 4, seed),
    "uniform": lambda seed: uniform(7, 4, seed),
    "road": lambda seed: road(12, 0.8, seed),
    "power law": lambda seed: power_law(150, 4, seed=seed),
    "layered": lambda seed: layered([5, 9, 4], 0.3, seed).to_scipy(),
}


def exact(matrix: Array, gamma: float) -> Array:
    """Dense solve of r = gamma (P + v d^T) r + (1 - gamma) v, v uniform."""
    n_nodes = len(matrix)
    transition = transition_matrix(matrix, 1.0)
    transition[:, ~matrix.any(axis=0)] = 1.0 / n_nodes
    return np.linalg.solve(np.eye(n_nodes) - gamma * transition, np.full(n_nodes, (1 - gamma) / n_nodes))


def assert_canonical(csr: Any) -> None:
    assert isinstance(csr, sparse.csr_array)
    assert (csr.data.dtype, csr.indices.dtype, csr.indptr.dtype) == (np.float64, np.int32, np.int32)
    assert (csr.data > 0).all()
    assert np.isfinite(csr.data).all()
    assert csr.indptr[-1] == len(csr.indices) == len(csr.data)
    # A new matrix computes its flags; an existing one may have wrong ones.
    fresh = sparse.csr_array((csr.data, csr.indices, csr.indptr), shape=csr.shape)
    assert fresh.has_canonical_format
    coo = csr.tocoo()
    keys = coo.coords[0].astype(np.int64) * csr.shape[1] + coo.coords[1]
    assert (np.diff(keys) > 0).all()


def same(one: sparse.csr_array, other: sparse.csr_array) -> bool:
    parts = ("indptr", "indices", "data")
    return one.shape == other.shape and all(np.array_equal(getattr(one, p), getattr(other, p)) for p in parts)


def in_degrees(csr: sparse.csr_array) -> Array:
    return np.diff(csr.indptr)


def out_degrees(csr: sparse.csr_array) -> Array:
    return np.bincount(csr.indices, minlength=csr.shape[1])


def diameter(csr: sparse.csr_array) -> int:
    """The longest of the shortest paths between nodes that reach each other, in edges."""
    hops = csgraph.shortest_path(csr.T.tocsr(), unweighted=True)
    return int(hops[np.isfinite(hops)].max())


# --- tiny graphs


@table("gamma", GAMMAS)
@table("tiny", TINY)
def test_answers_are_the_dense_solve_and_what_pagerank_finds(tiny: Tiny, gamma: float) -> None:
    answer = tiny.answer(gamma)
    assert answer.shape == (tiny.csr.shape[0],)
    assert answer.dtype == np.float64
    assert answer.sum() == pytest.approx(1.0, abs=1e-15)
    np.testing.assert_allclose(answer, exact(tiny.csr.toarray(), gamma), rtol=1e-12)
    found = pagerank(tiny.csr, gamma, max_iter=5000)
    assert found.converged
    assert np.abs(found.scores[0] - answer).sum() <= found.error_bound + 1e-14
    np.testing.assert_allclose(found.scores[0], answer, rtol=1e-9)


def test_answers_in_numbers() -> None:
    by_name = {tiny.name: tiny for tiny in TINY}
    assert len(by_name) == len(TINY)
    np.testing.assert_allclose(by_name["two nodes, one edge"].answer(0.5), [2 / 5, 3 / 5])
    np.testing.assert_allclose(by_name["star in"].answer(1 / 7), [2 / 9] + [1 / 9] * 7)
    np.testing.assert_allclose(by_name["tree to its root"].answer(0.5), np.array([3, 2, 2, 1, 1, 1, 1]) / 11)
    np.testing.assert_allclose(by_name["two components"].answer(0.5), np.array([4, 6, 7, 8, 8, 8, 8]) / 49)


@table("tiny", TINY)
def test_tiny_matrices_are_canonical(tiny: Tiny) -> None:
    assert_canonical(tiny.csr)
    assert tiny.csr.shape[0] == tiny.csr.shape[1] <= 8


# --- every seeded graph


@table("name", SEEDED)
def test_seeded_graphs_are_canonical_and_repeat(name: str) -> None:
    csr = SEEDED[name]()
    assert_canonical(csr)
    assert csr.shape[0] == csr.shape[1]
    assert 200 <= csr.shape[0] <= 1000
    again = SEEDED[name]()
    assert again is not csr
    assert same(csr, again)


@table("name", MAKERS)
def test_the_seed_makes_the_graph(name: str) -> None:
    make = MAKERS[name]
    assert_canonical(make(3))
    assert same(make(3), make(3))
    assert not same(make(3), make(4))


@pytest.mark.parametrize("make", [kronecker, uniform, power_law])
def test_repeated_edges_collapse_to_one_and_loops_go(make: Callable[..., sparse.csr_array]) -> None:
    # With eight nodes and hundreds of draws, repeated edges would give weights above 1 or more edges than pairs.
    csr = make(8, 50) if make is power_law else make(3, 50)
    assert (csr.data == 1.0).all()
    assert (csr.diagonal() == 0.0).all()
    assert 30 < csr.nnz <= 56


@table("make", [kronecker, uniform])
@table("scale", [1, 5, 12])
def test_scale_is_the_log_of_the_size(make: Callable[..., sparse.csr_array], scale: int) -> None:
    assert make(scale, 2).shape == (2**scale, 2**scale)


# --- traits of each graph


@pytest.mark.parametrize("seed", range(3))
def test_kronecker_has_the_edges_that_its_quadrants_make(seed: int) -> None:
    # A cell whose path takes the quadrants a, b, c, d k_a, ..., k_d times is drawn with probability p; it is filled unless
    # all draws miss it. Off the diagonal, where loops are removed, k_b + k_c > 0.
    scale, draws = 12, 40 * 2**12
    expected = 0.0
    for a in range(scale + 1):
        for b in range(scale + 1 - a):
            for c in range(scale + 1 - a - b):
                d = scale - a - b - c
                if b + c:
                    cells = math.factorial(scale) / math.prod(math.factorial(k) for k in (a, b, c, d))
                    expected -= cells * math.expm1(draws * math.log1p(-(0.57**a * 0.19 ** (b + c) * 0.05**d)))
    # a = 0.55 and b = c = 0.21, with the same sums of halves, would make 1.2 % fewer.
    assert kronecker(scale, 40, seed).nnz == pytest.approx(expected, rel=0.005)


def test_kronecker_has_hubs_at_either_end_of_its_edges() -> None:
    csr = kronecker(14, 1)
    # A share 0.76 ** 14 of the 2**14 draws leaves the node whose label is all zeros, and as many reach it: 351.
    # About 4 % of them coincide.
    for degrees in (in_degrees(csr), out_degrees(csr)):
        assert degrees.max() == pytest.approx(351 * 0.96, abs=60)
    hub = int(in_degrees(csr).argmax())
    assert hub == out_degrees(csr).argmax()
    assert hub != 0, "labels are permuted"


def test_kronecker_labels_say_nothing_about_degrees() -> None:
    csr = kronecker(12, 16)
    low = [degrees[: 2**11].sum() / csr.nnz for degrees in (in_degrees(csr), out_degrees(csr))]
    np.testing.assert_allclose(low, 0.5, atol=0.06)  # 0.76 in the order of R-MAT


def test_uniform_degrees_are_even() -> None:
    csr = uniform(12, 16)
    n_nodes, draws = 2**12, 2**16
    assert csr.nnz == pytest.approx(-n_nodes * (n_nodes - 1) * math.expm1(draws * math.log1p(-(n_nodes**-2))), abs=60)
    for degrees in (in_degrees(csr), out_degrees(csr)):
        assert degrees.var() == pytest.approx(16, rel=0.1)  # Poisson
        assert degrees.max() < 50


@pytest.mark.parametrize("exponent", [2.3, 3.0])
def test_power_law_has_its_exponent(exponent: float) -> None:
    degrees = np.sort(in_degrees(power_law(40_000, 8, exponent)))[::-1]
    # In-degree against popularity, without the top, which repeated edges lower.
    ranks = np.arange(10, 400)
    slope = np.polyfit(np.log(ranks), np.log(degrees[ranks - 1]), 1)[0]
    assert 1 - 1 / slope == pytest.approx(exponent, abs=0.15)


def test_power_law_has_a_heavier_tail_than_uniform() -> None:
    heavy, even = power_law(1024, 16), uniform(10, 16)
    # The most popular hundredth of the nodes receives a third of all edges, not about 2 %.
    share = [np.sort(in_degrees(csr))[-10:].sum() / csr.nnz for csr in (heavy, even)]
    assert share[0] > 0.2 > 0.03 > share[1]
    assert in_degrees(heavy).max() > 8 * in_degrees(even).max()
    assert in_degrees(heavy).argmax() != 0, "ranks are dealt at random"


@table(("n_nodes", "degree"), [(2, 1), (9, 3), (500, 1), (500, 8)])
def test_exactly_a_tenth_of_a_power_law_dangles(n_nodes: int, degree: int) -> None:
    degrees = out_degrees(power_law(n_nodes, degree))
    assert (degrees == 0).sum() == n_nodes // 10
    assert degrees.max() <= degree


def test_a_whole_road_is_the_grid() -> None:
    csr = road(9, keep=1.0)
    assert csr.nnz == 4 * 9 * 8
    assert diameter(csr) == 16
    row, column = np.divmod(np.arange(81), 9)
    apart = np.abs(row[:, None] - row) + np.abs(column[:, None] - column)
    np.testing.assert_array_equal(csr.toarray() > 0, apart == 1)


def test_roads_are_long_and_lose_streets() -> None:
    csr = SEEDED["road"]()
    assert diameter(csr) >= 2 * 23
    assert max(diameter(SEEDED["uniform"]()), diameter(SEEDED["kronecker"]())) < 12
    assert csr.nnz == 2 * round(0.95 * 2 * 24 * 23)
    assert (csr != csr.T).nnz == 0
    lengths = 1 / csr.data
    assert 0.5 <= lengths.min() < 0.51
    assert 1.99 < lengths.max() < 2.0
    assert lengths.mean() == pytest.approx(1.25, abs=0.05)
    assert road(4, keep=0.0).nnz == 0


def test_two_rings_mix_slowly() -> None:
    moduli = {}
    for name in ("two rings", "uniform"):
        csr = SEEDED[name]()
        values = np.linalg.eigvals(transition_matrix(csr.toarray(), 1.0))
        moduli[name] = np.sort(np.abs(values))[-2]
    assert moduli["two rings"] > 0.999
    assert moduli["uniform"] < 0.6
    csr = SEEDED["two rings"]()
    steps = [pagerank(matrix, 0.99, solver="power", max_iter=5000).iterations for matrix in (csr, SEEDED["uniform"]())]
    assert steps[0] > 10 * steps[1]


def test_two_rings_meet_in_one_edge_each_way() -> None:
    csr = SEEDED["two rings"]()
    assert csgraph.connected_components(csr, connection="strong")[0] == 1
    # Without the lightest edges only the two rings remain.
    light = csr.data < 0.5
    assert light.sum() == 2
    rings = csr.copy()
    rings.data[light] = 0.0
    rings.eliminate_zeros()
    count, ring = csgraph.connected_components(rings, connection="strong")
    assert (count, sorted(np.bincount(ring))) == (2, [120, 200])
    assert (in_degrees(rings) == 1).all()
    assert (out_degrees(rings) == 1).all()
    assert (csr[1, 0], csr[0, 1], csr[120, 0]) == (1.0, 0.0, 0.1), "node 0 leads to node 1 and to the other ring"


def test_empty_rows_has_many_empty_rows_and_columns() -> None:
    csr = SEEDED["empty rows"]()
    empty_rows, empty_columns = in_degrees(csr) == 0, out_degrees(csr) == 0
    assert 0.5 <= empty_rows.mean() < 0.55
    assert 0.5 <= empty_columns.mean() < 0.55
    assert (empty_rows & empty_columns).any()
    assert (~empty_rows & ~empty_columns).any()


# --- layered graphs


@table("density", [1.0, 0.4, 0.01, 0.0])
def test_layered_graphs_are_valid_and_rank(density: float) -> None:
    graph = layered([20, 60, 30], density, seed=2)
    assert graph.layer_sizes == (20, 60, 30)
    for block in graph.blocks:
        csr = block.to_csr()
        assert (csr.data > 0).all()
        assert csr.dtype == (np.float32 if density == 1 else np.float64)
        assert isinstance(block, SparseBlock) == (density < 1)
        assert (out_degrees(csr) > 0).all(), "no source dangles"
        drawn = round(density * math.prod(csr.shape))
        assert drawn <= block.n_edges <= drawn + csr.shape[1]
    rank = weighted_pagerank(graph, gamma=0.5)
    assert rank.converged
    assert [scores.sum() for scores in rank.scores] == pytest.approx([1.0] * 3)
    assert all((vector > 0).all() for vector in graph.activations)


def test_layered_without_density_gives_every_source_one_edge() -> None:
    csr = layered([50, 10], 0.0).block(1)
    assert (out_degrees(csr) == 1).all()
    assert (in_degrees(csr) > 0).sum() > 5, "targets are drawn"


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_layered_numbers_are_half_normal_and_lognormal(density: float) -> None:
    graph = layered([300, 300], density)
    weights = graph.block(1).data.astype(np.float64)
    assert weights.mean() == pytest.approx(math.sqrt(2 / math.pi), rel=0.02)
    assert (weights**2).mean() == pytest.approx(1.0, rel=0.03)
    logarithms = np.log(np.concatenate(graph.activations))
    assert logarithms.mean() == pytest.approx(0.0, abs=0.15)
    assert logarithms.std() == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_the_seed_makes_activations_and_blocks(density: float) -> None:
    one, again, other = (layered([6, 5, 4], density, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one.activations, again.activations, strict=True))
    assert not np.array_equal(one.activations[0], other.activations[0])
    assert same(one.block(2), again.block(2))
    assert not same(one.block(2), other.block(2))


# --- refusals


@table(
    ("call", "message"),
    [
        (lambda: kronecker(0), "scale must be an integer from 1 to 30, got 0"),
        (lambda: kronecker(31), "scale must be an integer from 1 to 30, got 31"),
        (lambda: kronecker(3, 0), "edge_factor must be an integer >= 1, got 0"),
        (lambda: kronecker(3, seed=-1), "seed must be an integer >= 0, got -1"),
        (lambda: uniform(0), "scale must be"),
        (lambda: uniform(3, -1), "edge_factor must be"),
        (lambda: uniform(3, seed=None), "seed must be an integer >= 0, got None"),  # type: ignore[arg-type]
        (lambda: road(1), "side must be an integer from 2 to 32768, got 1"),
        (lambda: road(4, 1.5), r"keep must be a number in \[0, 1\], got 1.5"),
        (lambda: road(4, seed=-1), "seed must be"),
        (lambda: power_law(1), "n_nodes must be an integer from 2 to 1073741824, got 1"),
        (lambda: power_law(10, 0), "degree must be"),
        (lambda: power_law(10, exponent=1.0), "exponent must be a finite number above 1 .*, got 1.0"),
        (lambda: power_law(10, exponent=math.inf), "exponent must be"),
        (lambda: power_law(10, exponent="2"), "exponent must be"),  # type: ignore[arg-type]
        (lambda: power_law(10, seed=-1), "seed must be"),
        (lambda: layered([4]), r"sizes of at least two layers, got \[4\]"),
        (lambda: layered(5), "sizes must be a sequence of integers, one per layer, got 5"),  # type: ignore[arg-type]
        (lambda: layered([4, 0]), "each of sizes must be an integer >= 1, got 0"),
        (lambda: layered([4, 4], -0.1), r"density must be a number in \[0, 1\], got -0.1"),
        (lambda: layered([4, 4], seed=-1), "seed must be"),
    ],
)
def test_refusals(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        call()


def test_numpy_integers_are_taken() -> None:
    assert same(uniform(np.int64(4), np.int32(2), np.uint8(1)), uniform(4, 2, 1))  # type: ignore[arg-type]
