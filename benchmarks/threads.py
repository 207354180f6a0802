"""What the threads of the compiled kernels gain against one thread, and from which size of a block on.

Run it as ``python -m benchmarks.threads`` on an idle machine. The same products run on one thread, on all threads whatever
their size, and as the package runs them (small products on one thread), one after the other in rounds.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from scipy import sparse

from benchmarks.measure import alternated
from benchmarks.provenance import provenance
from benchmarks.result_files import write
from graphs import LayeredGraph, weighted_pagerank
from graphs.linalg import kernels
from graphs.linalg.threads import n_threads

RESULTS = Path(__file__).parent / "results"
# Edges of a block; an FFN of SmolLM2-135M has 884,736 between two layers.
EDGES = (10_000, 100_000, 200_000, 1_000_000, 2_000_000, 10_000_000)
N_SOURCES = 1_000
LIMITS = ("DENSE_WEIGHTS_PER_THREAD", "CSR_ENTRIES_PER_THREAD")


class OneThread:
    """Runs all parts of a kernel one after the other."""

    size = 1

    def run(self, kernel: Callable[[int, int, int], None], cuts: Sequence[int]) -> None:
        """See :meth:`graphs.linalg.threads.ThreadPool.run`."""
        for part in range(len(cuts) - 1):
            kernel(int(cuts[part]), int(cuts[part + 1]), part)


WAYS = ("one thread", "all threads", "as used")


@contextlib.contextmanager
def running(way: str) -> Iterator[None]:
    """Run products in one of the `WAYS` for a while."""
    before = {name: getattr(kernels, name) for name in ("POOL", *LIMITS)}
    changes: dict[str, dict[str, Any]] = {
        "one thread": {"POOL": OneThread()},
        "all threads": dict.fromkeys(LIMITS, 1),
        "as used": {},
    }
    for name, value in changes[way].items():
        setattr(kernels, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(kernels, name, value)


def cases(seed: int, sizes: Sequence[int] = EDGES) -> dict[str, Callable[[], Any]]:
    """Products of dense and CSR blocks by size, and a rank of four FFNs."""
    rng = np.random.default_rng(seed)
    found: dict[str, Callable[[], Any]] = {}
    for edges in sizes:
        x = rng.random(N_SOURCES)
        dense = rng.random((edges // N_SOURCES, N_SOURCES), dtype=np.float32)
        csr = sparse.random_array(
            (edges // 100, N_SOURCES), density=0.1, format="csr", dtype=np.float32, random_state=rng
        )
        found[f"dense product, {edges:,} edges"] = partial(kernels.row_products, (dense,), x)
        found[f"CSR product, {edges:,} edges"] = partial(kernels.csr_products, csr.indptr, csr.indices, csr.data, x)
    layers = (576, 1536, 576) * 4
    weights = [rng.random((n, m), dtype=np.float32) for m, n in pairwise(layers) if m != n]
    widths = [weights[0].shape[1], *(weight.shape[0] for weight in weights)]
    graph = LayeredGraph.from_weights(weights, rng.random(widths[0]), [rng.random(n) for n in widths[1:]])
    found[f"weighted PageRank of {len(weights) // 2} FFNs, {graph.n_edges:,} edges"] = lambda: weighted_pagerank(graph)
    return found


def study(repeats: int, seed: int) -> list[dict[str, Any]]:
    """Measure every case in every way."""
    rows: list[dict[str, Any]] = []
    for name, action in cases(seed).items():

        def run(way: str, action: Callable[[], Any] = action) -> Any:
            with running(way):
                return action()

        found = alternated({way: partial(run, way) for way in WAYS}, repeats, 60.0, keep=False)
        seconds = {way: [spent for spent, _ in calls] for way, calls in found.items()}
        quartiles = {way: quantiles(values, n=4) for way, values in seconds.items()}
        rows.append({"case": name, "quartiles": quartiles, "median": {way: median(v) for way, v in seconds.items()}})
        print(name, {way: f"{1e6 * value:,.0f} us" for way, value in rows[-1]["median"].items()}, flush=True)
    return rows


def table(results: dict[str, Any]) -> str:
    """The results in markdown."""
    machine = results["provenance"]
    told = f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel_threads']} kernel threads."
    lines = [
        f"{told} Microseconds, medians; in brackets how many times as fast as one thread.",
        "",
        f"| | {' | '.join(WAYS)} |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in results["rows"]:
        one, all_threads, used = (row["median"][way] for way in WAYS)
        lines.append(
            f"| {row['case']} | {1e6 * one:,.0f} | {1e6 * all_threads:,.0f} ({one / all_threads:.2f}) "
            f"| {1e6 * used:,.0f} ({one / used:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="rounds, each of a call in every way (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two rounds, printed and not written")
    options = parser.parse_args()
    rows = study(2 if options.quick else options.repeats, options.seed)
    if not options.quick:
        results = {"provenance": provenance(kernel_threads=n_threads(), repeats=options.repeats), "rows": rows}
        write(RESULTS / "threads.json", results)
        write(RESULTS / "threads.md", table(results))


if __name__ == "__main__":
    main()
