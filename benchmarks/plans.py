"""How good a plan's expected loss is: what plans expect to lose, and what they lose when they are carried out.

Run it as ``python -m benchmarks.plans --wikitext DIR --model A --model B``. The calibration is that of ``benchmarks.across``.
Losses of every layer are measured on held-out text, as ``llmrank rank --losses`` does: half of it goes on where the calibration
text ends, and half is of the built-in text. Twenty plans (ten amounts of parameters, with widths that differ and with equal ones)
are carried out as cut, and their divergence from the dense model is measured on text that nothing has read before: as many
sequences of WikiText-2's test as of Python sources. A run continues its own result file.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from scipy import stats

from benchmarks.across import KINDS, Study, open_study, study_parser
from benchmarks.result_files import write, write_results
from llmrank.errors import OptionError
from llmrank.evaluation.estimate import Estimate
from llmrank.execution import Execution
from llmrank.models.costs import ModelCosts
from llmrank.pipeline import Recipe, stages
from llmrank.pipeline.closeness.distance import DenseReference
from llmrank.pipeline.closeness.loss_curves import LossCurves, removed_units
from llmrank.pipeline.registry import make_scorer
from llmrank.prune import LeastLossPruner
from llmrank.prune.records.units import units_of_part
from llmrank.prune.selection import choose_masks
from llmrank.score.rank_graphs import rank_graphs

RESULTS = Path(__file__).parent / "results"
TARGETS = {"neurons": "neurons", "neurons and heads": "neurons,heads"}
AMOUNTS = (0.03, 0.06, 0.09, 0.12, 0.15, 0.18, 0.22, 0.26, 0.3, 0.4)
HEAD = (
    "What plans expect to lose, and what they lose as cut: KL divergence from the dense model in nats per token. The expectation "
    "is made on held-out text (WikiText-2's valid, and as much of Python's language reference), the measurement on as many "
    "sequences of WikiText-2's test as of Python sources, with its standard error over sequences. An amount is a share of all "
    "parameters; what is more than can be removed is left out."
)


def measure(study: Study, curves: LossCurves, scorer: str) -> list[dict[str, Any]]:
    """Make the plans of one model by its loss curves, and carry each out."""
    study.calibrate("default")
    model, ffns, graphs = study.model, study.ffns, study.graphs["default"]
    ranks, costs = rank_graphs(make_scorer(scorer), graphs), ModelCosts(model, ffns)
    reference = DenseReference(model, ffns, study.texts.joined(study.other), Execution())
    units = units_of_part(ffns.layers.values(), study.targets)
    rows: list[dict[str, Any]] = []
    for amount, uniform in product(AMOUNTS, (False, True)):
        pruner = LeastLossPruner(amount, amount_of="parameters", uniform=uniform)
        begun = perf_counter()
        try:
            masks = choose_masks(
                pruner, graphs, ranks, jointly=True, sensitivities=curves, costs=costs, targets=study.targets
            )
        except OptionError:
            continue
        seconds, removed = perf_counter() - begun, removed_units(units, masks)
        sums, counts = reference.distances([reference.outputs(masks)])[0]
        n = len(study.texts)
        lost = {
            kind: Estimate.of(sums[part], counts[part])
            for kind, part in zip(KINDS, (slice(n), slice(n, None)), strict=True)
        }
        shares = {
            target: sum(removed[each.name] for each in units if each.target == target)
            / sum(each.n_units for each in units if each.target == target)
            for target in study.targets
        }
        share = costs.removed_cost(masks.widths, "parameters") / costs.model.parameters
        row = {"amount": amount, "uniform": uniform, "share": share, "removed": shares, "seconds": round(seconds, 2)}
        measured = {kind: {"value": each.value, "error": each.error} for kind, each in lost.items()}
        rows.append({**row, "expected": curves.expected(removed), "measured": measured})
        print(rows[-1], flush=True)
    return rows


def measured_curves(study: Study) -> tuple[LossCurves, str]:
    """Return the loss curves of one model, and the scorer that the default has chosen for 30 %."""
    study.calibrate("default")
    tokens, graphs, scorer = study.tokens["default"], study.graphs["default"], study.choice("default", 0.3).chosen
    ranked = stages.RankedModel(graphs, rank_graphs(make_scorer(scorer), graphs), make_scorer(scorer))
    recipe = Recipe(scorer=ranked.scorer, pruner=LeastLossPruner(), targets=study.targets)
    prepared = stages.find(study.model, study.tokenizer, recipe, Execution())
    return stages.measure_losses(prepared, recipe, ranked, tokens, Execution()), scorer


def correlation(rows: list[dict[str, Any]]) -> float:
    """Return the rank correlation (Spearman) of what was expected and what was measured, as a mean of both kinds of text."""
    return float(stats.spearmanr([row["expected"] for row in rows], [mean(row) for row in rows]).statistic)


def mean(row: dict[str, Any]) -> float:
    return float(sum(each["value"] for each in row["measured"].values()) / len(KINDS))


def table(results: dict[str, Any]) -> str:
    """Return all models in markdown."""
    lines = [HEAD]
    for name, found in results["models"].items():
        for targets, each in found.items():
            rows = each.get("rows")
            if not rows:
                continue
            at = next((row for row in rows if row["amount"] == 0.3 and not row["uniform"]), rows[-1])
            found_at = ", ".join(f"{lost['value']:.3f} on {kind}" for kind, lost in at["measured"].items())
            outcome = f"{at['amount']:.0%}: expected {at['expected']:.3f}, measured {found_at}"
            slowest = max(row["seconds"] for row in rows)
            lines += [
                "",
                f"## {name}, {targets}: rank correlation {correlation(rows):.3f}; {outcome}",
                "",
                f"Scored by {each['scorer']}; the losses took {each['seconds']:.0f} s, a plan at most {slowest} s.",
                "",
                f"| parameters removed | widths | removed of each kind | expected | {' | '.join(KINDS)} | mean / expected |",
                "| ---: | --- | --- | ---: | ---: | ---: | ---: |",
            ]
            for row in rows:
                kinds = ", ".join(f"{share:.0%} of the {kind}" for kind, share in row["removed"].items())
                cells = " | ".join(f"{each['value']:.3f} ± {each['error']:.3f}" for each in row["measured"].values())
                lines.append(
                    f"| {row['share']:.1%} | {'equal' if row['uniform'] else 'differ'} | {kinds} | {row['expected']:.3f} | "
                    f"{cells} | {mean(row) / row['expected']:.2f} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = study_parser(__doc__, RESULTS / "plans.json")
    options = parser.parse_args()
    results, models = open_study(options, parser)
    for name, source in models.items():
        found = results["models"].setdefault(name, {})
        for label, targets in TARGETS.items():
            if "rows" in found.setdefault(label, {}):
                continue
            study = Study(source, options, targets)
            if "curves" not in found[label]:
                begun = perf_counter()
                curves, scorer = measured_curves(study)
                seconds = round(perf_counter() - begun, 1)
                found[label] = {"scorer": scorer, "seconds": seconds, "curves": curves.to_dict()}
                write(options.output, results)
            found[label]["rows"] = measure(study, LossCurves.of_dict(found[label]["curves"]), found[label]["scorer"])
            write_results(options.output, results, table)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
