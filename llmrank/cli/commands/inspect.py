"""``llmrank inspect``: show a model's graph on the terminal, in figures, on a page and in files."""

from __future__ import annotations

import argparse
import json
import re
import webbrowser
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from graphs import save_graph, save_rank
from graphs.io.exchange import exchange_formats
from graphs.reduction.subgraphs import top_subgraph
from llmrank.cli.arguments.inspect import DEFAULT_FORMATS
from llmrank.cli.commands.inspect_tables import print_experts, print_layers, print_meaning, print_neuron
from llmrank.cli.options import check_method, load, make_run, recipe_of
from llmrank.cli.result import CommandResult
from llmrank.cli.terminal import Terminal
from llmrank.errors import OptionError
from llmrank.evaluation.token_losses import LossChanges, loss_changes, token_losses
from llmrank.inspection.figures import FORMATS as FIGURES
from llmrank.inspection.figures import write_figures
from llmrank.inspection.inspect_model import Inspection, inspect_model
from llmrank.inspection.layers import find_part, parse_neuron, parts_by_layer, split_neuron
from llmrank.inspection.meaning.meaning_files import write_meanings_csv, write_meanings_json
from llmrank.inspection.meaning.meanings import Meanings, find_meanings
from llmrank.inspection.page import write_page
from llmrank.inspection.summary import InspectionSummary, summarise_inspection, summarise_neuron
from llmrank.models.forward import predicts_next_token
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.pipeline.registry import SCORERS
from llmrank.pipeline.specs import split_spec
from llmrank.score import AutoScorer, BaseScorer, ExpertScorer
from llmrank.surgery.atomic import atomic_directory, check_output
from llmrank.surgery.equivalence import as_masked

__all__ = ["run_inspect"]

# The format of the `graphs` package for complete graphs and their ranks.
OWN_FORMAT = "safetensors"
# Functions that write the contexts of all neurons to a file. A key is the name of the file, and also that of the format.
TABLES = {"contexts.csv": write_meanings_csv, "contexts.json": write_meanings_json}
PAGE = "index.html"
SUMMARY = "summary.json"
# Number of examples of tokens that the pruned model predicts worse.
WORST = 30


def run_inspect(options: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run ``llmrank inspect``."""
    formats = _formats(options)
    if options.output is not None:
        check_output(options.output)
    choices = _layer_choices(options.layers)
    for text in options.neuron:
        split_neuron(text)
    budget = split_spec(options.pruner)[0]
    if budget not in ("local", "global"):
        raise OptionError(f"inspect expects --pruner local or global, got {budget!r}")
    if "blocks" in options.targets.split(","):
        raise OptionError("an inspection shows what is inside blocks; leave blocks out of --targets")
    # Both budgets are shown. The settings of both come from a global pruner, which has the options of both.
    recipe = check_method(options, recipe_of(options, pruner="global" + options.pruner[len(budget) :]))
    scorers = _scorers(options, recipe.scorer)
    run = make_run(options, load(options, terminal), recipe, terminal)
    ffns = run.find().ffns
    if options.compare is None and any(ffn.mixture is None for ffn in ffns):
        # By default, scorers of whole experts are left out if there is an FFN outside mixtures, which they cannot score.
        main = next(iter(scorers))
        scorers = {name: each for name, each in scorers.items() if name == main or not isinstance(each, ExpertScorer)}
    layers = parts_by_layer(ffns)
    shown = _chosen_layers(layers, choices, options.layers)
    neurons = [parse_neuron(layers, text) for text in options.neuron]
    inspection = inspect_model(run, scorers, next(iter(scorers)), budget)
    with terminal.step("Summarising the graph"):
        summary = summarise_inspection(inspection, shown)
    result = CommandResult(
        {"output": None if options.output is None else str(options.output), "summary": summary.to_dict()}
    )
    print_layers(summary, terminal)
    for name in summary.experts if options.layers is not None else ():
        print_experts(summary, name, terminal)
    meanings = _meanings(options, run, inspection, neurons)
    for layer, neuron in neurons:
        print_neuron(summarise_neuron(inspection, layer, neuron), list(layers).index(layer), terminal)
        if meanings is not None:
            part = inspection.layer(layer).part_of(neuron)
            print_meaning(meanings.of(part.layer.name, neuron - part.start), terminal)
    if meanings is not None and meanings.without_lens is not None:
        terminal.say(f"No tokens are promoted or demoted: {meanings.without_lens}.")
    if options.output is None:
        terminal.print("No files were written; --output DIR writes figures and a page to explore.", style="dim")
        return result
    with terminal.step(f"Writing {options.output}"), atomic_directory(options.output) as partial:
        changes = _loss_changes(options, run, inspection) if "html" in formats else None
        _write_files(partial, summary, formats, options, meanings if options.contexts else None, changes)
    names = sorted(path.name for path in options.output.iterdir())
    terminal.say(f"Wrote {options.output}: {', '.join(names)}.")
    if PAGE in names:
        page = (options.output / PAGE).absolute()
        if not options.open or not webbrowser.open(page.as_uri()):
            terminal.say(f"Open {page} in a browser to explore the model; it needs no network.")
    return result


# --- the options


def _formats(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the formats of ``--format``; raise an error if one of them cannot be written."""
    exchange = exchange_formats()
    known = (*FIGURES, "html", OWN_FORMAT, *exchange, *TABLES)
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
    tables = [name for name in formats if name in TABLES]
    if tables and not options.contexts:
        raise OptionError(f"the format {tables[0]} needs --contexts, which finds the contexts of all neurons")
    if options.contexts and options.output is None:
        raise OptionError(
            "--contexts needs --output, the directory to write; --neuron prints the contexts of one neuron"
        )
    if options.contexts and not {"html", *TABLES} & {*formats}:
        raise OptionError(f"--contexts needs a format that shows them: html, {' or '.join(TABLES)}")
    if options.open and (options.output is None or "html" not in formats):
        raise OptionError("--open needs --output and the format html")
    return formats


def _scorers(options: argparse.Namespace, scorer: BaseScorer) -> dict[str, BaseScorer]:
    """Return the scorers of ``--scorer`` and ``--compare`` by name, the main scorer first."""
    # Scores of whole experts do not tell the neurons of an expert apart.
    of_neurons = [name for name in SCORERS.names() if not issubclass(SCORERS.get(name, BaseScorer), ExpertScorer)]
    names = of_neurons if options.targets == "neurons" else SCORERS.names()
    of_one = [name for name in names if not issubclass(SCORERS.get(name, BaseScorer), AutoScorer)]
    names = of_one if options.compare is None else [name.strip() for name in options.compare.split(",")]
    names = [] if names == ["none"] else names
    if any(issubclass(SCORERS.find(name), AutoScorer) for name in names):
        raise OptionError("auto is no score but a choice of one; leave it out of --compare, or give it as --scorer")
    main = scorer.label() if isinstance(scorer, AutoScorer) else split_spec(options.scorer)[0]
    return {main: scorer, **{name: SCORERS.make(name) for name in names if name != main}}


def _layer_choices(text: str | None) -> list[tuple[int, int] | str] | None:
    """Convert ``--layers``: ``0-3,29`` to pairs (first, last) of layer numbers. Names, which have dots, stay as they are."""
    if text is None:
        return None
    choices: list[tuple[int, int] | str] = []
    for part in map(str.strip, text.split(",")):
        ends = re.fullmatch(r"([0-9]{1,18})\s*(?:-\s*([0-9]{1,18}))?", part)
        if ends is not None and int(ends[2] or ends[1]) >= int(ends[1]):
            choices.append((int(ends[1]), int(ends[2] or ends[1])))
        elif re.fullmatch(r"\w+(\.\w+)+", part):
            choices.append(part)
        else:
            raise OptionError(f"--layers expects numbers and ranges such as 0-3,29, or names of layers, got {text!r}")
    return choices


def _chosen_layers(
    layers: Mapping[str, Mapping[str, int]], choices: Sequence[tuple[int, int] | str] | None, text: str | None
) -> list[str]:
    """Return the names of the chosen layers, or all names if `choices` is None. The name of an expert stands for its mixture."""
    names = list(layers)
    if choices is None:
        return names
    chosen: set[str] = set()
    for choice in choices:
        if isinstance(choice, str):
            chosen.add(find_part(layers, choice)[0])
        elif choice[1] < len(names):
            chosen.update(names[choice[0] : choice[1] + 1])
        else:
            raise OptionError(f"--layers expects prunable layers 0 to {len(names) - 1}, got {text!r}")
    return [name for name in names if name in chosen]


# --- the meanings of neurons


def _meanings(
    options: argparse.Namespace, run: PruningRun, inspection: Inspection, neurons: Sequence[tuple[str, int]]
) -> Meanings | None:
    """Find the meanings of all neurons (``--contexts``) or of some (``--neuron``); return None if no option asks for them."""
    if not neurons and not options.contexts:
        return None
    chosen: dict[str, list[int]] = {}
    for name, neuron in neurons:
        part = inspection.layer(name).part_of(neuron)
        chosen.setdefault(part.layer.name, []).append(neuron - part.start)
    return find_meanings(
        run.model,
        run.tokenizer,
        run.find().ffns,
        inspection.sequences,
        execution=run.execution,
        neurons=None if options.contexts else chosen,
    )


def _loss_changes(options: argparse.Namespace, run: PruningRun, inspection: Inspection) -> LossChanges | None:
    """Measure what the masked model predicts worse than the dense one.

    Return None without ``--contexts``, or if the model predicts no tokens.
    """
    if not options.contexts or not predicts_next_token(run.model):
        return None
    ffns, sequences = run.find().ffns, inspection.sequences
    before = token_losses(run.model, sequences, run.execution)
    with as_masked(ffns, inspection.main.masks[inspection.budget]):
        after = token_losses(run.model, sequences, run.execution)
    return loss_changes(before, after, sequences, run.tokenizer, WORST)


# --- the files


def _write_files(
    directory: Path,
    summary: InspectionSummary,
    formats: Sequence[str],
    options: argparse.Namespace,
    meanings: Meanings | None,
    changes: LossChanges | None,
) -> None:
    inspection = summary.inspection
    text = json.dumps(summary.to_dict(), indent=2, allow_nan=False) + "\n"
    (directory / SUMMARY).write_text(text, encoding="utf-8")
    figures = [name for name in FIGURES if name in formats]
    if figures:
        layers = None if options.layers is None else list(summary.layers)
        write_figures(inspection, directory, figures, options.top, layers)
    if "html" in formats:
        write_page(inspection, directory / PAGE, meanings, changes)
    for name, write in TABLES.items():
        if meanings is not None and name in formats:
            write(meanings, directory / name)
    _write_graphs(directory, inspection, formats, options.top)


def _write_graphs(directory: Path, inspection: Inspection, formats: Sequence[str], top: int) -> None:
    for number, (entry, rank) in enumerate(zip(inspection.graphs, inspection.main.ranks, strict=True)):
        stem = "graph" if len(inspection.graphs) == 1 else f"graph-{number:03}"
        if OWN_FORMAT in formats:
            save_graph(entry.graph, directory / f"{stem}.safetensors")
            save_rank(rank, directory / f"{stem}-rank.safetensors")
        for name, exchange in exchange_formats().items():
            if name in formats and exchange.any_size:
                exchange.write(entry.graph, directory / stem, rank, inspection.source)
            elif name in formats:
                shown = top_subgraph(entry.graph, rank, nodes=top)
                exchange.write(shown, directory / f"{stem}-top", rank, inspection.source)
