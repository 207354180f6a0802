"""Losses token by token, before and after pruning."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models

from llmrank.errors import CalibrationError, OptionError, UnsupportedModelError
from llmrank.evaluation.perplexity import sequence_losses
from llmrank.evaluation.token_losses import GROUPINGS, TokenLosses, loss_changes, token_losses
from llmrank.execution import Execution
from llmrank.text import TokenSequences
from tests.llmrank.tiny_models import (
    disturbed,
    family_model,
    logits,
    named_family,
    padded_sequences,
    spelling_tokenizer,
    tiny_llama,
    tiny_t5,
    token_ids,
    tokenizer,
    whole_sequences,
)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_losses_and_likeliest_tokens_against_a_loop(batch_size: int) -> None:
    model, sequences = tiny_llama(), padded_sequences()
    found = token_losses(model, sequences, Execution(batch_size))
    k = 0
    for row, (ids, mask) in enumerate(zip(sequences.ids, sequences.mask, strict=True)):
        predictions = logits(model, ids[mask][None])[0].tolist()
        for at in range(1, int(mask.sum())):
            total = sum(math.exp(value) for value in predictions[at - 1])
            assert found.positions[k] == row * sequences.length + at
            probability = math.exp(predictions[at - 1][int(ids[at])]) / total
            assert math.exp(-found.losses[k]) == pytest.approx(probability, rel=1e-4)
            assert found.likeliest[k] == max(range(64), key=predictions[at - 1].__getitem__)
            assert found.probabilities[k] == pytest.approx(math.exp(max(predictions[at - 1])) / total, rel=1e-4)
            k += 1
    assert k == len(found.positions) == len(found.losses)


@pytest.mark.parametrize("build", [tiny_llama, tiny_t5])
def test_their_sums_are_the_losses_of_the_sequences(build: Any) -> None:
    model, sequences = build(), whole_sequences(token_ids(3, 12))
    found = token_losses(model, sequences, Execution(2))
    totals, counts = sequence_losses(model, sequences)
    rows = found.positions // 12
    assert np.bincount(rows).tolist() == counts
    assert np.bincount(rows, found.losses) == pytest.approx(totals, rel=1e-4)


def changed(**losses: list[float]) -> tuple[TokenLosses, TokenLosses, TokenSequences]:
    """Losses of the tokens behind the first of ``the cat sat ...``."""
    ids = torch.tensor([spelling_tokenizer()("the cat sat on the mat. 12 cat")["input_ids"]])
    n = ids.numel() - 1
    sequences = whole_sequences(ids)
    made = [
        TokenLosses(
            np.arange(1, n + 1), np.array((values + [1.0] * n)[:n]), np.full(n, int(ids[0, 0])), np.full(n, 0.5)
        )
        for values in (losses["before"], losses["after"])
    ]
    return made[0], made[1], sequences


def test_kinds_cover_every_token_once() -> None:
    words = spelling_tokenizer()
    before, after, sequences = changed(before=[1.0], after=[2.0, 4.0])
    changes = loss_changes(before, after, sequences, words)
    n = len(before.losses)
    assert changes.all.change.count == n
    assert changes.all.change.value == pytest.approx(4 / n)
    assert (changes.all.before, changes.all.after) == pytest.approx((1.0, 1 + 4 / n))
    for grouping, kinds in changes.kinds.items():
        assert set(kinds) <= set(GROUPINGS[grouping])
        assert sum(kind.change.count for kind in kinds.values()) == n
        assert sum(kind.share_of_change for kind in kinds.values()) == pytest.approx(1)
        assert sum(kind.change.value * kind.change.count for kind in kinds.values()) == pytest.approx(4)


def kinds_of(ids: list[int], words: Any, grouping: str) -> dict[str, list[str]]:
    """The tokens of each kind behind the first: each is made to lose once, by itself."""
    found: dict[str, list[str]] = {}
    n = len(ids) - 1
    flat = TokenLosses(np.arange(1, n + 1), np.ones(n), np.zeros(n, int), np.ones(n))
    for k in range(n):
        worse = TokenLosses(flat.positions, np.where(np.arange(n) == k, 2.0, 1.0), flat.likeliest, flat.probabilities)
        changes = loss_changes(flat, worse, whole_sequences(torch.tensor([ids])), words)
        (name,) = [name for name, kind in changes.kinds[grouping].items() if kind.share_of_change]
        found.setdefault(name, []).append(changes.worst[0].context.token)
    return found


def test_forms_of_tokens() -> None:
    pieces = ["<end>", "\u0120the", "ing", "\u010a", "\u0120\u0120", "\u01204", "2", ".", "\u0120(", "Def", "n't", "'s"]
    backend = Tokenizer(models.BPE({piece: k for k, piece in enumerate(pieces)}, []))
    backend.decoder = decoders.ByteLevel()
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    text = [pieces.index(piece) for piece in (*pieces[1:9], "Def", "ing", "n't", "'s", "\u010a", "Def", "<end>")]
    assert kinds_of([0, *text], words, "form") == {
        "word beginning": [" the", "Def", "Def"],
        "word continuation": ["ing", "ing", "n't", "'s"],
        "white space": ["\n", "  ", "\n"],
        "number": [" 4", "2"],
        "punctuation": [".", " ("],
        "special": ["<end>"],
    }


def test_frequent_and_repeated_tokens() -> None:
    words = spelling_tokenizer()
    ids = words("the cat the cat the cat on a mat")["input_ids"]
    assert kinds_of(ids, words, "sequence") == {
        "new": [" cat", " the", " on", " a", " mat"],
        "repeated": [" cat", " the", " cat"],
    }
    assert kinds_of(ids, words, "frequency") == {
        "frequent": [" cat", " the", " cat", " the", " cat"],
        "rare": [" on", " a", " mat"],
    }


def test_the_worst_examples_are_told_side_by_side() -> None:
    words = spelling_tokenizer()
    before, after, sequences = changed(before=[0.5, 0.1, 3.0], after=[0.6, 2.1, 1.0])
    worst = loss_changes(before, after, sequences, words, worst=5).worst
    assert [each.position for each in worst] == [2, 1]
    first = worst[0]
    assert first.context.token == words.decode(sequences.ids[0, 2:3])
    assert (first.before, first.after) == pytest.approx((math.exp(-0.1), math.exp(-2.1)))
    assert first.predicted_after == first.predicted_before == words.decode(sequences.ids[0, :1])
    assert (first.probability_before, first.probability_after) == (0.5, 0.5)


def test_equal_models_lose_nothing() -> None:
    model, sequences = tiny_llama(), padded_sequences()
    found = token_losses(model, sequences)
    changes = loss_changes(found, found, sequences, tokenizer())
    assert changes.worst == ()
    assert changes.all.change.value == 0
    assert math.isnan(changes.all.share_of_change)


def test_a_disturbed_model_loses_what_its_losses_say() -> None:
    model, sequences = tiny_llama(), padded_sequences()
    before, after = token_losses(model, sequences), token_losses(disturbed(model), sequences)
    changes = loss_changes(before, after, sequences, tokenizer(), worst=3)
    expected = np.sort(after.losses - before.losses)[::-1][:3]
    assert [math.log(each.before / each.after) for each in changes.worst] == pytest.approx(expected.tolist())


def test_what_cannot_be_compared_is_refused() -> None:
    model = tiny_llama()
    one, other = whole_sequences(token_ids(2, 8)), whole_sequences(token_ids(3, 8))
    with pytest.raises(OptionError, match="different texts"):
        loss_changes(token_losses(model, one), token_losses(model, other), one, tokenizer())
    with pytest.raises(OptionError, match="need a tokenizer"):
        loss_changes(token_losses(model, one), token_losses(model, one), one, None)
    with pytest.raises(CalibrationError, match="no token"):
        token_losses(model, whole_sequences(token_ids(2, 8), torch.arange(8).expand(2, 8) < 1))
    bert = family_model(named_family("BERT"))
    with pytest.raises(UnsupportedModelError, match="loss of tokens"):
        token_losses(bert, one)
