"""Accuracy of pruned multilayer perceptrons, by scorer: the networks of MLP-Rank.

Run it as ``python -m benchmarks.mlp``. Networks of two, three and six layers are trained on images (see
:mod:`benchmarks.mlp_networks`). Then 10 to 50 % of their hidden neurons are removed without training, by the stages of the
pipeline and as compact networks. Statistics are collected on training images, settings are chosen on validation images, and
test images give the numbers to report. The published method also prunes rows of the output layer, which removes classes
whatever the score is. Here only hidden neurons are removed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import figures
from benchmarks.mlp_networks import BATCH, DATA, NETWORKS, Images, accuracy, missing, trained
from benchmarks.provenance import provenance
from benchmarks.quality import BUDGET_OPTIONS
from benchmarks.result_files import write, write_results
from graphs import LayeredGraph, RankResult
from llmrank import Masks
from llmrank.calibration.statistics import LayerStatistics
from llmrank.execution import Execution
from llmrank.execution.recording import recording
from llmrank.pipeline import CalibrationText, Recipe, stages
from llmrank.pipeline.registry import make_pruner, make_repair, make_scorer
from llmrank.pipeline.stages import RankedModel
from llmrank.prune.selection import Reselection
from llmrank.score import ActivationScorer, BaseScorer
from llmrank.surgery.apply import apply_masks

RESULTS = Path(__file__).parent / "results"
AMOUNTS = (0.1, 0.2, 0.3, 0.4, 0.5)
PRUNERS = ("local", "global")
CALIBRATION = 1024
DRAWS = 3
# The scores with whose average the paper compares, and its lead in points.
COMPARED = ("random", "norm (L1)", "activation")
PAPER = 6.09


@dataclass
class Centred(BaseScorer):
    """Another scorer with standard deviations as activations: a neuron with a constant activation carries no information."""

    of: BaseScorer

    def rank(self, graph: LayeredGraph, statistics: Sequence[LayerStatistics]) -> RankResult:
        deviations = [entry.variance.sqrt() for entry in statistics]
        for layer, deviation in enumerate(deviations):
            graph = graph.with_activations(layer, deviation)
        centred = [
            replace(entry, norm=d, read_norm=d, mean=torch.zeros_like(d))
            for entry, d in zip(statistics, deviations, strict=True)
        ]
        return self.of.rank(graph, centred)


# By name. "random" is the mean over several draws.
BASELINES: dict[str, list[BaseScorer]] = {
    "random": [make_scorer("random", seed=seed) for seed in range(DRAWS)],
    "norm (L1)": [make_scorer("norm", p=1.0)],
    "norm (L2)": [make_scorer("norm", p=2.0)],
    "activation": [make_scorer("activation")],
    "wanda": [make_scorer("wanda")],
    "wanda-sp (L1)": [make_scorer("wanda-sp", p=1.0)],
    "wanda-sp (L2)": [make_scorer("wanda-sp", p=2.0)],
    "flap": [make_scorer("flap")],
}
FORWARD: dict[str, list[BaseScorer]] = {
    "weighted PageRank": [make_scorer("wpr")],
    "weighted PageRank, gamma 0.9, theta 0.5": [make_scorer("wpr", gamma=0.9, theta=0.5)],
    "weighted PageRank, gamma 0.9": [make_scorer("wpr", gamma=0.9)],
    "weighted PageRank, gamma 1": [make_scorer("wpr", gamma=1.0)],
    "modified PageRank": [make_scorer("mpr")],
    "centred weighted PageRank, gamma 0.9": [Centred(make_scorer("wpr", gamma=0.9))],
}
BOTH_WAYS: dict[str, list[BaseScorer]] = {
    "forward-backward PageRank, gamma 0.5": [make_scorer("fbpr", gamma=0.5, dtype="float64")],
    "forward-backward PageRank, gamma 0.9": [make_scorer("fbpr", gamma=0.9, dtype="float64")],
    "forward-backward PageRank, gamma 1": [make_scorer("fbpr", gamma=1.0, dtype="float64")],
    "backward PageRank, gamma 1": [make_scorer("fbpr", gamma=1.0, balance=0.0, dtype="float64")],
    "centred forward-backward PageRank, gamma 0.9": [Centred(make_scorer("fbpr", gamma=0.9, dtype="float64"))],
    "centred forward-backward PageRank, gamma 1": [Centred(make_scorer("fbpr", gamma=1.0, dtype="float64"))],
}
SCORERS = {**BASELINES, **FORWARD, **BOTH_WAYS}
# The scores that are also measured with repair, under one budget.
REPAIRED = (*COMPARED, "flap", "weighted PageRank", "forward-backward PageRank, gamma 1")


@dataclass(frozen=True)
class Setting:
    """One row of the results."""

    scorer: str
    pruner: str
    repair: str = "none"

    @property
    def key(self) -> str:
        return " | ".join(vars(self).values())


def settings() -> Iterator[Setting]:
    """Yield all settings for a network."""
    yield from (Setting(scorer, pruner) for scorer in SCORERS for pruner in PRUNERS)
    yield from (Setting(scorer, "local", "lstsq") for scorer in REPAIRED)


EXECUTION = Execution()


class Pruning:
    """A trained network, its graph, and its accuracies after pruning."""

    def __init__(self, model: nn.Module, images: Images) -> None:
        self.model, self.images = model, images
        self.dense = self.accuracies()
        calibration = CalibrationText(images.train.x[:CALIBRATION])
        self.recipe = Recipe(scorer=ActivationScorer(), repair=None, calibration=calibration)  # no scorer to choose
        self.prepared = stages.find(model, None, self.recipe, EXECUTION)
        self.tokens = stages.calibration_tokens(self.prepared, self.recipe, EXECUTION)
        with recording(model, self.prepared.ffns) as self.record:
            self.statistics = stages.calibrate(self.prepared, self.recipe, self.tokens, EXECUTION)
        self.graphs = stages.build(self.prepared, self.recipe, self.statistics)
        self._known: dict[tuple[int, str], tuple[float, float]] = {}

    def accuracies(self) -> tuple[float, float]:
        """Return the accuracies on validation and on test images."""
        return accuracy(self.model, self.images.valid), accuracy(self.model, self.images.test)

    def masks(self, scorer: BaseScorer, pruner: str) -> list[Masks]:
        """Return the keep masks for every amount."""
        self.scorer = scorer
        ranked = RankedModel(self.graphs, stages.rank(scorer, self.graphs, EXECUTION), scorer)
        pruners = (
            make_pruner(pruner, amount=each, multiple_of=1, **BUDGET_OPTIONS.get(pruner, {})) for each in AMOUNTS
        )
        return [stages.choose(self.prepared, replace(self.recipe, pruner=each), ranked) for each in pruners]

    def cut(self, masks: Masks, repair: str) -> tuple[float, float]:
        """Return the accuracies of the compact network. The same masks are measured once."""
        key = (hash(masks), repair)
        if key not in self._known:
            recipe = replace(self.recipe, repair=make_repair(repair))
            again = Reselection(self.scorer, self.graphs)
            masks, repaired, _ = stages.repair(self.prepared, recipe, masks, self.tokens, self.record, again, EXECUTION)
            application = apply_masks(self.model, self.prepared.ffns, masks, repaired=repaired)
            try:
                self._known[key] = self.accuracies()
            finally:
                application.undo()
        return self._known[key]

    def line(self, setting: Setting) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return accuracies on validation and on test images, (amounts, 2), means over draws."""
        draws = [
            [self.cut(masks, setting.repair) for masks in self.masks(scorer, setting.pruner)]
            for scorer in SCORERS[setting.scorer]
        ]
        return np.array(draws).mean(0)


@dataclass(frozen=True)
class Task:
    """One network to train, prune and measure."""

    data: str
    network: str
    seed: int
    epochs: int


@dataclass(frozen=True)
class Measured:
    """Result of a task: source of the images, dense accuracies, seconds of one core, and accuracies (amounts, 2) by setting."""

    source: str
    dense: tuple[float, float]
    seconds: float
    lines: dict[str, list[list[float]]]


def measure(task: Task, kept: Path | None = None) -> Measured:
    """Return the result of a task, from the folder `kept` if it is there with all settings, else measured and written there."""
    file = None if kept is None else kept / f"{'-'.join(map(str, vars(task).values()))}.json".replace(" ", "-")
    if file is not None and file.is_file():
        found = Measured(**json.loads(file.read_text(encoding="utf-8")))
        if list(found.lines) == [setting.key for setting in settings()]:
            return found
    torch.set_num_threads(1)
    begun, images = process_time(), DATA[task.data][0](task.seed)
    model = trained(NETWORKS[task.network], images, task.epochs, task.seed)
    pruning = Pruning(model, images)
    lines = {setting.key: pruning.line(setting).tolist() for setting in settings()}
    found = Measured(images.source, pruning.dense, process_time() - begun, lines)
    print(f"{task.data}, {task.network}, seed {task.seed}: {found.seconds:.0f} s, dense {found.dense}", flush=True)
    if file is not None:
        write(file, vars(found))
    return found


def study(tasks: Sequence[Task], jobs: int, kept: Path | None = None) -> dict[str, Any]:
    """Run all tasks, `jobs` at a time, each on one thread; return means and standard deviations over the seeds."""
    if jobs > 1:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            results = list(pool.map(measure, tasks, [kept] * len(tasks)))
    else:
        results = [measure(task, kept) for task in tasks]
    found = dict(zip(tasks, results, strict=True))
    dense, rows = [], []
    for data, network in dict.fromkeys((task.data, task.network) for task in tasks):
        here = {"data": data, "network": network}
        same = [result for task, result in found.items() if (task.data, task.network) == (data, network)]
        dense.append({**here, **_summed(np.array([[result.dense] for result in same]), one=True)})
        for setting in settings():
            values = np.array([result.lines[setting.key] for result in same])
            by_seed = [round(float(value), 5) for value in values[:, :, 1].mean(1)]
            rows.append({**here, **vars(setting), **_summed(values), "test_by_seed": by_seed})
    sources = {task.data: result.source for task, result in found.items()}
    seconds = sum(result.seconds for result in results)
    return {"sources": sources, "core_seconds": round(seconds), "dense": dense, "rows": rows}


def _summed(values: np.ndarray[Any, Any], *, one: bool = False) -> dict[str, Any]:
    """Return means over seeds, and standard deviations for test, from accuracies (seeds, amounts, 2)."""
    deviations = values[:, :, 1].std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    found = {"valid": values[:, :, 0].mean(0), "test": values[:, :, 1].mean(0), "test_deviation": deviations}
    return {
        name: round(float(entry[0]), 5) if one else [round(float(value), 5) for value in entry]
        for name, entry in found.items()
    }


class Summary:
    """Summary of the rows, in percentage points of accuracy."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.amounts: list[float] = results["protocol"]["amounts"]
        self.dense = {(row["data"], row["network"]): row for row in results["dense"]}
        self.rows = {
            (Setting(row["scorer"], row["pruner"], row["repair"]), (row["data"], row["network"])): row
            for row in results["rows"]
        }
        self.settings = list(dict.fromkeys(setting for setting, _ in self.rows))

    def change(self, setting: Setting, part: str = "test") -> np.ndarray[Any, Any]:
        """Return the change of accuracy, (networks, amounts); a loss is negative."""
        return np.array(
            [
                100.0 * (np.array(self.rows[setting, network][part]) - self.dense[network][part])
                for network in self.dense
            ]
        )

    def lead(self, setting: Setting, others: Sequence[Setting]) -> tuple[float, float]:
        """Return the lead of a setting over the average of others on test, and its standard error over seeds (0 for one seed)."""

        def by_seed(which: Setting) -> np.ndarray[Any, Any]:
            return 100.0 * np.array([self.rows[which, network]["test_by_seed"] for network in self.dense]).mean(0)

        ahead = by_seed(setting) - np.mean([by_seed(other) for other in others], axis=0)
        error = ahead.std(ddof=1) / np.sqrt(len(ahead)) if len(ahead) > 1 else 0.0
        return float(ahead.mean()), float(error)

    def retained(self, setting: Setting) -> float:
        """Return the mean share of the dense accuracy on test that is kept, in percent."""
        return 100.0 * fmean(
            value / self.dense[network]["test"]
            for network in self.dense
            for value in self.rows[setting, network]["test"]
        )

    def chosen(self, scorers: Sequence[str]) -> Setting:
        """Return the setting of these scorers, without repair, that is best on validation images over networks and amounts."""
        tried = [setting for setting in self.settings if setting.repair == "none" and setting.scorer in scorers]
        return max(tried, key=lambda setting: float(self.change(setting, "valid").mean()))


def table(results: dict[str, Any]) -> str:
    """Return the results in markdown."""
    summary = Summary(results)
    lines = [
        f"Mean over {results['protocol']['seeds']} trained networks each; changes of test accuracy in percentage points.",
        "",
        "| | " + " | ".join(f"{data}, {network}" for data, network in summary.dense) + " |",
        "| --- |" + " ---: |" * len(summary.dense),
        "| dense test accuracy, % | "
        + " | ".join(f"{100 * row['test']:.2f} ± {100 * row['test_deviation']:.2f}" for row in summary.dense.values())
        + " |",
    ]
    for title, repair in (("Without repair", "none"), ("With least-squares repair", "lstsq")):
        ordered = [setting for setting in summary.settings if setting.repair == repair]
        ordered.sort(key=lambda setting: -summary.change(setting, "valid").mean())
        lines += [
            "",
            f"## {title}",
            "",
            "Means over the amounts, then over the networks; the best on validation first.",
            "",
        ]
        head = [*(f"{data}, {network[0]}" for data, network in summary.dense), *(f"{a:.0%}" for a in summary.amounts)]
        lines += [
            f"| score | budget | {' | '.join(head)} | all | retained, % | all, validation |",
            "| --- | --- |" + " ---: |" * (len(head) + 3),
        ]
        for setting in ordered:
            change = summary.change(setting)
            cells = [*change.mean(1), *change.mean(0), change.mean()]
            lines.append(
                f"| {setting.scorer} | {setting.pruner} | {' | '.join(f'{cell:.2f}' for cell in cells)} | "
                f"{summary.retained(setting):.1f} | {summary.change(setting, 'valid').mean():.2f} |"
            )
    for title, scorers in (
        ("The best PageRank of all", [*FORWARD, *BOTH_WAYS]),
        ("The best forward PageRank", [*FORWARD]),
    ):
        lines += ["", f"## {title} against what the paper compares with", "", *_comparison(summary, scorers)]
    return "\n".join(lines) + "\n"


def _comparison(summary: Summary, scorers: Sequence[str]) -> Iterator[str]:
    """Yield the lead of a rank over random, L1 norm and activation, and every cell where it is behind."""
    ours = summary.chosen(scorers)
    others = [summary.chosen([name]) for name in COMPARED]
    own, theirs = summary.change(ours), {setting: summary.change(setting) for setting in others}
    mean, error = summary.lead(ours, others)
    each = ((setting, *summary.lead(ours, [setting])) for setting in others)
    yield (
        f"Chosen on validation: **{ours.scorer}, {ours.pruner}**, against each of the others with the budget that suits it "
        f"best there. Ahead of their average by **{mean:.2f}** ± {error:.2f} percentage points on test (the paper: {PAPER}; "
        "± is the standard error over seeds, of pairs); of "
        + ", ".join(
            f"{setting.scorer} ({setting.pruner}) by {value:.2f} ± {width:.2f}" for setting, value, width in each
        )
        + "."
    )
    yield ""
    cells = [
        (
            f"{data}, {network}, {summary.amounts[k]:.0%}",
            own[n, k],
            [float(change[n, k]) for change in theirs.values()],
        )
        for n, (data, network) in enumerate(summary.dense)
        for k in range(len(summary.amounts))
    ]
    behind = [cell for cell in cells if max(cell[2]) > cell[1]]
    yield f"Behind one of the three in {len(behind)} of {len(cells)} cells:"
    yield ""
    yield f"| | {ours.scorer} | " + " | ".join(setting.scorer for setting in others) + " |"
    yield "| --- |" + " ---: |" * (1 + len(others))
    for name, value, rest in behind:
        shown = (f"**{other:.2f}**" if other > value else f"{other:.2f}" for other in rest)
        yield f"| {name} | {value:.2f} | {' | '.join(shown)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        default=",".join(DATA),
        help="data sets, with commas (%(default)s); those that are not installed are left out",
    )
    parser.add_argument("--networks", default=",".join(NETWORKS), help="networks, with commas (%(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="networks of each kind (%(default)s)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="networks measured at once, each on one thread (%(default)s)"
    )
    parser.add_argument(
        "--keep", type=Path, help="folder for the result of each network; a result that is there is not measured again"
    )
    parser.add_argument("--quick", action="store_true", help="one small network on digits, for a smoke test")
    parser.add_argument("--output", type=Path, default=RESULTS / "mlp.json")
    options = parser.parse_args()
    names = ["digits"] if options.quick else options.data.split(",")
    if unknown := set(names) - set(DATA):
        parser.error(f"unknown --data {', '.join(sorted(unknown))}; expected some of {', '.join(DATA)}")
    for name, command in missing().items():
        if name in names:
            print(f"without {name}: {command} brings its images")
            names.remove(name)
    if not names:
        parser.error("none of the data sets is installed")
    networks = ["2 layers"] if options.quick else options.networks.split(",")
    if unknown := set(networks) - set(NETWORKS):
        parser.error(f"unknown --networks {', '.join(sorted(unknown))}; expected some of {', '.join(NETWORKS)}")
    epochs = {name: 3 if options.quick else DATA[name][1] for name in names}
    seeds = 1 if options.quick else options.seeds
    tasks = [Task(name, network, k, epochs[name]) for name in names for network in networks for k in range(seeds)]
    protocol = {
        "networks": {name: vars(NETWORKS[name]) for name in networks},
        "epochs": epochs,
        "batch": BATCH,
        "seeds": seeds,
        "random_draws": DRAWS,
        "amounts": list(AMOUNTS),
        "calibration": f"the first {CALIBRATION} training images",
        "threads_per_network": 1,
    }
    results = {"provenance": provenance(), "protocol": protocol, **study(tasks, options.jobs, options.keep)}
    print(table(results))
    if not options.quick:
        write_results(options.output, results, table)
        print(f"wrote {figures.mlp(results, options.output.parent)[0]}")


if __name__ == "__main__":
    main()
