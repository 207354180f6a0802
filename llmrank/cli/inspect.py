"""``llmrank inspect``: a model's graph on the terminal, in figures, on a page and in files."""

from __future__ import annotations

import argparse
import json
import re
import webbrowser
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from math import isfinite, isnan
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from graphs import save_graph, save_rank
from graphs.io.exchange import write_gexf, write_graphml, write_npz, write_tables
from graphs.reduction.subgraphs import top_subgraph
from llmrank.calibration.forward import progress_step
from llmrank.cli.options import check_method, load, make_pipeline
from llmrank.errors import OptionError
from llmrank.inspection.figures import FORMATS as FIGURES
from llmrank.inspection.figures import write_figures
from llmrank.inspection.inspection import Inspection, inspect_model
from llmrank.inspection.page import write_page
from llmrank.inspection.summary import (
    InspectionSummary,
    NeuronFacts,
    Verdict,
    neuron_facts,
    parse_neuron,
    split_neuron,
    summarise_inspection,
)
from llmrank.pipeline.registry import SCORERS, split_spec
from llmrank.score import BaseScorer
from llmrank.surgery.apply import prunable_layers
from llmrank.surgery.files import check_output, whole_directory

__all__ = ["inspect_options", "run_inspect"]

# Subgraphs of the highest-ranked nodes, for other programs;
SUBGRAPHS = ("graphml", "gexf")
# and whole graphs.
WHOLE = ("safetensors", "npz", "csv", "parquet")
DEFAULT_FORMATS = "png,svg,html"
PAGE = "index.html"
SUMMARY = "summary.json"
# Columns of a table that is printed whole, whatever the terminal.
WIDEST = 1000


def inspect_options(command: argparse.ArgumentParser) -> None:
    """Options of the command's own."""
    command.add_argument(
        "--output",
        type=Path,
        help="directory to write, absent or empty: summary.json, figures, and index.html to explore the model in; "
        "without it only the table is printed",
    )
    command.add_argument(
        "--format",
        default=DEFAULT_FORMATS,
        help=f"what to write, of {', '.join((*FIGURES, 'html'))} and graph files: {', '.join(SUBGRAPHS)} (the "
        f"highest-ranked nodes), {', '.join(WHOLE)} (whole graphs) (%(default)s)",
    )
    command.add_argument(
        "--layers", help="layers to list and draw, such as 0-3,29 (all; figures of single layers: three)"
    )
    command.add_argument("--top", type=int, default=20, help="neurons a layer in drawings of subgraphs (%(default)s)")
    command.add_argument(
        "--compare",
        help="scorers to compare with, separated by commas, or none (all that need no setting of their own)",
    )
    command.add_argument(
        "--neuron", action="append", default=[], metavar="LAYER:N", help="print the facts of this neuron; repeatable"
    )
    command.add_argument("--open", action="store_true", help="open the page in a browser")


def run_inspect(options: argparse.Namespace, console: Console) -> int:
    """``llmrank inspect``."""
    formats = _formats(options)
    if options.output is not None:
        check_output(options.output)
    ranges = _ranges(options.layers)
    for text in options.neuron:
        split_neuron(text)
    # Both budgets are shown: their options count whichever was asked for, and the global pruner takes them all.
    name = split_spec(options.pruner)[0]
    settings = argparse.Namespace(**{**vars(options), "pruner": "global" + options.pruner[len(name) :]})
    scorers = _scorers(settings, name)
    loaded = load(options)
    pipeline = make_pipeline(settings, loaded, evaluation=None)
    layers = {name: layer.size for name, layer in prunable_layers(pipeline.find()).items()}
    shown = _chosen(list(layers), ranges, options.layers)
    neurons = [parse_neuron(layers, text) for text in options.neuron]
    inspection = inspect_model(pipeline, scorers, next(iter(scorers)), name)
    with progress_step(options.progress, "Summarising the graph"):
        findings = summarise_inspection(inspection, shown)
    _print_table(findings, console)
    for layer, neuron in neurons:
        _print_neuron(neuron_facts(inspection, layer, neuron), list(layers).index(layer), console)
    if options.output is None:
        console.print("Nothing was written; --output DIR writes figures and a page to explore.", style="dim")
        return 0
    with progress_step(options.progress, f"Writing {options.output}"), whole_directory(options.output) as partial:
        _write(partial, findings, formats, options, selected=options.layers is not None)
    names = sorted(path.name for path in options.output.iterdir())
    console.print(f"Wrote {options.output}: {', '.join(names)}.", markup=False)
    if PAGE in names:
        page = (options.output / PAGE).absolute()
        if not options.open or not webbrowser.open(page.as_uri()):
            console.print(f"Open {page} in a browser to explore the model; no network is needed.", markup=False)
    return 0


# --- what was asked for


def _formats(options: argparse.Namespace) -> tuple[str, ...]:
    known = (*FIGURES, "html", *SUBGRAPHS, *WHOLE)
    asked = tuple(name.strip().lower() for name in options.format.split(",") if name.strip())
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise OptionError(f"unknown format {', '.join(unknown)}; expected some of {', '.join(known)}")
    # Now, and not after the minutes that the model takes.
    if "parquet" in asked and find_spec("pyarrow") is None:
        raise OptionError('the format parquet needs pyarrow, which is not installed; pip install "llmrank[tables]"')
    if options.output is None and options.format != DEFAULT_FORMATS:
        raise OptionError("--format says what to write, so it needs --output")
    if options.open and (options.output is None or "html" not in asked):
        raise OptionError("--open needs --output and the format html")
    return asked


def _scorers(settings: argparse.Namespace, pruner: str) -> dict[str, BaseScorer]:
    """The scorer asked for with its settings, and those to compare with at their defaults."""
    if pruner not in ("local", "global"):
        raise OptionError(f"inspect shows what local and global pruning take; got --pruner {pruner!r}")
    scorer, _ = check_method(settings)
    names = SCORERS.names() if settings.compare is None else [name.strip() for name in settings.compare.split(",")]
    names = [] if names == ["none"] else names
    main = split_spec(settings.scorer)[0]
    return {main: scorer, **{name: SCORERS.make(name) for name in names if name != main}}


def _ranges(text: str | None) -> list[tuple[int, int]] | None:
    """``0-3,29`` as first and last numbers; None where nothing was said."""
    if text is None:
        return None
    found = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?", part)
        if ends is None or int(ends[2] or ends[1]) < int(ends[1]):
            raise OptionError(f"--layers expects numbers and ranges such as 0-3,29, got {text!r}")
        found.append((int(ends[1]), int(ends[2] or ends[1])))
    return found


def _chosen(names: Sequence[str], ranges: Sequence[tuple[int, int]] | None, text: str | None) -> list[str]:
    """The layers of these numbers, in the order of the model; all where nothing was said."""
    if ranges is None:
        return list(names)
    if any(last >= len(names) for _, last in ranges):
        raise OptionError(f"--layers: the model has prunable layers 0 to {len(names) - 1}, got {text!r}")
    return [name for k, name in enumerate(names) if any(first <= k <= last for first, last in ranges)]


# --- the terminal


def _print_table(findings: InspectionSummary, console: Console) -> None:
    inspection = findings.inspection
    numbers = {name: number for number, name in enumerate(inspection.places())}
    graphs = inspection.graphs
    counted = "1 graph" if len(graphs) == 1 else f"{len(graphs)} graphs"
    console.print(
        f"{inspection.source}: {sum(map(len, inspection.main.importance.values())):,} hidden neurons in {len(numbers)} "
        f"layers\n{inspection.topology}, {counted}: {sum(e.graph.nodes for e in graphs):,} nodes, "
        f"{sum(e.graph.edges for e in graphs):,} edges; scored by {inspection.scorer}\n",
        markup=False,
        highlight=False,
    )
    layers = findings.layers.values()
    kept = {budget: findings.kept.get(budget) for budget in ("local", "global")}
    totals = {budget: f"{sum(counts.values()):,}" if counts else "" for budget, counts in kept.items()}
    labels = _brief(findings.layers, numbers)
    # The numbers that --layers and --neuron take, unless the names say them already.
    told = all(label.split(".")[0] == str(numbers[name]) for name, label in zip(findings.layers, labels, strict=True))
    table = _compact(show_footer=True)
    for heading, footer in (
        *([] if told else [("", "")]),
        ("layer", "all" if len(layers) == len(numbers) else "these"),
        ("neurons", f"{sum(layer.nodes for layer in layers):,}"),
        ("edges in", ""),
        ("dead", f"{sum(layer.dead for layer in layers):,}"),
        *((heading, "") for heading in ("effective", "top\n1 %", "Gini", "highest")),
        ("local\nkeeps", totals["local"]),
        ("global\nkeeps", totals["global"]),
    ):
        table.add_column(heading, footer, justify="left" if heading == "layer" else "right", no_wrap=True)
    for (name, layer), label in zip(findings.layers.items(), labels, strict=True):
        table.add_row(
            *([] if told else [str(numbers[name])]),
            escape(label),
            f"{layer.nodes:,}",
            f"{layer.edges_in:,}",
            f"{layer.dead:,}",
            f"{layer.effective:,.0f}",
            f"{layer.top_share:.1%}",
            f"{layer.gini:.2f}",
            str(layer.highest),
            *(f"{counts[name]:,}" if counts else "refused" for counts in kept.values()),
        )
    _print_whole(table, console)
    for budget, reason in inspection.budgets.refusals.items():
        console.print(f"{budget} pruning refuses this amount: {reason}.", markup=False, highlight=False)
    console.print(_legend(inspection), markup=False, highlight=False)
    if findings.agreement:
        _print_agreement(findings, console)


def _compact(**options: Any) -> Table:
    """A table that leaves the room to the numbers: a model's layers should fit a terminal of 80 columns."""
    return Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, **options)


def _print_whole(table: Table, console: Console) -> None:
    """A table in the width it needs: numbers broken over two lines cannot be read anywhere, a pipe included."""
    usual = console.width
    console.width = max(usual, Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum)
    console.print(table)
    console.width = usual


def _brief(names: Iterable[str], among: Iterable[str]) -> list[str]:
    """Names without the dotted parts that all begin with; one part stays at least."""
    split = [name.split(".") for name in among]
    same = 0
    while all(len(parts) > same + 1 for parts in split) and len({parts[same] for parts in split}) == 1:
        same += 1
    return [".".join(name.split(".")[same:]) for name in names]


def _legend(inspection: Inspection) -> str:
    """What the columns mean, for those who see them for the first time."""
    amount = inspection.amount
    asked = f"{amount:,} neurons" if isinstance(amount, int) else f"{100 * amount:.6g} %"
    return (
        "\ndead: silent on the whole calibration text. highest: the neuron of the highest score.\n"
        "effective: as many neurons of equal score would be as concentrated as these.\n"
        "top 1 %: what the highest 1 % of neurons hold of the layer's score.\n"
        "Gini: 0 where all score alike, near 1 where one has everything.\n"
        f"keeps: what stays if pruning removes {asked} of every layer (local), or of all\n"
        "layers together (global)."
    )


def _print_agreement(findings: InspectionSummary, console: Console) -> None:
    inspection = findings.inspection
    console.print(
        f"\nDo others keep the same neurons as {inspection.scorer}, {inspection.topology}?\n",
        markup=False,
        highlight=False,
    )
    table = _compact()
    for heading in ("scorer", "Spearman", "local", "global"):
        table.add_column(heading, justify="left" if heading == "scorer" else "right", no_wrap=True)

    def share(value: float) -> str:
        return f"{value:.1%}" if isfinite(value) else "-"

    for name, entry in findings.agreement.items():
        label = f"{inspection.scorer}, {name}" if name == inspection.other_topology else name
        correlation = f"{entry.correlation:.3f}" if isfinite(entry.correlation) else "-"
        table.add_row(escape(label), correlation, share(entry.local), share(entry.global_))
    _print_whole(table, console)
    console.print(
        "\nSpearman: correlation of the orders, 1 for the same, 0 for none.\n"
        f"local, global: of the neurons that {inspection.scorer} keeps, the share that the other keeps.",
        markup=False,
        highlight=False,
    )


def _print_neuron(neuron: NeuronFacts, number: int, console: Console) -> None:
    facts = neuron.facts
    console.print(Text(f"\nNeuron {number}:{facts.node} ({neuron.layer})", style="bold"))
    stands = f"score {facts.score:.4g}, above {facts.percentile:.1%} of its layer"
    lines = [
        f"{stands}; activation {facts.activation:.4g}; strength in {facts.in_strength:.4g}, out {facts.out_strength:.4g}",
        *(f"{budget}: {_verdict(verdict, facts.score)}" for budget, verdict in neuron.verdicts.items()),
    ]
    for edges, title in (
        (facts.in_edges, f"from nodes of {neuron.before} (share of what arrives)"),
        (facts.out_edges, f"to nodes of {neuron.after} (share of what leaves)"),
    ):
        if edges:
            lines.append(f"{title}: {', '.join(f'{edge.node} ({edge.carried:.2%})' for edge in edges)}")
    if neuron.paths:
        paths = ", ".join(
            f"{' > '.join(str(node) for _, node in path.nodes)} ({path.probability:.2g})" for path in neuron.paths
        )
        lines.append(f"strongest paths through it (transition probability): {paths}")
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _verdict(verdict: Verdict, score: float) -> str:
    """In words, whatever the margin."""
    state = "kept" if verdict.kept else "removed"
    beyond = "highest removed score" if verdict.kept else "lowest kept score"
    if isnan(verdict.ratio):
        return (
            f"{state}; nothing of its layer is removed"
            if score > 0
            else f"{state}; there is no score to compare it with"
        )
    if not isfinite(verdict.ratio):
        return f"{state}; the {beyond} is 0"
    return f"{state}, {verdict.ratio:.3g} times the {beyond} of its layer"


# --- the files


def _write(
    directory: Path, findings: InspectionSummary, formats: Sequence[str], options: argparse.Namespace, *, selected: bool
) -> None:
    inspection = findings.inspection
    summary = json.dumps(findings.to_dict(), indent=2, allow_nan=False) + "\n"
    (directory / SUMMARY).write_text(summary, encoding="utf-8")
    pictures = [name for name in FIGURES if name in formats]
    if pictures:
        write_figures(inspection, directory, pictures, options.top, list(findings.layers) if selected else None)
    if "html" in formats:
        write_page(inspection, directory / PAGE)
    _write_graphs(directory, inspection, formats, options.top)


def _write_graphs(directory: Path, inspection: Inspection, formats: Sequence[str], top: int) -> None:
    writers: dict[str, Callable[[Any, Path], Any]] = {"graphml": write_graphml, "gexf": write_gexf}
    for number, (entry, rank) in enumerate(zip(inspection.graphs, inspection.main.ranks, strict=True)):
        stem = "graph" if len(inspection.graphs) == 1 else f"graph-{number:03}"
        for name in SUBGRAPHS:
            if name in formats:
                writers[name](top_subgraph(entry.graph, rank, nodes=top), directory / f"{stem}-top.{name}")
        if "safetensors" in formats:
            save_graph(entry.graph, directory / f"{stem}.safetensors")
            save_rank(rank, directory / f"{stem}-rank.safetensors")
        if "npz" in formats:
            write_npz(entry.graph, directory / f"{stem}.npz")
        if "csv" in formats:
            write_tables(entry.graph, directory / stem, rank=rank, format="csv")
        if "parquet" in formats:
            write_tables(entry.graph, directory / stem, rank=rank, format="parquet")
