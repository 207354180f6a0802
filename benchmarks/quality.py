"""Perplexity after pruning, by scorer, topology, budget, amount and repair, and with other pruning libraries.

Run it as ``python -m benchmarks.quality --wikitext DIR`` (DIR holds valid.txt and test.txt of WikiText-2;
``pip install -e ".[benchmarks]"`` installs the peers). The first sequences of valid are the calibration text. Settings are
compared on the last sequences of valid, and test gives the numbers to report. The same masks with the same repair are evaluated
once. A run continues its own result file, so you can stop it and add other amounts. ``--metrics`` also measures the closeness
to the dense model on test; rows that lack it are then measured again.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks import figures, pruning_peers
from benchmarks.closeness import COLUMNS, Closeness, cells, columns
from benchmarks.result_files import opened, write_results
from benchmarks.wikitext import add_wikitext, check_wikitext, read, read_and_hold_out
from llmrank import Masks
from llmrank.calibration.collect import collect_statistics
from llmrank.calibration.statistics import FFNStatistics
from llmrank.cli.demo_models import demo_model
from llmrank.evaluation.last_word import cut_passages
from llmrank.evaluation.perplexity import model_size, perplexity
from llmrank.execution import Execution
from llmrank.execution.recording import Recording, recording
from llmrank.models import explicit_ffns, find_ffns
from llmrank.models.finding.attention import find_attentions
from llmrank.models.forward import run_sequences
from llmrank.models.loading import LoadedModel
from llmrank.pipeline import Recipe, stages
from llmrank.pipeline.closeness.repair_validation import repair_where_it_helps
from llmrank.pipeline.plan import rank_model
from llmrank.pipeline.registry import PRUNERS, make_pruner, make_repair, make_scorer
from llmrank.prune.selection import Reselection
from llmrank.repair import RepairedMap
from llmrank.score.topologies import Topology
from llmrank.surgery import checkpoint
from llmrank.surgery.apply import apply_masks
from llmrank.text import CalibrationTokens, TokenSequences

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
    "weighted pagerank of energies": ("wpr", {"edges": "energy"}),
    "forward and backward": ("fbpr", {"balance": 0.5}),
    "forward and backward (0.8)": ("fbpr", {"balance": 0.8}),
}
TOPOLOGIES: dict[str, tuple[Topology, dict[str, Any]]] = {
    "isolated": ("isolated", {}),
    "chained": ("chained", {}),
    "residual": ("residual", {}),
    "residual (beta 0.5)": ("residual", {"beta": 0.5}),
    "residual, attention": ("residual", {"attention": True}),
}
# The global budget of the tables compares layers by z-scores.
BUDGET_OPTIONS: dict[str, dict[str, Any]] = {"global": {"normalize": "zscore"}}
# The topologies of the paper's graph.
PAPER_TOPOLOGIES = ("isolated", "chained")
REPAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "bias": ("bias", {}),
    "lstsq": ("lstsq", {}),
    "lstsq (output)": ("lstsq", {"target": "output"}),
    "lstsq (reselect)": ("lstsq", {"reselect": True}),
}
# Score -> repair -> the budgets that are repaired. The bias is FLAP's own repair.
BOTH = ("local", "global")
CONTENDERS: dict[str, dict[str, tuple[str, ...]]] = {
    "random": {"lstsq": ("local",)},
    "norm (L1)": {"lstsq": ("local",)},
    "activation": {"lstsq": BOTH},
    # Reselection by another score shows what the rank adds.
    "wanda-sp (L1)": {"lstsq": BOTH, "lstsq (reselect)": BOTH},
    # Reselected, this is Optimal Brain Surgeon's order: ||W_:j|| / sqrt((S^-1)_jj).
    "wanda-sp (L2)": {"lstsq (reselect)": ("local",)},
    "flap": {"bias": BOTH, "lstsq": BOTH},
    "modified pagerank": {"lstsq": ("local",)},
    "weighted pagerank": {
        "bias": ("local", "sensitivity"),
        "lstsq": ("local", "global", "sensitivity"),
        "lstsq (output)": ("local",),
        "lstsq (reselect)": ("local", "sensitivity"),
    },
}
# Ranks that were tried against the default rank.
TRIED = (
    "weighted pagerank of energies",
    "forward and backward",
    "forward and backward (0.8)",
)
# Scorer, topology and budget of every row without repair: published scores and the ranks under every budget, TRIED under one.
AS_CUT: tuple[tuple[str, str, str], ...] = (
    *((scorer, "isolated", pruner) for scorer in SCORERS if scorer not in TRIED for pruner in PRUNERS),
    *((scorer, "chained", pruner) for scorer in ("weighted pagerank", "modified pagerank") for pruner in PRUNERS),
    *((scorer, "isolated", "local") for scorer in TRIED),
    *(("weighted pagerank", topology, "local") for topology in TOPOLOGIES if topology.startswith("residual")),
)


def _contenders(repair: str) -> Iterator[tuple[str, str, str]]:
    for scorer, repairs in CONTENDERS.items():
        for pruner in repairs.get(repair, ()):
            yield scorer, "isolated", pruner


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    graph: str
    scorer: str
    topology: str
    pruner: str
    amount: float
    repair: str

    @property
    def key(self) -> str:
        return " | ".join(map(str, asdict(self).values()))


def settings(amounts: Sequence[float], repairs: Sequence[str]) -> Iterator[Setting]:
    """Yield all rows: FFN graphs and other libraries with every repair, and the paper's graph (rows of up and down) as cut.

    All scores are compared as cut, in several topologies only if the score depends on the topology. A repair takes minutes a row,
    so it is for the contenders alone: published scores under the budgets of their papers, and ranks under the budgets on offer.
    """
    for amount in amounts:
        for repair in repairs:
            for scorer, topology, pruner in AS_CUT if repair == "none" else _contenders(repair):
                yield Setting("ffn", scorer, topology, pruner, amount, repair)
            for peer in pruning_peers.PEERS if repair in ("none", "lstsq") else ():
                if peer.installed:
                    yield Setting("peer", peer.name, "", peer.budget, amount, repair)
        for scorer in ("activation", "weighted pagerank", "modified pagerank") if "none" in repairs else ():
            for topology in PAPER_TOPOLOGIES:
                for pruner in ("local", "global"):
                    yield Setting("paper", scorer, topology, pruner, amount, "none")


def protocol(loaded: LoadedModel, calibration: dict[str, Any], texts: Mapping[str, TokenSequences]) -> dict[str, Any]:
    """Return all that the rows depend on and do not state themselves."""
    return {
        "model": Path(loaded.source).name,
        "calibration": calibration,
        "evaluation": {name: text.provenance() for name, text in texts.items()},
        "scorers": {name: [registered, knobs] for name, (registered, knobs) in SCORERS.items()},
        "topologies": {name: [registered, knobs] for name, (registered, knobs) in TOPOLOGIES.items()},
        "repairs": {name: [registered, knobs] for name, (registered, knobs) in REPAIRS.items()},
        "peers": pruning_peers.versions(),
    }


def mask_digest(masks: Masks) -> str:
    """Return the sha256 of all keep masks, layer by layer, to compare kept neurons between versions."""
    digest = hashlib.sha256()
    for name, mask in masks.items():
        digest.update(name.encode() + mask.numpy().tobytes())
    return digest.hexdigest()


class Study:
    """A model, its calibration, and all else that the rows share."""

    def __init__(
        self,
        loaded: LoadedModel,
        calibration: TokenSequences,
        held_out: TokenSequences,
        texts: dict[str, TokenSequences],
    ) -> None:
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.calibration, self.texts, self.held_out = calibration, texts, held_out
        self.ffns = {"ffn": find_ffns(self.model), "paper": explicit_ffns(self.model, PAPER)}
        self.ffns["peer"] = self.ffns["ffn"]
        self.statistics: dict[str, tuple[FFNStatistics, ...]] = {}
        self.record: Recording | None = None
        self.closeness: Closeness | None = None

    def calibrate(self, wanted: Sequence[Setting]) -> None:
        """Collect statistics on the calibration tokens, once for all wanted rows, with all that any of them needs."""
        rows = [setting for setting in wanted if setting.graph == "ffn"]
        around = [TOPOLOGIES[row.topology] for row in rows]
        attends = any(options.get("attention") for _, options in around)
        with recording(self.model, self.ffns["ffn"]) as self.record:
            self.statistics["ffn"] = collect_statistics(
                self.model,
                self.ffns["ffn"],
                self.calibration,
                skips=any(topology == "residual" for topology, _ in around),
                attentions=find_attentions(self.model, self.ffns["ffn"]) if attends else None,
            )
            run_sequences(self.model, self.ffns["ffn"], self.held_out.batches(1))

    def fill(self, results: dict[str, Any], wanted: Sequence[Setting], save: Callable[[], None]) -> None:
        """Add the missing rows, and save after each."""
        if "dense" not in results:
            results["dense"] = {name: perplexity(self.model, text).value for name, text in self.texts.items()}
        results.setdefault("size", asdict(model_size(self.model, self.ffns["ffn"])))
        print("dense", results["dense"], flush=True)
        rows = results.setdefault("rows", {})
        # The number of the command that measures a row, among those that the file names; 0 is the first.
        run = len(results.get("resumed", []))
        if rows:
            print(f"{len(rows)} rows are there", flush=True)
        known: dict[tuple[int, str], dict[str, Any]] = {}
        for setting in wanted:
            row = rows.get(setting.key)
            if row is None or (self.closeness is not None and not COLUMNS.keys() <= row.keys()):
                if self.record is None:
                    self.calibrate(wanted)
                masks, choose = self.masks(setting)
                # The same masks give the same model, unless neurons are reselected.
                same = None if "reselect" in setting.repair else known.get((hash(masks), setting.repair))
                row = {**same, **asdict(setting)} if same else self.row(setting, masks, choose)
                row["run"] = run
                known[hash(masks), setting.repair] = row
                rows[setting.key] = row
                save()
            found = ", ".join(f"{name} {row[name]:.2f}" for name in self.texts)
            print(f"{setting.key}: {found}", flush=True)

    def masks(self, setting: Setting) -> tuple[Masks, Reselection | None]:
        """Return the keep masks of a setting, and the function that reselects neurons; None for peers, which choose once."""
        if setting.graph == "peer":
            peer = next(p for p in pruning_peers.PEERS if (p.name, p.budget) == (setting.scorer, setting.pruner))
            return peer.masks(self.model, self.ffns["ffn"], self.calibration, setting.amount), None
        if setting.graph not in self.statistics:
            self.statistics[setting.graph] = collect_statistics(self.model, self.ffns[setting.graph], self.calibration)
        name, knobs = SCORERS[setting.scorer]
        topology, options = TOPOLOGIES[setting.topology]
        of_paper: dict[str, Any] = {"structure_dict": PAPER, "form": "zero"} if setting.graph == "paper" else {}
        pruner = make_pruner(
            setting.pruner, amount=setting.amount, multiple_of=1, **BUDGET_OPTIONS.get(setting.pruner, {})
        )
        recipe, execution = (
            Recipe(topology, make_scorer(name, **knobs), pruner, None, **of_paper, **options),
            Execution(),
        )
        prepared = stages.find(self.model, self.tokenizer, recipe, execution)
        tokens = CalibrationTokens(self.calibration, None)
        ranked = rank_model(prepared, recipe, self.statistics[setting.graph], tokens, execution)
        sensitivities = stages.measure_sensitivities(prepared, recipe, ranked, tokens, execution)
        return stages.choose(prepared, recipe, ranked, sensitivities), Reselection(ranked.scorer, ranked.graphs)

    def row(self, setting: Setting, masks: Masks, choose: Reselection | None) -> dict[str, Any]:
        """Prune, repair, evaluate, undo."""
        ffns, begun = self.ffns[setting.graph], perf_counter()
        repaired: dict[str, RepairedMap] = {}
        validation = None
        name, knobs = REPAIRS[setting.repair]
        method = make_repair(name, **knobs)
        if method is not None:
            assert self.record is not None
            texts = (self.calibration, self.held_out)
            masks, repaired, validation = repair_where_it_helps(
                self.model, ffns, masks, method, texts, self.record, choose=choose
            )
        seconds = perf_counter() - begun
        application = apply_masks(self.model, ffns, masks, "zero" if setting.graph == "paper" else "compact", repaired)
        try:
            row: dict[str, Any] = {name: perplexity(self.model, text).value for name, text in self.texts.items()}
            if self.closeness is not None:
                row |= self.closeness.of(self.model)
        finally:
            application.undo()
        told = {"validation": asdict(validation)} if validation is not None else {}
        facts = {"removed": masks.removed_share, "masks_sha256": mask_digest(masks), "repair_seconds": seconds}
        return {**asdict(setting), **row, **facts, **told}


def table(results: dict[str, Any]) -> str:
    """Return the results in markdown: a table for each amount, the best on valid first."""
    dense = results["dense"]
    lines = [f"Dense: {dense['test']:.2f} on test, {dense['valid']:.2f} on valid."]
    if "dense_last_word" in results:
        (said,) = cells({"last_word": results["dense_last_word"]}, ["last_word"])
        lines.append(f"Last words found by it: {said}. What follows a ± is a standard error.")
    rows = list(results["rows"].values())
    for amount in sorted({row["amount"] for row in rows}):
        these = sorted((row for row in rows if row["amount"] == amount), key=lambda row: float(row["valid"]))
        more = columns(these)
        headings = [
            "graph",
            "score",
            "topology",
            "budget",
            "repair",
            "test",
            "valid",
            *(COLUMNS[name][0] for name in more),
        ]
        lines += [
            "",
            f"## {amount:.0%} removed",
            "",
            f"| {' | '.join(headings)} |",
            f"| {' | '.join(['---'] * 5 + ['---:'] * (len(headings) - 5))} |",
        ]
        for row in these:
            entries = [row[name] for name in ("graph", "scorer", "topology", "pruner", "repair")]
            entries += [f"{row['test']:.2f}", f"{row['valid']:.2f}", *cells(row, more)]
            lines.append(f"| {' | '.join(entries)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_wikitext(parser)
    parser.add_argument("--model", help="directory, hub name or .gguf file; default the demo model")
    parser.add_argument("--amounts", default="0.3", help="shares to remove, with commas (%(default)s)")
    parser.add_argument(
        "--repairs", default=",".join(REPAIRS), help=f"of {', '.join(REPAIRS)}, with commas (%(default)s)"
    )
    parser.add_argument(
        "--only", action="append", help="pattern of the rows to run, such as '*pagerank*isolated*local*'"
    )
    parser.add_argument(
        "--metrics",
        action="store_true",
        help="also measure KL divergence from the dense model, same likeliest token, last words and greedy continuations",
    )
    parser.add_argument(
        "--passages", type=int, default=500, help="passages for the last words of --metrics (%(default)s)"
    )
    parser.add_argument("--samples", type=int, default=64, help="calibration sequences (%(default)s)")
    parser.add_argument("--evaluate", type=int, default=16, help="evaluation sequences of each text (%(default)s)")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=RESULTS / "quality.json")
    options = parser.parse_args()
    unknown = set(options.repairs.split(",")) - set(REPAIRS)
    if unknown:
        parser.error(f"unknown --repairs {', '.join(sorted(unknown))}; expected some of {', '.join(REPAIRS)}")
    check_wikitext(parser, options)
    loaded = checkpoint.load(options.model or demo_model(), dtype="float32")
    tokenizer, length = loaded.tokenizer, options.sequence_length
    study = Study(
        loaded,
        *read_and_hold_out(options.wikitext / "valid.txt", tokenizer, options.samples, length),
        {
            "test": read(options.wikitext / "test.txt", tokenizer, options.evaluate, length),
            "valid": read(options.wikitext / "valid.txt", tokenizer, options.evaluate, length, last=True),
        },
    )
    results = opened(options.output, protocol(loaded, study.calibration.provenance(), study.texts))
    if options.metrics:
        text = (options.wikitext / "test.txt").read_text(encoding="utf-8").replace("<unk>", "unk")
        study.closeness = Closeness(loaded, study.texts["test"], cut_passages(text, options.passages))
        if results.setdefault("metrics", study.closeness.protocol()) != study.closeness.protocol():
            parser.error(f"{options.output.name} has --metrics of another text or size; choose another --output")
        if "dense_last_word" not in results:
            results["dense_last_word"] = study.closeness.of_dense()
    wanted = [
        setting
        for setting in settings([float(a) for a in options.amounts.split(",")], options.repairs.split(","))
        if not options.only or any(fnmatch.fnmatch(setting.key, pattern) for pattern in options.only)
    ]

    save = partial(write_results, options.output, results, table)

    study.fill(results, wanted, save)
    figures.quality(results, options.output.parent)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
