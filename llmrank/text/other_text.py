"""Text of another kind than a user's: sequences of the built-in text. Some are added to a calibration text, others are held out.

Scores and repairs that know one kind of text spoil a model for others. A fifth of other text prevents most of that, and costs
hardly anything on the first kind (benchmarks/LOG.md). A sequence holds short pieces from all over the built-in text, because a
few long ones are about a few things.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from math import gcd
from typing import Any

import torch

from llmrank.text.base_source import BaseSource
from llmrank.text.built_in import BuiltInText, builtin_texts
from llmrank.text.documents import plain_ids
from llmrank.text.mixed_sources import MixedSources
from llmrank.text.sequences import TokenSequences
from llmrank.text.sources import find_source
from llmrank.text.tokenisation import special_tokens

__all__ = ["add_other_text", "held_out_other_text", "is_alone"]

# For this many calibration sequences, one of the built-in text is added.
SEQUENCES_PER_ADDED = 5
# Number of tokens in a piece of the built-in text.
PIECE = 128
# More sequences than the built-in text has.
ALL = 1 << 30
GOLDEN_RATIO = (5**0.5 - 1) / 2


def is_alone(source: Any) -> bool:
    """Whether nothing is added to a calibration text: tokens, a list of texts, a mixture, and the built-in text itself."""
    if not isinstance(source, (str, os.PathLike, BaseSource)):
        return True
    return isinstance(find_source(source), (BuiltInText, MixedSources))


def add_other_text(sequences: TokenSequences, tokenizer: Any) -> TokenSequences:
    """Return calibration sequences with one of the built-in text among every five, as far as that has so many.

    The text's own sequences stay first and last: sensitivities are measured on the first, and a short text holds out its last.
    Nothing is added without a tokenizer, as when a model of a user writes its own text.
    """
    count = 0 if tokenizer is None else round(len(sequences) / SEQUENCES_PER_ADDED)
    added = _sequences(tokenizer, count, sequences.length, 0) if count else None
    if added is None:
        return sequences
    every = len(sequences) / (len(added) + 1)
    places = [*range(len(sequences)), *(every * (k + 1) - 0.5 for k in range(len(added)))]
    joined = sequences.joined(added).ordered(sorted(range(len(places)), key=lambda row: places[row]))
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
    """Return up to `count` sequences of part 0 or 1 of the built-in text; None if that is shorter than one sequence.

    Every second piece of the text is in part 0. The pieces come in an order of which each beginning is from all over the text.
    """
    prefix, suffix = special_tokens(tokenizer)
    room = length - len(prefix) - len(suffix)
    ids = torch.tensor(plain_ids(tokenizer, builtin_texts()[0]), dtype=torch.long)
    pieces = ids[: len(ids) // PIECE * PIECE].view(-1, PIECE)[part::2]
    n_pieces = len(pieces)
    step = next(k for k in range(round(GOLDEN_RATIO * n_pieces), n_pieces + 2) if gcd(k, n_pieces) == 1)
    tokens = pieces[torch.arange(n_pieces) * step % n_pieces].flatten()
    n_rows = min(count, len(tokens) // max(room, 1))
    if n_rows == 0:
        return None
    body = tokens[: n_rows * room].view(n_rows, room)
    before, after = (torch.tensor(special, dtype=torch.long).expand(n_rows, -1) for special in (prefix, suffix))
    rows = torch.cat([before, body, after], dim=1)
    return TokenSequences.of(rows, torch.ones_like(rows, dtype=torch.bool), f"{BuiltInText.name} text")
