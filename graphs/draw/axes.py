"""Axes without global state, and text that fits them."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphs.draw.wording import short_names
from graphs.linalg.blocks import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "LETTER",
    "LINE",
    "SMALL",
    "fitted",
    "label_layers",
    "log_ticks",
    "new_axes",
    "number_logs",
    "room",
    "whole_ticks",
]

# Points; no text of a figure is smaller.
SMALL = 8.0
# Inches that an average letter of SMALL takes, and a line of them.
LETTER, LINE = 0.065, 0.15


def new_axes(ax: Axes | None) -> Axes:
    """`ax` itself, or the axes of a new figure of 8 x 4 inches, without pyplot: no global state, no window.

    Parameters
    ----------
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> new_axes(None).figure.get_size_inches().tolist()
    [8.0, 4.0]
    """
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(8, 4), layout="constrained").subplots()


def room(ax: Axes) -> tuple[float, float]:
    """Width and height of the axes in inches, as far as known before the layout is done.

    Parameters
    ----------
    ax : matplotlib Axes

    Returns
    -------
    width, height : float

    Examples
    --------
    >>> width, height = room(new_axes(None))
    >>> 4 < width < 8 and 2 < height < 4
    True
    """
    box = ax.get_window_extent()
    dpi = ax.figure.dpi
    return float(box.width / dpi), float(box.height / dpi)


def fitted(ax: Axes, text: str, size: float, beside: float = 0.0, *, upright: bool = False) -> str:
    """`text` in `size` points, broken into lines that are no longer than the axes are wide, or high.

    Parameters
    ----------
    ax : matplotlib Axes
    text : str
    size : float
    beside : float
        Inches that a legend beside the axes takes, or names below them.
    upright : bool
        Along the y axis.

    Returns
    -------
    str
        Words longer than a line stay whole, and a number stays with its unit.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> narrow = Figure(figsize=(4, 3)).subplots()
    >>> fitted(narrow, "Edges of the first layer to those of the second: mean weight, 12 %", 10.0).splitlines()
    ['Edges of the first layer to those of the second:', 'mean weight, 12 %']
    """
    length = room(ax)[upright] - beside
    letters = max(20, int(length * 1.1 / (LETTER / SMALL * 0.86 * size)))
    # A number stays with its unit.
    lines = [textwrap.wrap(line, letters) for line in text.replace(" %", "\N{NO-BREAK SPACE}%").split("\n")]
    return "\n".join(part for line in lines for part in line).replace("\N{NO-BREAK SPACE}%", " %")


def label_layers(ax: Axes, names: Sequence[str], positions: FloatArray | None = None, beside: float = 0.0) -> float:
    """Write the short names of layers under the x axis: slanted or only every so many where they would overlap.

    Parameters
    ----------
    ax : matplotlib Axes
        Its x limits are final.
    names : sequence of n str
    positions : (n,) array, optional
        Where on the axis; 0, 1, ... by default.
    beside : float
        Inches of the width that a legend beside the axes takes.

    Returns
    -------
    float
        The height in inches that slanted names take from the axes, 0 for level ones.

    Examples
    --------
    >>> ax = new_axes(None)
    >>> ax.set_xlim(-0.5, 1.5)
    (-0.5, 1.5)
    >>> label_layers(ax, ["model.layers.0.mlp:input", "model.layers.0.mlp"])
    0.0
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['0 mlp input', '0 mlp']
    """
    places = np.arange(len(names), dtype=float) if positions is None else positions
    labels = short_names(names)
    low, high = ax.get_xlim()
    pitch = max(room(ax)[0] - beside, LINE) / max(abs(high - low), 1e-9)
    if len(places) > 1:
        pitch *= float(np.diff(places).min())
    longest = LETTER * max(map(len, labels))
    if pitch >= longest + 0.1:
        ax.set_xticks(places, labels, fontsize=SMALL)
        return 0.0
    every = max(1, int(np.ceil(LINE * 1.15 / max(pitch, 1e-9))))
    slanted: dict[str, Any] = {"rotation": 45, "horizontalalignment": "right", "rotation_mode": "anchor"}
    ax.set_xticks(places[::every], labels[::every], fontsize=SMALL, **slanted)
    return longest * 0.71


def whole_ticks(*axes: Any) -> None:
    """Number axes of nodes or layers by whole numbers only: there is no layer 0.5.

    Parameters
    ----------
    *axes : matplotlib Axis

    Examples
    --------
    >>> ax = new_axes(None)
    >>> ax.set_xlim(0, 2)
    (0.0, 2.0)
    >>> whole_ticks(ax.xaxis)
    >>> ax.get_xticks().tolist()
    [0.0, 1.0, 2.0]
    """
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every decade between two numbers; round numbers where that leaves fewer than three.

    Parameters
    ----------
    low, high : float
        Positive.

    Returns
    -------
    list of 3 to 9 float
        Of many decades the powers of ten only, and of very many some.

    Examples
    --------
    >>> log_ticks(1.5, 24.0), [round(tick, 1) for tick in log_ticks(0.44, 1.42)]
    ([2.0, 5.0, 10.0, 20.0], [0.6, 0.8, 1.0, 1.2, 1.4])
    """
    from matplotlib.ticker import MaxNLocator

    decades = range(math.floor(math.log10(low)), min(math.ceil(math.log10(high)), sys.float_info.max_10_exp) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5) if low <= digit * 10.0**decade <= high]
    if len(ticks) > 9:
        ticks = [10.0**decade for decade in decades if low <= 10.0**decade <= high]
        ticks = ticks[:: math.ceil(len(ticks) / 9)]
    if len(ticks) < 3 and 1e-290 < low < high < 1e290:
        even = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        ticks = [float(tick) for tick in even if low <= tick <= high]
    if 3 <= len(ticks) <= 9:
        return ticks
    # Not geomspace, which overflows before its end does.
    steps = low * np.exp(np.linspace(0.0, 1.0, 5) * (math.log(high) - math.log(low)))
    return [float(tick) for tick in np.clip(steps, low, high)]


def number_logs(axis: Any, low: float, high: float, *, logarithms: bool = False) -> None:
    """Number a logarithmic axis by plain numbers, three at least, with as many digits as tell them apart.

    matplotlib's own ticks would leave an axis of less than a decade without any, or write 4 x 10^-1 for 0.4.

    Parameters
    ----------
    axis : matplotlib Axis
    low, high : float
        Positive; where the numbers begin and end.
    logarithms : bool
        The axis is a linear one of decimal logarithms.

    Examples
    --------
    >>> ax = new_axes(None)
    >>> ax.set_xscale("log")
    >>> number_logs(ax.xaxis, 1.0, 1.002)
    >>> [text.get_text() for text in ax.get_xticklabels()]
    ['1', '1.0005', '1.001', '1.0015', '1.002']
    """
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    ticks = log_ticks(low, high)
    texts = [[f"{tick:.{digits}g}" for tick in ticks] for digits in (*range(3, 12), 17)]
    axis.set_major_locator(FixedLocator([math.log10(tick) for tick in ticks] if logarithms else ticks))
    axis.set_major_formatter(FixedFormatter(next((t for t in texts if len(set(t)) == len(t)), texts[0])))
    axis.set_minor_locator(NullLocator())
    axis.set_tick_params(labelsize=SMALL)
