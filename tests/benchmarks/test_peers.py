"""Every peer against dense linear algebra on tiny graphs; tolerances; what is reported of whom."""

import importlib.util
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

from benchmarks import peers
from benchmarks.peers import CORRECT, PEERS, Peer, agreement, available, diagnose, faults, missing, versions
from tests.tables import table

BY_NAME = {peer.name: peer for peer in PEERS}
RIGHT = [
    "scipy power iteration",
    "scipy power iteration, CSC",
    "scipy GMRES",
    "scipy spsolve",
    "networkx",
    "igraph PRPACK",
    "igraph ARPACK",
    "rustworkx",
    "fast-pagerank power",
    "fast-pagerank exact",
    "scikit-network RH",
]
WITHOUT_DANGLING = ["scikit-network piteration", "scikit-network lanczos"]
OTHERS = ["networkit", "scikit-network diteration", "scikit-network bicgstab", "scikit-network push"]


def peer_named(name: str) -> Peer:
    peer = BY_NAME[name]
    pytest.importorskip(peer.module or peer.library)
    return peer


def random_graph(seed: int, n: int, dangling: bool, uniform: bool) -> tuple[sparse.csr_array, NDArray[np.float64]]:
    """Cycles, self-loops, unequal weights; nodes without incoming edges."""
    random = np.random.default_rng(seed)
    dense = np.where(random.random((n, n)) < 0.4, random.pareto(1.5, (n, n)) + 0.01, 0.0)
    dense[n - 1, :] = 0.5
    dense[0, :] = 0.0
    if dangling:
        dense[:, [1, n - 2]] = 0.0
    v = np.ones(n) if uniform else random.random(n) ** 3
    return sparse.csr_array(dense), v / v.sum()


def dense_scores(csr: sparse.csr_array, gamma: float, v: NDArray[np.float64]) -> NDArray[np.float64]:
    """The stationary vector of the dense Google matrix, written from the definition."""
    weights = csr.toarray()
    strength = weights.sum(axis=0)
    google = np.empty_like(weights)
    for column, total in enumerate(strength):
        google[:, column] = gamma * weights[:, column] / total + (1 - gamma) * v if total > 0 else v
    n = len(v)
    system = np.vstack([google - np.eye(n), np.ones(n)])
    return np.linalg.lstsq(system, np.append(np.zeros(n), 1.0), rcond=None)[0]


def l1_error(peer: Peer, csr: sparse.csr_array, gamma: float, v: NDArray[np.float64], target: float) -> float:
    scores = peer.solve(peer.build(csr, v), gamma, v, **peer.settings(target, len(v), gamma))
    assert scores.shape == v.shape
    assert scores.dtype == np.float64
    return float(np.abs(scores - dense_scores(csr, gamma, v)).sum())


# --- against the definition


def test_every_peer_is_tested() -> None:
    assert sorted(BY_NAME) == sorted(RIGHT + WITHOUT_DANGLING + OTHERS)
    assert len(BY_NAME) == len(PEERS)


@pytest.mark.parametrize("name", RIGHT)
@table("gamma", [0.3, 0.85, 0.97])
def test_right_peers_equal_a_dense_solve(name: str, gamma: float) -> None:
    peer = peer_named(name)
    for seed, n in enumerate([5, 12, 150]):
        for dangling in (False, True):
            for uniform in (False, True):
                assert l1_error(peer, *graph_then(seed, n, dangling, uniform, gamma), target=1e-10) <= CORRECT


def graph_then(seed: int, n: int, dangling: bool, uniform: bool, gamma: float) -> tuple[Any, float, Any]:
    csr, v = random_graph(seed, n, dangling, uniform)
    return csr, gamma, v


@pytest.mark.parametrize("name", WITHOUT_DANGLING)
def test_right_without_dangling_nodes(name: str) -> None:
    peer = peer_named(name)
    csr, v = random_graph(1, 12, dangling=False, uniform=False)
    assert l1_error(peer, csr, 0.85, v, 1e-10) <= CORRECT


@pytest.mark.parametrize("name", [*WITHOUT_DANGLING, "scikit-network bicgstab"])
def test_scikit_network_mistakes_dangling_nodes_for_their_targets(name: str) -> None:
    """Once this fails, the bug is gone and the notes must go too."""
    peer = peer_named(name)
    csr = sparse.csr_array(np.array([[0, 0, 0], [1.0, 0, 0], [1, 1, 0]]))
    v = np.full(3, 1 / 3)
    assert l1_error(peer, csr, 0.85, v, 1e-10) > 0.1


def test_bicgstab_solves_for_another_teleport_vector() -> None:
    peer = peer_named("scikit-network bicgstab")
    csr, v = random_graph(2, 12, dangling=True, uniform=False)
    passes = csr.sum(axis=0) > 0
    compensated = v / (1 - 0.85 * passes)
    compensated /= compensated.sum()
    scores = peer.solve(peer.build(csr, v), 0.85, compensated, **peer.settings(1e-10, len(v), 0.85))
    assert np.abs(scores - dense_scores(csr, 0.85, v)).sum() < 1e-3


def test_networkit_is_right_for_a_uniform_teleport_vector() -> None:
    peer = peer_named("networkit")
    csr, v = random_graph(3, 12, dangling=True, uniform=True)
    assert l1_error(peer, csr, 0.85, v, 1e-10) <= CORRECT
    csr, v = random_graph(3, 12, dangling=True, uniform=False)
    assert l1_error(peer, csr, 0.85, v, 1e-10) > 1e-2


def test_builds_leave_the_matrix_alone() -> None:
    csr, v = random_graph(4, 12, dangling=True, uniform=False)
    before, teleport = csr.copy(), v.copy()
    for peer in available():
        peer.solve(peer.build(csr, v), 0.85, v, **peer.settings(1e-6, len(v), 0.85))
        np.testing.assert_array_equal(csr.toarray(), before.toarray())
        np.testing.assert_array_equal(v, teleport)


def test_rustworkx_builds_the_same_graph_from_lists_and_from_a_dense_matrix() -> None:
    peer = peer_named("rustworkx")
    sparse_graph = sparse.csr_array(np.diag([1.0, 2.0, 3.0] * 10, k=-1))
    n = sparse_graph.shape[0]
    assert sparse_graph.nnz * 10 < n * n
    v = np.full(n, 1 / n)
    assert l1_error(peer, sparse_graph, 0.85, v, 1e-10) <= CORRECT


def test_wide_indices_are_narrowed() -> None:
    csr, v = random_graph(5, 12, dangling=True, uniform=False)
    wide = sparse.csr_array(
        (csr.data, csr.indices.astype(np.int64), csr.indptr.astype(np.int64)), shape=csr.shape, copy=True
    )
    assert wide.indices.dtype == np.int64
    matrix, _ = BY_NAME["scipy power iteration"].build(wide, v)
    assert matrix.indices.dtype == np.int32
    assert l1_error(BY_NAME["scipy spsolve"], wide, 0.85, v, 1e-10) <= CORRECT


# --- tolerances


@pytest.mark.parametrize("name", [name for name in RIGHT if "ARPACK" not in name and name != "igraph PRPACK"])
@table(("gamma", "target"), itertools.product([0.0, 0.5, 0.85, 0.99], [1e-3, 1e-7, 1e-12]))
def test_settings_reach_their_target(name: str, gamma: float, target: float) -> None:
    peer = peer_named(name)
    for uniform in (False, True):
        csr, v = random_graph(6, 40, dangling=True, uniform=uniform)
        assert l1_error(peer, csr, gamma, v, target) <= target


@pytest.mark.parametrize("name", ["igraph ARPACK", "scikit-network lanczos", "scikit-network piteration", "networkit"])
@table(("gamma", "target"), itertools.product([0.5, 0.85, 0.99], [1e-3, 1e-7, 1e-11]))
def test_settings_reach_their_target_where_the_peer_can(name: str, gamma: float, target: float) -> None:
    peer = peer_named(name)
    csr, v = random_graph(6, 40, dangling=False, uniform=True)
    assert l1_error(peer, csr, gamma, v, target) <= target


def test_prpack_keeps_its_own_tolerance() -> None:
    peer = peer_named("igraph PRPACK")
    assert peer.settings(1e-3, 200, 0.85) == {}
    for gamma in (0.5, 0.85, 0.99):
        csr, v = random_graph(7, 200, dangling=True, uniform=False)
        assert l1_error(peer, csr, gamma, v, 1e-3) <= 2e-10


def test_the_tightest_settings_end() -> None:
    """No library raises, or spins, for an accuracy that rounding withholds."""
    csr, v = random_graph(8, 60, dangling=True, uniform=False)
    for name in RIGHT:
        if BY_NAME[name].installed:
            assert l1_error(BY_NAME[name], csr, 0.95, v, 0.0) < 1e-10


@table("name", sorted(BY_NAME))
def test_settings_are_the_keywords_of_solve(name: str) -> None:
    settings = BY_NAME[name].settings(1e-6, 1000, 0.85)
    assert set(settings) <= {"tol", "max_iter"}
    assert bool(settings) == BY_NAME[name].takes_tolerance


# --- verdicts


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    csr, v = random_graph(9, 60, dangling=True, uniform=False)
    return {row["name"]: row for row in agreement(csr, 0.85, v, dense_scores(csr, 0.85, v))}


def test_verdicts(rows: dict[str, dict[str, Any]]) -> None:
    assert list(rows) == [peer.name for peer in available()]
    for name, row in rows.items():
        if name in RIGHT:
            assert row["verdict"] == "correct", name
            assert row["honours_teleport"]
            assert row["honours_dangling"]
            assert row["honours_weights"]
            assert row["largest_relative_error"] < 1e-6
            assert row["between_runs"] <= CORRECT
        elif name == "scikit-network diteration":
            assert row["verdict"].startswith("loose")
        else:
            assert row["verdict"].startswith("wrong ("), name


def test_causes(rows: dict[str, dict[str, Any]]) -> None:
    for name in (*WITHOUT_DANGLING, "scikit-network bicgstab"):
        if name in rows:
            assert rows[name]["verdict"] == "wrong (does not honour dangling)"
    if "scikit-network push" in rows:
        assert rows["scikit-network push"]["verdict"] == "wrong (on every graph, see the notes)"
    if "networkit" in rows:
        assert rows["networkit"]["uniform_l1_error"] <= CORRECT
        assert rows["networkit"]["verdict"].startswith("wrong (takes no teleport vector; correct for a uniform one")


def test_a_fault_the_graph_does_not_need_is_none() -> None:
    networkit = peer_named("networkit")
    csr, v = random_graph(9, 30, dangling=True, uniform=True)
    (row,) = agreement(csr, 0.85, v, dense_scores(csr, 0.85, v), [networkit])
    assert row["verdict"] == "correct"
    assert not row["honours_teleport"]


def test_a_peer_that_raises_is_a_row() -> None:
    def fail(*_: Any, **__: Any) -> NDArray[np.float64]:
        raise RuntimeError("no")

    csr, v = random_graph(9, 10, dangling=False, uniform=True)
    (row,) = agreement(csr, 0.85, v, v, [replace(BY_NAME["scipy spsolve"], solve=fail)])
    assert row["verdict"] == "wrong (raises RuntimeError: no)"
    assert np.isnan(row["l1_error"])


def test_a_race_is_told_from_another_definition() -> None:
    """Errors that change from run to run are loose, the same error every time is a fault."""
    true = BY_NAME["scipy spsolve"]
    random = np.random.default_rng(0)

    def unsteady(graph: Any, gamma: float, v: NDArray[np.float64]) -> NDArray[np.float64]:
        scores = true.solve(graph, gamma, v) * (1.0 - 0.3 * random.random(len(v)))
        return scores / scores.sum()

    probes = diagnose(replace(true, solve=unsteady))
    assert probes["all"].l1_error > 0.02
    assert probes["all"].between_runs > 0.02
    assert faults(probes) == ()
    csr, v = random_graph(9, 60, dangling=True, uniform=False)
    (row,) = agreement(csr, 0.85, v, dense_scores(csr, 0.85, v), [replace(true, solve=unsteady, threads="2")])
    assert row["verdict"].startswith("loose (")
    assert row["verdict"].endswith("another at every run)")

    steady = replace(true, solve=lambda graph, gamma, v: true.solve(graph, gamma, v) * 0.5)
    assert faults(diagnose(steady)) == ("plain", "dangling", "weights", "teleport")


# --- who is here


def test_missing_libraries_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    absent = {"igraph", "sknetwork", "fast_pagerank"}
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name in absent else find_spec(name))
    assert {"igraph", "scikit-network", "fast-pagerank"} <= set(missing())
    assert len(missing()) == len(set(missing()))
    assert not any(peer.library in missing() for peer in available())
    assert "igraph" not in versions()


def test_scipy_and_networkx_are_always_here() -> None:
    assert {"scipy", "networkx"} <= set(versions())
    assert all(versions().values())
    assert not {"scipy", "networkx"} & set(missing())
