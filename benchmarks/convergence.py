"""How PageRank converges on the graphs of FFNs.

Run it as ``python -m benchmarks.convergence``. The graphs are a chain of the demo model's FFNs, its residual and bidirectional
graphs, random controls of the same size, and a gallery of digraphs without layers. For every solver it measures the true L1
error and the error bound after every step, block products and seconds. It also measures how depth, density and damping change
these, when the set of kept neurons is final and when it is certified, where float32 stops, and what sparsifying costs. It
writes JSON, tables and figures.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from benchmarks import figures
from benchmarks.cases import CYCLIC, gallery_graphs, model_chains, random_control, shuffled_control, small_chain
from benchmarks.measure import reference_scores, trace
from benchmarks.provenance import provenance
from benchmarks.result_files import write_results
from graphs import KeepHighest, LayeredGraph, pagerank, sparsify, weighted_pagerank
from graphs.solvers import SOLVERS

RESULTS = Path(__file__).parent / "results"
GAMMAS = (0.5, 0.85, 0.99)
ITERATIVE = tuple(name for name in SOLVERS if name not in ("sweep", "lu"))
SHARE = 0.3
"""The share of the hidden neurons to remove."""


def first_below(values: list[float], level: float) -> int | None:
    """Return the number of steps until `values` is first at most `level`; None if it never is."""
    return next((k for k, value in enumerate(values, start=1) if value <= level), None)


def exactness(chain: LayeredGraph) -> list[dict[str, Any]]:
    """Compare power iteration with the sweep on a layered graph, which needs no iteration."""
    rows = []
    for gamma in GAMMAS:
        swept = weighted_pagerank(chain, gamma)
        errors: list[float] = []

        def look(progress: Any, swept: Any = swept, errors: list[float] = errors) -> None:
            apart = [float(np.abs(a - b).sum()) for a, b in zip(progress.scores(), swept.scores, strict=True)]
            errors.append(max(apart))

        power = weighted_pagerank(chain, gamma, solver="power", tol=0.0, callback=look)
        rows.append(
            {
                "gamma": gamma,
                "blocks": len(chain.blocks),
                "error": errors,
                "bound": power.error_bounds.tolist(),
                "residual": power.residuals.tolist(),
                "power_products": power.block_products,
                "sweep_products": swept.block_products,
                "steps_to_1e-12": first_below(errors, 1e-12),
            }
        )
    return rows


def solvers(chain: LayeredGraph, device: str | None) -> list[dict[str, Any]]:
    """Run every solver on the two graphs with cycles."""
    rows = []
    for name, make in CYCLIC.items():
        graph = make(chain)
        for gamma in GAMMAS:
            reference, check = reference_scores(graph, gamma)
            for solver in ITERATIVE:
                # With this tolerance the error bound ends at 1e-12.
                found = trace(graph, gamma, solver, reference, 1e-12 * (1 - gamma), max_iter=5000, device=device)
                rows.append({"graph": name, **found, "reference_check": check})
                done = first_below(found["error"], 1e-10)
                print(f"{name}, gamma {gamma}, {solver}: {len(found['error'])} steps, 1e-10 after {done}", flush=True)
    return rows


def shapes(chains: dict[int, LayeredGraph], seeds: int) -> dict[str, list[dict[str, Any]]]:
    """Count the steps to a true error of 1e-10 by depth, by density, and on controls without structure."""

    def steps(chain: LayeredGraph, gamma: float = 0.85) -> list[dict[str, Any]]:
        found = []
        for name, make in CYCLIC.items():
            graph = make(chain)
            reference, _ = reference_scores(graph, gamma, check=False)
            for solver in ("power", "gauss-seidel", "gmres"):
                row = trace(graph, gamma, solver, reference, 1e-12 * (1 - gamma), max_iter=5000)
                last = first_below(row["error"], 1e-10)
                found.append(
                    {
                        "graph": name,
                        "solver": solver,
                        "steps": last,
                        "products": None if last is None else row["products"][last - 1],
                    }
                )
        return found

    depth = [{"ffns": ffns, **row} for ffns, chain in chains.items() for row in steps(chain)]
    middle = chains[min(chains, key=lambda ffns: abs(ffns - 4))]
    density = []
    for kept in (1.0, 0.9, 0.7, 0.5, 0.2):
        thinned = middle if kept == 1.0 else sparsify(middle, weight_share=kept).graph
        density += [{"weight_share": kept, "density": thinned.density, **row} for row in steps(thinned)]
    controls = [{"weights": "real", **row} for row in steps(middle)]
    for seed in range(seeds):
        controls += [{"weights": "Gaussian", "seed": seed, **row} for row in steps(random_control(middle, seed))]
        controls += [{"weights": "shuffled", "seed": seed, **row} for row in steps(shuffled_control(middle, seed))]
    return {"depth": depth, "density": density, "controls": controls}


def hidden_layers(graph: Any) -> list[int]:
    """Return the layers of hidden neurons: every second layer of a chain of FFNs."""
    return list(range(1, len(graph.layer_sizes), 2))


def ranks(chain: LayeredGraph) -> list[dict[str, Any]]:
    """Count the steps until the order and the set of kept neurons are right, and until the set is certified."""
    rows = []
    cases: list[tuple[str, Any, str, float]] = [
        (name, make(chain), solver, 0.85) for name, make in CYCLIC.items() for solver in ("power", "gauss-seidel")
    ]
    cases += [(f"layered, gamma {gamma}", chain, "power", gamma) for gamma in (0.5, 0.85)]
    for name, graph, solver, gamma in cases:
        hidden = hidden_layers(graph)
        counts = {layer: graph.layer_sizes[layer] - round(SHARE * graph.layer_sizes[layer]) for layer in hidden}
        keep = KeepHighest(counts)

        def rank(
            graph: Any = graph, solver: Any = solver, gamma: float = gamma, name: str = name, **options: Any
        ) -> Any:
            if name.startswith("layered"):
                return weighted_pagerank(graph, gamma, solver=solver, **options)
            return pagerank(graph, gamma, solver=solver, **options)

        exact = rank(tol=1e-14) if not name.startswith("layered") else weighted_pagerank(graph, gamma)
        final = keep.certificate(exact.scores, [0.0] * len(graph.layer_sizes)).keep
        overlap: list[float] = []
        tau: list[float] = []
        error: list[float] = []

        def look(
            progress: Any,
            exact: Any = exact,
            final: Any = final,
            keep: KeepHighest = keep,
            hidden: list[int] = hidden,
            trails: Any = (overlap, tau, error),
        ) -> None:
            scores = progress.scores()
            now = keep.certificate(scores, [0.0] * len(scores)).keep
            common = sum(int((now[layer] & final[layer]).sum()) for layer in hidden)
            trails[0].append(common / sum(int(final[layer].sum()) for layer in hidden))
            taus = [kendalltau(scores[layer], exact.scores[layer]).statistic for layer in hidden]
            trails[1].append(float(np.mean(taus)))
            trails[2].append(sum(float(np.abs(a - b).sum()) for a, b in zip(scores, exact.scores, strict=True)))

        full = rank(tol=1e-12 * (1 - gamma), callback=look)
        certified = rank(tol=1e-12 * (1 - gamma), keep=keep)
        wrong = [k for k, share in enumerate(overlap, start=1) if share < 1.0]
        gaps = certified.certificate.gaps
        rows.append(
            {
                "graph": name,
                "solver": solver,
                "gamma": gamma,
                "overlap": overlap,
                "tau": tau,
                "error": error,
                "steps_to_1e-12": full.iterations,
                "steps_until_set_is_final": (wrong[-1] + 1) if wrong else 1,
                "steps_until_certified": certified.iterations if certified.certificate.certified else None,
                "stop": certified.stop_reason,
                "smallest_gap": min(gaps.values()),
                "certified_set_is_right": all(
                    bool((certified.certificate.keep[layer] == final[layer]).all()) for layer in hidden
                ),
            }
        )
    return rows


def floors(chain: LayeredGraph) -> list[dict[str, Any]]:
    """Find the true errors at which float32 and float64 stop."""
    rows = []
    for name, make in CYCLIC.items():
        graph = make(chain)
        reference, _ = reference_scores(graph, 0.85)
        for dtype in ("float64", "float32"):
            for solver in ("power", "gauss-seidel"):
                # With a tolerance of zero only rounding stops the solver.
                options = {"max_iter": 200, "dtype": dtype}
                found = trace(graph, 0.85, solver, reference, 0.0 if dtype == "float32" else 1e-14, **options)
                rows.append({"graph": name, "dtype": dtype, **found})
    return rows


def thinning(chain: LayeredGraph, gamma: float = 0.5) -> list[dict[str, Any]]:
    """Sparsify, and compare the share of edges kept with true error, error bound and agreement of the removed neurons."""
    exact = weighted_pagerank(chain, gamma)
    hidden = hidden_layers(chain)
    keep = KeepHighest({layer: chain.layer_sizes[layer] - round(SHARE * chain.layer_sizes[layer]) for layer in hidden})
    full = keep.certificate(exact.scores, [0.0] * len(chain.layer_sizes)).keep
    widest = max(chain.layer_sizes)
    settings: list[dict[str, Any]] = [
        *({"weight_share": share} for share in (0.999, 0.99, 0.95, 0.9, 0.8, 0.6, 0.4, 0.2)),
        *(
            {"top_k": k}
            for k in sorted({max(1, widest * s // 1000) for s in (500, 200, 100, 50, 20, 5, 1)}, reverse=True)
        ),
        *({"threshold": t / widest} for t in (0.1, 0.3, 1.0, 2.0, 3.0, 5.0)),
    ]
    rows = []
    for setting in settings:
        thinned = sparsify(chain, **setting)
        scores = weighted_pagerank(thinned.graph, gamma).scores
        now = keep.certificate(scores, [0.0] * len(scores)).keep
        gone = sum(int((~full[layer]).sum()) for layer in hidden)
        rows.append(
            {
                "by": next(iter(setting)),
                "value": next(iter(setting.values())),
                "kept": thinned.kept_share,
                "error": max(float(np.abs(a - b).sum()) for a, b in zip(scores, exact.scores, strict=True)),
                "bound": thinned.error_bound(gamma),
                "same_neurons_go": sum(int((~now[layer] & ~full[layer]).sum()) for layer in hidden) / gone,
            }
        )
    return rows


def gallery(scale: int, seed: int) -> list[dict[str, Any]]:
    """Run every solver on digraphs without layers."""
    rows = []
    for name, csr in gallery_graphs(scale, seed).items():
        for gamma in (0.85, 0.99):
            reference, _ = reference_scores(csr, gamma)
            for solver in ITERATIVE:
                found = trace(csr, gamma, solver, reference, 1e-11 * (1 - gamma), max_iter=5000)
                last = first_below(found["error"], 1e-10)
                rows.append(
                    {
                        "graph": name,
                        "nodes": csr.shape[0],
                        "edges": int(csr.nnz),
                        "gamma": gamma,
                        "solver": solver,
                        "steps": last,
                        "products": None if last is None else found["products"][last - 1],
                        "seconds": None if last is None else found["seconds"][last - 1],
                    }
                )
    return rows


def tables(results: dict[str, Any]) -> str:
    """Return the results in markdown."""
    where = results["provenance"]
    lines = [
        f"{where['cpu']}, {where['cores']} cores, seed {where['seed']}; {results['graph']}, where nothing else is said.",
        "",
        "## Layered: exact without iterating",
        "",
        "| gamma | blocks | power: steps until exact | steps to 1e-12 | its block products | the sweep's |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {r['gamma']} | {r['blocks']} | {len(r['error'])} | {r['steps_to_1e-12']} | {r['power_products']} | "
        f"{r['sweep_products']} |"
        for r in results["exactness"]
    ]
    lines += [
        "",
        "## Cycles: to a true L1 error of 1e-10",
        "",
        "| graph | gamma | solver | steps | block products | of power's | ms | bound over true error |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in results["solvers"]:
        last = first_below(row["error"], 1e-10)
        power = next(
            r
            for r in results["solvers"]
            if (r["graph"], r["gamma"], r["solver"]) == (row["graph"], row["gamma"], "power")
        )
        base = first_below(power["error"], 1e-10)
        if last is None or base is None:
            lines.append(f"| {row['graph']} | {row['gamma']} | {row['solver']} | not reached | | | | |")
            continue
        products = row["products"][last - 1]
        slack = row["bound"][last - 1] / row["error"][last - 1] if row["error"][last - 1] else float("inf")
        lines.append(
            f"| {row['graph']} | {row['gamma']} | {row['solver']} | {last} | {products} | "
            f"1 / {power['products'][base - 1] / products:.1f} | {1e3 * row['seconds'][last - 1]:.1f} | {slack:.0f} |"
        )
    lines += [
        "",
        "## Depth, density, controls (gamma 0.85): steps to a true L1 error of 1e-10",
        "",
        "| what | graph | power | gauss-seidel | gmres cycles |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    grouped: dict[tuple[str, str], dict[str, Any]] = {}
    for kind, label in (
        ("depth", lambda r: f"{r['ffns']} FFNs"),
        ("density", lambda r: f"density {r['density']:.3f} (weight share {r['weight_share']})"),
        ("controls", lambda r: f"{r['weights']} weights" + (f", seed {r['seed']}" if "seed" in r else "")),
    ):
        for row in results["shapes"][kind]:
            grouped.setdefault((label(row), row["graph"]), {})[row["solver"]] = row["steps"]
    lines += [
        f"| {what} | {graph} | {s['power']} | {s['gauss-seidel']} | {s['gmres']} |"
        for (what, graph), s in grouped.items()
    ]
    lines += [
        "",
        f"## Ranking to prune: the {100 * SHARE:.0f} % lowest hidden neurons of every FFN",
        "",
        "| graph | solver | steps until the set is final | until certified | to 1e-12 | smallest gap |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {r['graph']} | {r['solver']} | {r['steps_until_set_is_final']} | {r['steps_until_certified']} ({r['stop']}) | "
        f"{r['steps_to_1e-12']} | {r['smallest_gap']:.1e} |"
        for r in results["ranks"]
    ]
    lines += [
        "",
        "## float32 and float64 (gamma 0.85)",
        "",
        "| graph | solver | dtype | steps | lowest true error |",
        "| --- | --- | --- | ---: | ---: |",
    ]
    lines += [
        f"| {r['graph']} | {r['solver']} | {r['dtype']} | {len(r['error'])} | {min(r['error']):.1e} |"
        for r in results["floors"]
    ]
    lines += [
        "",
        "## Thinning (layered weighted rank, gamma 0.5)",
        "",
        "| by | value | edges kept | true error | bound | same neurons go |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {r['by']} | {r['value']:.4g} | {100 * r['kept']:.2f} % | {r['error']:.3f} | {r['bound']:.3f} | "
        f"{100 * r['same_neurons_go']:.1f} % |"
        for r in results["thinning"]
    ]
    lines += [
        "",
        "## General digraphs: to a true L1 error of 1e-10",
        "",
        "| graph | nodes | edges | gamma | solver | steps | products | ms |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {r['graph']} | {r['nodes']:,} | {r['edges']:,} | {r['gamma']} | {r['solver']} | {r['steps']} | {r['products']} | "
        + ("" if r["seconds"] is None else f"{1e3 * r['seconds']:.1f}")
        + " |"
        for r in results["gallery"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory, hub name or .gguf file; default the demo model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="where the solvers on cyclic graphs compute, such as cuda; default the CPU")
    parser.add_argument("--quick", action="store_true", help="small random FFNs only, for continuous integration")
    parser.add_argument("--output", type=Path, default=RESULTS / "convergence.json")
    options = parser.parse_args()
    # Parts of this benchmark run solvers beyond what rounding allows.
    warnings.filterwarnings("ignore", message=".*iteration stopped after max_iter")
    if options.quick:
        chains = {depth: small_chain(depth, options.seed) for depth in (2, 4)}
        deepest, middle, scale, seeds, name = chains[4], chains[4], 8, 1, "small random FFNs"
    else:
        chains = model_chains(options.model, [1, 2, 4, 8, 16, 30])
        deepest, middle = chains[max(chains)], chains[4]
        scale, seeds, name = 14, 3, f"the first 4 FFNs of {Path(options.model or 'SmolLM2-135M-Instruct').name}"
    results = {
        "provenance": provenance(seed=options.seed),
        "graph": name,
        "device": options.device or "cpu",
        "exactness": exactness(deepest),
        "solvers": solvers(middle, options.device),
        "shapes": shapes(chains, seeds),
        "ranks": ranks(middle),
        "floors": floors(middle),
        "thinning": thinning(middle),
        "gallery": gallery(scale, options.seed),
    }
    if options.quick:
        print(tables(results))
        with tempfile.TemporaryDirectory() as folder:
            figures.convergence(results, Path(folder))
        return
    write_results(options.output, results, tables)
    for figure in figures.convergence(results, options.output.parent):
        print(f"wrote {figure}")


if __name__ == "__main__":
    main()
