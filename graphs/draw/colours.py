"""Colours and line styles that colour-blind readers can tell apart, and logarithmic colour scales."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from graphs.draw.axes import label_log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLOUR_MAP",
    "FAINT",
    "KEPT",
    "LINE_COLOURS",
    "REMOVED",
    "SCORE_REMOVED",
    "add_log_colour_bar",
    "hatch_background",
    "line_style",
    "log_norm",
]

# Blue, vermilion and black from the palette of Okabe and Ito, which colour-blind readers can tell apart, and a grey.
KEPT, REMOVED, SCORE_REMOVED, FAINT = "#0072B2", "#D55E00", "#000000", "#767676"
# Similar hues for thin lines; the contrast with white is at least 3 to 1.
LINE_COLOURS = ("#000000", "#BA5100", "#005F96", "#00835F", "#915476", "#4696C3", "#C58800", "#494949")
# Dashes and markers also tell lines apart in grey print.
DASHES = ("-", "--", "-.", ":", (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (3, 1)), (0, (1, 2.5)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# The lightness of this colour map rises from end to end, also for colour-blind readers.
COLOUR_MAP = "cividis"


def line_style(position: int) -> dict[str, Any]:
    """Choose the colour, dashes and marker of a line; the first eight lines differ in all three.

    Parameters
    ----------
    position : int
        Number of the line, from 0; the ninth line looks like the first.

    Returns
    -------
    dict
        Keyword arguments of matplotlib's ``plot``.

    Examples
    --------
    >>> line_style(1)
    {'color': '#BA5100', 'linestyle': '--', 'marker': 's'}
    """
    return {
        "color": LINE_COLOURS[position % len(LINE_COLOURS)],
        "linestyle": DASHES[position % len(DASHES)],
        "marker": MARKERS[position % len(MARKERS)],
    }


def hatch_background(ax: Axes) -> None:
    """Hatch the background of the axes, so that a cell without a value does not look like a dark one.

    Parameters
    ----------
    ax : matplotlib Axes

    Examples
    --------
    >>> from graphs.draw.axes import new_axes
    >>> ax = new_axes(None)
    >>> hatch_background(ax)
    >>> ax.patch.get_hatch()
    '////'
    """
    ax.patch.set(facecolor="white", edgecolor="#BBBBBB", hatch="////")


def log_norm(values: Any) -> Any:
    """Make a logarithmic colour scale over positive values; zero and negative values get the lowest colour.

    Parameters
    ----------
    values : masked array

    Returns
    -------
    matplotlib.colors.LogNorm
        From the lowest to the highest positive value. If all positive values are equal, a range around them; if there is no
        positive value, a range around 1.

    Examples
    --------
    >>> norm = log_norm(np.ma.masked_equal([0.0, 2.0, 8.0], 0.0))
    >>> norm.vmin, norm.vmax
    (2.0, 8.0)
    """
    from matplotlib.colors import LogNorm

    positive = np.ma.masked_less_equal(values, 0.0).compressed()
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (1.0, 1.0)
    if low == high:
        low, high = max(low / 2, math.ulp(0.0)), min(high * 2.0, sys.float_info.max)
    return LogNorm(low, high, clip=True)


def add_log_colour_bar(ax: Axes, mesh: Any, label: str) -> None:
    """Add a colour bar with at least three numbers for a mesh whose norm is from :func:`log_norm`.

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
    >>> add_log_colour_bar(ax, ax.pcolormesh(cells, norm=log_norm(cells)), "weight")
    >>> [text.get_text() for text in ax.figure.axes[1].get_yticklabels()]
    ['2', '5', '10', '20']
    """
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02)
    bar.set_label(label)
    label_log_axis(bar.ax.yaxis, mesh.norm.vmin, mesh.norm.vmax)
