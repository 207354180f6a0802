"""Colours of figures: palettes that survive grey print and colour-blind readers, and logarithmic colour scales."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from graphs.draw.axes import number_logs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLOUR_MAP",
    "FAINT",
    "KEPT",
    "LINES",
    "LOST",
    "REMOVED",
    "hatch_missing",
    "line_look",
    "log_colour_bar",
    "log_colours",
]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
KEPT, REMOVED, LOST, FAINT = "#0072B2", "#D55E00", "#000000", "#767676"
# The same hues, as dark as it takes for a thin line to stand out on white as 3 to 1, and as far apart as then is possible.
LINES = ("#000000", "#BA5100", "#005F96", "#00835F", "#915476", "#4696C3", "#C58800", "#494949")
# Grey prints and colour-blind readers follow a line by its dashes, and find its end by its marker.
DASHES = ("-", "--", "-.", ":", (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (3, 1)), (0, (1, 2.5)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Monotone in lightness, and the same to the colour-blind.
COLOUR_MAP = "cividis"


def line_look(position: int) -> dict[str, Any]:
    """Colour, dashes and marker of a line; eight of them differ in each.

    Parameters
    ----------
    position : int
        Number of the line, from 0; the ninth looks like the first.

    Returns
    -------
    dict
        For matplotlib's ``plot``.

    Examples
    --------
    >>> line_look(1)
    {'color': '#BA5100', 'linestyle': '--', 'marker': 's'}
    """
    return {
        "color": LINES[position % len(LINES)],
        "linestyle": DASHES[position % len(DASHES)],
        "marker": MARKERS[position % len(MARKERS)],
    }


def hatch_missing(ax: Axes) -> None:
    """Hatch the background, so that a cell without a value differs from the darkest one.

    Parameters
    ----------
    ax : matplotlib Axes

    Examples
    --------
    >>> from graphs.draw.axes import new_axes
    >>> ax = new_axes(None)
    >>> hatch_missing(ax)
    >>> ax.patch.get_hatch()
    '////'
    """
    ax.patch.set(facecolor="white", edgecolor="#BBBBBB", hatch="////")


def log_colours(values: Any) -> Any:
    """A logarithmic norm over positive values; what is not positive takes the lowest colour.

    Parameters
    ----------
    values : masked array

    Returns
    -------
    matplotlib.colors.LogNorm
        From the lowest to the highest of them; around the only one, and around 1 where there is none.

    Examples
    --------
    >>> norm = log_colours(np.ma.masked_equal([0.0, 2.0, 8.0], 0.0))
    >>> norm.vmin, norm.vmax
    (2.0, 8.0)
    """
    from matplotlib.colors import LogNorm

    positive = np.ma.masked_less_equal(values, 0.0).compressed()
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (1.0, 1.0)
    if low == high:
        low, high = max(low / 2, math.ulp(0.0)), min(high * 2.0, sys.float_info.max)
    return LogNorm(low, high, clip=True)


def log_colour_bar(ax: Axes, mesh: Any, label: str) -> None:
    """The colour bar of a mesh normed by :func:`log_colours`, with three numbers on it at least.

    Values often span less than a decade, where logarithmic ticks would leave the bar without any.

    Parameters
    ----------
    ax : matplotlib Axes
    mesh : matplotlib ScalarMappable
    label : str

    Examples
    --------
    >>> from graphs.draw.axes import new_axes
    >>> ax = new_axes(None)
    >>> cells = np.ma.array([[1.5, 24.0]])
    >>> log_colour_bar(ax, ax.pcolormesh(cells, norm=log_colours(cells)), "weight")
    >>> [text.get_text() for text in ax.figure.axes[1].get_yticklabels()]
    ['2', '5', '10', '20']
    """
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02)
    bar.set_label(label)
    number_logs(bar.ax.yaxis, mesh.norm.vmin, mesh.norm.vmax)
