"""Items: prompts that have one right answer each, and how many of them a model answers before and after pruning.

The built-in items, ``items.jsonl``, are facts, last words of passages, arithmetic and code completions. The file
``benchmarks/make_items.py`` says how they were made and chosen. ``items_notice.txt`` names those whose data they hold, with the
license of the passages and the code from Python's standard library.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmrank.bounded_files import read_bounded
from llmrank.errors import CalibrationError, OptionError
from llmrank.evaluation.estimate import Estimate
from llmrank.evaluation.greedy_decoding import writes
from llmrank.progress import Progress

__all__ = [
    "BUILT_IN",
    "BUILT_IN_FILE",
    "Answers",
    "Item",
    "ItemShares",
    "answer_items",
    "describe_items",
    "items_of_each_kind",
    "read_items",
]

# The name of the built-in items, and their file.
BUILT_IN, BUILT_IN_FILE = "built-in", Path(__file__).with_name("items.jsonl")
# Largest number of characters that a message shows of a line.
LONGEST = 80


@dataclass(frozen=True)
class Item:
    """A prompt with its right answer.

    Attributes
    ----------
    kind : str
        What the item asks for, such as "fact".
    prompt, answer : str
        The answer follows the prompt directly, so it begins with a space if a space belongs between them.
    """

    kind: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class ItemShares:
    """A share of items, 0..1; standard errors are computed over items.

    Attributes
    ----------
    all : Estimate
    kinds : dict from str to Estimate
        The same for the items of each kind.
    """

    all: Estimate
    kinds: dict[str, Estimate]


@dataclass(frozen=True)
class Answers:
    """Which items a model answers right.

    Attributes
    ----------
    items : tuple of Item
    right : tuple of bool or None
        Whether the model writes the answer of each item; None if the item is skipped because it does not fit the tokenizer or
        the model, see :func:`llmrank.evaluation.greedy_decoding.writes`.
    """

    items: tuple[Item, ...]
    right: tuple[bool | None, ...]

    @property
    def skipped(self) -> int:
        """Number of items that are skipped."""
        return self.right.count(None)

    @property
    def accuracy(self) -> ItemShares:
        """Share of the items that the model answers right; skipped items do not count."""
        return self._share([right is not None for right in self.right])

    def kept(self, dense: Answers) -> ItemShares | None:
        """Return the share of the items that this model answers right, of those that the dense model answers right.

        A kind of which the dense model answers no item is left out; None if it answers none at all.

        Raises
        ------
        OptionError
            The dense model was asked other items.

        Examples
        --------
        >>> items = tuple(Item("fact", f"{n} + 1 =", f" {n + 1}") for n in range(4))
        >>> dense, pruned = Answers(items, (True, True, True, False)), Answers(items, (True, False, True, True))
        >>> round(pruned.kept(dense).all.value, 3)
        0.667
        """
        if dense.items != self.items:
            raise OptionError(
                f"expected the same items for both models, got {len(self.items)} for this model and {len(dense.items)} for the "
                "dense one, which differ; ask both models one list of items"
            )
        known = [right is True for right in dense.right]
        return self._share(known) if any(known) else None

    def _share(self, counted: Sequence[bool]) -> ItemShares:
        """Return the share of right answers among the items that count."""
        kinds: dict[str, list[bool]] = {}
        for item, right, counts in zip(self.items, self.right, counted, strict=True):
            if counts:
                kinds.setdefault(item.kind, []).append(right is True)
        all_of_them = [right for answers in kinds.values() for right in answers]
        return ItemShares(Estimate.of(all_of_them), {kind: Estimate.of(answers) for kind, answers in kinds.items()})


def read_items(source: str | os.PathLike[str] = BUILT_IN) -> tuple[Item, ...]:
    """Read items from a file of JSON lines, each an object with the texts `kind`, `prompt` and `answer`.

    Parameters
    ----------
    source : path-like
        A file in UTF-8; blank lines in it, and other keys of an object, are ignored. By default the built-in items.

    Raises
    ------
    OptionError
        The file cannot be read, holds no item, or has a line of another form.

    Examples
    --------
    >>> items = read_items()
    >>> sorted({item.kind for item in items})
    ['arithmetic', 'code', 'fact', 'last word']
    """
    file = BUILT_IN_FILE if source == BUILT_IN else Path(source)
    form = f"expected a JSON object with the texts {', '.join(Item.__dataclass_fields__)}, none of them empty"
    try:
        lines = read_bounded(file, "utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"cannot read items from {file} ({error}); pass a file of JSON lines in UTF-8, or {BUILT_IN!r}"
        ) from error
    items = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            item = _item_of(line)
            if item is None:
                shown = line.strip() if len(line) <= LONGEST else f"{line[:LONGEST]}..."
                raise OptionError(f"line {number} of {file}: {form}, got {shown}; correct or delete that line")
            items.append(item)
    if not items:
        raise OptionError(f"{file} holds no items; {form}, in every line")
    return tuple(items)


def _item_of(line: str) -> Item | None:
    """Return the item in a line of JSON, or None if the line has another form."""
    try:
        content: Any = json.loads(line)
        item = Item(**{name: content[name] for name in Item.__dataclass_fields__})
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return item if all(isinstance(text, str) and text for text in asdict(item).values()) else None


def describe_items(items: Sequence[Item]) -> str:
    """Return the number of items, and a digest by which they are known."""
    digest = hashlib.sha256(repr(tuple(items)).encode(errors="surrogatepass")).hexdigest()
    return f"{len(items)} items, sha256 {digest[:16]}"


def items_of_each_kind(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """Return the first `count` items of each kind, in the order of the items."""
    seen: dict[str, int] = {}
    chosen = []
    for item in items:
        seen[item.kind] = seen.get(item.kind, 0) + 1
        if seen[item.kind] <= count:
            chosen.append(item)
    return tuple(chosen)


def answer_items(
    model: Any,
    tokenizer: Any,
    items: Sequence[Item],
    batch_tokens: int = 1024,
    progress: Progress | None = None,
) -> Answers:
    """Ask a model items: an answer is right if greedy decoding writes all of its tokens.

    Parameters
    ----------
    model : transformers causal language model
    tokenizer : transformers tokenizer
    items : sequence of Item
    batch_tokens, progress
        See :func:`llmrank.evaluation.greedy_decoding.writes`, also for the exceptions and the cost.

    Raises
    ------
    CalibrationError
        No item is given, or all are skipped.
    """
    right = writes(model, tokenizer, [(item.prompt, item.answer) for item in items], batch_tokens, progress)
    if right.count(None) == len(items):
        raise CalibrationError(
            f"none of {len(items)} items can be used: an answer must begin with a new token, and the item must fit the model; "
            "give items whose answers begin with a space"
        )
    return Answers(tuple(items), tuple(right))
