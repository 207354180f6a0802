"""Time to a PageRank of a given true error, against other libraries.

Run it as ``python -m benchmarks.speed`` (``pip install -e ".[benchmarks]"`` installs the peers) on an idle machine. The graphs
are the chain of a model's FFNs, its residual and bidirectional graphs, and digraphs without layers. First it checks whether each
library computes this definition at all. Then it measures the seconds to a true L1 error of 1e-4, 1e-8 and 1e-12, for building the
graph and for solving: medians, with the contenders in turn and each warmed up. It also measures cold starts, in a process of
their own, and the share of the memory bandwidth that the sweep reaches.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy import sparse

from benchmarks import figures, peers
from benchmarks.cases import (
    CYCLIC,
    gallery_graphs,
    model_chains,
    scipy_bidirectional,
    scipy_matrix,
    scipy_residual,
    small_chain,
)
from benchmarks.measure import WARM, alternated, peak_read_bandwidth, reference_scores
from benchmarks.provenance import provenance
from benchmarks.result_files import write
from graphs import LayeredGraph, pagerank
from graphs.linalg.threads import n_threads
from graphs.structures.digraph import as_digraph, teleport_vector

RESULTS = Path(__file__).parent / "results"
TARGETS = (1e-4, 1e-8, 1e-12)
GAMMA = 0.85

# Libraries that take hundreds of bytes an edge are left out above this many edges,
EDGES_AT_MOST = {"networkx": 8_000_000, "rustworkx": 8_000_000}
# and factorisations on graphs with cycles and many nodes, because of their fill-in.
DIRECT = {"scipy spsolve", "fast-pagerank exact"}
NODES_AT_MOST = 4_000
# On these PageRank is our own code; every other library has a function for it.
BY_HAND = {"scipy", "numpy"}


def ours(build: Callable[[], Any], device: str | None) -> dict[str, Any]:
    """Return this library as a contender: one call, which reads the strengths, chooses the solver and solves."""

    def solve(graph: Any, target: float) -> Any:
        # The error bound is at most residual / (1 - gamma), so this tolerance brings it to the target.
        return pagerank(graph, GAMMA, tol=target * (1.0 - GAMMA), device=device)

    return {"name": "llmrank", "library": "llmrank", "build": build, "solve": solve, "settable": True}


def theirs(peer: Any, assemble: Callable[[], sparse.csr_array], v: Any) -> dict[str, Any]:
    """Return a peer as a contender, which builds one CSR matrix from the weights, and its own graph from that."""

    def solve(graph: Any, target: float) -> Any:
        return peer.solve(graph, GAMMA, v, **peer.settings(target, len(v), GAMMA))

    return {
        "name": peer.name,
        "library": peer.library,
        "build": lambda: peer.build(assemble(), v),
        "solve": solve,
        "settable": peer.takes_tolerance,
    }


def dense_sweep(weights: list[tuple[Any, ...]], v: Any) -> dict[str, Any]:
    """Return ten lines of numpy as a contender, for chains of dense blocks: no graph, no CSR, one pass."""

    def build() -> Any:
        blocks: Any = [sum(np.abs(np.asarray(m)).astype(np.float64) for m in matrices) for matrices in weights]
        return [block / block.sum(axis=0) for block in blocks]

    def solve(blocks: Any, _target: float) -> Any:
        parts = np.split(v, np.cumsum([block.shape[1] for block in blocks]))
        found = [parts[0]]
        for block, part in zip(blocks, parts[1:], strict=True):
            found.append(part + GAMMA * (block @ found[-1]))
        stacked = np.concatenate(found)
        return stacked / stacked.sum()

    return {
        "name": "numpy, dense blocks in order",
        "library": "numpy",
        "build": build,
        "solve": solve,
        "settable": False,
    }


def study(
    name: str,
    build: Callable[[], Any],
    assemble: Callable[[], sparse.csr_array],
    repeats: int,
    budget: float,
    warm: float,
    device: str | None,
    weights: list[tuple[Any, ...]] | None = None,
) -> dict[str, Any]:
    """Measure one graph: agreement, then times."""
    graph = build()
    v = teleport_vector(as_digraph(graph))
    reference, check = reference_scores(graph, GAMMA)
    csr = assemble()
    edges = int(csr.nnz)
    chosen = [
        peer
        for peer in peers.available()
        if edges <= EDGES_AT_MOST.get(peer.library, edges)
        and (name == "chain" or peer.name not in DIRECT or csr.shape[0] <= NODES_AT_MOST)
    ]
    judged = peers.agreement(csr, GAMMA, v, reference, chosen)
    for row in judged:
        print(f"{name}: {row['name']}: {row['verdict']}, L1 error {row['l1_error']:.1e}", flush=True)
    correct = {row["name"] for row in judged if row["verdict"].startswith(("correct", "loose"))}
    contenders = [ours(build, device), *(theirs(p, assemble, v) for p in chosen if p.name in correct)]
    contenders += [dense_sweep(weights, v)] if weights is not None else []
    builds = alternated({c["name"]: c["build"] for c in contenders}, repeats, budget, warm=warm, keep=False)
    graphs = {key: calls[-1][1] for key, calls in builds.items()}
    building = {key: median(seconds for seconds, _ in calls) for key, calls in builds.items()}
    del builds
    rows: list[dict[str, Any]] = []
    for target in TARGETS:
        # If the accuracy cannot be chosen, one measurement is for all targets.
        running = [c for c in contenders if c["settable"] or target == TARGETS[0]]
        solves = alternated(
            {c["name"]: lambda c=c, target=target: c["solve"](graphs[c["name"]], target) for c in running},  # type: ignore[misc]
            repeats,
            budget,
            warm=warm,
        )
        for contender in contenders:
            key = contender["name"]
            if key not in solves:
                once = next(r for r in rows if r["name"] == key)
                rows.append({**once, "target": target, "reached": once["true_error"] <= target})
                continue
            rows.append(row_of(contender, target, building[key], solves[key], reference))
    print("\n".join(times({"name": name, "rows": rows})), flush=True)
    return {
        "name": name,
        "nodes": csr.shape[0],
        "edges": edges,
        "gamma": GAMMA,
        "reference_check": check,
        "sat_out": [p.name for p in peers.available() if p not in chosen],
        "agreement": judged,
        "rows": rows,
        "shown_target": 1e-12 if name == "chain" else 1e-8,
        "solver": pagerank(graph, GAMMA, device=device).solver,
    }


def row_of(
    contender: dict[str, Any], target: float, building: float, calls: list[Any], reference: Any
) -> dict[str, Any]:
    """Return the medians of one contender, and the error of its last call."""
    outcome = calls[-1][1]
    row = {
        "name": contender["name"],
        "library": contender["library"],
        "target": target,
        "build_seconds": building,
        "solve_seconds": median(seconds for seconds, _ in calls),
        "solve_spread": [min(calls, key=lambda call: call[0])[0], max(calls, key=lambda call: call[0])[0]],
        "repeats": len(calls),
    }
    if contender["library"] == "llmrank":
        row["steps_seconds"] = median(result.solve_seconds for _, result in calls)
        outcome = outcome.stacked
    error = float(np.abs(outcome - reference).sum())
    return {**row, "true_error": error, "reached": error <= target}


def bandwidth(chain: LayeredGraph, repeats: int) -> dict[str, float]:
    """Measure the bytes of weights a second, for strengths and for products, against plain reading in the same run."""
    size = sum(m.nbytes for block in chain.blocks for m in getattr(block, "matrices", ()))
    peak = peak_read_bandwidth()
    pagerank(chain, GAMMA)
    results = [pagerank(chain, GAMMA) for _ in range(max(50, repeats))]
    strengths, products = (median(getattr(r, f"{part}_seconds") for r in results) for part in ("setup", "solve"))
    return {
        "weight_bytes": size,
        "peak_bytes_per_second": peak,
        "products_seconds": products,
        "strengths_seconds": strengths,
        "share_of_peak_in_products": size / products / peak,
        "share_of_peak_in_strengths": size / strengths / peak,
    }


# --- cold starts


COLD = """
import sys, time
import numpy as np
from scipy import sparse
data = dict(np.load(sys.argv[1]))
waited = time.perf_counter()
if sys.argv[2] == "llmrank":
    from graphs import LayeredGraph, pagerank
    count = int(data["count"])
    weights = [tuple(data[f"w{l}.{k}"] for k in range(int(data["parts"][l]))) for l in range(count)]
    activations = [data[f"a{l}"] for l in range(count + 1)]
    graph = LayeredGraph.from_weights(weights, activations[0], activations[1:], check_finite=False)
    pagerank(graph, float(data["gamma"]))
else:
    from benchmarks import peers
    peer = next(p for p in peers.PEERS if p.name == sys.argv[2])
    v, gamma = data["v"], float(data["gamma"])
    csr = sparse.csr_array((data["data"], data["indices"], data["indptr"]), shape=(len(v), len(v)))
    graph = peer.build(csr, v)
    peer.solve(graph, gamma, v, **peer.settings(1e-12, len(v), gamma))
print(time.perf_counter() - waited)
"""


def cold(chain: LayeredGraph, names: list[str], repeats: int) -> list[dict[str, Any]]:
    """Import, build and solve once in a fresh process, data in memory.

    Peers get their matrix ready-made; building it from the weights is left out. Compiled kernels and
    bytecode come from the cache on disk, as in every process but the first after an installation.
    """
    rows = []
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        csr = chain.to_scipy().astype(np.float64)
        peers_file, own_file = Path(folder, "csr.npz"), Path(folder, "weights.npz")
        v = teleport_vector(as_digraph(chain))
        np.savez(peers_file, data=csr.data, indices=csr.indices, indptr=csr.indptr, v=v, gamma=GAMMA)
        parts = [getattr(block, "matrices", ()) for block in chain.blocks]
        weights = {f"w{k}.{p}": np.asarray(m) for k, matrices in enumerate(parts) for p, m in enumerate(matrices)}
        vectors = {f"a{k}": vector for k, vector in enumerate(chain.activations)}
        counts = {"count": len(parts), "parts": [len(m) for m in parts], "gamma": GAMMA}
        np.savez(own_file, **weights, **vectors, **counts)  # type: ignore[arg-type]
        for name in names:
            spent = []
            for _ in range(repeats):
                file = own_file if name == "llmrank" else peers_file
                outcome = subprocess.run(
                    [sys.executable, "-W", "ignore", "-c", COLD, str(file), name],
                    capture_output=True,
                    text=True,
                    check=True,
                    cwd=Path(__file__).parents[1],
                    env=environment,
                )
                spent.append(float(outcome.stdout.split()[-1]))
            rows.append({"name": name, "seconds": median(spent)})
            print(f"cold: {name} {median(spent):.3f} s", flush=True)
    return rows


# --- the report


def solving(row: dict[str, Any]) -> float:
    return float(row["solve_seconds"])


def building_and_solving(row: dict[str, Any]) -> float:
    return float(row["build_seconds"] + row["solve_seconds"])


def quickest(case: dict[str, Any], target: float, key: Callable[[dict[str, Any]], float], by_hand: bool) -> Any:
    """Return the row of the quickest peer that reached the target, a library or code by hand; None if there is none."""
    reached = [
        row for row in case["rows"] if row["target"] == target and row["reached"] and row["library"] != "llmrank"
    ]
    return min((row for row in reached if (row["library"] in BY_HAND) == by_hand), key=key, default=None)


def compared(case: dict[str, Any], target: float, by_hand: bool) -> list[str]:
    """Return the quickest peers, for solving alone and with building, and how many times as long as this library they take."""
    own = next(row for row in case["rows"] if row["library"] == "llmrank" and row["target"] == target)
    alone, both = (quickest(case, target, key, by_hand) for key in (solving, building_and_solving))
    if alone is None or both is None:
        return ["none reached it", "", "", "", ""]
    return [
        alone["name"],
        f"{solving(alone) / own['steps_seconds']:.1f}",
        f"{solving(alone) / solving(own):.1f}",
        both["name"],
        f"{building_and_solving(both) / building_and_solving(own):.1f}",
    ]


def times(case: dict[str, Any]) -> list[str]:
    """Return the times of one graph in markdown."""
    lines = ["| library | target | true L1 error | build s | solve s |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in sorted(case["rows"], key=lambda r: (r["target"], r["solve_seconds"])):
        mark = "" if row["reached"] else " (missed)"
        lines.append(
            f"| {row['name']} | {row['target']:.0e} | {row['true_error']:.1e}{mark} | {row['build_seconds']:.4f} | "
            f"{row['solve_seconds']:.4f} |"
        )
    return lines


def tables(results: dict[str, Any]) -> str:
    """Return the results in markdown."""
    where = results["provenance"]
    lines = [
        f"{where['cpu']}, {where['cores']} cores, gamma {GAMMA}; {results['graph']}; device {results['device']}.",
        "",
        "## How many times as long the fastest correct peer takes",
        "",
        (
            "First the PageRank functions of libraries, then what somebody who knows solvers writes by hand on scipy or numpy. "
            "Solving: of our call the steps alone, or all of it with the reading of the out-strengths, by which matrices "
            "on scipy are scaled when they are built. Building: from the weights; the peers' matrix by plain scipy."
        ),
    ]
    for by_hand in (False, True):
        who = "by hand" if by_hand else "library"
        lines += [
            "",
            f"| graph | edges | target | fastest {who} solving | our steps | our call | fastest building and solving | ours |",
            "| --- | ---: | ---: | --- | ---: | ---: | --- | ---: |",
        ]
        for case in results["cases"]:
            for target in TARGETS:
                cells = [case["name"], f"{case['edges']:,}", f"{target:.0e}", *compared(case, target, by_hand)]
                lines.append(f"| {' | '.join(cells)} |")
    width = results["bandwidth"]

    def share(part: str) -> str:
        return f"{100 * width[f'share_of_peak_in_{part}']:.0f} %"

    lines += [
        "",
        (
            f"On the chain our call reads the weights twice: for the strengths at {share('strengths')} and for the products at "
            f"{share('products')} of the {width['peak_bytes_per_second'] / 1e9:.1f} GB/s that all cores read of a large array."
        ),
    ]
    if results["cold"]:
        lines += [
            "",
            "## Cold: the first build and solve of a process, chain, 1e-12",
            "",
            "| library | s |",
            "| --- | ---: |",
        ]
        lines += [f"| {row['name']} | {row['seconds']:.3f} |" for row in results["cold"]]
    for case in results["cases"]:
        lines += ["", f"## {case['name']}: {case['nodes']:,} nodes, {case['edges']:,} edges ({case['solver']})", ""]
        if case["sat_out"]:
            lines += [f"Sat out: {', '.join(case['sat_out'])}.", ""]
        lines += ["| library | verdict | L1 error at its tightest |", "| --- | --- | ---: |"]
        lines += [f"| {r['name']} | {r['verdict']} | {r['l1_error']:.1e} |" for r in case["agreement"]]
        lines += ["", *times(case)]
    lines += ["", "## Notes on the peers", ""]
    lines += [f"- {peer.name}: {peer.notes}" for peer in peers.available()]
    if peers.missing():
        lines += ["", f"Not installed: {', '.join(peers.missing())}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory, hub name or .gguf file; default the demo model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3, help="rounds (%(default)s)")
    parser.add_argument(
        "--budget", type=float, default=3.0, help="seconds after which a contender is not called again (%(default)s)"
    )
    parser.add_argument("--device", help="where this library computes, such as cuda; default the CPU")
    parser.add_argument("--quick", action="store_true", help="small random FFNs only, for continuous integration")
    parser.add_argument("--output", type=Path, default=RESULTS / "speed.json")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*iteration stopped after max_iter")
    quick = options.quick
    chain = small_chain(2, options.seed) if quick else model_chains(options.model, [4])[4]
    weights = [tuple(getattr(block, "matrices", ())) for block in chain.blocks]

    def build_chain() -> LayeredGraph:
        # Pipelines build it in the same way: the rank refuses NaN itself, so no pass of its own is needed.
        vectors = chain.activations
        return LayeredGraph.from_weights(weights, vectors[0], vectors[1:], chain.names, check_finite=False)

    repeats = 2 if quick else options.repeats
    common: Any = {
        "repeats": repeats,
        "budget": options.budget,
        "warm": 0.01 if quick else WARM,
        "device": options.device,
    }
    plain = {"residual": scipy_residual, "bidirectional": scipy_bidirectional}
    graphs: dict[str, tuple[Callable[[], Any], Callable[[], sparse.csr_array]]] = {
        "chain": (build_chain, lambda: scipy_matrix(weights)),
        **{
            name: (lambda make=make: make(build_chain()), lambda name=name: plain[name](weights))  # type: ignore[misc]
            for name, make in CYCLIC.items()
        },
        **{
            name: (lambda csr=csr: csr, lambda csr=csr: csr)  # type: ignore[misc]
            for name, csr in gallery_graphs(8 if quick else 16, options.seed).items()
        },
    }
    results: dict[str, Any] = {
        "provenance": provenance(
            seed=options.seed,
            peers=peers.versions(),
            repeats=repeats,
            omp_num_threads=os.environ.get("OMP_NUM_THREADS", "unset"),
            kernel_threads=n_threads(),
        ),
        "graph": "small random FFNs"
        if quick
        else "the first 4 FFNs of " + Path(options.model or "SmolLM2-135M-Instruct").name,
        "device": options.device or "cpu",
        "bandwidth": bandwidth(chain, repeats),
        "cases": [],
    }
    # If a later case fails, what was measured is not lost.
    unfinished = options.output.with_suffix(".unfinished.json")
    for name, (build, assemble) in graphs.items():
        results["cases"].append(study(name, build, assemble, weights=weights if name == "chain" else None, **common))
        if not quick:
            write(unfinished, results)
    correct = [row["name"] for row in results["cases"][0]["agreement"] if row["verdict"] == "correct"]
    results["cold"] = cold(chain, ["llmrank", *(correct[:1] if quick else correct)], 1 if quick else 3)
    if quick:
        print(tables(results))
        with tempfile.TemporaryDirectory() as folder:
            figures.speed(results, Path(folder))
        return
    write(options.output, results)
    unfinished.unlink()
    write(options.output.with_suffix(".md"), tables(results))
    for figure in figures.speed(results, options.output.parent):
        print(f"wrote {figure}")


if __name__ == "__main__":
    main()
