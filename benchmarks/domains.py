"""Perplexity of models that are calibrated on one kind of text and evaluated on another.

Run it as ``python -m benchmarks.domains --wikitext DIR``. Prose (WikiText-2) and the built-in text (Python's language reference)
are each evaluated with the other as calibration text, and both with text that the model writes itself. ``benchmarks.quality``
has the same rows for one kind of text. A run continues its own result file.
"""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import pruning_peers
from benchmarks.quality import RESULTS, Setting, Study, protocol
from benchmarks.result_files import opened, write_results
from benchmarks.wikitext import add_wikitext, check_wikitext, read, read_and_hold_out
from llmrank.cli.demo_models import demo_model
from llmrank.models.loading import LoadedModel
from llmrank.pipeline.texts import n_held_out
from llmrank.surgery import checkpoint
from llmrank.text import TokenSequences, tokenise
from llmrank.text.generation import LONGEST_TEXT, TEXTS_AT_ONCE, generate_text
from llmrank.text.sequences import Request
from llmrank.text.sources import make_sequences

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
    ("ffn", "weighted pagerank", "isolated", "sensitivity", "lstsq"),
    ("ffn", "weighted pagerank", "isolated", "local", "lstsq (output)"),
    ("peer", "optipfair, MAW with data", "", "local", "lstsq"),
    ("ffn", "wanda-sp (L1)", "isolated", "global", "lstsq"),
    ("ffn", "flap", "isolated", "global", "bias"),
)

# Besides its length, this determines a text that a model writes itself.
OWN_TEXT = {
    "source": "written by the model itself, seed 0",
    "longest_text": LONGEST_TEXT,
    "texts_at_once": TEXTS_AT_ONCE,
}


@dataclass(frozen=True)
class Way:
    """A calibration text, and the evaluation texts of another kind.

    Attributes
    ----------
    calibration : callable
        Returns the calibration sequences, and those that are held out from a repair. A model takes minutes to write its own.
    said : dict
        What the protocol says of them before they exist.
    texts : dict from str to TokenSequences
        The evaluation texts.
    """

    calibration: Callable[[], tuple[TokenSequences, TokenSequences | None]]
    said: dict[str, Any]
    texts: dict[str, TokenSequences]


def ways_of(loaded: LoadedModel, wikitext: Path, samples: int, evaluate: int, length: int) -> dict[str, Way]:
    """Return every way, by the name of its calibration text."""
    tokenizer = loaded.tokenizer
    further = n_held_out(samples)
    reference = make_sequences(None, Request(tokenizer, samples, length, further))
    prose = read_and_hold_out(wikitext / "valid.txt", tokenizer, samples, length)
    texts = {
        "WikiText-2": read(wikitext / "test.txt", tokenizer, evaluate, length),
        "built-in": tokenise(None, tokenizer, evaluate, length, "evaluation"),
    }
    own = {**OWN_TEXT, "sequences": samples, "sequence_length": length}
    return {
        "built-in": Way(lambda: reference, reference[0].provenance(), {"WikiText-2": texts["WikiText-2"]}),
        "WikiText-2": Way(lambda: prose, prose[0].provenance(), {"built-in": texts["built-in"]}),
        "generated": Way(
            lambda: generate_text(loaded.model, tokenizer, samples + further, length).split(samples), own, texts
        ),
    }


def table(results: dict[str, Any]) -> str:
    """Return all ways in one table in markdown."""
    ways = {name: way for name, way in results["ways"].items() if way}
    places = [(name, text) for name, way in ways.items() for text in way["dense"]]
    lines = ["Share of hidden neurons removed, and perplexity; columns: calibrated on -> evaluated on.", ""]
    lines += ["| graph | score | budget | repair | removed | " + " | ".join(map(" -> ".join, places)) + " |"]
    lines += ["| --- | --- | --- | --- | ---: |" + " ---: |" * len(places)]
    lines += ["| dense | | | | | " + " | ".join(f"{ways[name]['dense'][text]:.2f}" for name, text in places) + " |"]
    keys = dict.fromkeys(key for way in ways.values() for key in way["rows"])
    for key in keys:
        rows = {name: way["rows"].get(key) for name, way in ways.items()}
        row = next(entry for entry in rows.values() if entry)
        values = [f"{rows[name][text]:.2f}" if rows[name] else "" for name, text in places]
        lines.append(
            f"| {row['graph']} | {row['scorer']} | {row['pruner']} | {row['repair']} | {row['amount']:.0%} | "
            f"{' | '.join(values)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_wikitext(parser)
    parser.add_argument("--model", help="directory, hub name or .gguf file; default the demo model")
    parser.add_argument("--amount", type=float, default=0.3)
    parser.add_argument("--only", action="append", help="pattern of the rows to run, such as '*lstsq*'")
    parser.add_argument("--ways", help="calibration texts, of built-in, WikiText-2, generated, with commas (all)")
    parser.add_argument("--samples", type=int, default=64, help="calibration sequences (%(default)s)")
    parser.add_argument("--evaluate", type=int, default=16, help="evaluation sequences (%(default)s)")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=RESULTS / "out_of_domain.json")
    options = parser.parse_args()
    check_wikitext(parser, options)
    loaded = checkpoint.load(options.model or demo_model(), dtype="float32")
    ways = ways_of(loaded, options.wikitext, options.samples, options.evaluate, options.sequence_length)
    asked = options.ways.split(",") if options.ways else list(ways)
    if not set(asked) <= ways.keys():
        parser.error(f"--ways must be of {', '.join(ways)}, got {options.ways}")
    results = opened(options.output, {name: protocol(loaded, way.said, way.texts) for name, way in ways.items()})
    results.setdefault("ways", {name: {} for name in ways})

    save = partial(write_results, options.output, results, table)

    installed = {peer.name for peer in pruning_peers.PEERS if peer.installed}
    rows = [Setting(*row[:4], options.amount, row[4]) for row in ROWS if row[0] != "peer" or row[1] in installed]
    wanted = [row for row in rows if any(fnmatch.fnmatch(row.key, only) for only in options.only or ["*"])]
    for name in asked:
        way, found = ways[name], results["ways"][name]
        measured = found.get("rows", {})
        if all(row.key in measured for row in wanted):
            continue
        print(name, flush=True)
        calibration, held_out = way.calibration()
        if held_out is None:
            parser.error(f"{name} has no more than {options.samples} sequences; ask for fewer --samples")
        said = calibration.provenance()
        if found.setdefault("calibration", said) != said:
            print("the model wrote another text than before: its rows are measured anew")
            found.clear()
            found["calibration"] = said
        Study(loaded, calibration, held_out, way.texts).fill(found, wanted, save)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
