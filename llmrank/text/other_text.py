"""Text of another kind than a user's: sequences of the built-in text. Some are added to a calibration text, others are held out.

Scores and repairs that know one kind of text spoil a model for others. A fifth of other text prevents much of that, and costs
little or nothing on the first kind (benchmarks/LOG.md). A sequence holds short pieces from all over the built-in text, because a
few long ones are about few subjects.
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
# Number of tokens in a piece of the built-in text, and of pieces that follow one another in one part of it.
PIECE, PIECES_IN_TURN = 128, 8
# More sequences than the built-in text has.
ALL = 1 << 30
GOLDEN_RATIO = (5**0.5 - 1) / 2


def is_alone(source: Any, model: Any) -> bool:
    """Whether nothing is added to a model's calibration text: tokens, a list of texts, a mixture, or the built-in text."""
    if not isinstance(source, (str, os.PathLike, BaseSource)):
        return True
    named = find_source(source)
    return named is not None and isinstance(named.for_model(model), (BuiltInText, MixedSources))


def add_other_text(sequences: TokenSequences, tokenizer: Any, used: TokenSequences | None = None) -> TokenSequences:
    """Return calibration sequences with one of the built-in text for every five, as far as that has so many.

    The first sequences stay first, because sensitivities are measured on them. None that shares a passage with `used` is added,
    and nothing at all if no text can be tokenised.
    """
    count = round(len(sequences) / SEQUENCES_PER_ADDED)
    added = _sequences(tokenizer, count if used is None else ALL, sequences, 0) if count else None
    if added is not None and used is not None:
        added = added.apart_from(used)
    if added is None:
        return sequences
    added = added.ordered(range(min(count, len(added))))
    every = len(sequences) / (len(added) + 1)
    places = [*range(len(sequences)), *(every * (k + 1) - 0.5 for k in range(len(added)))]
    joined = sequences.joined(added).ordered(sorted(range(len(places)), key=lambda row: places[row]))
    counted = f"{len(added)} sequence{'' if len(added) == 1 else 's'}"
    details = {**sequences.details, "added": added.provenance()}
    return replace(joined, source=f"{sequences.source}, and {counted} of the {added.source}", details=details)


def held_out_other_text(sequences: TokenSequences, tokenizer: Any) -> TokenSequences | None:
    """Return all sequences of the built-in text that are not added to calibration sequences, but as long.

    Return None if the calibration text is the built-in text or a user's mixture with it, if the sequences are too long for it, or
    if no text can be tokenised.
    """
    is_known = re.search(rf"(^| of ){BuiltInText.name}: ", sequences.source)
    return None if is_known else _sequences(tokenizer, ALL, sequences, 1)


def _sequences(tokenizer: Any, count: int, alike: TokenSequences, part: int) -> TokenSequences | None:
    """Return up to `count` sequences of part 0 or 1 of the built-in text; None if that is shorter than one sequence.

    They are as long as those of `alike`, and have the same first token if these share one, as texts do that a model writes. The
    built-in text is in part 0 and part 1 in turn, and the pieces of a part come in an order of which each beginning is from all
    over the text.
    """
    if tokenizer is None or alike.ids.is_floating_point():
        return None
    prefix, suffix = special_tokens(tokenizer)
    first = alike.ids[:, 0]
    if not prefix and len(first) > 1 and bool((first == first[0]).all()):
        prefix = [int(first[0])]
    room = alike.length - len(prefix) - len(suffix)
    ids = torch.tensor(plain_ids(tokenizer, builtin_texts()[0]), dtype=torch.long)
    pieces = ids[: len(ids) // PIECE * PIECE].view(-1, PIECE)
    pieces = pieces[torch.arange(len(pieces)) // PIECES_IN_TURN % 2 == part]
    n_pieces = len(pieces)
    n_rows = min(count, pieces.numel() // room) if room > 0 else 0
    if n_rows == 0:
        return None
    step = next(k for k in range(round(GOLDEN_RATIO * n_pieces), n_pieces + 2) if gcd(k, n_pieces) == 1)
    tokens = pieces[torch.arange(n_pieces) * step % n_pieces].flatten()
    body = tokens[: n_rows * room].view(n_rows, room)
    before, after = (torch.tensor(special, dtype=torch.long).expand(n_rows, -1) for special in (prefix, suffix))
    rows = torch.cat([before, body, after], dim=1)
    return TokenSequences.of(rows, torch.ones_like(rows, dtype=torch.bool), f"{BuiltInText.name} text")
