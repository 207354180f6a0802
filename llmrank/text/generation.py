"""Calibration text that a language model writes by itself, and the settings with which a model generates.

A model's own text resembles its training data. Source: Williams, Chrysostomou and Aletras 2024 (arXiv 2410.17170); here the text
is sampled at temperature 1 throughout.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from llmrank.errors import CalibrationError, LLMRankError, UnsupportedModelError, is_out_of_memory, not_finite
from llmrank.models.forward import evaluation_mode, fitting_length, input_device, predicts_next_token
from llmrank.progress import Progress, shown
from llmrank.text.sequences import TokenSequences
from llmrank.text.tokenisation import special_ids

__all__ = [
    "LONGEST_TEXT",
    "TEXTS_AT_ONCE",
    "can_write_text",
    "draw_tokens",
    "end_tokens",
    "first_token",
    "generate_text",
    "generation_settings",
]

# Longest text in tokens, which limits the memory for keys and values.
LONGEST_TEXT = 256
# Number of texts written at once, which share the cost of reading the weights. By default 16 sequences of 4 texts are wanted and
# 2 more are held out, which makes 72 texts.
TEXTS_AT_ONCE = 72


def end_tokens(model: Any) -> list[int]:
    """Return the tokens that end a text."""
    end = _special_token(model, "eos_token_id")
    return [] if end is None else [end] if isinstance(end, int) else list(end)


def _special_token(model: Any, name: str) -> Any:
    """Return a special token (or a list) from the generation settings, or else from the configuration; None if both lack it."""
    values = (getattr(source, name, None) for source in (model.generation_config, model.config))
    return next((value for value in values if value is not None), None)


def can_write_text(model: Any) -> bool:
    """Whether a model can write text without a prompt: a decoder that can generate and has a token to begin a text."""
    return _can_generate(model) and first_token(model) is not None


def _can_generate(model: Any) -> bool:
    if not predicts_next_token(model) or model.config.is_encoder_decoder:
        return False
    return hasattr(model, "can_generate") and bool(model.can_generate())


def first_token(model: Any) -> int | None:
    """Return the token that begins a text: the beginning-of-text token, or else one that ends a text."""
    candidates = [_special_token(model, "bos_token_id"), *end_tokens(model)]
    # Defaults of a configuration's class may lie outside the vocabulary.
    size = getattr(model.config.get_text_config(), "vocab_size", 0)
    return next((token for token in candidates if token is not None and 0 <= token < size), None)


@contextmanager
def generation_settings(model: Any, **settings: Any) -> Iterator[None]:
    """Make a model generate with these settings inside the context; its own generation settings have no effect there.

    See :class:`transformers.GenerationConfig` for the settings. Only the special tokens are those of the model, unless they are
    given.
    """
    names = ("bos_token_id", "pad_token_id", "decoder_start_token_id")
    special = {**{name: _special_token(model, name) for name in names}, "eos_token_id": end_tokens(model) or None}
    original = model.generation_config
    model.generation_config = GenerationConfig(**{**special, **settings})  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = original


@torch.no_grad()
def generate_text(
    model: Any,
    tokenizer: Any,
    samples: int,
    sequence_length: int,
    seed: int = 0,
    batch_size: int = TEXTS_AT_ONCE,
    progress: Progress | None = None,
) -> TokenSequences:
    """Let a model write sequences without a prompt.

    Each token is drawn with the probability that the model gives it. Inside a text there are no special tokens.

    Parameters
    ----------
    model : transformers causal language model
    tokenizer : transformers tokenizer or None
        Tells which tokens are special; without a tokenizer, only the tokens that begin and end a text are special.
    samples, sequence_length : int
        Number of sequences, and of tokens in each (fewer if the model takes fewer). A sequence of more than 256 tokens consists
        of several texts of one length; the last one may be cut off.
    seed : int
        Seed of the sampling. The random state of torch is neither read nor changed.
    batch_size : int
        Largest number of texts written at once; it is halved if the memory does not suffice. Another number leads to other
        rounding errors, and only these can change a text.
    progress : callable, optional
        See :func:`llmrank.calibration.collect.collect_statistics`.

    Raises
    ------
    UnsupportedModelError
        The model is no decoder, cannot generate, has no token to begin a text with, or fails while it generates.
    CalibrationError
        A number is out of range, or predictions are NaN or +Inf.

    Notes
    -----
    Cost: a forward pass for every token of a text, for each batch of texts. Memory: the keys and values of `batch_size` texts.
    A token takes one random number, which is looked up in the cumulated probabilities; ``torch.multinomial`` would draw a random
    number for every word of the vocabulary.
    """
    if not _can_generate(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot write text without a prompt; calibrate on a text file, or on the built-in text "
            "('built-in')"
        )
    if samples < 1 or sequence_length < 2 or batch_size < 1:
        raise CalibrationError(
            "expected at least 1 sample, a sequence length of at least 2 and a batch size of at least 1, got "
            f"{samples}, {sequence_length} and {batch_size}"
        )
    length = fitting_length(model, sequence_length)
    first = first_token(model)
    if first is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no token in its vocabulary to begin a text with; set config.bos_token_id, or "
            "calibrate on a text file"
        )
    size = model.config.get_text_config().vocab_size
    forbidden = torch.tensor(
        sorted(token for token in {first, *end_tokens(model), *special_ids(tokenizer)} if 0 <= token < size),
        dtype=torch.int64,
    )
    n_texts = -(-length // LONGEST_TEXT)
    text_length = -(-length // n_texts)
    draws = torch.rand(samples * n_texts, text_length - 1, generator=torch.Generator().manual_seed(seed))
    steps = range(-(-len(draws) // batch_size) * draws.shape[1])
    bar = iter(shown(progress, steps, "Writing calibration text"))
    with evaluation_mode(model), generation_settings(model, eos_token_id=None, max_new_tokens=text_length - 1):
        texts = [_write(model, first, forbidden, batch, bar) for batch in torch.split(draws, batch_size)]
    deque(bar, maxlen=0)  # takes the progress to its end
    ids = torch.cat(texts).reshape(samples, -1)[:, :length]
    description = f"written by the model itself, seed {seed}" + (
        f", texts of {text_length} tokens" if n_texts > 1 else ""
    )
    return TokenSequences.of(ids, torch.ones_like(ids, dtype=torch.bool), description)


def _write(model: Any, first: int, forbidden: torch.Tensor, draws: torch.Tensor, bar: Iterator[Any]) -> torch.Tensor:
    """Write one text for each row of random numbers; errors of the model's code become UnsupportedModelError.

    If the memory does not suffice, the texts are written in two halves.
    """
    from transformers import LogitsProcessorList

    starts = torch.full((len(draws), 1), first, device=input_device(model))

    def choose(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        next(bar, None)
        scores.index_fill_(1, forbidden.to(scores.device), -torch.inf)
        tokens = draw_tokens(scores, draws[:, ids.shape[1] - 1])
        # Without sampling, the model takes the token with the largest score.
        return scores.fill_(-torch.inf).scatter_(1, tokens, 0.0)

    try:
        texts: torch.Tensor = model.generate(
            input_ids=starts,
            attention_mask=torch.ones_like(starts),
            logits_processor=LogitsProcessorList([choose]),
            custom_generate=_generate_in_place,
        )
        return texts.cpu()
    except LLMRankError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            # The model's own code may raise any error, and the user may not have asked for generated text.
            raise UnsupportedModelError(
                f"{type(model).__name__} failed to write text ({type(error).__name__}: {error}); calibrate on a text file, or on "
                "the built-in text ('built-in')"
            ) from error
        if len(draws) == 1:
            raise
    # The halves are written outside the except clause: inside it, the error would still keep the keys and values in memory.
    halves = torch.split(draws, -(-len(draws) // 2))
    return torch.cat([_write(model, first, forbidden, half, bar) for half in halves])


def draw_tokens(scores: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Draw a token for each row of scores, with probabilities proportional to the exponential of the scores.

    Parameters
    ----------
    scores : (n, size) float32 tensor
        Overwritten, because to fill another tensor of this size would take as long as to cumulate the probabilities.
    draws : (n,) float32 tensor
        Uniform random numbers, at least 0 and below 1.

    Returns
    -------
    (n, 1) int64 tensor

    Raises
    ------
    CalibrationError
        A score is NaN or +Inf, or all of a row are -Inf.

    Examples
    --------
    >>> scores = torch.tensor([[0.25, 0.0, 0.75]]).log()
    >>> [draw_tokens(scores.clone(), torch.tensor([draw])).item() for draw in (0.0, 0.24, 0.26, 0.999)]
    [0, 0, 2, 2]
    """
    cumulated = scores.sub_(scores.amax(1, keepdim=True)).exp_().cumsum_(1)
    totals = cumulated[:, -1:]
    if not bool(totals.isfinite().all()):
        raise not_finite("the model's predictions are")
    # A place that is rounded up to the total would be behind the last token, so all places are made a little smaller.
    places = draws.to(scores.device)[:, None] * totals * (1.0 - torch.finfo(scores.dtype).eps)
    return torch.searchsorted(cumulated, places, right=True)


def _generate_in_place(
    model: Any, input_ids: torch.Tensor, *, logits_processor: Any, generation_config: Any, **others: Any
) -> torch.Tensor:
    """Generate text as the model does, but write new keys and values into allocated memory, without a copy of the others."""
    # The name of the argument with the cache differs between versions of transformers.
    given = {name: value for name, value in others.items() if isinstance(value, DynamicCache)}
    for cache in given.values():
        cache.layers = [
            _LayerWithRoom(generation_config.max_length) if type(layer) is DynamicLayer else layer
            for layer in cache.layers
        ]
    mask = others["attention_mask"]
    texts: torch.Tensor = model.generate(
        input_ids=input_ids, attention_mask=mask, logits_processor=logits_processor, **given
    )
    return texts


class _LayerWithRoom(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, with room for the longest text from the beginning.

    The layers of transformers' own dynamic cache copy all keys and values for every token, which takes a third of a step after
    200 tokens. Its static cache copies none, but then attention reads all of the room for every token, also the part not filled.
    """

    def __init__(self, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._length = length
        self._room: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start, new = self.get_seq_length(), (key_states, value_states)
        end = start + key_states.shape[-2]
        if start == 0:
            super().update(key_states, value_states, *args, **kwargs)
            self._room = [states.new_empty(*states.shape[:-2], self._length, states.shape[-1]) for states in new]
        for room, states in zip(self._room, new, strict=True):
            room[..., start:end, :] = states
        self.keys, self.values = (room[..., :end, :] for room in self._room)
        return self.keys, self.values
