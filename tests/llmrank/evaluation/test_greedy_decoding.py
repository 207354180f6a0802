"""Whether a model writes answers, in the order of the pairs; how is tested with last words and items."""

from __future__ import annotations

import pytest

from llmrank.evaluation.greedy_decoding import writes
from tests.llmrank.tiny_models import bigram_model, spelling_tokenizer


@pytest.mark.parametrize("batch_tokens", [1, 7, 1000])
def test_results_stand_in_the_order_of_the_pairs(batch_tokens: int) -> None:
    tokenizer = spelling_tokenizer(front=True)
    cat, sat, mat = (tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in ("cat", "sat", "mat"))
    model = bigram_model({cat: sat}, mat)
    pairs = [
        ("the cat", " sat"),
        ("on a", " mat"),
        ("the mat on the cat", " mat"),
        # Not a token more than the prompt.
        ("the", ""),
        ("the mat on the cat", " sat mat mat"),
        # The beginning of a text is a prompt too.
        ("", " mat"),
    ]
    assert writes(model, tokenizer, pairs, batch_tokens) == [True, True, False, None, True, True]


def test_no_pairs_are_no_results() -> None:
    assert writes(bigram_model({}, 5), spelling_tokenizer(), []) == []
