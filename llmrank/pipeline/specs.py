"""Specs of components, such as ``wpr:gamma=0.9,edges=energy``: how they are split, and their values converted."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from llmrank.errors import OptionError

__all__ = ["Field", "parameter_docs", "split_spec", "split_specs"]

# Stands for the value of a text that fits no type of the option.
UNREADABLE = object()
WORDS: dict[Any, str] = {float: "number", int: "integer", bool: "true or false", str: "text", type(None): "none"}


@dataclass(frozen=True)
class Field:
    """An option of a component.

    Attributes
    ----------
    name : str
    annotation : type
        What a value must be: bool, int, float, str, a Literal, a sequence, or a union of these.
    default : object
    doc : str
        See :func:`parameter_docs`; empty if the class does not document the option.
    """

    name: str
    annotation: Any
    default: Any
    doc: str = ""

    @property
    def kind(self) -> str:
        """The type in words, such as ``number`` or ``"magnitude" or "energy"``."""
        return _kind(self.annotation)

    def read(self, values: list[str]) -> Any:
        """Convert the texts that were written for the option to its type; return a list if the option takes a list.

        Raises
        ------
        OptionError
            A value does not fit the annotation, or an option that takes one value was given several.
        """
        if len(values) > 1 and not _takes_several(self.annotation):
            raise OptionError(f"option {self.name} was given {len(values)} times; give it once")
        converted = [_converted(self.annotation, value) for value in values]
        if any(value is UNREADABLE for value in converted):
            raise OptionError(f"option {self.name} must be {self.kind}, got {','.join(values)!r}")
        return converted if _takes_several(self.annotation) else converted[0]


def split_spec(spec: str) -> tuple[str, dict[str, list[str]]]:
    """Split a spec into the name and the values written for every option; hyphens in names of options become underscores.

    Raises
    ------
    OptionError
        A part after the colon is not ``OPTION=VALUE``.

    Examples
    --------
    >>> split_spec("global:normalize=robust,min_keep=8")
    ('global', {'normalize': ['robust'], 'min_keep': ['8']})
    """
    name, colon, rest = spec.partition(":")
    written: dict[str, list[str]] = {}
    for part in rest.split(",") if colon else ():
        key, equals, value = part.partition("=")
        if not (equals and key.strip() and value.strip()):
            raise OptionError(f"expected NAME:OPTION=VALUE,OPTION=VALUE, got {part!r} in {spec!r}")
        written.setdefault(key.strip().replace("-", "_"), []).append(value.strip())
    return name.strip(), written


def split_specs(values: Iterable[str]) -> tuple[str, ...]:
    """Split lists of specs at their commas, but not at those between the options of one spec.

    Raises
    ------
    OptionError
        A list begins with an option.

    Examples
    --------
    >>> split_specs(["wpr:gamma=0.9,edges=energy,mpr", "norm"])
    ('wpr:gamma=0.9,edges=energy', 'mpr', 'norm')
    """
    specs: list[str] = []
    for value in values:
        found: list[str] = []
        for part in filter(None, map(str.strip, value.split(","))):
            name, equals, _ = part.partition("=")
            if not equals or ":" in name:
                found.append(part)
            elif not found or ":" not in found[-1]:
                raise OptionError(f"expected NAME or NAME:OPTION=VALUE,OPTION=VALUE, got {part!r} in {value!r}")
            else:
                found[-1] += f",{part}"
        specs += found
    return tuple(dict.fromkeys(specs))


def parameter_docs(entry: type) -> dict[str, str]:
    """Return the entries under "Parameters" in the numpydoc docstring of a class: one line of text for each name."""
    lines = (inspect.getdoc(entry) or "").splitlines()
    try:
        start = next(k for k, line in enumerate(lines) if line == "Parameters" and lines[k + 1].startswith("---"))
    except (StopIteration, IndexError):
        return {}
    docs: dict[str, str] = {}
    names: list[str] = []
    for line, following in zip(lines[start + 2 :], [*lines[start + 3 :], ""], strict=True):
        if following.startswith("---") and line.strip():
            break
        if line and not line.startswith(" "):
            names = [name.strip() for name in line.split(":")[0].split(",")]
        elif line.strip():
            for name in names:
                docs[name] = f"{docs.get(name, '')} {line.strip()}".strip()
    return docs


def _members(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union, or a type itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _element(annotation: Any) -> Any:
    """Return the type of the elements of a sequence type; None for other types."""
    origin = get_origin(annotation)
    is_sequence = isinstance(origin, type) and issubclass(origin, Sequence)
    return get_args(annotation)[0] if is_sequence else None


def _takes_several(annotation: Any) -> bool:
    return any(_element(member) is not None for member in _members(annotation))


def _converted(annotation: Any, text: str) -> Any:
    """Convert a text to the narrowest type of the annotation that it fits; return UNREADABLE if it fits none."""
    members = [inner for member in _members(annotation) for inner in _members(_element(member) or member)]
    for literal in (choice for member in members if get_origin(member) is Literal for choice in get_args(member)):
        if str(literal) == text:
            return literal
    if bool in members and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if type(None) in members and text.lower() == "none":
        return None
    for kind in (int, float):
        if kind in members:
            try:
                return kind(text)
            except ValueError:
                pass
    return text if str in members or Any in members else UNREADABLE


def _kind(annotation: Any) -> str:
    names = []
    for member in _members(annotation):
        if get_origin(member) is Literal:
            names += [f'"{choice}"' for choice in get_args(member)]
        elif _element(member) is not None:
            names.append(f"several of {_kind(_element(member))}")
        else:
            names.append(WORDS.get(member, getattr(member, "__name__", str(member))))
    return " or ".join(dict.fromkeys(names))
