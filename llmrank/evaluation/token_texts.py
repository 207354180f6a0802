"""The texts of single tokens, and the text around a token of a sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmrank.errors import OptionError
from llmrank.text.sequences import TokenSequences
from llmrank.text.tokenisation import special_ids

__all__ = ["TOKENS_AFTER", "TOKENS_BEFORE", "Context", "TokenTexts"]

# How many tokens of the text are shown around one, at most.
TOKENS_BEFORE, TOKENS_AFTER = 16, 8

# Kinds of tokenizers that split a text at spaces first, and leave the spaces out of the tokens.
WORD_TOKENIZERS = ("WordLevel", "WordPiece")
# How these tokenizers begin a token that continues a word. Any other token stands behind a space.
CONTINUES = "##"
# How SentencePiece writes a space.
SPACE = "\u2581"


@dataclass(frozen=True)
class Context:
    """A token of a text with the text around it.

    Attributes
    ----------
    before, token, after : str
        Joined, they are a piece of the text.
    """

    before: str
    token: str
    after: str


class TokenTexts:
    """The text of each token of a tokenizer, including the space in front of a word. Each token is decoded only once.

    A token that holds only a part of a character becomes U+FFFD, as tokenizers decode it. The text of a number
    that is no token is empty.

    Parameters
    ----------
    tokenizer : transformers tokenizer

    Raises
    ------
    OptionError
        There is no tokenizer.

    Attributes
    ----------
    special : frozenset of int
        The special tokens, such as the end of a text.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer is None:
            raise OptionError("the texts of tokens need a tokenizer, and this model came without one")
        self._tokenizer = tokenizer
        self.special = frozenset(special_ids(tokenizer))
        self._is_word_tokenizer = (
            type(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)).__name__ in WORD_TOKENIZERS
        )
        self._texts: dict[int, str] = {}

    def __len__(self) -> int:
        """Return the number of tokens that the tokenizer can write."""
        return len(self._tokenizer)

    def __getitem__(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._decode(token)
        return self._texts[token]

    def _decode(self, token: int) -> str:
        stored = self._tokenizer.convert_ids_to_tokens(token)
        if stored is None:  # heads are often padded to more rows than there are tokens
            return ""
        if self._is_word_tokenizer and token not in self.special:
            return stored.removeprefix(CONTINUES) if stored.startswith(CONTINUES) else f" {stored}"
        text = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        # The decoder removes a space at the beginning of a text, and here the whole text is one token.
        return f" {text}" if stored.startswith(SPACE) and not text.startswith(" ") else text

    def join(self, tokens: list[int]) -> str:
        """Return the text of consecutive tokens."""
        return "".join(self[token] for token in tokens)

    def context(
        self, sequences: TokenSequences, position: int, before: int = TOKENS_BEFORE, after: int = TOKENS_AFTER
    ) -> Context:
        """Return a token with the text around it. Text of other sequences, and padding, are left out.

        Parameters
        ----------
        sequences : TokenSequences
        position : int
            Index of the token in ``sequences.ids.flatten()``.
        before, after : int
            Largest number of tokens on each side.
        """
        row, at = divmod(position, sequences.length)
        ids, mask = sequences.ids[row], sequences.mask[row]

        def text(start: int, end: int) -> str:
            return self.join(ids[start:end][mask[start:end]].tolist())

        return Context(text(max(at - before, 0), at), self[int(ids[at])], text(at + 1, at + 1 + after))
