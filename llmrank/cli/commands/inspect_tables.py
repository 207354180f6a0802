"""The tables and sentences that ``llmrank inspect`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, isnan

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from llmrank.cli.printing import compact_table, marked, print_full_width, short_names, shown
from llmrank.cli.terminal import Terminal
from llmrank.inspection.budgets import amount_label
from llmrank.inspection.inspect_model import Inspection
from llmrank.inspection.meaning.meanings import NeuronMeaning
from llmrank.inspection.mixtures import ExpertSummary
from llmrank.inspection.summary import InspectionSummary, NeuronSummary, Verdict

__all__ = ["print_experts", "print_layers", "print_meaning", "print_neuron"]


def print_layers(summary: InspectionSummary, terminal: Terminal) -> None:
    """Print the table of layers, the meaning of its columns, and how far other scorers agree."""
    inspection = summary.inspection
    numbers = {name: number for number, name in enumerate(inspection.layers)}
    graphs = inspection.graphs
    n_graphs = "1 graph" if len(graphs) == 1 else f"{len(graphs)} graphs"
    terminal.say(
        f"{inspection.source}: {sum(map(len, inspection.main.importance.values())):,} hidden neurons in {len(numbers)} "
        f"layers\n{inspection.topology}, {n_graphs}: {sum(entry.graph.n_nodes for entry in graphs):,} nodes, "
        f"{sum(entry.graph.n_edges for entry in graphs):,} edges; scored by {inspection.scorer}\n"
    )
    print_full_width(_layer_table(summary, numbers), terminal)
    for budget, reason in inspection.budgets.refusals.items():
        terminal.say(f"{budget} pruning refuses this amount: {reason}.")
    terminal.say(_legend(inspection))
    if summary.experts:
        _print_mixtures(summary, numbers, terminal)
    if summary.agreement:
        _print_agreement(summary, terminal)


def _layer_table(summary: InspectionSummary, numbers: Mapping[str, int]) -> Table:
    """Return a table with a row for each chosen layer; `numbers` holds the numbers of all prunable layers by name."""
    layers = summary.layers.values()
    kept = {budget: summary.kept.get(budget) for budget in ("local", "global")}
    totals = {budget: f"{sum(counts.values()):,}" if counts else "" for budget, counts in kept.items()}
    labels = short_names(summary.layers, numbers)
    # Users need the number of a layer for --layers and --neuron. It has a column of its own, unless every label begins with it.
    labels_have_numbers = all(
        label.split(".")[0] == str(numbers[name]) for name, label in zip(summary.layers, labels, strict=True)
    )
    table = compact_table(show_footer=True)
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


def _legend(inspection: Inspection) -> str:
    counts_neurons = isinstance(inspection.amount, int) or inspection.targets == ("neurons",)
    what = "" if counts_neurons else f" of the {inspection.targets[0]}"
    if len(inspection.targets) > 1:
        what = ", in experts and neurons,"
    amount = amount_label(inspection.amount, inspection.targets)
    return (
        "\ndead: number of neurons that are zero on all calibration tokens.\n"
        "effective: as concentrated as if this many neurons shared the score equally.\n"
        "top 1 %: share of the layer's score that the highest 1 % of its neurons have.\n"
        "Gini: 0 if all scores are equal, near 1 if one neuron has the whole score.\n"
        "highest: the neuron with the highest score.\n"
        f"keeps: number of neurons kept if pruning removes {amount}{what} of every layer\n"
        "(local), or of all layers together (global)."
    )


def _print_mixtures(summary: InspectionSummary, numbers: Mapping[str, int], terminal: Terminal) -> None:
    """Print a table with a row for each mixture of experts, and what its columns mean."""
    terminal.print("\nExperts\n")
    headings = ("", "layer", "experts", "dead", "tokens", "score", "local\nkeeps", "global\nkeeps")
    table = compact_table(*headings, left="layer")
    for name, label in zip(summary.experts, short_names(summary.experts, numbers), strict=True):
        routed = [each for each in summary.experts[name] if each.routed]
        n_shared = len(summary.experts[name]) - len(routed)
        table.add_row(
            str(numbers[name]),
            escape(label),
            f"{len(routed)}{f' + {n_shared}' if n_shared else ''}",
            str(sum(each.is_dead for each in routed)),
            _share_range([each.tokens for each in routed]),
            _share_range([each.score for each in routed]),
            *(_kept_widths(routed, budget) for budget in ("local", "global")),
        )
    print_full_width(table, terminal)
    example = next(iter(summary.experts))
    terminal.say(
        "\nexperts: number of experts that a router sends tokens to, + number of shared ones, which get all tokens.\n"
        "dead: number of experts that get no token.\n"
        "tokens: share of the calibration tokens that the least and the most used expert get.\n"
        "score: share of the mixture's score that the lowest and the highest expert have.\n"
        "keeps: number of experts kept, x the neurons that each keeps.\n"
        f"--layers {numbers[example]} lists the experts of {example}."
    )


def print_experts(summary: InspectionSummary, name: str, terminal: Terminal) -> None:
    """Print a table with a row for each expert of a mixture."""
    terminal.print(Text(f"\nExperts of {name}\n", style="bold"))
    table = compact_table("expert", "neurons", "tokens", "weight", "score", "local", "global", left="expert")
    for each in summary.experts[name]:
        table.add_row(
            escape(each.label(name)),
            f"{each.n_neurons:,}",
            "dead" if each.is_dead else f"{each.tokens:.1%}",
            f"{each.weight:.4f}" if each.routed else "shared",
            f"{each.score:.2%}",
            *(_kept_of(each, budget) for budget in ("local", "global")),
        )
    print_full_width(table, terminal)
    terminal.say(
        "\ntokens: share of the calibration tokens that the expert gets; a dead expert gets none.\n"
        "weight: its mean routing weight over all tokens. A shared expert gets all tokens without a router.\n"
        "score: the sum of its neurons' scores, as a share of the mixture's.\n"
        "local, global: number of its neurons that are kept."
    )


def _share_range(shares: Sequence[float]) -> str:
    return f"{min(shares):.1%} to {max(shares):.1%}" if shares else "-"


def _kept_widths(experts: Sequence[ExpertSummary], budget: str) -> str:
    """Return how many experts are kept, and how many neurons each of them keeps, such as ``6 x 24``."""
    if any(budget not in each.kept for each in experts):
        return "refused"
    widths = [each.kept[budget] for each in experts if each.kept[budget]]
    wide = "" if not widths else f" x {min(widths):,}" + (f" to {max(widths):,}" if min(widths) < max(widths) else "")
    return f"{len(widths)}{wide}"


def _kept_of(expert: ExpertSummary, budget: str) -> str:
    if budget not in expert.kept:
        return "refused"
    return f"{expert.kept[budget]:,}" if expert.kept[budget] else "removed"


def _print_agreement(summary: InspectionSummary, terminal: Terminal) -> None:
    inspection = summary.inspection
    of_units = "" if inspection.targets[0] == "neurons" else f" of the {inspection.targets[0]}"
    terminal.say(f"\nDo other scorers keep the same neurons as {inspection.scorer}, {inspection.topology}?\n")
    table = compact_table("scorer", "Spearman", "local", "global", left="scorer")

    def share(value: float) -> str:
        return f"{value:.1%}" if isfinite(value) else "-"

    for name, entry in summary.agreement.items():
        label = f"{inspection.scorer}, {name}" if name == inspection.other_topology else name
        correlation = f"{entry.correlation:.3f}" if isfinite(entry.correlation) else "-"
        table.add_row(escape(label), correlation, share(entry.local), share(entry.global_))
    print_full_width(table, terminal)
    terminal.say(
        f"\nSpearman: correlation of the ranks{of_units}, 1 for the same order, 0 for unrelated orders.\n"
        f"local, global: share of the neurons kept by {inspection.scorer} that the other scorer keeps too."
    )


def print_neuron(neuron: NeuronSummary, number: int, terminal: Terminal) -> None:
    """Print the facts of a neuron in sentences; `number` is the number of its layer."""
    facts = neuron.node
    terminal.print(Text(f"\nNeuron {number}:{facts.node} ({neuron.label})", style="bold"))
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
        terminal.say(line)


def print_meaning(meaning: NeuronMeaning, terminal: Terminal) -> None:
    """Print the contexts in which a neuron is most active, and the tokens that it promotes and demotes."""
    if meaning.contexts:
        terminal.say("most active at the marked tokens (activation):")
    else:
        terminal.say("not active at any token (the first token of a sequence does not count)")
    for each in meaning.contexts:
        terminal.print(Text.assemble(f"  {each.activation:>+9.4g}  ", marked(each.context)))
    for title, tokens in (("promotes", meaning.promoted), ("demotes", meaning.demoted)):
        if tokens:
            words = ", ".join(f"{shown(each.token)!r} ({each.logit:+.3g})" for each in tokens)
            terminal.say(f"{title}, by the logit lens: {words}")


def _verdict_in_words(verdict: Verdict, score: float) -> str:
    """Say whether a neuron of this score is kept, and how near its score is to the cut, for example "kept, 1.3 times the ...".

    The margin is NaN if nothing is on the other side of the cut, or if both scores are 0.
    """
    whole = {"mixture": "expert", "attention": "group of heads"}.get(verdict.among)
    state = ("kept" if verdict.kept else "removed") + (f" with its {whole}" if whole else "")
    other_side = "highest removed score" if verdict.kept else "lowest kept score"
    if isnan(verdict.margin):
        reason = f"no {whole or 'neuron'} of its {verdict.among} is removed"
        return f"{state}; {reason if score > 0 else 'its score is 0'}"
    if not isfinite(verdict.margin):
        return f"{state}; the {other_side} is 0"
    return f"{state}, {'which has ' if whole else ''}{verdict.margin:.3g} times the {other_side} of its {verdict.among}"
