"""Words on figures: shares, and names as short as an axis wants them."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["LONGEST", "percent", "plain", "short_names"]

# Letters of the longest short name.
LONGEST = 22


def percent(share: float) -> str:
    """A share as text, with a digit after the point below ten per cent.

    Parameters
    ----------
    share : float
        0 to 1.

    Returns
    -------
    str
        "0 %" and "100 %" of nothing and all of it only.

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

    Parameters
    ----------
    text : str

    Returns
    -------
    str

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
