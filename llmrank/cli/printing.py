"""Tables and pieces of text on a terminal, as several commands print them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from llmrank.cli.terminal import Terminal
from llmrank.evaluation.token_texts import Context

__all__ = ["compact_table", "marked", "print_full_width", "short_names", "shown"]

MAX_TABLE_WIDTH = 1000

# How line breaks and tabs are shown.
MARKS = str.maketrans({"\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\r": "", "\t": "\N{RIGHTWARDS ARROW}"})


def compact_table(*headings: str, left: str = "", **options: Any) -> Table:
    """Return a table with little space between columns, so that it fits a terminal of 80 columns.

    The columns with these headings are aligned at the right, except the column with the heading `left`.
    """
    columns = (Column(each, justify="left" if each == left else "right", no_wrap=True) for each in headings)
    return Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, **options)


def print_full_width(table: Table, terminal: Terminal) -> None:
    """Print a table at its full width, because numbers that are broken over two lines cannot be read."""
    usual = terminal.width
    terminal.width = max(
        usual, Measurement.get(terminal, terminal.options.update(max_width=MAX_TABLE_WIDTH), table).maximum
    )
    terminal.print(table)
    terminal.width = usual


def short_names(names: Iterable[str], all_names: Iterable[str]) -> list[str]:
    """Return `names` without the parts (separated by dots) that all of `all_names` begin with; at least one part remains."""
    split = [name.split(".") for name in all_names]
    n_shared = 0
    while all(len(parts) > n_shared + 1 for parts in split) and len({parts[n_shared] for parts in split}) == 1:
        n_shared += 1
    return [".".join(name.split(".")[n_shared:]) for name in names]


def shown(text: str) -> str:
    r"""Return a text in one line: line breaks and tabs become arrows, and other control characters are escaped.

    Examples
    --------
    >>> shown("one\x1b two")
    'one\\x1b two'
    """
    text = text.translate(MARKS)
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def marked(context: Context) -> Text:
    """Return a token with the text around it. The token is bold and between guillemets, without the space in front of it.

    >>> marked(Context("the cat", " sat", " on")).plain
    'the cat «sat» on'
    """
    token = context.token.lstrip(" ") or context.token
    space = context.token.removesuffix(token)
    return Text.assemble(shown(context.before + space), (f"«{shown(token)}»", "bold"), shown(context.after))
