"""Read the text that a user gives in any form: names of sources, a file, a directory, a text, a list of texts, or a tensor.

Each source is a class with a ``name`` in a module of this package.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmrank.errors import CalibrationError
from llmrank.named_classes import load_class, named_classes
from llmrank.text.base_source import BaseSource, check_not_empty
from llmrank.text.built_in import BuiltInText
from llmrank.text.documents import Documents
from llmrank.text.mixed_sources import MixedSources, split_shares
from llmrank.text.sequences import Request, Role, TokenSequences
from llmrank.text.text_files import ENDINGS, TextFiles
from llmrank.text.tokenisation import sequences_of_tensor, sequences_of_text

__all__ = [
    "check_text",
    "find_source",
    "make_sequences",
    "named_sources",
    "open_text",
    "read_text",
    "tokenise",
]


@cache
def named_sources() -> dict[str, type[BaseSource]]:
    """Return the sources of text by name."""
    return {name: load_class(source.value) for name, source in named_classes(__package__).items()}


def find_source(text: Any, role: Role = "calibration") -> BaseSource | None:
    """Return the source that a user's `text` stands for, or None if it is something else, such as a path or the text itself.

    A source, the name of a source, a mixture of sources, and None (the built-in text) stand for a source.

    Raises
    ------
    CalibrationError
        The source is not for this role, or a mixture is not well formed.
    """
    if text is None:
        return BuiltInText()
    entries = _mixture_entries(text)
    if entries is not None:
        source: BaseSource | None = MixedSources([(_source_or_file(one), share) for one, share in entries])
    else:
        source = _named_source(text)
    if source is None:
        return None
    if role not in source.roles:
        others = [other.syntax() for other in named_sources().values() if role in other.roles]
        raise CalibrationError(f"{str(text)!r} is no {role} text; expected a text file, {' or '.join(others)}")
    return source


def _named_source(text: Any) -> BaseSource | None:
    """Return `text` itself if it is a source, or the source that it names; None for anything else."""
    if isinstance(text, BaseSource):
        return text
    name, colon, argument = text.partition(":") if isinstance(text, str) else ("", "", "")
    named = named_sources().get(name)
    return None if named is None or bool(colon) != bool(named.usage) else named(argument)


def _source_or_file(text: Any) -> BaseSource:
    source = _named_source(text)
    if source is None and not isinstance(text, (str, os.PathLike)):
        raise CalibrationError(
            f"cannot mix text of type {type(text).__name__} with other sources; expected the name of a source, or a path"
        )
    return source or TextFiles(text)


def _mixture_entries(text: Any) -> Sequence[tuple[Any, float]] | None:
    """Return the sources of a mixture and their shares; None if `text` is no mixture."""
    if isinstance(text, Mapping):
        return _with_checked_shares([*text.items()])
    if isinstance(text, (list, tuple)):
        are_pairs = len(text) > 0 and all(isinstance(entry, tuple) and len(entry) == 2 for entry in text)
        return _with_checked_shares(text) if are_pairs else None
    # An ordinary text may hold colons and numbers too. So a string is split only if it may be a list of names and paths.
    if not isinstance(text, str) or "\n" in text or (" " in text and not re.search(r"[\d%]$", text)) or _exists(text):
        return None
    entries = split_shares(text)
    # A single entry with another share than all may be no mixture but a source whose argument ends like a share.
    is_name = entries is not None and len(entries) == 1 and entries[0][1] != 1.0 and _named_source(text)
    return None if is_name else entries


def _with_checked_shares(entries: Sequence[Any]) -> Sequence[tuple[Any, float]]:
    for source, share in entries:
        if isinstance(share, bool) or not isinstance(share, (int, float)):
            raise CalibrationError(f"the share of {source} must be a number such as 0.5, got {share!r}")
    return entries


def read_text(source: Any, role: Role = "calibration") -> tuple[Any, str]:
    """Read the text (or all of a list of texts) that a user gives or names, and describe it in words.

    Parameters
    ----------
    source : None, source or its name, path, text, or list of texts
        None is the built-in text. A string that names no source is a path if that exists, or if it looks like a path (no space,
        and a path separator or the ending ``.txt``, ``.md`` or ``.jsonl``); else it is the text itself. Blank texts of a list
        are dropped.
    role : {"calibration", "evaluation"}

    Raises
    ------
    CalibrationError
        A file is missing or not UTF-8, a text is empty, `source` has another type or role, a dataset cannot be loaded, or there
        are conversations, which need a tokenizer.
    NotImplementedError
        The source makes tokens without a text.
    """
    text, description = open_text(source, role)
    if isinstance(text, Documents):
        text = text.texts()
        check_not_empty(text, description, role)
    return text, description


def open_text(source: Any, role: Role) -> tuple[str | list[str] | Documents, str]:
    """Read a text as :func:`read_text` does, but return documents unread, so that only those are read that are needed."""
    text: str | list[str] | Documents
    named = find_source(source, role)
    if named is None and (isinstance(source, os.PathLike) or (isinstance(source, str) and _looks_like_path(source))):
        named = TextFiles(source)
    if named is not None:
        text, description = named.read(role)
    elif isinstance(source, str):
        text, description = source, "text given by the caller"
    elif isinstance(source, Sequence) and all(isinstance(item, str) for item in source):
        text, description = [item for item in source if item.strip()], f"list of {len(source)} texts"
    else:
        raise CalibrationError(
            f"cannot read {role} text of type {type(source).__name__}; expected a path, a text, a list of texts, or a "
            "(n, length) tensor of token ids"
        )
    if not isinstance(text, Documents):
        check_not_empty(text, description, role)
    return text, description


def _looks_like_path(source: str) -> bool:
    if "\n" in source or len(source) > 1024:
        return False
    return _exists(source) or (" " not in source.strip() and (os.sep in source or source.endswith(ENDINGS)))


def _exists(source: str) -> bool:
    with suppress(OSError, ValueError):  # the string may be too long for a file name
        return bool(source.strip()) and Path(source).exists()
    return False


def check_text(source: Any, role: Role = "calibration") -> None:
    """Check a text as far as possible without a model and without a download. A text file is read for this.

    Raises
    ------
    CalibrationError
        See :func:`read_text`; for a source, see its :meth:`BaseSource.check`.
    """
    named = find_source(source, role)
    if named is None and isinstance(source, os.PathLike):
        named = TextFiles(source)
    if named is not None:
        named.check(role)
    else:
        read_text(source, role)


def make_sequences(source: Any, request: Request) -> tuple[TokenSequences, TokenSequences | None]:
    """Make token sequences from text in any form, and hold out the sequences that follow them in the text.

    Parameters
    ----------
    source : see :func:`read_text`; or (n, length) integer tensor, float tensor of features, or TokenSequences
        A text (or a list of one text) is cut into consecutive sequences without padding, and so are the joined documents of a
        directory, a ``.jsonl`` file or a dataset. Each of several texts gives one sequence, truncated and padded. All rows of a
        tensor are used, at their full length. TokenSequences are used as they are. A mapping from sources or paths to shares, or
        a list of such pairs, is a mixture; so is a string such as ``a.txt:0.5,dataset:NAME:0.5``.
    request : Request

    Returns
    -------
    sequences : TokenSequences
    held_out : TokenSequences or None
        None if the request holds out none, the text is too short, or all of `source` is used (several texts, a tensor).

    Raises
    ------
    CalibrationError
        See :func:`read_text` and :func:`sequences_of_text`; or the source needs a model and the request has none, predictions
        of the model are not finite, or the tensor has another shape or type.
    UnsupportedModelError
        The model cannot write the text of the source "generated".
    """
    if isinstance(source, TokenSequences):
        return source, None
    if isinstance(source, np.ndarray) and source.dtype.kind not in "iuf":
        raise CalibrationError(f"expected an array of numbers, got dtype {source.dtype}; give a text as a str")
    if isinstance(source, (torch.Tensor, np.ndarray)):
        return sequences_of_tensor(torch.as_tensor(source), request.role), None
    named = find_source(source, request.role)
    if named is not None:
        return named.sequences(request)
    return sequences_of_text(*open_text(source, request.role), request)


def tokenise(
    source: Any, tokenizer: Any, samples: int, sequence_length: int, role: Role = "calibration"
) -> TokenSequences:
    """Make token sequences as :func:`make_sequences` does, from a text that needs no model, and hold out none.

    Parameters
    ----------
    source
        See :func:`make_sequences`.
    tokenizer : transformers tokenizer or None
        Not needed for a tensor.
    samples, sequence_length, role
        See :class:`llmrank.text.sequences.Request`.
    """
    return make_sequences(source, Request(tokenizer, samples, sequence_length, 0, role))[0]
