"""Time to rank, against one dense matrix-vector pass over the same matrices.

Run it as ``python -m benchmarks.ranking``. There are two cases: all FFNs of the demo model, and four plain
FFNs of 2048 x 8192. The time runs from weights and statistics to scores, building the graph included, in the
chained topology. The dense pass multiplies every matrix (gate, up, down) by one float32 vector. Both are
measured in turn. The results are the medians, and the median ratio of a rank to the dense pass before it.
What somebody would write by hand is the weighted rank alone, in twenty lines of numba with float32 sums,
on one thread and on matrices that are prepared before the clock starts.
The error is the largest L1 distance of a layer's scores from those in float64. Peak memory is the growth of
the resident set above its size before ranking (Linux only). ``OMP_NUM_THREADS`` sets the number of threads.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numba
import numpy as np
import torch
from torch import nn

from benchmarks.provenance import provenance
from benchmarks.result_files import write_results
from graphs import LayeredGraph, modified_pagerank, weighted_pagerank
from graphs.linalg.threads import n_threads
from llmrank.calibration.statistics import FFNStatistics, LayerStatistics
from llmrank.cli.demo_models import demo_model
from llmrank.models import FFNs, find_ffns
from llmrank.score import ModifiedPageRankScorer, WeightedPageRankScorer
from llmrank.score.topologies import build_graphs
from llmrank.surgery import checkpoint

RESULTS = Path(__file__).parent / "results"
WEIGHTED = "weighted, float64"
BY_HAND = "weighted, twenty lines of numba, one thread, float32"


@numba.njit(nogil=True, fastmath=True)
def by_hand(first: Any, second: Any, scores: Any, activations: Any, gamma: float) -> Any:
    """Take one step of the weighted rank, with all sums in float32; `second` has no rows if there is one matrix."""
    n_targets, n_sources = first.shape
    strengths, passed = np.zeros(n_sources, np.float32), np.empty(n_targets, np.float32)
    for matrix in (first, second):
        for i in range(len(matrix)):
            for j in range(n_sources):
                strengths[j] += abs(matrix[i, j])
    shares = scores / strengths
    for i in range(n_targets):
        total = np.float32(0.0)
        for j in range(n_sources):
            total += abs(first[i, j]) * shares[j]
        if len(second):
            for j in range(n_sources):
                total += abs(second[i, j]) * shares[j]
        passed[i] = total
    mixed = np.float32(gamma) * passed + np.float32(1.0 - gamma) * activations / activations.sum()
    return mixed / mixed.sum()


def rank_by_hand(graph: LayeredGraph) -> Callable[[], list[Any]]:
    """Return a call that ranks a chain of dense float32 weights as :func:`graphs.weighted_pagerank` does."""
    matrices = [[matrix.detach().numpy() for matrix in block.matrices] for block in graph.blocks]  # type: ignore[attr-defined]
    activations = [np.asarray(vector, np.float32) for vector in graph.activations]

    def rank() -> list[Any]:
        layers = [activations[0] / activations[0].sum()]
        for (first, *others), own in zip(matrices, activations[1:], strict=True):
            second = others[0] if others else first[:0]
            layers.append(by_hand(first, second, layers[-1], own, WeightedPageRankScorer().gamma))
        return layers

    return rank


def plain_ffns(count: int, d_model: int, d_ff: int) -> nn.Module:
    """Return a stack of plain FFNs with random weights."""
    layers = nn.ModuleList()
    for _ in range(count):
        layer = nn.Module()
        layer.fc1 = nn.Linear(d_model, d_ff, bias=False)
        layer.fc2 = nn.Linear(d_ff, d_model, bias=False)
        layers.append(layer)
    model = nn.Module()
    model.layers = layers
    return model


def statistics_for(ffns: FFNs) -> list[FFNStatistics]:
    """Return random statistics: the time does not depend on their values."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for ffn in ffns:
        layers = []
        for size in ffn.sizes:
            norm = torch.rand(size, generator=generator, dtype=torch.float64) + 0.1
            layers.append(LayerStatistics(norm, norm, norm, 1, norm))
        result.append(FFNStatistics(tuple(layers)))
    return result


def peak_growth(action: Callable[[], Any]) -> int | None:
    """Return the bytes by which the peak of the resident set exceeds its size before `action`."""
    try:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _status("VmRSS")
        action()
        return max(0, _status("VmHWM") - before)
    except OSError:
        return None


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {key}")


def study(name: str, model: nn.Module, repeats: int, device: str) -> dict[str, Any]:
    """Measure one model."""
    model.to(device)
    ffns = find_ffns(model)
    statistics = statistics_for(ffns)
    matrices = [linear_map.weight for ffn in ffns for stage in ffn.stages for linear_map in stage]
    vectors = [torch.rand(matrix.shape[1], device=device) for matrix in matrices]

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    def dense_pass() -> None:
        for matrix, vector in zip(matrices, vectors, strict=True):
            torch.mv(matrix, vector)
        wait()

    def ranking(scorer: Any) -> Callable[[], list[Any]]:
        def run() -> list[Any]:
            ranks = [scorer.rank(entry.graph, entry.statistics) for entry in build_graphs(ffns, statistics, "chained")]
            wait()
            return [scores for rank in ranks for scores in rank.scores]

        return run

    contenders: dict[str, Callable[[], Any]] = {
        "weighted, float32": ranking(WeightedPageRankScorer(dtype="float32")),
        WEIGHTED: ranking(WeightedPageRankScorer(dtype="float64")),
        "weighted, energies of the gate, float32": ranking(WeightedPageRankScorer(edges="gate")),
        "modified, float32": ranking(ModifiedPageRankScorer(dtype="float32")),
        "modified, float64": ranking(ModifiedPageRankScorer(dtype="float64")),
    }
    chain, *others = build_graphs(ffns, statistics, "chained")
    if device == "cpu" and not others:
        contenders[BY_HAND] = rank_by_hand(chain.graph)
    times: dict[str, list[float]] = {key: [] for key in contenders}
    ratios: dict[str, list[float]] = {key: [] for key in contenders}
    passes: list[float] = []
    for repeat in range(repeats + 1):
        for key, action in contenders.items():
            reference, spent = _time(dense_pass), _time(action)
            if repeat:  # the first round warms up
                passes.append(reference)
                times[key].append(spent)
                ratios[key].append(spent / reference)
    exact = contenders[WEIGHTED]()
    largest = max(matrix.numel() * matrix.element_size() for matrix in matrices)
    case: dict[str, Any] = {
        "case": name,
        "edges": sum(stage[0].weight.numel() for ffn in ffns for stage in ffn.stages),
        "matrix_entries": sum(matrix.numel() for matrix in matrices),
        "dense_pass_seconds": median(passes),
        "dense_pass_gigabytes_per_second": sum(m.numel() * m.element_size() for m in matrices) / median(passes) / 1e9,
        "largest_block_bytes": largest,
        "ranks": {
            key: {
                "seconds": median(times[key]),
                "ratio": median(ratios[key]),
                "error": _error(action(), exact) if key.startswith("weighted") and "gate" not in key else None,
                "peak_growth_bytes": peak_growth(action) if device == "cpu" else None,
            }
            for key, action in contenders.items()
        },
        "csr": _csr(ffns, statistics, device),
    }
    return case


def _error(scores: list[Any], exact: list[Any]) -> float:
    """Return the largest L1 distance of a layer."""
    return max(float(np.abs(ours - wanted).sum()) for ours, wanted in zip(scores, exact, strict=True))


def _csr(ffns: FFNs, statistics: Sequence[FFNStatistics], device: str) -> dict[str, Any]:
    """Measure graphs in explicit CSR form: building them, then ranking them."""
    start = perf_counter()
    graphs = [entry.graph.with_csr() for entry in build_graphs(ffns, statistics, "chained")]
    result: dict[str, Any] = {"build_seconds": perf_counter() - start, "edges": sum(graph.n_edges for graph in graphs)}
    for backend in ("scipy", "torch"):
        where = device if backend == "torch" else None
        for method, rank in (("weighted", weighted_pagerank), ("modified", modified_pagerank)):
            ranked = partial(rank, backend=backend, device=where)
            spent = [_time(lambda ranked=ranked: [ranked(graph) for graph in graphs]) for _ in range(3)]  # type: ignore[misc]
            result[f"{method}, {backend} CSR, float64, seconds"] = median(spent)
    return result


def _time(action: Callable[[], Any]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


def table(results: dict[str, Any]) -> str:
    """Return the results in markdown."""
    machine = results["provenance"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, threads: {results['threads']}, device {results['device']}.",
        "",
        "| case | rank | seconds | dense passes | largest L1 error of a layer | peak memory above the weights |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for case in results["cases"]:
        head = f"{case['case']}, {case['edges'] / 1e6:.0f} M edges"
        lines.append(f"| {head} | one dense pass | {case['dense_pass_seconds']:.4f} | 1 | | |")
        for key, row in case["ranks"].items():
            peak = "" if row["peak_growth_bytes"] is None else f"{row['peak_growth_bytes'] / 1e6:.0f} MB"
            error = "" if row["error"] is None or key == WEIGHTED else f"{row['error']:.1e}"
            lines.append(f"| | {key} | {row['seconds']:.4f} | {row['ratio']:.2f} | {error} | {peak} |")
        for key, value in case["csr"].items():
            if key != "edges":
                lines.append(
                    f"| | CSR: {key.removesuffix(', seconds')} | {value:.3f} | {value / case['dense_pass_seconds']:.1f} | | |"
                )
        lines.append(f"| | largest single matrix | | | | {case['largest_block_bytes'] / 1e6:.0f} MB |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory, hub name or .gguf file; default the demo model")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="small random FFNs only, for continuous integration")
    parser.add_argument("--output", type=Path, default=RESULTS / "ranking.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.quick:
        cases = [study("4 plain FFNs of 256 x 1024", plain_ffns(4, 256, 1024), 3, options.device)]
    else:
        loaded = checkpoint.load(options.model or demo_model(), dtype="float32")
        cases = [study(Path(loaded.source).name, loaded.model, options.repeats, options.device)]
        del loaded
        cases.append(study("4 plain FFNs of 2048 x 8192", plain_ffns(4, 2048, 8192), options.repeats, options.device))
    results = {"provenance": provenance(seed=0), "device": options.device, "threads": n_threads(), "cases": cases}
    if not options.quick:
        write_results(options.output, results, table)
    print(table(results))


if __name__ == "__main__":
    main()
