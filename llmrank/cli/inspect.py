"""``llmrank inspect``: a model's graph on the terminal, in figures, on a page and in files."""

from __future__ import annotations

import argparse
import json
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from graphs import save_graph, save_rank
from graphs.exchange import write_gexf, write_graphml, write_npz, write_tables
from graphs.subgraphs import top_subgraph
from llmrank.cli.options import load, make_parts, make_pipeline
from llmrank.config import SCORERS
from llmrank.errors import OptionError
from llmrank.figures import write_figures
from llmrank.findings import Findings, NeuronFacts, find, neuron_facts, parse_neuron
from llmrank.inspection import Inspection, inspect_model
from llmrank.output import check_output, whole_directory
from llmrank.page import write_page
from llmrank.score import BaseScorer

__all__ = ["inspect_options", "run_inspect"]

FIGURES = ("png", "svg")
# Subgraphs of the highest-ranked nodes, for other programs;
SUBGRAPHS = ("graphml", "gexf")
# and whole graphs.
WHOLE = ("safetensors", "npz", "csv", "parquet")
DEFAULT_FORMATS = "png,svg,html"
PAGE = "index.html"
SUMMARY = "summary.json"


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
    scorers = _scorers(options)
    loaded = load(options)
    pipeline = make_pipeline(options, loaded, evaluation=None)
    inspection = inspect_model(pipeline, scorers, options.scorer, options.pruner)
    names = list(inspection.places())
    shown = [names[k] for k in _numbers(options.layers, len(names))]
    neurons = [neuron_facts(inspection, *parse_neuron(inspection, text)) for text in options.neuron]
    findings = find(inspection, shown)
    _print_table(findings, console)
    for entry in neurons:
        _print_neuron(entry, console)
    if options.output is None:
        return 0
    with Console(stderr=True).status(escape(f"Writing {options.output}")), whole_directory(options.output) as partial:
        _write(partial, findings, formats, options, selected=options.layers is not None)
    console.print(
        f"Wrote {options.output}: {', '.join(sorted(p.name for p in options.output.iterdir()))}.", markup=False
    )
    if options.open and "html" in formats:
        webbrowser.open((options.output / PAGE).absolute().as_uri())
    return 0


# --- what was asked for


def _formats(options: argparse.Namespace) -> tuple[str, ...]:
    known = (*FIGURES, "html", *SUBGRAPHS, *WHOLE)
    asked = tuple(name.strip().lower() for name in options.format.split(",") if name.strip())
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise OptionError(f"unknown format {', '.join(unknown)}; expected some of {', '.join(known)}")
    if options.open and (options.output is None or "html" not in asked):
        raise OptionError("--open needs --output and the format html")
    return asked


def _scorers(options: argparse.Namespace) -> dict[str, BaseScorer]:
    """The scorer asked for with its settings, and those to compare with at their defaults."""
    scorer, _ = make_parts(options)
    if options.pruner not in ("local", "global"):
        raise OptionError(f"inspect shows what local and global pruning take; got --pruner {options.pruner!r}")
    names = list(SCORERS) if options.compare is None else [name.strip() for name in options.compare.split(",")]
    names = [] if names == ["none"] else names
    return {options.scorer: scorer, **{n: SCORERS.make(n) for n in names if n != options.scorer}}


def _numbers(text: str | None, count: int) -> list[int]:
    """``0-3,29`` as numbers below `count`; all where nothing was said."""
    if text is None:
        return list(range(count))
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise OptionError(f"--layers expects numbers and ranges such as 0-3,29, got {text!r}")
        found.update(range(int(first), int(last if dash else first) + 1))
    beyond = sorted(number for number in found if number >= count)
    if beyond or not found:
        raise OptionError(f"--layers: the model has prunable layers 0 to {count - 1}, got {text!r}")
    return sorted(found)


# --- the terminal


def _print_table(findings: Findings, console: Console) -> None:
    inspection = findings.inspection
    edges = sum(entry.graph.edges for entry in inspection.graphs)
    nodes = sum(entry.graph.nodes for entry in inspection.graphs)
    title = (
        f"{inspection.source}: {len(inspection.places())} prunable layers, {len(inspection.graphs)} {inspection.topology} "
        f"graph(s), {nodes:,} nodes, {edges:,} edges; scored by {inspection.scorer}"
    )
    table = Table(title=escape(title), title_justify="left")
    headings = ("layer", "neurons", "edges in", "density", "effective", "top 1 % hold", "Gini", "highest")
    for heading in (*headings, f"local keeps ({inspection.amount})", f"global keeps ({inspection.amount})"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for name, layer in findings.layers.items():
        table.add_row(
            escape(name),
            f"{layer.nodes:,}",
            f"{layer.edges_in:,}",
            f"{layer.density:.3f}",
            f"{layer.effective:,.0f}",
            f"{layer.top_share:.1%}",
            f"{layer.gini:.2f}",
            str(layer.highest),
            f"{findings.kept['local'][name]:,}",
            f"{findings.kept['global'][name]:,}",
        )
    console.print(table)
    console.print("effective: 1 / sum of squared scores, the number of equal neurons with the same concentration.")
    if findings.agreement:
        against = Table(
            title=f"Agreement with {escape(inspection.scorer)}, {inspection.topology}", title_justify="left"
        )
        for heading in ("", "Spearman", "kept alike, local", "kept alike, global"):
            against.add_column(heading, justify="right" if heading else "left")
        for name, entry in findings.agreement.items():
            against.add_row(escape(name), f"{entry.correlation:.3f}", f"{entry.local:.1%}", f"{entry.global_:.1%}")
        console.print(against)


def _print_neuron(neuron: NeuronFacts, console: Console) -> None:
    facts = neuron.facts
    console.print(Text(f"\n{neuron.layer}, neuron {facts.node}", style="bold"))
    console.print(
        f"score {facts.score:.4g} (above {facts.percentile:.1%} of its layer), activation {facts.activation:.4g}, "
        f"strength in {facts.in_strength:.4g}, out {facts.out_strength:.4g}",
        markup=False,
    )
    for budget, verdict in neuron.verdicts.items():
        state = "kept" if verdict.kept else "removed"
        console.print(f"{budget}: {state}, {verdict.ratio:.2f} times the score at the cut", markup=False)
    for title, edges, share in (
        ("strongest in", facts.in_edges, "of what arrives"),
        ("strongest out", facts.out_edges, "of what leaves"),
    ):
        listed = ", ".join(f"{edge.node} ({edge.carried:.2%})" for edge in edges)
        console.print(f"{title} ({share}): {listed or 'none'}", markup=False)
    for path in neuron.paths:
        console.print(f"path {' -> '.join(str(node) for _, node in path.nodes)}: {path.probability:.3g}", markup=False)


# --- the files


def _write(
    directory: Path, findings: Findings, formats: Sequence[str], options: argparse.Namespace, *, selected: bool
) -> None:
    inspection = findings.inspection
    summary = json.dumps(findings.to_dict(), indent=2, allow_nan=False) + "\n"
    (directory / SUMMARY).write_text(summary, encoding="utf-8")
    pictures = [name for name in FIGURES if name in formats]
    if pictures:
        write_figures(inspection, directory, pictures, options.top, list(findings.layers) if selected else None)
    if "html" in formats:
        write_page(inspection, directory / PAGE, normalize=options.normalize or "auto", min_keep=options.min_keep or 1)
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
