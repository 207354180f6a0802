"""Which layers keep everything."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from llmrank.errors import OptionError

__all__ = ["Protect", "check_protect", "protected_names"]

Protect: TypeAlias = Sequence[str | int] | str | int


def check_protect(protect: Protect) -> tuple[str | int, ...]:
    """`protect` as a tuple, or an OptionError.

    >>> check_protect("model.layers.0"), check_protect([0, -1])
    (('model.layers.0',), (0, -1))
    """
    entries = (protect,) if isinstance(protect, (str, int)) else protect
    if not isinstance(entries, Sequence) or any(
        isinstance(entry, bool) or not isinstance(entry, (str, int)) for entry in entries
    ):
        raise OptionError(
            "protect must be names or patterns of layers, or their positions (0 is the first, -1 the last), got "
            f"{protect!r}"
        )
    return tuple(entries)


def protected_names(protect: Sequence[str | int], names: Sequence[str]) -> set[str]:
    """The layers that are meant.

    Parameters
    ----------
    protect : sequence of str or int
        A pattern (``*``, ``?``, ``[...]``) matches the name of a layer or of anything that holds it: ``model.layers.0``
        means all that is inside. A number is a position among the layers, from the end where it is negative.
    names : sequence of str
        Of all prunable layers, in the model's order.

    Raises
    ------
    OptionError
        An entry that means no layer; the message lists the names.

    Examples
    --------
    >>> sorted(protected_names([-1, "layers.0"], ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]))
    ['layers.0.mlp', 'layers.2.mlp']
    """
    found: set[str] = set()
    for entry in protect:
        if isinstance(entry, int):
            meant = [names[entry]] if -len(names) <= entry < len(names) else []
        else:
            meant = [name for name in names if fnmatchcase(name, entry) or fnmatchcase(name, f"{entry}.*")]
        if not meant:
            raise OptionError(
                f"protect: {entry!r} means no prunable layer; expected a position below {len(names)}, or a name or pattern "
                f"of {', '.join(names)}"
            )
        found.update(meant)
    return found
