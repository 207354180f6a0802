"""Last-word accuracy: passages are cut from a plain text, and a model is asked for the word that each of them ends with.

The manner is that of LAMBADA (Paperno et al. 2016, https://arxiv.org/abs/1606.06031): the word counts as found where greedy
decoding writes it, all its tokens. Its passages were chosen by people who could tell the word from the whole passage and
not from its last sentence; ours are cut by rule from any text, so the numbers of the two are not comparable.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmrank.calibration.forward import Progress, check_ids, evaluation_mode, input_device, longest_input
from llmrank.calibration.logits import check_predicts
from llmrank.calibration.text import plain_ids, special_tokens
from llmrank.errors import CalibrationError, OptionError, UnsupportedModelError
from llmrank.evaluation.estimate import Estimate

__all__ = ["LastWord", "Passage", "check_continues", "cut_passages", "last_word"]

CONTEXT_WORDS = 50
# Shorter words at the end of what looks like a sentence are mostly abbreviations and initials.
LETTERS = 3
# What corpora write for a word outside their vocabulary.
NO_WORDS = {"unk"}
CLOSING = "\"')]\u201d\u2019"
OPENING = "\"'([\u201c\u2018"
BLOCK = re.compile(r"\n\s*\n")
SENTENCE_END = re.compile(rf"([.!?][{re.escape(CLOSING)}]*)(?:$|\s[\s{re.escape(OPENING)}]*)")
# Characters in which a last word and the punctuation behind it are looked for.
TAIL = 100


@dataclass(frozen=True)
class Passage:
    """A context, and the word it is to be continued with (after a space)."""

    context: str
    word: str


@dataclass(frozen=True)
class LastWord:
    """How often a model continues passages with their last word; the error is over passages.

    Attributes
    ----------
    accuracy : Estimate
        Share of the passages, 0..1.
    skipped : int
        Passages left out, because the tokenizer does not begin a token with the word, or the word is longer than the model
        takes.
    """

    accuracy: Estimate
    skipped: int


def cut_passages(
    text: str | Sequence[str], count: int | None = None, context_words: int = CONTEXT_WORDS
) -> list[Passage]:
    """Cut passages from a text by rule, without any tokenizer.

    Blocks (paragraphs between blank lines) are gone through sentence by sentence. A sentence ends with ``.``, ``!`` or ``?``,
    quotes or brackets that close after it, and the end of the block, or white space and then no lower-case letter. A passage
    begins where the last one ended, or with the block, and ends with the first sentence whose last word has `context_words`
    words of the passage before it and is one: letters only, at least 3, white space in front, nothing but closing
    punctuation behind, and not ``unk``. What is left of a block is dropped. White space becomes single spaces.

    Parameters
    ----------
    text : str or list of str
        Several texts are so many blocks or more.
    count : int, optional
        At most so many passages, spread evenly over the text; all by default.
    context_words : int
        Words (divided by white space) in front of the last one, at least.

    Returns
    -------
    list of Passage
        In the order of the text, no two of which share a sentence; empty where there is none.

    Raises
    ------
    OptionError
        Numbers below 1.

    Examples
    --------
    >>> for passage in cut_passages("A cat sat on the mat . Then, at 5 p.m., a dog came in. Both slept.", context_words=5):
    ...     print(passage)
    Passage(context='A cat sat on the', word='mat')
    Passage(context='Then, at 5 p.m., a dog came in. Both', word='slept')
    """
    for name, value in (("count", count), ("context_words", context_words)):
        if value is not None and value < 1:
            raise OptionError(f"{name} must be an integer >= 1, got {value!r}")
    blocks = [block for part in ([text] if isinstance(text, str) else text) for block in BLOCK.split(part)]
    found = [passage for block in blocks for passage in _of_block(" ".join(block.split()), context_words)]
    if count is None or count >= len(found):
        return found
    return [found[k * len(found) // count] for k in range(count)]


def _of_block(block: str, context_words: int) -> Iterator[Passage]:
    begin = 0
    for match in SENTENCE_END.finditer(block):
        if block[match.end() : match.end() + 1].islower():
            continue
        end = match.end(1)
        start = max(begin, end - TAIL)
        before, space, word = block[start:end].rstrip(" .!?" + CLOSING).rpartition(" ")
        if space and word.isalpha() and len(word) >= LETTERS and word.lower() not in NO_WORDS:
            context = block[begin : start + len(before)].strip()
            if len(context.split()) >= context_words:
                yield Passage(context, word)
                begin = end


def check_continues(model: Any) -> None:
    """Raise unless the model continues the text it reads.

    Parameters
    ----------
    model : nn.Module

    Raises
    ------
    UnsupportedModelError
        An encoder, an encoder-decoder, a plain module.
    """
    check_predicts(model, "last-word accuracy")
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{type(model).__name__} is an encoder-decoder, which does not continue the text it reads; last-word accuracy "
            "needs a causal language model"
        )


@torch.no_grad()
def last_word(
    model: Any,
    tokenizer: Any,
    passages: Sequence[Passage],
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> LastWord:
    """Share of passages whose last word a model writes when it continues the context greedily.

    Every token of the word has to be the likeliest one, given the context and the tokens of the word before it (which is
    what greedy decoding comes to; what it would write next is not asked). The tokens are those of context and word in one,
    with what the tokenizer puts in front of a text. Where context and word are more than the model takes, the context loses
    its beginning.

    Parameters
    ----------
    model : transformers causal language model
    tokenizer : transformers tokenizer
    passages : sequence of Passage
    batch_tokens : int
        Tokens in a forward pass, padding included (a longer passage goes by itself); the result does not depend on it
        beyond round-off.
    progress : callable, optional
        See :func:`llmrank.calibration.statistics.collect`.

    Returns
    -------
    LastWord

    Raises
    ------
    UnsupportedModelError
        The model does not continue a text: an encoder, an encoder-decoder, a plain module.
    CalibrationError
        No passage, no tokenizer or one of another model, predictions that are not numbers.

    Notes
    -----
    Cost: a forward pass over the passages. Memory: logits of the places where words of a batch stand, where the model can
    leave out the others.
    """
    check_continues(model)
    if tokenizer is None:
        raise CalibrationError("passages need a tokenizer, and this model came without one")
    asked = _encode(tokenizer, passages, longest_input(model))
    if not asked:
        raise CalibrationError(
            f"no passage to ask the last word of ({len(passages)} given, none of them usable); give a text of some thousand "
            f"words, in paragraphs of more than {CONTEXT_WORDS}"
        )
    partial = "logits_to_keep" in inspect.signature(model.forward).parameters
    right = 0
    with evaluation_mode(model):
        batches = list(_batches(asked, batch_tokens))
        for batch in progress(batches, "Asking last words") if progress else batches:
            right += _right(model, batch, partial=partial)
    # Ones and noughts have no order that matters.
    return LastWord(Estimate.of([1] * right + [0] * (len(asked) - right)), len(passages) - len(asked))


def _encode(tokenizer: Any, passages: Sequence[Passage], longest: int | None) -> list[tuple[list[int], int]]:
    """Of each usable passage all tokens, and how many of them are the word's."""
    front, _ = special_tokens(tokenizer)
    found = []
    for passage in passages:
        context = plain_ids(tokenizer, passage.context)
        whole = plain_ids(tokenizer, f"{passage.context} {passage.word}")
        size = len(whole) - len(context)
        if whole[: len(context)] != context or size < 1:
            continue
        # The last token is only predicted, so that one more fits.
        ids = (front + whole) if longest is None else (front + whole)[-(longest + 1) :]
        # Where the word fills it all, nothing is left to continue.
        if len(ids) > size:
            found.append((ids, size))
    return found


def _batches(asked: list[tuple[list[int], int]], batch_tokens: int) -> Iterator[list[tuple[list[int], int]]]:
    """Passages of like length together, the longest first: what does not fit in memory shows at once."""
    batch: list[tuple[list[int], int]] = []
    for entry in sorted(asked, key=lambda entry: -len(entry[0])):
        if batch and (len(batch) + 1) * (len(batch[0][0]) - 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(entry)
    yield batch


def _right(model: Any, batch: list[tuple[list[int], int]], *, partial: bool) -> int:
    """How many words of a batch the model writes."""
    longest = max(len(ids) for ids, _ in batch) - 1
    inputs = torch.zeros((len(batch), longest), dtype=torch.long)
    mask = torch.zeros_like(inputs)
    for row, (ids, _) in enumerate(batch):
        # On the right padding reaches no token in front of it, whichever way the model counts positions.
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        mask[row, : len(ids) - 1] = 1
    check_ids(model, inputs)
    first = min(len(ids) - 1 - size for ids, size in batch)
    options: dict[str, Any] = {"use_cache": False} if getattr(model.config, "use_cache", False) else {}
    if partial:
        options["logits_to_keep"] = longest - first
    device = input_device(model)
    logits = model(input_ids=inputs.to(device), attention_mask=mask.to(device), **options).logits[:, first - longest :]
    right = 0
    for (ids, size), row in zip(batch, logits, strict=True):
        of_word = row[len(ids) - 1 - size - first : len(ids) - 1 - first]
        if bool(of_word.isnan().any()):
            raise CalibrationError(
                "the model's predictions are not finite: the weights hold NaN or Inf, or the dtype overflows; load it in "
                "float32 or bfloat16 and check its perplexity"
            )
        right += bool((of_word.argmax(-1).cpu() == torch.tensor(ids[-size:])).all())
    return right
