"""Measure the density at which CSR products become faster than dense ones, for the table in ``graphs/linalg/cost_model.py``.

Run it as ``python -m benchmarks.crossover``. For one block (float32 weights, float64 vector) at several densities it measures
the seconds of a dense product, of a CSR product and of the conversions, in turn. It prints the line for the table. Put the line
there if it differs by more than the spread.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.measure import alternated
from benchmarks.provenance import provenance
from benchmarks.result_files import write_results
from graphs.linalg.backends import make_backend
from graphs.linalg.blocks import DenseBlock, SparseBlock
from graphs.linalg.cost_model import COSTS

RESULTS = Path(__file__).parent / "results"
DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.01)


def study(engine: str, size: int, repeats: int) -> dict[str, Any]:
    """Measure one kind of device: "compiled" (on the CPU) or a torch device."""
    device = "cpu" if engine == "compiled" else engine
    dense_backend = make_backend("dense", device, "float64")
    csr_backend = make_backend("auto" if engine == "compiled" else "torch", device, "float64")
    numbers = np.random.default_rng(0).random(size)
    vector, csr_vector = (backend.arithmetic.vector(numbers) for backend in (dense_backend, csr_backend))
    generator = torch.Generator().manual_seed(0)
    full = torch.rand((size, size), generator=generator) + 0.01

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    rows = []
    for density in DENSITIES:
        kept = full * (torch.rand((size, size), generator=generator) < density)
        block = DenseBlock((kept.to(device),))
        csr_block = SparseBlock(DenseBlock((kept,)).to_csr())
        dense = dense_backend.arithmetic.dense_operator(block)
        csr = csr_backend.arithmetic.csr_operator(csr_block)

        def timed(action: Any) -> Any:
            def run() -> None:
                action()
                wait()

            return run

        contenders = {
            "dense product": timed(lambda dense=dense: dense.matvec(vector)),
            "csr product": timed(lambda csr=csr: csr.matvec(csr_vector)),
            "dense to csr": timed(lambda block=block: csr_backend.arithmetic.csr_operator(block)),
            "csr to dense": timed(
                lambda csr_block=csr_block: dense_backend.arithmetic.dense_operator(
                    DenseBlock((csr_block.to_csr().toarray(),))
                )
            ),
        }
        for action in contenders.values():
            action()
        spent = alternated(contenders, repeats, budget=30.0)
        rows.append(
            {"density": density, **{name: median(seconds for seconds, _ in calls) for name, calls in spent.items()}}
        )
    base = rows[0]["dense product"]
    return {
        "engine": engine,
        "size": size,
        "rows": rows,
        "costs": {
            "csr_product": median(row["csr product"] / row["density"] for row in rows if row["density"] >= 0.05) / base,
            "dense_to_csr": median(row["dense to csr"] for row in rows) / base,
            "csr_to_dense": median(row["csr to dense"] for row in rows) / base,
        },
    }


def tables(results: dict[str, Any]) -> str:
    """Return the results in markdown."""
    lines = []
    for study_ in results["engines"]:
        lines += [
            f"## {study_['engine']}, one block of {study_['size']} x {study_['size']}, float32 weights, float64 vector",
            "",
            "| density | dense product ms | CSR product ms | dense to CSR ms | CSR to dense ms |",
            "| ---: | ---: | ---: | ---: | ---: |",
        ]
        lines += [
            f"| {r['density']} | {1e3 * r['dense product']:.2f} | {1e3 * r['csr product']:.2f} | "
            f"{1e3 * r['dense to csr']:.1f} | {1e3 * r['csr to dense']:.1f} |"
            for r in study_["rows"]
        ]
        costs, held = study_["costs"], COSTS.get(study_["engine"])
        lines += [
            "",
            (
                f'"{study_["engine"]}": Costs(csr_product={costs["csr_product"]:.1f}, dense_to_csr={costs["dense_to_csr"]:.0f}, '
                f"csr_to_dense={costs['csr_to_dense']:.0f}); the table holds {held}"
            ),
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", help="a torch device to measure as well, such as cuda")
    parser.add_argument("--quick", action="store_true", help="a small block, for continuous integration")
    parser.add_argument("--output", type=Path, default=RESULTS / "crossover.json")
    options = parser.parse_args()
    size, repeats = (512, 2) if options.quick else (options.size, options.repeats)
    engines = ["compiled", *([options.device] if options.device else [])]
    results = {"provenance": provenance(seed=0), "engines": [study(engine, size, repeats) for engine in engines]}
    if not options.quick:
        write_results(options.output, results, tables)
    print(tables(results))


if __name__ == "__main__":
    main()
