"""Passages by their rules, and last words against greedy decoding token by token."""

from __future__ import annotations

import copy
import itertools
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import CalibrationError, OptionError, UnsupportedModelError
from llmrank.evaluation.last_word import Passage, cut_passages, last_word
from llmrank.text.documents import plain_ids
from tests.llmrank.tiny_models import (
    TALE,
    Snapshot,
    bigram_model,
    family_model,
    mlp,
    named_family,
    spelling_tokenizer,
    tiny_llama,
    tiny_t5,
)
from tests.tables import table

WORDS = TALE.split()


def some_passages(n: int = 24, least: int = 3) -> list[Passage]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for k in range(n):
        picks = torch.randint(len(WORDS), (least + k % 5 + 1,), generator=generator).tolist()
        *context, word = [WORDS[pick] for pick in picks]
        found.append(Passage(" ".join(context), word))
    return found


@torch.no_grad()
def writes(model: Any, context: list[int], word: list[int]) -> bool:
    """Return whether greedy decoding, token by token and without a cache, writes the word."""
    ids, position = list(context), 0
    while position < len(word):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        position += 1
    return ids[len(context) :] == word


def taught(model: Any, tokenizer: Any, front: list[int]) -> list[Passage]:
    """Make passages; every second one ends with the word that the model predicts, if that is a word."""
    found = []
    for k, passage in enumerate(some_passages(60)):
        if k % 2:
            found.append(passage)
            continue
        ids = front + tokenizer(passage.context, add_special_tokens=False)["input_ids"]
        for _ in range(3):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        said = tokenizer.decode(ids[-3:])
        match = re.fullmatch(r" ([a-z]+)", said)
        if match:
            found.append(Passage(passage.context, match[1]))
    return found


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("name", ["Llama, SmolLM2", "GPT-2", "OPT", "BLOOM"])
def test_accuracy_equals_greedy_decoding(name: str, front: bool) -> None:
    model, tokenizer = family_model(named_family(name)), spelling_tokenizer(front=front, back=front)
    passages = taught(model, tokenizer, [1] if front else []) + some_passages()
    wanted, sizes = [], set()
    for passage in passages:
        context = tokenizer(passage.context, add_special_tokens=False)["input_ids"]
        word = tokenizer(" " + passage.word, add_special_tokens=False)["input_ids"]
        sizes.add(len(word))
        wanted.append(writes(model, ([1] if front else []) + context, word))
    assert {1, 2} <= sizes
    for batch_tokens in (1, 60, 10_000):
        found = last_word(model, tokenizer, passages, batch_tokens)
        assert found.skipped == 0
        assert found.accuracy.count == len(passages)
        assert found.accuracy.value == pytest.approx(sum(wanted) / len(wanted))
        share = sum(wanted) / len(wanted)
        assert found.accuracy.error == pytest.approx(math.sqrt(share * (1 - share) / (len(wanted) - 1)))


@pytest.mark.parametrize("word", ["mat", "another", "hills"])
def test_every_token_of_the_word_has_to_be_right(word: str) -> None:
    tokenizer = spelling_tokenizer()
    ids = tokenizer(" " + word, add_special_tokens=False)["input_ids"]
    # From any token to the first token of the word, and then along the word.
    model = bigram_model(dict(itertools.pairwise(ids)), ids[0])
    assert len(set(ids)) == len(ids)
    passages = [Passage("the sat on", other) for other in (word, *WORDS) if other not in ("a", "on")]
    right = [passage for passage in passages if passage.word == word]
    found = last_word(model, tokenizer, passages)
    assert found.accuracy.value == pytest.approx(len(right) / len(passages))
    # A word that only begins like it is another one.
    assert last_word(model, tokenizer, [Passage("the sat on", word + "ed")]).accuracy.value == 0.0


def test_models_that_cannot_leave_out_logits_work_too() -> None:
    model, tokenizer = tiny_llama(), spelling_tokenizer()
    passages = taught(model, tokenizer, [])
    wanted = last_word(model, tokenizer, passages)
    assert 0 < wanted.accuracy.value < 1

    class Old(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool) -> Any:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    Old.__name__ = type(model).__name__
    model.__class__ = Old
    assert last_word(model, tokenizer, passages) == wanted


def test_long_contexts_lose_their_beginning() -> None:
    model, tokenizer = family_model(named_family("GPT-2")), spelling_tokenizer(front=True)
    context = " ".join(WORDS * 4)
    ids = plain_ids(tokenizer, context)
    assert len(ids) > 64
    with torch.no_grad():
        own = int(model(input_ids=torch.tensor([ids[-64:]])).logits[0, -1].argmax())
    read: list[list[int]] = []
    model.register_forward_pre_hook(lambda _m, _args, given: read.extend(given["input_ids"].tolist()), with_kwargs=True)
    for word, wanted in ((tokenizer.decode([own]).strip(), 1.0), ("mat", 0.0)):
        read.clear()
        assert last_word(model, tokenizer, [Passage(context, word)]).accuracy.value == wanted
        assert read == [plain_ids(tokenizer, f"{context} {word}")[-65:-1]]


def test_words_that_fill_the_longest_input_are_skipped() -> None:
    """A model that reads 4 tokens reads one in front of a word of 4 tokens, and none in front of a word of 5."""
    model, tokenizer = tiny_llama(max_position_embeddings=4), spelling_tokenizer(front=True)
    fits, fills, longer = "saturn", "saturns", "monster"
    assert [len(plain_ids(tokenizer, f" {word}")) for word in (fits, fills, longer)] == [4, 5, 7]
    for word in (fills, longer):
        found = last_word(model, tokenizer, [Passage("the", fits), Passage("the", word)])
        assert (found.skipped, found.accuracy.count) == (1, 1)


@pytest.mark.parametrize("batch_tokens", [1, 40, 60, 10_000])
def test_batches_hold_no_more_tokens_than_requested_and_the_longest_come_first(batch_tokens: int) -> None:
    model, tokenizer = tiny_llama(), spelling_tokenizer()
    passages = some_passages()
    shapes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda _m, _args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    last_word(model, tokenizer, passages, batch_tokens)
    # The last token of each is not read.
    read = sorted((len(plain_ids(tokenizer, f"{p.context} {p.word}")) - 1 for p in passages), reverse=True)
    wanted: list[tuple[int, int]] = []
    while read:
        rows = min(max(1, batch_tokens // read[0]), len(read))
        wanted.append((rows, read[0]))
        read = read[rows:]
    assert shapes == wanted


def test_words_without_tokens_of_their_own_are_skipped() -> None:
    tokenizer = spelling_tokenizer(across=True)
    joined = Passage("the cat sat on the", "mat")
    context = tokenizer("the cat sat on the", add_special_tokens=False)["input_ids"]
    whole = tokenizer("the cat sat on the mat", add_special_tokens=False)["input_ids"]
    assert whole[: len(context)] != context
    found = last_word(tiny_llama(), tokenizer, [joined, Passage("w", "hills")])
    assert (found.skipped, found.accuracy.count) == (1, 1)
    assert found.accuracy.error is None
    with pytest.raises(CalibrationError, match="none of 1 passages can be used"):
        last_word(tiny_llama(), tokenizer, [joined])


def test_no_passage_and_no_tokenizer_are_refused() -> None:
    with pytest.raises(CalibrationError, match="none of 0 passages can be used"):
        last_word(tiny_llama(), spelling_tokenizer(), [])
    with pytest.raises(CalibrationError, match="without one"):
        last_word(tiny_llama(), None, some_passages())


@pytest.mark.parametrize(
    "make",
    [
        lambda: family_model(named_family("BERT")),
        lambda: mlp(4, 6, 2),
        tiny_t5,
    ],
)
def test_models_that_do_not_continue_a_text_are_refused(make: Any) -> None:
    with pytest.raises(
        UnsupportedModelError, match="finds no last words and answers no items; expected a causal language model"
    ):
        last_word(make(), spelling_tokenizer(), some_passages())


def test_predictions_that_hold_nan_are_refused() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[9] = math.nan
    with pytest.raises(CalibrationError, match="not finite"):
        last_word(model, spelling_tokenizer(), some_passages())


def test_tokens_of_another_tokenizer_are_refused() -> None:
    with pytest.raises(CalibrationError, match="another tokenizer"):
        last_word(tiny_llama(vocab_size=10), spelling_tokenizer(), some_passages())


def test_the_model_is_not_changed() -> None:
    model = tiny_llama(attention_dropout=0.5)
    model.train()
    snapshot = Snapshot(model)
    passages = some_passages()
    assert last_word(model, spelling_tokenizer(), passages) == last_word(
        copy.deepcopy(model), spelling_tokenizer(), passages
    )
    snapshot.assert_restored()
    assert model.training


def cut(text: str, least: int = 2) -> list[str]:
    return [f"{passage.context}|{passage.word}" for passage in cut_passages(text, context_words=least)]


@table(
    ("text", "wanted"),
    [
        ("", []),
        ("   \n\n  ", []),
        ("No end of a sentence", []),
        ("He saw her. ", ["He saw|her"]),
        ("He saw her ! Then he left", ["He saw|her"]),
        # White space becomes single spaces, and a blank line ends a passage.
        ("\tHe saw\n a   cat.", ["He saw a|cat"]),
        ("He saw.\n\nThe big cat?", ["The big|cat"]),
        ("He saw.\nThe big cat?", ["He saw. The big|cat"]),
        # Closing punctuation, apart or not.
        ('He said " Go home . " She went straight home.', ['He said " Go|home', '" She went straight|home']),
        ("It was (so they said.) It was not true.", ["It was (so they|said", "It was not|true"]),
        # Not proper words: digits, hyphens, too short, placeholders of unknown words; the next sentence continues the passage.
        ("He came in 1999. She had left.", ["He came in 1999. She had|left"]),
        ("He came at ten-ish. She had left.", ["He came at ten-ish. She had|left"]),
        ("He met old unk. She had left.", ["He met old unk. She had|left"]),
        ("He met old UNK. She had left.", ["He met old UNK. She had|left"]),
        ("He met old Mr. Stone today.", ["He met old Mr. Stone|today"]),
        ("They ate figs etc. and went home.", ["They ate figs etc. and went|home"]),
        ("It cost 3.50 in all.", ["It cost 3.50 in|all"]),
        # Too few words in front.
        ("Go home. Then come back.", ["Go home. Then come|back"]),
        ("Elle a bu du thé. Élodie est entrée.", ["Elle a bu du|thé", "Élodie est|entrée"]),
    ],
)
def test_rules_of_passages(text: str, wanted: list[str]) -> None:
    assert cut(text) == wanted


def test_no_passage_runs_from_one_text_into_the_next() -> None:
    assert cut_passages(["One two three", "four. One two three."], context_words=2) == [
        Passage("four. One two", "three")
    ]


def test_a_count_is_spread_over_the_text() -> None:
    text = " ".join(f"Number {k} is just a {word}." for k, word in enumerate(WORDS * 2) if len(word) > 2)
    every = cut_passages(text, context_words=3)
    assert cut_passages(text, len(every), 3) == every
    assert cut_passages(text, 10_000, 3) == every
    assert cut_passages(text, 1, 3) == every[:1]
    assert cut_passages(text, 4, 3) == [every[k * len(every) // 4] for k in range(4)]


@pytest.mark.parametrize("numbers", [{"count": 0}, {"context_words": 0}])
def test_numbers_below_one_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(numbers))} must be an integer >= 1"):
        cut_passages("Some text.", **numbers)


@given(st.text(alphabet="aB1 .!?\"'()\n", max_size=200))
def test_passages_are_pieces_of_the_text_in_order(text: str) -> None:
    whole, place = " ".join(text.split()), 0
    for passage in cut_passages(text, context_words=1):
        piece = f"{passage.context} {passage.word}"
        place = whole.index(piece, place) + len(piece)
        assert passage.word.isalpha()
        assert len(passage.word) >= 3
        assert passage.context == passage.context.strip() != ""


def test_long_texts_without_a_passage_take_linear_time() -> None:
    """It takes half a second; searching from the beginning at every sentence would take minutes."""
    assert cut_passages("Ab 12. " * 200_000) == []
