"""Refuses a file whose checksum is right, and whose content is not what llmrank writes: another program may have written it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from graphs import GraphError
from llmrank.errors import LLMRankError, OptionError, is_out_of_memory

__all__ = ["NUMBER", "check_fields", "refused_unless_sound"]

# The types of a number that need not be whole.
NUMBER = (int, float)


@contextmanager
def refused_unless_sound(what: object, advice: str) -> Iterator[None]:
    """Within the context, turn errors of a content that is not as expected into an OptionError.

    Parameters
    ----------
    what : object
        What is read, such as the path of a file; it begins the message.
    advice : str
        What the user can do, which ends the message.

    Raises
    ------
    OptionError
        A field or an entry is missing, or of a wrong type, shape or size.

    Examples
    --------
    >>> with refused_unless_sound("notes.json", "write it again"):
    ...     {}["size"]
    Traceback (most recent call last):
        ...
    llmrank.errors.OptionError: notes.json does not hold what llmrank writes (KeyError: 'size'); write it again
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        if isinstance(error, (LLMRankError, GraphError)) or is_out_of_memory(error):
            raise
        shown = f"{type(error).__name__}: {error}"
        raise OptionError(f"{what} does not hold what llmrank writes ({shown[:300]}); {advice}") from error


def check_fields(content: Any, fields: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> None:
    """Raise a TypeError unless a content is a dict with these fields, each of its type.

    Parameters
    ----------
    content : object
        What was read from a file.
    fields : mapping from str to type, tuple of types, or mapping
        What every content has. A mapping says what the fields of a nested dict are. True and False are no numbers.
    optional : mapping, optional
        The same of fields that may be missing.

    Examples
    --------
    >>> check_fields({"size": 3, "text": {"source": 5}}, {"size": int, "text": {"source": str}})
    Traceback (most recent call last):
        ...
    TypeError: source must be str, got 5
    """
    if not isinstance(content, dict):
        raise TypeError(f"expected fields with names, got {str(content)[:80]}")
    for name, kinds in {**fields, **(optional or {})}.items():
        if name not in content and name not in fields:
            continue
        value = content[name]
        if isinstance(kinds, Mapping):
            check_fields(value, kinds)
            continue
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise TypeError(f"{name} must be {expected}, got {str(value)[:80]}")
