"""The figure of a ledger: how far a healed model is from the dense one, by the tokens that it has learned from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphs.draw.axes import SMALL_FONT
from graphs.draw.colours import FAINT, line_style
from llmrank.healing import Healing
from llmrank.healing.ledger import KINDS
from llmrank.inspection.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_healing"]


def draw_healing(healing: Healing) -> Figure:
    """Draw divergence and perplexity at every measurement, a line for each kind of held-out text.

    Parameters
    ----------
    healing : Healing

    Returns
    -------
    matplotlib Figure
        Two plots. Bars are standard errors, and a vertical line marks the measurement whose weights were kept.
    """
    figure = new_figure(8.5, 3.6)
    divergences, perplexities = figure.subplots(1, 2)
    tokens = [row.tokens for row in healing.rows]
    for position, (kind, name) in enumerate((kind, KINDS[kind]) for kind in healing.start.closeness):
        found = [row.closeness[kind] for row in healing.rows]
        errors = [each.divergence.error or 0.0 for each in found]
        style = {**line_style(position), "markersize": 4}
        divergences.errorbar(tokens, [each.divergence.value for each in found], errors, capsize=2, label=name, **style)
        perplexities.plot(tokens, [each.perplexity for each in found], label=name, **style)
    for axes, label in ((divergences, "KL(dense || model), nats a token"), (perplexities, "perplexity")):
        axes.axvline(healing.best.tokens, color=FAINT, linewidth=1.0, zorder=0)
        axes.set_xlabel("tokens learned from")
        axes.set_ylabel(label)
        axes.set_ylim(0.0, 1.08 * axes.get_ylim()[1])
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=5)
        axes.spines[["top", "right"]].set_visible(False)
    divergences.legend(fontsize=SMALL_FONT, frameon=False)
    share = f"{healing.share_closed:.0%} of the divergence from the dense model is gone"
    figure.suptitle(f"Healing: {share}. The line marks the weights that were kept.", fontsize=10)
    return figure
