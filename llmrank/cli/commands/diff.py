"""``llmrank diff``: how two pruned checkpoints, or two rankings, of one model differ."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from math import isfinite
from typing import Any

from rich.markup import escape

from llmrank.cli.options import check_output_file
from llmrank.cli.printing import compact_table, print_full_width
from llmrank.cli.result import CommandResult, write_result
from llmrank.cli.terminal import Terminal
from llmrank.inspection.difference import LayerDifference, RunDifference, compare_runs, read_run

__all__ = ["run_diff"]

# Matches a sha256. Only its first 12 digits are shown, which is enough to see that two of them differ.
DIGEST = re.compile("([0-9a-f]{12})[0-9a-f]{52}")


def run_diff(options: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run ``llmrank diff``."""
    check_output_file(options.output)
    difference = compare_runs(read_run(options.a), read_run(options.b))
    terminal.say(f"A: {options.a}\nB: {options.b}\n")
    if difference.layers:
        _print_layers(difference, terminal)
    elif difference.widths:
        _print_table(
            "widths", [(name, *pair) for name, pair in difference.widths.items() if pair[0] != pair[1]], terminal
        )
    if difference.correlations:
        rows = [(name, _number(value)) for name, value in difference.correlations.items()]
        _print_table("Spearman's correlation of the scores", rows, terminal, headings=("", ""))
    _print_table("outcomes", [(name, *map(_number, pair)) for name, pair in difference.outcomes.items()], terminal)
    _print_table("settings that differ", [(name, *pair) for name, pair in difference.settings.items()], terminal)
    for note in difference.notes:
        terminal.say(f"Note: {note}.")
    content = difference.to_dict()
    write_result(content, options.output)
    return CommandResult(content)


def _print_layers(difference: RunDifference, terminal: Terminal) -> None:
    """Print a table with a row for each layer and a row of sums, and what the columns mean."""
    table = compact_table(show_footer=True)
    layers = difference.layers.values()
    sums = [sum(values) for values in zip(*map(_counts, layers), strict=True)]
    footers = ["all", *(f"{value:,}" for value in sums), f"{sum(layer.expected for layer in layers):,.0f}", ""]
    headings = ("layer", "neurons", "A keeps", "B keeps", "both", "only A", "only B", "by chance", "kappa")
    for heading, footer in zip(headings, footers, strict=True):
        table.add_column(heading, footer, justify="left" if heading == "layer" else "right", no_wrap=True)
    for name, layer in difference.layers.items():
        kappa = "-" if layer.kappa is None else f"{layer.kappa:.3f}"
        table.add_row(escape(name), *(f"{value:,}" for value in _counts(layer)), f"{layer.expected:,.0f}", kappa)
    print_full_width(table, terminal)
    terminal.say(
        "\nboth: number of neurons that both keep; by chance: the number if B's choice had nothing to do with A's.\n"
        "kappa: agreement of the keep masks, 1 if they are equal, 0 if they agree as by chance (Cohen's kappa).\n"
    )


def _counts(layer: LayerDifference) -> tuple[int, ...]:
    return (layer.size, *layer.widths, layer.both, layer.only_a, layer.only_b)


def _print_table(
    title: str, rows: Iterable[tuple[Any, ...]], terminal: Terminal, headings: tuple[str, ...] = ("", "A", "B")
) -> None:
    """Print a table unless it has no rows."""
    rows = list(rows)
    if not rows:
        return
    table = compact_table()
    for heading in (title, *headings[1:]):
        table.add_column(escape(heading), overflow="fold")
    for row in rows:
        table.add_row(*("-" if value is None else escape(DIGEST.sub(r"\1", str(value))) for value in row))
    terminal.print(table)
    terminal.print()


def _number(value: Any) -> str | None:
    if isinstance(value, float):
        return f"{value:,.4g}" if isfinite(value) else "-"
    return None if value is None else f"{value:,}" if isinstance(value, int) else str(value)
