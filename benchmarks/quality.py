"""Perplexity after pruning: every scorer x topology x pruner, on one model and one text.

Run it as ``python -m benchmarks.quality --wikitext DIR`` (DIR holds valid.txt and test.txt of
WikiText-2). Calibration: the first sequences of valid. Settings are compared on the sequences of
valid that follow; the numbers to report are those on test. Masks that two settings share are
evaluated once. The run resumes from its own result file.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.provenance import provenance, write
from llmrank import ChainedFFNPipeline, IsolatedFFNPipeline, checkpoint
from llmrank.activations import collect
from llmrank.adapters import explicit_ffns, find_ffns
from llmrank.calibration import TokenSequences, tokenise
from llmrank.config import PIPELINES, make_pruner, make_scorer
from llmrank.evaluate import perplexity
from llmrank.hub import demo_model
from llmrank.surgery import apply_masks

RESULTS = Path(__file__).parent / "results"
PAPER = {"path_to_layers": ["model", "layers"], "path_to_modules": (("mlp", "up_proj"), ("mlp", "down_proj"))}
SCORERS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {"seed": 0}),
    "norm (L1)": ("norm", {"p": 1.0}),
    "activation": ("activation", {}),
    "wanda": ("wanda", {}),
    "wanda-sp (L1)": ("wanda-sp", {"p": 1.0}),
    "wanda-sp (L2)": ("wanda-sp", {"p": 2.0}),
    "flap": ("flap", {}),
    "weighted pagerank": ("wpr", {"gamma": 0.5, "theta": 1.0}),
    "modified pagerank": ("mpr", {}),
}


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    graph: str
    scorer: str
    topology: str
    pruner: str

    @property
    def key(self) -> str:
        return f"{self.graph} | {self.scorer} | {self.topology} | {self.pruner}"


def settings() -> Iterator[Setting]:
    """All rows: the FFN's own graph, then the paper's (rows of up and down)."""
    for graph, scorers in (("ffn", list(SCORERS)), ("paper", ["activation", "weighted pagerank", "modified pagerank"])):
        for scorer in scorers:
            for topology in PIPELINES:
                for pruner in ("local", "global"):
                    yield Setting(graph, scorer, topology, pruner)


def read(path: Path, tokenizer: Any, first: int, count: int, length: int) -> TokenSequences:
    """Sequences first .. first + count of a WikiText file, with ``<unk>`` read as ``unk``."""
    text = path.read_text(encoding="utf-8").replace("<unk>", "unk")
    whole = tokenise(text, tokenizer, first + count, length)
    return TokenSequences.of(
        whole.ids[first:], whole.mask[first:], f"WikiText-2 {path.name}, sequences {first} to {first + count - 1}"
    )


def table(results: dict[str, Any]) -> str:
    """The results in markdown."""
    lines = [
        f"Dense: {results['dense']['test']:.2f} on test, {results['dense']['valid']:.2f} on valid.",
        "",
        "| graph | score | topology | pruner | test | valid |",
        "| --- | --- | --- | --- | ---: | ---: |",
    ]
    for setting in settings():
        row = results["rows"].get(setting.key)
        if row:
            lines.append(
                f"| {setting.graph} | {setting.scorer} | {setting.topology} | {setting.pruner} "
                f"| {row['test']:.2f} | {row['valid']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--wikitext", type=Path, default=os.environ.get("LLMRANK_WIKITEXT"), help="directory of WikiText-2"
    )
    parser.add_argument("--model", help="directory, hub name or .gguf file; default the demo model")
    parser.add_argument("--amount", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=16, help="calibration sequences")
    parser.add_argument("--evaluate", type=int, default=16, help="evaluation sequences, of test and of valid each")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=RESULTS / "quality.json")
    options = parser.parse_args()
    if options.wikitext is None:
        parser.error(
            "--wikitext DIR (or LLMRANK_WIKITEXT) must name the directory of WikiText-2's valid.txt and test.txt"
        )
    loaded = checkpoint.load(options.model or demo_model(), dtype="float32")
    model, tokenizer, length = loaded.model, loaded.tokenizer, options.sequence_length
    calibration = read(options.wikitext / "valid.txt", tokenizer, 0, options.samples, length)
    texts = {
        "test": read(options.wikitext / "test.txt", tokenizer, 0, options.evaluate, length),
        "valid": read(options.wikitext / "valid.txt", tokenizer, options.samples, options.evaluate, length),
    }
    protocol = {
        "model": Path(loaded.source).name,
        "amount": options.amount,
        "calibration": calibration.provenance(),
        "evaluation": {name: text.provenance() for name, text in texts.items()},
        "repair": "none",
        "scorers": {name: [registered, knobs] for name, (registered, knobs) in SCORERS.items()},
    }
    results: dict[str, Any] = {"provenance": provenance(seed=0), "protocol": protocol, "dense": {}, "rows": {}}
    if options.output.is_file():
        earlier = json.loads(options.output.read_text(encoding="utf-8"))
        if earlier["protocol"] == protocol:
            results = earlier
            print(f"resuming with {len(results['rows'])} rows")
    if not results["dense"]:
        results["dense"] = {name: perplexity(model, text).value for name, text in texts.items()}
    print("dense", results["dense"])
    ffns = {"ffn": find_ffns(model), "paper": explicit_ffns(model, PAPER)}
    statistics = {name: collect(model, found, calibration) for name, found in ffns.items()}
    known: dict[int, dict[str, float]] = {}
    for setting in settings():
        name, knobs = SCORERS[setting.scorer]
        pipeline_class = ChainedFFNPipeline if setting.topology == "chained" else IsolatedFFNPipeline
        pipeline = pipeline_class(
            model,
            tokenizer,
            PAPER if setting.graph == "paper" else None,
            make_scorer(name, **knobs),
            make_pruner(setting.pruner, amount=options.amount),
        )
        graphs = pipeline.draw(ffns[setting.graph], statistics[setting.graph])
        masks = pipeline.choose(graphs, pipeline.score(graphs))
        row = results["rows"].get(setting.key) or known.get(hash(masks))
        if row is None:
            application = apply_masks(model, ffns[setting.graph], masks, pipeline.form)
            row = {name: perplexity(model, text).value for name, text in texts.items()}
            row["removed"] = masks.removed_share
            application.undo()
        known[hash(masks)] = row
        results["rows"][setting.key] = row
        print(setting.key, row, flush=True)
        write(options.output, results)
    write(options.output.with_suffix(".md"), table(results))
    print(table(results))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
