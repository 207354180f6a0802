"""The figure of a plan: what several amounts are expected to cost, and what is removed from every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphs.draw.axes import SMALL_FONT
from graphs.draw.colours import FAINT, line_style
from llmrank.inspection.figures import new_figure
from llmrank.pipeline.forecast import Forecast
from llmrank.prune.records.units import Units

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_forecast"]


def draw_forecast(chosen: Forecast, others: Sequence[Forecast], units: Sequence[Units], unit: str) -> Figure:
    """Draw the expected loss by the removed share, and the share that every layer loses by the chosen forecast.

    Parameters
    ----------
    chosen : Forecast
    others : sequence of Forecast
    units : sequence of Units
        Those that are counted, in the order of the model.
    unit : str
        What the shares are of, such as "model parameters".

    Returns
    -------
    matplotlib Figure
        Two plots.
    """
    figure = new_figure(9.5, 3.6)
    curve, layers = figure.subplots(1, 2)
    points = sorted({(each.share, each.loss) for each in (*others, chosen)})
    curve.plot(*zip((0.0, 0.0), *points, strict=True), **{**line_style(0), "markersize": 4})
    curve.axvline(chosen.share, color=FAINT, linewidth=1.0, zorder=0)
    curve.set_xlabel(f"share removed of the {unit}")
    curve.set_ylabel("expected loss as cut")
    curve.xaxis.set_major_formatter("{x:.0%}")
    kinds: dict[str, list[float]] = {}
    for each in units:
        kinds.setdefault(each.target, []).append(1.0 - chosen.kept[each.name] / each.n_units)
    for position, (kind, lost) in enumerate(kinds.items()):
        layers.plot(range(len(lost)), lost, label=kind, **{**line_style(position), "markersize": 4})
    layers.set_xlabel("layer")
    layers.set_ylabel("share removed of the layer")
    layers.yaxis.set_major_formatter("{x:.0%}")
    layers.xaxis.get_major_locator().set_params(integer=True)
    layers.legend(fontsize=SMALL_FONT, frameon=False)
    for axes in (curve, layers):
        axes.set_ylim(bottom=0.0)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
