"""Last-word accuracy: how often a model predicts the last word of a passage, for passages cut from a plain text.

The method is that of LAMBADA (Paperno et al. 2016, https://arxiv.org/abs/1606.06031): a prediction is right if greedy decoding
writes all tokens of the word. The accuracies are not comparable with those of LAMBADA, whose passages were chosen by people.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmrank.errors import CalibrationError, OptionError, UnsupportedModelError
from llmrank.evaluation.estimate import Estimate
from llmrank.models.forward import check_ids, evaluation_mode, input_device, longest_input, predicts_next_token
from llmrank.progress import Progress, shown
from llmrank.text.documents import plain_ids
from llmrank.text.tokenisation import special_tokens

__all__ = ["LastWord", "Passage", "check_continues", "cut_passages", "last_word"]

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
        if value is not None and value < 1:
            raise OptionError(f"{name} must be an integer >= 1, got {value!r}")
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


def check_continues(model: Any) -> None:
    """Check that a model continues the text that it reads.

    Raises
    ------
    UnsupportedModelError
        The model is an encoder, an encoder-decoder or a plain module.
    """
    if not predicts_next_token(model) or model.config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not continue the text it reads, so it has no last-word accuracy; expected a causal "
            "language model"
        )


@torch.no_grad()
def last_word(
    model: Any,
    tokenizer: Any,
    passages: Sequence[Passage],
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> LastWord:
    """Measure how often a model writes the last word of a passage when it continues the context greedily.

    Every token of the word must be the likeliest one after the context and the earlier tokens of the word. What the model would
    write after the word does not count. The context begins with the special tokens that the tokenizer puts in front of a text.
    If the model takes fewer tokens than a passage has, the first tokens of the passage are dropped.

    Parameters
    ----------
    model : transformers causal language model
    tokenizer : transformers tokenizer
    passages : sequence of Passage
    batch_tokens : int
        Largest number of tokens in a forward pass, padding included; a longer passage is a batch of its own.
    progress : callable, optional
        See :func:`llmrank.calibration.collect.collect_statistics`.

    Raises
    ------
    UnsupportedModelError
        The model does not continue a text: it is an encoder, an encoder-decoder or a plain module.
    CalibrationError
        No passage is given, or all are skipped; there is no tokenizer, it fails, or it belongs to another model; or the
        predictions hold NaN.
    OptionError
        See :func:`llmrank.models.forward.input_device`.

    Notes
    -----
    Cost: a forward pass of the passages. Memory: the logits of a batch, including those before the last words if the
    model cannot leave them out.
    """
    check_continues(model)
    if tokenizer is None:
        raise CalibrationError("passages need a tokenizer, and this model came without one; pass one")
    encoded = _encode(tokenizer, passages, longest_input(model))
    if not encoded:
        raise CalibrationError(
            f"none of {len(passages)} passages can be used: the last word of a passage must begin with a new token, and the "
            f"passage must fit the model; give a text of some thousand words, in paragraphs of more than {CONTEXT_WORDS} words"
        )
    can_leave_out_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
    n_right = 0
    with evaluation_mode(model):
        batches = list(_batches(encoded, batch_tokens))
        for batch in shown(progress, batches, "Asking last words"):
            n_right += _count_right(model, batch, can_leave_out_logits=can_leave_out_logits)
    # The estimate does not depend on the order of the passages.
    return LastWord(Estimate.of([1] * n_right + [0] * (len(encoded) - n_right)), len(passages) - len(encoded))


def _encode(tokenizer: Any, passages: Sequence[Passage], longest: int | None) -> list[tuple[list[int], int]]:
    """Return, for each passage that can be used, its token ids and the number of tokens of its last word."""
    front, _ = special_tokens(tokenizer)
    encoded = []
    for passage in passages:
        context = plain_ids(tokenizer, passage.context)
        both = plain_ids(tokenizer, f"{passage.context} {passage.word}")
        word_size = len(both) - len(context)
        if both[: len(context)] != context or word_size < 1:
            continue
        # The model predicts the last token without reading it, so there may be one token more than it can read.
        ids = (front + both) if longest is None else (front + both)[-(longest + 1) :]
        # If all tokens belong to the word, there is no context to continue.
        if len(ids) > word_size:
            encoded.append((ids, word_size))
    return encoded


def _batches(encoded: list[tuple[list[int], int]], batch_tokens: int) -> Iterator[list[tuple[list[int], int]]]:
    """Yield batches of passages of similar length.

    The longest passages come first, so that a lack of memory shows at once.
    """
    batch: list[tuple[list[int], int]] = []
    for entry in sorted(encoded, key=lambda entry: -len(entry[0])):
        if batch and (len(batch) + 1) * (len(batch[0][0]) - 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(entry)
    yield batch


def _count_right(model: Any, batch: list[tuple[list[int], int]], *, can_leave_out_logits: bool) -> int:
    """Count the passages of a batch whose last word the model writes."""
    longest = max(len(ids) for ids, _ in batch) - 1
    inputs = torch.zeros((len(batch), longest), dtype=torch.long)
    mask = torch.zeros_like(inputs)
    for row, (ids, _) in enumerate(batch):
        # Padding on the right does not change the predictions for the tokens before it, however the model counts positions.
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        mask[row, : len(ids) - 1] = 1
    check_ids(model, inputs)
    # Position of the first prediction that is needed: in some passage, it predicts the first token of the last word.
    first = min(len(ids) - 1 - size for ids, size in batch)
    options: dict[str, Any] = {"use_cache": False} if getattr(model.config, "use_cache", False) else {}
    if can_leave_out_logits:
        options["logits_to_keep"] = longest - first
    device = input_device(model)
    logits = model(input_ids=inputs.to(device), attention_mask=mask.to(device), **options).logits[:, first - longest :]
    n_right = 0
    for (ids, size), passage_logits in zip(batch, logits, strict=True):
        word_logits = passage_logits[len(ids) - 1 - size - first : len(ids) - 1 - first]
        if bool(word_logits.isnan().any()):
            raise CalibrationError(
                "the model's predictions are not finite: the weights hold NaN or Inf, or the dtype overflows; load it in "
                "float32 or bfloat16 and check its perplexity"
            )
        n_right += bool((word_logits.argmax(-1).cpu() == torch.tensor(ids[-size:])).all())
    return n_right
