"""Text on figures: shares, and short names of layers."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["LONGEST", "as_literal", "percent", "short_names"]

# Maximum number of letters of a short name.
LONGEST = 22


def percent(share: float) -> str:
    """Format a share as a percentage, with a digit after the point below ten per cent.

    Parameters
    ----------
    share : float
        0 to 1.

    Returns
    -------
    str
        "0 %" and "100 %" only for exactly these shares.

    Examples
    --------
    >>> [percent(share) for share in (0.0, 0.0001, 0.034, 0.5, 0.9996, 1.0)]
    ['0 %', '<0.1 %', '3.4 %', '50 %', '>99 %', '100 %']
    """
    value = 100.0 * share
    # A sum of parts may differ from the whole by rounding errors.
    if value == 0.0 or abs(value - 100.0) < 1e-9:
        return f"{value:.0f} %"
    # Shares that only round to 0 % or 100 % are neither.
    if value < 0.1:
        return "<0.1 %"
    if value >= 99.5:
        return ">99 %"
    return f"{value:.1f} %" if value < 9.95 else f"{value:.0f} %"


def as_literal(text: str) -> str:
    r"""Escape a text so that matplotlib shows it literally: not as a formula, and not left out of the legend.

    Parameters
    ----------
    text : str

    Returns
    -------
    str

    Examples
    --------
    >>> as_literal("$a$")
    '\\$a\\$'
    """
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def short_names(names: Sequence[str]) -> tuple[str, ...]:
    """Shorten the names of layers so that they fit an axis and stay distinct.

    A path is reduced to the part after its first number (the layer of a model), any other name to its last two parts. If that
    would make two names equal, all stay complete. Names that are still long lose their middle, if they stay distinct.

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
    return tuple(as_literal(name) for name in (elided if len(set(elided)) == len(set(names)) else short))


def _tail(name: str) -> str:
    parts = [part for part in re.split(r"[.:/]", name) if part]
    number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    if number is None:
        return " ".join(parts[-2:]) or name
    # A number alone says too little, so the word before it is kept too.
    first = number - 1 if number == len(parts) - 1 else number
    return " ".join(parts[max(first, 0) :])
