"""Axes of figures: new axes, ticks, names of layers, and text that fits the axes."""

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
    "LETTER_WIDTH",
    "LINE_HEIGHT",
    "SMALL_FONT",
    "label_layers",
    "label_log_axis",
    "log_ticks",
    "new_axes",
    "size_in_inches",
    "use_whole_ticks",
    "wrap_to_axes",
]

# Font size in points; no text of a figure is smaller.
SMALL_FONT = 8.0
# Average width of a letter and height of a line at this font size, in inches.
LETTER_WIDTH, LINE_HEIGHT = 0.065, 0.15


def new_axes(ax: Axes | None) -> Axes:
    """Return `ax`, or the axes of a new figure of 8 x 4 inches, made without the global state of pyplot.

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


def size_in_inches(ax: Axes) -> tuple[float, float]:
    """Measure the width and height of the axes in inches, before the layout is computed.

    Parameters
    ----------
    ax : matplotlib Axes

    Returns
    -------
    width, height : float

    Examples
    --------
    >>> width, height = size_in_inches(new_axes(None))
    >>> 4 < width < 8 and 2 < height < 4
    True
    """
    box = ax.get_window_extent()
    dpi = ax.figure.dpi
    return float(box.width / dpi), float(box.height / dpi)


def wrap_to_axes(ax: Axes, text: str, font_size: float = 10.0, reserved: float = 0.0, *, upright: bool = False) -> str:
    """Break a text into lines that are about as long as the axes are wide, or as they are high if the text is upright.

    Parameters
    ----------
    ax : matplotlib Axes
    text : str
    font_size : float
        In points.
    reserved : float
        Inches of the width or height of the axes that a legend or labels will take.
    upright : bool
        Whether the text runs along the y axis.

    Returns
    -------
    str
        A number and its "%" stay on one line. A line has up to 20 letters even if the axes are narrower.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> narrow = Figure(figsize=(4, 3)).subplots()
    >>> wrap_to_axes(narrow, "Edges of the first layer to those of the second: mean weight, 12 %").splitlines()
    ['Edges of the first layer to those of the second:', 'mean weight, 12 %']
    """
    length = size_in_inches(ax)[upright] - reserved
    letters = max(20, int(length * 1.1 / (LETTER_WIDTH / SMALL_FONT * 0.86 * font_size)))
    lines = [textwrap.wrap(line, letters) for line in text.replace(" %", "\N{NO-BREAK SPACE}%").split("\n")]
    return "\n".join(part for line in lines for part in line).replace("\N{NO-BREAK SPACE}%", " %")


def label_layers(ax: Axes, names: Sequence[str], positions: FloatArray | None = None, reserved: float = 0.0) -> float:
    """Write the short names of layers below the x axis; if they would overlap, slant them and write as many as fit.

    Parameters
    ----------
    ax : matplotlib Axes
        The x limits must be final.
    names : sequence of n str
    positions : (n,) array, optional
        Positions of the names on the axis, ascending; 0, 1, ... by default.
    reserved : float
        Inches of the width of the axes that a legend will take.

    Returns
    -------
    float
        Height in inches of slanted names; 0 for horizontal names.

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
    # The distance from one name to the next, in inches.
    pitch = max(size_in_inches(ax)[0] - reserved, LINE_HEIGHT) / max(abs(high - low), 1e-9)
    if len(places) > 1:
        pitch *= float(np.diff(places).min())
    longest = LETTER_WIDTH * max(map(len, labels))
    if pitch >= longest + 0.1:
        ax.set_xticks(places, labels, fontsize=SMALL_FONT)
        return 0.0
    every = max(1, int(np.ceil(LINE_HEIGHT * 1.15 / max(pitch, 1e-9))))
    slanted: dict[str, Any] = {"rotation": 45, "horizontalalignment": "right", "rotation_mode": "anchor"}
    ax.set_xticks(places[::every], labels[::every], fontsize=SMALL_FONT, **slanted)
    return longest * 0.71  # at 45 degrees


def use_whole_ticks(*axes: Any) -> None:
    """Put ticks at whole numbers only, for axes of nodes or layers.

    Parameters
    ----------
    *axes : matplotlib Axis

    Examples
    --------
    >>> ax = new_axes(None)
    >>> ax.set_xlim(0, 2)
    (0.0, 2.0)
    >>> use_whole_ticks(ax.xaxis)
    >>> ax.get_xticks().tolist()
    [0.0, 1.0, 2.0]
    """
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def log_ticks(low: float, high: float) -> list[float]:
    """Choose ticks of a logarithmic axis between two numbers.

    Parameters
    ----------
    low, high : float
        Positive.

    Returns
    -------
    list of 3 to 9 float
        1, 2 and 5 times powers of ten. In a range too wide for these, only powers of ten; in a range too narrow, evenly spaced
        round numbers or a geometric progression.

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
    # numpy.geomspace would overflow for large floats.
    steps = low * np.exp(np.linspace(0.0, 1.0, 5) * (math.log(high) - math.log(low)))
    return [float(tick) for tick in np.clip(steps, low, high)]


def label_log_axis(axis: Any, low: float, high: float, *, logarithms: bool = False) -> None:
    """Write at least three numbers at a logarithmic axis, with as many digits as are needed to tell them apart.

    On an axis of less than a decade, matplotlib's own ticks can be without numbers.

    Parameters
    ----------
    axis : matplotlib Axis
    low, high : float
        Lowest and highest number, positive.
    logarithms : bool
        Whether the axis is linear and its values are decimal logarithms of the numbers.

    Examples
    --------
    >>> ax = new_axes(None)
    >>> ax.set_xscale("log")
    >>> label_log_axis(ax.xaxis, 1.0, 1.002)
    >>> [text.get_text() for text in ax.get_xticklabels()]
    ['1', '1.0005', '1.001', '1.0015', '1.002']
    """
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    ticks = log_ticks(low, high)
    texts = [[f"{tick:.{digits}g}" for tick in ticks] for digits in (*range(3, 12), 17)]
    axis.set_major_locator(FixedLocator([math.log10(tick) for tick in ticks] if logarithms else ticks))
    axis.set_major_formatter(FixedFormatter(next((t for t in texts if len(set(t)) == len(t)), texts[0])))
    axis.set_minor_locator(NullLocator())
    axis.set_tick_params(labelsize=SMALL_FONT)
