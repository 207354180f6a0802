"""The same rows on several models and two kinds of text, with errors that are paired over sequences.

Run it as ``python -m benchmarks.across --wikitext DIR --model A --model B``. Scores and budgets, as cut and repaired, at several
amounts, on one short protocol: the first sequences of WikiText-2's valid calibrate; the first of its test, and the beginnings of
some modules of Python's standard library, are evaluated. Every row has its difference from the default row (of the same amount
and repair) in nats per token, and the standard error of that difference over sequences, so that "ahead" has a meaning. A run
continues its own result file. With ``--targets heads`` heads of attentions are removed, in a result file of their own.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from scipy import stats

from benchmarks.pruning_peers import PEERS
from benchmarks.result_files import opened, write_results
from benchmarks.wikitext import add_wikitext, check_wikitext, read, read_and_hold_out
from llmrank.calibration.collect import collect_statistics
from llmrank.cli.demo_models import demo_model
from llmrank.evaluation.estimate import Estimate
from llmrank.evaluation.items import BUILT_IN_FILE, answer_items, read_items
from llmrank.evaluation.perplexity import Perplexity, sequence_losses
from llmrank.execution import Execution
from llmrank.execution.recording import Recording, recording
from llmrank.models.forward import run_sequences
from llmrank.pipeline import Recipe, stages
from llmrank.pipeline.closeness.candidates import Choice
from llmrank.pipeline.closeness.repair_validation import Validation, repair_where_it_helps
from llmrank.pipeline.defaults import DEFAULTS
from llmrank.pipeline.descriptions import dtype_name
from llmrank.pipeline.registry import make_pruner, make_scorer
from llmrank.prune import LocalPruner
from llmrank.prune.masks import Masks
from llmrank.prune.records.units import parse_targets
from llmrank.repair import LeastSquaresRepair, RepairedMap
from llmrank.score import AutoScorer
from llmrank.score.model_graph import ModelGraph
from llmrank.score.rank_graphs import rank_graphs
from llmrank.score.topologies import build_graphs
from llmrank.surgery import checkpoint
from llmrank.surgery.apply import AppliedMasks, apply_masks
from llmrank.text import CalibrationTokens, TokenSequences, tokenise
from llmrank.text.other_text import add_other_text, held_out_other_text

RESULTS = Path(__file__).parent / "results"
# Calibrated on WikiText-2 with the other text that is added by default, or on WikiText-2 alone.
TEXTS = ("default", "alone")
DEFAULT = (DEFAULTS["scorer"], "local", TEXTS[0])
PEER = "optipfair, MAW with data"
# The scores of other tools; `activation` is the one that the default is built on.
SCORES_OF_PEERS = ("activation", "wanda-sp", "flap", PEER)
# Scorer, or the peer that chooses the neurons itself -> budgets.
ROWS = {
    DEFAULT[0]: ("local",),
    "wpr:gamma=0.1,edges=gate": ("local", "sensitivity"),
    "wpr:gamma=0.15,edges=gate": ("local",),
    "wpr:gamma=0.2,edges=gate": ("local",),
    "wpr:gamma=0.35,edges=gate": ("local",),
    "wpr:gamma=0.5,edges=gate": ("local",),
    "wpr:gamma=0.35,edges=energy": ("local",),
    "wpr": (
        "local",
        "sensitivity",
        "global:normalize=zscore",
        "global:normalize=robust",
        "global:normalize=mean",
        "global:normalize=none",
    ),
    "activation": ("local", "global:normalize=zscore", "global:normalize=robust"),
    "wanda-sp": ("local", "global:normalize=zscore", "global:normalize=robust"),
    "wanda-sp:p=2": ("local",),
    "flap": ("local", "global:normalize=zscore"),
    PEER: ("local",),
}
# Scorers of heads -> budgets. The default budget removes as many heads of every attention.
ROWS_OF_HEADS = {
    DEFAULT[0]: ("local", "global", "sensitivity", "least-loss"),
    "activation": ("local",),
    "wanda-sp": ("local",),
    "flap": ("local",),
    "norm": ("local",),
    "random": ("local",),
}
REPAIRS = {"none": "as cut", "lstsq": "repaired"}
KINDS = ("WikiText-2", "Python sources")
ITEMS = "items"
# What a row says of a choice.
CHOICE = ("choice", "seconds to choose")
# The text of another kind than the calibration text: the beginning of each of these modules is a sequence.
MODULES = ("heapq", "textwrap", "argparse", "tarfile", "smtplib", "statistics", "pprint", "locale")
HEAD = (
    "Perplexity as cut and repaired. In brackets the difference from the first row in nats per token, and its standard error, "
    "paired over sequences: a difference of less than two errors says nothing. All rows are calibrated on WikiText-2's valid, "
    "and on a fifth as much of the built-in text, Python's language reference, unless they say 'alone'. WikiText-2's test is "
    "text of the first kind; the source code of Python's standard library is text of another kind. "
    "Shares are exact (multiple_of=1)."
)
HEAD_OF_PEERS = (
    "How often the default is ahead of a peer ({peers}), and how often behind, by more than two errors, over models, amounts, "
    "and as cut or repaired. Of two equal scores, each would be that far ahead of the other in {chance:.0%} of the comparisons, "
    "by the t distribution of as many sequences."
)
HEAD_OF_HEADS = (
    " What is removed are heads of attentions; those that share keys and values are removed together. The budget local removes "
    "as many of every attention, and so none if the share is less than half of a group."
)
DROPPED = " †"
HEAD_OF_DROPPED = (
    f"{DROPPED} The repair did not bring the model nearer to the dense one on held-out text of both kinds, so llmrank dropped "
    "it, and the row is as cut, up to rounding."
)
HEAD_OF_ITEMS = (
    " The tables of items say how many are kept: answered right, of those that the dense model answers right."
)


class Study:
    """One model: its calibration, its ranks, and its losses on the evaluation text."""

    def __init__(self, source: str, options: argparse.Namespace, targets: str = "neurons") -> None:
        self.options = options
        loaded = checkpoint.load(source, dtype=options.dtype)
        self.model, self.tokenizer, length = loaded.model, loaded.tokenizer, options.sequence_length
        self.targets = parse_targets(targets)
        self.ffns = stages.find(self.model, self.tokenizer, Recipe(targets=self.targets), Execution()).ffns
        self.texts = read(options.wikitext / "test.txt", loaded.tokenizer, options.evaluate, length)
        self.other = python_sources(loaded.tokenizer, length)
        alone = read_and_hold_out(options.wikitext / "valid.txt", loaded.tokenizer, options.samples, length)
        other = held_out_other_text(alone[0], loaded.tokenizer)
        extended = add_other_text(alone[0], loaded.tokenizer)
        self.tokens = dict(
            zip(TEXTS, (CalibrationTokens(each, alone[1], other) for each in (extended, alone[0])), strict=True)
        )
        self.records: dict[str, Recording] = {}
        self.graphs: dict[str, tuple[ModelGraph, ...]] = {}
        self.ranks: dict[tuple[str, str], Any] = {}
        self.choices: dict[tuple[str, float], Choice] = {}
        self.sensitivities: dict[tuple[str, str, str, float], Any] = {}

    def calibrate(self, text: str) -> None:
        """Make the graphs of a text, and record the calls of the blocks for a repair, unless they are there."""
        if text not in self.graphs:
            fit, held_out = self.tokens[text].parts
            with recording(self.model, self.ffns) as self.records[text]:
                self.graphs[text] = build_graphs(self.ffns, collect_statistics(self.model, self.ffns, fit), "isolated")
                run_sequences(self.model, self.ffns, [] if held_out is None else held_out.batches(1))

    def protocol(self) -> dict[str, Any]:
        return {
            "calibration": self.tokens["alone"].sequences.provenance(),
            "with other text": self.tokens["default"].sequences.provenance(),
            "evaluation": self.texts.provenance(),
            "other": self.other.provenance(),
            ITEMS: hashlib.sha256(BUILT_IN_FILE.read_bytes()).hexdigest()[:16],
            "dtype": dtype_name(self.model),
        }

    def losses(self, model: Any = None) -> dict[str, Any]:
        """Return the losses of the model or of another one: on the text of the calibration's kind, and on the `other` one.

        Of the built-in items, return a character each: 1 if the answer is right, 0 if it is wrong, - if the item is skipped.
        """
        first, second = (
            dict(zip(("losses", "counts"), sequence_losses(model or self.model, texts), strict=True))
            for texts in (self.texts, self.other)
        )
        right = answer_items(model or self.model, self.tokenizer, read_items()).right
        return {**first, "other": second, ITEMS: "".join("-" if each is None else str(int(each)) for each in right)}

    def choice(self, text: str, amount: float) -> Choice:
        """Let the default choose a scorer for an amount, as the command line does."""
        if (text, amount) not in self.choices:
            pruner = LocalPruner(amount, multiple_of=1)
            recipe, execution = Recipe(pruner=pruner, targets=self.targets), Execution()
            prepared = stages.find(self.model, self.tokenizer, recipe, execution)
            choice = stages.choose_scorer(prepared, recipe, self.graphs[text], self.tokens[text], execution)
            if choice is None:
                raise RuntimeError("no scorer was tried, though sequences are held out")
            self.choices[text, amount] = choice
        return self.choices[text, amount]

    def row(
        self, scorer: str, budget: str, text: str, amount: float, repair: str, rows: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Measure one row, or take the numbers of one of `rows` that has the same masks: the scorer that a choice has taken."""
        begun = perf_counter()
        self.calibrate(text)
        row: dict[str, Any] = {"scorer": scorer, "budget": budget, "text": text, "amount": amount, "repair": repair}
        if scorer == AutoScorer.name:
            choice = self.choice(text, amount)
            row |= dict(zip(CHOICE, (choice.to_dict(), round(perf_counter() - begun, 1)), strict=True))
            scorer = choice.chosen
        for other in rows:
            if (ranked_by(other), *key(other)[1:]) == (scorer, budget, text, amount, repair) and ITEMS in other:
                return {**{name: value for name, value in other.items() if name not in CHOICE}, **row}
        application, said = self.cut(scorer, budget, text, amount, repair)
        try:
            return {**row, **said, **self.losses(), "seconds": round(perf_counter() - begun, 1)}
        finally:
            application.undo()

    def cut(
        self, scorer: str, budget: str, text: str, amount: float, repair: str
    ) -> tuple[AppliedMasks, dict[str, Any]]:
        """Cut the model, and repair it unless that is "none"; return what can be undone, and what a row says of it."""
        self.calibrate(text)
        masks = self.masks(scorer, budget, text, amount)
        said: dict[str, Any] = {"removed": [round(1.0 - float(mask.float().mean()), 3) for mask in masks.values()]}
        repaired: dict[str, RepairedMap] = {}
        if repair != "none":
            masks, repaired, validation = repair_where_it_helps(
                self.model, self.ffns, masks, LeastSquaresRepair(), self.tokens[text].parts, self.records[text]
            )
            said["validation"] = None if validation is None else asdict(validation)
        return apply_masks(self.model, self.ffns, masks, repaired=repaired), said

    def masks(self, scorer: str, budget: str, text: str, amount: float) -> Masks:
        """Choose the neurons to keep."""
        peer = next((peer for peer in PEERS if peer.name == scorer), None)
        if peer is not None:
            return peer.masks(self.model, self.ffns, self.tokens[text].sequences, amount)
        graphs = self.graphs[text]
        if (scorer, text) not in self.ranks:
            self.ranks[scorer, text] = rank_graphs(make_scorer(scorer), graphs)
        pruner, ranks = make_pruner(budget, amount=amount, multiple_of=1), self.ranks[scorer, text]
        recipe, execution = Recipe(scorer=make_scorer(scorer), pruner=pruner, targets=self.targets), Execution()
        prepared = stages.find(self.model, self.tokenizer, recipe, execution)
        ranked = stages.RankedModel(graphs, ranks, recipe.scorer)
        if (scorer, budget, text, amount) not in self.sensitivities:
            measured = stages.measure_sensitivities(prepared, recipe, ranked, self.tokens[text], execution)
            self.sensitivities[scorer, budget, text, amount] = measured
        return stages.choose(prepared, recipe, ranked, self.sensitivities[scorer, budget, text, amount])


def python_sources(tokenizer: Any, length: int) -> TokenSequences:
    """Return the beginnings of the :data:`MODULES`, a sequence of at most `length` tokens each."""
    origins = [getattr(importlib.util.find_spec(name), "origin", None) for name in MODULES]
    texts = [Path(str(origin)).read_text(encoding="utf-8") for origin in origins]
    return tokenise(texts, tokenizer, len(texts), length, "evaluation")


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["scorer"], row["budget"], row["text"], row["amount"], row["repair"]


def ranked_by(row: dict[str, Any]) -> str:
    """Return the scorer of a row, or the one that was chosen."""
    return str(row["choice"]["chosen"]) if "choice" in row else str(row["scorer"])


def settings(options: argparse.Namespace) -> Iterator[tuple[str, str, str, float, str]]:
    """Yield scorer, budget, text, amount and repair of each row that is asked for, the default rows first."""
    wanted = _pairs(options.targets)
    for amount in (float(share) for share in options.amounts.split(",")):
        for repair in options.repairs.split(","):
            for (scorer, budget), text in product(wanted, options.texts.split(",")):
                if any(fnmatch.fnmatchcase(f"{scorer} | {budget}", pattern) for pattern in options.only or ["*"]):
                    yield scorer, budget, text, amount, repair


def table(results: dict[str, Any]) -> str:
    """Return all models in markdown: perplexities, and in brackets the difference from the default row."""
    asks = any(ITEMS in row for found in results["models"].values() for row in found["rows"])
    of_heads = results.get("protocol", {}).get("targets") == "heads"
    dropped = any(_is_dropped(row) for found in results["models"].values() for row in found["rows"])
    head = HEAD + of_heads * HEAD_OF_HEADS + asks * HEAD_OF_ITEMS + dropped * HEAD_OF_DROPPED
    lines = [head, *_against_peers(results["models"])]
    for name, found in results["models"].items():
        for kind in (*KINDS, ITEMS):
            dense = kind_of(found["dense"], kind)
            if dense is None:
                continue
            dtype = found.get("protocol", {}).get("dtype", "float32")
            value = f"{share_right(dense)} right" if kind == ITEMS else f"{perplexity_of(dense):.2f}"
            lines += ["", f"## {name} on {kind}: dense {value}{'' if dtype == 'float32' else f' ({dtype})'}", ""]
            for repair in REPAIRS:
                rows = [row for row in found["rows"] if row["repair"] == repair and kind_of(row, kind)]
                lines += _rows(rows, kind, dense)
    return "\n".join(lines).rstrip() + "\n"


def _against_peers(models: dict[str, Any]) -> list[str]:
    """Return a table of how often the default is ahead of a peer or behind it; nothing without a peer."""
    lines: list[str] = []
    for (own, theirs), kind in product((("alone", "alone"), ("default", "default"), ("default", "alone")), KINDS):
        changes = [
            change(kind_of(peer, kind), kind_of(default, kind))
            for found in models.values()
            for default, peer in product(found["rows"], found["rows"])
            if key(default)[:3] == (*DEFAULT[:2], own) and key(default)[3:] == key(peer)[3:]
            if peer["scorer"] in SCORES_OF_PEERS and key(peer)[1:3] == (DEFAULT[1], theirs)
            if kind_of(default, kind) and kind_of(peer, kind)
        ]
        far = [each.value for each in changes if each.error is not None and abs(each.value) > 2 * each.error]
        ahead = sum(value > 0 for value in far)
        if changes:
            texts = " | ".join("with other text" if each == TEXTS[0] else each for each in (own, theirs))
            lines.append(f"| {texts} | {kind} | {len(changes)} | {ahead} | {len(far) - ahead} |")
    if not lines:
        return []
    n_sequences = min(len(row["losses"]) for found in models.values() for row in found["rows"])
    head = HEAD_OF_PEERS.format(peers=", ".join(SCORES_OF_PEERS), chance=stats.t.sf(2.0, n_sequences - 1))
    columns = "| text of the default | text of the peer | evaluated on | comparisons | ahead | behind |"
    return ["", head, "", columns, "| --- | --- | --- | ---: | ---: | ---: |", *lines]


def _rows(found: list[dict[str, Any]], kind: str, dense: Any) -> list[str]:
    """Return the table of the rows of one model, repair and kind of text; nothing without rows."""
    if not found:
        return []
    rows = {key(row)[:4]: kind_of(row, kind) for row in found}
    marks = {key(row)[:4]: DROPPED for row in found if _is_dropped(row)}
    amounts = sorted({row["amount"] for row in found})
    lines = [
        f"| {REPAIRS[found[0]['repair']]} | {' | '.join(f'{a:.0%}' for a in amounts)} |",
        f"| --- |{' ---: |' * len(amounts)}",
    ]
    for text, (scorer, budget) in product(TEXTS, _pairs()):
        if any((scorer, budget, text, amount) in rows for amount in amounts):
            keys = [(scorer, budget, text, amount) for amount in amounts]
            cells = [cell(rows.get(each), rows.get((*DEFAULT, each[-1])), dense) + marks.get(each, "") for each in keys]
            label = f"{scorer}, {budget.replace(':normalize=', ', ')}{suffix(text)}"
            lines.append(f"| {label} | {' | '.join(cells)} |")
    for text in TEXTS:
        chosen = {row["amount"]: row["choice"]["chosen"] for row in found if "choice" in row and row["text"] == text}
        if chosen:
            cells = [chosen.get(amount, "") for amount in amounts]
            lines.append(f"| {AutoScorer.name} chose{suffix(text)} | {' | '.join(cells)} |")
    return [*lines, ""]


def _is_dropped(row: dict[str, Any]) -> bool:
    """Whether llmrank dropped the repair of a row."""
    found = row.get("validation")
    return found is not None and not Validation(**found).improves


def suffix(text: str) -> str:
    return "" if text == TEXTS[0] else f", {text}"


def kind_of(row: dict[str, Any], kind: str) -> Any:
    """Return the losses and counts of a row on a kind of text, or its items; None if they were not measured."""
    return row if kind == KINDS[0] else row.get(ITEMS if kind == ITEMS else "other")


def share_right(items: str, dense: str | None = None) -> str:
    """Return the share of the items that are answered right, of those that the dense model answers right; see Study.losses."""
    counted = (
        items.replace("-", "")
        if dense is None
        else [own for own, other in zip(items, dense, strict=True) if other == "1"]
    )
    share = Estimate.of([each == "1" for each in counted])
    return f"{share.value:.1%}{'' if share.error is None else f' ± {share.error:.1%}'}"


def perplexity_of(row: dict[str, Any]) -> float:
    return Perplexity.of(row["losses"], row["counts"]).value


def _pairs(targets: str = "") -> list[tuple[str, str]]:
    """Return scorers and budgets of neurons, of heads, or without `targets` of both."""
    of_both = {"neurons": ROWS, "heads": ROWS_OF_HEADS}
    rows = [each for name, each in of_both.items() if targets in ("", name)]
    return list(
        dict.fromkeys((scorer, budget) for each in rows for scorer, budgets in each.items() for budget in budgets)
    )


def cell(row: Any, default: dict[str, Any] | None, dense: Any) -> str:
    if row is None:
        return ""
    if isinstance(row, str):
        return share_right(row, dense)
    value = f"{perplexity_of(row):,.2f}"
    if default is None or row is default:
        return value
    above = change(row, default)
    return f"{value} ({above.value:+.3f}{'' if above.error is None else f' ± {above.error:.3f}'})"


def change(row: dict[str, Any], default: dict[str, Any]) -> Estimate:
    """Return the loss of a row above that of the default in nats per token, paired over sequences."""
    differences = [own - other for own, other in zip(row["losses"], default["losses"], strict=True)]
    return Estimate.of(differences, row["counts"])


def measure(study: Study, found: dict[str, Any], options: argparse.Namespace, save: Callable[[], None]) -> None:
    """Measure the rows of one model that are missing, and save after each."""
    if ITEMS not in found.setdefault("dense", {}):
        found["dense"] = {**study.losses(), **found["dense"]}
    protocol = study.protocol()
    if found["protocol"].get(ITEMS, protocol[ITEMS]) != protocol[ITEMS]:
        for each in (found["dense"], *found["rows"]):
            each.pop(ITEMS, None)  # they were asked other items
        found["dense"] = {**study.losses(), **found["dense"]}
    found["protocol"] = protocol
    for setting in settings(options):
        # Earlier versions measured no text of another kind. Rows as cut are measured again.
        there = [row for row in found["rows"] if key(row) == setting]
        if not there or ("other" not in there[0] and setting[-1] == "none"):
            row = study.row(*setting, found["rows"])
            found["rows"] = [*(other for other in found["rows"] if other not in there), row]
            save()
            print(*setting, round(perplexity_of(row), 2), flush=True)


def study_parser(description: str | None, output: Path | None) -> argparse.ArgumentParser:
    """Return a parser of the options that make the protocol of a study, and of the models that it reads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_wikitext(parser)
    parser.add_argument("--model", action="append", help="directory, hub name or .gguf file; default the demo model")
    parser.add_argument("--samples", type=int, default=16, help="calibration sequences (%(default)s)")
    parser.add_argument("--evaluate", type=int, default=8, help="evaluation sequences (%(default)s)")
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--dtype", default="float32", help="bfloat16 for models that take too long (%(default)s)")
    parser.add_argument("--output", type=Path, default=output, help="result file, in which a run goes on")
    return parser


def open_study(
    options: argparse.Namespace, parser: argparse.ArgumentParser, **protocol: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """Open the result file of a study; return what it holds, and the models that were asked for by the names it calls them."""
    check_wikitext(parser, options)
    numbers = {name: getattr(options, name) for name in ("samples", "evaluate", "sequence_length")}
    results = opened(options.output, numbers | protocol)
    results.setdefault("models", {})
    return results, {Path(source).name.removesuffix(".gguf"): source for source in options.model or [str(demo_model())]}


def main() -> None:
    parser = study_parser(__doc__, None)
    parser.add_argument("--amounts", default="0.1,0.2,0.3,0.5", help="shares, with commas (%(default)s)")
    parser.add_argument("--repairs", default="none,lstsq", help=f"with commas: {', '.join(REPAIRS)} (%(default)s)")
    parser.add_argument("--texts", default=",".join(TEXTS), help="with commas (%(default)s)")
    parser.add_argument("--only", action="append", help="pattern of 'SCORER | BUDGET'; may be repeated")
    parser.add_argument(
        "--targets",
        default="neurons",
        choices=("neurons", "heads"),
        help="what is removed (%(default)s); by default --output is across.json, and heads.json of heads",
    )
    options = parser.parse_args()
    options.output = options.output or RESULTS / ("heads.json" if options.targets == "heads" else "across.json")
    of_heads = {"targets": options.targets} if options.targets != "neurons" else {}
    results, models = open_study(options, parser, **of_heads)
    for name, source in models.items():
        study = Study(source, options, options.targets)
        found = results["models"].setdefault(name, {"protocol": study.protocol(), "rows": []})
        measure(study, found, options, partial(write_results, options.output, results, table))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
