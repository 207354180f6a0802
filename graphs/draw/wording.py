"""Text on figures: percentages, and short names of layers."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["MAX_CHARACTERS", "as_literal", "percent", "short_names"]

# Longer names lose their middle.
MAX_CHARACTERS = 22


def percent(share: float) -> str:
    """Format a share as a percentage, with one decimal below ten per cent.

    Parameters
    ----------
    share : float
        0 to 1.

    Returns
    -------
    str
        "0 %" only for 0, and "100 %" only for 1 (up to round-off).

    Examples
    --------
    >>> [percent(share) for share in (0.0, 0.0001, 0.034, 0.5, 0.9996, 1.0)]
    ['0 %', '<0.1 %', '3.4 %', '50 %', '>99 %', '100 %']
    """
    value = 100.0 * share
    # A sum of parts can differ from the whole by round-off.
    if value == 0.0 or abs(value - 100.0) < 1e-9:
        return f"{value:.0f} %"
    if value < 0.1:
        return "<0.1 %"
    if value >= 99.5:
        return ">99 %"
    return f"{value:.1f} %" if value < 9.95 else f"{value:.0f} %"


def as_literal(text: str) -> str:
    r"""Escape a text so that matplotlib reads no formulas in it, and shows it in the legend even if it begins with "_".

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

    Names are cut to their parts from the first number on (from the part before it, if the number comes last), or to their last
    two parts if there is no number. Names of more than `MAX_CHARACTERS` characters then lose their middle. If one of these two
    steps would make two names equal, it is left out.

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
    >>> short_names(["encoder.layers.0.mlp", "decoder.layers.0.mlp"])
    ('encoder.layers.0.mlp', 'decoder.layers.0.mlp')
    """
    short = [_tail(name) for name in names]
    if len(set(short)) < len(set(names)):
        short = list(names)
    half = MAX_CHARACTERS // 2
    elided = [name if len(name) <= MAX_CHARACTERS else f"{name[: half - 1]}…{name[-half:]}" for name in short]
    return tuple(as_literal(name) for name in (elided if len(set(elided)) == len(set(names)) else short))


def _tail(name: str) -> str:
    parts = [part for part in re.split(r"[.:/]", name) if part]
    number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    if number is None:
        return " ".join(parts[-2:]) or name
    # A number alone would say too little about the layer.
    first = number - 1 if number == len(parts) - 1 else number
    return " ".join(parts[max(first, 0) :])
