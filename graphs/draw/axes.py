"""What the figures share: axes without global state, a palette, the names of layers, and what they accept."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphs.blocks import FloatArray, as_numpy
from graphs.errors import GraphError
from graphs.result import RankResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLOUR_MAP",
    "KEPT",
    "LINES",
    "LOST",
    "REMOVED",
    "SMALL",
    "fitted",
    "hatch_missing",
    "label_layers",
    "layer_labels",
    "line_look",
    "log_colour_bar",
    "log_colours",
    "new_axes",
    "percent",
    "plain",
    "room",
    "score_vectors",
    "short_names",
]

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
KEPT, REMOVED, LOST = "#0072B2", "#D55E00", "#000000"
LINES = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999")
# Grey prints and colour-blind readers follow a line by its dashes, and find its end by its marker.
DASHES = ("-", "--", "-.", ":", (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (3, 1)), (0, (1, 2.5)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Monotone in lightness, and the same to the colour-blind.
COLOUR_MAP = "cividis"
# Points; no text of a figure is smaller.
SMALL = 8.0
# Inches that an average letter of SMALL takes, and a line of them.
LETTER, LINE = 0.065, 0.15
LONGEST = 22


def new_axes(ax: Axes | None) -> Axes:
    """`ax` itself, or the axes of a new figure of 8 x 4 inches, without pyplot: no global state, no window.

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

    Examples
    --------
    >>> width, height = room(new_axes(None))
    >>> 4 < width < 8 and 2 < height < 4
    True
    """
    box = ax.get_window_extent()
    dpi = ax.figure.dpi
    return float(box.width / dpi), float(box.height / dpi)


def fitted(ax: Axes, text: str, size: float, beside: float = 0.0) -> str:
    """`text` in `size` points, broken into lines that are no longer than the axes are wide.

    Parameters
    ----------
    ax : matplotlib Axes
    text : str
    size : float
    beside : float
        Inches of the width that a legend beside the axes takes.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> narrow = Figure(figsize=(4, 3)).subplots()
    >>> fitted(narrow, "Edges of the first layer to those of the second: mean weight, 12 %", 10.0).splitlines()
    ['Edges of the first layer to those of the second:', 'mean weight, 12 %']
    """
    letters = max(20, int((room(ax)[0] - beside) * 1.1 / (LETTER / SMALL * 0.86 * size)))
    # A number stays with its unit.
    lines = [textwrap.wrap(line, letters) for line in text.replace(" %", "\N{NO-BREAK SPACE}%").split("\n")]
    return "\n".join(part for line in lines for part in line).replace("\N{NO-BREAK SPACE}%", " %")


def line_look(position: int) -> dict[str, Any]:
    """Colour, dashes and marker of line number `position`; eight of them differ in each.

    Examples
    --------
    >>> line_look(1)
    {'color': '#D55E00', 'linestyle': '--', 'marker': 's'}
    """
    return {
        "color": LINES[position % len(LINES)],
        "linestyle": DASHES[position % len(DASHES)],
        "marker": MARKERS[position % len(MARKERS)],
    }


def percent(share: float) -> str:
    """A share as text, with a digit after the point below ten per cent.

    Examples
    --------
    >>> [percent(share) for share in (0.0, 0.0001, 0.034, 0.5, 0.9996, 1.0)]
    ['0 %', '<0.1 %', '3.4 %', '50 %', '>99 %', '100 %']
    """
    value = 100.0 * share
    # Sums of parts may miss the whole by their rounding errors.
    if value == 0.0 or abs(value - 100.0) < 1e-9:
        return f"{value:.0f} %"
    # What rounds to nothing or to all of it is neither.
    if value < 0.1:
        return "<0.1 %"
    if value >= 99.5:
        return ">99 %"
    return f"{value:.1f} %" if value < 9.95 else f"{value:.0f} %"


def plain(text: str) -> str:
    r"""`text` as matplotlib shows it literally: no formulas, no hidden legend entries.

    Examples
    --------
    >>> plain("$a$")
    '\\$a\\$'
    """
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def short_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of layers as short as an axis wants them, still distinct.

    A path is cut down to what follows its first number (the layer of a model), any other to its last two parts. Where
    that would make two names equal, all stay whole; what is still long loses its middle, if that keeps them distinct.

    Parameters
    ----------
    names : sequence of str
        Distinct.

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> short_names(["model.layers.3.mlp:input", "model.layers.3.mlp"])
    ('3 mlp input', '3 mlp')
    >>> short_names(["layer 0", "layer 1"])
    ('layer 0', 'layer 1')
    >>> short_names(["encoder.layers.0.mlp", "decoder.layers.0.mlp"])
    ('encoder.layers.0.mlp', 'decoder.layers.0.mlp')
    """
    short = [_tail(name) for name in names]
    if len(set(short)) < len(set(names)):
        short = list(names)
    half = LONGEST // 2
    elided = [name if len(name) <= LONGEST else f"{name[: half - 1]}…{name[-half:]}" for name in short]
    return tuple(plain(name) for name in (elided if len(set(elided)) == len(set(names)) else short))


def _tail(name: str) -> str:
    parts = [part for part in re.split(r"[.:/]", name) if part]
    number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    if number is None:
        return " ".join(parts[-2:]) or name
    # A number alone says too little.
    first = number - 1 if number == len(parts) - 1 else number
    return " ".join(parts[max(first, 0) :])


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


def hatch_missing(ax: Axes) -> None:
    """Hatch the background, so that a cell without a value differs from the darkest one.

    Examples
    --------
    >>> ax = new_axes(None)
    >>> hatch_missing(ax)
    >>> ax.patch.get_hatch()
    '////'
    """
    ax.patch.set(facecolor="white", edgecolor="#BBBBBB", hatch="////")


def log_colours(values: Any) -> Any:
    """A logarithmic norm over the positive ones of a masked array; what is not positive takes the lowest colour.

    Examples
    --------
    >>> norm = log_colours(np.ma.masked_equal([0.0, 2.0, 8.0], 0.0))
    >>> norm.vmin, norm.vmax
    (2.0, 8.0)
    """
    from matplotlib.colors import LogNorm

    positive = np.ma.masked_less_equal(values, 0.0).compressed()
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (1.0, 1.0)
    return LogNorm(low, high, clip=True) if low < high else LogNorm(low / 2, high * 2, clip=True)


def log_colour_bar(ax: Axes, mesh: Any, label: str) -> None:
    """The colour bar of a mesh normed by :func:`log_colours`, with three numbers on it at least.

    Values often span less than a decade, where logarithmic ticks would leave the bar without any.

    Examples
    --------
    >>> ax = new_axes(None)
    >>> cells = np.ma.array([[1.5, 24.0]])
    >>> log_colour_bar(ax, ax.pcolormesh(cells, norm=log_colours(cells)), "weight")
    >>> [text.get_text() for text in ax.figure.axes[1].get_yticklabels()]
    ['2', '5', '10', '20']
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02)
    bar.set_label(label)
    bar.ax.yaxis.set_major_locator(FixedLocator(_colour_ticks(mesh.norm.vmin, mesh.norm.vmax)))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    bar.ax.tick_params(labelsize=SMALL)


def _colour_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every decade between two numbers, or five even steps where that leaves fewer than three."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5) if low <= digit * 10.0**decade <= high]
    # Of many decades the powers of ten are enough, and of very many some.
    if len(ticks) > 9:
        ticks = [10.0**decade for decade in decades if low <= 10.0**decade <= high]
        ticks = ticks[:: math.ceil(len(ticks) / 9)]
    return ticks if len(ticks) >= 3 else np.geomspace(low, high, 5).tolist()


def layer_labels(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """`names` in full, or "layer 0" and so on.

    Raises
    ------
    GraphError
        Another number of names, or names that are not distinct.

    Examples
    --------
    >>> layer_labels(None, 2)
    ('layer 0', 'layer 1')
    """
    if names is None:
        return tuple(f"layer {layer}" for layer in range(count))
    labels = tuple(str(name) for name in names)
    if len(labels) != count or len(set(labels)) != count:
        raise GraphError(f"expected {count} distinct names, one a layer, got {len(labels)}: {', '.join(labels[:8])}")
    return labels


def score_vectors(scores: Sequence[Any]) -> list[FloatArray]:
    """The scores of every layer as float64 vectors.

    Parameters
    ----------
    scores : sequence of (n_l,) array-likes
        Non-negative and finite; numpy or torch.

    Returns
    -------
    list of (n_l,) float64 arrays

    Raises
    ------
    GraphError
        No layer, an empty one, several scores a node, negative or non-finite scores.

    Examples
    --------
    >>> score_vectors([[1, 3]])
    [array([1., 3.])]
    """
    if isinstance(scores, RankResult):
        raise GraphError("expected the scores of every layer, got a RankResult; pass its `scores`")
    vectors: list[FloatArray] = []
    for layer, given in enumerate(scores):
        array = as_numpy(given)
        if array.ndim != 1 or not len(array) or array.dtype.kind not in "fiub":
            raise GraphError(
                f"scores of layer {layer}: expected a vector of numbers, one a node, got shape {array.shape} of dtype "
                f"{array.dtype}; of several ranks pick a column"
            )
        vector = array.astype(np.float64)
        if not (np.isfinite(vector).all() and vector.min() >= 0.0):
            raise GraphError(
                f"scores of layer {layer}: expected non-negative finite numbers, got {vector.min()} to {vector.max()}; "
                "take absolute values or repair them first"
            )
        vectors.append(vector)
    if not vectors:
        raise GraphError("expected the scores of at least one layer, got none")
    return vectors
