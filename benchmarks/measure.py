"""Measurement: times of contenders in turn, true errors after every step, the read bandwidth of the machine."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import numpy as np
from scipy import sparse

from graphs import pagerank
from graphs.solvers import Krylov

__all__ = ["QUICK", "WARM", "alternated", "clock", "peak_read_bandwidth", "reference_scores", "trace"]

# In seconds: a call that takes less than QUICK is warmed up for WARM.
QUICK, WARM = 0.5, 0.2


def clock(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call and its result. The garbage collector, which many graphs would keep busy, is off."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        begun = time.perf_counter()
        outcome = action()
        return time.perf_counter() - begun, outcome
    finally:
        if enabled:
            gc.enable()


def alternated(
    contenders: Mapping[str, Callable[[], Any]], repeats: int, budget: float, *, warm: float = WARM, keep: bool = True
) -> dict[str, list[tuple[float, Any]]]:
    """Call the contenders in turn, in rounds, each until it has used `budget` seconds; return seconds and result of every call.

    Without `keep` only the result of the last call is held, because the graphs of many contenders would fill the memory. A
    quick contender is called for `warm` seconds before the three calls that count: threads of the one before it may still
    spin, the caches hold the data of that one, and a core that has slept takes some time to reach its full speed.
    """
    spent: dict[str, list[tuple[float, Any]]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, action in contenders.items():
            if sum(seconds for seconds, _ in spent[name]) >= budget:
                continue
            counted = [clock(action)]
            if counted[0][0] < QUICK:
                warm_until = time.perf_counter() + warm
                while time.perf_counter() < warm_until:
                    clock(action)
                counted.clear()
                for _ in range(3):
                    counted.append(clock(action))
                    if not keep:
                        counted[:-1] = [(seconds, None) for seconds, _ in counted[:-1]]
            if not keep:
                spent[name] = [(seconds, None) for seconds, _ in spent[name]]
            spent[name] += counted
    return spent


def peak_read_bandwidth(megabytes: int = 512, repeats: int = 7) -> float:
    """Measure the bytes a second that all cores read while they sum an array far larger than the caches (median)."""
    import numba

    @numba.njit(parallel=True, fastmath=True)
    def total(values: Any) -> float:
        result = 0.0
        for k in numba.prange(len(values)):
            result += values[k]
        return result

    values = np.ones(megabytes * 1024 * 1024 // 8)
    total(values)
    return values.nbytes / median(clock(lambda: total(values))[0] for _ in range(repeats))


def reference_scores(graph: Any, gamma: float, *, check: bool = True) -> tuple[np.ndarray[Any, Any], dict[str, float]]:
    """Return reference scores, (nodes,), and with `check` their distance from those of another method.

    The reference is BiCGSTAB, run far below the tolerance, and on acyclic graphs the sweep. The check is plain power iteration
    on one scipy CSR matrix of the whole graph, until its residual stops falling.
    """
    best = pagerank(graph, gamma, solver="auto", tol=1e-15, max_iter=200)
    if best.stop_reason != "exact":
        oracle = Krylov("bicgstab", inner=60)
        best = pagerank(graph, gamma, solver=oracle, tol=2e-16, max_iter=6, start=best)
    if not check:
        return best.stacked, {}
    csr = sparse.csr_array(graph.to_scipy() if hasattr(graph, "to_scipy") else graph).astype(np.float64)
    strength = np.bincount(csr.indices, weights=csr.data, minlength=csr.shape[1])
    scale = np.divide(1.0, strength, out=np.zeros_like(strength), where=strength > 0)
    v = (
        np.concatenate([a / a.sum() for a in graph.activations]) / len(graph.activations)
        if hasattr(graph, "activations")
        else np.full(csr.shape[0], 1.0 / csr.shape[0])
    )
    r = v.copy()
    last = np.inf
    for _ in range(20000):
        following = gamma * (csr @ (r * scale))
        following += (1.0 - following.sum()) * v
        change = np.abs(following - r).sum()
        r = following
        if change < 1e-15 or (change < 1e-13 and change >= last):
            break
        last = change
    return best.stacked, {"L1 between bicgstab or sweep and scipy power": float(np.abs(best.stacked - r).sum())}


def trace(graph: Any, gamma: float, solver: str, reference: Any, tol: float, **options: Any) -> dict[str, Any]:
    """Run a solver, and return true error, error bound, block products and seconds after every step.

    True errors are computed in a run of their own, so that the seconds do not include them.
    """
    errors: list[float] = []

    def look(progress: Any) -> None:
        errors.append(float(np.abs(np.concatenate(progress.scores()) - reference).sum()))

    pagerank(graph, gamma, solver=solver, tol=tol, callback=look, **options)
    result = pagerank(graph, gamma, solver=solver, tol=tol, **options)
    return {
        "solver": result.solver,
        "gamma": gamma,
        "error": errors,
        "bound": result.error_bounds.tolist(),
        "products": result.step_products.tolist(),
        "seconds": (result.step_seconds + result.setup_seconds).tolist(),
        "stop": result.stop_reason,
    }
