"""The gain of repair by the number of calibration tokens, on several models.

Run it as ``python -m benchmarks.repair --wikitext DIR --model A --model B``. Every model loses 30 % of its neurons by the default
rank and budget, calibrated on the first tokens of valid. It is evaluated on the first sequences of test: as cut, with the present
least-squares repair, and with the earlier one. The earlier repair has one ridge for all neurons, a damping of at most 0.1, and
fits to the held-out tokens too. Differences from the model as cut are paired over sequences. A run continues its own result file.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.result_files import opened, write_results
from benchmarks.wikitext import add_wikitext, check_wikitext, read, read_and_hold_out
from llmrank import Masks
from llmrank.calibration.collect import collect_statistics
from llmrank.cli.demo_models import demo_model
from llmrank.evaluation.estimate import Estimate
from llmrank.evaluation.perplexity import Perplexity, sequence_losses
from llmrank.execution import Execution
from llmrank.execution.block_stream import open_stream
from llmrank.execution.recording import Recording, recording
from llmrank.models import find_ffns
from llmrank.models.forward import run_sequences
from llmrank.pipeline.closeness.repair_validation import repair_where_it_helps
from llmrank.pipeline.registry import make_pruner, make_scorer
from llmrank.prune.selection import choose_masks
from llmrank.repair import LeastSquaresRepair, Moments, RepairedMap, repair_ffns
from llmrank.score.rank_graphs import rank_graphs
from llmrank.score.topologies import build_graphs
from llmrank.surgery import checkpoint
from llmrank.surgery.apply import apply_masks
from llmrank.text import TokenSequences

RESULTS = Path(__file__).parent / "results"
# Tokens to fit to -> length of the sequences.
SIZES = {1024: 256, 4096: 512, 16384: 1024, 65536: 1024}
OLD_DAMPINGS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4)

HEAD = (
    "Perplexity at 30 %, local, weighted PageRank, isolated; calibrated on the first tokens of WikiText-2's valid, evaluated on "
    "the first sequences of its test. In brackets the change against the cut model in nats per token, and its standard error, "
    "paired over sequences."
)
COLUMNS = "| tokens | cut | repaired as before | repaired now | now: divergence from dense on held-out tokens |"


class OneRidge(LeastSquaresRepair):
    """The earlier repair: one ridge for all neurons, a damping of at most 0.1, and a final fit to the held-out tokens too."""

    reads_removed = False

    def solve(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        keep: torch.Tensor,
        fit: Moments,
        held_out: Moments | None,
    ) -> RepairedMap:
        if bias is not None or held_out is None:
            raise SystemExit("this comparison is for models whose FFNs have no biases, with held-out tokens")
        everything = Moments(
            fit.count + held_out.count,
            fit.total + held_out.total,
            fit.second + held_out.second,
            None
            if fit.missing is None or held_out.missing is None
            else type(fit.missing)(
                fit.missing.total + held_out.missing.total,
                fit.missing.cross + held_out.missing.cross,
                fit.missing.square + held_out.missing.square,
            ),
        )

        def change(moments: Moments, damping: float) -> torch.Tensor:
            inner = moments.covariance(keep, keep)
            right = moments.covariance(keep, ~keep) @ weight[:, ~keep].T
            cross = moments.missing_cross()
            right = right if cross is None else right + cross[keep]
            inner.diagonal().add_(damping * inner.diagonal().mean())
            return torch.linalg.solve(inner, right).T

        def error(damping: float) -> float:
            lost = weight.clone()
            lost[:, keep] = -change(fit, damping)
            cross = held_out.missing_cross()
            mixed = 0.0 if cross is None else float((lost * cross.T).sum())
            return held_out.energy(lost) + 2.0 * mixed

        damping = min(OLD_DAMPINGS, key=error)
        new = torch.zeros_like(weight)
        new[:, keep] = weight[:, keep] + change(everything, damping)
        return RepairedMap(new, None, damping, None, None, "output" if fit.missing is None else "stream")


class Study:
    """One model, and its losses on the evaluation text, as cut and repaired."""

    def __init__(self, source: str, wikitext: Path, evaluate: int) -> None:
        loaded = checkpoint.load(source, dtype="float32")
        self.model, self.tokenizer, self.wikitext = loaded.model, loaded.tokenizer, wikitext
        self.ffns = find_ffns(self.model)
        self.texts = read(wikitext / "test.txt", self.tokenizer, evaluate, 1024)

    def protocol(self) -> dict[str, Any]:
        return {
            "evaluation": self.texts.provenance(),
            "amount": 0.3,
            "scorer": "wpr",
            "pipeline": "isolated",
            "pruner": "local",
        }

    def losses(
        self, masks: Masks | None = None, repaired: dict[str, RepairedMap] | None = None
    ) -> tuple[list[float], list[int]]:
        if masks is None:
            return sequence_losses(self.model, self.texts)
        application = apply_masks(self.model, self.ffns, masks, repaired=repaired)
        try:
            return sequence_losses(self.model, self.texts)
        finally:
            application.undo()

    def rows(self, tokens: int, keep: Callable[[dict[str, Any]], None]) -> None:
        """Measure the model as cut, with the earlier repair and with the present one; pass each row to `keep` at once."""
        length = SIZES[tokens]
        parts = read_and_hold_out(self.wikitext / "valid.txt", self.tokenizer, tokens // length, length)
        with recording(self.model, self.ffns) as record:
            statistics = collect_statistics(self.model, self.ffns, parts[0])
            run_sequences(self.model, self.ffns, parts[1].batches(1))
        graphs, pruner = (
            build_graphs(self.ffns, statistics, "isolated"),
            make_pruner("local", amount=0.3, multiple_of=1),
        )
        masks = choose_masks(pruner, graphs, rank_graphs(make_scorer("wpr"), graphs), jointly=True)
        cut = self.losses(masks)
        keep({"tokens": tokens, "repair": "none", "losses": cut[0], "counts": cut[1]})
        for name, run in (("before", self.before), ("now", self.now)):
            begun = perf_counter()
            row, masks_now, repaired = run(masks, parts, record)
            seconds = perf_counter() - begun
            losses, counts = self.losses(masks_now, repaired)
            keep({"tokens": tokens, "repair": name, "losses": losses, "counts": counts, "seconds": seconds, **row})

    def before(
        self, masks: Masks, parts: tuple[TokenSequences, TokenSequences], record: Recording
    ) -> tuple[dict[str, Any], Masks, dict[str, RepairedMap]]:
        stream = open_stream(self.model, self.ffns, parts[0], record, Execution(), parts[1], follow=True)
        masks, repaired = repair_ffns(self.model, self.ffns, masks, OneRidge(), stream)
        return {"dampings": sorted(one.damping or 0.0 for one in repaired.values())}, masks, repaired

    def now(
        self, masks: Masks, parts: tuple[TokenSequences, TokenSequences], record: Recording
    ) -> tuple[dict[str, Any], Masks, dict[str, RepairedMap]]:
        masks, repaired, validation = repair_where_it_helps(
            self.model, self.ffns, masks, LeastSquaresRepair(), parts, record
        )
        dampings = [one.damping if math.isfinite(one.damping or 0.0) else "inf" for one in repaired.values()]
        return {"dampings": dampings, "validation": asdict(validation) if validation else None}, masks, repaired


def table(results: dict[str, Any]) -> str:
    """Return all models in markdown, a line for each number of tokens."""
    lines = [HEAD]
    for name, found in results["models"].items():
        dense = Perplexity.of(found["dense"]["losses"], found["dense"]["counts"]).value
        lines += ["", f"## {name}: dense {dense:.2f}, {len(found['dense']['counts'])} sequences of 1024 tokens", ""]
        lines += [COLUMNS, "| ---: | ---: | ---: | ---: | --- |"]
        for tokens in sorted({row["tokens"] for row in found["rows"]}):
            rows = {row["repair"]: row for row in found["rows"] if row["tokens"] == tokens}
            cells = [f"{tokens:,}", *(_cell(rows.get(repair), rows["none"]) for repair in ("none", "before", "now"))]
            validation = (rows.get("now") or {}).get("validation")
            told = ""
            if validation:
                kept = "kept" if validation["repaired"] < validation["cut"] else "dropped"
                told = f"{validation['cut']:.3f} cut, {validation['repaired']:.3f} repaired: {kept}"
            lines.append(f"| {' | '.join([*cells, told])} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any] | None, cut: dict[str, Any]) -> str:
    if row is None:
        return ""
    value = f"{Perplexity.of(row['losses'], row['counts']).value:.2f}"
    if row is cut:
        return value
    change = Estimate.of(
        [after - before for after, before in zip(row["losses"], cut["losses"], strict=True)], row["counts"]
    )
    error = "" if change.error is None else f" ± {change.error:.3f}"
    return f"{value} ({change.value:+.3f}{error})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_wikitext(parser)
    parser.add_argument("--model", action="append", help="directory, hub name or .gguf file; default the demo model")
    parser.add_argument(
        "--tokens",
        default="1024,4096,16384",
        help=f"tokens to fit to, of {', '.join(map(str, SIZES))}, with commas (%(default)s)",
    )
    parser.add_argument("--evaluate", type=int, default=8, help="evaluation sequences (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "repair.json")
    options = parser.parse_args()
    check_wikitext(parser, options)
    sizes = [int(tokens) for tokens in options.tokens.split(",")]
    if not set(sizes) <= SIZES.keys():
        parser.error(f"--tokens must be of {', '.join(map(str, SIZES))}, got {options.tokens}")
    results = opened(options.output, {"sizes": {str(tokens): length for tokens, length in SIZES.items()}})
    models = results.setdefault("models", {})
    for source in options.model or [str(demo_model())]:
        study = Study(source, options.wikitext, options.evaluate)
        found = models.setdefault(Path(source).stem, {"protocol": study.protocol(), "rows": []})
        if found["protocol"] != study.protocol():
            parser.error(
                f"{options.output.name} has {Path(source).stem} evaluated on another text; choose another --output"
            )
        if "dense" not in found:
            found["dense"] = dict(zip(("losses", "counts"), study.losses(), strict=True))

        def keep(row: dict[str, Any], rows: list[dict[str, Any]] = found["rows"]) -> None:
            rows[:] = [old for old in rows if (old["tokens"], old["repair"]) != (row["tokens"], row["repair"])] + [row]
            write_results(options.output, results, table)
            print(row["tokens"], row["repair"], Perplexity.of(row["losses"], row["counts"]).value, flush=True)

        for tokens in sizes:
            if sum(row["tokens"] == tokens for row in found["rows"]) < 3:
                study.rows(tokens, keep)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
