"""Calibration text that a language model writes by itself, and the settings with which a model generates.

A model's own text resembles its training data. Source: Williams, Chrysostomou and Aletras 2024 (arXiv 2410.17170); here the text
is sampled at temperature 1 throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from llmrank.calibration.forward import Progress, evaluation_mode, fitting_length, input_device
from llmrank.calibration.logits import predicts_next_token
from llmrank.calibration.text import TokenSequences
from llmrank.errors import CalibrationError, LLMRankError, UnsupportedModelError, is_out_of_memory

__all__ = [
    "LONGEST_TEXT",
    "TEXTS_AT_ONCE",
    "can_write_text",
    "end_tokens",
    "generate_text",
    "generation_settings",
]

# Longest text in tokens, which limits the memory for keys and values.
LONGEST_TEXT = 256
# Number of texts written at once: enough to share the cost of reading the weights, and few enough for small keys and values.
TEXTS_AT_ONCE = 16


def end_tokens(model: Any) -> list[int]:
    """Return the tokens that end a text."""
    end = _stated_token(model, "eos_token_id")
    return [] if end is None else [end] if isinstance(end, int) else list(end)


def _stated_token(model: Any, name: str) -> Any:
    """Return a special token (or a list) from the generation settings, or else from the configuration; None if both lack it."""
    stated = (getattr(source, name, None) for source in (model.generation_config, model.config))
    return next((value for value in stated if value is not None), None)


def can_write_text(model: Any) -> bool:
    """Whether a model can write text without a prompt: a decoder that can generate and has a token to begin a text."""
    return _can_generate(model) and _first_token(model) is not None


def _can_generate(model: Any) -> bool:
    if not predicts_next_token(model) or model.config.is_encoder_decoder:
        return False
    return hasattr(model, "can_generate") and bool(model.can_generate())


def _first_token(model: Any) -> int | None:
    """Return the token that begins a text: the beginning-of-text token, or else one that ends a text."""
    candidates = [_stated_token(model, "bos_token_id"), *end_tokens(model)]
    # Defaults of a configuration's class may lie outside the vocabulary.
    size = getattr(model.config.get_text_config(), "vocab_size", 0)
    return next((token for token in candidates if token is not None and 0 <= token < size), None)


@contextmanager
def generation_settings(model: Any, **settings: Any) -> Iterator[None]:
    """Make a model generate with these settings alone, and not with its own, inside the context.

    See :class:`transformers.GenerationConfig`. Special tokens are those of the model unless they are given.
    """
    names = ("bos_token_id", "pad_token_id", "decoder_start_token_id")
    special = {**{name: _stated_token(model, name) for name in names}, "eos_token_id": end_tokens(model) or None}
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
    """Let a model write sequences by itself; each token is sampled by its probability, without special tokens inside a text.

    Parameters
    ----------
    model : transformers causal language model
    tokenizer : transformers tokenizer or None
        Tells which tokens are special; without a tokenizer, only the tokens that begin and end a text are.
    samples, sequence_length : int
        Number of sequences, and of tokens in each (fewer if the model takes fewer). A sequence of more than 256 tokens consists
        of several texts of one length; the last one may be cut off.
    seed : int
        Seed of the sampling. The random state of torch is restored afterwards, on the CPU and on CUDA devices.
    batch_size : int
        Number of texts written at once; the texts depend on it.
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
    first = _first_token(model)
    if first is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no token in its vocabulary to begin a text with; set config.bos_token_id, or "
            "calibrate on a text file"
        )
    size = model.config.get_text_config().vocab_size
    forbidden = sorted(token for token in {first, *end_tokens(model), *_special_tokens(tokenizer)} if token < size)
    n_texts = -(-length // LONGEST_TEXT)
    text_length = -(-length // n_texts)
    starts = torch.full((samples * n_texts, 1), first, device=input_device(model))
    settings = {
        "do_sample": True,
        "top_k": 0,
        "max_new_tokens": text_length - 1,
        "eos_token_id": None,
        "suppress_tokens": forbidden or None,
    }
    texts = _generate(model, list(torch.split(starts, batch_size)), settings, seed, progress)
    ids = torch.cat(texts).cpu().reshape(samples, -1)[:, :length]
    description = f"written by the model itself, seed {seed}" + (
        f", texts of {text_length} tokens" if n_texts > 1 else ""
    )
    return TokenSequences.of(ids, torch.ones_like(ids, dtype=torch.bool), description)


def _generate(
    model: Any, batches: list[torch.Tensor], settings: dict[str, Any], seed: int, progress: Progress | None
) -> list[torch.Tensor]:
    """Continue each batch of first tokens; errors of the model's code, but not out-of-memory, become UnsupportedModelError."""
    from transformers import LogitsProcessorList

    with (
        evaluation_mode(model),
        generation_settings(model, **settings),
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
    ):
        torch.manual_seed(seed)
        try:
            return [
                model.generate(
                    input_ids=batch,
                    attention_mask=torch.ones_like(batch),
                    logits_processor=LogitsProcessorList([_check_scores_finite]),
                )
                for batch in (progress(batches, "Writing calibration text") if progress else batches)
            ]
        except LLMRankError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            # The model's own code may raise any error, and the user may not have asked for generated text.
            raise UnsupportedModelError(
                f"{type(model).__name__} failed to write text ({type(error).__name__}: {error}); calibrate on a text file, or on "
                "the built-in text ('built-in')"
            ) from error


def _special_tokens(tokenizer: Any) -> set[int]:
    """Return the special tokens of a tokenizer: those with a name, and those that were added as special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*getattr(tokenizer, "all_special_ids", ()), *(id_ for id_, token in added.items() if token.special)}


def _check_scores_finite(_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Check predictions before they are sampled: on a GPU, sampling from NaN makes the device unusable for the process."""
    if not bool((scores < torch.inf).all()):
        raise CalibrationError(
            "the model's predictions are not finite: the weights hold NaN or Inf, or the dtype overflows; load the model in "
            "float32 or bfloat16"
        )
    return scores
