"""Time and memory to rank from a million edges to a billion, with the weights on disk.

Run it as ``python -m benchmarks.scale --directory DIR`` (10 GB free). It writes chains of gated FFNs with random weights as
safetensors shards, one for each FFN. It ranks each chain (weighted PageRank, float64, one sweep) in a process of its own, from
files that are in the page cache (warm) or were dropped from it (cold). It reports seconds for each edge, and the peak of the
memory that the process holds beyond the page cache (anonymous pages).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks import figures
from benchmarks.provenance import provenance
from benchmarks.result_files import write_results
from graphs import LayeredGraph, weighted_pagerank
from graphs.io.shards import open_tensors

RESULTS = Path(__file__).parent / "results"

# (FFNs, d, f). An FFN has 2 d f edges, because gate and up share theirs. Widths are those of Llama 3 8B, or fractions of them.
CHAINS = (
    (1, 384, 1344),
    (1, 896, 3136),
    (1, 1280, 4480),
    (1, 2048, 7168),
    (1, 4096, 14336),
    (3, 4096, 14336),
    (9, 4096, 14336),
)
QUICK = ((1, 128, 448), (2, 256, 896))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def write_chain(folder: Path, ffns: int, d: int, f: int, dtype: str, seed: int) -> int:
    """Write the shards with one FFN in memory at a time, and return their bytes."""
    generator = torch.Generator().manual_seed(seed)
    for layer in range(ffns):
        tensors = {
            f"layers.{layer}.{name}": torch.randn(shape, generator=generator).mul_(0.02).to(DTYPES[dtype])
            for name, shape in (("gate", (f, d)), ("up", (f, d)), ("down", (d, f)))
        }
        path = folder / f"model-{layer:05d}.safetensors"
        save_file(tensors, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return sum(path.stat().st_size for path in folder.iterdir())


def open_chain(folder: Path, ffns: int) -> LayeredGraph:
    """Return the graph of the shards, without reading a weight."""
    tensors = open_tensors(folder)
    weights: list[Any] = []
    for layer in range(ffns):
        weights.append((tensors[f"layers.{layer}.up"], tensors[f"layers.{layer}.gate"]))
        weights.append(tensors[f"layers.{layer}.down"])
    rng = np.random.default_rng(0)
    sizes = [weights[1].shape[0], *(w[0].shape[0] if isinstance(w, tuple) else w.shape[0] for w in weights)]
    activations = [rng.lognormal(size=size) for size in sizes]
    return LayeredGraph.from_weights(weights, activations[0], activations[1:], check_finite=False)


def drop_from_page_cache(folder: Path) -> None:
    """Ask the system to drop the files from its page cache. The cache of a host below a virtual machine is out of reach."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fill_page_cache(folder: Path) -> None:
    """Read every file once."""
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


class Watch:
    """Watches the peak of one kind of resident memory, every few milliseconds."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._stop.wait(0.004):
            self.peak = max(self.peak, resident("RssAnon"))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, resident("RssAnon"))


def resident(kind: str) -> int:
    """Return the bytes of this kind (VmRSS, RssAnon, RssFile) that the process holds."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    return 0


def rank(folder: Path, ffns: int, repeats: int, device: str | None) -> dict[str, Any]:
    """Rank in this process, cold once and then warm. The time runs from opening the files to the scores."""
    # Ranking a graph of another size loads libraries and kernels before the clock starts.
    tiny = LayeredGraph.from_weights(
        [(torch.rand(1024, 1024, dtype=kind), torch.rand(1024, 1024, dtype=kind)) for kind in DTYPES.values()],
        np.ones(1024),
        [np.ones(1024)] * 2,
    )
    weighted_pagerank(tiny, device=device)
    lone = LayeredGraph.from_weights(
        [torch.rand(1024, 1024, dtype=kind) for kind in DTYPES.values()], np.ones(1024), [np.ones(1024)] * 2
    )
    weighted_pagerank(lone, device=device)
    drop_from_page_cache(folder)
    spent = []
    before = resident("RssAnon")
    with Watch() as watch:
        for turn in range(repeats + 1):
            if turn == 1:
                fill_page_cache(folder)
            begun = time.perf_counter()
            result = weighted_pagerank(open_chain(folder, ffns), device=device)
            spent.append(time.perf_counter() - begun)
    finite = all(np.isfinite(scores).all() and abs(scores.sum() - 1.0) < 1e-12 for scores in result.scores)
    return {
        "cold_seconds": spent[0],
        "warm_seconds": median(spent[1:]),
        "resident_beyond_page_cache": watch.peak,
        "of_which_libraries": before,
        "backend": result.backend,
        "finite_and_mass_1": bool(finite),
    }


def study(chains: Any, dtypes: list[str], directory: Path, repeats: int, device: str | None) -> list[dict[str, Any]]:
    """Write each chain, rank it in a process of its own, and delete it."""
    rows = []
    for dtype in dtypes:
        for ffns, d, f in chains:
            with tempfile.TemporaryDirectory(dir=directory) as name:
                folder = Path(name)
                size = write_chain(folder, ffns, d, f, dtype, seed=0)
                job = [sys.executable, "-m", "benchmarks.scale", "--rank", name, str(ffns), "--repeats", str(repeats)]
                job += ["--device", device] if device else []
                outcome = subprocess.run(
                    job, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1]
                )
                if outcome.returncode:
                    raise RuntimeError(outcome.stderr[-2000:])
                row = {
                    "edges": ffns * 2 * d * f,
                    "ffns": ffns,
                    "widths": [d, f],
                    "dtype": dtype,
                    "file_bytes": size,
                    **json.loads(outcome.stdout.splitlines()[-1]),
                }
            rows.append(row)
            print(
                f"{dtype}, {row['edges']:,} edges: warm {row['warm_seconds']:.4f} s, cold {row['cold_seconds']:.3f} s, "
                f"{row['resident_beyond_page_cache'] / 1e6:.0f} MB of its own",
                flush=True,
            )
    return rows


def tables(results: dict[str, Any]) -> str:
    """Return the results in markdown."""
    where = results["provenance"]
    lines = [
        f"{where['cpu']}, {where['cores']} cores; weighted PageRank, float64, one sweep; weights on disk as safetensors.",
        "",
        "| weights | FFNs | widths | edges | on disk | warm s | ns an edge | against 10 M edges | cold s | own memory |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in results["rows"]:
        base = min(
            (r for r in results["rows"] if r["dtype"] == row["dtype"]), key=lambda r: abs(np.log(r["edges"] / 1e7))
        )
        each = row["warm_seconds"] / row["edges"]
        lines.append(
            f"| {row['dtype']} | {row['ffns']} | {row['widths'][0]} x {row['widths'][1]} | {row['edges']:,} | "
            f"{row['file_bytes'] / 1e9:.2f} GB | {row['warm_seconds']:.4f} | {1e9 * each:.3f} | "
            f"{each / (base['warm_seconds'] / base['edges']):.2f} | {row['cold_seconds']:.2f} | "
            f"{row['resident_beyond_page_cache'] / 1e6:.0f} MB ({row['of_which_libraries'] / 1e6:.0f} MB before) |"
        )
    large = [row for row in results["rows"] if row["dtype"] == "bfloat16"]
    if large:
        row = large[-1]
        # Llama 3 70B: 80 layers of 8192 x 28672, three matrices each.
        edges, size = 80 * 2 * 8192 * 28672, 80 * 3 * 8192 * 28672 * 2
        warm = edges * row["warm_seconds"] / row["edges"]
        minutes = [2 * size / speed / 60 for speed in (2e9, 5e9)]
        text = (
            f"On paper, Llama 3 70B in bfloat16: {edges / 1e9:.1f} billion edges, {size / 1e9:.0f} GB of FFN weights. At the "
            f"last row's speed {warm:.0f} s, if the weights lay in the page cache. From a disk each block (at most 0.94 GB) is "
            "read for its strengths and found in the page cache for its product, so the files are read once: "
            f"{minutes[0] / 2:.1f} minutes at 2 GB/s, {minutes[1] / 2:.1f} at 5 GB/s. Memory of its own: vectors of 28,672 "
            "numbers and their like, some megabytes beside the libraries."
        )
        lines += ["", text]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--directory", type=Path, help="where to write the weights; default the temporary directory of the system"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", help="where to compute, such as cuda; default the CPU")
    parser.add_argument("--quick", action="store_true", help="small chains, for continuous integration")
    parser.add_argument("--output", type=Path, default=RESULTS / "scale.json")
    parser.add_argument(
        "--rank", nargs=2, metavar=("FOLDER", "FFNS"), help="rank one folder in this process (internal)"
    )
    options = parser.parse_args()
    if options.rank:
        folder, ffns = options.rank
        print(json.dumps(rank(Path(folder), int(ffns), options.repeats, options.device)))
        return
    chains, dtypes = (QUICK, ["float32"]) if options.quick else (CHAINS, list(DTYPES))
    rows = study(chains, dtypes, options.directory, options.repeats, options.device)
    results = {"provenance": provenance(seed=0), "device": options.device or "cpu", "rows": rows}
    if options.quick:
        print(tables(results))
        with tempfile.TemporaryDirectory() as folder:
            figures.scale(results, Path(folder))
        return
    write_results(options.output, results, tables)
    for figure in figures.scale(results, options.output.parent):
        print(f"wrote {figure}")


if __name__ == "__main__":
    main()
