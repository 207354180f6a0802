"""What a language model writes: with settings of ours instead of its own, and as a text to calibrate on.

A model's own text is near what it was trained on, whatever that was, and needs no data. Source: Williams, Chrysostomou and
Aletras 2024 (arXiv 2410.17170); here it is sampled at temperature 1 throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from llmrank.calibration.forward import Progress, evaluation_mode, fitting_length, input_device
from llmrank.calibration.logits import check_predicts, has_perplexity
from llmrank.calibration.text import TokenSequences
from llmrank.errors import CalibrationError, LLMRankError, UnsupportedModelError, out_of_memory

__all__ = ["AT_ONCE", "GENERATED", "PIECE", "end_tokens", "generated_text", "generating", "writes_text"]

# What names such a text where a path or a text is expected.
GENERATED = "generated"
# Longer sequences hold several texts of at most so many tokens, so that their keys and values stay few.
PIECE = 256
# Texts written at once: enough that the weights are not read for one token alone, few enough for their keys and values.
AT_ONCE = 16


def end_tokens(model: Any) -> list[int]:
    """The tokens that end a text."""
    end = _special(model, "eos_token_id")
    return [] if end is None else [end] if isinstance(end, int) else list(end)


def _special(model: Any, name: str) -> Any:
    """A token id (or list of them) as the generation settings have it, else the configuration; None for none."""
    stated = (getattr(source, name, None) for source in (model.generation_config, model.config))
    return next((value for value in stated if value is not None), None)


def writes_text(model: Any) -> bool:
    """Whether a model writes text by itself: a decoder that predicts tokens, can generate, and has a token to begin with.

    Parameters
    ----------
    model : nn.Module
        Any; only asked, never run.

    Returns
    -------
    bool
    """
    return _generates(model) and _beginning(model) is not None


def _generates(model: Any) -> bool:
    if not has_perplexity(model) or model.config.is_encoder_decoder:
        return False
    return hasattr(model, "can_generate") and bool(model.can_generate())


def _beginning(model: Any) -> int | None:
    """The token that a text begins with: of the beginning of a text, or else what ends one.

    Configurations may name tokens that the model does not have: those that its class has by default.
    """
    named = [_special(model, "bos_token_id"), *end_tokens(model)]
    size = getattr(model.config.get_text_config(), "vocab_size", 0)
    return next((token for token in named if token is not None and 0 <= token < size), None)


@contextmanager
def generating(model: Any, **settings: Any) -> Iterator[None]:
    """Let a model generate with these settings and no others: `generate` fills up what it is not told from the model's own.

    Parameters
    ----------
    model : transformers language model
    **settings
        See :class:`transformers.GenerationConfig`; the special tokens are the model's unless they are given.
    """
    names = ("bos_token_id", "pad_token_id", "decoder_start_token_id")
    special = {**{name: _special(model, name) for name in names}, "eos_token_id": end_tokens(model) or None}
    own = model.generation_config
    model.generation_config = GenerationConfig(**{**special, **settings})  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own


@torch.no_grad()
def generated_text(
    model: Any,
    tokenizer: Any,
    samples: int,
    sequence_length: int,
    seed: int = 0,
    batch_size: int = AT_ONCE,
    progress: Progress | None = None,
) -> TokenSequences:
    """Sequences that a model writes by itself, token by token as likely as it holds them, without special tokens inside a text.

    Parameters
    ----------
    model : transformers causal language model
        Left as it came.
    tokenizer : transformers tokenizer or None
        Says which tokens are special; without one only those that begin and end a text are.
    samples, sequence_length : int
        Sequences, and their tokens, capped at what the model takes. A sequence of more than 256 tokens holds several texts of
        one length, one after the other (the last may be cut off). Every text begins with the token of the beginning of a text,
        or with what ends one.
    seed : int
        Of the sampling; torch's random state is left as it was, of the CPU and of CUDA devices.
    batch_size : int
        Texts written at once. What they say depends on it.
    progress : callable, optional
        See :func:`llmrank.calibration.statistics.collect`.

    Raises
    ------
    UnsupportedModelError
        The model is no decoder, cannot generate, has neither a beginning nor an end of text in its vocabulary, or fails at it.
    CalibrationError
        Bad numbers, or predictions that are not numbers.

    Notes
    -----
    Cost: a forward pass of one token a text for every token, which takes several times as long as to read them; 16 sequences
    of 1024 tokens take 1020. Memory: the keys and values of `batch_size` texts, which short texts keep small.
    """
    from transformers import LogitsProcessorList

    check_predicts(model, "text of its own")
    if not _generates(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} writes no text by itself; calibrate on a text file, or on the built-in text "
            "('built-in')"
        )
    if samples < 1 or sequence_length < 2 or batch_size < 1:
        raise CalibrationError(
            "expected at least 1 sample, a sequence length of at least 2 and a batch size of at least 1, got "
            f"{samples}, {sequence_length} and {batch_size}"
        )
    length = fitting_length(model, sequence_length)
    begin = _beginning(model)
    if begin is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} knows no token of its vocabulary to begin a text with; set config.bos_token_id, or "
            "calibrate on a text file"
        )
    size = model.config.get_text_config().vocab_size
    forbidden = sorted(token for token in {begin, *end_tokens(model), *_special_tokens(tokenizer)} if token < size)
    pieces = -(-length // PIECE)
    piece = -(-length // pieces)
    starts = torch.full((samples * pieces, 1), begin, device=input_device(model))
    settings = {
        "do_sample": True,
        "top_k": 0,
        "max_new_tokens": piece - 1,
        "eos_token_id": None,
        "suppress_tokens": forbidden or None,
    }
    with (
        evaluation_mode(model),
        generating(model, **settings),
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
    ):
        torch.manual_seed(seed)
        batches: list[torch.Tensor] = list(torch.split(starts, batch_size))
        try:
            written = [
                model.generate(
                    input_ids=batch,
                    attention_mask=torch.ones_like(batch),
                    logits_processor=LogitsProcessorList([_refuse_no_numbers]),
                )
                for batch in (progress(batches, "Writing calibration text") if progress else batches)
            ]
        except LLMRankError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            # Whatever a model's own code does there, it was not the user who asked for it.
            raise UnsupportedModelError(
                f"{type(model).__name__} failed to write text ({type(error).__name__}: {error}); calibrate on a text file, or on "
                "the built-in text ('built-in')"
            ) from error
    ids = torch.cat(written).cpu().reshape(samples, -1)[:, :length]
    said = f"written by the model itself, seed {seed}" + (f", texts of {piece} tokens" if pieces > 1 else "")
    return TokenSequences.of(ids, torch.ones_like(ids, dtype=torch.bool), said)


def _special_tokens(tokenizer: Any) -> set[int]:
    """Those with a name, and others that were added as special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*getattr(tokenizer, "all_special_ids", ()), *(token for token, said in added.items() if said.special)}


def _refuse_no_numbers(_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Before they are sampled from: on a GPU that would end the process's use of it."""
    if not bool((scores < torch.inf).all()):
        raise CalibrationError(
            "the model's predictions are not finite: the weights hold NaN or Inf, or the dtype overflows; load the model in "
            "float32 or bfloat16"
        )
    return scores
