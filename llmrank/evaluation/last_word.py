"""Last-word accuracy: how often a model predicts the last word of a passage, for passages cut from a plain text.

The method is that of LAMBADA (Paperno et al. 2016, https://arxiv.org/abs/1606.06031): a prediction is right if greedy decoding
writes all tokens of the word. The accuracies are not comparable with those of LAMBADA, whose passages were chosen by people.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmrank.errors import CalibrationError, check_count
from llmrank.evaluation.estimate import Estimate
from llmrank.evaluation.greedy_decoding import writes
from llmrank.progress import Progress

__all__ = ["LastWord", "Passage", "cut_passages", "last_word"]

CONTEXT_WORDS = 50
# Smallest number of letters of a last word: many shorter ones are abbreviations or initials.
MIN_LETTERS = 3
# What corpora write in the place of words outside their vocabulary.
PLACEHOLDERS = {"unk"}
CLOSING = "\"')]\u201d\u2019"
OPENING = "\"'([\u201c\u2018"
BLANK_LINES = re.compile(r"\n\s*\n")
SENTENCE_END = re.compile(rf"([.!?][{re.escape(CLOSING)}]*)(?:$|\s[\s{re.escape(OPENING)}]*)")
# Number of characters at the end of a sentence in which the last word and the punctuation behind it are searched for.
TAIL_LENGTH = 100


@dataclass(frozen=True)
class Passage:
    """A context, and the word that follows it after a space."""

    context: str
    word: str


@dataclass(frozen=True)
class LastWord:
    """How often a model continues passages with their last word.

    Attributes
    ----------
    accuracy : Estimate
        Share of the passages whose last word the model writes, 0..1; the standard error is computed over passages.
    skipped : int
        Number of passages left out: a token runs across the end of the context into the word, or the word alone has as many
        tokens as the model takes, or more.
    """

    accuracy: Estimate
    skipped: int


def cut_passages(
    text: str | Sequence[str], count: int | None = None, context_words: int = CONTEXT_WORDS
) -> list[Passage]:
    """Cut passages from a text by a rule, without a tokenizer.

    Blank lines separate paragraphs. A sentence ends with ``.``, ``!`` or ``?``, and any closing quotes or brackets, before white
    space or the end of a paragraph, unless a lower-case letter comes next (after any opening quotes or brackets).

    A passage begins at the beginning of a paragraph, or where another passage ends. It ends with the first sentence whose last
    word can be asked: the word follows at least `context_words` words of the passage, consists of at least 3 letters, and is not
    ``unk``. The rest of a paragraph is dropped. White space becomes single spaces.

    Parameters
    ----------
    text : str or list of str
        One text or several; no passage runs from one text into the next.
    count : int, optional
        Largest number of passages, chosen at even distances; by default all.
    context_words : int
        Smallest number of words (separated by white space) in front of the last word.

    Returns
    -------
    list of Passage
        In the order of the text; no two share a sentence.

    Raises
    ------
    OptionError
        A number is below 1.

    Examples
    --------
    >>> for passage in cut_passages("A cat sat on the mat . Then, at 5 p.m., a dog came in. Both slept.", context_words=5):
    ...     print(passage)
    Passage(context='A cat sat on the', word='mat')
    Passage(context='Then, at 5 p.m., a dog came in. Both', word='slept')
    """
    for name, value in (("count", count), ("context_words", context_words)):
        if value is not None:
            check_count(name, value)
    paragraphs = [p for part in ([text] if isinstance(text, str) else text) for p in BLANK_LINES.split(part)]
    passages = [passage for p in paragraphs for passage in _passages(" ".join(p.split()), context_words)]
    if count is None or count >= len(passages):
        return passages
    return [passages[k * len(passages) // count] for k in range(count)]


def _passages(paragraph: str, context_words: int) -> Iterator[Passage]:
    """Cut the passages of one paragraph, whose words are separated by single spaces."""
    passage_start = 0
    for match in SENTENCE_END.finditer(paragraph):
        if paragraph[match.end() : match.end() + 1].islower():
            continue
        end = match.end(1)
        tail_start = max(passage_start, end - TAIL_LENGTH)
        before, space, word = paragraph[tail_start:end].rstrip(" .!?" + CLOSING).rpartition(" ")
        if space and word.isalpha() and len(word) >= MIN_LETTERS and word.lower() not in PLACEHOLDERS:
            context = paragraph[passage_start : tail_start + len(before)].strip()
            if len(context.split()) >= context_words:
                yield Passage(context, word)
                passage_start = end


def last_word(
    model: Any,
    tokenizer: Any,
    passages: Sequence[Passage],
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> LastWord:
    """Measure how often a model writes the last word of a passage when it continues the context greedily.

    Parameters
    ----------
    model : transformers causal language model
    tokenizer : transformers tokenizer
    passages : sequence of Passage
    batch_tokens, progress
        See :func:`llmrank.evaluation.greedy_decoding.writes`, also for when a word is written, the exceptions and the cost.

    Raises
    ------
    CalibrationError
        No passage is given, or all are skipped.
    """
    pairs = [(passage.context, f" {passage.word}") for passage in passages]
    asked = [each for each in writes(model, tokenizer, pairs, batch_tokens, progress) if each is not None]
    if not asked:
        raise CalibrationError(
            f"none of {len(passages)} passages can be used: the last word of a passage must begin with a new token, and the "
            f"passage must fit the model; give a text of some thousand words, in paragraphs of more than {CONTEXT_WORDS} words"
        )
    return LastWord(Estimate.of(asked), len(passages) - len(asked))
