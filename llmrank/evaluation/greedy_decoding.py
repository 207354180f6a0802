"""Whether a model writes given answers when it continues prompts greedily."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from llmrank.errors import CalibrationError, UnsupportedModelError, not_finite
from llmrank.models.forward import check_ids, evaluation_mode, input_device, longest_input, predicts_next_token
from llmrank.progress import Progress, shown
from llmrank.text.documents import plain_ids
from llmrank.text.tokenisation import special_tokens

__all__ = ["check_continues", "writes"]

# The token ids of a prompt with its answer, the number of tokens of the answer, and the position of the pair.
_Encoded = tuple[list[int], int, int]


def check_continues(model: Any) -> None:
    """Check that a model continues the text that it reads.

    Raises
    ------
    UnsupportedModelError
        The model is an encoder, an encoder-decoder or a plain module.
    """
    if not predicts_next_token(model) or model.config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not continue the text it reads, so it finds no last words and answers no items; "
            "expected a causal language model"
        )


@torch.no_grad()
def writes(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> list[bool | None]:
    """Return for each prompt whether the model writes its answer when it continues the prompt greedily.

    Every token of the answer must be the likeliest one after the prompt and the earlier tokens of the answer. What the model
    would write after the answer does not count. The prompt begins with the special tokens that the tokenizer puts in front of a
    text. If the model takes fewer tokens than a prompt and its answer have, the first tokens of the prompt are dropped.

    Parameters
    ----------
    model : transformers causal language model
    tokenizer : transformers tokenizer
    pairs : sequence of (str, str)
        Prompts and their answers.
    batch_tokens : int
        Largest number of tokens in a forward pass, padding included; a longer prompt is a batch of its own.
    progress : callable, optional
        See :func:`llmrank.calibration.collect.collect_statistics`.

    Returns
    -------
    list of bool or None
        None for a pair that cannot be used: a token runs across the end of the prompt into the answer, or the answer alone has as
        many tokens as the model takes, or more.

    Raises
    ------
    UnsupportedModelError
        The model does not continue a text: it is an encoder, an encoder-decoder or a plain module.
    CalibrationError
        There is no tokenizer, it fails, or it belongs to another model; or the predictions hold NaN.
    OptionError
        See :func:`llmrank.models.forward.input_device`.

    Notes
    -----
    Cost: a forward pass of the prompts with their answers. Memory: the logits of a batch, including those before the answers if
    the model cannot leave them out.
    """
    check_continues(model)
    if tokenizer is None:
        raise CalibrationError("last words and items need a tokenizer, and this model came without one; pass one")
    encoded = _encode(tokenizer, pairs, longest_input(model))
    can_leave_out_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
    found: list[bool | None] = [None] * len(pairs)
    with evaluation_mode(model):
        for batch in shown(progress, list(_batches(encoded, batch_tokens)), "Asking"):
            answers = _written(model, batch, can_leave_out_logits=can_leave_out_logits)
            for (_, _, position), right in zip(batch, answers, strict=True):
                found[position] = right
    return found


def _encode(tokenizer: Any, pairs: Sequence[tuple[str, str]], longest: int | None) -> list[_Encoded]:
    """Return the tokens of each pair that can be used."""
    front, _ = special_tokens(tokenizer)
    encoded = []
    for position, (prompt, answer) in enumerate(pairs):
        alone, both = plain_ids(tokenizer, prompt), plain_ids(tokenizer, prompt + answer)
        size = len(both) - len(alone)
        if both[: len(alone)] != alone or size < 1:
            continue
        # The model predicts the last token without reading it, so there may be one token more than it can read.
        ids = (front + both) if longest is None else (front + both)[-(longest + 1) :]
        # If all tokens belong to the answer, there is no prompt to continue.
        if len(ids) > size:
            encoded.append((ids, size, position))
    return encoded


def _batches(encoded: list[_Encoded], batch_tokens: int) -> Iterator[list[_Encoded]]:
    """Yield batches of pairs of similar length.

    The longest pairs come first, so that a lack of memory shows at once.
    """
    batch: list[_Encoded] = []
    for entry in sorted(encoded, key=lambda entry: -len(entry[0])):
        if batch and (len(batch) + 1) * (len(batch[0][0]) - 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(entry)
    if batch:
        yield batch


def _written(model: Any, batch: list[_Encoded], *, can_leave_out_logits: bool) -> list[bool]:
    """Return for each pair of a batch whether the model writes the answer."""
    longest = max(len(ids) for ids, *_ in batch) - 1
    inputs = torch.zeros((len(batch), longest), dtype=torch.long)
    mask = torch.zeros_like(inputs)
    for row, (ids, *_) in enumerate(batch):
        # Padding on the right does not change the predictions for the tokens before it, however the model counts positions.
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        mask[row, : len(ids) - 1] = 1
    check_ids(model, inputs)
    # Position of the first prediction that is needed: for some pair, it predicts the first token of the answer.
    first = min(len(ids) - 1 - size for ids, size, _ in batch)
    options: dict[str, Any] = {"use_cache": False} if getattr(model.config, "use_cache", False) else {}
    if can_leave_out_logits:
        options["logits_to_keep"] = longest - first
    device = input_device(model)
    logits = model(input_ids=inputs.to(device), attention_mask=mask.to(device), **options).logits[:, first - longest :]
    found = []
    for (ids, size, _), own in zip(batch, logits, strict=True):
        needed = own[len(ids) - 1 - size - first : len(ids) - 1 - first]
        if bool(needed.isnan().any()):
            raise not_finite("the model's predictions are")
        found.append(bool((needed.argmax(-1).cpu() == torch.tensor(ids[-size:])).all()))
    return found
