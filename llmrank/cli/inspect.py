"""``llmrank inspect``: show a model's graph on the terminal, in figures, on a page and in files."""

from __future__ import annotations

import argparse
import json
import re
import webbrowser
from collections.abc import Iterable, Mapping, Sequence
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
from graphs.io.exchange import exchange_formats
from graphs.reduction.subgraphs import top_subgraph
from llmrank.calibration.forward import progress_step
from llmrank.calibration.text.built_in import BuiltInText
from llmrank.cli.options import add_method_options, add_model_options, check_method, load, make_pipeline
from llmrank.errors import OptionError
from llmrank.inspection.budgets import amount_label
from llmrank.inspection.figures import FORMATS as FIGURES
from llmrank.inspection.figures import write_figures
from llmrank.inspection.inspection import Inspection, inspect_model
from llmrank.inspection.page import write_page
from llmrank.inspection.summary import (
    InspectionSummary,
    NeuronSummary,
    Verdict,
    parse_neuron,
    split_neuron,
    summarise_inspection,
    summarise_neuron,
)
from llmrank.models.demo_models import DEMO_NAME
from llmrank.pipeline.registry import SCORERS
from llmrank.pipeline.specs import split_spec
from llmrank.score import BaseScorer, ExpertScorer
from llmrank.surgery.files import atomic_directory, check_output

__all__ = ["add_inspect_options", "run_inspect"]

# The format of the `graphs` package for complete graphs and their ranks.
OWN_FORMAT = "safetensors"
DEFAULT_FORMATS = "png,svg,html"
PAGE = "index.html"
SUMMARY = "summary.json"
MAX_TABLE_WIDTH = 1000


def add_inspect_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank inspect``."""
    command.add_argument("model", metavar="MODEL", nargs="?", help=f"default: {DEMO_NAME}")
    command.add_argument(
        "--output",
        type=Path,
        help="directory to write, absent or empty: summary.json, figures, and index.html, a page to explore the model in a "
        "browser; without it only the tables are printed",
    )
    formats = exchange_formats().values()
    complete = [OWN_FORMAT, *(known.name for known in formats if known.any_size)]
    command.add_argument(
        "--format",
        default=DEFAULT_FORMATS,
        help=f"formats to write: {', '.join((*FIGURES, 'html'))}, and for graphs "
        f"{', '.join(known.name for known in formats if not known.any_size)} (only the highest nodes) "
        f"and {', '.join(complete)} (complete graphs) (%(default)s)",
    )
    command.add_argument(
        "--layers", help="layers to list and draw, such as 0-3,29 (all are listed, and three of them drawn)"
    )
    command.add_argument(
        "--top", type=int, default=20, help="number of nodes of each layer in drawn and written subgraphs (%(default)s)"
    )
    command.add_argument(
        "--compare",
        help="scorers to compare with, separated by commas, or none (all scorers, with their default options)",
    )
    command.add_argument(
        "--neuron",
        action="append",
        default=[],
        metavar="LAYER:N",
        help="describe neuron N of this layer; can be repeated",
    )
    command.add_argument("--open", action="store_true", help="open the page in a browser")
    add_model_options(command.add_argument_group("model"))
    add_method_options(command, prunes=False)
    command.set_defaults(calibration=BuiltInText.name)


def run_inspect(options: argparse.Namespace, console: Console) -> int:
    """Run ``llmrank inspect``; return the exit status."""
    formats = _formats(options)
    if options.output is not None:
        check_output(options.output)
    ranges = _layer_ranges(options.layers)
    for text in options.neuron:
        split_neuron(text)
    budget = split_spec(options.pruner)[0]
    if budget not in ("local", "global"):
        raise OptionError(f"inspect expects --pruner local or global, got {budget!r}")
    # Both budgets are shown, and the global pruner has the options of both.
    settings = argparse.Namespace(**{**vars(options), "pruner": "global" + options.pruner[len(budget) :]})
    scorers = _scorers(settings)
    loaded = load(options)
    pipeline = make_pipeline(settings, loaded, evaluation=None)
    layers = pipeline.find().sizes
    shown = _chosen_layers(list(layers), ranges, options.layers)
    neurons = [parse_neuron(layers, text) for text in options.neuron]
    inspection = inspect_model(pipeline, scorers, next(iter(scorers)), budget)
    with progress_step(options.progress, "Summarising the graph"):
        summary = summarise_inspection(inspection, shown)
    _print_layers(summary, console)
    for layer, neuron in neurons:
        _print_neuron(summarise_neuron(inspection, layer, neuron), list(layers).index(layer), console)
    if options.output is None:
        console.print("No files were written; --output DIR writes figures and a page to explore.", style="dim")
        return 0
    with progress_step(options.progress, f"Writing {options.output}"), atomic_directory(options.output) as partial:
        _write_files(partial, summary, formats, options)
    names = sorted(path.name for path in options.output.iterdir())
    console.print(f"Wrote {options.output}: {', '.join(names)}.", markup=False)
    if PAGE in names:
        page = (options.output / PAGE).absolute()
        if not options.open or not webbrowser.open(page.as_uri()):
            console.print(f"Open {page} in a browser to explore the model; it needs no network.", markup=False)
    return 0


# --- the options


def _formats(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the formats of ``--format``; raise unless they can be written."""
    exchange = exchange_formats()
    known = (*FIGURES, "html", OWN_FORMAT, *exchange)
    formats = tuple(name.strip().lower() for name in options.format.split(",") if name.strip())
    unknown = [name for name in formats if name not in known]
    if unknown:
        raise OptionError(f"unknown format {', '.join(unknown)}; expected some of {', '.join(known)}")
    # A missing package is reported before the inspection, which takes minutes.
    for name in formats:
        package = exchange[name].package if name in exchange else ""
        if package and find_spec(package) is None:
            raise OptionError(
                f'the format {name} needs {package}, which is not installed; pip install "llmrank[{exchange[name].extra}]"'
            )
    if options.output is None and options.format != DEFAULT_FORMATS:
        raise OptionError("--format needs --output, the directory to write")
    if options.open and (options.output is None or "html" not in formats):
        raise OptionError("--open needs --output and the format html")
    return formats


def _scorers(settings: argparse.Namespace) -> dict[str, BaseScorer]:
    """Check the options; return the scorers of ``--scorer`` and ``--compare`` by name, the main scorer first."""
    scorer = check_method(settings)
    # Scores of whole experts do not tell the neurons of an expert apart.
    of_neurons = [name for name in SCORERS.names() if not issubclass(SCORERS.get(name, BaseScorer), ExpertScorer)]
    names = of_neurons if settings.compare is None else [name.strip() for name in settings.compare.split(",")]
    names = [] if names == ["none"] else names
    main = split_spec(settings.scorer)[0]
    return {main: scorer, **{name: SCORERS.make(name) for name in names if name != main}}


def _layer_ranges(text: str | None) -> list[tuple[int, int]] | None:
    """Convert ``--layers``, such as ``0-3,29``, to pairs (first, last) of layer numbers."""
    if text is None:
        return None
    ranges = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?", part)
        if ends is None or int(ends[2] or ends[1]) < int(ends[1]):
            raise OptionError(f"--layers expects numbers and ranges such as 0-3,29, got {text!r}")
        ranges.append((int(ends[1]), int(ends[2] or ends[1])))
    return ranges


def _chosen_layers(names: Sequence[str], ranges: Sequence[tuple[int, int]] | None, text: str | None) -> list[str]:
    """Return the names of the layers in the ranges, or all names if `ranges` is None."""
    if ranges is None:
        return list(names)
    if any(last >= len(names) for _, last in ranges):
        raise OptionError(f"--layers expects prunable layers 0 to {len(names) - 1}, got {text!r}")
    return [name for k, name in enumerate(names) if any(first <= k <= last for first, last in ranges)]


# --- the terminal


def _print_layers(summary: InspectionSummary, console: Console) -> None:
    """Print the table of layers, the meaning of its columns, and how far other scorers agree."""
    inspection = summary.inspection
    numbers = {name: number for number, name in enumerate(inspection.layer_positions())}
    graphs = inspection.graphs
    n_graphs = "1 graph" if len(graphs) == 1 else f"{len(graphs)} graphs"
    console.print(
        f"{inspection.source}: {sum(map(len, inspection.main.importance.values())):,} hidden neurons in {len(numbers)} "
        f"layers\n{inspection.topology}, {n_graphs}: {sum(entry.graph.n_nodes for entry in graphs):,} nodes, "
        f"{sum(entry.graph.n_edges for entry in graphs):,} edges; scored by {inspection.scorer}\n",
        markup=False,
        highlight=False,
    )
    _print_full_width(_layer_table(summary, numbers), console)
    for budget, reason in inspection.budgets.refusals.items():
        console.print(f"{budget} pruning refuses this amount: {reason}.", markup=False, highlight=False)
    console.print(_legend(inspection), markup=False, highlight=False)
    if summary.agreement:
        _print_agreement(summary, console)


def _layer_table(summary: InspectionSummary, numbers: Mapping[str, int]) -> Table:
    """Return a table with a row for each chosen layer; `numbers` holds the numbers of all prunable layers by name."""
    layers = summary.layers.values()
    kept = {budget: summary.kept.get(budget) for budget in ("local", "global")}
    totals = {budget: f"{sum(counts.values()):,}" if counts else "" for budget, counts in kept.items()}
    labels = _short_names(summary.layers, numbers)
    # --layers and --neuron take the number of a layer: it gets a column of its own, unless every label begins with it.
    labels_have_numbers = all(
        label.split(".")[0] == str(numbers[name]) for name, label in zip(summary.layers, labels, strict=True)
    )
    table = _compact_table(show_footer=True)
    for heading, footer in (
        *([] if labels_have_numbers else [("", "")]),
        ("layer", "all" if len(layers) == len(numbers) else "these"),
        ("neurons", f"{sum(layer.n_nodes for layer in layers):,}"),
        ("edges in", ""),
        ("dead", f"{sum(layer.n_dead for layer in layers):,}"),
        *((heading, "") for heading in ("effective", "top\n1 %", "Gini", "highest")),
        ("local\nkeeps", totals["local"]),
        ("global\nkeeps", totals["global"]),
    ):
        table.add_column(heading, footer, justify="left" if heading == "layer" else "right", no_wrap=True)
    for (name, layer), label in zip(summary.layers.items(), labels, strict=True):
        table.add_row(
            *([] if labels_have_numbers else [str(numbers[name])]),
            escape(label),
            f"{layer.n_nodes:,}",
            f"{layer.n_in_edges:,}",
            f"{layer.n_dead:,}",
            f"{layer.effective_number:,.0f}",
            f"{layer.top_share:.1%}",
            f"{layer.gini:.2f}",
            str(layer.highest_node),
            *(f"{counts[name]:,}" if counts else "refused" for counts in kept.values()),
        )
    return table


def _compact_table(**options: Any) -> Table:
    """Return a table with little space between columns, so that it fits a terminal of 80 columns."""
    return Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, **options)


def _print_full_width(table: Table, console: Console) -> None:
    """Print a table at its full width, because numbers that are broken over two lines cannot be read."""
    usual = console.width
    console.width = max(
        usual, Measurement.get(console, console.options.update(max_width=MAX_TABLE_WIDTH), table).maximum
    )
    console.print(table)
    console.width = usual


def _short_names(names: Iterable[str], all_names: Iterable[str]) -> list[str]:
    """Return `names` without the dotted parts that all of `all_names` begin with; at least one part remains."""
    split = [name.split(".") for name in all_names]
    n_shared = 0
    while all(len(parts) > n_shared + 1 for parts in split) and len({parts[n_shared] for parts in split}) == 1:
        n_shared += 1
    return [".".join(name.split(".")[n_shared:]) for name in names]


def _legend(inspection: Inspection) -> str:
    return (
        "\ndead: number of neurons that are zero on all calibration tokens.\n"
        "effective: number of neurons of equal score whose scores would be as concentrated.\n"
        "top 1 %: share of the layer's score that the highest 1 % of its neurons have.\n"
        "Gini: 0 if all scores are equal, near 1 if one neuron has the whole score.\n"
        "highest: the neuron with the highest score.\n"
        f"keeps: number of neurons kept if pruning removes {amount_label(inspection.amount)} of every layer\n"
        "(local), or of all layers together (global)."
    )


def _print_agreement(summary: InspectionSummary, console: Console) -> None:
    inspection = summary.inspection
    console.print(
        f"\nDo other scorers keep the same neurons as {inspection.scorer}, {inspection.topology}?\n",
        markup=False,
        highlight=False,
    )
    table = _compact_table()
    for heading in ("scorer", "Spearman", "local", "global"):
        table.add_column(heading, justify="left" if heading == "scorer" else "right", no_wrap=True)

    def share(value: float) -> str:
        return f"{value:.1%}" if isfinite(value) else "-"

    for name, entry in summary.agreement.items():
        label = f"{inspection.scorer}, {name}" if name == inspection.other_topology else name
        correlation = f"{entry.correlation:.3f}" if isfinite(entry.correlation) else "-"
        table.add_row(escape(label), correlation, share(entry.local), share(entry.global_))
    _print_full_width(table, console)
    console.print(
        "\nSpearman: correlation of the ranks, 1 for the same order, 0 for unrelated orders.\n"
        f"local, global: share of the neurons kept by {inspection.scorer} that the other scorer keeps too.",
        markup=False,
        highlight=False,
    )


def _print_neuron(neuron: NeuronSummary, number: int, console: Console) -> None:
    facts = neuron.node
    console.print(Text(f"\nNeuron {number}:{facts.node} ({neuron.layer})", style="bold"))
    place = f"score {facts.score:.4g}, above {facts.percentile:.1%} of its layer"
    strengths = f"strength in {facts.in_strength:.4g}, out {facts.out_strength:.4g}"
    lines = [
        f"{place}; activation {facts.activation:.4g}; {strengths}",
        *(f"{budget}: {_verdict_in_words(verdict, facts.score)}" for budget, verdict in neuron.verdicts.items()),
    ]
    for edges, title in (
        (facts.in_edges, f"strongest edges from nodes of {neuron.before} (share of what arrives)"),
        (facts.out_edges, f"strongest edges to nodes of {neuron.after} (share of what leaves)"),
    ):
        if edges:
            lines.append(f"{title}: {', '.join(f'{edge.node} ({edge.share:.2%})' for edge in edges)}")
    if neuron.paths:
        paths = ", ".join(
            f"{' > '.join(str(node) for _, node in path.nodes)} ({path.probability:.2g})" for path in neuron.paths
        )
        lines.append(f"strongest paths through the neuron (transition probability): {paths}")
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _verdict_in_words(verdict: Verdict, score: float) -> str:
    state = "kept" if verdict.kept else "removed"
    other_side = "highest removed score" if verdict.kept else "lowest kept score"
    if isnan(verdict.margin):
        reason = "no neuron of its layer is removed" if score > 0 else "its score is 0"
        return f"{state}; {reason}"
    if not isfinite(verdict.margin):
        return f"{state}; the {other_side} is 0"
    return f"{state}, {verdict.margin:.3g} times the {other_side} of its layer"


# --- the files


def _write_files(
    directory: Path, summary: InspectionSummary, formats: Sequence[str], options: argparse.Namespace
) -> None:
    inspection = summary.inspection
    text = json.dumps(summary.to_dict(), indent=2, allow_nan=False) + "\n"
    (directory / SUMMARY).write_text(text, encoding="utf-8")
    figures = [name for name in FIGURES if name in formats]
    if figures:
        layers = None if options.layers is None else list(summary.layers)
        write_figures(inspection, directory, figures, options.top, layers)
    if "html" in formats:
        write_page(inspection, directory / PAGE)
    _write_graphs(directory, inspection, formats, options.top)


def _write_graphs(directory: Path, inspection: Inspection, formats: Sequence[str], top: int) -> None:
    for number, (entry, rank) in enumerate(zip(inspection.graphs, inspection.main.ranks, strict=True)):
        stem = "graph" if len(inspection.graphs) == 1 else f"graph-{number:03}"
        if OWN_FORMAT in formats:
            save_graph(entry.graph, directory / f"{stem}.safetensors")
            save_rank(rank, directory / f"{stem}-rank.safetensors")
        for name, exchange in exchange_formats().items():
            if name in formats and exchange.any_size:
                exchange.write(entry.graph, directory / stem, rank)
            elif name in formats:
                exchange.write(top_subgraph(entry.graph, rank, nodes=top), directory / f"{stem}-top", rank)
