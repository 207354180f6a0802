"""Text of another kind than a user's: sequences of the built-in text. Some are added to a calibration text, others are held out.

Scores and repairs that know one kind of text spoil a model for others. A fifth of other text prevents most of that, and costs
hardly anything on the first kind (benchmarks/LOG.md). A sequence holds short passages from all over the built-in text, because a
few long ones are about a few things.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from math import gcd
from typing import Any

from llmrank.errors import CalibrationError
from llmrank.text.base_source import BaseSource
from llmrank.text.built_in import BuiltInText, builtin_texts
from llmrank.text.documents import Documents
from llmrank.text.mixed_sources import MixedSources
from llmrank.text.sequences import Request, TokenSequences
from llmrank.text.sources import find_source
from llmrank.text.tokenisation import sequences_of_text

__all__ = ["add_other_text", "held_out_other_text", "is_alone"]

# For this many calibration sequences, one of the built-in text is added.
SEQUENCES_PER_ADDED = 5
# Paragraphs are joined to a passage until they have so many characters, about 128 tokens.
PASSAGE_CHARACTERS = 512
PARAGRAPH = "\n\n"
# More sequences than the built-in text has.
ALL = 1 << 30
GOLDEN_RATIO = (5**0.5 - 1) / 2


def is_alone(source: Any) -> bool:
    """Whether nothing is added to a calibration text: tokens, a list of texts, a mixture, and the built-in text itself."""
    if not isinstance(source, (str, os.PathLike, BaseSource)):
        return True
    return isinstance(find_source(source), (BuiltInText, MixedSources))


def add_other_text(sequences: TokenSequences, tokenizer: Any) -> TokenSequences:
    """Return calibration sequences with one of the built-in text in front for every five, as far as that has so many."""
    count = round(len(sequences) / SEQUENCES_PER_ADDED)
    added = _sequences(tokenizer, count, sequences.length, 0) if count else None
    if added is None:
        return sequences
    # In front, because a short text has its held-out sequences at the end.
    joined = added.joined(sequences)
    counted = f"{len(added)} sequence{'' if len(added) == 1 else 's'}"
    details = {**sequences.details, "added": added.provenance()}
    return replace(joined, source=f"{sequences.source}, and {counted} of the {added.source}", details=details)


def held_out_other_text(sequences: TokenSequences, tokenizer: Any) -> TokenSequences | None:
    """Return all sequences of the built-in text that are not added to calibration sequences, but as long.

    Return None if the calibration text is the built-in text or a user's mixture with it, if the sequences are too long for it, or
    if the model reads no text.
    """
    is_known = re.search(rf"(^| of ){BuiltInText.name}: ", sequences.source)
    if tokenizer is None or sequences.ids.is_floating_point() or is_known:
        return None
    return _sequences(tokenizer, ALL, sequences.length, 1)


def _sequences(tokenizer: Any, count: int, length: int, part: int) -> TokenSequences | None:
    """Return up to `count` sequences of part 0 or 1 of the built-in text; None if that is shorter than one sequence."""
    passages = Documents(lambda: _passages(part))
    try:
        return sequences_of_text(passages, f"{BuiltInText.name} text", Request(tokenizer, count, length))[0]
    except CalibrationError:
        return None


def _passages(part: int) -> Iterator[str]:
    """Yield every second passage of the built-in text, in an order of which each beginning is from all over the text."""
    passages, passage = [], ""
    for paragraph in builtin_texts()[0].split(PARAGRAPH):
        passage += paragraph + PARAGRAPH
        if len(passage) >= PASSAGE_CHARACTERS:
            passages.append(passage[: 2 * PASSAGE_CHARACTERS].rstrip())
            passage = ""
    passages = passages[part::2]
    step = next(k for k in range(round(GOLDEN_RATIO * len(passages)), len(passages)) if gcd(k, len(passages)) == 1)
    return (passages[k * step % len(passages)] for k in range(len(passages)))
