"""Calibrated on one kind of text, evaluated on another: does the order of the methods hold?

Run it as ``python -m benchmarks.domains --wikitext DIR``. Prose (WikiText-2) and the built-in text (Python's language reference),
each way; ``benchmarks.quality`` says what the same rows reach in their own domain. A run resumes from its own result file.
"""

from __future__ import annotations

import argparse
import fnmatch
from pathlib import Path
from typing import Any

import torch

from benchmarks import pruning_peers
from benchmarks.provenance import opened, write
from benchmarks.quality import RESULTS, Setting, Study
from benchmarks.wikitext import add_wikitext, check_wikitext, read
from llmrank import checkpoint
from llmrank.calibration import tokenise
from llmrank.hub import demo_model

ROWS = (
    ("ffn", "weighted pagerank", "isolated", "local", "none"),
    ("ffn", "weighted pagerank", "isolated", "sensitivity", "none"),
    ("ffn", "wanda-sp (L1)", "isolated", "local", "none"),
    ("ffn", "wanda-sp (L1)", "isolated", "global", "none"),
    ("ffn", "flap", "isolated", "local", "none"),
    ("ffn", "flap", "isolated", "global", "none"),
    ("ffn", "activation", "isolated", "local", "none"),
    ("peer", "optipfair, MAW with data", "", "local", "none"),
    ("peer", "Torch-Pruning, Taylor", "", "local", "none"),
    ("ffn", "weighted pagerank", "isolated", "local", "lstsq (reselect)"),
    ("ffn", "weighted pagerank", "isolated", "sensitivity", "lstsq (reselect)"),
    ("ffn", "weighted pagerank", "isolated", "local", "lstsq"),
    ("ffn", "weighted pagerank", "isolated", "local", "lstsq (output)"),
    ("peer", "optipfair, MAW with data", "", "local", "lstsq"),
    ("ffn", "wanda-sp (L1)", "isolated", "global", "lstsq"),
    ("ffn", "flap", "isolated", "global", "bias"),
)


def table(results: dict[str, Any]) -> str:
    """Both ways in markdown, rows in one order for all."""
    ways = results["ways"]
    lines = ["Share of hidden neurons removed, and perplexity; columns: calibrated on -> evaluated on.", ""]
    lines += ["| graph | score | budget | repair | removed | " + " | ".join(ways) + " |"]
    lines += ["| --- | --- | --- | --- | ---: |" + " ---: |" * len(ways)]
    lines += ["| dense | | | | | " + " | ".join(f"{way['dense']['text']:.2f}" for way in ways.values()) + " |"]
    keys = dict.fromkeys(key for way in ways.values() for key in way["rows"])
    for key in keys:
        found = [way["rows"].get(key) for way in ways.values()]
        row = next(entry for entry in found if entry)
        values = " | ".join(f"{entry['text']:.2f}" if entry else "" for entry in found)
        lines.append(
            f"| {row['graph']} | {row['scorer']} | {row['pruner']} | {row['repair']} | {row['amount']:.0%} | {values} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_wikitext(parser)
    parser.add_argument("--model", help="directory, hub name or .gguf file; default the demo model")
    parser.add_argument("--amount", type=float, default=0.3)
    parser.add_argument("--only", action="append", help="pattern of the rows to run, such as '*lstsq*'")
    parser.add_argument("--samples", type=int, default=64, help="calibration sequences (%(default)s)")
    parser.add_argument("--evaluate", type=int, default=16, help="evaluation sequences (%(default)s)")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=RESULTS / "out_of_domain.json")
    options = parser.parse_args()
    check_wikitext(parser, options)
    loaded = checkpoint.load(options.model or demo_model(), dtype="float32")
    tokenizer, length = loaded.tokenizer, options.sequence_length
    ways = {
        "built-in -> WikiText-2": (
            tokenise(None, tokenizer, options.samples, length),
            read(options.wikitext / "test.txt", tokenizer, options.evaluate, length),
        ),
        "WikiText-2 -> built-in": (
            read(options.wikitext / "valid.txt", tokenizer, options.samples, length),
            tokenise(None, tokenizer, options.evaluate, length, "evaluation"),
        ),
    }
    studies = {name: Study(loaded, calibration, {"text": text}) for name, (calibration, text) in ways.items()}
    results = opened(options.output, {name: study.protocol() for name, study in studies.items()})
    results.setdefault("ways", {name: {} for name in studies})

    def save() -> None:
        write(options.output, results)
        if all("dense" in way for way in results["ways"].values()):
            write(options.output.with_suffix(".md"), table(results))

    installed = {peer.name for peer in pruning_peers.PEERS if peer.installed}
    rows = [Setting(*row[:4], options.amount, row[4]) for row in ROWS if row[0] != "peer" or row[1] in installed]
    wanted = [row for row in rows if any(fnmatch.fnmatch(row.key, only) for only in options.only or ["*"])]
    for name, study in studies.items():
        print(name)
        study.fill(results["ways"][name], wanted, save)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
