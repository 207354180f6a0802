"""Perplexity after pruning in one or several steps, and under budgets that compare layers differently.

Run it as ``python -m benchmarks.schedules --wikitext DIR`` (DIR holds valid.txt and test.txt of WikiText-2). The first sequences
of valid are the calibration text. The last ones are the evaluation text, and with ``--test`` the first of test too. Only rows
whose name ends in ``lstsq`` are repaired. A run continues its own result file.
"""

from __future__ import annotations

import argparse
import fnmatch
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.quality import RESULTS
from benchmarks.result_files import opened, write
from benchmarks.wikitext import add_wikitext, check_wikitext, read
from llmrank.cli.demo_models import demo_model
from llmrank.evaluation.perplexity import perplexity
from llmrank.pipeline.registry import PIPELINES, make_pruner, make_repair
from llmrank.surgery import checkpoint
from llmrank.text import TokenSequences

# Name -> pruner, its options, number of steps, repair and its options. All rows use weighted PageRank of isolated graphs.
ROWS: dict[str, tuple[str, dict[str, Any], int, str, dict[str, Any]]] = {
    "local, 1 step": ("local", {}, 1, "none", {}),
    "local, 2 steps": ("local", {}, 2, "none", {}),
    "local, 4 steps": ("local", {}, 4, "none", {}),
    "global zscore, 1 step": ("global", {"normalize": "zscore"}, 1, "none", {}),
    "global robust, 1 step": ("global", {"normalize": "robust"}, 1, "none", {}),
    "global zscore, 4 steps": ("global", {"normalize": "zscore"}, 4, "none", {}),
    "local, 1 step, lstsq": ("local", {}, 1, "lstsq", {"reselect": True}),
}


def measure(model: Any, calibration: TokenSequences, texts: dict[str, TokenSequences], name: str, amount: float) -> Any:
    """Measure one row: prune, evaluate, undo."""
    pruner, options, steps, repair, knobs = ROWS[name]
    pipeline = PIPELINES.find("isolated")(
        model,
        None,
        pruner=make_pruner(pruner, amount=amount, multiple_of=1, **options),
        calibration=calibration.ids,
        steps=steps,
        repair=make_repair(repair, **knobs),
    )
    begun = perf_counter()
    pipeline.run()
    seconds = perf_counter() - begun
    try:
        row: dict[str, Any] = {key: perplexity(model, text).value for key, text in texts.items()}
        report = pipeline.report
        if report is None:
            raise RuntimeError("the pipeline ran without leaving a report")
        widths = list(report.neurons["widths"].values())
        told = report.steps
    finally:
        pipeline.undo()
    return {**row, "seconds": seconds, "steps": told, "widths": widths}


def table(results: dict[str, Any]) -> str:
    """Return the results in markdown."""
    dense, rows = results["dense"], results["rows"]
    lines = [
        f"Perplexity, {results['protocol']['amount']:.0%} of the hidden neurons removed; dense: "
        + ", ".join(f"{value:.2f} on {text}" for text, value in dense.items())
        + ".",
        "",
        "| | " + " | ".join(dense) + " | passes to rank by | widths |",
        "| --- | " + " | ".join("---:" for _ in dense) + " | ---: | ---: |",
    ]
    for name, row in rows.items():
        passes = len(row["steps"])
        low, high = min(row["widths"]), max(row["widths"])
        spread = f"{low}" if low == high else f"{low} to {high}"
        lines.append(f"| {name} | {' | '.join(f'{row[text]:.2f}' for text in dense)} | {passes} | {spread} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_wikitext(parser)
    parser.add_argument("--model", help="directory, hub name or .gguf file; default the demo model")
    parser.add_argument("--amount", type=float, default=0.3, help="share to remove (%(default)s)")
    parser.add_argument("--only", action="append", help="pattern of the rows to run, such as 'local*'")
    parser.add_argument("--samples", type=int, default=16, help="calibration sequences (%(default)s)")
    parser.add_argument("--evaluate", type=int, default=16, help="evaluation sequences of each text (%(default)s)")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--test", action="store_true", help="evaluate on test too")
    parser.add_argument("--output", type=Path, default=RESULTS / "schedules.json")
    options = parser.parse_args()
    check_wikitext(parser, options)
    loaded = checkpoint.load(options.model or demo_model(), dtype="float32")
    model, tokenizer, length = loaded.model, loaded.tokenizer, options.sequence_length
    calibration = read(options.wikitext / "valid.txt", tokenizer, options.samples, length)
    texts = {"valid": read(options.wikitext / "valid.txt", tokenizer, options.evaluate, length, last=True)}
    if options.test:
        texts["test"] = read(options.wikitext / "test.txt", tokenizer, options.evaluate, length)
    protocol = {
        "model": Path(loaded.source).name,
        "amount": options.amount,
        "calibration": calibration.provenance(),
        "evaluation": {name: text.provenance() for name, text in texts.items()},
    }
    results = opened(options.output, protocol)
    results.setdefault("rows", {})
    if "dense" not in results:
        results["dense"] = {name: perplexity(model, text).value for name, text in texts.items()}
    print("dense", results["dense"], flush=True)
    for name in ROWS:
        if name in results["rows"] or not any(fnmatch.fnmatch(name, only) for only in options.only or ["*"]):
            continue
        results["rows"][name] = row = measure(model, calibration, texts, name, options.amount)
        write(options.output, results)
        write(options.output.with_suffix(".md"), table(results))
        print(f"{name}: " + ", ".join(f"{text} {row[text]:.2f}" for text in texts), flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
