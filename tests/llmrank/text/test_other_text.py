"""The built-in text that is added to a calibration text, and that is held out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from llmrank.pipeline import CalibrationText
from llmrank.pipeline.texts import n_held_out
from llmrank.text import CalibrationTokens, TokenSequences, builtin_texts, tokenise
from llmrank.text.other_text import PIECE, add_other_text, held_out_other_text, is_alone
from tests.llmrank.tiny_models import features, text, tiny_llama, token_ids, tokenizer
from tests.tables import table

LENGTH = 16


def calibration(words: int, samples: int, source: Any = None, *, hold_out: bool = True) -> CalibrationTokens:
    settings = CalibrationText(source or text(words), samples=samples, sequence_length=LENGTH)
    return settings.sequences(tiny_llama(), tokenizer(), hold_out=hold_out)


def rows_of(sequences: TokenSequences | None) -> set[tuple[int, ...]]:
    return set() if sequences is None else {tuple(row) for row in sequences.ids.tolist()}


@table(("samples", "added"), [(1, 0), (2, 0), (3, 1), (5, 1), (16, 3)])
def test_a_fifth_as_much_of_the_built_in_text_is_added(samples: int, added: int) -> None:
    found = calibration(400, samples)
    own = tokenise(text(400), tokenizer(), samples, LENGTH)
    assert len(found.sequences) == samples + added
    rows = [row for row in found.sequences.ids.tolist() if row in own.ids.tolist()]
    assert rows == own.ids.tolist()
    assert rows[0] == found.sequences.ids[0].tolist()
    counted = f"{added} sequence{'s' if added > 1 else ''}"
    ending = f", and {counted} of the built-in text" if added else ""
    assert found.sequences.source == own.source + ending
    assert found.sequences.held_out == 0


def numbering_tokenizer() -> Any:
    """Return a tokenizer that gives every character the number of its place in the text, and no special tokens."""

    def tokenise_by_place(text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(range(len(text)))}

    return tokenise_by_place


def test_added_and_held_out_sequences_share_nothing_and_are_from_all_over_the_text() -> None:
    own = TokenSequences.of(token_ids(40, 256), torch.ones(40, 256, dtype=torch.bool), "own")
    length = len(builtin_texts()[0])
    joined = add_other_text(own, numbering_tokenizer())
    added = joined.ids[[row not in own.ids.tolist() for row in joined.ids.tolist()]]
    assert len(added) == 8
    other = held_out_other_text(own, numbering_tokenizer())
    assert other is not None
    assert not set(added.flatten().tolist()) & set(other.ids.flatten().tolist())
    for ids in (added, other.ids[:8]):
        starts = sorted(ids.view(-1, PIECE)[:, 0].tolist())
        gaps = [after - before for before, after in pairwise([0, *starts, length])]
        assert max(gaps) < 3.0 * length / 16
    assert 0.4 * length < other.ids.numel() <= 0.5 * length


def test_what_is_used_already_is_not_added_again() -> None:
    own = TokenSequences.of(token_ids(40, 256), torch.ones(40, 256, dtype=torch.bool), "own")
    used = add_other_text(own, numbering_tokenizer())
    found = add_other_text(own, numbering_tokenizer(), used)
    assert len(found) == len(used) == 48
    assert found.ids[0].tolist() == own.ids[0].tolist()
    new = rows_of(found) - rows_of(own)
    assert len(new) == 8
    assert not {number for row in new for number in row} & {
        number for row in rows_of(used) - rows_of(own) for number in row
    }


@pytest.mark.parametrize("n_own", [4, 50])
def test_a_short_text_holds_out_its_own_last_sequences(n_own: int) -> None:
    own = tokenise(text(n_own * LENGTH), tokenizer(), 64, LENGTH)
    found = calibration(n_own * LENGTH, 64)
    fit, held_out = found.parts
    assert found.held_out is None
    assert held_out is not None
    assert torch.equal(held_out.ids, own.ids[-len(held_out) :])
    assert len(held_out) == n_held_out(len(own))
    n_fitted = len(own) - len(held_out)
    assert len(fit) == n_fitted + round(n_fitted / 5)


def test_other_text_begins_with_the_token_that_all_sequences_begin_with() -> None:
    for first in (7, 9):
        own = token_ids(6, LENGTH)
        own[:, 0] = first
        sequences = TokenSequences.of(own, torch.ones(6, LENGTH, dtype=torch.bool), "own")
        added, other = (
            add_other_text(sequences, numbering_tokenizer()),
            held_out_other_text(sequences, numbering_tokenizer()),
        )
        assert other is not None
        assert len(added) == 7
        assert {first} == set(added.ids[:, 0].tolist()) | set(other.ids[:, 0].tolist())


def test_special_tokens_that_leave_no_room_leave_a_text_alone() -> None:
    own = TokenSequences.of(token_ids(6, 2), torch.ones(6, 2, dtype=torch.bool), "own")
    assert add_other_text(own, tokenizer()) is own
    assert held_out_other_text(own, tokenizer()) is None


def test_what_is_held_out_has_as_much_of_each_kind() -> None:
    own, further = (
        TokenSequences.of(token_ids(n, LENGTH), torch.ones(n, LENGTH, dtype=torch.bool), "own") for n in (4, 2)
    )
    other = held_out_other_text(own, tokenizer())
    assert other is not None
    fit, held_out = CalibrationTokens(own, further, other).parts
    assert fit is own
    assert held_out is not None
    assert held_out.ids[:2].tolist() == further.ids.tolist()
    assert rows_of(held_out) - rows_of(further) <= rows_of(other)
    assert len(held_out) == 4
    assert held_out.source == "own, built-in text"


def test_tokens_lists_mixtures_and_the_built_in_text_stay_alone(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text(text(400), encoding="utf-8")
    alone = [
        None,
        "built-in",
        [text(400)],
        {str(path): 1.0},
        f"{path}:100%",
        f"{path}:0.5,built-in:0.5",
        token_ids(2, 8),
    ]
    assert all(is_alone(given, tiny_llama()) for given in alone)
    assert not any(is_alone(given, tiny_llama()) for given in (path, str(path), text(400), "auto", "dataset:some/name"))
    assert is_alone("auto", torch.nn.Linear(2, 2))
    assert calibration(0, 5, f"{path}:100%").sequences.source == "file words.txt"
    assert "built-in" in calibration(0, 5, path).sequences.source


def test_no_other_text_for_the_built_in_text_and_for_features() -> None:
    own = tokenise(text(300), tokenizer(), 2, LENGTH)
    assert held_out_other_text(own, tokenizer()) is not None
    assert held_out_other_text(add_other_text(own, tokenizer()), tokenizer()) is not None
    assert held_out_other_text(tokenise(None, tokenizer(), 2, LENGTH), tokenizer()) is None
    mixed = replace(own, source="1 of file a.txt, 1 of built-in: the Python language reference")
    assert held_out_other_text(mixed, tokenizer()) is None
    assert held_out_other_text(own, None) is None
    assert held_out_other_text(tokenise(features(300, 6), None, 4, 6), tokenizer()) is None


def test_text_that_a_model_without_a_tokenizer_writes_stays_alone() -> None:
    settings = CalibrationText("generated", 5, LENGTH)
    assert len(settings.sequences(tiny_llama(), None, hold_out=True).sequences) == 5


def test_sequences_that_are_longer_than_the_built_in_text_stay_alone() -> None:
    length = 1 << 20
    own = TokenSequences.of(torch.ones(5, length, dtype=torch.long), torch.ones(5, length, dtype=torch.bool), "own")
    assert add_other_text(own, tokenizer()) is own
    assert held_out_other_text(own, tokenizer()) is None
