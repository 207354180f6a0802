"""The texts of tokens, and of the tokens around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from llmrank.errors import OptionError
from llmrank.evaluation.token_texts import Context, TokenTexts
from tests.llmrank.tiny_models import TALE, spelling_tokenizer, tokenizer, whole_sequences


def fast(model: Any, pre_tokenizer: Any = None, decoder: Any = None) -> Any:
    backend = Tokenizer(model)
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoder
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def test_tokens_of_a_text_join_to_the_text() -> None:
    words = spelling_tokenizer()
    texts, ids = TokenTexts(words), words(TALE)["input_ids"]
    assert texts.join(ids) == TALE
    assert any(texts[token].startswith(" ") for token in ids)


def test_a_space_of_sentencepiece_is_kept() -> None:
    """Its decoder takes it from the beginning of a text."""
    vocabulary = {"[UNK]": 0, "▁the": 1, "▁cat": 2, "s": 3}
    words = fast(models.WordLevel(vocabulary, "[UNK]"), None, decoders.Metaspace())
    words.backend_tokenizer.model = models.BPE(vocabulary, [], unk_token="[UNK]")
    texts = TokenTexts(words)
    assert [texts[token] for token in (1, 2, 3)] == [" the", " cat", "s"]


def test_word_pieces_continue_words() -> None:
    words = fast(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"), pre_tokenizers.Whitespace())
    texts = TokenTexts(words)
    assert texts.join([1, 2, 1]) == " playing play"


def test_a_row_of_a_padded_head_has_no_text() -> None:
    for words in (tokenizer(), spelling_tokenizer()):
        assert TokenTexts(words)[len(words) + 3] == ""


def test_a_context_ends_with_its_sequence_and_before_padding() -> None:
    ids = torch.tensor([[10, 11, 12, 13], [14, 15, 0, 0]])
    sequences = whole_sequences(ids, ids > 0)
    texts = TokenTexts(tokenizer())
    assert texts.context(sequences, 0, 2, 2) == Context("", " w10", " w11 w12")
    assert texts.context(sequences, 3, 2, 2) == Context(" w11 w12", " w13", "")
    assert texts.context(sequences, 5, 4, 4) == Context(" w14", " w15", "")
    assert texts.context(sequences, 4, 4, 4) == Context("", " w14", " w15")


def test_special_tokens_are_known_and_a_tokenizer_is_needed() -> None:
    texts = TokenTexts(tokenizer())
    assert texts.special == {0, 1, 2, 3}
    assert (texts[1], len(texts)) == ("[BOS]", 64)
    with pytest.raises(OptionError, match="need a tokenizer"):
        TokenTexts(None)


def test_tokens_that_were_added_as_special_are_special_without_a_name() -> None:
    """Tokenizers reserve such tokens for later use, and they are seldom trained."""
    words = tokenizer()
    words.add_tokens([AddedToken("[reserved]", special=True), AddedToken("[plain]", special=False)])
    assert 64 not in words.all_special_ids
    assert TokenTexts(words).special == {0, 1, 2, 3, 64}
