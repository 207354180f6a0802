"""The tables that ``llmrank evaluate --contexts`` prints."""

from __future__ import annotations

from math import isfinite

from rich.text import Text

from llmrank.cli.printing import compact_table, marked, print_full_width, shown
from llmrank.cli.terminal import Terminal
from llmrank.evaluation.token_losses import ChangedToken, LossChanges

__all__ = ["print_loss_changes"]


def print_loss_changes(changes: LossChanges, terminal: Terminal) -> None:
    """Print the losses by kind of token, and the tokens whose loss in the pruned model is most above that in the dense model."""
    terminal.say("\nWhich tokens does the pruned model predict worse? Mean loss in nats\n")
    headings = ("predicted token", "tokens", "dense", "pruned", "change", "error", "of total")
    table = compact_table(*headings, left="predicted token")
    groups = list(changes.kinds.values())
    for number, kinds in enumerate((*groups, {"all": changes.all})):
        for name, kind in kinds.items():
            table.add_row(
                name,
                f"{kind.change.count:,}",
                f"{kind.before:.3f}",
                f"{kind.after:.3f}",
                f"{kind.change.value:+.3f}",
                "" if kind.change.error is None else f"{kind.change.error:.3f}",
                f"{kind.share_of_change:.1%}" if isfinite(kind.share_of_change) else "-",
            )
        if number < len(groups):
            table.add_section()
    print_full_width(table, terminal)
    terminal.say(
        "\nword beginning, word continuation: behind a letter or digit a token continues a word.\n"
        "frequent: the commonest tokens of the text, which together make up half of it; rare: the others.\n"
        "repeated: a token that occurs earlier in its sequence; new: any other.\n"
        "of total: the part of the whole change."
    )
    if changes.worst:
        terminal.say("\nThe tokens that lose the most\n")
    for each in changes.worst:
        terminal.print(Text.assemble("  ", marked(each.context)), soft_wrap=True)
        terminal.print(Text(f"    {_sides(each)}", style="dim"), soft_wrap=True)


def _sides(token: ChangedToken) -> str:
    return (
        f"dense {token.before:.2%}, predicts {shown(token.predicted_before)!r} ({token.probability_before:.1%}); "
        f"pruned {token.after:.2%}, predicts {shown(token.predicted_after)!r} ({token.probability_after:.1%})"
    )
