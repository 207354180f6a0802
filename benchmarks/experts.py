"""Perplexity of a mixture of experts after the removal of experts, and of neurons inside all experts, by score and repair.

Run it as ``python -m benchmarks.experts --wikitext DIR --mixture DIR`` (the first holds valid.txt and test.txt of
WikiText-2). The mixture is made of SmolLM2-135M-Instruct by :mod:`benchmarks.mixtures`, on sequences of valid that nothing else
uses. The first sequences of valid are the calibration text; test and the end of valid are for evaluation. As many experts as a
token gets must stay, so half of them can go only with ``--top-k 12`` or less, which makes a worse mixture. A run continues its
own result file.

Besides the rows, the result states what the mixture and its exact control predict (``variants``), and what every score removes
where some experts are never used (``known``).
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks import mixtures
from benchmarks.quality import RESULTS, mask_digest
from benchmarks.result_files import opened, write_results
from benchmarks.wikitext import add_wikitext, check_wikitext, read, read_and_hold_out
from llmrank import Masks
from llmrank.calibration.collect import collect_statistics
from llmrank.calibration.statistics import FFNStatistics
from llmrank.cli.demo_models import demo_model
from llmrank.evaluation.estimate import Estimate
from llmrank.evaluation.perplexity import Perplexity, model_size, perplexity, sequence_losses
from llmrank.execution.recording import Recording, recording
from llmrank.models import FFNs, find_ffns
from llmrank.models.forward import run_sequences
from llmrank.models.loading import LoadedModel
from llmrank.pipeline.closeness.repair_validation import repair_where_it_helps
from llmrank.pipeline.registry import SCORERS, make_pruner, make_repair, make_scorer
from llmrank.prune.selection import choose_masks
from llmrank.repair import RepairedMap
from llmrank.score.rank_graphs import rank_graphs
from llmrank.score.topologies import build_graphs
from llmrank.surgery import checkpoint
from llmrank.surgery.apply import apply_masks
from llmrank.text import TokenSequences

# Experts are 64 neurons wide: a multiple of 8, as are three quarters and half of it.
N_EXPERTS, SHARPNESS = 24, 0.1
# Sequences of valid that the mixture is made on.
MADE_ON = (64, 80)
# Of the variant with a known answer: experts of the control that are copied, and experts that are never used.
COPIED, UNUSED = 4, 4
# Name -> scorer, and its options.
SCORES: dict[str, tuple[str, dict[str, Any]]] = {
    "wpr": ("wpr", {}),
    "ean": ("ean", {}),
    "reap": ("reap", {}),
    "frequency": ("frequency", {}),
    "wanda-sp": ("wanda-sp", {}),
    "random": ("random", {}),
    "wpr of energies": ("wpr", {"edges": "energy"}),
    "mone": ("mone", {}),
    "activation": ("activation", {}),
    "mpr": ("mpr", {}),
    "forward and backward": ("fbpr", {}),
}
# Scores of whole experts say nothing of their neurons.
WHOLE = ("frequency", "ean", "reap", "mone")
DEFAULT = "wpr"


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    target: str
    amount: float
    repair: str
    score: str

    @property
    def key(self) -> str:
        return " | ".join(map(str, asdict(self).values()))


def rows(amounts: Sequence[float], repairs: Sequence[str]) -> Iterator[Row]:
    """Yield all rows, those without repair first."""
    for repair in repairs:
        for target in ("experts", "neurons"):
            for amount in amounts:
                for score, (registered, _) in SCORES.items():
                    if registered in SCORERS.names() and (target == "experts" or score not in WHOLE):
                        yield Row(target, amount, repair, score)


def masks_of(ffns: FFNs, statistics: Sequence[FFNStatistics], row: Row) -> Masks:
    """Choose the keep masks of a row: isolated graphs, and the same share of every mixture."""
    registered, options = SCORES[row.score]
    graphs = build_graphs(ffns, statistics, "isolated")
    ranks = rank_graphs(make_scorer(registered, **options), graphs)
    pruner = make_pruner("local", amount=row.amount, multiple_of=1)
    return choose_masks(pruner, graphs, ranks, jointly=True, targets=(row.target,))  # type: ignore[arg-type]


class Study:
    """The mixture, its calibration, and all else that the rows share."""

    def __init__(self, model: Any, texts: tuple[TokenSequences, TokenSequences], judged: dict[str, TokenSequences]):
        self.model, self.ffns = model, find_ffns(model)
        self.calibration, self.held_out = texts
        self.judged = judged
        self.statistics: tuple[FFNStatistics, ...] = ()
        self.record: Recording | None = None

    def calibrate(self) -> None:
        """Collect statistics, and record how the model calls its blocks, once for all rows."""
        if not self.statistics:
            with recording(self.model, self.ffns) as self.record:
                self.statistics = collect_statistics(self.model, self.ffns, self.calibration)
                run_sequences(self.model, self.ffns, self.held_out.batches(1))

    def losses(self) -> dict[str, Any]:
        """Return for every text the loss of each sequence, the number of its tokens, and the perplexity."""
        found: dict[str, Any] = {}
        for name, text in self.judged.items():
            totals, counts = sequence_losses(self.model, text)
            found[name] = {"losses": totals, "tokens": counts, "perplexity": Perplexity.of(totals, counts).value}
        return found

    def measure(self, row: Row, known: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
        """Prune, repair, evaluate, undo. The same masks with the same repair are measured once."""
        self.calibrate()
        masks = masks_of(self.ffns, self.statistics, row)
        digest = mask_digest(masks)
        if (digest, row.repair) in known:
            return {**known[digest, row.repair], **asdict(row)}
        begun = perf_counter()
        repaired: dict[str, RepairedMap] = {}
        told: dict[str, Any] = {}
        method = make_repair(row.repair)
        if method is not None:
            masks, repaired, validation = repair_where_it_helps(
                self.model, self.ffns, masks, method, (self.calibration, self.held_out), self.record or Recording([])
            )
            told = {"validation": asdict(validation)} if validation else {}
        seconds = perf_counter() - begun
        application = apply_masks(self.model, self.ffns, masks, repaired=repaired)
        try:
            facts = {"ffn_parameters": model_size(self.model, self.ffns).ffn_parameters, "masks_sha256": digest}
            return {**asdict(row), **self.losses(), **facts, "repair_seconds": seconds, **told}
        finally:
            application.undo()


def known_answers(dense: Any, text: TokenSequences, n_split: int = N_EXPERTS) -> dict[str, Any]:
    """Remove the experts that no token needs by every score; return which were removed, and what it changes.

    All experts of the control are chosen by every token, some of them are copied, and others are added that are never chosen.
    """
    experts = mixtures.control(dense, n_split)
    experts = mixtures.known_answer(experts, mixtures.ffn_inputs(dense, text), COPIED, UNUSED)
    n_experts = n_split + COPIED + UNUSED
    model = eager(mixtures.mixtral(dense, experts, n_experts - UNUSED))
    ffns = find_ffns(model)
    statistics = collect_statistics(model, ffns, text)
    with torch.no_grad():
        before = model(text.ids[:1]).logits
        found: dict[str, Any] = {"distance from dense": float((before - dense(text.ids[:1]).logits).abs().max())}
        for score in SCORES:
            masks = masks_of(ffns, statistics, Row("experts", UNUSED / n_experts, "none", score))
            kept = torch.stack([mask.any() for mask in masks.values()]).view(-1, n_experts)
            application = apply_masks(model, ffns, masks)
            try:
                change = float((model(text.ids[:1]).logits - before).abs().max())
            finally:
                application.undo()
            found[score] = {"unused": float((~kept[:, -UNUSED:]).float().mean()), "change": change}
    return found


def eager(model: Any) -> Any:
    """Let transformers compute the experts one by one, in the order that llmrank does."""
    model.set_experts_implementation("eager")
    return model


def mixture(directory: Path, loaded: LoadedModel, text: TokenSequences, shape: mixtures.Shape) -> Any:
    """Return the mixture in a directory; make it first if it is not there."""
    if not directory.is_dir():
        print(f"making the mixture in {directory}", flush=True)
        experts = mixtures.split(loaded.model, text, shape)
        checkpoint.save(directory, mixtures.mixtral(loaded.model, experts, shape.top_k), loaded.tokenizer)
    return eager(checkpoint.load(directory, dtype="float32").model)


def variants(dense: Any, study: Study) -> dict[str, Any]:
    """Measure the dense model, the exact control, and the mixture."""
    exact = eager(mixtures.mixtral(dense, mixtures.control(dense, N_EXPERTS), N_EXPERTS))
    ids = study.judged["test"].ids[:1]
    with torch.no_grad():
        logits = dense(ids).logits
        distance = float((exact(ids).logits - logits).abs().max())
    return {
        "dense": {name: perplexity(dense, text).value for name, text in study.judged.items()},
        "control": {"distance": distance, "largest logit": float(logits.abs().max())},
        "mixture": study.losses(),
        "size": asdict(model_size(study.model, study.ffns)),
    }


def difference(row: Mapping[str, Any], default: Mapping[str, Any], text: str) -> Estimate:
    """Return the mean loss of a row less that of another, over the same sequences, in nats."""
    pairs = zip(row[text]["losses"], default[text]["losses"], strict=True)
    return Estimate.of([one - other for one, other in pairs], row[text]["tokens"])


def table(results: Mapping[str, Any]) -> str:
    """Return the results in markdown: a table for each amount, the best on valid first."""
    made, measured = results["variants"], results.get("rows", {})
    dense, mixed, exact = made["dense"], made["mixture"], made["control"]
    lines = [
        f"Perplexity on test and on the end of valid. SmolLM2-135M-Instruct: {dense['test']:.2f}, {dense['valid']:.2f}.",
        f"The mixture of it: {mixed['test']['perplexity']:.2f}, {mixed['valid']['perplexity']:.2f}.",
        f"Logits of the exact control: at most {exact['distance']:.1e} away, of at most {exact['largest logit']:.0f}.",
        f"The difference is the mean loss in nats, over both texts, less that of {DEFAULT} with the same target, amount and",
        "repair; ± its standard error over sequences.",
    ]
    for amount in sorted({row["amount"] for row in measured.values()}):
        lines += ["", f"## {amount:.1%} removed", "", "| removed | score | repair | test | valid | difference |"]
        lines.append("| --- | --- | --- | ---: | ---: | ---: |")
        these = [row for row in measured.values() if row["amount"] == amount]
        for row in sorted(these, key=lambda row: float(row["valid"]["perplexity"])):
            default = measured.get(Row(row["target"], amount, row["repair"], DEFAULT).key)
            told = "" if default is None or row["score"] == DEFAULT else _joint(row, default)
            cells = [
                row["target"],
                row["score"],
                row["repair"],
                *(f"{row[t]['perplexity']:.2f}" for t in ("test", "valid")),
            ]
            lines.append(f"| {' | '.join([*cells, told])} |")
    if "known" in results:
        lines += ["", "## Experts that are never used", "", "| score | of them removed | largest change of a logit |"]
        lines.append("| --- | ---: | ---: |")
        for score, entry in results["known"].items():
            if isinstance(entry, dict):
                lines.append(f"| {score} | {entry['unused']:.1%} | {entry['change']:.1e} |")
    return "\n".join(lines) + "\n"


def _joint(row: Mapping[str, Any], default: Mapping[str, Any]) -> str:
    texts = ("test", "valid")
    joined = [
        {"both": {key: [x for t in texts for x in one[t][key]] for key in ("losses", "tokens")}}
        for one in (row, default)
    ]
    found = difference(joined[0], joined[1], "both")
    return f"{found.value:+.4f} ± {math.nan if found.error is None else found.error:.4f}"


def fill(study: Study, results: dict[str, Any], wanted: Sequence[Row], save: Callable[[], None]) -> None:
    """Add the missing rows, and save after each."""
    measured = results.setdefault("rows", {})
    known = {(row["masks_sha256"], row["repair"]): row for row in measured.values()}
    for row in wanted:
        if row.key not in measured:
            found = study.measure(row, known)
            found["run"] = len(results.get("resumed", []))
            measured[row.key] = known[found["masks_sha256"], row.repair] = found
            save()
        told = ", ".join(f"{name} {measured[row.key][name]['perplexity']:.2f}" for name in study.judged)
        print(f"{row.key}: {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_wikitext(parser)
    parser.add_argument("--amounts", default="0.25,0.125", help="shares to remove, with commas (%(default)s)")
    parser.add_argument("--repairs", default="none,lstsq", help="repairs, with commas (%(default)s)")
    parser.add_argument("--only", action="append", help="pattern of the rows to run, such as 'experts*wpr*'")
    parser.add_argument("--samples", type=int, default=16, help="calibration sequences (%(default)s)")
    parser.add_argument("--evaluate", type=int, default=8, help="evaluation sequences of each text (%(default)s)")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--top-k", type=int, default=18, help="experts of each token (%(default)s)")
    parser.add_argument("--mixture", type=Path, required=True, help="directory of the mixture, made if it is absent")
    parser.add_argument("--output", type=Path, default=RESULTS / "experts.json")
    options = parser.parse_args()
    check_wikitext(parser, options)
    loaded = checkpoint.load(demo_model(), dtype="float32")
    tokenizer, length = loaded.tokenizer, options.sequence_length
    valid, test = (options.wikitext / f"{name}.txt" for name in ("valid", "test"))
    made_on = read(valid, tokenizer, MADE_ON[1], length).split(MADE_ON[0])[1]
    if made_on is None:
        parser.error(f"valid.txt has no more than {MADE_ON[0]} sequences of {length} tokens")
    texts = read_and_hold_out(valid, tokenizer, options.samples, length)
    judged = {
        "test": read(test, tokenizer, options.evaluate, length),
        "valid": read(valid, tokenizer, options.evaluate, length, last=True),
    }
    shape = mixtures.Shape(N_EXPERTS, options.top_k, SHARPNESS)
    study = Study(mixture(options.mixture, loaded, made_on, shape), texts, judged)
    protocol = {
        "model": Path(loaded.source).name,
        "mixture": {
            **mixtures.description(shape),
            "text": f"WikiText-2 valid.txt, sequences {MADE_ON[0]} to {MADE_ON[1] - 1}",
        },
        "mixture_sha256": hashlib.sha256((options.mixture / "model.safetensors").read_bytes()).hexdigest(),
        "calibration": texts[0].provenance(),
        "evaluation": {name: text.provenance() for name, text in judged.items()},
        "scorers": {name: list(entry) for name, entry in SCORES.items()},
    }
    results = opened(options.output, protocol)

    save = partial(write_results, options.output, results, table)

    if "variants" not in results:
        results["variants"] = variants(loaded.model, study)
        save()
    every = rows([float(a) for a in options.amounts.split(",")], options.repairs.split(","))
    patterns = options.only or ["*"]
    fill(study, results, [row for row in every if any(fnmatch.fnmatch(row.key, p) for p in patterns)], save)
    if "known" not in results:
        short = read(valid, tokenizer, 8, min(256, length))
        results["known"] = known_answers(loaded.model, short)
        save()


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
