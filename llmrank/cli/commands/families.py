"""``llmrank families``: the model types of transformers, and whether llmrank could prune a tiny model of each."""

from __future__ import annotations

import argparse
from collections import Counter
from fnmatch import fnmatch

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from llmrank.cli.result import CommandResult
from llmrank.cli.terminal import Terminal
from llmrank.errors import OptionError
from llmrank.models.measured_families import OTHER_TARGETS, measured_families

__all__ = ["run_families"]

# The outcomes of pruning, saving and loading a tiny model. "Stock" transformers is transformers without llmrank.
MEANINGS = {
    "stock": "the checkpoint loads in stock transformers",
    "llmrank.load": "llmrank.load loads the checkpoint, because no field of the configuration states its widths",
    "refused": "llmrank says why it does not prune the model",
    "cannot build": "not known: the tiny model does not run",
}


def run_families(options: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run ``llmrank families``."""
    measured = measured_families()
    pattern = options.pattern or "*"
    # The name of a type is also a part of the names of others.
    matching = (
        [pattern] if pattern in measured.rows else [n for n in measured.rows if pattern in n or fnmatch(n, pattern)]
    )
    rows = {name: measured.rows[name] for name in matching}
    if not rows:
        raise OptionError(f"no model type matches {pattern!r}; `llmrank families` lists all {len(measured.rows)}")
    terminal.say(
        f"Tiny models of the causal language models of transformers {measured.transformers}, saved after "
        f"{measured.neuron_share:.0%} of their neurons, {measured.expert_share:.0%} of their experts, "
        f"{measured.head_share:.0%} of their heads, or {measured.blocks} blocks were removed:"
    )
    counts = [Counter(row[kind] for row in rows.values()) for kind in ("outcome", *OTHER_TARGETS)]
    numbers = (Column(kind, justify="right") for kind in ("models", "mixtures", "heads", "blocks"))
    summary = Table(*numbers, "outcome", "meaning", box=SIMPLE_HEAD)
    for outcome in dict.fromkeys([*MEANINGS, *counts[0]]):
        found = [count[outcome] for count in counts]
        if any(found):
            summary.add_row(*map(str, found), outcome, MEANINGS.get(outcome, ""))
    terminal.print(summary)
    table = Table("model type", "outcome", *OTHER_TARGETS, box=SIMPLE_HEAD)
    for name, row in rows.items():
        table.add_row(name, row["outcome"], *(row[kind] for kind in OTHER_TARGETS))
    terminal.print(table)
    if len(rows) > 1:
        terminal.say("With the name of one type, the command says why something is not stock.")
    elif reason := rows[matching[0]]["reason"]:
        terminal.say(reason)
    terminal.say("Other models work too if their FFNs are found by their shapes.")
    return CommandResult({"transformers": measured.transformers, "families": rows})
